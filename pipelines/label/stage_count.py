"""A pass over embeddings: sizes of clusters, hand-labelled events, events shared with an earlier clustering.

Over all of them where the clustering is new; where it stays, over the files that have news.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from pipelines.label.cells import FINE_BINS, distance_bins
from pipelines.label.cluster_model import ClusterModel
from pipelines.label.draws import event_keys
from pipelines.label.kmeans import label_rows
from pipelines.label.space import to_space
from pipelines.label.stage_shards import EventShard
from pipelines.runtime.errors import InputError
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
    """Equal to `clusters` where there is no other clustering at k = number of classes."""
    probed: NDArray[np.bool_]
    """Whether an event is among those that the probes use."""
    embeddings: NDArray[np.float32]
    """Of the probed events only, in event_id order: the driver holds no others."""


@dataclass(frozen=True, kw_only=True)
class Count:
    """What events say about the clusters, before these get their final numbers."""

    counts: NDArray[np.int64]
    """(k,) events."""
    shared: NDArray[np.int64]
    """(k, clusters of the reference): events in both; no column without a reference."""
    distances: Counter[int]
    """Events by bin of the distance to their centroid, FINE_BINS to an octave."""
    periods: Mapping[str, tuple[int, int]]
    """First and last onset (ns since 1970, UTC) by network.station."""
    labelled: Labelled | None
    nearest: list[tuple[int, float, str, str]]
    """(cluster, distance, event_id, file of events) of the events nearest to their centroid."""


def count_clusters(
    store: Store,
    shards: Sequence[EventShard],
    model: ClusterModel,
    at_classes: ClusterModel | None,
    label_of: Mapping[str, str],
    probe_ids: Collection[str],
    reference: Store | None,
) -> Count:
    """Label events without writing: sizes, hand-labelled events, and events shared with clusters of a reference.

    Args:
        store, shards, model: which events, and their clustering.
        at_classes: the clustering at k = number of classes.
        label_of: hand labels by event_id.
        probe_ids: of these, the events that come back with their embeddings.
        reference: a labelled workspace, which may be the one that is labelled.
    """
    by_station: dict[tuple[str, str], list[EventShard]] = {}
    for shard in shards:
        by_station.setdefault((shard.network, shard.station), []).append(shard)
    models_ref, labels_ref = ray.put((model, at_classes)), ray.put((frozenset(label_of), frozenset(probe_ids)))
    tasks = [
        _count.remote(store, group, models_ref, labels_ref, reference)
        for station in by_station.values()
        for group in tables.by_task(station)
    ]
    results: list[_Part] = task_results(tasks)
    num_clusters = int(model.clusters.max()) + 1
    width = max((part.shared.shape[1] for part in results), default=0)
    shared = np.zeros((num_clusters, width), dtype=np.int64)
    counts = np.zeros(num_clusters, dtype=np.int64)
    distances: Counter[int] = Counter()
    periods: dict[str, tuple[int, int]] = {}
    for part in results:
        counts += part.counts
        shared[:, : part.shared.shape[1]] += part.shared
        distances.update(part.distances)
        before = periods.get(part.station, part.period)
        periods[part.station] = (min(before[0], part.period[0]), max(before[1], part.period[1]))
    return Count(
        counts=counts,
        shared=shared,
        distances=distances,
        periods=dict(sorted(periods.items())),
        labelled=_join([part.labelled for part in results if len(part.labelled.event_ids)]),
        nearest=_nearest_of([part.nearest for part in results]),
    )


@dataclass(frozen=True, kw_only=True)
class _Part:
    """What a task finds in files of one station; fields as in `Count`."""

    station: str
    counts: NDArray[np.int64]
    shared: NDArray[np.int64]
    distances: Counter[int]
    period: tuple[int, int]
    labelled: Labelled
    nearest: list[tuple[int, float, str, str]]


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
    models: tuple[ClusterModel, ClusterModel | None],
    labelled: tuple[frozenset[str], frozenset[str]],
    reference: Store | None,
) -> _Part:
    (model, at_classes), (labelled_ids, probe_ids) = models, labelled
    num_clusters = int(model.clusters.max()) + 1
    counts = np.zeros(num_clusters, dtype=np.int64)
    known_keys, known_clusters = _reference_clusters(reference, shards[0], own=store)
    width = int(known_clusters.max()) + 1 if len(known_clusters) else 0
    shared = np.zeros((num_clusters, width), dtype=np.int64)
    found: dict[str, list[Any]] = {name: [] for name in Labelled.__dataclass_fields__}
    nearest = []
    bins: Counter[int] = Counter()
    first_ns, last_ns = int(np.iinfo(np.int64).max), int(np.iinfo(np.int64).min)
    for shard in shards:
        onsets = tables.read_table(store, shard.path("events"), ["onset"]).column("onset").to_numpy()
        if len(onsets):
            times = onsets.astype("datetime64[ns]").astype(np.int64)
            first_ns, last_ns = min(first_ns, int(times.min())), max(last_ns, int(times.max()))
        for batch, points in read_points(store, shard, model):
            clusters, distances, _ = label_rows(points, model.centroids, model.clusters)
            counts += np.bincount(clusters, minlength=num_clusters)
            bins.update(distance_bins(distances, FINE_BINS).tolist())
            ids = batch.column("event_id")
            if width:
                keys = event_keys(ids)
                index = np.minimum(np.searchsorted(known_keys, keys), len(known_keys) - 1)
                same = known_keys[index] == keys
                np.add.at(shared, (clusters[same], known_clusters[index[same]]), 1)
            nearest.append(_nearest_in(ids, clusters, distances, shard.path("events")))
            if labelled_ids:
                rows = np.flatnonzero([event_id in labelled_ids for event_id in ids.to_pylist()])
                few = clusters
                if at_classes is not None and at_classes is not model:
                    few = label_rows(points, at_classes.centroids, at_classes.clusters)[0]
                event_ids = [ids[int(row)].as_py() for row in rows]
                probed = np.array([event_id in probe_ids for event_id in event_ids], dtype=bool)
                found["event_ids"] += event_ids
                found["stations"] += [f"{shard.network}.{shard.station}"] * len(rows)
                found["probed"] += probed.tolist()
                found["embeddings"].append(tables.embeddings(batch.column("embedding"))[rows[probed]])
                found["clusters"] += clusters[rows].tolist()
                found["clusters_at_classes"] += few[rows].tolist()
    found_here = Labelled(
        event_ids=np.array(found["event_ids"], dtype=object),
        stations=np.array(found["stations"], dtype=object),
        clusters=np.array(found["clusters"], dtype=np.int32),
        clusters_at_classes=np.array(found["clusters_at_classes"], dtype=np.int32),
        probed=np.array(found["probed"], dtype=bool),
        embeddings=np.concatenate(found["embeddings"] or [np.zeros((0, 0), dtype=np.float32)]),
    )
    return _Part(
        station=f"{shards[0].network}.{shards[0].station}",
        counts=counts,
        shared=shared,
        distances=bins,
        period=(first_ns, last_ns),
        labelled=found_here,
        nearest=_nearest_of(nearest),
    )


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


def _reference_clusters(
    reference: Store | None, shard: EventShard, *, own: Store
) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
    """Return the reference's clusters of one station by event key, sorted by key.

    A file of the workspace's own labels that is damaged is left out: these labels are about to be replaced.
    """
    none = np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int32)
    if reference is None:
        return none
    parts = []
    for file in tables.list_shards(reference, f"labels/network={shard.network}/station={shard.station}"):
        try:
            parts.append(tables.read_table(reference, file.path, ["event_id", "cluster"]).replace_schema_metadata(None))
        except InputError:
            if reference.url != own.url:
                raise
    if not parts:
        return none
    table = pa.concat_tables(parts)
    keys = event_keys(table.column("event_id"))
    order = np.argsort(keys, kind="stable")
    return keys[order], table.column("cluster").to_numpy()[order].astype(np.int32)
