"""Hand labels on a sample of events, for the scores that choose between trainings; validation half only."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.association import event_names, in_validation, match_event_ids, match_times
from pipelines.config.label import LabelsSettings
from pipelines.evaluation import balanced_accuracy, knn_predict, linear_predict
from pipelines.event_sample import EventSample
from pipelines.label_table import read_label_table


@dataclass(frozen=True, kw_only=True)
class SampleLabels:
    """The labelled events of a sample that lie in the validation half."""

    places: NDArray[np.int64]
    """Places in the sample."""
    labels: NDArray[np.object_]
    """Their labels."""
    folds: NDArray[np.int64]
    """0 or 1: one fold teaches, the other is scored; the triggers of one event share a fold."""


def label_sample(sample: EventSample, settings: LabelsSettings) -> SampleLabels | None:
    """Return the validation half of the configured labels on a sample; None where none is configured or matches.

    Raises:
        InputError: the label table cannot be read or lacks columns.
    """
    if settings.path is None:
        return None
    table = read_label_table(settings.path).rows
    labels = table["label"].tolist()
    if "event_id" in table:
        matches = match_event_ids(sample.event_ids, table["event_id"].tolist(), labels)
    else:
        stations = [_pair(name) for name in sample.stations]
        label_stations = list(zip(table["network"], table["station"], strict=True))
        times = table["time_ns"].to_numpy()
        matches = match_times(stations, sample.onsets, label_stations, times, labels, settings.tolerance_seconds)
    names = event_names(sample.onsets, sample.event_ids, settings.association_seconds)[matches.event_rows]
    chosen = in_validation(names)
    if "split" in table:
        split = table["split"].to_numpy()[matches.label_rows]
        chosen = np.where(pd.isna(split) | (split == ""), chosen, split == "validation").astype(bool)
    if not chosen.any():
        return None
    return SampleLabels(
        places=matches.event_rows[chosen],
        labels=matches.labels[chosen],
        folds=in_validation([f"fold {name}" for name in names[chosen]]).astype(np.int64),
    )


def validation_scores(embeddings: NDArray[np.float32], labels: SampleLabels) -> dict[str, float]:
    """Return balanced accuracies of nearest neighbours and of a linear probe, each fold scored by the other.

    Args:
        embeddings: of the labelled events, in the order of `labels.places`.
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


def _pair(name: str) -> tuple[str, str]:
    network, _, station = name.partition(".")
    return network, station
