"""Times of samples: what each record's header says, and nothing else.

A record's sample i lies at `start + i / rate` with the start and the rate of its own header. A clock keeps that for
many records one after the other.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Clock:
    """The times of contiguous samples that came in records.

    From sample `begins[r]` on, up to the next record's, sample i lies at
    `starts_ns[r] + (i - anchors[r]) / rates_hz[r]`.

    Attributes:
        begins: (records,) int64, index of the first sample that a record gives the time of; the first is 0.
        anchors: (records,) int64, index of the record's own first sample: less than `begins` where it was cut off.
        starts_ns: (records,) int64, the record's start in nanoseconds since 1970.
        rates_hz: (records,) float64, the record's sampling rate in Hz.
    """

    begins: Array
    anchors: Array
    starts_ns: Array
    rates_hz: Array

    def time_at(self, index: int) -> int:
        """Return the time of a sample in nanoseconds; beyond the last one, as the last record would go on."""
        record = max(bisect_right(self._begins, index) - 1, 0) if len(self.begins) > 1 else 0
        return sample_time(int(self.starts_ns[record]), index - int(self.anchors[record]), float(self.rates_hz[record]))

    def times_at(self, indexes: Array) -> Array:
        """Return `time_at` of many, (n,) int64."""
        records = np.maximum(np.searchsorted(self.begins, indexes, "right") - 1, 0)
        return sample_times(self.starts_ns[records], indexes - self.anchors[records], self.rates_hz[records])

    def index_from(self, time_ns: int, num_samples: int) -> int:
        """Return the index of the first sample at or after a time (`num_samples` where there is none)."""
        record = max(bisect_right(self._times, time_ns) - 1, 0)
        begins = self._begins
        last = begins[record + 1] if record + 1 < len(begins) else num_samples
        start_ns, rate_hz = int(self.starts_ns[record]), float(self.rates_hz[record])
        index = int(self.anchors[record]) + index_at(start_ns, rate_hz, time_ns)
        return min(max(index, begins[record]), last)

    def indexes_from(self, times_ns: Array, num_samples: int) -> Array:
        """Return `index_from` of many, (n,) int64."""
        records = np.maximum(np.searchsorted(self._times, times_ns, "right") - 1, 0)
        lasts = np.append(self.begins[1:], num_samples)[records]
        within = indexes_at(self.starts_ns[records], self.rates_hz[records], times_ns)
        indexes: Array = np.clip(self.anchors[records] + within, self.begins[records], lasts)
        return indexes

    def part(self, first: int, last: int) -> "Clock":
        """Return the clock of the samples `[first, last)`, counted from the first of them."""
        begins = self._begins
        if first == 0 and last > begins[-1]:
            return self
        if len(begins) == 1:
            return Clock(self.begins, self.anchors - first, self.starts_ns, self.rates_hz)
        low = max(bisect_right(self._begins, first) - 1, 0)
        high = int(np.searchsorted(self.begins, last, "left"))
        return Clock(
            np.maximum(self.begins[low:high] - first, 0),
            self.anchors[low:high] - first,
            self.starts_ns[low:high],
            self.rates_hz[low:high],
        )

    @cached_property
    def _begins(self) -> list[int]:
        """As `begins`: bisection of a list takes a tenth of the time where one value is looked for."""
        begins: list[int] = self.begins.tolist()
        return begins

    @cached_property
    def _times(self) -> list[int]:
        """Return the time of each record's first sample of these."""
        times: list[int] = sample_times(self.starts_ns, self.begins - self.anchors, self.rates_hz).tolist()
        return times


def joined(clocks: Sequence[Clock], begins: Sequence[int]) -> Clock:
    """Return one clock of stretches that follow each other, each beginning at a given index.

    Where the headers of all records are exactly those of one endless record, it has one entry.
    """
    if len(clocks) == 1 and begins[0] == 0 and len(clocks[0].begins) == 1:
        return clocks[0]
    whole = Clock(
        np.concatenate([clock.begins + begin for clock, begin in zip(clocks, begins, strict=True)]),
        np.concatenate([clock.anchors + begin for clock, begin in zip(clocks, begins, strict=True)]),
        np.concatenate([clock.starts_ns for clock in clocks]),
        np.concatenate([clock.rates_hz for clock in clocks]),
    )
    if len(whole.begins) > 1 and (whole.rates_hz == whole.rates_hz[0]).all():
        starts = np.full(len(whole.begins), whole.starts_ns[0])
        if (sample_times(starts, whole.anchors - whole.anchors[0], whole.rates_hz) == whole.starts_ns).all():
            return Clock(*(values[:1] for values in (whole.begins, whole.anchors, whole.starts_ns, whole.rates_hz)))
    return whole


def bounds_of(clocks: Sequence[Clock], num_samples: Sequence[int]) -> tuple[Array, Array]:
    """Return the times of the first sample and of one sample interval after the last, of many: (n,) int64 each."""
    starts = np.array([clock.starts_ns[0] for clock in clocks], np.int64)
    before = np.array([clock.anchors[0] for clock in clocks], np.int64)
    rates = np.array([clock.rates_hz[0] for clock in clocks], np.float64)
    lasts = np.array([clock.starts_ns[-1] for clock in clocks], np.int64)
    after = np.array(num_samples, np.int64) - np.array([clock.anchors[-1] for clock in clocks], np.int64)
    last_rates = np.array([clock.rates_hz[-1] for clock in clocks], np.float64)
    return sample_times(starts, -before, rates), sample_times(lasts, after, last_rates)


def sample_time(start_ns: int, index: int, rate_hz: float) -> int:
    """Return `start_ns + index / rate_hz` in whole nanoseconds, without the rounding of large floats."""
    seconds, rest = divmod(index, rate_hz)
    return start_ns + round(seconds) * 1_000_000_000 + round(rest / rate_hz * 1e9)


def sample_times(starts_ns: Array, indexes: Array, rates_hz: float | Array) -> Array:
    """Return `sample_time` of many: int64 nanoseconds, the same bits."""
    seconds, rest = np.divmod(indexes.astype(np.float64), rates_hz)
    times: Array = (
        starts_ns + np.rint(seconds).astype(np.int64) * 1_000_000_000 + np.rint(rest / rates_hz * 1e9).astype(np.int64)
    )
    return times


def index_at(start_ns: int, rate_hz: float, time_ns: int) -> int:
    """Return the index of the first sample at or after a time, of samples at `start_ns + i / rate_hz`."""
    index = ceil((time_ns - start_ns) * (rate_hz / 1e9))
    while sample_time(start_ns, index - 1, rate_hz) >= time_ns:
        index -= 1
    while sample_time(start_ns, index, rate_hz) < time_ns:
        index += 1
    return index


def indexes_at(starts_ns: Array, rates_hz: float | Array, times_ns: Array) -> Array:
    """Return `index_at` of many: int64."""
    indexes = np.ceil((times_ns - starts_ns) * (rates_hz / 1e9)).astype(np.int64)
    while (late := sample_times(starts_ns, indexes - 1, rates_hz) >= times_ns).any():
        indexes -= late
    while (early := sample_times(starts_ns, indexes, rates_hz) < times_ns).any():
        indexes += early
    return indexes
