"""MLflow's sqlite database is made whole or not at all, and one that somebody else left half made is made again."""

import os
import tempfile
from pathlib import Path
from typing import Any

from pipelines.tracking import mlflow_private
from pipelines.workspace.disk import umask
from pipelines.workspace.storage_errors import StorageFailed, reason_of

_MADE_FIRST = ("experiments", "runs")
"""Tables that hold rows wherever anything was ever logged."""


def make_database(file: Path) -> None:
    """Make MLflow's tables in a new sqlite file, which is seen when all are there; one that is there meanwhile stays.

    MLflow makes its tables one after the other, and refuses for ever a file in which a kill has left half of them.

    Raises:
        StorageFailed: it cannot be written.
    """
    from sqlalchemy import create_engine, exc

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".partial-", suffix=".db", dir=file.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            engine = create_engine(f"sqlite:///{temporary}")
            mlflow_private.make_tables(engine)
            engine.dispose()
            temporary.chmod(0o666 & ~umask())
            _publish(temporary, file)
        finally:
            for left in (temporary, Path(f"{name}-journal")):
                left.unlink(missing_ok=True)
    except (OSError, exc.SQLAlchemyError) as error:
        reason = reason_of(getattr(error, "orig", None) or error)
        raise StorageFailed(f"MLflow's database {file} cannot be written: {reason}", reason) from None


def _publish(temporary: Path, file: Path) -> None:
    """Let a file be seen under its name, unless there is one."""
    try:
        os.link(temporary, file)
    except FileExistsError:
        return
    except OSError:
        # Not every file system has links.
        if not file.exists():
            temporary.replace(file)


def schema_of(engine: Any) -> tuple[str | None, Any]:
    """Return the revision of a database's schema (None without one), and MLflow's migrations (of alembic)."""
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    with engine.connect() as connection:
        revision = MigrationContext.configure(connection).get_current_revision()
    return revision, ScriptDirectory(str(mlflow_private.migrations_folder()))


def is_half_made(engine: Any) -> bool:
    """Return whether a database (an SQLAlchemy engine) that exists holds nothing, or tables of MLflow alone, all empty.

    One that MLflow has finished is of its newest schema, or holds an experiment at least.
    """
    from sqlalchemy import inspect, text

    tables = {name.removeprefix("_alembic_tmp_") for name in inspect(engine).get_table_names()}
    if tables - mlflow_private.table_names():
        return False
    revision, migrations = schema_of(engine)
    if revision == migrations.get_current_head():
        return False
    with engine.connect() as connection:
        return not any(
            connection.execute(text(f"select 1 from {name} limit 1")).first() for name in _MADE_FIRST if name in tables
        )
