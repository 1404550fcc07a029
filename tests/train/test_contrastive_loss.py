"""The loss against an independent implementation, and the same on many ranks as in one process."""

import gc
import math
import os
import socket
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.distributed.nn  # later, with a process group open, its functions' defaults would keep the group
import torch.multiprocessing as multiprocessing
from torch import Tensor

from pipelines.contrastive.augmentations import augmentation_seed
from pipelines.contrastive.loss import nt_xent, num_candidates
from pipelines.contrastive.step import Learner, TrainPlan
from pipelines.encoders import NETWORKS, NetworkConfig
from pipelines.train.loop import is_stuck

PLAN = TrainPlan(
    epochs=1, batch_size=8, temperature=0.3, learning_rate=1e-3, weight_decay=0.0, warmup_epochs=0.0, seed=0
)


def numpy_nt_xent(first: np.ndarray, second: np.ndarray, temperature: float) -> float:
    """Equation 1 of Chen et al. (2020), term by term."""
    views = np.concatenate([first, second])
    views = views / np.linalg.norm(views, axis=1, keepdims=True)
    count = len(first)
    total = 0.0
    for anchor in range(2 * count):
        positive = (anchor + count) % (2 * count)
        numerator = math.exp(views[anchor] @ views[positive] / temperature)
        others = sum(math.exp(views[anchor] @ views[k] / temperature) for k in range(2 * count) if k != anchor)
        total -= math.log(numerator / others)
    return total / (2 * count)


@pytest.mark.parametrize("temperature", [0.07, 0.5, 2.0])
def test_the_loss_is_that_of_the_paper(temperature: float) -> None:
    random = np.random.default_rng(3)
    first, second = random.standard_normal((2, 7, 5))
    ours = nt_xent(torch.from_numpy(first), torch.from_numpy(second), temperature)
    assert float(ours) == pytest.approx(numpy_nt_xent(first, second, temperature), rel=1e-10)


def test_a_tiny_temperature_and_half_precision_do_not_overflow() -> None:
    first = torch.randn((16, 8), generator=torch.Generator().manual_seed(0)).to(torch.bfloat16).requires_grad_()
    loss = nt_xent(first, first.detach() * 300, temperature=1e-3)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert torch.isfinite(first.grad).all()


def test_identical_projections_give_the_logarithm_of_the_candidates() -> None:
    same = torch.ones(8, 4)
    assert float(nt_xent(same, same, 0.1)) == pytest.approx(math.log(num_candidates(8)), rel=1e-6)


def test_a_loss_stuck_at_the_logarithm_of_the_candidates_is_noticed() -> None:
    level = math.log(num_candidates(64))
    assert is_stuck([level] * 5, 64, 30)
    assert is_stuck([level - 1e-4, level, level + 0.1, level, math.nan], 64, 30)
    assert not is_stuck([level] * 4, 64, 30)
    assert not is_stuck([level] * 4 + [0.9 * level], 64, 30)


def test_a_training_of_few_steps_has_not_begun_and_is_not_stuck() -> None:
    level = math.log(num_candidates(64))
    assert not is_stuck([level] * 49, 64, 2)
    assert is_stuck([level] * 50, 64, 2)


def test_epochs_of_the_warm_up_are_no_sign_of_a_stuck_loss() -> None:
    level = math.log(num_candidates(64))
    assert not is_stuck([level] * 8, 64, 30, warmup_epochs=3.5)
    assert is_stuck([level] * 9, 64, 30, warmup_epochs=3.5)


def test_seeds_of_augmentations_differ_by_run_epoch_and_rank() -> None:
    seeds = {augmentation_seed(run, epoch, rank) for run in range(4) for epoch in range(5) for rank in range(6)}
    assert len(seeds) == 4 * 5 * 6


def _views() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    first, second = torch.randn((2, 8, 3, 256), generator=generator, dtype=torch.float64)
    first[1, 0], second[2, 2, 30:60] = math.nan, math.nan
    return first, second


def _learner(kind: str) -> Learner:
    torch.manual_seed(11)
    config = NetworkConfig(kind=kind, num_samples=256, rate_hz=50.0, lead_samples=64, width=8, dim=6, num_frames=16)
    return Learner(config, PLAN).double()


def _loss_and_gradients(learner: torch.nn.Module, first: Tensor, second: Tensor) -> tuple[float, list[Tensor]]:
    loss = nt_xent(*learner(first, second), PLAN.temperature)
    loss.backward()
    return float(loss.detach()), [parameter.grad for parameter in learner.parameters() if parameter.grad is not None]


def _rank(rank: int, world: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    share = 8 // world
    for kind in NETWORKS:
        model = torch.nn.parallel.DistributedDataParallel(_learner(kind), forward_sync_buffers=False)
        first, second = (view[rank * share : (rank + 1) * share] for view in _views())
        loss, gradients = _loss_and_gradients(model, first, second)
        losses = torch.tensor([loss], dtype=torch.float64)
        dist.all_reduce(losses)
        if rank == 0:
            torch.save({"loss": float(losses) / world, "gradients": gradients}, Path(folder) / f"{kind}.pt")
    # Gloo's threads end with the last reference to the group: one that outlives the interpreter can abort it.
    del model, loss, gradients, losses
    gc.collect()
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_give_the_loss_and_gradients_of_one_process(world: int) -> None:
    with socket.socket() as probe, tempfile.TemporaryDirectory() as folder:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        multiprocessing.spawn(_rank, args=(world, port, folder), nprocs=world)
        for kind in NETWORKS:
            ranks = torch.load(Path(folder) / f"{kind}.pt", weights_only=True)
            loss, gradients = _loss_and_gradients(_learner(kind), *_views())
            assert ranks["loss"] == pytest.approx(loss, rel=1e-6)
            assert len(gradients) == len(ranks["gradients"])
            for ours, theirs in zip(gradients, ranks["gradients"], strict=True):
                torch.testing.assert_close(theirs, ours, rtol=1e-6, atol=1e-9)
