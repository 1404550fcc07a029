"""Turn a channel's runs into contiguous segments: gaps, overlaps, jitter, competing versions.

The rules look at neighbouring samples only, so the outcome for a stretch of time does not depend on how much else was
read:

- A run that starts within the tolerance (at most half a sample) of the expected time continues the segment; every
  sample keeps the time of its own record header.
- Where versions (miniSEED 2 quality M > Q > D > R, miniSEED 3 publication version) overlap, the higher one is used.
- Where data of one version overlap, equal samples collapse into one. Differing ones become a gap, as in ObsPy's default
  merge; equal samples between differing ones less than a second apart are no better known and go, too.
- Samples that are not finite are absent.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from pipelines.archive.records import Run, index_at, indexes_at, sample_time, sample_times

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Segment:
    """Contiguous samples of one channel, in the pieces that they came in.

    Attributes:
        pieces: (samples,) int32, float32 or float64 each; a piece has one header time.
        piece_first: (pieces,) int64, index of each piece's first sample.
        piece_start_ns: (pieces,) int64, time of each piece's first sample.
        rate_hz: sampling rate in Hz.
    """

    pieces: tuple[Array, ...]
    piece_first: Array
    piece_start_ns: Array
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
        firsts = self._firsts
        begin = bisect_right(firsts, first) - 1
        end = max(bisect_left(firsts, last), begin + 1)
        return [
            piece[max(first - start, 0) : max(last - start, 0)]
            for piece, start in zip(self.pieces[begin:end], firsts[begin:end], strict=True)
        ]

    def time_at(self, index: int) -> int:
        """Return the time of a sample in nanoseconds, from the header that it came with."""
        piece = max(bisect_right(self._firsts, index) - 1, 0)
        return sample_time(self._starts_ns[piece], index - self._firsts[piece], self.rate_hz)

    def times_at(self, indexes: Array) -> Array:
        """Return the times of many samples, (n,) int64."""
        pieces = np.maximum(np.searchsorted(self.piece_first, indexes, "right") - 1, 0)
        return sample_times(self.piece_start_ns[pieces], indexes - self.piece_first[pieces], self.rate_hz)

    def index_from(self, time_ns: int) -> int:
        """Return the index of the first sample at or after a time (`num_samples` where there is none)."""
        firsts, starts_ns = self._firsts, self._starts_ns
        piece = max(bisect_right(starts_ns, time_ns) - 1, 0)
        last = firsts[piece + 1] if piece + 1 < len(firsts) else self.num_samples
        within = index_at(starts_ns[piece], self.rate_hz, time_ns)
        return min(max(firsts[piece] + within, firsts[piece]), last)

    def indexes_from(self, times_ns: Array) -> Array:
        """Return `index_from` of many, (n,) int64."""
        pieces = np.maximum(np.searchsorted(self.piece_start_ns, times_ns, "right") - 1, 0)
        firsts, lasts = self.piece_first[pieces], np.append(self.piece_first[1:], self.num_samples)[pieces]
        within = indexes_at(self.piece_start_ns[pieces], self.rate_hz, times_ns)
        indexes: Array = np.clip(firsts + within, firsts, lasts)
        return indexes

    @cached_property
    def _firsts(self) -> list[int]:
        """As `piece_first`: bisection of a list takes a tenth of the time where one value is looked for."""
        firsts: list[int] = self.piece_first.tolist()
        return firsts

    @cached_property
    def _starts_ns(self) -> list[int]:
        """As `piece_start_ns`."""
        starts: list[int] = self.piece_start_ns.tolist()
        return starts

    @cached_property
    def start_ns(self) -> int:
        """Return the time of the first sample."""
        return int(self.piece_start_ns[0])

    @cached_property
    def end_ns(self) -> int:
        """Return the time one sample interval after the last sample."""
        return self.time_at(self.num_samples)


@dataclass
class Continuity:
    """A channel's segments in order of time, and what was done to get them.

    Attributes:
        segments: contiguous stretches.
        duplicate_samples: samples that were there more than once with one value.
        conflicting_samples: samples that were there with several values and are treated as absent.
        superseded_samples: samples of a lower version where a higher one was there.
        bad_samples: samples that were not finite.
    """

    segments: list[Segment] = field(default_factory=list)
    duplicate_samples: int = 0
    conflicting_samples: int = 0
    superseded_samples: int = 0
    bad_samples: int = 0


def assemble(runs: Iterable[Run], *, rate_hz: float, tolerance_samples: float = 0.5) -> Continuity:
    """Return the segments of one channel at one nominal sampling rate.

    Args:
        runs: the channel's runs in any order.
        rate_hz: the channel group's sampling rate in Hz.
        tolerance_samples: largest difference between expected and header time within a segment, at most 0.5.
    """
    result = Continuity()
    interval_ns = 1e9 / rate_hz
    chosen = _choose_versions([run for run in runs if len(run.data)], interval_ns, result)
    chosen.sort(key=lambda run: (run.start_ns, run.origin_ns, -len(run.data), run.data[:16].tobytes()))
    current: _Growing | None = None
    for run in chosen:
        if current is None:
            current = _Growing(run, rate_hz)
            continue
        late = (run.start_ns - current.end_ns) / interval_ns
        if abs(late) <= tolerance_samples:
            current.append(run, 0)
            continue
        overlap = round(-late)
        if late < 0 and overlap > 0:
            current.overlap(run, overlap, result)
        else:
            result.segments.extend(current.finish(result))
            current = _Growing(run, rate_hz)
    if current is not None:
        result.segments.extend(current.finish(result))
    return result


def uncovered(segments: Iterable[Segment], others: Sequence[Segment]) -> tuple[list[Segment], int]:
    """Return the parts of segments at whose time no other segment has samples, and how many samples are dropped.

    A sample is dropped where it lies less than half a sample interval outside another segment, or inside it.
    """
    kept: list[Segment] = []
    num_dropped = 0
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
        num_dropped += sum(end - begin for begin, end in spans)
        bounds = [0, *(edge for span in spans for edge in span), segment.num_samples]
        pairs = zip(bounds[::2], bounds[1::2], strict=True)
        kept += [_slice(segment, begin, end) for begin, end in pairs if end > begin]
    return kept, num_dropped


class _Growing:
    """A segment under construction: pieces of data, and the stretches of it that conflict."""

    def __init__(self, run: Run, rate_hz: float) -> None:
        self.rate_hz = rate_hz
        self.pieces: list[Array] = []
        self.firsts: list[int] = []
        self.starts: list[int] = []
        self.length = 0
        self.bad: list[tuple[int, int]] = []
        self.end_ns = 0
        self.append(run, 0)

    def append(self, run: Run, skip: int) -> None:
        self.firsts.append(self.length)
        self.starts.append(sample_time(run.start_ns, skip, run.rate_hz))
        self.pieces.append(run.data[skip:])
        self.length += len(run.data) - skip
        self.end_ns = run.end_ns

    def tail(self, count: int) -> Array:
        """Return the last samples, without joining all pieces."""
        held: list[Array] = []
        missing = count
        for piece in reversed(self.pieces):
            held.append(piece[-missing:])
            missing -= len(held[-1])
            if missing <= 0:
                break
        return np.concatenate(held[::-1])

    def overlap(self, run: Run, overlap: int, result: Continuity) -> None:
        overlap = min(overlap, self.length)
        count = min(overlap, len(run.data))
        differing = np.flatnonzero(self.tail(overlap)[:count] != run.data[:count])
        result.duplicate_samples += count - len(differing)
        if len(differing):
            first = self.length - overlap
            breaks = np.flatnonzero(np.diff(differing) > max(self.rate_hz, 1.0))
            begins = differing[np.concatenate([[0], breaks + 1])]
            ends = differing[np.concatenate([breaks, [len(differing) - 1]])] + 1
            self.bad += [(first + int(b), first + int(e)) for b, e in zip(begins, ends, strict=True)]
        if len(run.data) > overlap:
            self.append(run, overlap)

    def finish(self, result: Continuity) -> list[Segment]:
        """Return the segment, cut where samples conflict or are not finite."""
        spans = _union(self.bad)
        result.conflicting_samples += sum(end - begin for begin, end in spans)
        for first, piece in zip(self.firsts, self.pieces, strict=True):
            if piece.dtype.kind == "f":
                not_finite = np.flatnonzero(~np.isfinite(piece))
                result.bad_samples += len(not_finite)
                spans += [(first + int(i), first + int(i) + 1) for i in not_finite]
        whole = Segment(tuple(self.pieces), np.asarray(self.firsts), np.asarray(self.starts), self.rate_hz)
        if not spans:
            return [whole]
        bounds = [0, *(edge for span in _union(spans) for edge in span), self.length]
        return [_slice(whole, begin, end) for begin, end in zip(bounds[::2], bounds[1::2], strict=True) if end > begin]


def _slice(whole: Segment, begin: int, end: int) -> Segment:
    first = int(np.searchsorted(whole.piece_first, begin, "right")) - 1
    last = int(np.searchsorted(whole.piece_first, end, "left"))
    firsts = np.maximum(whole.piece_first[first:last] - begin, 0)
    starts = whole.piece_start_ns[first:last].copy()
    starts[0] = whole.time_at(begin)
    bounds = [*firsts.tolist(), end - begin]
    pieces = tuple(whole.samples(begin + low, begin + high) for low, high in pairwise(bounds))
    return Segment(pieces, firsts, starts, whole.rate_hz)


def _union(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for begin, end in sorted(spans):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((begin, end))
    return merged


def _choose_versions(runs: list[Run], interval_ns: float, result: Continuity) -> list[Run]:
    """Cut out of each run what a higher version covers to within half a sample."""
    versions = sorted({run.version for run in runs}, reverse=True)
    if len(versions) < 2:
        return list(runs)
    chosen: list[Run] = []
    covered: list[tuple[int, int]] = []
    half = round(interval_ns / 2)
    for version in versions:
        mine = [run for run in runs if run.version == version]
        for run in mine:
            chosen.extend(_uncovered(run, covered, half, result))
        covered = _union(covered + [(run.start_ns, run.end_ns) for run in mine])
    return chosen


def _uncovered(run: Run, covered: list[tuple[int, int]], half_ns: int, result: Continuity) -> list[Run]:
    spans = []
    for begin_ns, end_ns in covered:
        if end_ns <= run.start_ns - half_ns or begin_ns >= run.end_ns + half_ns:
            continue
        begin = min(max(index_at(run.start_ns, run.rate_hz, begin_ns - half_ns), 0), len(run.data))
        end = min(max(index_at(run.start_ns, run.rate_hz, end_ns - half_ns), 0), len(run.data))
        if end > begin:
            spans.append((begin, end))
    spans = _union(spans)
    result.superseded_samples += sum(end - begin for begin, end in spans)
    bounds = [0, *(edge for span in spans for edge in span), len(run.data)]
    return [
        Run(
            run.channel,
            run.rate_hz,
            run.version,
            sample_time(run.start_ns, begin, run.rate_hz),
            run.origin_ns,
            run.data[begin:end],
        )
        for begin, end in zip(bounds[::2], bounds[1::2], strict=True)
        if end > begin
    ]
