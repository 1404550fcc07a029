"""What `firnline status` tells: shards done, running, failed, quarantined input, coverage, events a day, time left."""

import time
from array import array
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from pipelines.archive.manifest import read_listing
from pipelines.detect.account import Totals
from pipelines.workspace.artifacts import DetectionProgress
from pipelines.workspace.bundles import read_markers
from pipelines.workspace.storage import Store

ALIVE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class StationDay:
    """A day of a station of which something was recorded.

    Attributes:
        day: YYYY-MM-DD.
        share: part of the day that the station's best channel covers.
        events: events whose onset lies in it.
    """

    day: str
    share: float
    events: int


class StationDays:
    """What the markers of one station say of its days: 16 bytes for a channel's day, 12 for a day's events."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._days, self._channels, self._seconds = array("i"), array("i"), array("d")
        self._event_days, self._event_counts = array("i"), array("q")

    def add_seconds(self, day: str, channel: str, seconds: float) -> None:
        """Add seconds with samples of a channel's day (YYYY-MM-DD)."""
        self._days.append(_number(day))
        self._channels.append(self._numbers.setdefault(channel, len(self._numbers)))
        self._seconds.append(seconds)

    def add_events(self, day: str, count: int) -> None:
        """Add events of a day (YYYY-MM-DD)."""
        self._event_days.append(_number(day))
        self._event_counts.append(count)

    def events(self) -> dict[str, int]:
        """Return the number of events by day, in order of time."""
        days, which = np.unique(np.array(self._event_days, np.int64), return_inverse=True)
        counts = [0] * len(days)
        for index, count in zip(which.tolist(), self._event_counts, strict=True):
            counts[index] += count
        return {_day(day): count for day, count in zip(days.tolist(), counts, strict=True)}

    def num_days(self) -> int:
        """Return of how many days there are seconds with samples."""
        return len(np.unique(np.array(self._days, np.int64)))

    def recorded(self) -> Iterator[StationDay]:
        """Yield the days of which there are seconds with samples, in order of time."""
        if not self._days:
            return
        days, channels, seconds = np.array(self._days), np.array(self._channels), np.array(self._seconds)
        # In one order, whatever that of the markers was, the sums have the same bits.
        order = np.lexsort((seconds, channels, days))
        days, channels, seconds = days[order], channels[order], seconds[order]
        first = np.flatnonzero(np.diff(days, prepend=-1) | np.diff(channels, prepend=-1))
        sums = np.add.reduceat(seconds, first)
        days = days[first]
        first = np.flatnonzero(np.diff(days, prepend=-1))
        events = self.events()
        for number, most in zip(days[first].tolist(), np.maximum.reduceat(sums, first).tolist(), strict=True):
            yield StationDay(_day(number), most / 86400, events.get(_day(number), 0))


@lru_cache(maxsize=100_000)
def _number(day: str) -> int:
    """Return the digits of a day (YYYY-MM-DD) as a number, 0 where it is none."""
    digits = day.replace("-", "")
    return int(digits) if len(digits) == 8 and digits.isdecimal() else 0


def _day(number: int) -> str:
    return f"{number // 10_000:04d}-{number // 100 % 100:02d}-{number % 100:02d}"


@dataclass
class DetectionStatus:
    """Sums over the ledger.

    Attributes:
        planned, done, failed, running: shards; planned is None before the first run.
        seconds_left: estimate from the mean time a shard, None where nothing runs or nothing is known.
        failures: (shard, reason), at most 1000.
        quarantined: reasons by file.
        renamed: by file and the headers' codes, the codes used, where they differ.
        stations: seconds with samples and events of each day, by station.
        num_events: all events.
        gaps: gaps in all channels.
        blanked_seconds: time in which nothing could trigger after gaps, all channels.
        totals: samples, seconds and files by outcome.
        unusable: files of the listing that cannot be used at all.
        not_selected: files that are not selected, by the key that leaves them out.
    """

    planned: int | None = None
    done: int = 0
    failed: int = 0
    running: int = 0
    seconds_left: float | None = None
    failures: list[tuple[str, str]] = field(default_factory=list)
    quarantined: dict[str, list[str]] = field(default_factory=dict)
    renamed: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    stations: dict[str, StationDays] = field(default_factory=lambda: defaultdict(StationDays))
    num_events: int = 0
    gaps: int = 0
    blanked_seconds: float = 0.0
    totals: Totals = field(default_factory=Totals)
    unusable: int = 0
    not_selected: dict[str, int] = field(default_factory=dict)


def read_status(store: Store) -> DetectionStatus:
    """Read the ledger of a workspace's detection; sums, paths of markers and 28 bytes a channel's day are kept."""
    status = DetectionStatus()
    progress = DetectionProgress.read(store)
    # Markers come in no order; of a file that several speak of, the last one in order of paths holds.
    last: dict[tuple[str, ...], tuple[str, str]] = {}

    def is_last(place: tuple[str, str], *key: str) -> bool:
        holds = place >= last.get(key, place)
        if holds:
            last[key] = place
        return holds

    for name, marker in read_markers(store, "detect" if progress is None else progress.ledger):
        place = (name.partition, f"{name.shard}.{name.fingerprint}.json")
        status.done += 1
        status.gaps += marker["gaps"]
        days = status.stations[f"{name.network}.{name.station}"]
        events = marker["counts"]["events"]
        status.num_events += events
        # Markers of before this was counted say only how many events the shard has.
        by_day = marker.get("events_by_day", {marker["start"][:10]: events} if events else {})
        for day, count in by_day.items():
            days.add_events(day, count)
        for entry in marker["coverage"]:
            days.add_seconds(entry["day"], entry["channel"], entry["seconds"])
            status.blanked_seconds += entry["blanked_seconds"]
        for entry in marker["quarantined"]:
            if is_last(place, entry["key"]):
                status.quarantined[entry["key"]] = entry["reasons"]
        status.totals.add(marker)
        for entry in marker.get("renamed", ()):
            if is_last(place, entry["key"], entry["headers"]):
                status.renamed[entry["key"]][entry["headers"]] = entry["used"]
    if progress is not None:
        status.planned = progress.planned
        status.failed = progress.num_failed
        status.failures = [(entry.shard, entry.reason) for entry in progress.failed]
        alive = time.time() - progress.updated < ALIVE_SECONDS
        left = progress.planned - status.done
        if alive and progress.running:
            status.running = min(progress.running, left)
            rate = progress.done_since / max(progress.updated - progress.started, 1e-3)
            status.seconds_left = left / rate if rate else None
    listing = read_listing(store)
    status.unusable, status.not_selected = listing.num_unusable, dict(listing.not_selected)
    status.totals.samples.update(listing.dropped)
    return status
