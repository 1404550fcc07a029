"""Reads parts of the workspace's tables for the report, several files at a time."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import pandas as pd
import pyarrow as pa

from pipelines.runtime import ahead
from pipelines.workspace import tables
from pipelines.workspace.storage import Store

T = TypeVar("T")
R = TypeVar("R")

READ_THREADS = 8

EVENT_COLUMNS = (
    "event_id",
    "duration_s",
    "peak_ratio",
    "snr_db",
    "peak_amplitude",
    "units",
    "trigger_channel",
)
"""What the catalogue and the gallery tell of an event."""


def read_ahead(read: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """Yield `read(item)` of every item, in order; READ_THREADS are read at a time, and no more are kept.

    A bucket that answers late, or not at all for a while, then holds up one of them and not all.
    """
    return ahead.read_ahead(read, items, threads=READ_THREADS, kept=READ_THREADS)


def read_events(store: Store, table: str, chosen: pd.DataFrame, columns: Sequence[str]) -> list[pa.Table]:
    """Read the chosen events (`file`, `event_id`) of a table: one Arrow table for each file, in order."""
    by_file = [(str(file), rows["event_id"].tolist()) for file, rows in chosen.groupby("file", sort=True)]
    return list(read_ahead(lambda item: tables.read_events(store, f"{table}/{item[0]}", item[1], columns), by_file))
