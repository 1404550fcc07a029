"""The first centroids of k-means: candidates drawn by k-means|| and reduced to k by k-means++.

Legend: n rows, d dimensions, k centroids, m candidates.
"""

from collections.abc import Mapping, Sequence
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from pipelines.label.draws import uniform
from pipelines.label.kernels import Array, measure_block, one_thread_per_product, prepare_centroids
from pipelines.label.lloyd import lloyd
from pipelines.label.partitions import (
    Gather,
    Partition,
    count_rows,
    first_row_of,
    gather_local,
    local_partitions,
    sample_rows,
    take_rows,
    total_of,
)

SEEDING_TRIES = 24
SEEDING_ROWS_PER_CENTROID = 256
SEEDING_MAX_ROWS = 50_000

SEEDING_MIN_ROWS_PER_CENTROID = 20
"""The candidates are reduced several times; each result is refined on a sample of the rows, and the best there kept.
With fewer rows a centroid the sample says nothing, and the first reduction is taken."""


class TooFewDistinctRows(ValueError):
    """There are fewer distinct rows than clusters; `num_distinct` is their number."""

    def __init__(self, num_distinct: int, k: int) -> None:
        super().__init__(
            f"the embeddings have only {num_distinct} distinct values, fewer than the {k} clusters asked for"
        )
        self.num_distinct = num_distinct


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
    done `tries` times, and the k with the least inertia after Lloyd's algorithm on a sample of the rows are returned.

    Raises:
        ValueError: there are fewer rows than k.
        TooFewDistinctRows: there are fewer distinct rows than k.
    """
    num_rows = sum(gather(count_rows))
    if num_rows < k:
        raise ValueError(f"there are {num_rows} events, fewer than the {k} clusters asked for")
    first = min(gather(draw_first, seed, restart), key=lambda drawn: drawn[:2])
    gather(begin_seeding)
    candidates = first[2][None]
    potential = total_of(gather(measure_candidates, candidates, 0))
    for round_number in range(1, rounds + 64):
        enough = round_number > rounds and len(np.unique(candidates, axis=0)) >= k
        if enough or potential == 0:
            break
        factor = oversampling * k / potential
        drawn = np.concatenate(gather(draw_candidates, seed, restart, round_number, factor))
        if len(drawn):
            potential = total_of(gather(measure_candidates, drawn, len(candidates)))
            candidates = np.concatenate([candidates, drawn])
    distinct = len(np.unique(candidates, axis=0))
    if distinct < k:
        raise TooFewDistinctRows(distinct, k)
    weights = np.sum(gather(weigh_candidates, len(candidates)), axis=0)
    seeds = np.random.SeedSequence([seed & 0xFFFFFFFF, restart]).generate_state(tries).tolist()
    most_rows = min(SEEDING_ROWS_PER_CENTROID * k, SEEDING_MAX_ROWS, num_rows)
    if tries == 1 or most_rows < SEEDING_MIN_ROWS_PER_CENTROID * k:
        with one_thread_per_product():
            return reduce_candidates(candidates, weights, k, seeds[0])
    firsts = gather(first_row_of)
    turns = {first: list(enumerate(seeds))[turn :: len(firsts)] for turn, first in enumerate(firsts)}
    sample = partial(sample_rows, seed=seed, share=most_rows / num_rows, restart=restart)
    found = gather.exchange(sample, try_reductions, candidates, weights, k, turns)
    return min((best_try for best_try in found if best_try), key=lambda tried: tried[:2])[2]


def draw_first(partition: Partition, seed: int, restart: int) -> tuple[float, int, Array]:
    """Return the row with the smallest draw, as (draw, row index, row)."""

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
    """Update each row's distance to its nearest candidate with new candidates (m, d).

    Returns each block's sum of squared distances, (b,).
    """

    prepared = cache(lambda dtype: prepare_centroids(candidates.astype(np.float64), dtype))

    def work(block: Array, rows: slice) -> float:
        transposed, norms = prepared(block.dtype)
        nearest = partition.nearest[rows]
        measure_block(block, transposed, norms, nearest, partition.labels[rows], first_number)
        return float(nearest.sum(dtype=np.float64))

    return np.array(partition.map_blocks(work))


def draw_candidates(partition: Partition, seed: int, restart: int, round_number: int, factor: float) -> Array:
    """Return the rows drawn in a round, each with probability `factor` times its squared distance: (m, d)."""

    def drawn(rows: slice) -> NDArray[np.bool_]:
        draws = uniform(partition.keys[rows], seed, restart, round_number)
        return np.asarray(draws < factor * partition.nearest[rows], dtype=np.bool_)

    return take_rows(partition, drawn)


def weigh_candidates(partition: Partition, num_candidates: int) -> NDArray[np.int64]:
    """Return how many rows are nearest to each candidate, (num_candidates,), and forget their distances."""
    partition.nearest = np.empty(0, dtype=np.float32)
    return np.bincount(partition.labels, minlength=num_candidates)


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
