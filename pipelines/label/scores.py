"""All numbers that say how well a clustering and its embeddings agree with hand labels, and the protocol in words.

Assignments of clusters to classes, and probes, are learned on the validation half of the labelled events and scored on
the test half, so that no number is tuned on what it is measured with.
"""

import hashlib
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipelines.metrics.evaluation import (
    CALIBRATION_BINS,
    ClassScores,
    Interval,
    Probe,
    adjusted_rand_index,
    assigned_accuracy,
    balanced_accuracy,
    bootstrap_interval,
    class_scores,
    confusion,
    expected_calibration_error,
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
"""Heads the confusion matrix's column of clusters to which the validation half gives no class."""

_NO_CLASS = ""
"""What such a cluster's events are given; no hand label is empty."""

_MAX_NAME_CHARS = 200
"""Most characters of a class in a metric's name; MLflow takes 250 in all."""


@dataclass(frozen=True, kw_only=True)
class LabelledRows:
    """Events with a hand label, in one order."""

    labels: NDArray[np.object_]
    clusters: NDArray[np.int32]
    """At the k used."""
    clusters_at_classes: NDArray[np.int32] | None
    """At k = number of classes; None where there is no such clustering."""
    probed: NDArray[np.int64]
    """Numbers of the rows that probes learn from and score (see probe_sample)."""
    embeddings: NDArray[np.float32]
    """Of the rows `probed`, in their order."""
    stations: NDArray[np.object_]
    events: NDArray[np.object_]
    """Name of the associated event that each belongs to."""
    validation: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Propagated:
    """Events of the test half, and what a classifier that has learned from none of them says."""

    labels: NDArray[np.object_]
    """Hand labels."""
    given: NDArray[np.object_]
    """The classifier's."""
    confidence: NDArray[np.float32]
    """Its probabilities of these."""
    events: NDArray[np.object_]
    """Name of the associated event that each belongs to."""


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
        """Return all numbers under flat names that MLflow takes, those that are NaN left out."""
        flat = dict(self.values)
        for name, interval in self.intervals.items():
            flat |= {f"{name}.low": interval.low, f"{name}.high": interval.high}
        for name, scores in self.per_class.items():
            ending = metric_ending(name)
            flat |= {f"test.precision.{ending}": scores.precision, f"test.recall.{ending}": scores.recall}
        return {name: float(value) for name, value in flat.items() if np.isfinite(value)}


_HALVES = "events (triggers of all stations within the association time) are split by a hash of the event's name"
_SAMPLE = f"on the embeddings of the labelled events, a random {MAX_PROBE_ROWS:,} of them where there are more"
_KNN = f"15 nearest neighbours (cosine) {_SAMPLE}"
_LINEAR = f"logistic regression {_SAMPLE}"
_BY_EVENT = "learned on the validation half, scored on the test half"
_BY_STATION = "each station's test half by the others' validation half"
_PROPAGATED = (
    "labels of the test half propagated by a classifier that is fitted and calibrated like the one that writes "
)
_PROPAGATED += "labels/, but to the validation half alone"
_MEAN_RECALL = "the mean of the recalls of the classes"
PROTOCOL = {
    "inertia": "sum of the squared distances of the fitted events to their nearest centroid, in the space of the "
    "clustering and before over-clusters are merged: comparable where encoder, space and kmeans.overcluster are equal",
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
    "test.knn_accuracy": f"{_KNN}: {_BY_EVENT}",
    "test.knn_balanced_accuracy": f"as test.knn_accuracy, {_MEAN_RECALL}",
    "test.knn_station_accuracy": f"{_KNN}: {_BY_STATION}",
    "test.knn_station_balanced_accuracy": f"as test.knn_station_accuracy, {_MEAN_RECALL}",
    "test.linear_accuracy": f"{_LINEAR}: {_BY_EVENT}",
    "test.linear_balanced_accuracy": f"as test.linear_accuracy, {_MEAN_RECALL}",
    "test.linear_station_accuracy": f"{_LINEAR}: {_BY_STATION}",
    "test.linear_station_balanced_accuracy": f"as test.linear_station_accuracy, {_MEAN_RECALL}",
    "test.propagated_accuracy": f"accuracy of {_PROPAGATED}",
    "test.propagated_balanced_accuracy": f"as test.propagated_accuracy, {_MEAN_RECALL}",
    "test.propagated_calibration_error": "expected calibration error, the mean difference between confidence and "
    f"accuracy over {CALIBRATION_BINS} bins, of {_PROPAGATED}",
    "validation.purity": "purity at the k used within the validation half: for searches, never for publication",
    "validation.hungarian_accuracy": "Hungarian accuracy at k = number of classes within the validation half: for "
    "searches, never for publication",
}
"""How each number is made. Intervals are 95 %, from redrawn events."""

PROPAGATED = tuple(name for name in PROTOCOL if name.startswith("test.propagated_"))
"""Numbers of propagated labels."""

PER_CLASS = ("test.precision", "test.recall")
"""Numbers that each class has of its own, named `<number>.<metric_ending of the class>`."""


def protocol_of(metric: str) -> str:
    """Return how a number of `Scores.metrics` is made, in words."""
    for name in PER_CLASS:
        if metric.startswith(f"{name}."):
            return PROTOCOL[name]
    for ending, side in ((".low", "lower"), (".high", "upper")):
        if metric.endswith(ending):
            return f"{side} end of the 95 % bootstrap interval over events: {PROTOCOL[metric.removesuffix(ending)]}"
    return PROTOCOL[metric]


def describe_scores(scores: Scores, *, max_chars: int) -> str:
    """Return a list of the numbers, each with its interval and how it is made; what is too long ends with a pointer."""
    metrics = scores.metrics()
    lines = [
        f"- {name} = {metrics[name]:.4f}{_brackets(metrics, name)}: {PROTOCOL[name]}"
        for name in PROTOCOL
        if name in metrics
    ]
    for name in PER_CLASS:
        values = [f"{key.removeprefix(f'{name}.')} {metrics[key]:.4f}" for key in metrics if key.startswith(f"{name}.")]
        lines.append(f"- {name} ({PROTOCOL[name]}): {', '.join(values) or 'not available'}")
    text = "\n".join([*lines, "", "[low, high]: 95 % bootstrap interval over events"])
    if len(text) <= max_chars:
        return text
    pointer = "\n... the other numbers are in scores/protocol.txt"
    return text[: text.rindex(" ", 0, max_chars - len(pointer))] + pointer


def _brackets(metrics: Mapping[str, float], name: str) -> str:
    if f"{name}.low" not in metrics:
        return ""
    return f" [{metrics[f'{name}.low']:.4f}, {metrics[f'{name}.high']:.4f}]"


def metric_ending(name: str) -> str:
    """Return a class's name as the ending of a metric's: other characters than MLflow takes become `.<hex code>.`.

    Different classes have different endings. Of a very long name the beginning and a hash are left.
    """
    ending = "".join(char if re.match(r"[\w -]", char) else f".{ord(char):x}." for char in name)
    if len(ending) > _MAX_NAME_CHARS:
        ending = f"{ending[: _MAX_NAME_CHARS - 17]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return ending


def class_of(ending: str) -> str:
    """Return the class's name that `metric_ending` turned into an ending."""
    return re.sub(r"\.([0-9a-f]+)\.", lambda code: chr(int(code[1], 16)), ending)


def probe_sample(event_ids: Collection[str], *, seed: int) -> list[str]:
    """Return the labelled events that probes learn from and score, sorted: all, or MAX_PROBE_ROWS drawn of them."""
    ids = sorted(event_ids)
    if len(ids) <= MAX_PROBE_ROWS:
        return ids
    drawn = np.sort(np.random.default_rng(seed).choice(len(ids), MAX_PROBE_ROWS, replace=False))
    return [ids[row] for row in drawn]


def score_labelling(
    rows: LabelledRows, propagated: Propagated | None = None, *, bootstrap_draws: int = 200, seed: int = 0
) -> Scores:
    """Score clusters, embeddings and propagated labels against hand labels; what cannot be computed is NaN."""
    validation, test = rows.validation, ~rows.validation
    labels, events = rows.labels[test], rows.events[test]
    many = majority_assignment(rows.labels[validation], rows.clusters[validation])
    predicted = _given(many, rows.clusters[test])
    classes = tuple(sorted({str(label) for label in rows.labels}))
    per_class = class_scores(labels, predicted)
    clusters = rows.clusters[test]
    redrawn = {
        "test.purity": (_share(labels == predicted), events),
        "test.nmi": (lambda drawn: normalized_mutual_information(labels[drawn], clusters[drawn]), events),
        "test.ari": (lambda drawn: adjusted_rand_index(labels[drawn].astype(str), clusters[drawn]), events),
    }
    validation_hungarian = np.nan
    if rows.clusters_at_classes is not None:
        at_classes = rows.clusters_at_classes
        one = hungarian_assignment(rows.labels[validation], at_classes[validation])
        redrawn["test.hungarian_accuracy"] = (_share(labels == _given(one, at_classes[test])), events)
        validation_hungarian = assigned_accuracy(rows.labels[validation], at_classes[validation], one)
    probes = _probes(rows)
    for name, (probe, scored_events) in probes.items():
        redrawn[f"test.{name}_accuracy"] = (_share(probe.hits), scored_events)
    if propagated is not None:
        redrawn["test.propagated_accuracy"] = (_share(propagated.labels == propagated.given), propagated.events)
    intervals = {
        name: bootstrap_interval(score, drawn_events, num_draws=bootstrap_draws, seed=seed)
        for name, (score, drawn_events) in redrawn.items()
    }
    values = {name: interval.value for name, interval in intervals.items()}
    values |= {f"test.{name}_balanced_accuracy": probe.balanced_accuracy for name, (probe, _) in probes.items()}
    if propagated is not None:
        hits = np.asarray(propagated.labels == propagated.given, dtype=bool)
        values["test.propagated_balanced_accuracy"] = balanced_accuracy(propagated.labels, propagated.given)
        values["test.propagated_calibration_error"] = expected_calibration_error(propagated.confidence, hits)
    several = len(labels) > 0
    values |= {
        "labelled_events": float(len(rows.labels)),
        "labelled_events.test": float(len(labels)),
        "num_classes": float(len(classes)),
        "test.majority_baseline": majority_baseline(labels),
        "test.balanced_purity": float(np.mean([one.recall for one in per_class.values()])) if several else np.nan,
        "validation.purity": assigned_accuracy(rows.labels[validation], rows.clusters[validation], many),
        "validation.hungarian_accuracy": validation_hungarian,
    }
    return Scores(
        values=values,
        intervals=intervals,
        classes=classes,
        matrix=confusion(labels, predicted, (*classes, _NO_CLASS))[: len(classes)],
        per_class=per_class,
    )


def _given(assignment: Mapping[int, str], clusters: NDArray[np.int32]) -> NDArray[np.object_]:
    return np.array([assignment.get(int(cluster), _NO_CLASS) for cluster in clusters], dtype=object)


def _probes(rows: LabelledRows) -> dict[str, tuple[Probe, NDArray[np.object_]]]:
    """Return each probe with the events of the rows that it scored."""
    chosen = rows.probed
    embeddings, labels = rows.embeddings, rows.labels[chosen]
    validation, stations, events = rows.validation[chosen], rows.stations[chosen], rows.events[chosen]
    probes = {}
    for name, predict in (("knn", knn_predict), ("linear", linear_predict)):
        probes[name] = probe_by_event(predict, embeddings, labels, validation)
        probes[f"{name}_station"] = probe_by_station(predict, embeddings, labels, validation, stations)
    return {name: (probe, events[probe.rows]) for name, probe in probes.items()}


def _share(hits: NDArray[np.bool_]) -> Callable[[NDArray[np.int64]], float]:
    return lambda drawn: float(hits[drawn].mean())
