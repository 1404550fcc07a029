"""Section `tune`: the search over the augmentations and, if asked, some keys of `train`."""

from typing import Any, Literal

from pydantic import Field, model_validator

from pipelines.config.base import Section, operational

Pair = tuple[float, float]

LEAST_GAIN = {"clusters": 0.08, "stability": 0.1, "validation": 0.05}
"""More than the scores of two trainings with the same settings differ by (docs/training.md, "Tuning"), by objective."""


class SearchRange(Section):
    """The values that the search may give one key: exactly one of the kinds below."""

    uniform: Pair | None = None
    """Numbers between two ends."""
    log_uniform: Pair | None = None
    """The same, drawn uniformly in their logarithm."""
    integer: tuple[int, int] | None = None
    """Whole numbers between two ends, both included."""
    choice: tuple[Any, ...] | None = None
    """One of these values."""
    symmetric: Pair | None = None
    """For a key that is a pair: [-v, v], with v between two ends."""
    reciprocal: Pair | None = None
    """For a key that is a pair: [1/v, v], with v between two ends, drawn uniformly in its logarithm."""
    on_off: Literal[True] | None = None
    """For an augmentation as a whole: as configured, or not applied."""

    @property
    def kind(self) -> str:
        """Which kind is given."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    @model_validator(mode="after")
    def _one(self) -> "SearchRange":
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"a range is one of {', '.join(type(self).model_fields)}, but {len(given)} are given")
        value = getattr(self, given[0])
        if given[0] == "choice" and len(value) < 2:
            raise ValueError("choice has fewer than two values")
        if given[0] not in ("choice", "on_off"):
            if value[0] >= value[1]:
                raise ValueError(f"{given[0]} is {list(value)}, write [smallest, largest]")
            if given[0] in ("log_uniform", "reciprocal") and value[0] <= 0:
                raise ValueError(f"{given[0]} is {list(value)}, both ends must be above 0")
            if given[0] == "reciprocal" and value[0] < 1:
                raise ValueError(f"reciprocal is {list(value)}, both ends must be 1 or above")
        return self


class TuneSettings(Section):
    """A search by Optuna, its trials stopped early by ASHA."""

    num_trials: int = Field(12, ge=1, le=100_000)
    """Trials of the search (count). With more than before, a search that is done goes on."""
    space: dict[str, SearchRange] | None = None
    """What is searched: keys of `augmentation`, `train.temperature`, `.learning_rate`, `.batch_size`, `.width` and
    `.encoder`, each with a range, such as `augmentation.band_stop.probability: {uniform: [0, 0.8]}`. Default: strength
    and frequency of each augmentation of `train.augmentation`."""
    searcher: Literal["tpe", "random", "grid"] = "tpe"
    """How points are proposed: `tpe` learns from the trials so far, `random` does not; `grid`: all combinations."""
    grid_points: int = Field(3, ge=2, le=100)
    """Values of each range that is not a choice, for `grid` (count)."""
    as_configured_first: bool = True
    """Make the configured settings the first trial."""
    start: tuple[dict[str, Any], ...] = ()
    """Settings that are known to be good, tried next: keys as in `space` with their values."""
    objective: Literal["auto", "clusters", "stability", "validation"] = "auto"
    """What to maximise: `validation`, the balanced accuracy of nearest neighbours on hand labels; without labels
    `clusters`, how well those of `firnline label` agree, are balanced and are told by nearest neighbours, or
    `stability` of clusters when windows are disturbed; or `auto`: `validation` if `labels.path` is given, otherwise
    `clusters`."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of the search (no unit)."""
    epochs: int = Field(8, ge=1, le=1_000_000)
    """Epochs of a trial that is not stopped early (count)."""
    max_events: int = Field(2000, ge=16, le=1_000_000_000)
    """Events that each trial is trained on (count)."""
    least_gain: float | None = Field(None, ge=0, le=1)
    """The configured settings win unless another trial's score is higher by this (no unit); null: more
    than the luck of a training, 0.08 for `clusters`, 0.1 for `stability` and 0.05 for `validation`."""
    grace_epochs: int = Field(1, ge=1, le=1_000_000)
    """Epochs after which a trial may be stopped early; the one as configured never is (count)."""
    reduction: int = Field(2, ge=2, le=1000)
    """ASHA continues one in this many trials (count)."""
    num_workers: int = operational(0, ge=0, le=100_000)
    """Trials at the same time; 0: as many as the cluster has, or may grow to, CPUs or GPUs for (count)."""
    gpus_per_worker: float = operational(1.0, gt=0, le=1)
    """Share of a GPU that each worker of a trial gets if `train.use_gpu` is true; with 0.25 four share one (count)."""
    clusters: int | None = Field(None, ge=2, le=100_000)
    """Number of clusters that are judged without labels; null: `kmeans.k`. Give the number of classes that are
    expected: with more clusters the scores were worth less (count)."""

    @model_validator(mode="after")
    def _consistent(self) -> "TuneSettings":
        if self.grace_epochs > self.epochs:
            raise ValueError(f"grace_epochs {self.grace_epochs} must be at most epochs ({self.epochs})")
        return self
