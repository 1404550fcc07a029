"""What labelling reads beside the encoder and the events: hand labels, matched to the events, and cluster names."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import ray
from numpy.typing import NDArray

from pipelines import tables
from pipelines.association import NANOSECONDS, event_names, in_validation, match_event_ids, match_times
from pipelines.config import load_yaml
from pipelines.config.label import LabelsSettings
from pipelines.errors import InputError
from pipelines.label.naming import read_names
from pipelines.label.stage_shards import FILES_A_TASK, Shard
from pipelines.label_table import LabelTable
from pipelines.storage import Store, content_hash, read_file

DAY_NS = 86_400 * NANOSECONDS


@dataclass(frozen=True, kw_only=True)
class HandLabels:
    """Hand labels matched to events."""

    label_of: dict[str, str]
    """By event_id."""
    event_of: dict[str, str]
    """Name of the associated event that each labelled trigger belongs to, by event_id."""
    validation: dict[str, bool]
    """Whether it is in the validation half, by event_id."""
    num_rows: int
    num_unmatched: int
    num_ambiguous: int
    content_hash: str


def match_hand_labels(store: Store, shards: Sequence[Shard], settings: LabelsSettings, known: LabelTable) -> HandLabels:
    """Match a label table to the events, a station a task.

    Raises:
        InputError: it matches no event.
    """
    table = known.rows
    by_station: dict[tuple[str, str], list[Shard]] = {}
    for shard in shards:
        by_station.setdefault((shard.network, shard.station), []).append(shard)
    has_ids = "event_id" in table
    tasks = []
    for (network, station), group in by_station.items():
        rows = table if has_ids else table[(table["network"] == network) & (table["station"] == station)]
        if len(rows):
            tasks.append(_match_station.remote(store, group, rows, settings.tolerance_seconds))
    results = ray.get(tasks)
    label_of = {event_id: label for matched, _ in results for event_id, label, _ in matched}
    onset_of = {event_id: onset for matched, _ in results for event_id, _, onset in matched}
    row_of = {event_id: row for _, rows in results for event_id, row in rows[0].items()}
    ambiguous = {row for _, rows in results for row in rows[1]}
    attributed = {row for _, rows in results for row in rows[2]}
    if not label_of:
        tolerance = f"labels.tolerance_seconds = {settings.tolerance_seconds:g} s"
        near = "its event_ids are no events" if has_ids else f"no time lies within {tolerance} of its station's onsets"
        raise InputError(f"labels.path {settings.path} matches no event: {near}")
    events = _associate_labelled(store, shards, onset_of, settings.association_seconds)
    halves = dict(zip(events, in_validation(list(events.values())).tolist(), strict=True))
    if "split" in table:
        halves |= _given_halves(events, {event_id: table["split"].get(row) for event_id, row in row_of.items()})
    return HandLabels(
        label_of=label_of,
        event_of=events,
        validation=halves,
        num_rows=len(table),
        num_unmatched=len(table) - len(attributed),
        num_ambiguous=len(ambiguous),
        content_hash=known.content_hash,
    )


def _given_halves(event_of: Mapping[str, str], split_of: Mapping[str, object]) -> dict[str, bool]:
    """Return whether each trigger is in the validation half, for the events whose rows name one half.

    An event lies in one half with all its triggers; where its rows name both, it is said, and the hash decides.
    """
    named: dict[str, set[str]] = {}
    for event_id, split in split_of.items():
        if isinstance(split, str) and split:
            named.setdefault(event_of[event_id], set()).add(split)
    both = sum(len(splits) > 1 for splits in named.values())
    if both:
        print(
            f"hand labels: {both} events have triggers in both splits; a hash of their name puts each in one half",
            flush=True,
        )
    clear = {event: splits == {"validation"} for event, splits in named.items() if len(splits) == 1}
    return {event_id: clear[event] for event_id, event in event_of.items() if event in clear}


def read_cluster_names(path: str | None) -> tuple[dict[int, str | None], str]:
    """Return the user's names of clusters and a hash of the file; ({}, "") where none is configured.

    Raises:
        InputError: the file cannot be read or is no mapping from numbers to names.
    """
    if path is None:
        return {}, ""
    content, source = read_file(path, "labels.names"), f"labels.names {path}"
    try:
        return read_names(load_yaml(content, name=source), source=source), content_hash(content)
    except ValueError as error:
        raise InputError(str(error)) from None


def _read_columns(store: Store, shards: Iterable[Shard], columns: list[str]) -> pd.DataFrame:
    parts = [tables.read_table(store, shard.path("events"), columns).to_pandas() for shard in shards]
    events: pd.DataFrame = pd.concat(parts, ignore_index=True)
    return events


def _onset_ns(frame: pd.DataFrame) -> NDArray[np.int64]:
    return np.asarray(frame["onset"].dt.as_unit("ns").astype("int64"), dtype=np.int64)


@ray.remote
def _match_station(store: Store, shards: list[Shard], rows: pd.DataFrame, tolerance_seconds: float) -> Any:
    events = _read_columns(store, shards, ["event_id", "onset"])
    onsets = _onset_ns(events)
    if "event_id" in rows:
        found = match_event_ids(events["event_id"].tolist(), rows["event_id"].tolist(), rows["label"].tolist())
    else:
        found = match_times(
            [("", "")] * len(events),
            onsets,
            [("", "")] * len(rows),
            rows["time_ns"].to_numpy(),
            rows["label"].tolist(),
            tolerance_seconds,
        )
    ids = events["event_id"].to_numpy(dtype=object)[found.event_rows]
    numbers = rows.index.to_numpy()
    matched = list(zip(ids.tolist(), found.labels.tolist(), onsets[found.event_rows].tolist(), strict=True))
    attributed = set(numbers.tolist()) - set(numbers[found.unmatched].tolist())
    return matched, (
        dict(zip(ids.tolist(), numbers[found.label_rows].tolist(), strict=True)),
        numbers[found.ambiguous].tolist(),
        attributed,
    )


def _associate_labelled(
    store: Store, shards: Sequence[Shard], onset_of: dict[str, int], within_seconds: float
) -> dict[str, str]:
    """Name the associated event of each labelled trigger, from all triggers of its day and the days around it."""
    days = {onset // DAY_NS for onset in onset_of.values()}
    wanted = sorted({day + offset for day in days for offset in (-1, 0, 1)})
    groups = [list(shards[start : start + FILES_A_TASK]) for start in range(0, len(shards), FILES_A_TASK)]
    parts = ray.get([_triggers_of_days.remote(store, group, wanted) for group in groups])
    onsets = np.concatenate([part[0] for part in parts])
    ids = np.concatenate([part[1] for part in parts])
    names = dict(zip(ids.tolist(), event_names(onsets, ids, within_seconds).tolist(), strict=True))
    return {event_id: names[event_id] for event_id in sorted(onset_of)}


@ray.remote
def _triggers_of_days(
    store: Store, shards: list[Shard], days: list[int]
) -> tuple[NDArray[np.int64], NDArray[np.object_]]:
    events = _read_columns(store, shards, ["event_id", "onset"])
    onsets = _onset_ns(events)
    inside = np.isin(onsets // DAY_NS, days)
    return onsets[inside], events["event_id"].to_numpy(dtype=object)[inside]
