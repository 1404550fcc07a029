"""Random draws that belong to an event: a counter-based hash of (seed, restart, round, event_id).

A draw does not depend on how the events are divided among workers, nor on which other events exist.
"""

from typing import Any

import numpy as np
import pyarrow as pa
from numba import njit
from numpy.typing import NDArray

_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_INCREMENT = np.uint64(0x9E3779B97F4A7C15)


def event_keys(event_ids: Any) -> NDArray[np.uint64]:
    """Return a 64-bit key of each event id, uint64 (n,): FNV-1a over its UTF-8 bytes, then a SplitMix64 finaliser."""
    array = event_ids.combine_chunks() if isinstance(event_ids, pa.ChunkedArray) else event_ids
    if not isinstance(array, pa.Array) or array.type != pa.large_string():
        array = pa.array(array, type=pa.large_string()) if not isinstance(array, pa.Array) else array
        array = array.cast(pa.large_string())
    if not len(array):
        return np.zeros(0, dtype=np.uint64)
    _, offsets, data = array.buffers()
    edges = np.frombuffer(offsets, dtype=np.int64)[array.offset : array.offset + len(array) + 1]
    content = np.frombuffer(data, dtype=np.uint8) if data is not None else np.zeros(0, dtype=np.uint8)
    return _mix(_fnv(edges, content))


def uniform(keys: NDArray[np.uint64], seed: int, *salts: int) -> NDArray[np.float64]:
    """Return one number in [0, 1) an event key, float64 (n,); other seeds or salts give independent ones."""
    salt = np.zeros(1, dtype=np.uint64)
    for value in (seed, *salts):
        salt = _mix(salt ^ np.array([value & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64))
    return (_mix(keys ^ salt[0]) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Advance and finalise SplitMix64 states (Steele, Lea & Flood, 2014)."""
    state = state + _INCREMENT
    state = (state ^ (state >> np.uint64(30))) * _MULTIPLIERS[0]
    state = (state ^ (state >> np.uint64(27))) * _MULTIPLIERS[1]
    return np.asarray(state ^ (state >> np.uint64(31)), dtype=np.uint64)


@njit(cache=True, nogil=True)
def _fnv(edges: NDArray[np.int64], content: NDArray[np.uint8]) -> NDArray[np.uint64]:
    hashes = np.empty(len(edges) - 1, dtype=np.uint64)
    for row in range(len(hashes)):
        value = np.uint64(0xCBF29CE484222325)
        for position in range(edges[row], edges[row + 1]):
            value = (value ^ np.uint64(content[position])) * np.uint64(0x100000001B3)
        hashes[row] = value
    return hashes
