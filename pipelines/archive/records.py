"""Decode miniSEED 2 and 3 into runs of samples whose times are exactly those of the record headers.

libmseed (through pymseed) does the decoding. Its trace list joins a record to the run before it only where the header
time continues the run to within 2 ns, so a run's sample i lies at `start_ns + i / rate` and nothing is averaged over
records. Damaged records are left out one by one and reported; every other sample of the file is returned.
"""

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import ceil
from typing import Any, NamedTuple

import numba
import numpy as np
from pymseed import clear_error_messages, configure_logging, sourceid2nslc
from pymseed.clib import clibmseed, ffi, owning_memoryview

Array = np.ndarray[Any, Any]

JOIN_TOLERANCE_SECONDS = 2e-9
RATE_TOLERANCE_HZ = 1e-7

_SAMPLE_DTYPES: dict[bytes, np.dtype[Any]] = {
    b"i": np.dtype(np.int32),
    b"f": np.dtype(np.float32),
    b"d": np.dtype(np.float64),
}
_HEADER = re.compile(rb"MS\x03|[0-9 \x00]{6}[DRQM][ \x00]")
GZIP_MAGIC = b"\x1f\x8b"
_MAX_PROBLEMS = 20
_HEADER_BYTES = 64
# Longer ones exist on paper only: what claims to be one is taken for damaged.
_LONGEST_RECORD_BYTES = 2**24
# libmseed allocates a run's samples in steps of a MiB: smaller runs are copied, larger ones taken over as they are.
_TAKEN_OVER_BYTES = 2**20


class Channel(NamedTuple):
    """A channel's codes, as in its records; `location` is "" where absent."""

    network: str
    station: str
    location: str
    channel: str


@dataclass(frozen=True)
class Run:
    """Contiguous samples of one channel: sample i lies at `start_ns + i / rate_hz`.

    Attributes:
        channel: codes.
        rate_hz: sampling rate in Hz, to six significant digits.
        version: publication version (miniSEED 3), or 1 to 4 for the quality codes R, D, Q, M (miniSEED 2).
        start_ns: time of the first sample in nanoseconds since 1970 (UTC).
        origin_ns: start of the whole run in its file, before any clipping; orders runs that overlap.
        data: (samples,) int32, float32 or float64.
    """

    channel: Channel
    rate_hz: float
    version: int
    start_ns: int
    origin_ns: int
    data: np.ndarray[Any, Any]

    @property
    def _num_before(self) -> int:
        """Return how many samples of the whole run come before the first one."""
        return round((self.start_ns - self.origin_ns) * (self.rate_hz / 1e9))

    @property
    def end_ns(self) -> int:
        """Return the time one sample interval after the last sample."""
        return sample_time(self.origin_ns, self._num_before + len(self.data), self.rate_hz)

    def clip(self, start_ns: int, end_ns: int) -> "Run | None":
        """Return the part in `[start_ns, end_ns)`, sharing memory; None where there is none.

        Times are counted from the start of the whole run, so that clipping twice rounds no time twice.
        """
        before = self._num_before
        first = max(index_at(self.origin_ns, self.rate_hz, start_ns) - before, 0)
        last = min(index_at(self.origin_ns, self.rate_hz, end_ns) - before, len(self.data))
        if last <= first:
            return None
        if first == 0 and last == len(self.data):
            return self
        begin = sample_time(self.origin_ns, before + first, self.rate_hz)
        return Run(self.channel, self.rate_hz, self.version, begin, self.origin_ns, self.data[first:last])


@dataclass
class Decoded:
    """What a file held.

    Attributes:
        runs: runs of samples, in no particular order.
        problems: what could not be used and why, at most 20 sentences.
        num_problems: how many there were.
    """

    runs: list[Run] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    num_problems: int = 0

    def report(self, problem: str) -> None:
        """Add a problem; the text of the first 20 is kept, all are counted."""
        self.num_problems += 1
        if len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(problem)


def sample_time(start_ns: int, index: int, rate_hz: float) -> int:
    """Return `start_ns + index / rate_hz` in whole nanoseconds, without the rounding of large floats."""
    seconds, rest = divmod(index, rate_hz)
    return start_ns + round(seconds) * 1_000_000_000 + round(rest / rate_hz * 1e9)


def sample_times(starts_ns: Array, indexes: Array, rate_hz: float) -> Array:
    """Return `sample_time` of many: int64 nanoseconds, the same bits."""
    seconds, rest = np.divmod(indexes.astype(np.float64), rate_hz)
    times: Array = (
        starts_ns + np.rint(seconds).astype(np.int64) * 1_000_000_000 + np.rint(rest / rate_hz * 1e9).astype(np.int64)
    )
    return times


def nominal_rate(rate_hz: float) -> float:
    """Return a header's sampling rate to six significant digits: what makes two rates the same channel group."""
    return float(f"{rate_hz:.6g}")


def decode(buffer: bytes, *, start_ns: int | None = None, end_ns: int | None = None, offset: int = 0) -> Decoded:
    """Decode a whole file, gzipped or not, or a part of one.

    Args:
        buffer: its bytes.
        offset: where in the file they begin, for what is said of damaged ones.
        start_ns: samples before this time are dropped.
        end_ns: samples at or after this time are dropped.
    """
    decoded = Decoded()
    if buffer[:2] == GZIP_MAGIC:
        buffer = _gunzip(buffer, decoded)
    if not buffer:
        decoded.report("the file is empty")
        return decoded
    with _trace_list() as traces:
        if not _read_all(traces, buffer):
            traces.clear()
            _read_record_by_record(traces, buffer, decoded, offset)
        decoded.runs.extend(_runs(traces.head, start_ns, end_ns, decoded))
    if not decoded.runs and not decoded.num_problems and start_ns is None and end_ns is None:
        decoded.report("no samples in it")
    return decoded


def whole_records(buffer: bytes) -> int:
    """Return how many bytes at the beginning of a buffer are whole records."""
    pointer = ffi.from_buffer(buffer)
    version = ffi.new("uint8_t *")
    offset, size = 0, len(buffer)
    while offset < size:
        length = clibmseed.ms3_detect(pointer + offset, size - offset, version)
        if length <= 0 or offset + length > size:
            break
        offset += length
    return offset


def record_boundary(buffer: bytes) -> int:
    """Return where to cut a part of a larger file: before the record that it ends within; damaged ones are passed."""
    pointer = ffi.from_buffer(buffer)
    version = ffi.new("uint8_t *")
    offset, size = 0, len(buffer)
    while offset < size:
        length = clibmseed.ms3_detect(pointer + offset, size - offset, version)
        if length > 0 and offset + length <= size:
            offset += length
            continue
        if length >= 0 and size - offset < _LONGEST_RECORD_BYTES:
            return offset
        following = _HEADER.search(buffer, offset + 1)
        if following is None:
            # What could still be the beginning of a header stays with what follows.
            return max(size - _HEADER_BYTES, offset, 1)
        offset = following.start()
    return size


def _gunzip(buffer: bytes, decoded: Decoded) -> bytes:
    pieces: list[bytes] = []
    rest = buffer
    while rest[:2] == GZIP_MAGIC:
        stream = zlib.decompressobj(wbits=31)
        try:
            pieces.append(stream.decompress(rest))
        except zlib.error as error:
            decoded.report(f"gzip: {error}")
            break
        if not stream.eof:
            decoded.report("gzip: the file ends early")
        rest = stream.unused_data
    return b"".join(pieces)


class _TraceList:
    """A libmseed trace list that is freed with its block."""

    def __init__(self) -> None:
        self.head = ffi.new("MS3TraceList **")
        self.clear()

    def clear(self) -> None:
        self.free()
        self.head[0] = clibmseed.mstl3_init(ffi.NULL)

    def free(self) -> None:
        if self.head[0] != ffi.NULL:
            clibmseed.mstl3_free(self.head, 0)

    def __enter__(self) -> "_TraceList":
        return self

    def __exit__(self, *unused: object) -> None:
        self.free()
        clear_error_messages()


def _trace_list() -> _TraceList:
    return _TraceList()


@numba.cfunc("float64(voidptr)", cache=True)
def _time_tolerance(record: Any) -> float:
    return JOIN_TOLERANCE_SECONDS


@numba.cfunc("float64(voidptr)", cache=True)
def _rate_tolerance(record: Any) -> float:
    return RATE_TOLERANCE_HZ


_TOLERANCE = ffi.new("MS3Tolerance *")
_TOLERANCE.time = ffi.cast("double (*)(MS3Record *)", _time_tolerance.address)
_TOLERANCE.samprate = ffi.cast("double (*)(MS3Record *)", _rate_tolerance.address)
configure_logging()


def _read_all(traces: _TraceList, buffer: bytes) -> bool:
    """Read every record of a buffer at once; False where any of its bytes is not a good record."""
    flags = clibmseed.MSF_UNPACKDATA | clibmseed.MSF_VALIDATECRC
    pointer = ffi.from_buffer(buffer)
    count = clibmseed.mstl3_readbuffer(traces.head, pointer, len(buffer), 1, flags, _TOLERANCE, 0)
    if count <= 0:
        return False
    # libmseed leaves out an incomplete last record without a word: account for every byte.
    length = clibmseed.ms3_detect(pointer, len(buffer), ffi.new("uint8_t *"))
    return bool(count * length == len(buffer) or whole_records(buffer) == len(buffer))


def _read_record_by_record(traces: _TraceList, buffer: bytes, decoded: Decoded, begin: int) -> None:
    """Read what is readable of a damaged buffer, going on at the next header after each damaged part."""
    # At the end of the file a record without a length of its own reaches to the end.
    flags = clibmseed.MSF_UNPACKDATA | clibmseed.MSF_VALIDATECRC | clibmseed.MSF_ATENDOFFILE
    pointer = ffi.from_buffer(buffer)
    record = ffi.new("MS3Record **")
    offset, size = 0, len(buffer)
    damaged_from: int | None = None
    reason = ""
    try:
        while offset < size:
            code = clibmseed.msr3_parse(pointer + offset, size - offset, record, flags, 0)
            if code == clibmseed.MS_NOERROR and record[0].reclen > 0:
                if damaged_from is not None:
                    decoded.report(f"bytes {begin + damaged_from} to {begin + offset}: {reason}")
                    damaged_from = None
                clibmseed.mstl3_addmsr_recordptr(traces.head[0], record[0], ffi.NULL, 1, 1, flags, _TOLERANCE)
                offset += record[0].reclen
                continue
            if damaged_from is None:
                damaged_from, reason = offset, _why(code)
            following = _HEADER.search(buffer, offset + 1)
            offset = following.start() if following else size
        if damaged_from is not None:
            decoded.report(f"bytes {begin + damaged_from} to {begin + size}: {reason}")
    finally:
        clibmseed.msr3_free(record)


def _why(code: int) -> str:
    if code > 0:
        return "a record is cut short"
    text: str = ffi.string(clibmseed.ms_errorstr(code)).decode()
    known: dict[int, str] = {
        clibmseed.MS_NOTSEED: "not miniSEED",
        clibmseed.MS_INVALIDCRC: "the record's checksum does not match",
        clibmseed.MS_GENERROR: "the record cannot be parsed or its samples cannot be decoded",
    }
    return known.get(code, text)


def _runs(head: Any, start_ns: int | None, end_ns: int | None, decoded: Decoded) -> Iterator[Run]:
    trace = head[0].traces.next[0]
    while trace != ffi.NULL:
        codes = _channel(trace, decoded)
        segment = trace.first if codes is not None else ffi.NULL
        while segment != ffi.NULL:
            if codes is not None:
                run = _run(codes, int(trace.pubversion), segment, start_ns, end_ns, decoded)
                if run is not None:
                    yield run
            segment = segment.next
        trace = trace.next[0]


def _channel(trace: Any, decoded: Decoded) -> Channel | None:
    source = ffi.string(trace.sid).decode("ascii", "replace")
    try:
        return Channel(*(code or "" for code in sourceid2nslc(source)))
    except Exception as error:
        decoded.report(f"source identifier {source!r}: {error}")
        return None


def _run(
    codes: Channel, version: int, segment: Any, start_ns: int | None, end_ns: int | None, decoded: Decoded
) -> Run | None:
    dtype = _SAMPLE_DTYPES.get(segment.sampletype)
    count, rate, begin = int(segment.numsamples), float(segment.samprate), int(segment.starttime)
    if count <= 0:
        return None
    if dtype is None:
        decoded.report(f"{'.'.join(codes)}: the samples are text")
        return None
    if not rate > 0:
        decoded.report(f"{'.'.join(codes)}: sampling rate {rate:g} Hz")
        return None
    rate = nominal_rate(rate)
    first = 0 if start_ns is None else index_at(begin, rate, start_ns)
    last = count if end_ns is None else min(count, index_at(begin, rate, end_ns))
    first = max(first, 0)
    if last <= first:
        return None
    num_bytes = count * dtype.itemsize
    if last - first == count and num_bytes >= _TAKEN_OVER_BYTES:
        data = np.frombuffer(owning_memoryview(segment.datasamples, num_bytes), dtype)
        segment.datasamples = ffi.NULL
    else:
        data = np.frombuffer(ffi.buffer(segment.datasamples, num_bytes), dtype)[first:last].copy()
    return Run(codes, rate, version, sample_time(begin, first, rate), begin, data)


def index_at(start_ns: int, rate_hz: float, time_ns: int) -> int:
    """Return the index of the first sample at or after a time, of samples at `start_ns + i / rate_hz`."""
    index = ceil((time_ns - start_ns) * (rate_hz / 1e9))
    while sample_time(start_ns, index - 1, rate_hz) >= time_ns:
        index -= 1
    while sample_time(start_ns, index, rate_hz) < time_ns:
        index += 1
    return index


def indexes_at(starts_ns: Array, rate_hz: float, times_ns: Array) -> Array:
    """Return `index_at` of many: int64."""
    indexes = np.ceil((times_ns - starts_ns) * (rate_hz / 1e9)).astype(np.int64)
    while (late := sample_times(starts_ns, indexes - 1, rate_hz) >= times_ns).any():
        indexes -= late
    while (early := sample_times(starts_ns, indexes, rate_hz) < times_ns).any():
        indexes += early
    return indexes
