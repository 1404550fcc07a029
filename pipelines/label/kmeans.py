"""k-means over rows that stay where they are: the same bits for any number of partitions, workers and threads.

The rows, in `event_id` order, are cut into fixed blocks whose size depends on the number of rows alone. A partition
holds a run of whole blocks. Every step gives float64 sums a block, which the driver adds in block order; every random
draw belongs to an event (`pipelines.label.draws`). So neither knows how the blocks are divided.

Legend: n rows, d dimensions, k centroids, b blocks of a partition.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
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
SEEDING_LEAST_ROWS_A_CENTROID = 20
"""The candidates are reduced several times; each result is refined on a sample of the rows, and the best there kept.
With fewer rows a centroid the sample says nothing, and the first reduction is taken."""

Array = NDArray[Any]
S = TypeVar("S")
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
        """Centroid of each row; while candidates are drawn, the nearest of them."""
        self.nearest = np.empty(0, dtype=np.float32)
        """Squared distance of each row to the nearest candidate, while these are drawn."""
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
        return self.map_threads(lambda item: work(*item), self._blocks())

    def map_threads(self, work: Callable[[S], T], items: Iterable[S]) -> list[T]:
        """Return `work(item)` of every item, in their order, on the partition's threads."""
        with one_thread_a_product():
            if self._num_threads == 1:
                return [work(item) for item in items]
            with ThreadPoolExecutor(self._num_threads) as pool:
                return list(pool.map(work, items))

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

    def exchange(self, give: Callable[..., Any], step: Callable[..., T], *arguments: Any) -> list[T]:
        """Return `step(partition, *arguments, *given)` of every partition, `given` being what `give(partition)` returns
        on each of them; that goes from partition to partition and not through the driver."""


@dataclass(frozen=True)
class LocalGather:
    """Runs the steps on partitions of this process, one after the other."""

    partitions: Sequence[Partition]

    def __call__(self, step: Callable[..., T], *arguments: Any) -> list[T]:
        """Return `step(partition, *arguments)` of every partition."""
        return [step(partition, *arguments) for partition in self.partitions]

    def exchange(self, give: Callable[..., Any], step: Callable[..., T], *arguments: Any) -> list[T]:
        """Return `step(partition, *arguments, *given)` of every partition (see Gather)."""
        return self(step, *arguments, *self(give))


def gather_local(partitions: Sequence[Partition]) -> Gather:
    """Return what runs the steps on partitions of this process, one after the other."""
    return LocalGather(partitions)


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
        report = None if progress is None else _bind(progress, restart)
        improve = partial(lloyd, max_iterations=max_iterations, tolerance=tolerance, spread=spread)
        found.append(improve(gather, start, progress=report))
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
    spread: tuple[float, float] | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> Clustering:
    """Improve centroids (k, d) by Lloyd's algorithm, with scikit-learn's stopping and empty-cluster rules.

    It ends when no row changes its centroid, when the centroids' summed squared shift is at most `tolerance` times the
    mean variance of the dimensions, or after `max_iterations`. A centroid without rows moves to the row farthest from
    its own centroid, which leaves that one; several take the farthest rows in turn (ties: the first row). Where all
    rows lie on their centroids there is nothing to move to, and it stays with the largest cluster. `spread` is what
    measure_spread returns, where that is known.
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
    squares = _total([part for _, part in moments])
    mean = add_blocks([part for part, _ in moments]) / num_rows
    return max(0.0, squares / num_rows - float(mean @ mean)) / len(mean), squares


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
    gather: Gather,
    k: int,
    *,
    seed: int,
    restart: int = 0,
    rounds: int = 5,
    tries: int = SEEDING_TRIES,
    oversampling: float = 2.0,
) -> NDArray[np.float64]:
    """Draw k first centroids (k, d) by k-means|| (Bahmani et al., 2012).

    In each round a row becomes a candidate with probability `oversampling` k d^2 / (sum of d^2), d its distance to the
    nearest candidate; k-means++ on the candidates, weighted by the rows nearest to each, leaves k of them. That is
    done `tries` times, and the k with the least inertia after Lloyd on a sample of the rows are returned.

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
    seeds = np.random.SeedSequence([seed & 0xFFFFFFFF, restart]).generate_state(tries).tolist()
    most_rows = min(SEEDING_ROWS_A_CENTROID * k, SEEDING_MOST_ROWS, num_rows)
    if tries == 1 or most_rows < SEEDING_LEAST_ROWS_A_CENTROID * k:
        with one_thread_a_product():
            return reduce_candidates(candidates, weights, k, seeds[0])
    firsts = gather(first_row_of)
    turns = {first: list(enumerate(seeds))[turn :: len(firsts)] for turn, first in enumerate(firsts)}
    sample = partial(sample_rows, seed=seed, share=most_rows / num_rows, restart=restart)
    found = gather.exchange(sample, try_reductions, candidates, weights, k, turns)
    return min((best_try for best_try in found if best_try), key=lambda tried: tried[:2])[2]


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


def first_row_of(partition: Partition) -> int:
    """Return the number of the first row among all rows."""
    return partition.first_row


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
    moments = partition.map_blocks(lambda block, _: (block.sum(axis=0, dtype=np.float64), _sum_of_squares(block)))
    return np.stack([sums for sums, _ in moments]), np.array([squares for _, squares in moments])


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
    partition.nearest = np.full(len(partition.keys), np.inf, dtype=np.float32)
    partition.labels.fill(-1)


def measure_candidates(partition: Partition, candidates: Array, first_number: int) -> NDArray[np.float64]:
    """Take new candidates (m, d) into each row's nearest distance; returns each block's sum of squared distances."""

    prepared = cache(lambda dtype: _prepared(candidates.astype(np.float64), dtype))

    def work(block: Array, rows: slice) -> float:
        transposed, norms = prepared(block.dtype)
        nearest = partition.nearest[rows]
        _measure_block(block, transposed, norms, nearest, partition.labels[rows], first_number)
        return float(nearest.sum(dtype=np.float64))

    return np.array(partition.map_blocks(work))


def draw_candidates(partition: Partition, seed: int, restart: int, round_number: int, factor: float) -> Array:
    """Return the rows drawn in a round, each with probability `factor` times its squared distance: (m, d)."""

    def drawn(rows: slice) -> NDArray[np.bool_]:
        draws = uniform(partition.keys[rows], seed, restart, round_number)
        return np.asarray(draws < factor * partition.nearest[rows], dtype=np.bool_)

    return _take_rows(partition, drawn)


def weigh_candidates(partition: Partition, num_candidates: int) -> NDArray[np.int64]:
    """Return how many rows are nearest to each candidate, (num_candidates,), and forget their distances."""
    partition.nearest = np.empty(0, dtype=np.float32)
    return np.bincount(partition.labels, minlength=num_candidates)


def sample_rows(partition: Partition, seed: int, share: float, restart: int = 0) -> tuple[NDArray[np.uint64], Array]:
    """Return the rows drawn with a probability, as (event keys, rows)."""

    def drawn(rows: slice) -> NDArray[np.bool_]:
        return np.asarray(uniform(partition.keys[rows], seed, _SAMPLE_SALT, restart) < share, dtype=np.bool_)

    keys = partition.map_blocks(lambda _, rows: partition.keys[rows][drawn(rows)])
    return np.concatenate(keys), _take_rows(partition, drawn)


_SAMPLE_SALT = -1


def try_reductions(
    partition: Partition,
    candidates: Array,
    weights: NDArray[np.int64],
    k: int,
    turns: Mapping[int, Sequence[tuple[int, int]]],
    *sample: tuple[NDArray[np.uint64], Array],
) -> tuple[float, int, NDArray[np.float64]] | None:
    """Reduce the candidates to k centroids several times over and improve each result on a sample of the rows.

    `turns` gives each partition, by its first row, its share of the tries, (number, seed) each. Returns the best of
    them as (inertia in the sample, number, centroids), None where the partition has none.
    """
    keys, rows = np.concatenate([keys for keys, _ in sample]), np.concatenate([rows for _, rows in sample])

    def refined(turn: tuple[int, int]) -> tuple[float, int, NDArray[np.float64]]:
        start = reduce_candidates(candidates, weights, k, turn[1])
        found = lloyd(gather_local(local_partitions(rows, keys)), start, max_iterations=30)
        return found.inertia, turn[0], found.centroids

    tried = partition.map_threads(refined, turns[partition.first_row])
    return min(tried, key=lambda one: one[:2]) if tried else None


def reduce_candidates(candidates: Array, weights: NDArray[np.int64], k: int, seed: int) -> NDArray[np.float64]:
    """Return k of the weighted candidates (m, d) by k-means++, float64 (k, d).

    Each is the best of 2 + ln k draws, as Arthur & Vassilvitskii (2007) suggest.
    """
    points, weight = candidates.astype(np.float64), np.maximum(weights, 1).astype(np.float64)
    if (weights > 0).sum() >= k:
        points, weight = points[weights > 0], weight[weights > 0]
    random = np.random.default_rng(seed)
    norms = (points**2).sum(axis=1)
    chosen: list[int] = []
    nearest = np.ones(len(points))
    while len(chosen) < k:
        rising = np.cumsum(weight * nearest)
        draws = random.random(2 + int(np.log(k)) if chosen else 1) * rising[-1]
        drawn = np.minimum(np.searchsorted(rising, draws, side="right"), len(points) - 1)
        squares = np.maximum(norms[:, None] - 2.0 * points @ points[drawn].T + norms[drawn], 0.0)
        squares[drawn, np.arange(len(drawn))] = 0.0
        closer = np.minimum(nearest[:, None], squares) if chosen else squares
        least = int((weight @ closer).argmin())
        chosen.append(int(drawn[least]))
        nearest = closer[:, least]
    return points[chosen]


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
def _nearest(products: Array, norms: Array) -> tuple[Any, int]:
    """Turn a row's products (k,) into what orders its distances, in place; returns the least of them and where it is.

    Two loops, so that the compiler adds the norms several at a time.
    """
    for centroid in range(len(norms)):
        products[centroid] += norms[centroid]
    least, nearest = products[0], 0
    for centroid in range(1, len(norms)):
        if products[centroid] < least:
            least, nearest = products[centroid], centroid
    return least, nearest


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
            _, label = _nearest(products[row], norms)
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
            least, number = _nearest(products[row], norms)
            square = np.float64(0.0)
            for axis in range(dim):
                square += np.float64(block[start + row, axis]) ** 2
            distance = square + np.float64(least)
            # Rounding leaves a row that equals its candidate a small distance, by which it would be drawn again.
            if distance < noise * (square + np.float64(norms[number])):
                distance = np.float64(0.0)
            if np.float32(distance) < nearest[start + row]:
                nearest[start + row] = np.float32(distance)
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
            least, own = _nearest(products[row], norms)
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
