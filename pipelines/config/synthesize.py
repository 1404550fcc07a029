"""Settings of the synthetic archive."""

from datetime import date
from typing import Self

from pydantic import Field, field_validator, model_validator

from pipelines.config.base import Section, operational


class ClassShares(Section):
    """Expected shares of the classes among the arrivals at a station; they need not add up to one."""

    icequake: float = Field(40.0, ge=0)
    """Weight of icequakes: short, impulsive, repeating."""
    earthquake: float = Field(30.0, ge=0)
    """Weight of earthquakes: P, S and coda, local to regional."""
    spike: float = Field(15.0, ge=0)
    """Weight of instrumental spikes: dropouts, steps, calibration pulses, telemetry bursts."""
    tremor: float = Field(15.0, ge=0)
    """Weight of harmonic, gliding tremor."""

    @model_validator(mode="after")
    def _some_class(self) -> Self:
        if self.icequake + self.earthquake + self.spike + self.tremor <= 0:
            raise ValueError("synthesize.shares add up to 0; give at least one class a share above 0")
        return self


class SynthesizeSettings(Section):
    """What archive to synthesize."""

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
    """Seed of everything random."""
    shares: ClassShares = ClassShares()
    """Shares of the classes."""
    events_per_station_day: float = Field(300.0, ge=0, le=2000)
    """Expected arrivals in the truth, a station and day."""
    snr_floor: float = Field(2.0, gt=0)
    """Least signal-to-noise ratio in the truth: root mean square over 0.5 s against the noise's, 1-20 Hz."""
    snr_exponent: float = Field(1.4, gt=0, le=5)
    """Tail of the signal-to-noise ratios: the share above x falls as (snr_floor / x) ** snr_exponent."""
    snr_ceiling: float = Field(300.0, gt=0, le=10_000)
    """Greatest signal-to-noise ratio."""
    gaps_per_station_day: float = Field(0.5, ge=0, le=1000)
    """Expected gaps on all three components, a station and day; each lasts seconds to minutes."""
    overlaps_per_station_day: float = Field(0.5, ge=0, le=1000)
    """Expected stretches recorded twice, a station and day; four of five are identical, the others disagree."""
    dead_component_share: float = Field(0.02, ge=0, le=1)
    """Share of station-days on which one component is dead (constant) for hours."""
    missing_day_share: float = Field(0.01, ge=0, le=1)
    """Share of station-days without any file."""
    task_memory_mib: int = operational(1024, ge=256)
    """Memory that Ray reserves for each station-day, MiB."""

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
