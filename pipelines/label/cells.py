"""Counts of events by station, month and side of the reference period: what the drift of an archive is read from.

Events are counted file by file; the cells of a station and month add up.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

FITTED_SHARE = 0.99
"""Share of the fitted events that are not far."""
BINS_PER_OCTAVE = 8
"""Bins of the distances in a cell."""
FINE_BINS = 32
"""Bins in an octave, 2 % wide, from which the distance of far events is taken."""
_SMALLEST_DISTANCE = 2.0**-30


@dataclass(kw_only=True)
class Cell:
    """Counts of the events of one station and month, inside or outside the reference period."""

    station: str
    month: str
    reference: bool
    events: int = 0
    far: int = 0
    """Events farther from every centroid than FITTED_SHARE of the fitted ones."""
    clusters: Counter[int] = field(default_factory=Counter)
    """Events by final cluster number."""
    distances: Counter[int] = field(default_factory=Counter)
    """Events by distance_bin."""
    noise_db: Counter[int] = field(default_factory=Counter)
    """Events by noise level, in bins of 1 dB; those whose level is unknown are left out."""

    def add(self, other: "Cell") -> None:
        """Add the counts of another cell."""
        self.events += other.events
        self.far += other.far
        for name in ("clusters", "distances", "noise_db"):
            getattr(self, name).update(getattr(other, name))

    def as_json(self) -> dict[str, Any]:
        """Return the cell as a marker keeps it."""
        counts = {
            name: {str(key): count for key, count in sorted(getattr(self, name).items())}
            for name in ("clusters", "distances", "noise_db")
        }
        return {"month": self.month, "reference": self.reference, "events": self.events, "far": self.far} | counts

    @staticmethod
    def from_json(station: str, values: dict[str, Any]) -> "Cell":
        """Return the cell that `as_json` wrote."""
        plain: dict[str, Any] = {name: values[name] for name in ("month", "reference", "events", "far")}
        for name in ("clusters", "distances", "noise_db"):
            plain[name] = Counter({int(key): int(count) for key, count in values[name].items()})
        return Cell(station=station, **plain)


def distance_bins(distances: NDArray[Any], per_octave: int = BINS_PER_OCTAVE) -> NDArray[np.int64]:
    """Return the bin of each distance, int64 (n,): so many bins between a distance and its double."""
    safe = np.maximum(np.asarray(distances, dtype=np.float64), _SMALLEST_DISTANCE)
    bins: NDArray[np.int64] = np.floor(np.log2(safe) * per_octave).astype(np.int64)
    return bins


def distance_exceeded_by(share: float, distances: Counter[int]) -> float:
    """Return the least upper end of a fine bin that at most this share of the events exceed.

    Args:
        share: 0 to 1.
        distances: events by `distance_bins(..., FINE_BINS)`.
    """
    left = sum(distances.values())
    allowed = share * left
    for number in sorted(distances):
        left -= distances[number]
        if left <= allowed:
            return float(2.0 ** ((number + 1) / FINE_BINS))
    return 0.0


def noise_level_db(peak_amplitude: NDArray[Any], snr_db: NDArray[Any]) -> NDArray[np.float64]:
    """Return each event's noise level: its peak amplitude in dB less its signal-to-noise ratio; NaN where unknown.

    The level is above the noise's root mean square by the signal's crest factor, so only differences mean something.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        levels = 20 * np.log10(np.asarray(peak_amplitude, dtype=np.float64)) - np.asarray(snr_db, dtype=np.float64)
    return np.where(np.isfinite(levels), levels, np.nan)


def cells_of(
    station: str,
    onsets_ns: NDArray[np.int64],
    clusters: NDArray[np.int32],
    distances: NDArray[np.float32],
    noise_db: NDArray[np.float64],
    *,
    period_ns: tuple[int, int] | None,
    far_distance: float,
) -> list[Cell]:
    """Count the events of one station, (n,) each, in cells.

    Args:
        station: network and station.
        onsets_ns: nanoseconds since 1970, UTC.
        clusters: final numbers.
        distances: to the nearest centroid.
        noise_db: as from `noise_level_db`.
        period_ns: first and last onset of the station's fitted events; None where it had none.
        far_distance: an event farther from its centroid is far.
    """
    months = onsets_ns.astype("datetime64[ns]").astype("datetime64[M]")
    inside = np.zeros(len(onsets_ns), dtype=bool)
    if period_ns is not None:
        inside = (onsets_ns >= period_ns[0]) & (onsets_ns <= period_ns[1])
    bins = distance_bins(distances)
    cells = []
    for month in np.unique(months):
        for reference in (False, True):
            rows = (months == month) & (inside == reference)
            if not rows.any():
                continue
            known = noise_db[rows][~np.isnan(noise_db[rows])]
            cells.append(
                Cell(
                    station=station,
                    month=str(month),
                    reference=reference,
                    events=int(rows.sum()),
                    far=int((distances[rows] > far_distance).sum()),
                    clusters=Counter(clusters[rows].tolist()),
                    distances=Counter(bins[rows].tolist()),
                    noise_db=Counter(np.floor(known).astype(int).tolist()),
                )
            )
    return cells


def add_cells(cells: Iterable[Cell]) -> list[Cell]:
    """Return one cell for each station, month and side of the reference period, sorted."""
    found: dict[tuple[str, str, bool], Cell] = {}
    for cell in cells:
        key = (cell.station, cell.month, cell.reference)
        found.setdefault(key, Cell(station=cell.station, month=cell.month, reference=cell.reference)).add(cell)
    return [found[key] for key in sorted(found)]
