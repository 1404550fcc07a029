"""The tables that stages meet in: paths, and deterministic Parquet reading and writing.

    events/network=AW/station=VNA1/<shard>.parquet       embeddings/... and labels/... file by file as events/
    availability/...                                     one row a channel, day and rate, file by file as events/

Rows of a file are sorted by (onset, event_id). Metadata hold content hashes only.

Columns are in `workspace/schemas.py`. A file may come from a stranger: before any column is read, it passes
`workspace/parquet_checks.py`. Of a bucket's object only the bytes of the columns that are wanted are fetched.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.runtime.errors import InputError
from pipelines.workspace.parquet_checks import (
    open_parquet,
    refuse_expansion,
    refuse_extensions,
    refuse_other_types,
    with_stated_pages,
)
from pipelines.workspace.parquet_footer import Footer, parse_footer
from pipelines.workspace.schemas import LATER_COLUMNS
from pipelines.workspace.storage import Store, content_hash, path_part
from pipelines.workspace.storage_errors import StorageFailed
from pipelines.workspace.stored_object import StoredObject

ROWS_PER_GROUP = 128
MAX_FILES_PER_TASK = 64
"""Files of a table that one task goes through."""

MAX_FOOTER_BYTES = 256 << 20

_SMALL_BYTES = 64 << 10
"""A bucket's objects up to this size are fetched whole, in one request."""
_TAIL_BYTES = 8 << 10
"""The end of a file that is read first; it holds the footer of three row groups of events."""
_KEPT_FOOTERS = 128
"""Footers of a bucket's objects that a process keeps; one of a day's events is some 5 kB."""

T = TypeVar("T")


def shard_path(table: str, network: str, station: str, shard: str) -> str:
    """Return the path of a shard's file in a table folder; InputError where a code would lead out of it."""
    return f"{table}/{partition(network, station)}/{path_part(shard, what='shard')}.parquet"


def beside(path: str, table: str) -> str:
    """Return the file of the same shard in another table."""
    return f"{table}/{path.partition('/')[2]}"


def partition(network: str, station: str) -> str:
    """Return `network=NN/station=SSSS`, the folders of a station; InputError where a code would lead out of them."""
    return f"{path_part(f'network={network}', what='network')}/{path_part(f'station={station}', what='station')}"


def station_of(path: str) -> tuple[str, str]:
    """Return the network and the station of a shard's file."""
    network, station = path.split("/")[1:3]
    return network.removeprefix("network="), station.removeprefix("station=")


def by_task(files: Sequence[T]) -> list[list[T]]:
    """Return files in groups, in their order, of at most MAX_FILES_PER_TASK: one group a task."""
    return [list(files[start : start + MAX_FILES_PER_TASK]) for start in range(0, len(files), MAX_FILES_PER_TASK)]


def list_shards(store: Store, table: str) -> list[StoredObject]:
    """Return every Parquet file of a table, sorted by path.

    Raises:
        InputError: one does not lie in the folders of a station.
    """
    found = sorted((item for item in store.walk(table) if item.path.endswith(".parquet")), key=lambda item: item.path)
    for item in found:
        parts = item.path.split("/")
        if len(parts) != 4 or not parts[1].startswith("network=") or not parts[2].startswith("station="):
            raise InputError(
                f"{store.full(item.path)} is not part of {table}/, whose files lie in network=NN/station=SSSS/; move it"
            )
    return found


def write_batches(
    store: Store,
    path: str,
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Write record batches as one Parquet file, atomically, and return the number of rows.

    The bytes depend on the rows, their order and the metadata alone: row groups are cut every ROWS_PER_GROUP rows
    whatever the batches. Nothing is written where there is no row.
    """
    rows, publish = prepare_batches(store, path, schema, batches, metadata)
    publish()
    return rows


def prepare_batches(
    store: Store,
    path: str,
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    metadata: Mapping[str, str] | None = None,
) -> tuple[int, Callable[[], None]]:
    """As write_batches, but for the last step: return the number of rows, and what makes the file durable and seen."""
    schema = schema.with_metadata(dict(metadata)) if metadata else schema
    rows = 0
    batches = (batch for batch in batches if batch.num_rows)
    first = next(iter(batches), None)
    if first is None:
        return 0, lambda: None
    with ExitStack() as stack:
        temporary = stack.enter_context(store.atomic_file(path))
        with _row_groups(temporary, schema) as add:
            for batch in _chain(first, batches):
                rows += batch.num_rows
                add(batch)
        publish = stack.pop_all().close
    return rows, publish


@contextmanager
def table_writer(
    store: Store, path: str, schema: pa.Schema, metadata: Mapping[str, str] | None = None
) -> Iterator[Callable[[pa.Table], None]]:
    """Yield what adds rows to a Parquet file; on a clean exit it is there as `write_batches` writes it, else not."""
    schema = schema.with_metadata(dict(metadata)) if metadata else schema
    with store.atomic_file(path) as temporary, _row_groups(temporary, schema) as add:

        def add_table(table: pa.Table) -> None:
            for batch in table.to_batches():
                add(batch)

        yield add_table


@contextmanager
def _row_groups(file: Path, schema: pa.Schema) -> Iterator[Callable[[pa.RecordBatch], None]]:
    """Yield what adds rows to a file in row groups of ROWS_PER_GROUP, however they come."""
    pending: list[pa.RecordBatch] = []
    held = 0
    with pq.ParquetWriter(file, schema, **_encodings(schema)) as writer:

        def add(batch: pa.RecordBatch) -> None:
            nonlocal pending, held
            pending.append(batch)
            held += batch.num_rows
            while held >= ROWS_PER_GROUP:
                table = pa.Table.from_batches(pending).combine_chunks()
                writer.write_table(_cast(table.slice(0, ROWS_PER_GROUP), schema))
                rest = table.slice(ROWS_PER_GROUP)
                pending, held = rest.to_batches(), rest.num_rows

        yield add
        if held:
            writer.write_table(_cast(pa.Table.from_batches(pending).combine_chunks(), schema))


def _encodings(schema: pa.Schema) -> dict[str, Any]:
    """Return how Parquet stores a table: lists of numbers by bytes of one significance, quicker and smaller so."""
    lists = [name for name in schema.names if name in ("waveform", "embedding")]
    return {
        "compression": "zstd",
        "compression_level": 1 if lists else 3,
        "use_dictionary": [name for name in schema.names if name not in lists],
        "use_byte_stream_split": [f"{name}.list.element" for name in lists],
        "write_statistics": [_leaf(field) for field in schema if field.name not in lists],
    }


def _leaf(field: pa.Field) -> str:
    """Return what Parquet calls a column's values."""
    return f"{field.name}.list.element" if pa.types.is_nested(field.type) else str(field.name)


def write_table(store: Store, path: str, table: pa.Table, metadata: Mapping[str, str] | None = None) -> int:
    """Write a table as one Parquet file, atomically, and return the number of rows (see write_batches)."""
    return write_batches(store, path, table.schema, table.to_batches(), metadata)


def read_table(store: Store, item: StoredObject | str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read one Parquet file, or some of its columns; the partition folders are not turned into columns.

    A column that its table did not have from the beginning (`LATER_COLUMNS`) is null where the file lacks it.

    Raises:
        InputError: it is damaged, or holds what `open_table` refuses.
    """
    later = _later(item, columns)
    with _open(store, item, columns, may_lack=[field.name for field in later]) as (file, _):
        table = file.read(columns=_listed(columns))
    table = _with_later(table, later)
    return table if columns is None else table.select(list(columns))


def _later(item: StoredObject | str, columns: Sequence[str] | None) -> list[pa.Field]:
    """Return those of some columns that files of the table need not have."""
    folder = (item if isinstance(item, str) else item.path).split("/")[0]
    return [field for field in LATER_COLUMNS.get(folder, ()) if columns is None or field.name in columns]


def _with_later(table: pa.Table, later: Sequence[pa.Field]) -> pa.Table:
    """Return a table with nulls for the columns that it lacks."""
    for field in later:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table


def iter_batches(
    store: Store, item: StoredObject | str, columns: Sequence[str] | None = None, batch_rows: int = 1024
) -> Iterator[pa.RecordBatch]:
    """Yield one Parquet file in bounded batches; InputError as for `read_table`."""
    with open_table(store, item, columns) as file:
        yield from file.iter_batches(batch_size=batch_rows, columns=_listed(columns))


def read_spans(
    store: Store, item: StoredObject | str, columns: Sequence[str], spans: Sequence[tuple[int, int]]
) -> pa.Table:
    """Read the rows whose onset lies in one of some spans [start, end): only the row groups that may hold one.

    Args:
        store: where the file lies.
        item: as for `open_table`.
        columns: those that are returned; `onset` is read too.
        spans: in nanoseconds since 1970, UTC.

    Raises:
        InputError: as for `read_table`.
    """

    def groups(footer: Footer) -> list[int]:
        found = [_onset_range(footer, group) for group in range(len(footer.chunks))]
        return [
            group
            for group, (first, last) in enumerate(found)
            if any(start <= last and first < end for start, end in spans)
        ]

    needed = list(dict.fromkeys((*columns, "onset")))
    later = _later(item, columns)
    with _open(store, item, needed, may_lack=[field.name for field in later], groups=groups) as (file, footer):
        table = _with_later(file.read_row_groups(groups(footer), columns=needed), later)
    onsets = table.column("onset").to_numpy().astype("datetime64[ns]").astype(np.int64)
    inside = np.zeros(len(onsets), dtype=bool)
    for start, end in spans:
        inside |= (onsets >= start) & (onsets < end)
    return table.filter(pa.array(inside)).select(list(columns))


def read_events(store: Store, path: str, event_ids: Collection[str], columns: Sequence[str]) -> pa.Table:
    """Read the rows of some events, in the order of the file: only the row groups that hold them.

    Raises:
        InputError: as for `read_table`.
    """
    pieces = list(iter_events(store, path, event_ids, columns))
    if pieces:
        return pa.concat_tables(pieces)
    with open_table(store, path, (), also=columns) as file:
        return file.schema_arrow.empty_table().select(list(columns))


def iter_events(store: Store, path: str, event_ids: Collection[str], columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yield the rows of some events, in the order of the file, a row group at a time; InputError as `read_table`."""
    wanted = pa.array(sorted(set(event_ids)), pa.string())
    with open_table(store, path, ["event_id"], also=columns) as file:
        for group in range(file.num_row_groups):
            ids = file.read_row_group(group, columns=["event_id"])["event_id"]
            mask = pa.compute.is_in(ids, value_set=wanted)
            if pa.compute.any(mask).as_py():
                yield file.read_row_group(group, columns=list(columns)).filter(mask)


def read_rows(store: Store, path: str, rows: Sequence[int], columns: Sequence[str]) -> pa.Table:
    """Read some rows, whose numbers rise: only the row groups that hold them.

    Raises:
        InputError: as for `read_table`.
    """
    wanted = np.asarray(rows, dtype=np.int64)
    with _open(store, path, (), also=columns) as (file, footer):
        pieces, start = [], 0
        for group, num_rows in enumerate(footer.group_rows):
            stop = start + num_rows
            inside = wanted[(wanted >= start) & (wanted < stop)] - start
            if len(inside):
                pieces.append(file.read_row_group(group, columns=list(columns)).take(inside))
            start = stop
        return pa.concat_tables(pieces) if pieces else file.schema_arrow.empty_table().select(list(columns))


@contextmanager
def open_table(
    store: Store, item: StoredObject | str, columns: Sequence[str] | None = None, *, also: Sequence[str] = ()
) -> Iterator[pq.ParquetFile]:
    """Open one Parquet file of a table, checked.

    Args:
        store: where it lies.
        item: its path, or its entry in a listing, which saves a request to a bucket.
        columns: those that will be read; None: all.
        also: further columns, of which a few row groups may be read.

    Raises:
        InputError: it is damaged, lacks a column, holds other types than the contract's or an extension type, or
            decodes to more than MAX_EXPANSION times its size; also while it is read.
    """
    with _open(store, item, columns, also=also) as (file, _):
        yield file


@contextmanager
def open_content(content: bytes, name: str) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file that was read into memory; its columns' types are the caller's to check.

    Raises:
        InputError: it is damaged, holds an extension type or decodes to more than MAX_EXPANSION times its size.
    """
    source = pa.BufferReader(content)
    with _named_damage(name, "restore it"), ExitStack() as stack:
        footer = _footer(lambda start, length: content[start : start + length], len(content))
        refuse_extensions(footer, name)
        footer = with_stated_pages(source, footer, None, range(len(footer.chunks)))
        refuse_expansion(source, footer, None, len(content), name)
        yield stack.enter_context(open_parquet(source, footer))


@contextmanager
def _open(
    store: Store,
    item: StoredObject | str,
    columns: Sequence[str] | None,
    *,
    also: Sequence[str] = (),
    may_lack: Sequence[str] = (),
    groups: Callable[[Footer], Sequence[int]] | None = None,
) -> Iterator[tuple[pq.ParquetFile, Footer]]:
    """Yield what `open_table` does, and the footer.

    Args:
        store, item, columns, also: as for `open_table`.
        may_lack: of these columns, those that the file need not have.
        groups: returns the row groups of `columns` that will be read; None: all.
    """
    path = item if isinstance(item, str) else item.path
    name = store.full(path)
    wanted = None if columns is None else {*columns, *also}
    with named_damage(store, path), ExitStack() as stack:
        if store.is_local:
            source = stack.enter_context(pa.OSFile(name))
            size = source.size()
            footer = _footer(lambda start, length: _read_at(source, start, length), size)
        else:
            entry, tail = (item, b"") if not isinstance(item, str) else _with_tail(store, item)
            size = entry.size
            source = None
            if size <= _SMALL_BYTES:
                source = pa.BufferReader(tail if len(tail) == size else store.read_checked(entry))
                footer = _footer(lambda start, length: _read_at(source, start, length), size)
            elif tail:
                footer = _footer(lambda start, length: _of_tail(store, entry, tail, start, length), size)
            else:
                footer = _bucket_footer(store, entry)
        refuse_extensions(footer, name)
        missing = sorted((wanted or set()) - footer.columns - set(may_lack))
        if missing:
            raise InputError(f"{name} has no column {missing[0]}; restore it or run its stage with --replace")
        numbers = range(len(footer.chunks)) if groups is None else groups(footer)
        if source is None:
            source = stack.enter_context(_bucket_source(store, entry, footer, columns, numbers))
        # Of a bucket's object only what is fetched anyway is looked at.
        footer = with_stated_pages(source, footer, wanted if store.is_local else columns, numbers)
        refuse_expansion(source, footer, wanted, size, name)
        file = stack.enter_context(open_parquet(source, footer))
        refuse_other_types(file.schema_arrow, path.split("/")[0], name)
        yield file, footer


def _listed(columns: Sequence[str] | None) -> list[str] | None:
    return None if columns is None else list(columns)


def _read_at(source: Any, start: int, length: int) -> bytes:
    source.seek(start)
    content: bytes = source.read(length)
    return content


@lru_cache(maxsize=_KEPT_FOOTERS)
def _bucket_footer(store: Store, item: StoredObject) -> Footer:
    """Return the footer of an object, which its tag identifies; a process that reads it again fetches none."""
    return _footer(lambda start, length: store.read_checked(item, start, length), item.size)


def _with_tail(store: Store, path: str) -> tuple[StoredObject, bytes]:
    """Return an object of a bucket, whose size is not known yet, and its last bytes, in one request.

    Files of labels and embeddings are often small, and then come whole; those of events hold waveforms.
    """
    tail, item = store.read_tail(path, _TAIL_BYTES if path.startswith("events/") else _SMALL_BYTES)
    return item, tail


def _of_tail(store: Store, item: StoredObject, tail: bytes, start: int, length: int) -> bytes:
    first = item.size - len(tail)
    return tail[start - first :][:length] if start >= first else store.read_checked(item, start, length)


@contextmanager
def _bucket_source(
    store: Store, item: StoredObject, footer: Footer, columns: Sequence[str] | None, groups: Sequence[int]
) -> Iterator[Any]:
    """Yield an object of a bucket for Arrow to read: copied whole where most of it is wanted, else by its ranges."""
    chunks = [chunk for group in groups for chunk in footer.of(group, columns)]
    ranges = [(chunk.start, chunk.start + chunk.stored_bytes) for chunk in chunks]
    if 2 * sum(chunk.stored_bytes for chunk in chunks) > item.size:
        with store.local_copy(item) as copy, pa.OSFile(str(copy)) as source:
            yield source
        return
    with store.open_ranges(item, ranges) as file:
        yield pa.PythonFile(file, mode="r")


def _footer(read: Callable[[int, int], bytes], size: int) -> Footer:
    """Return what a Parquet file states at its end; ArrowInvalid where it is damaged.

    Args:
        read: returns `length` bytes from `start` on.
        size: of the file.
    """
    tail_bytes = min(size, _TAIL_BYTES)
    tail = read(size - tail_bytes, tail_bytes)
    if len(tail) < 12 or tail[-4:] != b"PAR1":
        raise pa.ArrowInvalid("it does not end as a Parquet file does")
    needed = int.from_bytes(tail[-8:-4], "little") + 8
    if needed > min(size, MAX_FOOTER_BYTES):
        raise pa.ArrowInvalid("its footer is longer than the file")
    if needed > len(tail):
        tail = read(size - needed, needed - len(tail)) + tail
    try:
        return parse_footer(tail[-needed:])
    except ValueError as error:
        raise pa.ArrowInvalid(str(error)) from None


def _onset_range(footer: Footer, group: int) -> tuple[int, int]:
    """Return the first and last onset of a row group (ns) as its statistics give them; everything where they do not."""
    for chunk in footer.of(group, ("onset",)):
        if chunk.statistics is not None and chunk.kind == "INT64":
            first, last = (int.from_bytes(value, "little", signed=True) for value in chunk.statistics)
            return first, last
    return int(np.iinfo(np.int64).min), int(np.iinfo(np.int64).max)


@contextmanager
def named_damage(store: Store, path: str) -> Iterator[None]:
    """Turn what Parquet says of a damaged file into an InputError that names it."""
    with _named_damage(store.full(path), "restore it or rerun its stage with --replace"):
        yield


@contextmanager
def _named_damage(name: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, StorageFailed):
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{name} cannot be read as a table ({reason}); {remedy}") from None


def waveforms(column: pa.ChunkedArray | pa.Array) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return a `waveform` column as float32 (n, 3, samples); absent samples are NaN."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], type=array.type)
    result: np.ndarray[Any, np.dtype[np.float32]] = array.to_numpy_ndarray()
    return result


def embeddings(column: pa.ChunkedArray | pa.Array) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return an `embedding` column as float32 (n, dim)."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    values = array.flatten().to_numpy(zero_copy_only=False)
    dim = column.type.list_size
    result: np.ndarray[Any, np.dtype[np.float32]] = values.reshape(len(column), dim)
    return result


def tensor_array(values: np.ndarray[Any, np.dtype[np.float32]]) -> pa.Array:
    """Return float32 (n, 3, samples) as a fixed-shape tensor array with named dimensions."""
    kind = pa.fixed_shape_tensor(pa.float32(), values.shape[1:], dim_names=("component", "sample"))
    flat = pa.array(np.ascontiguousarray(values, dtype=np.float32).reshape(-1))
    storage = pa.FixedSizeListArray.from_arrays(flat, values[0].size if len(values) else int(np.prod(values.shape[1:])))
    return pa.ExtensionArray.from_storage(kind, storage)


def rows_hash(table: pa.Table) -> str:
    """Return a hash of a table's rows and column names, independent of chunking and file layout."""
    sink = pa.BufferOutputStream()
    plain = table.replace_schema_metadata(None).combine_chunks()
    with pa.ipc.new_stream(sink, plain.schema) as stream:
        stream.write_table(plain)
    return content_hash(sink.getvalue().to_pybytes())


def _cast(table: pa.Table, schema: pa.Schema) -> pa.Table:
    return table.replace_schema_metadata(schema.metadata)


def _chain(first: pa.RecordBatch, rest: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield first
    yield from rest
