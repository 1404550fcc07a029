"""docs/tutorial.ipynb runs as it is, from a folder of miniSEED to named clusters, and is stored with its pictures."""

from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from test_documentation import builder

FOLDERS = ds.partitioning(pa.schema([("network", pa.string()), ("station", pa.string())]), flavor="hive")
NOTEBOOK = Path(__file__).resolve().parent.parent / "docs" / "tutorial.ipynb"
CELLS_WITH_A_PICTURE = (3, 6, 8, 9)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def has_picture(cell: Any) -> bool:
    return any("image/png" in output.get("data", {}) for output in cell.outputs)


def test_the_tutorial_runs_and_ends_with_named_clusters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Two threads of a training on a machine with other work wait for each other.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    cells = code_cells(builder.run_tutorial(tmp_path))
    assert [number for number, cell in enumerate(cells, start=1) if has_picture(cell)] == list(CELLS_WITH_A_PICTURE)
    labels, events = (
        pd.read_parquet(tmp_path / "runs" / "tutorial" / table, partitioning=FOLDERS) for table in ("labels", "events")
    )
    assert sorted(labels["event_id"]) == sorted(events["event_id"])
    assert labels["cluster"].nunique() == 4
    names = labels.loc[labels["label_source"] == "cluster", "label"]
    assert len(names) > 0
    assert set(names) <= {"icequake", "earthquake", "spike", "tremor"}


def test_the_stored_tutorial_has_ten_cells_and_no_outputs() -> None:
    cells = code_cells(nbformat.read(NOTEBOOK, as_version=4))
    assert len(cells) == 10
    assert all(cell.execution_count is None and not cell.outputs for cell in cells)
