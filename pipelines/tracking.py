"""The one module that knows MLflow: runs with lineage, models in the registry, their aliases.

Stages call it from the driver or from rank 0 only. `mlflow` is imported late: it takes seconds, and workers need none.
"""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from pipelines import __version__
from pipelines.config import flatten
from pipelines.errors import InputError
from pipelines.workspace import Workspace

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")

CHAMPION = "champion"
CANDIDATE = "candidate"


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """Where runs go: the tracking URI and the experiment's name."""

    uri: str
    experiment: str
    artifact_location: str | None = None

    def client(self) -> Any:
        """Return an MlflowClient for the URI."""
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    def experiment_id(self) -> str:
        """Return the experiment's id; it is created where it does not exist."""
        from mlflow.exceptions import MlflowException

        client = self.client()
        found = client.get_experiment_by_name(self.experiment)
        if found is None:
            try:
                return str(client.create_experiment(self.experiment, artifact_location=self.artifact_location))
            except MlflowException:
                found = client.get_experiment_by_name(self.experiment)
                if found is None:
                    raise
        return str(found.experiment_id)


def open_tracking(workspace: Workspace, uri: str | None, experiment: str | None) -> Tracking:
    """Return the tracking for a workspace and check that it answers.

    Args:
        workspace: gives the default: `mlflow.db` and `mlartifacts/` inside a local workspace.
        uri: the --mlflow flag; else MLFLOW_TRACKING_URI.
        experiment: its name; default: firnline and the workspace's URL, or its folder's name in its own database.

    Raises:
        InputError: no URI for a bucket workspace, or the server does not answer or refuses our credentials, or the
            database cannot be opened, is none, or has a schema that MLflow refuses.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or None
    if uri is None:
        if not workspace.store.is_local:
            raise InputError(f"the workspace {workspace.url} is a bucket: give --mlflow URI or MLFLOW_TRACKING_URI")
        root = Path(workspace.url)
        database = f"sqlite:///{root / 'mlflow.db'}"
        if workspace.store.exists("mlflow.db"):
            _check_database(database)
        name = experiment or f"firnline {root.name}"
        return Tracking(uri=database, experiment=name, artifact_location=_artifact_location(workspace))
    _check_answers(uri)
    # Many workspaces share a server, and several of them are called "workspace".
    name = experiment or f"firnline {workspace.url}"
    # A database keeps no artifacts, and MLflow's own default for them is the folder that one happens to be in.
    artifacts = None if uri.startswith("http") else _artifact_location(workspace)
    tracking = Tracking(uri=uri, experiment=name, artifact_location=artifacts)
    if uri.startswith("http"):
        _check_admits(tracking)
    return tracking


def _artifact_location(workspace: Workspace) -> str:
    if workspace.store.is_local:
        return (Path(workspace.url) / "mlartifacts").as_uri()
    return workspace.store.full("mlartifacts")


def _check_answers(uri: str) -> None:
    import requests

    try:
        scheme = urlparse(uri).scheme
    except ValueError as error:
        raise InputError(f"MLflow URI {_without_password(uri)!r} is none: {error}") from None
    if scheme in ("http", "https"):
        try:
            answer = requests.get(f"{uri.rstrip('/')}/health", timeout=10)
        except requests.RequestException as error:
            raise InputError(f"MLflow at {_without_password(uri)} does not answer: {type(error).__name__}") from None
        if answer.status_code != 200:
            raise InputError(f"MLflow at {_without_password(uri)} answers {answer.status_code} to /health")
    elif scheme.partition("+")[0] in ("sqlite", "postgresql", "mysql", "mssql"):
        _check_database(uri)
    else:
        raise InputError(f"MLflow URI {_without_password(uri)!r}: give http(s)://, sqlite:/// or another database URI")


def _check_admits(tracking: Tracking) -> None:
    """Raise InputError where a server that is well refuses to look up the experiment for us; nothing is made."""
    from mlflow.exceptions import MlflowException

    try:
        tracking.client().get_experiment_by_name(tracking.experiment)
    except MlflowException as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"MLflow at {_without_password(tracking.uri)} refuses to look up the experiment {tracking.experiment!r} "
            f"({reason}); are MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, right?"
        ) from None


def _check_database(uri: str) -> None:
    """Raise InputError where MLflow could not use a database, at once; it would try for half a minute."""
    from sqlalchemy import create_engine, exc

    sqlite_file = _sqlite_file(uri)
    if sqlite_file is not None and not sqlite_file.parent.is_dir():
        raise InputError(f"MLflow's database {uri} cannot be opened: {sqlite_file.parent} is no folder; make it first")
    made = sqlite_file if sqlite_file is not None and not sqlite_file.exists() else None
    try:
        engine = create_engine(uri)
        _check_schema(engine, uri)
        engine.dispose()
    except (exc.SQLAlchemyError, ImportError) as error:
        reason = " ".join(str(getattr(error, "orig", None) or error).split())
        raise InputError(f"MLflow's database {_without_password(uri)} cannot be opened: {reason}") from None
    finally:
        if made is not None:
            made.unlink(missing_ok=True)


def _check_schema(engine: Any, uri: str) -> None:
    """Raise InputError where MLflow would refuse a database's schema; nothing is made or upgraded."""
    import mlflow
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _all_tables_exist

    with engine.connect() as connection:
        revision = MigrationContext.configure(connection).get_current_revision()
    migrations = ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
    newest = migrations.get_current_head()
    if revision in (None, newest):
        return
    database = f"MLflow's database {_without_password(uri)}"
    if revision not in {script.revision for script in migrations.walk_revisions()}:
        raise InputError(f"{database} has the schema {revision}, which MLflow {mlflow.__version__} does not know")
    # Where tables are missing MLflow upgrades by itself.
    if _all_tables_exist(engine):  # type: ignore[no-untyped-call]
        raise InputError(f"{database} has the old schema {revision}: run mlflow db upgrade on it, for {newest}")


def _sqlite_file(uri: str) -> Path | None:
    """Return the file of a sqlite URI; None for another URI or a database in memory."""
    name = urlparse(uri).path[1:] if uri.startswith("sqlite") else ""
    return Path(name) if name else None


def _missing_database(tracking: Tracking) -> Path | None:
    """Return the sqlite file that is not there: a reader's MLflow would make it, in a workspace that it only reads."""
    database = _sqlite_file(tracking.uri)
    return database if database is not None and not database.exists() else None


def _without_password(uri: str) -> str:
    return re.sub(r"(://[^/:@]*):[^/]*@", r"\1:***@", uri)


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
        entries = [Metric(name, float(value), now, step) for name, value in metrics.items()]
        for start in range(0, len(entries), 1000):
            self.tracking.client().log_batch(self.run_id, metrics=entries[start : start + 1000])

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters, 100 a request; values longer than MLflow takes are cut."""
        from mlflow.entities import Param

        entries = [Param(name, str(value)[:6000]) for name, value in params.items()]
        for start in range(0, len(entries), 100):
            self.tracking.client().log_batch(self.run_id, params=entries[start : start + 100])

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags, 100 a request."""
        from mlflow.entities import RunTag

        entries = [RunTag(name, str(value)[:8000]) for name, value in tags.items()]
        for start in range(0, len(entries), 100):
            self.tracking.client().log_batch(self.run_id, tags=entries[start : start + 100])

    def log_text(self, text: str, path: str) -> None:
        """Log a text artifact under a path."""
        self.tracking.client().log_text(self.run_id, text, path)

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
) -> Iterator[StageRun]:
    """Open a run for a stage, with its resolved configuration as parameters and its inputs' fingerprints as tags.

    Args:
        tracking: where the run goes.
        stage: detect, tune, train, label, report.
        config: resolved sections ({"train": {...}}), logged flat.
        inputs: fingerprints of what the stage reads; logged as `firnline.input.<name>`, so lineage can be walked back.
        parent: the run that this one is nested in.
        name: the run's name; default: the stage's.

    The run ends FINISHED, FAILED where the body raised, KILLED where it was interrupted.
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
    client = tracking.client()
    run = StageRun(tracking, client.create_run(tracking.experiment_id(), tags=tags).info.run_id)
    run.log_params(dict(flatten(config)))
    status = "FAILED"
    try:
        yield run
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        client.set_terminated(run.run_id, status=status)


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
    if _missing_database(tracking) is not None:
        return []
    client = tracking.client()
    experiment = client.get_experiment_by_name(tracking.experiment)
    if experiment is None:
        return []
    found = []
    token = None
    while True:
        page = client.search_runs(
            [experiment.experiment_id],
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


def register_model(run: StageRun, model_uri: str, model_name: str, *, tags: Mapping[str, str]) -> str:
    """Register a logged model under a name and return its version."""
    from mlflow.exceptions import MlflowException

    client = run.tracking.client()
    with contextlib.suppress(MlflowException):
        client.create_registered_model(model_name)
    with _as_default(run.tracking):
        version = client.create_model_version(
            model_name,
            source=model_uri,
            run_id=run.run_id,
            tags=dict(tags),
            # The server asks for the logged model's id beside its own address models:/<id>.
            model_id=model_uri.removeprefix("models:/"),
        )
    return str(version.version)


def alias_version(tracking: Tracking, model_name: str, alias: str) -> Any | None:
    """Return the model version an alias points to; None where there is none."""
    from mlflow.exceptions import MlflowException

    try:
        return tracking.client().get_model_version_by_alias(model_name, alias)
    except MlflowException:
        return None


def last_trained_version(tracking: Tracking, model_name: str) -> Any | None:
    """Return the newest version of a model that a run of this experiment registered; None where there is none."""
    client = tracking.client()
    experiment_id = tracking.experiment_id()
    versions = client.search_model_versions(f"name='{model_name}'", max_results=1000)
    for version in sorted(versions, key=lambda version: int(version.version), reverse=True):
        if version.run_id and client.get_run(version.run_id).info.experiment_id == experiment_id:
            return version
    return None


def set_alias(tracking: Tracking, model_name: str, alias: str, version: str) -> None:
    """Point an alias at a version."""
    tracking.client().set_registered_model_alias(model_name, alias, version)


def download_artifact(tracking: Tracking, uri: str, folder: Path) -> Path:
    """Download a `models:/` or `runs:/` artifact into a folder and return its local path.

    Raises:
        InputError: there is no such model or artifact.
    """
    from mlflow.exceptions import MlflowException

    database = _missing_database(tracking)
    if database is not None and uri.startswith(("models:/", "runs:/")):
        raise InputError(f"the model {uri} cannot be read from MLflow: there is no {database}")
    try:
        # The arguments of download_artifacts do not reach the lookup of a model's version.
        with _as_default(tracking) as mlflow:
            return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder)))
    except (MlflowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"the model {uri} cannot be read from MLflow: {reason}") from None


@contextlib.contextmanager
def fluent_run(run: StageRun) -> Iterator[Any]:
    """Make a run the active one of MLflow's fluent interface, which alone logs models; yields the mlflow module."""
    with _as_default(run.tracking) as mlflow, mlflow.start_run(run_id=run.run_id):
        yield mlflow


@contextlib.contextmanager
def _as_default(tracking: Tracking) -> Iterator[Any]:
    """Make an address MLflow's own default, which parts of it use whatever the client's, for a while."""
    import mlflow

    before = {name: os.environ.get(name) for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")}
    try:
        mlflow.set_tracking_uri(tracking.uri)
        mlflow.set_registry_uri(tracking.uri)
        yield mlflow
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
        mlflow.set_registry_uri(None)  # type: ignore[arg-type]
        # MLflow writes both to the environment, for child processes, and takes only the first of them back.
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
