"""Files that are nearly right: made here, then changed where their structure is."""

import copy
import gzip
import io
import json
import re
import struct
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import obspy
import pyarrow as pa
import pyarrow.parquet as pq
from obspy.core.inventory import Channel, Inventory, Network, Response, Site, Station
from pymseed import DataEncoding, MS3TraceList

Random = np.random.Generator

RECORD_BYTES = 512
SECONDS = 60
RATE_HZ = 20.0

_INTEGERS = (
    0,
    1,
    2,
    3,
    7,
    8,
    9,
    12,
    20,
    47,
    48,
    63,
    64,
    127,
    128,
    255,
    256,
    365,
    366,
    367,
    1969,
    1970,
    2262,
    2263,
    9999,
)
_WIDE = (-1, -2, 32767, -32768, 65535, 2**31 - 1, -(2**31), 2**32 - 1)
_RATES = (0.0, -0.0, 1e-300, 1e-9, 0.01, 33.333333, 99.999997, 1e6, 1e18, 1.7e308, -1.0, -60.0, np.nan, np.inf, -np.inf)
_CODES = (
    b"..",
    b"/",
    b"../..",
    b"A/B",
    b"\x00",
    b"\x1b[31m",
    b"--",
    b"  ",
    b"*",
    b"\xff\xfe",
    b"AAAAAAAAAAAA",
    b"=1+1",
)
# Offset and size of the fields of a miniSEED 2 header and of the blockette 1000 that follows it.
_FIELDS_2 = (
    *((0, 6), (6, 1), (7, 1), (8, 5), (13, 2), (15, 3), (18, 2), (20, 2), (22, 2), (24, 1), (25, 1), (26, 1), (28, 2)),
    *((30, 2), (32, 2), (34, 2), (36, 1), (37, 1), (38, 1), (39, 1), (40, 4), (44, 2), (46, 2)),
    *((48, 2), (50, 2), (52, 1), (53, 1), (54, 1)),
)
_FIELDS_3 = (
    *((0, 2), (2, 1), (3, 1), (4, 4), (8, 2), (10, 2), (12, 1), (13, 1), (14, 1), (15, 1), (16, 8), (24, 4), (28, 4)),
    *((32, 1), (33, 1), (34, 2), (36, 4)),
)


def _samples(dtype: Any, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=round(SECONDS * RATE_HZ)) * 300
    values[400:480] *= 30
    return values.astype(dtype)


@cache
def mseed2_files() -> tuple[bytes, ...]:
    """Return files of all encodings and byte orders, of one channel and of three."""
    files = []
    kinds: Sequence[tuple[str, Any]] = (
        *(("STEIM1", np.int32), ("STEIM2", np.int32), ("INT32", np.int32), ("INT16", np.int16)),
        *(("FLOAT32", np.float32), ("FLOAT64", np.float64)),
    )
    for seed, (encoding, dtype) in enumerate(kinds):
        for order in (">", "<"):
            codes = ("HHZ",) if seed % 2 else ("HHE", "HHN", "HHZ")
            traces = [
                obspy.Trace(
                    _samples(dtype, seed),
                    {
                        **{"network": "XX", "station": f"S{seed}", "channel": code, "sampling_rate": RATE_HZ},
                        "starttime": obspy.UTCDateTime(2020, 3, 1) + 10 * seed,
                    },
                )
                for code in codes
            ]
            buffer = io.BytesIO()
            obspy.Stream(traces).write(buffer, format="MSEED", encoding=encoding, byteorder=order, reclen=RECORD_BYTES)
            files.append(buffer.getvalue())
    return tuple(files)


@cache
def mseed3_files() -> tuple[tuple[bytes, ...], ...]:
    """Return the records of files in miniSEED 3."""
    files = []
    kinds = (
        (DataEncoding.STEIM2, np.int32, "i"),
        (DataEncoding.INT32, np.int32, "i"),
        (DataEncoding.FLOAT32, np.float32, "f"),
    )
    for seed, (encoding, dtype, kind) in enumerate(kinds):
        traces = MS3TraceList()
        begin = obspy.UTCDateTime(2020, 3, 1).ns
        traces.add_data(f"FDSN:XX_T{seed}__H_H_Z", _samples(dtype, seed), kind, RATE_HZ, starttime=begin)
        records = traces.generate(format_version=3, encoding=encoding, max_record_length=RECORD_BYTES)
        files.append(tuple(bytes(record) for record in records))
    return tuple(files)


def mseed(rng: Random) -> bytes:
    """Return a changed file of miniSEED 2 or 3, perhaps of both, perhaps packed."""
    records: list[bytes] = []
    for _ in range(int(rng.choice((1, 1, 1, 2)))):
        if rng.random() < 0.7:
            whole = mseed2_files()[int(rng.integers(len(mseed2_files())))]
            some = [whole[at : at + RECORD_BYTES] for at in range(0, len(whole), RECORD_BYTES)]
            records += [_changed_record(record, rng, _FIELDS_2, 0.3) for record in some]
        else:
            some = list(mseed3_files()[int(rng.integers(len(mseed3_files())))])
            records += [_with_checksum(_changed_record(record, rng, _FIELDS_3, 0.3), rng) for record in some]
    content = b"".join(_in_another_order(records, rng))
    if rng.random() < 0.3:
        content = any_bytes(content, rng)
    if rng.random() < 0.15:
        content = _packed(content, rng)
    return content


def _changed_record(record: bytes, rng: Random, fields: Sequence[tuple[int, int]], share: float) -> bytes:
    if rng.random() > share:
        return record
    out = bytearray(record)
    for _ in range(int(rng.integers(1, 4))):
        kind = rng.random()
        if kind < 0.7:
            offset, size = fields[int(rng.integers(len(fields)))]
            out[offset : offset + size] = _value(size, rng)
        elif kind < 0.8 and fields is _FIELDS_2:
            # A blockette 100 (a rate) or 1001 (microseconds) after the blockette 1000, where the data begin.
            after = struct.pack(">HHfI", 100, 0, np.float32(rng.choice(_RATES)), 0)
            if rng.random() < 0.5:
                after = struct.pack(
                    ">HHBbBB", 1001, int(rng.choice((0, 48, 56))), 0, int(rng.integers(-128, 128)), 0, 7
                )
            out[50:52] = struct.pack(">H", 56)
            out[56 : 56 + len(after)] = after
            out[39] = 2
        else:
            at = int(rng.integers(len(out)))
            out[at : at + 4] = rng.bytes(min(4, len(out) - at))
    return bytes(out)


def _value(size: int, rng: Random) -> bytes:
    order = rng.choice((">", "<"))
    if size == 8 and rng.random() < 0.8:
        return struct.pack(f"{order}d", float(rng.choice(_RATES)))
    if size in (1, 2, 4) and rng.random() < 0.7:
        number = int(rng.choice(_INTEGERS if rng.random() < 0.6 else _WIDE))
        return (number % 256**size).to_bytes(size, "big" if order == ">" else "little")
    if rng.random() < 0.5:
        return _CODES[int(rng.integers(len(_CODES)))].ljust(size)[:size]
    return rng.bytes(size)


@cache
def _checksum_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


def _with_checksum(record: bytes, rng: Random) -> bytes:
    """Return a record of miniSEED 3 with the CRC-32C of its bytes, most of the time."""
    if len(record) < 40 or rng.random() < 0.2:
        return record
    out = record[:28] + bytes(4) + record[32:]
    value, table = 0xFFFFFFFF, _checksum_table()
    for byte in out:
        value = value >> 8 ^ table[(value ^ byte) & 255]
    return out[:28] + struct.pack("<I", value ^ 0xFFFFFFFF) + out[32:]


def _in_another_order(records: list[bytes], rng: Random) -> list[bytes]:
    kind = rng.random()
    if kind < 0.6 or len(records) < 2:
        return records
    if kind < 0.7:
        return [records[int(index)] for index in rng.permutation(len(records))]
    if kind < 0.8:
        del records[int(rng.integers(len(records)))]
        return records
    if kind < 0.9:
        at = int(rng.integers(len(records)))
        return records[:at] + [records[at]] * int(rng.integers(2, 50)) + records[at:]
    at = int(rng.integers(len(records) + 1))
    return [*records[:at], rng.bytes(int(rng.integers(1, 2000))), *records[at:]]


def _packed(content: bytes, rng: Random) -> bytes:
    packed = gzip.compress(content, 1)
    kind = rng.random()
    if kind < 0.4:
        return packed
    if kind < 0.6:
        return packed[: int(rng.integers(len(packed)))]
    if kind < 0.8:
        return any_bytes(packed, rng)
    return packed + (gzip.compress(packed) if kind < 0.9 else packed)


def any_bytes(content: bytes, rng: Random) -> bytes:
    """Return content with some bytes changed, removed, repeated, or cut off."""
    out = bytearray(content)
    for _ in range(int(rng.choice((1, 1, 2, 5, 20)))):
        if not out:
            return b""
        at = int(rng.integers(len(out)))
        count = int(rng.choice((1, 2, 4, 8, 64)))
        kind = rng.random()
        if kind < 0.5:
            out[at] ^= 1 << int(rng.integers(8))
        elif kind < 0.7:
            out[at : at + count] = rng.bytes(count)
        elif kind < 0.8:
            del out[at : at + count]
        elif kind < 0.9:
            out[at:at] = out[at : at + count]
        else:
            del out[at:]
    return bytes(out)


@cache
def stationxml_files() -> tuple[str, ...]:
    """Return StationXML as ObsPy writes it: with stages, and of two epochs."""
    place = {"latitude": 1.0, "longitude": 2.0, "elevation": 3.0}
    change = obspy.UTCDateTime(2020, 3, 1)
    channels = [
        Channel(
            code, location, depth=0.0, sample_rate=RATE_HZ, response=response, start_date=start, end_date=end, **place
        )
        for code, location in (("HHZ", ""), ("HHE", "00"))
        for start, end in ((None, change), (change, None))
        for response in (Response.from_paz([0j, 0j], [-0.1 + 0.1j, -0.1 - 0.1j], 4e8),)
    ]
    station = Station("S0", site=Site(name="s"), channels=channels, **place)
    buffer = io.BytesIO()
    Inventory([Network("XX", [station])], source="fuzz").write(buffer, format="STATIONXML")
    return (buffer.getvalue().decode(),)


_XML_TEXTS = (
    *("M/S", "NM/S", "m/s**2", "PA", "", "NaN", "INF", "-INF", "0", "-1", "1e308", "1e-320", "x" * 1000, "\u0000"),
    *(
        "2020-01-01T00:00:00Z",
        "9999-12-31T23:59:59Z",
        "0001-01-01",
        "-4000-01-01",
        "--",
        "../..",
        "<!--",
        "]]>",
        "&lt;",
    ),
)


def stationxml(rng: Random) -> bytes:
    """Return changed StationXML."""
    text = stationxml_files()[int(rng.integers(len(stationxml_files())))]
    for _ in range(int(rng.integers(1, 5))):
        kind = rng.random()
        if kind < 0.45:
            text = _replace_match(r">[^<>]+<", lambda: f">{rng.choice(_XML_TEXTS)}<", text, rng)
        elif kind < 0.65:
            text = _replace_match(r'="[^"]*"', lambda: f'="{rng.choice(_XML_TEXTS)}"', text, rng)
        elif kind < 0.8:
            text = _replace_match(r"<(\w+)[^<>]*>[^<>]*</\1>", lambda: "", text, rng)
        elif kind < 0.9:
            lines = text.splitlines()
            first, last = sorted(rng.integers(len(lines), size=2).tolist())
            at = int(rng.integers(len(lines)))
            text = "\n".join([*lines[:at], *lines[first:last], *lines[at:]])
        else:
            text = _replace_match(
                r"<\w+", lambda: "<" + str(rng.choice(("Value", "Channel", "a" * 500, "x:y"))), text, rng
            )
    content = text.encode("utf-8", "surrogatepass")
    return any_bytes(content, rng) if rng.random() < 0.3 else content


def _replace_match(pattern: str, new: Callable[[], str], text: str, rng: Random) -> str:
    matches = list(re.finditer(pattern, text))
    if not matches:
        return text
    match = matches[int(rng.integers(len(matches)))]
    return text[: match.start()] + new() + text[match.end() :]


_CELLS = (
    *("", " ", "icequake", "Icequake ", "=1+1", "@SUM(A1)", '"', "'", "\x00", "\x1b[31m", "é" * 50, "x" * 5000, "nan"),
    *(
        "2020-03-01T00:00:20Z",
        "2020-03-01 00:00:20+25:00",
        "not a time",
        "1e400",
        "9999-99-99",
        "1500-01-01",
        "-1",
        "\ufeff",
    ),
)


def labels_csv(rng: Random) -> bytes:
    """Return changed hand labels as CSV, in either form."""
    if rng.random() < 0.5:
        rows = [["event_id", "label"]] + [
            [f"XX.S0..HH.20.2020030{day}T000000.000000000", "icequake"] for day in range(1, 6)
        ]
    else:
        rows = [["network", "station", "time", "label"]]
        rows += [["XX", "S0", f"2020-03-0{day}T00:00:20Z", "earthquake"] for day in range(1, 6)]
    if rng.random() < 0.3:
        rows = [[*row, "split" if index == 0 else "test"] for index, row in enumerate(rows)]
    for _ in range(int(rng.integers(1, 6))):
        row = rows[int(rng.integers(len(rows)))]
        at = int(rng.integers(len(row)))
        kind = rng.random()
        if kind < 0.7:
            row[at] = str(rng.choice(_CELLS))
        elif kind < 0.8 and len(row) > 1:
            del row[at]
        else:
            row.insert(at, str(rng.choice(_CELLS)))
    content = "\n".join(",".join(row) for row in rows).encode("utf-8", "surrogatepass")
    return any_bytes(content, rng) if rng.random() < 0.3 else content


def labels_parquet(rng: Random) -> bytes:
    """Return changed hand labels as Parquet."""
    odd: dict[str, Any] = {"label": [1, 2, 3], "time": [b"\xff", None, b""], "event_id": [{"a": 1}, None, {"a": 2}]}
    values: dict[str, Any] = {
        "event_id": ["a", "b", "c"],
        "label": ["x", "y", None],
        "split": ["test", "", "validation"],
    }
    for name in odd:
        if rng.random() < 0.2:
            values[name] = odd[name]
    for name in list(values):
        if rng.random() < 0.1:
            del values[name]
    return _parquet(pa.table(values), rng)


def _parquet(table: pa.Table, rng: Random) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression=str(rng.choice(("zstd", "snappy", "none"))))
    content = buffer.getvalue()
    if rng.random() < 0.5:
        # The footer is where the structure is.
        at = int(rng.integers(max(len(content) - 1500, 0), len(content)))
        return content[:at] + any_bytes(content[at:], rng)
    return any_bytes(content, rng) if rng.random() < 0.8 else content


_JSON_VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        0,
        -1,
        1e308,
        2**70,
        "",
        "x" * 2000,
        "../../x",
        "\x1b[31m",
        [],
        {},
        [[[]]],
        {"a": {"b": 1}},
        "2020-13-01",
    ),
)


def json_file(values: Any, rng: Random) -> bytes:
    """Return JSON with some values changed, or keys removed, or bytes changed."""
    values = json.loads(json.dumps(values))
    for _ in range(int(rng.integers(1, 4))):
        holder = values
        while True:
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            if not keys:
                break
            key = keys[int(rng.integers(len(keys)))]
            if isinstance(holder[key], dict | list) and holder[key] and rng.random() < 0.8:
                holder = holder[key]
                continue
            if rng.random() < 0.2:
                del holder[key]
            else:
                # A copy: what is put in may be changed next.
                holder[key] = copy.deepcopy(_JSON_VALUES[int(rng.integers(len(_JSON_VALUES)))])
            break
    content = json.dumps(values, indent=1).encode()
    if rng.random() < 0.05:
        content = b"[" * 100_000 + content
    return any_bytes(content, rng) if rng.random() < 0.3 else content


_YAML_VALUES = (
    "null",
    "yes",
    "-1",
    "1e400",
    ".nan",
    "[1, 2",
    "{a: b}",
    "!!python/object:os.system x",
    "&a [*a]",
    "x" * 500,
    "'",
)


def yaml_file(text: str, rng: Random) -> bytes:
    """Return YAML with some values changed."""
    for _ in range(int(rng.integers(1, 4))):
        text = _replace_match(r"(?<=: )[^\n]+", lambda: str(rng.choice(_YAML_VALUES)), text, rng)
    content = text.encode()
    return any_bytes(content, rng) if rng.random() < 0.3 else content


def parquet_file(content: bytes, rng: Random) -> bytes:
    """Return a Parquet file with bytes changed, half the time in its footer."""
    if rng.random() < 0.5:
        at = max(len(content) - int(rng.integers(1, 3000)), 0)
        return content[:at] + any_bytes(content[at:], rng)
    return any_bytes(content, rng)


def safetensors_file(content: bytes, rng: Random) -> bytes:
    """Return a safetensors file with its header, its header's values or any bytes changed."""
    length = int.from_bytes(content[:8], "little")
    if rng.random() < 0.6:
        header = json_file(json.loads(content[8 : 8 + length]), rng)
        size = len(header) if rng.random() < 0.9 else int(rng.choice((0, 2**31, 2**62, length)))
        return size.to_bytes(8, "little") + header + content[8 + length :]
    return any_bytes(content, rng)
