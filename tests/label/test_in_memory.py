"""Clusterings of embeddings in memory, and how good they look without a label."""

import numpy as np
import pytest
from scipy.stats import entropy
from sklearn.metrics import adjusted_rand_score

from pipelines.config.label import KMeansSettings
from pipelines.label.in_memory import cluster_in_memory, clusters_of, worth_of_clusters

CENTRES = 20.0 * np.eye(3)


def groups(*sizes: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(3)
    truth = np.repeat(np.arange(len(sizes)), sizes)
    return (CENTRES[truth] + random.normal(size=(len(truth), 3))).astype(np.float32), truth


def test_groups_that_lie_apart_are_found_and_a_model_labels_other_rows():
    rows, truth = groups(100, 60, 40)
    settings = KMeansSettings(k=3)
    clusters, model = cluster_in_memory(
        rows, [f"event-{number}" for number in range(len(rows))], settings, measured=False
    )
    assert adjusted_rand_score(truth, clusters) == 1.0
    assert adjusted_rand_score([0, 1, 2], clusters_of(CENTRES.astype(np.float32), model)) == 1.0


def test_clusterings_that_agree_are_balanced_and_follow_the_neighbours_are_worth_most():
    rows, truth = groups(50, 50, 50)
    perfect = worth_of_clusters(rows, [truth, (truth + 1) % 3], 3)
    assert perfect == pytest.approx({"agreement": 1.0, "balance": 1.0, "neighbours": 1.0, "worth": 1.0})


def test_the_numbers_are_those_of_scikit_learn_and_scipy():
    rows, truth = groups(90, 40, 20)
    cut = np.where(truth == 0, np.arange(len(truth)) % 2, truth + 1)
    joined = np.minimum(truth, 1)
    found = worth_of_clusters(rows, [truth, cut, joined], 4)
    pairs = [(truth, cut), (truth, joined), (cut, joined)]
    assert found["agreement"] == pytest.approx(np.mean([adjusted_rand_score(*pair) for pair in pairs]))
    sizes = [np.bincount(each) for each in (truth, cut, joined)]
    assert found["balance"] == pytest.approx(np.mean([entropy(each, base=4) for each in sizes]))
    # Neighbours tell two of the clusterings without an error, and nothing about a group that is cut at random.
    assert 0.5 < found["neighbours"] < 0.9
    assert found["worth"] == pytest.approx((found["agreement"] + found["balance"] + 4 * found["neighbours"]) / 6)
