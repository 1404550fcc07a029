"""The shard plan: which shards an archive has, which files reach each, and which of them are still to do.

A shard is a channel group (network, station, location, band and instrument code) and one UTC interval. Where a path
does not say location or channel, the shard covers all of the station's groups. Its fingerprint covers the settings that
change its rows and the files that its interval and context reach: new input invalidates the shards that it reaches.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.archive.layouts import DAY_NS, is_indexed
from pipelines.archive.manifest import Manifest, selection
from pipelines.config import Config, stage_output_keys
from pipelines.config.detection import DetectionSettings
from pipelines.detect.anchored import context_seconds
from pipelines.detect.intervals import intervals, shard_name
from pipelines.workspace.ledger import MarkerName, fingerprint, work_left
from pipelines.workspace.workspace import Workspace

# Raised by hand whenever the rows that the stage writes change.
ALGORITHM_VERSION = 5
METHOD_VERSIONS = {"classic": 2}
"""Raised as well where only the rows or the account of one detection.method change."""

# `auto`: day shards up to this many of them, month shards beyond (50 million station-days are 1.7 million months).
MAX_DAY_SHARDS = 100_000

NOWHERE = -(2**63)
_GROUP = ["network", "station", "location", "band"]


@dataclass(frozen=True, slots=True)
class PlannedShard:
    """One unit of work and of restart.

    Attributes:
        name: marker, file name.
        location, band: of the channel group; `*` where the paths do not say.
        start_ns, end_ns: the owned interval.
        files: rows of the manifest that the interval and its context reach.
    """

    name: MarkerName
    location: str
    band: str
    start_ns: int
    end_ns: int
    files: tuple[int, ...]


@dataclass
class Plan:
    """What a run has to do.

    Attributes:
        manifest: the archive's files.
        interval: hour, day, week or month.
        files: key, size and etag of the manifest's usable rows.
        spans: (files, 2) int64, start and end of what each is believed to hold.
        homes: (files,) int64, a time within each file: the shard that owns it accounts for what concerns the file as a
            whole; NOWHERE where another row of the same file and channel group has that time.
        first: (files,) bool, whether a row is the first of its file.
        pending: shards without a marker.
        num_shards: shards in all.
        stale: markers of shards that are to be redone or no longer exist.
    """

    manifest: Manifest
    interval: str
    files: pa.Table
    spans: np.ndarray[Any, Any]
    homes: np.ndarray[Any, Any]
    first: np.ndarray[Any, Any]
    pending: list[PlannedShard]
    num_shards: int
    stale: list[MarkerName]


def destination(detection: DetectionSettings) -> tuple[str, str]:
    """Return the (table, ledger) that shards are written to: with a network coincidence their rows are candidates."""
    return ("triggers", "trigger") if detection.coincidence_stations > 1 else ("events", "detect")


def choose_interval(table: pa.Table) -> str:
    """Return the interval that `auto` means for a manifest: day, or month where there would be too many day shards."""
    return "day" if count_days(table) <= MAX_DAY_SHARDS else "month"


def count_days(table: pa.Table) -> int:
    """Return how many UTC days the channel groups of a manifest hold, those without files not counted."""
    group = _numbers(table, _GROUP)
    first = table["start_ns"].to_numpy() // DAY_NS
    last = -(-table["end_ns"].to_numpy() // DAY_NS)
    order = np.lexsort((first, group))
    # Days of different groups lie far apart, so that one running maximum serves all.
    apart = group[order] * (2 * 2**63 // DAY_NS)
    first, last = first[order] + apart, last[order] + apart
    reached = np.concatenate([first[:1], np.maximum.accumulate(last)[:-1]])
    return int(np.maximum(last - np.maximum(first, reached), 0).sum())


def make_plan(manifest: Manifest, workspace: Workspace, config: Config, stationxml_hash: str) -> Plan:
    """Compare the archive's shards with the ledger."""
    table = manifest.usable()
    interval: str = config.shards.interval
    if interval == "auto":
        interval = workspace.read_state().shard_interval or choose_interval(table)
    before, after = context_seconds(config.detection, config.window)
    first, last = selection(config.archive)
    keys = stage_output_keys(config, "detect")
    elsewhere = ("shards.", "archive.stationxml", "detection.coincidence_")
    settings = {key: value for key, value in keys.items() if not key.startswith(elsewhere)}
    settings |= {"algorithm": ALGORITHM_VERSION, "stationxml": stationxml_hash}
    if config.detection.method in METHOD_VERSIONS:
        settings["method_version"] = METHOD_VERSIONS[config.detection.method]
    _, ledger = destination(config.detection)
    shards = plan_shards(
        table,
        interval,
        before_ns=round(before * 1e9),
        after_ns=round(after * 1e9),
        settings=settings,
        start_ns=first,
        end_ns=last,
    )
    work = work_left(workspace.store, ledger, shards, lambda shard: shard.name)
    files = table.select(["key", "size", "etag"])
    spans = np.stack([table["start_ns"].to_numpy(), table["end_ns"].to_numpy()], axis=1)
    # Without an index a file has one row, and the keys of a million rows need not be compared.
    indexed = is_indexed(manifest.layout)
    every = np.ones(table.num_rows, bool)
    return Plan(
        manifest=manifest,
        interval=interval,
        files=files,
        spans=spans,
        homes=_homes(table, _is_first(_numbers(table, ["key", *_GROUP])) if indexed else every, first, last),
        first=_is_first(_numbers(table, ["key"])) if indexed else every,
        pending=work.left,
        num_shards=work.num_done + len(work.left),
        stale=work.stale,
    )


def _homes(
    table: pa.Table, is_first: np.ndarray[Any, Any], start_ns: int | None, end_ns: int | None
) -> np.ndarray[Any, Any]:
    """Return the middle of what is read of each file, on its first row of each channel group, NOWHERE on others."""
    starts, ends = table["start_ns"].to_numpy(), table["end_ns"].to_numpy()
    low = starts if start_ns is None else np.maximum(starts, start_ns)
    high = ends if end_ns is None else np.minimum(ends, end_ns)
    homes: np.ndarray[Any, Any] = np.where(is_first, low + np.maximum(high - low - 1, 0) // 2, NOWHERE)
    return homes


def _numbers(table: pa.Table, columns: list[str]) -> np.ndarray[Any, Any]:
    """Return a number for each row, the same where all columns are: (rows,) int64."""
    numbers = np.zeros(table.num_rows, np.int64)
    for name in columns:
        codes = table[name].combine_chunks().dictionary_encode()
        numbers = numbers * (len(codes.dictionary) + 1) + codes.indices.to_numpy(zero_copy_only=False)
        numbers = np.unique(numbers, return_inverse=True)[1].astype(np.int64)
    return numbers


def _is_first(numbers: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return where each number is for the first time: (rows,) bool."""
    first = np.zeros(len(numbers), bool)
    first[np.unique(numbers, return_index=True)[1]] = True
    return first


def plan_shards(
    table: pa.Table,
    interval: str,
    *,
    before_ns: int,
    after_ns: int,
    settings: Mapping[str, Any],
    start_ns: int | None = None,
    end_ns: int | None = None,
) -> Iterator[PlannedShard]:
    """Yield every shard of an archive, station by station in order of time.

    Args:
        table: usable rows of the manifest.
        interval: hour, day, week or month.
        before_ns: context that is read before the first day of a shard.
        after_ns: context that is read after its last day.
        settings: what the fingerprint holds besides the files (output keys, algorithm version).
        start_ns, end_ns: archive.start and archive.end.
    """
    common = fingerprint(settings)
    codes = table.select(["network", "station", "location", "band"])
    indexed = codes.append_column("row", pa.array(np.arange(table.num_rows)))
    grouped = indexed.group_by(["network", "station", "location", "band"], use_threads=False).aggregate(
        [("row", "list")]
    )
    order = grouped.sort_by([(name, "ascending") for name in ("network", "station", "location", "band")])
    starts_all = table["start_ns"].to_numpy()
    ends_all = table["end_ns"].to_numpy()
    for group in order.to_batches():
        for number in range(group.num_rows):
            network, station, location, band = (group[name][number].as_py() for name in group.schema.names[:4])
            rows = group["row_list"][number].values.to_numpy()
            rows = rows[np.lexsort((ends_all[rows], starts_all[rows]))]
            starts, ends = starts_all[rows], np.maximum.accumulate(ends_all[rows])
            mine = table.take(pa.array(rows))
            keys, sizes, etags = (mine[name].to_pylist() for name in ("key", "size", "etag"))
            inputs_all = [(key, f"{size}:{etag}") for key, size, etag in zip(keys, sizes, etags, strict=True)]
            owned: set[tuple[int, int]] = set()
            for begin, end in _merged(starts, ends_all[rows]):
                first = begin if start_ns is None else max(begin, start_ns)
                last = end if end_ns is None else min(end, end_ns)
                owned.update(intervals(interval, first, last))
            for begin, end in sorted(owned):
                anchor = begin - begin % DAY_NS
                low = int(np.searchsorted(ends, anchor - before_ns, "right"))
                # A day is read in whole, also for a part of it.
                day_end = end + -end % DAY_NS
                high = int(np.searchsorted(starts, day_end + after_ns, "left"))
                reached = [index for index in range(low, high) if ends_all[rows[index]] > anchor - before_ns]
                files = tuple(int(rows[index]) for index in reached)
                name = shard_name(location, band, interval, begin)
                inputs = sorted(inputs_all[index] for index in reached)
                mark = fingerprint({"settings": common, "inputs": inputs})
                yield PlannedShard(MarkerName(network, station, name, mark), location, band, begin, end, files)


def _merged(starts: np.ndarray[Any, Any], ends: np.ndarray[Any, Any]) -> Iterator[tuple[int, int]]:
    """Yield the union of spans that are sorted by their starts."""
    begin = end = None
    for first, last in zip(starts.tolist(), ends.tolist(), strict=True):
        if begin is None or end is None:
            begin, end = first, last
        elif first <= end:
            end = max(end, last)
        else:
            yield begin, end
            begin, end = first, last
    if begin is not None and end is not None:
        yield begin, end
