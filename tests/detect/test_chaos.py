"""Kill a worker, the driver, a node at random moments: after the rerun the events are the same bytes.

`make test` kills each twice; `make chaos` twenty times (FIRNLINE_CHAOS_ROUNDS).
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import obspy
import psutil
import pytest

from pipelines.ledger import list_markers
from pipelines.storage import open_store

pytestmark = pytest.mark.chaos

ROUNDS = int(os.environ.get("FIRNLINE_CHAOS_ROUNDS", "2"))
FLAGS = [
    *("--detection.band_hz", "[1, 20]", "--window.rate_hz", "50", "--window.length_seconds", "20"),
    *("--shards.interval", "hour", "--shards.num_workers", "2"),
]


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    root = tmp_path_factory.mktemp("chaos")
    rng = np.random.default_rng(9)
    for station in ("A01", "A02"):
        for day in (1, 2):
            count = 86400 * 50
            data = rng.normal(0, 50, count)
            for place in rng.integers(0, count - 800, 300):
                data[place : place + 800] += 2000 * np.exp(-np.arange(800) / 90) * rng.normal(size=800)
            trace = obspy.Trace(data.astype(np.int32), {"network": "XX", "station": station, "channel": "HHZ"})
            trace.stats.sampling_rate = 50.0
            trace.stats.starttime = obspy.UTCDateTime(2022, 1, day)
            folder = root / f"2022/XX/{station}/HHZ.D"
            folder.mkdir(parents=True, exist_ok=True)
            trace.write(str(folder / f"XX.{station}..HHZ.D.2022.{day:03d}"), format="MSEED")
    return root


def start(archive: Path, workspace: Path, log: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "jobs.detect", str(archive), str(workspace), *FLAGS, *more]
    return subprocess.Popen(command, stdout=log.open("ab"), stderr=subprocess.STDOUT, start_new_session=True)


def finish(archive: Path, workspace: Path, log: Path, *more: str) -> None:
    process = start(archive, workspace, log, *more)
    assert process.wait(600) == 0, log.read_text()[-3000:]


def contents(workspace: Path) -> dict[str, bytes]:
    store = open_store(str(workspace))
    return {item.path: store.read(item.path) for item in store.walk("events")}


@pytest.fixture(scope="module")
def undisturbed(archive, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    began = time.monotonic()
    finish(archive, folder / "workspace", folder / "log")
    seconds = time.monotonic() - began
    rows = contents(folder / "workspace")
    assert len(rows) > 80
    return rows, seconds


def wait_for_markers(workspace: Path, process: subprocess.Popen[bytes], count: int) -> None:
    store = open_store(str(workspace))
    while process.poll() is None and sum(1 for _ in list_markers(store, "detect")) < count:
        time.sleep(0.05)


def workers(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if child.name().startswith("ray::") or "default_worker" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


def end_all(process: subprocess.Popen[bytes]) -> None:
    """End what a killed driver leaves behind: the Ray that it had started."""
    family = []
    for other in psutil.process_iter():
        try:
            if os.getpgid(other.pid) == process.pid or os.getsid(other.pid) == process.pid:
                family.append(other)
        except (ProcessLookupError, psutil.Error):
            continue
    for member in family:
        try:
            member.kill()
        except psutil.Error:
            continue


@pytest.mark.parametrize("number", range(ROUNDS))
def test_killed_workers_change_no_byte(archive, undisturbed, tmp_path, number):
    rows, _ = undisturbed
    rng = random.Random(number)
    log = tmp_path / "log"
    process = start(archive, tmp_path / "workspace", log)
    for _ in range(3):
        wait_for_markers(tmp_path / "workspace", process, rng.randrange(1, 60))
        running = [worker for worker in workers(process) if worker.is_running()]
        if running and process.poll() is None:
            rng.choice(running).send_signal(signal.SIGKILL)
    code = process.wait(600)
    if code != 0:
        assert code == 1, log.read_text()[-3000:]
        finish(archive, tmp_path / "workspace", log)
    assert contents(tmp_path / "workspace") == rows


@pytest.mark.parametrize("number", range(ROUNDS))
def test_a_killed_driver_goes_on_where_it_stopped(archive, undisturbed, tmp_path, number):
    rows, seconds = undisturbed
    rng = random.Random(100 + number)
    log, workspace = tmp_path / "log", tmp_path / "workspace"
    process = start(archive, workspace, log)
    if number % 2:
        time.sleep(rng.uniform(0, seconds))
    else:
        wait_for_markers(workspace, process, rng.randrange(1, 80))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    end_all(process)
    finish(archive, workspace, log)
    assert contents(workspace) == rows
    assert not list(open_store(str(workspace)).walk("events/.partial-"))


@pytest.mark.parametrize("number", range(ROUNDS))
def test_a_lost_node_changes_no_byte(archive, undisturbed, tmp_path, number):
    from ray.cluster_utils import Cluster

    from pipelines.cluster import _apply_environment, private_ray_environment

    rows, _ = undisturbed
    rng = random.Random(200 + number)
    _apply_environment(private_ray_environment())
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "node_ip_address": "127.0.0.1"})
    try:
        node = cluster.add_node(num_cpus=2)
        log, workspace = tmp_path / "log", tmp_path / "workspace"
        process = start(archive, workspace, log, "--address", cluster.address)
        wait_for_markers(workspace, process, rng.randrange(1, 60))
        cluster.remove_node(node, allow_graceful=False)
        cluster.add_node(num_cpus=2)
        assert process.wait(600) in (0, 1), log.read_text()[-3000:]
        finish(archive, workspace, log, "--address", cluster.address)
    finally:
        cluster.shutdown()
    assert contents(workspace) == rows
