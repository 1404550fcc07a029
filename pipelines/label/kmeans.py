"""k-means over partitions: the same bits for any number of partitions, workers and threads.

Seeding (`seeding`) and Lloyd's algorithm (`lloyd`) run on rows that stay where they are (`partitions`); every random
draw belongs to an event (`draws`).
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from pipelines.label.kernels import Array, label_block, one_thread_per_product, prepare_centroids
from pipelines.label.lloyd import Clustering, lloyd, measure_spread
from pipelines.label.partitions import Gather
from pipelines.label.seeding import SEEDING_TRIES, seed_centroids


def fit(
    gather: Gather,
    k: int,
    *,
    seed: int = 0,
    restarts: int = 1,
    max_iterations: int = 300,
    tolerance: float = 1e-4,
    seeding_rounds: int = 5,
    seeding_tries: int = SEEDING_TRIES,
    progress: Callable[[int, int, float], None] | None = None,
) -> list[Clustering]:
    """Fit k centroids from several seedings; returns one clustering a restart, in order.

    `seeding_tries` is how often the candidates are reduced in each (see seed_centroids); `progress` is called with
    (restart, iteration, inertia).

    Raises:
        ValueError: there are fewer rows, or fewer distinct rows, than k.
    """
    found = []
    spread = measure_spread(gather)
    for restart in range(restarts):
        start = seed_centroids(gather, k, seed=seed, restart=restart, rounds=seeding_rounds, tries=seeding_tries)
        report = None if progress is None else partial(progress, restart)
        improve = partial(lloyd, max_iterations=max_iterations, tolerance=tolerance, spread=spread)
        found.append(improve(gather, start, progress=report))
    return found


def best(clusterings: Sequence[Clustering]) -> Clustering:
    """Return the clustering with the least inertia, the first of equals."""
    return min(clusterings, key=lambda clustering: clustering.inertia)


def label_rows(
    rows: Array, centroids: NDArray[np.float64], clusters: NDArray[np.int32] | None = None
) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]:
    """Label rows (n, d) by their nearest centroid (k, d); `clusters` (k,) gives each centroid's final cluster.

    Returns (cluster, distance, margin), (n,) each: Euclidean distances; the margin is the distance to the nearest
    centroid of another final cluster minus that to the row's own (infinite where there is no other).
    """
    if clusters is None:
        clusters = np.arange(len(centroids), dtype=np.int32)
    labels = np.empty(len(rows), dtype=np.int32)
    distance, margin = np.empty(len(rows), dtype=np.float32), np.empty(len(rows), dtype=np.float32)
    transposed, norms = prepare_centroids(centroids, rows.dtype)
    with one_thread_per_product():
        label_block(rows, transposed, norms, centroids, clusters.astype(np.int32), labels, distance, margin)
    return labels, distance, margin
