"""Which triggers belong to one event, and which hand label belongs to which trigger.

Times are integer nanoseconds since 1970-01-01 UTC. Splits, coincidence and catalogue all use `associate`, so that they
mean the same thing by "event": the triggers of one or more stations that lie within a stated time of the first of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

NANOSECONDS = 1_000_000_000


def associate(onset_ns: NDArray[np.int64], within_seconds: float) -> NDArray[np.int64]:
    """Number the event that each trigger belongs to.

    The earliest trigger opens an event, every trigger at most `within_seconds` after it joins (of any station, the
    same one included: a P and an S trigger are one event), and the first later one opens the next event.

    Returns int64 (n,): 0, 1, 2, ... in order of time, whatever the order of the rows.
    """
    onset_ns = np.asarray(onset_ns, dtype=np.int64)
    order = np.argsort(onset_ns, kind="stable")
    times = onset_ns[order]
    within_ns = round(within_seconds * NANOSECONDS)
    opens = np.zeros(len(times), dtype=np.int64)
    # Events need no loop where the gap before a trigger exceeds the time: only runs of close triggers are walked.
    close = np.flatnonzero(np.diff(times) <= within_ns) + 1
    opens[:1] = 1
    opens[1:] = 1
    first_ns = 0
    previous = -1
    for row in close.tolist():
        if row != previous + 1:
            first_ns = int(times[row - 1])
        if int(times[row]) - first_ns <= within_ns:
            opens[row] = 0
        else:
            first_ns = int(times[row])
        previous = row
    events = np.empty(len(times), dtype=np.int64)
    events[order] = np.cumsum(opens) - 1
    return events


def coincident(
    onset_ns: NDArray[np.int64], stations: Sequence[str] | NDArray[Any], within_seconds: float, num_stations: int
) -> NDArray[np.bool_]:
    """Tell for each trigger whether its event has triggers of at least so many stations."""
    events = associate(onset_ns, within_seconds)
    _, station = np.unique(np.asarray(stations, dtype=str), return_inverse=True)
    seen = np.unique(np.stack([events, station.reshape(-1)]), axis=1)
    result: NDArray[np.bool_] = np.bincount(seen[0], minlength=len(events))[events] >= num_stations
    return result


def event_names(
    onset_ns: NDArray[np.int64], event_ids: Sequence[str] | NDArray[Any], within_seconds: float
) -> NDArray[np.object_]:
    """Return for each trigger the `event_id` of the first trigger of its event (ties: the smallest id)."""
    onset_ns = np.asarray(onset_ns, dtype=np.int64)
    ids = np.asarray(event_ids, dtype=object)
    events = associate(onset_ns, within_seconds)
    order = np.lexsort((np.argsort(np.argsort(ids)), onset_ns))
    _, first = np.unique(events[order], return_index=True)
    return np.asarray(ids[order[first]][events], dtype=object)


@dataclass(frozen=True, kw_only=True)
class Matches:
    """Which events the rows of a label table label, and which rows label none."""

    event_rows: NDArray[np.int64]
    """Rows of the events table, each at most once, ascending."""
    labels: NDArray[np.object_]
    """The label of each of `event_rows`."""
    label_rows: NDArray[np.int64]
    """The row of the label table that gave it (the nearest in time)."""
    unmatched: NDArray[np.int64]
    """Rows of the label table without an event."""
    ambiguous: NDArray[np.int64]
    """Rows that name one event differently, or that lie equally near two events."""


def match_event_ids(event_ids: Sequence[str], label_ids: Sequence[str], labels: Sequence[str]) -> Matches:
    """Match label rows that name their event by `event_id`; rows that name one event differently are ambiguous."""
    row_of = {event_id: row for row, event_id in enumerate(event_ids)}
    targets = np.array([row_of.get(label_id, -1) for label_id in label_ids], dtype=np.int64)
    return _resolve(targets, np.zeros(len(targets), dtype=np.int64), np.zeros(len(targets), bool), labels)


def match_times(
    event_stations: Sequence[tuple[str, str]] | NDArray[Any],
    onset_ns: NDArray[np.int64],
    label_stations: Sequence[tuple[str, str]] | NDArray[Any],
    time_ns: NDArray[np.int64],
    labels: Sequence[str],
    tolerance_seconds: float,
) -> Matches:
    """Match label rows that give a station and a time to that station's nearest onset within the tolerance.

    Stations are (network, station) pairs, one a row. A row is ambiguous when two onsets are equally near, or when
    rows with different labels have the same nearest onset; it then labels nothing.
    """
    onset_ns = np.asarray(onset_ns, dtype=np.int64)
    time_ns = np.asarray(time_ns, dtype=np.int64)
    tolerance_ns = round(tolerance_seconds * NANOSECONDS)
    targets = np.full(len(time_ns), -1, dtype=np.int64)
    misses = np.zeros(len(time_ns), dtype=np.int64)
    ties = np.zeros(len(time_ns), dtype=bool)
    event_codes, label_codes = _station_codes(event_stations, label_stations)
    for code in np.unique(label_codes):
        rows = np.flatnonzero(label_codes == code)
        candidates = np.flatnonzero(event_codes == code)
        if not len(candidates):
            continue
        candidates = candidates[np.argsort(onset_ns[candidates], kind="stable")]
        onsets = onset_ns[candidates]
        after = np.searchsorted(onsets, time_ns[rows])
        before = np.maximum(after - 1, 0)
        after = np.minimum(after, len(onsets) - 1)
        miss_before = np.abs(time_ns[rows] - onsets[before])
        miss_after = np.abs(time_ns[rows] - onsets[after])
        nearest = np.where(miss_after < miss_before, after, before)
        miss = np.minimum(miss_before, miss_after)
        within = miss <= tolerance_ns
        targets[rows] = np.where(within, candidates[nearest], -1)
        misses[rows] = miss
        # Two channel groups of a station may have an onset at one instant.
        chosen = onsets[nearest]
        twins = np.searchsorted(onsets, chosen, side="right") - np.searchsorted(onsets, chosen) > 1
        ties[rows] = within & (twins | ((before != after) & (miss_before == miss_after)))
    return _resolve(targets, misses, ties, labels)


def _station_codes(
    event_stations: Sequence[tuple[str, str]] | NDArray[Any], label_stations: Sequence[tuple[str, str]] | NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    code_of: dict[tuple[str, str], int] = {}
    codes = [
        np.array([code_of.setdefault((str(pair[0]), str(pair[1])), len(code_of)) for pair in pairs], dtype=np.int64)
        for pairs in (event_stations, label_stations)
    ]
    return codes[0], codes[1]


def _resolve(
    targets: NDArray[np.int64], misses: NDArray[np.int64], ties: NDArray[np.bool_], labels: Sequence[str]
) -> Matches:
    """Keep one label row an event, the nearest; rows that disagree about an event are all ambiguous."""
    names = np.asarray(labels, dtype=object)
    claims: dict[int, list[int]] = {}
    for row in np.flatnonzero((targets >= 0) & ~ties).tolist():
        claims.setdefault(int(targets[row]), []).append(row)
    ambiguous = np.flatnonzero(ties).tolist()
    matched: list[tuple[int, int]] = []
    for event_row, rows in claims.items():
        if len({names[row] for row in rows}) > 1:
            ambiguous.extend(rows)
        else:
            matched.append((event_row, min(rows, key=lambda row: (misses[row], row))))
    matched.sort()
    label_rows = np.array([row for _, row in matched], dtype=np.int64)
    return Matches(
        event_rows=np.array([event_row for event_row, _ in matched], dtype=np.int64),
        labels=names[label_rows],
        label_rows=label_rows,
        unmatched=np.flatnonzero(targets < 0),
        ambiguous=np.array(sorted(ambiguous), dtype=np.int64),
    )
