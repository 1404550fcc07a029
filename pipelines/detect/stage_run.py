"""Run tasks over Ray Data: the detection of shards, and the choice of triggers for a network coincidence."""

import json
import pickle
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any

from pipelines.config import Config
from pipelines.detect.stage_archive import Archive
from pipelines.detect.stage_coincidence import ChoicePlan, ChoiceTask, choose
from pipelines.detect.stage_plan import Plan
from pipelines.detect.stage_shard import MAX_ATTEMPTS, BatchDetector, detect_batch
from pipelines.detect.stage_summary import Progress
from pipelines.detect.stage_tasks import BatchTask, tasks_of
from pipelines.runtime.allocator import keep_freed_memory
from pipelines.runtime.capacity import refuse_too_small
from pipelines.runtime.errors import describe
from pipelines.runtime.progress import progress_bar
from pipelines.workspace.bundles import NOT_KEPT, bundled
from pipelines.workspace.ledger import MarkerName, marker_bytes
from pipelines.workspace.storage import Store

TASK_MEMORY_BYTES = 3 * 2**29
MAX_TASKS_PER_ROUND = 10_000


def check_workers() -> None:
    """Refuse a cluster whose nodes are too small for a task; a Ray session must be open. Raises InputError."""
    refuse_too_small("a task of detect", cpus=1, memory=TASK_MEMORY_BYTES)


def detect_shards(archive: Archive, workspace: Store, config: Config, plan: Plan, progress: Progress) -> None:
    """Detect the plan's pending shards; the progress's summary takes what each gave."""
    import ray

    shared = ray.put((archive.store, workspace, config, archive.responses))
    summary = progress.summary
    tasks = tasks_of(plan, progress.num_workers)
    with (
        progress_bar("detect", unit="shard", total=len(plan.pending)) as bar,
        bundled(workspace, progress.ledger, plan.num_shards) as bundles,
    ):
        for row in _results(tasks, _Detector(shared), progress.num_workers):
            name = MarkerName(*row["name"])
            summary.add(name, json.loads(row["marker"]))
            if row["num_bytes"]:
                bundles.add(name, row["num_bytes"], row["marker"].encode())
            bar.set_postfix(events=summary.events, failed=len(summary.failed), refresh=False)
            bar.update()
            progress.update(summary.shards)
    progress.finish(summary.shards)


def choose_events(workspace: Store, config: Config, choices: ChoicePlan, progress: Progress) -> None:
    """Write the events of the network coincidence."""
    if not choices.tasks:
        return
    import ray

    shared = ray.put((workspace, config))
    summary = progress.summary
    summary.chosen = done = 0
    num_left = sum(len(task.shards) for task in choices.tasks)
    with (
        progress_bar("coincidence", unit="shard", total=num_left) as bar,
        bundled(workspace, "detect", choices.num_done + num_left) as bundles,
    ):
        for row in _results(choices.tasks, _Chooser(shared), progress.num_workers):
            bar.update()
            if row["error"]:
                summary.failed.append((row["shard"], row["error"]))
            else:
                done += 1
                summary.chosen += row["events"]
                bundles.add(MarkerName(*row["name"]), row["num_bytes"], row["marker"].encode())
            progress.update(done)
    progress.finish(done)


def _results(
    tasks: Iterable[tuple[BatchTask, ...] | ChoiceTask], work: Callable[..., Iterator[dict[str, Any]]], num_workers: int
) -> Iterator[dict[str, Any]]:
    """Yield what the tasks give, in Ray Data executions over their descriptions; rounds bound what the driver holds."""
    import ray

    remaining = iter(tasks)
    while round_ := list(islice(remaining, MAX_TASKS_PER_ROUND)):
        rows = ray.data.from_items([{"task": pickle.dumps(task)} for task in round_], override_num_blocks=len(round_))
        results = rows.flat_map(
            work,
            num_cpus=1,
            memory=TASK_MEMORY_BYTES,
            compute=ray.data.TaskPoolStrategy(size=num_workers),
        )
        # What a task gave is passed on at once; iter_rows would wait for the next task's.
        given: Any = results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        for part in given:
            yield from part.to_pylist()


def _sent(name: MarkerName, content: dict[str, Any]) -> dict[str, Any]:
    """Return what the driver is told of a shard: of one that failed, `num_bytes` of its marker is 0."""
    return {
        "name": [name.network, name.station, name.shard, name.fingerprint],
        "num_bytes": 0 if "error" in content else len(marker_bytes(name, content)),
        "marker": json.dumps({key: value for key, value in content.items() if key not in NOT_KEPT}),
    }


class _Detector:
    """What a Ray task runs: every shard of its batches, each tried twice."""

    def __init__(self, shared: Any) -> None:
        self.shared = shared

    def __call__(self, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        import ray

        keep_freed_memory()
        archive, workspace, config, responses = ray.get(self.shared)
        batches: tuple[BatchTask, ...] = pickle.loads(row["task"])
        new_detector = partial(BatchDetector, archive, workspace, config, responses)
        for batch in batches:
            for shard, content in detect_batch(new_detector, batch):
                yield _sent(shard.name, content)


class _Chooser:
    """What a Ray task runs in the network coincidence."""

    def __init__(self, shared: Any) -> None:
        self.shared = shared

    def __call__(self, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        import ray

        workspace, config = ray.get(self.shared)
        task: ChoiceTask = pickle.loads(row["task"])
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                rows = [
                    _sent(name, content)
                    | {"shard": f"{name.partition}/{name.shard}", "events": content["counts"]["events"], "error": ""}
                    for name, content in choose(workspace, config.detection, config.window.num_samples, task)
                ]
                break
            except Exception as error:
                reason = describe(error)
                first = task.shards[0][0]
                failed = {"shard": f"{first.partition}/{first.shard}", "events": 0, "error": reason}
                rows = [{"name": [""] * 4, "num_bytes": 0, "marker": ""} | failed]
                time.sleep(attempt)
        yield from rows
