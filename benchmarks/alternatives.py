"""A loss, an optimiser and a choice of positives that the recipe does not use, on the windows of benchmarks/recipe.py.

    python benchmarks/alternatives.py --folder runs/recipe --only lars --seeds 3

decoupled The decoupled contrastive loss (Yeh et al., 2022): the positive is not part of the denominator.
lars      LARS (You et al., 2017) as in Chen et al. (2020): momentum 0.9, trust 0.001, weight decay 1e-6, learning rate
          0.075 sqrt(batch), norms and biases excluded; instead of AdamW.
stations  A window's positive is, for every other window that has one, the window of another station whose trigger
          belongs to the same event (within 60 s), augmented; else a second view of the window itself.

Everything else is `firnline train` with its defaults, then `firnline label` as in recipe.py.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recipe import COLUMNS, events_once, labelled
from torch import Tensor

import jobs.train
from pipelines.config import resolve
from pipelines.contrastive import step
from pipelines.metrics.association import associate
from pipelines.train import loop
from pipelines.workspace.event_sample import choose_events
from pipelines.workspace.storage import open_store

ALTERNATIVES = ("decoupled", "lars", "stations")
EVENT_SECONDS = 60.0
"""The farthest apart that two stations' triggers of one event lie."""


def decoupled_loss(first_BD: Tensor, second_BD: Tensor, temperature: float) -> Tensor:
    """Return the decoupled contrastive loss of two views, in one process."""
    views = torch.nn.functional.normalize(torch.cat([first_BD, second_BD]).float(), dim=1)
    rows = torch.arange(len(views))
    others = (rows + len(first_BD)) % len(views)
    similarity = views @ views.T / temperature
    positive = similarity[rows, others]
    outside = similarity.new_tensor(-torch.inf)
    negatives = similarity.index_put((rows, rows), outside).index_put((rows, others), outside)
    return (torch.logsumexp(negatives, dim=1) - positive).mean()


class Lars(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling with momentum; groups without weight decay (norms, biases) are not scaled."""

    def __init__(self, params: Any, lr: float, weight_decay: float, momentum: float = 0.9, trust: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Do one step."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                change = parameter.grad.clone()
                if group["weight_decay"]:
                    change += group["weight_decay"] * parameter
                    sizes = float(parameter.norm()), float(change.norm())
                    if min(sizes) > 0:
                        change *= group["trust"] * sizes[0] / sizes[1]
                state = self.state[parameter]
                velocity = state.setdefault("velocity", torch.zeros_like(parameter))
                velocity.mul_(group["momentum"]).add_(change, alpha=group["lr"])
                parameter -= velocity


class AcrossStations:
    """An augmenter whose second view of a step is, every other time, one of the same event at another station."""

    def __init__(
        self, augmenter: Any, windows_NCS: Tensor, order: Tensor, batch: int, partners: list[list[int]]
    ) -> None:
        self.augmenter, self.windows, self.order, self.batch, self.partners = (
            augmenter,
            windows_NCS,
            order,
            batch,
            partners,
        )
        self.calls = 0

    def __call__(self, windows_NCS: Tensor, generator: torch.Generator) -> Tensor:
        """Return a view; after the last step of the epoch as the augmenter does."""
        number, second = divmod(self.calls, 2)
        self.calls += 1
        rows = self.order[number * self.batch : (number + 1) * self.batch].tolist()
        if second and len(rows) == self.batch:
            draws = torch.rand(2, len(rows), generator=generator).tolist()
            chosen = [
                self.partners[row][int(which * len(self.partners[row]))] if self.partners[row] and swap < 0.5 else row
                for row, swap, which in zip(rows, *draws, strict=True)
            ]
            windows_NCS = self.windows[chosen]
        view: Tensor = self.augmenter(windows_NCS, generator)
        return view


def partners_of(workspace: Path, seed: int) -> list[list[int]]:
    """Return for each training window those of the same event at other stations."""
    sample = choose_events(open_store(str(workspace)), max_events=resolve({}).train.max_events, seed=seed)
    events = associate(sample.onsets, EVENT_SECONDS)
    members: dict[int, list[int]] = {}
    for row, event in enumerate(events.tolist()):
        members.setdefault(event, []).append(row)
    return [
        [other for other in members[event] if sample.stations[other] != sample.stations[row]]
        for row, event in enumerate(events.tolist())
    ]


def train(name: str, workspace: Path, seed: int) -> int:
    """Run `firnline train` in this process with the one thing changed."""
    flags = ["--train.seed", str(seed), "--train.num_threads", "1"]
    if name == "decoupled":
        step.nt_xent = decoupled_loss
    elif name == "lars":
        torch.optim.AdamW = Lars  # type: ignore[misc, assignment]
        flags = ["--train.learning_rate", "1.2", "--train.weight_decay", "1e-6", *flags]
    else:
        partners = partners_of(workspace, seed)
        print(f"{np.mean([bool(found) for found in partners]):.0%} of the windows have a partner", flush=True)

        def epoch(state: Any, windows: Tensor, augmenter: Any, plan: step.TrainPlan, **rest: Any) -> dict[str, float]:
            order = step.epoch_order(len(windows), plan.seed, state.epochs_done, 0)
            batch = step.local_batch_size(plan, [len(windows)])
            pairs: Any = AcrossStations(augmenter, windows, order, batch, partners)
            return step.run_epoch(state, windows, pairs, plan, **rest)

        loop.run_epoch = epoch
    return jobs.train.main([str(workspace), *flags])


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/recipe"))
    parser.add_argument("--only", nargs="*", choices=ALTERNATIVES, default=ALTERNATIVES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train", nargs=3, metavar=("NAME", "WORKSPACE", "SEED"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        name, workspace, seed = arguments.train
        sys.exit(train(name, Path(workspace), int(seed)))
    events_once(arguments.folder, 4, 100)
    print("| recipe | seeds | " + " | ".join(COLUMNS) + " |\n" + "|---" * (len(COLUMNS) + 2) + "|")
    for name in arguments.only:
        found = []
        for seed in range(arguments.seeds):
            workspace = arguments.folder / f"{name}-{seed}"
            if not (workspace / "clustering" / "summary.json").exists():
                shutil.rmtree(workspace, ignore_errors=True)
                ignored = shutil.ignore_patterns("mlflow.db", "mlartifacts")
                shutil.copytree(arguments.folder / "events", workspace, ignore=ignored)
                command = [sys.executable, __file__, "--folder", str(arguments.folder), "--train", name]
                subprocess.run([*command, str(workspace), str(seed)], check=True, stdout=sys.stderr)
            found.append(labelled(arguments.folder, workspace, seed, 4))
        cells = []
        for key in COLUMNS.values():
            values = [one[key] for one in found]
            cells.append(f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
        print(f"| {name} | {len(found)} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
