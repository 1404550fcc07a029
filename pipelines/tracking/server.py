"""Where MLflow is: a database in the workspace, or a server; it is checked before work starts.

Only this package imports `mlflow`, and only where it is used: the import takes seconds, and workers do not need it.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from pipelines.runtime.errors import InputError
from pipelines.runtime.redaction import scrub, without_secrets
from pipelines.tracking import mlflow_private, own_database
from pipelines.tracking.answers import AnsweringClient, TrackingFailed
from pipelines.tracking.new_database import is_half_made, make_database, schema_of
from pipelines.workspace.workspace import Workspace

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
# When a run ends, MLflow prints its address with the server's password in it.
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """Where runs go: the tracking URI and the experiment's name."""

    uri: str
    experiment: str
    artifact_location: str | None = None
    workspace: str | None = None
    """What tells this workspace's runs from those of others in the experiment: its URL, empty in its own database."""

    def client(self) -> Any:
        """Return an MlflowClient for the URI; its calls raise TrackingFailed where MLflow does not answer."""
        from mlflow import MlflowClient

        made = missing_database(self)
        if made is not None:
            make_database(made)
        return AnsweringClient(MlflowClient(tracking_uri=self.uri, registry_uri=self.uri), self.uri)

    def experiment_id(self) -> str:
        """Return the experiment's id; it is created if it does not exist, or made again if it was deleted."""
        from mlflow.exceptions import MlflowException

        client = self.client()
        name, found = self._look_up(client)
        if found is None:
            try:
                return str(client.create_experiment(name, artifact_location=self.artifact_location))
            except MlflowException:
                # Another job has created it meanwhile.
                _, found = self._look_up(client)
                if found is None:
                    raise
        return str(found.experiment_id)

    def find_experiment(self) -> str | None:
        """Return the experiment's id; None where it does not exist or was deleted."""
        _, found = self._look_up(self.client())
        return None if found is None else str(found.experiment_id)

    def _look_up(self, client: Any) -> tuple[str, Any | None]:
        """Return the name under which the experiment is, or can be created, and the experiment.

        MLflow keeps the name of a deleted experiment, so that the next one is called `NAME (2)`.
        """
        number, name = 1, self.experiment
        while True:
            found = client.get_experiment_by_name(name)
            if found is None or found.lifecycle_stage == "active":
                return name, found
            number += 1
            name = f"{self.experiment} ({number})"


def open_tracking(workspace: Workspace, uri: str | None, experiment: str | None, *, write: bool = True) -> Tracking:
    """Return the tracking for a workspace and check that it answers.

    Args:
        workspace: gives the default: `mlflow.db` and `mlartifacts/` inside a local workspace.
        uri: the --mlflow flag; else MLFLOW_TRACKING_URI.
        experiment: its name; default: firnline and the workspace's URL, or its folder's name in its own database, as
            they were when the workspace was new.
        write: the caller means to log; False leaves the database of a workspace that was moved as it is.

    Raises:
        InputError: no URI for a bucket workspace, or the server does not answer or refuses our credentials, or the
            database cannot be opened, is not a database, or has a schema that MLflow refuses.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or None
    if uri is None:
        if not workspace.store.is_local:
            raise InputError(f"the workspace {workspace.url} is a bucket: give --mlflow URI or MLFLOW_TRACKING_URI")
        root = Path(workspace.url)
        database = f"sqlite:///{root / 'mlflow.db'}"
        name = f"firnline {root.name}"
        if workspace.store.exists("mlflow.db"):
            _check_database(database, write=write)
        if workspace.store.exists("mlflow.db"):
            name = own_database.experiment_in(root / "mlflow.db", name)
            if write:
                own_database.move_artifacts(root / "mlflow.db", _artifact_location(workspace))
        own = _artifact_location(workspace)
        return Tracking(uri=database, experiment=experiment or name, artifact_location=own, workspace="")
    _check_answers(uri, write=write)
    # Many workspaces share a server, and several of them may be called "workspace".
    name = experiment or workspace.read_state().experiment or f"firnline {workspace.url}"
    # A database keeps no artifacts, and MLflow's default for them is the current folder.
    artifacts = None if uri.startswith("http") else _artifact_location(workspace)
    tracking = Tracking(uri=uri, experiment=name, artifact_location=artifacts, workspace=workspace.url)
    if uri.startswith("http"):
        _check_admits(tracking)
    return tracking


def _artifact_location(workspace: Workspace) -> str:
    if workspace.store.is_local:
        return (Path(workspace.url) / "mlartifacts").as_uri()
    return workspace.store.full("mlartifacts")


def _check_answers(uri: str, *, write: bool) -> None:
    import requests

    try:
        scheme = urlparse(uri).scheme
    except ValueError as error:
        raise InputError(
            f"MLflow URI {without_secrets(uri)!r} is not a valid URI: {scrub(str(error), [uri])}"
        ) from None
    if scheme in ("http", "https"):
        try:
            answer = requests.get(f"{uri.rstrip('/')}/health", timeout=10)
        except requests.RequestException as error:
            raise InputError(f"MLflow at {without_secrets(uri)} does not answer: {type(error).__name__}") from None
        if answer.status_code != 200:
            raise InputError(f"MLflow at {without_secrets(uri)} answers {answer.status_code} to /health")
    elif scheme.partition("+")[0] in ("sqlite", "postgresql", "mysql", "mssql"):
        _check_database(uri, write=write)
    else:
        raise InputError(f"MLflow URI {without_secrets(uri)!r}: give http(s)://, sqlite:/// or another database URI")


def _check_admits(tracking: Tracking) -> None:
    """Raise InputError where a server that answers refuses to look up the experiment; nothing is created."""
    from mlflow.exceptions import MlflowException

    try:
        tracking.client().get_experiment_by_name(tracking.experiment)
    except (MlflowException, TrackingFailed) as error:
        reason = scrub(" ".join(str(getattr(error, "reason", error)).split()), [tracking.uri])
        raise InputError(
            f"MLflow at {without_secrets(tracking.uri)} refuses to look up the experiment {tracking.experiment!r} "
            f"({reason}); are MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, right?"
        ) from None


def _check_database(uri: str, *, write: bool) -> None:
    """Raise InputError at once where MLflow could not use a database; MLflow itself would try for half a minute.

    A sqlite file that was left half made holds nothing, and is removed where the caller means to `write`.
    """
    from sqlalchemy import create_engine, exc

    sqlite_file = _sqlite_file(uri)
    if sqlite_file is not None and not sqlite_file.parent.is_dir():
        raise InputError(
            f"MLflow's database {without_secrets(uri)} cannot be opened: {sqlite_file.parent} is not a folder"
        )
    made = sqlite_file if sqlite_file is not None and not sqlite_file.exists() else None
    try:
        engine = create_engine(uri)
        if sqlite_file is not None and made is None and is_half_made(engine):
            if not write:
                raise InputError(
                    f"MLflow's database {without_secrets(uri)} was left half made and holds nothing; remove it"
                )
            made = sqlite_file
            print(f"MLflow's database {sqlite_file} was left half made and holds nothing; it is made again", flush=True)
        else:
            _check_schema(engine, uri)
        engine.dispose()
    except (exc.SQLAlchemyError, ImportError) as error:
        reason = scrub(" ".join(str(getattr(error, "orig", None) or error).split()), [uri])
        raise InputError(f"MLflow's database {without_secrets(uri)} cannot be opened: {reason}") from None
    finally:
        if made is not None:
            made.unlink(missing_ok=True)


def _check_schema(engine: Any, uri: str) -> None:
    """Raise InputError where MLflow would refuse a database's schema; nothing is created or upgraded."""
    import mlflow

    revision, migrations = schema_of(engine)
    newest = migrations.get_current_head()
    if revision in (None, newest):
        return
    database = f"MLflow's database {without_secrets(uri)}"
    if revision not in {script.revision for script in migrations.walk_revisions()}:
        raise InputError(f"{database} has the schema {revision}, which MLflow {mlflow.__version__} does not know")
    # If tables are missing, MLflow upgrades the database itself.
    if mlflow_private.has_all_tables(engine):
        raise InputError(f"{database} has the old schema {revision}: run mlflow db upgrade on it, for {newest}")


def _sqlite_file(uri: str) -> Path | None:
    """Return the file of a sqlite URI; None for another URI or a database in memory."""
    name = urlparse(uri).path[1:] if uri.startswith("sqlite") else ""
    return Path(name) if name else None


def missing_database(tracking: Tracking) -> Path | None:
    """Return the sqlite file if it does not exist: MLflow would create it, even for somebody who only reads."""
    database = _sqlite_file(tracking.uri)
    return database if database is not None and not database.exists() else None


@contextlib.contextmanager
def as_default(tracking: Tracking) -> Iterator[Any]:
    """Make an address MLflow's default inside the block: parts of MLflow use the default, not the client's address."""
    import mlflow

    before = {name: os.environ.get(name) for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")}
    try:
        mlflow.set_tracking_uri(tracking.uri)
        mlflow.set_registry_uri(tracking.uri)
        yield mlflow
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
        mlflow.set_registry_uri(None)  # type: ignore[arg-type]
        # MLflow sets both variables for child processes, and unsets only the first of them.
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
