"""Hand labels matched to the whole events table, each in the validation or the test half, the same for every stage."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.config.label import LabelsSettings
from pipelines.handlabels.halves import given_halves, in_validation
from pipelines.handlabels.table import LabelTable
from pipelines.metrics.association import NANOSECONDS, Matches, event_names, match_event_ids, match_times
from pipelines.runtime.errors import InputError
from pipelines.workspace import tables
from pipelines.workspace.event_ids import stated_onset
from pipelines.workspace.storage import Store

DAY_NS = 86_400 * NANOSECONDS

Run = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], list[Any]]
"""Calls a function with each tuple of arguments, in any process, and returns the results in order."""


@dataclass(frozen=True, kw_only=True)
class HandLabels:
    """Hand labels matched to events."""

    label_of: dict[str, str]
    """By event_id."""
    event_of: dict[str, str]
    """Name of the associated event that each labelled trigger belongs to, by event_id."""
    validation: dict[str, bool]
    """Whether it is in the validation half, by event_id."""
    file_of: dict[str, str]
    """The file of the events table that it lies in, by event_id."""
    num_rows: int
    num_unmatched: int
    num_ambiguous: int
    content_hash: str

    def by_file(self) -> dict[str, dict[str, str]]:
        """Return labels by event_id, by file of the events table."""
        found: dict[str, dict[str, str]] = {}
        for event_id, path in self.file_of.items():
            found.setdefault(path, {})[event_id] = self.label_of[event_id]
        return found


def match_hand_labels(
    store: Store, paths: Sequence[str], settings: LabelsSettings, known: LabelTable, run: Run
) -> HandLabels:
    """Match a label table to the events in all files of the events table (`paths`), many files a call of `run`.

    Raises:
        InputError: it matches no event.
    """
    table = known.rows
    for note in known.notes:
        print(note, flush=True)
    triggers, found = _match(store, paths, table, settings.tolerance_seconds, run)
    rows = found.event_rows
    ids = triggers.event_ids[rows].tolist()
    if not ids:
        tolerance = f"labels.tolerance_seconds = {settings.tolerance_seconds:g} s"
        by_time = f"no time lies within {tolerance} of its station's onsets"
        reason = "none of its event_ids is in events/" if "event_id" in table else by_time
        if table.empty:
            reason = "none of its rows has a label"
        raise InputError(f"labels.path {settings.path} matches no event: {reason}")
    events = _name_events(triggers, rows, settings.association_seconds)
    halves = dict(zip(events, in_validation(list(events.values())).tolist(), strict=True))
    if "split" in table:
        halves |= given_halves(events, dict(zip(ids, table["split"].iloc[found.label_rows], strict=True)))
    return HandLabels(
        label_of=dict(zip(ids, found.labels.tolist(), strict=True)),
        event_of=events,
        validation=halves,
        file_of=dict(zip(ids, [paths[number] for number in triggers.files[rows].tolist()], strict=True)),
        num_rows=len(table),
        num_unmatched=len(found.unmatched),
        num_ambiguous=len(found.ambiguous),
        content_hash=known.content_hash,
    )


Spans = list[tuple[int, int]]
"""Stretches of time [start, end) in nanoseconds since 1970, UTC; they rise and do not touch."""


@dataclass(frozen=True, kw_only=True)
class _Triggers:
    """Events of some stretches of time, in the order of their files."""

    event_ids: NDArray[np.object_]
    onsets: NDArray[np.int64]
    """In nanoseconds since 1970, UTC."""
    files: NDArray[np.int64]
    """Number of each event's file."""


def _match(
    store: Store, paths: Sequence[str], table: pd.DataFrame, tolerance_seconds: float, run: Run
) -> tuple[_Triggers, Matches]:
    """Match label rows to the events of their days; the days around them are read, too, in the same pass.

    An id states its onset, so that a table of ids needs no more than its days, either. Only where ids are spelled in
    another way, or are not found there, is the whole table searched for them.
    """
    labels = table["label"].tolist()
    if "event_id" not in table:
        triggers = _read_triggers(store, paths, _around(table["time_ns"].to_numpy(), tolerance_seconds), run)
        stations = [tables.station_of(path) for path in paths]
        of_events = [stations[number] for number in triggers.files.tolist()]
        of_labels = list(zip(table["network"], table["station"], strict=True))
        times = table["time_ns"].to_numpy()
        return triggers, match_times(of_events, triggers.onsets, of_labels, times, labels, tolerance_seconds)
    ids = table["event_id"].tolist()
    stated = [stated_onset(name) for name in ids]
    onsets = [onset for onset in stated if onset is not None]
    triggers = _read_triggers(store, paths, _around(np.array(onsets, dtype=np.int64)), run)
    missing = set(ids) - set(triggers.event_ids.tolist())
    if missing:
        parts = run(_onsets_of_ids, [(store, group, missing) for group in tables.by_task(paths)])
        elsewhere = [onset for part in parts for onset in part]
        if elsewhere:
            triggers = _read_triggers(store, paths, _around(np.array(onsets + elsewhere, dtype=np.int64)), run)
    return triggers, match_event_ids(triggers.event_ids.tolist(), ids, labels)


def _around(times_ns: NDArray[np.int64], margin_seconds: float = 0.0) -> Spans:
    """Return the days of some times, those that the margin reaches, and a day on both sides."""
    if not len(times_ns):
        return []
    margin = math.ceil(margin_seconds * NANOSECONDS)
    days = np.unique(times_ns // DAY_NS).tolist()
    spans: Spans = []
    for day in days:
        start = ((day * DAY_NS - margin) // DAY_NS - 1) * DAY_NS
        end = -((-(day + 1) * DAY_NS - margin) // DAY_NS) * DAY_NS + DAY_NS
        if spans and start <= spans[-1][1]:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
    return spans


def _read_triggers(store: Store, paths: Sequence[str], spans: Spans, run: Run) -> _Triggers:
    groups = tables.by_task(paths) if spans else []
    parts = run(_triggers_of_spans, [(store, group, spans) for group in groups])
    sizes = [size for _, _, group_sizes in parts for size in group_sizes]
    return _Triggers(
        onsets=np.concatenate([np.empty(0, dtype=np.int64), *(part[0] for part in parts)]),
        event_ids=np.concatenate([np.empty(0, dtype=object), *(part[1] for part in parts)]),
        files=np.repeat(np.arange(len(sizes)), sizes),
    )


def _triggers_of_spans(
    store: Store, paths: list[str], spans: Spans
) -> tuple[NDArray[np.int64], NDArray[np.object_], list[int]]:
    """Return onsets (ns) and ids of the events whose onset lies in some spans, and how many each file has."""
    parts = [tables.read_spans(store, path, ["event_id", "onset"], spans) for path in paths]
    return _onsets_ns(parts), _event_ids(parts), [part.num_rows for part in parts]


def _onsets_of_ids(store: Store, paths: list[str], wanted: set[str]) -> list[int]:
    """Return the onsets (ns) of the events that have one of some ids."""
    parts = [tables.read_table(store, path, ["event_id", "onset"]) for path in paths]
    return [
        onset
        for event_id, onset in zip(_event_ids(parts).tolist(), _onsets_ns(parts).tolist(), strict=True)
        if event_id in wanted
    ]


def _onsets_ns(parts: Sequence[pa.Table]) -> NDArray[np.int64]:
    onsets = np.concatenate([part["onset"].to_numpy().astype("datetime64[ns]") for part in parts])
    return onsets.astype(np.int64)


def _event_ids(parts: Sequence[pa.Table]) -> NDArray[np.object_]:
    return np.concatenate([part["event_id"].to_numpy().astype(object) for part in parts])


def _name_events(triggers: _Triggers, rows: NDArray[np.int64], within_seconds: float) -> dict[str, str]:
    """Name the associated event of each labelled trigger, from all triggers of its day and the days around it."""
    days = np.unique(triggers.onsets[rows] // DAY_NS)
    near = np.isin(triggers.onsets // DAY_NS, np.concatenate([days - 1, days, days + 1]))
    onsets, ids = triggers.onsets[near], triggers.event_ids[near]
    names = dict(zip(ids.tolist(), event_names(onsets, ids, within_seconds).tolist(), strict=True))
    return {event_id: names[event_id] for event_id in sorted(triggers.event_ids[rows].tolist())}
