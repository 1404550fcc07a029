"""What the explorer shows of a workspace. It keeps in memory what it has shown, and the events of the map."""

import shlex
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.config.label import LabelsSettings
from pipelines.config.report import ExploreSettings, ReportSettings
from pipelines.config.suggest import SuggestSettings
from pipelines.explore.doubtful import MAX_COMPARED, find_doubtful, nearest_events
from pipelines.explore.layout import nearest_points
from pipelines.explore.listing import HandLabels, list_page, records, site_of
from pipelines.explore.map_points import EmbeddingMap
from pipelines.explore.merge_tree import ShownTree
from pipelines.explore.places import last_positions
from pipelines.explore.queries import BadRequest, Filter
from pipelines.explore.saved import SavedLabels, SavedNames, choose_labels_file
from pipelines.label.space import to_space
from pipelines.label.stage_suggest import SuggestedEvent, suggest_events
from pipelines.label.suggestions import why_uncertain
from pipelines.report.positions import positions_by_station
from pipelines.report.stage_gallery import GALLERY_COLUMNS, gallery_item, shown_band
from pipelines.report.stage_inputs import label_files
from pipelines.report.stage_summary import LABEL_COLUMNS
from pipelines.report.style import CLASS_COLOURS, CLUSTER_COLOURS, cluster_colour, cluster_form
from pipelines.runtime.text import counted
from pipelines.workspace import tables
from pipelines.workspace.artifacts import ClusteringSummary, StationList
from pipelines.workspace.storage import Store
from pipelines.workspace.workspace import Workspace

MAX_SHOWN = 200_000
"""Events that are remembered as shown."""
MAX_DRAWN = 400
"""Figures that are kept."""
BRANCH_COLOUR = CLUSTER_COLOURS[0]
MAX_UNDONE = 200
"""Changes that can be undone."""


@dataclass(frozen=True)
class LabelChange:
    """The labels of some events before and after a change, by event id; None: without."""

    before: dict[str, str | None]
    after: dict[str, str | None]

    @property
    def words(self) -> str:
        """Return what undoing takes back."""
        return f"the label of {counted(len(self.after), 'event')}"


@dataclass(frozen=True)
class NameChange:
    """The name of a cluster before and after a change; None: without."""

    cluster: int
    before: str | None
    after: str | None

    @property
    def words(self) -> str:
        """Return what undoing takes back."""
        return f"the name of cluster {self.cluster}"


@dataclass(kw_only=True)
class Explorer:
    """A labelled workspace to look through; only events that were shown can be drawn or labelled."""

    store: Store
    files: list[str]
    """Files of `labels/`, relative to it, sorted."""
    labels: SavedLabels
    names: SavedNames
    label_names: tuple[str, ...] = ()
    """Labels offered as buttons."""
    band_hz: tuple[float, float] | None = None
    """Band in which traces are drawn; None: as recorded."""
    shown: "OrderedDict[str, tuple[str, dict[str, Any]]]" = field(default_factory=OrderedDict)
    """Events that a browser has seen: their file and their row of `labels/`."""
    drawn: "OrderedDict[tuple[str, int | None], dict[str, Any]]" = field(default_factory=OrderedDict)
    """Figures by event id and the seconds that they show."""
    page_events: int = 24
    """Events on a page."""
    map_events: int = 1_000_000
    """Events of the map at most, about."""
    suggest: SuggestSettings = field(default_factory=SuggestSettings)
    done: "list[LabelChange | NameChange]" = field(default_factory=list)
    """What can be undone, the latest last."""
    nearest: NDArray[np.int64] | None = None
    """The nearest events of those of the map that are compared, once asked for; see `nearest_events`."""
    sizes: dict[int, tuple[int, str]] | None = None
    """Events and name of each cluster, once read."""
    lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self.map = EmbeddingMap(
            self.store, self.files, self.map_events, lambda: sum(size for size, _ in self._cluster_sizes().values())
        )
        self.tree = ShownTree(self.store, self.map)

    def summary(self) -> dict[str, Any]:
        """Return clusters, stations, label counts and where labels are kept."""
        counts = _counts(self.labels.read())
        sizes, shown = self._cluster_sizes(), self._names()
        command = ("firnline", "label", self.store.url, "--replace", "--labels.path", self.labels.path)
        return {
            "workspace": self.store.url,
            "command": shlex.join((*command, "--labels.names", self.names.path)),
            "clusters": [
                {
                    "number": number,
                    "events": events,
                    "name": shown[number],
                    "colour": cluster_colour(number),
                    "form": cluster_form(number),
                }
                for number, (events, _) in sizes.items()
            ],
            "sites": sorted({site_of(file) for file in self.files}),
            "labels": counts,
            "label_colours": CLASS_COLOURS,
            "label_names": list(
                dict.fromkeys((*self.label_names, *sorted(counts), *sorted(filter(None, shown.values()))))
            ),
            "undo": self._undoes(),
            "page_events": self.page_events,
            "labels_path": self.labels.path,
            "names_path": self.names.path,
        }

    def places(self) -> dict[str, Any]:
        """Return `sites` and `clusters`, the axes of the counts of all events, and `positions` of stations if known."""
        counts = self.map.counts()
        positions = positions_by_station(StationList.read(self.store))
        return {
            "sites": counts.sites,
            "clusters": counts.clusters,
            "positions": last_positions(positions, counts.sites),
        }

    def list_events(self, chosen: Filter, cursor: str, limit: int) -> tuple[list[dict[str, Any]], str]:
        """Return up to `limit` events and the cursor of the page after them ("" at the end), see `list_page`."""
        labels = self.labels.read()
        rows, following = list_page(self.store, self.files, chosen, labels, cursor, limit)
        return self._shown(rows, labels), following

    def list_points(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Return some events of the map, in the given order, as `list_events` does; each with its `point`."""
        points = self.map.points()
        ids = points.ids(numbers)
        by_file: dict[str, list[int]] = {}
        for place, number in enumerate(numbers):
            by_file.setdefault(points.files[points.file_numbers[number]], []).append(place)
        rows: list[dict[str, Any]] = [{}] * len(ids)
        for file, places in by_file.items():
            table = tables.read_table(self.store, f"labels/{file}", LABEL_COLUMNS)
            wanted = [int(points.row_numbers[numbers[place]]) for place in places]
            if max(wanted) >= len(table) or table["event_id"].take(wanted).to_pylist() != [ids[at] for at in places]:
                raise BadRequest("the events were labelled anew; start the explorer again")
            for place, row in zip(places, records(table.take(wanted).to_pandas().assign(file=file)), strict=True):
                rows[place] = row
        events = self._shown(rows, self.labels.read())
        return [{**event, "point": number} for event, number in zip(events, numbers, strict=True)]

    def neighbours(self, event_id: str, count: int) -> list[dict[str, Any]]:
        """Return the events of the map that are nearest to one that was shown, the nearest first, without itself."""
        points = self.map.points()
        number = points.index_of(event_id)
        if number is None:
            file, _ = self._known(event_id)
            table = tables.read_events(self.store, f"embeddings/{file}", [event_id], ("embedding",))
            if not table.num_rows:
                raise BadRequest("this event has no embedding")
            wanted = to_space(tables.embeddings(table["embedding"]), points.space)[0]
        else:
            wanted = points.points[number]
        near = [int(other) for other in nearest_points(points.points, wanted, count + 1) if other != number]
        return self.list_points(near[:count])

    def typical(self, cluster: int, first: int, count: int) -> tuple[list[dict[str, Any]], int]:
        """Return events of the map from a cluster, those nearest to a centroid first, and how many it has there.

        `first` of them are left out, and at most `count` returned.
        """
        points = self.map.points()
        return self.list_points(points.typical(cluster, first + count)[first:]), int((points.clusters == cluster).sum())

    def doubtful(self, cluster: int | None = None) -> list[dict[str, Any]]:
        """Return the events of the map, all or of a cluster, that are probably in the wrong one.

        Each has `point`, `why`, and `other`, the name of most of its neighbours ("" where they have none). Clusters of
        one name are one class, and a hand label goes before the name; events with one are not returned. Of a map of
        more than `MAX_COMPARED` events, so many drawn at random are compared.
        """
        points = self.map.points()
        with self.lock:
            if self.nearest is None:
                self.nearest = nearest_events(points.points[:MAX_COMPARED])
            nearest = self.nearest
        label_of = {event_id: row["label"] for event_id, row in self.labels.read().items()}
        name_of = self._names()
        numbers = range(len(nearest))
        ids, clusters = points.ids(numbers), points.clusters[: len(nearest)]
        names = [
            label_of.get(one) or name_of.get(own) or f"in cluster {own}"
            for one, own in zip(ids, clusters.tolist(), strict=True)
        ]
        asked = np.array([one not in label_of for one in ids], dtype=bool)
        if cluster is not None:
            asked &= clusters == cluster
        found = find_doubtful(nearest, names, asked)
        given = {*label_of.values(), *name_of.values()}
        return [
            {
                "point": one.number,
                "why": f"{one.votes} of its {nearest.shape[1]} nearest events are {one.name}",
                "other": one.name if one.name in given else "",
            }
            for one in found
        ]

    def _names(self) -> dict[int, str]:
        """Return the name of each cluster; "" where it has none."""
        names = self.names.read()
        return {number: names.get(number) or name for number, (_, name) in self._cluster_sizes().items()}

    def labelled_points(self) -> dict[str, list[int]]:
        """Return the events of the map that have a hand label, by label."""
        label_of = {event_id: row["label"] for event_id, row in self.labels.read().items()}
        points = self.map.points()
        numbers = points.labelled(list(label_of)).tolist()
        found: dict[str, list[int]] = {}
        for number, event_id in zip(numbers, points.ids(numbers), strict=True):
            found.setdefault(label_of[event_id], []).append(number)
        return found

    def suggestions(self) -> list[dict[str, Any]]:
        """Return the events that `firnline suggest` names, in its order; each with `why` and the `heading` above it."""
        labels = self.labels.read()
        path = self.labels.path if labels else None
        suggested = suggest_events(self.store, self.suggest, LabelsSettings(path=path))
        by_file: dict[str, list[SuggestedEvent]] = {}
        for one in suggested:
            by_file.setdefault(one.file, []).append(one)
        row_of: dict[str, dict[str, Any]] = {}
        for file, members in by_file.items():
            table = tables.read_table(self.store, f"labels/{file}", LABEL_COLUMNS)
            chosen = pc.is_in(table["event_id"], value_set=pa.array([one.event_id for one in members]))
            row_of |= {row["event_id"]: row for row in records(table.filter(chosen).to_pandas().assign(file=file))}
        events = self._shown([row_of[one.event_id] for one in suggested], labels)
        names = self._names()

        def reason(one: SuggestedEvent) -> dict[str, str]:
            if one.other is None:
                return {"why": one.why, "heading": "Typical, to name clusters by"}
            near, own = (f"{at} ({names[at]})" if names.get(at) else str(at) for at in (one.other, one.cluster))
            return {"why": why_uncertain(near, own), "heading": "Uncertain, between two clusters"}

        return [{**event, **reason(one)} for event, one in zip(events, suggested, strict=True)]

    def _shown(self, rows: Iterable[dict[str, Any]], labels: HandLabels) -> list[dict[str, Any]]:
        """Remember rows of `labels/`, each with its `file`, as shown, and return what a browser gets of them."""
        events = []
        with self.lock:
            for row in rows:
                self.shown[row["event_id"]] = (str(row.pop("file")), row)
                self.shown.move_to_end(row["event_id"])
                events.append(
                    {
                        "event_id": row["event_id"],
                        "site": f"{row['network']}.{row['station']}",
                        "onset": row["onset"].strftime("%Y-%m-%d %H:%M:%S"),
                        "cluster": int(row["cluster"]),
                        "margin": _number(row["margin"]),
                        "distance": _number(row["distance"]),
                        "label": labels.get(row["event_id"], {}).get("label"),
                        "given": None if pd.isna(row["label"]) else row["label"],
                    }
                )
            while len(self.shown) > MAX_SHOWN:
                self.shown.popitem(last=False)
        return events

    def _known(self, event_id: str) -> tuple[str, dict[str, Any]]:
        """Return the file and the row of an event that was shown."""
        with self.lock:
            if event_id not in self.shown:
                raise BadRequest("this event has not been listed; list it first")
            return self.shown[event_id]

    def figure(self, event_id: str, shown_s: int | None = None) -> dict[str, Any]:
        """Return the figure (SVG) and the details of an event that was listed before.

        The figure has the whole window, or only so many seconds about the onset.
        """
        with self.lock:
            if (event_id, shown_s) in self.drawn:
                self.drawn.move_to_end((event_id, shown_s))
                return self.drawn[event_id, shown_s]
            file, row = self._known(event_id)
        event = tables.read_events(self.store, f"events/{file}", [event_id], GALLERY_COLUMNS)
        if not event.num_rows:
            raise BadRequest("this event has a label but no waveform; was the workspace changed?")
        item = gallery_item(event, row, self.band_hz, shown_s)
        answer = {"svg": item.svg, "details": list(item.details), "time": item.time}
        with self.lock:
            self.drawn[event_id, shown_s] = answer
            while len(self.drawn) > MAX_DRAWN:
                self.drawn.popitem(last=False)
        return answer

    def tree_figure(self, branch: str) -> dict[str, Any]:
        """Return the figure of a branch of the merge tree, see `ShownTree.figure`."""
        return self.tree.figure(branch, BRANCH_COLOUR, self.band_hz)

    def set_labels(self, changes: Mapping[str, str | None]) -> dict[str, Any]:
        """Set or remove (None) the hand labels of events that were shown, and save the file.

        Returns:
            `labels`, the counts by label, and `undo`, what can be undone next, in words ("" where nothing can).
        """
        with self.lock:
            unknown = [event_id for event_id in changes if event_id not in self.shown]
            if unknown:
                raise BadRequest(f"{len(unknown)} of the events have not been listed; list them first")
            return self._change_labels(changes)

    def set_point_labels(self, numbers: Sequence[int], label: str | None) -> dict[str, Any]:
        """Set or remove (None) the hand label of events of the map, as `set_labels`."""
        ids = self.map.points().ids(numbers)
        with self.lock:
            return self._change_labels(dict.fromkeys(ids, label))

    def _change_labels(self, changes: Mapping[str, str | None]) -> dict[str, Any]:
        before = _labels_of(self.labels.read(), changes)
        rows = self.labels.change(changes)
        self._remember(LabelChange(before, _labels_of(rows, changes)))
        return {"labels": _counts(rows), "undo": self._undoes()}

    def set_name(self, cluster: int, name: str | None) -> dict[str, Any]:
        """Set or remove (None) the name of a cluster, and save the file.

        Returns:
            `names`, all by cluster, and `undo` as `set_labels`.
        """
        with self.lock:
            if cluster not in self._cluster_sizes():
                raise BadRequest(f"there is no cluster {cluster}")
            before = self.names.read().get(cluster)
            names = self.names.change(cluster, name)
            self._remember(NameChange(cluster, before, names.get(cluster)))
            return {"names": names, "undo": self._undoes()}

    def undo(self) -> dict[str, Any]:
        """Undo the latest change, as far as nothing has changed since what it changed.

        Returns:
            `labels` and `undo` as `set_labels`; `changed`, the labels that were set back, by event id; `names` by
            cluster, and the `cluster` whose name was set back; `said`, what was undone in words.
        """
        with self.lock:
            if not self.done:
                raise BadRequest("there is nothing to undo")
            change, changed, said = self.done.pop(), dict[str, str | None](), "nothing, since it was changed meanwhile"
            cluster = None
            if isinstance(change, NameChange):
                cluster = change.cluster
                if self.names.read().get(change.cluster) == change.after:
                    self.names.change(change.cluster, change.before)
                    said = change.words
            else:
                now = _labels_of(self.labels.read(), change.after)
                changed = {one: label for one, label in change.before.items() if now[one] == change.after[one]}
                if changed:
                    self.labels.change(changed)
                    said = f"the label of {counted(len(changed), 'event')}"
            found = {"labels": _counts(self.labels.read()), "undo": self._undoes(), "changed": changed, "said": said}
            return found | {"cluster": cluster, "names": self.names.read()}

    def _undoes(self) -> str:
        return self.done[-1].words if self.done else ""

    def _remember(self, change: "LabelChange | NameChange") -> None:
        self.done.append(change)
        del self.done[:-MAX_UNDONE]

    def _cluster_sizes(self) -> dict[int, tuple[int, str]]:
        """Return size and name of each cluster, from the label stage's summary, else counted once."""
        with self.lock:
            if self.sizes is None:
                self.sizes = self._read_cluster_sizes()
            return self.sizes

    def _read_cluster_sizes(self) -> dict[int, tuple[int, str]]:
        summary = ClusteringSummary.read(self.store)
        if summary is not None and summary.clusters:
            return {entry.cluster: (entry.events, entry.name or "") for entry in summary.clusters}
        counts: dict[int, int] = {}
        for file in self.files:
            for number in tables.read_table(self.store, f"labels/{file}", ("cluster",))["cluster"].to_pylist():
                counts[number] = counts.get(number, 0) + 1
        return {number: (counts[number], "") for number in sorted(counts)}


def open_explorer(
    workspace: Workspace,
    settings: ExploreSettings,
    labels: LabelsSettings,
    report: ReportSettings | None = None,
    suggest: SuggestSettings | None = None,
) -> Explorer:
    """Return the explorer of a workspace; hand labels are saved where `choose_labels_file` says.

    Raises:
        InputError: the workspace has no labels, or the file of hand labels cannot be edited.
    """
    return Explorer(
        store=workspace.store,
        files=label_files(workspace),
        labels=choose_labels_file(workspace.store, settings, labels),
        names=SavedNames(workspace.store),
        label_names=settings.label_names,
        band_hz=shown_band(workspace, report or ReportSettings()),
        page_events=settings.page_events,
        map_events=settings.map_events,
        suggest=suggest or SuggestSettings(),
    )


def _labels_of(rows: HandLabels, event_ids: Iterable[str]) -> dict[str, str | None]:
    return {event_id: rows.get(event_id, {}).get("label") for event_id in event_ids}


def _counts(rows: Mapping[str, Mapping[str, str]]) -> dict[str, int]:
    """Return the number of events of each label, the most frequent first."""
    counts = pd.Series([row["label"] for row in rows.values()], dtype=object).value_counts()
    return {str(label): int(count) for label, count in counts.items()}


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
