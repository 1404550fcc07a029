"""The figure of one event: its three components, and the spectrogram of the component that triggered."""

import numpy as np
import numpy.typing as npt
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.signal import ShortTimeFFT, butter, sosfiltfilt
from scipy.signal.windows import hann

from pipelines.report.style import INK, MUTED, PAPER, new_figure, quiet

FLOOR_DB = -40.0
"""Power of the spectrogram's darkest colour, below the strongest cell (dB)."""
_BASELINES = (4.2, 2.1, 0.0)
SPECTROGRAM_COLOURS = LinearSegmentedColormap.from_list(
    "ice", ["#0b1d33", "#12406a", "#1f78a4", "#55b6bf", "#bfe5d3", "#fff6c9"], N=128
)


def spectrogram_db(
    trace: npt.NDArray[np.float32], rate_hz: float, band_hz: tuple[float, float] | None = None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return times (s from the first sample), frequencies (Hz) and power in dB of the strongest cell, `FLOOR_DB` to 0.

    The strongest cell is that of the band, where one is given; what is stronger outside of it counts as 0 dB.
    `trace` has shape (sample,); the mean is removed, then absent samples (NaN) count as zero. Shapes (time,),
    (frequency,), (frequency, time). A trace without signal gives `FLOOR_DB` everywhere.
    """
    present = np.isfinite(trace)
    signal = np.zeros(trace.shape, dtype=np.float64)
    if present.any():
        signal[present] = trace[present] - trace[present].mean()
    # Some 96 columns over the window, each a segment of about a sixteenth of it: time and frequency resolved alike.
    segment = int(min(max(16, 2 ** round(np.log2(max(len(trace) / 16, 16)))), len(trace)))
    transform = ShortTimeFFT(
        hann(segment, sym=False), hop=max(1, len(trace) // 96), fs=rate_hz, scale_to="psd", mfft=max(segment, 64)
    )
    power = transform.spectrogram(signal)
    times = transform.t(len(signal))
    inside = (times >= 0) & (times <= len(signal) / rate_hz)
    power, times = power[:, inside], times[inside]
    inside = _in_band(transform.f, band_hz)
    strongest = power[inside].max() if power[inside].size else 0.0
    if not strongest > 0:
        return times, transform.f, np.full(power.shape, FLOOR_DB)
    return times, transform.f, np.clip(10 * np.log10(np.maximum(power, strongest * 1e-12) / strongest), FLOOR_DB, 0.0)


def _in_band(frequencies_hz: npt.NDArray[np.float64], band_hz: tuple[float, float] | None) -> npt.NDArray[np.bool_]:
    if band_hz is None:
        return np.ones(len(frequencies_hz), dtype=bool)
    inside = (frequencies_hz >= band_hz[0]) & (frequencies_hz <= band_hz[1])
    return inside if inside.any() else np.ones(len(frequencies_hz), dtype=bool)


def band_passed(
    waveform: npt.NDArray[np.float32], rate_hz: float, band_hz: tuple[float, float] | None
) -> npt.NDArray[np.float32]:
    """Return the components without their medians and without what lies outside a band, absent samples (NaN) kept.

    A Butterworth filter of two corners runs forwards and backwards (zero phase); it has no upper corner where that
    would be near the Nyquist frequency. Shapes (component, sample).
    """
    result = centred(waveform)
    if band_hz is None or waveform.shape[1] < 32:
        return result
    low_hz, high_hz = band_hz
    if not 0 < low_hz < 0.45 * rate_hz:
        return result
    if high_hz < 0.475 * rate_hz:
        sections = butter(2, (low_hz, high_hz), "bandpass", fs=rate_hz, output="sos")
    else:
        sections = butter(2, low_hz, "highpass", fs=rate_hz, output="sos")
    present = np.isfinite(result)
    filtered = sosfiltfilt(sections, np.where(present, result, 0.0), axis=1)
    return np.where(present, filtered, np.nan).astype(np.float32)


def envelope(trace: npt.NDArray[np.float32], columns: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return sample indices and values that draw the trace like all its samples would at this many columns.

    Each column keeps its smallest and largest sample in the order they came (NaN where all are absent), so that no
    spike is lost. A trace of at most two samples a column is returned whole. Shapes (point,).
    """
    if len(trace) <= 2 * columns:
        return np.arange(len(trace), dtype=np.float64), trace.astype(np.float64)
    starts = np.linspace(0, len(trace), columns + 1).astype(np.int64)
    column = np.repeat(np.arange(columns), np.diff(starts))
    # Sorted within each column, absent samples last; of equal samples the first one counts.
    smallest, largest = (np.lexsort((values, column))[starts[:-1]] for values in (trace, -trace))
    positions = np.unique(np.concatenate([smallest, largest]))
    return positions.astype(np.float64), trace[positions].astype(np.float64)


def centred(waveform: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the components without their medians, absent samples (NaN) kept. Shapes (component, sample)."""
    result = waveform.astype(np.float32, copy=True)
    for row in result:
        present = np.isfinite(row)
        if present.any():
            row -= np.median(row[present])
    return result


def amplitude_unit(units: str, peak: float) -> tuple[float, str]:
    """Return the factor and the name of the unit in which an amplitude of this peak reads well.

    >>> amplitude_unit("m/s", 3e-7)
    (1000000000.0, 'nm/s')
    """
    if units in ("m/s", "m", "m/s**2", "m/s^2") and peak > 0:
        rest = units[1:]
        for limit, factor, prefix in ((1e-6, 1e9, "n"), (1e-3, 1e6, "µ"), (1.0, 1e3, "m")):
            if peak < limit:
                return factor, f"{prefix}m{rest}"
    return 1.0, units


def round_length(peak: float) -> float:
    """Return the length of a scale bar: the largest of 1, 2 or 5 times a power of ten up to `peak` (above 0)."""
    power = 10.0 ** np.floor(np.log10(peak))
    return float(next(step * power for step in (5.0, 2.0, 1.0) if step * power <= peak * (1 + 1e-9)))


def around_onset(num_samples: int, rate_hz: float, onset_s: float, shown_s: float) -> slice:
    """Return the samples of a window to show: `shown_s`, at least 32 samples, a quarter of them before the onset.

    Where the window begins or ends within them, they are those that there are.
    """
    wanted = max(round(shown_s * rate_hz), 32)
    start = round(onset_s * rate_hz) - wanted // 4
    stop = min(max(start + wanted, 32), num_samples)
    return slice(max(min(start, num_samples - 32), 0), stop)


def event_figure(
    waveform: npt.NDArray[np.float32],
    rate_hz: float,
    *,
    onset_s: float,
    duration_s: float,
    channels: list[str | None],
    trigger_channel: str,
    units: str,
    colour: str,
    band_hz: tuple[float, float] | None = None,
    shown_s: float | None = None,
) -> Figure:
    """Draw one event: its three components on one amplitude scale, and the spectrogram of the trigger channel.

    `waveform` has shape (3, sample), rows E, N, Z; `onset_s` is the onset after the first sample (s). Absent channels
    are drawn as such; medians and all that lies outside `band_hz` are removed from the traces. With `shown_s` only
    so many seconds are drawn, see `around_onset`. Call inside `drawing()`.
    """
    figure = new_figure(3.3, 2.6, constrained=False)
    # Fixed margins: the figures of a row align, and a layout engine would take longer than the drawing.
    upper, lower = figure.subplots(
        2,
        1,
        sharex=True,
        height_ratios=[1.6, 1],
        gridspec_kw={"left": 0.125, "right": 0.965, "top": 0.99, "bottom": 0.168, "hspace": 0.05},
    )
    recorded, waveform = waveform, band_passed(waveform, rate_hz, band_hz)
    if shown_s is not None:
        part = around_onset(waveform.shape[1], rate_hz, onset_s, shown_s)
        recorded, waveform = recorded[:, part], waveform[:, part]
        onset_s -= part.start / rate_hz
    length_s = waveform.shape[1] / rate_hz
    finite = np.abs(waveform[np.isfinite(waveform)])
    peak = float(finite.max()) if finite.size else 0.0
    spectrum_row = next((row for row, name in enumerate(channels) if name == trigger_channel), 2)
    names = [name or letter for name, letter in zip(channels, "ENZ", strict=True)]
    quiet(upper)
    upper.axvspan(0, duration_s, color=colour, alpha=0.13, linewidth=0)
    for row, baseline in enumerate(_BASELINES):
        trace = waveform[row]
        if channels[row] is None or not np.isfinite(trace).any():
            upper.text(
                0.5 * length_s - onset_s, baseline, "no data", ha="center", va="center", color=MUTED, style="italic"
            )
            continue
        index, value = envelope(trace, 320)
        upper.plot(
            index / rate_hz - onset_s,
            baseline + value / (peak or 1.0),
            color=INK,
            linewidth=0.55,
            solid_joinstyle="round",
        )
    # Below the traces: a spike of one sample stands on the onset.
    upper.axvline(0, color=colour, linewidth=1.0, zorder=1)
    upper.set_ylim(_BASELINES[-1] - 1.1, _BASELINES[0] + 1.1)
    upper.set_yticks(_BASELINES, names)
    upper.get_yticklabels()[spectrum_row].set_fontweight("bold")
    upper.tick_params(length=0, labelbottom=False)
    for side in ("left", "bottom"):
        upper.spines[side].set_visible(False)
    if peak > 0:
        factor, unit = amplitude_unit(units, peak)
        length = round_length(peak * factor)
        height, right = length / (peak * factor), length_s * 0.992 - onset_s
        upper.plot(
            [right, right],
            [_BASELINES[0] + 1 - height, _BASELINES[0] + 1],
            color=INK,
            linewidth=1.4,
            solid_capstyle="butt",
        )
        upper.text(
            right - 0.012 * length_s,
            _BASELINES[0] + 1 - height / 2,
            f"{length:g} {unit}",
            ha="right",
            va="center",
            fontsize=7.2,
            # Readable before a trace.
            bbox={"facecolor": PAPER, "alpha": 0.8, "linewidth": 0, "pad": 0.8},
        )
    axes = lower
    times, frequencies, power_db = spectrogram_db(recorded[spectrum_row], rate_hz, band_hz)
    if len(times):
        half_t = 0.5 * (times[1] - times[0]) if len(times) > 1 else 0.5 / rate_hz
        axes.imshow(
            power_db,
            origin="lower",
            aspect="auto",
            extent=(times[0] - half_t - onset_s, times[-1] + half_t - onset_s, frequencies[0], frequencies[-1]),
            cmap=SPECTROGRAM_COLOURS,
            vmin=FLOOR_DB,
            vmax=0,
            interpolation="none",
        )
    axes.axvline(0, color=colour, linewidth=1.1)
    axes.set_ylabel("Hz")
    axes.set_xlabel("seconds after the onset")
    axes.set_ylim(0, rate_hz / 2)
    axes.set_xlim(-onset_s, length_s - onset_s)
    axes.yaxis.set_major_locator(MaxNLocator(4, prune="upper"))
    axes.yaxis.set_label_coords(-0.1, 0.5)
    return figure
