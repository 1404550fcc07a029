from itertools import pairwise

import numpy as np
import pytest
from sklearn.cluster import KMeans

from pipelines.label.draws import event_keys, uniform
from pipelines.label.kmeans import best, fit, label_rows
from pipelines.label.lloyd import lloyd
from pipelines.label.partitions import (
    Partition,
    block_edges,
    block_rows,
    gather_local,
    local_partitions,
    partition_edges,
)
from pipelines.label.seeding import seed_centroids

NUM_ROWS = 9000


def blobs(num_rows: int = NUM_ROWS, dim: int = 12, num_blobs: int = 6, dtype: type = np.float64) -> np.ndarray:
    random = np.random.default_rng(11)
    centers = random.normal(size=(num_blobs, dim)) * 3.0
    return (centers[random.integers(0, num_blobs, num_rows)] + random.normal(size=(num_rows, dim))).astype(dtype)


def keys_of(num_rows: int) -> np.ndarray:
    return event_keys([f"AW.VNA1..HH.{number:08d}" for number in range(num_rows)])


def scikit_learns(rows: np.ndarray, start: np.ndarray, **settings: float) -> KMeans:
    return KMeans(len(start), init=start, n_init=1, algorithm="lloyd", **settings).fit(rows)


def agrees_with_scikit_learn(rows: np.ndarray, start: np.ndarray, num_partitions: int = 3) -> None:
    expected = scikit_learns(rows, start, tol=1e-4, max_iter=300)
    found = lloyd(gather_local(local_partitions(rows, keys_of(len(rows)), num_partitions)), start)
    np.testing.assert_allclose(found.centroids, expected.cluster_centers_, rtol=1e-5, atol=1e-5)
    assert found.inertia == pytest.approx(expected.inertia_, rel=1e-5)
    labels, distance, margin = label_rows(rows, found.centroids)
    clear = margin > 1e-4 * distance
    np.testing.assert_array_equal(labels[clear], expected.labels_[clear])


def test_centroids_inertia_and_labels_equal_scikit_learns_from_the_same_start():
    rows = blobs()
    agrees_with_scikit_learn(rows, rows[:6].copy())


def test_an_emptied_cluster_moves_to_the_farthest_row_as_in_scikit_learn():
    rows = blobs()
    start = rows[:6].copy()
    start[3] = 1000.0
    agrees_with_scikit_learn(rows, start)


def test_duplicate_rows_and_equal_start_centroids_end_where_scikit_learn_ends():
    rows = np.repeat(blobs(300), 10, axis=0)
    start = rows[[0, 10, 20, 20, 40]].copy()
    agrees_with_scikit_learn(rows, start, num_partitions=2)


def test_rows_that_all_lie_on_their_centroids_leave_an_empty_cluster_with_the_largest():
    rows = np.repeat(np.eye(3), [5, 3, 2], axis=0)
    start = np.vstack([np.eye(3), np.full(3, 9.0)])
    found = lloyd(gather_local(local_partitions(rows, keys_of(10))), start)
    np.testing.assert_allclose(found.centroids[:3], np.eye(3))
    np.testing.assert_allclose(found.centroids[3], rows[0])
    assert found.inertia == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_any_number_of_partitions_and_threads_gives_the_same_bits(dtype):
    rows, keys = blobs(dtype=dtype), keys_of(NUM_ROWS)
    start = rows[:6].astype(np.float64)
    start[3] = 1000.0
    results = []
    for num_partitions, num_threads in ((1, 1), (2, 1), (3, 2), (7, 1)):
        partitions = local_partitions(rows, keys, num_partitions, num_threads=num_threads)
        assert len(partitions) == num_partitions
        gather = gather_local(partitions)
        drawn = best(fit(gather, 6, seed=4, restarts=2))
        given = lloyd(gather, start)
        results.append((drawn.centroids.tobytes(), drawn.inertia_history, given.centroids.tobytes(), given.inertia))
    assert all(result == results[0] for result in results)


def test_streamed_blocks_give_the_bits_of_held_ones():
    rows, keys = blobs(dtype=np.float32), keys_of(NUM_ROWS)
    edges = block_edges(NUM_ROWS)

    def read():
        return (rows[first:end] for first, end in pairwise(edges))

    streamed = fit(gather_local([Partition(read, keys, keep=False)]), 6, seed=1)[0]
    held = fit(gather_local(local_partitions(rows, keys, 2)), 6, seed=1)[0]
    assert streamed.centroids.tobytes() == held.centroids.tobytes()
    assert streamed.inertia_history == held.inertia_history


def test_inertia_never_grows_and_is_the_sum_of_squared_distances():
    rows = blobs()
    found = fit(gather_local(local_partitions(rows, keys_of(NUM_ROWS))), 5, seed=2)[0]
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in pairwise(found.inertia_history))
    distances = np.linalg.norm(rows[:, None] - found.centroids[None], axis=2).min(axis=1)
    assert found.inertia == pytest.approx((distances**2).sum(), rel=1e-9)
    assert found.converged
    assert found.counts.sum() == NUM_ROWS


def test_the_best_restart_is_as_good_as_scikit_learns():
    rows = blobs(num_blobs=20, dtype=np.float32)
    found = best(fit(gather_local(local_partitions(rows, keys_of(NUM_ROWS))), 20, restarts=4))
    expected = KMeans(20, n_init=4, random_state=0).fit(rows)
    assert found.inertia <= 1.005 * expected.inertia_


def test_seeding_draws_distinct_centroids_where_few_rows_differ():
    rows = np.repeat(np.arange(4.0)[:, None] * [[10.0, 1.0]], 500, axis=0).astype(np.float32)
    start = seed_centroids(gather_local(local_partitions(rows, keys_of(2000))), 4, seed=0)
    np.testing.assert_allclose(np.sort(start[:, 0]), [0.0, 10.0, 20.0, 30.0], atol=1e-4)


def test_fewer_events_or_fewer_distinct_embeddings_than_clusters_is_said():
    with pytest.raises(ValueError, match="there are 3 events, fewer than the 4 clusters"):
        seed_centroids(gather_local(local_partitions(np.eye(3), keys_of(3))), 4, seed=0)
    rows = np.repeat(np.eye(2, dtype=np.float32), 50, axis=0)
    with pytest.raises(ValueError, match="only 2 distinct values"):
        seed_centroids(gather_local(local_partitions(rows, keys_of(100))), 3, seed=0)


def test_the_margin_is_to_the_nearest_centroid_of_another_final_cluster():
    centroids = np.array([[0.0], [1.0], [10.0]])
    clusters = np.array([0, 0, 1], dtype=np.int32)
    labels, distance, margin = label_rows(np.array([[0.4], [8.0]], dtype=np.float32), centroids, clusters)
    assert labels.tolist() == [0, 1]
    np.testing.assert_allclose(distance, [0.4, 2.0], rtol=1e-6)
    np.testing.assert_allclose(margin, [9.6 - 0.4, 7.0 - 2.0], rtol=1e-6)


def test_blocks_depend_on_the_number_of_rows_alone_and_partitions_hold_whole_blocks():
    assert block_rows(500) == 1024
    assert block_rows(100_000_000) % 512 == 0
    assert len(block_edges(100_000_000)) - 1 <= 256
    for num_partitions in (1, 2, 3, 7, 500):
        edges = partition_edges(NUM_ROWS, num_partitions)
        assert edges[0][0] == 0
        assert edges[-1][1] == NUM_ROWS
        assert all(first % block_rows(NUM_ROWS) == 0 for first, _ in edges)


def test_draws_are_uniform_and_belong_to_the_event():
    keys = keys_of(20_000)
    draws = uniform(keys, 7, 0, 1)
    assert np.abs(np.histogram(draws, bins=20, range=(0, 1))[0] - 1000).max() < 150
    np.testing.assert_array_equal(uniform(keys[::-1], 7, 0, 1), draws[::-1])
    assert abs(np.corrcoef(draws, uniform(keys, 7, 0, 2))[0, 1]) < 0.03
    assert abs(np.corrcoef(draws, uniform(keys, 8, 0, 1))[0, 1]) < 0.03
    assert len(np.unique(keys)) == len(keys)
