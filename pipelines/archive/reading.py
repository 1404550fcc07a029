"""Read files of an archive in bounded memory: small ones whole, large ones in pieces that are indexed once."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from pipelines.archive.records import Channel, Decoded, decode, whole_records
from pipelines.storage import Store, StoredObject

PIECE_BYTES = 64 * 2**20
_GZIP_MAGIC = b"\x1f\x8b"
_EVER = -(2**63)


@dataclass(frozen=True)
class Span:
    """A stretch of time that a file holds of a channel, or (without channel) a part that could not be read and why."""

    channel: Channel | None
    start_ns: int = 0
    end_ns: int = 0
    problem: str | None = None


@dataclass
class FileReader:
    """Reads one file, as often as asked, for the time that is needed.

    Attributes:
        archive: where the file is.
        item: the file as it was listed; a change since then is an error.
    """

    archive: Store
    item: StoredObject
    _whole: Decoded | None = field(default=None, repr=False)
    _pieces: list[tuple[int, int, int, int]] | None = field(default=None, repr=False)
    _problems: Decoded = field(default_factory=Decoded, repr=False)
    _extent: tuple[int, int] | None = field(default=None, repr=False)
    _kept_from: int = field(default=_EVER, repr=False)

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
        kept = []
        for run in self._whole.runs:
            part = run.clip(time_ns, run.end_ns)
            if part is not None:
                # A view of a part would hold the memory of all.
                kept.append(run if part is run else replace(part, data=part.data.copy()))
        self._whole.runs, self._kept_from = kept, time_ns

    def read(self, start_ns: int, end_ns: int) -> Decoded:
        """Return what the file holds in `[start_ns, end_ns)`; a small file is decoded once and kept."""
        if self.item.size <= PIECE_BYTES:
            if self._whole is None or start_ns < self._kept_from:
                self._kept_from = _EVER
                self._whole = decode(self.archive.read_checked(self.item))
                self._note(self._whole)
            return self._whole
        if self._pieces is None:
            self._index()
        result = Decoded(problems=self._problems.problems, num_problems=self._problems.num_problems)
        for offset, length, first_ns, last_ns in self._pieces or []:
            if first_ns < end_ns and last_ns > start_ns:
                content = self.archive.read(self.item.path, offset, length)
                result.runs += decode(content, start_ns=start_ns, end_ns=end_ns).runs
        return result

    def spans(self) -> Iterator[Span]:
        """Yield the time that the file holds of each channel."""
        if self.item.size <= PIECE_BYTES:
            decoded = self.read(0, 0)
            self._whole = None
            yield from _spans(decoded)
            return
        for _, _, decoded in self._decode_pieces():
            yield from _spans(decoded)

    def _note(self, decoded: Decoded) -> None:
        for run in decoded.runs:
            begin, end = self._extent or (run.start_ns, run.end_ns)
            self._extent = min(begin, run.start_ns), max(end, run.end_ns)
        # A damaged file stays in sight, so that every shard that it reaches tells of it.
        if not decoded.num_problems and self._extent is None:
            self._extent = 0, 0

    def _index(self) -> None:
        self._pieces = []
        for offset, length, decoded in self._decode_pieces():
            for problem in decoded.problems:
                self._problems.report(problem)
            self._note(decoded)
            if decoded.runs:
                first = min(run.start_ns for run in decoded.runs)
                self._pieces.append((offset, length, first, max(run.end_ns for run in decoded.runs)))

    def _decode_pieces(self) -> Iterator[tuple[int, int, Decoded]]:
        """Yield (offset, length, content) of pieces that end with a whole record."""
        offset = 0
        while offset < self.item.size:
            content = self.archive.read(self.item.path, offset, PIECE_BYTES)
            if offset == 0 and content[:2] == _GZIP_MAGIC:
                # A compressed file cannot be entered in the middle.
                yield 0, self.item.size, decode(self.archive.read(self.item.path))
                return
            length = whole_records(content) if offset + len(content) < self.item.size else len(content)
            # A damaged record hides the ends of those after it: the piece is then taken as it is.
            length = length if length > len(content) // 2 else len(content)
            yield offset, length, decode(content[:length])
            offset += length


def spans(archive: Store, item: StoredObject) -> Iterator[Span]:
    """Yield the time that a file holds of each channel, and what could not be read."""
    yield from FileReader(archive, item).spans()


def _spans(decoded: Decoded) -> Iterator[Span]:
    for run in decoded.runs:
        yield Span(run.channel, run.start_ns, run.end_ns)
    for problem in decoded.problems:
        yield Span(None, problem=problem)
