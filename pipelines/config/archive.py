"""`archive.`: which recordings are read."""

from datetime import UTC, datetime

from pydantic import field_validator, model_validator

from pipelines.config.base import Instant, Section, operational

LAYOUTS = ("auto", "sds", "scedc", "ncedc", "earthscope", "flat")


class ArchiveSettings(Section):
    """How files are arranged inside ARCHIVE, and which recordings are read."""

    layout: str = "auto"
    """auto, sds, scedc, ncedc, earthscope, flat (headers are indexed), or a template such as
    `{network}/{station}/{year}/{network}.{station}.{location}.{channel}.{year}.{julday}`."""
    network: str = "*"
    """Network codes: patterns with * and ?, separated by commas."""
    station: str = "*"
    """Station codes: patterns with * and ?, separated by commas."""
    location: str = "*"
    """Location codes: patterns with * and ?, separated by commas; -- is the empty code."""
    channel: str = "*"
    """Channel codes: patterns with * and ?, separated by commas."""
    start: Instant | None = None
    """Start of the time span to read (UTC, ISO 8601, inclusive); earlier samples are ignored."""
    end: Instant | None = None
    """End of the time span to read (UTC, ISO 8601, exclusive); later samples are ignored."""
    anonymous: bool = operational(False)
    """Read the bucket without credentials, as public archives allow."""
    follow_links: bool = operational(False)
    """Read also what links lead to outside the archive."""
    allow_empty_stations: bool = operational(False)
    """Do not fail (exit 1) when a station has files but no usable sample."""
    stationxml: str | None = None
    """StationXML file (path or URL) with the sensitivities that detection.units needs."""
    time_tolerance_samples: float = 0.5
    """A record whose start is within this many samples of the expected one continues the segment."""
    spill_seconds: float = 3600.0
    """Records this far outside the day that a file is named after are still used (seconds); others are reported."""

    @field_validator("start", "end")
    @classmethod
    def _utc(cls, value: datetime | None) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)

    @field_validator("layout")
    @classmethod
    def _known_layout(cls, value: str) -> str:
        if value not in LAYOUTS and "{" not in value:
            raise ValueError(f"must be one of {', '.join(LAYOUTS)}, or a template with fields in braces")
        return value

    @field_validator("time_tolerance_samples")
    @classmethod
    def _tolerance(cls, value: float) -> float:
        if not 0 <= value <= 0.5:
            raise ValueError("must lie between 0 and 0.5 samples")
        return value

    @field_validator("spill_seconds")
    @classmethod
    def _spill(cls, value: float) -> float:
        if not 0 <= value <= 86400:
            raise ValueError("must lie between 0 and 86400 seconds")
        return value

    @model_validator(mode="after")
    def _ordered(self) -> "ArchiveSettings":
        if self.start and self.end and self.end <= self.start:
            raise ValueError(f"end must be later than start ({self.start.isoformat()})")
        return self
