"""How well the default recipe separates classes that it never sees, compared with the baselines, over several seeds.

    python benchmarks/recipe.py --folder runs/recipe
    python benchmarks/recipe.py --folder runs/recipe --train "frequency:--train.augmentation frequency"

A synthetic archive of four classes is made and its events detected once. Each training then has a workspace of its own
with these events: `firnline train` uses no labels, `firnline label` clusters with k = number of classes and scores
against the truth, by the protocol of docs/labelling.md (test half, split by event). An encoder without random
numbers runs once.
"""

import argparse
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

COLUMNS = {
    "Hungarian": "test.hungarian_accuracy",
    "NMI": "test.nmi",
    "ARI": "test.ari",
    "kNN": "test.knn_accuracy",
    "linear": "test.linear_accuracy",
}
BASELINES = ("features", "pca", "autoencoder", "untrained")
DETECTION = ("--detection.band_hz", "[2, 30]", "--detection.on", "4", "--detection.trigger_components", "ZNE")


def job(name: str, *arguments: str) -> float:
    """Run a job as its user does, its output in the log beside the workspaces; return its seconds."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", f"jobs.{name}", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"jobs.{name} {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - began


def events_once(folder: Path, days: int, archive_seed: int) -> tuple[Path, Path]:
    """Return the archive and a workspace that holds its events and nothing else."""
    archive, events = folder / "archive", folder / "events"
    settings = ("--synthesize.num_days", str(days), "--synthesize.seed", str(archive_seed))
    job("synthesize", str(archive), *settings)
    job("detect", str(archive), str(events), *DETECTION)
    return archive, events


def trained(folder: Path, name: str, flags: list[str], seed: int, k: int) -> dict[str, float]:
    """Train and label in a workspace of its own; return the scores and the seconds of the training."""
    workspace = folder / f"{name}-{seed}"
    if not (workspace / "clustering" / "summary.json").exists():
        shutil.rmtree(workspace, ignore_errors=True)
        shutil.copytree(folder / "events", workspace, ignore=shutil.ignore_patterns("mlflow.db", "mlartifacts"))
        seconds = job("train", str(workspace), "--train.seed", str(seed), *flags)
        (workspace / "seconds").write_text(str(seconds))
    return {**labelled(folder, workspace, seed, k), "seconds": float((workspace / "seconds").read_text())}


def labelled(folder: Path, workspace: Path, seed: int, k: int) -> dict[str, float]:
    """Label a workspace with a trained encoder, unless that is done; return its scores against the truth."""
    summary = workspace / "clustering" / "summary.json"
    if not summary.exists():
        truth = ("--labels.path", str(folder / "archive" / "truth"))
        job("label", str(workspace), "--kmeans.k", str(k), "--kmeans.seed", str(seed), *truth)
    scores: dict[str, float] = json.loads(summary.read_text())["scores"]
    return scores


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/recipe"))
    parser.add_argument("--days", type=int, default=4)
    parser.add_argument("--archive-seed", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--train", action="append", default=[], help="NAME:FLAGS of one more recipe")
    parser.add_argument("--only", nargs="*", help="names of the rows wanted")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    events_once(arguments.folder, arguments.days, arguments.archive_seed)
    rows: dict[str, tuple[list[str], int]] = {"default": ([], arguments.seeds)}
    for text in arguments.train:
        name, _, flags = text.partition(":")
        rows[name] = (shlex.split(flags), arguments.seeds)
    for name in BASELINES:
        rows[name] = (["--train.encoder", name], arguments.seeds if name in ("autoencoder", "untrained") else 1)
    print(f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}; {vars(arguments)}\n")
    print("| recipe | seeds | " + " | ".join(COLUMNS) + " | training, s |")
    print("|---" * (len(COLUMNS) + 3) + "|")
    for name, (flags, seeds) in rows.items():
        if arguments.only and name not in arguments.only:
            continue
        found = [trained(arguments.folder, name, flags, seed, arguments.k) for seed in range(seeds)]
        cells = []
        for key in COLUMNS.values():
            values = [one[key] for one in found]
            spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3f}{spread}")
        seconds = statistics.median(one["seconds"] for one in found)
        print(f"| {name} | {seeds} | " + " | ".join(cells) + f" | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
