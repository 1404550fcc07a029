"""A workspace that gets a day every day: what each day costs, what stays, and what a kill changes.

    python benchmarks/thirty_days.py --folder runs/thirty-days
    python benchmarks/thirty_days.py --folder runs/ten-days --days 10 --kills 4 7

The days of a synthetic archive arrive one at a time, and `firnline run` is called after each. On the third, two
clusters are named and ten events of the first day corrected. On the days of `--kills` the run is killed (SIGKILL to all
its processes) at a random moment and called again. A second workspace gets the same days undisturbed. At the end, rows
of the first day must be the same bytes as on the third, no event may have changed cluster or name since then, and both
workspaces must hold the same files. The exit code is 1 where that does not hold.
"""

import argparse
import hashlib
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet

from pipelines.handlabels.cluster_names import write_cluster_names
from pipelines.workspace.artifacts import FittedClustering
from pipelines.workspace.storage import open_store

YEAR = 2021
SETTINGS = (
    *("--detection.band_hz", "[2, 30]", "--detection.trigger_components", "ZNE"),
    *("--train.epochs", "5", "--train.batch_size", "64", "--train.width", "8", "--kmeans.k", "4"),
)
"""A small training: it is done once, and what is measured are the days after it."""
CORRECTED_ON = 3
NUM_CORRECTED = 10


def command(job: str, *arguments: str) -> list[str]:
    """Return the command line of a job."""
    return [sys.executable, "-m", f"jobs.{job}", *arguments]


def add_day(whole: Path, archive: Path, day: int) -> None:
    """Let the files of a day, counted from 1, arrive."""
    for path in whole.glob(f"*/*/*/*/*.{YEAR}.{day:03d}"):
        target = archive / path.relative_to(whole)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)


def run_day(words: list[str], log: Path, kill_after: float | None) -> float:
    """Run a day to its end and return its seconds; with `kill_after`, first kill it so many seconds after its start."""
    with log.open("a") as out:
        if kill_after is not None:
            begun = subprocess.Popen(words, stdout=out, stderr=out, start_new_session=True)
            try:
                begun.wait(kill_after)
            except subprocess.TimeoutExpired:
                os.killpg(begun.pid, signal.SIGKILL)
                begun.wait()
        began = time.perf_counter()
        done = subprocess.run(words, stdout=out, stderr=out)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}; see {log}")
    return time.perf_counter() - began


def files_of(workspace: Path, day: int | None = None) -> dict[str, str]:
    """Return the SHA-256 of each table's files, of one day or of all."""
    pattern = "*.parquet" if day is None else f"*{YEAR}-01-{day:02d}*.parquet"
    return {
        str(path.relative_to(workspace)): hashlib.sha256(path.read_bytes()).hexdigest()
        for table in ("events", "embeddings", "labels")
        for path in sorted((workspace / table).rglob(pattern))
    }


def rows_of(workspace: Path) -> dict[str, tuple[int, str | None, str | None]]:
    """Return each event's cluster, label and where the label is from."""
    columns = ["event_id", "cluster", "label", "label_source"]
    found: dict[str, tuple[int, str | None, str | None]] = {}
    for path in sorted((workspace / "labels").rglob("*.parquet")):
        for row in pyarrow.parquet.read_table(path, columns=columns).to_pylist():
            found[row["event_id"]] = (row["cluster"], row["label"], row["label_source"])
    return found


def correct(folder: Path, workspace: Path) -> list[str]:
    """Write names for two clusters and labels for ten events; return the flags that use them."""
    fitted = FittedClustering.read(open_store(str(workspace)))
    assert fitted is not None
    names = folder / "names.yaml"
    names.write_text(
        write_cluster_names({fitted.numbers[0]: "icequake", fitted.numbers[1]: "tremor"}, fitted.clustering)
    )
    labels = folder / "corrected.csv"
    first = sorted(rows_of(workspace))[:NUM_CORRECTED]
    labels.write_text("event_id,label\n" + "".join(f"{event_id},calving\n" for event_id in first))
    return ["--labels.names", str(names), "--labels.path", str(labels)]


def main() -> int:
    """Grow both workspaces, print the cost of each day, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/thirty-days"))
    parser.add_argument("--days", type=int, default=30, help="at most 31")
    parser.add_argument("--kills", type=int, nargs="*", default=[2, 4, 7, 11, 16, 22, 28], help="days on which to kill")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    arguments = parser.parse_args()
    folder: Path = arguments.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    whole = folder / "whole"
    made = ("--synthesize.num_stations", "1", "--synthesize.num_days", str(arguments.days))
    start = ("--synthesize.start", f"{YEAR}-01-01")
    subprocess.run(command("synthesize", str(whole), *made, *start), check=True, stdout=subprocess.DEVNULL)
    print(f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}; {vars(arguments)}\n")
    print("| day | events | seconds | killed after | the same day undisturbed, s |\n|---|---|---|---|---|")
    moments = random.Random(arguments.seed)
    flags: dict[str, list[str]] = {"killed": [], "undisturbed": []}
    third: dict[str, str] = {}
    named: dict[str, tuple[int, str | None, str | None]] = {}
    moved: list[str] = []
    usual = 60.0
    for day in range(1, arguments.days + 1):
        add_day(whole, folder / "archive", day)
        took: dict[str, float] = {}
        killed_after = moments.uniform(0.1, 0.9) * usual if day in arguments.kills else None
        for name in ("undisturbed", "killed"):
            workspace = folder / name
            if day == CORRECTED_ON:
                flags[name] = correct(folder, workspace)
            again = ["--replace"] if day == CORRECTED_ON else []
            words = command("run", str(folder / "archive"), str(workspace), *SETTINGS, *flags[name], *again)
            took[name] = run_day(words, folder / f"{name}.log", killed_after if name == "killed" else None)
        usual = took["undisturbed"]
        rows = rows_of(folder / "killed")
        if day == CORRECTED_ON:
            third = files_of(folder / "killed", 1)
        moved += [f"day {day}: {event_id}" for event_id, row in named.items() if rows.get(event_id) != row]
        if day >= CORRECTED_ON:
            named = rows
        cells = (f"{took['killed']:.0f}", "" if killed_after is None else f"{killed_after:.0f}")
        print(f"| {day} | {len(rows)} | " + " | ".join(cells) + f" | {took['undisturbed']:.0f} |", flush=True)
    sources = [row[2] for row in named.values()]
    found = {
        "files of day 1 on day 3": len(third),
        "of these changed at the end": sum(
            files_of(folder / "killed", 1).get(path) != is_ for path, is_ in third.items()
        ),
        "rows changed since day 3": len(moved),
        "events corrected by hand": sources.count("hand"),
        "events named by their cluster": sources.count("cluster"),
        "files that differ between both workspaces": len(
            set(files_of(folder / "killed").items()) ^ set(files_of(folder / "undisturbed").items())
        ),
    }
    print("\n" + json.dumps(found, indent=2))
    wrong = ("of these changed at the end", "rows changed since day 3", "files that differ between both workspaces")
    return int(any(found[name] for name in wrong) or found["events corrected by hand"] != NUM_CORRECTED or not third)


if __name__ == "__main__":
    sys.exit(main())
