"""Training by Ray Train: workers that each read and hold a share of the windows."""

import fcntl
import os
import shutil
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipelines.config.train import TrainSettings
from pipelines.contrastive.checkpoint import read_facts
from pipelines.runtime.capacity import missing_workers, say_waits
from pipelines.runtime.errors import StageFailed, last_line
from pipelines.runtime.ray_session import local_cores, on_cluster
from pipelines.train.loop import HopelessTraining, Training, train_rank
from pipelines.train.stage_checkpoints import last_checkpoint, watch_checkpoints, write_checkpoint
from pipelines.train.stage_setup import fits_on_device, prepare_windows
from pipelines.workspace.event_sample import EventSample, read_sample
from pipelines.workspace.storage import Store

_SIOCGIFADDR = 0x8915
"""Linux's request for the address of an interface."""


@dataclass(frozen=True, kw_only=True)
class RayTraining:
    """What a training by Ray workers needs, beside the workers' resources."""

    store: Store
    training: Training
    sample: EventSample
    folder: str
    """Of the checkpoints, in the store."""


def fit_with_ray(task: RayTraining, settings: TrainSettings, report: Callable[[list[dict[str, float]]], None]) -> bytes:
    """Train on Ray workers and return the last checkpoint; `report` gets the history of epochs as it grows.

    Raises:
        HopelessTraining: the loss is stuck or has diverged.
        StageFailed: workers were lost too often.
    """
    import ray.train.torch

    store, folder = task.store, task.folder
    world: Any = settings.num_workers
    resources = {"CPU": settings.cpus_per_worker, **({"GPU": 1} if settings.use_gpu else {})}
    if settings.min_workers is not None and settings.min_workers < settings.num_workers:
        world = (settings.min_workers, settings.num_workers)
    loop_config = {
        "store": store,
        "sample": task.sample,
        "training": task.training,
        "folder": folder,
        "num_threads": settings.num_threads or _threads(settings),
    }
    store.remove(f"{folder}/stopped.txt")
    state = Path(tempfile.mkdtemp(prefix="firnline-train-"))
    trainer = ray.train.torch.TorchTrainer(
        _train_worker,
        train_loop_config=loop_config,
        torch_config=torch_config(),
        scaling_config=ray.train.ScalingConfig(
            num_workers=world,
            use_gpu=settings.use_gpu,
            resources_per_worker=resources,
        ),
        run_config=ray.train.RunConfig(
            name=f"train-{time.time_ns()}",
            storage_path=str(state),
            failure_config=ray.train.FailureConfig(max_failures=settings.max_failures),
        ),
    )
    fewest = settings.min_workers or settings.num_workers
    waits = say_waits("train", lambda: missing_workers(fewest, resources))
    try:
        with watch_checkpoints(store, folder, report) as errors, waits:
            _interruptible(trainer.fit, errors)
    except ray.train.TrainingFailedError as error:
        raise StageFailed(f"training failed: {last_line(error.__cause__ or error)}") from error
    finally:
        shutil.rmtree(state, ignore_errors=True)
    if store.exists(f"{folder}/stopped.txt"):
        raise HopelessTraining(store.read(f"{folder}/stopped.txt").decode())
    content = last_checkpoint(store, folder)
    if content is None or read_facts(content)[0] < task.training.plan.epochs:
        raise StageFailed(f"training ended before its last epoch: see {store.full(folder)}")
    report(read_facts(content)[1]["history"])
    return content


def _interruptible(work: Callable[[], Any], errors: list[BaseException]) -> None:
    """Do the work in another thread, so that Ctrl-C raises KeyboardInterrupt in this one; raise the first of `errors`.

    In the main thread Ray Train would take the signal itself and end the process with exit code 0.
    """

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive() and not errors:
        thread.join(0.5)
    if errors:
        raise errors[0]


def torch_config() -> Any:
    """Return Ray's torch configuration for workers whose Gloo listens on the address that Ray knows.

    Gloo takes the address that the host's name resolves to, which on Debian is 127.0.1.1: workers on other hosts cannot
    connect to that.
    """
    import ray.train.torch

    class NodeAddressBackend(ray.train.torch.TorchConfig().backend_cls):  # type: ignore[misc]
        """Sets Gloo's interface in every worker before the process group is made."""

        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            worker_group.execute(_use_interface_of_node)
            super().on_start(worker_group, backend_config)

    @dataclass
    class NodeAddressConfig(ray.train.torch.TorchConfig):
        """As Ray's own, with the backend above."""

        @property
        def backend_cls(self) -> Any:
            return NodeAddressBackend

    return NodeAddressConfig()


def _use_interface_of_node() -> None:
    import ray.util

    node_address: Any = ray.util.get_node_ip_address
    name = interface_of(node_address())
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def interface_of(address: str) -> str | None:
    """Return the name of this host's network interface that has an IPv4 address; None where none has it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
            except OSError:
                # The interface has no IPv4 address.
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None


def _threads(settings: TrainSettings) -> int:
    """Return the torch threads of a worker: of its CPUs on a cluster, where the cores of this machine say nothing."""
    if on_cluster():
        return max(1, int(settings.cpus_per_worker))
    return max(1, local_cores() // settings.num_workers)


def _train_worker(task: dict[str, Any]) -> None:
    import ray.train
    import ray.train.torch

    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    store, sample, folder, training = task["store"], task["sample"], task["folder"], task["training"]
    torch.set_num_threads(1)
    share = sample.shares(world)[rank]
    windows = prepare_windows(read_sample(store, sample, share), sample.lead_samples)
    torch.set_num_threads(task["num_threads"])
    device = ray.train.torch.get_device()
    if device.type == "cuda" and fits_on_device(windows, device):
        windows = windows.to(device)

    def after_epoch(done: int, content: bytes | None, figures: dict[str, float]) -> None:
        if content is not None:
            write_checkpoint(store, folder, done, content)
        # A barrier: no rank begins an epoch whose checkpoint is not yet durable.
        ray.train.report({"epoch": done, **figures})

    try:
        train_rank(
            training,
            windows,
            device=device,
            rank=rank,
            world=world,
            checkpoint=last_checkpoint(store, folder),
            after_epoch=after_epoch,
        )
    except HopelessTraining as error:
        # Every rank sees the same loss and ends here; raised, Ray would take it for a lost worker and try again.
        if rank == 0:
            store.write(f"{folder}/stopped.txt", str(error).encode())
