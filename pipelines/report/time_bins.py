"""Counts in time bins that grow with the span.

Counts are folded table by table. The bins start at a minute and are merged into wider ones whenever there are too
many, so memory is bounded by `max_bins` times the number of series, and the result depends on the onsets alone, not
on the order of the tables.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

BIN_WIDTHS_S = (60, 600, 3600, 6 * 3600, 86_400, 7 * 86_400, 28 * 86_400, 364 * 86_400)
_WIDTH_NAMES = ("1 minute", "10 minutes", "1 hour", "6 hours", "1 day", "1 week", "4 weeks", "52 weeks")


@dataclass(frozen=True, kw_only=True)
class BinnedCounts:
    """Counts by series and time bin."""

    width_s: int
    """Width of a bin (s), one of `BIN_WIDTHS_S`; bins start at multiples of it since 1970-01-01 UTC."""

    counts: "pd.Series[int]"
    """Counts above 0, indexed by (series, bin): the bin's number is its start in seconds divided by the width."""

    @property
    def width_name(self) -> str:
        """Return the width in words, such as `1 hour`."""
        return _WIDTH_NAMES[BIN_WIDTHS_S.index(self.width_s)]

    def edges_s(self) -> npt.NDArray[np.int64]:
        """Return the edges (s since 1970-01-01 UTC) of all bins, first to last that count. Shape (bin + 1,)."""
        bins = self.counts.index.get_level_values(1).to_numpy(dtype=np.int64)
        if not len(bins):
            return np.zeros(0, dtype=np.int64)
        return np.arange(bins.min(), bins.max() + 2, dtype=np.int64) * self.width_s

    def of(self, series: int | str) -> npt.NDArray[np.int64]:
        """Return the counts of one series in all bins. Shape (bin,)."""
        edges = self.edges_s()
        result = np.zeros(max(len(edges) - 1, 0), dtype=np.int64)
        if series in self.counts.index.get_level_values(0):
            own = self.counts.xs(series, level=0)
            result[own.index.to_numpy(dtype=np.int64) - edges[0] // self.width_s] = own.to_numpy()
        return result


def no_counts(width_s: int = BIN_WIDTHS_S[0]) -> BinnedCounts:
    """Return counts of nothing; `width_s` is the narrowest bin wanted."""
    index = pd.MultiIndex.from_arrays(
        [pd.Index([], dtype=object), pd.Index([], dtype=np.int64)], names=["series", "bin"]
    )
    return BinnedCounts(width_s=width_s, counts=pd.Series(np.zeros(0), index=index).astype(np.int64))


def add_onsets(
    binned: BinnedCounts,
    onsets_ns: npt.NDArray[np.int64],
    series: npt.NDArray[np.generic] | Sequence[object],
    max_bins: int,
) -> BinnedCounts:
    """Return the counts with these onsets (ns since 1970-01-01 UTC) added to the series named beside them."""
    if not len(onsets_ns):
        return binned
    bins = np.asarray(onsets_ns, dtype=np.int64) // (binned.width_s * 1_000_000_000)
    new = pd.Series(1, index=pd.MultiIndex.from_arrays([np.asarray(series), bins], names=["series", "bin"]))
    added = BinnedCounts(width_s=binned.width_s, counts=new.groupby(level=[0, 1]).sum())
    return merge_counts(binned, added, max_bins)


def merge_counts(first: BinnedCounts, second: BinnedCounts, max_bins: int) -> BinnedCounts:
    """Return the sum of two counts, in the wider bins of the two, widened until there are at most `max_bins`."""
    width_s = max(first.width_s, second.width_s)
    both = pd.concat([_widened(first, width_s), _widened(second, width_s)])
    counts = both.groupby(level=[0, 1]).sum().astype(np.int64) if len(both) else first.counts
    result = BinnedCounts(width_s=width_s, counts=counts)
    for wider in BIN_WIDTHS_S[BIN_WIDTHS_S.index(width_s) + 1 :]:
        bins = result.counts.index.get_level_values(1)
        if not len(bins) or int(bins.max()) - int(bins.min()) + 1 <= max_bins:
            break
        result = BinnedCounts(width_s=wider, counts=_widened(result, wider))
    return result


def _widened(binned: BinnedCounts, width_s: int) -> "pd.Series[int]":
    if width_s == binned.width_s or not len(binned.counts):
        return binned.counts
    index = binned.counts.index
    bins = index.get_level_values(1).to_numpy(dtype=np.int64) * binned.width_s // width_s
    widened = binned.counts.set_axis(
        pd.MultiIndex.from_arrays([index.get_level_values(0), bins], names=["series", "bin"])
    )
    return widened.groupby(level=[0, 1]).sum()
