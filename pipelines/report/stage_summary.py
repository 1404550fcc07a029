"""Folds all files of `labels/` into one summary of bounded size, as Ray tasks where they are many."""

from collections.abc import Iterator, Sequence

import pandas as pd

from pipelines.report.distributions import MEASURES
from pipelines.report.stage_reading import read_ahead
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
        for rows in read_ahead(lambda file: _read_file(store, file), files):
            held.append(rows)
            if sum(map(len, held)) >= ROWS_AT_ONCE:
                yield pd.concat(held, ignore_index=True)
                held = []
        if held:
            yield pd.concat(held, ignore_index=True)

    return merge_all((summarise(rows, size) for rows in batches()), size)


def _read_file(store: Store, file: str) -> pd.DataFrame:
    labels = tables.read_table(store, f"labels/{file}", LABEL_COLUMNS).to_pandas().assign(file=file)
    measures = tables.read_table(store, f"events/{file}", ("event_id", *MEASURES)).to_pandas()
    rows: pd.DataFrame = labels.merge(measures, on="event_id", how="left")
    return rows
