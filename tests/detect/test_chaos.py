"""Kill a worker, the driver, a node at random moments: after the rerun the events are the same bytes.

`make test` kills each twice, `make chaos` twenty times (FIRNLINE_CHAOS_ROUNDS). Each detection is struck twice.
"""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import obspy
import psutil
import pytest
from job_session import kill_session

from pipelines.workspace.ledger import list_markers
from pipelines.workspace.storage import open_store

KILLS = os.environ.get("FIRNLINE_CHAOS_ROUNDS")
pytestmark = [pytest.mark.timeout(900), *([pytest.mark.chaos] if KILLS else [])]

KILLS_A_RUN = 2
RUNS = -(-int(KILLS or "2") // KILLS_A_RUN)
FLAGS = [
    *("--detection.band_hz", "[1, 20]", "--window.rate_hz", "50", "--window.length_seconds", "20"),
    *("--shards.interval", "hour", "--shards.num_workers", "2"),
]
COINCIDENCE = ("--detection.coincidence_stations", "2", "--detection.coincidence_seconds", "30")


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
    # One tracking database for all: making one takes as long as half of the detection.
    tracking = f"sqlite:///{archive.parent}/{archive.name}-mlflow.db"
    command = [sys.executable, "-m", "jobs.detect", str(archive), str(workspace), "--mlflow", tracking, *FLAGS, *more]
    with log.open("ab") as output:
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)


def finish(archive: Path, workspace: Path, log: Path, *more: str) -> None:
    process = start(archive, workspace, log, *more)
    assert process.wait(600) == 0, log.read_text()[-3000:]


def contents(workspace: Path) -> dict[str, bytes]:
    store = open_store(str(workspace))
    return {item.path: store.read(item.path) for item in store.walk("events")}


@pytest.fixture(scope="module")
def undisturbed(archive, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    finish(archive, folder / "workspace", folder / "log")
    rows = contents(folder / "workspace")
    assert len(rows) > 80
    return rows


def wait_for_markers(workspace: Path, process: subprocess.Popen[bytes], count: int, ledger: str = "detect") -> None:
    """Wait until so many shards are done, and then a random moment more; a finished process is not waited for."""
    store = open_store(str(workspace))
    while process.poll() is None and sum(1 for _ in list_markers(store, ledger)) < count:
        time.sleep(0.02)
    if process.poll() is None:
        time.sleep(random.uniform(0, 0.2))


def moments(seed: int) -> list[int]:
    """Return how many shards of 96 are done at each kill of a run; the first may strike before any is."""
    rng = random.Random(seed)
    return sorted(rng.randrange(0, 80) for _ in range(KILLS_A_RUN))


def workers(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Return the Ray workers of a running job; none where it has ended."""
    try:
        children = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    found = []
    for child in children:
        try:
            if child.name().startswith("ray::") or "default_worker" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


@pytest.mark.parametrize("number", range(RUNS))
def test_killed_workers_change_no_byte(archive, undisturbed, tmp_path, number):
    log, workspace = tmp_path / "log", tmp_path / "workspace"
    process = start(archive, workspace, log)
    for count in moments(number):
        # Before the first shard: as soon as there is a worker.
        while not (running := workers(process)) and process.poll() is None:
            time.sleep(0.05)
        wait_for_markers(workspace, process, count)
        running = [worker for worker in workers(process) if worker.is_running()]
        if running and process.poll() is None:
            with suppress(psutil.NoSuchProcess):
                random.Random(number).choice(running).send_signal(signal.SIGKILL)
    code = process.wait(600)
    if code != 0:
        assert code == 1, log.read_text()[-3000:]
        finish(archive, workspace, log)
    assert contents(workspace) == undisturbed


@pytest.mark.parametrize("number", range(RUNS))
def test_a_killed_driver_goes_on_where_it_stopped(archive, undisturbed, tmp_path, number):
    log, workspace = tmp_path / "log", tmp_path / "workspace"
    for count in moments(100 + number):
        process = start(archive, workspace, log)
        wait_for_markers(workspace, process, count)
        kill_session(process)
    finish(archive, workspace, log)
    assert contents(workspace) == undisturbed


@pytest.fixture(scope="module")
def undisturbed_coincidence(archive, tmp_path_factory):
    folder = tmp_path_factory.mktemp("coincidence")
    finish(archive, folder / "workspace", folder / "log", *COINCIDENCE)
    rows = contents(folder / "workspace")
    assert len(rows) > 20
    return rows


@pytest.mark.chaos
@pytest.mark.parametrize("number", range(-(-RUNS // 2)))
def test_a_driver_killed_in_either_half_of_a_network_coincidence(archive, undisturbed_coincidence, tmp_path, number):
    """While stations' triggers are written, and while events are chosen from them."""
    log, workspace = tmp_path / "log", tmp_path / "workspace"
    for ledger, count in zip(("trigger", "detect"), moments(300 + number), strict=True):
        process = start(archive, workspace, log, *COINCIDENCE)
        wait_for_markers(workspace, process, count, ledger)
        kill_session(process)
    finish(archive, workspace, log, *COINCIDENCE)
    assert contents(workspace) == undisturbed_coincidence


@pytest.mark.parametrize("number", range(RUNS))
def test_a_lost_node_changes_no_byte(archive, undisturbed, tmp_path, number):
    from ray.cluster_utils import Cluster

    from pipelines.runtime.ray_token import apply_environment, private_ray_environment

    apply_environment(private_ray_environment())
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "node_ip_address": "127.0.0.1"})
    try:
        node = cluster.add_node(num_cpus=2)
        log, workspace = tmp_path / "log", tmp_path / "workspace"
        process = start(archive, workspace, log, "--address", cluster.address)
        for count in moments(200 + number):
            wait_for_markers(workspace, process, count)
            cluster.remove_node(node, allow_graceful=False)
            node = cluster.add_node(num_cpus=2)
        code = process.wait(600)
        if code != 0:
            assert code == 1, log.read_text()[-3000:]
            finish(archive, workspace, log, "--address", cluster.address)
    finally:
        cluster.shutdown()
    assert contents(workspace) == undisturbed
