"""The search by Ray Tune: Optuna proposes points, ASHA stops bad trials, and each trial is a run in MLflow."""

import importlib
import os
import shutil
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from pipelines.config import Config
from pipelines.runtime.errors import StageFailed
from pipelines.runtime.ray_session import SPARE_CPUS
from pipelines.tracking.runs import StageRun, stage_run
from pipelines.tune.space import dimensions_of
from pipelines.tune.stage_trials import METRICS, TrialTask, run_trial, section_of


def search(config: Config, run: StageRun, task: TrialTask) -> Any:
    """Run the trials and return Ray Tune's results; each trial is a child run of `run`.

    The first trial has the configured augmentations. A Ray session must be open.
    """
    ray: Any = importlib.import_module("ray")
    tune: Any = importlib.import_module("ray.tune")
    from optuna.distributions import FloatDistribution
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    settings = config.tune
    dimensions = dimensions_of(task.preset)
    shared = ray.put(task)

    def trial(trial_config: dict[str, Any]) -> None:
        run_trial(ray.get(shared), trial_config)

    searcher = OptunaSearch(
        space={name: FloatDistribution(one.low, one.high) for name, one in dimensions.items()},
        metric="score",
        mode="max",
        seed=settings.seed,
    )
    scheduler = ASHAScheduler(
        max_t=settings.epochs, grace_period=settings.grace_epochs, reduction_factor=settings.reduction
    )
    cpus = int(ray.cluster_resources().get("CPU", 1))
    at_once = settings.num_workers or max(1, cpus - SPARE_CPUS)
    folder = Path(tempfile.mkdtemp(prefix="firnline-tune-"))
    # Ray Tune's own handler would turn an interrupt into a search that ended, and stay after it.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    runs = _nested_runs(run, task.base)
    try:
        tuner = tune.Tuner(
            tune.with_resources(trial, {"CPU": 1}),
            tune_config=tune.TuneConfig(
                metric="score",
                mode="max",
                search_alg=_first_as_configured(searcher),
                scheduler=scheduler,
                num_samples=settings.num_trials,
                max_concurrent_trials=at_once,
            ),
            run_config=tune.RunConfig(name="tune", storage_path=str(folder), verbose=0, callbacks=[runs]),
        )
        return tuner.fit()
    except BaseException as error:
        runs.end_open(error)
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _first_as_configured(inner: Any) -> Any:
    """Return a searcher whose first trial is the configuration as it stands and whose others are the inner one's."""
    from ray.tune.search import Searcher

    class FirstAsConfigured(Searcher):
        """Wraps a point as {"first": ..., "point": ...}; the inner searcher does not see the first trial."""

        def __init__(self) -> None:
            super().__init__(metric="score", mode="max")
            self.first: str | None = None

        def set_search_properties(self, *args: Any, **kwargs: Any) -> bool:
            return True

        def suggest(self, trial_id: str) -> Any:
            if self.first is None:
                self.first = trial_id
                return {"first": True, "point": {}}
            point = inner.suggest(trial_id)
            return None if point is None else {"first": False, "point": point}

        def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
            if trial_id != self.first:
                inner.on_trial_result(trial_id, result)

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            if trial_id != self.first:
                inner.on_trial_complete(trial_id, result=result, error=error)

        def save(self, checkpoint_path: str) -> None:
            inner.save(checkpoint_path)

        def restore(self, checkpoint_path: str) -> None:
            inner.restore(checkpoint_path)

    return FirstAsConfigured()


def _nested_runs(parent: StageRun, base: dict[str, Any]) -> Any:
    """Return a Tune callback that logs every trial as a child run of the parent; it runs in the driver."""
    from ray.tune import Callback

    class NestedRuns(Callback):
        """One MLflow run per trial."""

        def __init__(self) -> None:
            self.open: dict[str, tuple[ExitStack, StageRun]] = {}

        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            if trial.trial_id in self.open:
                return
            stack = ExitStack()
            point = trial.config["point"]
            child = stack.enter_context(
                stage_run(
                    parent.tracking,
                    "tune-trial",
                    {"augmentation": section_of(base, point)},
                    inputs={},
                    parent=parent,
                    name="as configured" if trial.config["first"] else f"trial {trial.trial_id}",
                )
            )
            self.open[trial.trial_id] = (stack, child)

        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            _, child = self.open[trial.trial_id]
            child.log_metrics(
                {name: result[name] for name in METRICS if name in result}, step=int(result["training_iteration"])
            )

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            stack, child = self.open.pop(trial.trial_id)
            child.set_tags({"firnline.trial": trial.trial_id})
            stack.close()

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            stack, child = self.open.pop(trial.trial_id)
            child.set_tags({"firnline.trial": trial.trial_id})
            _end(stack, StageFailed("the trial failed"))

        def end_open(self, error: BaseException) -> None:
            """End the runs of trials that the search did not end, as its own run ends."""
            for stack, _ in self.open.values():
                _end(stack, error)
            self.open.clear()

    return NestedRuns()


def _end(stack: ExitStack, error: BaseException) -> None:
    """End a trial's run by an error, which goes no further."""
    with suppress(type(error)):
        stack.__exit__(type(error), error, None)
