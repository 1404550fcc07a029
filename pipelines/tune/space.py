"""What the search may change, in the terms of the settings themselves, and how a point becomes a configuration."""

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from pipelines.config import Config, resolve
from pipelines.config.tune import SearchRange
from pipelines.contrastive.augmentations import FAMILIES, PRESETS
from pipelines.encoders import NETWORKS
from pipelines.runtime.errors import InputError

Point = dict[str, Any]
"""A value for each key of the space, as the range's kind has it: v of a `symmetric` range, the value of a `choice`."""

TRAIN_KEYS = ("temperature", "learning_rate", "batch_size", "width", "encoder")
"""What may be searched beside the augmentations."""

DEFAULT_SPACE: dict[str, SearchRange] = {
    f"augmentation.{key}": SearchRange.model_validate(given)
    for key, given in {
        "time_shift.lead_share": {"symmetric": [0.05, 0.8]},
        "rotation.probability": {"uniform": [0.0, 1.0]},
        "time_stretch.probability": {"uniform": [0.0, 1.0]},
        "time_stretch.factor": {"reciprocal": [1.05, 2.5]},
        "band_pass.probability": {"uniform": [0.0, 0.8]},
        "band_stop.probability": {"uniform": [0.0, 0.8]},
        "spectral_response.probability": {"uniform": [0.0, 1.0]},
        "spectral_response.db.1": {"uniform": [2.0, 12.0]},
        "gain.component_db": {"symmetric": [0.5, 12.0]},
        "coloured_noise.probability": {"uniform": [0.0, 1.0]},
        "coloured_noise.lowest_snr_db": {"uniform": [10.0, 24.0]},
        "real_noise.probability": {"uniform": [0.0, 1.0]},
        "real_noise.lowest_snr_db": {"uniform": [10.0, 24.0]},
        "component_drop.probability": {"uniform": [0.0, 0.8]},
    }.items()
}
"""Strength and frequency of each augmentation."""


def space_of(config: Config) -> dict[str, SearchRange]:
    """Return the space of a search: `tune.space`, else the default one of the preset's augmentations.

    Raises:
        InputError: a key that cannot be searched, a range whose ends are no settings, a start outside the space.
    """
    names = {name for family in PRESETS[config.train.augmentation] for name in FAMILIES[family]}
    given = config.tune.space
    if given is None:
        return {key: ranged for key, ranged in DEFAULT_SPACE.items() if key.split(".")[1] in names}
    if not given:
        raise InputError("tune.space is empty; leave it out for the default one")
    for key, ranged in given.items():
        _check_key(config, key, ranged, names)
        for value in _tried(ranged):
            try:
                changed = configure(config, {key: ranged}, {key: value})
            except InputError as error:
                raise InputError(f"tune.space: {key} cannot be {value}: {error}") from None
            if changed.train.encoder not in NETWORKS:
                raise InputError(f"tune.space: train.encoder {value} has no augmentations to search")
    for point in config.tune.start:
        for key, value in point.items():
            if key not in given or not _holds(given[key], value):
                raise InputError(f"tune.start: {key} {value} is not in tune.space")
    return dict(given)


def distributions_of(space: Mapping[str, SearchRange]) -> dict[str, BaseDistribution]:
    """Return Optuna's distribution of each key; that of a choice is over the indices of its values."""
    return {key: _distribution(ranged) for key, ranged in space.items()}


def point_of(space: Mapping[str, SearchRange], drawn: Mapping[str, Any]) -> Point:
    """Return the point of what Optuna has drawn."""
    return {key: _value(space[key], value) for key, value in drawn.items()}


def drawn_of(space: Mapping[str, SearchRange], point: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what Optuna would have drawn for a point; None for one that leaves keys open."""
    if set(point) != set(space):
        return None
    return {
        key: list(space[key].choice or ()).index(value) if space[key].kind == "choice" else value
        for key, value in point.items()
    }


def grid_of(space: Mapping[str, SearchRange], num_points: int) -> Iterator[Point]:
    """Yield every combination of the choices and of evenly spread values of the other ranges."""
    columns = [[(key, value) for value in _spread(ranged, num_points)] for key, ranged in space.items()]
    for combination in itertools.product(*columns):
        yield dict(combination)


def configure(config: Config, space: Mapping[str, SearchRange], point: Mapping[str, Any]) -> Config:
    """Return the configuration of a point; what the point leaves open stays as configured.

    Raises:
        InputError: the values are not possible settings.
    """
    nested: dict[str, Any] = {
        "augmentation": config.augmentation.model_dump(mode="json"),
        "train": config.train.model_dump(mode="json"),
    }
    for key in sorted(point):
        value, kind = point[key], space[key].kind
        *parents, leaf = key.split(".")
        section: Any = nested
        for name in parents:
            section = section[int(name) if isinstance(section, list) else name]
        if kind == "on_off":
            if not value:
                section[leaf]["probability"] = 0.0
        elif kind == "symmetric":
            section[leaf] = [-value, value]
        elif kind == "reciprocal":
            section[leaf] = [1 / value, value]
        else:
            section[int(leaf) if isinstance(section, list) else leaf] = value
    changed = resolve(nested)
    return config.model_copy(update={"augmentation": changed.augmentation, "train": changed.train})


def searched_sections(config: Config, space: Mapping[str, SearchRange]) -> dict[str, Any]:
    """Return what a search decides of a configuration: the augmentations, and the keys of `train` in the space."""
    keys = [key.partition(".")[2] for key in space if key.startswith("train.")]
    sections: dict[str, Any] = {"augmentation": config.augmentation.model_dump(mode="json")}
    if keys:
        dumped = config.train.model_dump(mode="json")
        sections["train"] = {key: dumped[key] for key in keys}
    return sections


def _check_key(config: Config, key: str, ranged: SearchRange, names: set[str]) -> None:
    section, _, rest = key.partition(".")
    if section == "train" and rest in TRAIN_KEYS:
        if ranged.kind in ("symmetric", "reciprocal", "on_off"):
            raise InputError(f"tune.space: {key} cannot be {ranged.kind}, it is one value")
        return
    if section != "augmentation":
        searched = ", ".join(f"train.{name}" for name in TRAIN_KEYS)
        raise InputError(f"tune.space: {key} cannot be searched; keys of augmentation can, and {searched}")
    found: Any = config.augmentation.model_dump(mode="json")
    parts = rest.split(".")
    for part in parts:
        inside = isinstance(found, list) and part in ("0", "1")
        if not inside and not (isinstance(found, dict) and part in found):
            raise InputError(f"tune.space: there is no key {key}")
        found = found[int(part)] if isinstance(found, list) else found[part]
    if parts[0] not in names:
        raise InputError(
            f"tune.space: {key} has no effect, since train.augmentation {config.train.augmentation} leaves it out"
        )
    if (ranged.kind == "on_off") != isinstance(found, dict):
        raise InputError(f"tune.space: {key} cannot be {ranged.kind}; on_off is for an augmentation as a whole")


def _distribution(ranged: SearchRange) -> BaseDistribution:
    if ranged.choice is not None:
        return CategoricalDistribution(range(len(ranged.choice)))
    if ranged.on_off:
        return CategoricalDistribution((True, False))
    if ranged.integer is not None:
        return IntDistribution(*ranged.integer)
    return FloatDistribution(*_numbers(ranged), log=ranged.kind in ("log_uniform", "reciprocal"))


def _numbers(ranged: SearchRange) -> tuple[float, float]:
    low, high = getattr(ranged, ranged.kind)
    return float(low), float(high)


def _value(ranged: SearchRange, drawn: Any) -> Any:
    if ranged.choice is not None:
        value = ranged.choice[drawn]
        return list(value) if isinstance(value, tuple) else value
    # Four digits are enough, and are read in MLflow.
    return float(f"{drawn:.4g}") if isinstance(drawn, float) else drawn


def _ends(ranged: SearchRange) -> tuple[Any, ...]:
    if ranged.choice is not None:
        return ranged.choice
    return (True, False) if ranged.on_off else getattr(ranged, ranged.kind)


def _tried(ranged: SearchRange) -> tuple[Any, ...]:
    """Return values that must be settings: where only multiples are, an integer range fails by its second number."""
    ends = _ends(ranged)
    return (*ends, ranged.integer[0] + 1) if ranged.integer is not None else ends


def _holds(ranged: SearchRange, value: Any) -> bool:
    if ranged.kind in ("choice", "on_off"):
        return value in _ends(ranged)
    number = isinstance(value, int if ranged.kind == "integer" else int | float) and not isinstance(value, bool)
    return number and _numbers(ranged)[0] <= value <= _numbers(ranged)[1]


def _spread(ranged: SearchRange, count: int) -> list[Any]:
    if ranged.kind in ("choice", "on_off"):
        return list(_ends(ranged))
    low, high = _numbers(ranged)
    shares = [number / (count - 1) for number in range(count)]
    if ranged.kind in ("log_uniform", "reciprocal"):
        return [float(f"{math.exp(math.log(low) + share * math.log(high / low)):.4g}") for share in shares]
    values = [low + share * (high - low) for share in shares]
    return sorted({round(value) for value in values}) if ranged.kind == "integer" else values
