"""The merge tree of a clustering: which of its centroids join in which order, and the clusters of any cut through it.

Legend: m centroids, the leaves; node m + i is the i-th to be joined; k clusters of the default cut.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.label.kmeans import label_rows
from pipelines.label.merging import (
    JUDGED_SCALE,
    MIN_SHARE,
    MIN_SHARE_OF_EVEN,
    OVERLAP_ROWS_PER_CENTROID,
    OVERLAP_UNIT,
    count_overlaps,
)
from pipelines.label.partitions import Gather, Partition

_LEAST_OVERLAP = OVERLAP_UNIT / 2
"""Of clusters that share less than is counted."""


@dataclass(frozen=True)
class MergeTree:
    """The order in which centroids join until one branch is left.

    Attributes:
        counts: int64 (m,), the rows nearest to each centroid.
        children: int64 (m - 1, 2), the two nodes that node m + i joins.
        heights: float64 (m - 1,), how far apart these are (see `grow_tree`); a node is never lower than its children.
    """

    counts: NDArray[np.int64]
    children: NDArray[np.int64]
    heights: NDArray[np.float64]


def fit_tree(
    gather: Gather,
    centroids: NDArray[np.float64],
    clusters: NDArray[np.int32],
    mean_square: float,
    method: Literal["ward", "overlap"],
) -> MergeTree:
    """Return the tree of centroids (m, d), of which `clusters` (m,) are the default cut, over the rows of `gather`.

    `mean_square` is the mean squared distance of rows to their centroid. Where centroids were not merged, or none
    overlap, they join by Ward's rule.
    """
    counts = np.sum(gather(count_nearest, centroids), axis=0)
    if method == "overlap" and len(centroids) > int(clusters.max()) + 1:
        num_rows = max(int(counts.sum()), 1)
        share = min(1.0, OVERLAP_ROWS_PER_CENTROID * len(centroids) / num_rows)
        scale = JUDGED_SCALE * max(mean_square, 1e-300)
        counted = gather(count_overlaps, centroids, (scale,), share)
        overlaps = np.sum(counted, axis=0)[0] * OVERLAP_UNIT / share
        if overlaps[~np.eye(len(centroids), dtype=bool)].any():
            return grow_tree(_Overlap(overlaps, counts), counts, clusters)
    return grow_tree(_Ward(centroids, counts), counts, clusters)


def count_nearest(partition: Partition, centroids: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the number of rows nearest to each centroid, int64 (m,)."""

    def work(block: NDArray[Any], _: slice) -> NDArray[np.int64]:
        return np.bincount(label_rows(block, centroids)[0], minlength=len(centroids)).astype(np.int64)

    return np.asarray(np.sum(partition.map_blocks(work), axis=0), dtype=np.int64)


class _Overlap:
    """Average linkage of the overlap: clusters are as near as a row of the one belongs to the other.

    The height of a node is log10(1 + 1 / r), where r is the overlap of its children divided by that of clusters of
    their sizes whose rows are mixed at random: near 0 where they are one, .3 where chance would do, 2 at a hundredth.
    """

    stragglers = True

    def __init__(self, overlaps: NDArray[np.float64], counts: NDArray[np.int64]) -> None:
        self.shared = overlaps.astype(np.float64)
        self.sizes = np.maximum(counts.astype(np.float64), 1.0)

    def link(self, one: int) -> NDArray[np.float64]:
        return np.asarray(self.shared[one] / (self.sizes[one] * np.maximum(self.sizes, 1.0)))

    def height(self, one: int, other: int) -> float:
        by_chance = self.sizes[one] * self.sizes[other] / self.sizes.sum()
        return float(np.log10(1.0 + by_chance / max(self.shared[one, other], _LEAST_OVERLAP)))

    def join(self, one: int, other: int) -> None:
        self.shared[one] += self.shared[other]
        self.shared[:, one] += self.shared[:, other]
        self.sizes[one] += self.sizes[other]
        self.sizes[other] = 0.0


class _Ward:
    """Ward's linkage (1963): the two whose union adds least to the squared distances of the rows.

    The height of a node is what it adds, divided by the number of all rows.
    """

    stragglers = False

    def __init__(self, centroids: NDArray[np.float64], counts: NDArray[np.int64]) -> None:
        self.means = centroids.astype(np.float64).copy()
        self.sizes = counts.astype(np.float64)

    def link(self, one: int) -> NDArray[np.float64]:
        weight = self.sizes * self.sizes[one] / np.maximum(self.sizes + self.sizes[one], 1.0)
        return np.asarray(-weight * ((self.means - self.means[one]) ** 2).sum(axis=1))

    def height(self, one: int, other: int) -> float:
        return float(-self.link(one)[other] / max(self.sizes.sum(), 1.0))

    def join(self, one: int, other: int) -> None:
        total = self.sizes[one] + self.sizes[other]
        if total > 0:
            self.means[one] = (self.sizes[one] * self.means[one] + self.sizes[other] * self.means[other]) / total
        self.sizes[one] = total
        self.sizes[other] = 0.0


def grow_tree(linkage: _Overlap | _Ward, counts: NDArray[np.int64], clusters: NDArray[np.int32]) -> MergeTree:
    """Join centroids, the two nearest first, until one branch is left; the k clusters are whole before any two join.

    By overlap, a branch with fewer rows than MIN_SHARE of all, or MIN_SHARE_OF_EVEN of an even share of the branches
    that are left, is a straggler and joins first, so that no cut makes a cluster of it.
    """
    num_leaves, k = len(counts), int(clusters.max()) + 1
    alive = np.ones(num_leaves, dtype=bool)
    sizes = np.maximum(counts.astype(np.float64), 1.0)
    group = clusters.astype(np.int64)
    node = np.arange(num_leaves)
    height_of = np.zeros(2 * num_leaves - 1)
    children = np.empty((num_leaves - 1, 2), dtype=np.int64)

    def row_of(one: int, left: int) -> NDArray[np.float64]:
        row = linkage.link(one)
        row[~alive] = row[one] = -np.inf
        if left > k:
            row[group != group[one]] = -np.inf
        return row

    link = np.stack([row_of(one, num_leaves) for one in range(num_leaves)])
    for step in range(num_leaves - 1):
        left = num_leaves - step
        if left == k:
            for one in np.flatnonzero(alive).tolist():
                link[one] = row_of(one, left)
        first, second = divmod(int(link.argmax()), num_leaves)
        if linkage.stragglers:
            smallest = sizes.sum() * min(MIN_SHARE, MIN_SHARE_OF_EVEN / left)
            small = np.flatnonzero(alive & (sizes < smallest))
            small = small[np.isfinite(link[small].max(axis=1))]
            if len(small):
                first = int(small[sizes[small].argmin()])
                second = int(link[first].argmax())
        first, second = sorted((first, second))
        joined = num_leaves + step
        children[step] = sorted((node[first], node[second]))
        height_of[joined] = max(linkage.height(first, second), height_of[node[first]], height_of[node[second]])
        linkage.join(first, second)
        sizes[first] += sizes[second]
        sizes[second] = 0.0
        alive[second] = False
        node[first] = joined
        link[second] = link[:, second] = -np.inf
        link[first] = link[:, first] = row_of(first, left - 1)
    return MergeTree(counts.astype(np.int64), children, height_of[num_leaves:])


def cut_to(tree: MergeTree, k: int) -> NDArray[np.int32]:
    """Return the cluster of each leaf, int32 (m,), where k branches are left; ValueError where there are fewer leaves.

    Clusters are numbered by first appearance.
    """
    num_leaves = len(tree.counts)
    if not 1 <= k <= num_leaves:
        raise ValueError(f"the merge tree has {num_leaves} leaves")
    return _clusters_of(tree, np.arange(num_leaves - 1) < num_leaves - k)


def cut_at(tree: MergeTree, height: float) -> NDArray[np.int32]:
    """Return the cluster of each leaf, int32 (m,), where all nodes up to this height are joined."""
    return _clusters_of(tree, tree.heights <= height)


def cut_branches(tree: MergeTree, clusters: NDArray[np.int32], nodes: Sequence[int]) -> NDArray[np.int32]:
    """Return the cluster of each leaf, int32 (m,), where some branches are clusters of their own.

    All other leaves stay in the clusters (m,) that they are in.

    Raises:
        ValueError: one of the branches lies in another, or is named twice.
    """
    own = np.full(len(tree.counts), -1, dtype=np.int64)
    for number, each in enumerate(nodes):
        leaves = leaves_of(tree, each)
        if (own[leaves] >= 0).any():
            raise ValueError("one branch lies in another")
        own[leaves] = number
    return _numbered(np.where(own >= 0, int(clusters.max()) + 1 + own, clusters))


def leaves_of(tree: MergeTree, node: int) -> NDArray[np.int64]:
    """Return the leaves below a node, ascending; a leaf itself."""
    num_leaves = len(tree.counts)
    found, waiting = [], [node]
    while waiting:
        one = waiting.pop()
        if one < num_leaves:
            found.append(one)
        else:
            waiting += tree.children[one - num_leaves].tolist()
    return np.array(sorted(found), dtype=np.int64)


def branches_of(tree: MergeTree, clusters: NDArray[np.int32]) -> dict[int, list[int]]:
    """Return the largest nodes that lie wholly in each cluster, ascending, by the number of the cluster in (m,)."""
    num_leaves = len(tree.counts)
    whole = np.append(clusters.astype(np.int64), np.full(num_leaves - 1, -1))
    parent = np.full(2 * num_leaves - 1, -1)
    for number, (one, other) in enumerate(tree.children.tolist(), start=num_leaves):
        parent[[one, other]] = number
        if whole[one] == whole[other]:
            whole[number] = whole[one]
    found: dict[int, list[int]] = {}
    for number in range(2 * num_leaves - 1):
        if whole[number] >= 0 and (parent[number] < 0 or whole[parent[number]] < 0):
            found.setdefault(int(whole[number]), []).append(number)
    return found


def _clusters_of(tree: MergeTree, joined: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Return the cluster of each leaf where the nodes `joined` (m - 1,) are; the children of such a node are, too."""
    num_leaves = len(tree.counts)
    top = np.arange(2 * num_leaves - 1)
    for number in range(2 * num_leaves - 2, num_leaves - 1, -1):
        if joined[number - num_leaves]:
            top[tree.children[number - num_leaves]] = top[number]
    return _numbered(top[:num_leaves])


def _numbered(values: NDArray[Any]) -> NDArray[np.int32]:
    """Return values (m,) as numbers from 0 in order of their first appearance."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int32)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first), dtype=np.int32)
    return np.asarray(rank[inverse], dtype=np.int32)
