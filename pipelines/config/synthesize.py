"""Settings of the synthetic archive."""

from datetime import date
from typing import Self

from pydantic import Field, field_validator, model_validator

from pipelines.config.base import Section, operational


class ClassShares(Section):
    """Relative frequencies of the classes at a station; they need not add up to one."""

    icequake: float = Field(40.0, ge=0, le=1e6)
    """Icequakes: short, impulsive, repeating (weight)."""
    earthquake: float = Field(30.0, ge=0, le=1e6)
    """Earthquakes: P, S and coda, local to regional (weight)."""
    spike: float = Field(15.0, ge=0, le=1e6)
    """Instrumental spikes: dropouts, steps, calibration pulses, telemetry bursts (weight)."""
    tremor: float = Field(15.0, ge=0, le=1e6)
    """Harmonic, gliding tremor (weight)."""

    @model_validator(mode="after")
    def _some_class(self) -> Self:
        if self.icequake + self.earthquake + self.spike + self.tremor <= 0:
            raise ValueError("synthesize.shares add up to 0; give at least one class a share above 0")
        return self


class SynthesizeSettings(Section):
    """The synthetic archive to write."""

    num_stations: int = Field(3, ge=1, le=999)
    """Number of three-component stations, some 5 km apart."""
    num_days: int = Field(2, ge=1, le=100_000)
    """Number of whole UTC days."""
    start: date = date(2020, 1, 1)
    """First UTC day, YYYY-MM-DD, from 1971 on."""
    rate_hz: int = 100
    """Sampling rate, whole Hz, 40 to 1000."""
    network: str = Field("SY", pattern=r"^[A-Z0-9]{1,2}$")
    """FDSN network code, one or two capitals or digits (SY is registered for synthetic seismograms)."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of all random draws (no unit)."""
    shares: ClassShares = ClassShares()
    """Shares of the classes."""
    events_per_station_day: float = Field(300.0, ge=0, le=2000)
    """Expected number of arrivals in the truth for each station and day."""
    snr_floor: float = Field(2.0, gt=0, le=10_000)
    """Smallest signal-to-noise ratio in the truth: RMS over 0.5 s divided by that of the noise, 1-20 Hz."""
    snr_exponent: float = Field(1.4, gt=0, le=5)
    """Exponent of the signal-to-noise ratios: the share above x is (snr_floor / x) ** snr_exponent."""
    snr_ceiling: float = Field(300.0, gt=0, le=10_000)
    """Largest signal-to-noise ratio."""
    gaps_per_station_day: float = Field(0.5, ge=0, le=1000)
    """Expected number of gaps for each station and day; a gap affects all components for seconds to minutes."""
    overlaps_per_station_day: float = Field(0.5, ge=0, le=1000)
    """Expected number of stretches recorded twice for each station and day; one in five has different samples."""
    dead_component_share: float = Field(0.02, ge=0, le=1)
    """Share of station-days on which one component is dead (constant) for hours."""
    missing_day_share: float = Field(0.01, ge=0, le=1)
    """Share of station-days without any file."""
    task_memory_mib: int = operational(1024, ge=256, le=1_048_576)
    """Memory that Ray reserves for each station-day (MiB)."""

    @field_validator("start")
    @classmethod
    def _after_1970(cls, value: date) -> date:
        if value.year < 1971 or value.year > 2200:
            raise ValueError(f"{value} is out of range; give a day from 1971-01-01 to 2200-12-31")
        return value

    @field_validator("rate_hz")
    @classmethod
    def _carries_the_signals(cls, value: int) -> int:
        if not 40 <= value <= 1000:
            raise ValueError(f"{value} Hz is out of range; give 40 to 1000 Hz (signals reach up to 20 Hz)")
        return value

    @model_validator(mode="after")
    def _floor_below_ceiling(self) -> Self:
        if self.snr_floor >= self.snr_ceiling:
            raise ValueError(
                f"synthesize.snr_floor = {self.snr_floor:g} must be below synthesize.snr_ceiling = {self.snr_ceiling:g}"
            )
        return self
