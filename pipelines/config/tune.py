"""Section `tune`: the search over the augmentations."""

from typing import Literal

from pydantic import Field, model_validator

from pipelines.config.base import Section, operational


class TuneSettings(Section):
    """A search by Optuna, its trials stopped early by ASHA."""

    num_trials: int = Field(12, ge=1)
    """Trials (count)."""
    objective: Literal["auto", "stability", "validation"] = "auto"
    """What is maximised: the label-free `stability` of clusters, the `validation` accuracy of nearest neighbours on
    hand labels, or `auto`: the latter where `labels.path` is given."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Of the search."""
    epochs: int = Field(8, ge=1)
    """Epochs of a trial that is not stopped (count)."""
    max_events: int = Field(2000, ge=16)
    """Events that a trial trains on (count)."""
    grace_epochs: int = Field(2, ge=1)
    """Epochs that every trial is given (count)."""
    reduction: int = Field(2, ge=2)
    """ASHA goes on with one in so many trials (count)."""
    num_workers: int = operational(0, ge=0)
    """Trials at the same time; 0: one for each CPU of the cluster that is not kept for other work (count)."""
    clusters: int = Field(8, ge=2)
    """Clusters whose stability the label-free objective measures (count)."""

    @model_validator(mode="after")
    def _consistent(self) -> "TuneSettings":
        if self.grace_epochs > self.epochs:
            raise ValueError(f"grace_epochs {self.grace_epochs} must be at most epochs ({self.epochs})")
        return self
