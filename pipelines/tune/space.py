"""What the search may change: one number for each augmentation's strength or frequency, and how it becomes settings."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.contrastive.augmentations import FAMILIES, PRESETS

Change = dict[str, Any]


@dataclass(frozen=True)
class Dimension:
    """One number of the search."""

    augmentation: str
    """Whose parameter it is."""
    low: float
    """Smallest value."""
    high: float
    """Largest value."""
    settings: Callable[[float], Change]
    """The parameters that a value stands for."""


DIMENSIONS: dict[str, Dimension] = {
    "time_shift.reach": Dimension("time_shift", 0.05, 0.8, lambda v: {"probability": 1.0, "lead_share": [-v, v]}),
    "time_mask.probability": Dimension("time_mask", 0.0, 0.8, lambda v: {"probability": v}),
    "rotation.probability": Dimension("rotation", 0.0, 1.0, lambda v: {"probability": v}),
    "time_stretch.probability": Dimension("time_stretch", 0.0, 1.0, lambda v: {"probability": v}),
    "time_stretch.reach": Dimension("time_stretch", 1.05, 2.5, lambda v: {"factor": [1 / v, v]}),
    "band_pass.probability": Dimension("band_pass", 0.0, 0.8, lambda v: {"probability": v}),
    "band_stop.probability": Dimension("band_stop", 0.0, 0.8, lambda v: {"probability": v}),
    "spectral_response.probability": Dimension("spectral_response", 0.0, 1.0, lambda v: {"probability": v}),
    "spectral_response.reach_db": Dimension("spectral_response", 1.0, 12.0, lambda v: {"db": [v / 3, v]}),
    "spectral_mask.probability": Dimension("spectral_mask", 0.0, 0.8, lambda v: {"probability": v}),
    "gain.reach_db": Dimension("gain", 0.5, 12.0, lambda v: {"component_db": [-v, v]}),
    "coloured_noise.probability": Dimension("coloured_noise", 0.0, 1.0, lambda v: {"probability": v}),
    "coloured_noise.lowest_snr_db": Dimension("coloured_noise", 10.0, 24.0, lambda v: {"lowest_snr_db": v}),
    "real_noise.probability": Dimension("real_noise", 0.0, 1.0, lambda v: {"probability": v}),
    "real_noise.lowest_snr_db": Dimension("real_noise", 10.0, 24.0, lambda v: {"lowest_snr_db": v}),
    "component_drop.probability": Dimension("component_drop", 0.0, 0.8, lambda v: {"probability": v}),
    "amplitude_modulation.probability": Dimension("amplitude_modulation", 0.0, 0.8, lambda v: {"probability": v}),
}
"""Every number of the search, by name."""


def dimensions_of(preset: str) -> dict[str, Dimension]:
    """Return the numbers that a preset's families have."""
    names = {name for family in PRESETS[preset] for name in FAMILIES[family]}
    return {key: dimension for key, dimension in DIMENSIONS.items() if dimension.augmentation in names}


def apply_point(base: Mapping[str, Mapping[str, Any]], point: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Return the augmentation section of a point of the search; what the point leaves open is as in `base`."""
    section = {name: dict(values) for name, values in base.items()}
    for key in sorted(point):
        dimension = DIMENSIONS[key]
        section[dimension.augmentation] |= dimension.settings(round(float(point[key]), 4))
    return section
