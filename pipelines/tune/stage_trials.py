"""One trial of the search: trains an encoder with one point's settings and scores it after every epoch."""

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.config import Config, with_keys
from pipelines.config.tune import SearchRange
from pipelines.contrastive.augmentations import Augmenter, build_augmenter
from pipelines.contrastive.objective import cluster_stability
from pipelines.contrastive.step import TrainPlan, new_state, run_epoch
from pipelines.contrastive.whitening import whiten_by_views
from pipelines.encoders import Encoder, NetworkConfig
from pipelines.handlabels.sampling import SampleLabels, validation_scores
from pipelines.runtime.allocator import keep_freed_memory
from pipelines.train.stage_setup import network_config, prepare_windows, train_plan
from pipelines.tune.space import Point, configure

SCORED_WINDOWS = 1000
"""Windows that the label-free score of a trial is computed on."""
METRICS = ("score", "loss", "stability", "effective_rank", "validation_knn", "validation_linear")


@dataclass(frozen=True)
class Windows:
    """The windows that every trial learns from, and their shape."""

    raw: NDArray[np.float32]
    """(n, 3, sample), absent samples NaN."""
    num_samples: int
    """Samples of a window."""
    rate_hz: float
    """Sampling rate of a window."""
    lead_samples: int
    """Samples before the onset."""


@dataclass(frozen=True, kw_only=True)
class TrialTask:
    """What all trials of a search share."""

    config: Config
    """As configured; a trial changes what its point says."""
    space: dict[str, SearchRange]
    """What is searched."""
    windows: Windows
    labels: SampleLabels | None
    objective: str
    """`validation` or `stability`: which of the scores decides."""

    def network(self, config: Config) -> NetworkConfig:
        """Return the network of a trial."""
        return network_config(config, self.windows)

    def plan(self, config: Config) -> TrainPlan:
        """Return the plan of a trial's training."""
        return train_plan(with_keys(config, {"train": {"epochs": config.tune.epochs}}))


def run_trial(task: TrialTask, point: Point) -> None:
    """Train one encoder with one point's settings, and report its score after every epoch."""
    tune: Any = importlib.import_module("ray.tune")
    torch.set_num_threads(1)
    keep_freed_memory()
    config = configure(task.config, task.space, point)
    network, plan = task.network(config), task.plan(config)
    augmenter = build_augmenter(config.train.augmentation, config.augmentation.model_dump(), network.lead_samples)
    prepared = prepare_windows(task.windows.raw, network.lead_samples)
    state = new_state(network, plan, torch.device("cpu"))
    for _ in range(plan.epochs):
        figures = run_epoch(state, prepared, augmenter, plan)
        figures |= _judge(task, config, plan, state.learner.network, augmenter)
        tune.report({name: figures[name] for name in METRICS if name in figures})


def _judge(
    task: TrialTask, config: Config, plan: TrainPlan, network: torch.nn.Module, augmenter: Augmenter
) -> dict[str, float]:
    # Encoder freezes the network that it is given, so it gets a copy.
    shape = task.network(config)
    copy = type(network)(shape)
    copy.load_state_dict(network.state_dict())
    encoder = Encoder(shape, copy)
    windows = task.windows.raw
    scores: dict[str, float] = {}
    if task.labels is not None:
        scores |= validation_scores(encoder.embed(windows[task.labels.indices]), task.labels)
    some = windows[:: max(1, -(-len(windows) // SCORED_WINDOWS))]
    if config.train.whiten:
        whiten_by_views(copy, prepare_windows(some, shape.lead_samples), augmenter, plan.seed)
    stability = cluster_stability(encoder, some, num_clusters=config.tune.clusters, seed=0)
    scores["stability"] = stability["stability"]
    scores["score"] = scores.get("validation_knn", 0.0) if task.objective == "validation" else scores["stability"]
    return scores
