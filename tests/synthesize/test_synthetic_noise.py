"""Noise: between the Peterson models, moving with the days, the same however it is cut."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from obspy.signal.spectral_estimation import get_nhnm, get_nlnm
from scipy import signal

from pipelines.synthesize.noise import band_rms, noise

DAY = 18_262
RATE_HZ = 40
MIDNIGHT = DAY * 86_400 * RATE_HZ


@settings(max_examples=10, deadline=None)
@given(offset=st.integers(-20_000, 20_000), num_samples=st.integers(1, 8_000), cut=st.floats(0, 1))
def test_any_two_pieces_agree_where_they_overlap(offset: int, num_samples: int, cut: float) -> None:
    first, middle = MIDNIGHT + offset, round(cut * num_samples)
    whole = noise(1, "SY.FL01", first, num_samples, RATE_HZ)
    pieces = [
        noise(1, "SY.FL01", first, middle, RATE_HZ),
        noise(1, "SY.FL01", first + middle, num_samples - middle, RATE_HZ),
    ]
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), whole)


def test_the_power_lies_between_the_low_and_the_high_noise_model() -> None:
    trace = noise(2, "SY.FL01", MIDNIGHT, 6 * 3600 * RATE_HZ, RATE_HZ)[2]
    frequency, velocity_psd = signal.welch(trace, RATE_HZ, nperseg=1 << 14)
    wanted = (frequency > 0.05) & (frequency < 10)
    frequency, acceleration_db = (
        frequency[wanted],
        10 * np.log10(velocity_psd[wanted] * (2 * np.pi * frequency[wanted]) ** 2),
    )
    period, low = get_nlnm()
    _, high = get_nhnm()
    low_db, high_db = (
        np.interp(-np.log10(1 / frequency), np.log10(period[::-1]), model[::-1]) for model in (low, high)
    )
    assert (acceleration_db > low_db).mean() > 0.99
    assert (acceleration_db < high_db).mean() > 0.99


def test_the_microseism_varies_from_day_to_day_and_not_from_station_to_station() -> None:
    def microseism_db(station: str, day: int) -> float:
        noon = (DAY + day) * 86_400 * RATE_HZ + 43_200 * RATE_HZ
        frequency, psd = signal.welch(noise(3, station, noon, 3600 * RATE_HZ, RATE_HZ)[2], RATE_HZ, nperseg=4096)
        return float(10 * np.log10(psd[(frequency > 0.12) & (frequency < 0.35)].mean()))

    first = np.array([microseism_db("SY.FL01", day) for day in range(6)])
    second = np.array([microseism_db("SY.FL02", day) for day in range(6)])
    assert np.ptp(first) > 3
    assert np.abs(first - second).max() < 2


def test_the_stated_band_noise_is_what_an_independent_filter_measures() -> None:
    sos = signal.butter(4, (1, 20), "bandpass", fs=100, output="sos")
    middle = DAY * 86_400 + 30_000
    trace = noise(4, "SY.FL03", (middle - 600) * 100, 1_200 * 100, 100)
    measured = signal.sosfilt(sos, trace.astype(float), axis=1)[:, 2_000:].std()
    assert abs(measured / band_rms(4, "SY.FL03", middle) - 1) < 0.1
