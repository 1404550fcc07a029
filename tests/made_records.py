"""miniSEED records made field by field, so that a test says what stands in each header."""

import struct
from datetime import UTC, datetime, timedelta

import numpy as np

FORMATS = {"i2": 1, "i4": 3, "f4": 4, "f8": 5}


def record2(
    samples,
    start,
    *,
    factor=100,
    multiplier=1,
    rate_hz=None,
    microseconds=None,
    correction=0,
    activity=0,
    codes=("XX", "A", "", "HHZ"),
    quality="D",
    dtype="i4",
    encoding=None,
    second=None,
    count=None,
    power=None,
):
    """Return a record of miniSEED 2, high byte first.

    Args:
        samples: values, or bytes of a payload.
        start: datetime (UTC); its time to 0.0001 s goes into the header.
        factor, multiplier: sampling rate of the fixed header.
        rate_hz: that of blockette 100, if any.
        microseconds: of blockette 1001, if any.
        correction: time correction in 0.0001 s; activity: activity flags.
        second: of the header's time, where it is not that of `start`.
        count, power: number of samples and binary logarithm of the record's length, where they are not the payload's.
    """
    payload = samples if isinstance(samples, bytes) else np.asarray(samples).astype(f">{dtype}").tobytes()
    count = len(samples) if count is None else count
    blockettes = [(1000, struct.pack(">BBBB", FORMATS[dtype] if encoding is None else encoding, 1, 0, 0))]
    if rate_hz is not None:
        blockettes.append((100, struct.pack(">fBBBB", rate_hz, 0, 0, 0, 0)))
    if microseconds is not None:
        blockettes.append((1001, struct.pack(">BbBB", 100, microseconds, 0, 0)))
    chain = bytearray()
    for number, (kind, content) in enumerate(blockettes):
        following = 48 + len(chain) + 4 + len(content) if number + 1 < len(blockettes) else 0
        chain += struct.pack(">HH", kind, following) + content
    data_offset = -(-(48 + len(chain)) // 64) * 64
    power = max(7, (data_offset + len(payload) - 1).bit_length()) if power is None else power
    chain[6] = power
    network, station, location, channel = codes
    header = b"000001" + quality.encode() + b" " + station.ljust(5).encode() + location.ljust(2).encode()
    header += channel.ljust(3).encode() + network.ljust(2).encode()
    header += struct.pack(
        ">HHBBBBHHhhBBBBiHH",
        start.year,
        start.timetuple().tm_yday,
        start.hour,
        start.minute,
        start.second if second is None else second,
        0,
        start.microsecond // 100,
        count,
        factor,
        multiplier,
        activity,
        0,
        0,
        len(blockettes),
        correction,
        data_offset,
        48,
    )
    length = 1 << power if power < 20 else data_offset + len(payload)
    return (header + bytes(chain)).ljust(data_offset, b"\0").ljust(data_offset, b"\0") + payload.ljust(
        length - data_offset, b"\0"
    )


def record3(samples, start, *, rate, source="FDSN:XX_A__H_H_Z", dtype="i4", version=1, extra=b"", count=None):
    """Return a record of miniSEED 3; a negative rate is the sampling interval in seconds."""
    payload = np.asarray(samples).astype(f"<{dtype}").tobytes()
    header = struct.pack(
        "<2sBBIHHBBBBdIIBBHI",
        b"MS",
        3,
        0,
        start.microsecond * 1000,
        start.year,
        start.timetuple().tm_yday,
        start.hour,
        start.minute,
        start.second,
        FORMATS[dtype],
        rate,
        len(samples) if count is None else count,
        0,
        version,
        len(source),
        len(extra),
        len(payload),
    )
    record = bytearray(header + source.encode() + extra + payload)
    record[28:32] = struct.pack("<I", crc32c(record))
    return bytes(record)


def crc32c(content):
    """Return the Castagnoli checksum of some bytes (polynomial 0x1EDC6F41, reflected)."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def moment(text, seconds=0.0):
    """Return a time (UTC), so many seconds after one in ISO 8601."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC) + timedelta(seconds=seconds)


def nanoseconds(time):
    """Return a time in nanoseconds since 1970."""
    return round((time - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(microseconds=1)) * 1000
