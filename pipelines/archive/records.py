"""Decode miniSEED 2 and 3 into runs of samples whose times are exactly those of the record headers.

`pipelines.archive.headers` reads what the headers say, libmseed (through pymseed) decodes the payloads, and what is in
between is here: which records follow each other, and which samples cannot be used and why. Damaged records are left
out one by one and reported; every other sample of the file is returned, whatever the types of the others.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property, partial
from typing import Any, NamedTuple

import llvmlite.binding
import numba
import numpy as np
from numba import types
from pymseed import clear_error_messages
from pymseed.clib import clibmseed, ffi
from pymseed.logging import ensure_thread_logging

from pipelines.archive import headers
from pipelines.archive.clock import Clock
from pipelines.archive.formats import NAMED_FROM_BYTES, format_problem
from pipelines.archive.headers import (
    CODES,
    COUNT,
    DATA,
    DATA_BYTES,
    ENCODING,
    EXTRA,
    LEAP,
    OFFSET,
    PROBLEMS,
    START,
    SWAPPED,
    VERSION,
    read_headers,
)
from pipelines.archive.rates import are_valid, nominal_rates
from pipelines.archive.sample_counts import Drop, SampleCounts
from pipelines.archive.unpacking import GZIP_MAGIC, Unpacking
from pipelines.runtime.text import counted

Array = np.ndarray[Any, Any]

JOIN_TOLERANCE_SAMPLES = 0.5
"""A record that begins within so many samples of the end of the one before continues its run."""
MIN_TIME_NS = -5_364_662_400 * 10**9
MAX_TIME_NS = 7_258_118_400 * 10**9
"""Years 1800 to 2199: records outside are not believed. 64 bits of nanoseconds reach from 1678 to 2261."""
MAX_UNPACKED_BYTES = 2**26
"""Of what is given gzipped to `decode`, so much is unpacked."""
_MAX_PROBLEMS = 20
_HEADER_BYTES = 64

# Types of samples.
_TEXT, _INT32, _FLOAT32, _FLOAT64 = 0, 1, 2, 3
_DTYPES: dict[int, np.dtype[Any]] = {
    _INT32: np.dtype(np.int32),
    _FLOAT32: np.dtype(np.float32),
    _FLOAT64: np.dtype(np.float64),
}
# By encoding: the type, and how many samples so many bytes can hold at most.
_ENCODINGS = {
    clibmseed.DE_TEXT: (_TEXT, 1, 1),
    clibmseed.DE_INT16: (_INT32, 1, 2),
    clibmseed.DE_INT32: (_INT32, 1, 4),
    clibmseed.DE_FLOAT32: (_FLOAT32, 1, 4),
    clibmseed.DE_FLOAT64: (_FLOAT64, 1, 8),
    # Frames of 64 bytes with 15 words of up to 4 or 7 differences.
    clibmseed.DE_STEIM1: (_INT32, 15 * 4, 64),
    clibmseed.DE_STEIM2: (_INT32, 15 * 7, 64),
    clibmseed.DE_GEOSCOPE24: (_FLOAT32, 1, 3),
    clibmseed.DE_GEOSCOPE163: (_FLOAT32, 1, 2),
    clibmseed.DE_GEOSCOPE164: (_FLOAT32, 1, 2),
    clibmseed.DE_CDSN: (_INT32, 1, 2),
    clibmseed.DE_SRO: (_INT32, 1, 2),
    clibmseed.DE_DWWSSN: (_INT32, 1, 2),
}
_KINDS = np.full(256, -1)
_SAMPLES, _BYTES = np.zeros(256, np.int64), np.ones(256, np.int64)
for _encoding, (_KINDS[_encoding], _SAMPLES[_encoding], _BYTES[_encoding]) in _ENCODINGS.items():
    pass
_REPORTED = {
    Drop.TEXT: "the samples are text",
    Drop.UNDECODABLE: "the samples cannot be decoded",
    Drop.CLAIM: "the header claims more samples than the record can hold",
    Drop.RATE: "the sampling rate is invalid",
    Drop.TIME: "the time is invalid",
    Drop.CODES: "the source identifier is none of the FDSN",
}
_LEAP_SECOND = re.compile(rb'"LeapSecond"\s*:\s*(-?)\s*1\b')

llvmlite.binding.add_symbol(
    "firnline_ms_decode_data", int(ffi.cast("uintptr_t", ffi.addressof(clibmseed, "ms_decode_data")))
)
_ms_decode_data: Any = types.ExternalFunction(
    "firnline_ms_decode_data",
    types.int64(
        types.uintp,
        types.uint64,
        types.uint8,
        types.uint64,
        types.uintp,
        types.uint64,
        types.uintp,
        types.int8,
        types.uintp,
        types.int8,
    ),
)


class Channel(NamedTuple):
    """A channel's codes, as in its records; `location` is "" where absent."""

    network: str
    station: str
    location: str
    channel: str


@dataclass(frozen=True)
class Run:
    """Contiguous samples of one channel, each with the time that its own record's header gives it.

    Attributes:
        channel: codes.
        rate_hz: nominal sampling rate in Hz, of which the rates that the records state are measurements.
        version: publication version (miniSEED 3), or 1 to 4 for the quality codes R, D, Q, M (miniSEED 2).
        clock: times of the samples, one entry a record.
        data: (samples,) int32, float32 or float64.
        leaps: (records,) uint8, what the headers say of leap seconds: bits as `headers.LEAP_INSERTED`.
    """

    channel: Channel
    rate_hz: float
    version: int
    clock: Clock
    data: Array
    leaps: Array

    @cached_property
    def start_ns(self) -> int:
        """Return the time of the first sample in nanoseconds since 1970 (UTC)."""
        return self.clock.time_at(0)

    @cached_property
    def end_ns(self) -> int:
        """Return the time one sample interval after the last sample."""
        return self.clock.time_at(len(self.data))

    @property
    def origin_ns(self) -> int:
        """Return the start of the first record, before any clipping; orders runs that overlap."""
        return int(self.clock.starts_ns[0])

    @property
    def num_records(self) -> int:
        """Return the number of records that the samples came in."""
        return len(self.leaps)

    def part(self, first: int, last: int) -> "Run":
        """Return the samples `[first, last)`, sharing memory."""
        if first == 0 and last == len(self.data):
            return self
        clock = self.clock.part(first, last)
        low = int(np.searchsorted(self.clock.begins, first, "right")) - 1
        leaps = self.leaps[low : low + len(clock.begins)]
        return replace(self, clock=clock, data=self.data[first:last], leaps=leaps)

    def clip(self, start_ns: int, end_ns: int) -> "Run | None":
        """Return the part in `[start_ns, end_ns)`, sharing memory; None where there is none."""
        if start_ns <= self.start_ns and self.end_ns <= end_ns:
            return self
        first = self.clock.index_from(start_ns, len(self.data))
        last = self.clock.index_from(end_ns, len(self.data))
        return self.part(first, last) if last > first else None


def make_run(channel: Channel, rate_hz: float, version: int, start_ns: int, data: Array) -> Run:
    """Return the samples of one record as a run."""
    zero = np.zeros(1, np.int64)
    clock = Clock(zero, zero, np.array([start_ns], np.int64), np.array([rate_hz], np.float64))
    return Run(channel, rate_hz, version, clock, data, np.zeros(1, np.uint8))


@dataclass
class Decoded:
    """What a file held.

    Attributes:
        runs: runs of samples, in no particular order.
        problems: what could not be used and why, at most 20 sentences.
        num_problems: how many there were.
        counts: by channel, the samples that the records state, returned or dropped for a reason; None stands for
            records whose codes cannot be read. Damaged bytes state no samples: they are in the problems.
        damaged_bytes: bytes that are no record.
    """

    runs: list[Run] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    num_problems: int = 0
    counts: dict[Channel | None, SampleCounts] = field(default_factory=dict)
    damaged_bytes: int = 0

    def report(self, problem: str) -> None:
        """Add a problem; the text of the first 20 is kept, all are counted."""
        self.num_problems += 1
        if len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(problem)


class Payloads(Enum):
    """What is done with the payloads of records; samples that are not kept are zero, and take no memory."""

    KEEP = "decode them and keep the samples"
    TRY = "decode them, so that those that cannot be decoded are known, and forget the samples"
    SKIP = "let no byte of them reach libmseed: headers alone"


def decode(
    buffer: bytes,
    *,
    start_ns: int | None = None,
    end_ns: int | None = None,
    offset: int = 0,
    wanted: Callable[[Channel], bool] = lambda _: True,
    payloads: Payloads = Payloads.KEEP,
    within: tuple[int, int] | None = None,
) -> Decoded:
    """Decode a whole file, or a part of one; gzipped, what its first 64 MiB unpack to.

    Args:
        buffer: its bytes.
        start_ns: samples before this time are dropped.
        end_ns: samples at or after this time are dropped.
        offset: where in the file they begin, for what is said of damaged ones.
        wanted: whether the samples of a channel are asked for; others are counted, but not decoded.
        payloads: whether samples are decoded and kept.
        within: a (start, end) in nanoseconds; runs wholly outside are decoded and counted, but not returned.
    """
    decoded = Decoded()
    if buffer[:2] == GZIP_MAGIC:
        stream = Unpacking(partial(_part, buffer), len(buffer))
        buffer = stream.read(MAX_UNPACKED_BYTES)
        if stream.problem or not stream.ended:
            decoded.report(
                stream.problem or f"gzip: it unpacks to more than {MAX_UNPACKED_BYTES} bytes; the others are not read"
            )
    if not buffer:
        decoded.report("the file is empty")
        return decoded
    content = np.frombuffer(buffer, np.uint8)
    found = read_headers(content)
    if offset == 0 and not len(found.fields) and (problem := format_problem(buffer[:NAMED_FROM_BYTES])):
        decoded.report(problem)
        decoded.damaged_bytes = len(buffer)
        return decoded
    for first, end, reason in found.damaged.tolist():
        if reason == headers.CONTROL_HEADER:
            continue
        decoded.report(f"bytes {offset + first} to {offset + end}: {PROBLEMS[reason]}")
        decoded.damaged_bytes += end - first
    if len(found.fields):
        _decode_records(
            content,
            found,
            decoded,
            start_ns=start_ns,
            end_ns=end_ns,
            offset=offset,
            wanted=wanted,
            payloads=payloads,
            within=within,
        )
    if not decoded.counts and not decoded.num_problems:
        decoded.report("no samples in it")
    return decoded


def whole_records(buffer: bytes) -> int:
    """Return how many bytes at the beginning of a buffer are whole records."""
    content = np.frombuffer(buffer, np.uint8)
    offset = 0
    while offset < len(content):
        length = headers.record_length(content, offset)
        if length <= 0:
            break
        offset += length
    return offset


def record_boundary(buffer: bytes) -> int:
    """Return where to cut a part of a larger file: before the record that it ends within; damaged ones are passed."""
    content = np.frombuffer(buffer, np.uint8)
    offset, size = 0, len(content)
    while offset < size:
        length = headers.record_length(content, offset)
        if length > 0:
            offset += length
            continue
        if length == 0 and size - offset < headers.MAX_RECORD_BYTES:
            return offset
        following = headers.next_header(content, offset + 1)
        if following == size:
            # What could still be the beginning of a header stays with what follows.
            return max(size - _HEADER_BYTES, offset, 1)
        offset = following
    return size


def _part(content: bytes, start: int, length: int) -> bytes:
    return content[start : start + length]


def _channel(code: bytes) -> Channel | None:
    """Return the codes of a source identifier as it stands in a header; None where it is none of the FDSN.

    Blanks around a code are padding; blanks within it belong to it. Codes are not changed otherwise.
    """
    if code[-1] == 2:
        text = code[:12].decode("latin-1")
        station, location, channel, network = (
            part.strip("\0 ") for part in (text[:5], text[5:7], text[7:10], text[10:12])
        )
        return Channel(network, station, location, channel)
    parts = code[:-1].rstrip(b"\0").decode("latin-1").removeprefix("FDSN:").split("_")
    if len(parts) != 6 or not code.startswith(b"FDSN:"):
        return None
    network, station, location, *bands = (part.strip() for part in parts)
    # As in miniSEED 2: three letters, of which one may be blank. Longer parts are kept apart.
    channel = "".join(part or " " for part in bands).strip() if max(map(len, bands)) <= 1 else "_".join(bands)
    return Channel(network, station, location, channel)


def _decode_records(
    content: Array,
    found: headers.Headers,
    decoded: Decoded,
    *,
    start_ns: int | None,
    end_ns: int | None,
    offset: int,
    wanted: Callable[[Channel], bool],
    payloads: Payloads,
    within: tuple[int, int] | None,
) -> None:
    """Decode the records whose headers were read: add runs, counts and problems."""
    holding = found.fields[:, COUNT] > 0
    fields, rates_hz = found.fields[holding], found.rates_hz[holding]
    if not len(fields):
        return
    names, inverse = np.unique(np.ascontiguousarray(found.codes).view("V64").ravel(), return_inverse=True)
    channels = [_channel(name.tobytes()) for name in names]
    number = inverse[fields[:, CODES]]
    room = _room(fields)
    # A claim that the bytes cannot hold would outweigh all others in the sums.
    stated = np.minimum(fields[:, COUNT], room)
    reasons = _reasons(fields, rates_hz, number, channels, wanted, room)
    outside = _outside(fields, rates_hz, start_ns, end_ns) & (reasons == 0)
    reasons[outside] = _NUMBERS[Drop.OUTSIDE]
    kept = np.flatnonzero(reasons == 0)
    order = kept[np.lexsort((fields[kept, OFFSET], fields[kept, START], fields[kept, VERSION], number[kept]))]
    blocks, positions, good = _unpack(content, fields[order], payloads)
    reasons[order[~good]] = _NUMBERS[Drop.UNDECODABLE]
    counts = _count(stated, number, channels, reasons)
    for drop, codes, first, num_records, num_samples, claimed in _dropped(fields, stated, number, channels, reasons):
        if codes is not None and not wanted(codes) and counts[codes].dropped[Drop.CHANNEL]:
            # Whoever asks for that channel is told.
            continue
        name = "an unknown channel" if codes is None else ".".join(codes)
        decoded.report(
            f"{name}: {counted(num_records, 'record')} ({counted(num_samples, 'sample')}, first at byte "
            f"{offset + first}): {_REPORTED[drop]}{f', {claimed}' if claimed != num_samples else ''}"
        )
    usable = order[good]
    fields, rates_hz, number, positions = fields[usable], rates_hz[usable], number[usable], positions[good]
    firsts, lasts = _join(fields, rates_hz, number, positions)
    if within is not None:
        reaching = _reach(fields, rates_hz, firsts, lasts, within)
        outside = np.repeat(~reaching, lasts - firsts)
        for which in np.unique(number[outside]).tolist():
            counts[channels[which]].drop(Drop.OUTSIDE, int(fields[outside & (number == which), COUNT].sum()))
        firsts, lasts = firsts[reaching], lasts[reaching]
    for run in _runs(
        content,
        fields,
        rates_hz,
        number=number,
        channels=channels,
        blocks=blocks,
        positions=positions,
        firsts=firsts,
        lasts=lasts,
    ):
        part: Run | None = run
        if start_ns is not None or end_ns is not None:
            part = run.clip(MIN_TIME_NS if start_ns is None else start_ns, MAX_TIME_NS if end_ns is None else end_ns)
            counts[run.channel].drop(Drop.OUTSIDE, len(run.data) - (0 if part is None else len(part.data)))
        if part is not None:
            decoded.runs.append(part)
    decoded.counts.update(counts)


_DROPS = tuple(Drop)
_NUMBERS = {drop: number for number, drop in enumerate(_DROPS, 1)}


def _reasons(
    fields: Array,
    rates_hz: Array,
    number: Array,
    channels: list[Channel | None],
    wanted: Callable[[Channel], bool],
    room: Array,
) -> Array:
    """Return why each record's samples cannot be used: (records,) int, 0 where they can, else as `_NUMBERS`."""
    kinds = _KINDS[_encodings(fields)]
    known = np.array([codes is not None for codes in channels])[number]
    asked = np.array([codes is None or wanted(codes) for codes in channels])[number]
    starts = fields[:, START]
    with np.errstate(all="ignore"):
        spans = fields[:, COUNT] / rates_hz * 1e9
        timely = (starts >= MIN_TIME_NS) & (starts + spans < MAX_TIME_NS)
    reasons = np.zeros(len(fields), np.int64)
    # In this order: what is found first is the reason.
    for drop, those in (
        (Drop.CODES, ~known),
        (Drop.TEXT, kinds == _TEXT),
        (Drop.CLAIM, fields[:, COUNT] > room),
        (Drop.UNDECODABLE, kinds < 0),
        (Drop.RATE, ~are_valid(rates_hz)),
        (Drop.TIME, ~timely),
        # Last, so that of channels that nobody asks for those without a usable record can be told.
        (Drop.CHANNEL, ~asked),
    ):
        reasons[(reasons == 0) & those] = _NUMBERS[drop]
    return reasons


def _room(fields: Array) -> Array:
    """Return how many samples the payload of each record can hold at most; of an unknown encoding, in the densest."""
    encodings = _encodings(fields)
    encodings = np.where(_KINDS[encodings] < 0, clibmseed.DE_STEIM2, encodings)
    room: Array = fields[:, DATA_BYTES] // _BYTES[encodings] * _SAMPLES[encodings]
    return room


def _outside(fields: Array, rates_hz: Array, start_ns: int | None, end_ns: int | None) -> Array:
    """Return which records lie wholly outside a time: they need no decoding."""
    outside = np.zeros(len(fields), bool)
    if end_ns is not None:
        outside |= fields[:, START] >= end_ns
    if start_ns is not None:
        with np.errstate(all="ignore"):
            outside |= fields[:, START] + fields[:, COUNT] / rates_hz * 1e9 < start_ns - 1e9
    return outside


def _count(
    stated: Array, number: Array, channels: list[Channel | None], reasons: Array
) -> dict[Channel | None, SampleCounts]:
    totals = np.zeros((len(channels), len(_DROPS) + 1), np.int64)
    np.add.at(totals, (number, reasons), stated)
    counts: dict[Channel | None, SampleCounts] = {}
    for which in np.unique(number).tolist():
        returned, *dropped = totals[which].tolist()
        part = SampleCounts(returned + sum(dropped), returned + sum(dropped))
        for drop, samples in zip(_DROPS, dropped, strict=True):
            part.drop(drop, samples)
        counts.setdefault(channels[which], SampleCounts()).add(part)
    return counts


def _dropped(
    fields: Array, stated: Array, number: Array, channels: list[Channel | None], reasons: Array
) -> Iterator[tuple[Drop, Channel | None, int, int, int, int]]:
    """Yield the (reason, channel, first byte, records, samples, samples that headers claim) of what is reported."""
    for drop in _REPORTED:
        those = np.flatnonzero(reasons == _NUMBERS[drop])
        if not len(those):
            continue
        which, first, inverse, records = np.unique(
            number[those], return_index=True, return_inverse=True, return_counts=True
        )
        samples, claims = np.zeros((2, len(which)), np.int64)
        np.add.at(samples, inverse, stated[those])
        np.add.at(claims, inverse, fields[those, COUNT])
        for index, at, *numbers in zip(which, those[first], records, samples, claims, strict=True):
            num_records, num_samples, claimed = map(int, numbers)
            yield drop, channels[index], int(fields[at, OFFSET]), num_records, num_samples, claimed


def _unpack(content: Array, fields: Array, payloads: Payloads) -> tuple[dict[int, Array], Array, Array]:
    """Decode the payloads of records, in their order, those of one type into one array; of zeros if none is kept.

    Returns:
        by type (samples,); (records,) int64 where each record begins in that; (records,) bool whether it was decoded.
    """
    encodings = _encodings(fields)
    kinds = _KINDS[encodings]
    positions = np.zeros(len(fields), np.int64)
    addresses = np.zeros(len(fields), np.int64)
    sizes = np.zeros(len(fields), np.int64)
    blocks: dict[int, Array] = {}
    keep = payloads is Payloads.KEEP
    for kind, dtype in _DTYPES.items():
        those = np.flatnonzero(kinds == kind)
        if not len(those):
            continue
        ends = np.cumsum(fields[those, COUNT])
        # Zeros that are one zero take no memory.
        blocks[kind] = np.empty(int(ends[-1]), dtype) if keep else np.broadcast_to(dtype.type(0), int(ends[-1]))
        positions[those] = ends - fields[those, COUNT]
        addresses[those] = blocks[kind].ctypes.data + positions[those] * dtype.itemsize
        sizes[those] = fields[those, COUNT] * dtype.itemsize
    if payloads is Payloads.SKIP:
        return blocks, positions, np.ones(len(fields), bool)
    if not keep:
        forgotten = np.empty(int(sizes.max(initial=0)) // 8 + 1)
        addresses[:] = forgotten.ctypes.data
    ensure_thread_logging()
    scratch = np.empty(max(int(fields[:, DATA_BYTES].max(initial=0)), 8) + 8, np.uint8)
    good = _decode_payloads(content, fields, encodings, addresses, sizes, scratch)
    clear_error_messages()
    return blocks, positions, good


@numba.njit(cache=True, nogil=True)
def _decode_payloads(
    content: Array, fields: Array, encodings: Array, addresses: Array, sizes: Array, scratch: Array
) -> Array:  # pragma: no cover - compiled
    good = np.zeros(len(fields), np.bool_)
    # The type that libmseed answers with, and an empty identifier for its messages.
    answer = np.zeros(16, np.uint8)
    aligned = (np.int64(8) - np.int64(scratch.ctypes.data) % 8) % 8
    for record in range(len(fields)):
        first, size = fields[record, DATA], fields[record, DATA_BYTES]
        source = np.int64(content.ctypes.data) + first
        if source % 8:
            scratch[aligned : aligned + size] = content[first : first + size]
            source = np.int64(scratch.ctypes.data) + aligned
        count = _ms_decode_data(
            np.uintp(source),
            np.uint64(size),
            np.uint8(encodings[record]),
            np.uint64(fields[record, COUNT]),
            np.uintp(addresses[record]),
            np.uint64(sizes[record]),
            np.uintp(answer.ctypes.data),
            np.int8(fields[record, SWAPPED]),
            np.uintp(answer.ctypes.data + 8),
            np.int8(0),
        )
        good[record] = count == fields[record, COUNT]
    return good


def _join(fields: Array, rates_hz: Array, number: Array, positions: Array) -> tuple[Array, Array]:
    """Return the first record and the end of each run: records in order of channel, version and time that go on."""
    if not len(fields):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    kinds = _KINDS[_encodings(fields)]
    nominal = nominal_rates(rates_hz)
    counts = fields[:, COUNT]
    late = (np.diff(fields[:, START]) / 1e9) * rates_hz[:-1] - counts[:-1]
    continues = (
        (np.diff(number) == 0)
        & (np.diff(fields[:, VERSION]) == 0)
        & (np.diff(kinds) == 0)
        & (np.diff(positions) == counts[:-1])
        & (nominal[1:] == nominal[:-1])
        & (np.abs(late) <= JOIN_TOLERANCE_SAMPLES)
    )
    firsts = np.flatnonzero(np.append(True, ~continues))
    return firsts, np.append(firsts[1:], len(fields))


def _reach(fields: Array, rates_hz: Array, firsts: Array, lasts: Array, within: tuple[int, int]) -> Array:
    """Return which runs may hold samples in a time: (runs,) bool."""
    last = lasts - 1
    ends_ns = fields[last, START] + fields[last, COUNT] / rates_hz[last] * 1e9
    # A second covers what rounding may do.
    reaching: Array = (ends_ns > within[0] - 1e9) & (fields[firsts, START] < within[1] + 1e9)
    return reaching


def _runs(
    content: Array,
    fields: Array,
    rates_hz: Array,
    *,
    number: Array,
    channels: list[Channel | None],
    blocks: dict[int, Array],
    positions: Array,
    firsts: Array,
    lasts: Array,
) -> Iterator[Run]:
    """Yield the runs that have the records from each of `firsts` to before each of `lasts`."""
    nominal = nominal_rates(rates_hz[firsts])
    leaps = _leaps(content, fields)
    starts_ns = np.ascontiguousarray(fields[:, START])
    for first, last, which, rate_hz, version, kind, begin, end in zip(
        firsts.tolist(),
        lasts.tolist(),
        number[firsts].tolist(),
        nominal.tolist(),
        fields[firsts, VERSION].tolist(),
        _KINDS[_encodings(fields[firsts])].tolist(),
        positions[firsts].tolist(),
        (positions + fields[:, COUNT])[lasts - 1].tolist(),
        strict=True,
    ):
        codes = channels[which]
        if codes is not None:
            begins = positions[first:last] - begin
            clock = Clock(begins, begins, starts_ns[first:last], rates_hz[first:last])
            yield Run(codes, rate_hz, version, clock, blocks[kind][begin:end], leaps[first:last])


def _encodings(fields: Array) -> Array:
    """Return the encoding of each record: Steim 1 where a header does not state one."""
    encodings: Array = np.where(fields[:, ENCODING] < 0, clibmseed.DE_STEIM1, fields[:, ENCODING])
    return encodings


def _leaps(content: Array, fields: Array) -> Array:
    """Return what each header says of a leap second: (records,) uint8, bits as `headers.LEAP_INSERTED`."""
    leaps = fields[:, LEAP].astype(np.uint8)
    for record in np.flatnonzero(fields[:, EXTRA]).tolist():
        end = int(fields[record, DATA])
        said = _LEAP_SECOND.search(content[end - int(fields[record, EXTRA]) : end].tobytes())
        if said:
            leaps[record] |= headers.LEAP_REMOVED if said[1] else headers.LEAP_INSERTED
    return leaps
