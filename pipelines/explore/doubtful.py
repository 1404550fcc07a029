"""Events that are probably in the wrong cluster: many of the events nearest to them are called otherwise.

Legend: n events, k nearest events of each.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

NEAREST = 20
MAX_COMPARED = 20_000
"""Events that are compared with one another; of more, a sample."""
MAX_DOUBTFUL = 1000
SHARE = 1 / 3
"""An event is doubtful where a larger share of its nearest events has another name."""


@dataclass(frozen=True)
class Doubtful:
    """An event, by its number; the most frequent other name among its nearest events, and how many have it."""

    number: int
    name: str
    votes: int


def nearest_events(points: NDArray[np.float32], count: int = NEAREST) -> NDArray[np.int64]:
    """Return the numbers (n, k) of the events nearest to each of points (n, d), without itself; k is at most n - 1."""
    count = min(count, len(points) - 1)
    if count < 1:
        return np.zeros((len(points), 0), dtype=np.int64)
    # Without points to ask about, an event is none of its own neighbours, even among events that coincide with it.
    found: NDArray[np.int64] = (
        NearestNeighbors(n_neighbors=count, algorithm="brute").fit(points).kneighbors(return_distance=False)
    )
    return found


def find_doubtful(nearest: NDArray[np.int64], names: Sequence[str], asked: NDArray[np.bool_]) -> list[Doubtful]:
    """Return the events of whose nearest events many have another name, those with the most such first.

    Args:
        nearest: (n, k), see `nearest_events`.
        names: (n,), what each is called: by its hand label, or by its cluster.
        asked: (n,), which may be returned.
    """
    known, name_of = np.unique(np.asarray(names, dtype=object).astype(str), return_inverse=True)
    votes = np.zeros((len(names), len(known)), dtype=np.int32)
    for column in nearest.T:
        votes[np.arange(len(names)), name_of[column]] += 1
    others = nearest.shape[1] - votes[np.arange(len(names)), name_of]
    votes[np.arange(len(names)), name_of] = -1
    best = votes.argmax(axis=1)
    found = np.flatnonzero(asked & (others > SHARE * nearest.shape[1]))
    found = found[np.lexsort((-votes[found, best[found]], -others[found]))][:MAX_DOUBTFUL]
    return [Doubtful(int(at), str(known[best[at]]), int(votes[at, best[at]])) for at in found]
