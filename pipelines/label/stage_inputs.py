"""What labelling reads beside the encoder: the shards of events, hand labels, cluster names."""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import ray
import yaml
from numpy.typing import NDArray

from pipelines import tables
from pipelines.association import NANOSECONDS, event_names, in_validation, match_event_ids, match_times
from pipelines.config.label import LabelsSettings
from pipelines.errors import InputError
from pipelines.label.naming import read_names
from pipelines.ledger import list_markers
from pipelines.storage import Store, content_hash, open_parent, open_store

DAY_NS = 86_400 * NANOSECONDS
FILES_A_TASK = 64


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of events, and the files beside it in the other tables."""

    network: str
    station: str
    name: str
    source: str
    """Changes whenever the events in it may have changed: detection's fingerprint of the shard."""

    def path(self, table: str) -> str:
        """Return the shard's file in a table."""
        return tables.shard_path(table, self.network, self.station, self.name)


def list_event_shards(store: Store) -> list[Shard]:
    """Return every shard that has events, sorted by path.

    Raises:
        InputError: there is none.
    """
    done = {(name.network, name.station, name.shard): name.fingerprint for name in list_markers(store, "detect")}
    shards = []
    for item in tables.list_shards(store, "events"):
        parts = item.path.split("/")
        network, station = parts[1].removeprefix("network="), parts[2].removeprefix("station=")
        name = parts[3].removesuffix(".parquet")
        source = done.get((network, station, name), f"{item.etag}-{item.size}")
        shards.append(Shard(network=network, station=station, name=name, source=source))
    if not shards:
        raise InputError(f"{store.url} holds no event to label; run `firnline detect` first")
    return shards


def check_enough_events(store: Store, shards: Iterable[Shard], k: int) -> None:
    """Raise InputError where there are fewer events than clusters; reads footers until there are enough."""
    num_events = 0
    for shard in shards:
        with store.local_copy(shard.path("events")) as copy:
            num_events += pq.read_metadata(copy).num_rows
        if num_events >= k:
            return
    raise InputError(f"kmeans.k is {k} but there are only {num_events} events; give a smaller kmeans.k")


@dataclass(frozen=True, kw_only=True)
class LabelTable:
    """Hand labels as they were read."""

    rows: pd.DataFrame
    """`label`, and `event_id` or `network, station, time_ns`; perhaps `split`."""
    content_hash: str


@dataclass(frozen=True, kw_only=True)
class HandLabels:
    """Hand labels matched to events."""

    label_of: dict[str, str]
    """By event_id."""
    event_of: dict[str, str]
    """Name of the associated event that each labelled trigger belongs to, by event_id."""
    validation: dict[str, bool]
    """Whether it is in the validation half, by event_id."""
    num_rows: int
    num_unmatched: int
    num_ambiguous: int
    content_hash: str


def match_hand_labels(store: Store, shards: Sequence[Shard], settings: LabelsSettings, known: LabelTable) -> HandLabels:
    """Match a label table to the events, a station a task.

    Raises:
        InputError: it matches no event.
    """
    table = known.rows
    by_station: dict[tuple[str, str], list[Shard]] = {}
    for shard in shards:
        by_station.setdefault((shard.network, shard.station), []).append(shard)
    has_ids = "event_id" in table
    tasks = []
    for (network, station), group in by_station.items():
        rows = table if has_ids else table[(table["network"] == network) & (table["station"] == station)]
        if len(rows):
            tasks.append(_match_station.remote(store, group, rows, settings.tolerance_seconds))
    results = ray.get(tasks)
    label_of = {event_id: label for matched, _ in results for event_id, label, _ in matched}
    onset_of = {event_id: onset for matched, _ in results for event_id, _, onset in matched}
    row_of = {event_id: row for _, rows in results for event_id, row in rows[0].items()}
    ambiguous = {row for _, rows in results for row in rows[1]}
    attributed = {row for _, rows in results for row in rows[2]}
    if not label_of:
        tolerance = f"labels.tolerance_seconds = {settings.tolerance_seconds:g} s"
        near = "its event_ids are no events" if has_ids else f"no time lies within {tolerance} of its station's onsets"
        raise InputError(f"labels.path {settings.path} matches no event: {near}")
    events = _associate_labelled(store, shards, onset_of, settings.association_seconds)
    halves = dict(zip(events, in_validation(list(events.values())).tolist(), strict=True))
    if "split" in table:
        for event_id, row in row_of.items():
            split = table["split"].get(row)
            if isinstance(split, str) and split:
                halves[event_id] = split == "validation"
    return HandLabels(
        label_of=label_of,
        event_of=events,
        validation=halves,
        num_rows=len(table),
        num_unmatched=len(table) - len(attributed),
        num_ambiguous=len(ambiguous),
        content_hash=known.content_hash,
    )


def read_cluster_names(path: str | None) -> tuple[dict[int, str | None], str]:
    """Return the user's names of clusters and a hash of the file; ({}, "") where none is configured.

    Raises:
        InputError: the file cannot be read or is no mapping from numbers to names.
    """
    if path is None:
        return {}, ""
    content = _read_bytes(path, "labels.names")
    try:
        return read_names(yaml.safe_load(content), source=f"labels.names {path}"), content_hash(content)
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(" ".join(str(error).split())) from None


def read_label_table(path: str) -> LabelTable:
    """Read the hand labels; times become nanoseconds in `time_ns`.

    Raises:
        InputError: it cannot be read, lacks columns, or holds a time or split that is none.
    """
    files = _label_files(path)
    parts, digests = [], []
    for name, content in files:
        try:
            part = (
                pd.read_parquet(io.BytesIO(content))
                if name.endswith(".parquet")
                else pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False)
            )
        except (ValueError, OSError) as error:
            raise InputError(f"labels.path {name} cannot be read as a table: {' '.join(str(error).split())}") from None
        parts.append(part)
        digests.append(content_hash(content))
    table = pd.concat(parts, ignore_index=True)
    if "label" not in table and "class" in table:
        table = table.rename(columns={"class": "label"})
    timed = {"network", "station", "time", "label"}
    if not (timed <= set(table) or {"event_id", "label"} <= set(table)):
        raise InputError(
            f"labels.path {path} has the columns {', '.join(map(str, table))}; it needs event_id, label or "
            "network, station, time, label"
        )
    if "event_id" in table and timed <= set(table) and not table["event_id"].astype(str).str.len().all():
        table = table.drop(columns="event_id")
    if "event_id" not in table:
        try:
            text = not pd.api.types.is_datetime64_any_dtype(table["time"])
            times = pd.to_datetime(table["time"], utc=True, format="ISO8601" if text else None)
        except (ValueError, TypeError) as error:
            raise InputError(
                f"labels.path {path} has a time that is none ({' '.join(str(error).split())}); write it as "
                "2020-01-01T00:00:00.00Z"
            ) from None
        table["time_ns"] = times.dt.as_unit("ns").astype("int64")
    if "split" in table:
        wrong = set(table["split"].dropna().astype(str)) - {"validation", "test", ""}
        if wrong:
            raise InputError(f"labels.path {path} has the split {sorted(wrong)[0]!r}; it must be validation or test")
    table["label"] = table["label"].astype(str)
    rows = table[table["label"].str.len() > 0].reset_index(drop=True)
    return LabelTable(rows=rows, content_hash=content_hash("".join(digests).encode()))


def _label_files(path: str) -> list[tuple[str, bytes]]:
    if path.endswith((".csv", ".parquet")):
        store, name = open_parent(path)
        if store.exists(name) and not (store.is_local and Path(path).expanduser().is_dir()):
            return [(path, _read_bytes(path, "labels.path"))]
    folder = open_store(path)
    names = sorted(item.path for item in folder.walk() if item.path.endswith((".csv", ".parquet")))
    if not names:
        raise InputError(f"labels.path {path} is no CSV or Parquet file and no folder that holds one")
    return [(f"{path}/{name}", folder.read(name)) for name in names]


def _read_bytes(path: str, key: str) -> bytes:
    store, name = open_parent(path)
    try:
        return store.read(name)
    except OSError as error:
        raise InputError(f"{key} {path} cannot be read: {error.strerror or type(error).__name__}") from None


def _read_columns(store: Store, shards: Iterable[Shard], columns: list[str]) -> pd.DataFrame:
    parts = [tables.read_table(store, shard.path("events"), columns).to_pandas() for shard in shards]
    events: pd.DataFrame = pd.concat(parts, ignore_index=True)
    return events


def _onset_ns(frame: pd.DataFrame) -> NDArray[np.int64]:
    return np.asarray(frame["onset"].dt.as_unit("ns").astype("int64"), dtype=np.int64)


@ray.remote
def _match_station(store: Store, shards: list[Shard], rows: pd.DataFrame, tolerance_seconds: float) -> Any:
    events = _read_columns(store, shards, ["event_id", "onset"])
    onsets = _onset_ns(events)
    if "event_id" in rows:
        found = match_event_ids(events["event_id"].tolist(), rows["event_id"].tolist(), rows["label"].tolist())
    else:
        found = match_times(
            [("", "")] * len(events),
            onsets,
            [("", "")] * len(rows),
            rows["time_ns"].to_numpy(),
            rows["label"].tolist(),
            tolerance_seconds,
        )
    ids = events["event_id"].to_numpy(dtype=object)[found.event_rows]
    numbers = rows.index.to_numpy()
    matched = list(zip(ids.tolist(), found.labels.tolist(), onsets[found.event_rows].tolist(), strict=True))
    attributed = set(numbers.tolist()) - set(numbers[found.unmatched].tolist())
    return matched, (
        dict(zip(ids.tolist(), numbers[found.label_rows].tolist(), strict=True)),
        numbers[found.ambiguous].tolist(),
        attributed,
    )


def _associate_labelled(
    store: Store, shards: Sequence[Shard], onset_of: dict[str, int], within_seconds: float
) -> dict[str, str]:
    """Name the associated event of each labelled trigger, from all triggers of its day and the days around it."""
    days = {onset // DAY_NS for onset in onset_of.values()}
    wanted = sorted({day + offset for day in days for offset in (-1, 0, 1)})
    groups = [list(shards[start : start + FILES_A_TASK]) for start in range(0, len(shards), FILES_A_TASK)]
    parts = ray.get([_triggers_of_days.remote(store, group, wanted) for group in groups])
    onsets = np.concatenate([part[0] for part in parts])
    ids = np.concatenate([part[1] for part in parts])
    names = dict(zip(ids.tolist(), event_names(onsets, ids, within_seconds).tolist(), strict=True))
    return {event_id: names[event_id] for event_id in sorted(onset_of)}


@ray.remote
def _triggers_of_days(
    store: Store, shards: list[Shard], days: list[int]
) -> tuple[NDArray[np.int64], NDArray[np.object_]]:
    events = _read_columns(store, shards, ["event_id", "onset"])
    onsets = _onset_ns(events)
    inside = np.isin(onsets // DAY_NS, days)
    return onsets[inside], events["event_id"].to_numpy(dtype=object)[inside]
