"""Detect the events of successive shards of one channel group: read, assemble, scan, cut. Plain functions, no Ray."""

import functools
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines import __version__
from pipelines.archive.continuity import Segment, assemble
from pipelines.archive.layouts import DAY_NS, code_matcher
from pipelines.archive.manifest import ANY, selection
from pipelines.archive.reading import FileReader
from pipelines.archive.records import Channel, Run, nominal_rate
from pipelines.config import Config
from pipelines.config.archive import ArchiveSettings
from pipelines.config.detection import DetectionSettings
from pipelines.detect.anchored import (
    COMPONENTS,
    Onset,
    Pass,
    Windows,
    account,
    component_row,
    context_seconds,
    cut_windows,
    find_onsets,
    split_days,
)
from pipelines.detect.response import Responses
from pipelines.runtime.errors import describe
from pipelines.workspace import tables
from pipelines.workspace.ledger import MarkerName, write_marker
from pipelines.workspace.storage import Store, StoredObject

ATTEMPTS = 2
SHARDS_UNPUBLISHED = 4
ONSETS_AT_A_TIME = 128
IO_THREADS = 8
"""Threads of a worker that wait for the store: files of the next days come and finished shards go meanwhile."""
AHEAD_BYTES = 64 * 2**20
"""Most bytes of files that a worker holds, or waits for, before they are read."""
DAY_BYTES_AHEAD = 2**27
"""Most bytes of a day's samples with which the next day is decoded meanwhile: three of integers at 125 Hz."""
_BY_PRECEDENCE = {code: rank for rank, code in enumerate("ENZ123")}


@dataclass(frozen=True)
class ShardTask:
    """A shard as it is sent to a worker."""

    name: MarkerName
    start_ns: int
    end_ns: int
    files: tuple[int, ...]


@dataclass(frozen=True)
class BatchTask:
    """Successive shards of one channel group, and the files that they reach.

    Attributes:
        location, band: of the channel group; `*` where the paths do not say.
        shards: in order of time.
        files: what they read.
        spans: for each file the (start, end) in nanoseconds of what is believed to be in it.
    """

    location: str
    band: str
    shards: tuple[ShardTask, ...]
    files: tuple[StoredObject, ...]
    spans: tuple[tuple[int, int], ...]


@dataclass
class Group:
    """A channel group on one day.

    Attributes:
        codes: network, station, location, band and instrument code.
        rate_hz: sampling rate in Hz.
        channels: channel code by component row.
        segments: segments by component row.
        notes: what was done to get the segments, by channel.
    """

    codes: tuple[str, str, str, str]
    rate_hz: float
    channels: dict[int, str]
    segments: dict[int, list[Segment]]
    notes: dict[str, dict[str, int]] = field(default_factory=dict)


@dataclass
class Day:
    """All channel groups of a station's files on one day, and what could not be used.

    Attributes:
        anchor_ns: 00:00 UTC of the day.
        groups: channel groups.
        passes: of each group, the anchored pass, which goes on in another thread.
        quarantined: by file of the batch, what could not be read in it and why.
        skipped: groups and channels that nothing can be detected in, and why.
    """

    anchor_ns: int
    groups: list[Group] = field(default_factory=list)
    passes: list[Future[Pass]] = field(default_factory=list)
    quarantined: dict[int, list[str]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    @property
    def num_bytes(self) -> int:
        """Return how much memory the samples take."""
        segments = (part for group in self.groups for parts in group.segments.values() for part in parts)
        return sum(piece.nbytes for part in segments for piece in part.pieces)


@functools.cache
def _io_threads() -> ThreadPoolExecutor:
    """Return the threads of this process that wait for stores."""
    return ThreadPoolExecutor(IO_THREADS, thread_name_prefix="firnline-store")


@functools.cache
def _scan_thread() -> ThreadPoolExecutor:
    """Return the thread of this process that scans a day while the next one is decoded."""
    return ThreadPoolExecutor(1, thread_name_prefix="firnline-scan")


def _is_wanted(name: MarkerName, location: str, band: str, archive: ArchiveSettings, codes: Channel) -> bool:
    """Return whether a channel belongs to a shard's group and is selected."""
    return (
        codes.network == name.network
        and codes.station == name.station
        and location in (ANY, codes.location)
        and band in (ANY, codes.channel[:2])
        and code_matcher(archive.location)(codes.location)
        and code_matcher(archive.channel)(codes.channel)
    )


def _publish(
    workspace: Store,
    empty: str | None,
    publish: Callable[[], None],
    ledger: str,
    name: MarkerName,
    content: dict[str, Any],
) -> dict[str, Any]:
    """Make a shard's file durable, or remove the `empty` shard's of an earlier run, then write the marker."""
    publish()
    if empty is not None:
        workspace.remove(empty)
    write_marker(workspace, ledger, name, content)
    return content


def destination(detection: DetectionSettings) -> tuple[str, str]:
    """Return the (table, ledger) that shards are written to: with a network coincidence their rows are candidates."""
    return ("triggers", "trigger") if detection.coincidence_stations > 1 else ("events", "detect")


class BatchDetector:
    """Runs a batch's shards one after the other; files and days that successive shards share are read once.

    While a day is scanned in another thread, the next one is decoded in this one, whose arrays the C library can use
    again (see `pipelines.runtime.allocator`).
    """

    def __init__(
        self, archive: Store, workspace: Store, config: Config, responses: Responses, batch: BatchTask
    ) -> None:
        self.archive, self.workspace, self.config, self.batch = archive, workspace, config, batch
        self.responses = responses
        # A function of its own: readers that refer to what holds them would outlive their last use.
        self.wanted = partial(_is_wanted, batch.shards[0].name, batch.location, batch.band, config.archive)
        self.readers: dict[int, FileReader] = {}
        self.day: Day | None = None
        self.next_day: Day | None = None
        before, after = context_seconds(config.detection, config.window)
        self.before_ns, self.after_ns = round(before * 1e9), round(after * 1e9)
        first, last = selection(config.archive)
        self.first_ns = first if first is not None else -(2**62)
        self.last_ns = last if last is not None else 2**62
        self.owned = {anchor for shard in batch.shards for anchor, _, _ in split_days(shard.start_ns, shard.end_ns)}
        """00:00 UTC of each day of which the batch owns something."""

    def begin(self, shard: ShardTask) -> Future[dict[str, Any]]:
        """Detect one shard; what makes its rows durable and then writes the marker goes on in the background."""
        began = time.perf_counter()
        report: dict[str, Any] = {"coverage": {}, "quarantined": {}, "skipped": set(), "onsets": []}
        table, ledger = destination(self.config.detection)
        path = tables.shard_path(table, shard.name.network, shard.name.station, shard.name.shard)
        schema = tables.events_schema(self.config.window.num_samples)
        rows, publish = tables.prepare_batches(self.workspace, path, schema, self._batches(shard, report))
        content = self._content(shard, report, rows, time.perf_counter() - began)
        if ledger == "trigger":
            content["onsets_ns"] = report["onsets"]
        return _io_threads().submit(
            _publish, self.workspace, path if not rows else None, publish, ledger, shard.name, content
        )

    def _content(self, shard: ShardTask, report: dict[str, Any], rows: int, seconds: float) -> dict[str, Any]:
        coverage = report["coverage"]
        quarantined = [{"key": key, "reasons": reasons} for key, reasons in sorted(report["quarantined"].items())]
        outcome = "events" if rows else "no events" if coverage else "no data"
        inputs = [self.batch.files[index] for index in shard.files]
        return {
            "outcome": outcome,
            "start": _iso(shard.start_ns),
            "end": _iso(shard.end_ns),
            "inputs": [{"key": item.path, "size": item.size, "etag": item.etag} for item in inputs],
            "quarantined": quarantined,
            "skipped": sorted(report["skipped"]),
            "coverage": [
                {"day": day, "channel": channel} | values for (day, channel), values in sorted(coverage.items())
            ],
            "gaps": sum(values["gaps"] for values in coverage.values()),
            "counts": {"events": rows},
            "seconds": round(seconds, 3),
            "version": __version__,
        }

    def _batches(self, shard: ShardTask, report: dict[str, Any]) -> Iterator[pa.RecordBatch]:
        for anchor_ns, start_ns, end_ns in split_days(shard.start_ns, shard.end_ns):
            day = self._day(anchor_ns)
            self._record(day, shard, start_ns, end_ns, report)
            owned = [
                (onset, _event_id(group, onset), group)
                for group, found in zip(day.groups, day.passes, strict=True)
                for onset in found.result().onsets
                if start_ns <= onset.onset_ns < end_ns
            ]
            owned.sort(key=lambda item: item[:2])
            report["onsets"] += [onset.onset_ns for onset, _, _ in owned]
            for first in range(0, len(owned), ONSETS_AT_A_TIME):
                yield self._rows(owned[first : first + ONSETS_AT_A_TIME], shard.name.shard)
            # They would hold this day's samples until two more are read.
            del day, owned

    def _record(self, day: Day, shard: ShardTask, start_ns: int, end_ns: int, report: dict[str, Any]) -> None:
        date = _iso(day.anchor_ns)[:10]
        for group in day.groups:
            seen = find_coverage(group, start_ns, end_ns, self.config.detection.lta_seconds)
            for row, values in seen.items():
                if values["seconds"] > 0:
                    code = f"{group.codes[2]}.{group.channels[row]}.{group.rate_hz:g}"
                    report["coverage"][(date, code)] = values | group.notes.get(group.channels[row], {})
        for index, reasons in day.quarantined.items():
            # The day may have been read for more shards than this one.
            if index in shard.files:
                report["quarantined"][self.batch.files[index].path] = reasons
        report["skipped"].update(day.skipped)

    def _day(self, anchor_ns: int) -> Day:
        """Return the pass of a day, and begin that of the day after it."""
        if self.day is not None and self.day.anchor_ns == anchor_ns:
            return self.day
        self.day, ahead, self.next_day = None, self.next_day, None
        self.day = ahead if ahead is not None and ahead.anchor_ns == anchor_ns else self._begin_day(anchor_ns)
        if anchor_ns + DAY_NS in self.owned and self.day.num_bytes <= DAY_BYTES_AHEAD:
            try:
                self.next_day = self._begin_day(anchor_ns + DAY_NS)
            except Exception as error:
                # Not this day's failure: the next one is read again, from its files, when its turn comes.
                # It is not told, but its traceback would hold what was read.
                error.with_traceback(None)
                self.readers.clear()
        return self.day

    def _begin_day(self, anchor_ns: int) -> Day:
        """Read and assemble a day, and begin to scan it."""
        # All of the day, whatever part is owned: which channels it has, and what they are like, hangs on no cut.
        low = max(anchor_ns - self.before_ns, self.first_ns)
        high = min(anchor_ns + DAY_NS + self.after_ns, self.last_ns)
        next_high = min(high + DAY_NS, max(self.owned) + DAY_NS + self.after_ns, self.last_ns)
        self._fetch_ahead(low, next_high)
        runs, day = self._read(anchor_ns, low, high)
        by_group: dict[tuple[tuple[str, str, str, str], float], dict[str, list[Run]]] = {}
        for run in runs:
            codes = (run.channel.network, run.channel.station, run.channel.location, run.channel.channel[:2])
            key = (codes, nominal_rate(run.rate_hz))
            by_group.setdefault(key, {}).setdefault(run.channel.channel, []).append(run)
        for (codes, rate_hz), channels in sorted(by_group.items(), key=lambda item: item[0]):
            group = self._assemble(codes, rate_hz, channels, day)
            if group is None:
                continue
            day.groups.append(group)
            day.passes.append(
                _scan_thread().submit(find_onsets, group.segments, self.config.detection, rate_hz, anchor_ns=anchor_ns)
            )
        return day

    def _fetch_ahead(self, low: int, high: int) -> None:
        """Begin to fetch the files that the days up to `high` need; a disk answers too quickly for that to pay."""
        if self.archive.is_local:
            return
        room = AHEAD_BYTES - sum(reader.bytes_ahead for reader in self.readers.values())
        for index, (begin, end) in enumerate(self.batch.spans):
            if end > low and begin < high and self.batch.files[index].size <= room:
                reader = self._reader(index)
                room += reader.bytes_ahead
                reader.fetch_ahead(_io_threads())
                room -= reader.bytes_ahead

    def _reader(self, index: int) -> FileReader:
        reader = self.readers.get(index)
        if reader is None:
            batch = self.batch
            reader = FileReader(self.archive, batch.files[index], batch.spans[index], self.wanted)
            self.readers[index] = reader
        return reader

    def _read(self, anchor_ns: int, low: int, high: int) -> tuple[list[Run], Day]:
        day = Day(anchor_ns)
        runs: list[Run] = []
        for index, (begin, end) in enumerate(self.batch.spans):
            if end <= low or begin >= high:
                # Days come in order: a file that ends before this one's context is not asked for again.
                if end <= low:
                    self.readers.pop(index, None)
                continue
            reader = self._reader(index)
            reader.forget_before(low)
            decoded = reader.read(low, high)
            runs += [part for run in decoded.runs if (part := run.clip(low, high)) is not None]
            problems = list(decoded.problems)
            if decoded.num_problems > len(problems):
                problems.append(f"and {decoded.num_problems - len(problems)} more")
            if problems:
                day.quarantined[index] = problems
        return runs, day

    def _assemble(
        self, codes: tuple[str, str, str, str], rate_hz: float, channels: dict[str, list[Run]], day: Day
    ) -> Group | None:
        name = f"{'.'.join(codes)} at {rate_hz:g} Hz"
        detection = self.config.detection
        if detection.band_hz[1] >= rate_hz / 2:
            day.skipped.append(f"{name}: detection.band_hz reaches {detection.band_hz[1]:g} Hz, not below Nyquist")
            return None
        num_sta, num_lta = detection.average_samples(rate_hz)
        if num_sta >= num_lta:
            day.skipped.append(f"{name}: detection.sta_seconds and lta_seconds are {num_sta} and {num_lta} samples")
            return None
        group = Group(codes, rate_hz, {}, {})
        for channel in sorted(channels, key=lambda code: _BY_PRECEDENCE.get(code[-1:], 9)):
            row = component_row(channel)
            if row is None:
                day.skipped.append(f"{name}: {channel} is no component E, N, Z, 1, 2 or 3")
                continue
            if row in group.channels:
                day.skipped.append(f"{name}: {channel} is the same component as {group.channels[row]}")
                continue
            continuity = assemble(
                channels[channel], rate_hz=rate_hz, tolerance_samples=self.config.archive.time_tolerance_samples
            )
            group.channels[row] = channel
            group.segments[row] = continuity.segments
            counts = {
                "duplicate_samples": continuity.duplicate_samples,
                "conflicting_samples": continuity.conflicting_samples,
                "superseded_samples": continuity.superseded_samples,
                "bad_samples": continuity.bad_samples,
            }
            group.notes[channel] = {key: value for key, value in counts.items() if value}
        if group.channels and not {COMPONENTS[row] for row in group.channels} & set(detection.trigger_components):
            day.skipped.append(f"{name}: no component of detection.trigger_components {detection.trigger_components}")
        missing = self.responses.missing(codes, group.channels.values())
        if missing:
            day.skipped.append(f"{name}: archive.stationxml has no sensitivity for {missing}")
            return None
        return group if group.segments else None

    def _cut(self, owned: Sequence[tuple[Onset, str, Group]]) -> Windows:
        """Cut the windows of some onsets, in their order."""
        order: list[int] = []
        parts: list[Windows] = []
        for number in dict.fromkeys(id(group) for _, _, group in owned):
            places = [place for place, (_, _, group) in enumerate(owned) if id(group) == number]
            onsets, group = [owned[place][0] for place in places], owned[places[0]][2]
            times_ns = np.array([onset.onset_ns for onset in onsets], np.int64)
            factors = self.responses.factors(group.codes, group.channels, times_ns)
            cut = cut_windows(group.segments, onsets, self.config.detection, self.config.window, group.rate_hz, factors)
            parts.append(self.responses.remove(cut, group.codes, group.channels, self.config.window, times_ns))
            order += places
        if len(parts) == 1:
            return parts[0]
        back = np.argsort(order)
        return Windows(*(np.concatenate(values)[back] for values in zip(*parts, strict=True)))

    def _rows(self, owned: Sequence[tuple[Onset, str, Group]], shard: str) -> pa.RecordBatch:
        window = self.config.window
        count = len(owned)
        waveforms, starts, snr_db, peak, missing = self._cut(owned)
        present = np.asarray(np.isfinite(waveforms).any(axis=2))
        onset_ns = np.array([onset.onset_ns for onset, _, _ in owned], np.int64)
        end_ns = np.array([onset.end_ns for onset, _, _ in owned], np.int64)
        channels = [
            [group.channels.get(row) if present[index, row] else None for row in range(3)]
            for index, (_, _, group) in enumerate(owned)
        ]
        columns: Mapping[str, Any] = {
            "event_id": [name for _, name, _ in owned],
            "network": [group.codes[0] for _, _, group in owned],
            "station": [group.codes[1] for _, _, group in owned],
            "location": [group.codes[2] for _, _, group in owned],
            "channels": channels,
            "onset": onset_ns,
            "window_start": starts,
            "duration_s": ((end_ns - onset_ns) / 1e9).astype(np.float32),
            "peak_ratio": np.array([onset.peak for onset, _, _ in owned], np.float32),
            "snr_db": snr_db,
            "peak_amplitude": peak,
            "units": [self.config.detection.units] * count,
            "sampling_rate": np.full(count, window.rate_hz),
            "source_sampling_rate": np.array([group.rate_hz for _, _, group in owned]),
            "missing_fraction": missing,
            "trigger_channel": [group.channels[onset.component] for onset, _, group in owned],
            "shard": [shard] * count,
        }
        schema = tables.events_schema(window.num_samples)
        arrays = [pa.array(columns[name], schema.field(name).type) for name in schema.names[:-1]]
        return pa.RecordBatch.from_arrays([*arrays, tables.tensor_array(waveforms)], schema=schema)


def detect_batch(
    new_detector: Callable[[BatchTask], BatchDetector], batch: BatchTask
) -> Iterator[tuple[ShardTask, dict[str, Any]]]:
    """Detect a batch's shards, each tried twice; yield each, once it is durable, and its marker's content, or `error`.

    Shards become durable while the next ones are detected, SHARDS_UNPUBLISHED of them at most.
    """
    detector = new_detector(batch)
    begun: deque[tuple[ShardTask, Future[dict[str, Any]]]] = deque()

    def again(shard: ShardTask, problem: str) -> tuple[ShardTask, dict[str, Any]]:
        return shard, _detect_again(partial(new_detector, replace(batch, shards=(shard,))), shard, problem)

    def published() -> tuple[ShardTask, dict[str, Any]]:
        shard, future = begun.popleft()
        try:
            return shard, future.result()
        except Exception as error:
            problem = _describe(error)
        return again(shard, problem)

    try:
        for shard in batch.shards:
            while len(begun) >= SHARDS_UNPUBLISHED:
                yield published()
            problem = ""
            try:
                begun.append((shard, detector.begin(shard)))
            except Exception as error:
                problem = _describe(error)
            if problem:
                detector = new_detector(batch)
                yield again(shard, problem)
        while begun:
            yield published()
    finally:
        wait([future for _, future in begun])


def _detect_again(new_detector: Callable[[], BatchDetector], shard: ShardTask, problem: str) -> dict[str, Any]:
    """Try a shard that failed again, from its files; return its marker's content, or what went wrong."""
    for attempt in range(1, ATTEMPTS):
        time.sleep(attempt)
        try:
            return new_detector().begin(shard).result()
        except Exception as error:
            problem = _describe(error)
    return {"error": problem}


def _describe(error: Exception) -> str:
    """Return an error on one line, and let go of its traceback, which holds a day's samples and may be held by them."""
    return describe(error.with_traceback(None))


def find_coverage(group: Group, start_ns: int, end_ns: int, lta_seconds: float) -> dict[int, dict[str, Any]]:
    """Return by component row the seconds with samples, those blanked after gaps, and how many gaps begin there."""
    found = Pass()
    for row, segments in group.segments.items():
        account(found, row, segments, round(lta_seconds * group.rate_hz), group.rate_hz, start_ns, end_ns)
    return {
        row: {
            "seconds": round(found.covered_seconds[row], 6),
            "blanked_seconds": round(found.blanked_seconds[row], 6),
            "gaps": found.gaps[row],
        }
        for row in group.segments
    }


def _event_id(group: Group, onset: Onset) -> str:
    """Return `NET.STA.LOC.BI.RATE.YYYYMMDDTHHMMSS.nnnnnnnnn`: the channel group and the onset in UTC."""
    network, station, location, band = group.codes
    seconds, rest = divmod(onset.onset_ns, 1_000_000_000)
    moment = datetime.fromtimestamp(seconds, UTC)
    return f"{network}.{station}.{location}.{band}.{group.rate_hz:g}.{moment:%Y%m%dT%H%M%S}.{rest:09d}"


def _iso(time_ns: int) -> str:
    seconds, rest = divmod(time_ns, 1_000_000_000)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{rest:09d}Z" if rest else f"{text}Z"
