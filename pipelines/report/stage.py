"""Report: reads events, embeddings and labels, writes `catalog/` and `report/index.html`.

Labels are folded file by file into a summary of bounded size, as Ray tasks where they are many; of the other tables
only the files, columns and row groups that hold chosen events are read. The catalogue is written a month at a time.
Nothing of it depends on the order or number of the tasks.
"""

import importlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines import __version__
from pipelines import config as configuration
from pipelines.config import Config
from pipelines.config.label import LabelsSettings
from pipelines.config.report import CatalogSettings, ReportSettings
from pipelines.report import catalogue, embedding_map
from pipelines.report.activity import activity_figure, coverage_figure
from pipelines.report.confusion import confusion_rows
from pipelines.report.figures import cluster_colour, drawing, to_svg
from pipelines.report.gallery import choose_gallery, event_figure
from pipelines.report.page import ClusterCard, ConfusionTable, GalleryItem, Page, Statement, percent, render
from pipelines.report.summary import LabelSummary, SummarySize, merge_all, summarise
from pipelines.runtime.errors import InputError
from pipelines.runtime.ray_session import task_results
from pipelines.tracking.runs import finished_runs, stage_run
from pipelines.tracking.server import Tracking
from pipelines.workspace import tables
from pipelines.workspace.ledger import (
    MarkerName,
    fingerprint,
    list_markers,
    marker_path,
    read_marker,
    stage_fingerprint,
    write_marker,
)
from pipelines.workspace.storage import Store
from pipelines.workspace.workspace import Workspace

T = TypeVar("T")
R = TypeVar("R")

ALGORITHM_VERSION = 1
"""Raised by hand when the same tables and settings give another catalogue or page."""

PAGE_PATH = "report/index.html"
FILES_PER_TASK = 64
ROWS_AT_ONCE = 200_000
READ_THREADS = 8
COVERAGE_STATIONS = 60
EVALUATION_PATH = "clustering/summary.json"
SCORE_TITLES = {
    "test.hungarian_accuracy": ("accuracy, one cluster to each class", True),
    "test.purity": ("accuracy, clusters named by their majority", True),
    "test.balanced_purity": ("mean recall of the classes, clusters named by their majority", True),
    "test.majority_baseline": ("accuracy of always saying the most frequent class", True),
    "test.knn_accuracy": ("accuracy of nearest neighbours in the embedding", True),
    "test.linear_accuracy": ("accuracy of a linear classifier on the embedding", True),
    "test.knn_station_accuracy": ("accuracy of nearest neighbours at an unseen station", True),
    "test.linear_station_accuracy": ("accuracy of a linear classifier at an unseen station", True),
    "test.nmi": ("normalised mutual information", False),
    "test.ari": ("adjusted Rand index", False),
}
"""Scores of the label stage that may be published, their titles, and whether they are shares."""

LABEL_COLUMNS = (
    "event_id",
    "network",
    "station",
    "location",
    "onset",
    "cluster",
    "distance",
    "margin",
    "label",
    "label_source",
)
EVENT_COLUMNS = (
    "event_id",
    "duration_s",
    "peak_ratio",
    "snr_db",
    "peak_amplitude",
    "units",
    "trigger_channel",
)
GALLERY_COLUMNS = (*EVENT_COLUMNS, "channels", "onset", "window_start", "sampling_rate", "waveform")


@dataclass(frozen=True, kw_only=True)
class ReportResult:
    """What the report stage wrote."""

    events: int
    """Rows of `labels/`."""
    clusters: Mapping[int, int]
    """Rows of each cluster."""
    catalog_events: int
    """Associated events in the catalogue."""
    page: str
    """Path or URL of the page."""


def write_report(
    workspace: Workspace, config: Config, tracking: Tracking | None, *, replace: bool = False
) -> ReportResult:
    """Write the catalogue and the page, print what was found, log both to MLflow, and return the counts.

    Where both were made from the same tables with the same settings before, nothing is done again.

    Raises:
        InputError: the workspace has no labels, or a report with other settings and no `replace`.
    """
    store = workspace.store
    files = label_files(workspace)
    workspace.claim("report", config, replace=replace)
    marker = _marker_name(workspace, config)
    before = list(list_markers(store, "report"))
    if marker in before and store.exists(PAGE_PATH):
        content = read_marker(store, "report", marker)
        print("report: made from the same tables before; nothing to do")
        return _say(store, content)
    per_role = config.report.nearest_per_cluster + config.report.random_per_cluster + config.report.boundary_per_cluster
    summary = summarise_labels(store, files, SummarySize(per_role=per_role, sample=config.report.map_events))
    if not summary.files["events"].sum():
        raise InputError(f"the labels in {workspace.url} have no rows; nothing was detected, so there is no report")
    within_seconds = association_seconds(workspace)
    catalog_files, catalog_events = write_catalog(workspace, config.catalog, summary, within_seconds)
    page = build_page(workspace, config.report, summary, catalog_files, catalog_events, within_seconds, tracking)
    html = render(page)
    store.write(PAGE_PATH, html.encode())
    clusters = summary.groups.groupby("cluster")["events"].sum()
    content = {
        "words": _words(page),
        "counts": {
            "events": int(clusters.sum()),
            "clusters": {str(cluster): int(count) for cluster, count in clusters.items()},
            "catalog_events": catalog_events,
        },
        "code_version": __version__,
    }
    if tracking is not None:
        inputs = {"labels": stage_fingerprint(store, "label")}
        with stage_run(tracking, "report", configuration.stage_config(config, "report"), inputs=inputs) as run:
            run.log_metrics(
                {"events": int(clusters.sum()), "catalog_events": catalog_events, "clusters": len(clusters)}
            )
            run.log_text(html, "report/index.html")
            content["mlflow_run_id"] = run.run_id
    write_marker(store, "report", marker, content)
    for name in before:
        if name != marker:
            store.remove(marker_path("report", name))
    return _say(store, content)


def _marker_name(workspace: Workspace, config: Config) -> MarkerName:
    """Return the marker of a workspace's one report: its fingerprint covers tables, settings and code."""
    store = workspace.store
    labels = [(item.path, item.size, item.etag) for item in tables.list_shards(store, "labels")]
    values = {
        "labels": labels,
        "detect": stage_fingerprint(store, "detect"),
        "evaluation": _evaluation(store),
        "association_seconds": association_seconds(workspace),
        "settings": configuration.stage_output_keys(config, "report"),
        "algorithm_version": ALGORITHM_VERSION,
    }
    return MarkerName("all", "all", "report", fingerprint(values))


def _words(page: Page) -> list[str]:
    """Return what is printed: events by cluster, and agreement with known classes."""
    words = [page.lede]
    for card in page.clusters:
        name = f" ({card.name})" if card.name else ""
        words.append(f"  cluster {card.number}{name}: {_number(card.events, 'detection')}, {percent(card.share)}")
    return words + [f"  {statement.title}: {statement.value}" for statement in page.statements]


def _say(store: Store, content: Mapping[str, Any]) -> ReportResult:
    counts = content["counts"]
    page = store.full(PAGE_PATH)
    print("\n".join([*content["words"], f"report: {page}"]), flush=True)
    return ReportResult(
        events=counts["events"],
        clusters={int(cluster): count for cluster, count in counts["clusters"].items()},
        catalog_events=counts["catalog_events"],
        page=page,
    )


def label_files(workspace: Workspace) -> list[str]:
    """Return the files of `labels/`, relative to it; InputError where there is none."""
    files = [item.path.removeprefix("labels/") for item in tables.list_shards(workspace.store, "labels")]
    if not files:
        raise InputError(f"{workspace.url} has no labels; run firnline label {workspace.url} first")
    return files


def wants_ray(workspace: Workspace) -> bool:
    """Whether there is enough to read for Ray to pay; InputError where the workspace has no labels."""
    return len(label_files(workspace)) > FILES_PER_TASK


def association_seconds(workspace: Workspace) -> float:
    """Return the time within which triggers are one event, as the labels were made with it."""
    stored = workspace.stored_config("label").get("labels", {})
    return LabelsSettings.model_validate(stored).association_seconds


def summarise_labels(store: Store, files: Sequence[str], size: SummarySize) -> LabelSummary:
    """Fold all files of `labels/` (paths below it) into one summary: as Ray tasks where they are many and Ray runs."""
    parts = [files[start : start + FILES_PER_TASK] for start in range(0, len(files), FILES_PER_TASK)]
    return merge_all(_map_tasks(lambda part: summarise_files(store, part, size), parts), size)


def summarise_files(store: Store, files: Sequence[str], size: SummarySize) -> LabelSummary:
    """Fold some files of `labels/` into one summary, some rows at a time."""

    def batches() -> Iterator[pd.DataFrame]:
        held: list[pd.DataFrame] = []
        for file in files:
            held.append(read_columns(store, f"labels/{file}", LABEL_COLUMNS).to_pandas().assign(file=file))
            if sum(map(len, held)) >= ROWS_AT_ONCE:
                yield pd.concat(held, ignore_index=True)
                held = []
        if held:
            yield pd.concat(held, ignore_index=True)

    return merge_all((summarise(rows, size) for rows in batches()), size)


def _map_tasks(task: Callable[[T], R], parts: Sequence[T]) -> Iterator[R]:
    """Yield the task's result for every part, in order; as Ray tasks, a few ahead, where Ray runs and it pays."""
    ray: Any = importlib.import_module("ray")
    if len(parts) == 1 or not ray.is_initialized():
        yield from map(task, parts)
        return
    remote = ray.remote(num_cpus=1, max_retries=3)(task)
    ahead = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting = [remote.remote(part) for part in parts[:ahead]]
    for index in range(len(parts)):
        yield from task_results([waiting.pop(0)])
        if index + ahead < len(parts):
            waiting.append(remote.remote(parts[index + ahead]))


def write_catalog(
    workspace: Workspace, settings: CatalogSettings, summary: LabelSummary, within_seconds: float
) -> tuple[list[str], int]:
    """Write `catalog/<yyyy-mm>.*` for every month with events; return the files and the number of events.

    Files of months or formats that no longer exist are removed. Months are written by a task each where Ray runs.
    """
    store = workspace.store
    method = f"sta-lta/{fingerprint(workspace.stored_config('detect'))}"

    def write(month: _Month) -> tuple[list[str], int]:
        detections = read_detections(store, month.files, month.start_ns, month.beyond_ns)
        owned, _ = catalogue.events_opened_before(detections, month.end_ns, month.taken_until_ns, within_seconds)
        events, picks = catalogue.associated_events(owned, within_seconds, settings.min_stations, settings.event_types)
        if not len(events):
            return [], 0
        return _write_month(store, settings, month.name, events, picks, method), len(events)

    results = list(_map_tasks(write, _months(store, summary, within_seconds)))
    written = sorted(path for paths, _ in results for path in paths)
    for item in list(store.walk("catalog")):
        if item.path not in written:
            store.remove(item.path)
    return written, sum(count for _, count in results)


@dataclass(frozen=True, kw_only=True)
class _Month:
    """A month of the catalogue: times in ns since 1970-01-01 UTC."""

    name: str
    start_ns: int
    end_ns: int
    beyond_ns: int
    """Until when detections may belong to an event of the month."""
    taken_until_ns: int
    """Until when detections belong to an event of an earlier month."""
    files: tuple[str, ...]
    """Files of `labels/` with detections of the month or just after it."""


def _months(store: Store, summary: LabelSummary, within_seconds: float) -> list[_Month]:
    """Return every month that a file with rows touches, in order.

    An event that opens at the end of a month takes detections of the next one, so the months are looked at one after
    the other first, at onsets alone.
    """
    touched: set[np.datetime64] = set()
    for first_ns, last_ns in zip(summary.files["first_ns"], summary.files["last_ns"], strict=True):
        first, last = (np.datetime64(int(time), "ns").astype("datetime64[M]") for time in (first_ns, last_ns))
        touched.update(np.arange(first, last + 1))
    months = []
    taken_until_ns = int(np.iinfo(np.int64).min)
    for month in sorted(touched):
        start_ns, end_ns = (int(time.astype("datetime64[ns]").astype(np.int64)) for time in (month, month + 1))
        beyond_ns = end_ns + round(within_seconds * 1e9) + 1
        overlapping = summary.files[(summary.files["first_ns"] < beyond_ns) & (summary.files["last_ns"] >= start_ns)]
        files = tuple(overlapping["file"].tolist())
        months.append(
            _Month(
                name=str(month),
                start_ns=start_ns,
                end_ns=end_ns,
                beyond_ns=beyond_ns,
                taken_until_ns=taken_until_ns,
                files=files,
            )
        )
        onsets = _read_onsets(store, files, start_ns, beyond_ns)
        _, taken_until_ns = catalogue.events_opened_before(onsets, end_ns, taken_until_ns, within_seconds)
    return months


def _read_onsets(store: Store, files: Sequence[str], start_ns: int, end_ns: int) -> pd.DataFrame:
    def read(file: str) -> pd.DataFrame:
        onsets: pd.DataFrame = read_columns(store, f"labels/{file}", ("onset",)).to_pandas()
        onset_ns = catalogue.onset_nanoseconds(onsets)
        return onsets[(onset_ns >= start_ns) & (onset_ns < end_ns)]

    with ThreadPoolExecutor(READ_THREADS) as pool:
        return pd.concat(pool.map(read, files), ignore_index=True)


def _write_month(
    store: Store, settings: CatalogSettings, month: str, events: pd.DataFrame, picks: pd.DataFrame, method: str
) -> list[str]:
    written = []
    if "quakeml" in settings.formats:
        pieces = catalogue.quakeml(month, events, picks, settings.authority, settings.agency, method)
        with store.atomic_file(f"catalog/{month}.xml") as temporary, temporary.open("w", encoding="utf-8") as file:
            file.writelines(pieces)
        written.append(f"catalog/{month}.xml")
    if "csv" in settings.formats:
        store.write(f"catalog/{month}.csv", catalogue.catalogue_csv(events).encode())
        written.append(f"catalog/{month}.csv")
    if "parquet" in settings.formats:
        tables.write_table(store, f"catalog/{month}.parquet", catalogue.catalogue_table(events))
        written.append(f"catalog/{month}.parquet")
    return written


def read_detections(store: Store, files: Sequence[str], start_ns: int, end_ns: int) -> pd.DataFrame:
    """Return the rows of `labels/` with those of `events/` (no waveforms) whose onset lies in [start, end)."""

    def read(file: str) -> pd.DataFrame:
        labels = read_columns(store, f"labels/{file}", LABEL_COLUMNS).to_pandas()
        onset_ns = catalogue.onset_nanoseconds(labels)
        labels = labels[(onset_ns >= start_ns) & (onset_ns < end_ns)]
        events = read_columns(store, f"events/{file}", EVENT_COLUMNS).to_pandas()
        joined: pd.DataFrame = labels.merge(events, on="event_id", how="inner", validate="one_to_one")
        return joined

    with ThreadPoolExecutor(READ_THREADS) as pool:
        pieces = [piece for piece in pool.map(read, files) if len(piece)]
    if not pieces:
        return pd.DataFrame(columns=[*LABEL_COLUMNS, *EVENT_COLUMNS[1:]]).astype({"onset": "datetime64[ns, UTC]"})
    return pd.concat(pieces, ignore_index=True)


class _RangeFile(io.RawIOBase):
    """A stored object as a file that reads only the ranges asked for."""

    def __init__(self, store: Store, path: str) -> None:
        self._store, self._path = store, path
        self._size = store.stat(path).size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def size(self) -> int:
        return self._size

    def readinto(self, buffer: Any) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def read(self, size: int = -1) -> bytes:
        rest = max(self._size - self._position, 0)
        length = rest if size is None or size < 0 else min(size, rest)
        content = self._store.read(self._path, self._position, length) if length else b""
        self._position += len(content)
        return content


@contextmanager
def _parquet(store: Store, path: str) -> Iterator[pq.ParquetFile]:
    source = store.full(path) if store.is_local else pa.PythonFile(_RangeFile(store, path), mode="r")
    with tables.named_damage(store, path), pq.ParquetFile(source) as file:
        yield file


def read_columns(store: Store, path: str, columns: Sequence[str]) -> pa.Table:
    """Read some columns of a Parquet file; of a bucket's object only their bytes are fetched.

    Raises:
        InputError: it is damaged.
    """
    with _parquet(store, path) as file:
        return file.read(columns=list(columns))


def read_rows(store: Store, path: str, event_ids: Sequence[str], columns: Sequence[str]) -> pa.Table:
    """Read some events of a Parquet file, in its order: only the row groups that hold them."""
    wanted = pa.array(sorted(set(event_ids)), pa.string())
    with _parquet(store, path) as file:
        pieces = []
        for group in range(file.num_row_groups):
            ids = file.read_row_group(group, columns=["event_id"])["event_id"]
            mask = pa.compute.is_in(ids, value_set=wanted)
            if pa.compute.any(mask).as_py():
                pieces.append(file.read_row_group(group, columns=list(columns)).filter(mask))
        return pa.concat_tables(pieces) if pieces else file.schema_arrow.empty_table().select(list(columns))


def read_events(store: Store, table: str, chosen: pd.DataFrame, columns: Sequence[str]) -> list[pa.Table]:
    """Read the chosen events (`file`, `event_id`) of a table, one Arrow table a file, files in order."""
    by_file = [(str(file), rows["event_id"].tolist()) for file, rows in chosen.groupby("file", sort=True)]
    with ThreadPoolExecutor(READ_THREADS) as pool:
        return list(pool.map(lambda item: read_rows(store, f"{table}/{item[0]}", item[1], columns), by_file))


def build_page(
    workspace: Workspace,
    settings: ReportSettings,
    summary: LabelSummary,
    catalog_files: Sequence[str],
    catalog_events: int,
    within_seconds: float,
    tracking: Tracking | None,
) -> Page:
    """Return the page of a workspace: reads the chosen events and draws all figures."""
    store = workspace.store
    evaluation = _evaluation(store)
    band_hz = shown_band(workspace, settings)
    names = cluster_names(summary, evaluation)
    titles = {cluster: f"{cluster} · {name}"[:28] if name else f"cluster {cluster}" for cluster, name in names.items()}
    sample = _sample_with_measures(store, summary.sample)
    cards = cluster_cards(summary, names, sample)
    coverage, coverage_words = read_coverage(store)
    with drawing():
        activity_svg = to_svg(activity_figure(summary.by_cluster, titles), "Detections of each cluster over time")
        coverage_svg = to_svg(coverage_figure(coverage, summary.by_site), "Coverage by station and day")
    map_svg, map_caption = _map(store, settings, summary.sample, titles)
    total = int(summary.groups["events"].sum())
    sites = summary.groups.groupby("site")["events"].sum()
    first, last = (
        pd.Timestamp(int(time), tz="UTC") for time in (summary.files["first_ns"].min(), summary.files["last_ns"].max())
    )
    title = store.url.rstrip("/").rpartition("/")[2] or store.url
    return Page(
        title=title,
        lede=_lede(total, len(sites), first, last, cards),
        facts=(
            (f"{total:,}".replace(",", "\u202f"), "detections"),
            (f"{catalog_events:,}".replace(",", "\u202f"), "associated events"),
            (str(len(sites)), "stations"),
            (str(len(cards)), "clusters"),
            (_span(first, last), "from the first onset to the last"),
        ),
        clusters=tuple(cards),
        gallery=tuple(gallery_items(store, settings, summary, band_hz)),
        band_words=band_words(band_hz),
        statements=tuple(statements(evaluation)),
        confusions=tuple(confusion_tables(evaluation)),
        no_evaluation=(
            "No hand labels and no truth were given to the label stage (labels.path), so nothing can be said about how "
            "well the clusters agree with known classes. Clusters are groups of similar waveforms, not yet kinds of "
            "events."
        ),
        activity_svg=activity_svg,
        activity_caption=(
            f"Detections of each cluster in bins of {summary.by_cluster.width_name}, UTC. Each panel has its own scale."
        ),
        coverage_svg=coverage_svg,
        coverage_caption=f"Recorded part of each day by station, and detections over time. {coverage_words}",
        map_svg=map_svg,
        map_caption=map_caption,
        catalogue_words=(
            f"{catalog_events} events: detections of any station within {within_seconds:g} s of an event's first "
            "detection are one event. Events have onsets (picks by the automatic detector, no phase claimed) but no "
            "origin and no magnitude, since none is computed. The Parquet and CSV files have one row an event, whose "
            "event_ids lead to the rows of events, embeddings and labels."
        ),
        catalogue_files=tuple((f"../{path}", path.removeprefix("catalog/")) for path in catalog_files),
        lineage=tuple(_lineage(workspace, tracking)),
        configuration=tuple(
            (stage, configuration.to_yaml(stored))
            for stage in ("synthesize", "detect", "train", "label", "report")
            if (stored := workspace.stored_config(stage))
        ),
    )


def _lede(total: int, sites: int, first: pd.Timestamp, last: pd.Timestamp, cards: Sequence[ClusterCard]) -> str:
    largest = max(cards, key=lambda card: card.events)
    name = f"cluster {largest.number}" + (f", {largest.name}" if largest.name else "")
    return (
        f"{_number(total, 'detection')} at {_number(sites, 'station')} between {first:%Y-%m-%d %H:%M} and "
        f"{last:%Y-%m-%d %H:%M} UTC fall into {_number(len(cards), 'cluster')}; the largest is {name}, with "
        f"{percent(largest.share)}."
    )


def _number(count: int, noun: str) -> str:
    return f"{count:,}".replace(",", "\u202f") + f" {noun}{'' if count == 1 else 's'}"


def _span(first: pd.Timestamp, last: pd.Timestamp) -> str:
    seconds = (last - first).total_seconds()
    for limit, width, unit in (
        (2 * 86_400, 3600, "h"),
        (800 * 86_400, 86_400, "days"),
        (np.inf, 365.25 * 86_400, "years"),
    ):
        if seconds < limit:
            return f"{seconds / width:.{1 if seconds / width < 10 else 0}f} {unit}"
    raise AssertionError("unreachable")


def cluster_names(summary: LabelSummary, evaluation: Mapping[str, Any]) -> dict[int, str | None]:
    """Return each cluster's name as the label stage gave it (None where it has none), in order of their numbers."""
    names: dict[int, str | None] = {int(cluster): None for cluster in sorted(summary.groups["cluster"].unique())}
    named = summary.groups[(summary.groups["label_source"] == "cluster") & (summary.groups["label"] != "")]
    for cluster, rows in named.groupby("cluster"):
        names[int(str(cluster))] = str(rows.groupby("label")["events"].sum().idxmax())
    # A cluster whose events all carry a hand label shows its name in the label stage's summary only.
    for entry in evaluation.get("clusters", []):
        if names.get(int(entry["cluster"]), "") is None and entry["name"]:
            names[int(entry["cluster"])] = str(entry["name"])
    return names


def _evaluation(store: Store) -> dict[str, Any]:
    """Return what the label stage says of its clusters: sizes, names, scores with their protocol, confusion matrix."""
    try:
        content: dict[str, Any] = json.loads(store.read(EVALUATION_PATH))
    except FileNotFoundError:
        return {}
    return content


def statements(evaluation: Mapping[str, Any]) -> Iterator[Statement]:
    """Yield the published scores (of the test half) with their intervals and protocols."""
    scores, protocol = evaluation.get("scores", {}), evaluation.get("protocol", {})
    for name, (title, is_share) in SCORE_TITLES.items():
        if name not in scores or name not in protocol:
            continue
        low, high = scores.get(f"{name}.low"), scores.get(f"{name}.high")
        value = percent(scores[name]) if is_share else f"{scores[name]:.2f}"
        words = f"{protocol[name][:1].upper()}{protocol[name][1:]}."
        for other, (other_title, _) in SCORE_TITLES.items():
            words = words.replace(other, f"\u201c{other_title}\u201d")
        if low is not None and high is not None:
            words += f" 95 % interval {percent(low)} to {percent(high)}, from redrawn events."
        yield Statement(title=title, value=value, protocol=words)


def confusion_tables(evaluation: Mapping[str, Any]) -> Iterator[ConfusionTable]:
    """Yield the confusion matrix of the test half of the hand labels, where there is one."""
    found = evaluation.get("confusion")
    if not found or not found["hand_labels"]:
        return
    classes, given = list(found["hand_labels"]), list(found["given"])
    counts = np.array(found["events"], dtype=np.int64).reshape(len(classes), len(given))
    columns = [column for column, name in enumerate(given) if name in classes or counts[:, column].any()]
    yield ConfusionTable(
        title="Known class against the class given by the cluster",
        protocol=(
            f"Rows are the hand labels or the truth of the test half, {int(counts.sum())} detections; columns the "
            "class that their cluster was given by the majority of the validation half. Shares are of the row."
        ),
        columns=tuple(given[column] for column in columns),
        rows=tuple(
            confusion_rows(
                classes,
                [given[column] for column in columns],
                counts[:, columns],
                [given[column] if given[column] in classes else None for column in columns],
            )
        ),
    )


def cluster_cards(summary: LabelSummary, names: Mapping[int, str | None], sample: pd.DataFrame) -> list[ClusterCard]:
    """Return the clusters in words and numbers, in order of their number."""
    total = int(summary.groups["events"].sum())
    cards = []
    for cluster, name in names.items():
        rows = summary.groups[summary.groups["cluster"] == cluster]
        events = int(rows["events"].sum())
        sites = rows.groupby("site")["events"].sum().sort_values(ascending=False, kind="stable")
        members = sample[sample["cluster"] == cluster]
        cards.append(
            ClusterCard(
                number=cluster,
                name=name,
                colour=cluster_colour(cluster),
                events=events,
                share=events / total,
                sites=tuple((str(site), int(count)) for site, count in sites.items()),
                hand=int(rows.loc[rows["label_source"] == "hand", "events"].sum()),
                duration_s=_quartiles(members["duration_s"]),
                snr_db=_quartiles(members["snr_db"]),
                sampled=len(members),
            )
        )
    return cards


def _quartiles(values: "pd.Series[float]") -> tuple[float, float, float] | None:
    present = values.dropna()
    if not len(present):
        return None
    low, middle, high = np.quantile(present.to_numpy(dtype=float), [0.25, 0.5, 0.75])
    return float(low), float(middle), float(high)


def _sample_with_measures(store: Store, sample: pd.DataFrame) -> pd.DataFrame:
    read = read_events(store, "events", sample, ("event_id", "duration_s", "snr_db"))
    return sample.merge(pa.concat_tables(read).to_pandas(), on="event_id", how="left")


def shown_band(workspace: Workspace, settings: ReportSettings) -> tuple[float, float] | None:
    """Return the band (Hz) in which traces are drawn: that of the detection, or None for all that was recorded."""
    band = workspace.stored_config("detect").get("detection", {}).get("band_hz")
    return None if band is None or settings.traces == "recorded" else (float(band[0]), float(band[1]))


def band_words(band_hz: tuple[float, float] | None) -> str:
    """Return how the traces of the figures were filtered, in words."""
    if band_hz is None:
        return "as recorded, medians taken off"
    return f"between {band_hz[0]:g} and {band_hz[1]:g} Hz, the band of the detection"


def gallery_items(
    store: Store, settings: ReportSettings, summary: LabelSummary, band_hz: tuple[float, float] | None
) -> Iterator[GalleryItem]:
    """Yield the gallery's figures in the order of the page."""
    chosen = choose_gallery(
        summary.candidates,
        nearest=settings.nearest_per_cluster,
        random=settings.random_per_cluster,
        boundary=settings.boundary_per_cluster,
        at_most=settings.max_gallery_events,
    )
    events: dict[str, tuple[pa.Table, int]] = {}
    for table in read_events(store, "events", chosen, GALLERY_COLUMNS):
        events.update({event_id: (table, row) for row, event_id in enumerate(table["event_id"].to_pylist())})
    for choice in _records(chosen):
        if choice["event_id"] in events:
            table, row = events[choice["event_id"]]
            yield gallery_item(table.slice(row, 1), choice, band_hz)


def _records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in rows.to_dict("records")]


def gallery_item(event: pa.Table, label: Mapping[str, Any], band_hz: tuple[float, float] | None) -> GalleryItem:
    """Draw one event (a table of one row of `events/`) with its row of `labels/`."""
    waveform = tables.waveforms(event["waveform"])[0]
    values = {
        name: event[name][0].as_py() for name in event.column_names if name not in ("waveform", "onset", "window_start")
    }
    onset, window_start = (pd.Timestamp(event[name][0].value, tz="UTC") for name in ("onset", "window_start"))
    site = f"{label['network']}.{label['station']}" + (f".{label['location']}" if label["location"] else "")
    svg = event_svg(waveform, values, (onset - window_start).total_seconds(), int(label["cluster"]), site, band_hz)
    known = "" if pd.isna(label["label"]) or label["label_source"] != "hand" else f"known: {label['label']}"
    details = [
        f"SNR {values['snr_db']:.1f} dB",
        f"STA/LTA {values['peak_ratio']:.1f}",
        f"to centroid {label['distance']:.2f}",
        f"margin {label['margin']:.2f}",
        known,
    ]
    return GalleryItem(
        event_id=str(label["event_id"]),
        cluster=int(label["cluster"]),
        role=str(label.get("role", "")),
        site=site,
        time=f"{onset:%Y-%m-%d %H:%M:%S}.{onset.microsecond // 10_000:02d} UTC",
        details=tuple(detail.replace(" -", " \u2212") for detail in details if detail),
        svg=svg,
    )


def event_svg(
    waveform: npt.NDArray[np.float32],
    values: Mapping[str, Any],
    onset_s: float,
    cluster: int,
    site: str,
    band_hz: tuple[float, float] | None,
) -> str:
    """Draw one event as SVG."""
    with drawing():
        figure = event_figure(
            waveform,
            float(values["sampling_rate"]),
            onset_s,
            float(values["duration_s"]),
            list(values["channels"]),
            str(values["trigger_channel"]),
            str(values["units"]),
            cluster_colour(cluster),
            band_hz,
        )
        words = f"Waveforms and spectrogram of a detection at {site}, trigger {values['duration_s']:.2f} s long"
        return to_svg(figure, words)


def read_coverage(store: Store) -> tuple[pd.DataFrame, str]:
    """Return the recorded part of each day by station, from the markers of the detection, and what else they say.

    Columns `station`, `day`, `fraction` (of the day, of the station's best channel); at most `COVERAGE_STATIONS`
    stations are read.
    """
    names = list(list_markers(store, "detect"))
    stations = sorted({f"{name.network}.{name.station}" for name in names})
    shown = set(stations[:COVERAGE_STATIONS])
    seconds: dict[tuple[str, str, str], float] = {}
    quarantined: set[str] = set()
    gaps = 0

    def read(name: MarkerName) -> tuple[str, dict[str, Any]]:
        return f"{name.network}.{name.station}", read_marker(store, "detect", name)

    with ThreadPoolExecutor(READ_THREADS) as pool:
        for station, marker in pool.map(read, [name for name in names if f"{name.network}.{name.station}" in shown]):
            gaps += int(marker.get("gaps", 0))
            quarantined.update(str(entry["key"]) for entry in marker.get("quarantined", []))
            for entry in marker.get("coverage", []):
                key = (station, entry["day"], entry["channel"])
                seconds[key] = seconds.get(key, 0.0) + float(entry["seconds"])
    rows = pd.DataFrame(
        [(*key, value) for key, value in seconds.items()], columns=["station", "day", "channel", "seconds"]
    )
    best = rows.groupby(["station", "day"], sort=True)["seconds"].max().reset_index()
    coverage = pd.DataFrame(
        {
            "station": best["station"],
            "day": pd.to_datetime(best["day"]),
            "fraction": best["seconds"].clip(upper=86_400) / 86_400,
        }
    )
    if not len(coverage):
        return coverage, "The workspace has no detection markers, so what was recorded is not known."
    words = f"{_number(len(coverage), 'station-day')} with data, {_number(gaps, 'gap')}"
    words += f", {_number(len(quarantined), 'file')} that could not be read." if quarantined else "."
    if len(stations) > len(shown):
        words += f" The first {len(shown)} of {len(stations)} stations in the order of their names."
    return coverage, words


def _map(store: Store, settings: ReportSettings, sample: pd.DataFrame, titles: Mapping[int, str]) -> tuple[str, str]:
    embedded = {item.path.removeprefix("embeddings/") for item in tables.list_shards(store, "embeddings")}
    sample = sample[sample["file"].isin(embedded)]
    read = read_events(store, "embeddings", sample, ("event_id", "embedding"))
    vectors = {
        event_id: vector
        for table in read
        for event_id, vector in zip(table["event_id"].to_pylist(), tables.embeddings(table["embedding"]), strict=True)
    }
    rows = sample[sample["event_id"].isin(vectors)]
    if len(rows) < 10:
        return "", f"A map needs the embeddings of at least 10 events; {len(rows)} were found."
    embeddings = np.stack([vectors[event_id] for event_id in rows["event_id"]])
    plane, share = embedding_map.principal_plane(embeddings)
    planes = {f"principal components ({share:.0%} of the variance)": plane}
    words = f"{len(rows)} events drawn by a hash of their ids, coloured by cluster. "
    if settings.map_method == "tsne":
        planes["t-SNE: who is near whom"] = embedding_map.neighbourhood_plane(embeddings, settings.seed)
        words += "t-SNE keeps neighbours together; distances between groups that lie apart mean nothing there. "
    by_hand = (rows["label_source"] == "hand").to_numpy()
    classes = rows["label"].to_numpy(dtype=object).copy()
    classes[~by_hand] = None
    if by_hand.any():
        words += f"Known classes are those of hand labels or truth, {int(by_hand.sum())} of the events drawn."
    with drawing():
        figure = embedding_map.map_figure(planes, rows["cluster"].to_numpy(dtype=np.int32), titles, classes)
        return to_svg(figure, "Map of the embedding in two dimensions", dpi=200), words.strip()


def _lineage(workspace: Workspace, tracking: Tracking | None) -> Iterator[tuple[str, str]]:
    store = workspace.store
    yield "workspace", workspace.url
    yield "firnline", __version__
    for stage, what in (("detect", "events"), ("label", "labels")):
        yield f"fingerprint of the {what}", stage_fingerprint(store, stage)
    path = next((item.path for item in tables.list_shards(store, "labels")), None)
    if path is not None:
        with _parquet(store, path) as file:
            metadata = file.schema_arrow.metadata or {}
        for key, value in sorted(metadata.items()):
            if not key.startswith((b"ARROW", b"pandas")):
                yield f"labels: {key.decode()}", value.decode()
    if tracking is None:
        return
    yield "MLflow experiment", tracking.experiment
    for stage in ("detect", "tune", "train", "label"):
        runs = finished_runs(tracking, stage)
        if runs:
            yield f"MLflow run of {stage}", runs[-1].run_id
            if "firnline.model" in runs[-1].tags:
                yield "encoder", runs[-1].tags["firnline.model"]
