"""Read files of an archive in bounded memory: small ones whole, large ones, gzipped too, in pieces indexed once."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np

from pipelines.archive.clock import bounds_of
from pipelines.archive.crashes import decode_file_part
from pipelines.archive.headers import MAX_RECORD_BYTES
from pipelines.archive.records import MAX_TIME_NS, MIN_TIME_NS, Channel, Decoded, Payloads, Run, decode, record_boundary
from pipelines.archive.sample_counts import Drop, SampleCounts
from pipelines.archive.unpacking import GZIP_MAGIC, Unpacking, excess
from pipelines.runtime.text import counted
from pipelines.workspace.storage import Store
from pipelines.workspace.stored_object import ObjectChanged, StoredObject

PIECE_BYTES = 32 * 2**20
"""A file of at most so many bytes, unpacked, is read in one piece, and a larger gzipped one in pieces of so many."""
AHEAD_BYTES = 16 * 2**20
"""Larger files are not fetched before they are needed."""

LARGE_FILE_PIECE_BYTES = 2 * MAX_RECORD_BYTES + 2**16
"""Pieces of a larger file: of so many bytes more than half are whole records, however long these are."""
MAX_BARREN_BYTES = 2**28
"""A file is read no further where so much of it on end holds no record: it may be sparse."""
_EVER = -(2**63)


@dataclass(frozen=True)
class Span:
    """A stretch of time that a file holds of a channel, or a part that could not be read and why, or counts.

    Attributes:
        channel: None for a problem, and for counts of records whose codes cannot be read.
        start_ns, end_ns: the stretch.
        problem: what could not be read.
        counts: how many samples a part of the file states of the channel.
    """

    channel: Channel | None
    start_ns: int = 0
    end_ns: int = 0
    problem: str | None = None
    counts: SampleCounts | None = None


@dataclass(frozen=True)
class _Piece:
    """A part of a file that ends with a whole record.

    Attributes:
        load: returns its bytes, unpacked.
        is_whole: whether it is all of the file: of one of several pieces samples are decoded when they are needed.
        start_ns, end_ns: the time that it holds.
    """

    load: Callable[[], bytes]
    is_whole: bool
    start_ns: int = 0
    end_ns: int = 0


@dataclass
class FileReader:
    """Reads one file, as often as asked, for the time that is needed.

    Attributes:
        archive: where the file is.
        item: the file as it was listed; a change since then is an error.
        believed: the (start, end) in nanoseconds outside which its samples are not used, but reported.
        wanted: whether the samples of a channel are asked for; all others are passed over.
        reach: the (start, end) in nanoseconds within which samples will be asked for.
    """

    archive: Store
    item: StoredObject
    believed: tuple[int, int] = (_EVER, -_EVER)
    wanted: Callable[[Channel], bool] = lambda _: True
    reach: tuple[int, int] = (_EVER, -_EVER)
    _whole: "_Kept | None" = field(default=None, repr=False)
    _kept_from: int = field(default=_EVER, repr=False)
    _pieces: list[_Piece] | None = field(default=None, repr=False)
    _problems: Decoded = field(default_factory=Decoded, repr=False)
    _extent: tuple[int, int] | None = field(default=None, repr=False)
    _ahead: Future[bytes] | None = field(default=None, repr=False)

    def fetch_ahead(self, threads: Executor) -> None:
        """Begin to fetch a small file that has not been read yet."""
        if self._pieces is None and self._ahead is None and 0 < self.item.size <= AHEAD_BYTES:
            self._ahead = threads.submit(self.archive.read_checked, self.item, 0, PIECE_BYTES)

    @property
    def bytes_ahead(self) -> int:
        """Return how many bytes are fetched, or being fetched, and not read yet."""
        return 0 if self._ahead is None else self.item.size

    def may_hold(self, start_ns: int, end_ns: int) -> bool:
        """Whether the file can hold samples in `[start_ns, end_ns)`; True until it has been read."""
        return self._extent is None or (self._extent[0] < end_ns and self._extent[1] > start_ns)

    def forget_before(self, time_ns: int) -> None:
        """Give back the memory of samples before a time; what is asked for again is read again."""
        if self._whole is None or self._extent is None or self._extent[0] >= time_ns or self._kept_from >= time_ns:
            return
        if self._extent[1] <= time_ns:
            self._whole = None
            return
        left = self._whole.after(time_ns)
        if left is not self._whole:
            self._whole, self._kept_from = left, time_ns

    def read(self, start_ns: int, end_ns: int) -> Decoded:
        """Return what the file holds in `[start_ns, end_ns)`, perhaps more, and what is wrong with it anywhere.

        A file of one piece is decoded once and kept. Problems and counts are those of the whole file; they are empty
        where nothing of it was read, since `may_hold` says no.
        """
        runs: list[Run] = []
        if self.may_hold(start_ns, end_ns):
            forgotten = self._whole is None or start_ns < self._kept_from
            if not self._pieces or (self._pieces[0].is_whole and forgotten):
                self._index()
            if self._whole is not None:
                runs = self._whole.between(start_ns, end_ns)
            else:
                for piece in self._pieces or []:
                    if piece.start_ns < end_ns and piece.end_ns > start_ns:
                        decoded = self._decode(piece.load(), start_ns=start_ns, end_ns=end_ns)
                        self._believe(decoded)
                        runs += decoded.runs
        return replace(self._problems, runs=runs)

    def spans(self) -> Iterator[Span]:
        """Yield the time that the file holds of each channel, as its headers say, and what could not be read.

        No sample is decoded, and none is decoded before it must be: whoever does it survives a crash of the decoder.
        """
        try:
            for _, decoded in self._decode_pieces(payloads=Payloads.SKIP):
                begins, ends = _bounds(decoded.runs)
                for run, begin, end in zip(decoded.runs, begins.tolist(), ends.tolist(), strict=True):
                    yield Span(run.channel, begin, end)
                for problem in decoded.problems:
                    yield Span(None, problem=problem)
                for channel, counts in decoded.counts.items():
                    yield Span(channel, counts=counts)
        except ObjectChanged as error:
            yield Span(None, problem=str(error))

    def _index(self) -> None:
        """Decode all pieces once: note what each holds, and keep the samples where there is one piece only."""
        pieces: list[_Piece] = []
        told = Decoded()
        whole: list[Run] | None = None
        extent: tuple[int, int] | None = None
        num_strays = 0
        try:
            # What is astray is counted by its samples' times, and so of all runs.
            within = self.reach if self._believes_all else None
            for piece, decoded in self._decode_pieces(payloads=Payloads.KEEP, within=within):
                num_strays += self._believe(decoded)
                for problem in decoded.problems:
                    told.report(problem)
                told.num_problems += decoded.num_problems - len(decoded.problems)
                told.damaged_bytes += decoded.damaged_bytes
                for channel, counts in decoded.counts.items():
                    told.counts.setdefault(channel, SampleCounts()).add(counts)
                begin = end = 0
                if decoded.runs:
                    begins, ends = _bounds(decoded.runs)
                    begin, end = int(begins.min()), int(ends.max())
                    extent = (begin, end) if extent is None else (min(begin, extent[0]), max(end, extent[1]))
                whole = decoded.runs if piece.is_whole else None
                pieces.append(replace(piece, start_ns=begin, end_ns=end))
                del decoded
        except ObjectChanged as error:
            # What was read before that is used; the next run lists the file as it is then.
            told.report(f"{error}; the rest is not read")
        if num_strays:
            told.problems.insert(
                0,
                f"{counted(num_strays, 'sample lies', 'samples lie')} more than archive.spill_seconds from the time in "
                "its name",
            )
            told.num_problems += 1
        self._pieces, self._kept_from, self._problems = pieces, _EVER, told
        self._whole = None if whole is None else _Kept(whole)
        self._extent = extent or (0, 0)

    @property
    def _believes_all(self) -> bool:
        return self.believed[0] <= MIN_TIME_NS and self.believed[1] >= MAX_TIME_NS

    def _believe(self, decoded: Decoded) -> int:
        """Keep of what was decoded the parts that are used; return how many of its samples are not."""
        if self._believes_all:
            return 0
        dropped = 0
        kept = []
        for run in decoded.runs:
            part = run.clip(*self.believed)
            num_strays = len(run.data) - (0 if part is None else len(part.data))
            decoded.counts[run.channel].drop(Drop.FAR, num_strays)
            dropped += num_strays
            if part is not None:
                kept.append(part)
        decoded.runs = kept
        return dropped

    def _decode(self, content: bytes, **options: Any) -> Decoded:
        """Decode a part of the file so that a crash costs this file alone."""
        if options.get("payloads") is Payloads.SKIP:
            return decode(content, wanted=self.wanted, **options)
        name = f"{self.archive.url}\n{self.item.path}\n{self.item.size}\n{self.item.etag}"
        return decode_file_part(name, content, self.wanted, **options)

    def _decode_pieces(
        self, *, payloads: Payloads, within: tuple[int, int] | None = None
    ) -> Iterator[tuple[_Piece, Decoded]]:
        """Yield the pieces of the file in order, decoded; samples are kept of one that is all of the file only."""
        # What pieces hold to be read again must not be the reader: it and its samples would outlive their last use,
        # until the garbage collector looks for circles.
        fetch = partial(self.archive.read_checked, self.item)
        ahead, self._ahead = self._ahead, None
        piece_bytes = PIECE_BYTES if self.item.size <= PIECE_BYTES else min(LARGE_FILE_PIECE_BYTES, PIECE_BYTES)
        offset = barren = 0
        while offset < self.item.size or offset == 0:
            content = ahead.result() if ahead is not None and offset == 0 else fetch(offset, piece_bytes)
            if offset == 0 and content[:2] == GZIP_MAGIC:
                whole = len(content) == self.item.size <= AHEAD_BYTES
                yield from self._unpack_pieces(partial(_part, content) if whole else fetch, payloads, within)
                return
            length = _piece_length(content, last=offset + len(content) >= self.item.size)
            piece = _Piece(partial(fetch, offset, length), length == self.item.size)
            content = content[:length]
            decoded = self._decode(content, offset=offset, payloads=_tried(payloads, piece), within=within)
            barren = 0 if decoded.counts else barren + length
            offset += max(length, 1)
            if barren >= MAX_BARREN_BYTES and offset < self.item.size:
                decoded.report(
                    f"bytes {offset} to {self.item.size}: not read, since {barren} bytes before hold no record"
                )
                decoded.damaged_bytes += self.item.size - offset
                offset = self.item.size
            # One piece at a time is held, not the one before it, too.
            del content
            yield piece, decoded
            del decoded

    def _unpack_pieces(
        self, fetch: Callable[[int, int], bytes], payloads: Payloads, within: tuple[int, int] | None
    ) -> Iterator[tuple[_Piece, Decoded]]:
        """Yield the pieces of a gzipped file; each remembers where the unpacking stood, so that it can be entered."""
        stream = Unpacking(fetch, self.item.size)
        carried = b""
        offset = 0
        first = True
        while True:
            here = stream.copy()
            content = carried + stream.read(PIECE_BYTES - len(carried))
            if first and not stream.ended and (problem := excess(stream, len(content))):
                refused = Decoded(damaged_bytes=self.item.size)
                refused.report(problem)
                yield _Piece(partial(fetch, 0, self.item.size), True), refused
                return
            if not content and not first and not stream.problem:
                return
            length = _piece_length(content, last=stream.ended)
            piece = _Piece(_UnpackingLoader(here, carried, length), first and stream.ended and length == len(content))
            decoded = Decoded()
            if content or first:
                options = {"offset": offset, "payloads": _tried(payloads, piece), "within": within}
                decoded = self._decode(content[:length], **options)
            if stream.ended and length == len(content) and stream.problem:
                decoded.report(stream.problem)
            carried, offset, first = content[length:], offset + length, False
            del content
            yield piece, decoded
            del decoded
            if stream.ended and not carried:
                return


class _Kept:
    """Decoded runs in order of time, which give back the memory of those that are over."""

    def __init__(self, runs: list[Run]) -> None:
        begins, ends = _bounds(runs)
        order = np.argsort(begins, kind="stable")
        self.runs = [runs[place] for place in order.tolist()]
        self.starts: list[int] = begins[order].tolist()
        self.reach: list[int] = np.maximum.accumulate(ends[order]).tolist()
        # Bytes of the samples from each run on.
        self.bytes_from = list(accumulate((run.data.nbytes for run in reversed(self.runs)), initial=0))[::-1]
        self.held = sum({id(run.data.base): _base(run).nbytes for run in self.runs}.values())

    def between(self, start_ns: int, end_ns: int) -> list[Run]:
        """Return the runs that can hold samples in `[start_ns, end_ns)`."""
        return self.runs[bisect_right(self.reach, start_ns) : bisect_left(self.starts, end_ns)]

    def after(self, time_ns: int) -> "_Kept":
        """Return these without most of what lies before a time; copied where that gives back half of the memory."""
        if 2 * self.bytes_from[bisect_left(self.starts, time_ns)] > self.held:
            return self
        first, whole = bisect_right(self.reach, time_ns), bisect_left(self.starts, time_ns)
        left = [run.clip(time_ns, run.end_ns) for run in self.runs[first:whole]]
        parts = [*(part for part in left if part is not None), *self.runs[max(first, whole) :]]
        if 2 * sum(part.data.nbytes for part in parts) > self.held:
            return self
        # A view of a part would hold the memory of all.
        return _Kept([replace(part, data=part.data.copy()) for part in parts])


def _bounds(runs: list[Run]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return `start_ns` and `end_ns` of many runs: (n,) int64 each."""
    return bounds_of([run.clock for run in runs], [len(run.data) for run in runs])


def _base(run: Run) -> np.ndarray[Any, Any]:
    """Return the array that a run's samples are a part of."""
    return run.data if run.data.base is None else run.data.base


@dataclass(frozen=True)
class _UnpackingLoader:
    stream: Unpacking
    carried: bytes
    length: int

    def __call__(self) -> bytes:
        return (self.carried + self.stream.copy().read(self.length - len(self.carried)))[: self.length]


def _tried(payloads: Payloads, piece: _Piece) -> Payloads:
    """Return what is done with the payloads of a piece when all are read: of several, samples are kept when needed."""
    return Payloads.TRY if payloads is Payloads.KEEP and not piece.is_whole else payloads


def _part(content: bytes, start: int, length: int) -> bytes:
    return content[start : start + length]


def _piece_length(content: bytes, *, last: bool) -> int:
    """Return how many bytes of a file's part are taken as one piece: its whole records."""
    if last:
        return len(content)
    length = record_boundary(content)
    # Nothing in it looks like a record's end: the part is taken as it is.
    return length if length > len(content) // 2 else len(content)


def spans(archive: Store, item: StoredObject) -> Iterator[Span]:
    """Yield the time that a file holds of each channel, and what could not be read."""
    yield from FileReader(archive, item).spans()
