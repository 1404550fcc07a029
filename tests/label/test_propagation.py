"""The classifier that carries labels on: scikit-learn's, with a probability that is kept."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from pipelines.label.propagation import STRENGTHS, _folds, classify, fit_classifier, standardisation, too_few
from pipelines.metrics.evaluation import expected_calibration_error


def classes_of(num_rows: int, seed: int, num_classes: int = 3, spread: float = 1.6) -> tuple[np.ndarray, np.ndarray]:
    """Return rows (n, 6) of Gaussian classes that overlap, and their names."""
    random = np.random.default_rng(seed)
    codes = random.choice(
        num_classes, num_rows, p=np.array([0.6, 0.3, 0.1])[:num_classes] / sum([0.6, 0.3, 0.1][:num_classes])
    )
    rows = 3.0 * np.eye(6)[codes] + spread * random.normal(size=(num_rows, 6))
    return rows.astype(np.float32), np.array(["earthquake", "icequake", "spike"])[codes]


def names_of(num_rows: int) -> list[str]:
    return [f"event {number}" for number in range(num_rows)]


@pytest.mark.parametrize("num_classes", [2, 3])
def test_answers_are_those_of_logistic_regression_at_the_chosen_strength_and_temperature(num_classes):
    rows, labels = classes_of(400, 1, num_classes)
    mean, scale = standardisation(rows)
    found = fit_classifier(rows, labels, names_of(400), mean, scale)
    scaler = StandardScaler(with_std=False).fit(rows.astype(np.float64))
    scaled = scaler.transform(rows.astype(np.float64)) / np.sqrt(rows.astype(np.float64).var(axis=0).mean())
    model = LogisticRegression(C=found.strength, max_iter=1000).fit(scaled, labels)
    logits = model.decision_function(scaled)
    if num_classes == 2:
        logits = np.stack([np.zeros(400), logits], axis=1)
    expected = softmax(logits / found.temperature, axis=1)
    codes, confidence = classify(found, rows)
    assert found.classes == tuple(model.classes_)
    assert codes.tolist() == expected.argmax(axis=1).tolist()
    np.testing.assert_allclose(confidence, expected.max(axis=1), rtol=1e-5)
    assert (found.num_labels, found.strength in STRENGTHS) == (400, True)


@pytest.mark.parametrize("num_labels", [100, 400])
def test_a_confidence_is_the_share_of_right_answers(num_labels):
    seen, unseen = classes_of(num_labels, 2), classes_of(20_000, 3)
    found = fit_classifier(*seen, names_of(num_labels), *standardisation(unseen[0]))
    codes, confidence = classify(found, unseen[0])
    hits = np.array(found.classes)[codes] == unseen[1]
    assert 0.7 < hits.mean() < 0.95
    assert expected_calibration_error(confidence, hits) <= 0.05


def test_a_few_labels_that_are_told_apart_do_not_make_answers_certain():
    rows, labels = classes_of(20, 4, spread=0.3)
    found = fit_classifier(rows, labels, names_of(20), *standardisation(rows))
    codes, confidence = classify(found, rows)
    assert np.array(found.classes)[codes].tolist() == labels.tolist()
    assert 0.8 < np.median(confidence) < 0.999


def test_the_same_labels_give_the_same_bits_in_any_process_and_chunk():
    rows, labels = classes_of(200, 5)
    first, other = (fit_classifier(rows, labels, names_of(200), *standardisation(rows)) for _ in range(2))
    assert np.array_equal(first.weights, other.weights)
    assert (first.strength, first.temperature) == (other.strength, other.temperature)
    assert np.array_equal(classify(first, rows)[1], classify(other, rows)[1])


def test_triggers_of_an_event_are_in_one_fold_and_classes_in_all():
    events = [f"event {number // 3}" for number in range(300)]
    codes = (np.arange(300) // 3) % 4
    folds = _folds(codes, events)
    assert all(len(set(folds[start : start + 3].tolist())) == 1 for start in range(0, 300, 3))
    assert all(np.bincount(folds[codes == code]).tolist() == [15] * 5 for code in range(4))


def test_a_class_of_one_event_is_learned_though_no_fold_can_tell_it():
    rows, labels = classes_of(60, 6, 2)
    rows, labels = np.append(rows, [[9, 9, 9, 9, 9, 9]], axis=0), np.append(labels, "tremor")
    found = fit_classifier(rows, labels, names_of(61), *standardisation(rows))
    assert found.classes == ("earthquake", "icequake", "tremor")


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([], "they are of no class"),
        (["a"] * 30, "they are of one class only"),
        (["a"] * 29 + ["b"], "fewer than two classes have two labelled events"),
        (["a"] * 4 + ["b"] * 5, "they are 9, fewer than 10"),
        (["a"] * 5 + ["b"] * 5, None),
    ],
)
def test_too_few_labels_are_said_to_be(labels, said):
    assert too_few(labels, names_of(len(labels))) == said


def test_two_triggers_of_one_event_are_one():
    assert (
        too_few(["a"] * 20 + ["b"] * 2, [*names_of(20), "x", "x"]) == "fewer than two classes have two labelled events"
    )
