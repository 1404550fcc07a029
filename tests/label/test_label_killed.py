"""Kill the labelling job, all its processes, at random moments: after the rerun all tables are the same bytes.

`make test` does it once; `make chaos` twenty times (FIRNLINE_CHAOS_ROUNDS).
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from made_up_events import Example, write_example

from pipelines.storage import open_store

pytestmark = pytest.mark.chaos

ROUNDS = int(os.environ.get("FIRNLINE_CHAOS_ROUNDS", "1"))


def start(workspace: Path, example: Example, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "jobs.label", str(workspace), "--kmeans.k", "3", "--label.num_workers", "2"]
    command += ["--labels.path", str(example.truth), "--mlflow", example.tracking.uri]
    command += ["--label.model", "models:/firnline-encoder/1"]
    return subprocess.Popen(command, stdout=log.open("ab"), stderr=subprocess.STDOUT, start_new_session=True)


def end_all(process: subprocess.Popen[bytes]) -> None:
    """End the driver and the Ray that it started."""
    for other in psutil.process_iter():
        try:
            if os.getsid(other.pid) == process.pid:
                other.send_signal(signal.SIGKILL)
        except (ProcessLookupError, psutil.Error):
            continue
    process.wait()


def contents(workspace: Path) -> dict[str, bytes]:
    store = open_store(str(workspace))
    return {
        item.path: store.read(item.path)
        for table in ("embeddings", "labels", "clustering")
        for item in store.walk(table)
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Example, dict[str, bytes], float]:
    folder = tmp_path_factory.mktemp("undisturbed")
    example = write_example(folder, num_days=6)
    shutil.copytree(folder / "workspace" / "events", folder / "bare" / "events")
    shutil.copy(folder / "workspace" / "workspace.json", folder / "bare")
    began = time.monotonic()
    process = start(folder / "workspace", example, folder / "log")
    assert process.wait(600) == 0, (folder / "log").read_text()[-3000:]
    seconds = time.monotonic() - began
    found = contents(folder / "workspace")
    assert len(found) == 12 + 12 + 2
    return example, found, seconds


@pytest.mark.parametrize("number", range(ROUNDS))
def test_a_killed_labelling_goes_on_and_writes_the_same_bytes(undisturbed, tmp_path, number):
    example, expected, seconds = undisturbed
    workspace = tmp_path / "workspace"
    shutil.copytree(example.truth.parent / "bare", workspace)
    chance = random.Random(number)
    for _ in range(min(ROUNDS, 2)):
        process = start(workspace, example, tmp_path / "log")
        try:
            process.wait(chance.uniform(0.3, 1.0) * seconds)
        except subprocess.TimeoutExpired:
            end_all(process)
        assert set(contents(workspace)) <= set(expected)
    process = start(workspace, example, tmp_path / "log")
    assert process.wait(600) == 0, (tmp_path / "log").read_text()[-3000:]
    assert contents(workspace) == expected
