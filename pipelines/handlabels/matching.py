"""Hand labels matched to the whole events table, each in the validation or the test half, the same for every stage."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.config.label import LabelsSettings
from pipelines.handlabels.halves import given_halves, in_validation
from pipelines.handlabels.table import LabelTable
from pipelines.metrics.association import NANOSECONDS, event_names, match_event_ids, match_times
from pipelines.runtime.errors import InputError
from pipelines.workspace import tables
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
    """Match a label table to the events in all files of the events table (`paths`), one call of `run` per station.

    Raises:
        InputError: it matches no event.
    """
    table = known.rows
    for note in known.notes:
        print(note, flush=True)
    by_station: dict[tuple[str, str], list[str]] = {}
    for path in paths:
        by_station.setdefault(tables.station_of(path), []).append(path)
    has_ids = "event_id" in table
    tasks = []
    for (network, station), group in by_station.items():
        rows = table if has_ids else table[(table["network"] == network) & (table["station"] == station)]
        if len(rows):
            tasks.append((store, group, rows, settings.tolerance_seconds))
    results = run(_match_station, tasks)
    label_of = {event_id: label for matched, _ in results for event_id, label, _, _ in matched}
    onset_of = {event_id: onset for matched, _ in results for event_id, _, onset, _ in matched}
    file_of = {event_id: path for matched, _ in results for event_id, _, _, path in matched}
    row_of = {event_id: row for _, rows in results for event_id, row in rows[0].items()}
    ambiguous = {row for _, rows in results for row in rows[1]}
    attributed = {row for _, rows in results for row in rows[2]}
    if not label_of:
        tolerance = f"labels.tolerance_seconds = {settings.tolerance_seconds:g} s"
        by_time = f"no time lies within {tolerance} of its station's onsets"
        reason = "none of its event_ids is in events/" if has_ids else by_time
        raise InputError(f"labels.path {settings.path} matches no event: {reason}")
    events = _associate_labelled(store, paths, onset_of, settings.association_seconds, run)
    halves = dict(zip(events, in_validation(list(events.values())).tolist(), strict=True))
    if "split" in table:
        halves |= given_halves(events, {event_id: table["split"].get(row) for event_id, row in row_of.items()})
    return HandLabels(
        label_of=label_of,
        event_of=events,
        validation=halves,
        file_of=file_of,
        num_rows=len(table),
        num_unmatched=len(table) - len(attributed),
        num_ambiguous=len(ambiguous),
        content_hash=known.content_hash,
    )


Spans = Sequence[tuple[int, int]]
"""Stretches of time [start, end) in nanoseconds since 1970, UTC."""


def _read_triggers(
    store: Store, paths: Iterable[str], spans: Spans | None
) -> tuple[NDArray[np.int64], NDArray[np.object_], NDArray[np.int64]]:
    """Return onsets (ns), ids and numbers of the files of events, of all or of those in some spans of time."""
    columns = ["event_id", "onset"]
    parts = [
        tables.read_table(store, path, columns) if spans is None else tables.read_spans(store, path, columns, spans)
        for path in paths
    ]
    events = pd.concat([part.to_pandas() for part in parts], ignore_index=True)
    onsets = np.asarray(events["onset"].dt.as_unit("ns").astype("int64"), dtype=np.int64)
    files = np.repeat(np.arange(len(parts)), [part.num_rows for part in parts])
    return onsets, events["event_id"].to_numpy(dtype=object), files


def _spans_of(rows: pd.DataFrame, tolerance_seconds: float) -> Spans | None:
    """Return when the events of label rows may lie; None where the rows name them, or may lie far from their times."""
    if "event_id" in rows or tolerance_seconds > 86_400:
        return None
    margin = round(tolerance_seconds * NANOSECONDS) + 1
    times = rows["time_ns"].to_numpy()
    first, last = (times - margin) // DAY_NS, (times + margin) // DAY_NS
    return _spans(np.unique(np.concatenate([first, first + 1, last])))


def _spans(days: NDArray[np.int64]) -> Spans:
    """Return rising days since 1970 as spans, one for neighbours."""
    breaks = np.flatnonzero(np.diff(days) > 1) + 1
    return [(int(run[0]) * DAY_NS, (int(run[-1]) + 1) * DAY_NS) for run in np.split(days, breaks)]


def _match_station(store: Store, paths: list[str], rows: pd.DataFrame, tolerance_seconds: float) -> Any:
    onsets, event_ids, files = _read_triggers(store, paths, _spans_of(rows, tolerance_seconds))
    if "event_id" in rows:
        found = match_event_ids(event_ids.tolist(), rows["event_id"].tolist(), rows["label"].tolist())
    else:
        found = match_times(
            [("", "")] * len(event_ids),
            onsets,
            [("", "")] * len(rows),
            rows["time_ns"].to_numpy(),
            rows["label"].tolist(),
            tolerance_seconds,
        )
    ids = event_ids[found.event_rows]
    numbers = rows.index.to_numpy()
    matched_in = [paths[number] for number in files[found.event_rows].tolist()]
    matched = list(zip(ids.tolist(), found.labels.tolist(), onsets[found.event_rows].tolist(), matched_in, strict=True))
    attributed = set(numbers.tolist()) - set(numbers[found.unmatched].tolist())
    return matched, (
        dict(zip(ids.tolist(), numbers[found.label_rows].tolist(), strict=True)),
        numbers[found.ambiguous].tolist(),
        attributed,
    )


def _associate_labelled(
    store: Store, paths: Sequence[str], onset_of: dict[str, int], within_seconds: float, run: Run
) -> dict[str, str]:
    """Name the associated event of each labelled trigger, from all triggers of its day and the days around it."""
    days = {onset // DAY_NS for onset in onset_of.values()}
    wanted = sorted({day + offset for day in days for offset in (-1, 0, 1)})
    parts = run(_triggers_of_days, [(store, group, wanted) for group in tables.by_task(paths)])
    onsets = np.concatenate([part[0] for part in parts])
    ids = np.concatenate([part[1] for part in parts])
    names = dict(zip(ids.tolist(), event_names(onsets, ids, within_seconds).tolist(), strict=True))
    return {event_id: names[event_id] for event_id in sorted(onset_of)}


def _triggers_of_days(store: Store, paths: list[str], days: list[int]) -> tuple[NDArray[np.int64], NDArray[np.object_]]:
    onsets, ids, _ = _read_triggers(store, paths, _spans(np.asarray(days, dtype=np.int64)))
    return onsets, ids
