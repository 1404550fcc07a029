"""The compiled pass against ObsPy's own functions."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from obspy.signal.filter import bandpass
from obspy.signal.trigger import classic_sta_lta, recursive_sta_lta, trigger_onset

from pipelines.config.detection import DetectionSettings
from pipelines.detect.kernel import BLOCK, design_bandpass, filtered, scan_all


def by_obspy(data, rate, *, sta, lta, on, off, max_len, corners=4, classic=False):
    x = bandpass(data.astype(np.float64) - float(data[0]), 1.0, 8.0, rate, corners)
    ratio = (classic_sta_lta if classic else recursive_sta_lta)(x, sta, lta)
    found = trigger_onset(ratio, on, off, max_len=max_len)
    return np.asarray(found, dtype=np.int64).reshape(-1, 2), ratio


def scan(data, sections, **options):
    return scan_all([[data]], sections, **options)[0]


def signal(seed, count=30_000, bursts=25):
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 50, count)
    for place in rng.integers(0, count - 400, bursts):
        x[place : place + 400] += rng.pareto(1.2) * 300 * np.exp(-np.arange(400) / 80) * rng.normal(size=400)
    return x


@pytest.mark.parametrize("classic", [False, True])
@pytest.mark.parametrize("corners", [1, 2, 4, 6])
@pytest.mark.parametrize("dtype", [np.int32, np.float32, np.float64])
def test_triggers_are_those_of_obspy(classic, corners, dtype):
    data = signal(corners).astype(dtype)
    sections = design_bandpass(1.0, 8.0, corners, 20.0)
    mine = scan(data, sections, num_sta=10, num_lta=200, on=3.0, off=1.2, max_len=300, classic=classic)
    theirs, ratio = by_obspy(
        data, 20.0, sta=10, lta=200, on=3.0, off=1.2, max_len=300, corners=corners, classic=classic
    )
    assert len(theirs) > 5
    np.testing.assert_array_equal(np.c_[mine.on, mine.off], theirs)
    np.testing.assert_allclose(mine.peak, [ratio[a : b + 1].max() for a, b in theirs], rtol=1e-9)


@pytest.mark.parametrize("classic", [False, True])
@pytest.mark.parametrize("more", [-1, 0, 1, 2])
def test_the_first_sample_that_can_trigger_is_that_of_obspy(classic, more):
    """A burst at the very end of a segment of about one LTA."""
    data = signal(3, count=200 + more, bursts=0)
    data[-4:] += [3000, -9000, 9000, -9000]
    mine = scan(
        data, design_bandpass(1.0, 8.0, 4, 20.0), num_sta=10, num_lta=200, on=1.1, off=1.0, max_len=300, classic=classic
    )
    theirs: Any = np.zeros((0, 2), np.int64)
    # ObsPy's recursive average blanks nothing of a segment that is no longer than the LTA; here that never triggers.
    if more >= (0 if classic else 1):
        theirs, _ = by_obspy(data, 20.0, sta=10, lta=200, on=1.1, off=1.0, max_len=300, classic=classic)
    np.testing.assert_array_equal(np.c_[mine.on, mine.off], theirs)
    if more == (0 if classic else 1):
        detection = DetectionSettings(method="classic" if classic else "recursive", sta_seconds=0.5, lta_seconds=10.0)
        assert theirs.tolist() == [[detection.blanked_samples(20.0)] * 2]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    on=st.floats(1.1, 6),
    share=st.floats(0.05, 1.0),
    max_len=st.integers(1, 3 * BLOCK),
    count=st.integers(1, 3 * BLOCK + 7),
)
def test_any_thresholds_give_the_triggers_of_obspy(seed, on, share, max_len, count):
    data = signal(seed, 20_000, 15)[:count].astype(np.int32)
    off = on * share
    mine = scan(data, design_bandpass(1.0, 8.0, 4, 20.0), num_sta=8, num_lta=160, on=on, off=off, max_len=max_len)
    theirs, _ = (
        by_obspy(data, 20.0, sta=8, lta=160, on=on, off=off, max_len=max_len)
        if count > 160
        else (
            np.zeros((0, 2)),
            None,
        )
    )
    np.testing.assert_array_equal(np.c_[mine.on, mine.off].reshape(-1, 2), theirs)


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 20_000), min_size=1, max_size=7),
    kinds=st.lists(st.sampled_from([np.int32, np.float32, np.float64]), min_size=7, max_size=7),
    on=st.floats(1.1, 6),
    corners=st.sampled_from([2, 4, 6]),
    classic=st.booleans(),
)
def test_several_runs_together_give_what_each_gives_alone(lengths, kinds, on, corners, classic):
    runs = [signal(seed, 20_000, 20)[:count].astype(kinds[seed]) for seed, count in enumerate(lengths)]
    options = {"num_sta": 8, "num_lta": 160, "on": on, "off": 1.0, "max_len": 300, "classic": classic}
    sections = design_bandpass(1.0, 8.0, corners, 20.0)
    for run, mine in zip(runs, scan_all([[run] for run in runs], sections, **options), strict=True):
        alone = scan(run, sections, **options)
        for one, other in zip(mine, alone, strict=True):
            np.testing.assert_array_equal(one, other)


@settings(max_examples=25, deadline=None)
@given(
    cuts=st.lists(st.lists(st.integers(0, 9_000), max_size=6), min_size=1, max_size=5),
    kind=st.sampled_from([np.int32, np.float32, np.float64]),
    corners=st.sampled_from([4, 6]),
    classic=st.booleans(),
)
def test_a_run_in_pieces_gives_what_it_gives_whole(cuts, kind, corners, classic):
    options = {"num_sta": 8, "num_lta": 160, "on": 2.5, "off": 1.0, "max_len": 300, "classic": classic}
    sections = design_bandpass(1.0, 8.0, corners, 20.0)
    whole = [signal(seed, 9_000 - 500 * seed, 15).astype(kind) for seed in range(len(cuts))]
    pieces = [
        np.split(run, sorted(min(place, len(run)) for place in places)) for run, places in zip(whole, cuts, strict=True)
    ]
    for run, mine in zip(whole, scan_all(pieces, sections, **options), strict=True):
        for one, other in zip(mine, scan(run, sections, **options), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("num_runs", [2, 3, 4])
def test_runs_of_equal_length_give_the_triggers_of_obspy(num_runs):
    runs = [signal(seed).astype(np.int32) for seed in range(num_runs)]
    options = {"num_sta": 10, "num_lta": 200, "on": 3.0, "off": 1.2, "max_len": 300}
    sections = design_bandpass(1.0, 8.0, 4, 20.0)
    for run, mine in zip(runs, scan_all([[run] for run in runs], sections, **options), strict=True):
        theirs, _ = by_obspy(run, 20.0, sta=10, lta=200, on=3.0, off=1.2, max_len=300)
        np.testing.assert_array_equal(np.c_[mine.on, mine.off], theirs)


def test_a_constant_offset_causes_no_transient():
    data = np.full(5000, 2**30, np.int32)
    assert np.all(filtered(data, design_bandpass(1.0, 8.0, 4, 20.0)) == 0)
    assert len(scan(data, design_bandpass(1, 8, 4, 20.0), num_sta=10, num_lta=200, on=2, off=1, max_len=100).on) == 0


def test_a_band_above_nyquist_is_refused():
    with pytest.raises(ValueError, match=r"12 Hz is not below the Nyquist frequency 10 Hz"):
        design_bandpass(1.0, 12.0, 4, 20.0)
