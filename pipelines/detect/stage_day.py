"""A day of a station's channel groups: read its files, sort runs into channel groups, assemble, begin the pass.

A day is read in whole, whatever part of it a shard owns, so that what a day holds does not depend on sharding.
"""

import functools
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial

from pipelines.archive.codes import name_channels
from pipelines.archive.continuity import Segment, assemble, channel_groups, uncovered
from pipelines.archive.layouts import DAY_NS, PathInfo, code_matcher, is_indexed, path_parser
from pipelines.archive.manifest import ANY, selection
from pipelines.archive.reading import FileReader
from pipelines.archive.records import Channel, Run
from pipelines.config import Config
from pipelines.config.archive import ArchiveSettings
from pipelines.detect.account import FileAccount, Recording, account_of_file, stretch_of
from pipelines.detect.anchored import Pass, component_letter, context_seconds, find_onsets, split_days
from pipelines.detect.response import GroupResponses, Responses
from pipelines.detect.stage_tasks import BatchTask
from pipelines.runtime.allocator import give_back_freed_memory
from pipelines.workspace.ledger import MarkerName
from pipelines.workspace.outcomes import Outcome
from pipelines.workspace.storage import Store

IO_THREADS = 8
"""Threads of a worker that wait for the store: they fetch files of the next days and write finished shards."""
MAX_BYTES_AHEAD = 64 * 2**20
"""A worker holds, or waits for, at most this many bytes of files before they are read."""
MAX_DAY_BYTES_AHEAD = 2**27
"""The next day is decoded during the scan where a day's samples take at most this: three of integers at 125 Hz."""
EVER = (-(2**63), 2**63 - 1)
_BY_PRECEDENCE = {code: rank for rank, code in enumerate("ENZ123")}


@dataclass
class ChannelGroup:
    """A channel group on one day.

    Attributes:
        codes: network, station, location, band and instrument code.
        rate_hz: sampling rate in Hz.
        responses: of its channels; none for counts.
        segments: segments by channel code. Of several codes of one component no two have samples at one time.
        notes: what was done to get the segments, by channel.
    """

    codes: tuple[str, str, str, str]
    rate_hz: float
    responses: GroupResponses
    segments: dict[str, list[Segment]] = field(default_factory=dict)
    notes: dict[str, dict[str, int]] = field(default_factory=dict)


@dataclass
class Day:
    """All channel groups of a station's files on one day, and what could not be used.

    Attributes:
        anchor_ns: 00:00 UTC of the day.
        groups: channel groups.
        passes: of each group, the anchored pass, which goes on in another thread.
        quarantined: by file of the batch, what could not be read in it and why.
        renamed: by file of the batch, (headers' codes, codes used) where they differ.
        files: by file of the batch, what becomes of it.
        recordings: every channel and rate that was read, and what becomes of its samples.
        skipped: groups and channels that nothing can be detected in, and why.
    """

    anchor_ns: int
    groups: list[ChannelGroup] = field(default_factory=list)
    passes: list[Future[Pass]] = field(default_factory=list)
    quarantined: dict[int, list[str]] = field(default_factory=dict)
    renamed: dict[int, list[tuple[Channel, Channel]]] = field(default_factory=dict)
    files: dict[int, FileAccount] = field(default_factory=dict)
    recordings: list[Recording] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @property
    def num_bytes(self) -> int:
        """Return how much memory the samples take."""
        segments = (part for group in self.groups for parts in group.segments.values() for part in parts)
        return sum(piece.nbytes for part in segments for piece in part.pieces)

    @property
    def is_large(self) -> bool:
        """Return whether no second day is held beside this one."""
        return self.num_bytes > MAX_DAY_BYTES_AHEAD


@functools.cache
def io_threads() -> ThreadPoolExecutor:
    """Return the threads of this process that wait for stores."""
    return ThreadPoolExecutor(IO_THREADS, thread_name_prefix="firnline-store")


@functools.cache
def _scan_thread() -> ThreadPoolExecutor:
    """Return the thread of this process that scans a day while the next one is decoded."""
    return ThreadPoolExecutor(1, thread_name_prefix="firnline-scan")


def _is_selected(archive: ArchiveSettings, codes: Channel) -> bool:
    """Return whether the section `archive` selects a channel."""
    patterns = (archive.network, archive.station, archive.location, archive.channel)
    return all(code_matcher(pattern)(code) for pattern, code in zip(patterns, codes, strict=True))


@dataclass(frozen=True)
class _Wanted:
    """Whether a channel of a file's headers belongs to a batch's channel group and is selected.

    Attributes:
        name: of any of the batch's shards.
        location, band: of the channel group.
        archive: settings.
        path: what the file's path says; None in a flat folder.
    """

    name: MarkerName
    location: str
    band: str
    archive: ArchiveSettings
    path: PathInfo | None

    def __call__(self, found: Channel) -> bool:
        codes = name_channels(self.path, [found]).used.get(found)
        return (
            codes is not None
            and codes.network == self.name.network
            and codes.station == self.name.station
            and self.location in (ANY, codes.location)
            and self.band in (ANY, codes.channel[:2])
            and _is_selected(self.archive, codes)
        )


@lru_cache(maxsize=4096)
def path_info(layout: str, path: str) -> PathInfo | None:
    """Return what a file's path says; None in a flat folder."""
    return None if layout == "flat" else path_parser(layout)(path)


class DayReader:
    """Reads the days of a batch; files and days that successive shards share are read once.

    While a day is scanned in another thread, the next one is decoded in this one, whose arrays the C library can use
    again (see `pipelines.runtime.allocator`).
    """

    def __init__(self, archive: Store, config: Config, responses: Responses, batch: BatchTask) -> None:
        self.archive, self.config, self.batch = archive, config, batch
        self.responses = responses
        self.paths = [path_info(batch.layout, item.path) for item in batch.files]
        self.readers: dict[int, FileReader] = {}
        self.current: Day | None = None
        self.next: Day | None = None
        before, after = context_seconds(config.detection, config.window)
        self.before_ns, self.after_ns = round(before * 1e9), round(after * 1e9)
        first, last = selection(config.archive)
        self.first_ns = EVER[0] if first is None else first
        self.last_ns = EVER[1] if last is None else last
        self.owned = {anchor for shard in batch.shards for anchor, _, _ in split_days(shard.start_ns, shard.end_ns)}
        """00:00 UTC of each day of which the batch owns something."""
        self.reach = (min(self.owned) - self.before_ns, max(self.owned) + DAY_NS + self.after_ns)

    def day(self, anchor_ns: int) -> Day:
        """Return the pass of a day, and begin that of the day after it."""
        if self.current is not None and self.current.anchor_ns == anchor_ns:
            return self.current
        ahead = self.next
        self.forget()
        self.current = ahead if ahead is not None and ahead.anchor_ns == anchor_ns else self._begin_day(anchor_ns)
        if self.current.is_large:
            # What reading took, windows and their rows take again, in other sizes.
            give_back_freed_memory()
        elif anchor_ns + DAY_NS in self.owned:
            try:
                self.next = self._begin_day(anchor_ns + DAY_NS)
            except Exception as error:
                # Not this day's failure: the next one is read again, from its files, when its turn comes.
                # It is not reported, but its traceback would hold what was read.
                error.with_traceback(None)
                self.readers.clear()
        return self.current

    def forget(self) -> None:
        """Let go of the days that are held; the memory of a large one is returned to the system."""
        was_large = self.current is not None and self.current.is_large
        self.current = self.next = None
        if was_large:
            give_back_freed_memory()

    def _begin_day(self, anchor_ns: int) -> Day:
        """Read and assemble a day, and begin to scan it."""
        # All of the day, whatever part is owned: its channels and what they are like do not depend on sharding.
        low = max(anchor_ns - self.before_ns, self.first_ns)
        high = min(anchor_ns + DAY_NS + self.after_ns, self.last_ns)
        next_high = min(high + DAY_NS, max(self.owned) + DAY_NS + self.after_ns, self.last_ns)
        self._fetch_ahead(low, next_high)
        runs, day = self._read(anchor_ns, low, high)
        for (codes, rate_hz), channels in channel_groups(runs).items():
            recordings = {
                channel: Recording(Channel(*codes[:3], channel), rate_hz, [stretch_of(run) for run in found])
                for channel, found in channels.items()
            }
            group = self._assemble(codes, rate_hz, channels, recordings, day)
            for recording in recordings.values():
                recording.check()
            day.recordings += recordings.values()
            if group is None:
                continue
            day.groups.append(group)
            day.passes.append(
                _scan_thread().submit(
                    find_onsets, group.segments, self.config.detection, rate_hz, group.responses, anchor_ns=anchor_ns
                )
            )
        return day

    def _fetch_ahead(self, low: int, high: int) -> None:
        """Begin to fetch the files that the days up to `high` need; a disk answers too quickly for that to pay."""
        if self.archive.is_local:
            return
        room = MAX_BYTES_AHEAD - sum(reader.bytes_ahead for reader in self.readers.values())
        for index, (begin, end) in enumerate(self.batch.spans):
            if end > low and begin < high and self.batch.files[index].size <= room:
                reader = self._reader(index)
                room += reader.bytes_ahead
                reader.fetch_ahead(io_threads())
                room -= reader.bytes_ahead

    def _reader(self, index: int) -> FileReader:
        reader = self.readers.get(index)
        if reader is None:
            batch = self.batch
            # A class of its own: readers that refer to what holds them would outlive their last use.
            wanted = _Wanted(batch.shards[0].name, batch.location, batch.band, self.config.archive, self.paths[index])
            # Where the headers were read, they say what the file holds; else its path does.
            believed = EVER if is_indexed(batch.layout) else batch.spans[index]
            reader = FileReader(self.archive, batch.files[index], believed, wanted, self.reach)
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
            naming = name_channels(self.paths[index], [codes for codes in decoded.counts if codes is not None])
            day.files[index] = account_of_file(
                self.batch.files[index].path,
                decoded,
                naming,
                is_wanted=reader.wanted,
                is_selected=partial(_is_selected, self.config.archive),
            )
            runs += [
                part if part.channel == codes else replace(part, channel=codes)
                for run in decoded.runs
                if (codes := naming.used.get(run.channel)) and (part := run.clip(low, high)) is not None
            ]
            if naming.differences:
                day.renamed[index] = naming.differences
            problems = [*naming.refused.values(), *decoded.problems]
            if decoded.num_problems > len(decoded.problems):
                problems.append(f"and {decoded.num_problems - len(decoded.problems)} more")
            if problems:
                day.quarantined[index] = problems
        return runs, day

    def _assemble(
        self,
        codes: tuple[str, str, str, str],
        rate_hz: float,
        channels: dict[str, list[Run]],
        recordings: dict[str, Recording],
        day: Day,
    ) -> ChannelGroup | None:
        """Return a channel group's segments; None where nothing can be detected.

        The recordings take what becomes of their samples; what is not used at all is named in `day.skipped`.
        """
        name = f"{'.'.join(codes)} at {rate_hz:g} Hz"
        detection = self.config.detection
        if detection.band_hz[1] >= rate_hz / 2:
            day.skipped.append(f"{name}: detection.band_hz reaches {detection.band_hz[1]:g} Hz, not below Nyquist")
            _drop_all(recordings, Outcome.RATE)
            return None
        num_sta, num_lta = detection.average_samples(rate_hz)
        if num_sta >= num_lta:
            day.skipped.append(f"{name}: detection.sta_seconds and lta_seconds are {num_sta} and {num_lta} samples")
            _drop_all(recordings, Outcome.RATE)
            return None
        group = ChannelGroup(codes, rate_hz, self.responses.of_group(*codes[:3]))
        for channel in sorted(channels, key=lambda code: (_BY_PRECEDENCE.get(code[-1:], 9), code)):
            letter = component_letter(channel)
            if not letter:
                day.skipped.append(f"{name}: {channel} is not a component E, N, Z, 1, 2 or 3")
                recordings[channel].drop_all(Outcome.NO_COMPONENT)
                continue
            problem = group.responses.problem(channel)
            if problem:
                day.skipped.append(f"{name}: {channel} cannot be converted to m/s: {problem}")
                recordings[channel].drop_all(Outcome.NO_SENSITIVITY)
                continue
            continuity = assemble(
                channels[channel], rate_hz=rate_hz, tolerance_samples=self.config.archive.time_tolerance_samples
            )
            before = [code for code in group.segments if component_letter(code) == letter]
            others = [segment for code in before for segment in group.segments[code]]
            segments, covered = uncovered(continuity.segments, others)
            num_dropped = sum(part.num_samples for part in covered)
            if num_dropped:
                day.skipped.append(
                    f"{name}: {channel} is the same component as {' and '.join(before)} and is used only where that "
                    "has no samples"
                )
            group.segments[channel] = segments
            recordings[channel].use(segments, [*continuity.dropped, *covered], group.responses.known(channel))
            counts = {
                "duplicate_samples": continuity.duplicate_samples,
                "conflicting_samples": continuity.conflicting_samples,
                "superseded_samples": continuity.superseded_samples,
                "bad_samples": continuity.bad_samples,
                "same_component_samples": num_dropped,
            }
            group.notes[channel] = {key: value for key, value in counts.items() if value}
        if group.segments and not {component_letter(code) for code in group.segments} & set(
            detection.trigger_components
        ):
            day.skipped.append(f"{name}: no component of detection.trigger_components {detection.trigger_components}")
            _drop_all(recordings, Outcome.NO_TRIGGER_COMPONENT)
        return group if group.segments else None


def _drop_all(recordings: dict[str, Recording], outcome: Outcome) -> None:
    """Let the samples of a channel group end in one outcome, but for those that have ended in another."""
    for recording in recordings.values():
        if recording.segments or not recording.dropped:
            recording.drop_all(outcome)
