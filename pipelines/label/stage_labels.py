"""The second pass over all embeddings: every event's cluster and label, written file by file as the events."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from pipelines import __version__
from pipelines.label.cluster_model import ClusterModel
from pipelines.label.kmeans import label_rows
from pipelines.label.stage_count import read_points
from pipelines.label.stage_shards import EventShard
from pipelines.runtime.errors import InputError, StageFailed
from pipelines.runtime.progress import progress_bar
from pipelines.workspace import schemas, tables
from pipelines.workspace.ledger import MarkerName, list_markers, remove_stale, write_marker
from pipelines.workspace.storage import Store

TASK_MEMORY_BYTES = 1 << 29


@dataclass(frozen=True, kw_only=True)
class Naming:
    """The final numbers and names of a model's clusters."""

    numbers: NDArray[np.int32]
    """(k,): the final number of each cluster."""
    names: Mapping[int, str]
    """By final number."""


def write_labels(
    store: Store,
    shards: Sequence[EventShard],
    model: ClusterModel,
    naming: Naming,
    label_of: Mapping[str, str],
    mark: str,
    *,
    model_hash: str,
) -> int:
    """Write the label files that have no marker yet and return how many; files without a shard are removed.

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
            memory=TASK_MEMORY_BYTES,
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


def _write_shard(row: dict[str, Any], store: Store, inputs: Any, mark: str, model_hash: str) -> dict[str, Any]:
    started = time.monotonic()
    model, naming, label_of = ray.get(inputs)
    shard = EventShard(**{name: row[name] for name in ("network", "station", "name", "source")})
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


def _label_table(
    store: Store, shard: EventShard, model: ClusterModel, naming: Naming, label_of: Mapping[str, str]
) -> pa.Table:
    columns = ["event_id", "network", "station", "location", "onset"]
    events = tables.read_table(store, shard.path("events"), columns).replace_schema_metadata(None)
    parts = []
    embedded: list[str] = []
    for batch, points in read_points(store, shard, model):
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
    return events.select(schemas.labels_schema().names).cast(schemas.labels_schema())
