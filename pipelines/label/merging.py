"""Merging over-clusters: many small centroids become k clusters that need not be round."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.label.kmeans import Gather, Partition

BETWEEN = 0.1
"""A row lies between two centroids when its offset from their middle plane is below this share of their distance."""


def merge_ward(centroids: NDArray[np.float64], counts: NDArray[np.int64], k: int) -> NDArray[np.int32]:
    """Merge centroids (m, d) with counts (m,) to k clusters, each step with the least growth of the inertia.

    Returns int32 (m,): the cluster of each centroid, numbered by first appearance (Ward, 1963; centroids without
    rows join their nearest).
    """
    sizes = counts.astype(np.float64)
    squares = ((centroids[:, None] - centroids[None]) ** 2).sum(axis=2)
    total = sizes[:, None] + sizes[None]
    cost = np.where(total > 0, sizes[:, None] * sizes[None] / np.maximum(total, 1), 0.0) * squares
    members = [[number] for number in range(len(centroids))]
    means = centroids.copy()
    alive = np.ones(len(centroids), dtype=bool)
    np.fill_diagonal(cost, np.inf)
    for _ in range(len(centroids) - k):
        first, second = divmod(int(cost.argmin()), len(centroids))
        weight = sizes[first] + sizes[second]
        if weight > 0:
            means[first] = (sizes[first] * means[first] + sizes[second] * means[second]) / weight
        sizes[first] = weight
        members[first] += members[second]
        alive[second] = False
        cost[second] = cost[:, second] = np.inf
        growth = sizes * weight / np.maximum(sizes + weight, 1) * ((means - means[first]) ** 2).sum(axis=1)
        growth[~alive] = np.inf
        growth[first] = np.inf
        cost[first] = cost[:, first] = growth
    return _numbered([members[number] for number in np.flatnonzero(alive)], len(centroids))


def merge_overlap(overlaps: NDArray[np.int64], counts: NDArray[np.int64], k: int) -> NDArray[np.int32]:
    """Merge centroids to k clusters, each step the two with most rows between them for their sizes.

    `overlaps` (m, m) counts the rows between each two centroids; those of merged clusters add up. The share is taken
    of the geometric mean of the two sizes, so that a large cluster does not swallow all others. Returns as merge_ward.
    """
    sizes = np.maximum(counts.astype(np.float64), 1.0)
    between = (overlaps + overlaps.T).astype(np.float64)
    members: list[list[int]] = [[number] for number in range(len(counts))]
    for _ in range(len(counts) - k):
        share = between / np.sqrt(sizes[:, None] * sizes[None])
        np.fill_diagonal(share, -np.inf)
        first, second = sorted(divmod(int(share.argmax()), len(sizes)))
        between[first] += between[second]
        between[:, first] += between[:, second]
        sizes[first] += sizes[second]
        members[first] += members[second]
        between = np.delete(np.delete(between, second, axis=0), second, axis=1)
        sizes = np.delete(sizes, second)
        del members[second]
    return _numbered(members, len(counts))


def count_overlaps(partition: Partition, centroids: NDArray[np.float64]) -> NDArray[np.int64]:
    """Count a partition's rows that lie between their two nearest centroids: int64 (m, m), rows the nearest one."""
    squared_gaps = ((centroids[:, None] - centroids[None]) ** 2).sum(axis=2)
    norms = (centroids**2).sum(axis=1)

    def work(block: NDArray[Any], _: slice) -> NDArray[np.int64]:
        counts = np.zeros((len(centroids), len(centroids)), dtype=np.int64)
        for start in range(0, len(block), 512):
            distances = norms - 2.0 * block[start : start + 512].astype(np.float64) @ centroids.T
            nearest = np.argpartition(distances, 1, axis=1)[:, :2]
            two = np.take_along_axis(distances, nearest, axis=1)
            swapped = two[:, 0] > two[:, 1]
            nearest[swapped] = nearest[swapped][:, ::-1]
            gap = squared_gaps[nearest[:, 0], nearest[:, 1]]
            offset = np.abs(two[:, 1] - two[:, 0]) / (2.0 * np.maximum(gap, 1e-300))
            np.add.at(counts, tuple(nearest[offset < BETWEEN].T), 1)
        return counts

    return np.asarray(np.sum(partition.map_blocks(work), axis=0), dtype=np.int64)


def overlaps_of(gather: Gather, centroids: NDArray[np.float64]) -> NDArray[np.int64]:
    """Count all rows that lie between their two nearest centroids (see count_overlaps)."""
    return np.asarray(np.sum(gather(count_overlaps, centroids), axis=0), dtype=np.int64)


def _numbered(members: list[list[int]], num_centroids: int) -> NDArray[np.int32]:
    clusters = np.empty(num_centroids, dtype=np.int32)
    for number, centroids in enumerate(sorted(members, key=min)):
        clusters[centroids] = number
    return clusters
