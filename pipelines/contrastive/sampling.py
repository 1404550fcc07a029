"""Which events a training sees: a sample that depends on the events' ids alone, not on files, shards or workers."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray


def quotas(counts: Mapping[str, int], total: int) -> dict[str, int]:
    """Return how many of each stratum's members a sample of at most `total` takes.

    Every stratum gives the same number, or all that it has where that is fewer: a noisy month or station does not crowd
    out the others. What the equal shares leave over goes to the first strata in the order of their names.

    Args:
        counts: members of each stratum.
        total: size of the sample; all members where there are not more.
    """
    if sum(counts.values()) <= total:
        return dict(counts)
    given: dict[str, int] = {}
    left = total
    for place, name in enumerate(sorted(counts, key=lambda name: (counts[name], name))):
        given[name] = min(counts[name], left // (len(counts) - place))
        left -= given[name]
    for name in sorted(counts):
        extra = min(left, counts[name] - given[name])
        given[name] += extra
        left -= extra
    return given


def lowest_hashes(event_ids: Sequence[str], count: int, seed: int) -> NDArray[np.int64]:
    """Return the places of the `count` ids with the lowest hash of (seed, id), in rising order."""
    if count >= len(event_ids):
        return np.arange(len(event_ids), dtype=np.int64)
    hashes = np.array(
        [int.from_bytes(hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest()) for name in event_ids],
        dtype=np.uint64,
    )
    order = np.lexsort((np.asarray(event_ids), hashes))
    return np.sort(order[:count]).astype(np.int64)
