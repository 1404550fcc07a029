"""Section `augmentation`: how often and how strongly each augmentation changes a view of a window."""

from typing import Annotated, TypeVar

from pydantic import Field, model_validator

from pipelines.config.base import Section

Range = tuple[float, float]
Probability = Annotated[float, Field(ge=0, le=1)]
S = TypeVar("S", bound="_Ranged")


class _Ranged(Section):
    """An augmentation's parameters; every pair is [smallest, largest]."""

    @model_validator(mode="after")
    def _ordered(self) -> "_Ranged":
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, tuple) and value[0] > value[1]:
                raise ValueError(f"{name} is {list(value)}; write [smallest, largest]")
        return self


def _above_zero(settings: S, name: str) -> S:
    value = getattr(settings, name)
    if value[0] <= 0:
        raise ValueError(f"{name} is {list(value)}; both ends must be above 0")
    return settings


class TimeShiftSettings(_Ranged):
    """Moves the window in time."""

    probability: Probability = 1.0
    """Share of views that this augmentation changes."""
    lead_share: Range = (-0.5, 0.5)
    """Shift in units of the window's lead, at most 0.9, so that the onset stays inside."""

    @model_validator(mode="after")
    def _inside(self) -> "TimeShiftSettings":
        if max(abs(value) for value in self.lead_share) > 0.9:
            raise ValueError(f"lead_share is {list(self.lead_share)}; it must lie between -0.9 and 0.9")
        return self


class PolaritySettings(_Ranged):
    """Reverses the sign."""

    probability: Probability = 0.5
    """Share of views that this augmentation changes."""


class RotationSettings(_Ranged):
    """Rotates the horizontal components about the vertical."""

    probability: Probability = 0.5
    """Share of views that this augmentation changes."""
    degrees: Range = (0.0, 360.0)
    """Angle in degrees."""


class TimeStretchSettings(_Ranged):
    """Stretches or compresses the window about its onset."""

    probability: Probability = 0.8
    """Share of views that this augmentation changes."""
    factor: Range = (0.5, 2.0)
    """Speed (ratio), drawn uniformly in its logarithm."""

    @model_validator(mode="after")
    def _positive(self) -> "TimeStretchSettings":
        return _above_zero(self, "factor")


class BandPassSettings(_Ranged):
    """Keeps a random band."""

    probability: Probability = 0.3
    """Share of views that this augmentation changes."""
    low: Range = (0.01, 0.08)
    """Lower corner in units of the Nyquist frequency, drawn uniformly in its logarithm."""
    high: Range = (0.4, 1.0)
    """Upper corner in units of the Nyquist frequency, drawn uniformly in its logarithm."""

    @model_validator(mode="after")
    def _positive(self) -> "BandPassSettings":
        return _above_zero(_above_zero(self, "low"), "high")


class BandStopSettings(_Ranged):
    """Weakens a random band."""

    probability: Probability = 0.3
    """Share of views that this augmentation changes."""
    centre: Range = (0.05, 0.8)
    """Centre in units of the Nyquist frequency, drawn uniformly in its logarithm."""
    octaves: Range = (0.3, 1.0)
    """Width in octaves."""

    @model_validator(mode="after")
    def _positive(self) -> "BandStopSettings":
        return _above_zero(_above_zero(self, "centre"), "octaves")


class SpectralResponseSettings(_Ranged):
    """Multiplies the spectrum by a smooth random response."""

    probability: Probability = 0.8
    """Share of views that this augmentation changes."""
    db: Range = (2.0, 10.0)
    """Standard deviation of the response in dB."""
    knots: int = Field(8, ge=2, le=64)
    """Independent values over the six octaves below the Nyquist frequency (count)."""


class GainSettings(_Ranged):
    """Multiplies the window by a factor."""

    probability: Probability = 0.5
    """Share of views that this augmentation changes."""
    db: Range = (-6.0, 6.0)
    """Gain of the window in dB."""
    component_db: Range = (-6.0, 6.0)
    """Further gain of each component in dB."""


class ColouredNoiseSettings(_Ranged):
    """Adds Gaussian noise whose power falls with frequency."""

    probability: Probability = 0.5
    """Share of views that this augmentation changes."""
    lowest_snr_db: float = Field(16.0, ge=-20, le=60)
    """Lowest ratio of peak to noise RMS afterwards; it is drawn between this and the original ratio (dB)."""
    exponent: Range = (0.0, 1.5)
    """Exponent of the frequency with which the power of the noise falls (no unit)."""


class RealNoiseSettings(_Ranged):
    """Adds noise recorded before the onset of another window."""

    probability: Probability = 0.5
    """Share of views that this augmentation changes."""
    lowest_snr_db: float = Field(16.0, ge=-20, le=60)
    """Lowest ratio of peak to noise RMS afterwards; it is drawn between this and the original ratio (dB)."""


class ComponentDropSettings(_Ranged):
    """Removes components, never all of them."""

    probability: Probability = 0.3
    """Share of views that this augmentation changes."""
    max_components: int = Field(2, ge=1, le=2)
    """Maximum number of components to remove (count)."""


class AugmentationSettings(Section):
    """All augmentations; `train.augmentation` selects the families that are used."""

    time_shift: TimeShiftSettings = TimeShiftSettings()
    polarity: PolaritySettings = PolaritySettings()
    rotation: RotationSettings = RotationSettings()
    time_stretch: TimeStretchSettings = TimeStretchSettings()
    band_pass: BandPassSettings = BandPassSettings()
    band_stop: BandStopSettings = BandStopSettings()
    spectral_response: SpectralResponseSettings = SpectralResponseSettings()
    gain: GainSettings = GainSettings()
    coloured_noise: ColouredNoiseSettings = ColouredNoiseSettings()
    real_noise: RealNoiseSettings = RealNoiseSettings()
    component_drop: ComponentDropSettings = ComponentDropSettings()
