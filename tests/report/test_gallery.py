"""The gallery: what is chosen, and what a figure shows."""

import itertools
import xml.etree.ElementTree as ElementTree

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.report import figures, gallery


def label_rows(random: np.random.Generator, count: int, clusters: int = 4) -> pd.DataFrame:
    rows = pd.DataFrame(
        {
            "event_id": [f"AW.VNA1..HH.{number:06d}" for number in random.permutation(10 * count)[:count]],
            "cluster": random.integers(0, clusters, count),
            "distance": random.integers(0, 20, count) / 4,
            "margin": random.random(count),
        }
    )
    return rows.assign(hash=gallery.event_hash(rows["event_id"]))


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 120), cuts=st.lists(st.integers(0, 120), max_size=4))
def test_parts_in_any_order_give_the_gallery_of_the_whole(seed: int, count: int, cuts: list[int]) -> None:
    random = np.random.default_rng(seed)
    rows = label_rows(random, count)
    whole = gallery.best_candidates(gallery.gallery_candidates(rows), 5)
    edges = [0, *sorted(min(cut, count) for cut in cuts), count]
    parts = [rows.iloc[start:stop] for start, stop in itertools.pairwise(edges)]
    folded = gallery.best_candidates(gallery.gallery_candidates(rows.iloc[:0]), 5)
    for part in random.permutation(len(parts)):
        candidates = gallery.best_candidates(gallery.gallery_candidates(parts[part]), 5)
        folded = gallery.best_candidates(pd.concat([folded, candidates]), 5)
    first = gallery.choose_gallery(whole, nearest=2, random=2, boundary=1, at_most=100)
    second = gallery.choose_gallery(folded, nearest=2, random=2, boundary=1, at_most=100)
    assert first[["event_id", "role"]].to_dict("list") == second[["event_id", "role"]].to_dict("list")


def test_the_nearest_events_are_those_with_the_smallest_distance_and_none_stands_twice() -> None:
    rows = label_rows(np.random.default_rng(1), 400)
    candidates = gallery.best_candidates(gallery.gallery_candidates(rows), 6)
    chosen = gallery.choose_gallery(candidates, nearest=2, random=3, boundary=1, at_most=100)
    assert chosen["event_id"].is_unique
    assert chosen.groupby("cluster").size().tolist() == [6, 6, 6, 6]
    for cluster, own in chosen.groupby("cluster"):
        expected = rows[rows["cluster"] == cluster].sort_values(["distance", "event_id"])["event_id"].head(2)
        assert set(own.loc[own["role"] == "nearest", "event_id"]) == set(expected)


@pytest.mark.parametrize("at_most", [0, 3, 4, 9, 13])
def test_many_clusters_share_the_room_on_the_page(at_most: int) -> None:
    rows = label_rows(np.random.default_rng(2), 300)
    candidates = gallery.best_candidates(gallery.gallery_candidates(rows), 6)
    chosen = gallery.choose_gallery(candidates, nearest=2, random=3, boundary=1, at_most=at_most)
    assert len(chosen) <= at_most
    assert chosen["cluster"].nunique() == min(at_most, 4)


def test_a_spike_of_one_sample_stays_in_a_drawing_of_few_columns() -> None:
    trace = np.zeros(50_000, np.float32)
    trace[12_345] = 7.0
    index, value = gallery.envelope(trace, 300)
    assert len(index) <= 600
    assert value.max() == 7.0
    assert index[value.argmax()] == 12_345


def test_the_spectrogram_is_strongest_at_the_frequency_and_time_of_a_tone() -> None:
    rate_hz = 100.0
    time = np.arange(1000) / rate_hz
    trace = np.where((time > 6) & (time < 8), np.sin(2 * np.pi * 23.0 * time), 0.0).astype(np.float32)
    times, frequencies, power_db = gallery.spectrogram_db(trace, rate_hz)
    row, column = np.unravel_index(power_db.argmax(), power_db.shape)
    assert frequencies[row] == pytest.approx(23.0, abs=1.0)
    assert 6.0 < times[column] < 8.0
    assert power_db.max() == 0.0
    assert power_db.min() >= gallery.FLOOR_DB


def test_a_trace_without_samples_has_a_spectrogram_without_power() -> None:
    _, _, power_db = gallery.spectrogram_db(np.full(400, np.nan, np.float32), 100.0)
    assert (power_db == gallery.FLOOR_DB).all()


@given(st.floats(1e-12, 1e12))
def test_a_scale_bar_is_a_round_number_that_fits(peak: float) -> None:
    length = gallery.round_length(peak)
    assert 0.39 * peak <= length <= peak * 1.000001
    assert f"{length:.0e}"[0] in "125"


def event_svg(waveform: np.ndarray, channels: list[str | None]) -> str:
    with figures.drawing():
        figure = gallery.event_figure(waveform, 100.0, 1.0, 0.5, channels, "HHZ", "counts", "#2f7fc1")
        return figures.to_svg(figure, "an event at <station>")


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
    assert np.abs(np.median(gallery.centred(waveform + 1e5), axis=1)).max() < 0.01


def test_a_band_takes_the_microseism_off_and_leaves_the_event_where_it_was() -> None:
    rate_hz = 100.0
    time = np.arange(3000) / rate_hz
    microseism = 500 * np.sin(2 * np.pi * 0.15 * time)
    event = np.where((time > 10) & (time < 11), 20 * np.sin(2 * np.pi * 12 * time), 0.0)
    waveform = np.tile((microseism + event).astype(np.float32), (3, 1))
    waveform[1, 500:600] = np.nan
    filtered = gallery.band_passed(waveform, rate_hz, (2.0, 30.0))
    assert np.abs(filtered[0] - event).max() < 8
    assert time[np.abs(filtered[0]).argmax()] == pytest.approx(10.5, abs=0.51)
    assert np.isnan(filtered[1, 500:600]).all()
    assert np.isfinite(np.delete(filtered, slice(500, 600), axis=1)).all()
    times, frequencies, power_db = gallery.spectrogram_db(waveform[0], rate_hz, (2.0, 30.0))
    loud = power_db[(frequencies > 5)] > -3
    assert set(np.round(times[loud.any(axis=0)])) <= {10.0, 11.0}
