"""Section `tune`: the search over the augmentations."""

from typing import Literal

from pydantic import Field, model_validator

from pipelines.config.base import Section, operational


class TuneSettings(Section):
    """A search by Optuna, its trials stopped early by ASHA."""

    num_trials: int = Field(12, ge=1, le=100_000)
    """Trials of the search (count)."""
    objective: Literal["auto", "stability", "validation"] = "auto"
    """What to maximise: `stability` of the clusters, which needs no labels; `validation`, the accuracy of nearest
    neighbours on hand labels; or `auto`: `validation` if `labels.path` is given, otherwise `stability`."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of the search (no unit)."""
    epochs: int = Field(8, ge=1, le=1_000_000)
    """Epochs of a trial that is not stopped early (count)."""
    max_events: int = Field(2000, ge=16, le=1_000_000_000)
    """Events that each trial is trained on (count)."""
    grace_epochs: int = Field(2, ge=1, le=1_000_000)
    """Epochs after which a trial may be stopped early (count)."""
    reduction: int = Field(2, ge=2, le=1000)
    """ASHA continues one in this many trials (count)."""
    num_workers: int = operational(0, ge=0, le=100_000)
    """Trials at the same time; 0: one for each free CPU of the cluster (count)."""
    clusters: int = Field(8, ge=2, le=100_000)
    """Number of clusters whose stability is measured (count)."""

    @model_validator(mode="after")
    def _consistent(self) -> "TuneSettings":
        if self.grace_epochs > self.epochs:
            raise ValueError(f"grace_epochs {self.grace_epochs} must be at most epochs ({self.epochs})")
        return self
