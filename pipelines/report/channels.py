"""The figure of what became of each channel's recordings: the used part of each day, and seconds by outcome."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pipelines.report.activity import time_axis
from pipelines.report.style import CLUSTER_COLOURS, COVERAGE_COLOURS, MUTED, PAPER, new_figure, quiet

MAX_CELLS = 1500
MAX_OUTCOMES = 5
"""Outcomes with a colour of their own beside `used` and `no_data`; the others are drawn together."""


def channel_figure(days: pd.DataFrame, seconds: pd.DataFrame) -> Figure:
    """Draw the used part of each channel-day (left) and what became of all its seconds (right).

    Args:
        days: `channel`, `day` (datetime64) and `fraction` (0 to 1, used); a missing pair has none.
        seconds: seconds by outcome, a row a channel (index), a column an outcome (the contract's words).

    Call inside `drawing()`.
    """
    channels = list(seconds.index)
    figure = new_figure(9.6, 1.0 + 0.2 * max(len(channels), 1))
    left, right = figure.subplots(1, 2, sharey=True, gridspec_kw={"width_ratios": [2.2, 1]})
    for axes in (left, right):
        quiet(axes)
    if len(days):
        first, last = days["day"].min(), days["day"].max()
        span = (last - first).days + 1
        per_cell = -(-span // MAX_CELLS)
        cells = np.zeros((len(channels), -(-span // per_cell)))
        row_of = {channel: row for row, channel in enumerate(channels)}
        rows = days["channel"].map(row_of).to_numpy(dtype=np.int64)
        columns = (days["day"] - first).dt.days.to_numpy(dtype=np.int64) // per_cell
        np.add.at(cells, (rows, columns), days["fraction"].to_numpy(dtype=float) / per_cell)
        start = float((first - pd.Timestamp("1970-01-01")).days)
        image = left.imshow(
            np.ma.masked_equal(cells, 0.0),
            aspect="auto",
            extent=(start, start + cells.shape[1] * per_cell, len(channels) - 0.5, -0.5),
            cmap=COVERAGE_COLOURS,
            vmin=0,
            vmax=1,
            interpolation="none",
        )
        left.set_xlim(start, start + span)
        bar = figure.colorbar(image, ax=left, location="top", aspect=40, fraction=0.03, pad=0.02, ticks=[0, 0.5, 1])
        bar.ax.set_xticklabels(["0 %", "50 %", "100 % of the day used"])
        bar.outline.set_visible(False)
        time_axis(left)
    left.set_xlabel("UTC")
    left.set_yticks(range(len(channels)), channels)
    for boundary in range(1, len(channels)):
        left.axhline(boundary - 0.5, color=PAPER, linewidth=1.5)
    shares = seconds.div(seconds.sum(axis=1).replace(0.0, np.nan), axis=0).fillna(0.0)
    begin = np.zeros(len(channels))
    colours = _colours(shares)
    together = shares.drop(columns=[name for name in colours if name in shares]).sum(axis=1)
    for outcome, colour in colours.items():
        own = shares.get(outcome, together).to_numpy(dtype=float)
        right.barh(range(len(channels)), own, left=begin, height=0.8, color=colour, label=outcome.replace("_", " "))
        begin += own
    right.set_xlim(0, 1)
    right.set_xticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
    right.set_xlabel("of all seconds, by outcome")
    for axes in (left, right):
        axes.tick_params(axis="y", length=0)
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
    if len(channels):
        right.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, fontsize=7.2, borderaxespad=0.1)
    return figure


def _colours(shares: pd.DataFrame) -> dict[str, str]:
    """Return the outcomes that are drawn, in their order, with their colours; `other` stands for the rest."""
    largest = shares.sum().drop(labels=["used", "no_data"], errors="ignore").sort_values(ascending=False, kind="stable")
    named = [str(name) for name in largest[largest > 0].index[:MAX_OUTCOMES]]
    colours = {"used": CLUSTER_COLOURS[0]}
    colours |= dict(zip(named, CLUSTER_COLOURS[1:], strict=False))
    if (largest > 0).sum() > MAX_OUTCOMES:
        colours["other"] = MUTED
    if "no_data" in shares and shares["no_data"].sum() > 0:
        colours["no_data"] = "#d5dde4"
    return colours
