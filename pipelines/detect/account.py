"""The account of a day: what becomes of every sample that was read, and of every second that the plan holds.

A `Recording` is one channel at one rate on one day. All its samples are in segments or dropped for a reason, and that
is checked when it is made; what lies in an interval is then counted by the times of the samples.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from pipelines.archive.clock import Clock, bounds_of
from pipelines.archive.codes import Naming, group_of
from pipelines.archive.continuity import Dropped, Segment
from pipelines.archive.records import Channel, Decoded, Run
from pipelines.workspace.outcomes import WORDS, FileOutcome, Outcome

Array = np.ndarray[Any, Any]

NUM_REASONS = 3
"""Reasons that the job's last lines name."""


class Unbalanced(Exception):
    """Samples are neither used nor dropped for a reason: a fault of this program, never of the data."""


@dataclass
class FileAccount:
    """What becomes of a file, and of those of its samples whose time is not looked at.

    Attributes:
        outcome: of the file as a whole.
        dropped: samples of the channel group that the decoder dropped, by reason.
        left_out: samples of other channels, which no channel group reads.
    """

    outcome: FileOutcome
    dropped: Counter[Outcome]
    left_out: Counter[Outcome]


def account_of_file(
    key: str,
    decoded: Decoded,
    naming: Naming,
    is_wanted: Callable[[Channel], bool],
    is_selected: Callable[[Channel], bool],
) -> FileAccount:
    """Return what becomes of a file.

    Args:
        key: its path.
        decoded: counts and problems of the whole file.
        naming: what its channels are called.
        is_wanted: whether a channel, by the headers' codes, belongs to the channel group that is read.
        is_selected: whether a channel, by the codes used, is selected at all.

    Raises:
        Unbalanced: samples are missing from the counts.
    """
    dropped: Counter[Outcome] = Counter()
    left_out: Counter[Outcome] = Counter()
    num_good = num_lost = 0
    # The channel groups of which the file holds something that can be read: each has shards of its own.
    read_elsewhere = {
        group_of(used)
        for found, used in naming.used.items()
        if decoded.counts[found].stated > decoded.counts[found].lost().total()
    }
    for found, counts in decoded.counts.items():
        if not counts.balances:
            raise Unbalanced(
                f"the account of {key} does not balance: {counts.stated} samples stated, {counts.returned} returned, "
                f"{counts.dropped.total()} dropped"
            )
        reasons = counts.lost()
        good = counts.stated - reasons.total()
        if found is None or found in naming.refused:
            left_out += reasons
            left_out[Outcome.OTHER_CHANNEL] += good
            num_lost += counts.stated
            continue
        if is_wanted(found):
            dropped += reasons
        elif not is_selected(naming.used[found]):
            left_out[Outcome.NOT_SELECTED] += counts.stated
        elif group_of(naming.used[found]) not in read_elsewhere:
            left_out += reasons
        num_good += good
        num_lost += reasons.total()
    if not num_good:
        outcome = FileOutcome.UNREADABLE if num_lost or decoded.num_problems else FileOutcome.NO_DATA
    else:
        outcome = FileOutcome.IN_PART if num_lost or decoded.num_problems else FileOutcome.USED
    return FileAccount(outcome, +dropped, +left_out)


class Stretch(NamedTuple):
    """The times of some samples that follow each other.

    Attributes:
        clock: of the samples.
        num_samples: how many there are.
    """

    clock: Clock
    num_samples: int


def stretch_of(run: Run) -> Stretch:
    """Return the times of a run's samples, without the samples."""
    return Stretch(run.clock, len(run.data))


@dataclass
class Recording:
    """One channel at one nominal rate on one day, and what became of it.

    Attributes:
        codes: as used.
        rate_hz: nominal sampling rate in Hz.
        read: all samples that were read.
        segments: those that are used.
        dropped: the others, with the reason.
        known: the times whose samples can be converted to the units of the windows, exclusive at the end, in order
            (ns since 1970); None: all.
    """

    codes: Channel
    rate_hz: float
    read: list[Stretch]
    segments: Sequence[Segment] = ()
    dropped: list[tuple[Outcome, Stretch]] = field(default_factory=list)
    known: Sequence[tuple[int, int]] | None = None

    def use(
        self,
        segments: Sequence[Segment],
        dropped: Iterable[Dropped],
        known: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        """Let the samples of segments be used; the others are those that the rules of continuity dropped.

        Of times that are not `known` no sample is used, since no event can begin there.
        """
        self.segments, self.known = segments, known
        self.dropped = [(part.outcome, Stretch(part.clock, part.num_samples)) for part in dropped]

    def drop_all(self, outcome: Outcome) -> None:
        """Let all samples end in one outcome."""
        self.segments, self.dropped = (), [(outcome, stretch) for stretch in self.read]

    def check(self) -> None:
        """Raise Unbalanced where samples are not accounted for, or more than once."""
        num_read = sum(stretch.num_samples for stretch in self.read)
        num_used = sum(segment.num_samples for segment in self.segments)
        num_dropped = sum(stretch.num_samples for _, stretch in self.dropped)
        if num_read != num_used + num_dropped:
            raise Unbalanced(
                f"the account of {'.'.join(self.codes)} at {self.rate_hz:g} Hz does not balance: "
                f"{num_read} samples read, {num_used} used, {num_dropped} dropped"
            )

    def samples(self, start_ns: int, end_ns: int, num_blanked: int) -> Counter[Outcome]:
        """Return by outcome the samples in `[start_ns, end_ns)`; so many of each segment's first ones are blanked."""
        counts: Counter[Outcome] = Counter()
        stretches = [Stretch(part.clock, part.num_samples) for part in self.segments]
        for low, high in [(start_ns, end_ns)] if self.known is None else self.known:
            first, last = _indexes_in(stretches, max(low, start_ns), max(min(high, end_ns), start_ns))
            last = np.maximum(first, last)
            blanked = np.maximum(np.minimum(last, num_blanked) - first, 0)
            counts[Outcome.BLANKED] += int(blanked.sum())
            counts[Outcome.USED] += int((last - first - blanked).sum())
        if self.known is not None:
            first, last = _indexes_in(stretches, start_ns, end_ns)
            counts[Outcome.NO_SENSITIVITY] += int((last - first).sum()) - counts.total()
        for outcome in {outcome for outcome, _ in self.dropped}:
            first, last = _indexes_in([part for why, part in self.dropped if why == outcome], start_ns, end_ns)
            counts[outcome] += int((last - first).sum())
        return +counts


def _indexes_in(parts: Sequence[Stretch], start_ns: int, end_ns: int) -> tuple[Array, Array]:
    """Return of each stretch the first sample in `[start_ns, end_ns)` and the first after it: (n,) int64 each."""
    counts = np.array([part.num_samples for part in parts], np.int64)
    begins, ends = bounds_of([part.clock for part in parts], counts.tolist())
    found = []
    for time_ns in (start_ns, end_ns):
        indexes = np.where(begins >= time_ns, 0, counts)
        # Of nearly all the bounds tell enough.
        for place in np.flatnonzero((begins < time_ns) & (ends > time_ns)).tolist():
            indexes[place] = parts[place].clock.index_from(time_ns, int(counts[place]))
        found.append(indexes)
    return found[0], found[1]


def seconds_recorded(recordings: Iterable[Recording], start_ns: int, end_ns: int) -> float:
    """Return how many seconds of `[start_ns, end_ns)` any of some recordings holds."""
    parts = [stretch for recording in recordings for stretch in recording.read]
    begins, ends = bounds_of([part.clock for part in parts], [part.num_samples for part in parts])
    order = np.argsort(begins)
    begins, ends = begins[order], np.minimum(ends[order], end_ns)
    reached = np.maximum.accumulate(np.append(start_ns, ends))[:-1]
    return float(np.maximum(ends - np.maximum(begins, reached), 0).sum() / 1e9)


_MAX_SECONDS = 1e15


@dataclass
class Totals:
    """Sums over the accounts of markers.

    Attributes:
        samples: by outcome.
        microseconds: by outcome, of all channels; markers have no more digits, and sums of integers are exact.
        files: by outcome.
        num_unknown: markers without an account, written before there was one.
    """

    samples: Counter[str] = field(default_factory=Counter)
    microseconds: Counter[str] = field(default_factory=Counter)
    files: Counter[str] = field(default_factory=Counter)
    num_unknown: int = 0

    def add(self, marker: Mapping[str, Any]) -> None:
        """Add a marker's account."""
        account = marker.get("account")
        if account is None:
            self.num_unknown += 1
            return
        self.samples.update(account["samples"])
        for outcome, seconds in account["seconds"].items():
            # Nothing lasts so long; a marker may be a stranger's.
            self.microseconds[outcome] += round(max(min(seconds, _MAX_SECONDS), -_MAX_SECONDS) * 1e6)
        self.files.update(account["files"])

    @property
    def seconds(self) -> Counter[str]:
        """Return channel-seconds by outcome."""
        return Counter({outcome: count / 1e6 for outcome, count in self.microseconds.items()})

    def sentence(self) -> str | None:
        """Return what share of the samples was used, and the largest reasons for the rest; None without samples."""
        total = self.samples.total()
        if not total:
            return None
        rest = [(count, outcome) for outcome, count in self.samples.items() if outcome != Outcome.USED and count]
        reasons = [
            f"{_percent(count, total)} {WORDS.get(Outcome(outcome), outcome) if outcome in _NAMES else outcome}"
            for count, outcome in sorted(rest, key=lambda item: (-item[0], item[1]))[:NUM_REASONS]
        ]
        parts = [f"{_percent(self.samples[Outcome.USED], total)} of {total:,} samples were used"]
        if reasons:
            parts.append(f"not used: {'; '.join(reasons)}")
        unreadable = self.seconds[Outcome.UNREADABLE]
        if unreadable > 0:
            # How many samples these hold nobody knows.
            parts.append(f"{unreadable / 86400:.2f} channel-days are in files that cannot be read")
        return "; ".join(parts)


def gives_samples(marker: Mapping[str, Any]) -> bool:
    """Return whether a shard has samples in which something can be detected."""
    account = marker.get("account")
    if account is None:
        return bool(marker["coverage"])
    return any(account["samples"].get(outcome) for outcome in (Outcome.USED, Outcome.BLANKED))


def _percent(part: int, total: int) -> str:
    """Return a share that is never rounded to all or to nothing."""
    share = 100 * part / total
    if 0 < share < 0.01:
        return "less than 0.01 %"
    return "more than 99.99 %" if 99.99 < share < 100 else f"{share:.2f} %"


_NAMES = frozenset(map(str, Outcome))
