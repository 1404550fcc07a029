"""The search by Ray Tune: each trial's point is proposed, ASHA stops bad trials, and each trial is a run in MLflow."""

import importlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipelines.config.tune import TuneSettings
from pipelines.runtime.capacity import capacity
from pipelines.runtime.errors import InputError, StageFailed, last_line
from pipelines.tracking.runs import StageRun, stage_run
from pipelines.tune.proposals import propose
from pipelines.tune.space import configure, searched_sections
from pipelines.tune.stage_records import DONE, FAILED, STOPPED, Records, TrialRecord, best_of
from pipelines.tune.stage_trials import METRICS, TrialTask
from pipelines.tune.stage_workers import resources_of_process, train_trial, trials_at_once

LOST_WORKERS = 3
"""How often a trial is repeated whose worker or node is lost."""


def search(run: StageRun, task: TrialTask, records: Records, known: list[TrialRecord]) -> list[TrialRecord]:
    """Run the trials that are left, and return all; each is a child run of `run`. A Ray session must be open.

    Args:
        run: of the search.
        task: what the trials share.
        records: where each trial is kept when it ends.
        known: the trials that have ended in earlier attempts; they count, and ASHA and the proposals know them.
    """
    ray: Any = importlib.import_module("ray")
    tune: Any = importlib.import_module("ray.tune")

    settings = task.config.tune
    shared = ray.put(task)
    notes = _notes(ray)

    def trial(trial_config: dict[str, Any]) -> None:
        train_trial(shared, trial_config["number"], trial_config["point"], notes)

    scheduler = _scheduler(settings)
    for record in known:
        _replay(scheduler, record)
    ended = {record.number for record in known}
    left = [number for number in range(settings.num_trials) if number not in ended]
    watch = Watch(run, task, records, known, left, lambda number: ray.get(notes.of.remote(number)))
    folder = Path(tempfile.mkdtemp(prefix="firnline-tune-"))
    # Ray Tune's own handler would turn an interrupt into a search that ended, and stay after it.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    # A trial that fails in its first epoch ends without a score, for which Ray Tune would end the search.
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
    try:
        tuner = tune.Tuner(
            tune.with_resources(trial, resources_of_process(task.config)),
            tune_config=tune.TuneConfig(
                search_alg=_searcher(watch),
                scheduler=scheduler,
                num_samples=len(left),
                max_concurrent_trials=max(1, trials_at_once(task.config, capacity())),
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(folder),
                verbose=0,
                callbacks=[_callback(watch)],
                failure_config=tune.FailureConfig(max_failures=LOST_WORKERS),
            ),
        )
        watch.explain(tuner.fit())
    except BaseException as error:
        watch.end_open(error)
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return [record for _, record in sorted(watch.records.items())]


def log_again(run: StageRun, task: TrialTask, record: TrialRecord) -> TrialRecord:
    """Log a trial of an earlier attempt, whose run is gone, as a child of a new parent; return it with its new run."""
    with ExitStack() as stack:
        child = _child(stack, run, task, record.number, record.point)
        for figures in record.history:
            child.log_metrics(_logged(figures), step=int(figures["training_iteration"]))
        child.set_tags(_tags(record))
        if record.ended == FAILED:
            _end(stack.pop_all(), StageFailed(record.reason))
    return replace(record, run_id=child.run_id)


class Watch:
    """Follows the trials that run: gives them their points, keeps those that end, and writes their runs."""

    def __init__(
        self,
        run: StageRun,
        task: TrialTask,
        records: Records,
        known: list[TrialRecord],
        left: list[int],
        noted: Callable[[int], tuple[str | None, list[dict[str, float]]]],
    ) -> None:
        self.run, self.task, self.store, self.noted = run, task, records, noted
        self.records = {record.number: record for record in known}
        self.left: Iterator[int] = iter(left)
        self.num_left = len(left)
        self.number_of: dict[str, int] = {}
        self.point_of: dict[str, dict[str, Any]] = {}
        self.history: dict[str, dict[int, dict[str, float]]] = {}
        self.open: dict[str, tuple[ExitStack, StageRun]] = {}
        self.began = time.monotonic()

    def propose(self, trial_id: str) -> dict[str, Any] | None:
        """Return the next trial's number and point; None where there is none left."""
        number = next(self.left, None)
        if number is None:
            return None
        point = propose(self.task.config.tune, self.task.space, number, list(self.records.values()))
        if point is None:
            return None
        self.number_of[trial_id], self.point_of[trial_id] = number, point
        return {"number": number, "point": point}

    def begin(self, trial_id: str) -> None:
        """Open a trial's run."""
        if trial_id not in self.open:
            stack = ExitStack()
            number, point = self.number_of[trial_id], self.point_of[trial_id]
            self.open[trial_id] = (stack, _child(stack, self.run, self.task, number, point))

    def hear(self, trial_id: str, result: dict[str, Any] | None) -> None:
        """Take up an epoch's figures; Ray tells the last one twice."""
        if result is None or "score" not in result:
            return
        epoch = int(result["training_iteration"])
        figures = {name: float(result[name]) for name in METRICS if name in result} | {"training_iteration": epoch}
        if epoch not in self.history.setdefault(trial_id, {}):
            self.history[trial_id][epoch] = figures
            if trial_id in self.open:
                self.open[trial_id][1].log_metrics(_logged(figures), step=epoch)

    def keep(self, trial_id: str, *, lost: bool) -> None:
        """Keep a trial that has ended, before its run is closed: what is kept is never repeated.

        Args:
            trial_id: Ray's.
            lost: its worker or node was lost, for the last time.
        """
        own_failure, epochs = self.noted(self.number_of[trial_id])
        if own_failure is not None:
            # What a trial's first worker reported is not told where another one fails before it has reported.
            for epoch, figures in enumerate(epochs, 1):
                self.hear(trial_id, figures | {"training_iteration": epoch})
        history = tuple(figures for _, figures in sorted(self.history.get(trial_id, {}).items()))
        without = "its worker was lost" if lost else "" if history else "it ended without a score"
        reason = own_failure or without
        whole = bool(history) and history[-1]["training_iteration"] >= self.task.config.tune.epochs
        record = TrialRecord(
            number=self.number_of[trial_id],
            point=self.point_of[trial_id],
            ended=FAILED if reason else DONE if whole else STOPPED,
            history=history,
            reason=reason,
            run_id=self.open[trial_id][1].run_id if trial_id in self.open else "",
        )
        self.records[record.number] = record
        self.store.write(record)

    def close(self, trial_id: str) -> None:
        """End a trial's run and say how the search stands."""
        record = self.records[self.number_of[trial_id]]
        stack, child = self.open.pop(trial_id)
        child.set_tags(_tags(record))
        if record.ended == FAILED:
            _end(stack, StageFailed(record.reason))
        else:
            stack.close()
        self._say()

    def explain(self, results: Iterable[Any]) -> None:
        """Keep how workers were lost, which Ray tells at the end."""
        for result in results:
            record = self.records.get(result.config["number"]) if result.error and result.config else None
            if record is not None and record.ended == FAILED:
                cause = getattr(result.error, "cause", None) or result.error
                record = replace(record, reason=last_line(cause))
                self.records[record.number] = record
                self.store.write(record)
                StageRun(self.run.tracking, record.run_id).set_tags(_tags(record))

    def _say(self) -> None:
        num_trials = self.task.config.tune.num_trials
        ended_now = self.num_left - (num_trials - len(self.records))
        words = [f"{len(self.records)} of {num_trials} trials ended"]
        words += [
            f"{count} {how}"
            for how in (STOPPED, FAILED)
            if (count := sum(r.ended == how for r in self.records.values()))
        ]
        words.append(f"{len(self.open)} running")
        best = best_of(self.records.values())
        if best is not None:
            words.append(f"best {best.score:.3f} (trial {best.number})")
        if 0 < ended_now < self.num_left:
            seconds = (time.monotonic() - self.began) / ended_now * (self.num_left - ended_now)
            words.append(f"some {max(1, round(seconds / 60))} min left")
        print(f"tune: {', '.join(words)}", flush=True)

    def end_open(self, error: BaseException) -> None:
        """End the runs of trials that the search did not end, as its own run ends."""
        for stack, _ in self.open.values():
            _end(stack, error)
        self.open.clear()


def _notes(ray: Any) -> Any:
    """Return an actor that knows which trials failed by themselves, and the epochs of trials on several workers.

    What a trial's worker knows goes with it. The actor lies on the node of the driver, and so outlives all other nodes.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Defined here, it goes to its worker as it is, and imports nothing there.
    class Notes:
        def __init__(self) -> None:
            self.reasons: dict[int, str] = {}
            self.epochs: dict[int, list[dict[str, float]]] = {}

        def begin(self, number: int) -> bool:
            """Forget the epochs of an earlier attempt; return whether the trial may be attempted."""
            if number in self.reasons:
                return False
            self.epochs[number] = []
            return True

        def epoch(self, number: int, figures: dict[str, float]) -> None:
            self.epochs[number].append(figures)

        def failed(self, number: int, reason: str) -> None:
            self.reasons[number] = reason

        def of(self, number: int) -> tuple[str | None, list[dict[str, float]]]:
            return self.reasons.get(number), self.epochs.get(number, [])

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Notes).remote()


def _searcher(watch: Watch) -> Any:
    from ray.tune.search import Searcher

    class Proposals(Searcher):
        """Ray Tune's side of the proposals."""

        def __init__(self) -> None:
            super().__init__(metric="score", mode="max")

        def set_search_properties(self, *args: Any, **kwargs: Any) -> bool:
            return True

        def suggest(self, trial_id: str) -> Any:
            proposed = watch.propose(trial_id)
            return Searcher.FINISHED if proposed is None else proposed

        def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
            watch.hear(trial_id, result)

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            watch.hear(trial_id, result)
            watch.keep(trial_id, lost=error)

        def save(self, checkpoint_path: str) -> None:
            Path(checkpoint_path).write_bytes(b"")

        def restore(self, checkpoint_path: str) -> None:
            raise NotImplementedError("a search goes on by its own records")

    return Proposals()


def _callback(watch: Watch) -> Any:
    from ray.tune import Callback

    class Runs(Callback):
        """Ray Tune's side of the runs; called in the driver."""

        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            watch.begin(trial.trial_id)

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            watch.close(trial.trial_id)

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            watch.close(trial.trial_id)

    return Runs()


def _scheduler(settings: TuneSettings) -> Any:
    from ray.tune.schedulers import ASHAScheduler, TrialScheduler

    class Scheduler(ASHAScheduler):
        """ASHA that lets the trial as configured run to its end: it is what the others are compared with."""

        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            decision = str(super().on_trial_result(tune_controller, trial, result))
            configured = not trial.config["point"] and result["training_iteration"] < settings.epochs
            return TrialScheduler.CONTINUE if configured else decision

    return Scheduler(
        metric="score",
        mode="max",
        max_t=settings.epochs,
        grace_period=settings.grace_epochs,
        reduction_factor=settings.reduction,
    )


def _replay(scheduler: Any, record: TrialRecord) -> None:
    """Let ASHA know a trial of an earlier attempt."""
    stand_in = SimpleNamespace(trial_id=f"known-{record.number}", config={"point": record.point})
    scheduler.on_trial_add(None, stand_in)
    for figures in record.history:
        scheduler.on_trial_result(None, stand_in, figures)


def _child(stack: ExitStack, run: StageRun, task: TrialTask, number: int, point: dict[str, Any]) -> StageRun:
    try:
        sections = searched_sections(configure(task.config, task.space, point), task.space)
    except InputError:
        # Each value is possible, all of them together are not; the trial will say why.
        sections = dict(point)
    return stack.enter_context(
        stage_run(
            run.tracking,
            "tune-trial",
            sections,
            inputs={},
            parent=run,
            name=f"trial {number}" if point else "as configured",
        )
    )


def _logged(figures: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if name != "training_iteration"}


def _tags(record: TrialRecord) -> dict[str, Any]:
    return {
        "firnline.trial": record.number,
        "firnline.trial_ended": record.ended,
        "firnline.trial_epochs": len(record.history),
        **({"firnline.trial_reason": record.reason} if record.reason else {}),
    }


def _end(stack: ExitStack, error: BaseException) -> None:
    """End a trial's run by an error, which goes no further."""
    with suppress(type(error)):
        stack.__exit__(type(error), error, None)
