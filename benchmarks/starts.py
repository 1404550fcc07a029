"""Does a training start? The loss of its first epochs, over seeds, processors' code paths, threads and precisions.

    python benchmarks/starts.py runs/demo --config configs/demo.yaml
    python benchmarks/starts.py runs/rutford --config configs/rutford.yaml --paths default avx2 --seeds 3

A training whose loss stays at ln(candidates) learns nothing, and the alarm of `firnline train` ends it. Whether it
leaves that level should hang neither on the seed nor on how the processor rounds. Each training has the settings that
`firnline train WORKSPACE --config FILE` would have, up to the given epoch, and runs in a process of its own.
ATEN_CPU_CAPABILITY chooses the code path of torch, ONEDNN_MAX_CPU_ISA that of its convolutions. The table has the
share of ln(candidates) that the loss is after the last epoch, mean and largest over the seeds (the alarm is at .999),
and how many seeds have left it by .01 at least.
"""

import argparse
import contextlib
import json
import math
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from pipelines.config import read_yaml, resolve
from pipelines.contrastive.loss import num_candidates
from pipelines.contrastive.step import local_batch_size
from pipelines.train.loop import HopelessTraining, Training, train_rank
from pipelines.train.stage_setup import network_config, prepare_windows, train_plan
from pipelines.workspace.event_sample import choose_events, read_sample
from pipelines.workspace.workspace import open_workspace

PATHS = {
    "default": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "avx512": {"ATEN_CPU_CAPABILITY": "avx512"},
    "avx512, 2 threads": {"ATEN_CPU_CAPABILITY": "avx512", "FIRNLINE_STARTS_THREADS": "2"},
    "avx512, bf16": {"ATEN_CPU_CAPABILITY": "avx512", "FIRNLINE_STARTS_BF16": "1"},
}
FAR = 0.99
"""A loss below this share of ln(candidates) has left that level."""


class Enough(Exception):
    """The epochs asked for are done."""


def start(workspace: str, settings: dict[str, Any], epochs: int) -> tuple[float, list[float]]:
    """Train the first epochs in this process; return ln(candidates) and the losses, up to the alarm."""
    torch.set_num_threads(int(os.environ.get("FIRNLINE_STARTS_THREADS", "1")))
    opened, config = open_workspace(workspace, create=False), resolve(settings)
    sample = choose_events(opened.store, max_events=config.train.max_events, seed=config.train.seed)
    windows = prepare_windows(read_sample(opened.store, sample, range(len(sample))), sample.lead_samples)
    training = Training(
        network=network_config(config, sample),
        plan=train_plan(config),
        preset=config.train.augmentation,
        augmentations=config.augmentation.model_dump(),
    )
    losses: list[float] = []

    def after_epoch(done: int, content: bytes | None, figures: dict[str, float]) -> None:
        losses.append(figures["loss"])
        if done == epochs:
            raise Enough

    with contextlib.suppress(Enough, HopelessTraining):
        train_rank(
            training, windows, device=torch.device("cpu"), rank=0, world=1, checkpoint=None, after_epoch=after_epoch
        )
    return math.log(num_candidates(local_batch_size(training.plan, [len(windows)]))), losses


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", help="a workspace with events")
    parser.add_argument("--config", type=Path, help="a configuration file; without it, the defaults")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--paths", nargs="*", choices=PATHS, default=["default", "avx2", "avx512"])
    parser.add_argument("--set", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"), help="of train.*")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    settings = dict(read_yaml(arguments.config.read_bytes(), name=str(arguments.config))) if arguments.config else {}
    train = {**settings.get("train", {}), **{key: json.loads(value) for key, value in arguments.set}}
    if arguments.one is not None:
        if "FIRNLINE_STARTS_BF16" in os.environ:
            train["bf16"] = True
        train |= {"seed": arguments.one}
        print(json.dumps(start(arguments.workspace, {**settings, "train": train}, arguments.epochs)))
        return
    print(f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}; {vars(arguments)}\n")
    print("| code path | seeds | loss / ln(candidates): mean | largest | left the level |\n" + "|---" * 5 + "|")
    for name in arguments.paths:
        shares = []
        for seed in range(arguments.seeds):
            command = [sys.executable, *sys.argv, "--one", str(seed)]
            done = subprocess.run(command, env={**os.environ, **PATHS[name]}, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(done.stderr)
            level, losses = json.loads(done.stdout.splitlines()[-1])
            print(f"{name} {seed} {level:.3f}", *(f"{loss:.3f}" for loss in losses), file=sys.stderr, flush=True)
            shares.append(losses[-1] / level)
        left = f"{sum(share < FAR for share in shares)} of {len(shares)}"
        cells = (f"{sum(shares) / len(shares):.3f}", f"{max(shares):.3f}", left)
        print(f"| {name} | {len(shares)} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
