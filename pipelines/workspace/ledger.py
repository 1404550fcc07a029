"""Markers: a stage's shard is done when, and only when, its marker is in the workspace's ledger.

    ledger/<stage>/network=NN/station=SSSS/<shard>.<fingerprint>.json

A marker is written after the shard's data is durable. The fingerprint in its name covers all that changes the shard's
output, so one listing decides what is left to do (`work_left`), for every stage.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pipelines.runtime.errors import InputError
from pipelines.workspace import tables
from pipelines.workspace.artifacts import DetectionMarker, LabelMarker, read_json
from pipelines.workspace.storage import Store, path_part

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class MarkerName:
    """What a marker's path says."""

    network: str
    station: str
    shard: str
    fingerprint: str

    @property
    def partition(self) -> str:
        """Return `network=NN/station=SSSS`."""
        return f"network={self.network}/station={self.station}"


def fingerprint(values: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits that change with any value (SHA-256 of the canonical JSON)."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def marker_path(stage: str, name: MarkerName) -> str:
    """Return the marker's path in the workspace; InputError where a code would lead out of its folder."""
    file = path_part(f"{name.shard}.{name.fingerprint}.json", what="shard")
    return f"ledger/{stage}/{tables.partition(name.network, name.station)}/{file}"


def write_marker(store: Store, stage: str, name: MarkerName, content: Mapping[str, Any]) -> None:
    """Write a marker; call it only when the shard's data is durable."""
    store.write(marker_path(stage, name), marker_bytes(name, content))


def marker_bytes(name: MarkerName, content: Mapping[str, Any]) -> bytes:
    """Return a marker as it is written."""
    body = {"shard": name.shard, "network": name.network, "station": name.station, "fingerprint": name.fingerprint}
    text = json.dumps(body | dict(content), indent=1, sort_keys=True)
    return (text + "\n").encode()


def list_markers(
    store: Store, stage: str, *, network: str | None = None, station: str | None = None
) -> Iterator[MarkerName]:
    """Yield the name of every marker of a stage, or of one station's, from the listing alone."""
    folder = f"ledger/{stage}"
    if network is not None and station is not None:
        listing = store.files(f"{folder}/network={network}/station={station}")
    else:
        listing = store.walk(folder)
    for item in listing:
        name = parse_marker_path(item.path)
        if name is not None:
            yield name


@dataclass(frozen=True, kw_only=True)
class WorkLeft(Generic[T]):
    """What a stage has to do, as its markers say."""

    left: list[T]
    """Shards without a marker, in the order given."""
    current: set[MarkerName]
    """Markers that hold or will be written: one for each shard."""
    num_done: int
    stale: list[MarkerName]
    """Markers of shards that are to be redone or no longer exist, sorted."""


def work_left(store: Store, stage: str, shards: Iterable[T], name_of: Callable[[T], MarkerName]) -> WorkLeft[T]:
    """Compare the shards that a stage should have done with its markers.

    The one rule of what is done: a shard is, when the ledger holds a marker of its name with its fingerprint.

    Args:
        store: the workspace.
        stage: whose markers they are.
        shards: all that the stage should do, gone through once.
        name_of: returns a shard's marker.
    """
    # There may be millions: those that are current are held once.
    markers = {name: name for name in list_markers(store, stage)}
    current: set[MarkerName] = set()
    left: list[T] = []
    for shard in shards:
        name = name_of(shard)
        current.add(markers.get(name, name))
        if name not in markers:
            left.append(shard)
    stale = sorted((name for name in markers if name not in current), key=str)
    return WorkLeft(left=left, current=current, num_done=len(markers) - len(stale), stale=stale)


def parse_marker_path(path: str) -> MarkerName | None:
    """Return what a marker's path says; None for the path of any other file."""
    parts = path.split("/")
    if len(parts) != 5 or not parts[4].endswith(".json"):
        return None
    shard, _, digits = parts[4].removesuffix(".json").rpartition(".")
    if not parts[2].startswith("network=") or not parts[3].startswith("station=") or not shard:
        return None
    network, station = parts[2].removeprefix("network="), parts[3].removeprefix("station=")
    # Millions of markers share a few codes and intervals.
    return MarkerName(sys.intern(network), sys.intern(station), sys.intern(shard), digits)


def read_marker(store: Store, stage: str, name: MarkerName) -> dict[str, Any]:
    """Return a marker's content; InputError names a damaged one."""
    return read_json(store, marker_path(stage, name))


def read_detection_marker(store: Store, ledger: str, name: MarkerName) -> dict[str, Any]:
    """Return the content of a marker of `ledger/detect` or `ledger/trigger`, as it stands.

    InputError names a damaged one, and the member that is missing or of another type.
    """
    content = read_marker(store, ledger, name)
    path = store.full(marker_path(ledger, name))
    marker = DetectionMarker.from_values(content, name=path)
    if ledger == "trigger" and marker.onsets_ns is None:
        raise InputError(f"{path} is damaged: onsets_ns: field required; {DetectionMarker.REMEDY}")
    return content


def read_label_marker(store: Store, name: MarkerName) -> dict[str, Any]:
    """Return the content of a marker of `ledger/label`, as it stands; InputError as for a detection's."""
    content = read_marker(store, "label", name)
    LabelMarker.from_values(content, name=store.full(marker_path("label", name)))
    return content


def stage_has_markers(store: Store, stage: str) -> bool:
    """Whether any shard of a stage is done."""
    ledgers = {"label": ("embed", "label"), "detect": ("trigger", "detect")}.get(stage, (stage,))
    return any(next(list_markers(store, ledger), None) is not None for ledger in ledgers)


def stage_fingerprint(store: Store, stage: str) -> str:
    """Return one fingerprint for all that a stage has done: what a later stage logs as its input."""
    names = sorted((name.partition, name.shard, name.fingerprint) for name in list_markers(store, stage))
    return fingerprint({"stage": stage, "shards": names})


def remove_stale(
    store: Store,
    table: str,
    stage: str,
    stale: Iterable[MarkerName],
    current: Iterable[MarkerName],
    *,
    beside: Sequence[str] = (),
) -> None:
    """Remove the markers that no longer hold, then the files of shards that are not among the current ones.

    Call it before files are written again: after a kill, a marker of earlier inputs would hold once these are back.

    Args:
        store: the workspace.
        table: that the stage writes.
        stage: whose markers they are.
        stale: markers that no longer hold.
        current: markers that hold or will be written.
        beside: further tables that the stage writes, file by file as the first.
    """
    kept = {(name.partition, name.shard) for name in current}
    for name in stale:
        store.remove(marker_path(stage, name))
        if (name.partition, name.shard) not in kept:
            for each in (table, *beside):
                store.remove(tables.shard_path(each, name.network, name.station, name.shard))
