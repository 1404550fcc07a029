"""`mlflow.`: where runs and models are kept."""

from pipelines.config.base import Section, operational


class MlflowSettings(Section):
    """Names in MLflow; the address comes from --mlflow or MLFLOW_TRACKING_URI."""

    experiment: str | None = operational(None)
    """Experiment of the workspace's runs (default: named after the workspace)."""
    model_name: str = operational("firnline-encoder")
    """Registered model that training adds its versions to."""
