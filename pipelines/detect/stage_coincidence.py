"""Network coincidence: of the triggers of all stations, keep those whose event enough stations have.

Runs after all shards are detected, over `triggers/` and its ledger, and writes `events/`. As the detection itself, the
association starts afresh at anchors: the triggers of a UTC day are decided by one pass of the association function over
all stations' triggers from an hour before 00:00 UTC on. So what becomes an event depends on the triggers from there to
`coincidence_seconds` after it, whatever the shards.
"""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.archive.layouts import DAY_NS
from pipelines.config.detection import DetectionSettings
from pipelines.detect.anchored import split_days
from pipelines.detect.intervals import HOUR_NS, interval_bounds, intervals, shard_bounds
from pipelines.detect.stage_marker import count_by_day
from pipelines.metrics.association import NANOSECONDS, coincident
from pipelines.workspace import schemas, tables
from pipelines.workspace.ledger import (
    MarkerName,
    fingerprint,
    list_markers,
    read_detection_marker,
    work_left,
    write_marker,
)
from pipelines.workspace.storage import Store

# Raised by hand whenever the choice of triggers changes.
ALGORITHM_VERSION = 1

LOOKBACK_NS = HOUR_NS
READING_THREADS = 8


@dataclass(frozen=True)
class ChoiceTask:
    """Shards of one stretch of time, and the triggers that decide about them.

    Attributes:
        shards: (marker of the triggers, marker of the events that are to be written).
        reached: markers of all triggers in reach, these shards' own among them.
    """

    shards: tuple[tuple[MarkerName, MarkerName], ...]
    reached: tuple[MarkerName, ...]


@dataclass
class ChoicePlan:
    """What is left to choose.

    Attributes:
        tasks: one for each stretch of time with shards to do.
        num_done: shards whose choice stands.
        num_held_back: shards that cannot be decided, because triggers in their reach are not there.
        stale: markers of choices that no longer hold.
    """

    tasks: list[ChoiceTask]
    num_done: int
    num_held_back: int
    stale: list[MarkerName]


def reach(start_ns: int, end_ns: int, detection: DetectionSettings) -> tuple[int, int]:
    """Return the interval whose triggers decide about those in `[start_ns, end_ns)`."""
    return start_ns - start_ns % DAY_NS - LOOKBACK_NS, end_ns + round(detection.coincidence_seconds * NANOSECONDS) + 1


def plan_choices(
    workspace: Store, detection: DetectionSettings, interval: str, missing: Iterable[MarkerName]
) -> ChoicePlan:
    """Compare the triggers in the ledger with the choices made.

    Args:
        workspace: where the ledgers are.
        detection: settings.
        interval: hour, day, week or month.
        missing: shards whose detection failed.
    """
    by_start: dict[int, list[MarkerName]] = defaultdict(list)
    for name in list_markers(workspace, "trigger"):
        bounds = shard_bounds(name.shard)
        if bounds is not None:
            by_start[bounds[0]].append(name)
    holes = {bounds[0] for name in missing if (bounds := shard_bounds(name.shard)) is not None}
    settings = {
        "algorithm": ALGORITHM_VERSION,
        "stations": detection.coincidence_stations,
        "seconds": detection.coincidence_seconds,
    }
    digests = {start: fingerprint({"shards": sorted(map(str, names))}) for start, names in by_start.items()}
    held_back = 0
    choices: list[tuple[MarkerName, MarkerName, int, list[int]]] = []
    for start, names in sorted(by_start.items()):
        end = interval_bounds(interval, start)[1]
        reached = [first for first, _ in intervals(interval, *reach(start, end, detection)) if first in by_start]
        if holes and not holes.isdisjoint(first for first, _ in intervals(interval, *reach(start, end, detection))):
            held_back += len(names)
            continue
        around = fingerprint({"settings": settings, "triggers": [digests[first] for first in reached]})
        stretch = start - start % DAY_NS if interval == "hour" else start
        for name in names:
            mark = fingerprint({"around": around, "triggers": name.fingerprint})
            choices.append((name, MarkerName(name.network, name.station, name.shard, mark), stretch, reached))
    work = work_left(workspace, "detect", choices, lambda choice: choice[1])
    stretches: dict[int, tuple[list[tuple[MarkerName, MarkerName]], set[int]]] = defaultdict(lambda: ([], set()))
    for name, chosen, stretch, reached in work.left:
        stretches[stretch][0].append((name, chosen))
        stretches[stretch][1].update(reached)
    tasks = [
        ChoiceTask(tuple(shards), tuple(name for first in sorted(starts) for name in by_start[first]))
        for _, (shards, starts) in sorted(stretches.items())
    ]
    return ChoicePlan(tasks, work.num_done, held_back, work.stale)


def choose(
    workspace: Store, detection: DetectionSettings, num_samples: int, task: ChoiceTask
) -> Iterator[tuple[MarkerName, dict[str, Any]]]:
    """Write the events of a task's shards, then their markers; yield each marker's name and content."""
    with ThreadPoolExecutor(READING_THREADS) as pool:
        contents = list(pool.map(lambda name: read_detection_marker(workspace, "trigger", name), task.reached))
    onsets = np.concatenate([np.asarray(content["onsets_ns"], np.int64) for content in contents])
    stations = np.repeat(
        [f"{name.network}.{name.station}" for name in task.reached], [len(c["onsets_ns"]) for c in contents]
    )
    of_shard = np.repeat(np.arange(len(contents)), [len(content["onsets_ns"]) for content in contents])
    keep = _coincident_by_day(onsets, stations, detection)
    index_of = {name: index for index, name in enumerate(task.reached)}
    for name, chosen in task.shards:
        began = time.perf_counter()
        index = index_of[name]
        content = contents[index]
        # Onsets of a marker stand in the order of its rows.
        rows = keep[of_shard == index]
        path = tables.shard_path("events", name.network, name.station, name.shard)
        kept = 0
        if rows.any():
            schema = schemas.events_schema(num_samples)
            kept = tables.write_batches(workspace, path, schema, _chosen(workspace, name, rows))
        else:
            workspace.remove(path)
        result = {key: value for key, value in content.items() if key not in ("onsets_ns", *_NAME_KEYS)}
        result["outcome"] = "events" if kept else "no events" if content["coverage"] else "no data"
        result["counts"] = {"events": kept, "triggers": len(rows)}
        result["events_by_day"] = count_by_day(onsets[of_shard == index][rows].tolist())
        result["seconds"] = round(content["seconds"] + time.perf_counter() - began, 3)
        write_marker(workspace, "detect", chosen, result)
        yield chosen, result


_NAME_KEYS = ("shard", "network", "station", "fingerprint")


def _coincident_by_day(
    onset_ns: np.ndarray[Any, Any], stations: np.ndarray[Any, Any], detection: DetectionSettings
) -> np.ndarray[Any, Any]:
    """Tell for each trigger whether it is kept, by the pass of its own UTC day."""
    keep = np.zeros(len(onset_ns), bool)
    if not len(onset_ns):
        return keep
    for anchor, start, end in split_days(int(onset_ns.min()), int(onset_ns.max()) + 1):
        low, high = reach(anchor, end, detection)
        seen = np.flatnonzero((onset_ns >= low) & (onset_ns < high))
        owned = (onset_ns[seen] >= start) & (onset_ns[seen] < end)
        if owned.any():
            found = coincident(
                onset_ns[seen], stations[seen], detection.coincidence_seconds, detection.coincidence_stations
            )
            keep[seen[owned]] = found[owned]
    return keep


def _chosen(workspace: Store, name: MarkerName, rows: np.ndarray[Any, Any]) -> Iterator[pa.RecordBatch]:
    path = tables.shard_path("triggers", name.network, name.station, name.shard)
    first = 0
    for batch in tables.iter_batches(workspace, path, batch_rows=tables.ROWS_PER_GROUP):
        yield batch.filter(pa.array(rows[first : first + batch.num_rows]))
        first += batch.num_rows
    if first != len(rows):
        raise OSError(f"{workspace.full(path)} has {first} rows where its marker says {len(rows)}")
