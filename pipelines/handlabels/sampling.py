"""Hand labels on a sample of events, for the scores that choose between trainings; validation half only."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.config.label import LabelsSettings
from pipelines.handlabels.halves import in_validation
from pipelines.handlabels.matching import HandLabels, match_hand_labels
from pipelines.handlabels.table import read_label_table
from pipelines.metrics.evaluation import balanced_accuracy, knn_predict, linear_predict
from pipelines.workspace.event_sample import READERS, EventSample
from pipelines.workspace.storage import Store


@dataclass(frozen=True, kw_only=True)
class SampleLabels:
    """The labelled events of a sample that lie in the validation half."""

    indices: NDArray[np.int64]
    """Of the events in the sample."""
    labels: NDArray[np.object_]
    """Their labels."""
    folds: NDArray[np.int64]
    """0 or 1: each fold is scored by a model of the other; the triggers of one event are in one fold."""


def label_sample(store: Store, sample: EventSample, settings: LabelsSettings) -> SampleLabels | None:
    """Return the validation half of the configured labels on a sample; None where none is configured or in it.

    Labels are matched, and events associated, over the whole events table: in a sample without its first trigger, an
    event would get another name, and perhaps the other half.

    Raises:
        InputError: the label table cannot be read, lacks columns or matches no event.
    """
    hand = hand_labels_of_sample(store, sample, settings)
    if hand is None:
        return None
    indices = [index for index, event_id in enumerate(sample.event_ids) if hand.validation.get(event_id, False)]
    if not indices:
        return None
    ids = [sample.event_ids[index] for index in indices]
    return SampleLabels(
        indices=np.array(indices, dtype=np.int64),
        labels=np.array([hand.label_of[event_id] for event_id in ids], dtype=object),
        folds=in_validation([f"fold {hand.event_of[event_id]}" for event_id in ids]).astype(np.int64),
    )


def labels_of_sample(store: Store, sample: EventSample, settings: LabelsSettings) -> dict[str, str]:
    """Return the configured hand labels of the whole table by event id, both halves; InputError as `label_sample`."""
    hand = hand_labels_of_sample(store, sample, settings)
    return {} if hand is None else dict(hand.label_of)


def hand_labels_of_sample(store: Store, sample: EventSample, settings: LabelsSettings) -> HandLabels | None:
    """Return the configured hand labels, matched to the whole table; None without any. InputError as `label_sample`."""
    if settings.path is None:
        return None
    return match_hand_labels(store, sample.paths, settings, read_label_table(settings.path), _run_on_threads)


def validation_scores(embeddings: NDArray[np.float32], labels: SampleLabels) -> dict[str, float]:
    """Return balanced accuracies of nearest neighbours and of a linear probe, each fold scored by a model of the other.

    Args:
        embeddings: of the labelled events, in the order of `labels.indices`.
        labels: of the sample's validation half.

    Returns:
        validation_knn and validation_linear; empty where a fold is empty.
    """
    if len(np.unique(labels.folds)) < 2:
        return {}
    scores = {}
    for name, predict in (("validation_knn", knn_predict), ("validation_linear", linear_predict)):
        guess = np.empty(len(embeddings), dtype=object)
        for fold in (0, 1):
            learn, score = labels.folds != fold, labels.folds == fold
            guess[score] = predict(embeddings[learn], labels.labels[learn], embeddings[score])
        scores[name] = balanced_accuracy(labels.labels, guess)
    return scores


def _run_on_threads(work: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]) -> list[Any]:
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(lambda arguments: work(*arguments), tasks))
