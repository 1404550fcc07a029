"""All numbers that say how well a clustering and its embeddings agree with hand labels, and the protocol in words.

Assignments of clusters to classes, and probes, are learned on the validation half of the labelled events and scored on
the test half, so that no number is tuned on what it is measured with.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluation import (
    ClassScores,
    Interval,
    adjusted_rand_index,
    assigned_accuracy,
    bootstrap_interval,
    class_scores,
    confusion,
    hungarian_assignment,
    knn_predict,
    linear_predict,
    majority_assignment,
    majority_baseline,
    normalized_mutual_information,
    probe_by_event,
    probe_by_station,
)

MAX_PROBE_ROWS = 20_000
"""Most labelled events that probes learn from and score."""

UNASSIGNED = "(none)"
"""Stands in the confusion matrix for a cluster to which the validation half gives no class."""


@dataclass(frozen=True, kw_only=True)
class LabelledRows:
    """Events with a hand label, in one order."""

    labels: NDArray[np.object_]
    clusters: NDArray[np.int32]
    """At the k used."""
    clusters_at_classes: NDArray[np.int32]
    """At k = number of classes; equal to `clusters` where that is the k used."""
    embeddings: NDArray[np.float32]
    stations: NDArray[np.object_]
    events: NDArray[np.object_]
    """Name of the associated event that each belongs to."""
    validation: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of a labelling; each has its protocol in `PROTOCOL` under the same name."""

    values: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, Interval] = field(default_factory=dict)
    """Those of `values` that have a bootstrap interval."""
    classes: tuple[str, ...] = ()
    matrix: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 0), dtype=np.int64))
    """Test half: rows true classes, columns the class given to the event's cluster, the last column none."""
    per_class: dict[str, ClassScores] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """Return all numbers under flat names, those that are NaN left out."""
        flat = dict(self.values)
        for name, interval in self.intervals.items():
            flat |= {f"{name}.low": interval.low, f"{name}.high": interval.high}
        for name, scores in self.per_class.items():
            flat |= {f"test.precision.{name}": scores.precision, f"test.recall.{name}": scores.recall}
        return {name: float(value) for name, value in flat.items() if np.isfinite(value)}


_HALVES = "events (triggers of all stations within the association time) are split by a hash of the event's name"
PROTOCOL = {
    "test.majority_baseline": f"share of the most frequent class in the test half; {_HALVES}",
    "test.hungarian_accuracy": "accuracy on the test half of clusters at k = number of classes, each cluster given at "
    "most one class and each class one cluster by the Hungarian method on the validation half",
    "test.purity": "accuracy on the test half of clusters at the k used, each given the majority class of its "
    "validation half; several clusters may have one class",
    "test.balanced_purity": "as test.purity, the mean of the recalls of the classes",
    "test.nmi": "normalised mutual information of classes and clusters at the k used, test half",
    "test.ari": "adjusted Rand index of classes and clusters at the k used, test half",
    "test.knn_accuracy": "15 nearest neighbours (cosine) learned on the validation half, scored on the test half",
    "test.linear_accuracy": "logistic regression learned on the validation half, scored on the test half",
    "test.knn_station_accuracy": "15 nearest neighbours: each station's test half by the others' validation half",
    "test.linear_station_accuracy": "logistic regression: each station's test half by the others' validation half",
    "validation.purity": "purity at the k used within the validation half: for searches, never for publication",
    "validation.hungarian_accuracy": "Hungarian accuracy at k = number of classes within the validation half: for "
    "searches, never for publication",
}
"""How each number is made. Intervals are 95 %, from redrawn events."""


def score_labelling(rows: LabelledRows, *, bootstrap_draws: int = 200, seed: int = 0) -> Scores:
    """Score clusters and embeddings against hand labels; what cannot be computed is NaN."""
    validation, test = rows.validation, ~rows.validation
    labels, events = rows.labels[test], rows.events[test]
    many = majority_assignment(rows.labels[validation], rows.clusters[validation])
    one = hungarian_assignment(rows.labels[validation], rows.clusters_at_classes[validation])
    predicted = np.array([many.get(int(cluster), UNASSIGNED) for cluster in rows.clusters[test]], dtype=object)
    predicted_one = np.array([one.get(int(cluster), UNASSIGNED) for cluster in rows.clusters_at_classes[test]], object)
    classes = tuple(sorted({str(label) for label in rows.labels}))
    per_class = class_scores(labels, predicted)
    intervals = {
        name: bootstrap_interval(_accuracy(labels, guess), events, num_draws=bootstrap_draws, seed=seed)
        for name, guess in (("test.hungarian_accuracy", predicted_one), ("test.purity", predicted))
    }
    values = {name: interval.value for name, interval in intervals.items()}
    several = len(labels) > 0
    values |= {
        "labelled_events": float(len(rows.labels)),
        "labelled_events.test": float(len(labels)),
        "num_classes": float(len(classes)),
        "test.majority_baseline": majority_baseline(labels),
        "test.balanced_purity": float(np.mean([one.recall for one in per_class.values()])) if several else np.nan,
        "test.nmi": normalized_mutual_information(labels, rows.clusters[test]) if several else np.nan,
        "test.ari": adjusted_rand_index(labels.astype(str), rows.clusters[test]) if several else np.nan,
        "validation.purity": assigned_accuracy(rows.labels[validation], rows.clusters[validation], many),
        "validation.hungarian_accuracy": assigned_accuracy(
            rows.labels[validation], rows.clusters_at_classes[validation], one
        ),
    }
    return Scores(
        values=values | _probes(rows, seed),
        intervals=intervals,
        classes=classes,
        matrix=confusion(labels, predicted, (*classes, UNASSIGNED))[: len(classes)],
        per_class=per_class,
    )


def _probes(rows: LabelledRows, seed: int) -> dict[str, float]:
    chosen = np.arange(len(rows.labels))
    if len(chosen) > MAX_PROBE_ROWS:
        chosen = np.sort(np.random.default_rng(seed).choice(chosen, MAX_PROBE_ROWS, replace=False))
    embeddings, labels = rows.embeddings[chosen], rows.labels[chosen]
    validation, stations = rows.validation[chosen], rows.stations[chosen]
    values: dict[str, float] = {}
    for name, predict in (("knn", knn_predict), ("linear", linear_predict)):
        by_event = probe_by_event(predict, embeddings, labels, validation)
        by_station = probe_by_station(predict, embeddings, labels, validation, stations)
        values |= {
            f"test.{name}_accuracy": by_event.accuracy,
            f"test.{name}_balanced_accuracy": by_event.balanced_accuracy,
            f"test.{name}_station_accuracy": by_station.accuracy,
            f"test.{name}_station_balanced_accuracy": by_station.balanced_accuracy,
        }
    return values


def _accuracy(labels: NDArray[np.object_], predicted: NDArray[np.object_]) -> Callable[[NDArray[np.int64]], float]:
    hits = labels == predicted
    return lambda rows: float(hits[rows].mean())
