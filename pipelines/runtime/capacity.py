"""What a Ray cluster has and may grow to, and the lines that a job writes while it waits for that."""

import importlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from pipelines.runtime.errors import InputError
from pipelines.runtime.text import counted

CLUSTER_CPUS_VARIABLE = "FIRNLINE_CLUSTER_CPUS"
CLUSTER_GPUS_VARIABLE = "FIRNLINE_CLUSTER_GPUS"
"""Variables of a cluster's head: the largest number of CPUs and GPUs that its autoscaler may start. Ray does not report
them; the heads of cluster.yaml and infra/kuberay do."""

WAIT_SECONDS = 60.0
"""How often a job that waits says so."""


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """CPUs and GPUs that a cluster has, or may grow to where that is more."""

    cpus: float
    gpus: float
    grows: bool
    """Whether nodes may come that are not there yet."""

    @property
    def unknown(self) -> bool:
        """Whether no node has come yet, and the head does not say how many may: there is no ground to refuse a job."""
        return not self.cpus and not self.gpus


def capacity() -> Capacity:
    """Return what the connected cluster has or may grow to; InputError where its head states it wrongly."""
    now = _cluster_resources()
    promised = {name: _promised(name) for name in (CLUSTER_CPUS_VARIABLE, CLUSTER_GPUS_VARIABLE)}
    cpus, gpus = now.get("CPU", 0.0), now.get("GPU", 0.0)
    most_cpus, most_gpus = (max(has, most) for has, most in zip((cpus, gpus), promised.values(), strict=True))
    return Capacity(cpus=most_cpus, gpus=most_gpus, grows=most_cpus > cpus or most_gpus > gpus)


def refuse_too_small(what: str, *, cpus: float, gpus: float = 0, memory: float = 0) -> None:
    """Refuse a cluster on which no node can ever do a piece of work; Ray would wait for such a node without end.

    A cluster that may grow, or whose nodes have not come yet, is waited for.

    Args:
        what: the piece of work, as the subject of a sentence.
        cpus, gpus, memory: what it takes at once; memory in bytes, of that which Ray gives away.

    Raises:
        InputError: says what it takes and what the largest node has.
    """
    wanted = {name: amount for name, amount in (("CPU", cpus), ("GPU", gpus), ("memory", memory)) if amount}
    nodes = [node for node in _nodes() if node.get("CPU")]
    if (
        not nodes
        or capacity().grows
        or any(all(node.get(name, 0) >= wanted[name] for name in wanted) for node in nodes)
    ):
        return
    largest = max(nodes, key=lambda node: [node.get(name, 0) for name in ("GPU", "memory", "CPU")])
    raise InputError(
        f"{what} takes {_words(wanted)} on one node, but the largest of {counted(len(nodes), 'node')} has "
        f"{_words({name: largest.get(name, 0) for name in wanted})}; use larger machines, or give Ray "
        "more of them (`ray start --num-cpus ... --memory ...`)"
    )


def missing_cpus() -> str | None:
    """Return what a job waits for on a cluster that has no CPU; None where it has one."""
    return None if _cluster_resources().get("CPU") else f"waiting for a node: the cluster has no CPU{_growth('cpus')}"


def missing_gpus() -> str | None:
    """Return what a job on GPUs waits for on a cluster that has none; None where it has one."""
    return None if _cluster_resources().get("GPU") else f"waiting for a GPU: the cluster has none{_growth('gpus')}"


def missing_workers(count: int, resources: Mapping[str, float]) -> str | None:
    """Return what a group of at least `count` workers waits for; None where Ray has placed such a group."""
    util: Any = importlib.import_module("ray.util")
    for group in util.placement_group_table().values():
        bundles = list(group["bundles"].values())
        if group["state"] == "CREATED" and len(bundles) >= count and all(bundle == resources for bundle in bundles):
            return None
    ray: Any = importlib.import_module("ray")
    free = ray.available_resources()
    wanted = " and ".join(f"{amount:g} {name}" for name, amount in resources.items())
    return (
        f"waiting for {count} worker(s) with {wanted} each; the cluster has {free.get('CPU', 0):g} free CPU and "
        f"{free.get('GPU', 0):g} free GPU"
    )


@contextmanager
def say_waits(stage: str, reason: Callable[[], str | None], *, seconds: float | None = None) -> Iterator[None]:
    """While the block runs, write a line every `seconds` as long as `reason` returns what is waited for.

    Without `seconds`, every `WAIT_SECONDS`.
    """
    seconds = seconds or WAIT_SECONDS
    ended = threading.Event()

    def watch() -> None:
        said = time.monotonic()
        while not ended.wait(seconds / 12):
            if time.monotonic() - said < seconds:
                continue
            try:
                text = reason()
            except Exception:  # Ray raises nothing narrower where it is not connected at the moment, or not any more
                continue
            if text is not None and not ended.is_set():
                said = time.monotonic()
                print(f"{stage}: {text}", file=sys.stderr, flush=True)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(seconds)


@contextmanager
def say_silence(*, seconds: float | None = None) -> Iterator[None]:
    """While the block runs, write a line whenever this process has written none for `seconds`: what the cluster has.

    Whatever a job waits for, a node, memory or a lost worker's work, its log then says so. Without `seconds`, that is
    `WAIT_SECONDS`.
    """
    seconds = seconds or WAIT_SECONDS
    with _noted_writes() as last:

        def reason() -> str | None:
            silent = time.monotonic() - last[0]
            return (missing_cpus() or f"no line for {silent:.0f} s; {cluster_words()}") if silent >= seconds else None

        with say_waits("cluster", reason, seconds=seconds):
            yield


def cluster_words() -> str:
    """Return what the connected cluster has, what of it is free, and how many nodes have gone, in words."""
    ray: Any = importlib.import_module("ray")
    has, free = _cluster_resources(), ray.available_resources()
    alive = [bool(node["Alive"]) for node in ray.nodes()]
    gone = alive.count(False)
    return (
        f"{counted(alive.count(True), 'node')}{f' ({gone} more have gone)' if gone else ''} with "
        f"{free.get('CPU', 0):g} of {has.get('CPU', 0):g} CPUs and "
        f"{free.get('memory', 0) / 1e9:.1f} of {has.get('memory', 0) / 1e9:.1f} GB of memory free"
    )


@contextmanager
def _noted_writes() -> Iterator[list[float]]:
    """Yield the time (monotonic, in a list) at which this process last wrote to its standard output or error."""
    last = [time.monotonic()]

    def noted(write: Callable[[str], int]) -> Callable[[str], int]:
        def note(text: str) -> int:
            last[0] = time.monotonic()
            return write(text)

        return note

    streams: list[Any] = [sys.stdout, sys.stderr]
    for stream in streams:
        stream.write = noted(stream.write)
    try:
        yield last
    finally:
        for stream in streams:
            with suppress(AttributeError):
                del stream.write


def _cluster_resources() -> dict[str, float]:
    ray: Any = importlib.import_module("ray")
    return dict(ray.cluster_resources())


def _nodes() -> list[dict[str, float]]:
    """Return the resources of each node that is alive."""
    ray: Any = importlib.import_module("ray")
    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def _words(resources: Mapping[str, float]) -> str:
    words = {"CPU": "{:g} CPU", "GPU": "{:g} GPU", "memory": "{:.1f} GB of memory"}
    amounts = {name: amount / 1e9 if name == "memory" else amount for name, amount in resources.items()}
    return " and ".join(words[name].format(amount) for name, amount in amounts.items())


def _promised(variable: str) -> float:
    text = os.environ.get(variable, "0")
    if not text.isdigit():
        what = "CPUs" if variable == CLUSTER_CPUS_VARIABLE else "GPUs"
        raise InputError(f"{variable} is {text!r}; it is the number of {what} that the cluster may grow to.")
    return float(text)


def _growth(kind: str) -> str:
    most = getattr(capacity(), kind)
    return f", and may grow to {most:g}" if most else ", and its head does not say that it may grow"
