"""Which clustering labels the events: the one of an earlier run, if its settings are the same, or a new one."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeGuard

import numpy as np
import ray
from numpy.typing import NDArray

from pipelines.config import Config
from pipelines.config.label import KMeansSettings
from pipelines.encoders import Encoder
from pipelines.label.cluster_model import ClusterModel
from pipelines.label.figures import draw_k_scores
from pipelines.label.kselection import KScores, score_k, suggest_k
from pipelines.label.space import Space
from pipelines.label.stage_embed import embedding_fingerprint
from pipelines.label.stage_inputs import LabelInputs
from pipelines.label.stage_kmeans import Fit, fit_model
from pipelines.label.stage_partitions import survey_embeddings
from pipelines.label.stage_shards import EventShard
from pipelines.label.stage_tree import clusters_at, cut_file, read_tree, tree_record
from pipelines.runtime.errors import InputError
from pipelines.runtime.progress import progress_bar
from pipelines.tracking.runs import StageRun, stage_run
from pipelines.workspace.artifacts import ClusterTree, FittedClustering
from pipelines.workspace.ledger import fingerprint
from pipelines.workspace.storage import Store, content_hash

ALGORITHM_VERSION = 4
"""Raised by hand when the same embeddings and settings give another clustering or other labels."""


@dataclass(frozen=True, kw_only=True)
class Clustering:
    """The clustering that labels the events, before its clusters have numbers."""

    id: str
    """Which one it is: the content hash of its file."""
    file: str
    """The name of its file, clustering/<file>.npz."""
    fitted_file: str
    """The name of the file of the fit that it is a cut of; the same where `label.cut` is not given."""
    tree: ClusterTree
    """Of the fit."""
    model: ClusterModel
    at_classes: ClusterModel | None
    """The same events at k = number of classes of the hand labels; None without labels, or where there is none."""
    record: FittedClustering | None
    """What is known of it from an earlier run; None where it is new."""


def clustering_settings(encoder: Encoder, config: Config) -> dict[str, Any]:
    """Return what decides a clustering beside the events."""
    settings = _fit_settings(encoder, config)
    # As text, since 5 and 5.0 are equal to Python; absent where it is not given, as before there were cuts.
    return settings if config.label.cut is None else settings | {"cut": json.dumps(config.label.cut)}


def _fit_settings(encoder: Encoder, config: Config) -> dict[str, Any]:
    return {
        "encoder": encoder.content_hash,
        "precision": config.label.precision,
        "use_gpu": config.label.use_gpu,
        "kmeans": config.kmeans.output_keys(),
        "algorithm_version": ALGORITHM_VERSION,
    }


def fitted_file_of(shards: Sequence[EventShard], encoder: Encoder, config: Config) -> str:
    """Return the name of the file of these events' clustering, fitted or not, whatever `label.cut` makes of it."""
    embeddings = [
        f"{shard.path('embeddings')}{embedding_fingerprint(shard, encoder, config.label)}" for shard in shards
    ]
    embedded = content_hash("".join(embeddings).encode())
    return fingerprint(_fit_settings(encoder, config) | {"embeddings": embedded})


def read_record(store: Store, *, replace: bool) -> FittedClustering | None:
    """Return what is known of the clustering that labels the events; None without one.

    Raises:
        InputError: the file is damaged, unless all is replaced.
    """
    try:
        return FittedClustering.read(store)
    except InputError:
        if not replace:
            raise
        return None


def fit_stays(record: FittedClustering | None, encoder: Encoder, config: Config) -> TypeGuard[FittedClustering]:
    """Whether the fit of an earlier run serves new events, too, in this or another cut: the same settings made it."""
    settings = json.loads(json.dumps(_fit_settings(encoder, config)))
    return record is not None and {**record.settings, "cut": None} == {**settings, "cut": None}


def cut_stays(record: FittedClustering, encoder: Encoder, config: Config) -> bool:
    """Whether the clustering of an earlier run whose fit stays labels new events, too: it is the same cut."""
    return record.settings.get("cut") == clustering_settings(encoder, config).get("cut")


def find_clustering(
    store: Store,
    inputs: LabelInputs,
    config: Config,
    run: StageRun,
    *,
    fitted: FittedClustering | None,
    num_workers: int,
    num_cpus: int,
) -> Clustering:
    """Return the clustering that `label.cut` makes of a fit: of the one that was `fitted`, else of that of all events.

    A new one is stored, and the merge tree of a fit without one. Numbers of clusters are compared on a sample where
    `label.sweep_k` asks for it.

    Raises:
        InputError, StageFailed: as for `fit_model`; InputError where the tree has no such cut.
    """
    num_classes = len(set(inputs.hand.label_of.values())) if inputs.hand else 0
    encoder = inputs.registered.encoder
    name = fitted_file_of(inputs.shards, encoder, config) if fitted is None else fit_of(fitted)
    path, sweep = f"clustering/{name}.npz", config.label.sweep_k
    content, tree = _read_if_there(store, path), read_tree(store, replace=True)
    tree = tree if tree is not None and tree.file == name else None
    digest = "" if content is None else content_hash(content)
    # Of the fit that another cut is of, only its tree tells the hash.
    expected = tree.clustering if tree else fitted.clustering if fitted and not fitted.fitted_file else digest
    if fitted is not None and (content is None or digest != expected):
        # Its file is lost: the one of all events takes its place, and is the same where nothing has been added.
        print(f"label: {store.full(path)} is missing or damaged, so the events are clustered again", flush=True)
        return find_clustering(store, inputs, config, run, fitted=None, num_workers=num_workers, num_cpus=num_cpus)
    known = None if content is None else ClusterModel.from_bytes(content)
    tree = tree if tree is not None and tree.clustering == digest else None
    classes_path = f"clustering/{name}.{num_classes}-classes.npz"
    at_classes = known if num_classes == config.kmeans.k else None
    if num_classes > 1 and at_classes is None:
        stored = _read_if_there(store, classes_path)
        at_classes = None if stored is None else ClusterModel.from_bytes(stored)
    missing = num_classes > 1 and at_classes is None
    if known is None or tree is None or missing or sweep:
        found = _fit(
            store,
            inputs,
            config,
            known=known,
            num_classes=num_classes if missing else None,
            known_rows=0 if fitted is None else round(fitted.num_events * config.kmeans.fraction),
            with_tree=tree is None,
            num_workers=num_workers,
            num_cpus=num_cpus,
        )
        if known is None:
            content = found.model.to_bytes()
            digest = content_hash(content)
            store.write(path, content)
        if found.tree is not None:
            tree = tree_record(found.tree, digest, name)
            tree.write(store)
        if missing and found.at_classes is not None:
            at_classes = found.at_classes
            if at_classes is not found.model:
                store.write(classes_path, at_classes.to_bytes())
        known = found.model
        if sweep:
            _compare_k(run, inputs, config, found)
    assert tree is not None
    model, file = known, cut_file(name, config.label.cut)
    if config.label.cut is not None:
        model = replace(known, clusters=clusters_at(tree, known.clusters, config.label.cut))
        content = model.to_bytes()
        digest = content_hash(content)
        store.write(f"clustering/{file}.npz", content)
    record = read_record(store, replace=True)
    same = record is not None and (record.clustering, record.file) == (digest, file)
    return Clustering(
        id=digest,
        file=file,
        fitted_file=name,
        tree=tree,
        model=model,
        at_classes=at_classes,
        record=record if same else None,
    )


def fit_of(record: FittedClustering) -> str:
    """Return the name of the file of the fit that a clustering is a cut of."""
    return record.fitted_file or record.file


def remove_other_clusterings(store: Store, file: str, fitted_file: str, num_classes: int) -> None:
    """Remove the files of the clusterings of earlier inputs and settings."""
    kept = {f"clustering/{name}.npz" for name in (file, fitted_file, f"{fitted_file}.{num_classes}-classes")}
    for item in list(store.walk("clustering")):
        if item.path.endswith(".npz") and item.path not in kept:
            store.remove(item.path)


def _read_if_there(store: Store, path: str) -> bytes | None:
    try:
        return store.read(path)
    except FileNotFoundError:
        return None


def _fit(
    store: Store,
    inputs: LabelInputs,
    config: Config,
    *,
    known: ClusterModel | None,
    num_classes: int | None,
    known_rows: int,
    with_tree: bool,
    num_workers: int,
    num_cpus: int,
) -> Fit:
    surveys = survey_embeddings(store, inputs.shards, config.kmeans)
    with progress_bar("k-means", unit="iteration") as bar:

        def progress(restart: int, iteration: int, inertia: float) -> None:
            bar.set_postfix(restart=restart + 1, inertia=f"{inertia:.6g}", refresh=False)
            bar.update()

        return fit_model(
            store,
            surveys,
            config.kmeans,
            measured=inputs.registered.encoder.measures,
            num_workers=num_workers,
            # More workers than CPUs share them; each that waited for a CPU of its own would wait for ever.
            cpus_per_worker=min(1.0, num_cpus / num_workers),
            known=known,
            num_classes=num_classes,
            known_rows=known_rows,
            with_tree=with_tree,
            progress=progress,
            sample_events=config.label.sweep_events if config.label.sweep_k else 0,
        )


def _compare_k(run: StageRun, inputs: LabelInputs, config: Config, found: Fit) -> None:
    """Score several k on a sample, a task each; each k is a child run, and one that cannot be scored is reported."""
    keys = found.keys
    sample_ref, keys_ref = ray.put(found.sample), ray.put(keys)
    settings = config.kmeans
    measured_in = found.model.space if inputs.registered.encoder.measures else None
    tasks = [_score_k.remote(sample_ref, keys_ref, k, settings, measured_in) for k in config.label.sweep_k]
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
def _score_k(
    sample: NDArray[np.float32], keys: NDArray[np.uint64], k: int, settings: KMeansSettings, measured_in: Space | None
) -> KScores | str:
    """Return the scores of a k, or why there are none."""
    try:
        return score_k(sample, keys, k, settings, measured_in=measured_in)
    except ValueError as error:
        return str(error)
