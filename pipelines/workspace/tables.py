"""The tables that stages meet in: Arrow schemas, paths, and deterministic Parquet reading and writing.

    events/network=AW/station=VNA1/<shard>.parquet       embeddings/... and labels/... file by file as events/
    availability/...                                     one row a channel, day and rate, file by file as events/

Rows of a file are sorted by (onset, event_id). Metadata hold content hashes only.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.runtime.errors import InputError
from pipelines.workspace.outcomes import TIMED
from pipelines.workspace.storage import Store, StoredObject, content_hash

COMPONENTS = ("E", "N", "Z")
ROWS_PER_GROUP = 128
FILES_A_TASK = 64
"""Most files of a table that one task goes through."""

_TIME = pa.timestamp("ns", tz="UTC")

T = TypeVar("T")


def events_schema(num_samples: int) -> pa.Schema:
    """Return the schema of events/: one row a detection; `waveform` is float32 (3, num_samples), rows E/1, N/2, Z."""
    return pa.schema(
        [
            ("event_id", pa.string()),
            ("network", pa.string()),
            ("station", pa.string()),
            ("location", pa.string()),
            ("channels", pa.list_(pa.string(), 3)),
            ("onset", _TIME),
            ("window_start", _TIME),
            ("duration_s", pa.float32()),
            ("peak_ratio", pa.float32()),
            ("snr_db", pa.float32()),
            ("peak_amplitude", pa.float32()),
            ("units", pa.string()),
            ("sampling_rate", pa.float64()),
            ("source_sampling_rate", pa.float64()),
            ("missing_fraction", pa.float32()),
            ("trigger_channel", pa.string()),
            ("shard", pa.string()),
            ("waveform", pa.fixed_shape_tensor(pa.float32(), (3, num_samples), dim_names=("component", "sample"))),
        ]
    )


def embeddings_schema(dim: int) -> pa.Schema:
    """Return the schema of embeddings/: one row an event, `embedding` a fixed-size list of float32."""
    return pa.schema([("event_id", pa.string()), ("embedding", pa.list_(pa.float32(), dim))])


def labels_schema() -> pa.Schema:
    """Return the schema of labels/: one row an event."""
    return pa.schema(
        [
            ("event_id", pa.string()),
            ("network", pa.string()),
            ("station", pa.string()),
            ("location", pa.string()),
            ("onset", _TIME),
            ("cluster", pa.int32()),
            ("distance", pa.float32()),
            ("margin", pa.float32()),
            ("label", pa.string()),
            ("label_source", pa.string()),
        ]
    )


def availability_schema() -> pa.Schema:
    """Return the schema of availability/: one row a channel, UTC day and rate; seconds by outcome.

    `location`, `channel` and `rate_hz` are null where nothing that was read tells them. A shard of less than a day
    counts its own part of the day.
    """
    return pa.schema(
        [
            ("network", pa.string()),
            ("station", pa.string()),
            ("location", pa.string()),
            ("channel", pa.string()),
            ("day", pa.date32()),
            ("rate_hz", pa.float64()),
            *((f"{outcome}_seconds", pa.float64()) for outcome in TIMED),
        ]
    )


def shard_path(table: str, network: str, station: str, shard: str) -> str:
    """Return the path of a shard's file in a table folder."""
    return f"{table}/network={network}/station={station}/{shard}.parquet"


def station_of(path: str) -> tuple[str, str]:
    """Return the network and the station of a shard's file."""
    network, station = path.split("/")[1:3]
    return network.removeprefix("network="), station.removeprefix("station=")


def by_task(files: Sequence[T]) -> list[list[T]]:
    """Return files in groups, in their order, of at most FILES_A_TASK: one group a task."""
    return [list(files[start : start + FILES_A_TASK]) for start in range(0, len(files), FILES_A_TASK)]


def list_shards(store: Store, table: str) -> list[StoredObject]:
    """Return every Parquet file of a table, sorted by path."""
    return sorted((item for item in store.walk(table) if item.path.endswith(".parquet")), key=lambda item: item.path)


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
    pending: list[pa.RecordBatch] = []
    held = rows = 0
    batches = (batch for batch in batches if batch.num_rows)
    first = next(iter(batches), None)
    if first is None:
        return 0, lambda: None
    with ExitStack() as stack:
        temporary = stack.enter_context(store.atomic_file(path))
        with pq.ParquetWriter(temporary, schema, **_encodings(schema)) as writer:
            for batch in _chain(first, batches):
                pending.append(batch)
                held += batch.num_rows
                rows += batch.num_rows
                while held >= ROWS_PER_GROUP:
                    table = pa.Table.from_batches(pending).combine_chunks()
                    writer.write_table(_cast(table.slice(0, ROWS_PER_GROUP), schema))
                    rest = table.slice(ROWS_PER_GROUP)
                    pending, held = rest.to_batches(), rest.num_rows
            if held:
                writer.write_table(_cast(pa.Table.from_batches(pending).combine_chunks(), schema))
        publish = stack.pop_all().close
    return rows, publish


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


def read_table(store: Store, path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read one Parquet file; the partition folders are not turned into columns.

    Raises:
        InputError: it is damaged.
    """
    with open_table(store, path) as file:
        return file.read(columns=list(columns) if columns is not None else None)


def iter_batches(
    store: Store, path: str, columns: Sequence[str] | None = None, batch_rows: int = 1024
) -> Iterator[pa.RecordBatch]:
    """Yield one Parquet file in bounded batches; InputError where it is damaged."""
    with open_table(store, path) as file:
        yield from file.iter_batches(batch_size=batch_rows, columns=list(columns) if columns is not None else None)


@contextmanager
def open_table(store: Store, path: str) -> Iterator[pq.ParquetFile]:
    """Open one Parquet file; what shows it to be damaged, here or while it is read, is an InputError that names it."""
    with store.local_copy(path) as copy, named_damage(store, path), pq.ParquetFile(copy) as file:
        yield file


@contextmanager
def named_damage(store: Store, path: str) -> Iterator[None]:
    """Turn what Parquet says of a damaged file into an InputError that names it."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{store.full(path)} cannot be read as a table ({reason}); restore it or rerun its stage with --replace"
        ) from None


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
