"""What `firnline status` tells: shards done, running, failed, quarantined input, coverage, events a day, time left."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from pipelines.archive.manifest import read_listing
from pipelines.detect.account import Totals
from pipelines.workspace.artifacts import DetectionProgress
from pipelines.workspace.ledger import MarkerName, list_markers, read_detection_marker
from pipelines.workspace.storage import Store

READING_THREADS = 16
ALIVE_SECONDS = 60.0


@dataclass
class DetectionStatus:
    """Sums over the ledger.

    Attributes:
        planned, done, failed, running: shards; planned is None before the first run.
        seconds_left: estimate from the mean time a shard, None where nothing runs or nothing is known.
        failures: (shard, reason), at most 1000.
        quarantined: reasons by file.
        renamed: by file and the headers' codes, the codes used, where they differ.
        coverage: seconds with samples by station, day (YYYY-MM-DD) and channel.
        events: events by station and day (YYYY-MM-DD) of their onset.
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
    coverage: dict[str, dict[str, dict[str, float]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(dict))
    )
    events: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    num_events: int = 0
    gaps: int = 0
    blanked_seconds: float = 0.0
    totals: Totals = field(default_factory=Totals)
    unusable: int = 0
    not_selected: dict[str, int] = field(default_factory=dict)

    def share_covered(self, station: str, day: str) -> float:
        """Return the part of a day that a station's best channel covers."""
        return max(self.coverage[station][day].values(), default=0.0) / 86400


def read_status(store: Store) -> DetectionStatus:
    """Read the ledger of a workspace's detection; several markers at a time, sums only are kept."""
    status = DetectionStatus()
    progress = DetectionProgress.read(store)
    for name, marker in _markers(store, "detect" if progress is None else progress.ledger):
        status.done += 1
        status.gaps += marker["gaps"]
        station = f"{name.network}.{name.station}"
        events = marker["counts"]["events"]
        status.num_events += events
        # Markers of before this was counted say only how many events the shard has.
        for day, count in marker.get("events_by_day", {marker["start"][:10]: events} if events else {}).items():
            status.events[station][day] += count
        for entry in marker["coverage"]:
            channel, day = entry["channel"], entry["day"]
            before = status.coverage[station][day].get(channel, 0.0)
            status.coverage[station][day][channel] = before + entry["seconds"]
            status.blanked_seconds += entry["blanked_seconds"]
        for entry in marker["quarantined"]:
            status.quarantined[entry["key"]] = entry["reasons"]
        status.totals.add(marker)
        for entry in marker.get("renamed", ()):
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


def _markers(store: Store, ledger: str) -> Iterator[tuple[MarkerName, dict[str, Any]]]:
    names = list_markers(store, ledger)

    def read(name: MarkerName) -> tuple[MarkerName, dict[str, Any]]:
        return name, read_detection_marker(store, ledger, name)

    with ThreadPoolExecutor(READING_THREADS) as pool:
        yield from pool.map(read, names)
