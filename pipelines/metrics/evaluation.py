"""How well clusters and embeddings agree with known labels: one set of numbers for train, tune, label and report.

Labels are strings, clusters integers, one a row. A contingency table has one row a class and one column a cluster.
"Event" is what `pipelines.metrics.association` calls one: rows of one event never fall on both sides of a split, and
the bootstrap draws whole events.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

CALIBRATION_BINS = 15
"""Bins of the expected calibration error, as in most of its literature."""

Labels = Sequence[str] | NDArray[Any]
Integers = Sequence[int] | NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A score and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    """Precision and recall of one class, and how many rows have it."""

    precision: float
    recall: float
    support: int


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A simple classifier on fixed embeddings."""

    accuracy: float
    balanced_accuracy: float
    rows: NDArray[np.int64]
    """Numbers of the rows scored; none where a split leaves nothing to learn from or to score (the accuracies are then
    NaN)."""
    hits: NDArray[np.bool_]
    """Whether each of `rows` was given its class."""


def contingency(labels: Labels, clusters: Integers) -> tuple[NDArray[np.object_], NDArray[Any], NDArray[np.int64]]:
    """Count rows by class and cluster.

    Returns (classes, clusters, counts): sorted distinct classes (c,), sorted distinct clusters (g,), int64 (c, g).
    """
    classes, class_codes = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
    groups, group_codes = np.unique(np.asarray(clusters), return_inverse=True)
    counts = np.zeros((len(classes), len(groups)), dtype=np.int64)
    np.add.at(counts, (class_codes, group_codes), 1)
    return classes.astype(object), groups, counts


def hungarian_assignment(labels: Labels, clusters: Integers) -> dict[int, str]:
    """Give each cluster at most one class and each class at most one cluster, so that most rows agree."""
    classes, groups, counts = contingency(labels, clusters)
    rows, columns = linear_sum_assignment(counts, maximize=True)
    return {int(groups[column]): str(classes[row]) for row, column in zip(rows, columns, strict=True)}


def majority_assignment(labels: Labels, clusters: Integers) -> dict[int, str]:
    """Give each cluster its most frequent class (ties: the first by name); several clusters may share one."""
    classes, groups, counts = contingency(labels, clusters)
    if not counts.size:
        return {}
    return {int(group): str(classes[row]) for group, row in zip(groups, counts.argmax(axis=0), strict=True)}


def assigned_accuracy(labels: Labels, clusters: Integers, assignment: dict[int, str]) -> float:
    """Return the share of rows whose cluster has been given their class; NaN without rows."""
    names = np.asarray(labels, dtype=str)
    if not len(names):
        return float("nan")
    given = np.array([assignment.get(int(cluster), "") for cluster in clusters], dtype=str)
    has_name = np.array([int(cluster) in assignment for cluster in clusters], dtype=bool)
    return float(np.mean(has_name & (given == names)))


def hungarian_accuracy(labels: Labels, clusters: Integers) -> float:
    """Return the clustering accuracy: the best share of agreeing rows over one-to-one assignments (Kuhn, 1955)."""
    return assigned_accuracy(labels, clusters, hungarian_assignment(labels, clusters))


def purity(labels: Labels, clusters: Integers) -> float:
    """Return the many-to-one purity: the share of rows that have the most frequent class of their cluster."""
    return assigned_accuracy(labels, clusters, majority_assignment(labels, clusters))


def normalized_mutual_information(labels: Labels, clusters: Integers) -> float:
    """Return the normalised mutual information (arithmetic mean of the entropies), 0 to 1."""
    return float(normalized_mutual_info_score(np.asarray(labels, dtype=str), np.asarray(clusters)))


def adjusted_rand_index(first: Labels | Integers, second: Labels | Integers) -> float:
    """Return the Rand index adjusted for chance (Hubert & Arabie, 1985): 1 for equal partitions, about 0 by chance."""
    return float(adjusted_rand_score(np.asarray(first), np.asarray(second)))


def confusion(labels: Labels, predicted: Labels, classes: Sequence[str]) -> NDArray[np.int64]:
    """Count rows by true class and predicted class, both in the order of `classes`; other values are not counted."""
    code = {name: index for index, name in enumerate(classes)}
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
    for label, guess in zip(labels, predicted, strict=True):
        if str(label) in code and str(guess) in code:
            counts[code[str(label)], code[str(guess)]] += 1
    return counts


def class_scores(labels: Labels, predicted: Labels) -> dict[str, ClassScores]:
    """Return precision, recall and support by true class; precision is 0 where a class is never predicted."""
    truth, guess = np.asarray(labels, dtype=str), np.asarray(predicted, dtype=str)
    scores = {}
    for name in np.unique(truth).tolist():
        hits = int(np.sum((truth == name) & (guess == name)))
        scores[name] = ClassScores(
            precision=hits / max(int(np.sum(guess == name)), 1),
            recall=hits / int(np.sum(truth == name)),
            support=int(np.sum(truth == name)),
        )
    return scores


def balanced_accuracy(labels: Labels, predicted: Labels) -> float:
    """Return the mean recall over the true classes; NaN without rows."""
    scores = class_scores(labels, predicted)
    return float(np.mean([score.recall for score in scores.values()])) if scores else float("nan")


def expected_calibration_error(
    confidence: NDArray[Any], hits: NDArray[np.bool_], *, num_bins: int = CALIBRATION_BINS
) -> float:
    """Return how far confidence is from the share of right answers, over bins of equal width (Guo et al. 2017).

    Args:
        confidence: (n,) probabilities.
        hits: (n,) whether each answer is right.
        num_bins: of the confidence from 0 to 1.

    Returns:
        The mean of the bins' absolute differences, weighted by their rows; NaN without rows.
    """
    if not len(hits):
        return float("nan")
    bins = np.clip(np.ceil(np.asarray(confidence, dtype=np.float64) * num_bins) - 1, 0, num_bins - 1).astype(int)
    promised = np.bincount(bins, weights=confidence, minlength=num_bins)
    kept = np.bincount(bins, weights=hits, minlength=num_bins)
    return float(np.abs(promised - kept).sum() / len(hits))


def majority_baseline(labels: Labels) -> float:
    """Return the accuracy of always answering the most frequent class; NaN without rows."""
    _, counts = np.unique(np.asarray(labels, dtype=str), return_counts=True)
    return float(counts.max() / counts.sum()) if len(counts) else float("nan")


def bootstrap_interval(
    score: Callable[[NDArray[np.int64]], float],
    events: Labels | Integers,
    *,
    num_draws: int = 200,
    seed: int = 0,
) -> Interval:
    """Return a score with the 2.5 and 97.5 % quantiles over redrawn events.

    `score` takes row numbers (repeated where an event is drawn twice). `events` names each row's event: whole events
    are drawn with replacement, since the rows of one event are not independent.
    """
    _, codes = np.unique(np.asarray(events), return_inverse=True)
    rows = np.arange(len(codes))
    if not len(rows):
        return Interval(value=float("nan"), low=float("nan"), high=float("nan"))
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], np.arange(codes.max() + 2))
    members = [order[start:end] for start, end in pairwise(starts)]
    random = np.random.default_rng(seed)
    values = [
        score(np.concatenate([members[event] for event in random.integers(0, len(members), len(members))]))
        for _ in range(num_draws)
    ]
    low, high = np.nanquantile(values, [0.025, 0.975])
    return Interval(value=score(rows), low=float(low), high=float(high))


def knn_predict(
    train: NDArray[Any], train_labels: Labels, test: NDArray[Any], *, num_neighbors: int = 15
) -> NDArray[np.object_]:
    """Predict by the most frequent class among the nearest embeddings (cosine distance; ties: the nearest class).

    Arrays are (n, dim). Fewer neighbours are used where fewer training rows exist.
    """
    classes, codes = np.unique(np.asarray(train_labels, dtype=str), return_inverse=True)
    search = NearestNeighbors(n_neighbors=min(num_neighbors, len(codes)), metric="cosine", algorithm="brute")
    neighbors = codes[search.fit(train).kneighbors(test, return_distance=False)]
    votes = np.zeros((len(test), len(classes)))
    # A vote loses a sliver with its rank, so that ties go to the class seen first.
    for rank in range(neighbors.shape[1]):
        votes[np.arange(len(test)), neighbors[:, rank]] += 1.0 - 1e-6 * rank
    return np.asarray(classes[votes.argmax(axis=1)], dtype=object)


def linear_predict(train: NDArray[Any], train_labels: Labels, test: NDArray[Any]) -> NDArray[np.object_]:
    """Predict by multinomial logistic regression on standardised embeddings, (n, dim) each."""
    names = np.asarray(train_labels, dtype=str)
    if len(np.unique(names)) == 1:
        return np.full(len(test), names[0], dtype=object)
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    return np.asarray(probe.fit(train, names).predict(test), dtype=object)


Predict = Callable[[NDArray[Any], Labels, NDArray[Any]], NDArray[np.object_]]


def probe_by_event(predict: Predict, embeddings: NDArray[Any], labels: Labels, validation: NDArray[np.bool_]) -> Probe:
    """Learn from the validation half and score on the test half; the halves hold different events."""
    names = np.asarray(labels, dtype=object)
    if not validation.any() or validation.all():
        return _probe(names, np.zeros(0, dtype=np.int64), names[:0])
    guess = predict(embeddings[validation], names[validation], embeddings[~validation])
    return _probe(names, np.flatnonzero(~validation), guess)


def probe_by_station(
    predict: Predict,
    embeddings: NDArray[Any],
    labels: Labels,
    validation: NDArray[np.bool_],
    stations: Labels,
) -> Probe:
    """Score each station's test half by what the validation half of the other stations teaches.

    Neither the station nor the event of a scored row has been seen; with a single station nothing is scored.
    """
    names, station_of = np.asarray(labels, dtype=object), np.asarray(stations, dtype=str)
    rows, guesses = [np.zeros(0, dtype=np.int64)], [names[:0]]
    for station in np.unique(station_of):
        learn, score = validation & (station_of != station), ~validation & (station_of == station)
        if learn.any() and score.any():
            rows.append(np.flatnonzero(score))
            guesses.append(predict(embeddings[learn], names[learn], embeddings[score]))
    return _probe(names, np.concatenate(rows), np.concatenate(guesses))


def _probe(labels: NDArray[np.object_], rows: NDArray[np.int64], predicted: NDArray[np.object_]) -> Probe:
    hits = np.asarray(labels[rows] == predicted, dtype=bool)
    return Probe(
        accuracy=float(np.mean(hits)) if len(rows) else float("nan"),
        balanced_accuracy=balanced_accuracy(labels[rows], predicted),
        rows=rows,
        hits=hits,
    )
