"""The figure of a branch of the merge tree: its mean waveform over single events, and its mean spectrogram."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.signal import correlate

from pipelines.report.event_figure import FLOOR_DB, SPECTROGRAM_COLOURS, spectrogram_db
from pipelines.report.style import INK, MUTED, new_figure, quiet

MAX_SHIFT_S = 0.5
"""Shift of an event against the others at most (s): the detector's onsets are not finer."""
SHOWN_TRACES = 12
"""Single events behind the mean."""


def aligned(traces: NDArray[np.float32], rate_hz: float, max_shift_s: float = MAX_SHIFT_S) -> NDArray[np.float64]:
    """Return traces (event, sample) shifted and turned in sign so that each is most like their mean, largest value 1.

    The first trace begins; each other one is compared with the mean of those before it. Absent samples (NaN) and what
    is shifted in count as 0; a trace without signal stays 0.
    """
    clean = np.nan_to_num(traces.astype(np.float64))
    peaks = np.abs(clean).max(axis=1, keepdims=True)
    clean = np.asarray(np.divide(clean, peaks, out=np.zeros_like(clean), where=peaks > 0), dtype=np.float64)
    most = min(round(max_shift_s * rate_hz), clean.shape[1] - 1)
    total = clean[0].copy()
    for number in range(1, len(clean)):
        likeness = correlate(total, clean[number], mode="full", method="fft")
        middle = clean.shape[1] - 1
        near = likeness[middle - most : middle + most + 1]
        best = int(np.abs(near).argmax())
        shifted = np.roll(clean[number], best - most) * (-1.0 if near[best] < 0 else 1.0)
        if best > most:
            shifted[: best - most] = 0.0
        elif best < most:
            shifted[best - most :] = 0.0
        clean[number] = shifted
        total += shifted
    return clean


def branch_figure(
    traces: NDArray[np.float32], recorded: NDArray[np.float32], rate_hz: float, onset_s: float, colour: str
) -> Figure:
    """Draw the mean of aligned traces over single ones, and the mean of their spectrograms (dB). Call in `drawing()`.

    Args:
        traces: (event, sample), of the component that triggered, filtered for show.
        recorded: (event, sample), the same as recorded.
        rate_hz: of the samples.
        onset_s: the onsets, after the first sample (s).
        colour: of the mean.
    """
    figure = new_figure(4.6, 3.2)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[1, 1])
    lined_up = aligned(traces, rate_hz)
    seconds = np.arange(traces.shape[1]) / rate_hz - onset_s
    quiet(upper)
    for trace in lined_up[:SHOWN_TRACES]:
        upper.plot(seconds, trace, color=MUTED, linewidth=0.3, alpha=0.35, rasterized=True)
    mean = lined_up.mean(axis=0)
    upper.plot(seconds, mean / max(np.abs(mean).max(), 1e-30), color=colour, linewidth=0.9)
    upper.set_yticks([])
    upper.set_ylabel("mean waveform", color=INK)
    spectra = [spectrogram_db(trace, rate_hz) for trace in recorded]
    times, frequencies, _ = spectra[0]
    power = np.mean([one[2] for one in spectra], axis=0)
    lower.pcolormesh(
        times - onset_s,
        frequencies,
        np.maximum(power, FLOOR_DB),
        cmap=SPECTROGRAM_COLOURS,
        shading="nearest",
        rasterized=True,
    )
    lower.set_ylabel("mean spectrogram, Hz")
    lower.set_xlabel("seconds after the onset")
    lower.set_xlim(seconds[0], seconds[-1])
    return figure


def trigger_rows(channels: Sequence[Sequence[str | None]], triggers: Sequence[str]) -> list[int]:
    """Return the row of each event's waveform that triggered, the last where none is named so."""
    return [
        next((row for row, name in enumerate(names) if name == trigger), 2)
        for names, trigger in zip(channels, triggers, strict=True)
    ]
