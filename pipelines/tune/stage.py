"""Searches the augmentations by Ray Tune and writes the best section where `train` can take it from.

Every trial trains the configured encoder in its own process on the same few windows and is judged after every epoch by
a score that does not depend on its augmentations.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pipelines.config import Config, stage_config, with_keys
from pipelines.encoders import NETWORKS
from pipelines.handlabels.sampling import label_sample
from pipelines.runtime.errors import InputError, StageFailed
from pipelines.tracking.runs import stage_run
from pipelines.tracking.server import Tracking
from pipelines.train.stage_setup import network_config, train_plan
from pipelines.tune.stage_search import search
from pipelines.tune.stage_trials import TrialTask, section_of
from pipelines.workspace.artifacts import BEST_AUGMENTATION, write_augmentation
from pipelines.workspace.event_sample import choose_events, events_fingerprint, read_sample
from pipelines.workspace.ledger import fingerprint
from pipelines.workspace.workspace import Workspace

NO_LABELS = "tune.objective is validation, but labels.path gives no label in the validation half"


@dataclass(frozen=True, kw_only=True)
class TuneSummary:
    """What a search gave."""

    best_score: float
    """Of the best trial that ran to the end."""
    first_score: float | None
    """Of the configured augmentations, the first trial; None where that trial did not run to its end."""
    num_trials: int
    """Trials, including those that were stopped early."""
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
        task = TrialTask(
            network=network,
            plan=plan,
            preset=config.train.augmentation,
            base=base,
            windows=windows,
            labels=labels,
            objective=objective,
            num_clusters=settings.clusters,
            whiten=config.train.whiten,
        )
        results = search(config, run, task)
        failed = [str(result.error).strip().splitlines()[-1] for result in results if result.error]
        if failed:
            print(f"tune: {len(failed)} of {len(results)} trials failed, the first with {failed[0]}.")
        finished = finished_trials(results, settings.epochs)
        if not finished:
            raise StageFailed(f"no trial of the search ran to its end: {failed[0] if failed else 'all were stopped'}")
        best = max(finished, key=lambda result: float(result.metrics["score"]))
        first = configured_score(finished)
        section = section_of(base, best.config["point"])
        run.log_text(write_augmentation(store, section), "best-augmentation.yaml")
        run.log_metrics(
            {
                "best_score": float(best.metrics["score"]),
                "num_trials": len(results),
                "num_finished": len(finished),
                "num_failed": len(failed),
                "tune_seconds": time.perf_counter() - began,
            }
        )
        if first is not None:
            run.log_metrics({"first_score": first})
        run.set_tags({"firnline.objective": objective})
    summary = TuneSummary(
        best_score=float(best.metrics["score"]),
        first_score=first,
        num_trials=len(results),
        path=store.full(BEST_AUGMENTATION),
    )
    configured = "the trial as configured did not finish" if first is None else f"as configured {first:.3f}"
    print(
        f"tune: best {objective} {summary.best_score:.3f} ({configured}), written to {summary.path}; use it with "
        "--train.augment_from tune."
    )
    return summary


def finished_trials(results: Iterable[Any], epochs: int) -> list[Any]:
    """Return the results of the trials that ran to their last epoch."""
    return [result for result in results if result.metrics and result.metrics.get("training_iteration", 0) >= epochs]


def configured_score(finished: Iterable[Any]) -> float | None:
    """Return the score of the trial with the configured augmentations; None where it did not run to its end."""
    return next((float(result.metrics["score"]) for result in finished if result.config["first"]), None)


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
