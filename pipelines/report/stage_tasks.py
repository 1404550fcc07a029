"""The report's work in parts: one after the other, or as Ray tasks where Ray runs."""

import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from pipelines.report.stage_inputs import label_files
from pipelines.runtime.ray_session import task_results
from pipelines.workspace import tables
from pipelines.workspace.workspace import Workspace

T = TypeVar("T")
R = TypeVar("R")


def wants_ray(workspace: Workspace) -> bool:
    """Whether there is enough to read for Ray to pay; InputError where the workspace has no labels."""
    return len(tables.by_task(label_files(workspace))) > 1


def map_tasks(task: Callable[[T], R], parts: Sequence[T]) -> Iterator[R]:
    """Yield the task's result for every part, in order; as Ray tasks, a few ahead, where Ray runs and it pays."""
    ray: Any = importlib.import_module("ray")
    if len(parts) == 1 or not ray.is_initialized():
        yield from map(task, parts)
        return
    remote = ray.remote(num_cpus=1, max_retries=3)(task)
    ahead = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting = [remote.remote(part) for part in parts[:ahead]]
    for index in range(len(parts)):
        yield from task_results([waiting.pop(0)])
        if index + ahead < len(parts):
            waiting.append(remote.remote(parts[index + ahead]))
