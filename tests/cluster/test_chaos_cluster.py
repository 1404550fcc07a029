"""A head and three workers on hosts of their own, struck during every stage in every way: the tables stay the same.

`make chaos-cluster` runs all of it, as root. One of them: `-k "train and cut"`. FIRNLINE_CHAOS_ROUNDS repeats each.
"""

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytest
from cluster_jobs import Job, wait_until
from cluster_machines import Machine
from cluster_world import TABLES, World
from faultproxy import Fault

pytestmark = [pytest.mark.chaos_cluster, pytest.mark.timeout(3600)]

ROUNDS = int(os.environ.get("FIRNLINE_CHAOS_ROUNDS", "1"))
CUT_SECONDS = 90.0
"""Ray takes a node for dead after five unanswered questions, 13 s each."""
AWAY_SECONDS = 60.0
"""How long MLflow is away."""
SILENCE_SECONDS = 90.0
"""A job that waits says so every minute; on a busy machine the line may come later."""
STAGE_SECONDS = 900.0


@dataclass(frozen=True)
class Part:
    """A part of the chain in which a fault strikes."""

    stage: str
    """The job that is sent."""
    begun: Callable[[Mapping[str, str], str], bool]
    """Of the paths of the workspace and the job's log, whether the fault may strike."""


def _count(paths: Mapping[str, str], pattern: str) -> int:
    return sum(re.match(pattern, path) is not None for path in paths)


PARTS = {
    "detect": Part("detect", lambda paths, _: _count(paths, "ledger/detect/") >= 4),
    "train": Part("train", lambda paths, _: _count(paths, "train/.*/epoch-") >= 1),
    "embed": Part("label", lambda paths, _: _count(paths, "ledger/embed/") >= 4),
    "k-means": Part("label", lambda _, log: "label: embedded" in log),
    "label": Part("label", lambda paths, _: _count(paths, "ledger/label/") >= 4),
    "report": Part("report", lambda paths, log: "report: " in log or _count(paths, "(catalog|report)/") > 0),
}
FAULTS = [
    Fault("throttle", times=None, probability=0.1),
    Fault("reset", times=None, probability=0.05),
    Fault("stall", method="GET", times=None, probability=0.01, after_bytes=10, seconds=30),
]


@dataclass
class Strike:
    """A fault that has struck a job."""

    world: World
    workspace: str
    job: Job
    struck: float
    """When (monotonic)."""
    before: dict[str, str]
    """The workspace at that time."""

    def progressed(self) -> bool:
        """Whether anything new has been written since, other than who holds the workspace."""
        now = self.world.bucket.tags(self.workspace)
        return any(self.before.get(path) != tag for path, tag in now.items() if path != "holder.json")

    def wait_for_progress(self) -> float:
        """Return after how many seconds the job went on, or ended."""
        wait_until("progress", lambda: self.progressed() or self.job.process.poll() is not None, STAGE_SECONDS)
        return time.monotonic() - self.struck


def _kill(strike: Strike, victim: Machine) -> float:
    victim.kill()
    return strike.wait_for_progress()


def _cut(strike: Strike, victim: Machine) -> float:
    cluster = strike.world.cluster
    cluster.network.cut(victim.host)
    went_on = strike.wait_for_progress()
    time.sleep(max(0.0, strike.struck + CUT_SECONDS - time.monotonic()))
    cluster.network.join(victim.host)
    return went_on


def _restart_head(strike: Strike, victim: Machine) -> float:
    world = strike.world
    world.cluster.head.kill()
    time.sleep(5)
    world.cluster.start()
    code = strike.job.wait(120)
    assert code == 1, strike.job.log[-3000:]
    sentence = strike.job.lines[-1][1]
    assert "the same command" in sentence, strike.job.log[-3000:]
    strike.before = world.bucket.tags(strike.workspace)
    return 0.0


def _faulty_s3(strike: Strike, victim: Machine) -> float:
    strike.world.disturb(*FAULTS)
    return strike.wait_for_progress()


def _stop_mlflow(strike: Strike, victim: Machine) -> float:
    mlflow = strike.world.mlflow
    mlflow.stop()
    time.sleep(AWAY_SECONDS)
    mlflow.start()
    return strike.wait_for_progress()


KINDS = {
    "kill": _kill,
    "cut": _cut,
    "head": _restart_head,
    "s3": _faulty_s3,
    "mlflow": _stop_mlflow,
}


@pytest.mark.parametrize("number", range(ROUNDS))
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kind", KINDS)
def test_tables_are_those_of_an_undisturbed_run(world, undisturbed, record_property, kind, part, number):
    stage, workspace = PARTS[part].stage, f"{part}-{kind}-{number}"
    world.bucket.copy(f"before-{stage}", workspace)
    there = world.bucket.tags(workspace)
    job = world.submit(stage, workspace)

    def begun() -> bool:
        new = {path: tag for path, tag in world.bucket.tags(workspace).items() if path not in there}
        return PARTS[part].begun(new, job.log)

    wait_until(f"{part} begins", begun, STAGE_SECONDS, job)
    victim = world.cluster.busy_worker()
    work = victim.work()
    strike = Strike(world, workspace, job, time.monotonic(), world.bucket.tags(workspace))
    try:
        went_on = KINDS[kind](strike, victim)
        code = job.wait(STAGE_SECONDS)
        jobs = [job]
        if code != 0 and kind in ("head", "mlflow"):
            # One sentence, and the same command continues.
            sent = time.monotonic()
            jobs.append(again := world.submit(stage, workspace))
            strike.job = again
            strike.wait_for_progress()
            went_on = time.monotonic() - (sent if kind == "head" else strike.struck)
            code = again.wait(STAGE_SECONDS)
    finally:
        world.calm()
        world.cluster.start()
    silence, after = max(job.longest_silence() for job in jobs)
    record_property(
        "figure",
        f"{part}, {kind}: went on after {went_on:.0f} s, ended after {jobs[-1].ended - strike.struck:.0f} s; "
        f"longest silence {silence:.0f} s, after {after[:80]!r}; "
        f"{len(jobs)} job(s); {victim.host.name} did {work}",
    )
    assert code == 0, "\n".join(job.log[-4000:] for job in jobs)
    found = world.bucket.digests(workspace, TABLES)
    assert {path for path in undisturbed if path.startswith(TABLES_OF[stage])} <= set(found)
    assert not {path: digest for path, digest in found.items() if undisturbed[path] != digest}
    assert silence <= SILENCE_SECONDS, f"{silence:.0f} s of silence after {after!r}"


TABLES_OF = {"detect": "events/", "train": "events/", "label": ("embeddings/", "labels/"), "report": "catalog/"}
