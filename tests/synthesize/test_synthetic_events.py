"""Events and their waveforms: geometry, polarisation, repetition, and one law of signal-to-noise ratios."""

from collections import defaultdict

import numpy as np
import pytest
from obspy.signal.rotate import rotate_ne_rt
from scipy import stats

from pipelines.config.synthesize import SynthesizeSettings
from pipelines.synthesize.plan import Arrival, arrivals_near, render, stations, truth_arrivals
from pipelines.synthesize.sources import CLASSES, CRUST_P_KM_S, CRUST_S_KM_S, SPIKE_KINDS, spike
from pipelines.synthesize.streams import Purpose, stream

SETTINGS = SynthesizeSettings(seed=5)
DAY = 18_300
DAY_NS = 86_400 * 10**9


@pytest.fixture(scope="module")
def truth() -> list[Arrival]:
    return [
        arrival
        for day in range(DAY, DAY + 5)
        for station in stations(SETTINGS)
        for arrival in truth_arrivals(SETTINGS, station, day)
    ]


def test_shares_and_counts_come_out_as_configured(truth: list[Arrival]) -> None:
    assert len(truth) / (5 * 3) == pytest.approx(300, rel=0.06)
    shares = np.array([sum(arrival.event_class == name for arrival in truth) for name in CLASSES]) / len(truth)
    np.testing.assert_allclose(shares, [0.40, 0.30, 0.15, 0.15], atol=0.03)


def test_all_classes_share_one_heavy_tailed_law_of_ratios(truth: list[Arrival]) -> None:
    ratios = {name: [arrival.snr for arrival in truth if arrival.event_class == name] for name in CLASSES}
    pareto = stats.pareto(SETTINGS.snr_exponent, scale=SETTINGS.snr_floor)
    for name in CLASSES:
        assert stats.kstest(ratios[name], pareto.cdf).pvalue > 0.001, name
    assert max(max(values) for values in ratios.values()) > 50 * SETTINGS.snr_floor


def test_spikes_are_seen_at_one_station_and_other_events_keep_their_moveout(truth: list[Arrival]) -> None:
    by_event: dict[str, list[Arrival]] = defaultdict(list)
    for arrival in truth:
        by_event[arrival.event].append(arrival)
    moved = 0
    for arrivals in by_event.values():
        if arrivals[0].event_class == "spike":
            assert len(arrivals) == 1
        for other in arrivals[1:]:
            if other.event_class == "earthquake":
                first = arrivals[0]
                expected = (other.ray.distance_km - first.ray.distance_km) / CRUST_P_KM_S
                assert (other.time_ns - first.time_ns) / 1e9 == pytest.approx(expected, abs=1e-6)
                moved += 1
    assert moved > 100


def test_an_earthquake_s_p_lies_on_vertical_and_radial_and_its_s_comes_when_it_should(truth: list[Arrival]) -> None:
    shares = []
    for arrival in [arrival for arrival in truth if arrival.event_class == "earthquake"][:30]:
        waveform, s_delay = render(SETTINGS, arrival)
        expected = arrival.ray.distance_km * (1 / CRUST_S_KM_S - 1 / CRUST_P_KM_S)
        assert s_delay == pytest.approx(expected)
        east, north, vertical = (row[: int(min(s_delay, 1.0) * SETTINGS.rate_hz)].astype(float) for row in waveform)
        radial, transverse = rotate_ne_rt(north, east, arrival.ray.back_azimuth_deg)
        shares.append(float((transverse**2).sum() / ((radial**2).sum() + (vertical**2).sum() + (transverse**2).sum())))
    assert np.median(shares) < 0.2


def test_repeating_icequakes_look_alike_and_single_ones_do_not(truth: list[Arrival]) -> None:
    station = stations(SETTINGS)[0].code
    quakes = [a for a in truth if a.event_class == "icequake" and a.station.code == station]
    families: dict[str, list[Arrival]] = defaultdict(list)
    for arrival in quakes:
        families[arrival.source].append(arrival)
    family = max(families.values(), key=len)
    singles = [arrival for arrival in quakes if arrival.kind == "single"]
    assert len(family) > 10
    assert np.median([_likeness(family[0], other) for other in family[1:10]]) > 0.9
    assert np.median([_likeness(singles[0], other) for other in singles[1:10]]) < 0.7


@pytest.mark.parametrize("kind", SPIKE_KINDS)
def test_spikes_start_on_their_sample_and_at_once_on_every_component_they_touch(kind: str) -> None:
    for number in range(10):
        waveform = spike(stream(0, Purpose.VARIATION, kind, number), kind, 100)
        starts = [int(np.flatnonzero(row)[0]) for row in waveform if row.any()]
        assert set(starts) == {0}


def test_a_dropout_is_single_samples() -> None:
    waveform = spike(stream(0, Purpose.VARIATION, "a"), "dropout", 100)
    touched = np.flatnonzero(np.abs(waveform).max(axis=0))
    assert 1 <= touched.size <= 13


def test_a_tremor_s_power_sits_on_a_fundamental_and_its_overtones(truth: list[Arrival]) -> None:
    arrival = next(arrival for arrival in truth if arrival.event_class == "tremor")
    waveform, _ = render(SETTINGS, arrival)
    power = np.abs(np.fft.rfft(waveform[2][:512] * np.hanning(min(512, waveform.shape[1]))[:512], 2048)) ** 2
    strongest_tenth = np.sort(power)[-power.size // 10 :].sum()
    assert strongest_tenth > 0.9 * power.sum()


def test_the_signal_to_noise_ratio_is_what_the_band_passed_waveform_says(truth: list[Arrival]) -> None:
    from obspy import Trace

    from pipelines.synthesize.noise import band_rms

    for arrival in truth[:20]:
        waveform, _ = render(SETTINGS, arrival)
        loudest = 0.0
        for row in waveform:
            trace = Trace(np.pad(row.astype(float), (0, 200)), {"sampling_rate": 100.0})
            trace.filter("bandpass", freqmin=1, freqmax=20, corners=4)
            power = np.convolve(trace.data**2, np.ones(50) / 50, "valid")
            loudest = max(loudest, float(np.sqrt(power.max())))
        expected = arrival.snr * band_rms(SETTINGS.seed, arrival.station.name, arrival.time_ns / 1e9)
        assert loudest == pytest.approx(expected, rel=0.02)


def test_an_event_that_lasts_over_midnight_is_the_same_seen_from_either_day() -> None:
    shared = 0
    day = DAY
    while shared < 3:
        # About one day in five has such an event.
        assert day < DAY + 50
        for station in stations(SETTINGS):
            before = {a.event: a for a in arrivals_near(SETTINGS, station, day * DAY_NS, (day + 1) * DAY_NS)}
            after = {a.event: a for a in arrivals_near(SETTINGS, station, (day + 1) * DAY_NS, (day + 2) * DAY_NS)}
            for event in before.keys() & after.keys():
                # A magnitude may be NaN, which equals nothing.
                assert repr(before[event]) == repr(after[event])
                assert np.array_equal(render(SETTINGS, before[event])[0], render(SETTINGS, after[event])[0])
                assert after[event].time_ns < (day + 1) * DAY_NS
                shared += 1
        day += 1


def _likeness(one: Arrival, other: Arrival) -> float:
    first, second = (render(SETTINGS, arrival)[0][2].astype(float) for arrival in (one, other))
    correlation = np.correlate(first, second, "full")
    return float(correlation.max() / np.sqrt((first**2).sum() * (second**2).sum()))
