"""Lists events page by page: the files of `labels/` are read one after the other until a page is full."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from pipelines.explore.places import hours_of_day
from pipelines.explore.queries import ORDERS, Filter, read_cursor
from pipelines.report.catalogue import onset_nanoseconds
from pipelines.report.gallery import event_hash
from pipelines.report.stage_summary import LABEL_COLUMNS
from pipelines.workspace import tables
from pipelines.workspace.storage import Store

MAX_RANKED = 2000
"""Events that a list in another order than that of time goes through."""

HandLabels = Mapping[str, Mapping[str, str]]
"""Rows of the hand labels by event id."""


def list_page(
    store: Store, files: Sequence[str], chosen: Filter, labels: HandLabels, cursor: str, limit: int
) -> tuple[list[dict[str, Any]], str]:
    """Return up to `limit` rows of `labels/`, each with its `file`, and the cursor of the next page ("" at the end).

    `files` are the files of `labels/`, relative to it, sorted. In order of time the files of a station are read one
    after the other, only as many as the page needs; other orders read all chosen files and keep the first
    `MAX_RANKED` events.

    Raises:
        BadRequest: the cursor is not valid.
    """
    files = [file for file in files if chosen.site is None or site_of(file) == chosen.site]
    start_file, start_row = read_cursor(cursor)
    column = ORDERS[chosen.order]
    if column is not None:
        return _page_ranked(store, files, chosen, labels, column, start_row, limit)
    found: list[dict[str, Any]] = []
    for number in range(start_file, len(files)):
        rows = _matching(store, files[number], chosen, labels)
        taken = start_row if number == start_file else 0
        page = rows.iloc[taken : taken + limit - len(found)]
        found += records(page)
        if len(found) == limit:
            return found, f"{number}-{taken + len(page)}"
    return found, ""


def site_of(file: str) -> str:
    """Return the network.station of a file of `labels/` (its path below it)."""
    return ".".join(tables.station_of(f"labels/{file}"))


def _page_ranked(
    store: Store, files: Sequence[str], chosen: Filter, labels: HandLabels, column: str, first: int, limit: int
) -> tuple[list[dict[str, Any]], str]:
    best: pd.DataFrame | None = None
    name = column.removeprefix("-")
    for file in files:
        rows = _matching(store, file, chosen, labels)
        rows = rows.assign(hash=event_hash(rows["event_id"])) if name == "hash" else rows
        pool = rows if best is None else pd.concat([best, rows])
        best = pool.sort_values([name, "event_id"], ascending=[name == column, True], kind="stable").head(
            min(first + limit + 1, MAX_RANKED)
        )
    if best is None:
        return [], ""
    page = best.iloc[first : first + limit].drop(columns="hash", errors="ignore")
    more = len(best) > first + limit
    return records(page), f"0-{first + limit}" if more else ""


def _matching(store: Store, file: str, chosen: Filter, labels: HandLabels) -> pd.DataFrame:
    rows: pd.DataFrame = tables.read_table(store, f"labels/{file}", LABEL_COLUMNS).to_pandas()
    keep = np.ones(len(rows), dtype=bool)
    if chosen.cluster is not None:
        keep &= (rows["cluster"] == chosen.cluster).to_numpy()
    if chosen.start_ns is not None or chosen.end_ns is not None:
        onset_ns = onset_nanoseconds(rows)
        keep &= onset_ns >= (chosen.start_ns if chosen.start_ns is not None else np.iinfo(np.int64).min)
        keep &= onset_ns < (chosen.end_ns if chosen.end_ns is not None else np.iinfo(np.int64).max)
    if chosen.hour is not None:
        keep &= hours_of_day(onset_nanoseconds(rows)) == chosen.hour
    if chosen.label is not None:
        hand = [labels.get(event_id, {}).get("label", "") for event_id in rows["event_id"]]
        keep &= np.array([label == chosen.label for label in hand], dtype=bool)
    return rows[keep].assign(file=file)


def records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Return rows as dictionaries."""
    return [{str(name): value for name, value in row.items()} for row in rows.to_dict("records")]
