"""Waveforms around arrivals straight from the generator, the same samples as in an archive without flaws."""

from dataclasses import dataclass
from itertools import count
from typing import Literal

import numpy as np
import numpy.typing as npt
from obspy.signal.trigger import recursive_sta_lta, trigger_onset
from scipy import signal

from pipelines.config.synthesize import SynthesizeSettings
from pipelines.synthesize.noise import SIGNAL_BAND_HZ, noise
from pipelines.synthesize.plan import (
    Arrival,
    Station,
    arrivals_near,
    day_number,
    render,
    stations,
    truth_arrivals,
)
from pipelines.synthesize.sources import CLASSES, Waveform

COUNTS_PER_M_S = 2e9
"""Sensitivity of every component, counts per m/s."""

_STA_SECONDS, _LTA_SECONDS, _ON, _OFF = 0.5, 10.0, 3.5, 1.5
_BEFORE_SECONDS = 45.0


@dataclass(frozen=True, kw_only=True)
class SyntheticWindows:
    """Labelled windows, in time order within each station and day."""

    waveforms: npt.NDArray[np.float32]
    """(window, 3, sample), counts, components E, N, Z."""
    labels: npt.NDArray[np.int64]
    """(window,), index into CLASSES."""
    snr: npt.NDArray[np.float64]
    """(window,), the truth's signal-to-noise ratio."""
    arrivals: list[Arrival]
    """The truth behind each window."""
    num_arrivals: npt.NDArray[np.int64]
    """(4,), arrivals looked at, by class: those not detected included."""


def recording(
    settings: SynthesizeSettings, station: Station, first_sample: int, num_samples: int
) -> npt.NDArray[np.float32]:
    """Return what a station records, float32 (3, num_samples), m/s, from a sample counted since 1970-01-01."""
    rate_hz = settings.rate_hz
    total = noise(settings.seed, station.name, first_sample, num_samples, rate_hz)
    start_ns, end_ns = (sample_ns(sample, rate_hz) for sample in (first_sample, first_sample + num_samples))
    for arrival in arrivals_near(settings, station, start_ns, end_ns):
        waveform, _ = render(settings, arrival)
        add_at(total, waveform, onset_sample(arrival.time_ns, rate_hz) - first_sample)
    return total


def add_at(total: npt.NDArray[np.float32], waveform: Waveform, at: int) -> None:
    """Add a waveform to a record, in place, from sample `at` (which may be negative) on, as far as they overlap."""
    low, high = max(at, 0), min(at + waveform.shape[1], total.shape[1])
    if low < high:
        total[:, low:high] += waveform[:, low - at : high - at]


def sample_ns(sample: int, rate_hz: int) -> int:
    """Return the time of a sample counted since 1970-01-01, ns, rounded to whole ns."""
    return (2 * sample * 1_000_000_000 + rate_hz) // (2 * rate_hz)


def onset_sample(time_ns: int, rate_hz: int) -> int:
    """Return the first sample at or after a time."""
    return -(-time_ns * rate_hz // 1_000_000_000)


def to_counts(velocity: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
    """Return what the digitiser writes, int32, for ground velocity in m/s."""
    return np.asarray(np.rint(velocity * np.float32(COUNTS_PER_M_S)), np.int32)


def synthesize_windows(
    num_windows: int,
    seed: int,
    *,
    onset: Literal["truth", "detected"] = "truth",
    settings: SynthesizeSettings | None = None,
    window_seconds: float = 30.0,
    lead_seconds: float = 5.0,
) -> SyntheticWindows:
    """Return windows around arrivals, station by station and day by day, until there are `num_windows`.

    With `onset="truth"` each arrival above the floor gives a window that starts `lead_seconds` before it. With
    `onset="detected"` windows are around the first trigger between 1 s before the arrival and 2 s after its S wave, of
    recursive STA/LTA (0.5 s, 10 s, on 3.5) over 1-20 Hz on any component; arrivals without one give no window.
    `settings` are those of the archive, except the seed.
    """
    settings = (settings or SynthesizeSettings()).model_copy(update={"seed": seed})
    if settings.events_per_station_day <= 0:
        raise ValueError("synthesize.events_per_station_day = 0 gives no arrival to cut windows around")
    num_samples, lead = round(window_seconds * settings.rate_hz), round(lead_seconds * settings.rate_hz)
    waveforms: list[npt.NDArray[np.float32]] = []
    kept: list[Arrival] = []
    looked_at = np.zeros(len(CLASSES), np.int64)
    first_day = day_number(settings.start)
    for day in count(first_day):
        for station in stations(settings):
            for arrival in truth_arrivals(settings, station, day):
                if len(kept) == num_windows:
                    return _windows(waveforms, kept, looked_at)
                looked_at[CLASSES.index(arrival.event_class)] += 1
                at: int | None = onset_sample(arrival.time_ns, settings.rate_hz)
                if onset == "detected":
                    at = _detected(settings, arrival)
                if at is None:
                    continue
                velocity = recording(settings, station, at - lead, num_samples)
                waveforms.append(to_counts(velocity).astype(np.float32))
                kept.append(arrival)
    raise AssertionError("days do not end")


def _windows(
    waveforms: list[npt.NDArray[np.float32]], kept: list[Arrival], looked_at: npt.NDArray[np.int64]
) -> SyntheticWindows:
    return SyntheticWindows(
        waveforms=np.stack(waveforms) if waveforms else np.zeros((0, 3, 0), np.float32),
        labels=np.array([CLASSES.index(arrival.event_class) for arrival in kept], np.int64),
        snr=np.array([arrival.snr for arrival in kept]),
        arrivals=kept,
        num_arrivals=looked_at,
    )


def _detected(settings: SynthesizeSettings, arrival: Arrival) -> int | None:
    rate_hz = settings.rate_hz
    _, s_delay = render(settings, arrival)
    latest = 2.0 + (0.0 if np.isnan(s_delay) else s_delay)
    at = onset_sample(arrival.time_ns, rate_hz)
    before = round(_BEFORE_SECONDS * rate_hz)
    segment = recording(settings, arrival.station, at - before, before + round((latest + 1) * rate_hz))
    sos = signal.butter(4, SIGNAL_BAND_HZ, "bandpass", fs=rate_hz, output="sos")
    first: int | None = None
    for component in signal.sosfilt(sos, segment.astype(np.float64), axis=1):
        ratio = recursive_sta_lta(component, round(_STA_SECONDS * rate_hz), round(_LTA_SECONDS * rate_hz))
        ratio[: round(3 * _LTA_SECONDS * rate_hz)] = 0
        for on, _ in trigger_onset(ratio, _ON, _OFF):
            if before - rate_hz <= on <= before + round(latest * rate_hz):
                first = on if first is None else min(first, on)
                break
    return None if first is None else int(at - before + first)
