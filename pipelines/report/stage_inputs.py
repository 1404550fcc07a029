"""What the report is made from: the files of labels, what the label stage says of its clusters, and its settings."""

from pipelines.config.label import LabelsSettings
from pipelines.runtime.errors import InputError
from pipelines.workspace import tables
from pipelines.workspace.artifacts import ClusteringSummary
from pipelines.workspace.storage import Store
from pipelines.workspace.workspace import Workspace


def label_files(workspace: Workspace) -> list[str]:
    """Return the files of `labels/`, relative to it, sorted; InputError where there is none."""
    files = [item.path.removeprefix("labels/") for item in tables.list_shards(workspace.store, "labels")]
    if not files:
        raise InputError(f"{workspace.url} has no labels; run firnline label {workspace.url} first")
    return files


def association_seconds(workspace: Workspace) -> float:
    """Return the time within which triggers are one event, as the labels were made with it."""
    stored = workspace.stored_config("label").get("labels", {})
    return LabelsSettings.model_validate(stored).association_seconds


def read_evaluation(store: Store) -> ClusteringSummary:
    """Return what the label stage says of its clusters: sizes, names, scores with their protocol, confusion matrix.

    Raises:
        InputError: the file is damaged.
    """
    return ClusteringSummary.read(store) or ClusteringSummary(clusters=())
