"""Read the headers of miniSEED 2 and 3 records: a compiled pass over bytes that nobody has checked.

What the headers say is written down as it stands: nothing is joined, corrected or left out here. Every field is read
within the bounds of its record, and the work is at most a fixed multiple of the number of bytes, whatever they are.
Fields are those of the SEED manual 2.4 (chapter 8) and of the FDSN's definition of miniSEED 3.
"""

import ctypes
from typing import Any, NamedTuple

import llvmlite.binding
import numba
import numpy as np
from numba import types
from pymseed import _libmseed_cffi

Array = np.ndarray[Any, Any]

MIN_RECORD_BYTES = 64
MAX_RECORD_BYTES = 2**23
"""Longer ones exist on paper only: what claims to be one is taken for damaged."""
MAX_SEARCHED_BYTES = 2**16
"""How far the header after a record of miniSEED 2 is searched that does not state its length."""
MAX_BLOCKETTES = 255
MAX_CODES_BYTES = 64
CHECKED_BYTES_PER_BYTE = 8
"""Damaged data are given up where checksums took this many times their size."""

# Columns of `Headers.fields`.
OFFSET, LENGTH, START, COUNT, ENCODING, DATA, DATA_BYTES, SWAPPED, VERSION, LEAP, CODES, EXTRA = range(12)

# Why bytes are not a record.
NOT_MINISEED, CUT_SHORT, BAD_CHECKSUM, BAD_LENGTH, BAD_TIME, BAD_BLOCKETTES, GIVEN_UP, CONTROL_HEADER = range(1, 9)
PROBLEMS = {
    NOT_MINISEED: "not miniSEED",
    CUT_SHORT: "a record is cut short",
    BAD_CHECKSUM: "the record's checksum does not match",
    BAD_LENGTH: "the record states an impossible length",
    BAD_TIME: "the record states an impossible time",
    BAD_BLOCKETTES: "the record's blockettes do not follow one another",
    GIVEN_UP: "too much of the data is damaged to look for records any further",
    CONTROL_HEADER: "control headers of full SEED",
}

# Column LEAP: what the header says of a leap second.
LEAP_INSERTED, LEAP_REMOVED, STARTS_IN_LEAP = 1, 2, 4

_DAYS_BEFORE_1970 = 719_162

llvmlite.binding.add_symbol(
    "firnline_ms_crc32c", ctypes.cast(ctypes.CDLL(_libmseed_cffi.__file__).ms_crc32c, ctypes.c_void_p).value
)
_crc32c: Any = types.ExternalFunction("firnline_ms_crc32c", types.uint32(types.uintp, types.int32, types.uint32))


class Headers(NamedTuple):
    """What the headers in a buffer say, in the order of the buffer.

    Attributes:
        fields: (records, 12) int64, columns as the constants of this module: offset and length of the record in bytes,
            start in nanoseconds since 1970, number of samples, encoding (-1: not stated), offset of the payload in the
            buffer and its bytes, 1 where the payload is of the other byte order, publication version (1 to 4 for the
            quality codes R, D, Q, M), leap seconds (bits LEAP_INSERTED, LEAP_REMOVED, STARTS_IN_LEAP), row of `codes`,
            bytes of extra headers before the payload (miniSEED 3; 0 for miniSEED 2).
        rates_hz: (records,) float64, sampling rate in Hz as stated, not checked.
        codes: (n, 64) uint8, the source identifiers, one where it is not that of the record before: of miniSEED 2 bytes
            8 to 20 of the header, of miniSEED 3 the identifier, all 255 where it is too long. The last byte is 2 or 3.
        damaged: (n, 3) int64, first byte, end, and why (see PROBLEMS).
    """

    fields: Array
    rates_hz: Array
    codes: Array
    damaged: Array


def read_headers(content: Array, *, at_end: bool = True) -> Headers:
    """Return what the headers in a buffer say.

    Args:
        content: (bytes,) uint8, contiguous.
        at_end: whether the file ends with the buffer.
    """
    # A guess that is right for a file of equal records; it grows where it was too small.
    first = _record(content, 0, at_end, np.zeros(12, np.int64), np.zeros(1), np.zeros(MAX_CODES_BYTES, np.uint8))
    capacity = max(len(content) // max(first, 512), 0) + 16
    return Headers(*_scan(content, at_end, capacity))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _scan(content: Array, at_end: bool, capacity: int) -> Any:  # pragma: no cover - compiled
    fields = np.empty((capacity, 12), np.int64)
    rates_hz = np.empty(capacity)
    codes = np.zeros((4, MAX_CODES_BYTES), np.uint8)
    damaged = np.empty((4, 3), np.int64)
    count = num_codes = num_damaged = 0
    field, rate, code = np.zeros(12, np.int64), np.zeros(1), np.zeros(MAX_CODES_BYTES, np.uint8)
    offset, size = 0, len(content)
    checked, budget = 0, CHECKED_BYTES_PER_BYTE * size + 2 * MAX_RECORD_BYTES
    damaged_from, reason = -1, 0
    while offset < size:
        length = _record(content, offset, at_end, field, rate, code)
        if length > 0:
            if damaged_from >= 0:
                if num_damaged == len(damaged):
                    damaged = _grown(damaged)
                damaged[num_damaged, 0], damaged[num_damaged, 1], damaged[num_damaged, 2] = damaged_from, offset, reason
                num_damaged += 1
                damaged_from = -1
            if num_codes == 0 or not _same(codes[num_codes - 1], code):
                if num_codes == len(codes):
                    codes = _grown(codes)
                codes[num_codes] = code
                num_codes += 1
            field[CODES] = num_codes - 1
            if count == len(fields):
                fields, rates_hz = _grown(fields), _grown_rates(rates_hz)
            fields[count], rates_hz[count] = field, rate[0]
            count += 1
            offset += length
            continue
        if damaged_from < 0:
            damaged_from, reason = offset, CONTROL_HEADER if _is_control_header(content, offset) else -length
        if length == -BAD_CHECKSUM:
            checked += field[LENGTH]
            if checked > budget:
                reason = GIVEN_UP
                offset = size
                break
        offset = _next_header(content, offset + 1)
    if damaged_from >= 0:
        if num_damaged == len(damaged):
            damaged = _grown(damaged)
        damaged[num_damaged, 0], damaged[num_damaged, 1], damaged[num_damaged, 2] = damaged_from, size, reason
        num_damaged += 1
    return fields[:count], rates_hz[:count], codes[:num_codes], damaged[:num_damaged]


@numba.njit(cache=True, nogil=True)
def record_length(content: Array, offset: int) -> Any:  # pragma: no cover - compiled
    """Return how many bytes the record at an offset has; 0 where that needs more bytes, else minus why it is none."""
    return _length(content, offset, False)


@numba.njit(cache=True, nogil=True)
def next_header(content: Array, offset: int) -> int:  # pragma: no cover - compiled
    """Return where, at or after an offset, a header may begin (the number of bytes where none does)."""
    return _next_header(content, offset)


@numba.njit(cache=True, nogil=True)
def _grown(values: Array) -> Array:  # pragma: no cover - compiled
    grown = np.zeros((2 * len(values), values.shape[1]), values.dtype)
    grown[: len(values)] = values
    return grown


@numba.njit(cache=True, nogil=True)
def _grown_rates(values: Array) -> Array:  # pragma: no cover - compiled
    grown = np.empty(2 * len(values))
    grown[: len(values)] = values
    return grown


@numba.njit(cache=True, nogil=True)
def _same(one: Array, other: Array) -> bool:  # pragma: no cover - compiled
    same = True
    for i in range(MAX_CODES_BYTES):
        same &= one[i] == other[i]
    return same


@numba.njit(cache=True, nogil=True)
def _is_header_2(content: Array, at: int) -> Any:  # pragma: no cover - compiled
    """Whether 48 bytes can be the fixed header of miniSEED 2: sequence number, quality, a time of day."""
    quality, reserved = content[at + 6], content[at + 7]
    if not (quality == 68 or quality == 82 or quality == 81 or quality == 77):
        return False
    if reserved != 32 and reserved != 0:
        return False
    for i in range(at, at + 6):
        if not (48 <= content[i] <= 57 or content[i] == 32 or content[i] == 0):
            return False
    return content[at + 24] <= 23 and content[at + 25] <= 59 and content[at + 26] <= 60


@numba.njit(cache=True, nogil=True)
def _is_control_header(content: Array, at: int) -> Any:  # pragma: no cover - compiled
    """Whether bytes can begin a volume, abbreviation, station or time span header of full SEED."""
    if at + 8 > len(content):
        return False
    for i in range(at, at + 6):
        if not 48 <= content[i] <= 57:
            return False
    kind, continued = content[at + 6], content[at + 7]
    return (kind == 86 or kind == 65 or kind == 83 or kind == 84) and (continued == 32 or continued == 42)


@numba.njit(cache=True, nogil=True)
def _is_header_3(content: Array, at: int) -> Any:  # pragma: no cover - compiled
    """Whether 40 bytes can be the fixed header of miniSEED 3."""
    return (
        content[at] == 77
        and content[at + 1] == 83
        and content[at + 2] == 3
        and content[at + 12] <= 23
        and content[at + 13] <= 59
        and content[at + 14] <= 60
    )


@numba.njit(cache=True, nogil=True)
def _next_header(content: Array, offset: int) -> int:  # pragma: no cover - compiled
    size = len(content)
    for at in range(offset, size - 39):
        # The quality code alone rules out nearly all of what is no header.
        quality = content[at + 6]
        may_be_2 = quality == 68 or quality == 82 or quality == 81 or quality == 77
        if may_be_2 and at + 48 <= size and _is_header_2(content, at):
            return at
        if content[at] == 77 and _is_header_3(content, at):
            return at
    return size


@numba.njit(cache=True, nogil=True)
def _u2(content: Array, at: int, big: bool) -> Any:  # pragma: no cover - compiled
    if big:
        return np.int64(content[at]) * 256 + np.int64(content[at + 1])
    return np.int64(content[at + 1]) * 256 + np.int64(content[at])


@numba.njit(cache=True, nogil=True)
def _u4(content: Array, at: int, big: bool) -> Any:  # pragma: no cover - compiled
    if big:
        return _u2(content, at, True) * 65536 + _u2(content, at + 2, True)
    return _u2(content, at + 2, False) * 65536 + _u2(content, at, False)


@numba.njit(cache=True, nogil=True)
def _signed(value: Any, limit: int) -> Any:  # pragma: no cover - compiled
    return value - 2 * limit if value >= limit else value


@numba.njit(cache=True, nogil=True)
def _is_little_endian(content: Array, at: int) -> Any:  # pragma: no cover - compiled
    """Whether year and day of a miniSEED 2 header make sense with the low byte first, as libmseed decides it."""
    return 1900 <= _u2(content, at + 20, False) <= 2100 and 1 <= _u2(content, at + 22, False) <= 366


@numba.njit(cache=True, nogil=True)
def _length(content: Array, at: int, at_end: bool) -> Any:  # pragma: no cover - compiled
    """Return the length of the record at byte `at`, 0 where it needs more bytes, or minus why there is none."""
    left: Any = len(content) - at
    if left < 40:
        return 0 if left < 40 and not at_end else -NOT_MINISEED
    if _is_header_3(content, at):
        length: Any = 40 + np.int64(content[at + 33]) + _u2(content, at + 34, False) + _u4(content, at + 36, False)
        if length > MAX_RECORD_BYTES:
            return -BAD_LENGTH
        return length if length <= left else 0
    if left < 48:
        return -NOT_MINISEED
    if not _is_header_2(content, at):
        return -NOT_MINISEED
    big = not _is_little_endian(content, at)
    blockette = _u2(content, at + 46, big)
    for _ in range(MAX_BLOCKETTES):
        if blockette < 48:
            break
        if blockette + 8 > left:
            # A chain out of the buffer: perhaps more bytes would tell.
            if not at_end:
                return 0
            break
        if _u2(content, at + blockette, big) == 1000:
            power: Any = np.int64(content[at + blockette + 6])
            if not 6 <= power <= 23 or (1 << power) < blockette + 8:
                return -BAD_LENGTH
            length = 1 << power
            return length if length <= left else 0
        following = _u2(content, at + blockette + 2, big)
        if following != 0 and following < blockette + 4:
            return -BAD_BLOCKETTES
        blockette = following
    # Without blockette 1000 the record ends where the next begins, or with the file.
    for length in range(64, min(left - 47, MAX_SEARCHED_BYTES + 1), 64):
        if _is_header_2(content, at + length):
            return length
    if left > MAX_SEARCHED_BYTES + 48:
        return -BAD_LENGTH
    if not at_end:
        return 0
    return left if left >= MIN_RECORD_BYTES and left & (left - 1) == 0 else 0


@numba.njit(cache=True, nogil=True)
def _day_number(year: Any, day: Any) -> Any:  # pragma: no cover - compiled
    """Return the days from 1970 to a day of a year (Gregorian)."""
    before = year - 1
    return before * 365 + before // 4 - before // 100 + before // 400 - _DAYS_BEFORE_1970 + day - 1


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _record(
    content: Array, at: int, at_end: bool, field: Array, rate: Array, code: Array
) -> Any:  # pragma: no cover - compiled
    """Read the record that begins at byte `at`; return its length, or minus why there is none."""
    length = _length(content, at, at_end)
    if length == 0:
        return -CUT_SHORT
    if length < 0:
        return length
    field[OFFSET], field[LENGTH] = at, length
    code[:] = 0
    if content[at] == 77 and content[at + 1] == 83:
        return _record_3(content, at, length, field, rate, code)
    return _record_2(content, at, length, field, rate, code)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _record_2(
    content: Array, at: int, length: int, field: Array, rate: Array, code: Array
) -> int:  # pragma: no cover - compiled
    big = not _is_little_endian(content, at)
    year, day = _u2(content, at + 20, big), _u2(content, at + 22, big)
    if not 1 <= day <= 366:
        return -BAD_TIME
    activity = content[at + 36]
    seconds = (np.int64(content[at + 24]) * 60 + np.int64(content[at + 25])) * 60 + np.int64(content[at + 26])
    # Years up to 65535 do not fit 64 bits of nanoseconds: whoever uses the time looks at its bounds.
    days = max(min(_day_number(year, day), 100_000), -100_000)
    start = (days * 86400 + seconds) * 1_000_000_000 + _u2(content, at + 28, big) * 100_000
    if not activity & 2:
        start += _signed(_u4(content, at + 40, big), 2**31) * 100_000
    factor, multiplier = _signed(_u2(content, at + 32, big), 2**15), _signed(_u2(content, at + 34, big), 2**15)
    value = 0.0
    if factor != 0 and multiplier != 0:
        value = np.float64(factor) if factor > 0 else -1.0 / factor
        value = value * multiplier if multiplier > 0 else -value / multiplier
    encoding: Any = -1
    payload_big = big
    blockette = _u2(content, at + 46, big)
    for _ in range(MAX_BLOCKETTES):
        if blockette < 48 or blockette + 8 > length:
            break
        kind = _u2(content, at + blockette, big)
        if kind == 100:
            bits = np.empty(1, np.uint32)
            bits[0] = _u4(content, at + blockette + 4, big)
            value = np.float64(bits.view(np.float32)[0])
        elif kind == 1000:
            encoding, payload_big = np.int64(content[at + blockette + 4]), content[at + blockette + 5] > 0
        elif kind == 1001:
            start += _signed(np.int64(content[at + blockette + 5]), 128) * 1000
        following = _u2(content, at + blockette + 2, big)
        if following < blockette + 4:
            break
        blockette = following
    quality = content[at + 6]
    payload = _u2(content, at + 44, big)
    field[START], field[COUNT] = start, _u2(content, at + 30, big)
    field[ENCODING], field[SWAPPED] = encoding, 1 if payload_big else 0
    field[DATA], field[DATA_BYTES] = at + payload, max(length - payload, 0) if payload >= 48 else 0
    field[VERSION] = 4 if quality == 77 else 3 if quality == 81 else 2 if quality == 68 else 1
    field[LEAP] = (1 if activity & 16 else 0) + (2 if activity & 32 else 0) + (4 if content[at + 26] == 60 else 0)
    field[EXTRA] = 0
    rate[0] = value
    for i in range(12):
        code[i] = content[at + 8 + i]
    code[MAX_CODES_BYTES - 1] = 2
    return length


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _record_3(
    content: Array, at: int, length: int, field: Array, rate: Array, code: Array
) -> int:  # pragma: no cover - compiled
    zeros = np.zeros(4, np.uint8)
    crc = _crc32c(content[at:].ctypes.data, np.int32(28), np.uint32(0))
    crc = _crc32c(zeros.ctypes.data, np.int32(4), crc)
    crc = _crc32c(content[at + 32 :].ctypes.data, np.int32(length - 32), crc)
    if crc != _u4(content, at + 28, False):
        return -BAD_CHECKSUM
    year, day = _u2(content, at + 8, False), _u2(content, at + 10, False)
    nanoseconds = _u4(content, at + 4, False)
    if not 1 <= day <= 366 or nanoseconds > 999_999_999:
        return -BAD_TIME
    seconds = (np.int64(content[at + 12]) * 60 + np.int64(content[at + 13])) * 60 + np.int64(content[at + 14])
    days = max(min(_day_number(year, day), 100_000), -100_000)
    bits = np.empty(1, np.uint64)
    bits[0] = np.uint64(_u4(content, at + 16, False)) | (np.uint64(_u4(content, at + 20, False)) << np.uint64(32))
    value = bits.view(np.float64)[0]
    # A negative one is the sampling interval in seconds.
    rate[0] = -1.0 / value if value < 0 else value
    named, extra = np.int64(content[at + 33]), _u2(content, at + 34, False)
    field[START] = (days * 86400 + seconds) * 1_000_000_000 + nanoseconds
    field[COUNT] = _u4(content, at + 24, False)
    field[ENCODING] = np.int64(content[at + 15])
    # Integers and floats are stored with the low byte first, Steim frames with the high byte first.
    field[SWAPPED] = 1 if content[at + 15] == 10 or content[at + 15] == 11 else 0
    field[DATA], field[DATA_BYTES] = at + 40 + named + extra, _u4(content, at + 36, False)
    field[VERSION] = np.int64(content[at + 32])
    field[LEAP] = 4 if content[at + 14] == 60 else 0
    field[EXTRA] = extra
    for i in range(MAX_CODES_BYTES):
        code[i] = 255 if named > MAX_CODES_BYTES - 1 else content[at + 40 + i] if i < named else 0
    code[MAX_CODES_BYTES - 1] = 3
    return length
