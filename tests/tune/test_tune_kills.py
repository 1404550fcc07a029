"""Kill a search's driver, a trial's worker or both with all of Ray at random moments: the rerun ends as it should have.

It has the trials and the winner of an undisturbed search, and one child in MLflow for each trial. FIRNLINE_CHAOS_ROUNDS
kills (`make chaos`: twenty), one kind after the other, each in a workspace of its own.
"""

import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from job_session import kill_session, session_of

from pipelines.config import resolve
from pipelines.tracking.server import Tracking
from pipelines.tune import stage_search
from pipelines.tune.stage import tune_augmentations
from pipelines.tune.stage_records import Records, TrialRecord
from pipelines.workspace.storage import open_store

sys.path.insert(0, str(Path(__file__).parent.parent / "train"))
from training_events import make_workspace

KILLS = int(os.environ.get("FIRNLINE_CHAOS_ROUNDS") or "2")
NUM_TRIALS = 3
FLAGS = [
    *("--train.width", "8", "--train.dim", "8", "--train.num_bands", "16", "--train.num_frames", "16"),
    *("--train.batch_size", "16", "--tune.num_trials", str(NUM_TRIALS), "--tune.epochs", "2"),
    *("--tune.grace_epochs", "1", "--tune.max_events", "30", "--tune.clusters", "3", "--tune.num_workers", "1"),
]
pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600 + 300 * KILLS)]


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Start the search of a folder's workspace."""
    command = [sys.executable, "-m", "jobs.tune", str(folder / "workspace"), "--mlflow", uri_of(folder), *FLAGS]
    with (folder / "log").open("ab") as output:
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)


def uri_of(folder: Path) -> str:
    return f"sqlite:///{folder}/mlflow.db"


def finish(folder: Path) -> float:
    """Run the search to its end, again where the machine is too busy for Ray to start; return its seconds."""
    for _ in range(5):
        began, length = time.monotonic(), (folder / "log").stat().st_size if (folder / "log").exists() else 0
        code = start(folder).wait(600)
        said = (folder / "log").read_bytes()[length:].decode()
        if "Ray did not start on this machine" not in said:
            break
    assert code == 0, said[-3000:]
    return time.monotonic() - began


def trials_of(folder: Path) -> list[TrialRecord]:
    store = open_store(str(folder / "workspace"))
    return [
        trial
        for mark in {item.path.split("/")[1] for item in store.walk("tune")}
        for trial in Records(store, mark).read()
    ]


def kill_driver(process: subprocess.Popen[bytes]) -> bool:
    """Kill the driver alone; False where the search has ended."""
    running = process.poll() is None
    process.kill()
    return running


def kill_all(process: subprocess.Popen[bytes]) -> bool:
    """Kill the driver, Ray and the trial, as where a machine is lost; False where the search has ended."""
    running = process.poll() is None
    kill_session(process)
    return running


def kill_trial(process: subprocess.Popen[bytes]) -> bool:
    """Kill the worker of the trial that runs, or of the next; False where the search ends before."""
    while process.poll() is None:
        for member in session_of(process):
            with suppress(psutil.Error):
                if member.name().startswith("ray::ImplicitFunc"):
                    member.kill()
                    return True
        time.sleep(0.05)
    return False


@dataclass
class Chaos:
    """Strikes at random moments of a search that undisturbed takes so many seconds."""

    seconds: float
    random: random.Random

    def strike(self, folder: Path, kill: Callable[[subprocess.Popen[bytes]], bool]) -> subprocess.Popen[bytes]:
        """Start a search in an empty folder and strike it; where it ends too early, again in a new workspace."""
        while True:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make_workspace(str(folder / "workspace"), count=36)
            process, began = start(folder), time.monotonic()
            with suppress(subprocess.TimeoutExpired):
                process.wait(self.random.uniform(0.1, 0.95) * self.seconds)
            if kill(process):
                return process
            self.seconds = min(self.seconds, time.monotonic() - began)


def test_a_search_that_is_killed_ends_with_the_trials_of_an_undisturbed_one(
    tmp_path: Path, record_property: Callable[[str, object], None]
):
    undisturbed = tmp_path / "undisturbed"
    make_workspace(str(undisturbed / "workspace"), count=36)
    chaos = Chaos(finish(undisturbed), random.Random(KILLS))
    right = trials_of(undisturbed)
    assert [trial.number for trial in right] == list(range(NUM_TRIALS))
    files = ("config/best-augmentation.yaml", "config/tuned.yaml")
    best = [(undisturbed / "workspace" / name).read_bytes() for name in files]
    counts: Counter[str] = Counter()
    began, reruns = time.monotonic(), 0.0
    for number in range(KILLS):
        folder, kill = tmp_path / f"killed-{number}", (kill_driver, kill_all, kill_trial)[number % 3]
        process = chaos.strike(folder, kill)
        process.wait(600)
        before = len(trials_of(folder))
        reruns += finish(folder)
        kill_session(process)
        told = f"{kill.__name__}, {before} trials before: {(folder / 'log').read_text()[-2000:]}"
        counts[kill.__name__] += 1
        if kill is kill_trial:
            assert (process.returncode, before) == (0, NUM_TRIALS), told
        found = trials_of(folder)
        assert [(t.point, t.history, t.ended) for t in found] == [(t.point, t.history, t.ended) for t in right], told
        assert [(folder / "workspace" / name).read_bytes() for name in files] == best, told
        tracking = Tracking(uri=uri_of(folder), experiment="workspace")
        runs = [
            run
            for experiment in tracking.client().search_experiments()
            for run in tracking.client().search_runs([experiment.experiment_id])
        ]
        [parent] = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
        children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
        assert {run.info.status for run in runs} == {"FINISHED"}, told
        assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}, told
        assert {run.info.run_id for run in children} == {trial.run_id for trial in found}, told
        assert sorted(int(run.data.tags["firnline.trial"]) for run in children) == list(range(NUM_TRIALS)), told
        print(f"{kill.__name__}: {before} trials had ended, {time.monotonic() - began:.0f} s", flush=True)
        shutil.rmtree(folder)
    record_property(
        "figure",
        f"{KILLS} kills ({', '.join(f'{name} {count}' for name, count in counts.items())}): {KILLS} reruns ended, "
        f"{reruns / KILLS:.0f} s each, {time.monotonic() - began:.0f} s in all",
    )


def test_a_trial_one_of_whose_two_workers_is_killed_is_repeated_and_ends_as_it_should_have(
    ray_cluster: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    struck: list[psutil.Process] = []
    hear = stage_search.Watch.hear

    def strike(watch: stage_search.Watch, trial_id: str, result: dict[str, Any] | None) -> None:
        hear(watch, trial_id, result)
        if killing and not struck and result is not None and "score" in result:
            workers = [one for one in psutil.process_iter(["name"]) if one.info["name"].startswith("ray::RayTrainW")]
            struck.append(max(workers, key=lambda one: one.pid))
            struck[0].kill()

    monkeypatch.setattr(stage_search.Watch, "hear", strike)
    found = []
    for killing in (False, True):
        folder = tmp_path / str(killing)
        workspace = make_workspace(str(folder / "workspace"), count=36)
        config = resolve(
            {
                "train": {"width": 8, "dim": 8, "num_bands": 16, "num_frames": 16, "batch_size": 16}
                | {"num_workers": 2, "cpus_per_worker": 0.5},
                "tune": {"num_trials": 1, "epochs": 2, "grace_epochs": 2, "max_events": 30, "clusters": 3},
            }
        )
        tracking = Tracking(uri=uri_of(folder), experiment="workspace", artifact_location=folder.as_uri())
        tune_augmentations(workspace, config, tracking)
        [trial] = trials_of(folder)
        found.append((trial.ended, trial.history))
        runs = tracking.client().search_runs([tracking.experiment_id()])
        [child] = [run for run in runs if "firnline.trial" in run.data.tags]
        assert child.info.status == "FINISHED"
    assert struck
    assert found[0] == found[1]
    assert found[0][0] == "done"
