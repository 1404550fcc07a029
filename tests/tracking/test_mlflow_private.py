"""The parts of MLflow beside its documented interface are where they were, and one that has moved is named."""

import ast
import importlib
from pathlib import Path

import mlflow
import pytest

from pipelines.runtime.errors import InputError
from pipelines.tracking import mlflow_private

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", mlflow_private.PARTS)
def test_every_private_part_of_mlflow_is_where_it_was(name):
    assert callable(mlflow_private.part(name))
    assert list(mlflow_private.migrations_folder().glob("versions/*.py"))


def test_every_column_with_addresses_of_artifacts_is_where_it_was():
    # The registry's tables join the same metadata.
    importlib.import_module("mlflow.store.model_registry.dbmodels.models")
    tables = importlib.import_module("mlflow.store.db.base_sql_model").Base.metadata.tables
    names = ("artifact_location", "artifact_uri", "storage_location")
    found = {(table, column.name) for table in tables for column in tables[table].columns if column.name in names}
    assert found | {("model_versions", "source")} == set(mlflow_private.LOCATION_COLUMNS)
    assert "source" in tables["model_versions"].columns


@pytest.mark.parametrize("name", mlflow_private.PARTS)
def test_a_part_of_mlflow_that_has_moved_is_named_with_the_version(name, monkeypatch):
    module, _, attribute = name.rpartition(".")
    monkeypatch.delattr(importlib.import_module(module), attribute)
    with pytest.raises(InputError, match=rf"MLflow {mlflow.__version__} has no {name}, which Firnline uses"):
        mlflow_private.part(name)


def test_migrations_that_have_moved_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(mlflow, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(InputError, match="has no mlflow/store/db_migrations"):
        mlflow_private.migrations_folder()


def test_no_other_module_uses_a_private_part_of_mlflow():
    public = ("mlflow", "mlflow.entities", "mlflow.exceptions", "mlflow.models", "mlflow.pyfunc", "mlflow.types")
    for path in [*(ROOT / "pipelines").rglob("*.py"), *(ROOT / "jobs").rglob("*.py")]:
        if path.name == "mlflow_private.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mlflow":
                assert node.module in public, path
                assert not [alias.name for alias in node.names if alias.name.startswith("_")], path
