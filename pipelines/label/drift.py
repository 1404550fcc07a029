"""Drift: how the events of each station and month differ from those that the clustering was fitted on.

Four numbers of a cell outside the reference period (`cells`) are compared with the cells inside: the share of events
far from every centroid, the median distance to the nearest one, the class balance, and the noise level. An alarm needs
a difference that is large, larger than between the months of the reference period, and not due to chance.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from scipy.stats import chi2, hypergeom

from pipelines.label.cells import BINS_PER_OCTAVE, Cell
from pipelines.workspace.artifacts import DriftRow

MIN_EVENTS = 30
"""A cell with fewer events raises no alarm."""
MIN_REFERENCE_EVENTS = 100
"""A station with fewer events in the reference period is compared with all stations; with fewer in all, nothing is."""
CHANCE = 0.01
"""Probability of any alarm, over all cells and numbers, where independent events are drawn as in the reference."""

FAR_FACTOR, FAR_SHARE = 3.0, 0.03
"""A share of far events that many times the reference's, and at least so large, is large."""
DISTANCE_FACTOR = 1.25
"""A median distance that many times the reference's is large."""
BALANCE = 0.3
"""A share of events, that would have to change cluster to give the reference's balance, which is large."""
NOISE_DB = 3.0
"""A difference of median noise levels that is large (dB)."""


def compare_cells(cells: Sequence[Cell]) -> list[DriftRow]:
    """Compare each cell outside the reference period with the station's reference, by station and month.

    Args:
        cells: as from `add_cells`.
    """
    inside = [cell for cell in cells if cell.reference]
    by_station: dict[str, list[Cell]] = {}
    for cell in inside:
        by_station.setdefault(cell.station, []).append(cell)
    references = {station: _Reference(months) for station, months in by_station.items()}
    pooled = _Reference(inside)
    later = [cell for cell in cells if not cell.reference]
    chance = CHANCE / max(1, 4 * len(later))
    found = []
    for cell in later:
        own = references.get(cell.station, pooled)
        enough = own.whole.events >= MIN_REFERENCE_EVENTS and own is not pooled
        found.append(_compare(cell, own if enough else pooled, enough, chance))
    return found


class _Reference:
    """The reference of one station, or of all, and how far its months are from the rest of it."""

    def __init__(self, months: Sequence[Cell]) -> None:
        self.whole = _total(months)
        self.far = self.ratio = self.balance = self.noise_db = 0.0
        for month in months:
            rest = _without(self.whole, month)
            if month.events >= MIN_EVENTS and rest.events >= MIN_REFERENCE_EVENTS:
                self.far = max(self.far, month.far / month.events)
                self.ratio = max(self.ratio, _distance_ratio(month, rest))
                self.balance = max(self.balance, _imbalance(month, rest))
                self.noise_db = max(self.noise_db, abs(_noise_shift(month, rest) or 0.0))


def _compare(cell: Cell, usual: _Reference, own: bool, chance: float) -> DriftRow:
    reference = usual.whole
    found = DriftRow(
        station=cell.station,
        month=cell.month,
        events=cell.events,
        reference_events=reference.events,
        own_reference=own,
        far_share=cell.far / cell.events,
        reference_far_share=reference.far / max(1, reference.events),
        distance_ratio=_distance_ratio(cell, reference),
        balance=_imbalance(cell, reference),
        noise_db=_noise_shift(cell, reference) if own else None,
    )
    if cell.events < MIN_EVENTS or reference.events < MIN_REFERENCE_EVENTS:
        return found
    return found.model_copy(update={"reasons": tuple(_reasons(found, cell, usual, chance))})


def _reasons(found: DriftRow, cell: Cell, usual: _Reference, chance: float) -> Iterator[str]:
    """Yield what has changed in a cell, in words."""
    reference = usual.whole
    far = found.far_share >= max(FAR_FACTOR * found.reference_far_share, FAR_SHARE) and found.far_share > usual.far
    if far and _more_than_chance(cell.far, cell.events, reference.far, reference.events) < chance:
        yield (
            f"{found.far_share:.0%} of its events are farther from every centroid than 99 % of the fitted ones "
            f"({found.reference_far_share:.1%} in the reference period)"
        )
    middle = _median(reference.distances)
    above, above_before = _above(cell.distances, middle), _above(reference.distances, middle)
    distant = found.distance_ratio >= DISTANCE_FACTOR and found.distance_ratio > usual.ratio
    if distant and _more_than_chance(above, cell.events, above_before, reference.events) < chance:
        yield f"its events lie {found.distance_ratio:.1f} times as far from their centroids (median)"
    unbalanced = found.balance >= BALANCE and found.balance > usual.balance
    if unbalanced and _balance_by_chance(cell, reference) < chance:
        yield f"{found.balance:.0%} of its events would have to change cluster to give the balance of before"
    shift = abs(found.noise_db or 0.0)
    if shift >= NOISE_DB and shift > usual.noise_db and _noise_by_chance(cell, reference) < chance:
        direction = "above" if (found.noise_db or 0.0) > 0 else "below"
        yield f"its noise level is {shift:.0f} dB {direction} that of before (median)"


def _total(cells: Iterable[Cell]) -> Cell:
    total = Cell(station="", month="", reference=True)
    for cell in cells:
        total.add(cell)
    return total


def _without(whole: Cell, part: Cell) -> Cell:
    return Cell(
        station=whole.station,
        month=whole.month,
        reference=True,
        events=whole.events - part.events,
        far=whole.far - part.far,
        clusters=whole.clusters - part.clusters,
        distances=whole.distances - part.distances,
        noise_db=whole.noise_db - part.noise_db,
    )


def _median(counts: Counter[int]) -> float:
    """Return the median of binned values, in bins; NaN without any."""
    half, below = sum(counts.values()) / 2, 0
    for key in sorted(counts):
        if below + counts[key] >= half:
            return key + (half - below) / counts[key]
        below += counts[key]
    return float("nan")


def _above(counts: Counter[int], middle: float) -> int:
    """Return how many values are in bins above that of `middle`."""
    return sum(count for key, count in counts.items() if key > middle)


def _distance_ratio(cell: Cell, reference: Cell) -> float:
    difference = _median(cell.distances) - _median(reference.distances)
    return float(2.0 ** (difference / BINS_PER_OCTAVE)) if np.isfinite(difference) else 1.0


def _imbalance(cell: Cell, reference: Cell) -> float:
    """Return the total variation distance of the shares of the clusters, 0 to 1."""
    if not reference.events:
        return 0.0
    numbers = cell.clusters.keys() | reference.clusters.keys()
    shares = (cell.clusters[n] / cell.events - reference.clusters[n] / reference.events for n in numbers)
    return sum(abs(share) for share in shares) / 2


def _noise_shift(cell: Cell, reference: Cell) -> float | None:
    shift = _median(cell.noise_db) - _median(reference.noise_db)
    return float(shift) if np.isfinite(shift) else None


def _more_than_chance(found: int, events: int, found_before: int, events_before: int) -> float:
    """Return the probability of at least so many among the cell's events, were they drawn from both (Fisher, 1935)."""
    return float(hypergeom.sf(found - 1, events + events_before, found + found_before, events))


def _noise_by_chance(cell: Cell, reference: Cell) -> float:
    """Return the probability of so many levels on one side of the common median (the median test), both sides."""
    counts = [sum(one.noise_db.values()) for one in (cell, reference)]
    middle = _median(cell.noise_db + reference.noise_db)
    above = [_above(one.noise_db, middle) for one in (cell, reference)]
    below = [sum(count for key, count in one.noise_db.items() if key + 1 <= middle) for one in (cell, reference)]
    tails = (
        _more_than_chance(here, counts[0], before, counts[1])
        for here, before in ((above[0], above[1]), (below[0], below[1]))
    )
    return min(1.0, 2 * min(tails))


def _balance_by_chance(cell: Cell, reference: Cell) -> float:
    """Return the p-value of a chi-squared test of the clusters' shares; rare clusters are counted together."""
    numbers = sorted(cell.clusters.keys() | reference.clusters.keys())
    table = np.array([[one.clusters[number] for number in numbers] for one in (cell, reference)], dtype=np.float64)
    rare = table.sum(axis=0) * cell.events / (cell.events + reference.events) < 5
    table = np.column_stack([table[:, ~rare], table[:, rare].sum(axis=1)])
    table = table[:, table.sum(axis=0) > 0]
    if table.shape[1] < 2:
        return 1.0
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0) / table.sum()
    return float(chi2.sf(((table - expected) ** 2 / expected).sum(), table.shape[1] - 1))
