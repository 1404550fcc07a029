"""The UTC intervals that shards own, and the names of shards.

An interval is an hour, a day, a week (from Monday) or a month; its bounds are nanoseconds since 1970.
"""

import calendar
import re
from collections.abc import Iterator
from datetime import UTC, datetime

from pipelines.archive.layouts import DAY_NS
from pipelines.archive.manifest import ANY

HOUR_NS = DAY_NS // 24
WEEK_NS = 7 * DAY_NS
# 1970-01-05 was a Monday.
WEEK_ORIGIN_NS = 4 * DAY_NS


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
    shown = {"": "--", ANY: "any"}.get(location, location)
    return f"{shown}.{'any' if band == ANY else band}.{moment.strftime(stamp)}.{interval}"


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
