"""MLflow runs: one for each stage, with its configuration, its inputs' fingerprints, its figures and artifacts.

Stages call it from the driver or from rank 0 only.
"""

import contextlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines import __version__
from pipelines.config import flatten
from pipelines.runtime.errors import InputError
from pipelines.runtime.redaction import scrub, without_secrets
from pipelines.tracking.answers import TrackingFailed, answered
from pipelines.tracking.keys import mlflow_key
from pipelines.tracking.server import Tracking, as_default, missing_database


@dataclass(frozen=True)
class StageRun:
    """An MLflow run that a stage writes to."""

    tracking: Tracking
    run_id: str

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log numbers at a step, in one request."""
        import time

        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        entries = [Metric(mlflow_key(name), float(value), now, step) for name, value in metrics.items()]
        for start in range(0, len(entries), 1000):
            self.tracking.client().log_batch(self.run_id, metrics=entries[start : start + 1000])

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters without secrets, 100 a request; values longer than MLflow allows are cut."""
        from mlflow.entities import Param

        entries = [Param(mlflow_key(name), scrub(str(value))[:6000]) for name, value in params.items()]
        for start in range(0, len(entries), 100):
            self.tracking.client().log_batch(self.run_id, params=entries[start : start + 100])

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags without secrets, 100 a request."""
        from mlflow.entities import RunTag

        entries = [RunTag(mlflow_key(name), scrub(str(value))[:8000]) for name, value in tags.items()]
        for start in range(0, len(entries), 100):
            self.tracking.client().log_batch(self.run_id, tags=entries[start : start + 100])

    def log_text(self, text: str, path: str) -> None:
        """Log a text artifact without secrets under a path."""
        self.tracking.client().log_text(self.run_id, scrub(text), path)

    def log_bytes(self, content: bytes, path: str) -> None:
        """Log a binary artifact (a figure) under a path."""
        folder, _, name = path.rpartition("/")
        with tempfile.TemporaryDirectory(prefix="firnline-") as temporary:
            file = Path(temporary) / name
            file.write_bytes(content)
            self.tracking.client().log_artifact(self.run_id, str(file), folder or None)

    def log_table(self, rows: Mapping[str, Sequence[Any]], path: str) -> None:
        """Log columns as a JSON table artifact that MLflow's compare view shows."""
        self.tracking.client().log_table(self.run_id, {name: list(values) for name, values in rows.items()}, path)


@contextlib.contextmanager
def stage_run(
    tracking: Tracking,
    stage: str,
    config: Mapping[str, Any],
    *,
    inputs: Mapping[str, str],
    parent: StageRun | None = None,
    name: str | None = None,
    resume: str | None = None,
) -> Iterator[StageRun]:
    """Open a run for a stage, with its resolved configuration as parameters and its inputs' fingerprints as tags.

    Args:
        tracking: where the run goes.
        stage: detect, tune, train, label, report.
        config: resolved sections ({"train": {...}}), logged flat.
        inputs: fingerprints of what the stage reads; logged as `firnline.input.<name>`, so lineage can be walked back.
        parent: the run that this one is nested in.
        name: the run's name; default: the stage's.
        resume: the run of an earlier attempt, which goes on; a new one is made where it does not exist any more.

    The run ends FINISHED, FAILED where the body raised, KILLED where it was interrupted. If MLflow fails meanwhile, it
    stays RUNNING, as after a kill, until the next run of the stage in this workspace, which ends it as KILLED.

    Raises:
        TrackingFailed: MLflow does not answer any more.
    """
    tags = {
        "mlflow.runName": name or stage,
        "mlflow.source.name": f"firnline {stage}",
        "firnline.stage": stage,
        "firnline.version": __version__,
        **{f"firnline.input.{key}": value for key, value in inputs.items()},
    }
    if parent is not None:
        tags["mlflow.parentRunId"] = parent.run_id
    if tracking.workspace is not None:
        tags["firnline.workspace"] = tracking.workspace
    client = tracking.client()
    experiment_id = tracking.experiment_id()
    if parent is None:
        _end_runs_left(tracking, experiment_id, stage)
    if resume is not None and _is_kept(tracking, experiment_id, resume):
        run = StageRun(tracking, resume)
        client.update_run(resume, status="RUNNING")
        run.set_tags(tags)
    else:
        resume = None
        run = StageRun(tracking, client.create_run(experiment_id, tags=tags).info.run_id)
    try:
        if resume is None:
            run.log_params(dict(flatten(config)))
        yield run
    except TrackingFailed:
        # To say there that the run has failed would take as long again.
        raise
    except BaseException as error:
        with contextlib.suppress(TrackingFailed):
            client.set_terminated(run.run_id, status="KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    else:
        client.set_terminated(run.run_id, status="FINISHED")


def nested_runs(parent: StageRun) -> list[str]:
    """Return the children of a run, deleted ones left out."""
    client = parent.tracking.client()
    found: list[str] = []
    token = None
    while True:
        page = client.search_runs(
            [parent.tracking.experiment_id()],
            filter_string=f"tags.`mlflow.parentRunId` = '{parent.run_id}'",
            page_token=token,
        )
        found += [run.info.run_id for run in page]
        token = page.token
        if not token:
            return found


def file_of_run(tracking: Tracking, run_id: str, names: Sequence[str], *, max_bytes: int) -> bytes:
    """Return the first of these artifacts that a run has.

    Raises:
        InputError: there is no such run, it has none of them, or the artifact is larger than that.
    """
    from mlflow.exceptions import MlflowException

    database = missing_database(tracking)
    if database is not None:
        raise InputError(f"there is no {database}")
    client = tracking.client()
    try:
        files = {item.path: item for item in client.list_artifacts(run_id) if not item.is_dir}
    except MlflowException:
        raise InputError(f"MLflow at {without_secrets(tracking.uri)} has no such run") from None
    name = next((name for name in names if name in files), None)
    if name is None:
        raise InputError(f"the run has no {' and no '.join(names)}")
    if (files[name].file_size or 0) > max_bytes:
        raise InputError(f"its {name} is larger than {max_bytes} bytes, the most that is read")
    with tempfile.TemporaryDirectory(prefix="firnline-") as folder, as_default(tracking):
        return Path(client.download_artifacts(run_id, name, folder)).read_bytes()


def delete_runs(tracking: Tracking, run_ids: Iterable[str]) -> None:
    """Delete runs, as MLflow does: they can be restored there."""
    for run_id in run_ids:
        tracking.client().delete_run(run_id)


def _is_kept(tracking: Tracking, experiment_id: str, run_id: str) -> bool:
    """Return whether a run exists in the experiment and is not deleted."""
    from mlflow.exceptions import MlflowException

    try:
        info = tracking.client().get_run(run_id).info
    except MlflowException:
        return False
    return bool(info.lifecycle_stage == "active" and info.experiment_id == experiment_id)


def _end_runs_left(tracking: Tracking, experiment_id: str, stage: str) -> None:
    """End the runs of a stage in this workspace that are RUNNING: one job writes to it, so those that did have died."""
    client = tracking.client()
    still = f"tags.`firnline.stage` = '{stage}' and attributes.status = 'RUNNING'"
    for left in client.search_runs([experiment_id], filter_string=still):
        if tracking.workspace is not None and left.data.tags.get("firnline.workspace") == tracking.workspace:
            client.set_terminated(left.info.run_id, status="KILLED")


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A finished run as MLflow holds it."""

    run_id: str
    experiment: str
    started: datetime
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]


def finished_runs(tracking: Tracking, stage: str) -> list[RunRecord]:
    """Return the finished runs of a stage in the experiment, oldest first, children left out."""
    if missing_database(tracking) is not None:
        return []
    client = tracking.client()
    experiment_id = tracking.find_experiment()
    if experiment_id is None:
        return []
    found = []
    token = None
    while True:
        page = client.search_runs(
            [experiment_id],
            filter_string=f"tags.`firnline.stage` = '{stage}' and attributes.status = 'FINISHED'",
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        found += [run for run in page if "mlflow.parentRunId" not in run.data.tags]
        token = page.token
        if not token:
            break
    return [
        RunRecord(
            run_id=run.info.run_id,
            experiment=tracking.experiment,
            started=datetime.fromtimestamp(run.info.start_time / 1000, tz=UTC),
            params=dict(run.data.params),
            metrics=dict(run.data.metrics),
            tags=dict(run.data.tags),
        )
        for run in found
    ]


@contextlib.contextmanager
def fluent_run(run: StageRun) -> Iterator[Any]:
    """Make a run the active one of MLflow's fluent interface, which alone logs models; yields the mlflow module."""
    with answered(run.tracking.uri), as_default(run.tracking) as mlflow, mlflow.start_run(run_id=run.run_id):
        yield mlflow
