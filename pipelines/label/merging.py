"""Merging over-clusters: many small centroids become k clusters that need not be round."""

from collections.abc import Callable, Sequence
from functools import cache
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.config.label import KMeansSettings
from pipelines.label.draws import uniform
from pipelines.label.kernels import CHUNK_ROWS
from pipelines.label.kmeans import fit
from pipelines.label.lloyd import Clustering, lloyd, measure_spread
from pipelines.label.partitions import Gather, Partition
from pipelines.label.seeding import SEEDING_TRIES, TooFewDistinctRows

OVERLAP_SCALES = (0.2, 0.3, 0.45, 0.7)
"""Squared distances over which a row's share in a farther centroid falls by a factor of e, in units of the mean squared
distance of rows to their centroids: merging is tried with each."""

JUDGED_SCALE = 0.3
"""The scale of the merge tree, and at which the overlap of merged clusters is measured."""

OVERLAP_ROWS_PER_CENTROID = 2000
"""Overlaps are counted over about this many rows per centroid, drawn by their event keys, or over all where there are
fewer."""

MIN_SHARE, MIN_SHARE_OF_EVEN = 0.02, 0.1
"""A cluster with less than the smaller of this share of all rows and this share of rows/k counts as stragglers: it
joins another cluster before two larger ones are joined."""

MIN_ROWS_PER_OVER_CLUSTER = 10
"""Rows per over-cluster, on average, that there must be at least: small archives get fewer over-clusters."""

MIN_ROWS_OF_A_CENTROID = 3
"""An over-cluster of fewer rows is given up: a row that is its own centroid would be at distance 0 from it, however far
from all others."""

OVERLAP_UNIT = 2.0**-32
"""Overlaps are counted in whole units of this."""
_OVERLAP_SALT = -4


def over_clusters(k: int, overcluster: int, num_rows: int) -> int:
    """Return how many clusters are fitted and then merged to k: k x overcluster, fewer where there are few rows."""
    return k if overcluster == 1 else max(k, min(k * overcluster, num_rows // MIN_ROWS_PER_OVER_CLUSTER))


def fit_to_merge(
    gather: Gather,
    k: int,
    num_rows: int,
    settings: KMeansSettings,
    *,
    quick: bool = False,
    progress: Callable[[int, int, float], None] | None = None,
) -> list[Clustering]:
    """Fit the clusters of `num_rows` rows that `merge` reduces to k; one clustering per restart, in order.

    Where rows have fewer distinct values than that, each value becomes a cluster of its own. Over-clusters of a row or
    two are given up, unless fewer than k would be left. `quick` over-clusters are seeded with one try, not the best of
    several: most of the time would go there, for an inertia a thousandth lower. `progress` is called with (restart,
    iteration, inertia).

    Raises:
        ValueError: there are fewer rows, or fewer distinct rows, than k.
    """
    num_fitted = over_clusters(k, settings.overcluster, num_rows)
    spread = cache(lambda: measure_spread(gather))

    def fit_clusters(num_clusters: int) -> list[Clustering]:
        fitted = fit(
            gather,
            num_clusters,
            seed=settings.seed,
            restarts=settings.restarts,
            max_iterations=settings.max_iterations,
            tolerance=settings.tolerance,
            seeding_rounds=settings.seeding_rounds,
            seeding_tries=1 if quick and num_clusters > k else SEEDING_TRIES,
            progress=progress,
        )
        return fitted if num_clusters == k else [without_small(each) for each in fitted]

    def without_small(clustering: Clustering) -> Clustering:
        large = clustering.counts >= MIN_ROWS_OF_A_CENTROID
        while not large.all() and large.sum() >= k:
            clustering = lloyd(
                gather,
                clustering.centroids[large],
                max_iterations=settings.max_iterations,
                tolerance=settings.tolerance,
                spread=spread(),
            )
            large = clustering.counts >= MIN_ROWS_OF_A_CENTROID
        return clustering

    try:
        return fit_clusters(num_fitted)
    except TooFewDistinctRows as error:
        if error.num_distinct < k:
            raise TooFewDistinctRows(error.num_distinct, k) from None
        return fit_clusters(error.num_distinct)


def merge_ward(centroids: NDArray[np.float64], counts: NDArray[np.int64], k: int) -> NDArray[np.int32]:
    """Merge centroids (m, d) with counts (m,) to k clusters, each step with the least growth of the inertia.

    Returns int32 (m,): the cluster of each centroid, numbered by first appearance (Ward, 1963; centroids without
    rows join their nearest).
    """
    sizes = counts.astype(np.float64)
    # Row by row: the differences of all pairs at once would take d times the memory of the result.
    squares = np.stack([((centroid - centroids) ** 2).sum(axis=1) for centroid in centroids])
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


def merge_overlap(overlaps: NDArray[np.float64], counts: NDArray[np.int64], k: int) -> NDArray[np.int32]:
    """Merge centroids to k clusters by average linkage of their overlap, each step the two that overlap most.

    `overlaps` (m, m) is one of `overlaps_of`; that of two clusters is the sum over their centroids, divided by the
    product of their sizes: how much a row of the one belongs to the other. Clusters need not be round, nor of one size.
    Stragglers (MIN_SHARE) join the cluster that they overlap most. Returns as merge_ward.
    """
    sizes = np.maximum(counts.astype(np.float64), 1.0)
    smallest = sizes.sum() * min(MIN_SHARE, MIN_SHARE_OF_EVEN / k)
    shared = overlaps.astype(np.float64)
    members = [[number] for number in range(len(counts))]
    alive = np.ones(len(counts), dtype=bool)
    link = shared / (sizes[:, None] * sizes[None])
    np.fill_diagonal(link, -np.inf)
    for _ in range(len(counts) - k):
        small = alive & (sizes < smallest)
        if small.any() and int((alive & ~small).sum()) <= k:
            one = int(np.where(small, sizes, np.inf).argmin())
            first, second = sorted((one, int(link[one].argmax())))
        else:
            first, second = sorted(divmod(int(link.argmax()), len(counts)))
        shared[first] += shared[second]
        shared[:, first] += shared[:, second]
        sizes[first] += sizes[second]
        members[first] += members[second]
        alive[second] = False
        link[second] = link[:, second] = -np.inf
        row = shared[first] / (sizes[first] * sizes)
        row[~alive] = row[first] = -np.inf
        link[first] = link[:, first] = row
    return _numbered([members[number] for number in np.flatnonzero(alive)], len(counts))


def count_overlaps(
    partition: Partition, centroids: NDArray[np.float64], scales: Sequence[float], share: float
) -> NDArray[np.int64]:
    """Sum over rows the products of their shares in each two centroids: int64 (scales, m, m), units of 2**-32.

    A row's shares are exp(-squared distance / scale), divided by their sum; `share` is that of the rows drawn. The sums
    of a block are rounded to whole units, so that the total does not depend on how the blocks are divided.
    """
    norms = (centroids**2).sum(axis=1)
    total = np.zeros((len(scales), len(centroids), len(centroids)), dtype=np.int64)
    lock = Lock()

    def work(block: NDArray[Any], rows: slice) -> None:
        drawn = _drawn(partition, block, rows, share)
        sums = np.zeros(total.shape)
        for start in range(0, len(drawn), CHUNK_ROWS):
            distances = norms - 2.0 * drawn[start : start + CHUNK_ROWS].astype(np.float64) @ centroids.T
            farther = distances.min(axis=1, keepdims=True) - distances
            for number, scale in enumerate(scales):
                shares = np.exp(farther / scale)
                shares /= shares.sum(axis=1, keepdims=True)
                sums[number] += shares.T @ shares
        with lock:
            for number, of_scale in enumerate(sums):
                total[number] += np.rint(of_scale / OVERLAP_UNIT).astype(np.int64)

    partition.map_blocks(work)
    return total


def overlaps_of(gather: Gather, clustering: Clustering) -> NDArray[np.float64]:
    """Return how much each two centroids of a clustering share their rows by each scale, (scales, m, m)."""
    unit = max(clustering.inertia / max(int(clustering.counts.sum()), 1), 1e-300)
    scales = tuple(scale * unit for scale in OVERLAP_SCALES)
    counted = gather(count_overlaps, clustering.centroids, scales, _overlap_share(clustering))
    return np.asarray(np.sum(counted, axis=0) * OVERLAP_UNIT)


def _overlap_share(clustering: Clustering) -> float:
    num_rows = max(int(clustering.counts.sum()), 1)
    return min(1.0, OVERLAP_ROWS_PER_CENTROID * len(clustering.centroids) / num_rows)


def _drawn(partition: Partition, block: NDArray[Any], rows: slice, share: float) -> NDArray[Any]:
    """Return the rows of a block that are drawn, by their event keys."""
    return block if share >= 1 else block[uniform(partition.keys[rows], 0, _OVERLAP_SALT) < share]


def _numbered(members: list[list[int]], num_centroids: int) -> NDArray[np.int32]:
    clusters = np.empty(num_centroids, dtype=np.int32)
    for number, centroids in enumerate(sorted(members, key=min)):
        clusters[centroids] = number
    return clusters
