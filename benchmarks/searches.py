"""What a search of `firnline tune` is worth: the full training of its winner beside that of the default settings.

    python benchmarks/searches.py --folder runs/searches runs/real=truth.csv:3 runs/four=runs/four-archive/truth:4

Each WORKSPACE[@FILE]=TRUTH:K holds events, as for `benchmarks/settings.py`. For each set and seed `firnline tune` runs
two searches of the default space, each in a workspace of its own with the same events: `blind`, which tries neither the
default settings nor any that are known to be good, and `default first`, whose first trial is the default. The winners
and the default are then trained in full, clustered as `firnline label` does (means of five clusterings) and scored on
the test half of the truth: Hungarian accuracy, or the F1 score of the rarest class where K is not the number of
classes. ASHA's share are the epochs of the first search in units of those of all its trials run to their end.

What is done lies in FOLDER, and the same command goes on after an interrupt. The seconds of a search are those of the
whole command; a search that was interrupted has none.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recipe import job
from settings import CLUSTERINGS, EventSet, Named, agreement, clustered, keep, read_set, sample_of, train, truth_of

from pipelines.config import read_yaml, resolve
from pipelines.config.safe_yaml import to_yaml
from pipelines.tune.space import searched_sections, space_of
from pipelines.tune.stage_records import Records
from pipelines.workspace.ledger import fingerprint
from pipelines.workspace.storage import open_store

Search = dict[str, Any]
SEARCHES = ("blind", "default first")


def settings_of(name: str, events: EventSet, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the configuration of a search."""
    given = dict(read_yaml(arguments.config.read_bytes(), name=str(arguments.config))) if arguments.config else {}
    tune = given.get("tune", {}) | {
        "num_trials": arguments.trials,
        "epochs": arguments.search_epochs,
        "max_events": arguments.max_events,
        "num_workers": arguments.at_once,
        "objective": arguments.objective,
        "as_configured_first": name == "default first",
        "start": [],
        "seed": seed,
    }
    labels = {"labels": {"path": str(Path(events.truth).resolve())}} if arguments.objective == "validation" else {}
    return {**events.configured, "tune": tune, "kmeans": {"k": events.k}, **labels}


def searched(folder: Path, name: str, events: EventSet, seed: int, arguments: argparse.Namespace) -> Search:
    """Search in a workspace that holds a set's events, unless that is done, and return what came of it."""
    settings = settings_of(name, events, seed, arguments)
    place = folder / f"{name.replace(' ', '-')}-{seed}-{fingerprint(settings)[:8]}"
    kept = place.with_suffix(".json")
    if kept.exists():
        return dict(json.loads(kept.read_text()))
    workspace, store = place / "workspace", open_store(str(place / "workspace"))
    resumed = (workspace / "tune").exists()
    if not resumed:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(Path(events.workspace) / "events", workspace / "events", copy_function=_link)
        shutil.copy2(Path(events.workspace) / "workspace.json", workspace)
        (place / "search.yaml").write_text(to_yaml(settings))
    seconds = job("tune", str(workspace), "--config", str(place / "search.yaml"))
    [mark] = {item.path.split("/")[1] for item in store.walk("tune")}
    trials = Records(store, mark).read()
    found = {
        "seconds": None if resumed else seconds,
        "epochs": sum(len(trial.history) for trial in trials),
        "trials": {how: sum(trial.ended == how for trial in trials) for how in ("done", "stopped", "failed")},
        "score": max(trial.score for trial in trials if trial.ended == "done"),
        "winner": read_yaml(store.read("config/tuned.yaml"), name="tuned.yaml"),
    }
    kept.with_suffix(".part").write_text(json.dumps(found))
    kept.with_suffix(".part").replace(kept)
    return found


def _link(source: str, target: str) -> None:
    with suppress(OSError):
        os.link(source, target)
        return
    shutil.copy2(source, target)


def accuracy(
    folder: Path, sections: dict[str, Any], events: EventSet, named: Named, seed: int, arguments: argparse.Namespace
) -> float | None:
    """Train in full with a search's winner or the default, unless that is done; None where the training fails."""
    path = folder / f"training-{seed}-{fingerprint(sections | {'epochs': arguments.epochs})[:8]}.npz"
    if not path.exists():
        sample, windows = sample_of(events)
        common = {"train": {"epochs": arguments.epochs, "seed": seed}}
        keep(path, train(resolve(events.configured, sections, common), windows, sample))
    stored = np.load(path)
    if "failed" in stored:
        return None
    test = named.known & ~named.validation
    plain = stored["plain"]
    found = [clustered(plain, named.ids, events.k, number, measured=True)[0][test] for number in range(CLUSTERINGS)]
    return statistics.mean(agreement(named.labels[test], clusters, events.k)["truth"] for clusters in found)


def measure(events: EventSet, named: Named, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return a set's searches with one seed, and how good their winners and the default are."""
    folder = arguments.folder / events.name
    searches = {}
    for name in arguments.searches:
        searches[name] = found = searched(folder, name, events, seed, arguments)
        took = "interrupted" if found["seconds"] is None else f"{found['seconds']:.0f} s"
        print(f"{events.name} {seed} {name}: {found['epochs']} epochs, {took}, {found['trials']}", flush=True)
    config = resolve(events.configured, settings_of("blind", events, seed, arguments))
    wanted = {"default": searched_sections(config, space_of(config))}
    wanted |= {name: found["winner"] for name, found in searches.items()}
    scores = {}
    for name, sections in wanted.items():
        scores[name] = accuracy(folder, sections, events, named, seed, arguments)
        print(f"{events.name} {seed} {name}: {_number(scores[name])}", flush=True)
    return {"set": events.name, "seed": seed, "searches": searches, "scores": scores}


def print_table(rows: list[dict[str, Any]], names: Sequence[str], all_epochs: int) -> None:
    """Print a line for each set and seed, and what all of them say."""
    print("\n| set | seed | default | " + " | ".join(names) + " | epochs of each | ASHA's share | seconds of each |")
    print("|---" * (6 + len(names)) + "|")
    for row in rows:
        found = [row["searches"][name] for name in names]
        cells = [row["set"], str(row["seed"]), *(_number(row["scores"][name]) for name in ("default", *names))]
        cells += [", ".join(str(one["epochs"]) for one in found), f"{found[0]['epochs'] / all_epochs:.2f}"]
        cells += [", ".join("-" if one["seconds"] is None else f"{one['seconds']:.0f}" for one in found)]
        print("| " + " | ".join(cells) + " |")
    print()
    for name in names:
        gains = [row["scores"][name] - row["scores"]["default"] for row in rows if None not in row["scores"].values()]
        if gains:
            print(f"{name}: {statistics.mean(gains):+.3f} beside the default, {min(gains):+.3f} at worst")
    seconds = [one["seconds"] for row in rows for one in row["searches"].values() if one["seconds"] is not None]
    if seconds:
        print(f"longest search: {max(seconds):.0f} s")


def _number(score: float | None) -> str:
    return "failed" if score is None else f"{score:.3f}"


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure, print, and return the rows of the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", metavar="WORKSPACE[@FILE]=TRUTH:K")
    parser.add_argument("--folder", type=Path, default=Path("runs/searches"))
    parser.add_argument(
        "--objective", choices=("clusters", "stability", "validation"), default="clusters", help="as tune.objective"
    )
    parser.add_argument("--config", type=Path, help="a configuration whose section tune is used, for another space")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--searches", nargs="*", choices=SEARCHES, default=SEARCHES)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--search-epochs", type=int, default=8, help="of a trial")
    parser.add_argument("--max-events", type=int, default=2000, help="of a trial")
    parser.add_argument("--at-once", type=int, default=0, help="trials at a time; 0: one a core")
    parser.add_argument("--epochs", type=int, default=40, help="of a full training")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(f"{os.cpu_count()} CPUs, {platform.machine()}, torch {torch.__version__}; {vars(arguments)}\n", flush=True)
    all_events = [read_set(text) for text in arguments.sets]
    truths = [truth_of(events) for events in all_events]
    rows = []
    for seed in arguments.seeds:
        rows += [measure(*pair, seed, arguments) for pair in zip(all_events, truths, strict=True)]
    print_table(rows, arguments.searches, arguments.trials * arguments.search_epochs)
    return rows


if __name__ == "__main__":
    main()
