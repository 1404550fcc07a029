"""The labelling stage: embed every event, cluster the embeddings, name the clusters, write a label for every event.

events/ -> embeddings/ -> clustering/<fingerprint>.npz -> labels/
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import ray
import yaml
from numpy.typing import NDArray

from pipelines.config import Config, stage_config, stage_output_keys
from pipelines.config.detection import WindowSettings
from pipelines.config.label import KMeansSettings
from pipelines.handlabels.matching import HandLabels
from pipelines.handlabels.table import LabelTable, read_label_table
from pipelines.label.figures import draw_confusion, draw_gallery, draw_inertia, draw_k_scores
from pipelines.label.kselection import KScores, score_k, suggest_k
from pipelines.label.naming import ClusterName, names_by_majority, numbers_by_reference, numbers_by_size
from pipelines.label.scores import (
    UNASSIGNED,
    LabelledRows,
    Scores,
    describe_scores,
    probe_sample,
    protocol_of,
    score_labelling,
)
from pipelines.label.stage_embed import (
    RegisteredEncoder,
    check_windows,
    embed_shards,
    embedding_fingerprint,
    load_encoder,
    refuse_other_windows,
    unembedded_shards,
)
from pipelines.label.stage_inputs import match_on_ray, read_cluster_names
from pipelines.label.stage_kmeans import Model, check_enough_events, fit_model, survey_embeddings
from pipelines.label.stage_labels import Count, Labelled, Naming, count_clusters, write_labels
from pipelines.label.stage_shards import Shard, list_event_shards
from pipelines.runtime.errors import InputError
from pipelines.runtime.progress import progress_bar
from pipelines.runtime.ray_session import CLUSTER_CPUS_VARIABLE, ray_session
from pipelines.tracking.runs import StageRun, stage_run
from pipelines.tracking.server import Tracking
from pipelines.workspace import tables
from pipelines.workspace.event_sample import events_fingerprint
from pipelines.workspace.ledger import fingerprint, list_markers
from pipelines.workspace.storage import Store, content_hash
from pipelines.workspace.workspace import Workspace, open_workspace

ALGORITHM_VERSION = 3
"""Raised by hand when the same embeddings and settings give another clustering or other labels."""


MOST_TAG_CHARS = 8000
"""Most characters of an MLflow tag."""

SUMMARY = "clustering/summary.json"
"""Sizes, names and scores of the clusters, for whoever reports them."""


@dataclass(frozen=True, kw_only=True)
class LabelSummary:
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


@dataclass(frozen=True, kw_only=True)
class _Inputs:
    shards: Sequence[Shard]
    registered: RegisteredEncoder
    hand: HandLabels | None
    user_names: dict[int, str | None]
    reference: Store | None
    fingerprints: Mapping[str, str]
    """Of all that the run reads, as MLflow keeps them."""


def label_events(
    workspace: Workspace, config: Config, tracking: Tracking, *, replace: bool = False, address: str | None = None
) -> LabelSummary:
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
    reference = _open_reference(config.label.reference, store)
    table = None if config.labels.path is None else read_label_table(config.labels.path)
    lineage = _lineage(shards, registered, reference, table, names_hash)
    whole = fingerprint(lineage | stage_output_keys(config, "label") | {"algorithm_version": ALGORITHM_VERSION})
    done = None if replace else _already_labelled(store, shards, registered, config, whole)
    if done is not None:
        print(f"label: nothing to do, the labels of all {done.num_events} events are up to date", flush=True)
        return done
    with ray_session(address) as session:
        check_resources(config)
        hand = None if table is None else match_on_ray(store, shards, config.labels, table)
        if hand is not None:
            print(
                f"hand labels: {len(hand.label_of)} events from {hand.num_rows} rows of {config.labels.path}; "
                f"{hand.num_unmatched} rows without an event, {hand.num_ambiguous} ambiguous",
                flush=True,
            )
        inputs = _Inputs(
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


def check_resources(config: Config) -> None:
    """Refuse to embed on GPUs where Ray has none and is not said to grow; a Ray session must be open.

    Raises:
        InputError: names the key.
    """
    if config.label.use_gpu and not _num_gpus() and CLUSTER_CPUS_VARIABLE not in os.environ:
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
    _open_reference(config.label.reference, store)
    model = config.label.model
    # Where its aliases will point is up to the training that comes before.
    if model is not None and not model.startswith(f"models:/{config.mlflow.model_name}@"):
        encoder = load_encoder(store, config, tracking).encoder
        refuse_other_windows(encoder, window.num_samples, window.rate_hz, window.lead_samples)


def check_events(store: Store, config: Config) -> list[Shard]:
    """Return the shards with events; InputError where there are fewer events than clusters."""
    shards = list_event_shards(store)
    check_enough_events(store, shards, config)
    return shards


def _already_labelled(
    store: Store, shards: Sequence[Shard], registered: RegisteredEncoder, config: Config, whole: str
) -> LabelSummary | None:
    """Return what an earlier run found, if it finished with the same inputs and settings and all its files stand."""
    if not store.exists(SUMMARY):
        return None
    summary = json.loads(store.read(SUMMARY))
    current = {(shard.network, shard.station, shard.name) for shard in shards}
    if summary["fingerprint"] != whole or not set(config.label.sweep_k) <= set(summary["sweep_k"]):
        return None
    marks = list(list_markers(store, "label"))
    if {(mark.network, mark.station, mark.shard) for mark in marks if mark.fingerprint == summary["mark"]} != current:
        return None
    if unembedded_shards(store, shards, registered.encoder, config.label):
        return None
    return LabelSummary(
        num_events=sum(entry["events"] for entry in summary["clusters"]),
        num_embedded=0,
        num_written=0,
        cluster_sizes={entry["cluster"]: entry["events"] for entry in summary["clusters"]},
        cluster_names={entry["cluster"]: entry["name"] for entry in summary["clusters"] if entry["name"]},
        scores=summary.get("scores", {}),
        run_id="",
    )


def _label(store: Store, inputs: _Inputs, config: Config, run: StageRun, whole: str, *, num_cpus: int) -> LabelSummary:
    encoder = inputs.registered.encoder
    num_workers = config.label.num_workers or num_cpus
    num_embedders = min(num_workers, num_cpus)
    if config.label.use_gpu:
        num_embedders = config.label.num_workers or max(1, _num_gpus())
    num_embedded = embed_shards(store, inputs.shards, encoder, config.label, num_workers=num_embedders)
    before = "" if num_embedded == len(inputs.shards) else "; the others were done before"
    print(f"label: embedded {num_embedded} of {len(inputs.shards)} shards{before}", flush=True)

    num_classes = len(set(inputs.hand.label_of.values())) if inputs.hand else 0
    model, model_hash = _clustering(store, inputs, config, run, num_workers, num_cpus, num_classes)
    label_of = inputs.hand.label_of if inputs.hand else {}
    probe_ids = probe_sample(label_of, seed=config.kmeans.seed)
    count = count_clusters(store, inputs.shards, model, label_of, probe_ids, inputs.reference)
    numbers = (
        numbers_by_size(count.counts) if inputs.reference is None else numbers_by_reference(count.shared, count.counts)
    )
    sizes = {int(number): int(size) for number, size in sorted(zip(numbers, count.counts, strict=True))}
    named = _name_clusters(inputs, config, count.labelled, numbers)
    names = {number: entry.name for number, entry in named.items() if entry.name}
    mark = fingerprint({"run": whole, "clustering": model_hash, "numbers": numbers.tolist(), "names": names})
    naming = Naming(numbers=numbers, names=names)
    # A kill among the labels leaves no summary of earlier ones beside them.
    store.remove(SUMMARY)
    num_written = write_labels(store, inputs.shards, model, naming, label_of, mark, model_hash=model_hash)
    scores = _score(inputs, config, model, count.labelled, numbers)
    _log(run, store, inputs, config, model, model_hash, count, numbers, named, scores)
    # Last of all: a rerun that finds it has nothing to do, in MLflow either.
    marks = {"fingerprint": whole, "mark": mark, "sweep_k": list(config.label.sweep_k)}
    _write_summary(store, sizes, named, scores, marks)
    _say(sizes, named, scores)
    return LabelSummary(
        num_events=int(count.counts.sum()),
        num_embedded=num_embedded,
        num_written=num_written,
        cluster_sizes=sizes,
        cluster_names=names,
        scores=scores.metrics() if scores else {},
        run_id=run.run_id,
    )


def _clustering(
    store: Store, inputs: _Inputs, config: Config, run: StageRun, num_workers: int, num_cpus: int, num_classes: int
) -> tuple[Model, str]:
    """Return the clustering of these embeddings: the stored one, else a new one, stored for a rerun."""
    marks = [embedding_fingerprint(shard, inputs.registered.encoder, config.label) for shard in inputs.shards]
    name = fingerprint(
        {
            "embeddings": content_hash("".join(f"{s.path('embeddings')}{m}" for s, m in _zip(inputs, marks)).encode()),
            "kmeans": config.kmeans.output_keys(),
            "num_classes": num_classes,
            "algorithm_version": ALGORITHM_VERSION,
        }
    )
    path = f"clustering/{name}.npz"
    sweep = config.label.sweep_k
    if store.exists(path) and not sweep:
        _remove_others(store, path)
        content = store.read(path)
        return Model.from_bytes(content), content_hash(content)
    surveys = survey_embeddings(store, inputs.shards, config.kmeans)
    with progress_bar("k-means", unit="iteration") as bar:

        def progress(restart: int, iteration: int, inertia: float) -> None:
            bar.set_postfix(restart=restart + 1, inertia=f"{inertia:.6g}", refresh=False)
            bar.update()

        model, (keys, sample) = fit_model(
            store,
            surveys,
            config.kmeans,
            num_workers=num_workers,
            # More workers than CPUs share them; each that waited for a CPU of its own would wait for ever.
            cpus_a_worker=min(1.0, num_cpus / num_workers),
            num_classes=num_classes if num_classes > 1 else None,
            progress=progress,
            sample_events=config.label.sweep_events if sweep else 0,
        )
    content = model.to_bytes()
    store.write(path, content)
    _remove_others(store, path)
    if sweep:
        _compare_k(run, inputs, config, keys, sample)
    return model, content_hash(content)


def _remove_others(store: Store, path: str) -> None:
    """Remove the clusterings of earlier inputs and settings."""
    for item in store.walk("clustering"):
        if item.path not in (path, SUMMARY):
            store.remove(item.path)


def _zip(inputs: _Inputs, marks: Sequence[str]) -> list[tuple[Shard, str]]:
    return list(zip(inputs.shards, marks, strict=True))


def _compare_k(run: StageRun, inputs: _Inputs, config: Config, keys: NDArray[np.uint64], sample: NDArray[Any]) -> None:
    """Score several k on the sample, a task each; each k is a child run, and one that cannot be tried is said."""
    sample_ref, keys_ref = ray.put(sample), ray.put(keys)
    settings = config.kmeans
    tasks = [_score_k.remote(sample_ref, keys_ref, k, settings) for k in config.label.sweep_k]
    results: list[KScores | str] = ray.get(tasks)
    scores = [result for result in results if isinstance(result, KScores)]
    for k, result in zip(config.label.sweep_k, results, strict=True):
        if isinstance(result, str):
            print(f"label.sweep_k: k = {k} is left out, since in half of the {len(keys)} events {result}", flush=True)
    if not scores:
        return
    suggested, reason = suggest_k(scores)
    for score in scores:
        values = {name: value for name, value in asdict(score).items() if np.isfinite(value)}
        with stage_run(
            run.tracking,
            "label",
            {"kmeans": {"k": score.k}},
            inputs=inputs.fingerprints,
            parent=run,
            name=f"k = {score.k}",
        ) as child:
            child.log_metrics({f"k.{name}": value for name, value in values.items()})
    columns = {name: [getattr(score, name) for score in scores] for name in KScores.__dataclass_fields__}
    run.log_table(columns, "k/scores.json")
    run.log_bytes(draw_k_scores(scores, suggested, settings.k), "k/scores.png")
    text = f"{reason}. Used: kmeans.k = {settings.k}. Scores are of a sample of {len(keys)} events."
    run.log_text(text + "\n", "k/suggestion.txt")
    run.set_tags({"firnline.suggested_k": suggested})
    print(text, flush=True)


@ray.remote
def _score_k(sample: NDArray[np.float32], keys: NDArray[np.uint64], k: int, settings: KMeansSettings) -> KScores | str:
    """Return the scores of a k, or why there are none."""
    try:
        return score_k(sample, keys, k, settings)
    except ValueError as error:
        return str(error)


def _name_clusters(
    inputs: _Inputs, config: Config, labelled: Labelled | None, numbers: NDArray[np.int32]
) -> dict[int, ClusterName]:
    """Name clusters by the validation half of the hand labels; the user's file overrides."""
    final = [int(number) for number in numbers]
    named = {number: ClusterName(name=None, purity=float("nan"), num_labels=0) for number in final}
    if inputs.hand is not None and labelled is not None:
        rows = np.array([inputs.hand.validation[event_id] for event_id in labelled.event_ids], dtype=bool)
        labels = [inputs.hand.label_of[event_id] for event_id in labelled.event_ids[rows]]
        found = names_by_majority(
            labels, numbers[labelled.clusters[rows]], max(final) + 1, min_purity=config.labels.min_purity
        )
        named = {number: found[number] for number in final}
    for number, name in inputs.user_names.items():
        if number not in named:
            print(f"labels.names names cluster {number}, which does not exist", flush=True)
        else:
            named[number] = ClusterName(name=name, purity=named[number].purity, num_labels=named[number].num_labels)
    return dict(sorted(named.items()))


def _score(
    inputs: _Inputs, config: Config, model: Model, labelled: Labelled | None, numbers: NDArray[np.int32]
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


def _write_summary(
    store: Store,
    sizes: Mapping[int, int],
    named: Mapping[int, ClusterName],
    scores: Scores | None,
    marks: Mapping[str, Any],
) -> None:
    clusters = [
        {
            "cluster": number,
            "events": sizes[number],
            "name": entry.name,
            "purity": entry.purity if entry.num_labels else None,
            "hand_labels": entry.num_labels,
        }
        for number, entry in named.items()
    ]
    content: dict[str, Any] = {"clusters": clusters, **marks}
    if scores is not None:
        metrics = scores.metrics()
        content["scores"] = metrics
        content["protocol"] = {name: protocol_of(name) for name in metrics}
        content["confusion"] = {
            "hand_labels": list(scores.classes),
            "given": [*scores.classes, UNASSIGNED],
            "events": scores.matrix.tolist(),
        }
    store.write(SUMMARY, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())


def _log(
    run: StageRun,
    store: Store,
    inputs: _Inputs,
    config: Config,
    model: Model,
    model_hash: str,
    count: Count,
    numbers: NDArray[np.int32],
    named: Mapping[int, ClusterName],
    scores: Scores | None,
) -> None:
    run.set_tags(
        {
            "firnline.model": inputs.registered.uri,
            "firnline.model_run": inputs.registered.run_id,
            "firnline.encoder": inputs.registered.encoder.content_hash,
            "firnline.clustering": model_hash,
        }
    )
    run.log_metrics(
        {
            "num_events": float(count.counts.sum()),
            "num_clusters": float(len(count.counts)),
            "inertia": model.inertia,
            "inertia_per_event": model.inertia / max(int(count.counts.sum()), 1),
            "iterations": float(len(model.inertia_history)),
            "converged": float(model.converged),
        }
    )
    run.log_bytes(draw_inertia(model.inertia_history), "clusters/inertia.png")
    sizes = dict(zip(numbers.tolist(), count.counts.tolist(), strict=True))
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
    run.log_text(yaml.safe_dump({number: entry.name for number, entry in named.items()}), "clusters/names.yaml")
    run.log_bytes(_gallery(store, inputs, count, numbers, named), "clusters/gallery.png")
    if scores is None:
        return
    run.log_metrics(scores.metrics())
    columns = (*scores.classes, UNASSIGNED)
    title = "test half of the hand labels; clusters named by the validation half"
    run.log_bytes(draw_confusion(scores.matrix, scores.classes, columns, title), "scores/confusion.png")
    given = {f"given {name}": scores.matrix[:, column].tolist() for column, name in enumerate(scores.classes)}
    run.log_table(
        {"hand label": list(scores.classes), **given, UNASSIGNED: scores.matrix[:, -1].tolist()},
        "scores/confusion.json",
    )
    lines = [f"{name} = {value:.4f}: {protocol_of(name)}" for name, value in scores.metrics().items()]
    run.log_text("\n".join(lines) + "\n", "scores/protocol.txt")
    # MLflow shows this tag as the run's description, above its metrics.
    run.set_tags({"mlflow.note.content": describe_scores(scores, most_chars=MOST_TAG_CHARS)})


def _gallery(
    store: Store, inputs: _Inputs, count: Count, numbers: NDArray[np.int32], named: Mapping[int, ClusterName]
) -> bytes:
    """Draw the three events nearest to each centroid, of the sixteen largest clusters."""
    shown = set(np.argsort(-count.counts, kind="stable")[:16].tolist())
    wanted: dict[str, list[tuple[int, float, str]]] = {}
    taken: dict[int, int] = {}
    for cluster, distance, event_id, path in count.nearest:
        if cluster in shown and taken.get(cluster, 0) < 3:
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


def _lineage(
    shards: Sequence[Shard],
    registered: RegisteredEncoder,
    reference: Store | None,
    table: LabelTable | None,
    names_hash: str,
) -> dict[str, str]:
    sources = "".join(f"{shard.path('events')}{shard.source}" for shard in shards)
    lineage = {
        "events": content_hash(sources.encode()),
        "encoder": registered.encoder.content_hash,
        "model": registered.uri,
    }
    if table is not None:
        lineage["labels"] = table.content_hash
    if names_hash:
        lineage["names"] = names_hash
    if reference is not None:
        marks = [f"{mark.partition}{mark.shard}{mark.fingerprint}" for mark in list_markers(reference, "label")]
        lineage["reference"] = content_hash("".join(sorted(marks)).encode())
    return lineage


def _open_reference(url: str | None, store: Store) -> Store | None:
    if url is None:
        return None
    reference = open_workspace(url, create=False, write=False).store
    if reference.url == store.url:
        raise InputError(
            f"label.reference {url} is the workspace that is labelled, and this run replaces its labels; copy them and "
            "workspace.json to a folder of their own and name that"
        )
    if not tables.list_shards(reference, "labels"):
        raise InputError(f"label.reference {url} holds no labels; give a workspace that has been labelled")
    return reference


def _num_gpus() -> int:
    resources: Any = ray.cluster_resources
    return int(resources().get("GPU", 0))


def _say(sizes: Mapping[int, int], named: Mapping[int, ClusterName], scores: Scores | None) -> None:
    print(f"label: {sum(sizes.values())} events:")
    for number, size in sizes.items():
        entry = named[number]
        ground = f" (purity {entry.purity:.2f} of {entry.num_labels} hand labels)" if entry.num_labels else ""
        print(f"  cluster {number:>3} {size:>9} events  {entry.name or '-'}{ground}")
    if scores is not None:
        for name in ("test.hungarian_accuracy", "test.purity", "test.majority_baseline"):
            value = scores.intervals.get(name, f"{scores.values[name]:.3f}") if name in scores.metrics() else None
            print(f"  {name} {value or 'not available'}: {protocol_of(name)}")
