"""The contrastive training step and its epoch as plain torch; one process or any number of ranks, no Ray.

Windows lie in memory, prepared (`pipelines.encoders.preparation.prepare`), in a fixed order. Every random choice comes
from (seed, epoch, rank), so that an epoch begun from a checkpoint is the one that was interrupted, to the last bit on
CPU.
"""

import hashlib
import math
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipelines.contrastive.augmentations import Augmenter, augmentation_seed
from pipelines.contrastive.loss import nt_xent
from pipelines.contrastive.quality import alignment, effective_rank, uniformity
from pipelines.encoders.encoder import build_network
from pipelines.encoders.networks import NetworkConfig, ProjectionHead, SpectrogramNetwork, learned_dim

REFERENCE_BATCH = 256
"""The learning rate is given for this global batch and scaled with its square root, as suits AdamW."""

FIRST_VIEW_SHARE = 0.2
"""What the augmentations' probabilities are multiplied by in the first epoch, where they rise."""

QUALITY_WINDOWS = 512
"""Windows of a rank that the quality figures of an epoch are computed on."""


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """The settings of a training, apart from its network, its data and its augmentations."""

    epochs: int
    """Passes over the windows."""
    batch_size: int
    """Windows of a step, over all ranks."""
    temperature: float
    """Divides the cosine similarities of the loss."""
    learning_rate: float
    """Peak learning rate at a global batch of `REFERENCE_BATCH`."""
    weight_decay: float
    """AdamW's decoupled weight decay."""
    warmup_epochs: float
    """Epochs over which the learning rate rises from zero."""
    view_ramp_epochs: float = 0.0
    """Epochs over which the share of augmented views rises to its full value."""
    seed: int
    """Of the weights, the order and the augmentations."""
    projection_hidden: int = 256
    """Width of the projection head's hidden layer."""
    projection_dim: int = 64
    """Length of a projection."""
    bf16: bool = False
    """Run the network in bfloat16 autocast; the loss stays in float32."""

    def __post_init__(self) -> None:
        checks = [
            (self.epochs >= 1, f"epochs is {self.epochs}: at least 1"),
            (self.batch_size >= 2, f"batch_size is {self.batch_size}: a contrast needs at least 2 windows"),
            (self.temperature > 0, f"temperature is {self.temperature}: it must be positive"),
            (self.learning_rate > 0, f"learning_rate is {self.learning_rate}: it must be positive"),
            (self.weight_decay >= 0, f"weight_decay is {self.weight_decay}: it must not be negative"),
            (self.warmup_epochs >= 0, f"warmup_epochs is {self.warmup_epochs}: it must not be negative"),
            (self.view_ramp_epochs >= 0, f"view_ramp_epochs is {self.view_ramp_epochs}: it must not be negative"),
        ]
        for holds, sentence in checks:
            if not holds:
                raise ValueError(f"train.{sentence}.")


class DivergedLoss(RuntimeError):
    """The loss or the weights are not numbers any more."""


class Learner(nn.Module):
    """Network and projection head; both views go through in one pass."""

    def __init__(self, config: NetworkConfig, plan: TrainPlan) -> None:
        super().__init__()
        network = build_network(config)
        assert isinstance(network, SpectrogramNetwork)
        self.network = network
        self.head = ProjectionHead(learned_dim(config), plan.projection_hidden, plan.projection_dim)

    def forward(self, first_BCS: Tensor, second_BCS: Tensor) -> tuple[Tensor, Tensor]:
        """Return the projections of two views (window, projection) each."""
        projections = self.head(self.network.learned(torch.cat([first_BCS, second_BCS])))
        first, second = projections.chunk(2)
        return first, second


@dataclass
class TrainState:
    """What an epoch changes: model, optimiser, and the number of epochs done."""

    learner: Learner
    optimizer: torch.optim.Optimizer
    epochs_done: int = 0


def new_state(config: NetworkConfig, plan: TrainPlan, device: torch.device) -> TrainState:
    """Return the state before the first epoch; weights depend on the seed alone, on every device and rank."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_seed("weights", plan.seed))
        learner = Learner(config, plan)
    learner.to(device)
    decayed = [parameter for parameter in learner.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in learner.parameters() if parameter.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=plan.learning_rate, weight_decay=plan.weight_decay)
    return TrainState(learner, optimizer)


def local_batch_size(plan: TrainPlan, shard_sizes: list[int]) -> int:
    """Return the windows of a step on each rank: the global batch shared evenly, fewer where shards are small.

    Raises:
        ValueError: there are fewer than two windows in all, so there is nothing to contrast.
    """
    world = len(shard_sizes)
    size = min(max(1, plan.batch_size // world), min(shard_sizes))
    if size * world < 2:
        raise ValueError(f"there are {sum(shard_sizes)} windows to train on: contrastive training needs at least 2.")
    return size


def steps_per_epoch(plan: TrainPlan, shard_sizes: list[int]) -> int:
    """Return the steps of an epoch, the same on every rank; windows after the last full batch are skipped."""
    return min(shard_sizes) // local_batch_size(plan, shard_sizes)


def rising_epochs(plan: TrainPlan) -> float:
    """Return for how many epochs the learning rate rises: the warm-up, at most half the training."""
    return min(plan.warmup_epochs, plan.epochs / 2)


def learning_rate(plan: TrainPlan, step: int, steps_of_epoch: int, global_batch: int) -> float:
    """Return the learning rate of a step: linear warm-up, then half a cosine down to zero."""
    peak = plan.learning_rate * math.sqrt(global_batch / REFERENCE_BATCH)
    total = plan.epochs * steps_of_epoch
    warmup = rising_epochs(plan) * steps_of_epoch
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, total - warmup)))


def view_share(plan: TrainPlan, epoch: int) -> float:
    """Return what the augmentations' probabilities are multiplied by in an epoch (0 is the first).

    It rises in equal steps from `FIRST_VIEW_SHARE` to 1 over `view_ramp_epochs`, at most a quarter of the training. An
    untrained network tells two full views of a window from views of other windows hardly better than chance, so that
    whether the loss leaves ln(candidates) is left to rounding; views of the first share it does tell apart.
    """
    ramp = min(plan.view_ramp_epochs, plan.epochs / 4)
    return 1.0 if epoch >= ramp else FIRST_VIEW_SHARE + (1.0 - FIRST_VIEW_SHARE) * epoch / ramp


def epoch_order(num_windows: int, seed: int, epoch: int, rank: int) -> Tensor:
    """Return the order in which a rank visits its windows in an epoch."""
    generator = torch.Generator().manual_seed(_seed("order", seed, epoch, rank))
    return torch.randperm(num_windows, generator=generator)


def run_epoch(
    state: TrainState,
    windows_NCS: Tensor,
    augmenter: Augmenter,
    plan: TrainPlan,
    *,
    model: nn.Module | None = None,
    shard_sizes: list[int] | None = None,
    rank: int = 0,
    device: torch.device | None = None,
) -> dict[str, float]:
    """Train one epoch on this rank's windows and return its figures.

    Args:
        state: changed in place.
        windows_NCS: this rank's prepared windows, on the host or the device.
        augmenter: makes a view; on the device.
        plan: of the training.
        model: what wraps `state.learner` (DistributedDataParallel, a compiled module); default: the learner itself.
        shard_sizes: windows of each rank; default: this rank alone.
        rank: this rank.
        device: where the step runs; default: where the windows are.

    Returns:
        loss (mean over ranks and steps), alignment, uniformity, effective_rank (of this rank's embeddings, means over
        ranks), learning_rate (of the last step), windows_per_second (over all ranks), augment_share (of the time).

    Raises:
        DivergedLoss: on every rank alike, where the loss or a weight is not finite.
    """
    device = device or windows_NCS.device
    shard_sizes = shard_sizes or [len(windows_NCS)]
    model = model or state.learner
    batch = local_batch_size(plan, shard_sizes)
    steps = steps_per_epoch(plan, shard_sizes)
    epoch = state.epochs_done
    order = epoch_order(len(windows_NCS), plan.seed, epoch, rank).to(windows_NCS.device)
    generator = torch.Generator(device).manual_seed(augmentation_seed(plan.seed, epoch, rank))
    share = view_share(plan, epoch)
    model.train()
    losses = torch.zeros(steps, dtype=torch.float64, device=device)
    augment_seconds, rate = 0.0, 0.0
    began = time.perf_counter()
    for step in range(steps):
        rate = learning_rate(plan, epoch * steps + step, steps, batch * len(shard_sizes))
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        windows = windows_NCS[order[step * batch : (step + 1) * batch]].to(device, non_blocking=True)
        mark = time.perf_counter()
        first, second = augmenter(windows, generator, share), augmenter(windows, generator, share)
        augment_seconds += time.perf_counter() - mark
        loss = train_step(model, state.optimizer, first, second, plan)
        losses[step] = loss.detach()
    mean_loss = float(losses.mean())
    seconds = time.perf_counter() - began
    state.epochs_done = epoch + 1
    # The mean over ranks, and the weights, are the same on all: either all end here or none.
    mean_loss = _mean_over_ranks({"loss": mean_loss}, device)["loss"]
    if not math.isfinite(mean_loss):
        raise DivergedLoss(f"the loss is {mean_loss:g} in epoch {epoch + 1}")
    if not all(bool(torch.isfinite(parameter).all()) for parameter in state.learner.parameters()):
        raise DivergedLoss(f"weights are not finite after epoch {epoch + 1}")
    figures = embedding_quality(state.learner.network, windows_NCS, augmenter, plan, epoch, device)
    return (
        {"loss": mean_loss}
        | _mean_over_ranks(figures, device)
        | {
            "learning_rate": rate,
            "windows_per_second": steps * batch * len(shard_sizes) / seconds,
            "augment_share": augment_seconds / seconds,
            "epoch_seconds": seconds,
        }
    )


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, first: Tensor, second: Tensor, plan: TrainPlan
) -> Tensor:
    """Do one optimiser step on two views of this rank's windows and return the loss of this rank."""
    with torch.autocast(first.device.type, dtype=torch.bfloat16, enabled=plan.bf16):
        first_projection, second_projection = model(first, second)
    loss = nt_xent(first_projection, second_projection, plan.temperature)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss


@torch.no_grad()
def embedding_quality(
    network: SpectrogramNetwork,
    windows_NCS: Tensor,
    augmenter: Augmenter,
    plan: TrainPlan,
    epoch: int,
    device: torch.device,
) -> dict[str, float]:
    """Return alignment, uniformity and effective rank of what is learned, for this rank's first windows."""
    generator = torch.Generator(device).manual_seed(_seed("quality", plan.seed, epoch))
    plain, first, second = [], [], []
    batch = 128
    for start in range(0, min(len(windows_NCS), QUALITY_WINDOWS), batch):
        windows = windows_NCS[start : min(start + batch, QUALITY_WINDOWS)].to(device)
        plain.append(network.learned(windows))
        if start < batch:
            first.append(network.learned(augmenter(windows, generator)))
            second.append(network.learned(augmenter(windows, generator)))
    embeddings = torch.cat(plain)
    return {
        "alignment": alignment(torch.cat(first), torch.cat(second)),
        "uniformity": uniformity(embeddings) if len(embeddings) > 1 else 0.0,
        "effective_rank": effective_rank(embeddings),
    }


def _mean_over_ranks(figures: dict[str, float], device: torch.device) -> dict[str, float]:
    if not dist.is_available() or not dist.is_initialized():
        return figures
    values = torch.tensor(list(figures.values()), dtype=torch.float64, device=device)
    dist.all_reduce(values)
    return dict(zip(figures, (values / dist.get_world_size()).tolist(), strict=True))


def _seed(*parts: Any) -> int:
    digest = hashlib.sha256(" ".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
