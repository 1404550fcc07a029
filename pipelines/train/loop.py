"""A whole training from plan to last epoch, as one rank runs it: it takes a checkpoint and hands one out per epoch."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.contrastive.augmentations import build_augmenter
from pipelines.contrastive.checkpoint import read_facts, restore_state, state_to_bytes
from pipelines.contrastive.loss import num_candidates
from pipelines.contrastive.step import (
    DivergedLoss,
    TrainPlan,
    local_batch_size,
    new_state,
    rising_epochs,
    run_epoch,
    steps_per_epoch,
)
from pipelines.encoders import NetworkConfig
from pipelines.runtime.allocator import keep_freed_memory

STUCK_EPOCHS, STUCK_STEPS = 5, 100
STUCK_SHARE = 0.999
"""A loss above this share of ln(candidates) means that the network does not tell windows apart."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """What every rank is given."""

    network: NetworkConfig
    """Shape of the network."""
    plan: TrainPlan
    """Epochs, batch, rates, seed."""
    preset: str
    """Which families of augmentations."""
    augmentations: dict[str, dict[str, Any]]
    """Their probabilities and ranges."""
    compile: bool = False
    """Compile the network."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Stored in every checkpoint."""


class HopelessTraining(RuntimeError):
    """The loss stays at ln(candidates), or is not a number; the text says which and what to change."""


def train_rank(
    training: Training,
    windows_NCS: Tensor,
    *,
    device: torch.device,
    rank: int,
    world: int,
    checkpoint: bytes | None,
    after_epoch: Callable[[int, bytes | None, dict[str, float]], None],
) -> bytes:
    """Train from a checkpoint, or from the start, to the last epoch and return the last state.

    Args:
        training: what is trained.
        windows_NCS: this rank's prepared windows, the same number on every rank.
        device: where the step runs.
        rank: this rank.
        world: ranks; more than one need an initialised process group.
        checkpoint: the state to resume from; None: from the start.
        after_epoch: called on every rank with the epochs done, the state (rank 0 alone) and the epoch's figures.

    Raises:
        HopelessTraining: the loss has stayed at ln(candidates), or is not a number.
    """
    keep_freed_memory()
    plan = training.plan
    augmenter = build_augmenter(training.preset, training.augmentations, training.network.lead_samples).to(device)
    state = new_state(training.network, plan, device)
    facts: dict[str, Any] = {"history": [], "worlds": []} | training.facts
    if checkpoint is not None:
        restore_state(state, checkpoint)
        facts = read_facts(checkpoint)[1]
    if not facts["worlds"] or facts["worlds"][-1][1] != world:
        facts["worlds"].append([state.epochs_done, world])
    model: nn.Module = state.learner
    if training.compile:
        model = torch.compile(model)  # type: ignore[assignment]
    if world > 1:
        model = nn.parallel.DistributedDataParallel(model, forward_sync_buffers=False)
    shard_sizes = [len(windows_NCS)] * world
    global_batch, steps = local_batch_size(plan, shard_sizes) * world, steps_per_epoch(plan, shard_sizes)
    while state.epochs_done < plan.epochs:
        try:
            figures = run_epoch(
                state, windows_NCS, augmenter, plan, model=model, shard_sizes=shard_sizes, rank=rank, device=device
            )
        except DivergedLoss as error:
            raise HopelessTraining(f"training diverged: {error}; use a smaller train.learning_rate") from None
        facts["history"].append(figures)
        losses = [entry["loss"] for entry in facts["history"]]
        if is_stuck(losses, global_batch, steps, warmup_epochs=rising_epochs(plan)):
            raise HopelessTraining(
                f"training learns nothing: the loss has stayed at ln(candidates) = {figures['loss']:.3f} up to epoch "
                f"{state.epochs_done}; use weaker augmentations or another train.learning_rate"
            )
        content = state_to_bytes(state, facts) if rank == 0 else None
        after_epoch(state.epochs_done, content, figures)
    return state_to_bytes(state, facts)


def is_stuck(losses: list[float], global_batch_size: int, steps_per_epoch: int, *, warmup_epochs: float = 0.0) -> bool:
    """Whether the loss of the last epochs lies at ln(candidates): positives are not told from negatives.

    It looks at the last five epochs, or at as many as hold 100 steps, since every training starts at that level.
    Epochs in which the learning rate still rises do not count.
    """
    losses = losses[math.ceil(warmup_epochs) :]
    patience = max(STUCK_EPOCHS, -(-STUCK_STEPS // steps_per_epoch))
    level = STUCK_SHARE * math.log(num_candidates(global_batch_size))
    return len(losses) >= patience and all(not loss < level for loss in losses[-patience:])
