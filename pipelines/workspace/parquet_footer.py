"""Footer and page headers of a Parquet file that may come from a stranger, read without making anything of them.

pyarrow's own view of a footer is for files that one trusts: opening it makes the extension types that are named there,
by code that is registered with Arrow, and some of its accessors end the process where a footer contradicts itself. This
module reads the few numbers and names that decide whether a file is opened at all.

Source: the Apache Parquet format (parquet.thrift) and Thrift's compact protocol.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

MAX_DEPTH = 16
"""Of structures in structures; a footer has 6."""

SCHEMA_KEY = b"ARROW:schema"

_TYPES = ("BOOLEAN", "INT32", "INT64", "INT96", "FLOAT", "DOUBLE", "BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY")
_PLAIN, _PLAIN_DICTIONARY, _RLE, _BIT_PACKED, _RLE_DICTIONARY = 0, 2, 3, 4, 8
_DICTIONARY_PAGE, _DATA_PAGE_2 = 2, 3
# Field of a page's header by type: data, dictionary, data of version 2.
_PAGE_HEADERS = {0: 5, _DICTIONARY_PAGE: 7, _DATA_PAGE_2: 8}
_HEADER_BYTES = (128, 2**16, 2**22)
_FEW_PAGES, _MIN_PAGE_BYTES = 1000, 64
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}


@dataclass(frozen=True, slots=True)
class Chunk:
    """One column's values in one row group."""

    path: str
    """The column's name in the schema, parts joined by dots; the first part is the name in a table."""
    kind: str
    """Physical type."""
    width: int
    """Bytes of one value; 0 for text, which has no fixed width."""
    repeats: str
    """How text may be stored once and stand for many values: "dictionary", "other", or "" for not at all."""
    num_values: int
    stored_bytes: int
    """In the file."""
    plain_bytes: int
    """Before compression."""
    start: int
    """First byte in the file."""
    statistics: tuple[bytes, bytes] | None
    """Least and greatest value as stored."""

    @property
    def column(self) -> str:
        """The name of the column in a table."""
        return self.path.split(".")[0]


@dataclass(frozen=True, kw_only=True)
class Footer:
    """What a Parquet file states of itself."""

    content: bytes
    """From the first byte of the footer to the end of the file."""
    num_rows: int
    group_rows: tuple[int, ...]
    """Rows of each row group."""
    columns: frozenset[str]
    """Names of the columns."""
    chunks: tuple[tuple[Chunk, ...], ...]
    """By row group, in the order of the columns."""
    arrow_schema: bytes | None
    """The schema that Arrow keeps beside Parquet's, in base64."""

    def of(self, group: int, wanted: Collection[str] | None) -> Iterator[Chunk]:
        """Yield a row group's chunks of some columns; None: of all."""
        for chunk in self.chunks[group]:
            if wanted is None or chunk.column in wanted:
                yield chunk


def parse_footer(content: bytes) -> Footer:
    """Return what a footer states.

    Args:
        content: from the first byte of the footer to the end of the file, with its length and the closing PAR1.

    Raises:
        ValueError: it is not a footer, or contradicts itself.
    """
    reader = _Reader(content[:-8])
    try:
        found = reader.struct(0)
        elements = _list(found, 2)
        leaves = [element for element in elements[1:] if not element.get(5)]
        widths = [_int(leaf, 2, 0) for leaf in leaves]
        groups = _list(found, 4)
        chunks = tuple(_chunks(_list(group, 1), widths) for group in groups)
        pairs = [(entry[1], entry.get(2)) for entry in _list(found, 5)]
        rows = tuple(_int(group, 3) for group in groups)
        num_rows = _int(found, 3)
        names = frozenset(_top_names(elements))
    except (IndexError, KeyError, TypeError, AttributeError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError("its footer is damaged") from error
    if sum(rows) != num_rows or min(rows, default=0) < 0:
        raise ValueError("its row groups do not add up to the rows that it states")
    schemas = [value for key, value in pairs if key == SCHEMA_KEY]
    # Wherever else the key occurs, another reader could find it there.
    if len(schemas) > 1 or content.count(SCHEMA_KEY) > len(schemas):
        raise ValueError("its footer holds two Arrow schemas")
    return Footer(
        content=content,
        num_rows=num_rows,
        group_rows=rows,
        columns=names,
        chunks=chunks,
        arrow_schema=schemas[0] if schemas else None,
    )


def with_pages(chunk: Chunk, read: Callable[[int, int], bytes]) -> Chunk:
    """Return a chunk with at least the values and bytes that the headers of its pages state, and their encodings.

    Arrow allocates what the headers of pages say, whatever the footer says.

    Args:
        chunk: as the footer states it.
        read: returns `length` bytes of the file from `start` on.

    Raises:
        ValueError: a header is damaged or contradicts itself.
    """
    position, end = chunk.start, chunk.start + chunk.stored_bytes
    num_pages = num_values = plain_bytes = 0
    repeats = {chunk.repeats}
    while position < end:
        page, length = _page(read, position, end)
        kind, plain, stored = _int(page, 1), _int(page, 2), _int(page, 3)
        header = page.get(_PAGE_HEADERS.get(kind, 0), {})
        values = _int(header, 1, 0)
        if min(plain, stored, values) < 0 or (kind == _DICTIONARY_PAGE and values > plain):
            raise ValueError("a page of it contradicts itself")
        if kind != _DICTIONARY_PAGE:
            num_values += values
            encoding = _int(header, 4 if kind == _DATA_PAGE_2 else 2, _PLAIN)
            if chunk.kind == "BYTE_ARRAY" and encoding in (_PLAIN_DICTIONARY, _RLE_DICTIONARY):
                repeats.add("dictionary")
            elif chunk.kind == "BYTE_ARRAY" and encoding != _PLAIN:
                repeats.add("other")
        num_pages += 1
        plain_bytes += plain
        position += length + stored
        if num_pages > _FEW_PAGES and chunk.stored_bytes < _MIN_PAGE_BYTES * num_pages:
            raise ValueError("it has a page for every few bytes")
    worst = "other" if "other" in repeats else "dictionary" if "dictionary" in repeats else ""
    return replace(
        chunk,
        num_values=max(num_values, chunk.num_values),
        plain_bytes=max(plain_bytes, chunk.plain_bytes),
        repeats=worst,
    )


def _page(read: Callable[[int, int], bytes], position: int, end: int) -> tuple[dict[int, Any], int]:
    """Return a page's header and its length."""
    for length in _HEADER_BYTES:
        reader = _Reader(read(position, min(length, end - position)))
        try:
            return reader.struct(0), reader.position
        except IndexError:
            # Statistics in it may be long.
            continue
    raise ValueError("the header of a page is damaged")


def _top_names(elements: list[dict[int, Any]]) -> Iterator[str]:
    """Yield the names of the columns of a table: the children of the schema's root."""
    index = 1
    for _ in range(_int(elements[0], 5, 0)):
        yield elements[index][4].decode()
        left = 1
        while left:
            left += _int(elements[index], 5, 0) - 1
            index += 1


def _chunks(columns: list[dict[int, Any]], lengths: list[int]) -> tuple[Chunk, ...]:
    if len(columns) != len(lengths):
        raise ValueError("a row group has another number of columns than the schema")
    chunks = []
    for column, length in zip(columns, lengths, strict=True):
        known = column[3]
        kind = _TYPES[_int(known, 1)]
        encodings = set(_list(known, 2))
        dictionary = _int(known, 11, 0)
        data = _int(known, 9)
        numbers = [_int(known, field) for field in (5, 6, 7)]
        if min(*numbers, length, data, dictionary) < 0:
            raise ValueError("a number in its footer is negative")
        repeats = ""
        if kind == "BYTE_ARRAY" and encodings & {_PLAIN_DICTIONARY, _RLE_DICTIONARY}:
            repeats = "dictionary"
        elif kind == "BYTE_ARRAY" and not encodings <= {_PLAIN, _RLE, _BIT_PACKED}:
            repeats = "other"
        statistics = known.get(12, {})
        limits = statistics.get(6), statistics.get(5)
        chunks.append(
            Chunk(
                path=b".".join(known[3]).decode(),
                kind=kind,
                width=_WIDTHS.get(kind, length if kind == "FIXED_LEN_BYTE_ARRAY" else 0),
                repeats=repeats,
                num_values=numbers[0],
                plain_bytes=numbers[1],
                stored_bytes=numbers[2],
                # 0: there is none; a column without values has a dictionary at most.
                start=min(filter(None, (data, dictionary)), default=0),
                statistics=limits if isinstance(limits[0], bytes) and isinstance(limits[1], bytes) else None,
            )
        )
    return tuple(chunks)


def _list(found: dict[int, Any], field: int) -> list[Any]:
    value = found.get(field, [])
    if not isinstance(value, list):
        raise TypeError
    return value


def _int(found: dict[int, Any], field: int, default: int | None = None) -> int:
    value = found.get(field, default)
    if not isinstance(value, int):
        raise TypeError
    return value


class _Reader:
    """Values of Thrift's compact protocol, one after the other; IndexError where they end early."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.position = 0

    def byte(self) -> int:
        value = self.content[self.position]
        self.position += 1
        return value

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
            if shift > 63:
                raise ValueError("a number in its footer is too long")

    def signed(self) -> int:
        value = self.varint()
        return (value >> 1) ^ -(value & 1)

    def binary(self) -> bytes:
        return self.skipped(self.varint())

    def skipped(self, length: int) -> bytes:
        start, self.position = self.position, self.position + length
        if self.position > len(self.content):
            raise IndexError
        return self.content[start : self.position]

    def value(self, kind: int, depth: int) -> Any:
        if kind in (4, 5, 6):
            return self.signed()
        if kind == 8:
            return self.binary()
        if kind == 12:
            return self.struct(depth + 1)
        if kind in (9, 10):
            return self.items(depth + 1)
        if kind in (1, 2, 3):
            return self.byte()
        if kind == 7:
            return self.skipped(8)
        raise ValueError("its footer holds a type that no Parquet footer has")

    def items(self, depth: int) -> list[Any]:
        header = self.byte()
        size = header >> 4
        if size == 15:
            size = self.varint()
        if size > len(self.content) - self.position or depth > MAX_DEPTH:
            raise IndexError
        kind = header & 0x0F
        return [self.value(kind, depth) for _ in range(size)]

    def struct(self, depth: int) -> dict[int, Any]:
        if depth > MAX_DEPTH:
            raise IndexError
        found: dict[int, Any] = {}
        field = 0
        while True:
            header = self.byte()
            if header == 0:
                return found
            field = field + (header >> 4) if header >> 4 else self.signed()
            if field in found:
                raise ValueError("its footer holds a field twice")
            kind = header & 0x0F
            # Of a truth value the type is the value.
            found[field] = kind == 1 if kind in (1, 2) else self.value(kind, depth)
