"""When things happened: counts in time bins that grow with the span, and their figures.

Counts are folded table by table. The bins start at a minute and are merged into wider ones whenever there are too
many, so memory is bounded by `max_bins` times the number of series, and the result depends on the onsets alone, not
on the order of the tables.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.dates as mdates
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipelines.report.figures import GRID, INK, MUTED, PAPER, cluster_colour, drawing, new_figure, quiet, to_png

BIN_WIDTHS_S = (60, 600, 3600, 6 * 3600, 86_400, 7 * 86_400, 28 * 86_400, 364 * 86_400)
_WIDTH_NAMES = ("1 minute", "10 minutes", "1 hour", "6 hours", "1 day", "1 week", "4 weeks", "52 weeks")
_COVERAGE_COLOURS = LinearSegmentedColormap.from_list("coverage", ["#d9e6ef", "#7fb2d3", "#2f7fc1", "#123f66"], N=64)


@dataclass(frozen=True, kw_only=True)
class BinnedCounts:
    """Counts by series and time bin."""

    width_s: int
    """Width of a bin (s), one of `BIN_WIDTHS_S`; bins start at multiples of it since 1970-01-01 UTC."""

    counts: "pd.Series[int]"
    """Counts above 0, indexed by (series, bin): the bin's number is its start in seconds divided by the width."""

    @property
    def width_name(self) -> str:
        """Return the width in words, such as `1 hour`."""
        return _WIDTH_NAMES[BIN_WIDTHS_S.index(self.width_s)]

    def edges_s(self) -> npt.NDArray[np.int64]:
        """Return the edges (s since 1970-01-01 UTC) of all bins, first to last that count. Shape (bin + 1,)."""
        bins = self.counts.index.get_level_values(1).to_numpy(dtype=np.int64)
        if not len(bins):
            return np.zeros(0, dtype=np.int64)
        return np.arange(bins.min(), bins.max() + 2, dtype=np.int64) * self.width_s

    def of(self, series: int | str) -> npt.NDArray[np.int64]:
        """Return the counts of one series in all bins. Shape (bin,)."""
        edges = self.edges_s()
        result = np.zeros(max(len(edges) - 1, 0), dtype=np.int64)
        if series in self.counts.index.get_level_values(0):
            own = self.counts.xs(series, level=0)
            result[own.index.to_numpy(dtype=np.int64) - edges[0] // self.width_s] = own.to_numpy()
        return result


def no_counts(width_s: int = BIN_WIDTHS_S[0]) -> BinnedCounts:
    """Return counts of nothing; `width_s` is the narrowest bin wanted."""
    index = pd.MultiIndex.from_arrays(
        [pd.Index([], dtype=object), pd.Index([], dtype=np.int64)], names=["series", "bin"]
    )
    return BinnedCounts(width_s=width_s, counts=pd.Series(np.zeros(0), index=index).astype(np.int64))


def add_onsets(
    binned: BinnedCounts,
    onsets_ns: npt.NDArray[np.int64],
    series: npt.NDArray[np.generic] | Sequence[object],
    max_bins: int,
) -> BinnedCounts:
    """Return the counts with these onsets (ns since 1970-01-01 UTC) added to the series named beside them."""
    if not len(onsets_ns):
        return binned
    bins = np.asarray(onsets_ns, dtype=np.int64) // (binned.width_s * 1_000_000_000)
    new = pd.Series(1, index=pd.MultiIndex.from_arrays([np.asarray(series), bins], names=["series", "bin"]))
    added = BinnedCounts(width_s=binned.width_s, counts=new.groupby(level=[0, 1]).sum())
    return merge_counts(binned, added, max_bins)


def merge_counts(first: BinnedCounts, second: BinnedCounts, max_bins: int) -> BinnedCounts:
    """Return the sum of two counts, in the wider bins of the two, widened until there are at most `max_bins`."""
    width_s = max(first.width_s, second.width_s)
    both = pd.concat([_widened(first, width_s), _widened(second, width_s)])
    counts = both.groupby(level=[0, 1]).sum().astype(np.int64) if len(both) else first.counts
    result = BinnedCounts(width_s=width_s, counts=counts)
    for wider in BIN_WIDTHS_S[BIN_WIDTHS_S.index(width_s) + 1 :]:
        bins = result.counts.index.get_level_values(1)
        if not len(bins) or int(bins.max()) - int(bins.min()) + 1 <= max_bins:
            break
        result = BinnedCounts(width_s=wider, counts=_widened(result, wider))
    return result


def _widened(binned: BinnedCounts, width_s: int) -> "pd.Series[int]":
    if width_s == binned.width_s or not len(binned.counts):
        return binned.counts
    index = binned.counts.index
    bins = index.get_level_values(1).to_numpy(dtype=np.int64) * binned.width_s // width_s
    widened = binned.counts.set_axis(
        pd.MultiIndex.from_arrays([index.get_level_values(0), bins], names=["series", "bin"])
    )
    return widened.groupby(level=[0, 1]).sum()


def _time_axis(axes: Axes) -> None:
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


def activity_figure(binned: BinnedCounts, names: Mapping[int, str]) -> Figure:
    """Draw the events of each cluster over time: a panel a cluster, every panel with its own scale of counts.

    `names` maps the clusters to what stands beside their panels, in the order of the panels. Call inside `drawing()`.
    """
    edges = binned.edges_s()
    panels = max(len(names), 1)
    figure = new_figure(9.6, 0.45 + 0.62 * panels)
    all_axes = figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]
    dates = _as_dates(edges)
    for axes, (cluster, name) in zip(all_axes, names.items(), strict=False):
        quiet(axes)
        counts = binned.of(cluster)
        colour = cluster_colour(cluster)
        if len(counts):
            axes.stairs(counts, dates, fill=True, color=colour, alpha=0.85, linewidth=0)
            axes.set_xlim(dates[0], dates[-1])
        axes.set_ylim(0, max(float(counts.max(initial=0)) * 1.12, 1.0))
        axes.yaxis.set_major_locator(MaxNLocator(2, integer=True))
        axes.set_ylabel(name, rotation=0, ha="right", va="center", color=INK, labelpad=8)
        axes.grid(axis="y")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
    _time_axis(all_axes[-1])
    all_axes[-1].set_xlabel(f"UTC; detections in bins of {binned.width_name}")
    return figure


def _as_dates(seconds: npt.NDArray[np.int64]) -> npt.NDArray[np.datetime64]:
    return seconds.astype("datetime64[s]")


def coverage_figure(coverage: pd.DataFrame, events: BinnedCounts, max_stations: int = 60) -> Figure:
    """Draw what the archive covers, by station and day, above the events found a day.

    `coverage` has `station` (such as `AW.VNA1`), `day` (datetime64, midnight UTC) and `fraction` (0 to 1, of the
    day's samples that are there); a pair that is missing has no data. `events` has one series a station. Call inside
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
            cmap=_COVERAGE_COLOURS,
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
        lower.stairs(counts, _as_dates(edges), fill=True, color=MUTED, alpha=0.8, linewidth=0)
    lower.set_ylim(bottom=0)
    lower.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    lower.grid(axis="y", color=GRID)
    lower.set_ylabel(f"detections\nin {events.width_name}")
    lower.set_xlabel("UTC")
    _time_axis(lower)
    return figure


def coverage_plot(coverage: pd.DataFrame, events: BinnedCounts) -> bytes:
    """Return `coverage_figure` as a PNG file on white."""
    with drawing():
        return to_png(coverage_figure(coverage, events))
