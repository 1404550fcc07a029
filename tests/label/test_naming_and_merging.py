import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from mlflow.utils.validation import _validate_metric
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import cdist, squareform
from scipy.special import softmax
from scipy.stats import entropy
from sklearn.decomposition import PCA
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

from pipelines.config.label import KMeansSettings
from pipelines.label.choosing import agreements, balance, merge, share_between, told_by_neighbours
from pipelines.label.draws import event_keys
from pipelines.label.kmeans import best, fit, label_rows
from pipelines.label.kselection import score_k, suggest_k
from pipelines.label.merging import (
    OVERLAP_SCALES,
    fit_to_merge,
    merge_overlap,
    merge_ward,
    overlaps_of,
)
from pipelines.label.naming import names_by_majority, numbers_by_reference, numbers_by_size
from pipelines.label.partitions import gather_local, local_partitions
from pipelines.label.scores import (
    PROTOCOL,
    LabelledRows,
    class_of,
    describe_scores,
    metric_ending,
    protocol_of,
    score_labelling,
)
from pipelines.label.space import Space, fit_space, measured_of, to_space
from pipelines.metrics.evaluation import adjusted_rand_index


def keys_of(num_rows: int) -> np.ndarray:
    return event_keys([f"AW.VNA1..HH.{number:08d}" for number in range(num_rows)])


def two_moons(num_rows: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    angle = random.uniform(0, np.pi, num_rows)
    moon = random.integers(0, 2, num_rows)
    rows = np.stack([np.cos(angle) + moon, np.where(moon, 0.4 - np.sin(angle), np.sin(angle))], axis=1)
    return (rows + 0.05 * random.normal(size=rows.shape)).astype(np.float32), moon


def test_ward_merging_of_single_rows_equals_scipys():
    rows = np.random.default_rng(2).normal(size=(60, 5))
    expected = fcluster(linkage(rows, "ward"), 7, criterion="maxclust")
    found = merge_ward(rows, np.ones(60, dtype=np.int64), 7)
    assert adjusted_rand_index(found, expected) == pytest.approx(1.0)


def test_ward_merging_takes_no_more_memory_than_the_distances_of_its_centroids():
    num, dim = 400, 256
    centroids = np.random.default_rng(2).normal(size=(num, dim))
    tracemalloc.start()
    merge_ward(centroids, np.ones(num, dtype=np.int64), 390)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 10 * num * num * 8 < num * num * dim * 8 / 20


def test_merging_over_clusters_by_overlap_finds_clusters_that_are_not_round():
    rows, moon = two_moons()
    gather = gather_local(local_partitions(rows, keys_of(len(rows)), 2))
    plain = best(fit(gather, 2, restarts=2))
    over = best(fit(gather, 24, restarts=2))
    clusters = merge_overlap(overlaps_of(gather, over)[1], over.counts, 2)
    by_overlap = adjusted_rand_index(label_rows(rows, over.centroids, clusters)[0], moon)
    assert by_overlap > 0.95
    assert by_overlap > adjusted_rand_index(label_rows(rows, plain.centroids)[0], moon) + 0.3


@pytest.mark.parametrize("method", ["overlap", "ward"])
def test_five_distinct_embeddings_are_clustered_though_more_over_clusters_are_wanted(method):
    points = np.array([[0, 0], [0.1, 0], [0, 0.1], [10, 10], [10.1, 10]], dtype=np.float32)
    rows = np.repeat(points, 24, axis=0)
    gather = gather_local(local_partitions(rows, keys_of(len(rows))))
    settings = KMeansSettings(k=2, overcluster=20, merge=method)
    clustering, clusters = next(merge(gather, fit_to_merge(gather, 2, len(rows), settings), 2, method))
    assert len(clustering.centroids) == 5
    labels = label_rows(rows, clustering.centroids, clusters)[0]
    assert len(set(labels[:72])) == len(set(labels[72:])) == 1
    assert labels[0] != labels[-1]
    with pytest.raises(ValueError, match="only 5 distinct values, fewer than the 6 clusters"):
        fit_to_merge(gather, 6, len(rows), KMeansSettings(k=6, overcluster=20))


def test_overlaps_are_the_same_bits_for_any_partitions_and_those_of_the_definition():
    rows = np.random.default_rng(4).normal(size=(5000, 6))
    keys = keys_of(len(rows))
    over = best(fit(gather_local(local_partitions(rows, keys)), 12))
    squares = cdist(rows, over.centroids, "sqeuclidean")
    found = [overlaps_of(gather_local(local_partitions(rows, keys, parts)), over) for parts in (1, 2, 5)]
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])
    for scale, overlaps in zip(OVERLAP_SCALES, found[0], strict=True):
        shares = softmax(-squares / (scale * squares.min(axis=1).mean()), axis=1)
        np.testing.assert_allclose(overlaps, shares.T @ shares, atol=1e-6)


def test_overlaps_of_many_rows_are_counted_over_a_sample_of_them_the_same_for_any_partitions(monkeypatch):
    rows = np.random.default_rng(4).normal(size=(20_000, 4))
    keys = keys_of(len(rows))
    over = best(fit(gather_local(local_partitions(rows, keys)), 8))
    whole = overlaps_of(gather_local(local_partitions(rows, keys)), over)
    monkeypatch.setattr("pipelines.label.merging.OVERLAP_ROWS_PER_CENTROID", 1000)
    found = [overlaps_of(gather_local(local_partitions(rows, keys, parts)), over) for parts in (1, 3)]
    assert np.array_equal(found[0], found[1])
    assert found[0].sum() == pytest.approx(len(OVERLAP_SCALES) * 8000, rel=0.05)
    np.testing.assert_allclose(found[0] / found[0].sum(), whole / whole.sum(), atol=1e-2)


def test_merging_by_overlap_is_average_linkage():
    random = np.random.default_rng(5)
    overlaps = random.random((40, 40))
    overlaps = overlaps + overlaps.T
    similarity = overlaps / overlaps.max()
    expected = fcluster(linkage(squareform(1 - similarity, checks=False), "average"), 6, criterion="maxclust")
    found = merge_overlap(overlaps, np.ones(40, dtype=np.int64), 6)
    assert adjusted_rand_index(found, expected) == pytest.approx(1.0)


def test_stragglers_do_not_cost_a_class_its_cluster():
    """Two groups that touch and three rows far away: at k = 2 the rows join a group, and the groups stay apart."""
    random = np.random.default_rng(6)
    groups = [random.normal(size=(700, 2)), random.normal((6, 0), 1, size=(300, 2)), np.full((3, 2), 60.0)]
    rows = np.concatenate(groups).astype(np.float64)
    gather = gather_local(local_partitions(rows, keys_of(len(rows))))
    over = best(fit(gather, 30, restarts=2))
    found = label_rows(rows, over.centroids, merge_overlap(overlaps_of(gather, over)[1], over.counts, 2))[0]
    assert adjusted_rand_index(found[:1000], np.arange(1000) >= 700) > 0.95


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_of_several_restarts_none_is_kept_that_cuts_a_class_in_two(seed):
    """A few rows beside a long ridge: where a centroid lies between the two, merging cuts the ridge in halves instead.

    With seed 1 that happens, by one scale, in the restart that has the least inertia.
    """
    random = np.random.default_rng(seed)
    ridge = np.stack([random.uniform(0, 12, 900), random.normal(0, 0.5, 900)], axis=1)
    rows = np.concatenate([ridge, random.normal((6, 2.3), 0.35, size=(100, 2))])
    gather = gather_local(local_partitions(rows, keys_of(1000)))
    fits = fit(gather, 24, restarts=8, seed=seed)

    def found(clustering, clusters):
        return adjusted_rand_index(label_rows(rows, clustering.centroids, clusters)[0], np.arange(1000) >= 900)

    assert found(*next(merge(gather, fits, 2, "overlap"))) > 0.95
    if seed == 1:
        least = best(fits)
        assert found(least, merge_overlap(overlaps_of(gather, least)[1], least.counts, 2)) < 0.1


def test_ways_to_merge_are_compared_by_the_adjusted_rand_index():
    random = np.random.default_rng(8)
    found = [random.integers(0, 2 + number, 3000).astype(np.int32) for number in range(3)]
    found += [found[2] // 2, found[2][::-1].copy(), np.where(random.random(3000) < 0.9, found[1], 0).astype(np.int32)]
    expected = [(sum(adjusted_rand_index(one, other) for other in found) - 1) / 5 for one in found]
    np.testing.assert_allclose(agreements(found), expected, atol=1e-12)


def test_neighbours_tell_a_class_and_not_where_it_was_cut():
    random = np.random.default_rng(9)
    rows = np.concatenate([random.normal(0, 1, (600, 5)), random.normal(9, 1, (400, 5))])
    apart = np.repeat(np.array([0, 1], dtype=np.int32), [600, 400])
    cut = np.where(rows[:, 0] > 0, apart, apart + 2).astype(np.int32)
    at_random = random.integers(0, 2, 1000).astype(np.int32)
    told = told_by_neighbours(rows, [apart, cut, at_random])
    neighbours = KNeighborsClassifier(5)
    expected = []
    for clusters in (cut, at_random):
        guess = cross_val_predict(neighbours, rows, clusters, cv=LeaveOneOut())
        largest = np.bincount(clusters).max() / 1000
        expected.append(((guess == clusters).mean() - largest) / (1 - largest))
    assert told[0] == 1.0
    # Ties between five neighbours are broken otherwise.
    np.testing.assert_allclose(told[1:], expected, atol=0.02)
    assert told[1] < 0.95
    assert abs(told[2]) < 0.1


def test_the_share_of_variance_between_clusters_is_one_minus_that_within():
    random = np.random.default_rng(11)
    clusters = random.integers(0, 4, 500).astype(np.int32)
    values = (random.normal(size=500) + clusters).astype(np.float32)
    within = sum(((values[clusters == one] - values[clusters == one].mean()) ** 2).sum() for one in range(4))
    expected = 1 - within / ((values - values.mean()) ** 2).sum()
    assert share_between(values, clusters) == pytest.approx(expected, rel=1e-5)
    assert share_between(clusters.astype(np.float64), clusters) == pytest.approx(1.0)
    assert share_between(np.full(500, 0.1, dtype=np.float32), clusters) == 0.0


def test_a_small_group_whose_measured_component_differs_stays_a_cluster():
    """Four groups at k = 3: the two nearest would be joined, and differ in what is measured."""
    random = np.random.default_rng(12)
    truth = np.repeat(np.arange(4), (400, 60, 300, 240))
    centres = np.array([[0, 0, 0], [5, 0, 1], [0, 12, 0], [7, 12, 0]])
    rows = centres[truth] + random.normal(size=(1000, 3)) * [1, 1, 0.05]
    # All far from the origin, so that the last component over the length of the others is about a hundredth of it.
    space = Space(mean=np.array([100.0, 0.0, 0.0]))
    gather = gather_local(local_partitions(rows, keys_of(1000)))
    fits = fit_to_merge(gather, 3, 1000, KMeansSettings(k=3))

    def small_alone(measured_in):
        chosen, clusters = next(merge(gather, fits, 3, "overlap", measured_in=measured_in))
        found = label_rows(rows, chosen.centroids, clusters)[0]
        return adjusted_rand_index(found == np.bincount(found[truth == 1]).argmax(), truth == 1)

    assert small_alone(None) < 0.5
    assert small_alone(replace(space, basis=np.eye(3))) < 0.5
    assert small_alone(space) > 0.99


def test_what_is_measured_is_found_again_in_the_points_of_embeddings():
    random = np.random.default_rng(13)
    learned, motion = random.normal(size=(200, 8)), random.uniform(0, 1, 200)
    embeddings = np.column_stack([learned, 1.5 * np.linalg.norm(learned, axis=1) * motion])
    embeddings[7] = 0.0
    motion[7] = 0.0
    for normalize in ("none", "l2"):
        space = fit_space(gather_local(local_partitions(embeddings, keys_of(200))), normalize=normalize)
        np.testing.assert_allclose(measured_of(to_space(embeddings, space), space), 1.5 * motion, atol=1e-9)


def test_a_row_far_from_all_others_is_no_cluster_of_its_own_but_far_from_one():
    random = np.random.default_rng(10)
    rows = np.concatenate([random.normal(0, 1, (300, 4)), random.normal(12, 1, (300, 4)), [[6.0, 60.0, 6.0, 6.0]]])
    gather = gather_local(local_partitions(rows, keys_of(len(rows))))
    settings = KMeansSettings(k=2, overcluster=20)
    chosen, clusters = next(merge(gather, fit_to_merge(gather, 2, len(rows), settings), 2, "overlap"))
    labels, distance, _ = label_rows(rows, chosen.centroids, clusters)
    assert chosen.counts.min() >= 3
    assert chosen.counts.sum() == len(rows)
    assert adjusted_rand_index(labels[:600], np.arange(600) >= 300) == 1.0
    assert distance[600] > 40.0


def test_restarts_of_plain_k_means_and_of_ward_are_ranked_by_inertia():
    rows = np.random.default_rng(7).normal(size=(1200, 3))
    gather = gather_local(local_partitions(rows, keys_of(1200)))
    for num_fitted, method in ((5, "overlap"), (20, "ward")):
        fits = fit(gather, num_fitted, restarts=3)
        merged = list(merge(gather, fits, 5, method))
        assert [clustering for clustering, _ in merged] == sorted(fits, key=lambda clustering: clustering.inertia)
        assert all(len(np.unique(clusters)) == 5 for _, clusters in merged)


def test_whitening_equals_scikit_learns_whitened_components():
    random = np.random.default_rng(1)
    rows = (random.normal(size=(3000, 6)) @ random.normal(size=(6, 6)) + 5.0).astype(np.float64)
    space = fit_space(gather_local(local_partitions(rows, keys_of(3000), 2)), whiten=True)
    expected = PCA(whiten=True, svd_solver="full").fit_transform(rows)
    found = to_space(rows, space) / np.sqrt(3000 / 2999)
    np.testing.assert_allclose(np.abs(found), np.abs(expected), rtol=1e-6, atol=1e-6)


def test_unit_length_ignores_amplitude_and_one_value_for_all_is_refused():
    rows = np.random.default_rng(1).normal(size=(2000, 4)).astype(np.float32)
    space = fit_space(gather_local(local_partitions(rows, keys_of(2000))), normalize="l2")
    np.testing.assert_allclose(to_space(rows, space), to_space(3.0 * rows, space), atol=1e-6)
    same = np.full((2000, 4), 0.3, dtype=np.float32)
    for whiten in (False, True):
        with pytest.raises(ValueError, match="all 2000 embeddings are the same"):
            fit_space(gather_local(local_partitions(same, keys_of(2000))), whiten=whiten)


def test_numbers_follow_size_or_the_reference_that_shares_most_events():
    assert numbers_by_size(np.array([5, 9, 9])).tolist() == [2, 0, 1]
    shared = np.array([[0, 8], [7, 1], [0, 0], [2, 0]])
    assert numbers_by_reference(shared, np.array([8, 8, 5, 9])).tolist() == [1, 0, 3, 2]


def test_a_cluster_is_named_by_a_majority_that_is_pure_enough():
    labels = ["spike", "spike", "icequake", "icequake", "spike"]
    names = names_by_majority(labels, np.array([0, 0, 0, 1, 1]), 3, min_purity=0.6)
    assert [names[number].name for number in range(3)] == ["spike", None, None]
    assert names[0].purity == pytest.approx(2 / 3)
    assert [names[number].num_labels for number in range(3)] == [3, 2, 0]


def test_the_number_of_well_separated_groups_is_suggested():
    random = np.random.default_rng(3)
    centers = 8.0 * np.eye(6)[:4]
    rows = (centers[random.integers(0, 4, 1200)] + random.normal(size=(1200, 6))).astype(np.float32)
    scores = [score_k(rows, keys_of(1200), k, KMeansSettings(restarts=2), measured_in=None) for k in (2, 4, 7)]
    assert suggest_k(scores)[0] == 4
    assert "k = 4" in suggest_k(scores)[1]


def test_a_compared_k_is_clustered_as_the_run_would_cluster():
    """Two moons: over-clusters merge to them in the sample and in both of its halves; plain k-means cuts them."""
    rows, moon = two_moons()
    of_moons = sum(((rows[moon == side] - rows[moon == side].mean(axis=0)) ** 2).sum() for side in (0, 1))
    merged = score_k(rows, keys_of(len(rows)), 2, KMeansSettings(overcluster=12, restarts=2), measured_in=None)
    assert merged.inertia == pytest.approx(of_moons, rel=0.02)
    assert min(merged.ari_halves, merged.ari_restarts) > 0.95
    plain = score_k(rows, keys_of(len(rows)), 2, KMeansSettings(overcluster=1, restarts=2), measured_in=None)
    assert plain.inertia < 0.9 * of_moons


def test_a_k_that_half_of_the_sample_cannot_give_is_said():
    rows = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    with pytest.raises(ValueError, match=r"there are \d\d events, fewer than the 100 clusters asked for"):
        score_k(rows, keys_of(200), 100, KMeansSettings(), measured_in=None)


def opposite_halves() -> LabelledRows:
    """Return events of two classes whose clusters mean opposite classes in the two halves."""
    labels = np.array(["a", "b"] * 100, dtype=object)
    validation = np.arange(200) < 100
    clusters = np.where((labels == "a") ^ validation, 0, 1).astype(np.int32)
    return LabelledRows(
        labels=labels,
        clusters=clusters,
        clusters_at_classes=clusters,
        probed=np.arange(200),
        embeddings=np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32),
        stations=np.array(["X", "Y"] * 100, dtype=object),
        events=np.arange(200).astype(str).astype(object),
        validation=validation,
    )


def test_scores_are_learned_on_one_half_and_taken_on_the_other():
    """Clusters mean opposite classes in the two halves: what is learned on one must fail on the other."""
    scores = score_labelling(opposite_halves(), bootstrap_draws=20)
    assert scores.values["validation.purity"] == 1.0
    assert scores.values["test.purity"] == 0.0
    assert scores.values["test.hungarian_accuracy"] == 0.0
    assert scores.values["test.majority_baseline"] == 0.5
    assert scores.matrix.sum() == 100
    numbers = scores.metrics()
    assert all(protocol_of(name) for name in numbers)
    for name in ("hungarian_accuracy", "purity", "nmi", "ari", "knn_accuracy", "linear_station_accuracy"):
        assert numbers[f"test.{name}.low"] <= numbers[f"test.{name}"] <= numbers[f"test.{name}.high"]


ODD_NAMES = [
    "icequake (near)",
    "icequake .28.near.29.",
    "b\u00f6e",
    "low",
    "high",
    "x.low",
    "a/../b",
    "(none)",
    "$a_",
    "x" * 400,
]


def test_any_class_has_scores_of_its_own_that_mlflow_takes():
    rows = opposite_halves()
    labels = np.array(ODD_NAMES, dtype=object)[np.arange(200) % len(ODD_NAMES)]
    scores = score_labelling(replace(rows, labels=labels), bootstrap_draws=20)
    numbers = scores.metrics()
    for name, value in numbers.items():
        _validate_metric(name, value, 0, 0)
    assert len({metric_ending(name) for name in ODD_NAMES}) == len(ODD_NAMES)
    assert all(class_of(metric_ending(name)) == name for name in ODD_NAMES[:-1])
    for name in ODD_NAMES:
        assert protocol_of(f"test.recall.{metric_ending(name)}") == PROTOCOL["test.recall"]
        assert numbers[f"test.recall.{metric_ending(name)}"] == scores.per_class[name].recall
    assert scores.matrix.sum() == 100
    assert scores.matrix[:, -1].sum() == 0


def test_the_description_holds_every_number_with_its_protocol_and_is_cut_between_words():
    rows = opposite_halves()
    scores = score_labelling(rows, bootstrap_draws=20)
    text = describe_scores(scores, max_chars=8000)
    for name, value in scores.values.items():
        assert f"- {name} = {value:.4f}" in text
        assert PROTOCOL[name] in text
    assert "20,000" in text
    many = np.array([f"kind {number}" for number in range(200)], dtype=object)
    text = describe_scores(score_labelling(replace(rows, labels=many), bootstrap_draws=20), max_chars=4000)
    assert 3900 < len(text) <= 4000
    assert text.endswith("\n... the other numbers are in scores/protocol.txt")


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        ({"validation": np.ones(200, dtype=bool)}, {"test.purity", "test.hungarian_accuracy", "test.knn_accuracy"}),
        ({"validation": np.zeros(200, dtype=bool)}, {"validation.purity", "test.knn_accuracy", "test.linear_accuracy"}),
        ({"stations": np.full(200, "X", dtype=object)}, {"test.knn_station_accuracy", "test.linear_station_accuracy"}),
        ({"clusters_at_classes": None}, {"test.hungarian_accuracy", "validation.hungarian_accuracy"}),
        (
            {"labels": np.full(200, "a", dtype=object), "clusters_at_classes": None},
            {"test.hungarian_accuracy"},
        ),
    ],
    ids=["no test half", "no validation half", "one station", "no clustering at k = classes", "one class"],
)
def test_a_score_that_cannot_be_had_is_left_out_and_the_others_stand(change, missing):
    numbers = score_labelling(replace(opposite_halves(), **change), bootstrap_draws=20).metrics()
    assert not missing & set(numbers)
    assert numbers["labelled_events"] == 200
    assert all(np.isfinite(value) for value in numbers.values())


def test_the_balance_of_clusters_is_the_entropy_of_their_shares():
    counts = np.array([10, 30, 20, 40])
    clusters = np.array([0, 1, 0, 2], dtype=np.int32)
    assert balance(counts, clusters, 3) == pytest.approx(entropy([0.3, 0.3, 0.4], base=3))
    assert balance(np.array([5, 5]), np.array([0, 1], dtype=np.int32), 2) == pytest.approx(1)
    assert balance(np.array([5, 0]), np.array([0, 1], dtype=np.int32), 2) == pytest.approx(0)
