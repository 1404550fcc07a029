"""The second pass: every event's cluster is counted for naming, then written as labels, file by file as the events."""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from pipelines import __version__
from pipelines.label.draws import event_keys
from pipelines.label.kmeans import label_rows
from pipelines.label.space import to_space
from pipelines.label.stage_kmeans import Model
from pipelines.label.stage_shards import Shard
from pipelines.runtime.errors import InputError, StageFailed
from pipelines.runtime.progress import progress_bar
from pipelines.runtime.ray_session import task_results
from pipelines.workspace import tables
from pipelines.workspace.ledger import MarkerName, list_markers, remove_stale, write_marker
from pipelines.workspace.storage import Store

MEMORY_A_TASK = 1 << 29
NEAREST_A_CLUSTER = 6
"""Events nearest to each centroid that the cluster gallery may show."""


@dataclass(frozen=True, kw_only=True)
class Naming:
    """What turns a model's clusters into what is written."""

    numbers: NDArray[np.int32]
    """(k,): the final number of each cluster."""
    names: Mapping[int, str]
    """By final number."""


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Hand-labelled events with their clusters, in event_id order."""

    event_ids: NDArray[np.object_]
    stations: NDArray[np.object_]
    clusters: NDArray[np.int32]
    """Before they are numbered for good."""
    clusters_at_classes: NDArray[np.int32]
    """Equal to `clusters` where the model has no clustering at k = number of classes."""
    probed: NDArray[np.bool_]
    """Whether an event is among those that probes learn from and score."""
    embeddings: NDArray[np.float32]
    """Of the probed events alone, in event_id order: the driver holds no more of them."""


@dataclass(frozen=True, kw_only=True)
class Count:
    """What the whole archive says about the clusters, before they are numbered for good."""

    counts: NDArray[np.int64]
    """(k,) events."""
    shared: NDArray[np.int64]
    """(k, clusters of the reference) events in both; no column without a reference."""
    labelled: Labelled | None
    nearest: list[tuple[int, float, str, str]]
    """(cluster, distance, event_id, file of events) of the events nearest to their centroid."""


def count_clusters(
    store: Store,
    shards: Sequence[Shard],
    model: Model,
    label_of: Mapping[str, str],
    probe_ids: Collection[str],
    reference: Store | None,
) -> Count:
    """Label every event without writing, to learn sizes, hand-labelled events and what a reference shares.

    Of the labelled events (`label_of`, by event_id) only those in `probe_ids` come back with their embeddings.
    """
    by_station: dict[tuple[str, str], list[Shard]] = {}
    for shard in shards:
        by_station.setdefault((shard.network, shard.station), []).append(shard)
    model_ref, labels_ref = ray.put(model), ray.put((frozenset(label_of), frozenset(probe_ids)))
    tasks = [
        _count.remote(store, group, model_ref, labels_ref, reference)
        for station in by_station.values()
        for group in tables.by_task(station)
    ]
    results = task_results(tasks)
    width = max((shared.shape[1] for _, shared, _, _ in results), default=0)
    widened = [np.pad(shared, ((0, 0), (0, width - shared.shape[1]))) for _, shared, _, _ in results]
    return Count(
        counts=np.sum([counts for counts, _, _, _ in results], axis=0),
        shared=np.sum(widened, axis=0),
        labelled=_join([labelled for _, _, labelled, _ in results if len(labelled.event_ids)]),
        nearest=_nearest_of([nearest for _, _, _, nearest in results]),
    )


def _join(parts: Sequence[Labelled]) -> Labelled | None:
    if not parts:
        return None
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in Labelled.__dataclass_fields__}
    embeddings = columns.pop("embeddings")
    probed_order = np.argsort(columns["event_ids"][columns["probed"]], kind="stable")
    order = np.argsort(columns["event_ids"], kind="stable")
    return Labelled(embeddings=embeddings[probed_order], **{name: column[order] for name, column in columns.items()})


def write_labels(
    store: Store,
    shards: Sequence[Shard],
    model: Model,
    naming: Naming,
    label_of: Mapping[str, str],
    mark: str,
    *,
    model_hash: str,
) -> int:
    """Write the label files whose marker does not exist yet, remove those of no shard; returns how many were written.

    Raises:
        StageFailed: a file could not be written; the others are done and stay.
    """
    marks = list(list_markers(store, "label"))
    done = {(name.network, name.station, name.shard) for name in marks if name.fingerprint == mark}
    left = [asdict(shard) for shard in shards if (shard.network, shard.station, shard.name) not in done]
    current = {MarkerName(shard.network, shard.station, shard.name, mark) for shard in shards}
    remove_stale(store, "labels", "label", (name for name in marks if name not in current), current)
    if left:
        inputs = ray.put((model, naming, dict(label_of)))
        files: Any = ray.data.from_items(left, override_num_blocks=min(len(left), 2000))
        written = files.map(
            _write_shard,
            fn_kwargs={"store": store, "inputs": inputs, "mark": mark, "model_hash": model_hash},
            num_cpus=1,
            memory=MEMORY_A_TASK,
        )
        failed = []
        with progress_bar("label", unit="shard", total=len(left)) as bar:
            for row in written.iter_rows():
                bar.update()
                if row["error"]:
                    failed.append(f"{row['name']}: {row['error']}")
        if failed:
            raise StageFailed(f"{len(failed)} of {len(left)} shards could not be labelled, first {failed[0]}")
    return len(left)


def _points(store: Store, shard: Shard, model: Model) -> Iterator[tuple[pa.RecordBatch, NDArray[np.float32]]]:
    """Yield a file's embeddings in batches of fixed size, each with its points in the space of the clustering."""
    for batch in tables.iter_batches(store, shard.path("embeddings"), batch_rows=4096):
        yield batch, to_space(tables.embeddings(batch.column("embedding")), model.space)


@ray.remote
def _count(
    store: Store,
    shards: list[Shard],
    model: Model,
    labelled: tuple[frozenset[str], frozenset[str]],
    reference: Store | None,
) -> tuple[NDArray[np.int64], NDArray[np.int64], Labelled, list[tuple[int, float, str, str]]]:
    labelled_ids, probe_ids = labelled
    num_clusters = int(model.clusters.max()) + 1
    counts = np.zeros(num_clusters, dtype=np.int64)
    known_keys, known_clusters = _reference_clusters(reference, shards[0])
    width = int(known_clusters.max()) + 1 if len(known_clusters) else 0
    shared = np.zeros((num_clusters, width), dtype=np.int64)
    found: dict[str, list[Any]] = {name: [] for name in Labelled.__dataclass_fields__}
    nearest = []
    for shard in shards:
        for batch, points in _points(store, shard, model):
            clusters, distances, _ = label_rows(points, model.centroids, model.clusters)
            counts += np.bincount(clusters, minlength=num_clusters)
            ids = batch.column("event_id")
            if width:
                keys = event_keys(ids)
                place = np.minimum(np.searchsorted(known_keys, keys), len(known_keys) - 1)
                same = known_keys[place] == keys
                np.add.at(shared, (clusters[same], known_clusters[place[same]]), 1)
            nearest.append(_nearest_in(ids, clusters, distances, shard.path("events")))
            if labelled_ids:
                rows = np.flatnonzero([event_id in labelled_ids for event_id in ids.to_pylist()])
                at_classes = clusters
                if model.at_classes is not None:
                    at_classes = label_rows(points, model.at_classes, model.clusters_at_classes)[0]
                event_ids = [ids[int(row)].as_py() for row in rows]
                probed = np.array([event_id in probe_ids for event_id in event_ids], dtype=bool)
                found["event_ids"] += event_ids
                found["stations"] += [f"{shard.network}.{shard.station}"] * len(rows)
                found["probed"] += probed.tolist()
                found["embeddings"].append(tables.embeddings(batch.column("embedding"))[rows[probed]])
                found["clusters"] += clusters[rows].tolist()
                found["clusters_at_classes"] += at_classes[rows].tolist()
    found_here = Labelled(
        event_ids=np.array(found["event_ids"], dtype=object),
        stations=np.array(found["stations"], dtype=object),
        clusters=np.array(found["clusters"], dtype=np.int32),
        clusters_at_classes=np.array(found["clusters_at_classes"], dtype=np.int32),
        probed=np.array(found["probed"], dtype=bool),
        embeddings=np.concatenate(found["embeddings"] or [np.zeros((0, 0), dtype=np.float32)]),
    )
    return counts, shared, found_here, _nearest_of(nearest)


def _nearest_in(
    ids: pa.Array, clusters: NDArray[np.int32], distances: NDArray[np.float32], path: str
) -> list[tuple[int, float, str, str]]:
    nearest = []
    for cluster in np.unique(clusters):
        members = np.flatnonzero(clusters == cluster)
        for row in members[np.argsort(distances[members], kind="stable")[:NEAREST_A_CLUSTER]]:
            nearest.append((int(cluster), float(distances[row]), ids[int(row)].as_py(), path))
    return nearest


def _nearest_of(parts: Sequence[list[tuple[int, float, str, str]]]) -> list[tuple[int, float, str, str]]:
    kept: list[tuple[int, float, str, str]] = []
    taken: dict[int, int] = {}
    for entry in sorted(entry for part in parts for entry in part):
        if taken.get(entry[0], 0) < NEAREST_A_CLUSTER:
            kept.append(entry)
            taken[entry[0]] = taken.get(entry[0], 0) + 1
    return kept


def _reference_clusters(reference: Store | None, shard: Shard) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
    """Return the reference's clusters of one station by event key, sorted by key."""
    none = np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int32)
    if reference is None:
        return none
    files = tables.list_shards(reference, f"labels/network={shard.network}/station={shard.station}")
    if not files:
        return none
    parts = [tables.read_table(reference, file.path, ["event_id", "cluster"]) for file in files]
    table = pa.concat_tables([part.replace_schema_metadata(None) for part in parts])
    keys = event_keys(table.column("event_id"))
    order = np.argsort(keys, kind="stable")
    return keys[order], table.column("cluster").to_numpy()[order].astype(np.int32)


def _write_shard(row: dict[str, Any], store: Store, inputs: Any, mark: str, model_hash: str) -> dict[str, Any]:
    started = time.monotonic()
    model, naming, label_of = ray.get(inputs)
    shard = Shard(**{name: row[name] for name in ("network", "station", "name", "source")})
    try:
        table = _label_table(store, shard, model, naming, label_of)
        tables.write_table(store, shard.path("labels"), table, {"clustering": model_hash})
    except (InputError, ValueError, pa.ArrowException, OSError) as error:
        return row | {"error": " ".join(str(error).split()) or type(error).__name__}
    sources = table.column("label_source").drop_null().value_counts().to_pylist()
    write_marker(
        store,
        "label",
        MarkerName(shard.network, shard.station, shard.name, mark),
        {
            "outcome": "done",
            "inputs": [{"path": shard.path("embeddings")}, {"path": shard.path("events")}],
            "clustering": model_hash,
            "num_events": table.num_rows,
            "num_labels": {source["values"]: source["counts"] for source in sources},
            "seconds": round(time.monotonic() - started, 3),
            "code_version": __version__,
        },
    )
    return row | {"error": ""}


def _label_table(store: Store, shard: Shard, model: Model, naming: Naming, label_of: Mapping[str, str]) -> pa.Table:
    columns = ["event_id", "network", "station", "location", "onset"]
    events = tables.read_table(store, shard.path("events"), columns).replace_schema_metadata(None)
    parts = []
    embedded: list[str] = []
    for batch, points in _points(store, shard, model):
        parts.append(label_rows(points, model.centroids, model.clusters))
        embedded += batch.column("event_id").to_pylist()
    event_ids = events.column("event_id").to_pylist()
    if embedded != event_ids:
        raise ValueError("its embeddings are not those of its events; run `firnline label --replace`")
    clusters, distances, margins = (np.concatenate(column) for column in zip(*parts, strict=True))
    numbers = naming.numbers[clusters]
    by_hand = [label_of.get(event_id) for event_id in event_ids]
    labels = [hand or naming.names.get(int(number)) for hand, number in zip(by_hand, numbers, strict=True)]
    sources = [
        None if label is None else "hand" if hand else "cluster" for hand, label in zip(by_hand, labels, strict=True)
    ]
    added = {
        "cluster": pa.array(numbers, pa.int32()),
        "distance": pa.array(distances, pa.float32()),
        "margin": pa.array(margins, pa.float32()),
        "label": pa.array(labels, pa.string()),
        "label_source": pa.array(sources, pa.string()),
    }
    for name, values in added.items():
        events = events.append_column(name, values)
    return events.select(tables.labels_schema().names).cast(tables.labels_schema())
