"""Which point each trial of a search tries: it depends on the trial's number and on the trials that have ended alone.

So a search that was killed goes on as it would have: the same number with the same trials before it gives the same
point.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import optuna

from pipelines.config.tune import SearchRange, TuneSettings
from pipelines.runtime.errors import InputError
from pipelines.tune.space import Point, distributions_of, drawn_of, grid_of, point_of
from pipelines.tune.stage_records import FAILED, TrialRecord

STARTUP_TRIALS = 10
"""Trials that have ended before `tpe` learns from them; until then it draws at random, as Optuna does."""


def fixed_points(settings: TuneSettings, space: Mapping[str, SearchRange]) -> list[Point]:
    """Return the points of the first trials: as configured, the known good ones, the grid.

    Raises:
        InputError: a grid with more points than trials.
    """
    points: list[Point] = [{}] if settings.as_configured_first else []
    points += [dict(point) for point in settings.start]
    if settings.searcher == "grid":
        for point in grid_of(space, settings.grid_points):
            points.append(point)
            if len(points) > settings.num_trials:
                raise InputError(
                    f"tune.num_trials is {settings.num_trials}, fewer than the points of the grid; raise it, lower "
                    "tune.grid_points, or search fewer keys"
                )
    return points


def propose(
    settings: TuneSettings, space: Mapping[str, SearchRange], number: int, records: Sequence[TrialRecord]
) -> Point | None:
    """Return the point of a trial; None where a grid has no more.

    Args:
        settings: of the search.
        space: what is searched.
        number: of the trial, from 0.
        records: the trials that have ended.
    """
    fixed = fixed_points(settings, space)
    if number < len(fixed):
        return fixed[number]
    if settings.searcher == "grid":
        return None
    study = study_of(space, sorted(records, key=lambda record: record.number))
    seed = int.from_bytes(hashlib.sha256(f"tune {settings.seed} {number}".encode()).digest()[:4], "little")
    if settings.searcher == "random":
        study.sampler = optuna.samplers.RandomSampler(seed=seed)
    else:
        study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS)
    return point_of(space, study.ask(distributions_of(space)).params)


def study_of(space: Mapping[str, SearchRange], records: Sequence[TrialRecord]) -> Any:
    """Return an Optuna study of the trials that have ended with a score and whose points lie in the space."""
    logging.getLogger("optuna").setLevel(logging.WARNING)
    study = optuna.create_study(direction="maximize")
    distributions = distributions_of(space)
    for record in records:
        drawn = drawn_of(space, record.point)
        if record.ended == FAILED or not record.history or drawn is None:
            continue
        study.add_trial(
            optuna.trial.create_trial(
                params=drawn,
                distributions=distributions,
                value=record.score,
                intermediate_values={epoch + 1: entry["score"] for epoch, entry in enumerate(record.history)},
            )
        )
    return study
