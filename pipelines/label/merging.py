"""Merging over-clusters: many small centroids become k clusters that need not be round."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.config.label import KMeansSettings
from pipelines.label.draws import uniform
from pipelines.label.kernels import CHUNK_ROWS
from pipelines.label.kmeans import fit, label_rows
from pipelines.label.lloyd import Clustering
from pipelines.label.partitions import Gather, Partition
from pipelines.label.seeding import SEEDING_TRIES, TooFewDistinctRows
from pipelines.metrics.evaluation import adjusted_rand_index_of

OVERLAP_SCALES = (0.2, 0.3, 0.45, 0.7)
"""Squared distances over which a row's share in a farther centroid falls by a factor of e, in units of the mean squared
distance of rows to their centroids: merging is tried with each."""

JUDGED_SCALE = 0.3
"""The scale at which the overlap of merged clusters is measured."""

TOLERATED_OVERLAP = 3.0
"""A result whose clusters overlap more than this many times the smallest overlap found is taken to be wrong."""

MAX_COUNTS = 2**25
"""Limit of the numbers in the tables that compare the ways to merge; above it, inertia ranks them."""

OVERLAP_ROWS_PER_CENTROID = 2000
"""Overlaps are counted over about this many rows per centroid, drawn by their event keys, or over all where there are
fewer."""

MIN_SHARE, MIN_SHARE_OF_EVEN = 0.02, 0.1
"""A cluster with less than the smaller of this share of all rows and this share of rows/k counts as stragglers: it
joins another cluster before two larger ones are joined."""

MIN_ROWS_PER_OVER_CLUSTER = 10
"""Rows per over-cluster, on average, that there must be at least: small archives get fewer over-clusters."""

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

    Where rows have fewer distinct values than that, each value becomes a cluster of its own. `quick` over-clusters are
    seeded with one try, not the best of several: most of the time would go there, for an inertia a thousandth lower.
    `progress` is called with (restart, iteration, inertia).

    Raises:
        ValueError: there are fewer rows, or fewer distinct rows, than k.
    """
    num_fitted = over_clusters(k, settings.overcluster, num_rows)

    def fit_clusters(num_clusters: int) -> list[Clustering]:
        return fit(
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

    try:
        return fit_clusters(num_fitted)
    except TooFewDistinctRows as error:
        if error.num_distinct < k:
            raise TooFewDistinctRows(error.num_distinct, k) from None
        return fit_clusters(error.num_distinct)


def merge(
    gather: Gather, clusterings: Sequence[Clustering], k: int, method: Literal["ward", "overlap"]
) -> Iterator[tuple[Clustering, NDArray[np.int32]]]:
    """Merge each restart's clustering to k clusters, and yield them, the best first.

    Yields (clustering, int32 (m,): which of the k clusters each of its centroids belongs to). Plain k-means, whose
    centroids stay as they are, and `ward` are ranked by inertia. Merging by overlap is tried with every scale. Where a
    centroid happens to lie between two classes, they are joined, and another class is cut in two; the inertia does not
    show it. So tries whose k clusters overlap more than TOLERATED_OVERLAP times the smallest overlap come last, and the
    best of the others is the one that agrees most with all of them and whose clusters are least unequal: the sum of the
    mean adjusted Rand index and of the balance decides. Without the balance, a few events far from all others would be
    a cluster in most tries, and two large classes would be one. Where no centroids overlap, they merge by `ward`.
    """
    by_inertia = sorted(clusterings, key=lambda clustering: clustering.inertia)
    if method == "ward" or all(len(clustering.centroids) == k for clustering in by_inertia):
        yield from ((clustering, _merged_by_inertia(clustering, k)) for clustering in by_inertia)
        return
    tries = [
        tried
        for number, clustering in enumerate(by_inertia)
        for tried in _merge_by_scales(gather, clustering, k, number)
    ]
    most = TOLERATED_OVERLAP * min(tried.overlap for tried in tries)
    tolerable = [tried for tried in tries if tried.overlap <= most]
    agreement = _agreements(gather, by_inertia, tolerable, k)
    worth = [
        agrees + balance(by_inertia[tried.number].counts, tried.clusters, k)
        for agrees, tried in zip(agreement, tolerable, strict=True)
    ]
    ranked = [tolerable[index] for index in sorted(range(len(tolerable)), key=lambda index: -worth[index])]
    ranked += sorted((tried for tried in tries if tried.overlap > most), key=lambda tried: tried.overlap)
    best_of_restart: dict[int, NDArray[np.int32]] = {}
    for tried in ranked:
        best_of_restart.setdefault(tried.number, tried.clusters)
    yield from ((by_inertia[number], clusters) for number, clusters in best_of_restart.items())


@dataclass(frozen=True)
class _Try:
    """One way to merge the centroids of one restart.

    Attributes:
        number: of the restart.
        clusters: int32 (m,), the cluster of each centroid.
        overlap: of the k clusters at JUDGED_SCALE, sum over all pairs of them.
    """

    number: int
    clusters: NDArray[np.int32]
    overlap: float


def _merged_by_inertia(clustering: Clustering, k: int) -> NDArray[np.int32]:
    if len(clustering.centroids) == k:
        return np.arange(k, dtype=np.int32)
    return merge_ward(clustering.centroids, clustering.counts, k)


def _merge_by_scales(gather: Gather, clustering: Clustering, k: int, number: int) -> list[_Try]:
    overlaps = overlaps_of(gather, clustering)
    judged = overlaps[OVERLAP_SCALES.index(JUDGED_SCALE)]
    found = []
    for of_scale in overlaps:
        if of_scale[~np.eye(len(of_scale), dtype=bool)].any():
            clusters = merge_overlap(of_scale, clustering.counts, k)
        else:
            clusters = merge_ward(clustering.centroids, clustering.counts, k)
        found.append(_Try(number, clusters, float(judged[clusters[:, None] != clusters[None]].sum())))
    return found


def _agreements(gather: Gather, clusterings: Sequence[Clustering], tries: Sequence[_Try], k: int) -> list[float]:
    """Return the mean adjusted Rand index of each try with all others; 0 for all where k is too large to compare."""
    pairs = [(one, other) for one in range(len(tries)) for other in range(one)]
    if not pairs or len(pairs) * k * k > MAX_COUNTS:
        return [0.0] * len(tries)
    centroids = np.stack([clustering.centroids for clustering in clusterings])
    numbers = tuple(tried.number for tried in tries)
    clusters = np.stack([tried.clusters for tried in tries])
    counted = np.sum(gather(count_together, centroids, numbers, clusters, k, _overlap_share(clusterings[0])), axis=0)
    total = [0.0] * len(tries)
    for (one, other), table in zip(pairs, counted, strict=True):
        index = adjusted_rand_index_of(table)
        total[one] += index
        total[other] += index
    return [value / (len(tries) - 1) for value in total]


def balance(counts: NDArray[np.int64], clusters: NDArray[np.int32], k: int) -> float:
    """Return the entropy of the k clusters' shares of all rows, in units of that of equal shares: from 0 to 1.

    `counts` (m,) are the rows of each centroid, `clusters` (m,) the cluster of each.
    """
    shares = np.bincount(clusters, weights=counts, minlength=k) / max(1, int(counts.sum()))
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum() / np.log(k)) if k > 1 else 1.0


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


def count_together(
    partition: Partition,
    centroids: NDArray[np.float64],
    numbers: Sequence[int],
    clusters: NDArray[np.int32],
    k: int,
    share: float,
) -> NDArray[np.int64]:
    """Count the rows that each two tries put into each two of their clusters, int64 (pairs, k, k).

    Try i merges the centroids of clustering numbers[i], `centroids` (clusterings, m, d), to `clusters[i]`, (m,). Pairs
    are (1, 0), (2, 0), (2, 1), (3, 0), ...
    """
    total = np.zeros((len(numbers) * (len(numbers) - 1) // 2, k, k), dtype=np.int64)
    lock = Lock()

    def work(block: NDArray[Any], rows: slice) -> None:
        drawn = _drawn(partition, block, rows, share)
        nearest = {number: label_rows(drawn, centroids[number])[0] for number in set(numbers)}
        labels = [own[nearest[number]].astype(np.int64) for number, own in zip(numbers, clusters, strict=True)]
        pair = 0
        for one, mine in enumerate(labels):
            for theirs in labels[:one]:
                counts = np.bincount(mine * k + theirs, minlength=k * k).reshape(k, k)
                with lock:
                    total[pair] += counts
                pair += 1

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
