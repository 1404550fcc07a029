"""Detections by hour of the day and by month of the year, cluster by cluster: counted table by table, and drawn."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipelines.report.style import GRID, INK, MUTED, cluster_colour, new_figure, quiet
from pipelines.report.words import short_name

SLOTS = {"hour": 24, "month": 12}
"""Slots of a day (UTC) and of a year, from 0 on."""
_MONTHS = ("J", "F", "M", "A", "M", "J", "J", "A", "S", "O", "N", "D")


def count_rhythm(onset_ns: npt.NDArray[np.int64], clusters: npt.NDArray[np.int32]) -> pd.DataFrame:
    """Return the events (`events`) by `cluster`, `cycle` (a key of `SLOTS`) and `slot`, of onsets in ns since 1970."""
    times = onset_ns.astype("datetime64[ns]")
    slots = {
        "hour": onset_ns // (3600 * 10**9) % 24,
        "month": times.astype("datetime64[M]").astype(np.int64) % 12,
    }
    parts = [
        pd.DataFrame({"cluster": clusters.astype(np.int64), "cycle": cycle, "slot": slot}).value_counts(sort=False)
        for cycle, slot in slots.items()
    ]
    return merge_rhythms([part.rename("events").reset_index() for part in parts])


def merge_rhythms(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """Return the sum of several counts."""
    return pd.concat(parts).groupby(["cluster", "cycle", "slot"], sort=True)["events"].sum().reset_index()


def recorded_days(days: "pd.Series[pd.Timestamp]", fractions: "pd.Series[float]") -> npt.NDArray[np.float64]:
    """Return the recorded station-days in each month of the year. Shape (12,).

    `days` are those of the stations, `fractions` (0 to 1) the recorded part of each.
    """
    months = days.dt.month.to_numpy(dtype=np.int64) - 1
    return np.bincount(months, weights=fractions.to_numpy(dtype=float), minlength=12)[:12].astype(np.float64)


def rhythm_figure(
    rhythm: pd.DataFrame, names: Mapping[int, str], recorded: npt.NDArray[np.float64] | None = None
) -> Figure:
    """Draw the events of each cluster by hour of the day (left) and month of the year (right).

    Args:
        rhythm: as `count_rhythm` returns it.
        names: titles of the panels by cluster, in their order.
        recorded: station-days recorded in each month of the year; given, months show detections a recorded day, and a
            month without a recording is left out.

    Call inside `drawing()`.
    """
    panels = max(len(names), 1)
    figure = new_figure(9.6, 0.55 + 0.62 * panels)
    grid = figure.subplots(panels, 2, sharex="col", squeeze=False, gridspec_kw={"width_ratios": [1.5, 1]})
    for row, (cluster, name) in enumerate(names.items()):
        for axes, cycle in zip(grid[row], SLOTS, strict=True):
            own = rhythm[(rhythm["cluster"] == cluster) & (rhythm["cycle"] == cycle)]
            values = np.zeros(SLOTS[cycle])
            values[own["slot"].to_numpy(dtype=np.int64)] = own["events"].to_numpy(dtype=float)
            if cycle == "month" and recorded is not None:
                values = np.divide(values, recorded, out=np.full(12, np.nan), where=recorded > 0)
            quiet(axes)
            edges = np.arange(SLOTS[cycle] + 1)
            axes.stairs(np.nan_to_num(values), edges, fill=True, color=cluster_colour(cluster), alpha=0.85, linewidth=0)
            axes.set_xlim(0, SLOTS[cycle])
            axes.set_ylim(0, max(float(np.nanmax(values, initial=0.0)) * 1.12, 1e-9 if recorded is not None else 1.0))
            axes.yaxis.set_major_locator(MaxNLocator(2))
            axes.grid(axis="y", color=GRID)
            axes.spines["left"].set_visible(False)
            axes.tick_params(axis="y", length=0)
            if cycle == "month" and recorded is not None:
                for month in np.flatnonzero(~(recorded > 0)):
                    axes.axvspan(month, month + 1, color=MUTED, alpha=0.12, linewidth=0)
        grid[row][0].set_ylabel(short_name(name), rotation=0, ha="right", va="center", color=INK, labelpad=8)
    hours, months = grid[-1]
    hours.set_xticks(range(0, 25, 3))
    hours.set_xlabel("hour of the day, UTC; detections")
    months.set_xticks(np.arange(12) + 0.5, _MONTHS)
    months.set_xlabel("month; detections" if recorded is None else "month; detections in a recorded station-day")
    return figure
