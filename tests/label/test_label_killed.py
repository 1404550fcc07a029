"""Kill the labelling job, all its processes: after the rerun all tables are the same bytes.

Once in each of its parts; `make chaos` also does it at twenty random moments (FIRNLINE_CHAOS_ROUNDS).
"""

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from job_session import kill_session
from made_up_events import Example, write_example

from pipelines.workspace.storage import open_store

pytestmark = pytest.mark.chaos

ROUNDS = int(os.environ.get("FIRNLINE_CHAOS_ROUNDS", "1"))
NUM_SHARDS = 12


def start(workspace: Path, example: Example, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "jobs.label", str(workspace), "--kmeans.k", "3", "--label.num_workers", "2"]
    command += ["--labels.path", str(example.truth), "--mlflow", example.tracking.uri]
    command += ["--label.model", "models:/firnline-encoder/1"]
    return subprocess.Popen(command, stdout=log.open("ab"), stderr=subprocess.STDOUT, start_new_session=True)


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
    assert len(found) == NUM_SHARDS + NUM_SHARDS + 4
    return example, found, seconds


def bare_workspace(example: Example, folder: Path) -> Path:
    """Return a copy of the workspace as it was before it was labelled."""
    return Path(shutil.copytree(example.truth.parent / "bare", folder / "workspace"))


def finish(workspace: Path, example: Example, log: Path) -> dict[str, bytes]:
    process = start(workspace, example, log)
    assert process.wait(600) == 0, log.read_text()[-3000:]
    return contents(workspace)


def stage_of(workspace: Path) -> str:
    """Return which part of labelling a workspace is in: embedding, k-means, labels or none."""
    count = {table: len(list((workspace / table).rglob("*.parquet"))) for table in ("embeddings", "labels")}
    if 0 < count["embeddings"] < NUM_SHARDS:
        return "embedding"
    markers = len(list((workspace / "ledger" / "embed").rglob("*.json")))
    if markers == NUM_SHARDS and not list((workspace / "clustering").glob("*.npz")):
        return "k-means"
    return "labels" if 0 < count["labels"] < NUM_SHARDS else ""


@pytest.mark.parametrize("part", ["embedding", "k-means", "labels"])
def test_a_labelling_killed_in_any_part_goes_on_and_writes_the_same_bytes(undisturbed, tmp_path, part):
    example, expected, seconds = undisturbed
    workspace = bare_workspace(example, tmp_path)
    process = start(workspace, example, tmp_path / "log")
    give_up = time.monotonic() + 10 * seconds
    while stage_of(workspace) != part:
        assert process.poll() is None, f"it ended and was never seen in {part}"
        assert time.monotonic() < give_up
        time.sleep(0.005)
    kill_session(process)
    left = contents(workspace)
    assert set(left) < set(expected)
    assert all(expected[path] == content for path, content in left.items())
    assert finish(workspace, example, tmp_path / "log") == expected


@pytest.mark.parametrize("number", range(ROUNDS))
def test_a_labelling_killed_at_any_moment_goes_on_and_writes_the_same_bytes(undisturbed, tmp_path, number):
    example, expected, seconds = undisturbed
    workspace = bare_workspace(example, tmp_path)
    chance = random.Random(number)
    for _ in range(min(ROUNDS, 2)):
        process = start(workspace, example, tmp_path / "log")
        try:
            process.wait(chance.uniform(0.3, 1.0) * seconds)
        except subprocess.TimeoutExpired:
            kill_session(process)
        assert set(contents(workspace)) <= set(expected)
    assert finish(workspace, example, tmp_path / "log") == expected
