"""What a shard's marker says: gathered day by day while the shard is detected."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pipelines import __version__
from pipelines.archive.codes import show
from pipelines.archive.layouts import DAY_NS
from pipelines.archive.records import Channel
from pipelines.detect.anchored import Pass, account
from pipelines.detect.stage_day import ChannelGroup, Day
from pipelines.detect.stage_tasks import BatchTask, ShardTask


@dataclass
class ShardReport:
    """What was found in a shard, and what could not be used.

    Attributes:
        coverage: by day (YYYY-MM-DD) and channel: seconds with samples and blanked, gaps, overlaps.
        quarantined: by file, what could not be read in it and why.
        renamed: by file, (headers' codes, codes used) where they differ.
        skipped: groups and channels that nothing can be detected in, and why.
        onsets_ns: onsets in the order of the rows.
        num_without_response: triggers that were dropped, since `archive.stationxml` has no epoch at their time.
    """

    coverage: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    quarantined: dict[str, list[str]] = field(default_factory=dict)
    renamed: dict[str, list[tuple[Channel, Channel]]] = field(default_factory=dict)
    skipped: set[str] = field(default_factory=set)
    onsets_ns: list[int] = field(default_factory=list)
    num_without_response: int = 0

    def add_day(
        self, day: Day, shard: ShardTask, batch: BatchTask, bounds: tuple[int, int], *, lta_seconds: float
    ) -> None:
        """Add what a day holds in the `bounds` (start, end) that the shard owns of it."""
        date = iso_time(day.anchor_ns)[:10]
        for group in day.groups:
            for channel, values in find_coverage(group, *bounds, lta_seconds).items():
                if values["seconds"] > 0:
                    code = f"{group.codes[2]}.{channel}.{group.rate_hz:g}"
                    self.coverage[(date, code)] = values | group.notes.get(channel, {})
        for group, found in zip(day.groups, day.passes, strict=True):
            dropped = [span for span in found.result().without_response if bounds[0] <= span.onset_ns < bounds[1]]
            self.num_without_response += len(dropped)
            self.skipped.update(
                f"{'.'.join(group.codes[:3])}.{channel} at {group.rate_hz:g} Hz: triggers at times of which "
                "archive.stationxml has no epoch, or several that differ"
                for channel in {span.channel for span in dropped}
            )
        for index, reasons in day.quarantined.items():
            # The day may have been read for more shards than this one.
            if index in shard.files:
                self.quarantined[batch.files[index].path] = reasons
        for index, differences in day.renamed.items():
            if shard.owns(batch.homes[index]):
                self.renamed[batch.files[index].path] = differences
        self.skipped.update(day.skipped)

    def content(self, shard: ShardTask, batch: BatchTask, *, num_rows: int, seconds: float) -> dict[str, Any]:
        """Return the marker's content, for a shard of so many rows that took so many seconds."""
        inputs: Sequence[Any] = [batch.files[index] for index in shard.files]
        return {
            "outcome": "events" if num_rows else "no events" if self.coverage else "no data",
            "start": iso_time(shard.start_ns),
            "end": iso_time(shard.end_ns),
            "inputs": [{"key": item.path, "size": item.size, "etag": item.etag} for item in inputs],
            "quarantined": [{"key": key, "reasons": reasons} for key, reasons in sorted(self.quarantined.items())],
            "renamed": [
                {"key": key, "headers": show(found), "used": show(used)}
                for key, differences in sorted(self.renamed.items())
                for found, used in differences
            ],
            "skipped": sorted(self.skipped),
            "coverage": [
                {"day": day, "channel": channel} | values for (day, channel), values in sorted(self.coverage.items())
            ],
            "gaps": sum(values["gaps"] for values in self.coverage.values()),
            "counts": {"events": num_rows}
            | ({"triggers_without_response": self.num_without_response} if self.num_without_response else {}),
            "events_by_day": count_by_day(self.onsets_ns),
            "seconds": round(seconds, 3),
            "version": __version__,
        }


def find_coverage(group: ChannelGroup, start_ns: int, end_ns: int, lta_seconds: float) -> dict[str, dict[str, Any]]:
    """Return by channel the seconds with samples, those blanked after gaps, and how many gaps begin there."""
    found = Pass()
    for channel, segments in group.segments.items():
        account(found, channel, segments, round(lta_seconds * group.rate_hz), group.rate_hz, start_ns, end_ns)
    return {
        channel: {
            "seconds": round(found.covered_seconds[channel], 6),
            "blanked_seconds": round(found.blanked_seconds[channel], 6),
            "gaps": found.gaps[channel],
        }
        for channel in group.segments
    }


def count_by_day(onsets_ns: Iterable[int]) -> dict[str, int]:
    """Return how many of some onsets each UTC day (YYYY-MM-DD) has."""
    days = Counter(onset // DAY_NS for onset in onsets_ns)
    return {iso_time(day * DAY_NS)[:10]: count for day, count in sorted(days.items())}


def iso_time(time_ns: int) -> str:
    """Return a time in nanoseconds since 1970 as ISO 8601 text, with nanoseconds where there are any."""
    seconds, rest = divmod(time_ns, 1_000_000_000)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{rest:09d}Z" if rest else f"{text}Z"
