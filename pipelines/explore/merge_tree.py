"""The merge tree of the clustering as the explorer shows it: its branches, the events of one, and their mean."""

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.explore.branch_figure import branch_figure, trigger_rows
from pipelines.explore.map_points import EmbeddingMap
from pipelines.explore.queries import BadRequest
from pipelines.label.kmeans import label_rows
from pipelines.label.stage_suggest import stored_clustering
from pipelines.label.stage_tree import merge_tree_of
from pipelines.label.tree import leaves_of
from pipelines.report.event_figure import band_passed
from pipelines.report.stage_gallery import GALLERY_COLUMNS
from pipelines.report.style import drawing, to_svg
from pipelines.workspace import tables
from pipelines.workspace.artifacts import ClusterTree
from pipelines.workspace.storage import Store

MAX_ASSIGNED = 50_000
"""Events of the map whose branch is looked up; the first of them are a sample of all."""
MAX_AVERAGED = 40
"""Events whose waveforms are averaged."""


class ShownTree:
    """The tree, read once; where the leaves of the map's events are looked up once, too."""

    def __init__(self, store: Store, events: EmbeddingMap) -> None:
        self._store, self._map = store, events
        self._lock = threading.Lock()
        self._record: ClusterTree | None = None
        self._leaves: NDArray[np.int64] | None = None

    def record(self) -> ClusterTree:
        """Return the tree; BadRequest where the workspace has none of its clusters."""
        with self._lock:
            if self._record is None:
                self._record = ClusterTree.read(self._store)
            if self._record is None or not self._record.clusters:
                raise BadRequest("this workspace has no merge tree; run firnline label again, which adds it")
            return self._record

    def describe(self) -> dict[str, Any]:
        """Return `nodes` (id, children, events, height), leaves first, and `clusters`, the branches of each cluster."""
        record = self.record()
        return {
            "nodes": [
                {"id": node.id, "children": list(node.children), "events": node.events, "height": node.height}
                for node in record.nodes
            ],
            "clusters": {entry.cluster: list(entry.branches) for entry in record.clusters},
        }

    def members(self, branch: str) -> list[int]:
        """Return the events of the map (a sample of all) that belong to a branch; BadRequest for an unknown one."""
        record = self.record()
        number = next((number for number, node in enumerate(record.nodes) if node.id == branch), None)
        if number is None:
            raise BadRequest(f"the merge tree has no branch {branch[:40]!r}")
        own = leaves_of(merge_tree_of(record), number)
        return [int(point) for point in np.flatnonzero(np.isin(self._leaves_of_points(record), own))]

    def figure(self, branch: str, colour: str, band_hz: tuple[float, float] | None) -> dict[str, Any]:
        """Return the figure (SVG) of a branch and, in words, of how many events it is the mean."""
        members = self.members(branch)
        chosen = members[:MAX_AVERAGED]
        if not chosen:
            raise BadRequest("no event of the map's sample belongs to this branch")
        points = self._map.points()
        by_file: dict[str, list[str]] = {}
        for point, event_id in zip(chosen, points.ids(chosen), strict=True):
            by_file.setdefault(points.files[points.file_numbers[point]], []).append(event_id)
        shown, recorded = [], []
        rate_hz = onset_s = 0.0
        for file, ids in by_file.items():
            table = tables.read_events(self._store, f"events/{file}", ids, GALLERY_COLUMNS)
            rows = trigger_rows(table["channels"].to_pylist(), table["trigger_channel"].to_pylist())
            windows = tables.waveforms(table["waveform"])
            for at, row in enumerate(rows):
                rate_hz = float(table["sampling_rate"][at].as_py())
                onset_s = (table["onset"][at].value - table["window_start"][at].value) / 1e9
                recorded.append(windows[at, row])
                shown.append(band_passed(windows[at, row : row + 1], rate_hz, band_hz)[0])
        if not shown:
            raise BadRequest("the events of this branch have no waveforms; was the workspace changed?")
        with drawing():
            figure = branch_figure(np.stack(shown), np.stack(recorded), rate_hz, onset_s, colour)
            svg = to_svg(figure, f"Mean waveform and mean spectrogram of the branch {branch}")
        words = f"The mean of {len(shown)} events, drawn at random, aligned; behind it, single ones."
        return {"svg": svg, "words": words, "points": members[:1000]}

    def _leaves_of_points(self, record: ClusterTree) -> NDArray[np.int64]:
        points = self._map.points()
        with self._lock:
            if self._leaves is None:
                model = stored_clustering(self._store, record.clustering)
                if model is None or model.centroids.shape[1] != points.points.shape[1]:
                    raise BadRequest("the clustering of the merge tree is not here; run firnline label again")
                own, _, _ = label_rows(points.points[:MAX_ASSIGNED], model.centroids)
                self._leaves = np.asarray(own, dtype=np.int64)
            return self._leaves
