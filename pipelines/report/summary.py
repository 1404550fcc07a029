"""What a report needs to know of all labels: counts, times and a few chosen events, folded table by table.

`summarise` reads one table of `labels/`; `merge` joins two summaries. The result is the same however the tables are
grouped, and its size depends on the number of clusters and stations, not on the number of events.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pipelines.report.distributions import MEASURES, count_measures, merge_measures
from pipelines.report.gallery import best_candidates, event_hash, gallery_candidates, smallest_hashes
from pipelines.report.rhythm import count_rhythm, merge_rhythms
from pipelines.report.time_bins import BIN_WIDTHS_S, BinnedCounts, add_onsets, merge_counts, no_counts

MAX_BINS = 480
_HOUR_S = BIN_WIDTHS_S[2]
_GROUP = ["cluster", "label", "label_source", "site"]


@dataclass(frozen=True, kw_only=True)
class LabelSummary:
    """Counts and chosen rows of some tables of labels."""

    groups: pd.DataFrame
    """Events (`events`) by `cluster`, `label`, `label_source` ("" where there is none) and `site` (network.station)."""

    by_cluster: BinnedCounts
    """Events over time, one series for each cluster."""

    by_site: BinnedCounts
    """Events over time, one series for each site, in bins of at least an hour."""

    rhythm: pd.DataFrame
    """Events of each cluster by hour of the day and month of the year, see `rhythm.count_rhythm`."""

    measures: pd.DataFrame
    """Durations and amplitudes of each cluster in bins, see `distributions.count_measures`."""

    candidates: pd.DataFrame
    """Candidates for the gallery, see `gallery.best_candidates`, with the `file` that holds them."""

    sample: pd.DataFrame
    """Rows with the smallest hashes of their id, with the `file` that holds them."""

    files: pd.DataFrame
    """The tables with rows: `file`, `events`, first and last onset (`first_ns`, `last_ns` since 1970-01-01 UTC)."""


@dataclass(frozen=True, kw_only=True)
class SummarySize:
    """How many events a summary chooses."""

    per_role: int
    """Candidates kept for each cluster and role of the gallery."""

    sample: int
    """Rows of the sample."""


def summarise(labels: pd.DataFrame, size: SummarySize) -> LabelSummary:
    """Return the summary of rows with the columns of `labels/`, the `file` that each comes from, and the measures.

    These are `duration_s` and `peak_amplitude`, NaN where an event is gone.
    """
    site = labels["network"].astype(str) + "." + labels["station"].astype(str)
    rows = labels.assign(site=site, hash=event_hash(labels["event_id"]))
    kept = rows.drop(columns=list(MEASURES))
    names = {name: rows[name].fillna("").astype(str) for name in ("label", "label_source")}
    groups = rows.assign(**names).groupby(_GROUP, sort=True).size().rename("events").reset_index()
    onset_ns = rows["onset"].dt.tz_convert("UTC").dt.tz_localize(None).to_numpy(dtype="datetime64[ns]").astype(np.int64)
    times = pd.DataFrame({"file": rows["file"].to_numpy(dtype=object), "onset_ns": onset_ns}).groupby("file", sort=True)
    files = times["onset_ns"].agg(["size", "min", "max"]).reset_index()
    return LabelSummary(
        groups=groups,
        by_cluster=add_onsets(no_counts(), onset_ns, rows["cluster"].to_numpy(), MAX_BINS),
        by_site=add_onsets(no_counts(_HOUR_S), onset_ns, rows["site"].to_numpy(dtype=object), MAX_BINS),
        rhythm=count_rhythm(onset_ns, rows["cluster"].to_numpy()),
        measures=count_measures(rows),
        candidates=best_candidates(gallery_candidates(kept), size.per_role),
        sample=smallest_hashes(kept, size.sample),
        files=files.rename(columns={"size": "events", "min": "first_ns", "max": "last_ns"}),
    )


def merge(first: LabelSummary, second: LabelSummary, size: SummarySize) -> LabelSummary:
    """Return the summary of the tables of both."""
    groups = pd.concat([first.groups, second.groups]).groupby(_GROUP, sort=True)["events"].sum().reset_index()
    return LabelSummary(
        groups=groups,
        by_cluster=merge_counts(first.by_cluster, second.by_cluster, MAX_BINS),
        by_site=merge_counts(first.by_site, second.by_site, MAX_BINS),
        rhythm=merge_rhythms([first.rhythm, second.rhythm]),
        measures=merge_measures([first.measures, second.measures]),
        candidates=best_candidates(pd.concat([first.candidates, second.candidates]), size.per_role),
        sample=smallest_hashes(pd.concat([first.sample, second.sample]), size.sample),
        files=pd.concat([first.files, second.files]).sort_values("file", ignore_index=True),
    )


def merge_all(summaries: Iterable[LabelSummary], size: SummarySize) -> LabelSummary:
    """Return the summary of all parts (at least one); like sizes are merged, so that long lists are seldom copied."""
    waiting: list[tuple[int, LabelSummary]] = []
    for summary in summaries:
        waiting.append((1, summary))
        while len(waiting) > 1 and waiting[-2][0] <= waiting[-1][0]:
            (parts, second), (others, first) = waiting.pop(), waiting.pop()
            waiting.append((parts + others, merge(first, second, size)))
    _, result = waiting.pop()
    while waiting:
        result = merge(waiting.pop()[1], result, size)
    return result
