"""What of a Parquet file is refused before a column is read: a file may come from a stranger.

Refused are extension types other than the fixed-shape tensor (Ray registers one that unpickles what it reads), types
other than the contract's, and more decoded bytes, as footer and pages state them, than a stated multiple of the file's
size.
"""

import base64
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.runtime.errors import InputError
from pipelines.workspace.parquet_footer import Footer, with_pages
from pipelines.workspace.schemas import availability_schema, embeddings_schema, events_schema, labels_schema

MAX_EXPANSION = 200
"""Decoded bytes for each byte of a file; waveforms that are partly absent reach 10."""
MIN_DECODED_BYTES = 64 << 20
"""What the columns of any file, however small, may decode to."""


def open_parquet(source: Any, footer: Footer, **options: Any) -> pq.ParquetFile:
    """Return Arrow's view of a file whose footer was read and checked before; ArrowInvalid where the two differ."""
    metadata = pq.read_metadata(pa.BufferReader(b"PAR1" + footer.content))
    if (metadata.num_rows, metadata.num_row_groups) != (footer.num_rows, len(footer.chunks)):
        raise pa.ArrowInvalid("its footer contradicts itself")
    return pq.ParquetFile(source, metadata=metadata, **options)


def refuse_extensions(footer: Footer, name: str) -> None:
    """Raise InputError where a file's Arrow schema names an extension type other than the fixed-shape tensor.

    Arrow makes the types that a schema names while it reads it, by code that is registered with it. So the names are
    looked at first, in a copy in which the key that Arrow acts on is spelt otherwise.
    """
    if footer.arrow_schema is None:
        return
    try:
        message = base64.b64decode(footer.arrow_schema, validate=True).replace(_EXTENSION_KEY, _NO_EXTENSION_KEY)
    except ValueError:
        raise pa.ArrowInvalid("its Arrow schema is not base64") from None
    for field in _all_fields(pa.ipc.read_schema(pa.py_buffer(message))):
        kind = (field.metadata or {}).get(_NO_EXTENSION_KEY)
        if kind is not None and kind != b"arrow.fixed_shape_tensor":
            raise InputError(
                f"{name} is refused: its column {field.name!r} has the extension type "
                f"{kind.decode(errors='replace')!r}, which may run code when it is read"
            )


def _all_fields(fields: Iterable[pa.Field]) -> Iterator[pa.Field]:
    for field in fields:
        yield field
        kind = field.type
        while pa.types.is_dictionary(kind):
            kind = kind.value_type
        yield from _all_fields(kind.field(index) for index in range(kind.num_fields))


def with_stated_pages(source: Any, footer: Footer, columns: Collection[str] | None, groups: Sequence[int]) -> Footer:
    """Return a footer that states at least what the headers of pages do, of the columns and row groups to be read."""

    def read(start: int, length: int) -> bytes:
        source.seek(start)
        content: bytes = source.read(length)
        return content

    chunks = list(footer.chunks)
    try:
        for group in set(groups):
            chunks[group] = tuple(
                with_pages(chunk, read) if columns is None or chunk.column in columns else chunk
                for chunk in chunks[group]
            )
    except (ValueError, TypeError, AttributeError, IndexError) as error:
        raise pa.ArrowInvalid(str(error) or "the header of a page is damaged") from None
    return replace(footer, chunks=tuple(chunks))


def refuse_expansion(source: Any, footer: Footer, wanted: Collection[str] | None, size: int, name: str) -> None:
    """Raise InputError where the columns decode to more than MIN_DECODED_BYTES and MAX_EXPANSION times the file's size.

    Counted from the footer: numbers of values, and bytes before compression. Text whose encoding may repeat it is
    counted as if each value were all that its chunk holds; only where that is too much is it looked at.
    """
    limit = MIN_DECODED_BYTES + MAX_EXPANSION * size
    decoded, repeated = 0, 0
    texts: list[tuple[int, str]] = []
    for group in range(len(footer.chunks)):
        for chunk in footer.of(group, wanted):
            decoded += chunk.plain_bytes + chunk.num_values * (chunk.width or _TEXT_WIDTH)
            if chunk.repeats == "dictionary" and "." not in chunk.path:
                repeated += chunk.num_values * chunk.plain_bytes
                texts.append((group, chunk.path))
            elif chunk.repeats:
                decoded += chunk.num_values * chunk.plain_bytes
    if decoded <= limit < decoded + repeated:
        decoded += sum(_text_bytes(source, footer, group, column) for group, column in texts)
    if decoded > limit:
        raise InputError(
            f"{name} is refused: its {size} bytes decode to {decoded}, more than {MAX_EXPANSION} times as many"
        )


def _text_bytes(source: Any, footer: Footer, group: int, column: str) -> int:
    """Return what a row group's text decodes to; each different text is read once for many rows."""
    file = open_parquet(source, footer, read_dictionary=[column])
    total = 0
    for batch in file.iter_batches(batch_size=_TEXT_ROWS, row_groups=[group], columns=[column]):
        texts = batch.column(0)
        lengths = pa.compute.binary_length(texts.dictionary)
        total += pa.compute.sum(lengths.take(texts.indices)).as_py() or 0
    return total


def refuse_other_types(schema: pa.Schema, table: str, name: str) -> None:
    """Raise InputError where a column of a known table has another type than the contract's."""
    for field in _CONTRACT.get(table, ()):
        index = schema.get_field_index(field.name)
        if index >= 0 and not _is_type(schema.field(index).type, field.type):
            raise InputError(
                f"{name} is refused: its column {field.name} has the type {schema.field(index).type}, not {field.type}"
            )


def _is_type(found: pa.DataType, expected: pa.DataType) -> bool:
    """Whether a type is the contract's; numbers of samples and of dimensions are each workspace's own."""
    if isinstance(expected, pa.FixedShapeTensorType):
        tensor = isinstance(found, pa.FixedShapeTensorType) and found.value_type == expected.value_type
        return tensor and len(found.shape) == 2 and found.shape[0] == expected.shape[0]
    if pa.types.is_fixed_size_list(expected):
        if not pa.types.is_fixed_size_list(found):
            return False
        several = expected.value_type != pa.float32() and found.list_size != expected.list_size
        return found.value_type == expected.value_type and not several
    return bool(found == expected) or (pa.types.is_string(expected) and pa.types.is_large_string(found))


_EXTENSION_KEY, _NO_EXTENSION_KEY = b"ARROW:extension:name", b"NEVER:extension:name"
_TEXT_ROWS = 65_536
_TEXT_WIDTH = 4
"""Bytes that Arrow keeps for each text beside the text itself."""
_CONTRACT = {
    "availability": availability_schema(),
    "events": events_schema(1),
    "triggers": events_schema(1),
    "embeddings": embeddings_schema(1),
    "labels": labels_schema(),
}
