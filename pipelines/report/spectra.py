"""The mean spectrum of each cluster: power spectral density of windows, averaged in decibels."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from scipy.signal import welch

from pipelines.report.style import GRID, MUTED, cluster_colour, log_axis, new_figure, quiet
from pipelines.report.words import short_name

_COLUMNS = 4


@dataclass(frozen=True, kw_only=True)
class MeanSpectrum:
    """The spectra of some events of a cluster, in dB of (unit)^2/Hz."""

    frequencies_hz: npt.NDArray[np.float64]
    """Above 0. Shape (frequency,)."""
    mean_db: npt.NDArray[np.float64]
    """Mean over the events. Shape (frequency,)."""
    low_db: npt.NDArray[np.float64]
    """Lower quartile. Shape (frequency,)."""
    high_db: npt.NDArray[np.float64]
    """Upper quartile. Shape (frequency,)."""
    events: int


def spectrum_db(trace: npt.NDArray[np.float32], rate_hz: float) -> tuple[npt.NDArray[np.float64], ...] | None:
    """Return frequencies above 0 (Hz) and the power spectral density (dB of unit^2/Hz) of one trace, by Welch's method.

    None where samples are absent or all the same: what a gap does to a spectrum is not the event's. Segments are a
    quarter of the trace, Hann window, half overlapping, their means removed.
    """
    if not len(trace) or not np.isfinite(trace).all() or float(np.ptp(trace)) == 0.0:
        return None
    segment = min(len(trace), max(16, len(trace) // 4))
    frequencies, power = welch(trace.astype(np.float64), fs=rate_hz, nperseg=segment)
    return frequencies[1:], 10 * np.log10(np.maximum(power[1:], np.finfo(np.float64).tiny))


def mean_spectrum(spectra_db: list[tuple[npt.NDArray[np.float64], ...]]) -> MeanSpectrum | None:
    """Return the mean of spectra that `spectrum_db` returned for windows of one length and rate; None of none."""
    if not spectra_db:
        return None
    values = np.stack([power for _, power in spectra_db])
    low, high = np.quantile(values, [0.25, 0.75], axis=0)
    return MeanSpectrum(
        frequencies_hz=spectra_db[0][0],
        mean_db=values.mean(axis=0),
        low_db=low,
        high_db=high,
        events=len(values),
    )


def spectra_figure(
    spectra: Mapping[int, MeanSpectrum], names: Mapping[int, str], units: str, band_hz: tuple[float, float] | None
) -> Figure:
    """Draw the mean spectrum of each cluster with the middle half of its events; the mean of all clusters in grey.

    Args:
        spectra: by cluster.
        names: titles of the panels by cluster, in their order.
        units: of the samples.
        band_hz: of the detection, marked in each panel; None: not marked.

    Call inside `drawing()`.
    """
    shown = [cluster for cluster in names if cluster in spectra]
    columns = min(_COLUMNS, max(len(shown), 1))
    rows = -(-max(len(shown), 1) // columns)
    figure = new_figure(9.6, 0.5 + 1.55 * rows)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    together = np.mean([spectra[cluster].mean_db for cluster in shown], axis=0) if shown else None
    for number, axes in enumerate(grid.ravel()):
        if number >= len(shown):
            axes.set_visible(False)
            continue
        cluster = shown[number]
        one = spectra[cluster]
        quiet(axes)
        if band_hz is not None:
            axes.axvspan(*band_hz, color=MUTED, alpha=0.12, linewidth=0)
        colour = cluster_colour(cluster)
        axes.fill_between(one.frequencies_hz, one.low_db, one.high_db, color=colour, alpha=0.25, linewidth=0)
        axes.plot(one.frequencies_hz, together, color=MUTED, linewidth=0.8)
        axes.plot(one.frequencies_hz, one.mean_db, color=colour, linewidth=1.4)
        log_axis(axes)
        axes.set_xlim(one.frequencies_hz[0], one.frequencies_hz[-1])
        axes.grid(color=GRID)
        axes.set_title(f"{short_name(names[cluster])} ({one.events})", loc="left")
    figure.supxlabel("frequency, Hz", fontsize=8)
    figure.supylabel(f"power, dB of ({units})²/Hz", fontsize=8)
    return figure
