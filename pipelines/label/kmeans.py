"""k-means over rows that stay where they are: the same bits for any number of partitions, workers and threads.

The rows, in `event_id` order, are cut into fixed blocks whose size depends on the number of rows alone. A partition
holds a run of whole blocks. Every step gives float64 sums a block, which the driver adds in block order; every random
draw belongs to an event (`pipelines.label.draws`). So neither knows how the blocks are divided.

Legend: n rows, d dimensions, k centroids, b blocks of a partition.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, Protocol, TypeVar

import numpy as np
import scipy.linalg
from numba import njit
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

from pipelines.label.draws import uniform
from pipelines.label.space import Normalize, Space, to_space, whitening_basis

CHUNK_ROWS = 512
"""Rows of one matrix product: its buffer stays in the processor's cache."""
MIN_BLOCK_ROWS = 1024
USUAL_BLOCKS = 64
USUAL_BLOCK_ROWS = 8192
MAX_BLOCKS = 256
"""Most blocks, and so most partitions, of a fit: the driver holds this many (k, d) sums at a time."""

SEEDING_TRIES = 24
SEEDING_ROWS_A_CENTROID = 256
SEEDING_MOST_ROWS = 50_000
"""The candidates are reduced several times; each result is refined on a sample of the rows, and the best there kept."""

Array = NDArray[Any]
T = TypeVar("T")


def block_rows(num_rows: int) -> int:
    """Return the rows of a block for a fit of `num_rows` rows, a multiple of the chunk.

    64 blocks of 1024 to 8192 rows, then up to 256 of these, then 256 larger ones.
    """
    rows = max(MIN_BLOCK_ROWS, min(USUAL_BLOCK_ROWS, -(-num_rows // USUAL_BLOCKS)), -(-num_rows // MAX_BLOCKS))
    return -(-rows // CHUNK_ROWS) * CHUNK_ROWS


def block_edges(num_rows: int) -> NDArray[np.int64]:
    """Return the first row of every block, and the number of rows at the end: int64 (blocks + 1,)."""
    return np.append(np.arange(0, num_rows, block_rows(num_rows), dtype=np.int64), num_rows)


def partition_edges(num_rows: int, num_partitions: int) -> list[tuple[int, int]]:
    """Divide the blocks among partitions as evenly as whole blocks allow; returns (first row, end row) of each.

    There are no more partitions than blocks.
    """
    edges = block_edges(num_rows)
    cuts = np.linspace(0, len(edges) - 1, min(num_partitions, len(edges) - 1) + 1).round().astype(int)
    return [(int(edges[first]), int(edges[end])) for first, end in pairwise(cuts)]


class Partition:
    """A run of whole blocks, and what the algorithm remembers of their rows.

    Args:
        read: gives the partition's blocks in order, each (rows, d) float32 or float64.
        keys: the event key of each row, uint64 (n,).
        first_row: number of the partition's first row among all rows.
        keep: hold the blocks in memory; else `read` is called again in every step.
        num_threads: blocks worked on at a time (held blocks only).
    """

    def __init__(
        self,
        read: Callable[[], Iterator[Array]],
        keys: NDArray[np.uint64],
        first_row: int = 0,
        *,
        keep: bool = True,
        num_threads: int = 1,
    ) -> None:
        self.keys = keys
        self.first_row = first_row
        self.labels = np.full(len(keys), -1, dtype=np.int32)
        self.nearest = np.empty(0)
        self.candidate = np.empty(0, dtype=np.int32)
        self.space: Space | None = None
        self._read = read
        self._held = list(read()) if keep else None
        self._num_threads = num_threads if keep else 1

    def enter(self, space: Space) -> None:
        """Turn every row into the space of the clustering, once and for all."""
        if self._held is not None:
            self._held = self.map_blocks(lambda block, _: to_space(block, space))
        self.space = space

    def map_blocks(self, work: Callable[[Array, slice], T]) -> list[T]:
        """Return `work(block, rows of the partition)` of every block, in block order."""
        with one_thread_a_product():
            if self._num_threads == 1:
                return [work(block, rows) for block, rows in self._blocks()]
            with ThreadPoolExecutor(self._num_threads) as pool:
                return list(pool.map(lambda item: work(*item), self._blocks()))

    def _blocks(self) -> Iterator[tuple[Array, slice]]:
        start = 0
        for block in self._held if self._held is not None else self._read():
            inside = to_space(block, self.space) if self._held is None and self.space is not None else block
            yield inside, slice(start, start + len(block))
            start += len(block)


class Gather(Protocol):
    """Runs a step on every partition, wherever it is, and returns the results in order of the partitions."""

    def __call__(self, step: Callable[..., T], *arguments: Any) -> list[T]:
        """Return `step(partition, *arguments)` of every partition."""


def gather_local(partitions: Sequence[Partition]) -> Gather:
    """Return what runs the steps on partitions of this process, one after the other."""

    def gather(step: Callable[..., T], *arguments: Any) -> list[T]:
        return [step(partition, *arguments) for partition in partitions]

    return gather


def local_partitions(
    rows: Array, keys: NDArray[np.uint64], num_partitions: int = 1, *, num_threads: int = 1
) -> list[Partition]:
    """Divide an array (n, d), its rows in event_id order, among partitions of this process."""
    size = block_rows(len(rows))

    def reader(first: int, end: int) -> Callable[[], Iterator[Array]]:
        return lambda: (rows[start : min(start + size, end)] for start in range(first, end, size))

    return [
        Partition(reader(first, end), keys[first:end], first, num_threads=num_threads)
        for first, end in partition_edges(len(rows), num_partitions)
    ]


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


def fit(
    gather: Gather,
    k: int,
    *,
    seed: int = 0,
    restarts: int = 1,
    max_iterations: int = 300,
    tolerance: float = 1e-4,
    seeding_rounds: int = 5,
    progress: Callable[[int, int, float], None] | None = None,
) -> list[Clustering]:
    """Fit k centroids from several seedings; returns one clustering a restart, in order.

    `progress` is called with (restart, iteration, inertia).

    Raises:
        ValueError: there are fewer rows, or fewer distinct rows, than k.
    """
    found = []
    for restart in range(restarts):
        start = seed_centroids(gather, k, seed=seed, restart=restart, rounds=seeding_rounds)
        report = None if progress is None else _bind(progress, restart)
        found.append(lloyd(gather, start, max_iterations=max_iterations, tolerance=tolerance, progress=report))
    return found


def best(clusterings: Sequence[Clustering]) -> Clustering:
    """Return the clustering with the least inertia, the first of equals."""
    return min(clusterings, key=lambda clustering: clustering.inertia)


def lloyd(
    gather: Gather,
    start: Array,
    *,
    max_iterations: int = 300,
    tolerance: float = 1e-4,
    progress: Callable[[int, float], None] | None = None,
) -> Clustering:
    """Improve centroids (k, d) by Lloyd's algorithm, with scikit-learn's stopping and empty-cluster rules.

    It ends when no row changes its centroid, when the centroids' summed squared shift is at most `tolerance` times the
    mean variance of the dimensions, or after `max_iterations`. A centroid without rows moves to the row farthest from
    its own centroid, which leaves that one; several take the farthest rows in turn (ties: the first row). Where all
    rows lie on their centroids there is nothing to move to, and it stays with the largest cluster.
    """
    variance, squares = _spread(gather)
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


def fit_space(gather: Gather, *, normalize: Normalize = "none", whiten: bool = False) -> Space:
    """Fit the space of the clustering to all rows, from the same sums over blocks, and turn the rows into it.

    Raises:
        ValueError: every row is the same.
    """
    num_rows = sum(gather(count_rows))
    scaled = Space(normalize=normalize)
    mean = add_blocks(gather(sum_rows, scaled)) / num_rows
    space = Space(normalize=normalize, mean=mean)
    if whiten:
        covariance = add_blocks(gather(sum_products, space)) / num_rows
        if np.trace(covariance) > 0:
            with _thread_pools().limit(limits=1):
                space = Space(normalize=normalize, mean=mean, basis=whitening_basis(covariance))
    gather(enter_space, space)
    squares = _total(gather(sum_squares))
    # A constant in float32 less its float64 mean is rounding noise, far below any spread that could be clustered.
    if squares <= num_rows * 1e-12 * max(1.0, float(mean @ mean)):
        raise ValueError(f"all {num_rows} embeddings are the same, so there is nothing to cluster")
    return space


def seed_centroids(
    gather: Gather, k: int, *, seed: int, restart: int = 0, rounds: int = 5, oversampling: float = 2.0
) -> NDArray[np.float64]:
    """Draw k first centroids (k, d) by k-means|| (Bahmani et al., 2012).

    In each round a row becomes a candidate with probability `oversampling` k d^2 / (sum of d^2), d its distance to the
    nearest candidate; k-means++ and Lloyd on the candidates, weighted by the rows nearest to each, leave k of them.
    That is done SEEDING_TRIES times, and the k with the least inertia after Lloyd on a sample of rows are returned.

    Raises:
        ValueError: there are fewer rows, or fewer distinct rows, than k.
    """
    num_rows = sum(gather(count_rows))
    if num_rows < k:
        raise ValueError(f"there are {num_rows} events, fewer than the {k} clusters asked for")
    first = min(gather(draw_first, seed, restart), key=lambda drawn: drawn[:2])
    gather(begin_seeding)
    candidates = first[2][None]
    potential = _total(gather(measure_candidates, candidates, 0))
    for round_number in range(1, rounds + 64):
        enough = round_number > rounds and len(np.unique(candidates, axis=0)) >= k
        if enough or potential == 0:
            break
        factor = oversampling * k / potential
        drawn = np.concatenate(gather(draw_candidates, seed, restart, round_number, factor))
        if len(drawn):
            potential = _total(gather(measure_candidates, drawn, len(candidates)))
            candidates = np.concatenate([candidates, drawn])
    distinct = len(np.unique(candidates, axis=0))
    if distinct < k:
        raise ValueError(f"the embeddings have only {distinct} distinct values, fewer than the {k} clusters asked for")
    weights = np.sum(gather(weigh_candidates, len(candidates)), axis=0)
    share = min(1.0, min(SEEDING_ROWS_A_CENTROID * k, SEEDING_MOST_ROWS) / num_rows)
    sampled = gather(sample_rows, seed, share, restart)
    sample, keys = np.concatenate([rows for _, rows in sampled]), np.concatenate([keys for keys, _ in sampled])
    tries = SEEDING_TRIES if len(sample) >= 20 * k else 1
    starts = _reduce_candidates(candidates.astype(np.float64), weights, k, seed=seed, restart=restart, tries=tries)
    if len(starts) == 1:
        return starts[0]
    gather_sample = gather_local(local_partitions(sample, keys))
    return best([lloyd(gather_sample, start, max_iterations=30) for start in starts]).centroids


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
    transposed, norms = _prepared(centroids, rows.dtype)
    with one_thread_a_product():
        _label_block(rows, transposed, norms, centroids, clusters.astype(np.int32), labels, distance, margin)
    return labels, distance, margin


# Steps: what is run on each partition.


def count_rows(partition: Partition) -> int:
    """Return the number of rows."""
    return len(partition.keys)


def enter_space(partition: Partition, space: Space) -> None:
    """Turn the rows into a space (see Partition.enter)."""
    partition.enter(space)


def sum_rows(partition: Partition, space: Space) -> NDArray[np.float64]:
    """Return the sum of each block's rows in a space, (b, d)."""
    return np.stack(partition.map_blocks(lambda block, _: to_space(block, space).sum(axis=0, dtype=np.float64)))


def sum_products(partition: Partition, space: Space) -> NDArray[np.float64]:
    """Return each block's sum of outer products of its rows in a space, (b, d, d)."""

    def products(block: Array, _: slice) -> NDArray[np.float64]:
        rows = to_space(block, space).astype(np.float64)
        return np.asarray(rows.T @ rows, dtype=np.float64)

    return np.stack(partition.map_blocks(products))


def sum_squares(partition: Partition) -> NDArray[np.float64]:
    """Return each block's sum of squares, (b,)."""
    return np.array(partition.map_blocks(lambda block, _: _sum_of_squares(block)))


def sum_moments(partition: Partition) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return each block's sum of rows (b, d) and sum of squares (b,)."""
    return sum_rows(partition, Space()), sum_squares(partition)


def forget_labels(partition: Partition) -> None:
    """Forget which centroid the rows had, so that the next assignment counts every row as changed."""
    partition.labels.fill(-1)


def assign(partition: Partition, centroids: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64], int]:
    """Give each row its nearest centroid (ties: the first).

    Returns each block's sums of rows by centroid (b, k, d), its counts (b, k), and how many rows changed centroid.
    """

    prepared = cache(lambda dtype: _prepared(centroids, dtype))

    def work(block: Array, rows: slice) -> tuple[NDArray[np.float64], NDArray[np.int64], int]:
        sums = np.zeros(centroids.shape)
        counts = np.zeros(len(centroids), dtype=np.int64)
        changed = int(_assign_block(block, *prepared(block.dtype), partition.labels[rows], sums, counts))
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
    """Return the `num` rows farthest from their own centroid: squared distances, row numbers, labels, rows."""

    def work(block: Array, rows: slice) -> tuple[Any, ...]:
        labels = partition.labels[rows]
        distances = ((block - centroids[labels]) ** 2).sum(axis=1, dtype=np.float64)
        order = np.argsort(-distances, kind="stable")[:num]
        return distances[order], partition.first_row + rows.start + order, labels[order], block[order]

    results = partition.map_blocks(work)
    distances, numbers, labels, values = (np.concatenate(column) for column in zip(*results, strict=True))
    order = np.lexsort((numbers, -distances))[:num]
    return distances[order], numbers[order], labels[order], values[order].astype(np.float64)


def draw_first(partition: Partition, seed: int, restart: int) -> tuple[float, int, Array]:
    """Return the row with the smallest draw, as (draw, row number, row)."""

    def work(block: Array, rows: slice) -> tuple[float, int, Array]:
        draws = uniform(partition.keys[rows], seed, restart, 0)
        row = int(draws.argmin())
        return float(draws[row]), partition.first_row + rows.start + row, block[row].copy()

    return min(partition.map_blocks(work), key=lambda drawn: drawn[:2])


def begin_seeding(partition: Partition) -> None:
    """Forget the distances to the candidates of an earlier seeding."""
    partition.nearest = np.full(len(partition.keys), np.inf)
    partition.candidate = np.full(len(partition.keys), -1, dtype=np.int32)


def measure_candidates(partition: Partition, candidates: Array, first_number: int) -> NDArray[np.float64]:
    """Take new candidates (m, d) into each row's nearest distance; returns each block's sum of squared distances."""

    prepared = cache(lambda dtype: _prepared(candidates.astype(np.float64), dtype))

    def work(block: Array, rows: slice) -> float:
        transposed, norms = prepared(block.dtype)
        nearest = partition.nearest[rows]
        _measure_block(block, transposed, norms, nearest, partition.candidate[rows], first_number)
        return float(nearest.sum())

    return np.array(partition.map_blocks(work))


def draw_candidates(partition: Partition, seed: int, restart: int, round_number: int, factor: float) -> Array:
    """Return the rows drawn in a round, each with probability `factor` times its squared distance: (m, d)."""

    def drawn(rows: slice) -> NDArray[np.bool_]:
        draws = uniform(partition.keys[rows], seed, restart, round_number)
        return np.asarray(draws < factor * partition.nearest[rows], dtype=np.bool_)

    return _take_rows(partition, drawn)


def weigh_candidates(partition: Partition, num_candidates: int) -> NDArray[np.int64]:
    """Return how many rows are nearest to each candidate, (num_candidates,)."""
    return np.bincount(partition.candidate, minlength=num_candidates)


def sample_rows(partition: Partition, seed: int, share: float, restart: int = 0) -> tuple[NDArray[np.uint64], Array]:
    """Return the rows drawn with a probability, as (event keys, rows)."""

    def drawn(rows: slice) -> NDArray[np.bool_]:
        return np.asarray(uniform(partition.keys[rows], seed, _SAMPLE_SALT, restart) < share, dtype=np.bool_)

    keys = partition.map_blocks(lambda _, rows: partition.keys[rows][drawn(rows)])
    return np.concatenate(keys), _take_rows(partition, drawn)


_SAMPLE_SALT = -1


def _take_rows(partition: Partition, drawn: Callable[[slice], NDArray[np.bool_]]) -> Array:
    def work(block: Array, rows: slice) -> Array:
        taken: Array = block[drawn(rows)]
        return taken

    return np.concatenate(partition.map_blocks(work))


# What the driver does with the steps' results.


def add_blocks(parts: Sequence[Array]) -> Array:
    """Add arrays of block sums (b, ...) one block after the other, in block order."""
    total: Array = np.zeros(parts[0].shape[1:], dtype=parts[0].dtype)
    for part in parts:
        for block in part:
            total = total + block
    return total


def _total(parts: Sequence[NDArray[np.float64]]) -> float:
    return float(add_blocks(parts))


def _spread(gather: Gather) -> tuple[float, float]:
    """Return the mean variance of the dimensions and the sum of squares."""
    moments = gather(sum_moments)
    num_rows = sum(gather(count_rows))
    squares = _total([part for _, part in moments])
    mean = add_blocks([part for part, _ in moments]) / num_rows
    return max(0.0, squares / num_rows - float(mean @ mean)) / len(mean), squares


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
    distances, numbers, labels, rows = (np.concatenate(column) for column in zip(*results, strict=True))
    order = np.lexsort((numbers, -distances))
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


def _reduce_candidates(
    candidates: NDArray[np.float64], weights: NDArray[np.int64], k: int, *, seed: int, restart: int, tries: int
) -> list[NDArray[np.float64]]:
    """Return k centroids of the weighted candidates, several times over: k-means++ and Lloyd, on one thread."""
    # Imported late: it takes a second, and workers need none.
    from sklearn.cluster import KMeans

    weighted = weights > 0
    if weighted.sum() < k:
        weighted = np.ones(len(weights), dtype=bool)
    states = np.random.SeedSequence([seed & 0xFFFFFFFF, restart]).generate_state(tries)
    # More than one thread would add scikit-learn's partial sums in whatever order the threads end.
    with _thread_pools().limit(limits=1):
        models = [KMeans(k, n_init=1, random_state=int(state), max_iter=50) for state in states]
        for model in models:
            model.fit(candidates[weighted], sample_weight=np.maximum(weights[weighted], 1).astype(np.float64))
    return [np.asarray(model.cluster_centers_, dtype=np.float64) for model in models]


def _bind(progress: Callable[[int, int, float], None], restart: int) -> Callable[[int, float], None]:
    return lambda iteration, inertia: progress(restart, iteration, inertia)


# Kernels: one matrix product a chunk, then one pass over its result while that is in the cache.


@cache
def _thread_pools() -> ThreadpoolController:
    # SciPy's BLAS, which the kernels call, must be loaded to be seen.
    scipy.linalg.get_blas_funcs("gemm")
    return ThreadpoolController()


def one_thread_a_product() -> Any:
    """Return a context in which a matrix product runs on its caller's thread: its bits then depend on shape alone."""
    return _thread_pools().limit(limits=1, user_api="blas")


def _prepared(centroids: NDArray[np.float64], dtype: Any) -> tuple[Array, Array]:
    """Return -2 centroids^T (d, k) and the squared norms (k,): their sum with a product orders the distances."""
    transposed = np.ascontiguousarray((-2.0 * centroids).T.astype(dtype))
    return transposed, (centroids**2).sum(axis=1).astype(dtype)


@njit(cache=True, nogil=True)
def _assign_block(block: Array, transposed: Array, norms: Array, labels: Array, sums: Array, counts: Array) -> int:
    num_centroids, dim = transposed.shape[1], block.shape[1]
    buffer = np.empty((CHUNK_ROWS, num_centroids), block.dtype)
    changed = 0
    for start in range(0, len(block), CHUNK_ROWS):
        end = min(len(block), start + CHUNK_ROWS)
        products = buffer[: end - start]
        np.dot(block[start:end], transposed, products)
        for row in range(end - start):
            # Two loops, so that the compiler adds the norms several at a time.
            for centroid in range(num_centroids):
                products[row, centroid] += norms[centroid]
            least, label = products[row, 0], 0
            for centroid in range(1, num_centroids):
                if products[row, centroid] < least:
                    least, label = products[row, centroid], centroid
            if labels[start + row] != label:
                labels[start + row] = label
                changed += 1
            counts[label] += 1
            for axis in range(dim):
                sums[label, axis] += np.float64(block[start + row, axis])
    return changed


@njit(cache=True, nogil=True)
def _measure_block(
    block: Array, transposed: Array, norms: Array, nearest: Array, candidate: Array, first_number: int
) -> None:
    num_candidates, dim = transposed.shape[1], block.shape[1]
    noise = 16.0 * np.finfo(block.dtype).eps
    buffer = np.empty((CHUNK_ROWS, num_candidates), block.dtype)
    for start in range(0, len(block), CHUNK_ROWS):
        end = min(len(block), start + CHUNK_ROWS)
        products = buffer[: end - start]
        np.dot(block[start:end], transposed, products)
        for row in range(end - start):
            for index in range(num_candidates):
                products[row, index] += norms[index]
            least, number = products[row, 0], 0
            for index in range(1, num_candidates):
                if products[row, index] < least:
                    least, number = products[row, index], index
            square = np.float64(0.0)
            for axis in range(dim):
                square += np.float64(block[start + row, axis]) ** 2
            distance = square + np.float64(least)
            # Rounding leaves a row that equals its candidate a small distance, by which it would be drawn again.
            if distance < noise * (square + np.float64(norms[number])):
                distance = np.float64(0.0)
            if distance < nearest[start + row]:
                nearest[start + row] = distance
                candidate[start + row] = first_number + number


@njit(cache=True, nogil=True)
def _label_block(
    block: Array,
    transposed: Array,
    norms: Array,
    centroids: Array,
    clusters: Array,
    labels: Array,
    distances: Array,
    margins: Array,
) -> None:
    num_centroids, dim = transposed.shape[1], block.shape[1]
    buffer = np.empty((CHUNK_ROWS, num_centroids), block.dtype)
    for start in range(0, len(block), CHUNK_ROWS):
        end = min(len(block), start + CHUNK_ROWS)
        products = buffer[: end - start]
        np.dot(block[start:end], transposed, products)
        for row in range(end - start):
            for centroid in range(num_centroids):
                products[row, centroid] += norms[centroid]
            least, own = products[row, 0], 0
            for centroid in range(1, num_centroids):
                if products[row, centroid] < least:
                    least, own = products[row, centroid], centroid
            other = -1
            for centroid in range(num_centroids):
                if clusters[centroid] != clusters[own] and (other < 0 or products[row, centroid] < least):
                    least, other = products[row, centroid], centroid
            # The products order the centroids; the distances themselves are worth a subtraction in float64.
            near, far = 0.0, 0.0
            for axis in range(dim):
                value_own = np.float64(block[start + row, axis]) - centroids[own, axis]
                near += value_own * value_own
                if other >= 0:
                    value_other = np.float64(block[start + row, axis]) - centroids[other, axis]
                    far += value_other * value_other
            labels[start + row] = clusters[own]
            distances[start + row] = np.sqrt(near)
            margins[start + row] = max(0.0, np.sqrt(far) - np.sqrt(near)) if other >= 0 else np.inf


@njit(cache=True, nogil=True)
def _sum_of_squares(block: Array) -> float:
    total = 0.0
    for row in range(block.shape[0]):
        square = 0.0
        for axis in range(block.shape[1]):
            square += np.float64(block[row, axis]) ** 2
        total += square
    return total
