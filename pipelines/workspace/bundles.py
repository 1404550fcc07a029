"""Bundles: copies of many detection markers in one file, so that a million of them take some thousand requests to read.

    ledger/<ledger>/bundles/<time>-<random>.<markers>.<full or part>.jsonl.zst    <ledger> is detect or trigger

A file holds a line of JSON for each of at most BUNDLE_MARKERS markers: its path below `ledger/<ledger>/`, its size in
bytes, and its content without `inputs` and `onsets_ns`. The driver of a detection writes them from what its tasks
report.

A bundle is only a copy, and no rule depends on one. The listing of the markers says what is done. A copy is taken where
a marker of its path and its size is listed; every other marker is read itself. So a bundle that is missing, damaged or
of earlier markers costs time and changes nothing.
"""

import contextlib
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from pydantic_core import from_json, to_json

from pipelines.runtime.ahead import read_ahead
from pipelines.runtime.errors import InputError
from pipelines.workspace.artifacts import DetectionMarker
from pipelines.workspace.ledger import MarkerName, marker_path, parse_marker_path, read_detection_marker
from pipelines.workspace.storage import Store
from pipelines.workspace.storage_errors import StorageFailed
from pipelines.workspace.stored_object import StoredObject

BUNDLE_MARKERS = 1000
"""Markers that a bundle holds at most."""
BUNDLE_BYTES = 8 << 20
"""A bundle is full, too, when its lines have so many bytes; a marker beyond that is in none."""
MAX_STORED_BYTES, MAX_LINES_BYTES = 16 << 20, 24 << 20
"""A file that is larger, or decodes to more, was not written here and is not read."""
MAX_PART_BUNDLES = 16
"""Bundles that are not full are merged once there are so many."""
MAX_COPIES_A_MARKER = 3
"""All are merged once they hold so many times the ledger's markers: the others are of shards that were redone."""
MAX_ADOPTED = 10_000
"""Markers without a copy that one run makes copies of: those of an older release, or of a run that was killed."""
NOT_KEPT = ("inputs", "onsets_ns")
"""What a marker holds for others than those who sum over all of them."""

_SUFFIX = ".jsonl.zst"
_NAME = re.compile(r"\.([0-9]{1,9})\.(?:full|part)\.jsonl\.zst$")


class Bundles:
    """Takes the markers that a detection writes and bundles them; at most one bundle is in memory.

    Args:
        store: the workspace.
        ledger: detect or trigger.
    """

    def __init__(self, store: Store, ledger: str) -> None:
        self._store, self._ledger = store, ledger
        self._lines: list[bytes] = []
        self._num_bytes = 0

    def add(self, name: MarkerName, num_bytes: int, content: bytes) -> None:
        """Take a marker that was written.

        Args:
            name: whose it is.
            num_bytes: size of the marker as it was written.
            content: JSON of what it holds, without the members of NOT_KEPT.
        """
        path = marker_path(self._ledger, name).removeprefix(f"ledger/{self._ledger}/")
        self._add(b"[" + to_json(path) + b"," + str(num_bytes).encode() + b"," + content + b"]\n")

    def _add(self, line: bytes) -> None:
        if len(line) > BUNDLE_BYTES:
            return
        if self._num_bytes + len(line) > BUNDLE_BYTES:
            self._write("full")
        self._lines.append(line)
        self._num_bytes += len(line)
        if len(self._lines) == BUNDLE_MARKERS:
            self._write("full")

    def write(self) -> None:
        """Write the bundle that is not full yet; nothing where it is empty."""
        if self._lines:
            self._write("part")

    def _write(self, kind: str) -> None:
        name = f"{time.time_ns():020d}-{random.getrandbits(32):08x}.{len(self._lines)}.{kind}{_SUFFIX}"
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as compressed:
            for line in self._lines:
                compressed.write(line)
        self._store.write(f"{_folder(self._ledger)}/{name}", sink.getvalue().to_pybytes())
        self._lines, self._num_bytes = [], 0

    def merge(self, bundles: Iterable[StoredObject]) -> None:
        """Write the copies of some bundles into as few as it takes, the last one of each shard, then remove them.

        Bundles stay small where runs add few markers, and those of shards that were redone hold nothing any more.
        """
        newest_first = sorted(bundles, key=lambda item: item.path, reverse=True)
        seen: set[str] = set()
        for line in _lines(self._store, newest_first):
            entry = _entry(line)
            shard = entry[0].removesuffix(".json").rpartition(".")[0] if entry is not None else ""
            if shard and shard not in seen:
                seen.add(shard)
                self._add(line + b"\n")
        self.write()
        for item in newest_first:
            self._store.remove(item.path)

    def adopt(self, limit: int = MAX_ADOPTED) -> None:
        """Make copies of at most so many listed markers that no bundle has."""
        listed = list_with_bundles(self._store, self._ledger)
        for _ in listed.take_copies():
            pass
        chosen = sorted(listed.sizes.items())[:limit]
        listed.sizes = dict(chosen)
        for (name, content), (_, num_bytes) in zip(listed.ask(), chosen, strict=True):
            kept = {key: value for key, value in content.items() if key not in NOT_KEPT}
            self.add(name, num_bytes, to_json(kept))
        self.write()


@contextlib.contextmanager
def bundled(store: Store, ledger: str, num_markers: int) -> Iterator[Bundles]:
    """Yield what takes the markers that a run writes; at its end, also an early one, all that it took is written.

    A run that is not interrupted merges bundles where many are not full, or many copies are of shards that were redone,
    and makes copies of markers that have none.

    Args:
        store: the workspace.
        ledger: detect or trigger.
        num_markers: that the ledger holds when all is done.
    """
    bundles = Bundles(store, ledger)
    try:
        yield bundles
    except StorageFailed:
        raise
    except BaseException:
        with contextlib.suppress(StorageFailed):
            bundles.write()
        raise
    bundles.write()
    found = list(store.walk(_folder(ledger)))
    num_copies = sum(map(_num_markers, found))
    parts = [item for item in found if item.path.endswith(f".part{_SUFFIX}")]
    if num_copies > MAX_COPIES_A_MARKER * num_markers + MAX_PART_BUNDLES * BUNDLE_MARKERS:
        bundles.merge(found)
    elif len(parts) >= MAX_PART_BUNDLES:
        bundles.merge(parts)
    if num_copies < num_markers - BUNDLE_MARKERS:
        bundles.adopt()


def read_markers(store: Store, ledger: str) -> Iterator[tuple[MarkerName, dict[str, Any]]]:
    """Yield the name and the content, without NOT_KEPT, of a ledger's markers, in no order.

    The paths and sizes of all are held, and the content of some bundles.

    Args:
        store: the workspace.
        ledger: detect or trigger.

    Raises:
        InputError: a marker that no bundle has a copy of is damaged.
    """
    listed = list_with_bundles(store, ledger)
    yield from listed.take_copies()
    yield from listed.ask()


@dataclass
class ListedMarkers:
    """Markers that are wanted, and the bundles that may have copies of them.

    Attributes:
        store: the workspace.
        ledger: detect or trigger.
        sizes: of the markers in bytes, by their path below `ledger/<ledger>/`; in the order of the listing.
        bundles: as they are listed.
    """

    store: Store
    ledger: str
    sizes: dict[str, int] = field(default_factory=dict)
    bundles: list[StoredObject] = field(default_factory=list)

    def names(self) -> Iterator[MarkerName]:
        """Yield the names of the markers that are wanted."""
        for path in self.sizes:
            name = self._name(path)
            if name is not None:
                yield name

    def _name(self, path: str) -> MarkerName | None:
        return parse_marker_path(f"ledger/{self.ledger}/{path}")

    def keep(self, wanted: Callable[[MarkerName], bool]) -> None:
        """Want only some of the markers."""
        self.sizes = {
            path: size for path, size in self.sizes.items() if (name := self._name(path)) is not None and wanted(name)
        }

    def take_copies(self) -> Iterator[tuple[MarkerName, dict[str, Any]]]:
        """Yield name and content of the markers that bundles have copies of; these are no longer wanted."""
        # A few markers are asked for themselves.
        if len(self.sizes) <= len(self.bundles):
            return
        # Where several have a copy, the last one that was written holds.
        for line in _lines(self.store, sorted(self.bundles, key=lambda item: item.path, reverse=True)):
            entry = _entry(line)
            if entry is None or self.sizes.get(entry[0]) != entry[1]:
                continue
            path, _, content = entry
            name = self._name(path)
            if name is not None and _is_valid(content):
                del self.sizes[path]
                yield name, content
            if not self.sizes:
                return

    def ask(self) -> Iterator[tuple[MarkerName, dict[str, Any]]]:
        """Yield name and content of the markers that are still wanted, in order; InputError of a damaged one."""

        def read(name: MarkerName) -> tuple[MarkerName, dict[str, Any]]:
            return name, read_detection_marker(self.store, self.ledger, name)

        return read_ahead(read, self.names())


def list_with_bundles(store: Store, ledger: str) -> ListedMarkers:
    """Return a ledger's markers and bundles, from one listing."""
    found = ListedMarkers(store, ledger)
    folder = f"ledger/{ledger}/"
    for item in store.walk(folder[:-1]):
        if item.path.startswith(f"{_folder(ledger)}/"):
            found.bundles.append(item)
        elif parse_marker_path(item.path) is not None:
            found.sizes[item.path.removeprefix(folder)] = item.size
    return found


def _is_valid(content: dict[str, Any]) -> bool:
    try:
        DetectionMarker.from_values(content, name="")
    except InputError:
        return False
    return True


def _lines(store: Store, bundles: Iterable[StoredObject]) -> Iterator[bytes]:
    """Yield the lines of some bundles; nothing of one that was removed or is damaged."""

    def fetch(item: StoredObject) -> bytes:
        if not item.path.endswith(_SUFFIX) or item.size > MAX_STORED_BYTES:
            return b""
        with contextlib.suppress(FileNotFoundError, PermissionError):
            return store.read(item.path, 0, MAX_STORED_BYTES)
        return b""

    for content in read_ahead(fetch, bundles):
        yield from _decoded(content)


def _decoded(content: bytes) -> list[bytes]:
    """Return the lines of a bundle's bytes; none of a damaged one, or one that decodes to too much."""
    if not content:
        return []
    pieces: list[bytes] = []
    num_bytes = 0
    try:
        with pa.CompressedInputStream(pa.BufferReader(content), "zstd") as stream:
            while piece := stream.read(1 << 20):
                num_bytes += len(piece)
                if num_bytes > MAX_LINES_BYTES:
                    return []
                pieces.append(piece)
    except (pa.ArrowException, OSError):
        return []
    return b"".join(pieces).split(b"\n")


def _entry(line: bytes) -> tuple[str, int, dict[str, Any]] | None:
    """Return a line's path, size and content; None where it holds something else."""
    try:
        values = from_json(line)
    except ValueError:
        return None
    match values:
        case [str() as path, int() as num_bytes, dict() as content]:
            return path, num_bytes, content
    return None


def _num_markers(item: StoredObject) -> int:
    """Return how many markers a bundle holds, as its name says; 0 for a file with another name."""
    found = _NAME.search(item.path)
    return 0 if found is None else int(found[1])


def _folder(ledger: str) -> str:
    return f"ledger/{ledger}/bundles"
