"""Counts over time, whatever the order they come in, and their figures."""

import io

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.report.coverage import coverage_plot
from pipelines.report.time_bins import BIN_WIDTHS_S, add_onsets, merge_counts, no_counts

START_NS = int(np.datetime64("2009-01-21T04:00", "ns").astype(np.int64))


@settings(max_examples=20, deadline=None)
@given(
    seconds=st.lists(st.floats(0, 3e8), min_size=1, max_size=60),
    cut=st.integers(0, 60),
    span=st.sampled_from([1e-5, 1e-3, 1.0]),
)
def test_counts_in_any_order_equal_a_histogram_in_bins_that_are_few_enough(
    seconds: list[float], cut: int, span: float
) -> None:
    onsets_ns = START_NS + (np.array(seconds) * span * 1e9).astype(np.int64)
    series = np.arange(len(seconds)) % 3
    first = add_onsets(no_counts(), onsets_ns[:cut], series[:cut], 100)
    second = add_onsets(no_counts(), onsets_ns[cut:], series[cut:], 100)
    one, other = merge_counts(first, second, 100), merge_counts(second, first, 100)
    assert one.width_s == other.width_s
    pd.testing.assert_series_equal(one.counts, other.counts)
    edges = one.edges_s()
    assert len(edges) - 1 <= 100 or one.width_s == BIN_WIDTHS_S[-1]
    for number in range(3):
        expected, _ = np.histogram(onsets_ns[series == number], bins=edges * 1_000_000_000)
        # NumPy closes the last bin on the right; no onset lies on that edge.
        np.testing.assert_array_equal(one.of(number), expected)


def test_bins_are_as_narrow_as_the_span_allows() -> None:
    hour = add_onsets(no_counts(), START_NS + np.arange(60) * 60 * 10**9, np.zeros(60, int), 480)
    year = add_onsets(hour, np.array([START_NS + 365 * 86_400 * 10**9]), [0], 480)
    assert hour.width_s == 60
    assert year.width_s == 86_400
    assert year.of(0)[0] == 60
    assert year.of(0)[-1] == 1


def test_the_coverage_plot_of_years_and_many_stations_is_a_picture_of_bounded_size() -> None:
    days = pd.date_range("2000-01-01", periods=3000, freq="D")
    coverage = pd.concat(
        pd.DataFrame({"station": f"AW.S{number:03d}", "day": days, "fraction": 0.5}) for number in range(70)
    )
    events = add_onsets(
        no_counts(86_400), days.to_numpy().astype("datetime64[ns]").astype(np.int64), ["AW"] * 3000, 480
    )
    picture = Image.open(io.BytesIO(coverage_plot(coverage, events)))
    assert picture.format == "PNG"
    assert max(picture.size) < 4000


def test_a_coverage_plot_of_nothing_is_drawn() -> None:
    nothing = pd.DataFrame({"station": [], "day": [], "fraction": []})
    assert coverage_plot(nothing, no_counts(86_400)).startswith(b"\x89PNG")
