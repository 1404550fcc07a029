"""The labelling stage: embed every event, cluster the embeddings, name the clusters, write a label for every event.

events/ -> embeddings/ -> clustering/<fingerprint>.npz -> labels/

Where the archive has grown, the clustering of the earlier run labels the new events; all other files stay.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.config import Config, stage_config
from pipelines.config.detection import WindowSettings
from pipelines.config.label import LabelSettings
from pipelines.config.run import OnGrowth
from pipelines.handlabels.table import read_label_table
from pipelines.label import stage_clustering, stage_labels
from pipelines.label.naming import ClusterName, name_clusters
from pipelines.label.scores import LabelledRows, Scores, probe_sample, score_labelling
from pipelines.label.stage_clustering import (
    Clustering,
    cut_stays,
    find_clustering,
    fit_of,
    fit_stays,
    fitted_file_of,
    read_record,
)
from pipelines.label.stage_count import Labelled
from pipelines.label.stage_drift import cluster_sizes, drift_of, log_drift, print_drift, read_cells
from pipelines.label.stage_embed import WORKER_MEMORY_BYTES, embed_shards, embedding_fingerprint, unembedded_shards
from pipelines.label.stage_encoder import RegisteredEncoder, check_windows, load_encoder, refuse_other_windows
from pipelines.label.stage_identity import keep_clustering, known_clusterings, settle_clustering
from pipelines.label.stage_inputs import (
    LabelInputs,
    lineage_of,
    match_on_ray,
    named_by,
    open_reference,
    read_cluster_names,
    refuse_foreign_names,
)
from pipelines.label.stage_kmeans import check_enough_events
from pipelines.label.stage_labels import Naming, label_marks, marker_of, write_labels
from pipelines.label.stage_log import log_outcome
from pipelines.label.stage_partitions import check_memory
from pipelines.label.stage_propagate import (
    Propagation,
    check_hand_labels,
    check_propagation,
    find_propagation,
    forget_propagation,
    log_propagation,
    propagated_labels,
)
from pipelines.label.stage_shards import EventShard, list_event_shards
from pipelines.label.stage_summary import Outcome, print_outcome, summary_of
from pipelines.label.stage_tree import check_cut, check_settings, cut_file
from pipelines.runtime.capacity import capacity, refuse_too_small
from pipelines.runtime.errors import InputError
from pipelines.runtime.ray_session import ray_session
from pipelines.runtime.text import counted
from pipelines.tracking.runs import StageRun, stage_run
from pipelines.tracking.server import Tracking
from pipelines.workspace.artifacts import ClusteringSummary, ClusterTree, FittedClustering, LabelPropagation
from pipelines.workspace.event_sample import events_fingerprint
from pipelines.workspace.ledger import fingerprint, stage_fingerprint
from pipelines.workspace.replacement import result_of
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
    workspace: Workspace,
    config: Config,
    tracking: Tracking,
    *,
    replace: bool = False,
    address: str | None = None,
    on_growth: OnGrowth = "keep",
) -> LabellingSummary:
    """Embed, cluster and label every event of a workspace, and log the run.

    Args:
        workspace, config, tracking: what is labelled, how, and where the run goes.
        replace: label again with other settings, hand labels or names; what these do not touch stays, such as
            embeddings where only the clustering differs. With the same ones, all is done again.
        address: of the Ray cluster.
        on_growth: `keep` labels new events by the clustering that is there; `retrain` clusters all events anew.

    Raises:
        InputError: what is wrong with the input or the configuration, before anything is written.
        StageFailed: a shard failed after its retries.
    """
    store = workspace.store
    check_settings(store, config)
    shards = check_events(store, config)
    registered = load_encoder(store, config, tracking)
    check_windows(store, shards, registered.encoder)
    user_names, names_hash = read_cluster_names(config.labels.names)
    reference = open_reference(config.label.reference, store)
    table = None if config.labels.path is None else read_label_table(config.labels.path)
    check_propagation(config, table)
    lineage = lineage_of(shards, registered, reference, table, names_hash)
    earlier = read_record(store, replace=replace)
    names_from = named_by(config, table, names_hash)
    other_names = earlier is not None and earlier.named_by != names_from
    again = replace and not other_names and workspace.conflict("label", config) is None
    fitted = earlier if not again and fit_stays(earlier, registered.encoder, config) else None
    if fitted is not None and on_growth == "retrain" and fitted.events != lineage["events"]:
        fitted = None
    fitted_file = fitted_file_of(shards, registered.encoder, config) if fitted is None else fit_of(fitted)
    stays = fitted is not None and cut_stays(fitted, registered.encoder, config)
    file = cut_file(fitted_file, config.label.cut)
    check_cut(store, fitted_file, config.label.cut, replace=replace)
    refuse_foreign_names(config.labels.names, user_names, known_clusterings(earlier, reference))
    settings = workspace.output_keys(config, "label")
    versions = [stage_clustering.ALGORITHM_VERSION, stage_labels.ALGORITHM_VERSION]
    whole = fingerprint(lineage | settings | {"clustering": file, "algorithm_version": versions})
    done = None if replace else _already_labelled(store, shards, registered, config, whole)
    if done is not None:
        print(f"label: nothing to do, the labels of all {done.num_events} events are up to date", flush=True)
        return done
    with ray_session(address) as session:
        check_workers(config)
        if fitted is None and (again or not store.exists(f"clustering/{fitted_file}.npz")):
            check_memory(store, shards, config.kmeans)
        hand = None if table is None else match_on_ray(store, shards, config.labels, table)
        if hand is not None:
            print(
                f"hand labels: {counted(len(hand.label_of), 'event')} from {counted(hand.num_rows, 'row')} of "
                f"{config.labels.path}; {counted(hand.num_unmatched, 'row')} without an event, {hand.num_ambiguous} "
                "ambiguous",
                flush=True,
            )
        check_hand_labels(config, hand)
        inputs = LabelInputs(
            shards=shards,
            registered=registered,
            hand=hand,
            user_names=user_names,
            named_by=names_from,
            reference=reference,
            events=lineage["events"],
            fingerprints=lineage | {"events": events_fingerprint(store)},
        )
        if not replace:
            workspace.refuse_conflict("label", config)
        # Labels of another clustering are made beside those that stand. Where the clustering stays, files are added one
        # by one, and those with other names or hand labels corrected.
        beside = not stays and (replace or store.exists(ClusteringSummary.PATH))
        embeds = again or len(unembedded_shards(store, shards, registered.encoder, config.label)) == len(shards)
        keep = () if embeds else ("embeddings", "ledger/embed")
        with stage_run(tracking, "label", stage_config(config, "label"), inputs=inputs.fingerprints) as run:
            if replace and not beside:
                workspace.accept("label", config)
            with result_of(workspace, "label", config, replace=beside, keep=keep) as place:
                if beside:
                    _begin_with(place.store, store, fitted=not again)
                return _label(
                    place, inputs, config, run, whole, fitted=fitted, labelled=store, num_cpus=session.num_cpus
                )


def _begin_with(place: Store, standing: Store, *, fitted: bool) -> None:
    """Give labels that are made beside others the record of the clustering that stands; if `fitted`, its centroids."""
    if place.exists(FittedClustering.PATH):
        # Of an earlier attempt.
        return
    endings = (
        (".npz", ClusterTree.PATH, LabelPropagation.PATH, FittedClustering.PATH) if fitted else (FittedClustering.PATH,)
    )
    # The record comes last, since it says that the others are there.
    for item in sorted(standing.walk("clustering"), key=lambda item: item.path == FittedClustering.PATH):
        if item.path.endswith(endings):
            place.write(item.path, standing.read(item.path))


def check_workers(config: Config) -> None:
    """Refuse a cluster that has no node on which events can be embedded and is not said to grow.

    One whose nodes have not come yet is waited for. A Ray session must be open.

    Raises:
        InputError: what is missing.
    """
    use_gpu = config.label.use_gpu
    most = capacity()
    if use_gpu and not most.gpus and not most.unknown:
        raise InputError("label.use_gpu is true, but Ray has no GPU; use false, or a cluster with GPUs")
    refuse_too_small("a worker that embeds", cpus=1, gpus=int(use_gpu), memory=WORKER_MEMORY_BYTES)


def check_labelling(store: Store, config: Config, tracking: Tracking, window: WindowSettings) -> None:
    """Refuse what `label_events` would, as far as it can be known before there are events and an encoder.

    Args:
        store, config, tracking: as for `label_events`.
        window: of the events that detection will find.

    Raises:
        InputError: a file, reference or encoder that cannot be read, or an encoder for other windows.
    """
    check_settings(store, config)
    if config.label.propagate != "none":
        check_propagation(config, None if config.labels.path is None else read_label_table(config.labels.path))
    names, _ = read_cluster_names(config.labels.names)
    reference = open_reference(config.label.reference, store)
    refuse_foreign_names(config.labels.names, names, known_clusterings(read_record(store, replace=True), reference))
    model = config.label.model
    # Where its aliases will point is up to the training that comes before.
    if model is not None and not model.startswith(f"models:/{config.mlflow.model_name}@"):
        encoder = load_encoder(store, config, tracking).encoder
        refuse_other_windows(encoder, window.num_samples, window.rate_hz, window.lead_samples)


def label_embeds(workspace: Workspace, config: Config) -> bool:
    """Whether labelling with this configuration embeds all events again, as another encoder or arithmetic does."""
    stored = workspace.stored_config("label").get("label", {})
    was = LabelSettings.model_validate(stored)
    return any(getattr(was, name) != getattr(config.label, name) for name in ("model", "precision", "use_gpu"))


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
    if summary.fingerprint != whole or not set(config.label.sweep_k) <= set(summary.sweep_k):
        return None
    if summary.mark != stage_fingerprint(store, "label"):
        return None
    if unembedded_shards(store, shards, registered.encoder, config.label) or not store.exists(ClusterTree.PATH):
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
    workspace: Workspace,
    inputs: LabelInputs,
    config: Config,
    run: StageRun,
    whole: str,
    *,
    fitted: FittedClustering | None,
    labelled: Store,
    num_cpus: int,
) -> LabellingSummary:
    store, encoder = workspace.store, inputs.registered.encoder
    num_workers = config.label.num_workers or num_cpus
    num_embedders = min(num_workers, num_cpus)
    if config.label.use_gpu:
        num_embedders = config.label.num_workers or int(capacity().gpus)
    num_embedded = embed_shards(store, inputs.shards, encoder, config.label, num_workers=num_embedders)
    before = "" if num_embedded == len(inputs.shards) else "; the others were done before"
    print(f"label: embedded {num_embedded} of {counted(len(inputs.shards), 'shard')}{before}", flush=True)

    clustering = find_clustering(store, inputs, config, run, fitted=fitted, num_workers=num_workers, num_cpus=num_cpus)
    label_of = inputs.hand.label_of if inputs.hand else {}
    probe_ids = probe_sample(label_of, seed=config.kmeans.seed)
    record, count, moves = settle_clustering(
        workspace, inputs, config, clustering, label_of, probe_ids, labelled=labelled
    )
    numbers = np.array(record.numbers, dtype=np.int32)
    named = _name_clusters(inputs, config, count.labelled, numbers)
    if clustering.record is not None and clustering.record.named_by == inputs.named_by:
        # Named before on the same ground: more events do not change a name.
        known = dict(zip(record.numbers, record.names, strict=True))
        named = {number: dataclasses.replace(entry, name=known[number]) for number, entry in named.items()}
    names = {number: entry.name for number, entry in named.items() if entry.name}
    record = record.model_copy(
        update={"names": tuple(names.get(number) for number in record.numbers), "named_by": inputs.named_by}
    )
    keep_clustering(workspace, clustering, record, num_classes=len(set(label_of.values())))
    propagation = _propagation(store, inputs, config, clustering, count.labelled, run)
    naming = Naming(
        clustering=clustering.id,
        numbers=numbers,
        names=names,
        far_distance=record.far_distance,
        periods={period.station: (period.first_ns, period.last_ns) for period in record.periods},
        propagation=propagation,
    )
    marks = label_marks(
        inputs.shards,
        naming,
        {shard: embedding_fingerprint(shard, encoder, config.label) for shard in inputs.shards},
        inputs.hand.by_file() if inputs.hand else {},
    )
    # A run that is killed while it writes labels leaves no summary of earlier ones beside them.
    store.remove(ClusteringSummary.PATH)
    num_written = write_labels(store, clustering.model, naming, label_of, marks)
    cells = read_cells(store, [marker_of(shard, mark) for shard, mark in marks.items()])
    drift = drift_of(cells, record)
    drift.write(store)
    outcome = Outcome(
        clustering=clustering,
        fitted=record,
        count=count,
        sizes=cluster_sizes(cells, record.numbers),
        named=named,
        scores=_score(inputs, config, clustering, count.labelled, numbers, propagation),
        moves=moves,
    )
    log_outcome(run, store, inputs, outcome)
    log_drift(run, drift)
    # Last of all: a rerun that finds the summary has nothing to do, in MLflow either.
    mark = stage_fingerprint(store, "label")
    summary_of(outcome, fingerprint=whole, mark=mark, sweep_k=config.label.sweep_k).write(store)
    print_outcome(outcome, grown=record.events != inputs.events)
    print_drift(drift)
    return LabellingSummary(
        num_events=sum(outcome.sizes.values()),
        num_embedded=num_embedded,
        num_written=num_written,
        cluster_sizes=dict(outcome.sizes),
        cluster_names=names,
        scores=outcome.scores.metrics() if outcome.scores else {},
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
    given = inputs.user_names.names
    for number in sorted(given.keys() - set(numbers.tolist())):
        print(f"labels.names names cluster {number}, which does not exist", flush=True)
    return name_clusters(numbers, labels, clusters, given, min_purity=config.labels.min_purity)


def _propagation(
    store: Store,
    inputs: LabelInputs,
    config: Config,
    clustering: Clustering,
    labelled: Labelled | None,
    run: StageRun,
) -> Propagation | None:
    """Return what labels the events without a hand label, unless the names of their clusters do."""
    if config.label.propagate == "none":
        forget_propagation(store)
        return None
    assert inputs.hand is not None
    assert labelled is not None
    fit, space = clustering.tree.clustering, clustering.model.space
    found = find_propagation(store, config, fit, space, inputs.hand, labelled)
    log_propagation(run, found)
    return found


def _score(
    inputs: LabelInputs,
    config: Config,
    clustering: Clustering,
    labelled: Labelled | None,
    numbers: NDArray[np.int32],
    propagation: Propagation | None,
) -> Scores | None:
    if inputs.hand is None or labelled is None:
        return None
    ids = labelled.event_ids
    rows = LabelledRows(
        labels=np.array([inputs.hand.label_of[event_id] for event_id in ids], dtype=object),
        clusters=numbers[labelled.clusters],
        clusters_at_classes=None if clustering.at_classes is None else labelled.clusters_at_classes,
        probed=np.flatnonzero(labelled.probed),
        embeddings=labelled.embeddings,
        stations=labelled.stations,
        events=np.array([inputs.hand.event_of[event_id] for event_id in ids], dtype=object),
        validation=np.array([inputs.hand.validation[event_id] for event_id in ids], dtype=bool),
    )
    propagated = propagated_labels(propagation, clustering.model.space, inputs.hand, labelled)
    return score_labelling(rows, propagated, bootstrap_draws=config.label.bootstrap_draws, seed=config.kmeans.seed)
