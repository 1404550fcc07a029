"""The figure of the events of each cluster over time."""

from collections.abc import Mapping
from typing import Any

import matplotlib.dates as mdates
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipelines.report.style import INK, cluster_colour, new_figure, quiet
from pipelines.report.time_bins import BinnedCounts
from pipelines.report.words import short_name


def activity_figure(binned: BinnedCounts, names: Mapping[int, str]) -> Figure:
    """Draw the events of each cluster over time: one panel for each cluster, each with its own scale of counts.

    `names` maps the clusters to the titles of their panels, in the order of the panels. Call inside `drawing()`.
    """
    edges = binned.edges_s()
    panels = max(len(names), 1)
    figure = new_figure(9.6, 0.45 + 0.62 * panels)
    all_axes = figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]
    dates = as_dates(edges)
    for axes, (cluster, name) in zip(all_axes, names.items(), strict=False):
        quiet(axes)
        counts = binned.of(cluster)
        colour = cluster_colour(cluster)
        if len(counts):
            axes.stairs(counts, dates, fill=True, color=colour, alpha=0.85, linewidth=0)
            axes.set_xlim(dates[0], dates[-1])
        axes.set_ylim(0, max(float(counts.max(initial=0)) * 1.12, 1.0))
        axes.yaxis.set_major_locator(MaxNLocator(2, integer=True))
        axes.set_ylabel(short_name(name), rotation=0, ha="right", va="center", color=INK, labelpad=8)
        axes.grid(axis="y")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
    time_axis(all_axes[-1])
    all_axes[-1].set_xlabel(f"UTC; detections in bins of {binned.width_name}")
    return figure


def time_axis(axes: Axes) -> None:
    """Label a time axis (UTC) from years down to seconds, each tick with no more than it needs."""
    dates: Any = mdates
    locator = dates.AutoDateLocator(minticks=3, maxticks=9, tz="UTC")
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(
        dates.ConciseDateFormatter(
            locator,
            tz="UTC",
            formats=["%Y", "%b %Y", "%d %b", "%H:%M", "%H:%M", "%S.%f"],
            zero_formats=["%Y", "%b %Y", "%d %b %Y", "%d %b", "%H:%M", "%H:%M"],
            offset_formats=["", "", "%Y", "%d %b %Y", "%d %b %Y", "%d %b %Y %H:%M"],
        )
    )


def as_dates(seconds: npt.NDArray[np.int64]) -> npt.NDArray[np.datetime64]:
    """Return seconds since 1970-01-01 UTC as dates that a time axis takes."""
    return seconds.astype("datetime64[s]")
