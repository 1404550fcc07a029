"""`run.`: what `firnline run` chains."""

from pipelines.config.base import Section, operational


class RunSettings(Section):
    """The chain detect, train, label, report."""

    tune: bool = operational(False)
    """Search for the best augmentations before training."""
