"""Which events and branches of an export have figures: a bounded number, from every cluster alike."""

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.explore.layout import nearest_points

NEAREST = 12
"""Events that an export names as nearest to one."""


def choose_events(
    clusters: NDArray[np.int32],
    distances: NDArray[np.float32],
    margins: NDArray[np.float32],
    labelled: Sequence[int],
    limit: int,
) -> list[int]:
    """Return the numbers of at most `limit` events: one of each cluster and of those with a hand label in turn.

    Of a cluster two of four are the nearest to a centroid, one has the smallest margin, and one is drawn at random. The
    events are in random order, so that the first are a sample. Legend: n events.

    Args:
        clusters: (n,)
        distances: (n,), to the nearest centroid.
        margins: (n,)
        labelled: numbers of the events with a hand label.
        limit: of the events.
    """
    turns: list[Iterator[int]] = [iter(labelled)] if len(labelled) else []
    for cluster in np.unique(clusters):
        own = np.flatnonzero(clusters == cluster)
        typical = own[np.argsort(distances[own], kind="stable")]
        uncertain = own[np.argsort(margins[own], kind="stable")]
        turns.append(_in_turn([iter(typical), iter(own), iter(typical), iter(uncertain)]))
    chosen: dict[int, None] = {}
    rounds = _in_turn([_fresh(turn, chosen) for turn in turns])
    for number in itertools.islice(rounds, limit):
        chosen[int(number)] = None
    return list(chosen)


def _fresh(numbers: Iterator[int], chosen: Mapping[int, None]) -> Iterator[int]:
    """Yield the numbers that were not chosen before."""
    return (number for number in numbers if int(number) not in chosen)


def _in_turn(sources: Sequence[Iterator[int]]) -> Iterator[int]:
    """Yield from each source in turn, until all have ended; the same iterator twice has two turns."""
    left = list(sources)
    while left:
        for source in list(left):
            try:
                yield next(source)
            except StopIteration:
                left = [other for other in left if other is not source]


def nearest_of(points: NDArray[np.float32], chosen: Sequence[int], count: int = NEAREST) -> dict[int, list[int]]:
    """Return, for each of the chosen events, those of the others that are nearest to it, the nearest first."""
    numbers = np.asarray(chosen, dtype=np.int64)
    there = points[numbers]
    return {
        int(number): [int(one) for one in numbers[nearest_points(there, there[at], count + 1)] if one != number][:count]
        for at, number in enumerate(numbers)
    }


def choose_branches(heights: Mapping[str, float], of_clusters: Sequence[str], limit: int) -> list[str]:
    """Return at most `limit` branches of a merge tree: up to half of them those of the clusters, then the highest."""
    highest = sorted(heights, key=lambda name: (-heights[name], name))
    return list(dict.fromkeys([*of_clusters[: limit // 2], *highest]))[:limit]
