"""A station-day's flaws: gaps, stretches recorded twice, a dead component, no file at all."""

from dataclasses import dataclass

import numpy as np

from pipelines.config.synthesize import SynthesizeSettings
from pipelines.synthesize.streams import Purpose, stream

_IDENTICAL_SHARE = 0.8


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Consecutive samples [first, end) of a day, as the archive's files hold them, in order."""

    first: int
    end: int
    slip: int = 0
    """Samples by which a second, disagreeing recording lags the first; 0 for a faithful one."""


@dataclass(frozen=True, kw_only=True)
class DayFlaws:
    """A station-day's flaws; sample numbers count from midnight."""

    missing: bool
    stretches: tuple[Stretch, ...]
    dead_component: int | None
    """0, 1, 2 for E, N, Z; it writes zeros over `dead`."""
    dead: Stretch

    def records(self, sample: int) -> bool:
        """Whether the sample is in the archive."""
        return not self.missing and any(stretch.first <= sample < stretch.end for stretch in self.stretches)

    def is_dead(self, component: int, sample: int) -> bool:
        """Whether a component writes zeros at a sample."""
        return component == self.dead_component and self.dead.first <= sample < self.dead.end


def day_flaws(settings: SynthesizeSettings, station: str, day: int) -> DayFlaws:
    """Return what goes wrong at a station on a day (days since 1970-01-01)."""
    random = stream(settings.seed, Purpose.FLAWS, station, day)
    num_samples = 86_400 * settings.rate_hz
    missing = bool(random.uniform() < settings.missing_day_share)
    dead = bool(random.uniform() < settings.dead_component_share)
    component = int(random.integers(3))
    dead_from = int(random.uniform(0, 0.7) * num_samples)
    dead_end = min(dead_from + int(random.uniform(2, 24) * 3600 * settings.rate_hz), num_samples)
    gaps = _stretches(random, settings.gaps_per_station_day, 12.0, num_samples, settings.rate_hz)
    twice = _stretches(random, settings.overlaps_per_station_day, 30.0, num_samples, settings.rate_hz)
    disagrees = [bool(random.uniform() > _IDENTICAL_SHARE) for _ in twice]
    pieces: list[Stretch] = []
    for first, end in _between(gaps, num_samples):
        pieces.append(Stretch(first=first, end=end))
        pieces += [
            Stretch(first=again, end=min(again_end, end), slip=int(wrong))
            for (again, again_end), wrong in zip(twice, disagrees, strict=True)
            if first < again < end
        ]
    return DayFlaws(
        missing=missing,
        stretches=tuple(pieces),
        dead_component=component if dead else None,
        dead=Stretch(first=dead_from, end=dead_end),
    )


def _stretches(
    random: np.random.Generator, expected: float, median_seconds: float, num_samples: int, rate_hz: int
) -> list[tuple[int, int]]:
    found = []
    for _ in range(int(random.poisson(expected))):
        first = int(random.uniform() * num_samples)
        seconds = float(np.clip(random.lognormal(np.log(median_seconds), 1.2), 0.5, 900.0))
        found.append((first, min(first + max(int(seconds * rate_hz), 1), num_samples)))
    return sorted(found)


def _between(gaps: list[tuple[int, int]], num_samples: int) -> list[tuple[int, int]]:
    pieces, start = [], 0
    for first, end in gaps:
        if first > start:
            pieces.append((start, first))
        start = max(start, end)
    if start < num_samples:
        pieces.append((start, num_samples))
    return pieces
