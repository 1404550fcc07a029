"""`run.`: what `firnline run` chains."""

from typing import Literal

from pipelines.config.base import Section, operational

OnGrowth = Literal["keep", "retrain"]


class RunSettings(Section):
    """The chain detect, train, label, report."""

    tune: bool = operational(False)
    """Search for the best augmentations before training."""

    on_growth: OnGrowth = operational("keep")
    """Where the archive has grown since the training: `keep` the encoder and the clustering, which label the new events
    alone, or `retrain` both on all events."""
