"""MLflow's databases: what cannot be used is said before work starts, and nothing is made by those who only read."""

import sqlite3
import subprocess
import sys

import pytest
from sqlalchemy import create_engine

from jobs import compare
from pipelines.runtime.errors import InputError
from pipelines.tracking import mlflow_private
from pipelines.tracking.new_database import is_half_made, make_database
from pipelines.tracking.runs import finished_runs
from pipelines.tracking.server import open_tracking
from pipelines.workspace.workspace import open_workspace


@pytest.fixture
def workspace(tmp_path):
    opened = open_workspace(str(tmp_path / "workspace"), create=True)
    opened.update_state()
    return opened


@pytest.mark.parametrize("default", [True, False], ids=["the workspace's", "another"])
def test_a_file_that_is_no_database_is_named(workspace, tmp_path, default):
    database = tmp_path / ("workspace/mlflow.db" if default else "garbage.db")
    database.write_bytes(b"garbage" * 1000)
    with pytest.raises(InputError, match=rf"MLflow's database sqlite:///{database} cannot be opened: .*database"):
        open_tracking(workspace, None if default else f"sqlite:///{database}", None)
    assert database.read_bytes() == b"garbage" * 1000


def test_a_schema_that_mlflow_refuses_is_said_and_left(workspace, tmp_path):
    tracking = open_tracking(workspace, None, "runs")
    tracking.experiment_id()
    assert finished_runs(open_tracking(workspace, None, "runs"), "label") == []
    # The first is one of MLflow's own migrations.
    for schema, sentence in (("75868b020152", "run mlflow db upgrade"), ("0000", "has the schema 0000, which MLflow")):
        with sqlite3.connect(tmp_path / "workspace" / "mlflow.db") as connection:
            connection.execute("update alembic_version set version_num = ?", [schema])
        connection.close()
        before = (tmp_path / "workspace" / "mlflow.db").read_bytes()
        with pytest.raises(InputError, match=sentence) as caught:
            open_tracking(workspace, None, "runs")
        assert "\n" not in str(caught.value)
        assert (tmp_path / "workspace" / "mlflow.db").read_bytes() == before


KILLED_WHILE_IT_MAKES_A_DATABASE = """
import os, sys
from sqlalchemy import create_engine, event
from pipelines.tracking import mlflow_private

engine = create_engine(f"sqlite:///{sys.argv[1]}")

@event.listens_for(engine, "before_cursor_execute")
def count(connection, cursor, statement, *rest):
    if statement.lstrip().upper().startswith("CREATE TABLE"):
        count.left -= 1
        if not count.left:
            os._exit(9)

count.left = int(sys.argv[2])
mlflow_private.make_tables(engine)
"""


@pytest.mark.parametrize("tables", [1, 3, 12, 25, 40])
def test_a_database_that_a_kill_left_half_made_is_made_again(workspace, tmp_path, capsys, tables):
    """As MLflow makes it, in the file itself; with sqlite the tables before the kill stay."""
    database = tmp_path / "workspace" / "mlflow.db"
    code = [sys.executable, "-c", KILLED_WHILE_IT_MAKES_A_DATABASE, str(database), str(tables)]
    assert subprocess.run(code).returncode == 9
    with pytest.raises(InputError, match=rf"database sqlite:///{database} was left half made and holds nothing"):
        open_tracking(workspace, None, "runs", write=False)
    tracking = open_tracking(workspace, None, "runs")
    assert "was left half made" in capsys.readouterr().out
    tracking.client().create_run(tracking.experiment_id())
    assert len(finished_runs(open_tracking(workspace, None, "runs"), "label")) == 0
    assert len(tracking.client().search_runs([tracking.experiment_id()])) == 1


def test_a_database_is_seen_when_it_is_whole_and_one_that_is_there_stays(tmp_path):
    database = tmp_path / "mlflow.db"
    make_database(database)
    engine = create_engine(f"sqlite:///{database}")
    assert mlflow_private.has_all_tables(engine)
    assert not is_half_made(engine)
    engine.dispose()
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]
    before = database.read_bytes()
    make_database(database)
    assert database.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


def test_another_programs_tables_are_left(tmp_path):
    with sqlite3.connect(tmp_path / "other.db") as connection:
        connection.execute("create table runs (name text)")
        connection.execute("create table theirs (name text)")
    connection.close()
    engine = create_engine(f"sqlite:///{tmp_path / 'other.db'}")
    assert not is_half_made(engine)
    engine.dispose()


@pytest.mark.parametrize("uri", ["http://[::1", "http://me:secret@[::1", "ftp://me:secret@host/x"])
def test_a_malformed_uri_is_named_without_its_password(workspace, uri):
    with pytest.raises(InputError, match=f"MLflow URI '{uri[:3]}") as caught:
        open_tracking(workspace, uri, None)
    assert "secret" not in str(caught.value)


def test_comparing_makes_no_database(workspace, capsys):
    assert compare.main([workspace.url]) == 0
    assert "no finished labelling run" in capsys.readouterr().out
    assert [item.path for item in workspace.store.walk()] == ["workspace.json"]
