"""How many samples a file's records state, and what becomes of each: returned, or dropped for a reason."""

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

from pipelines.workspace.outcomes import Outcome


class Drop(StrEnum):
    """Why samples of a file are not returned, in words for the user."""

    TEXT = "the records hold text"
    UNDECODABLE = "the samples cannot be decoded"
    CLAIM = "the header claims more samples than the record can hold"
    RATE = "the sampling rate is invalid"
    TIME = "the time is invalid"
    CODES = "the channel codes are invalid"
    CHANNEL = "the channel was not asked for"
    FAR = "the time is far from that in the file's name"
    OUTSIDE = "the time was not asked for"


ELSEWHERE = frozenset({Drop.CHANNEL, Drop.OUTSIDE})
"""Samples that were not asked for: another channel group or another day has them."""
OUTCOMES = {
    Drop.TEXT: Outcome.TEXT,
    Drop.UNDECODABLE: Outcome.UNDECODABLE,
    Drop.CLAIM: Outcome.UNDECODABLE,
    Drop.RATE: Outcome.INVALID_RATE,
    Drop.TIME: Outcome.INVALID_TIME,
    Drop.CODES: Outcome.INVALID_CODES,
    Drop.FAR: Outcome.FAR,
}
"""What becomes of all other dropped samples."""


@dataclass
class SampleCounts:
    """Samples of a file or of one of its channels: `stated` = `returned` + the sum of `dropped`.

    Attributes:
        stated: as the headers of the records say, and no more than their bytes can hold.
        returned: in the runs that are returned.
        dropped: the others, by reason.
    """

    stated: int = 0
    returned: int = 0
    dropped: Counter[Drop] = field(default_factory=Counter)

    @property
    def balances(self) -> bool:
        """Return whether every sample is accounted for."""
        return self.stated == self.returned + self.dropped.total()

    def lost(self) -> Counter[Outcome]:
        """Return the samples that cannot be used, by outcome."""
        found: Counter[Outcome] = Counter()
        for drop, count in self.dropped.items():
            if drop not in ELSEWHERE:
                # Two reasons may have one outcome.
                found[OUTCOMES[drop]] += count
        return found

    def drop(self, reason: Drop, count: int) -> None:
        """Move samples from returned to dropped."""
        if count:
            self.returned -= count
            self.dropped[reason] += count

    def add(self, other: "SampleCounts") -> None:
        """Add the samples of another part."""
        self.stated += other.stated
        self.returned += other.returned
        self.dropped.update(other.dropped)
