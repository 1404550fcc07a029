"""Durations and peak amplitudes of each cluster's events: counted table by table in logarithmic bins, and drawn."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipelines.report.style import GRID, INK, cluster_colour, log_axis, new_figure, quiet
from pipelines.report.words import short_name

MEASURES = ("duration_s", "peak_amplitude")
BINS_A_DECADE = 10
_LIMIT = 40 * BINS_A_DECADE
"""Bins on each side of 1; what lies beyond counts in the last."""


def count_measures(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the events (`events`) by `cluster`, `measure` (of `MEASURES`) and `bin`: 10 ** (bin / 10) is its start.

    `rows` has `cluster` and the measures; values that are not above 0 are in no bin.
    """
    parts = []
    for measure in MEASURES:
        values = rows[measure].to_numpy(dtype=float)
        positive = np.isfinite(values) & (values > 0)
        bins = np.floor(np.log10(values[positive]) * BINS_A_DECADE).clip(-_LIMIT, _LIMIT).astype(np.int64)
        clusters = rows["cluster"].to_numpy(dtype=np.int64)[positive]
        counted = pd.DataFrame({"cluster": clusters, "measure": measure, "bin": bins}).value_counts(sort=False)
        parts.append(counted.rename("events").reset_index())
    return merge_measures(parts)


def merge_measures(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """Return the sum of several counts."""
    return pd.concat(parts).groupby(["cluster", "measure", "bin"], sort=True)["events"].sum().reset_index()


def quantiles(measures: pd.DataFrame, cluster: int, measure: str) -> tuple[float, float, float] | None:
    """Return the quartiles of a measure in a cluster, to a bin's width (26 %); None without any value."""
    own = measures[(measures["cluster"] == cluster) & (measures["measure"] == measure)].sort_values("bin")
    if not len(own):
        return None
    counts = own["events"].to_numpy(dtype=np.int64)
    ranks = np.searchsorted(np.cumsum(counts), np.array([0.25, 0.5, 0.75]) * counts.sum())
    low, middle, high = 10 ** ((own["bin"].to_numpy(dtype=float)[ranks] + 0.5) / BINS_A_DECADE)
    return float(low), float(middle), float(high)


def distribution_figure(measures: pd.DataFrame, names: Mapping[int, str], units: str) -> Figure:
    """Draw durations (left) and peak amplitudes (right) of each cluster, each panel with its own scale of counts.

    Args:
        measures: as `count_measures` returns them.
        names: titles of the panels by cluster, in their order.
        units: of the amplitudes.

    Call inside `drawing()`.
    """
    panels = max(len(names), 1)
    figure = new_figure(9.6, 0.55 + 0.62 * panels)
    grid = figure.subplots(panels, 2, sharex="col", squeeze=False)
    for row, (cluster, name) in enumerate(names.items()):
        for axes, measure in zip(grid[row], MEASURES, strict=True):
            quiet(axes)
            own = measures[(measures["cluster"] == cluster) & (measures["measure"] == measure)]
            if len(own):
                bins = own["bin"].to_numpy(dtype=np.int64)
                counts = np.zeros(bins.max() - bins.min() + 1)
                counts[bins - bins.min()] = own["events"].to_numpy(dtype=float)
                edges = 10 ** (np.arange(bins.min(), bins.max() + 2) / BINS_A_DECADE)
                axes.stairs(counts, edges, fill=True, color=cluster_colour(cluster), alpha=0.85, linewidth=0)
                middle = quantiles(measures, cluster, measure)
                if middle is not None:
                    axes.axvline(middle[1], color=INK, linewidth=0.9)
            log_axis(axes)
            axes.yaxis.set_major_locator(MaxNLocator(2, integer=True))
            axes.set_ylim(0, max(float(own["events"].max()) * 1.12 if len(own) else 1.0, 1.0))
            axes.grid(axis="y", color=GRID)
            axes.spines["left"].set_visible(False)
            axes.tick_params(axis="y", length=0)
        grid[row][0].set_ylabel(short_name(name), rotation=0, ha="right", va="center", color=INK, labelpad=8)
    grid[-1][0].set_xlabel("duration of the trigger, s; detections")
    grid[-1][1].set_xlabel(f"peak amplitude, {units}; detections")
    return figure
