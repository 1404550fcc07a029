"""All that Firnline uses of MLflow beside its documented interface; a part that another version has moved is named.

`PARTS` lists the names; `tests/tracking/test_mlflow_private.py` looks each of them up in the MLflow that is installed.
"""

import importlib
from pathlib import Path
from typing import Any

from pipelines.runtime.errors import InputError

PARTS: dict[str, str] = {
    "mlflow.store.db.utils._all_tables_exist": "says whether a database holds all of MLflow's tables",
    "mlflow.store.db.utils._initialize_tables": "makes MLflow's tables in an empty database",
    "mlflow.store.db.utils.Base": "names MLflow's tables",
    "mlflow.store.db.utils.InitialBase": "names those that its first release made",
    "mlflow.store.artifact.utils.models.get_model_name_and_version": "resolves the URI of a registered model",
}
"""Names of MLflow, and what each is needed for."""

LOCATION_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Tables and columns of MLflow's database that hold addresses of artifacts."""

_MIGRATIONS = ("store", "db_migrations")


def has_all_tables(engine: Any) -> bool:
    """Return whether a database (an SQLAlchemy engine) holds all of MLflow's tables."""
    return bool(part("mlflow.store.db.utils._all_tables_exist")(engine))


def make_tables(engine: Any) -> None:
    """Make all of MLflow's tables in an empty database (an SQLAlchemy engine)."""
    part("mlflow.store.db.utils._initialize_tables")(engine)


def table_names() -> set[str]:
    """Return the names of all tables that MLflow's database may hold while it is made and afterwards."""
    bases = ("mlflow.store.db.utils.Base", "mlflow.store.db.utils.InitialBase")
    return {"alembic_version", *(table for name in bases for table in part(name).metadata.tables)}


def model_name_and_version(client: Any, uri: str) -> tuple[str, ...]:
    """Return name and version of a `models:/` URI, or the id alone of a logged model without a version."""
    return tuple(part("mlflow.store.artifact.utils.models.get_model_name_and_version")(client, uri))


def migrations_folder() -> Path:
    """Return the folder with MLflow's migrations of its database."""
    mlflow: Any = importlib.import_module("mlflow")
    folder = Path(mlflow.__file__).parent.joinpath(*_MIGRATIONS)
    if not folder.is_dir():
        raise _moved("/".join(("mlflow", *_MIGRATIONS)))
    return folder


def part(name: str) -> Any:
    """Return a part of MLflow, one of PARTS; InputError where the installed MLflow does not have it."""
    try:
        if name.startswith("mlflow.store.db.utils."):
            return getattr(importlib.import_module("mlflow.store.db.utils"), name.rpartition(".")[2])
        return importlib.import_module("mlflow.store.artifact.utils.models").get_model_name_and_version
    except (ImportError, AttributeError):
        raise _moved(name) from None


def _moved(name: str) -> InputError:
    mlflow: Any = importlib.import_module("mlflow")
    return InputError(
        f"MLflow {mlflow.__version__} has no {name}, which Firnline uses; install the version in requirements.lock"
    )
