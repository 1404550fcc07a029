"""What a shard's marker says, and its rows of availability/: gathered day by day while the shard is detected."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa

from pipelines import __version__
from pipelines.archive.codes import show
from pipelines.archive.layouts import DAY_NS, PathInfo
from pipelines.archive.records import Channel
from pipelines.config.detection import DetectionSettings
from pipelines.detect.account import Recording, seconds_recorded
from pipelines.detect.anchored import Pass, account
from pipelines.detect.stage_day import ChannelGroup, Day, path_info
from pipelines.detect.stage_tasks import BatchTask, ShardTask
from pipelines.workspace import schemas
from pipelines.workspace.outcomes import TIMED, FileOutcome, Outcome

# Network, station, location, channel, day since 1970, rate in Hz.
_RowKey = tuple[str, str, str | None, str | None, int, float | None]


@dataclass
class ShardReport:
    """What was found in a shard, and what became of everything that was read for it.

    Attributes:
        shard, batch: the shard, and the batch that it is detected in.
        detection: settings.
        selected_ns: archive.start and archive.end.
        coverage: by day (YYYY-MM-DD) and channel: seconds with samples and blanked, gaps, overlaps.
        quarantined: by file, what could not be read in it and why.
        renamed: by file, (headers' codes, codes used) where they differ.
        skipped: groups and channels that nothing can be detected in, and why.
        onsets_ns: onsets in the order of the rows.
        num_without_response: triggers that were dropped, since `archive.stationxml` has no epoch at their time.
        samples: by outcome, samples of the owned interval, and those of files whose middle lies in it.
        files: by outcome, files whose middle lies in the owned interval.
    """

    shard: ShardTask
    batch: BatchTask
    detection: DetectionSettings
    selected_ns: tuple[int, int]
    coverage: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    quarantined: dict[str, list[str]] = field(default_factory=dict)
    renamed: dict[str, list[tuple[Channel, Channel]]] = field(default_factory=dict)
    skipped: set[str] = field(default_factory=set)
    onsets_ns: list[int] = field(default_factory=list)
    num_without_response: int = 0
    samples: Counter[Outcome] = field(default_factory=Counter)
    files: Counter[FileOutcome] = field(default_factory=Counter)
    _rows: dict[_RowKey, dict[Outcome, float]] = field(
        default_factory=lambda: defaultdict(lambda: dict.fromkeys(TIMED, 0.0))
    )

    def add_day(self, day: Day, start_ns: int, end_ns: int) -> None:
        """Add what a day holds in the interval that the shard owns of it."""
        for group in day.groups:
            for channel, values in find_coverage(group, start_ns, end_ns, self.detection).items():
                if values["seconds"] > 0:
                    code = f"{group.codes[2]}.{channel}.{group.rate_hz:g}"
                    self.coverage[(iso_time(day.anchor_ns)[:10], code)] = values | group.notes.get(channel, {})
        for group, found in zip(day.groups, day.passes, strict=True):
            dropped = [span for span in found.result().without_response if start_ns <= span.onset_ns < end_ns]
            self.num_without_response += len(dropped)
            self.skipped.update(
                f"{'.'.join(group.codes[:3])}.{channel} at {group.rate_hz:g} Hz: triggers at times of which "
                "archive.stationxml has no epoch, or several that differ"
                for channel in {span.channel for span in dropped}
            )
        for index, reasons in day.quarantined.items():
            # The day may have been read for more shards than this one.
            if index in self.shard.files:
                self.quarantined[self.batch.files[index].path] = reasons
        for index, file in day.files.items():
            if start_ns <= self.batch.homes[index] < end_ns:
                self.samples += file.dropped
                if self.batch.first[index]:
                    self.samples += file.left_out
                    self.files[file.outcome] += 1
                if index in day.renamed:
                    self.renamed[self.batch.files[index].path] = day.renamed[index]
        self.skipped.update(day.skipped)
        self._add_recordings(day, start_ns, end_ns)
        self._add_expected(day, start_ns, end_ns)

    def _add_recordings(self, day: Day, start_ns: int, end_ns: int) -> None:
        number = day.anchor_ns // DAY_NS
        channels: dict[Channel, list[tuple[int, Recording]]] = defaultdict(list)
        for recording in day.recordings:
            samples = recording.samples(start_ns, end_ns, self.detection.blanked_samples(recording.rate_hz))
            self.samples += samples
            if samples:
                row = self._rows[(*recording.codes, number, recording.rate_hz)]
                for outcome, count in samples.items():
                    row[outcome] += count / recording.rate_hz
                channels[recording.codes].append((samples.total(), recording))
        low, high = max(start_ns, self.selected_ns[0]), min(end_ns, self.selected_ns[1])
        for codes, found in channels.items():
            recordings = [recording for _, recording in found]
            recorded = seconds_recorded(recordings, low, high)
            # One rate's row has the time without samples of any.
            _, most = max(found, key=lambda item: (item[0], -item[1].rate_hz))
            row = self._rows[(*codes, number, most.rate_hz)]
            row[Outcome.NO_DATA] += max(max(high - low, 0) / 1e9 - recorded, 0.0)
            row[Outcome.NOT_SELECTED] += (end_ns - start_ns - max(high - low, 0)) / 1e9

    def _add_expected(self, day: Day, start_ns: int, end_ns: int) -> None:
        """Add the channels that a file's path says are there, and of which nothing was read."""
        number = day.anchor_ns // DAY_NS
        low, high = max(start_ns, self.selected_ns[0]), min(end_ns, self.selected_ns[1])
        found = {key[:4] for key in self._rows if key[4] == number}
        missing: dict[tuple[str, str, str | None, str | None], set[FileOutcome]] = defaultdict(set)
        for index, file in day.files.items():
            info = path_info(self.batch.layout, self.batch.files[index].path)
            if info is None or not _holds(info, low, high):
                continue
            codes = (info.network or "", info.station or "", info.location, info.channel)
            if not any(all(b in (None, a) for a, b in zip(key, codes, strict=True)) for key in found):
                missing[codes].add(file.outcome)
        for codes, outcomes in missing.items():
            outcome = Outcome.UNREADABLE if FileOutcome.UNREADABLE in outcomes else Outcome.NO_DATA
            row = self._rows[(*codes, number, None)]
            row[outcome] += (high - low) / 1e9
            row[Outcome.NOT_SELECTED] += (end_ns - start_ns - (high - low)) / 1e9

    def availability(self) -> pa.Table:
        """Return the shard's rows of availability/."""
        schema = schemas.availability_schema()
        rows = []
        for key, seconds in sorted(self._rows.items(), key=lambda item: [(x is not None, x) for x in item[0]]):
            network, station, location, channel, number, rate_hz = key
            codes = {"network": network, "station": station, "location": location, "channel": channel}
            row = codes | {"day": date.fromordinal(_EPOCH + number), "rate_hz": rate_hz}
            rows.append(row | {f"{outcome}_seconds": round(seconds[outcome], 6) for outcome in TIMED})
        return pa.Table.from_pylist(rows, schema=schema)

    def content(self, *, num_rows: int, seconds: float) -> dict[str, Any]:
        """Return the marker's content, for a shard of so many rows that took so many seconds."""
        inputs = [self.batch.files[index] for index in self.shard.files]
        totals = {outcome: sum(row[outcome] for row in self._rows.values()) for outcome in TIMED}
        return {
            "outcome": "events" if num_rows else "no events" if self.coverage else "no data",
            "start": iso_time(self.shard.start_ns),
            "end": iso_time(self.shard.end_ns),
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
            "account": {
                "samples": {str(outcome): count for outcome, count in sorted(self.samples.items()) if count},
                "seconds": {str(name): round(total, 6) for name, total in sorted(totals.items()) if round(total, 6)},
                "files": {str(outcome): count for outcome, count in sorted(self.files.items())},
            },
            "seconds": round(seconds, 3),
            "version": __version__,
        }


_EPOCH = date(1970, 1, 1).toordinal()


def _holds(info: PathInfo, start_ns: int, end_ns: int) -> bool:
    """Return whether a path says that its file holds a part of an interval."""
    return info.start_ns is not None and info.end_ns is not None and info.start_ns < end_ns and info.end_ns > start_ns


def find_coverage(
    group: ChannelGroup, start_ns: int, end_ns: int, detection: DetectionSettings
) -> dict[str, dict[str, Any]]:
    """Return by channel the seconds with samples, those blanked after gaps, and how many gaps begin there."""
    found = Pass()
    for channel, segments in group.segments.items():
        num_blanked = detection.blanked_samples(group.rate_hz)
        account(found, channel, segments, num_blanked, group.rate_hz, start_ns, end_ns)
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
