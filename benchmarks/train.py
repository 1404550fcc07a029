"""Windows per second of contrastive training through Ray Train and in a bare PyTorch loop, and the cost of augmenting.

    python benchmarks/train.py
    python benchmarks/train.py --pairs 7 --epochs 6 --events 1024 --workers 2

Both sides train the default encoder with the same processes, threads, data and augmentations; pairs are interleaved.
The rate is that of the epochs after the first, with checkpoints and reports on Ray's side. Start-up is reported
separately.
"""

import argparse
import gc
import json
import os
import platform
import socket
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
import torch.distributed.nn  # before a group is open: the defaults of its functions would keep the group
import torch.multiprocessing

from pipelines.config.augmentation import AugmentationSettings
from pipelines.config.train import TrainSettings
from pipelines.contrastive.augmentations import build_augmenter
from pipelines.contrastive.step import TrainPlan, new_state, train_step
from pipelines.encoders import NetworkConfig
from pipelines.encoders.preparation import prepare
from pipelines.runtime.ray_session import ray_session
from pipelines.train.loop import Training, train_rank
from pipelines.train.stage_checkpoints import write_checkpoint
from pipelines.workspace.storage import open_store

RATE_HZ, NUM_SAMPLES, LEAD_SAMPLES = 100.0, 3000, 500


def make_windows(count: int) -> torch.Tensor:
    """Return prepared windows of noise with a burst, 30 s at 100 Hz."""
    random = np.random.default_rng(0)
    time_s = (np.arange(NUM_SAMPLES) - LEAD_SAMPLES) / RATE_HZ
    burst = np.where(time_s >= 0, np.exp(-time_s) * np.sin(2 * np.pi * 8 * time_s), 0)
    windows = random.standard_normal((count, 3, NUM_SAMPLES), dtype=np.float32)
    windows += (10 * random.standard_normal((count, 3, 1)) * burst).astype(np.float32)
    return torch.cat([prepare(part, LEAD_SAMPLES) for part in torch.split(torch.from_numpy(windows), 128)])


def training(epochs: int, batch_size: int) -> Training:
    """Return the default training with so many epochs."""
    settings = TrainSettings()
    plan = TrainPlan(
        epochs=epochs,
        batch_size=batch_size,
        temperature=settings.temperature,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        warmup_epochs=settings.warmup_epochs,
        seed=0,
    )
    network = NetworkConfig(
        kind=settings.encoder,
        num_samples=NUM_SAMPLES,
        rate_hz=RATE_HZ,
        lead_samples=LEAD_SAMPLES,
        width=settings.width,
        blocks=settings.blocks,
        dim=settings.dim,
        num_bands=settings.num_bands,
        num_frames=settings.num_frames,
    )
    return Training(
        network=network, plan=plan, preset=settings.augmentation, augmentations=AugmentationSettings().model_dump()
    )


def train_share(task: dict[str, Any], rank: int, world: int, after_epoch: Any) -> list[float]:
    """Train one rank's share and return the times at which its epochs ended."""
    torch.set_num_threads(task["threads"])
    windows = torch.from_numpy(np.load(task["windows"], mmap_mode="r")[rank::world].copy())
    ends: list[float] = []

    def done(epoch: int, content: bytes | None, figures: dict[str, float]) -> None:
        after_epoch(epoch, content, figures)
        ends.append(time.time())

    train_rank(
        training(task["epochs"], task["batch_size"]),
        windows,
        device=torch.device("cpu"),
        rank=rank,
        world=world,
        checkpoint=None,
        after_epoch=done,
    )
    if rank == 0:
        Path(task["ends"]).write_text(json.dumps(ends))
    return ends


def bare_rank(rank: int, task: dict[str, Any], world: int, port: int) -> None:
    """Be one process of the bare loop."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
    train_share(task, rank, world, lambda *_: None)
    gc.collect()  # a model that still holds the group keeps its threads, and they can abort an ending interpreter
    torch.distributed.destroy_process_group()


def ray_rank(task: dict[str, Any]) -> None:
    """Be one Ray Train worker: as the stage's, with its checkpoint and its report each epoch."""
    import ray.train

    context = ray.train.get_context()
    store = open_store(task["folder"])

    def after_epoch(epoch: int, content: bytes | None, figures: dict[str, float]) -> None:
        if content is not None:
            write_checkpoint(store, "checkpoints", epoch, content)
        ray.train.report({"epoch": epoch, **figures})

    train_share(task, context.get_world_rank(), context.get_world_size(), after_epoch)


def measure(task: dict[str, Any], world: int, start: Any) -> tuple[float, float]:
    """Return windows a second after the first epoch, and the seconds until the first epoch ended."""
    Path(task["ends"]).unlink(missing_ok=True)
    began = time.time()
    start(task, world)
    ends = json.loads(Path(task["ends"]).read_text())
    return (len(ends) - 1) * task["events"] / (ends[-1] - ends[0]), ends[0] - began


def run_bare(task: dict[str, Any], world: int) -> None:
    """Train by torch.multiprocessing and gloo alone."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(bare_rank, args=(task, world, port), nprocs=world)


def run_ray(task: dict[str, Any], world: int) -> None:
    """Train by Ray Train."""
    import ray.train
    import ray.train.torch

    with tempfile.TemporaryDirectory() as state:
        ray.train.torch.TorchTrainer(
            ray_rank,
            train_loop_config=task,
            scaling_config=ray.train.ScalingConfig(num_workers=world),
            run_config=ray.train.RunConfig(name=f"bench-{time.time_ns()}", storage_path=state),
        ).fit()


def augmentation_share(windows: torch.Tensor, batch_size: int, threads: int) -> dict[str, float]:
    """Return the share of a step's time that making both views takes, medians over 7 steps."""
    torch.set_num_threads(threads)
    job = training(1, batch_size)
    augmenter = build_augmenter(job.preset, job.augmentations, LEAD_SAMPLES)
    state = new_state(job.network, job.plan, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    batch = windows[:batch_size]
    views, steps = [], []
    for _ in range(9):
        mark = time.perf_counter()
        first, second = augmenter(batch, generator), augmenter(batch, generator)
        middle = time.perf_counter()
        train_step(state.learner, state.optimizer, first, second, job.plan)
        views.append(middle - mark)
        steps.append(time.perf_counter() - middle)
    both, step = statistics.median(views[2:]), statistics.median(steps[2:])
    return {"augment_seconds": both, "step_seconds": step, "augment_share": both / (both + step)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--events", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    windows = make_windows(arguments.events)
    result: dict[str, Any] = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs",
        "torch": torch.__version__,
        "command": vars(arguments),
        "augmentation": augmentation_share(windows, min(arguments.batch_size, arguments.events), arguments.threads),
    }
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/windows.npy", windows.numpy())
        task = {
            "windows": f"{folder}/windows.npy",
            "ends": f"{folder}/ends.json",
            "folder": folder,
            "events": arguments.events,
            "epochs": arguments.epochs,
            "batch_size": arguments.batch_size,
            "threads": arguments.threads,
        }
        pairs = []
        with ray_session(num_cpus=arguments.workers):
            for number in range(arguments.pairs):
                sides = [("ray", run_ray), ("bare", run_bare)]
                pair = {}
                for name, start in sides if number % 2 else sides[::-1]:
                    pair[name], pair[f"{name}_startup_seconds"] = measure(task, arguments.workers, start)
                pairs.append(pair)
                print(json.dumps(pair), flush=True)
    ratios = sorted(pair["ray"] / pair["bare"] for pair in pairs)
    result |= {
        "ratio_median": statistics.median(ratios),
        "ratio_interval": [ratios[0], ratios[-1]],
        "ray_windows_per_second": statistics.median(pair["ray"] for pair in pairs),
        "bare_windows_per_second": statistics.median(pair["bare"] for pair in pairs),
        "ray_startup_seconds": statistics.median(pair["ray_startup_seconds"] for pair in pairs),
        "bare_startup_seconds": statistics.median(pair["bare_startup_seconds"] for pair in pairs),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
