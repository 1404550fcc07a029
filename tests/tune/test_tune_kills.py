"""Kill a search's driver or a trial's worker at random moments: the rerun has the trials of an undisturbed one.

FIRNLINE_CHAOS_ROUNDS kills (`make chaos`: twenty), half of drivers, half of workers, one at a time in one workspace
after the other.
"""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from job_session import kill_session, session_of

from pipelines.tracking.server import Tracking
from pipelines.tune.stage_records import Records, TrialRecord
from pipelines.workspace.artifacts import BEST_AUGMENTATION
from pipelines.workspace.storage import open_store

sys.path.insert(0, str(Path(__file__).parent.parent / "train"))
from training_events import make_workspace

KILLS = int(os.environ.get("FIRNLINE_CHAOS_ROUNDS") or "2")
NUM_TRIALS = 4
FLAGS = [
    *("--train.width", "8", "--train.dim", "8", "--train.num_bands", "16", "--train.num_frames", "16"),
    *("--train.batch_size", "16", "--tune.num_trials", str(NUM_TRIALS), "--tune.epochs", "3"),
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
    """Run the search to its end; return its seconds."""
    began = time.monotonic()
    assert start(folder).wait(600) == 0, (folder / "log").read_text()[-3000:]
    return time.monotonic() - began


def trials_of(folder: Path) -> list[TrialRecord]:
    store = open_store(str(folder / "workspace"))
    [mark] = {item.path.split("/")[1] for item in store.walk("tune")}
    return sorted(Records(store, mark).read(), key=lambda record: record.number)


def kill_trial(process: subprocess.Popen[bytes]) -> None:
    """Kill the worker of the running trial; nothing where there is none."""
    for member in session_of(process):
        try:
            if member.name().startswith("ray::ImplicitFunc"):
                member.kill()
                return
        except psutil.Error:
            continue


def test_a_search_that_is_killed_ends_with_the_trials_of_an_undisturbed_one(tmp_path: Path):
    folders = [tmp_path / name for name in ("undisturbed", *(f"killed-{number}" for number in range(KILLS)))]
    for folder in folders:
        folder.mkdir()
        make_workspace(str(folder / "workspace"), count=36)
    usual = finish(folders[0])
    right = trials_of(folders[0])
    assert len(right) == NUM_TRIALS
    best = open_store(str(folders[0] / "workspace")).read(BEST_AUGMENTATION)
    moments = random.Random(KILLS)
    for number, folder in enumerate(folders[1:]):
        process = start(folder)
        time.sleep(moments.uniform(0.1, 0.95) * usual)
        kill = kill_trial if number % 2 else kill_session
        kill(process)
        process.wait(600)
        finish(folder)
        told = f"{kill.__name__} in round {number}: {(folder / 'log').read_text()[-2000:]}"
        found = trials_of(folder)
        assert [(t.point, t.history, t.ended) for t in found] == [(t.point, t.history, t.ended) for t in right], told
        assert open_store(str(folder / "workspace")).read(BEST_AUGMENTATION) == best, told
        tracking = Tracking(uri=uri_of(folder), experiment="workspace")
        runs = [
            run
            for experiment in tracking.client().search_experiments()
            for run in tracking.client().search_runs([experiment.experiment_id])
        ]
        children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
        parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
        assert len(children) == NUM_TRIALS, told
        assert [run.info.status for run in parents] == ["FINISHED"], told
        assert {run.info.status for run in children} == {"FINISHED"}, told
