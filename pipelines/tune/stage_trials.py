"""One trial of the search: a training with one point's settings whose encoder is scored after every epoch."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.config import Config, with_keys
from pipelines.config.tune import SearchRange
from pipelines.contrastive.augmentations import build_augmenter
from pipelines.contrastive.checkpoint import network_state
from pipelines.contrastive.objective import cluster_stability
from pipelines.contrastive.step import TrainPlan
from pipelines.contrastive.whitening import whiten_by_views
from pipelines.encoders import Encoder, NetworkConfig, build_network
from pipelines.handlabels.sampling import SampleLabels, validation_scores
from pipelines.label.in_memory import cluster_in_memory, worth_of_clusters
from pipelines.train.loop import Training, train_rank
from pipelines.train.stage_setup import fits_on_device, network_config, prepare_windows, train_plan
from pipelines.tune.space import Point, configure
from pipelines.workspace.event_sample import equal_shares

SCORED_WINDOWS = 1000
"""Windows that the label-free score of a trial is computed on."""
CLUSTERINGS = 3
"""Clusterings of a trial's embeddings, each with another seed, that the objective `clusters` compares."""
METRICS = ("score", "loss", "clusters", "stability", "effective_rank", "validation_knn", "validation_linear")


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
    event_ids: tuple[str, ...]
    """Of the windows."""


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
    """`validation`, `clusters` or `stability`: which of the scores decides."""

    def network(self, config: Config) -> NetworkConfig:
        """Return the network of a trial."""
        return network_config(config, self.windows)

    @property
    def num_clusters(self) -> int:
        """Clusters that are judged without labels."""
        return self.config.tune.clusters or self.config.kmeans.k

    def plan(self, config: Config) -> TrainPlan:
        """Return the plan of a trial's training."""
        return train_plan(with_keys(config, {"train": {"epochs": config.tune.epochs}}))


def run_trial(
    task: TrialTask,
    point: Point,
    report: Callable[[dict[str, float]], None],
    *,
    device: torch.device,
    rank: int = 0,
    world: int = 1,
) -> None:
    """Train one encoder with one point's settings, as one of `world` ranks, and report every epoch's figures.

    Rank 0 adds the score. More than one rank need an initialised process group, as for a training.

    Raises:
        HopelessTraining: the loss has stayed at ln(candidates), or is not a number.
    """
    torch.set_num_threads(task.config.train.num_threads or 1)
    config = configure(task.config, task.space, point)
    network = task.network(config)
    training = Training(
        network=network,
        plan=task.plan(config),
        preset=config.train.augmentation,
        augmentations=config.augmentation.model_dump(),
        compile=config.train.compile,
    )
    share = equal_shares(len(task.windows.raw), world)[rank]
    windows = prepare_windows(task.windows.raw[share.start : share.stop], network.lead_samples)
    if device.type == "cuda" and fits_on_device(windows, device):
        windows = windows.to(device)

    def after_epoch(done: int, content: bytes | None, figures: dict[str, float]) -> None:
        if content is not None:
            figures = figures | _judge(task, config, network, content, device)
        report({name: figures[name] for name in METRICS if name in figures})

    train_rank(training, windows, device=device, rank=rank, world=world, checkpoint=None, after_epoch=after_epoch)


def _judge(
    task: TrialTask, config: Config, network: NetworkConfig, content: bytes, device: torch.device
) -> dict[str, float]:
    """Return the scores of the network in a checkpoint."""
    built = build_network(network)
    built.load_state_dict(network_state(content))
    windows = task.windows.raw
    some = windows[:: max(1, -(-len(windows) // SCORED_WINDOWS))]
    scores: dict[str, float] = {}
    if config.train.whiten:
        augmenter = build_augmenter(config.train.augmentation, config.augmentation.model_dump(), network.lead_samples)
        whiten_by_views(built.eval(), prepare_windows(some, network.lead_samples), augmenter, config.train.seed)
    encoder = Encoder(network, built).to(device.type)
    if task.labels is not None:
        scores |= validation_scores(encoder.embed(windows[task.labels.indices]), task.labels)
    scores["stability"] = cluster_stability(encoder, some, num_clusters=task.num_clusters, seed=0)["stability"]
    if task.objective == "clusters":
        scores["clusters"] = _worth(encoder.embed(windows), task, measured=encoder.measures)
    of_objective = "validation_knn" if task.objective == "validation" else task.objective
    return scores | {"score": scores.get(of_objective, 0.0)}


def _worth(embeddings: NDArray[np.float32], task: TrialTask, *, measured: bool) -> float:
    settings = task.config.kmeans.model_copy(update={"k": min(task.num_clusters, max(2, len(embeddings) // 4))})
    seeds = range(settings.seed, settings.seed + CLUSTERINGS)
    each = (settings.model_copy(update={"seed": seed}) for seed in seeds)
    found = [cluster_in_memory(embeddings, task.windows.event_ids, one, measured=measured)[0] for one in each]
    return worth_of_clusters(embeddings, found, settings.k)["worth"]
