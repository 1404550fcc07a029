import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.handlabels.halves import in_validation
from pipelines.metrics.association import (
    NANOSECONDS,
    associate,
    coincident,
    event_names,
    match_event_ids,
    match_times,
)


def seconds(*values: float) -> np.ndarray:
    return np.array([round(value * NANOSECONDS) for value in values], dtype=np.int64)


def greedy_events(times: list[int], within: int) -> list[int]:
    """The rule said in the plainest loop."""
    numbers = {}
    event, first = -1, None
    for time in sorted(times):
        if first is None or time - first > within:
            event, first = event + 1, time
        numbers[time] = event
    return [numbers[time] for time in times]


def test_triggers_within_the_time_of_the_first_are_one_event():
    assert associate(seconds(10, 0, 4, 5.5, 11), 5.0).tolist() == [1, 0, 0, 1, 2]


def test_no_trigger_gives_no_event():
    assert associate(seconds(), 5.0).tolist() == []


@given(st.lists(st.integers(0, 400), max_size=60), st.integers(0, 40))
def test_events_follow_the_rule_in_any_row_order(times, within):
    found = associate(np.array(times, dtype=np.int64) * NANOSECONDS, float(within))
    assert found.tolist() == greedy_events(times, within)


@given(
    st.lists(st.tuples(st.integers(0, 200), st.sampled_from("ABCD")), min_size=1, max_size=60),
    st.integers(1, 20),
    st.integers(1, 5),
)
def test_a_trigger_is_coincident_where_its_event_has_so_many_stations(triggers, within, num_stations):
    times, stations = [time for time, _ in triggers], [station for _, station in triggers]
    events = greedy_events(times, within)
    expected = [
        len({s for s, e in zip(stations, events, strict=True) if e == event}) >= num_stations for event in events
    ]
    found = coincident(np.array(times, dtype=np.int64) * NANOSECONDS, stations, float(within), num_stations)
    assert found.tolist() == expected


def test_an_event_is_named_after_its_first_trigger():
    names = event_names(seconds(3, 1, 1, 60), ["c", "b", "a", "z"], 5.0)
    assert names.tolist() == ["a", "a", "a", "z"]


def test_the_halves_depend_on_the_name_alone_and_are_nearly_equal():
    names = [f"AW.VNA1..HH.{number}" for number in range(4000)]
    halves = in_validation(names)
    assert halves.tolist() == in_validation(names[::-1])[::-1].tolist()
    assert 0.46 < halves.mean() < 0.54


def test_a_label_goes_to_the_nearest_onset_of_its_station_within_the_tolerance():
    events = [("AW", "VNA1"), ("AW", "VNA1"), ("AW", "VNA2")]
    found = match_times(
        events,
        seconds(100, 103, 100.1),
        [("AW", "VNA1"), ("AW", "VNA2"), ("AW", "VNA3"), ("AW", "VNA1")],
        seconds(102.5, 100, 100, 90),
        ["icequake", "spike", "spike", "earthquake"],
        tolerance_seconds=1.0,
    )
    assert dict(zip(found.event_rows.tolist(), found.labels.tolist(), strict=True)) == {1: "icequake", 2: "spike"}
    assert found.unmatched.tolist() == [2, 3]
    assert found.ambiguous.tolist() == []


def test_rows_that_name_one_event_differently_are_ambiguous_and_equal_ones_are_not():
    station = [("AW", "VNA1")]
    found = match_times(station, seconds(100), station * 2, seconds(99.5, 100.2), ["icequake", "spike"], 1.0)
    assert found.event_rows.tolist() == []
    assert found.ambiguous.tolist() == [0, 1]
    found = match_times(station, seconds(100), station * 2, seconds(99.5, 100.2), ["spike", "spike"], 1.0)
    assert found.label_rows.tolist() == [1]


def test_a_label_between_two_equally_near_onsets_is_ambiguous():
    station = [("AW", "VNA1")]
    found = match_times(station * 2, seconds(100, 102), station, seconds(101), ["spike"], 2.0)
    assert found.ambiguous.tolist() == [0]
    assert found.event_rows.tolist() == []


def test_a_label_of_two_channel_groups_with_an_onset_at_one_instant_is_ambiguous():
    station = [("AW", "VNA1")]
    # Before, on and after the two; another onset is farther away.
    for time in (99.8, 100.0, 100.3):
        found = match_times(station * 3, seconds(100, 102, 100), station, seconds(time), ["spike"], 2.0)
        assert found.ambiguous.tolist() == [0]
        assert found.event_rows.tolist() == []


def test_labels_by_event_id_report_unknown_and_contradicting_rows():
    found = match_event_ids(["a", "b", "c"], ["c", "x", "b", "b"], ["spike", "spike", "spike", "icequake"])
    assert found.event_rows.tolist() == [2]
    assert found.unmatched.tolist() == [1]
    assert found.ambiguous.tolist() == [2, 3]


@pytest.mark.parametrize("tolerance", [0.5, 2.0])
def test_matching_agrees_with_a_search_over_all_pairs(tolerance):
    random = np.random.default_rng(1)
    onsets = np.sort(random.integers(0, 500, 80)) * NANOSECONDS + random.integers(0, NANOSECONDS, 80)
    times = random.integers(0, 500 * NANOSECONDS, 120)
    found = match_times([("A", "B")] * 80, onsets, [("A", "B")] * 120, times, ["x"] * 120, tolerance)
    distances = np.abs(times[:, None] - onsets[None])
    near = distances.min(axis=1) <= tolerance * NANOSECONDS
    assert found.unmatched.tolist() == np.flatnonzero(~near).tolist()
    assert found.event_rows.tolist() == np.unique(distances.argmin(axis=1)[near]).tolist()
