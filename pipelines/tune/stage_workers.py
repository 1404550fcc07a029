"""Where a trial runs: in its own process, or on several workers by Ray Train; and which trials fit the cluster."""

import importlib
import shutil
import tempfile
import time
import traceback
from typing import Any

import torch

from pipelines.config import Config
from pipelines.runtime.capacity import Capacity, capacity
from pipelines.runtime.errors import InputError, StageFailed, last_line
from pipelines.runtime.ray_session import SPARE_CPUS, on_cluster
from pipelines.train.loop import HopelessTraining
from pipelines.train.stage_ray import torch_config
from pipelines.tune.space import Point
from pipelines.tune.stage_trials import run_trial


def check_trials(config: Config) -> None:
    """Refuse a search of which no trial fits the machine or cluster, counting what a cluster may grow to.

    A cluster whose nodes have not come yet is waited for. A Ray session must be open.

    Raises:
        InputError: names the keys and what there is.
    """
    most = capacity()
    if trials_at_once(config, most) >= 1:
        return
    wanted, has = resources_of_trial(config), "may grow to" if most.grows else "has"
    raise InputError(
        f"a trial of the search needs {' and '.join(f'{amount:g} {name}' for name, amount in wanted.items())} "
        "(train.num_workers, train.cpus_per_worker, train.use_gpu, tune.gpus_per_worker), but Ray "
        f"{has} {_cpus(most):g} CPU and {most.gpus:g} GPU; ask for less"
    )


def trials_at_once(config: Config, most: Capacity) -> int:
    """Return how many trials run at a time: what is configured, at most as many as fit what Ray has or may grow to.

    One at a time where that is not known.
    """
    if most.unknown:
        return config.tune.num_workers or 1
    wanted = resources_of_trial(config)
    # What a cluster may grow to does not count the CPUs that come with its GPUs.
    fits = [] if config.train.use_gpu and most.grows else [_cpus(most) / wanted["CPU"]]
    if config.train.use_gpu:
        fits.append(most.gpus / wanted["GPU"])
    number = int(min(fits) + 1e-6)
    return min(number, config.tune.num_workers or number)


def resources_of_trial(config: Config) -> dict[str, float]:
    """Return the CPUs and GPUs of a trial, all of its workers together."""
    workers = max(1, config.train.num_workers)
    return {name: workers * amount for name, amount in _of_worker(config).items()}


def resources_of_process(config: Config) -> dict[str, float]:
    """Return what the process of a trial itself takes: no CPU where its workers are processes of their own."""
    # Ray Tune wants some resource; every node has memory.
    return {"memory": 1} if config.train.num_workers > 1 else _of_worker(config)


def train_trial(shared: Any, number: int, point: Point, notes: Any) -> None:
    """Run a trial inside the process that Ray Tune has started for it.

    A trial that fails by itself returns, too: raised, Ray would take its error for a lost worker and repeat it.

    Args:
        shared: reference to the trial's task, which all trials share; a node keeps one copy.
        number: of the trial.
        point: what it tries.
        notes: actor that is told why a trial fails by itself.
    """
    ray: Any = importlib.import_module("ray")
    tune: Any = importlib.import_module("ray.tune")
    if not ray.get(notes.begin.remote(number)):
        # It had failed when its worker was lost.
        return
    task = ray.get(shared)
    if task.config.train.num_workers > 1:
        _train_on_workers(shared, task.config, number, point, notes)
        return
    device = torch.device("cuda" if task.config.train.use_gpu else "cpu")
    try:
        run_trial(task, point, tune.report, device=device)
    except Exception as error:
        if not _note(notes, number, error):
            raise


def _note(notes: Any, number: int, error: Exception) -> bool:
    """Tell `notes` why a trial failed; False for the loss of another process, which says nothing about the trial."""
    import ray.exceptions

    lost = isinstance(error, ray.exceptions.RayError | torch.distributed.DistError)
    # What a rank sees whose peer has gone; Gloo has no type for it.
    if lost or (isinstance(error, RuntimeError) and "gloo" in str(error).lower()):
        return False
    own_words = isinstance(error, HopelessTraining | InputError)
    if not own_words:
        traceback.print_exc()
    words = last_line(error)
    ray.get(notes.failed.remote(number, words if own_words else f"{type(error).__name__}: {words}"))
    return True


def _train_on_workers(shared: Any, config: Config, number: int, point: Point, notes: Any) -> None:
    import ray
    import ray.train.torch

    # Ray gives it no types.
    integration: Any = importlib.import_module("ray.tune.integration.ray_train")
    settings = config.train
    state = tempfile.mkdtemp(prefix="firnline-trial-")
    trainer = ray.train.torch.TorchTrainer(
        _train_worker,
        train_loop_config={"shared": shared, "number": number, "point": point, "notes": notes},
        torch_config=torch_config(),
        scaling_config=ray.train.ScalingConfig(
            num_workers=settings.num_workers, use_gpu=settings.use_gpu, resources_per_worker=_of_worker(config)
        ),
        run_config=ray.train.RunConfig(
            name=f"trial-{number}-{time.time_ns()}",
            storage_path=state,
            callbacks=[integration.TuneReportCallback()],
            # A trial with a lost worker is repeated as a whole, by Ray Tune.
            failure_config=ray.train.FailureConfig(max_failures=0),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        if ray.get(notes.of.remote(number))[0] is None:
            raise StageFailed(last_line(error)) from error
    finally:
        shutil.rmtree(state, ignore_errors=True)


def _train_worker(task: dict[str, Any]) -> None:
    import ray
    import ray.train
    import ray.train.torch

    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    shared = ray.get(task["shared"])

    def report(figures: dict[str, float]) -> None:
        if rank == 0:
            ray.get(task["notes"].epoch.remote(task["number"], figures))
        ray.train.report(figures)

    try:
        run_trial(shared, task["point"], report, device=device, rank=rank, world=world)
    except Exception as error:
        # The other ranks may wait for this one: Ray Train ends them.
        _note(task["notes"], task["number"], error)
        raise


def _of_worker(config: Config) -> dict[str, float]:
    settings = config.train
    return {"CPU": settings.cpus_per_worker, **({"GPU": config.tune.gpus_per_worker} if settings.use_gpu else {})}


def _cpus(most: Capacity) -> float:
    # A Ray that the job has started itself has these on top of the machine's cores.
    return most.cpus if on_cluster() else max(1.0, most.cpus - SPARE_CPUS)
