"""The events of the map: where each lies in the tables, its cluster, and its point in the space of the clustering."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.explore.layout import neighbourhoods, principal_components
from pipelines.explore.listing import site_of
from pipelines.explore.places import Cells, EventCounts, add_cells, count_cells
from pipelines.explore.queries import BadRequest
from pipelines.label.space import Space, to_space
from pipelines.label.stage_suggest import stored_clustering
from pipelines.report.gallery import event_hash
from pipelines.runtime.errors import InputError
from pipelines.workspace import tables
from pipelines.workspace.artifacts import ClusteringSummary
from pipelines.workspace.event_sample import READERS
from pipelines.workspace.storage import Store
from pipelines.workspace.stored_object import StoredObject

T = TypeVar("T")

SKETCH_FILES = 120
"""Files that the first look is made of at most."""
MIN_EVENTS = 10
"""Fewest events of which a map is made."""
LAYOUTS = {"components": "principal components", "neighbours": "neighbourhoods (t-SNE)"}


@dataclass(frozen=True, kw_only=True)
class MapPoints:
    """The events of the map in random order, so that the first of them are a sample of all. Legend: n events."""

    files: tuple[str, ...]
    """Files of `labels/`, relative to it."""
    file_numbers: NDArray[np.int32]
    """(n,), the file of each."""
    row_numbers: NDArray[np.int32]
    """(n,), its row there."""
    event_ids: pa.Array
    """(n,), text."""
    onset_ns: NDArray[np.int64]
    """(n,), since 1970, UTC."""
    clusters: NDArray[np.int32]
    """(n,)"""
    distances: NDArray[np.float32]
    """(n,), to the nearest centroid, as in `labels/`."""
    margins: NDArray[np.float32]
    """(n,), as in `labels/`."""
    points: NDArray[np.float32]
    """(n, d), in the space of the clustering."""
    space: Space

    def __len__(self) -> int:
        return len(self.clusters)

    def sites(self, names: Sequence[str]) -> NDArray[np.int32]:
        """Return the number of each event's station (n,) in a list of stations (network.station)."""
        number = {site: at for at, site in enumerate(names)}
        return np.array([number[site_of(file)] for file in self.files], dtype=np.int32)[self.file_numbers]

    def index_of(self, event_id: str) -> int | None:
        """Return the number of an event on the map; None where it is not there."""
        found = pc.index(self.event_ids, event_id).as_py()
        return None if found < 0 else int(found)

    def labelled(self, event_ids: Sequence[str]) -> NDArray[np.int64]:
        """Return the numbers of those of some events that are on the map, rising."""
        wanted = pa.array(event_ids, pa.string())
        return np.flatnonzero(pc.is_in(self.event_ids, value_set=wanted).to_numpy(zero_copy_only=False))

    def ids(self, numbers: Sequence[int]) -> list[str]:
        """Return the ids of some events of the map; BadRequest where a number is none of it."""
        if numbers and (min(numbers) < 0 or max(numbers) >= len(self)):
            raise BadRequest(f"the map has only {len(self)} events")
        found: list[str] = self.event_ids.take(pa.array(numbers, pa.int64())).to_pylist()
        return found

    def typical(self, cluster: int, count: int) -> list[int]:
        """Return the numbers of the events of a cluster that are nearest to its centroids, in the order of a list."""
        members = np.flatnonzero(self.clusters == cluster)
        if not 0 < count < len(members):
            near = members[: max(count, 0)]
        else:
            distances = self.distances[members]
            near = members[distances <= np.partition(distances, count - 1)[count - 1]]
        ids = self.ids(near.tolist())
        order = sorted(range(len(near)), key=lambda at: (self.distances[near[at]], ids[at]))
        return [int(near[at]) for at in order[:count]]


class EmbeddingMap:
    """The map, made by a thread of its own: its events first, then one layout after the other."""

    def __init__(self, store: Store, files: Sequence[str], max_events: int, count: Callable[[], int]) -> None:
        """Return a map of at most about `max_events` of the events of some files of `labels/`; `count` counts all."""
        self._store, self._files, self._max_events, self._count = store, files, max_events, count
        self._planes: dict[str, NDArray[np.float32]] = {}
        self._points: MapPoints | None = None
        self._counts: EventCounts | None = None
        self._sketch: tuple[NDArray[np.float32], NDArray[np.int32]] | None = None
        self._lock = threading.Lock()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self.failure = ""
        """Why there is no map."""

    def start(self) -> None:
        """Begin, where that has not happened."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._make, daemon=True)
                self._thread.start()

    def sketch(self) -> tuple[NDArray[np.float32], NDArray[np.int32]] | None:
        """Return a first look: principal components (m, 2) and clusters (m,) of the events of some files; None without.

        There is one where reading all files takes a while. Its events have other numbers than those of the map.
        """
        self.start()
        with self._changed:
            self._changed.wait_for(lambda: self._sketch is not None or self._points is not None or self.failure)
            return self._sketch

    def points(self) -> MapPoints:
        """Return the events of the map, once they are read.

        Raises:
            BadRequest: there is no map; says why.
        """
        return self._made(lambda: self._points)

    def counts(self) -> EventCounts:
        """Return the counts of all events, on the map or not, once they are read; BadRequest where they cannot be."""
        return self._made(lambda: self._counts)

    def plane(self, layout: str) -> NDArray[np.float32]:
        """Return the coordinates (n, 2) of a layout, once it is made; BadRequest where there is no such map."""
        if layout not in LAYOUTS:
            raise BadRequest(f"layout is {layout[:40]!r}; it must be one of {', '.join(LAYOUTS)}")
        return self._made(lambda: self._planes.get(layout))

    def _made(self, part: Callable[[], T | None]) -> T:
        """Return a part of the map once it is made; BadRequest where there is no map."""
        self.start()
        with self._changed:
            self._changed.wait_for(lambda: part() is not None or self.failure)
        found = part()
        if found is None:
            raise BadRequest(self.failure)
        return found

    def state(self) -> dict[str, Any]:
        """Return how far the map is: its events, the layouts that are made, and why there is none."""
        self.start()
        with self._changed:
            return {
                "events": None if self._points is None else len(self._points),
                "total": self._count(),
                "layouts": [
                    {"name": name, "words": words, "ready": name in self._planes} for name, words in LAYOUTS.items()
                ],
                "failure": self.failure,
            }

    def _make(self) -> None:
        try:
            if some := self._files[:: max(10, -(-len(self._files) // SKETCH_FILES))] if len(self._files) >= 20 else []:
                few = read_points(self._store, some)
                with self._changed:
                    self._sketch = principal_components(few.points), few.clusters
                    self._changed.notify_all()
            share = min(1.0, self._max_events / max(self._count(), 1))
            parts, space = read_parts(self._store, self._files, share)
            counts = add_cells((site_of(file), part.cells) for file, part in zip(self._files, parts, strict=True))
            with self._changed:
                self._counts = counts
                self._changed.notify_all()
            points = join_parts(self._files, parts, space)
            del parts
            with self._changed:
                self._points = points
                self._changed.notify_all()
            self._keep("components", principal_components(points.points))
            self._keep("neighbours", neighbourhoods(points.points, seed=0))
        except (InputError, OSError, ValueError, KeyError, pa.ArrowException, np.linalg.LinAlgError) as error:
            with self._changed:
                self.failure = f"there is no map: {' '.join(str(error).split())}"
                self._changed.notify_all()

    def _keep(self, layout: str, plane: NDArray[np.float32]) -> None:
        with self._changed:
            self._planes[layout] = plane
            self._changed.notify_all()


@dataclass(frozen=True)
class Part:
    """The events of one file: how many there are of all, and those that are on the map."""

    cells: Cells
    rows: NDArray[np.int32]
    event_ids: pa.Array
    onset_ns: NDArray[np.int64]
    clusters: NDArray[np.int32]
    distances: NDArray[np.float32]
    margins: NDArray[np.float32]
    points: NDArray[np.float32]


def read_points(store: Store, files: Sequence[str], share: float = 1.0) -> MapPoints:
    """Read the events of a map; see `read_parts` and `join_parts`, whose InputError it raises."""
    return join_parts(files, *read_parts(store, files, share))


def read_parts(store: Store, files: Sequence[str], share: float = 1.0) -> tuple[list[Part], Space]:
    """Read the events of files of `labels/`, and for the map all or a share (0 to 1) of them, by a hash of their ids.

    Events without an embedding, or with one that is not finite, are counted, but not on the map.

    Raises:
        InputError: a file cannot be read.
    """
    space = _space(store)
    embedded = {item.path.removeprefix("embeddings/"): item for item in tables.list_shards(store, "embeddings")}
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(lambda file: _read_part(store, file, embedded.get(file), space, share), files)), space


def join_parts(files: Sequence[str], found: Sequence[Part], space: Space) -> MapPoints:
    """Return the events of all files in random order; InputError where they are too few for a map."""
    parts = [(number, part) for number, part in enumerate(found) if len(part.rows)]
    num_events = sum(len(part.rows) for _, part in parts)
    if num_events < MIN_EVENTS:
        raise InputError(f"a map needs the embeddings of at least {MIN_EVENTS} events; {num_events} were found")
    order = np.random.default_rng(0).permutation(num_events)
    place = np.empty(num_events, dtype=np.int64)
    place[order] = np.arange(num_events)
    points = np.empty((num_events, parts[0][1].points.shape[1]), dtype=np.float32)
    start = 0
    for _, part in parts:
        points[place[start : start + len(part.rows)]] = part.points
        start += len(part.rows)
    if not (points != points[0]).any():
        raise InputError(f"the embeddings of all {num_events} events are the same")
    numbers = np.concatenate([np.full(len(part.rows), number, dtype=np.int32) for number, part in parts])
    return MapPoints(
        files=tuple(files),
        file_numbers=numbers[order],
        row_numbers=np.concatenate([part.rows for _, part in parts])[order],
        event_ids=pa.concat_arrays([part.event_ids for _, part in parts]).take(pa.array(order)),
        onset_ns=np.concatenate([part.onset_ns for _, part in parts])[order],
        clusters=np.concatenate([part.clusters for _, part in parts])[order],
        distances=np.concatenate([part.distances for _, part in parts])[order],
        margins=np.concatenate([part.margins for _, part in parts])[order],
        points=points,
        space=space,
    )


def _read_part(store: Store, file: str, embedded: StoredObject | None, space: Space, share: float) -> Part:
    columns = ("event_id", "onset", "cluster", "distance", "margin")
    labels = tables.read_table(store, f"labels/{file}", columns).combine_chunks()
    ids = _whole(labels["event_id"])
    onset_ns = labels["onset"].cast(pa.int64()).to_numpy()
    clusters, distances, margins = (labels[name].to_numpy() for name in columns[2:])
    cells = count_cells(onset_ns, clusters)
    if embedded is None:
        kept, points = np.zeros(0, dtype=np.int32), np.zeros((0, 0), dtype=np.float32)
        return Part(cells, kept, ids.slice(0, 0), onset_ns[:0], clusters[:0], distances[:0], margins[:0], points)
    vectors = tables.read_table(store, embedded, ("event_id", "embedding"))
    values = tables.embeddings(vectors["embedding"])
    keep = np.ones(len(ids), dtype=bool)
    if not labels["event_id"].equals(vectors["event_id"]):
        rows_of = pc.index_in(ids, value_set=_whole(vectors["event_id"]))
        keep = rows_of.is_valid().to_numpy(zero_copy_only=False)
        rows = rows_of.fill_null(0).to_numpy(zero_copy_only=False)
        values = values[rows] if len(values) else np.zeros((len(ids), values.shape[1]), dtype=np.float32)
    if share < 1:
        keep &= event_hash(ids.to_pandas()) < np.uint64(share * 2**63) * np.uint64(2)
    kept = np.flatnonzero(keep & np.isfinite(values).all(axis=1)).astype(np.int32)
    points = to_space(values[kept], space)
    ids = ids.take(pa.array(kept))
    return Part(cells, kept, ids, onset_ns[kept], clusters[kept], distances[kept], margins[kept], points)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array."""
    whole = column.combine_chunks()
    return pa.concat_arrays(whole.chunks) if isinstance(whole, pa.ChunkedArray) else whole


def _space(store: Store) -> Space:
    """Return the space of the clustering of the labels; that of the embeddings themselves where it is not here."""
    summary = ClusteringSummary.read(store)
    model = None if summary is None else stored_clustering(store, summary.clustering)
    return Space() if model is None else model.space
