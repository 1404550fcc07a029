"""A copy of the explorer for reading: a folder or a bucket prefix whose page opens from a disk, without a server.

    index.html, *.css, *.js    the page of the explorer; offline.js answers in the place of the server
    data/summary.js            clusters, stations, counts by hour, and what the copy holds, in words
    data/map.js                the events of the map: id, station, onset, cluster, hand label, both layouts
    data/tree.js               the merge tree
    figures/<n>.js             waveforms and spectrogram of an event; -10.js, -3.js: so many seconds about the onset
    branches/<id>.js           the mean of a branch of the merge tree
    firnline-export.json       the files of the copy: what has none of these, or others beside it, is never replaced

A browser reads no data from a disk but scripts, so all data are calls of a function. The copy is written beside the
folder's place and takes it once it is complete. One job at a time writes one: beside it, too, stands who does.
"""

import base64
import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipelines.config.report import ExploreSettings
from pipelines.explore.assets import OFFLINE, SERVER, Asset, page_assets
from pipelines.explore.explorer import Explorer
from pipelines.explore.export_sample import choose_branches, choose_events, nearest_of
from pipelines.explore.map_points import LAYOUTS, MapPoints
from pipelines.explore.queries import MAX_LISTED, SHOWN_SECONDS, BadRequest
from pipelines.runtime.errors import InputError
from pipelines.runtime.progress import progress_bar
from pipelines.workspace.artifacts import Artifact
from pipelines.workspace.holder import held
from pipelines.workspace.storage import Store, open_parent, open_store, said_of
from pipelines.workspace.workspace import REPLACING, STAGE_FOLDERS, Workspace

KEY = "explore.export"
PARTIAL, OLD, HOLDER = ".firnline-partial", ".firnline-old", ".firnline-holder"
"""What stands behind the name of a copy that is being written, of one that is being replaced, and of who writes it."""
MAX_BRANCHES = 60
"""Branches of the merge tree that have a figure."""
POLICY = (
    "default-src 'none'; script-src 'self' file:; style-src 'self' 'unsafe-inline' file:; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)
"""Of the page: its own files and nothing from a network."""


class ExportRecord(Artifact):
    """`firnline-export.json`: the files of a copy. It is written first, and again at the end."""

    PATH = "firnline-export.json"
    REMEDY = "name another folder"

    files: tuple[str, ...] = Field(max_length=100_000)
    complete: bool


@dataclass(frozen=True)
class ExportTarget:
    """Where a copy goes."""

    parent: Store
    name: str

    def store(self, ending: str = "") -> Store:
        """Return the folder of the copy; with an ending, one beside it."""
        return self.parent.child(self.name + ending)


@dataclass(frozen=True)
class Exported:
    """What a copy holds."""

    url: str
    words: str


@contextlib.contextmanager
def held_target(url: str, workspace: Workspace, command: str) -> Iterator[ExportTarget]:
    """Yield where a copy goes; until the block ends no other job writes there.

    Args:
        url: as the user gives it.
        workspace: of which the copy is.
        command: what is told to another job that would write there, too.

    Raises:
        InputError: something else is there, it cannot be written, or another job writes there.
        StageFailed: another job took this one for dead, see `held`.
    """
    store = open_store(url)
    parent, name = open_parent(store.url)
    if not name or (not store.is_local and store.url.count("/") < 3):
        raise InputError(f"{KEY} {url} must name a folder, or a prefix of a bucket, of its own")
    own = {folder.partition("/")[0] for folders in STAGE_FOLDERS.values() for folder in folders}
    within = store.url.removeprefix(f"{workspace.url}/") if store.url.startswith(f"{workspace.url}/") else ""
    if within.partition("/")[0] in own | {REPLACING, "config", "tune", "mlartifacts"}:
        raise InputError(f"{KEY} {url} lies in a folder of the workspace that a stage writes; name another folder")
    target = ExportTarget(parent, name)
    holder = target.store(HOLDER)
    # Within a folder that another job holds, the test could be in its way.
    (parent if parent.is_local else holder).check_writable(what="folder")
    try:
        with held(holder, command, what=store.url):
            with said_of(url, KEY):
                for ending in ("", PARTIAL, OLD):
                    _refuse_other(target.store(ending))
            yield target
    finally:
        # A job that was killed leaves the folder, and who took over from it did not make it.
        if holder.is_local:
            with contextlib.suppress(OSError):
                Path(holder.url).rmdir()


def _refuse_other(store: Store) -> None:
    """Raise InputError where a folder holds anything but a copy of the explorer."""
    record = ExportRecord.read(store)
    known = {ExportRecord.PATH, *(record.files if record else ())}
    for item in store.walk():
        # What is being written is listed once it is complete.
        if record is None or (record.complete and item.path not in known):
            what = "is no export of Firnline" if record is None else f"holds {item.path}, which no export has written"
            raise InputError(f"{KEY}: {store.url} exists and {what}; name another folder")


def write_export(explorer: Explorer, target: ExportTarget, settings: ExploreSettings) -> Exported:
    """Write a copy of the explorer, and let it take the place of an older one once it is complete.

    Raises:
        InputError: there is no map.
    """
    try:
        points, counts = explorer.map.points(), explorer.map.counts()
        planes = [explorer.map.plane(layout) for layout in LAYOUTS]
        labels = explorer.labelled_points()
    except BadRequest as error:
        raise InputError(str(error)) from None
    target.parent.remove_folder(target.name + PARTIAL)
    copy = _Copy(target.store(PARTIAL))
    labelled = sorted(number for numbers in labels.values() for number in numbers)
    chosen = choose_events(points.clusters, points.distances, points.margins, labelled, settings.export_events)
    branches = _chosen_branches(explorer)
    with progress_bar("explore", unit="figure", total=len(chosen) + len(branches)) as bar:
        missing = _write_figures(explorer, copy, chosen, bar)
        for branch in branches:
            copy.script(f"branches/{branch}.js", f"branch/{branch}", _or_error(explorer.tree_figure, branch))
            bar.update()
    words = _words(explorer, points, int(counts.events.sum()), len(chosen) - missing, bool(labelled))
    copy.script("data/tree.js", "tree", _or_error(explorer.tree.describe) | {"drawn": branches})
    name = explorer.store.url.rpartition("/")[2]
    summary = explorer.summary() | {"workspace": name, "labels_path": "", "names_path": "", "command": "", "undo": ""}
    shown = {"summary": summary | {"export": words}, "places": explorer.places(), "counts": _encoded(counts.events)}
    copy.script("data/summary.js", "page", shown)
    copy.script(
        "data/map.js",
        "map",
        {
            "planes": {layout: _encoded(plane) for layout, plane in zip(LAYOUTS, planes, strict=True)},
            "clusters": _encoded(points.clusters),
            "sites": _encoded(points.sites(counts.sites)),
            "onsets_ms": _encoded((points.onset_ns // 10**6).astype(np.float64)),
            "distances": _encoded(points.distances),
            "margins": _encoded(points.margins),
            "ids": "\n".join(points.event_ids.to_pylist()),
            "total": int(counts.events.sum()),
            "labels": labels,
            "drawn": chosen,
            "nearest": nearest_of(points.points, chosen) if chosen else {},
        },
    )
    for asset in page_assets(OFFLINE):
        copy.write(asset.path.removeprefix("/") or "index.html", _page(asset))
    ExportRecord(files=tuple(sorted(copy.files)), complete=True).write(copy.store)
    target.parent.take_place(target.name + PARTIAL, target.name, old=target.name + OLD)
    for ending in (OLD, PARTIAL):
        target.parent.remove_folder(target.name + ending)
    return Exported(target.store().url, words)


class _Copy:
    """A copy that is being written, and its files so far."""

    def __init__(self, store: Store) -> None:
        self.store, self.files = store, set[str]()
        ExportRecord(files=(), complete=False).write(store)

    def write(self, path: str, content: bytes) -> None:
        self.store.write(path, content)
        self.files.add(path)

    def script(self, path: str, name: str, value: object) -> None:
        """Write a value as a script that hands it to the page."""
        self.write(path, f"firnline.take({json.dumps(name)}, {json.dumps(value, allow_nan=False)});\n".encode())


def _page(asset: Asset) -> bytes:
    """Return a file of the page; the page itself with the scripts of a copy and its policy."""
    content = asset.read()
    if asset.path != "/":
        return content
    server, head = f'<script src="{SERVER}" defer></script>', '<meta charset="utf-8">'
    page = content.decode()
    assert page.count(server) == page.count(head) == 1
    scripts = (OFFLINE, "data/summary.js", "data/map.js")
    page = page.replace(server, "\n".join(f'<script src="{name}" defer></script>' for name in scripts))
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    return page.replace(head, f"{head}\n{policy}").encode()


def _write_figures(explorer: Explorer, copy: _Copy, chosen: list[int], bar: Any) -> int:
    """Write the figures of events of the map, and return how many have none."""
    missing = 0
    for start in range(0, len(chosen), MAX_LISTED):
        numbers = chosen[start : start + MAX_LISTED]
        for event in explorer.list_points(numbers):
            found = _or_error(explorer.figure, event["event_id"])
            missing += "error" in found
            copy.script(f"figures/{event['point']}.js", f"figure/{event['point']}", found)
            for seconds in SHOWN_SECONDS:
                found = _or_error(explorer.figure, event["event_id"], seconds)
                name = f"{event['point']}-{seconds}"
                copy.script(f"figures/{name}.js", f"figure/{name}", found)
            bar.update()
    return missing


def _or_error(make: Any, *values: Any) -> dict[str, Any]:
    """Return what a call of the explorer gives; `error` in words where it refuses."""
    try:
        return dict(make(*values))
    except BadRequest as error:
        return {"error": str(error)}


def _chosen_branches(explorer: Explorer) -> list[str]:
    try:
        described = explorer.tree.describe()
    except BadRequest:
        return []
    heights = {node["id"]: node["height"] for node in described["nodes"] if node["children"]}
    of_clusters = [branch for branches in described["clusters"].values() for branch in branches]
    return choose_branches(heights, of_clusters, MAX_BRANCHES)


def _encoded(numbers: NDArray[Any]) -> str:
    """Return numbers as they lie in memory, little-endian, in base64."""
    return base64.b64encode(numbers.astype(numbers.dtype.newbyteorder("<"), copy=False).tobytes()).decode()


def _words(explorer: Explorer, points: MapPoints, total: int, drawn: int, by_hand: bool) -> str:
    """Return what a copy holds, and what not, in words."""
    if len(points) == total:
        shown = f"all {total:,} events"
    elif total <= explorer.map_events:
        shown = f"{len(points):,} of {total:,} events (the others have no embedding)"
    else:
        shown = f"{len(points):,} of {total:,} events, drawn at random, by a hash of their ids"
    figures = "all of them" if drawn == len(points) else f"{drawn:,} of them"
    how = " from every cluster alike the most typical, the least certain and some at random"
    how += ", and events labelled by hand" if by_hand else ""
    return (
        f"A copy for reading: the map and the list have {shown}. Waveforms and spectrograms are here for {figures}"
        f"{'' if drawn == len(points) else ':' + how}. The numbers of events by cluster, hour and station are those of "
        "all events. Nothing can be labelled here."
    )
