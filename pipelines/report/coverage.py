"""The figure of what the archive covers: the recorded part of each day by station, above the events found."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipelines.report.activity import as_dates, time_axis
from pipelines.report.style import COVERAGE_COLOURS, GRID, MUTED, PAPER, drawing, new_figure, quiet, to_png
from pipelines.report.time_bins import BinnedCounts


def coverage_figure(coverage: pd.DataFrame, events: BinnedCounts, max_stations: int = 60) -> Figure:
    """Draw what the archive covers, by station and day, above the events found on each day.

    `coverage` has `station` (such as `AW.VNA1`), `day` (datetime64, midnight UTC) and `fraction` (0 to 1, of the
    day's samples that are there); a missing pair has no data. `events` has one series for each station. Call inside
    `drawing()`.
    """
    stations = sorted(coverage["station"].unique()) if len(coverage) else []
    shown = stations[:max_stations]
    days = (
        pd.to_datetime(coverage["day"]).to_numpy(dtype="datetime64[D]")
        if len(coverage)
        else np.zeros(0, "datetime64[D]")
    )
    figure = new_figure(9.6, 1.9 + 0.22 * max(len(shown), 1))
    upper, lower = figure.subplots(
        2, 1, sharex=True, gridspec_kw={"height_ratios": [0.22 * max(len(shown), 1) + 0.1, 1.3]}
    )
    for axes in (upper, lower):
        quiet(axes)
    if len(shown):
        # Long archives: several days share a cell, which shows their mean.
        first, last = days.min(), days.max()
        span = int((last - first).astype(int)) + 1
        per_cell = -(-span // 1500)
        cells = -(-span // per_cell)
        total = np.zeros((len(shown), cells))
        row_of = {station: row for row, station in enumerate(shown)}
        rows = coverage["station"].map(row_of)
        here = rows.notna().to_numpy()
        columns = (days[here] - first).astype(int) // per_cell
        np.add.at(total, (rows[here].to_numpy(dtype=int), columns), coverage["fraction"].to_numpy(dtype=float)[here])
        mean = total / per_cell
        start = float((first - np.datetime64("1970-01-01")).astype(int))
        image = upper.imshow(
            np.ma.masked_equal(mean, 0.0),
            aspect="auto",
            extent=(start, start + cells * per_cell, len(shown) - 0.5, -0.5),
            cmap=COVERAGE_COLOURS,
            vmin=0,
            vmax=1,
            interpolation="none",
        )
        upper.set_xlim(start, start + span)
        bar = figure.colorbar(image, ax=[upper, lower], aspect=30, fraction=0.02, pad=0.01, ticks=[0, 0.5, 1])
        bar.ax.set_yticklabels(["0 %", "50 %", "100 %"])
        bar.outline.set_visible(False)
        bar.set_label("of the day recorded")
    upper.set_yticks(range(len(shown)), shown)
    upper.tick_params(axis="y", length=0)
    upper.tick_params(axis="x", length=0)
    for side in ("left", "bottom"):
        upper.spines[side].set_visible(False)
    for boundary in range(1, len(shown)):
        upper.axhline(boundary - 0.5, color=PAPER, linewidth=2)
    if len(stations) > len(shown):
        upper.set_title(f"the first {len(shown)} of {len(stations)} stations", loc="left", color=MUTED)
    edges = events.edges_s()
    if len(edges):
        total_events = events.counts.groupby(level=1).sum()
        counts = np.zeros(len(edges) - 1, dtype=np.int64)
        counts[total_events.index.to_numpy(dtype=np.int64) - edges[0] // events.width_s] = total_events.to_numpy()
        lower.stairs(counts, as_dates(edges), fill=True, color=MUTED, alpha=0.8, linewidth=0)
    lower.set_ylim(bottom=0)
    lower.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    lower.grid(axis="y", color=GRID)
    lower.set_ylabel(f"detections\nin {events.width_name}")
    lower.set_xlabel("UTC")
    time_axis(lower)
    return figure


def coverage_plot(coverage: pd.DataFrame, events: BinnedCounts) -> bytes:
    """Return `coverage_figure` as a PNG file on white."""
    with drawing():
        return to_png(coverage_figure(coverage, events))
