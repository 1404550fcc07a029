"""What a cluster may grow to, and the lines of a job that waits for it."""

import re
import time

import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group

from pipelines.runtime import capacity
from pipelines.runtime.errors import InputError
from pipelines.runtime.ray_session import SPARE_CPUS, RaySession, ray_session


@pytest.fixture
def no_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (capacity.CLUSTER_CPUS_VARIABLE, capacity.CLUSTER_GPUS_VARIABLE):
        monkeypatch.delenv(name, raising=False)


def test_capacity_is_what_a_cluster_has_or_may_grow_to(
    ray_cluster: RaySession, no_promise: None, monkeypatch: pytest.MonkeyPatch
):
    cpus = 2 + SPARE_CPUS
    assert capacity.capacity() == capacity.Capacity(cpus=cpus, gpus=0, grows=False)
    monkeypatch.setenv("FIRNLINE_CLUSTER_CPUS", "512")
    monkeypatch.setenv("FIRNLINE_CLUSTER_GPUS", "8")
    assert capacity.capacity() == capacity.Capacity(cpus=512, gpus=8, grows=True)
    # One that has grown as far as it may.
    monkeypatch.setenv("FIRNLINE_CLUSTER_CPUS", str(cpus))
    monkeypatch.setenv("FIRNLINE_CLUSTER_GPUS", "0")
    assert capacity.capacity() == capacity.Capacity(cpus=cpus, gpus=0, grows=False)
    monkeypatch.setenv("FIRNLINE_CLUSTER_GPUS", "many")
    with pytest.raises(InputError, match="FIRNLINE_CLUSTER_GPUS is 'many'; it is the number of GPUs"):
        capacity.capacity()


def test_what_is_missing_is_named_with_what_may_come(
    ray_cluster: RaySession, no_promise: None, monkeypatch: pytest.MonkeyPatch
):
    assert capacity.missing_cpus() is None
    assert (
        capacity.missing_gpus() == "waiting for a GPU: the cluster has none, and its head does not say that it may grow"
    )
    monkeypatch.setenv("FIRNLINE_CLUSTER_GPUS", "8")
    assert capacity.missing_gpus() == "waiting for a GPU: the cluster has none, and may grow to 8"


def test_workers_are_missing_until_ray_has_placed_them_all(ray_cluster: RaySession):
    assert re.fullmatch(
        r"waiting for 2 worker\(s\) with 1 CPU each; the cluster has [\d.]+ free CPU and 0 free GPU",
        capacity.missing_workers(2, {"CPU": 1.0}) or "",
    )
    groups = [placement_group([{"CPU": 1.0}] * 2), placement_group([{"CPU": 3.0}] * 2)]
    try:
        assert groups[0].wait(30)
        assert capacity.missing_workers(2, {"CPU": 1.0}) is None
        assert "3 worker(s)" in str(capacity.missing_workers(3, {"CPU": 1.0}))
        # Not all of them fit.
        assert "2 worker(s) with 3 CPU each" in str(capacity.missing_workers(2, {"CPU": 3.0}))
    finally:
        for group in groups:
            remove_placement_group(group)
    assert ray.is_initialized()


def test_a_wait_is_said_again_and_again_and_not_after_its_end(capsys: pytest.CaptureFixture[str]):
    reasons = iter(["waiting for a node"] * 2)
    with capacity.say_waits("detect", lambda: next(reasons, None), seconds=0.1):
        time.sleep(1.0)
    assert capsys.readouterr().err == "detect: waiting for a node\n" * 2
    with capacity.say_waits("detect", lambda: "waiting for a node", seconds=60):
        pass
    assert capsys.readouterr().err == ""


def test_a_job_that_writes_nothing_says_what_the_cluster_has(
    ray_cluster: RaySession, capsys: pytest.CaptureFixture[str]
):
    with capacity.say_silence(seconds=0.6):
        for _ in range(10):
            time.sleep(0.15)
            print("at work", flush=True)
        assert capsys.readouterr().err == ""
        time.sleep(1.0)
    said = capsys.readouterr().err.splitlines()
    assert said
    line = r"cluster: no line for \d+ s; 1 node with [\d.]+ of 4 CPUs and [\d.]+ of [\d.]+ GB of memory free"
    assert all(re.fullmatch(line, text) for text in said)
    print("after it")
    assert capsys.readouterr().out == "after it\n"


def test_work_is_shared_out_for_what_a_growing_cluster_may_come_to(
    ray_cluster: RaySession, monkeypatch: pytest.MonkeyPatch
):
    # As for a cluster that this process has joined: what it may grow to counts, not the cores of this machine.
    monkeypatch.setattr("pipelines.runtime.ray_session._own_cores", [])
    monkeypatch.setenv("FIRNLINE_CLUSTER_CPUS", "512")
    with ray_session() as session:
        assert (session.started, session.num_cpus) == (False, 512)
