"""Cut windows of one common rate around onsets, whatever the components' sampling and gaps."""

import functools
from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from math import ceil
from typing import Any

import numpy as np
from scipy.signal import butter, resample_poly, sosfilt

from pipelines.archive.clock import sample_time, sample_times
from pipelines.archive.continuity import Segment

Array = np.ndarray[Any, Any]

# resample_poly's default filter reaches this many samples of the lower rate to both sides.
FILTER_REACH = 10
PLACE_TOLERANCE = 0.55
"""A window takes the sample nearest to each time. Successive samples are taken together while they lie within so many
sample intervals of theirs: a little over a half, so that jitter does not make samples that lie halfway jump."""


def resampling_ratio(source_hz: float, rate_hz: float) -> Fraction:
    """Return target over source rate as a fraction that a polyphase filter can work with (denominator up to 1000)."""
    return Fraction(rate_hz / source_hz).limit_denominator(1000)


def resampling_margin(source_hz: float, rate_hz: float) -> int:
    """Return how many source samples beyond both ends of a window the resampling needs: a multiple of `down`."""
    ratio = resampling_ratio(source_hz, rate_hz)
    if ratio == 1:
        return 0
    reach = ceil(FILTER_REACH * max(ratio.numerator, ratio.denominator) / ratio.numerator)
    return ceil(reach / ratio.denominator) * ratio.denominator


def cut(out: Array, segments: Sequence[Segment], starts_ns: Array, source_hz: float) -> None:
    """Fill windows at the source rate, each place with the sample nearest to its time, where there is any.

    Times are those of the records' headers, however far their rates are from `source_hz`.

    Args:
        out: float32 or float64 (windows, samples).
        segments: of one component, in order of time.
        starts_ns: (windows,) int64, times of the first samples, in order.
        source_hz: sampling rate in Hz.
    """
    interval_ns = 1e9 / source_hz
    num_samples = out.shape[1]
    slack_ns = ceil(interval_ns)
    ends_ns = sample_times(starts_ns, np.full(len(starts_ns), num_samples), source_hz)
    # Window i touches the segments from low[i] to before high[i].
    low = np.searchsorted([segment.end_ns for segment in segments], starts_ns - slack_ns, "right").tolist()
    high = np.searchsorted([segment.start_ns for segment in segments], ends_ns + slack_ns, "left").tolist()
    for number in range(min(low, default=0), max(high, default=0)):
        segment = segments[number]
        begin, end = bisect_right(high, number), bisect_right(low, number)
        if begin >= end:
            continue
        starts = starts_ns[begin:end]
        indexes = np.maximum(np.rint((segment.start_ns - starts) / interval_ns).astype(np.int64), 0).tolist()
        firsts = segment.indexes_from(np.rint(starts - interval_ns / 2).astype(np.int64)).tolist()
        rates = segment.clock.rates_hz
        steady = len(rates) == 1 and abs(rates[0] / source_hz - 1) * num_samples < PLACE_TOLERANCE - 0.5
        for window, start, index, first in zip(out[begin:end], starts.tolist(), indexes, firsts, strict=True):
            count = min(num_samples - index, segment.num_samples - first)
            if count <= 0:
                continue
            if steady or not _drifts(segment, first, count, start, index, source_hz):
                _fill(window, index, segment, first, count)
            else:
                _place(window, index, segment, first, start, source_hz)


def _fill(window: Array, index: int, segment: Segment, first: int, count: int) -> None:
    """Put samples of a segment that follow each other into a window."""
    for part in segment.parts(first, first + count):
        window[index : index + len(part)] = part
        index += len(part)


def _drifts(segment: Segment, first: int, count: int, start_ns: int, index: int, source_hz: float) -> bool:
    """Return whether any of some successive samples is too far from the time of its place in a window."""
    begins = segment.clock.begins
    edges = begins[np.searchsorted(begins, first, "right") : np.searchsorted(begins, first + count)]
    # Within a record the distance grows evenly.
    places = np.concatenate([[first, first + count - 1], edges, edges - 1])
    return len(_far(segment, places, start_ns, places - first + index, source_hz)) > 0


def _far(segment: Segment, samples: Array, start_ns: int, places: Array, source_hz: float) -> Array:
    """Return which of some samples are too far from the times of their places in a window, in order."""
    expected = sample_times(np.full(len(places), start_ns), places, source_hz)
    return np.flatnonzero(np.abs(segment.times_at(samples) - expected) > PLACE_TOLERANCE * 1e9 / source_hz)


def _place(window: Array, index: int, segment: Segment, first: int, start_ns: int, source_hz: float) -> None:
    """Fill a window stretch by stretch: where samples have drifted from their places, the nearest one goes on."""
    while index < len(window) and first < segment.num_samples:
        count = min(len(window) - index, segment.num_samples - first)
        steps = np.arange(count)
        far = _far(segment, first + steps, start_ns, index + steps, source_hz)
        # A step between two records, of half an interval at most, may leave no sample nearer.
        count = max(int(far[0]), 1) if len(far) else count
        _fill(window, index, segment, first, count)
        index += count
        first = segment.index_from(sample_time(start_ns, index, source_hz) - round(0.5e9 / source_hz))


def resample(values: Array, source_hz: float, rate_hz: float, num_samples: int) -> Array:
    """Resample rows that carry `resampling_margin` extra samples at both ends.

    Args:
        values: float64 (..., source samples); NaN where absent.
        source_hz, rate_hz: rates in Hz.
        num_samples: samples of the result.

    Returns:
        float64 (..., num_samples), sample j at j / rate_hz after the end of the first margin. A sample is NaN where any
        sample that its filter touches is absent.
    """
    ratio = resampling_ratio(source_hz, rate_hz)
    if ratio == 1:
        return values[..., :num_samples]
    up, down = ratio.numerator, ratio.denominator
    margin = resampling_margin(source_hz, rate_hz)
    absent = np.isnan(values)
    offset = _first_present(values)
    filled = np.where(absent, 0.0, values - offset)
    smooth = resample_poly(filled, up, down, axis=-1)
    first = margin * up // down
    reach = ceil(FILTER_REACH * max(up, down) / up)
    counts = np.concatenate([np.zeros((*absent.shape[:-1], 1), np.int64), np.cumsum(absent, axis=-1)], axis=-1)
    centre = margin + np.arange(num_samples) * down / up
    low = np.clip(np.floor(centre - reach).astype(np.int64), 0, values.shape[-1])
    high = np.clip(np.ceil(centre + reach).astype(np.int64) + 1, 0, values.shape[-1])
    touched = counts[..., high] - counts[..., low] > 0
    result: Array = np.where(touched, np.nan, smooth[..., first : first + num_samples] + offset)
    return result


def _first_present(values: Array) -> Array:
    """Return the first finite value of each row, shape (..., 1); zero for a row without any."""
    present = np.isfinite(values)
    index = np.argmax(present, axis=-1)[..., None]
    picked = np.take_along_axis(values, index, axis=-1)
    return np.where(np.isfinite(picked), picked, 0.0)


def source_samples(num_samples: int, source_hz: float, rate_hz: float) -> int:
    """Return how many source samples `resample` needs, margins included."""
    ratio = resampling_ratio(source_hz, rate_hz)
    if ratio == 1:
        return num_samples
    return ceil(num_samples * ratio.denominator / ratio.numerator) + 2 * resampling_margin(source_hz, rate_hz)


def amplitudes(
    waveforms: Array,
    component: Array,
    num_lead: int,
    num_signal: Array,
    *,
    band_hz: tuple[float, float],
    corners: int,
    rate_hz: float,
) -> tuple[Array, Array]:
    """Return signal-to-noise ratio in dB and peak amplitude in the detection's band, on the component that triggered.

    Args:
        waveforms: (n, 3, samples); NaN where absent.
        component: (n,) int, row of each window's trigger component.
        num_lead: samples before the onset; the second half of them is the noise, clear of the filter's beginning.
        num_signal: (n,) int, samples from the onset to the end of the trigger: the signal.
        band_hz, corners: the detection's causal Butterworth band-pass; a high-pass where the rate ends the band.
        rate_hz: sampling rate of the windows in Hz.

    Returns:
        (n,) `20 log10(rms signal / rms noise)`, NaN where either is absent or zero, and (n,) the largest absolute value
        from the onset on, NaN where all of that is absent.
    """
    traces = waveforms[np.arange(len(waveforms)), component].astype(np.float64)
    absent = np.isnan(traces)
    passed = sosfilt(_sections(*band_hz, corners, rate_hz), _held(traces, absent), axis=-1)
    passed[absent] = 0.0
    noise, after = slice(num_lead // 2, num_lead), slice(num_lead, None)
    signal = ~absent[:, after]
    signal &= np.arange(signal.shape[1])[None, :] < np.maximum(num_signal, 1)[:, None]
    noise_rms = _root_mean_square(passed[:, noise], ~absent[:, noise])
    signal_rms = _root_mean_square(passed[:, after], signal)
    with np.errstate(divide="ignore", invalid="ignore"):
        snr_db = 20 * np.log10(signal_rms / noise_rms)
    snr_db[~np.isfinite(snr_db)] = np.nan
    peak = np.max(np.abs(passed[:, after]), axis=1, initial=0.0)
    peak[absent[:, after].all(axis=1)] = np.nan
    return snr_db, peak


@functools.lru_cache(maxsize=64)
def _sections(low: float, high: float, corners: int, rate_hz: float) -> Array:
    if high < rate_hz / 2:
        sections: Array = butter(corners, [low, high], btype="bandpass", fs=rate_hz, output="sos")
    else:
        sections = butter(corners, low, btype="highpass", fs=rate_hz, output="sos")
    return sections


def _held(traces: Array, absent: Array) -> Array:
    """Return rows less their first present sample; absent samples hold the one before (0 at the start)."""
    levelled: Array = traces - _first_present(traces)
    if not absent.any():
        return levelled
    last = np.maximum.accumulate(np.where(absent, -1, np.arange(traces.shape[1])), axis=1)
    held: Array = np.where(last < 0, 0.0, np.take_along_axis(levelled, np.maximum(last, 0), axis=1))
    return held


def _root_mean_square(values: Array, counted: Array) -> Array:
    """Return that of each row's values where they count; NaN in a row without any."""
    total = np.where(counted, values**2, 0.0).sum(axis=1)
    count = counted.sum(axis=1)
    with np.errstate(invalid="ignore"):
        result: Array = np.sqrt(total / np.where(count == 0, np.nan, count))
    return result
