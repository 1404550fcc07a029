"""MLflow's databases: what cannot be used is said before work starts, and nothing is made by those who only read."""

import sqlite3

import pytest

from jobs import compare
from pipelines.runtime.errors import InputError
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


@pytest.mark.parametrize("uri", ["http://[::1", "http://me:secret@[::1", "ftp://me:secret@host/x"])
def test_a_malformed_uri_is_named_without_its_password(workspace, uri):
    with pytest.raises(InputError, match=f"MLflow URI '{uri[:3]}") as caught:
        open_tracking(workspace, uri, None)
    assert "secret" not in str(caught.value)


def test_comparing_makes_no_database(workspace, capsys):
    assert compare.main([workspace.url]) == 0
    assert "no finished labelling run" in capsys.readouterr().out
    assert [item.path for item in workspace.store.walk()] == ["workspace.json"]
