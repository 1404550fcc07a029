"""Where a report comes from: fingerprints, metadata of the labels, MLflow runs, and the configuration of each stage."""

from collections.abc import Iterator

from pipelines import __version__
from pipelines.tracking.runs import finished_runs
from pipelines.tracking.server import Tracking
from pipelines.workspace import tables
from pipelines.workspace.ledger import stage_fingerprint
from pipelines.workspace.workspace import Workspace


def lineage(workspace: Workspace, tracking: Tracking | None) -> Iterator[tuple[str, str]]:
    """Yield names and values: workspace, fingerprints, metadata of the labels, and the MLflow runs of each stage."""
    store = workspace.store
    yield "workspace", workspace.url
    yield "firnline", __version__
    for stage, what in (("detect", "events"), ("label", "labels")):
        yield f"fingerprint of the {what}", stage_fingerprint(store, stage)
    path = next((item.path for item in tables.list_shards(store, "labels")), None)
    if path is not None:
        with tables.open_table(store, path, ()) as file:
            metadata = file.schema_arrow.metadata or {}
        for key, value in sorted(metadata.items()):
            if not key.startswith((b"ARROW", b"pandas")):
                yield f"labels: {key.decode()}", value.decode()
    if tracking is None:
        return
    yield "MLflow experiment", tracking.experiment
    for stage in ("detect", "tune", "train", "label"):
        runs = finished_runs(tracking, stage)
        if runs:
            yield f"MLflow run of {stage}", runs[-1].run_id
            if "firnline.model" in runs[-1].tags:
                yield "encoder", runs[-1].tags["firnline.model"]
