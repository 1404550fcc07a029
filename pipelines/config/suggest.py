"""Section `suggest`: which events to label next."""

from pydantic import Field

from pipelines.config.base import Section


class SuggestSettings(Section):
    """How many events are suggested, and from how many they are chosen."""

    number: int = Field(30, ge=1, le=10_000)
    """Events to suggest (count)."""

    max_events: int = Field(20_000, ge=100, le=100_000)
    """Events, drawn from every station and month, from which they are chosen (count)."""

    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of the draw (no unit)."""
