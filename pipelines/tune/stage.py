"""Searches augmentations, and keys of `train` if asked, by Ray Tune; writes the best where `train` can take it from.

Every trial trains an encoder in its own process on the same few windows and is judged after every epoch by a score that
does not depend on its augmentations. Trials that have ended are kept: the same command goes on after them.
"""

import time
from dataclasses import dataclass
from typing import Any

from pipelines.config import Config, stage_config, stage_output_keys
from pipelines.config.safe_yaml import to_yaml
from pipelines.config.tune import LEAST_GAIN, TuneSettings
from pipelines.encoders import NETWORKS
from pipelines.handlabels.sampling import label_sample
from pipelines.runtime.errors import InputError, StageFailed
from pipelines.tracking.runs import StageRun, delete_runs, nested_runs, stage_run
from pipelines.tracking.server import Tracking
from pipelines.train.stage_setup import AUGMENTATION_OF_SEARCH
from pipelines.tune.figures import draw_history, draw_importance, draw_parallel
from pipelines.tune.proposals import fixed_points
from pipelines.tune.space import configure, searched_sections, space_of
from pipelines.tune.stage_records import FAILED, Records, TrialRecord, best_of, configured_score, winner_of
from pipelines.tune.stage_search import log_again, search
from pipelines.tune.stage_trials import TrialTask, Windows
from pipelines.tune.stage_workers import check_trials
from pipelines.workspace.artifacts import BEST_AUGMENTATION, write_augmentation
from pipelines.workspace.event_sample import choose_events, events_fingerprint, read_sample
from pipelines.workspace.ledger import fingerprint
from pipelines.workspace.workspace import Workspace

WORTH = {
    "clusters": "how good clusters look (as many as tune.clusters or kmeans.k says, so give the number of classes that "
    "are expected); over 24 settings on each of four sets of events, Spearman's rank correlation with the accuracy was "
    "0.44 to 0.57 at that number, and -0.01 to 0.40 at 8",
    "stability": "the stability of clusters, and a higher one was no sign of better classes where that could be "
    "measured: over 24 settings on each of four sets of events, Spearman's rank correlation with the accuracy was "
    "-0.29 to 0.42",
}
"""What the objectives that need no label were worth."""
NO_LABELS = "tune.objective is validation, but labels.path gives no label in the validation half"

TUNED = "config/tuned.yaml"
"""The winner's settings as a configuration file: augmentations, and the keys of `train` that were searched."""

ALGORITHM_VERSION = 2
"""Raised by hand when the same settings give other proposals or scores."""


@dataclass(frozen=True, kw_only=True)
class TuneSummary:
    """What a search gave."""

    best_score: float
    """Of the best trial that ran to the end."""
    first_score: float | None
    """Of the configured settings; None where they were no trial, or one that failed."""
    least_gain: float
    """By which a trial must be better than the configured settings to win."""
    configured_stay: bool
    """The best trial is not better by that, so the configured settings are the winner."""
    num_trials: int
    """Trials, including those that were stopped early or failed."""
    path: str
    """Where the winner's augmentation section was written."""


def tune_augmentations(workspace: Workspace, config: Config, tracking: Tracking) -> TuneSummary:
    """Search, log a parent run with its trials nested, and write the best settings to the workspace.

    A Ray session must be open. A search that was killed goes on: trials that have ended are not repeated, and their
    runs stay; the run of the search is the same.

    Raises:
        InputError: no events, a space that is none, an encoder without augmentations, an objective without labels.
        StageFailed: no trial ran to its end.
    """
    store = workspace.store
    settings = config.tune
    space = check_search(config)
    check_trials(config)
    sample = choose_events(store, max_events=settings.max_events, seed=settings.seed)
    labels = label_sample(store, sample, config.labels)
    objective = settings.objective
    if objective == "auto":
        objective = "clusters" if labels is None else "validation"
    if objective == "validation" and labels is None:
        raise InputError(NO_LABELS)
    workspace.update_state()
    workspace.store_config("tune", config)
    inputs = {"events": events_fingerprint(store)}
    task = TrialTask(
        config=config,
        space=space,
        windows=Windows(
            read_sample(store, sample, range(len(sample))),
            sample.num_samples,
            sample.rate_hz,
            sample.lead_samples,
            sample.event_ids,
        ),
        labels=labels,
        objective=objective,
    )
    task.network(config)
    keys = stage_output_keys(config, "tune")
    # What changes nothing in a trial.
    unused = [key for key in keys if key.startswith("kmeans.") and objective != "clusters"]
    for key in ("tune.num_trials", "tune.least_gain", *unused):
        del keys[key]
    keys["tune.clusters"] = task.num_clusters
    hand = [] if labels is None else [labels.indices.tolist(), labels.labels.tolist(), labels.folds.tolist()]
    records = Records(
        store, fingerprint({"inputs": inputs, "labels": hand, "config": keys, "version": ALGORITHM_VERSION})
    )
    known = [record for record in records.read() if record.number < settings.num_trials]
    print(
        f"tune: {settings.num_trials} trials of at most {settings.epochs} epochs on {len(sample)} events, "
        f"objective {objective}" + (f"; {len(known)} have ended before" if known else ""),
        flush=True,
    )
    if objective in WORTH:
        print(
            f"tune: without labels the score is {WORTH[objective]} (docs/training.md); compare the winner with the "
            "default by hand labels before using it",
            flush=True,
        )
    began = time.perf_counter()
    parent = records.parent()
    with stage_run(tracking, "tune", stage_config(config, "tune"), inputs=inputs, resume=parent) as run:
        records.keep_parent(run.run_id)
        run.set_tags({"firnline.fingerprint": records.mark, "firnline.objective": objective})
        known = _in_mlflow(run, task, records, known)
        trials = search(run, task, records, known) if len(known) < settings.num_trials else known
        summary = _conclude(workspace, run, task, trials, seconds=time.perf_counter() - began)
    print(f"tune: best {objective} {_conclusion(summary, settings)}", flush=True)
    searched = any(key.startswith("train.") for key in space)
    print(f"tune: train with {f'--config {store.full(TUNED)}' if searched else '--train.augment_from tune'}")
    return summary


def check_search(config: Config) -> Any:
    """Refuse what a search would, as far as it can be known before there are events, and return its space.

    Raises:
        InputError: an encoder without augmentations, a space that is none, an objective without labels.
    """
    if config.train.encoder not in NETWORKS:
        raise InputError(
            f"train.encoder is {config.train.encoder!r}, which has no augmentations to search: "
            f"use {' or '.join(NETWORKS)}"
        )
    if config.labels.path is None and config.tune.objective == "validation":
        raise InputError(NO_LABELS)
    space = space_of(config)
    fixed_points(config.tune, space)
    return space


def _conclusion(summary: TuneSummary, settings: TuneSettings) -> str:
    best = f"{summary.best_score:.3f}"
    if summary.first_score is None:
        return best + " (the trial as configured failed)" * settings.as_configured_first
    if not summary.configured_stay:
        return f"{best} (as configured {summary.first_score:.3f})"
    return (
        f"{best}, as configured {summary.first_score:.3f}: that is not more by {summary.least_gain:g} "
        "(tune.least_gain), which may be luck, so the configured settings stay"
    )


def _in_mlflow(run: StageRun, task: TrialTask, records: Records, known: list[TrialRecord]) -> list[TrialRecord]:
    """Make the children of the search those of the trials that have ended: others go, missing ones are logged again."""
    children = set(nested_runs(run))
    delete_runs(run.tracking, children - {record.run_id for record in known})
    complete = []
    for record in known:
        if record.run_id not in children:
            record = log_again(run, task, record)
            records.write(record)
        complete.append(record)
    return complete


def _conclude(
    workspace: Workspace, run: StageRun, task: TrialTask, trials: list[TrialRecord], *, seconds: float
) -> TuneSummary:
    """Write and log the best settings.

    Raises:
        StageFailed: no trial ran to its end.
    """
    store = workspace.store
    failed = [record for record in trials if record.ended == FAILED]
    if failed:
        print(f"tune: {len(failed)} of {len(trials)} trials failed; trial {failed[0].number}: {failed[0].reason}")
    given = task.config.tune.least_gain
    least_gain = LEAST_GAIN[task.objective] if given is None else given
    best, winner = best_of(trials), winner_of(trials, least_gain)
    if best is None or winner is None:
        raise StageFailed(
            f"no trial of the search ran to its end: {failed[0].reason if failed else 'all were stopped'}"
        )
    sections = searched_sections(configure(task.config, task.space, winner.point), task.space)
    run.log_text(write_augmentation(store, sections["augmentation"]), AUGMENTATION_OF_SEARCH)
    tuned = to_yaml(sections)
    store.write(TUNED, tuned.encode())
    run.log_text(tuned, "tuned.yaml")
    first = configured_score(trials)
    run.log_metrics(
        {
            "best_score": best.score,
            "num_trials": len(trials),
            "num_finished": len([record for record in trials if record.ended == "done"]),
            "num_failed": len(failed),
            "num_epochs": sum(len(record.history) for record in trials),
            "tune_seconds": seconds,
        }
    )
    run.set_tags({"firnline.winner": winner.number})
    if first is not None:
        run.log_metrics({"first_score": first})
    for name, draw in (("history", draw_history), ("parallel", draw_parallel), ("importance", draw_importance)):
        picture = draw(task.space, trials)
        if picture is not None:
            run.log_bytes(picture, f"search/{name}.png")
    return TuneSummary(
        best_score=best.score,
        first_score=first,
        least_gain=least_gain,
        configured_stay=winner is not best,
        num_trials=len(trials),
        path=store.full(BEST_AUGMENTATION),
    )
