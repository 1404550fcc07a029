"""Reads parts of the workspace's tables for the report, several files at a time."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pyarrow as pa

from pipelines.workspace import tables
from pipelines.workspace.storage import Store

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


def read_events(store: Store, table: str, chosen: pd.DataFrame, columns: Sequence[str]) -> list[pa.Table]:
    """Read the chosen events (`file`, `event_id`) of a table: one Arrow table for each file, in order."""
    by_file = [(str(file), rows["event_id"].tolist()) for file, rows in chosen.groupby("file", sort=True)]
    with ThreadPoolExecutor(READ_THREADS) as pool:
        return list(pool.map(lambda item: tables.read_events(store, f"{table}/{item[0]}", item[1], columns), by_file))
