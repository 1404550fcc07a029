"""One trial of the search: trains an encoder with one point's augmentations and scores it after every epoch."""

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.config.augmentation import AugmentationSettings
from pipelines.contrastive.augmentations import Augmenter, build_augmenter
from pipelines.contrastive.objective import cluster_stability
from pipelines.contrastive.step import TrainPlan, new_state, run_epoch
from pipelines.contrastive.whitening import whiten_by_views
from pipelines.encoders import Encoder, NetworkConfig
from pipelines.handlabels.sampling import SampleLabels, validation_scores
from pipelines.runtime.allocator import keep_freed_memory
from pipelines.train.stage_setup import prepare_windows
from pipelines.tune.space import apply_point

SCORED_WINDOWS = 1000
"""Windows that the label-free score of a trial is computed on."""
METRICS = ("score", "loss", "stability", "effective_rank", "validation_knn", "validation_linear")


@dataclass(frozen=True, kw_only=True)
class TrialTask:
    """What all trials of a search share."""

    network: NetworkConfig
    plan: TrainPlan
    preset: str
    """Whose augmentations are searched."""
    base: dict[str, Any]
    """The configured augmentation section, by name."""
    windows: NDArray[np.float32]
    """(n, 3, sample) raw windows that every trial learns from."""
    labels: SampleLabels | None
    objective: str
    """`validation` or `stability`: which of the scores decides."""
    num_clusters: int
    """Of the label-free score."""
    whiten: bool
    """Whether the encoder is whitened by its views before the label-free score."""


def section_of(base: dict[str, Any], point: dict[str, float]) -> dict[str, Any]:
    """Return a point's augmentation section, checked as a configuration file's would be."""
    return AugmentationSettings.model_validate(apply_point(base, point)).model_dump(mode="json")


def run_trial(task: TrialTask, trial_config: dict[str, Any]) -> None:
    """Train one encoder with one point's augmentations, and report its score after every epoch."""
    tune: Any = importlib.import_module("ray.tune")
    torch.set_num_threads(1)
    keep_freed_memory()
    network, plan = task.network, task.plan
    section = section_of(task.base, trial_config["point"])
    augmenter = build_augmenter(task.preset, section, network.lead_samples)
    prepared = prepare_windows(task.windows, network.lead_samples)
    state = new_state(network, plan, torch.device("cpu"))
    for _ in range(plan.epochs):
        figures = run_epoch(state, prepared, augmenter, plan)
        figures |= _judge(state.learner.network, augmenter, task)
        tune.report({name: figures[name] for name in METRICS if name in figures})


def _judge(network: torch.nn.Module, augmenter: Augmenter, task: TrialTask) -> dict[str, float]:
    # Encoder freezes the network that it is given, so it gets a copy.
    copy = type(network)(task.network)
    copy.load_state_dict(network.state_dict())
    encoder = Encoder(task.network, copy)
    windows = task.windows
    scores: dict[str, float] = {}
    if task.labels is not None:
        scores |= validation_scores(encoder.embed(windows[task.labels.indices]), task.labels)
    some = windows[:: max(1, -(-len(windows) // SCORED_WINDOWS))]
    if task.whiten:
        whiten_by_views(copy, prepare_windows(some, task.network.lead_samples), augmenter, task.plan.seed)
    stability = cluster_stability(encoder, some, num_clusters=task.num_clusters, seed=0)
    scores["stability"] = stability["stability"]
    scores["score"] = scores.get("validation_knn", 0.0) if task.objective == "validation" else scores["stability"]
    return scores
