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
    Probe,
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
_KNN = "15 nearest neighbours (cosine)"
_LINEAR = "logistic regression"
_BY_EVENT = "learned on the validation half, scored on the test half"
_BY_STATION = "each station's test half by the others' validation half"
_MEAN_RECALL = "the mean of the recalls of the classes"
PROTOCOL = {
    "labelled_events": "events with a hand label, both halves",
    "labelled_events.test": "events with a hand label in the test half",
    "num_classes": "different hand labels",
    "test.majority_baseline": f"share of the most frequent class in the test half; {_HALVES}",
    "test.hungarian_accuracy": "accuracy on the test half of clusters at k = number of classes, each cluster given at "
    "most one class and each class one cluster by the Hungarian method on the validation half",
    "test.purity": "accuracy on the test half of clusters at the k used, each given the majority class of its "
    "validation half; several clusters may have one class",
    "test.balanced_purity": f"as test.purity, {_MEAN_RECALL}",
    "test.nmi": "normalised mutual information of classes and clusters at the k used, test half",
    "test.ari": "adjusted Rand index of classes and clusters at the k used, test half",
    "test.precision": "share of the test half given this class as in test.purity that has it",
    "test.recall": "share of this class in the test half that is given it as in test.purity",
    "test.knn_accuracy": f"{_KNN} {_BY_EVENT}",
    "test.knn_balanced_accuracy": f"{_KNN} {_BY_EVENT}, {_MEAN_RECALL}",
    "test.knn_station_accuracy": f"{_KNN}: {_BY_STATION}",
    "test.knn_station_balanced_accuracy": f"{_KNN}: {_BY_STATION}, {_MEAN_RECALL}",
    "test.linear_accuracy": f"{_LINEAR} {_BY_EVENT}",
    "test.linear_balanced_accuracy": f"{_LINEAR} {_BY_EVENT}, {_MEAN_RECALL}",
    "test.linear_station_accuracy": f"{_LINEAR}: {_BY_STATION}",
    "test.linear_station_balanced_accuracy": f"{_LINEAR}: {_BY_STATION}, {_MEAN_RECALL}",
    "validation.purity": "purity at the k used within the validation half: for searches, never for publication",
    "validation.hungarian_accuracy": "Hungarian accuracy at k = number of classes within the validation half: for "
    "searches, never for publication",
}
"""How each number is made. Intervals are 95 %, from redrawn events."""


def protocol_of(metric: str) -> str:
    """Return how a number of `Scores.metrics` is made, in words."""
    for ending, side in ((".low", "lower"), (".high", "upper")):
        if metric.endswith(ending) and metric.removesuffix(ending) in PROTOCOL:
            return f"{side} end of the 95 % bootstrap interval over events: {PROTOCOL[metric.removesuffix(ending)]}"
    for name in ("test.precision", "test.recall"):
        if metric.startswith(f"{name}."):
            return PROTOCOL[name]
    return PROTOCOL[metric]


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
    clusters = rows.clusters[test]
    redrawn = {
        "test.hungarian_accuracy": (_share(labels == predicted_one), events),
        "test.purity": (_share(labels == predicted), events),
        "test.nmi": (lambda drawn: normalized_mutual_information(labels[drawn], clusters[drawn]), events),
        "test.ari": (lambda drawn: adjusted_rand_index(labels[drawn].astype(str), clusters[drawn]), events),
    }
    probes = _probes(rows, seed)
    for name, (probe, scored_events) in probes.items():
        redrawn[f"test.{name}_accuracy"] = (_share(probe.hits), scored_events)
    intervals = {
        name: bootstrap_interval(score, drawn_events, num_draws=bootstrap_draws, seed=seed)
        for name, (score, drawn_events) in redrawn.items()
    }
    values = {name: interval.value for name, interval in intervals.items()}
    values |= {f"test.{name}_balanced_accuracy": probe.balanced_accuracy for name, (probe, _) in probes.items()}
    several = len(labels) > 0
    values |= {
        "labelled_events": float(len(rows.labels)),
        "labelled_events.test": float(len(labels)),
        "num_classes": float(len(classes)),
        "test.majority_baseline": majority_baseline(labels),
        "test.balanced_purity": float(np.mean([one.recall for one in per_class.values()])) if several else np.nan,
        "validation.purity": assigned_accuracy(rows.labels[validation], rows.clusters[validation], many),
        "validation.hungarian_accuracy": assigned_accuracy(
            rows.labels[validation], rows.clusters_at_classes[validation], one
        ),
    }
    return Scores(
        values=values,
        intervals=intervals,
        classes=classes,
        matrix=confusion(labels, predicted, (*classes, UNASSIGNED))[: len(classes)],
        per_class=per_class,
    )


def _probes(rows: LabelledRows, seed: int) -> dict[str, tuple[Probe, NDArray[np.object_]]]:
    """Return each probe with the events of the rows that it scored."""
    chosen = np.arange(len(rows.labels))
    if len(chosen) > MAX_PROBE_ROWS:
        chosen = np.sort(np.random.default_rng(seed).choice(chosen, MAX_PROBE_ROWS, replace=False))
    embeddings, labels = rows.embeddings[chosen], rows.labels[chosen]
    validation, stations, events = rows.validation[chosen], rows.stations[chosen], rows.events[chosen]
    probes = {}
    for name, predict in (("knn", knn_predict), ("linear", linear_predict)):
        probes[name] = probe_by_event(predict, embeddings, labels, validation)
        probes[f"{name}_station"] = probe_by_station(predict, embeddings, labels, validation, stations)
    return {name: (probe, events[probe.rows]) for name, probe in probes.items()}


def _share(hits: NDArray[np.bool_]) -> Callable[[NDArray[np.int64]], float]:
    return lambda drawn: float(hits[drawn].mean())
