"""Searches the augmentations by Ray Tune (Optuna, ASHA) and writes the best section where `train` can take it from.

Every trial trains the configured encoder in its own process on the same few windows and is judged after every epoch by
a score that does not depend on its augmentations.
"""

import importlib
import shutil
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.config import Config, stage_config, with_keys
from pipelines.config.augmentation import AugmentationSettings
from pipelines.contrastive.augmentations import Augmenter, build_augmenter
from pipelines.contrastive.objective import cluster_stability
from pipelines.contrastive.step import TrainPlan, new_state, run_epoch
from pipelines.contrastive.whitening import whiten_by_views
from pipelines.encoders import NETWORKS, Encoder, NetworkConfig
from pipelines.handlabels.sampling import SampleLabels, label_sample, validation_scores
from pipelines.runtime.allocator import keep_freed_memory
from pipelines.runtime.errors import InputError, StageFailed
from pipelines.runtime.ray_session import SPARE_CPUS
from pipelines.tracking.runs import StageRun, stage_run
from pipelines.tracking.server import Tracking
from pipelines.train.setup import network_config, prepare_windows, train_plan
from pipelines.tune.space import apply_point, dimensions_of
from pipelines.workspace.artifacts import BEST_AUGMENTATION, write_augmentation
from pipelines.workspace.event_sample import choose_events, events_fingerprint, read_sample
from pipelines.workspace.ledger import fingerprint
from pipelines.workspace.workspace import Workspace

SCORED_WINDOWS = 1000
"""Windows that the label-free score of a trial is computed on."""

NO_LABELS = "tune.objective is validation, but labels.path gives no label in the validation half"

_METRICS = ("score", "loss", "stability", "effective_rank", "validation_knn", "validation_linear")


@dataclass(frozen=True, kw_only=True)
class TuneSummary:
    """What a search gave."""

    best_score: float
    """Of the best trial that ran to the end."""
    first_score: float
    """Of the configuration that the search began with."""
    num_trials: int
    """Trials, the stopped ones included."""
    path: str
    """Where the best augmentation section was written."""


def tune_augmentations(workspace: Workspace, config: Config, tracking: Tracking) -> TuneSummary:
    """Search, log a parent run with its trials nested, and write the best section to the workspace.

    A Ray session must be open. The configured augmentations are the first trial.

    Raises:
        InputError: no events, an encoder without augmentations, an objective without labels.
        StageFailed: no trial ran to its end.
    """
    store = workspace.store
    settings = config.tune
    check_search(config)
    sample = choose_events(store, max_events=settings.max_events, seed=settings.seed)
    labels = label_sample(store, sample, config.labels)
    objective = settings.objective
    if objective == "auto":
        objective = "stability" if labels is None else "validation"
    if objective == "validation" and labels is None:
        raise InputError(NO_LABELS)
    windows = read_sample(store, sample, range(len(sample)))
    network = network_config(config, sample)
    base = config.augmentation.model_dump(mode="json")
    plan = train_plan(with_keys(config, {"train": {"epochs": settings.epochs}}))
    workspace.update_state()
    workspace.store_config("tune", config)
    began = time.perf_counter()
    inputs = {"events": events_fingerprint(store)}
    print(
        f"tune: {settings.num_trials} trials of at most {settings.epochs} epochs on {len(sample)} events, "
        f"objective {objective}."
    )
    with stage_run(tracking, "tune", stage_config(config, "tune"), inputs=inputs) as run:
        run.set_tags({"firnline.fingerprint": fingerprint({"inputs": inputs, "config": stage_config(config, "tune")})})
        results = _search(config, run, network, plan, base, windows, labels, objective)
        failed = [str(result.error).strip().splitlines()[-1] for result in results if result.error]
        if failed:
            print(f"tune: {len(failed)} of {len(results)} trials failed, the first with {failed[0]}.")
        finished = [r for r in results if r.metrics and r.metrics.get("training_iteration", 0) >= settings.epochs]
        if not finished:
            raise StageFailed(f"no trial of the search ran to its end: {failed[0] if failed else 'all were stopped'}")
        best = max(finished, key=lambda result: float(result.metrics["score"]))
        first = next((r for r in finished if r.config["first"]), best)
        section = _section(base, best.config["point"])
        run.log_text(write_augmentation(store, section), "best-augmentation.yaml")
        run.log_metrics(
            {
                "best_score": float(best.metrics["score"]),
                "first_score": float(first.metrics["score"]),
                "num_trials": len(results),
                "num_finished": len(finished),
                "num_failed": len(failed),
                "tune_seconds": time.perf_counter() - began,
            }
        )
        run.set_tags({"firnline.objective": objective})
    summary = TuneSummary(
        best_score=float(best.metrics["score"]),
        first_score=float(first.metrics["score"]),
        num_trials=len(results),
        path=store.full(BEST_AUGMENTATION),
    )
    print(
        f"tune: {objective} {summary.best_score:.3f} (as configured {summary.first_score:.3f}), written to "
        f"{summary.path}; use it by --train.augment_from tune."
    )
    return summary


def check_search(config: Config) -> None:
    """Refuse what a search would, as far as it can be known before there are events.

    Raises:
        InputError: an encoder without augmentations, an objective without labels.
    """
    if config.train.encoder not in NETWORKS:
        raise InputError(
            f"train.encoder is {config.train.encoder!r}, which has no augmentations to search: "
            f"use {' or '.join(NETWORKS)}"
        )
    if config.labels.path is None and config.tune.objective == "validation":
        raise InputError(NO_LABELS)


def _section(base: dict[str, Any], point: dict[str, float]) -> dict[str, Any]:
    """Return a point's augmentation section, checked as a configuration file's would be."""
    return AugmentationSettings.model_validate(apply_point(base, point)).model_dump(mode="json")


def _search(
    config: Config,
    run: StageRun,
    network: NetworkConfig,
    plan: TrainPlan,
    base: dict[str, Any],
    windows: NDArray[np.float32],
    labels: SampleLabels | None,
    objective: str,
) -> Any:
    ray: Any = importlib.import_module("ray")
    tune: Any = importlib.import_module("ray.tune")
    from optuna.distributions import FloatDistribution
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    settings = config.tune
    dimensions = dimensions_of(config.train.augmentation)
    task = ray.put(
        {
            "network": network,
            "plan": plan,
            "preset": config.train.augmentation,
            "base": base,
            "windows": windows,
            "labels": labels,
            "objective": objective,
            "clusters": settings.clusters,
            "whiten": config.train.whiten,
        }
    )

    def trial(trial_config: dict[str, Any]) -> None:
        _run_trial(ray.get(task), trial_config)

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
            run_config=tune.RunConfig(
                name="tune", storage_path=str(folder), verbose=0, callbacks=[_nested_runs(run, base)]
            ),
        )
        return tuner.fit()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run_trial(task: dict[str, Any], trial_config: dict[str, Any]) -> None:
    """Train one encoder with one point's augmentations, and report its score after every epoch."""
    tune: Any = importlib.import_module("ray.tune")
    torch.set_num_threads(1)
    keep_freed_memory()
    network, plan = task["network"], task["plan"]
    section = _section(task["base"], trial_config["point"])
    augmenter = build_augmenter(task["preset"], section, network.lead_samples)
    prepared = prepare_windows(task["windows"], network.lead_samples)
    state = new_state(network, plan, torch.device("cpu"))
    for _ in range(plan.epochs):
        figures = run_epoch(state, prepared, augmenter, plan)
        figures |= _judge(state.learner.network, augmenter, task)
        tune.report({name: figures[name] for name in _METRICS if name in figures})


def _judge(network: torch.nn.Module, augmenter: Augmenter, task: dict[str, Any]) -> dict[str, float]:
    # Encoder freezes what it is given: the training goes on with the original.
    copy = type(network)(task["network"])
    copy.load_state_dict(network.state_dict())
    encoder = Encoder(task["network"], copy)
    windows = task["windows"]
    scores: dict[str, float] = {}
    if task["labels"] is not None:
        scores |= validation_scores(encoder.embed(windows[task["labels"].places]), task["labels"])
    some = windows[:: max(1, -(-len(windows) // SCORED_WINDOWS))]
    if task["whiten"]:
        whiten_by_views(copy, prepare_windows(some, task["network"].lead_samples), augmenter, task["plan"].seed)
    stability = cluster_stability(encoder, some, num_clusters=task["clusters"], seed=0)
    scores["stability"] = stability["stability"]
    scores["score"] = scores.get("validation_knn", 0.0) if task["objective"] == "validation" else scores["stability"]
    return scores


def _first_as_configured(inner: Any) -> Any:
    """Return a searcher whose first trial is the configuration as it stands and whose others are the inner one's."""
    from ray.tune.search import Searcher

    class FirstAsConfigured(Searcher):
        """Wraps a point as {"first": ..., "point": ...}; the first trial's result is not told to the inner searcher."""

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
        """One MLflow run a trial."""

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
                    {"augmentation": _section(base, point)},
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
                {name: result[name] for name in _METRICS if name in result}, step=int(result["training_iteration"])
            )

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            stack, child = self.open.pop(trial.trial_id)
            child.set_tags({"firnline.trial": trial.trial_id})
            stack.close()

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            stack, child = self.open.pop(trial.trial_id)
            child.set_tags({"firnline.trial": trial.trial_id})
            error = StageFailed("the trial failed")
            with suppress(StageFailed):
                stack.__exit__(type(error), error, None)

    return NestedRuns()
