"""Turn a channel's runs into contiguous segments: gaps, overlaps, jitter, competing versions, leap seconds.

The rules look at neighbouring records only, so the outcome for a stretch of time does not depend on how much else was
read, nor on the files that the records lie in:

- A record that starts within the tolerance (at most half a sample) of the expected time continues the segment; every
  sample keeps the time of its own record header.
- Where versions (miniSEED 2 quality M > Q > D > R, miniSEED 3 publication version) overlap, the higher one is used.
- Where data of one version overlap, equal samples collapse into one. Differing ones become a gap, as in ObsPy's default
  merge; equal samples between differing ones less than a second apart are no better known and go, too.
- A record over a leap second continues where the next header says so: see `_leap`.
- Samples that are not finite are absent.

Every sample that goes in is in a segment or in one of the counts.
"""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from pipelines.archive.clock import Clock, joined, sample_time
from pipelines.archive.headers import LEAP_INSERTED, STARTS_IN_LEAP
from pipelines.archive.rates import merge_rates
from pipelines.archive.records import JOIN_TOLERANCE_SAMPLES, Run
from pipelines.workspace.outcomes import Outcome

Array = np.ndarray[Any, Any]

SECOND_NS = 1_000_000_000
DAY_NS = 86_400 * SECOND_NS
# Set in a record's leap bits where its clock has been moved.
_LEAP_DONE = 128

# 00:00 UTC after each leap second of the IERS's Bulletin C, in days since 1970.
LEAP_SECOND_DAYS = frozenset(
    (np.datetime64(date) - np.datetime64("1970-01-01")).astype(int).item()
    for date in (
        *("1972-07-01", "1973-01-01", "1974-01-01", "1975-01-01", "1976-01-01", "1977-01-01", "1978-01-01"),
        *("1979-01-01", "1980-01-01", "1981-07-01", "1982-07-01", "1983-07-01", "1985-07-01", "1988-01-01"),
        *("1990-01-01", "1991-01-01", "1992-07-01", "1993-07-01", "1994-07-01", "1996-01-01", "1997-07-01"),
        *("1999-01-01", "2006-01-01", "2009-01-01", "2012-07-01", "2015-07-01", "2017-01-01"),
    )
)


GroupCodes = tuple[str, str, str, str]
"""Network, station, location, band and instrument code."""


def channel_groups(runs: Iterable[Run]) -> dict[tuple[GroupCodes, float], dict[str, list[Run]]]:
    """Return the runs of a day by channel group (codes and nominal rate), in order, then by channel code.

    Nominal rates that differ only by measurement are one (`pipelines.archive.rates`).
    """
    samples: dict[GroupCodes, Counter[float]] = {}
    by_rate: dict[tuple[GroupCodes, float], list[Run]] = {}
    for run in runs:
        codes = (run.channel.network, run.channel.station, run.channel.location, run.channel.channel[:2])
        samples.setdefault(codes, Counter())[run.rate_hz] += len(run.data)
        by_rate.setdefault((codes, run.rate_hz), []).append(run)
    rates = {codes: merge_rates(counts) for codes, counts in samples.items()}
    groups: dict[tuple[GroupCodes, float], dict[str, list[Run]]] = {}
    for (codes, rate_hz), found in sorted(by_rate.items(), key=lambda item: item[0]):
        channels = groups.setdefault((codes, rates[codes][rate_hz]), {})
        for run in found:
            channels.setdefault(run.channel.channel, []).append(run)
    return dict(sorted(groups.items(), key=lambda item: item[0]))


@dataclass(frozen=True)
class Segment:
    """Contiguous samples of one channel, in the pieces that they came in.

    Attributes:
        pieces: (samples,) int32, float32 or float64 each.
        piece_first: (pieces,) int64, index of each piece's first sample.
        clock: times of the samples, from the headers of their records.
        rate_hz: nominal sampling rate in Hz.
    """

    pieces: tuple[Array, ...]
    piece_first: Array
    clock: Clock
    rate_hz: float

    @cached_property
    def num_samples(self) -> int:
        """Return the number of samples."""
        return int(self.piece_first[-1]) + len(self.pieces[-1])

    def samples(self, first: int, last: int) -> Array:
        """Return the samples `[first, last)`, without a copy where they lie in one piece."""
        parts = self.parts(first, last)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def parts(self, first: int, last: int) -> list[Array]:
        """Return the samples `[first, last)` in the pieces that they lie in, without a copy."""
        return _parts(self.pieces, self._firsts, first, last)

    def time_at(self, index: int) -> int:
        """Return the time of a sample in nanoseconds, from the header that it came with."""
        return self.clock.time_at(index)

    def times_at(self, indexes: Array) -> Array:
        """Return the times of many samples, (n,) int64."""
        return self.clock.times_at(indexes)

    def index_from(self, time_ns: int) -> int:
        """Return the index of the first sample at or after a time (`num_samples` where there is none)."""
        return self.clock.index_from(time_ns, self.num_samples)

    def indexes_from(self, times_ns: Array) -> Array:
        """Return `index_from` of many, (n,) int64."""
        return self.clock.indexes_from(times_ns, self.num_samples)

    @cached_property
    def _firsts(self) -> list[int]:
        """As `piece_first`: bisection of a list takes a tenth of the time where one value is looked for."""
        firsts: list[int] = self.piece_first.tolist()
        return firsts

    @cached_property
    def start_ns(self) -> int:
        """Return the time of the first sample."""
        return self.time_at(0)

    @cached_property
    def end_ns(self) -> int:
        """Return the time one sample interval after the last sample."""
        return self.time_at(self.num_samples)


class Dropped(NamedTuple):
    """Samples that are not used and follow each other: why, and when they are."""

    outcome: Outcome
    clock: Clock
    num_samples: int


@dataclass
class Continuity:
    """A channel's segments in order of time, and what was done to get them.

    Attributes:
        segments: contiguous stretches.
        num_samples: samples that went in: those of the segments and all that are counted here.
        duplicate_samples: samples that were there already with the same value.
        conflicting_samples: samples of times with several values, all of them; they are treated as absent.
        superseded_samples: samples of a lower version where a higher one was there.
        bad_samples: samples that were not finite.
        dropped: the samples of these four counts again, each stretch of them with its times.
    """

    segments: list[Segment] = field(default_factory=list)
    num_samples: int = 0
    duplicate_samples: int = 0
    conflicting_samples: int = 0
    superseded_samples: int = 0
    bad_samples: int = 0
    dropped: list[Dropped] = field(default_factory=list)

    def drop(self, outcome: Outcome, clock: Clock, spans: Iterable[tuple[int, int]]) -> None:
        """Note which of the samples that a clock gives the times of are dropped."""
        self.dropped += [Dropped(outcome, clock.part(begin, end), end - begin) for begin, end in spans if end > begin]


def assemble(runs: Iterable[Run], *, rate_hz: float, tolerance_samples: float = 0.5) -> Continuity:
    """Return the segments of one channel at one nominal sampling rate.

    Args:
        runs: the channel's runs in any order.
        rate_hz: the channel group's nominal sampling rate in Hz.
        tolerance_samples: largest difference between expected and header time within a segment, at most 0.5.
    """
    result = Continuity()
    interval_ns = 1e9 / rate_hz
    given = [run for run in runs if len(run.data)]
    result.num_samples = sum(len(run.data) for run in given)
    chosen = _choose_versions(given, interval_ns, result)
    current: _Growing | None = None
    for run in _in_order(chosen, interval_ns, tolerance_samples):
        if current is None:
            current = _Growing(run, rate_hz)
            continue
        late = (run.start_ns - current.end_ns) / interval_ns
        if abs(late) > tolerance_samples and current.leap(run.start_ns, tolerance_samples * interval_ns):
            late = (run.start_ns - current.end_ns) / interval_ns
        overlap = round(-late)
        if abs(late) <= tolerance_samples:
            current.append(run, 0)
        elif late < 0 and overlap > 0:
            current.overlap(run, overlap, result)
        else:
            result.segments.extend(current.finish(result))
            current = _Growing(run, rate_hz)
    if current is not None:
        result.segments.extend(current.finish(result))
    return result


def uncovered(segments: Iterable[Segment], others: Sequence[Segment]) -> tuple[list[Segment], list[Dropped]]:
    """Return the parts of segments at whose time no other segment has samples, and the samples that are dropped.

    A sample is dropped where it lies less than half a sample interval outside another segment, or inside it.
    """
    kept: list[Segment] = []
    dropped: list[Dropped] = []
    for segment in segments:
        half_ns = round(0.5e9 / segment.rate_hz)
        spans = []
        for other in others:
            if other.end_ns - half_ns <= segment.start_ns or other.start_ns - half_ns >= segment.end_ns:
                continue
            begin = segment.index_from(other.start_ns - half_ns + 1)
            end = segment.index_from(other.end_ns - half_ns)
            if end > begin:
                spans.append((begin, end))
        if not spans:
            kept.append(segment)
            continue
        spans = _union(spans)
        dropped += [
            Dropped(Outcome.OTHER_COMPONENT, segment.clock.part(begin, end), end - begin) for begin, end in spans
        ]
        bounds = [0, *(edge for span in spans for edge in span), segment.num_samples]
        pairs = zip(bounds[::2], bounds[1::2], strict=True)
        kept += [_slice(segment, begin, end) for begin, end in pairs if end > begin]
    return kept, dropped


def _in_order(runs: Sequence[Run], interval_ns: float, tolerance: float) -> Iterator[Run]:
    """Yield runs in order of time; those that overlap others record by record, so that files don't matter."""
    together: list[Run] = []
    reach = 0
    for run in sorted(runs, key=_by_time):
        if together and (reach - run.start_ns) / interval_ns <= tolerance:
            yield from _records(together, tolerance)
            together = []
        reach = max(reach, run.end_ns) if together else run.end_ns
        together.append(run)
    yield from _records(together, tolerance)


def _records(runs: Sequence[Run], tolerance: float) -> Iterator[Run]:
    """Yield the records of several runs in order of time; a single run in whole, but for records that are too late."""
    if not runs:
        return
    if len(runs) > 1:
        yield from sorted((run.part(*bounds) for run in runs for bounds in _bounds(run, None)), key=_by_time)
        return
    if runs[0].num_records == 1 or tolerance >= JOIN_TOLERANCE_SAMPLES:
        yield runs[0]
        return
    for bounds in _bounds(runs[0], tolerance):
        yield runs[0].part(*bounds)


def _bounds(run: Run, tolerance: float | None) -> Iterator[tuple[int, int]]:
    """Yield the (first, last) of a run's records, those within a tolerance of the expected time together."""
    clock = run.clock
    edges = clock.begins[1:]
    if tolerance is not None:
        expected = np.diff(clock.starts_ns) / 1e9 * clock.rates_hz[:-1]
        edges = edges[np.abs(expected - np.diff(clock.anchors)) > tolerance]
    yield from pairwise([0, *edges.tolist(), len(run.data)])


def _by_time(run: Run) -> tuple[int, int, int, bytes]:
    return run.start_ns, run.origin_ns, -len(run.data), run.data[:16].tobytes()


class _Growing:
    """A segment under construction: pieces of data, and the stretches of it that conflict."""

    def __init__(self, run: Run, rate_hz: float) -> None:
        self.rate_hz = rate_hz
        self.pieces: list[Array] = []
        self.firsts: list[int] = []
        self.clocks: list[Clock] = []
        self.clock_firsts: list[int] = []
        self.length = 0
        self.bad: list[tuple[int, int]] = []
        self.append(run, 0)

    def append(self, run: Run, skip: int) -> None:
        part = run.part(skip, len(run.data)) if skip else run
        self.firsts.append(self.length)
        self.pieces.append(part.data)
        self.clock_firsts.append(self.length)
        self.clocks.append(part.clock)
        self.length += len(part.data)
        self.end_ns = part.end_ns
        self.last_leap = int(part.leaps[-1])

    def leap(self, next_ns: int, tolerance_ns: float) -> bool:
        """Move the samples after a leap second a second back, where the last record runs over one; whether it did.

        A record's samples follow each other through an inserted second, so those after it lie a second earlier in UTC
        than the record's start and rate say. That is done where the header of the next record says so, a second before
        what is expected, and the second is one of the IERS's or announced in the record's header; and, where no record
        follows, if the record's header announces it. The samples of the second itself keep the times of the second
        after it, as 23:59:60.5 is written in seconds since 1970.
        """
        stepped = abs(next_ns - (self.end_ns - SECOND_NS)) <= tolerance_ns
        if not (stepped or self.last_leap & LEAP_INSERTED):
            return False
        clock = self.clocks[-1]
        start_ns, rate_hz = int(clock.starts_ns[-1]), float(clock.rates_hz[-1])
        day = start_ns // DAY_NS + (0 if self.last_leap & STARTS_IN_LEAP else 1)
        after_ns = day * DAY_NS + SECOND_NS
        announced = bool(self.last_leap & LEAP_INSERTED) and np.datetime64(day, "D").astype(str).endswith("-01")
        if not start_ns < after_ns <= self.end_ns or not (announced or (stepped and day in LEAP_SECOND_DAYS)):
            return False
        if self.last_leap & _LEAP_DONE:
            return False
        within = clock.index_from(after_ns, self.length - self.clock_firsts[-1])
        if within < self.length - self.clock_firsts[-1]:
            first = max(within, 0)
            anchor = int(clock.anchors[-1])
            time_ns = sample_time(start_ns, first - anchor, rate_hz) - SECOND_NS
            zero = np.zeros(1, np.int64)
            self.clock_firsts.append(self.clock_firsts[-1] + first)
            self.clocks.append(Clock(zero, zero, np.array([time_ns]), np.array([rate_hz])))
        self.end_ns -= SECOND_NS
        self.last_leap |= _LEAP_DONE
        return True

    def overlap(self, run: Run, overlap: int, result: Continuity) -> None:
        overlap = min(overlap, self.length)
        count = min(overlap, len(run.data))
        first = self.length - overlap
        parts = _parts(self.pieces, self.firsts, first, first + count)
        differing = np.flatnonzero(np.concatenate(parts) != run.data[:count])
        conflicting = 0
        spans: list[tuple[int, int]] = []
        if len(differing):
            breaks = np.flatnonzero(np.diff(differing) > max(self.rate_hz, 1.0))
            begins = differing[np.concatenate([[0], breaks + 1])]
            ends = differing[np.concatenate([breaks, [len(differing) - 1]])] + 1
            spans = list(zip(begins.tolist(), ends.tolist(), strict=True))
            self.bad += [(first + begin, first + end) for begin, end in spans]
            conflicting = int((ends - begins).sum())
            result.drop(Outcome.CONFLICTING, run.clock, spans)
        result.drop(Outcome.DUPLICATE, run.clock, _between(spans, 0, count))
        result.conflicting_samples += conflicting
        result.duplicate_samples += count - conflicting
        if len(run.data) > overlap:
            self.append(run, overlap)

    def finish(self, result: Continuity) -> list[Segment]:
        """Return the segment, cut where samples conflict or are not finite."""
        if self.last_leap & LEAP_INSERTED:
            # No record follows: what the header of the last one says of a leap second is all there is.
            self.leap(self.end_ns, -1.0)
        conflicting = _union(self.bad)
        spans = list(conflicting)
        result.conflicting_samples += sum(end - begin for begin, end in conflicting)
        for first, piece in zip(self.firsts, self.pieces, strict=True):
            if piece.dtype.kind == "f":
                not_finite = np.flatnonzero(~np.isfinite(piece))
                if len(not_finite):
                    spans += [(first + begin, first + end) for begin, end in _stretches(not_finite)]
        clock = joined(self.clocks, self.clock_firsts)
        whole = Segment(tuple(self.pieces), np.asarray(self.firsts), clock, self.rate_hz)
        if not spans:
            return [whole]
        absent = _union(spans)
        result.bad_samples += sum(end - begin for begin, end in absent) - sum(end - begin for begin, end in conflicting)
        result.drop(Outcome.CONFLICTING, clock, conflicting)
        result.drop(Outcome.NOT_FINITE, clock, _without(absent, conflicting))
        bounds = [0, *(edge for span in absent for edge in span), self.length]
        return [_slice(whole, begin, end) for begin, end in zip(bounds[::2], bounds[1::2], strict=True) if end > begin]


def _stretches(indexes: Array) -> list[tuple[int, int]]:
    """Return the (first, end) of indexes that follow each other."""
    breaks = np.flatnonzero(np.diff(indexes) > 1)
    begins = indexes[np.concatenate([[0], breaks + 1])].tolist()
    ends = (indexes[np.concatenate([breaks, [len(indexes) - 1]])] + 1).tolist()
    return list(zip(begins, ends, strict=True))


def _parts(pieces: Sequence[Array], firsts: list[int], first: int, last: int) -> list[Array]:
    """Return the samples `[first, last)` of pieces that begin at the given indexes."""
    begin = bisect_right(firsts, first) - 1
    end = max(bisect_left(firsts, last), begin + 1)
    return [
        piece[max(first - start, 0) : max(last - start, 0)]
        for piece, start in zip(pieces[begin:end], firsts[begin:end], strict=True)
    ]


def _slice(whole: Segment, begin: int, end: int) -> Segment:
    parts = whole.parts(begin, end)
    firsts = np.cumsum([0, *(len(part) for part in parts[:-1])])
    return Segment(tuple(parts), firsts, whole.clock.part(begin, end), whole.rate_hz)


def _union(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for begin, end in sorted(spans):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((begin, end))
    return merged


def _between(spans: Sequence[tuple[int, int]], first: int, last: int) -> Iterator[tuple[int, int]]:
    """Yield what spans, in order and apart, leave of `[first, last)`."""
    edges = [first, *(edge for span in spans for edge in span), last]
    yield from zip(edges[::2], edges[1::2], strict=True)


def _without(spans: Sequence[tuple[int, int]], others: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield what is left of spans without others, each of which lies within one of them; both in order and apart."""
    index = 0
    for first, last in spans:
        inside = []
        while index < len(others) and others[index][0] < last:
            inside.append(others[index])
            index += 1
        yield from _between(inside, first, last)


def _choose_versions(runs: list[Run], interval_ns: float, result: Continuity) -> list[Run]:
    """Cut out of each run what a higher version covers to within half a sample."""
    versions = sorted({run.version for run in runs}, reverse=True)
    if len(versions) < 2:
        return runs
    chosen: list[Run] = []
    half = round(interval_ns / 2)
    begins = ends = np.zeros(0, np.int64)
    for version in versions:
        mine = [run for run in runs if run.version == version]
        for run in mine:
            chosen.extend(_uncovered(run, begins, ends, half, result))
        spans = np.array([(run.start_ns, run.end_ns) for run in mine], np.int64).reshape(-1, 2)
        begins, ends = _joined_spans(np.append(begins, spans[:, 0]), np.append(ends, spans[:, 1]), half)
    return chosen


def _joined_spans(begins: Array, ends: Array, slack: int) -> tuple[Array, Array]:
    """Return the union of spans, those at most a slack apart joined, in order."""
    order = np.argsort(begins, kind="stable")
    begins, reach = begins[order], np.maximum.accumulate(ends[order])
    new = np.flatnonzero(begins[1:] > reach[:-1] + slack) + 1
    return begins[np.append(0, new)], reach[np.append(new - 1, len(reach) - 1)]


def _uncovered(run: Run, begins: Array, ends: Array, half_ns: int, result: Continuity) -> list[Run]:
    """Return the parts of a run outside spans, which are in order and apart."""
    low = int(np.searchsorted(ends, run.start_ns - half_ns, "right"))
    high = int(np.searchsorted(begins, run.end_ns + half_ns, "left"))
    if low >= high:
        return [run]
    edges = np.stack([begins[low:high], ends[low:high]], axis=1).ravel() - half_ns
    indexes = run.clock.indexes_from(edges, len(run.data)).tolist()
    spans = _union([(begin, end) for begin, end in zip(indexes[::2], indexes[1::2], strict=True) if end > begin])
    result.superseded_samples += sum(end - begin for begin, end in spans)
    result.drop(Outcome.SUPERSEDED, run.clock, spans)
    bounds = [0, *(edge for span in spans for edge in span), len(run.data)]
    return [run.part(begin, end) for begin, end in zip(bounds[::2], bounds[1::2], strict=True) if end > begin]
