"""Which sampling rates are one: rates that differ only by measurement belong to one channel group.

Headers state measured rates (blockette 100) or nominal ones. The rule is local: each stated rate has a nominal one, by
itself, and of a channel group's nominal rates in a day those close to each other become the one with the most samples.
So what a day's groups are depends on the day's records alone, not on how the archive is cut or read.
"""

from collections.abc import Mapping
from typing import Any

import numba
import numpy as np

Array = np.ndarray[Any, Any]

RATE_TOLERANCE = 1e-4
"""Rates that differ by at most this share are one: a free-running quartz keeps 2e-5 to 5e-5."""
MIN_RATE_HZ = 1e-3
MAX_RATE_HZ = 1e7
_DENOMINATORS = np.array([1, 2, 3, 4, 5, 6, 7, 8, 16, 32])


def nominal_rates(rates_hz: Array) -> Array:
    """Return the nominal rates of stated ones: (n,) float64 in Hz.

    The nominal rate is the simplest number within `RATE_TOLERANCE`: a fraction of a small denominator (of seconds
    below 1 Hz), else the decimal number of the fewest digits, at most six.
    """
    return _nominal_rates(np.ascontiguousarray(rates_hz, np.float64))


def nominal_rate(rate_hz: float) -> float:
    """Return the nominal rate of a stated one, in Hz."""
    return float(_nominal_rates(np.array([rate_hz]))[0])


def are_valid(rates_hz: Array) -> Array:
    """Return which stated rates can be used: (n,) bool."""
    valid: Array = (rates_hz >= MIN_RATE_HZ) & (rates_hz <= MAX_RATE_HZ)
    return valid


def merge_rates(samples: Mapping[float, int]) -> dict[float, float]:
    """Return for each nominal rate of a channel group that of its group.

    Args:
        samples: how many samples have each nominal rate.

    The rate of the most samples (of equals, the lowest) takes those within three times the tolerance: two stated rates
    that differ by it have nominal ones that differ by so much at most. So does the one with the most of what is left.
    """
    merged: dict[float, float] = {}
    for rate_hz in sorted(samples, key=lambda rate: (-samples[rate], rate)):
        if rate_hz in merged:
            continue
        for other in samples:
            if other not in merged and abs(other - rate_hz) <= 3 * RATE_TOLERANCE * rate_hz:
                merged[other] = rate_hz
    return merged


@numba.njit(cache=True, error_model="numpy")
def _nominal_rates(rates_hz: Array) -> Array:  # pragma: no cover - compiled
    nominal = np.empty(len(rates_hz))
    for i in range(len(rates_hz)):
        rate = rates_hz[i]
        if i > 0 and rate == rates_hz[i - 1]:
            nominal[i] = nominal[i - 1]
            continue
        found = 0.0
        for denominator in _DENOMINATORS:
            value = (
                np.rint(rate * denominator) / denominator if rate >= 1.0 else denominator / np.rint(denominator / rate)
            )
            if abs(value - rate) <= RATE_TOLERANCE * rate:
                found = value
                break
        for digits in (4, 5, 6):
            if found > 0.0:
                break
            scale = 10.0 ** (digits - 1 - np.floor(np.log10(rate)))
            value = np.rint(rate * scale) / scale
            if abs(value - rate) <= RATE_TOLERANCE * rate:
                found = value
        nominal[i] = found
    return nominal
