"""Gathers all that the report's page shows, and draws its figures."""

from collections.abc import Mapping, Sequence

import pandas as pd
import pyarrow as pa
from matplotlib.figure import Figure

from pipelines import config as configuration
from pipelines.config.report import ReportSettings
from pipelines.report.activity import activity_figure
from pipelines.report.agreement import confusion_tables, statements
from pipelines.report.channels import channel_figure
from pipelines.report.clusters import cluster_cards, cluster_names
from pipelines.report.coverage import coverage_figure
from pipelines.report.distributions import distribution_figure
from pipelines.report.page import ClusterCard, Drawing, Page
from pipelines.report.rhythm import recorded_days, rhythm_figure
from pipelines.report.spectra import spectra_figure
from pipelines.report.stage_coverage import read_channels, read_coverage
from pipelines.report.stage_drift import drift_section
from pipelines.report.stage_gallery import band_words, gallery_items, shown_band
from pipelines.report.stage_inputs import read_evaluation
from pipelines.report.stage_lineage import lineage
from pipelines.report.stage_map import draw_map
from pipelines.report.stage_reading import read_events
from pipelines.report.stage_spectra import read_spectra
from pipelines.report.style import drawing, to_files, to_svg
from pipelines.report.summary import LabelSummary
from pipelines.report.words import count_words, percent, span_words, thousands
from pipelines.tracking.server import Tracking
from pipelines.workspace.storage import Store
from pipelines.workspace.workspace import Workspace


def build_page(
    workspace: Workspace,
    settings: ReportSettings,
    summary: LabelSummary,
    catalog_files: Sequence[str],
    catalog_events: int,
    within_seconds: float,
    notes: Sequence[str],
    tracking: Tracking | None,
) -> Page:
    """Return the page of a workspace: reads the chosen events and draws all figures.

    `catalog_files` are paths in the workspace; `notes` are sentences that a reader must see before the numbers.
    """
    store = workspace.store
    evaluation = read_evaluation(store)
    band_hz = shown_band(workspace, settings)
    names = cluster_names(summary, evaluation)
    titles = {cluster: f"{cluster} · {name}" if name else f"cluster {cluster}" for cluster, name in names.items()}
    sample = _sample_with_measures(store, summary.sample)
    cards = cluster_cards(summary, names, sample)
    coverage, coverage_words = read_coverage(store)
    units = str(workspace.stored_config("detect").get("detection", {}).get("units", "counts"))
    map_drawing, map_words = draw_map(store, settings, summary.sample, titles)
    drift_words, drift_lines = drift_section(store)
    total = int(summary.groups["events"].sum())
    sites = summary.groups.groupby("site")["events"].sum()
    first, last = (
        pd.Timestamp(int(time), tz="UTC") for time in (summary.files["first_ns"].min(), summary.files["last_ns"].max())
    )
    title = store.url.rstrip("/").rpartition("/")[2] or store.url
    return Page(
        title=title,
        lede=_lede(total, len(sites), first, last, cards),
        notes=tuple(notes),
        facts=(
            (thousands(total), "detections"),
            (thousands(catalog_events), "associated events"),
            (str(len(sites)), "stations"),
            (str(len(cards)), "clusters"),
            (span_words(first, last), "from the first onset to the last"),
        ),
        clusters=tuple(cards),
        gallery=tuple(gallery_items(store, settings, summary, band_hz)),
        band_words=band_words(band_hz),
        statements=tuple(statements(evaluation)),
        confusions=tuple(confusion_tables(evaluation)),
        no_evaluation=(
            "The label stage had no hand labels and no truth (labels.path), so nothing can be said about how well the "
            "clusters agree with known classes. Clusters are groups of similar waveforms; they need not be kinds of "
            "events."
        ),
        activity=_activity(summary, titles, coverage),
        measures=_measures(store, summary, titles, units, band_hz),
        coverage=_coverage(store, summary, coverage, coverage_words),
        drift_words=drift_words,
        drift=drift_lines,
        map=() if map_drawing is None else (_drawn("map", map_drawing, "Map of the embedding", map_words),),
        no_map=map_words if map_drawing is None else "",
        catalogue_words=(
            f"The catalogue has {count_words(catalog_events, 'event')}. All detections within {within_seconds:g} s of "
            "an event's first detection, at any station, belong to that event. Events have onsets (picks of the "
            "automatic detector, without a phase) but no origin and no magnitude, since neither is computed. The "
            "Parquet and CSV files have one row for each event; its event_ids lead to the rows of events, embeddings "
            "and labels."
        ),
        catalogue_files=tuple((f"../{path}", path.removeprefix("catalog/")) for path in catalog_files),
        catalogue_note=_catalogue_note(store),
        lineage=tuple(lineage(workspace, tracking)),
        configuration=tuple(
            (stage, configuration.to_yaml(stored))
            for stage in ("synthesize", "detect", "train", "label", "report")
            if (stored := workspace.stored_config(stage))
        ),
    )


def _drawn(name: str, figure: Figure, description: str, caption: str) -> Drawing:
    with drawing():
        files = to_files(figure)
        return Drawing(name=name, svg=to_svg(figure, description, dpi=200), caption=caption, files=files)


def _activity(summary: LabelSummary, titles: Mapping[int, str], coverage: pd.DataFrame) -> tuple[Drawing, ...]:
    """Return the detections over time, and by hour and month."""
    sites = set(summary.groups["site"])
    # Only where the recorded days of every station are known, the rate in a month is one.
    known = len(coverage) and sites <= set(coverage["station"])
    recorded = recorded_days(coverage["day"], coverage["fraction"]) if known else None
    with drawing():
        over_time = activity_figure(summary.by_cluster, titles)
        cycles = rhythm_figure(summary.rhythm, titles, recorded)
    rate = "detections in a station-day of recording; grey months have none" if known else "counts"
    return (
        _drawn(
            "activity",
            over_time,
            "Detections of each cluster over time",
            f"Detections of each cluster in bins of {summary.by_cluster.width_name}, UTC. Each panel has its own "
            "scale.",
        ),
        _drawn(
            "rhythm",
            cycles,
            "Detections of each cluster by hour of the day and month of the year",
            f"Detections of each cluster by hour of the day (UTC) and by month of the year, all years together. Months "
            f"show {rate}. Each panel has its own scale.",
        ),
    )


def _measures(
    store: Store, summary: LabelSummary, titles: Mapping[int, str], units: str, band_hz: tuple[float, float] | None
) -> tuple[Drawing, ...]:
    """Return what the clusters look like: spectra, durations, amplitudes."""
    spectra = read_spectra(store, summary.sample)
    with drawing():
        distributions = distribution_figure(summary.measures, titles, units)
        spectral = spectra_figure(spectra, titles, units, band_hz) if spectra else None
    drawn = [
        _drawn(
            "distributions",
            distributions,
            "Durations and peak amplitudes of each cluster",
            "Durations of the triggers and peak amplitudes of all detections, ten bins a decade; the line is the "
            "median. Each panel has its own scale.",
        )
    ]
    if spectral is not None:
        shaded = "" if band_hz is None else " The grey stretch is the band of the detection."
        drawn.insert(
            0,
            _drawn(
                "spectra",
                spectral,
                "Mean spectrum of each cluster",
                "Mean power spectral density of randomly drawn windows of each cluster (their number in brackets), "
                "the component that triggered, as recorded; shaded is the middle half of the events. The grey line "
                f"is the mean of all clusters.{shaded}",
            ),
        )
    return tuple(drawn)


def _coverage(store: Store, summary: LabelSummary, coverage: pd.DataFrame, words: str) -> tuple[Drawing, ...]:
    """Return what was recorded, and what became of it."""
    days, seconds, channels = read_channels(store)
    with drawing():
        by_station = coverage_figure(coverage, summary.by_site)
        by_channel = channel_figure(days, seconds) if len(seconds) else None
    drawn = [
        _drawn(
            "coverage",
            by_station,
            "Coverage by station and day",
            f"Recorded part of each day by station, and detections over time. {words}",
        )
    ]
    if by_channel is not None:
        drawn.append(
            _drawn(
                "channels",
                by_channel,
                "What became of each channel's recordings",
                f"Used part of each day by channel, and what became of all its seconds; {channels}. What each outcome "
                "means is in the documentation of the detection.",
            )
        )
    return tuple(drawn)


def _lede(total: int, sites: int, first: pd.Timestamp, last: pd.Timestamp, cards: Sequence[ClusterCard]) -> str:
    largest = max(cards, key=lambda card: card.events)
    name = f"cluster {largest.number}" + (f", {largest.name}" if largest.name else "")
    return (
        f"{count_words(total, 'detection')} at {count_words(sites, 'station')} between {first:%Y-%m-%d %H:%M} and "
        f"{last:%Y-%m-%d %H:%M} UTC fall into {count_words(len(cards), 'cluster')}; the largest is {name}, with "
        f"{percent(largest.share)}."
    )


def _catalogue_note(store: Store) -> str:
    if store.is_local:
        return "The links work where the page lies in the workspace, not in a copy of the page alone."
    return (
        f"This page and its catalogue lie in a bucket; programs read the catalogue at {store.full('catalog')}/. A "
        "browser follows the links where the bucket is mounted or served as a web site, or in a copy of both folders: "
        f"aws s3 cp --recursive {store.full('catalog')} catalog and "
        f"aws s3 cp --recursive {store.full('report')} report, then open report/index.html."
    )


def _sample_with_measures(store: Store, sample: pd.DataFrame) -> pd.DataFrame:
    read = read_events(store, "events", sample, ("event_id", "duration_s", "snr_db"))
    return sample.merge(pa.concat_tables(read).to_pandas(), on="event_id", how="left")
