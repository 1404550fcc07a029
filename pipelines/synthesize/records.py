"""miniSEED 2 records of a component: Steim2, 4096 bytes."""

import numpy as np
import numpy.typing as npt
from pymseed import DataEncoding, MS3TraceList

RECORD_BYTES = 4096


def source_id(network: str, station: str, location: str, channel: str) -> str:
    """Return the FDSN source identifier of a channel with a three-letter code."""
    return f"FDSN:{network}_{station}_{location}_{'_'.join(channel)}"


def pack(
    traces: MS3TraceList,
    identifier: str,
    start_ns: int,
    counts: npt.NDArray[np.int32],
    rate_hz: int,
    *,
    last: bool,
) -> bytes:
    """Append samples to the unpacked rest in `traces` and return the records that are full, or all when `last`.

    `start_ns` is the first sample's time, ns since 1970-01-01 UTC; unless the call before was the `last` of its
    stretch, the samples must follow on.
    """
    traces.add_data(identifier, np.ascontiguousarray(counts), "i", float(rate_hz), starttime=start_ns)
    records = traces.generate(
        max_record_length=RECORD_BYTES,
        encoding=DataEncoding.STEIM2,
        format_version=2,
        flush_data=last,
        remove_packed=True,
    )
    return b"".join(bytes(record) for record in records)
