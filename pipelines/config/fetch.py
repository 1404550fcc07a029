"""`fetch.`: which recordings are downloaded from an FDSN service."""

from datetime import UTC, datetime

from pydantic import Field, field_validator, model_validator

from pipelines.config.base import Instant, Section, operational


class FetchSettings(Section):
    """What to request from an FDSN service; codes may hold * and ?, and several are separated by commas."""

    provider: str = "GEOFON"
    """Name of a data centre that ObsPy knows, or the URL of its FDSN services."""
    network: str = "*"
    """Network codes."""
    station: str = "*"
    """Station codes."""
    location: str = "*"
    """Location codes; -- is the empty code."""
    channel: str = "HH?,BH?"
    """Channel codes."""
    start: Instant | None = None
    """First day to download (UTC), such as 2019-01-01."""
    end: Instant | None = None
    """Day after the last one to download (UTC)."""
    block_days: int = operational(10, ge=1, le=366)
    """Days that are requested before the next ones are (count)."""
    num_threads: int = operational(3, ge=1, le=10)
    """Simultaneous downloads; data centres allow only a few (count)."""
    timeout_seconds: float = Field(120.0, gt=0, le=86_400, json_schema_extra={"operational": True})
    """Longest silence of the service (seconds); an answer that takes longer must come at 10 kB/s."""

    @field_validator("start", "end")
    @classmethod
    def _day(cls, value: datetime | None) -> datetime | None:
        if value is None:
            return None
        value = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        if value != value.replace(hour=0, minute=0, second=0, microsecond=0):
            raise ValueError("must be a day without a time, such as 2019-01-01")
        return value

    @model_validator(mode="after")
    def _ordered(self) -> "FetchSettings":
        if self.start and self.end and self.end <= self.start:
            raise ValueError(f"end must be later than start ({self.start:%Y-%m-%d})")
        return self
