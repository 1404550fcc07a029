"""The configuration: typed sections, resolved as defaults < stored in the workspace < file < flags.

Each stage knows the sections it runs with (`STAGE_SECTIONS`); those are stored as `config/<stage>.yaml`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date
from types import UnionType
from typing import Any, get_args, get_origin

from pydantic import ValidationError

from pipelines.config.archive import ArchiveSettings
from pipelines.config.augmentation import AugmentationSettings
from pipelines.config.base import Section
from pipelines.config.detection import DetectionSettings, ShardSettings, WindowSettings
from pipelines.config.fetch import FetchSettings
from pipelines.config.label import KMeansSettings, LabelSettings, LabelsSettings
from pipelines.config.mlflow import MlflowSettings
from pipelines.config.report import CatalogSettings, ExploreSettings, ReportSettings
from pipelines.config.run import RunSettings
from pipelines.config.safe_yaml import MAX_YAML_BYTES, Layer, load_yaml, read_yaml, to_yaml, value_to_yaml
from pipelines.config.suggest import SuggestSettings
from pipelines.config.synthesize import SynthesizeSettings
from pipelines.config.train import TrainSettings
from pipelines.config.tune import TuneSettings
from pipelines.runtime.errors import InputError
from pipelines.runtime.redaction import holds_secret, without_secrets

STAGE_SECTIONS: dict[str, tuple[str, ...]] = {
    "synthesize": ("synthesize",),
    "fetch": ("fetch",),
    "detect": ("archive", "detection", "window", "shards", "mlflow"),
    "tune": ("tune", "train", "augmentation", "kmeans", "labels", "mlflow"),
    "train": ("train", "augmentation", "labels", "mlflow"),
    "label": ("label", "kmeans", "labels", "mlflow"),
    "report": ("report", "catalog", "mlflow"),
    "suggest": ("suggest", "labels"),
    "explore": ("explore", "labels", "suggest"),
    "compare": ("mlflow",),
    "status": (),
}
STAGE_SECTIONS["run"] = (
    "run",
    *dict.fromkeys(name for stage in ("detect", "tune", "train", "label", "report") for name in STAGE_SECTIONS[stage]),
)


BEFORE_THERE_WAS: dict[str, Any] = {"train.polarisation": 0.0}
"""Keys that were added after a workspace may have been made, and the value that says what was done without them."""

NO_LONGER = tuple(f"augmentation.{name}" for name in ("crop", "time_mask", "spectral_mask", "amplitude_modulation"))
"""Sections that a workspace may have stored and that are gone: leaving them out makes no encoder worse."""


PATH_KEYS = (
    "archive.stationxml",
    "train.augment_from",
    "label.reference",
    "labels.path",
    "labels.names",
)
"""Keys of the stages whose values are paths or URLs."""

NO_PATHS = ("tune", "null", "")
"""Values of these keys that are no paths."""

OF_A_RUN = "runs:/"
"""What `train.augment_from` begins with where it names a run of MLflow."""


class Config(Section):
    """Every section; a job reads those of its stage."""

    synthesize: SynthesizeSettings = SynthesizeSettings()
    fetch: FetchSettings = FetchSettings()
    archive: ArchiveSettings = ArchiveSettings()
    detection: DetectionSettings = DetectionSettings()
    window: WindowSettings = WindowSettings()
    shards: ShardSettings = ShardSettings()
    tune: TuneSettings = TuneSettings()
    train: TrainSettings = TrainSettings()
    augmentation: AugmentationSettings = AugmentationSettings()
    label: LabelSettings = LabelSettings()
    kmeans: KMeansSettings = KMeansSettings()
    labels: LabelsSettings = LabelsSettings()
    mlflow: MlflowSettings = MlflowSettings()
    report: ReportSettings = ReportSettings()
    catalog: CatalogSettings = CatalogSettings()
    explore: ExploreSettings = ExploreSettings()
    suggest: SuggestSettings = SuggestSettings()
    run: RunSettings = RunSettings()


def resolve(*layers: Mapping[str, Any]) -> Config:
    """Merge nested mappings, later ones winning key by key, and check the result.

    Raises:
        InputError: an unknown key or an impossible value; the sentence names the key, and the file that holds it.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = _merge(merged, layer)
    refuse_secrets(merged)
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        raise InputError(_source_of(error, layers) + _sentence(error)) from None


def refuse_secrets(content: Mapping[str, Any]) -> None:
    """Raise InputError where a value is a URL with a user name, password or query: configurations are stored."""
    for key, value in flatten(content):
        for text in value if isinstance(value, list | tuple) else (value,):
            if isinstance(text, str) and "://" in text and holds_secret(text):
                raise InputError(
                    f"{key} is {without_secrets(text)}, with a user name, password or query hidden here: the "
                    "configuration is printed and stored, so give credentials in the environment"
                )


def with_keys(config: Config, sections: Mapping[str, Mapping[str, Any]]) -> Config:
    """Return a configuration with some keys changed, given as {"section": {"key": value}}."""
    return config.model_copy(
        update={name: getattr(config, name).model_copy(update=keys) for name, keys in sections.items()}
    )


def read_flags(flags: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Turn ("detection.on", "4") pairs into a nested mapping; values are YAML, those of text keys as typed."""
    nested: dict[str, Any] = {}
    for dotted, text in flags:
        section = nested
        *parents, leaf = dotted.split(".")
        for name in parents:
            section = section.setdefault(name, {})
        section[leaf] = _flag_value(dotted, text)
    return nested


def _flag_value(dotted: str, text: str) -> Any:
    try:
        value = load_yaml(text, name=dotted)
    except InputError:
        return text
    kinds = _kinds(dotted)
    # 00 and 0101 are codes, not numbers; a quoted value, a list or a mapping was meant as YAML.
    as_yaml = text.startswith(("'", '"', "[", "{")) or (value is None and type(None) in kinds)
    return value if as_yaml or str not in kinds else text


def _kinds(dotted: str) -> tuple[Any, ...]:
    """Return the types that a key may have; none for an unknown key."""
    kind: Any = Config
    for name in dotted.split("."):
        fields = getattr(kind, "model_fields", {})
        if name not in fields:
            return ()
        kind = fields[name].annotation
    return get_args(kind) if get_origin(kind) is UnionType else (kind,)


def is_path(value: str) -> bool:
    """Whether the value of one of PATH_KEYS is a path or URL, rather than a word or a run of MLflow."""
    return value not in NO_PATHS and not value.startswith(OF_A_RUN)


def map_paths(nested: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """Return nested or flat sections with the paths and URLs of PATH_KEYS changed."""

    def changed(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for name, value in values.items():
            if isinstance(value, Mapping):
                value = changed(value, f"{prefix}{name}.")
            elif f"{prefix}{name}" in PATH_KEYS and isinstance(value, str) and is_path(value):
                value = change(value)
            result[name] = value
        return result

    return changed(nested, "")


def of_this_release(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stage's stored configuration with the keys that came later, and without those that are gone."""
    values = dict(stored)
    for key in NO_LONGER:
        section, name = key.split(".")
        if isinstance(values.get(section), Mapping):
            values[section] = {other: value for other, value in values[section].items() if other != name}
    for key, value in BEFORE_THERE_WAS.items():
        section, name = key.split(".")
        if isinstance(values.get(section), Mapping):
            values[section] = {name: value, **values[section]}
    return values


def keys_of_this_release(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return flat stored keys ({"train.seed": 0, ...}) with the keys that came later, and without those that are gone.

    A key that came later is added where its section is there.
    """
    sections = {key.partition(".")[0] for key in stored}
    later = {key: value for key, value in BEFORE_THERE_WAS.items() if key.partition(".")[0] in sections}
    gone = tuple(f"{key}." for key in NO_LONGER)
    return later | {key: value for key, value in stored.items() if not key.startswith(gone)}


def stage_config(config: Config, stage: str) -> dict[str, Any]:
    """Return the resolved sections of a stage as plain values, the form that is printed, stored and logged."""
    return {name: getattr(config, name).model_dump(mode="json") for name in STAGE_SECTIONS[stage]}


def stage_output_keys(config: Config, stage: str) -> dict[str, Any]:
    """Return the resolved keys of a stage that change its output, flat: {"detection.on": 3.5, ...}."""
    nested = {name: getattr(config, name).output_keys() for name in STAGE_SECTIONS[stage]}
    return dict(flatten(nested))


def flatten(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) for every leaf of a nested mapping."""
    for name, value in nested.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def describe_keys(stage: str) -> Iterator[tuple[str, str, str]]:
    """Yield (dotted key, default as YAML, documentation) for every key of a stage, for --help."""
    defaults = Config()
    for name in STAGE_SECTIONS[stage]:
        yield from _describe(getattr(defaults, name), f"{name}.")


def _describe(section: Section, prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from _describe(value, f"{prefix}{name}.")
        else:
            default = section.model_dump(mode="json", include={name})[name]
            yield f"{prefix}{name}", value_to_yaml(default), " ".join((field.description or "").split())


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for name, value in above.items():
        # A space of the search replaces the stored one as a whole: its keys are what is searched.
        if name != "space" and isinstance(value, Mapping) and isinstance(merged.get(name), Mapping):
            merged[name] = _merge(merged[name], value)
        else:
            merged[name] = value
    return merged


def _source_of(error: ValidationError, layers: Sequence[Mapping[str, Any]]) -> str:
    """Return the name of the file that gives the wrong key, with a colon; nothing where a flag or a default does."""
    location = error.errors(include_url=False)[0]["loc"]
    for layer in reversed(layers):
        if _gives(layer, location):
            return f"{layer.source}: " if isinstance(layer, Layer) else ""
    return ""


def _gives(content: Any, location: Sequence[str | int]) -> bool:
    for part in location:
        if isinstance(content, list | str):
            # An entry of a list, such as detection.band_hz.1, belongs to whoever gives the list.
            return True
        if not isinstance(content, Mapping) or part not in content:
            return False
        content = content[part]
    return True


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown configuration key {key}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "string_type" and isinstance(first["input"], bool | int | float | date):
        message = "must be text; put it in quotes"
    section = Config.model_fields.get(key)
    if section is not None and message.split()[0] in getattr(section.annotation, "model_fields", {}):
        # The check of a whole section begins with the key that is wrong.
        return f"{key}.{message}"
    message = message[:1].lower() + message[1:]
    if message.startswith(key):
        return message
    if isinstance(first["input"], str | int | float | bool | list | None) and str(first["input"]) not in message:
        return f"{key} = {first['input']!r}: {message}"
    return f"{key}: {message}"


__all__ = [
    "MAX_YAML_BYTES",
    "OF_A_RUN",
    "PATH_KEYS",
    "STAGE_SECTIONS",
    "Config",
    "Layer",
    "describe_keys",
    "flatten",
    "is_path",
    "load_yaml",
    "map_paths",
    "read_flags",
    "read_yaml",
    "refuse_secrets",
    "resolve",
    "stage_config",
    "stage_output_keys",
    "to_yaml",
    "with_keys",
]
