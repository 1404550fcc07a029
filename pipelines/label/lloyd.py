"""Lloyd's algorithm over partitions: assign every row to its nearest centroid, move centroids to their means, repeat.

Legend: n rows, d dimensions, k centroids, b blocks of a partition.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.label.kernels import Array, assign_block, prepare_centroids, sum_of_squares
from pipelines.label.partitions import Gather, Partition, add_blocks, count_rows, total_of


@dataclass(frozen=True, kw_only=True)
class Clustering:
    """Centroids of a fit, and how it went."""

    centroids: NDArray[np.float64]
    """(k, d)."""
    counts: NDArray[np.int64]
    """Rows of each centroid, (k,)."""
    inertia: float
    """Sum of squared Euclidean distances to the nearest centroid."""
    inertia_history: tuple[float, ...]
    """Inertia of the assignment in each iteration."""
    converged: bool


def lloyd(
    gather: Gather,
    start: Array,
    *,
    max_iterations: int = 300,
    tolerance: float = 1e-4,
    spread: tuple[float, float] | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> Clustering:
    """Improve centroids (k, d) by Lloyd's algorithm, with scikit-learn's stopping and empty-cluster rules.

    It stops when no row changes its centroid, when the centroids' summed squared shift is at most `tolerance` times the
    mean variance of the dimensions, or after `max_iterations`. A centroid without rows moves to the row farthest from
    its own centroid, which leaves that one; several take the farthest rows in turn (ties: the first row). Where all
    rows lie on their centroids there is nothing to move to, and it stays with the largest cluster. `spread` is the
    result of measure_spread, where it is already known.
    """
    variance, squares = measure_spread(gather) if spread is None else spread
    centroids = np.array(start, dtype=np.float64)
    history: list[float] = []
    settled = converged = filled = False
    gather(forget_labels)
    for iteration in range(max_iterations):
        sums, counts, changed = _assign_all(gather, centroids)
        history.append(_inertia(squares, sums, counts, centroids))
        if progress is not None:
            progress(iteration, history[-1])
        filled = bool((counts == 0).any())
        if filled:
            _fill_empty(gather, centroids, sums, counts)
        moved = _means(sums, counts)
        shift = float(((moved - centroids) ** 2).sum())
        centroids = moved
        settled = changed == 0
        converged = settled or shift <= tolerance * variance
        if converged:
            break
    if not settled or filled:
        sums, counts, _ = _assign_all(gather, centroids)
    return Clustering(
        centroids=centroids,
        counts=counts,
        inertia=_inertia(squares, sums, counts, centroids),
        inertia_history=tuple(history),
        converged=converged,
    )


def measure_spread(gather: Gather) -> tuple[float, float]:
    """Return the mean variance of the dimensions and the sum of squares."""
    moments = gather(sum_moments)
    num_rows = sum(gather(count_rows))
    squares = total_of([part for _, part in moments])
    mean = add_blocks([part for part, _ in moments]) / num_rows
    return max(0.0, squares / num_rows - float(mean @ mean)) / len(mean), squares


def sum_moments(partition: Partition) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return each block's sum of rows (b, d) and sum of squares (b,)."""
    moments = partition.map_blocks(lambda block, _: (block.sum(axis=0, dtype=np.float64), sum_of_squares(block)))
    return np.stack([sums for sums, _ in moments]), np.array([squares for _, squares in moments])


def forget_labels(partition: Partition) -> None:
    """Forget the rows' centroids, so that the next assignment counts every row as changed."""
    partition.labels.fill(-1)


def assign(partition: Partition, centroids: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64], int]:
    """Give each row its nearest centroid (ties: the first).

    Returns each block's sums of rows by centroid (b, k, d), its counts (b, k), and how many rows changed centroid.
    """

    prepared = cache(lambda dtype: prepare_centroids(centroids, dtype))

    def work(block: Array, rows: slice) -> tuple[NDArray[np.float64], NDArray[np.int64], int]:
        sums = np.zeros(centroids.shape)
        counts = np.zeros(len(centroids), dtype=np.int64)
        changed = int(assign_block(block, *prepared(block.dtype), partition.labels[rows], sums, counts))
        return sums, counts, changed

    results = partition.map_blocks(work)
    return (
        np.stack([sums for sums, _, _ in results]),
        np.stack([counts for _, counts, _ in results]),
        sum(changed for _, _, changed in results),
    )


def farthest_rows(
    partition: Partition, centroids: NDArray[np.float64], num: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int32], NDArray[np.float64]]:
    """Return the `num` rows farthest from their own centroid: squared distances, row indices, labels, rows."""

    def work(block: Array, rows: slice) -> tuple[Any, ...]:
        labels = partition.labels[rows]
        distances = ((block - centroids[labels]) ** 2).sum(axis=1, dtype=np.float64)
        order = np.argsort(-distances, kind="stable")[:num]
        return distances[order], partition.first_row + rows.start + order, labels[order], block[order]

    results = partition.map_blocks(work)
    distances, indices, labels, values = (np.concatenate(column) for column in zip(*results, strict=True))
    order = np.lexsort((indices, -distances))[:num]
    return distances[order], indices[order], labels[order], values[order].astype(np.float64)


def _assign_all(gather: Gather, centroids: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64], int]:
    results = gather(assign, centroids)
    return (
        add_blocks([sums for sums, _, _ in results]),
        add_blocks([counts for _, counts, _ in results]),
        sum(changed for _, _, changed in results),
    )


def _inertia(squares: float, sums: Array, counts: Array, centroids: Array) -> float:
    """Return the sum of squared distances of the rows behind the sums to their centroids."""
    return max(0.0, squares - 2.0 * float((sums * centroids).sum()) + float(counts @ (centroids**2).sum(axis=1)))


def _fill_empty(gather: Gather, centroids: Array, sums: Array, counts: Array) -> None:
    """Give each empty centroid one of the farthest rows, as scikit-learn does; changes sums and counts in place."""
    empty = np.flatnonzero(counts == 0)
    results = gather(farthest_rows, centroids, len(empty))
    distances, indices, labels, rows = (np.concatenate(column) for column in zip(*results, strict=True))
    order = np.lexsort((indices, -distances))
    if not distances[order[0]] > 0:
        return
    for cluster, row in zip(empty, order, strict=False):
        sums[labels[row]] -= rows[row]
        counts[labels[row]] -= 1
        sums[cluster] = rows[row]
        counts[cluster] = 1


def _means(sums: NDArray[np.float64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    means = sums / np.maximum(counts, 1)[:, None]
    means[counts == 0] = means[counts.argmax()]
    return np.asarray(means, dtype=np.float64)
