"""The first pass over all embeddings: sizes of clusters, hand-labelled events, events shared with a reference."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from pipelines.label.cluster_model import ClusterModel
from pipelines.label.draws import event_keys
from pipelines.label.kmeans import label_rows
from pipelines.label.space import to_space
from pipelines.label.stage_shards import EventShard
from pipelines.runtime.ray_session import task_results
from pipelines.workspace import tables
from pipelines.workspace.storage import Store

NEAREST_PER_CLUSTER = 6
"""Events nearest to each centroid that the cluster gallery may show."""


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Hand-labelled events with their clusters, in event_id order."""

    event_ids: NDArray[np.object_]
    stations: NDArray[np.object_]
    clusters: NDArray[np.int32]
    """Before they get their final numbers."""
    clusters_at_classes: NDArray[np.int32]
    """Equal to `clusters` where the model has no clustering at k = number of classes."""
    probed: NDArray[np.bool_]
    """Whether an event is among those that the probes use."""
    embeddings: NDArray[np.float32]
    """Of the probed events only, in event_id order: the driver holds no others."""


@dataclass(frozen=True, kw_only=True)
class Count:
    """What all events say about the clusters, before these get their final numbers."""

    counts: NDArray[np.int64]
    """(k,) events."""
    shared: NDArray[np.int64]
    """(k, clusters of the reference): events in both; no column without a reference."""
    labelled: Labelled | None
    nearest: list[tuple[int, float, str, str]]
    """(cluster, distance, event_id, file of events) of the events nearest to their centroid."""


def count_clusters(
    store: Store,
    shards: Sequence[EventShard],
    model: ClusterModel,
    label_of: Mapping[str, str],
    probe_ids: Collection[str],
    reference: Store | None,
) -> Count:
    """Label every event without writing: sizes, hand-labelled events, and events shared with clusters of a reference.

    Of the labelled events (`label_of`, by event_id) only those in `probe_ids` come back with their embeddings.
    """
    by_station: dict[tuple[str, str], list[EventShard]] = {}
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


def read_points(
    store: Store, shard: EventShard, model: ClusterModel
) -> Iterator[tuple[pa.RecordBatch, NDArray[np.float32]]]:
    """Yield a file's embeddings in batches of fixed size, each with its points in the space of the clustering."""
    for batch in tables.iter_batches(store, shard.path("embeddings"), batch_rows=4096):
        yield batch, to_space(tables.embeddings(batch.column("embedding")), model.space)


@ray.remote
def _count(
    store: Store,
    shards: list[EventShard],
    model: ClusterModel,
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
        for batch, points in read_points(store, shard, model):
            clusters, distances, _ = label_rows(points, model.centroids, model.clusters)
            counts += np.bincount(clusters, minlength=num_clusters)
            ids = batch.column("event_id")
            if width:
                keys = event_keys(ids)
                index = np.minimum(np.searchsorted(known_keys, keys), len(known_keys) - 1)
                same = known_keys[index] == keys
                np.add.at(shared, (clusters[same], known_clusters[index[same]]), 1)
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
        for row in members[np.argsort(distances[members], kind="stable")[:NEAREST_PER_CLUSTER]]:
            nearest.append((int(cluster), float(distances[row]), ids[int(row)].as_py(), path))
    return nearest


def _nearest_of(parts: Sequence[list[tuple[int, float, str, str]]]) -> list[tuple[int, float, str, str]]:
    kept: list[tuple[int, float, str, str]] = []
    taken: dict[int, int] = {}
    for entry in sorted(entry for part in parts for entry in part):
        if taken.get(entry[0], 0) < NEAREST_PER_CLUSTER:
            kept.append(entry)
            taken[entry[0]] = taken.get(entry[0], 0) + 1
    return kept


def _reference_clusters(reference: Store | None, shard: EventShard) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
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
