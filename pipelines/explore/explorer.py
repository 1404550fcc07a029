"""What the explorer shows of a workspace. It keeps nothing in memory but what it has shown."""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from pipelines.config.label import LabelsSettings
from pipelines.config.report import ExploreSettings, ReportSettings
from pipelines.explore.listing import list_page, site_of
from pipelines.explore.queries import BadRequest, Filter
from pipelines.explore.saved import SavedLabels, SavedNames, choose_labels_file
from pipelines.report.stage_gallery import GALLERY_COLUMNS, gallery_item, shown_band
from pipelines.report.stage_inputs import label_files
from pipelines.report.style import cluster_colour
from pipelines.workspace import tables
from pipelines.workspace.artifacts import ClusteringSummary
from pipelines.workspace.storage import Store
from pipelines.workspace.workspace import Workspace

MAX_SHOWN = 200_000
"""Events that are remembered as shown."""
MAX_DRAWN = 400
"""Figures that are kept."""


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
    drawn: "OrderedDict[str, dict[str, Any]]" = field(default_factory=OrderedDict)
    """Figures by event id."""
    sizes: dict[int, tuple[int, str]] | None = None
    """Events and name of each cluster, once read."""
    lock: threading.RLock = field(default_factory=threading.RLock)

    def summary(self) -> dict[str, Any]:
        """Return clusters, stations, label counts and where labels are kept."""
        names = self.names.read()
        counts = _counts(self.labels.read())
        return {
            "workspace": self.store.url,
            "clusters": [
                {
                    "number": number,
                    "events": events,
                    "name": names.get(number) or name,
                    "colour": cluster_colour(number),
                }
                for number, (events, name) in self._cluster_sizes().items()
            ],
            "sites": sorted({site_of(file) for file in self.files}),
            "labels": counts,
            "label_names": list(dict.fromkeys((*self.label_names, *sorted(counts)))),
            "labels_path": self.labels.path,
            "names_path": self.names.path,
        }

    def list_events(self, chosen: Filter, cursor: str, limit: int) -> tuple[list[dict[str, Any]], str]:
        """Return up to `limit` events and the cursor of the page after them ("" at the end), see `list_page`."""
        labels = self.labels.read()
        rows, following = list_page(self.store, self.files, chosen, labels, cursor, limit)
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
        return events, following

    def figure(self, event_id: str) -> dict[str, Any]:
        """Return the figure (SVG) and the details of an event that was listed before."""
        with self.lock:
            if event_id in self.drawn:
                self.drawn.move_to_end(event_id)
                return self.drawn[event_id]
            if event_id not in self.shown:
                raise BadRequest("this event has not been listed; list it first")
            file, row = self.shown[event_id]
        event = tables.read_events(self.store, f"events/{file}", [event_id], GALLERY_COLUMNS)
        if not event.num_rows:
            raise BadRequest("this event has a label but no waveform; was the workspace changed?")
        item = gallery_item(event, row, self.band_hz)
        answer = {"svg": item.svg, "details": list(item.details), "time": item.time}
        with self.lock:
            self.drawn[event_id] = answer
            while len(self.drawn) > MAX_DRAWN:
                self.drawn.popitem(last=False)
        return answer

    def set_labels(self, changes: Mapping[str, str | None]) -> dict[str, int]:
        """Set or remove (None) the hand labels of events that were shown, save the file, and return counts by label."""
        with self.lock:
            unknown = [event_id for event_id in changes if event_id not in self.shown]
            if unknown:
                raise BadRequest(f"{len(unknown)} of the events have not been listed; list them first")
            return _counts(self.labels.change(changes))

    def set_name(self, cluster: int, name: str | None) -> dict[int, str]:
        """Set or remove (None) the name of a cluster, save the file, and return all names."""
        with self.lock:
            if cluster not in self._cluster_sizes():
                raise BadRequest(f"there is no cluster {cluster}")
            return self.names.change(cluster, name)

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
    workspace: Workspace, settings: ExploreSettings, labels: LabelsSettings, report: ReportSettings | None = None
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
    )


def _counts(rows: Mapping[str, Mapping[str, str]]) -> dict[str, int]:
    """Return the number of events of each label, the most frequent first."""
    counts = pd.Series([row["label"] for row in rows.values()], dtype=object).value_counts()
    return {str(label): int(count) for label, count in counts.items()}


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
