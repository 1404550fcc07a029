"""Scores a trained encoder, draws it, registers it in MLflow and moves the aliases."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines import encoders
from pipelines.config import Config
from pipelines.contrastive.objective import cluster_stability
from pipelines.encoders import Encoder
from pipelines.handlabels.sampling import SampleLabels, validation_scores
from pipelines.runtime.errors import InputError
from pipelines.tracking.models import (
    CANDIDATE,
    CHAMPION,
    alias_version,
    download_artifact,
    log_encoder,
    register_model,
    set_alias,
)
from pipelines.tracking.runs import StageRun
from pipelines.tracking.server import Tracking
from pipelines.train.figures import augmentation_gallery, embedding_map
from pipelines.train.stage_fit import TrainingInputs
from pipelines.train.stage_setup import prepare_windows
from pipelines.workspace.event_sample import EventSample, read_rows
from pipelines.workspace.storage import Store


def judge_of(
    store: Store, sample: EventSample, labels: SampleLabels | None, windows: NDArray[np.float32], seed: int
) -> Callable[[Encoder], dict[str, float]]:
    """Return what scores encoders on the same windows: label-free, and by the validation half of hand labels.

    `score` is what decides about aliases: the balanced accuracy of nearest neighbours where there are labels in both
    folds, else the stability of clusters.
    """
    labelled = None if labels is None else read_rows(store, sample, labels.indices)

    def judge(encoder: Encoder) -> dict[str, float]:
        scores = cluster_stability(encoder, windows, num_clusters=8, seed=seed)
        if labels is not None and labelled is not None:
            scores |= validation_scores(encoder.embed(labelled), labels)
        return scores | {"score": scores.get("validation_knn", scores["stability"])}

    return judge


def register_encoder(
    run: StageRun,
    tracking: Tracking,
    config: Config,
    encoder: Encoder,
    windows: NDArray[np.float32],
    judge: Callable[[Encoder], dict[str, float]],
    score: float,
) -> tuple[str, str]:
    """Log and register the encoder and move the aliases; return the registered model's URI and its alias.

    The first model is champion. A later one is candidate, or champion where it scores better than the champion does on
    the same windows.
    """
    name = config.mlflow.model_name
    logged = log_encoder(run, encoder, example=np.nan_to_num(windows[:1]))
    tags = {"firnline.content_hash": encoder.content_hash, "firnline.score": f"{score:.6f}"}
    version = register_model(run, logged, name, tags=tags)
    champion = alias_version(tracking, name, CHAMPION)
    alias = CHAMPION
    if champion is not None:
        best = champion_score(tracking, name, windows.shape[-1], judge)
        if best is not None:
            run.log_metrics({"champion_score": best})
        alias = CHAMPION if best is not None and score > best else CANDIDATE
    set_alias(tracking, name, alias, version)
    run.set_tags({"firnline.model_version": version, "firnline.alias": alias})
    return f"models:/{name}/{version}", alias


def champion_score(
    tracking: Tracking, name: str, num_samples: int, judge: Callable[[Encoder], dict[str, float]]
) -> float | None:
    """Return the champion's score on the new model's windows; None where it cannot be read or takes other windows."""
    with tempfile.TemporaryDirectory(prefix="firnline-") as folder:
        try:
            found = download_artifact(tracking, f"models:/{name}@{CHAMPION}", Path(folder))
        except InputError as error:
            print(f"train: the new encoder is not compared with the champion: {error}", flush=True)
            return None
        files = sorted(found.rglob("*.safetensors"))
        try:
            champion = encoders.load(files[0]) if files else None
        except ValueError:
            champion = None
    if champion is None or champion.num_samples != num_samples:
        return None
    return judge(champion)["score"]


def log_figures(
    run: StageRun, encoder: Encoder, windows: NDArray[np.float32], scored: Sequence[int], inputs: TrainingInputs
) -> None:
    """Log a map of the embeddings of raw windows, which are the events `scored`, and a gallery of augmentations."""
    sample, settings = inputs.sample, inputs.config.train
    stations = [sample.stations[event] for event in scored]
    embeddings = encoder.embed(windows)
    run.log_bytes(embedding_map(embeddings, stations), "embedding_map.png")
    if settings.encoder in encoders.NETWORKS:
        shown = prepare_windows(windows[:4], sample.lead_samples)
        gallery = augmentation_gallery(
            shown, inputs.augmentation.model_dump(), settings.augmentation, sample.lead_samples, sample.rate_hz
        )
        run.log_bytes(gallery, "augmentations.png")
