"""The labelling stage: embed every event, cluster the embeddings, name the clusters, write a label for every event.

events/ -> embeddings/ -> clustering/<fingerprint>.npz -> labels/
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.config import Config, stage_config
from pipelines.config.detection import WindowSettings
from pipelines.handlabels.table import read_label_table
from pipelines.label.cluster_model import ClusterModel
from pipelines.label.naming import ClusterName, name_clusters, numbers_by_reference, numbers_by_size
from pipelines.label.scores import LabelledRows, Scores, probe_sample, score_labelling
from pipelines.label.stage_clustering import ALGORITHM_VERSION, find_clustering
from pipelines.label.stage_count import Labelled, count_clusters
from pipelines.label.stage_embed import embed_shards, unembedded_shards
from pipelines.label.stage_encoder import RegisteredEncoder, check_windows, load_encoder, refuse_other_windows
from pipelines.label.stage_inputs import LabelInputs, lineage_of, match_on_ray, open_reference, read_cluster_names
from pipelines.label.stage_kmeans import check_enough_events
from pipelines.label.stage_labels import Naming, write_labels
from pipelines.label.stage_log import log_outcome
from pipelines.label.stage_shards import EventShard, list_event_shards
from pipelines.label.stage_summary import Outcome, print_outcome, summary_of
from pipelines.runtime.capacity import capacity
from pipelines.runtime.errors import InputError
from pipelines.runtime.ray_session import ray_session
from pipelines.tracking.runs import StageRun, stage_run
from pipelines.tracking.server import Tracking
from pipelines.workspace.artifacts import ClusteringSummary
from pipelines.workspace.event_sample import events_fingerprint
from pipelines.workspace.ledger import fingerprint, list_markers
from pipelines.workspace.storage import Store
from pipelines.workspace.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class LabellingSummary:
    """What labelling found."""

    num_events: int
    num_embedded: int
    """Shards embedded by this run; the others were already."""
    num_written: int
    """Label files written by this run."""
    cluster_sizes: dict[int, int]
    """Events by cluster number."""
    cluster_names: dict[int, str]
    scores: dict[str, float]
    """Metrics as logged to MLflow; {} without hand labels."""
    run_id: str
    """Of MLflow; empty where there was nothing to do."""


def label_events(
    workspace: Workspace, config: Config, tracking: Tracking, *, replace: bool = False, address: str | None = None
) -> LabellingSummary:
    """Embed, cluster and label every event of a workspace, and log the run.

    Raises:
        InputError: what is wrong with the input or the configuration, before anything is written.
        StageFailed: a shard failed after its retries.
    """
    store = workspace.store
    shards = check_events(store, config)
    registered = load_encoder(store, config, tracking)
    check_windows(store, shards, registered.encoder)
    user_names, names_hash = read_cluster_names(config.labels.names)
    reference = open_reference(config.label.reference, store)
    table = None if config.labels.path is None else read_label_table(config.labels.path)
    lineage = lineage_of(shards, registered, reference, table, names_hash)
    whole = fingerprint(lineage | workspace.output_keys(config, "label") | {"algorithm_version": ALGORITHM_VERSION})
    done = None if replace else _already_labelled(store, shards, registered, config, whole)
    if done is not None:
        print(f"label: nothing to do, the labels of all {done.num_events} events are up to date", flush=True)
        return done
    with ray_session(address) as session:
        check_gpus(config)
        hand = None if table is None else match_on_ray(store, shards, config.labels, table)
        if hand is not None:
            print(
                f"hand labels: {len(hand.label_of)} events from {hand.num_rows} rows of {config.labels.path}; "
                f"{hand.num_unmatched} rows without an event, {hand.num_ambiguous} ambiguous",
                flush=True,
            )
        inputs = LabelInputs(
            shards=shards,
            registered=registered,
            hand=hand,
            user_names=user_names,
            reference=reference,
            fingerprints=lineage | {"events": events_fingerprint(store)},
        )
        workspace.claim("label", config, replace=replace)
        with stage_run(tracking, "label", stage_config(config, "label"), inputs=inputs.fingerprints) as run:
            return _label(store, inputs, config, run, whole, num_cpus=session.num_cpus)


def check_gpus(config: Config) -> None:
    """Refuse to embed on GPUs where Ray has none and is not said to grow; a Ray session must be open.

    Raises:
        InputError: names the key.
    """
    if config.label.use_gpu and not capacity().gpus:
        raise InputError("label.use_gpu is true, but Ray has no GPU; use false, or a cluster with GPUs")


def check_labelling(store: Store, config: Config, tracking: Tracking, window: WindowSettings) -> None:
    """Refuse what `label_events` would, as far as it can be known before there are events and an encoder.

    Args:
        store, config, tracking: as for `label_events`.
        window: of the events that detection will find.

    Raises:
        InputError: a file, reference or encoder that cannot be read, or an encoder for other windows.
    """
    read_cluster_names(config.labels.names)
    open_reference(config.label.reference, store)
    model = config.label.model
    # Where its aliases will point is up to the training that comes before.
    if model is not None and not model.startswith(f"models:/{config.mlflow.model_name}@"):
        encoder = load_encoder(store, config, tracking).encoder
        refuse_other_windows(encoder, window.num_samples, window.rate_hz, window.lead_samples)


def check_events(store: Store, config: Config) -> list[EventShard]:
    """Return the shards with events; InputError where there are fewer events than clusters."""
    shards = list_event_shards(store)
    check_enough_events(store, shards, config)
    return shards


def _already_labelled(
    store: Store, shards: Sequence[EventShard], registered: RegisteredEncoder, config: Config, whole: str
) -> LabellingSummary | None:
    """Return what an earlier run found, if it finished with the same inputs and settings and all its files stand."""
    summary = ClusteringSummary.read(store)
    if summary is None:
        return None
    current = {(shard.network, shard.station, shard.name) for shard in shards}
    if summary.fingerprint != whole or not set(config.label.sweep_k) <= set(summary.sweep_k):
        return None
    marks = list(list_markers(store, "label"))
    if {(mark.network, mark.station, mark.shard) for mark in marks if mark.fingerprint == summary.mark} != current:
        return None
    if unembedded_shards(store, shards, registered.encoder, config.label):
        return None
    return LabellingSummary(
        num_events=sum(entry.events for entry in summary.clusters),
        num_embedded=0,
        num_written=0,
        cluster_sizes={entry.cluster: entry.events for entry in summary.clusters},
        cluster_names={entry.cluster: entry.name for entry in summary.clusters if entry.name},
        scores=summary.scores,
        run_id="",
    )


def _label(
    store: Store, inputs: LabelInputs, config: Config, run: StageRun, whole: str, *, num_cpus: int
) -> LabellingSummary:
    encoder = inputs.registered.encoder
    num_workers = config.label.num_workers or num_cpus
    num_embedders = min(num_workers, num_cpus)
    if config.label.use_gpu:
        num_embedders = config.label.num_workers or int(capacity().gpus)
    num_embedded = embed_shards(store, inputs.shards, encoder, config.label, num_workers=num_embedders)
    before = "" if num_embedded == len(inputs.shards) else "; the others were done before"
    print(f"label: embedded {num_embedded} of {len(inputs.shards)} shards{before}", flush=True)

    model, model_hash = find_clustering(store, inputs, config, run, num_workers=num_workers, num_cpus=num_cpus)
    label_of = inputs.hand.label_of if inputs.hand else {}
    probe_ids = probe_sample(label_of, seed=config.kmeans.seed)
    count = count_clusters(store, inputs.shards, model, label_of, probe_ids, inputs.reference)
    numbers = (
        numbers_by_size(count.counts) if inputs.reference is None else numbers_by_reference(count.shared, count.counts)
    )
    named = _name_clusters(inputs, config, count.labelled, numbers)
    names = {number: entry.name for number, entry in named.items() if entry.name}
    mark = fingerprint({"run": whole, "clustering": model_hash, "numbers": numbers.tolist(), "names": names})
    naming = Naming(numbers=numbers, names=names)
    # A run that is killed while it writes labels leaves no summary of earlier ones beside them.
    store.remove(ClusteringSummary.PATH)
    num_written = write_labels(store, inputs.shards, model, naming, label_of, mark, model_hash=model_hash)
    scores = _score(inputs, config, model, count.labelled, numbers)
    outcome = Outcome(model=model, model_hash=model_hash, count=count, numbers=numbers, named=named, scores=scores)
    log_outcome(run, store, inputs, outcome)
    # Last of all: a rerun that finds the summary has nothing to do, in MLflow either.
    summary_of(outcome, fingerprint=whole, mark=mark, sweep_k=config.label.sweep_k).write(store)
    print_outcome(outcome)
    return LabellingSummary(
        num_events=int(count.counts.sum()),
        num_embedded=num_embedded,
        num_written=num_written,
        cluster_sizes=outcome.sizes,
        cluster_names=names,
        scores=scores.metrics() if scores else {},
        run_id=run.run_id,
    )


def _name_clusters(
    inputs: LabelInputs, config: Config, labelled: Labelled | None, numbers: NDArray[np.int32]
) -> dict[int, ClusterName]:
    """Name clusters by the validation half of the hand labels; the user's file overrides."""
    labels: list[str] = []
    clusters = np.zeros(0, dtype=np.int32)
    if inputs.hand is not None and labelled is not None:
        rows = np.array([inputs.hand.validation[event_id] for event_id in labelled.event_ids], dtype=bool)
        labels = [inputs.hand.label_of[event_id] for event_id in labelled.event_ids[rows]]
        clusters = numbers[labelled.clusters[rows]]
    for number in sorted(inputs.user_names.keys() - set(numbers.tolist())):
        print(f"labels.names names cluster {number}, which does not exist", flush=True)
    return name_clusters(numbers, labels, clusters, inputs.user_names, min_purity=config.labels.min_purity)


def _score(
    inputs: LabelInputs, config: Config, model: ClusterModel, labelled: Labelled | None, numbers: NDArray[np.int32]
) -> Scores | None:
    if inputs.hand is None or labelled is None:
        return None
    ids = labelled.event_ids
    rows = LabelledRows(
        labels=np.array([inputs.hand.label_of[event_id] for event_id in ids], dtype=object),
        clusters=numbers[labelled.clusters],
        clusters_at_classes=None if model.at_classes is None else labelled.clusters_at_classes,
        probed=np.flatnonzero(labelled.probed),
        embeddings=labelled.embeddings,
        stations=labelled.stations,
        events=np.array([inputs.hand.event_of[event_id] for event_id in ids], dtype=object),
        validation=np.array([inputs.hand.validation[event_id] for event_id in ids], dtype=bool),
    )
    return score_labelling(rows, bootstrap_draws=config.label.bootstrap_draws, seed=config.kmeans.seed)
