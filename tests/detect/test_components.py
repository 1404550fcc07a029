"""Components: codes that change in time, codes that compete, and components that are sampled a moment apart."""

from pathlib import Path
from typing import Any

import numpy as np
import obspy
import pytest
from detection_archives import detect, make_noise, make_trace, read_events, read_markers, write_sds

RATE_HZ = 20.0
HOUR = 3600
FLAGS: dict[str, Any] = {
    "archive": {"layout": "sds"},
    "detection": {"sta_seconds": 0.5, "lta_seconds": 10.0, "on": 6.0, "band_hz": (1.0, 8.0)},
    "window": {"rate_hz": RATE_HZ, "lead_seconds": 5.0, "length_seconds": 30.0},
    "shards": {"interval": "day"},
}


def bursts(seconds: list[float], total: float = 2 * HOUR, seed: int = 0) -> np.ndarray:
    """Return quiet noise with a strong burst at each time."""
    samples = make_noise(total, RATE_HZ, seed, 0, offset=100).astype(np.float64)
    rng = np.random.default_rng(99)
    for second in seconds:
        first = round(second * RATE_HZ)
        samples[first : first + 100] += 20000 * rng.normal(size=100) * np.exp(-np.arange(100) / 30)
    return samples.astype(np.int32)


def onset_seconds(workspace: Path, start: str = "2021-03-01") -> list[float]:
    onsets = read_events(workspace)["onset"].cast("int64").to_numpy()
    return ((onsets - obspy.UTCDateTime(start).ns) / 1e9).tolist()


def waveforms(events: Any) -> np.ndarray:
    column = events["waveform"].combine_chunks()
    # Rows of several shards come in chunks.
    parts = column.chunks if hasattr(column, "chunks") else [column]
    return np.concatenate([part.to_numpy_ndarray() for part in parts])


def with_interval(interval: str, **detection: Any) -> dict[str, Any]:
    return FLAGS | {"shards": {"interval": interval}, "detection": FLAGS["detection"] | detection}


@pytest.mark.parametrize("change", [("BHE", "BH1"), ("BHN", "BH2"), ("BHZ", "BH3"), ("BHZ", "BHZ")])
def test_codes_that_follow_each_other_in_a_day_are_one_component(change: tuple[str, str], tmp_path: Path):
    times = [600.0, 1800.0, 3000.0, 4200.0, 5400.0, 6600.0]
    whole = make_trace(bursts(times), "2021-03-01", RATE_HZ, change[0])
    middle = whole.stats.starttime + HOUR
    later = whole.slice(starttime=middle).copy()
    later.stats.channel = change[1]
    write_sds(tmp_path / "archive", [whole.slice(endtime=middle - 1 / RATE_HZ), later])
    letter = {"BHE": "E", "BHN": "N", "BHZ": "Z"}[change[0]]
    for interval in ("hour", "day"):
        flags = with_interval(interval, trigger_components=letter)
        detect(tmp_path / "archive", tmp_path / interval, flags)
        np.testing.assert_allclose(onset_seconds(tmp_path / interval), times, atol=0.3)
        events = read_events(tmp_path / interval)
        assert events["trigger_channel"].to_pylist() == [change[0]] * 3 + [change[1]] * 3
        for codes, trigger in zip(events["channels"].to_pylist(), events["trigger_channel"].to_pylist(), strict=True):
            assert [code for code in codes if code] == [trigger]
        assert not any(marker["skipped"] for marker in read_markers(tmp_path / interval))


def test_three_components_that_are_renamed_at_noon_give_whole_windows_on_both_sides(tmp_path: Path):
    times = [600.0, 1800.0, 5400.0, 6600.0]
    traces = []
    for seed, codes in enumerate((("BHE", "BH1"), ("BHN", "BH2"), ("BHZ", "BHZ"))):
        whole = make_trace(bursts(times, seed=seed), "2021-03-01", RATE_HZ, codes[0])
        later = whole.slice(starttime=whole.stats.starttime + HOUR).copy()
        later.stats.channel = codes[1]
        traces += [whole.slice(endtime=whole.stats.starttime + HOUR - 1 / RATE_HZ), later]
    write_sds(tmp_path / "archive", traces)
    detect(tmp_path / "archive", tmp_path / "w", FLAGS)
    events = read_events(tmp_path / "w")
    assert events["channels"].to_pylist() == [["BHE", "BHN", "BHZ"]] * 2 + [["BH1", "BH2", "BHZ"]] * 2
    assert events["missing_fraction"].to_pylist() == [0.0] * 4


def test_of_two_codes_of_one_component_at_one_time_the_letter_is_used_and_the_other_is_counted(tmp_path: Path):
    letter = make_trace(bursts([600.0, 1800.0]), "2021-03-01", RATE_HZ, "BHZ")
    digit = make_trace(bursts([900.0, 6000.0], seed=1), "2021-03-01", RATE_HZ, "BH3")
    write_sds(tmp_path / "archive", [letter.slice(endtime=letter.stats.starttime + HOUR - 1 / RATE_HZ), digit])
    found = {}
    for interval in ("hour", "day", "month"):
        detect(tmp_path / "archive", tmp_path / interval, with_interval(interval))
        # The digit's burst while the letter records is dropped, the one after the letter's end is found.
        np.testing.assert_allclose(onset_seconds(tmp_path / interval), [600.0, 1800.0, 6000.0], atol=0.3)
        found[interval] = read_events(tmp_path / interval)
    for interval in ("hour", "month"):
        assert found[interval].drop_columns(["waveform"]).equals(found["day"].drop_columns(["waveform"]))
        np.testing.assert_array_equal(waveforms(found[interval]), waveforms(found["day"]))
    markers = read_markers(tmp_path / "day")
    (entry,) = (entry for marker in markers for entry in marker["coverage"] if "BH3" in entry["channel"])
    assert entry["same_component_samples"] == HOUR * RATE_HZ
    assert entry["seconds"] == HOUR
    reasons = [reason for marker in markers for reason in marker["skipped"]]
    assert any("BH3 is the same component as BHZ" in reason for reason in reasons)


def test_a_window_over_the_change_holds_samples_of_the_code_that_triggered(tmp_path: Path):
    whole = make_trace(bursts([HOUR + 1.0]), "2021-03-01", RATE_HZ, "BHN")
    later = whole.slice(starttime=whole.stats.starttime + HOUR).copy()
    later.stats.channel = "BH2"
    east = make_trace(bursts([], seed=3), "2021-03-01", RATE_HZ, "BHE")
    vertical = make_trace(bursts([HOUR + 11.0], seed=4), "2021-03-01", RATE_HZ, "BHZ")
    write_sds(tmp_path / "archive", [whole.slice(endtime=whole.stats.starttime + HOUR - 1 / RATE_HZ), later])
    write_sds(tmp_path / "archive", [east, vertical])
    flags = with_interval("day") | {"window": FLAGS["window"] | {"lead_seconds": 20.0}}
    detect(tmp_path / "archive", tmp_path / "w", flags)
    events = read_events(tmp_path / "w")
    # Ten of the window's thirty seconds lie before the change.
    assert events["channels"].to_pylist() == [["BHE", "BH2", "BHZ"]]
    north = waveforms(events)[0, 1]
    assert np.isnan(north[:170]).all()
    assert np.isfinite(north[190:]).all()


@pytest.mark.parametrize("offset_us", [1, 999])
@pytest.mark.parametrize("length", [1, 400])
def test_components_whose_files_begin_microseconds_apart_give_one_event(offset_us: int, length: int, tmp_path: Path):
    samples = make_noise(HOUR, RATE_HZ, 2, 0, offset=100)
    samples[36000 : 36000 + length] += (
        30000 * np.random.default_rng(5).normal(size=length) + (60000 if length == 1 else 0)
    ).astype(np.int32)
    traces = [make_trace(samples, "2021-03-01", RATE_HZ, channel) for channel in ("HHE", "HHN", "HHZ")]
    for number, trace in enumerate(traces):
        trace.stats.starttime += number * offset_us * 1e-6
    write_sds(tmp_path / "archive", traces)
    # An end threshold as high as the start's makes triggers of few samples.
    detect(tmp_path / "archive", tmp_path / "w", with_interval("day", trigger_components="ZNE", on=8.0, off=8.0))
    events = read_events(tmp_path / "w")
    assert len(events) >= 1
    apart = np.diff(np.sort(events["onset"].cast("int64").to_numpy()))
    assert (apart > 1e9 / RATE_HZ / 2).all()
    if length == 1:
        assert len(events) == 1
