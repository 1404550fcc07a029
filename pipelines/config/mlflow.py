"""`mlflow.`: names of the experiment and of the registered model."""

from pipelines.config.base import Section, operational


class MlflowSettings(Section):
    """Names in MLflow; the address comes from --mlflow or MLFLOW_TRACKING_URI."""

    experiment: str | None = operational(None)
    """Experiment that the runs of this workspace go to; default: named after the workspace."""
    model_name: str = operational("firnline-encoder")
    """Registered model that each training adds a version to."""
