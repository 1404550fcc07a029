"""Hand labels on a sample of events, for the scores that choose between trainings; validation half only."""

import io
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.association import event_names, in_validation, match_event_ids, match_times
from pipelines.config.label import LabelsSettings
from pipelines.errors import InputError
from pipelines.evaluation import balanced_accuracy, knn_predict, linear_predict
from pipelines.event_sample import EventSample
from pipelines.storage import open_parent, open_store

_TIMED = {"network", "station", "time", "label"}


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
    table = read_labels(settings.path)
    labels = table["label"].astype(str).tolist()
    if "event_id" in table:
        matches = match_event_ids(sample.event_ids, table["event_id"].astype(str).tolist(), labels)
    else:
        try:
            times = pd.to_datetime(table["time"], utc=True).dt.as_unit("ns").astype("int64").to_numpy().astype(np.int64)
        except (ValueError, TypeError) as error:
            raise InputError(f"labels.path {settings.path} has a time that is none: {error}") from None
        stations = [_pair(name) for name in sample.stations]
        label_stations = list(zip(table["network"].astype(str), table["station"].astype(str), strict=True))
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


def read_labels(path: str) -> pd.DataFrame:
    """Return a label table, from one CSV or Parquet file or a folder of them, without rows that lack a label.

    Raises:
        InputError: it cannot be read or lacks columns.
    """
    is_file = path.endswith((".csv", ".parquet"))
    store, name = open_parent(path) if is_file else (open_store(path), "")
    try:
        names = [name] if is_file else sorted(i.path for i in store.walk() if i.path.endswith((".csv", ".parquet")))
        parts = []
        for file in names:
            content = io.BytesIO(store.read(file))
            csv = file.endswith(".csv")
            parts.append(pd.read_csv(content, dtype=str, keep_default_na=False) if csv else pd.read_parquet(content))
    except (OSError, ValueError) as error:
        raise InputError(f"labels.path {path} cannot be read: {' '.join(str(error).split())}") from None
    if not parts:
        raise InputError(f"labels.path {path} is no CSV or Parquet file and no folder that holds one")
    table = pd.concat(parts, ignore_index=True)
    if "label" not in table and "class" in table:
        table = table.rename(columns={"class": "label"})
    if not (set(table) >= _TIMED or {"event_id", "label"} <= set(table)):
        raise InputError(
            f"labels.path {path} has the columns {', '.join(map(str, table))}; it needs event_id, label or "
            "network, station, time, label"
        )
    if "event_id" in table and set(table) >= _TIMED:
        # A synthetic archive's truth numbers its own events; only the time says which detection is meant.
        table = table.drop(columns="event_id")
    return table[table["label"].astype(str).str.len() > 0].reset_index(drop=True)
