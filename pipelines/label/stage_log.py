"""What a labelling run leaves in MLflow: metrics, tables, figures and the protocol of its scores."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.handlabels.cluster_names import write_cluster_names
from pipelines.label.figures import draw_confusion, draw_gallery, draw_inertia
from pipelines.label.scores import UNASSIGNED, describe_scores, protocol_of
from pipelines.label.stage_inputs import LabelInputs
from pipelines.label.stage_summary import Outcome
from pipelines.tracking.runs import StageRun
from pipelines.workspace import tables
from pipelines.workspace.artifacts import ClusterTree
from pipelines.workspace.storage import Store

MAX_TAG_CHARS = 8000
"""Longest value of an MLflow tag."""

GALLERY_CLUSTERS = 16
GALLERY_EVENTS_PER_CLUSTER = 3


def log_outcome(run: StageRun, store: Store, inputs: LabelInputs, outcome: Outcome) -> None:
    """Log the clustering, its names and its scores to the run."""
    model, named, scores, sizes = outcome.clustering.model, outcome.named, outcome.scores, outcome.sizes
    run.set_tags(
        {
            "firnline.model": inputs.registered.uri,
            "firnline.model_run": inputs.registered.run_id,
            "firnline.encoder": inputs.registered.encoder.content_hash,
            "firnline.clustering": outcome.clustering.id,
        }
    )
    run.log_metrics(
        {
            "num_events": float(sum(sizes.values())),
            "num_clusters": float(len(sizes)),
            "inertia": model.inertia,
            "inertia_per_event": model.inertia / max(outcome.fitted.num_events, 1),
            "iterations": float(len(model.inertia_history)),
            "converged": float(model.converged),
        }
    )
    run.log_bytes(draw_inertia(model.inertia_history), "clusters/inertia.png")
    run.log_table(
        {
            "cluster": list(named),
            "events": [sizes[number] for number in named],
            "name": [entry.name or "" for entry in named.values()],
            "purity": [entry.purity for entry in named.values()],
            "hand_labels": [entry.num_labels for entry in named.values()],
        },
        "clusters/clusters.json",
    )
    # The same form that labels.names reads, for the user to edit.
    names = {number: entry.name for number, entry in named.items()}
    run.log_text(write_cluster_names(names, outcome.clustering.id), "clusters/names.yaml")
    run.log_bytes(store.read(ClusterTree.PATH), ClusterTree.PATH.replace("clustering", "clusters"))
    if outcome.moves:
        columns: dict[str, list[Any]] = {
            "cluster": [move.number for move in outcome.moves],
            "events": [move.events for move in outcome.moves],
            "before": [
                ", ".join(f"{events} from {number}" for number, events in move.before) for move in outcome.moves
            ],
        }
        run.log_table(columns, "clusters/moves.json")
    if outcome.count.nearest:
        run.log_bytes(_gallery(store, inputs, outcome), "clusters/gallery.png")
    if scores is None:
        return
    run.log_metrics(scores.metrics())
    given_names = (*scores.classes, UNASSIGNED)
    title = "test half of the hand labels; clusters named by the validation half"
    run.log_bytes(draw_confusion(scores.matrix, scores.classes, given_names, title), "scores/confusion.png")
    given = {f"given {name}": scores.matrix[:, column].tolist() for column, name in enumerate(scores.classes)}
    run.log_table(
        {"hand label": list(scores.classes), **given, UNASSIGNED: scores.matrix[:, -1].tolist()},
        "scores/confusion.json",
    )
    lines = [f"{name} = {value:.4f}: {protocol_of(name)}" for name, value in scores.metrics().items()]
    run.log_text("\n".join(lines) + "\n", "scores/protocol.txt")
    # MLflow shows this tag as the run's description, above its metrics.
    run.set_tags({"mlflow.note.content": describe_scores(scores, max_chars=MAX_TAG_CHARS)})


def _gallery(store: Store, inputs: LabelInputs, outcome: Outcome) -> bytes:
    """Draw the events nearest to each centroid, of the largest clusters, among those that the run went through."""
    count, numbers, named = outcome.count, outcome.fitted.numbers, outcome.named
    shown = set(np.argsort(-count.counts, kind="stable")[:GALLERY_CLUSTERS].tolist())
    wanted: dict[str, list[tuple[int, float, str]]] = {}
    taken: dict[int, int] = {}
    for cluster, distance, event_id, path in count.nearest:
        if cluster in shown and taken.get(cluster, 0) < GALLERY_EVENTS_PER_CLUSTER:
            taken[cluster] = taken.get(cluster, 0) + 1
            wanted.setdefault(path, []).append((cluster, distance, event_id))
    windows: dict[int, list[tuple[float, str, NDArray[Any]]]] = {}
    for path, events in wanted.items():
        ids = tables.read_table(store, path, ["event_id"]).column("event_id").to_pylist()
        rows = {ids.index(event_id): (cluster, distance, event_id) for cluster, distance, event_id in events}
        start = 0
        for batch in tables.iter_batches(store, path, ["waveform"], 512):
            for row in [row for row in rows if start <= row < start + batch.num_rows]:
                cluster, distance, event_id = rows[row]
                window = tables.waveforms(batch.column("waveform").slice(row - start, 1))[0]
                windows.setdefault(int(numbers[cluster]), []).append((distance, event_id, window))
            start += batch.num_rows
    titled = {
        f"{number} {named[number].name or ''}".strip(): [
            (event_id, window) for _, event_id, window in sorted(events, key=lambda event: event[:2])
        ]
        for number, events in sorted(windows.items())
    }
    return draw_gallery(titled, inputs.registered.encoder.rate_hz)
