"""Which classifier carries hand labels to the other events: the one of an earlier run, or a new one, which is kept.

Two are fitted in the same way. The one that writes `labels/` learns from all hand labels, of both halves, since an
observatory wants what it knows to be used. The published numbers are those of the other, which learns from the
validation half alone and is scored on the test half.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.config import Config
from pipelines.handlabels.matching import HandLabels
from pipelines.handlabels.table import LabelTable
from pipelines.label.propagation import Classifier, classify, fit_classifier, standardisation, too_few
from pipelines.label.scores import Propagated
from pipelines.label.space import Space, to_space
from pipelines.label.stage_count import Labelled
from pipelines.runtime.errors import InputError
from pipelines.runtime.text import counted
from pipelines.tracking.runs import StageRun
from pipelines.workspace import tables
from pipelines.workspace.artifacts import FittedClassifier, LabelPropagation
from pipelines.workspace.event_sample import choose_events
from pipelines.workspace.ledger import fingerprint
from pipelines.workspace.storage import Store, content_hash

ALGORITHM_VERSION = 2
"""Raised by hand when the same hand labels and embeddings give another classifier."""

MAX_STANDARDISED = 20_000
"""Events, with or without a label, whose spread standardises the points."""


@dataclass(frozen=True, kw_only=True)
class Propagation:
    """What carries labels to the events without one."""

    writes: Classifier
    """Fitted to all hand labels."""
    scored: Classifier | None
    """Fitted to the validation half in the same way; None where that has too few labels."""
    mark: str
    """Changes with every row that the classifier may change."""


def check_propagation(config: Config, table: LabelTable | None) -> None:
    """Refuse to carry labels on where there are none, or of one class only.

    Raises:
        InputError: names the key.
    """
    if config.label.propagate == "none":
        return
    if table is None:
        raise InputError(
            f"label.propagate is {config.label.propagate}, but there are no hand labels to carry on; give labels.path"
        )
    if table.rows["label"].nunique() < 2:
        raise _cannot(config, "they are of one class only")


def check_hand_labels(config: Config, hand: HandLabels | None) -> None:
    """Refuse to carry on hand labels, matched to events, that are too few.

    Raises:
        InputError: says why.
    """
    if config.label.propagate == "none" or hand is None:
        return
    ids = list(hand.label_of)
    reason = too_few([hand.label_of[each] for each in ids], [hand.event_of[each] for each in ids])
    if reason is not None:
        raise _cannot(config, reason)


def _cannot(config: Config, reason: str) -> InputError:
    return InputError(
        f"label.propagate {config.label.propagate} cannot learn from the hand labels of {config.labels.path}: "
        f"{reason}; label more events (`firnline suggest` names them), or use label.propagate none"
    )


def find_propagation(
    store: Store,
    config: Config,
    fit: str,
    space: Space,
    hand: HandLabels,
    labelled: Labelled,
) -> Propagation:
    """Return what carries labels on: as kept by an earlier run with the same labels and fit, else fitted and kept.

    Args:
        store, config: whose labels, and how.
        fit: content hash of the fit, whatever `label.cut` makes of it.
        space: of the clustering.
        hand, labelled: the labels, and the events with their embeddings.
    """
    settings = config.labels.output_keys()
    names = {name: settings[name] for name in ("tolerance_seconds", "association_seconds")}
    found = {"method": config.label.propagate, "fit": fit, "labels": hand.content_hash, "seed": config.kmeans.seed}
    ground = fingerprint(names | found | {"algorithm_version": ALGORITHM_VERSION})
    record = _read(store)
    if record is None or record.ground != ground or len(record.mean) != space.num_dims(labelled.embeddings.shape[1]):
        record = _fit(store, config, ground, space, hand, labelled)
        record.write(store)
    mean, scale = np.array(record.mean), np.array(record.scale)
    writes = _classifier(record.writes, mean, scale)
    return Propagation(
        writes=writes,
        scored=None if record.scored is None else _classifier(record.scored, mean, scale),
        mark=content_hash(record.model_dump_json(include={"mean", "scale", "writes"}).encode()),
    )


def forget_propagation(store: Store) -> None:
    """Remove the classifier of an earlier run."""
    store.remove(LabelPropagation.PATH)


def log_propagation(run: StageRun, propagation: Propagation) -> None:
    """Print and log what the classifier that writes `labels/` is."""
    found = propagation.writes
    run.log_metrics(
        {
            "propagation.labels": float(found.num_labels),
            "propagation.strength": found.strength,
            "propagation.temperature": found.temperature,
        }
    )
    print(
        f"label: {counted(found.num_labels, 'hand label')} of {len(found.classes)} classes label the other events "
        f"(logistic regression, C = {found.strength:g}, temperature {found.temperature:.2f})",
        flush=True,
    )


def propagated_labels(
    propagation: Propagation | None, space: Space, hand: HandLabels, labelled: Labelled
) -> Propagated | None:
    """Return what the classifier that has not seen them answers to the events of the test half; None without one."""
    if propagation is None or propagation.scored is None:
        return None
    ids = labelled.event_ids[labelled.probed]
    test = ~np.array([hand.validation[each] for each in ids], dtype=bool)
    if not test.any():
        return None
    codes, confidence = classify(propagation.scored, to_space(labelled.embeddings[test], space))
    return Propagated(
        labels=np.array([hand.label_of[each] for each in ids[test]], dtype=object),
        given=np.array(propagation.scored.classes, dtype=object)[codes],
        confidence=confidence,
        events=np.array([hand.event_of[each] for each in ids[test]], dtype=object),
    )


def _fit(
    store: Store, config: Config, ground: str, space: Space, hand: HandLabels, labelled: Labelled
) -> LabelPropagation:
    ids = labelled.event_ids[labelled.probed]
    points = to_space(labelled.embeddings, space)
    labels = np.array([hand.label_of[each] for each in ids], dtype=object)
    events = np.array([hand.event_of[each] for each in ids], dtype=object)
    validation = np.array([hand.validation[each] for each in ids], dtype=bool)
    mean, scale = standardisation(_sample(store, space, config.kmeans.seed))

    def fitted(rows: NDArray[np.bool_]) -> FittedClassifier | None:
        if too_few(labels[rows], events[rows]) is not None:
            return None
        return _record(fit_classifier(points[rows], labels[rows], events[rows], mean, scale))

    everything = np.ones(len(ids), dtype=bool)
    writes, scored = fitted(everything), fitted(validation)
    if writes is None:
        raise _cannot(config, str(too_few(labels, events)))
    if scored is None:
        half = counted(int(validation.sum()), "label")
        print(
            f"label: no score of the propagated labels, since a classifier of the validation half ({half}) cannot be "
            f"fitted: {too_few(labels[validation], events[validation])}",
            flush=True,
        )
    return LabelPropagation(
        ground=ground, mean=tuple(mean.tolist()), scale=tuple(scale.tolist()), writes=writes, scored=scored
    )


def _sample(store: Store, space: Space, seed: int) -> NDArray[np.float32]:
    """Return the points of a sample of events, with or without label, in the order of their ids."""
    sample = choose_events(store, max_events=MAX_STANDARDISED, seed=seed)
    parts: list[NDArray[np.float32]] = []
    order: list[int] = []
    for path, rows, indices in sample.by_file(range(len(sample))):
        table = tables.read_rows(store, path.replace("events/", "embeddings/", 1), rows, ["embedding"])
        parts.append(tables.embeddings(table.column("embedding")))
        order += indices
    return np.asarray(to_space(np.concatenate(parts)[np.argsort(order)], space))


def _read(store: Store) -> LabelPropagation | None:
    try:
        return LabelPropagation.read(store)
    except InputError:
        # It is made again.
        return None


def _record(classifier: Classifier) -> FittedClassifier:
    return FittedClassifier(
        classes=classifier.classes,
        weights=tuple(tuple(row) for row in classifier.weights.tolist()),
        intercepts=tuple(classifier.intercepts.tolist()),
        strength=classifier.strength,
        temperature=classifier.temperature,
        num_labels=classifier.num_labels,
    )


def _classifier(record: FittedClassifier, mean: NDArray[np.float64], scale: NDArray[np.float64]) -> Classifier:
    return Classifier(
        classes=record.classes,
        mean=mean,
        scale=scale,
        weights=np.array(record.weights),
        intercepts=np.array(record.intercepts),
        strength=record.strength,
        temperature=record.temperature,
        num_labels=record.num_labels,
    )
