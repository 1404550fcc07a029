"""Windows: rates, gaps, components that do not line up, amplitudes."""

import numpy as np
import obspy
import pytest
from detection_archives import detect, make_trace, read_events, write_sds
from scipy.signal import resample_poly

from pipelines.archive.continuity import assemble
from pipelines.archive.records import Channel, make_run
from pipelines.detect import anchored
from pipelines.detect.windows import amplitudes, cut, resample, resampling_margin, source_samples
from pipelines.workspace import tables

CODES = Channel("XX", "A", "", "HHZ")


def run(data, start_ns=0, rate=100.0, version=1):
    return make_run(CODES, rate, version, start_ns, np.asarray(data))


def joined(segment):
    return segment.samples(0, segment.num_samples)


def segments(*runs, rate=100.0, **options):
    return assemble(runs, rate_hz=rate, **options)


@pytest.mark.parametrize(("source", "target"), [(1000.0, 100.0), (40.0, 100.0), (62.5, 50.0), (200.0, 50.0)])
def test_a_sine_keeps_its_phase_through_resampling(source, target):
    count = 800
    times = (np.arange(source_samples(count, source, target)) - resampling_margin(source, target)) / source
    values = np.sin(2 * np.pi * 3.0 * times) * 500 + 1e6
    out = resample(values[None, None], source, target, count)[0, 0]
    expected = np.sin(2 * np.pi * 3.0 * np.arange(count) / target) * 500 + 1e6
    assert np.abs(out - expected).max() < 5


def test_resampling_marks_what_a_gap_touches_and_nothing_else():
    values = np.random.default_rng(0).normal(size=(1, 1, source_samples(500, 1000.0, 100.0)))
    gap = values.copy()
    gap[..., 2600:2620] = np.nan
    whole, holed = resample(values, 1000.0, 100.0, 500)[0, 0], resample(gap, 1000.0, 100.0, 500)[0, 0]
    absent = np.isnan(holed)
    assert not np.isnan(whole).any()
    assert 2 + 20 <= absent.sum() <= 2 + 24
    offset = values[0, 0, 0] * 0
    np.testing.assert_allclose(holed[~absent], whole[~absent] + offset, atol=1e-6)


def test_resampling_is_scipys_polyphase_filter():
    values = np.random.default_rng(0).normal(size=source_samples(300, 1000.0, 500.0))
    margin = resampling_margin(1000.0, 500.0)
    theirs = resample_poly(values, 1, 2)[margin // 2 :][:300]
    np.testing.assert_allclose(resample(values[None, None], 1000.0, 500.0, 300)[0, 0], theirs, atol=0.02)


def test_a_window_over_a_gap_holds_both_sides_in_their_places():
    data = np.arange(1000)
    parts = segments(run(data[:400]), run(data[450:], 4_500_000_000)).segments
    out = np.full((3, 100), np.nan)
    cut(out, parts, np.array([-10_000_000_000, 3_900_000_000, 9_500_000_000]), 100.0)
    assert np.isnan(out[0]).all()
    np.testing.assert_array_equal(out[1, :10], data[390:400])
    assert np.isnan(out[1, 10:60]).all()
    np.testing.assert_array_equal(out[1, 60:], data[450:490])
    np.testing.assert_array_equal(out[2, :50], data[950:])
    assert np.isnan(out[2, 50:]).all()


@pytest.mark.parametrize("shift_ns", [-4_000_000, 0, 4_000_000])
def test_a_component_between_the_samples_is_taken_at_the_nearest(shift_ns):
    parts = segments(run(np.arange(1000), shift_ns)).segments
    out = np.full((1, 50), np.nan)
    cut(out, parts, np.array([5_000_000_000]), 100.0)
    np.testing.assert_array_equal(out[0], np.arange(500, 550))


def test_windows_of_a_component_with_gaps_and_jitter_hold_the_sample_nearest_to_each_time():
    rng = np.random.default_rng(4)
    parts, begin = [], 0
    for _ in range(40):
        count = int(rng.integers(5, 300))
        parts.append(run(rng.integers(1, 1000, count), begin))
        # Some go on with jitter, some after a gap.
        begin += count * 10_000_000 + int(rng.integers(-4_000_000, 4_000_000)) * int(rng.integers(0, 2))
        begin += int(rng.integers(0, 2)) * int(rng.integers(20_000_000, 2_000_000_000))
    found = segments(*parts).segments
    assert 5 < len(found) < 40
    times = np.concatenate([[part.time_at(index) for index in range(part.num_samples)] for part in found])
    values = np.concatenate([part.samples(0, part.num_samples) for part in found])
    starts = np.sort(rng.integers(-2_000_000_000, int(times[-1]) + 2_000_000_000, 200))
    out = np.full((200, 64), np.nan)
    cut(out, found, starts, 100.0)
    for window, start in zip(out, starts.tolist(), strict=True):
        # Jitter moves a sample by less than half an interval from the place that the samples before it give it.
        for place in np.flatnonzero(np.isfinite(window)):
            near = np.abs(times - (start + place * 10_000_000)) <= 10_000_000
            assert window[place] in values[near]
        inside = (times >= start + 10_000_000) & (times < start + 62 * 10_000_000)
        assert np.isfinite(window).sum() >= inside.sum() - 1
    for part in found:
        each = [part.index_from(time) for time in starts.tolist()]
        assert part.indexes_from(starts).tolist() == each


def test_the_signal_to_noise_ratio_of_a_known_sine():
    rng = np.random.default_rng(3)
    times = np.arange(3000) / 100
    wave = rng.normal(0, 1.0, (1, 3, 3000))
    wave += 500 * np.sin(2 * np.pi * 0.15 * times)
    wave[0, 2, 500:2500] += 40 * np.sin(2 * np.pi * 8 * times[500:2500])
    snr_db, peak = amplitudes(
        wave.astype(np.float32),
        np.array([2]),
        500,
        np.array([2000]),
        band_hz=(4.0, 16.0),
        corners=4,
        rate_hz=100.0,
    )
    # White noise of variance 1 holds (16 - 4) / 50 of it in the band.
    assert snr_db[0] == pytest.approx(20 * np.log10(40 / np.sqrt(2) / np.sqrt(12 / 50)), abs=1.5)
    assert peak[0] == pytest.approx(40, rel=0.15)


def test_quality_decides_between_versions_and_equal_samples_collapse():
    low, high = run(np.arange(100)), run(np.arange(30, 50) + 1000, 300_000_000, version=4)
    found = segments(low, high)
    assert len(found.segments) == 1
    np.testing.assert_array_equal(joined(found.segments[0])[30:50], np.arange(30, 50) + 1000)
    assert found.superseded_samples == 20
    same = segments(run(np.arange(100)), run(np.arange(50, 150), 500_000_000))
    np.testing.assert_array_equal(joined(same.segments[0]), np.arange(150))
    assert same.duplicate_samples == 50


def test_conflicting_samples_become_a_gap_and_are_counted():
    found = segments(run(np.arange(1000)), run(np.arange(500, 600) + 7, 5_000_000_000))
    # Both copies are samples that went in.
    assert found.conflicting_samples == 200
    assert [part.num_samples for part in found.segments] == [500, 400]
    assert found.segments[1].start_ns == 6_000_000_000


def test_jitter_keeps_each_records_time_and_a_clock_step_ends_the_segment():
    late = segments(run(np.arange(100)), run(np.arange(100), 1_003_000_000), run(np.arange(100), 2_003_000_000))
    assert len(late.segments) == 1
    assert [late.segments[0].time_at(index) for index in (99, 100, 200)] == [990_000_000, 1_003_000_000, 2_003_000_000]
    assert late.segments[0].index_from(1_003_000_001) == 101
    assert len(segments(run(np.arange(100)), run(np.arange(100), 1_006_000_000)).segments) == 2
    assert len(segments(run(np.arange(100)), run(np.arange(100), 1_003_000_000), tolerance_samples=0.2).segments) == 2


def test_samples_that_are_not_finite_are_absent():
    data = np.arange(100, dtype=np.float32)
    data[40:42] = [np.nan, np.inf]
    found = segments(run(data))
    assert [part.num_samples for part in found.segments] == [40, 58]
    assert found.bad_samples == 2


def test_a_window_is_what_obspy_cuts_and_says_what_is_missing(tmp_path):
    rng = np.random.default_rng(2)
    traces = []
    for code, late in (("HHE", 3), ("HHZ", 0)):
        data = rng.normal(0, 20, 86400 * 20)
        data[500_000:500_400] += 3000 * np.exp(-np.arange(400) / 60) * rng.normal(size=400)
        traces.append(make_trace(data[late:].astype(np.int32), "2021-03-01", 20.0, code))
        traces[-1].stats.starttime += late / 20
    write_sds(tmp_path / "archive", traces)
    detect(
        tmp_path / "archive",
        tmp_path / "workspace",
        {
            "detection": {"band_hz": [1, 8], "on": 10},
            "window": {"rate_hz": 20, "lead_seconds": 2, "length_seconds": 10},
        },
    )
    table = read_events(tmp_path / "workspace")
    assert table["channels"].to_pylist() == [["HHE", None, "HHZ"]]
    wave = tables.waveforms(table["waveform"])[0]
    start = obspy.UTCDateTime(ns=table["window_start"].cast("int64")[0].as_py())
    for row, trace in ((0, traces[0]), (2, traces[1])):
        np.testing.assert_array_equal(wave[row], trace.slice(start, start + 10 - 0.05).data)
    assert np.isnan(wave[1]).all()
    assert table["missing_fraction"][0].as_py() == pytest.approx(1 / 3)
    assert table["event_id"][0].as_py().startswith("XX.0101..HH.20.20210301T")


@pytest.mark.parametrize("rate", [100.009, 99.991])
def test_every_sample_of_a_long_window_is_the_nearest_in_time_by_its_records_header(rate):
    """The nominal rate is 100 Hz; a digitiser that is 9e-5 off drifts by more than a sample in two minutes."""
    count, start_ns = 20_000, 1_600_000_000_000_000_000
    # Records of 400 samples, each with the start that its first sample has.
    runs = [
        run(np.arange(first, first + 400), start_ns + round(first / rate * 1e9), rate) for first in range(0, count, 400)
    ]
    parts = assemble(runs, rate_hz=100.0).segments
    assert [part.num_samples for part in parts] == [count]
    out = np.full((1, 12_000), np.nan)
    begin_ns = start_ns + 20_000_000_000
    cut(out, parts, np.array([begin_ns]), 100.0)
    times = start_ns + out[0] / rate * 1e9
    assert np.abs(times - (begin_ns + np.arange(12_000) * 1e7)).max() < 0.56e7
    # One sample is left out or taken twice where it has drifted half a sample, and no other.
    steps = np.diff(out[0])
    assert (steps != 1).sum() == 1
    assert set(steps[steps != 1]) == {2 if rate > 100 else 0}


def test_windows_cut_together_or_apart_are_the_same(tmp_path, monkeypatch):
    trace = make_trace(np.random.default_rng(3).normal(size=60_000).astype(np.float32), "2022-01-01T00:00:00", 100.0)
    for place in range(5_000, 55_000, 5_000):
        trace.data[place : place + 300] *= 40
    write_sds(tmp_path / "archive", [trace], encoding="FLOAT32")
    flags = {"detection": {"band_hz": [1, 20]}, "window": {"rate_hz": 50, "lead_seconds": 3, "length_seconds": 12}}
    detect(tmp_path / "archive", tmp_path / "together", flags)
    monkeypatch.setattr(anchored, "MAX_SAMPLES_TOGETHER", 3000)
    detect(tmp_path / "archive", tmp_path / "apart", flags)
    together = read_events(tmp_path / "together")
    assert len(together) >= 10
    assert tables.rows_hash(together) == tables.rows_hash(read_events(tmp_path / "apart"))
