"""Which clustering labels the events: the stored one of the same inputs and settings, or a new one."""

from dataclasses import asdict
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from pipelines.config import Config
from pipelines.config.label import KMeansSettings
from pipelines.label.cluster_model import ClusterModel
from pipelines.label.figures import draw_k_scores
from pipelines.label.kselection import KScores, score_k, suggest_k
from pipelines.label.stage_embed import embedding_fingerprint
from pipelines.label.stage_inputs import LabelInputs
from pipelines.label.stage_kmeans import fit_model
from pipelines.label.stage_partitions import survey_embeddings
from pipelines.runtime.progress import progress_bar
from pipelines.tracking.runs import StageRun, stage_run
from pipelines.workspace.artifacts import ClusteringSummary
from pipelines.workspace.ledger import fingerprint
from pipelines.workspace.storage import Store, content_hash

ALGORITHM_VERSION = 3
"""Raised by hand when the same embeddings and settings give another clustering or other labels."""


def find_clustering(
    store: Store, inputs: LabelInputs, config: Config, run: StageRun, *, num_workers: int, num_cpus: int
) -> tuple[ClusterModel, str]:
    """Return the clustering of the embeddings and its content hash: the stored one, else a new one, stored for a rerun.

    With `label.sweep_k` it is fitted again, and the numbers of clusters are compared on a sample.
    """
    num_classes = len(set(inputs.hand.label_of.values())) if inputs.hand else 0
    encoder = inputs.registered.encoder
    embeddings = [
        f"{one.path('embeddings')}{embedding_fingerprint(one, encoder, config.label)}" for one in inputs.shards
    ]
    name = fingerprint(
        {
            "embeddings": content_hash("".join(embeddings).encode()),
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
        return ClusterModel.from_bytes(content), content_hash(content)
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
            cpus_per_worker=min(1.0, num_cpus / num_workers),
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
        if item.path not in (path, ClusteringSummary.PATH):
            store.remove(item.path)


def _compare_k(
    run: StageRun, inputs: LabelInputs, config: Config, keys: NDArray[np.uint64], sample: NDArray[Any]
) -> None:
    """Score several k on the sample, a task each; each k is a child run, and one that cannot be scored is reported."""
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
