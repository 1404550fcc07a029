"""The shard plan: which shards an archive has, which files reach each, and which of them are still to do.

A shard is a channel group (network, station, location, band and instrument code) x one UTC interval. Where a path does
not say location or channel, the shard covers all of the station's groups. Its fingerprint covers the settings that
change its rows and the files that its interval and context reach: new input invalidates the shards that it reaches.
"""

import calendar
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.archive.layouts import DAY_NS
from pipelines.archive.manifest import ANY
from pipelines.workspace.ledger import MarkerName, fingerprint

HOUR_NS = DAY_NS // 24
WEEK_NS = 7 * DAY_NS
# 1970-01-05 was a Monday.
WEEK_ORIGIN_NS = 4 * DAY_NS
# `auto`: day shards up to this many of them, month shards beyond (50 million station-days are 1.7 million months).
MOST_DAY_SHARDS = 100_000


@dataclass(frozen=True, slots=True)
class Shard:
    """One unit of work and of restart.

    Attributes:
        name: marker, file name.
        start_ns, end_ns: the owned interval.
        files: rows of the manifest that the interval and its context reach.
    """

    name: MarkerName
    location: str
    band: str
    start_ns: int
    end_ns: int
    files: tuple[int, ...]


def choose_interval(table: pa.Table) -> str:
    """Return the interval that `auto` means for a manifest: day, or month for a very large archive."""
    spans = (pc.max(table["end_ns"]).as_py() - pc.min(table["start_ns"]).as_py()) / DAY_NS
    groups = len(table.group_by(["network", "station", "location", "band"]).aggregate([]))
    return "day" if groups * spans <= MOST_DAY_SHARDS else "month"


def interval_bounds(interval: str, time_ns: int) -> tuple[int, int]:
    """Return the (start, end) in nanoseconds of the UTC hour, day, week (from Monday) or month that holds a time."""
    if interval == "month":
        moment = datetime.fromtimestamp(time_ns // 1_000_000_000, UTC)
        start = calendar.timegm((moment.year, moment.month, 1, 0, 0, 0)) * 1_000_000_000
        return start, start + calendar.monthrange(moment.year, moment.month)[1] * DAY_NS
    step = {"hour": HOUR_NS, "day": DAY_NS, "week": WEEK_NS}[interval]
    origin = WEEK_ORIGIN_NS if interval == "week" else 0
    start = time_ns - (time_ns - origin) % step
    return start, start + step


def intervals(interval: str, start_ns: int, end_ns: int) -> Iterator[tuple[int, int]]:
    """Yield the (start, end) of every interval that meets `[start_ns, end_ns)`."""
    while start_ns < end_ns:
        bounds = interval_bounds(interval, start_ns)
        yield bounds
        start_ns = bounds[1]


def shard_name(location: str, band: str, interval: str, start_ns: int) -> str:
    """Return a shard's name within its station, e.g. `00.HH.2022-01-01.day`; `any` stands for all groups."""
    moment = datetime.fromtimestamp(start_ns // 1_000_000_000, UTC)
    stamp = {"hour": "%Y-%m-%dT%H", "day": "%Y-%m-%d", "week": "%G-W%V", "month": "%Y-%m"}[interval]
    place = {"": "--", ANY: "any"}.get(location, location)
    return f"{place}.{'any' if band == ANY else band}.{moment.strftime(stamp)}.{interval}"


def shard_bounds(shard: str) -> tuple[int, int] | None:
    """Return the (start, end) in nanoseconds that a shard's name says; None for a name of another kind."""
    match = re.fullmatch(r"[^.]+\.[^.]+\.([^.]+)\.(hour|day|week|month)", shard)
    if match is None:
        return None
    stamp, interval = match.groups()
    if interval == "week":
        moment = datetime.strptime(f"{stamp}-1", "%G-W%V-%u")
    else:
        moment = datetime.strptime(stamp, {"hour": "%Y-%m-%dT%H", "day": "%Y-%m-%d", "month": "%Y-%m"}[interval])
    return interval_bounds(interval, calendar.timegm(moment.timetuple()) * 1_000_000_000)


def plan_shards(
    table: pa.Table,
    interval: str,
    *,
    before_ns: int,
    after_ns: int,
    settings: Mapping[str, Any],
    start_ns: int | None = None,
    end_ns: int | None = None,
) -> Iterator[Shard]:
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
        for index in range(group.num_rows):
            network, station, location, band = (group[name][index].as_py() for name in group.schema.names[:4])
            rows = group["row_list"][index].values.to_numpy()
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
                places = [place for place in range(low, high) if ends_all[rows[place]] > anchor - before_ns]
                files = tuple(int(rows[place]) for place in places)
                name = shard_name(location, band, interval, begin)
                inputs = sorted(inputs_all[place] for place in places)
                mark = fingerprint({"settings": common, "inputs": inputs})
                yield Shard(MarkerName(network, station, name, mark), location, band, begin, end, files)


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
