"""Every event's cluster and label, written file by file as the events; a file that holds already is left as it is."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from pipelines import __version__
from pipelines.label.cells import Cell, cells_of, noise_level_db
from pipelines.label.cluster_model import ClusterModel
from pipelines.label.kmeans import label_rows
from pipelines.label.propagation import classify
from pipelines.label.stage_count import read_points
from pipelines.label.stage_propagate import Propagation
from pipelines.label.stage_shards import EventShard
from pipelines.runtime.errors import InputError, StageFailed
from pipelines.runtime.progress import progress_bar
from pipelines.runtime.text import counted
from pipelines.workspace import schemas, tables
from pipelines.workspace.ledger import MarkerName, fingerprint, remove_stale, work_left, write_marker
from pipelines.workspace.storage import Store

ALGORITHM_VERSION = 2
"""Raised by hand when the same clustering, embeddings and hand labels give other rows or other counts."""
TASK_MEMORY_BYTES = 1 << 29


@dataclass(frozen=True, kw_only=True)
class Naming:
    """The final numbers and names of a clustering's clusters, and what its events are compared with later."""

    clustering: str
    """Which clustering it is: the content hash of its file."""
    numbers: NDArray[np.int32]
    """(k,): the final number of each cluster."""
    names: Mapping[int, str]
    """By final number."""
    far_distance: float
    """An event farther from its centroid is far."""
    periods: Mapping[str, tuple[int, int]]
    """First and last onset (ns since 1970, UTC) of the fitted events, by network.station."""
    propagation: Propagation | None = None
    """What labels the events without a hand label; None: the names of their clusters do."""


def label_marks(
    shards: Sequence[EventShard],
    naming: Naming,
    embedded: Mapping[EventShard, str],
    hand_labels: Mapping[str, Mapping[str, str]],
) -> dict[EventShard, str]:
    """Return the fingerprint of each shard's labels: it changes with all that these depend on, and with nothing else.

    Args:
        shards, naming: what is written.
        embedded: the fingerprint of each shard's embeddings.
        hand_labels: labels by event_id, by file of events.
    """
    common = fingerprint(
        {
            "clustering": naming.clustering,
            "numbers": naming.numbers.tolist(),
            # Where labels are propagated, no row has the name of its cluster.
            "names": sorted(naming.names.items()) if naming.propagation is None else [],
            "propagation": "" if naming.propagation is None else naming.propagation.mark,
            "algorithm_version": ALGORITHM_VERSION,
        }
    )
    return {
        shard: fingerprint(
            {
                "common": common,
                "embeddings": embedded[shard],
                "hand_labels": sorted(hand_labels.get(shard.path("events"), {}).items()),
            }
        )
        for shard in shards
    }


def marker_of(shard: EventShard, mark: str) -> MarkerName:
    """Return the name of the marker of a shard's labels."""
    return MarkerName(shard.network, shard.station, shard.name, mark)


def write_labels(
    store: Store,
    model: ClusterModel,
    naming: Naming,
    label_of: Mapping[str, str],
    marks: Mapping[EventShard, str],
) -> int:
    """Write the label files that have no marker yet and return how many; files without a shard are removed.

    Args:
        store, model, naming: which events, and how they are labelled.
        label_of: hand labels by event_id.
        marks: the fingerprint of each shard's labels.

    Raises:
        StageFailed: a file could not be written; the others are done and stay.
    """
    work = work_left(store, "label", marks, lambda shard: marker_of(shard, marks[shard]))
    left = [asdict(shard) | {"mark": marks[shard]} for shard in work.left]
    remove_stale(store, "labels", "label", work.stale, work.current)
    if left:
        inputs = ray.put((model, naming, dict(label_of)))
        files: Any = ray.data.from_items(left, override_num_blocks=min(len(left), 2000))
        written = files.map(
            _write_shard, fn_kwargs={"store": store, "inputs": inputs}, num_cpus=1, memory=TASK_MEMORY_BYTES
        )
        failed = []
        with progress_bar("label", unit="shard", total=len(left)) as bar:
            for row in written.iter_rows():
                bar.update()
                if row["error"]:
                    failed.append(f"{row['name']}: {row['error']}")
        if failed:
            raise StageFailed(
                f"{len(failed)} of {counted(len(left), 'shard')} could not be labelled, first {failed[0]}"
            )
    return len(left)


def _write_shard(row: dict[str, Any], store: Store, inputs: Any) -> dict[str, Any]:
    started = time.monotonic()
    model, naming, label_of = ray.get(inputs)
    shard = EventShard(**{name: row[name] for name in ("network", "station", "name", "source")})
    try:
        table, cells = _label_table(store, shard, model, naming, label_of)
        tables.write_table(store, shard.path("labels"), table, {"clustering": naming.clustering})
    except (InputError, ValueError, pa.ArrowException, OSError) as error:
        return row | {"error": " ".join(str(error).split()) or type(error).__name__}
    sources = table.column("label_source").drop_null().value_counts().to_pylist()
    write_marker(
        store,
        "label",
        marker_of(shard, row["mark"]),
        {
            "outcome": "done",
            "inputs": [{"path": shard.path("embeddings")}, {"path": shard.path("events")}],
            "clustering": naming.clustering,
            "num_events": table.num_rows,
            "num_labels": {source["values"]: source["counts"] for source in sources},
            "cells": [cell.as_json() for cell in cells],
            "seconds": round(time.monotonic() - started, 3),
            "code_version": __version__,
        },
    )
    return row | {"error": ""}


def _label_table(
    store: Store, shard: EventShard, model: ClusterModel, naming: Naming, label_of: Mapping[str, str]
) -> tuple[pa.Table, list[Cell]]:
    """Return a shard's labels, and its events counted for what is watched."""
    columns = ["event_id", "network", "station", "location", "onset", "peak_amplitude", "snr_db"]
    events = tables.read_table(store, shard.path("events"), columns).replace_schema_metadata(None)
    parts, embedded = [], []
    given: list[str | None] = []
    confidences: list[NDArray[np.float32]] = []
    for batch, points in read_points(store, shard, model):
        parts.append(label_rows(points, model.centroids, model.clusters))
        embedded += batch.column("event_id").to_pylist()
        if naming.propagation is not None:
            codes, confidence = classify(naming.propagation.writes, points)
            given += [naming.propagation.writes.classes[code] for code in codes.tolist()]
            confidences.append(confidence)
    event_ids = events.column("event_id").to_pylist()
    if embedded != event_ids:
        raise ValueError("its embeddings are not those of its events; run `firnline label --replace`")
    clusters, distances, margins = (np.concatenate(column) for column in zip(*parts, strict=True))
    numbers = naming.numbers[clusters]
    by_hand = [label_of.get(event_id) for event_id in event_ids]
    other = "cluster" if naming.propagation is None else "propagated"
    if naming.propagation is None:
        given = [naming.names.get(int(number)) for number in numbers]
    labels = [hand or label for hand, label in zip(by_hand, given, strict=True)]
    sources = [
        None if label is None else "hand" if hand else other for hand, label in zip(by_hand, labels, strict=True)
    ]
    unsure = np.array([source != "propagated" for source in sources], dtype=bool)
    confidence = np.concatenate(confidences) if confidences else np.zeros(len(labels), dtype=np.float32)
    added = {
        "cluster": pa.array(numbers, pa.int32()),
        "distance": pa.array(distances, pa.float32()),
        "margin": pa.array(margins, pa.float32()),
        "label": pa.array(labels, pa.string()),
        "label_source": pa.array(sources, pa.string()),
        "confidence": pa.array(confidence, pa.float32(), mask=unsure),
    }
    for name, values in added.items():
        events = events.append_column(name, values)
    station = f"{shard.network}.{shard.station}"
    cells = cells_of(
        station,
        events.column("onset").to_numpy().astype("datetime64[ns]").astype(np.int64),
        numbers,
        distances,
        noise_level_db(*(events.column(name).to_numpy() for name in ("peak_amplitude", "snr_db"))),
        period_ns=naming.periods.get(station),
        far_distance=naming.far_distance,
    )
    return events.select(schemas.labels_schema().names).cast(schemas.labels_schema()), cells
