"""One of two hosts dies while it works: the tables are the same bytes as those of an undisturbed run.

The short form of `make chaos-cluster`, without root: the hosts are Ray nodes of this machine, whose processes are
killed.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import obspy
import pytest
from job_session import kill_session

from pipelines.runtime.ray_token import apply_environment, private_ray_environment
from pipelines.workspace.storage import open_store

ROOT = Path(__file__).resolve().parents[2]
RATE_HZ = 20.0
HOURS = 24
FLAGS = [
    *("--detection.band_hz", "[1, 8]", "--window.rate_hz", "20", "--window.length_seconds", "10"),
    *("--shards.interval", "hour"),
]
STRUCK_AFTER = 4
"""Shards that are done when a host dies."""

NODE = {"node_ip_address": "127.0.0.1", "object_store_memory": 80_000_000, "memory": 4 << 30}
SOON_DEAD = {"health_check_period_ms": 500, "health_check_timeout_ms": 2000, "health_check_failure_threshold": 4}
"""By Ray's own settings a lost node's work is repeated after some 40 s, by these after ten at most."""

# One process for all jobs: what it imports takes longer than most of them.
STEPS = """
import json, shutil, sys
from jobs.command_line import main
for words in json.loads(sys.argv[1]):
    if words[0] == "copy":
        shutil.copytree(*words[1:])
        continue
    code = main(words)
    if code == 1 and words in json.loads(sys.argv[2]):
        print("again", *words, flush=True)
        code = main(words)
    if code:
        sys.exit(f"{code} from {words}")
"""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a day of one station with 200 events."""
    root = tmp_path_factory.mktemp("archive")
    random = np.random.default_rng(9)
    samples = random.normal(0, 50, int(HOURS * 3600 * RATE_HZ))
    for place in random.integers(0, len(samples) - 400, 200):
        samples[place : place + 400] += 2000 * np.exp(-np.arange(400) / 50) * random.normal(size=400)
    header = {"network": "XX", "station": "A01", "channel": "HHZ", "sampling_rate": RATE_HZ}
    trace = obspy.Trace(samples.astype(np.int32), header)
    trace.stats.starttime = obspy.UTCDateTime(2022, 1, 1)
    target = root / "2022/XX/A01/HHZ.D/XX.A01..HHZ.D.2022.001"
    target.parent.mkdir(parents=True)
    trace.write(str(target), format="MSEED")
    return root


@contextmanager
def hosts() -> Iterator[tuple[Any, list[Any]]]:
    """Yield a cluster whose head does no work, and its two nodes of one CPU each."""
    from ray.cluster_utils import Cluster

    apply_environment(private_ray_environment())
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": SOON_DEAD, **NODE})
    try:
        yield cluster, [cluster.add_node(num_cpus=1, **NODE) for _ in range(2)]
    finally:
        cluster.shutdown()


def content(workspace: Path, *tables: str) -> dict[str, bytes]:
    """Return every file of some tables."""
    store = open_store(str(workspace))
    return {item.path: store.read(item.path) for table in tables for item in store.walk(table)}


def wait_for(folder: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when some shards of a stage have a marker, while the job still works."""
    while sum(1 for _ in folder.rglob("*.json")) < STRUCK_AFTER:
        assert process.poll() is None, log.read_text()[-3000:]
        time.sleep(0.02)


def test_a_host_that_dies_in_detection_and_one_that_dies_in_labelling_change_no_byte(
    archive: Path, tmp_path: Path, record_property: Any
):
    plain, label_struck, detect_struck = (tmp_path / name for name in ("plain", "label-struck", "detect-struck"))
    log = tmp_path / "log"
    tracking = ["--mlflow", f"sqlite:///{tmp_path}/mlflow.db"]
    with hosts() as (cluster, nodes):
        common = [*tracking, "--address", cluster.address]
        struck = [
            ["detect", str(archive), str(detect_struck), *FLAGS, *common],
            ["label", str(label_struck), "--kmeans.k", "3", *common],
        ]
        steps = [
            ["detect", str(archive), str(plain), *FLAGS, *common],
            ["train", str(plain), "--train.encoder", "features", *common],
            ["copy", str(plain), str(label_struck)],
            ["label", str(plain), "--kmeans.k", "3", *common],
            *struck,
        ]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", STEPS, json.dumps(steps), json.dumps(struck)],
                cwd=ROOT,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            for workspace, ledger in ((detect_struck, "detect"), (label_struck, "embed")):
                wait_for(workspace / "ledger" / ledger, process, log)
                done = sum(1 for _ in (workspace / "ledger" / ledger).rglob("*.json"))
                began = time.monotonic()
                cluster.remove_node(nodes.pop(0), allow_graceful=False)
                while sum(1 for _ in (workspace / "ledger").rglob("*.json")) <= done and process.poll() is None:
                    time.sleep(0.02)
                went_on = time.monotonic() - began
                record_property("figure", f"{ledger}: a host of two died after {done} shards; on after {went_on:.1f} s")
                # Another one comes, as an autoscaler would bring it.
                nodes.append(cluster.add_node(num_cpus=1, **NODE))
            assert process.wait(300) == 0, log.read_text()[-3000:]
        finally:
            kill_session(process)
    events = content(plain, "events", "availability")
    assert sum(path.startswith("events/") for path in events) == HOURS
    assert content(detect_struck, "events", "availability") == events
    tables = content(plain, "embeddings", "labels")
    assert len(tables) == 2 * HOURS
    assert content(label_struck, "embeddings", "labels") == tables
