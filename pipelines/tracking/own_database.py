"""The MLflow database that lies in a workspace goes where its folder goes: moved, renamed or copied."""

import contextlib
import sqlite3
from pathlib import Path

from pipelines.tracking.mlflow_private import LOCATION_COLUMNS
from pipelines.workspace.storage_errors import StorageFailed

_OURS = "firnline "


def experiment_in(database: Path, name: str) -> str:
    """Return the experiment of a workspace's database: `name`, or the one that it was given under another folder name.

    Args:
        database: the sqlite file.
        name: what the experiment of a new workspace is called.
    """
    with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
        rows = connection.execute("select name from experiments where lifecycle_stage = 'active' order by rowid")
        names = [str(row[0]) for row in rows]
    if name in names:
        return name
    return next((known for known in reversed(names) if known.startswith(_OURS)), name)


def move_artifacts(database: Path, location: str) -> None:
    """Let a database say that its artifacts lie in the workspace that it lies in, where it says another place.

    MLflow stores absolute addresses. Without this, the figures and models of a moved workspace are not found, and a
    copied one writes into the original.

    Args:
        database: the sqlite file.
        location: the address of the workspace's own folder of artifacts, whose name says which places are meant.

    Raises:
        StorageFailed: the database cannot be written.
    """
    name = "/" + location.rpartition("/")[2]
    try:
        with contextlib.closing(sqlite3.connect(database, timeout=30)) as connection, connection:
            rows = connection.execute("select distinct artifact_location from experiments").fetchall()
            before = [str(row[0]) for row in rows if str(row[0]).endswith(name) and row[0] != location]
            for old in before:
                for table, column in LOCATION_COLUMNS:
                    connection.execute(
                        f"update {table} set {column} = ? || substr({column}, ?) "
                        f"where {column} = ? or substr({column}, 1, ?) = ?",
                        (location, len(old) + 1, old, len(old) + 1, f"{old}/"),
                    )
    except sqlite3.Error as error:
        raise StorageFailed(f"MLflow's database {database} cannot be written: {error}", str(error)) from None
