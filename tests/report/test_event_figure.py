"""The figure of one event: what it shows."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.report import event_figure, style


def test_a_spike_of_one_sample_stays_in_a_drawing_of_few_columns() -> None:
    trace = np.zeros(50_000, np.float32)
    trace[12_345] = 7.0
    index, value = event_figure.envelope(trace, 300)
    assert len(index) <= 600
    assert value.max() == 7.0
    assert index[value.argmax()] == 12_345


def test_the_spectrogram_is_strongest_at_the_frequency_and_time_of_a_tone() -> None:
    rate_hz = 100.0
    time = np.arange(1000) / rate_hz
    trace = np.where((time > 6) & (time < 8), np.sin(2 * np.pi * 23.0 * time), 0.0).astype(np.float32)
    times, frequencies, power_db = event_figure.spectrogram_db(trace, rate_hz)
    row, column = np.unravel_index(power_db.argmax(), power_db.shape)
    assert frequencies[row] == pytest.approx(23.0, abs=1.0)
    assert 6.0 < times[column] < 8.0
    assert power_db.max() == 0.0
    assert power_db.min() >= event_figure.FLOOR_DB


def test_a_trace_without_samples_has_a_spectrogram_without_power() -> None:
    _, _, power_db = event_figure.spectrogram_db(np.full(400, np.nan, np.float32), 100.0)
    assert (power_db == event_figure.FLOOR_DB).all()


@given(st.floats(1e-12, 1e12))
def test_a_scale_bar_is_a_round_number_that_fits(peak: float) -> None:
    length = event_figure.round_length(peak)
    assert 0.39 * peak <= length <= peak * 1.000001
    assert f"{length:.0e}"[0] in "125"


def event_svg(waveform: np.ndarray, channels: list[str | None]) -> str:
    with style.drawing():
        figure = event_figure.event_figure(
            waveform,
            100.0,
            onset_s=1.0,
            duration_s=0.5,
            channels=channels,
            trigger_channel="HHZ",
            units="counts",
            colour="#2f7fc1",
        )
        return style.to_svg(figure, "an event at <station>")


def test_a_figure_is_well_formed_says_its_components_and_is_the_same_each_time() -> None:
    waveform = np.random.default_rng(0).normal(size=(3, 500)).astype(np.float32)
    waveform[1] = np.nan
    text = event_svg(waveform, ["HHE", None, "HHZ"])
    root = ElementTree.fromstring(text)
    words = {element.text.strip() for element in root.iter() if element.text and element.text.strip()}
    assert {"HHE", "N", "HHZ", "no data", "Hz", "seconds after the onset"} <= words
    assert root.attrib["aria-label"] == "an event at <station>"
    assert "var(--ink" in text
    assert text == event_svg(waveform, ["HHE", None, "HHZ"])
    assert len(text) < 80_000


def test_an_offset_of_the_recorder_does_not_hide_the_waveform() -> None:
    waveform = np.random.default_rng(0).normal(size=(3, 500)).astype(np.float32)
    assert np.abs(np.median(event_figure.centred(waveform + 1e5), axis=1)).max() < 0.01


def test_a_band_takes_the_microseism_off_and_leaves_the_event_where_it_was() -> None:
    rate_hz = 100.0
    time = np.arange(3000) / rate_hz
    microseism = 500 * np.sin(2 * np.pi * 0.15 * time)
    event = np.where((time > 10) & (time < 11), 20 * np.sin(2 * np.pi * 12 * time), 0.0)
    waveform = np.tile((microseism + event).astype(np.float32), (3, 1))
    waveform[1, 500:600] = np.nan
    filtered = event_figure.band_passed(waveform, rate_hz, (2.0, 30.0))
    assert np.abs(filtered[0] - event).max() < 8
    assert time[np.abs(filtered[0]).argmax()] == pytest.approx(10.5, abs=0.51)
    assert np.isnan(filtered[1, 500:600]).all()
    assert np.isfinite(np.delete(filtered, slice(500, 600), axis=1)).all()
    times, frequencies, power_db = event_figure.spectrogram_db(waveform[0], rate_hz, (2.0, 30.0))
    loud = power_db[(frequencies > 5)] > -3
    assert set(np.round(times[loud.any(axis=0)])) <= {10.0, 11.0}


@pytest.mark.parametrize(
    ("num_samples", "onset_s", "shown_s", "expected"),
    [
        (3000, 5.0, 3.0, (425, 725)),
        (3000, 5.0, 10.0, (250, 1250)),
        (3000, 0.2, 3.0, (0, 245)),
        (3000, 29.9, 3.0, (2915, 3000)),
    ],
)
def test_a_stretch_about_the_onset_has_a_quarter_of_its_time_before_it_and_ends_with_the_window(
    num_samples: int, onset_s: float, shown_s: float, expected: tuple[int, int]
) -> None:
    part = event_figure.around_onset(num_samples, 100.0, onset_s, shown_s)
    assert (part.start, part.stop) == expected


@given(st.integers(1, 500), st.floats(0, 1), st.sampled_from([0.5, 20.0, 100.0]), st.sampled_from([3.0, 10.0]))
def test_a_stretch_is_never_empty_and_lies_in_the_window(
    num: int, place: float, rate_hz: float, shown_s: float
) -> None:
    part = event_figure.around_onset(num, rate_hz, place * num / rate_hz, shown_s)
    assert 0 <= part.start < part.stop <= num
    assert part.stop - part.start >= min(num, 32)


def test_a_figure_of_seconds_about_the_onset_shows_their_samples_as_they_are_in_the_whole_window() -> None:
    random = np.random.default_rng(4)
    waveform = random.normal(size=(3, 3000)).astype(np.float32)
    band_hz = (2.0, 30.0)
    with style.drawing():
        figure = event_figure.event_figure(
            waveform,
            100.0,
            onset_s=5.0,
            duration_s=1.0,
            channels=["HHE", "HHN", "HHZ"],
            trigger_channel="HHZ",
            units="m/s",
            colour="#0072b2",
            band_hz=band_hz,
            shown_s=3.0,
        )
    upper, lower = figure.axes
    assert lower.get_xlim() == pytest.approx((-0.75, 2.25))
    # Filtered as a whole, so that nothing begins at the stretch's edge; no sample is left out.
    expected = event_figure.band_passed(waveform, 100.0, band_hz)[2, 425:725]
    drawn = upper.lines[2]
    assert drawn.get_xdata() == pytest.approx(np.arange(300) / 100.0 - 0.75)
    trace = np.asarray(drawn.get_ydata())
    assert np.corrcoef(trace, expected)[0, 1] > 0.999999
    [spectrogram] = lower.images
    assert spectrogram.get_array().shape[1] > 60
