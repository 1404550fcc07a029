"""Drift is noticed where the archive has changed, and nowhere else: 200 archives drawn like the reference."""

import json
from collections import Counter

import numpy as np
import pytest

from pipelines.label.cells import Cell, add_cells, cells_of, distance_bins, distance_exceeded_by, noise_level_db
from pipelines.label.drift import compare_cells

DAY_NS = 86_400 * 10**9
START_NS = int(np.datetime64("2020-01-01", "ns").astype(np.int64))
CENTRES = 4 * np.eye(8, dtype=np.float64)[:4]
SHARES = (0.4, 0.3, 0.2, 0.1)


def draw(random: np.random.Generator, num: int, *, spread=1.0, shares=SHARES, new_class=0.0, gain=1.0, noise=1.0):
    """Return (cluster, distance, noise level) of events around four centroids, some of them of a class of its own."""
    kinds = random.choice(4, num, p=shares)
    points = CENTRES[kinds] + 0.5 * spread * random.normal(size=(num, 8))
    points[random.random(num) < new_class] += 4 * np.eye(8)[6]
    distances = np.linalg.norm(points[:, None] - CENTRES, axis=2)
    signal = random.uniform(5, 50, num)
    snr_db = 20 * np.log10(signal / noise)
    peak = 3 * signal * gain * random.lognormal(0, 0.2, num)
    return distances.argmin(axis=1).astype(np.int32), distances.min(axis=1), noise_level_db(peak, snr_db)


def archive(random: np.random.Generator, **later) -> list[Cell]:
    """Return the cells of three stations: two months of reference, then two months drawn with other settings."""
    drawn = {station: draw(random, 600) for station in ("AW.A", "AW.B", "XX.0101")}
    far = float(np.quantile(np.concatenate([distances for _, distances, _ in drawn.values()]), 0.99))
    cells = []
    for station, before in drawn.items():
        after = draw(random, 400, **later)
        days = np.concatenate([np.linspace(0, 59.9, 600), np.linspace(60.1, 120.5, 400)])
        columns = [np.concatenate(pair) for pair in zip(before, after, strict=True)]
        onsets = START_NS + (days * DAY_NS).astype(np.int64)
        period = (int(onsets[0]), int(onsets[599]))
        for part in (slice(0, 500), slice(500, None)):
            cells += cells_of(
                station, onsets[part], *(column[part] for column in columns), period_ns=period, far_distance=far
            )
    return add_cells(cells)


def test_an_archive_that_goes_on_as_before_raises_no_alarm_in_199_of_200_draws():
    raised = 0
    for seed in range(200):
        found = compare_cells(archive(np.random.default_rng(seed)))
        assert [(row.station, row.month) for row in found[:2]] == [("AW.A", "2020-03"), ("AW.A", "2020-04")]
        assert all(row.own_reference and row.reference_events == 600 for row in found)
        raised += any(row.reasons for row in found)
    assert raised <= 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"new_class": 0.2}, "farther from every centroid"),
        ({"spread": 1.6}, "times as far from their centroids"),
        ({"shares": (0.1, 0.1, 0.1, 0.7)}, "change cluster"),
        ({"gain": 4.0}, "dB above"),
        ({"gain": 0.25}, "dB below"),
        ({"noise": 2.0}, "dB above"),
    ],
    ids=["a new class", "other noise in the embedding", "another balance", "more gain", "less gain", "more noise"],
)
def test_a_change_at_all_stations_is_noticed_at_each_and_named(change, words):
    for seed in range(20):
        found = compare_cells(archive(np.random.default_rng(seed), **change))
        assert all(any(words in reason for reason in row.reasons) for row in found), (seed, found)


def test_a_month_with_few_events_and_a_reference_of_few_raise_nothing():
    random = np.random.default_rng(0)
    many = [cell for cell in archive(random, new_class=0.9) if cell.reference]
    columns = draw(random, 20, new_class=1.0)
    onsets = START_NS + np.linspace(70, 80, 20).astype(np.int64) * DAY_NS
    few = cells_of("AW.A", onsets, *columns, period_ns=None, far_distance=0.1)
    assert compare_cells([*many, *few])[0].far_share == 1.0
    assert not compare_cells([*many, *few])[0].reasons
    columns = draw(random, 300, new_class=1.0)
    onsets = START_NS + np.linspace(70, 80, 300).astype(np.int64) * DAY_NS
    later = cells_of("AW.A", onsets, *columns, period_ns=None, far_distance=0.1)
    assert compare_cells([*many, *later])[0].reasons
    assert not compare_cells(later)[0].reasons


def test_a_station_without_a_reference_is_compared_with_all_and_its_noise_with_none():
    random = np.random.default_rng(1)
    cells = archive(random)
    onsets = START_NS + np.linspace(70, 80, 300).astype(np.int64) * DAY_NS
    far = cells_of("AW.NEW", onsets, *draw(random, 300, spread=2.0, gain=9), period_ns=None, far_distance=1e9)
    found = next(row for row in compare_cells(add_cells([*cells, *far])) if row.station == "AW.NEW")
    assert (found.own_reference, found.reference_events, found.noise_db) == (False, 1800, None)
    assert found.distance_ratio == pytest.approx(2.0, rel=0.1)
    assert len(found.reasons) == 1


@pytest.mark.parametrize(("second", "noticed"), [((0.7, 0.1, 0.1, 0.1), True), ((0.1, 0.7, 0.1, 0.1), False)])
def test_differences_as_between_the_months_of_the_reference_are_no_drift(second, noticed):
    """The third month's balance is unlike the first's; where the second is unlike it, too, that is usual here."""
    random = np.random.default_rng(2)
    cells = []
    for number, shares in enumerate([(0.7, 0.1, 0.1, 0.1), second, (0.1, 0.1, 0.7, 0.1)]):
        onsets = START_NS + np.linspace(31 * number, 31 * number + 27, 400).astype(np.int64) * DAY_NS
        period = (START_NS, START_NS + 60 * DAY_NS)
        cells += cells_of("AW.A", onsets, *draw(random, 400, shares=shares), period_ns=period, far_distance=9.0)
    (found,) = compare_cells(add_cells(cells))
    assert found.balance > 0.5
    assert any("change cluster" in reason for reason in found.reasons) == noticed


def test_cells_survive_a_marker_and_count_every_event_once():
    cells = archive(np.random.default_rng(3))
    assert [Cell.from_json(cell.station, json.loads(json.dumps(cell.as_json()))) for cell in cells] == cells
    assert sum(cell.events for cell in cells) == 3000
    assert sum(sum(cell.clusters.values()) for cell in cells) == 3000
    inside = [cell for cell in cells if cell.reference]
    assert sum(cell.far for cell in inside) == pytest.approx(18, abs=1)
    fine = Counter(distance_bins(np.linspace(0.01, 10, 1000), 32).tolist())
    assert 9.9 <= distance_exceeded_by(0.01, fine) <= 9.9 * 2 ** (1 / 32)
    assert distance_bins(np.array([1.0, 2.0, 0.0]))[:2].tolist() == [0, 8]
    assert np.isnan(noise_level_db(np.array([0.0, 1.0]), np.array([1.0, np.nan]))).all()
