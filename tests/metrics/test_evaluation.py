from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, precision_recall_fscore_support

from pipelines.metrics.evaluation import (
    adjusted_rand_index,
    balanced_accuracy,
    bootstrap_interval,
    class_scores,
    confusion,
    expected_calibration_error,
    hungarian_accuracy,
    hungarian_assignment,
    knn_predict,
    linear_predict,
    majority_assignment,
    majority_baseline,
    normalized_mutual_information,
    probe_by_event,
    probe_by_station,
    purity,
)

LABELS = ["icequake"] * 5 + ["earthquake"] * 3 + ["spike"] * 2
CLUSTERS = [7, 7, 7, 7, 2, 2, 2, 7, 4, 4]


def test_hungarian_accuracy_of_a_worked_example():
    assert hungarian_assignment(LABELS, CLUSTERS) == {7: "icequake", 2: "earthquake", 4: "spike"}
    assert hungarian_accuracy(LABELS, CLUSTERS) == pytest.approx(0.8)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_hungarian_accuracy_is_the_best_over_all_assignments(pairs):
    labels = np.array(["abcd"[label] for label, _ in pairs])
    clusters = np.array([cluster for _, cluster in pairs])
    best = max(np.mean(labels == np.array(list(names))[clusters]) for names in permutations("abcd"))
    assert hungarian_accuracy(labels, clusters) == pytest.approx(best)
    assert purity(labels, clusters) >= hungarian_accuracy(labels, clusters)


def test_purity_lets_clusters_share_a_class():
    assert majority_assignment(["a", "a", "a", "b"], [0, 1, 1, 1]) == {0: "a", 1: "a"}
    assert purity(["a", "a", "a", "b"], [0, 1, 1, 1]) == pytest.approx(0.75)


def test_equal_partitions_agree_fully_whatever_the_numbers_are():
    assert normalized_mutual_information(["a", "a", "b"], [9, 9, 1]) == pytest.approx(1.0)
    assert adjusted_rand_index([0, 0, 1, 1], [5, 5, 3, 3]) == pytest.approx(1.0)


def test_class_scores_and_balanced_accuracy_equal_scikit_learns():
    random = np.random.default_rng(3)
    truth, guess = random.choice(["a", "b", "c"], 200), random.choice(["a", "b", "c"], 200)
    precision, recall, _, support = precision_recall_fscore_support(truth, guess)
    scores = class_scores(truth, guess)
    assert [scores[name].precision for name in "abc"] == pytest.approx(precision.tolist())
    assert [scores[name].recall for name in "abc"] == pytest.approx(recall.tolist())
    assert [scores[name].support for name in "abc"] == support.tolist()
    assert balanced_accuracy(truth, guess) == pytest.approx(balanced_accuracy_score(truth, guess))
    assert confusion(truth, guess, ["a", "b", "c"]).sum() == 200


def test_the_baseline_answers_the_most_frequent_class():
    assert majority_baseline(LABELS) == 0.5


def test_the_bootstrap_interval_has_the_width_of_a_binomial():
    hits = np.random.default_rng(5).random(400) < 0.8
    interval = bootstrap_interval(lambda rows: float(hits[rows].mean()), np.arange(400), num_draws=1000)
    assert interval.value == pytest.approx(hits.mean())
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * np.sqrt(0.16 / 400), rel=0.15)


def test_rows_of_one_event_are_drawn_together_and_widen_the_interval():
    events = np.repeat(np.arange(40), 10)
    hits = np.repeat(np.random.default_rng(5).random(40) < 0.8, 10)
    by_row = bootstrap_interval(lambda rows: float(hits[rows].mean()), np.arange(400))
    by_event = bootstrap_interval(lambda rows: float(hits[rows].mean()), events)
    assert by_event.high - by_event.low > 2 * (by_row.high - by_row.low)


@pytest.mark.parametrize("predict", [knn_predict, linear_predict])
def test_probes_find_separable_classes_and_no_more_than_chance_in_noise(predict):
    random = np.random.default_rng(0)
    labels = random.choice(["a", "b"], 600)
    stations = random.choice(["VNA1", "VNA2", "VNA3"], 600)
    validation = random.random(600) < 0.5
    noise = random.normal(size=(600, 8))
    apart = noise + 5.0 * np.where(labels == "a", 1, -1)[:, None] * np.eye(8)[0]
    for embeddings, low, high in ((apart, 0.97, 1.0), (noise, 0.35, 0.65)):
        by_event = probe_by_event(predict, embeddings, labels, validation)
        by_station = probe_by_station(predict, embeddings, labels, validation, stations)
        assert low <= by_event.accuracy <= high
        assert low <= by_station.balanced_accuracy <= high
        assert len(by_event.rows) == len(by_station.rows) == int((~validation).sum())


def test_a_held_out_station_is_never_learned_from():
    embeddings = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1], [0.1, 1.0]])
    learned = []

    def record(train, train_labels, test):
        learned.append(train.tolist())
        return np.full(len(test), "a", dtype=object)

    probe_by_station(
        record, embeddings, ["a", "b", "a", "b"], np.array([True, True, False, False]), ["X", "Y", "X", "Y"]
    )
    assert learned == [[[0.0, 1.0]], [[1.0, 0.0]]]


def test_one_station_leaves_nothing_to_hold_out():
    probe = probe_by_station(knn_predict, np.eye(4), ["a"] * 4, np.array([True, True, False, False]), ["X"] * 4)
    assert len(probe.rows) == 0
    assert np.isnan(probe.accuracy)


def test_the_calibration_error_is_that_of_the_definition():
    confidence = np.array([0.1, 0.12, 0.5, 0.51, 0.52, 0.95, 1.0, 1.0])
    hits = np.array([False, True, True, False, True, True, True, False])
    by_hand = 0.0
    for low in np.arange(10) / 10:
        inside = (confidence > low + 1e-12) & (confidence <= low + 0.1 + 1e-12)
        if inside.any():
            by_hand += inside.mean() * abs(hits[inside].mean() - confidence[inside].mean())
    assert expected_calibration_error(confidence, hits, num_bins=10) == pytest.approx(by_hand)
    assert expected_calibration_error(np.full(100, 0.75), np.arange(100) < 75) == pytest.approx(0.0)
    assert np.isnan(expected_calibration_error(np.zeros(0), np.zeros(0, dtype=bool)))
