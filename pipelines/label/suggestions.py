"""Which events to label next: typical ones of every branch of the clustering first, then uncertain ones.

With few labels, typical events teach a classifier more than uncertain ones (TypiClust, Hacohen et al. 2022): those near
a boundary are often odd, and say little about the rest.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from pipelines.label.merging import merge_ward

NEIGHBOURS = 20
"""An event is typical where so many others are near: the inverse of their mean distance."""

UNCERTAIN_SHARE = 0.1
"""Share of the suggestions that lie between two clusters; the others are typical."""


@dataclass(frozen=True, kw_only=True)
class Clustered:
    """A sample of clustered events, in the space of the clustering.

    Attributes:
        points: (n, r) floating point.
        centroid_of: int (n,), the centroid nearest to each.
        margins: (n,), the distance to the nearest centroid of another cluster minus that to the own one.
        centroids: (m, r).
        clusters: int (m,), the cluster of each centroid.
        labelled: bool (n,), the events that have a hand label.
    """

    points: NDArray[np.floating]
    centroid_of: NDArray[np.integer]
    margins: NDArray[np.floating]
    centroids: NDArray[np.float64]
    clusters: NDArray[np.integer]
    labelled: NDArray[np.bool_]


@dataclass(frozen=True)
class Suggestion:
    """An event to label: its index in the sample, and why; the cluster that it lies next to where it is uncertain."""

    index: int
    why: str
    other: int | None = None


def suggest(sample: Clustered, number: int) -> list[Suggestion]:
    """Return at most `number` events to label, the most useful first; none of them has a label.

    First the most typical event of each cluster without a label, the largest cluster first. Then branches: the largest
    branch that holds neither a label nor a suggestion gives its most typical event; where all do, the largest is cut in
    two by the least growth of the inertia (Ward). A tenth at the end are those between two clusters, of different
    centroids while there are any. No draw: the same sample gives the same suggestions.
    """
    free = ~sample.labelled
    number = min(number, int(free.sum()))
    typicality = _typicality(sample.points)
    chosen: list[Suggestion] = []

    def take(index: int, why: str, other: int | None = None) -> None:
        free[index] = False
        chosen.append(Suggestion(index, why, other))

    num_typical = number - int(number * UNCERTAIN_SHARE)
    for members, why in _uncovered_branches(sample, free):
        if len(chosen) == num_typical:
            break
        candidates = members[free[members]]
        take(int(candidates[np.argmax(typicality[candidates])]), why)
    seen: set[int] = set()
    nearest_first = np.argsort(sample.margins, kind="stable")
    for another_round in (False, True):
        for index in nearest_first:
            centroid = int(sample.centroid_of[index])
            if len(chosen) == number:
                return chosen
            if free[index] and (another_round or centroid not in seen):
                seen.add(centroid)
                own, other = int(sample.clusters[centroid]), _next_cluster(sample, int(index))
                take(int(index), why_uncertain(other, own), other)
    return chosen


def why_uncertain(other: int | str, own: int | str) -> str:
    """Return why an event is suggested that lies between two clusters, each by its number or as it is to be called."""
    return f"uncertain: almost as near to cluster {other} as to {own}"


def _next_cluster(sample: Clustered, index: int) -> int:
    """Return the cluster that an event is nearest to after its own."""
    distances = np.linalg.norm(sample.centroids - sample.points[index], axis=1)
    distances[sample.clusters == sample.clusters[sample.centroid_of[index]]] = np.inf
    return int(sample.clusters[distances.argmin()])


def _uncovered_branches(sample: Clustered, free: NDArray[np.bool_]) -> Iterator[tuple[NDArray[np.int64], str]]:
    """Yield the events of one branch after the other that holds no event that is not free, and what it is.

    Whoever takes the branch makes one of its events not free before the next is asked for.
    """
    num_events = len(sample.points)
    counts = np.bincount(sample.centroid_of, minlength=len(sample.centroids))
    branches = [np.flatnonzero(sample.clusters == cluster) for cluster in np.unique(sample.clusters)]
    whole = True
    while branches:
        members = [np.flatnonzero(np.isin(sample.centroid_of, branch)) for branch in branches]
        order = sorted(range(len(branches)), key=lambda number: -len(members[number]))
        for number in order:
            if len(members[number]) and free[members[number]].all():
                cluster, share = sample.clusters[branches[number][0]], len(members[number]) / num_events
                part = "" if whole else "a part of "
                yield members[number], f"typical of {part}cluster {cluster} ({share:.1%} of the events)"
        whole = False
        # Every branch is covered: cut the largest that can be.
        widest = next((number for number in order if np.count_nonzero(counts[branches[number]]) > 1), None)
        if widest is None:
            return
        branch = branches.pop(widest)
        branch = branch[counts[branch] > 0]
        halves = merge_ward(sample.centroids[branch], counts[branch].astype(np.int64), 2)
        branches += [branch[halves == 0], branch[halves == 1]]


def _typicality(points: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the inverse mean distance of each point to its nearest others; infinite where they all coincide."""
    count = min(NEIGHBOURS, len(points) - 1)
    if count < 1:
        return np.ones(len(points))
    distances, _ = NearestNeighbors(n_neighbors=count + 1, algorithm="brute").fit(points).kneighbors(points)
    with np.errstate(divide="ignore"):
        return np.asarray(1.0 / distances[:, 1:].mean(axis=1))
