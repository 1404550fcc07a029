"""Folds all files of `labels/` into one summary of bounded size, as Ray tasks where they are many."""

from collections.abc import Iterator, Sequence

import pandas as pd

from pipelines.report.distributions import MEASURES
from pipelines.report.stage_tasks import map_tasks
from pipelines.report.summary import LabelSummary, SummarySize, merge_all, summarise
from pipelines.workspace import tables
from pipelines.workspace.storage import Store

ROWS_AT_ONCE = 200_000
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
    "confidence",
)


def summarise_labels(store: Store, files: Sequence[str], size: SummarySize) -> LabelSummary:
    """Fold all files of `labels/` (paths below it) into one summary: as Ray tasks where they are many and Ray runs."""
    return merge_all(map_tasks(lambda part: summarise_files(store, part, size), tables.by_task(files)), size)


def summarise_files(store: Store, files: Sequence[str], size: SummarySize) -> LabelSummary:
    """Fold some files of `labels/` into one summary, some rows at a time."""

    def batches() -> Iterator[pd.DataFrame]:
        held: list[pd.DataFrame] = []
        for file in files:
            labels = tables.read_table(store, f"labels/{file}", LABEL_COLUMNS).to_pandas().assign(file=file)
            measures = tables.read_table(store, f"events/{file}", ("event_id", *MEASURES)).to_pandas()
            held.append(labels.merge(measures, on="event_id", how="left"))
            if sum(map(len, held)) >= ROWS_AT_ONCE:
                yield pd.concat(held, ignore_index=True)
                held = []
        if held:
            yield pd.concat(held, ignore_index=True)

    return merge_all((summarise(rows, size) for rows in batches()), size)
