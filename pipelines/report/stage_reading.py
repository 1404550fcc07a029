"""Reads parts of the workspace's tables: some columns, or some events, and of a bucket's objects only their bytes."""

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.workspace import tables
from pipelines.workspace.storage import Store

READ_THREADS = 8


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
def open_ranges(store: Store, path: str) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file of which only the ranges that are read are fetched; InputError where it is damaged."""
    source = store.full(path) if store.is_local else pa.PythonFile(_RangeFile(store, path), mode="r")
    with tables.named_damage(store, path), pq.ParquetFile(source) as file:
        yield file


def read_columns(store: Store, path: str, columns: Sequence[str]) -> pa.Table:
    """Read some columns of a Parquet file; of a bucket's object only their bytes are fetched.

    Raises:
        InputError: it is damaged.
    """
    with open_ranges(store, path) as file:
        return file.read(columns=list(columns))


def read_rows(store: Store, path: str, event_ids: Sequence[str], columns: Sequence[str]) -> pa.Table:
    """Read some events of a Parquet file, in its order: only the row groups that hold them."""
    wanted = pa.array(sorted(set(event_ids)), pa.string())
    with open_ranges(store, path) as file:
        pieces = []
        for group in range(file.num_row_groups):
            ids = file.read_row_group(group, columns=["event_id"])["event_id"]
            mask = pa.compute.is_in(ids, value_set=wanted)
            if pa.compute.any(mask).as_py():
                pieces.append(file.read_row_group(group, columns=list(columns)).filter(mask))
        return pa.concat_tables(pieces) if pieces else file.schema_arrow.empty_table().select(list(columns))


def read_events(store: Store, table: str, chosen: pd.DataFrame, columns: Sequence[str]) -> list[pa.Table]:
    """Read the chosen events (`file`, `event_id`) of a table: one Arrow table for each file, in order."""
    by_file = [(str(file), rows["event_id"].tolist()) for file, rows in chosen.groupby("file", sort=True)]
    with ThreadPoolExecutor(READ_THREADS) as pool:
        return list(pool.map(lambda item: read_rows(store, f"{table}/{item[0]}", item[1], columns), by_file))
