"""Figures of a search, each returned as PNG bytes: scores over trials, all points at once, what mattered."""

import io
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import optuna
from matplotlib import colormaps
from matplotlib.figure import Figure

from pipelines.config.tune import SearchRange
from pipelines.tune.proposals import study_of
from pipelines.tune.space import drawn_of
from pipelines.tune.stage_records import DONE, FAILED, STOPPED, TrialRecord

MIN_TRIALS = 4
"""Trials of the space that importance needs."""

COLOURS = {DONE: "#0072b2", STOPPED: "#b0b0b0"}


def draw_history(space: Mapping[str, SearchRange], trials: Sequence[TrialRecord]) -> bytes | None:
    """Draw the score of every trial, and the best so far of those that ran to their end."""
    scored = [record for record in trials if record.ended != FAILED and record.history]
    if not scored:
        return None
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    for ended, colour in COLOURS.items():
        some = [record for record in scored if record.ended == ended]
        axes.plot([r.number for r in some], [r.score for r in some], "o", ms=4, color=colour, label=ended)
    done = [record for record in scored if record.ended == DONE]
    if done:
        axes.step(
            [r.number for r in done], np.maximum.accumulate([r.score for r in done]), where="post", color="#d55e00"
        )
    axes.set(xlabel="trial", ylabel="score")
    axes.legend(frameon=False)
    return _png(figure)


def draw_parallel(space: Mapping[str, SearchRange], trials: Sequence[TrialRecord]) -> bytes | None:
    """Draw every trial of the space as a line over its values, each axis from the smallest to the largest value."""
    some = [(drawn_of(space, record.point), record) for record in trials if record.ended != FAILED and record.history]
    lines = [(drawn, record.score) for drawn, record in some if drawn is not None]
    if len(lines) < 2:
        return None
    keys = sorted(space)
    values = np.array([[float(drawn[key]) for key in keys] for drawn, _ in lines])
    low, high = values.min(axis=0), values.max(axis=0)
    spread = np.where(high > low, high - low, 1.0)
    scores = np.array([score for _, score in lines])
    shade = (scores - scores.min()) / max(float(np.ptp(scores)), 1e-12)
    figure = Figure(figsize=(max(6.0, 0.7 * len(keys)), 4.5), layout="constrained")
    axes = figure.subplots()
    colours = colormaps["viridis"]
    for row, share in sorted(zip((values - low) / spread, shade, strict=True), key=lambda pair: pair[1]):
        axes.plot(range(len(keys)), row, color=colours(share), lw=0.6 + 1.4 * share)
    axes.set_xticks(range(len(keys)), [f"{key}\n{a:.3g} to {b:.3g}" for key, a, b in zip(keys, low, high, strict=True)])
    axes.tick_params(axis="x", rotation=90, labelsize=7)
    axes.set(yticks=[], title=f"bright: high score ({scores.min():.3f} to {scores.max():.3f})")
    return _png(figure)


def draw_importance(space: Mapping[str, SearchRange], trials: Sequence[TrialRecord]) -> bytes | None:
    """Draw how much of the scores' variance each key explains (fANOVA, Hutter et al. 2014)."""
    study = study_of(space, trials)
    scores = {trial.value for trial in study.trials}
    if len(study.trials) < MIN_TRIALS or len(scores) < 2:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)
        )
    figure = Figure(figsize=(7, 1 + 0.25 * len(found)), layout="constrained")
    axes = figure.subplots()
    names = list(found)[::-1]
    axes.barh(names, [found[name] for name in names], color=COLOURS[DONE])
    axes.set(xlabel=f"share of the variance of the score ({len(study.trials)} trials)")
    axes.tick_params(axis="y", labelsize=7)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
