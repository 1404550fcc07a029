"""docs/reading-the-tables.md: its calls run as they stand, on a workspace with a station `0101`."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipelines.workspace.workspace import Workspace

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "reading-the-tables.md"
Rows = tuple[Workspace, pd.DataFrame]


@pytest.fixture(scope="module")
def blocks() -> dict[str, list[str]]:
    """The Python blocks of the guide by the heading that they stand under."""
    found: dict[str, list[str]] = {}
    heading = ""
    for part in re.split(r"^(## [^\n]*|```python\n.*?^```$)", GUIDE.read_text(encoding="utf-8"), flags=re.M | re.S):
        if part.startswith("## "):
            heading = part.removeprefix("## ")
        elif part.startswith("```python"):
            found.setdefault(heading, []).append(part.removeprefix("```python\n").removesuffix("```"))
    return found


@pytest.fixture
def demo(reported: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    """Stand in a folder that has the workspace as runs/demo; return its rows."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(reported[0].url)
    monkeypatch.chdir(tmp_path)
    return reported[1]


def run(blocks: list[str], **names: Any) -> dict[str, Any]:
    for block in blocks:
        exec(block, names)
    return names


def test_pandas_reads_every_table_with_0101_as_text(blocks: dict[str, list[str]], demo: pd.DataFrame) -> None:
    found = run(blocks["pandas"])
    assert set(found["table"]["event_id"]) == set(demo["event_id"])
    assert set(found["embeddings"]["station"]) == {"VNA1", "VNA2", "0101"}
    expected = demo.groupby(["station", "cluster"]).size()
    assert found["by_station"].to_dict() == expected.to_dict()
    assert set(found["one_station"]["event_id"]) == set(demo.loc[demo["station"] == "0101", "event_id"])
    assert found["vectors"].shape == (len(demo), 16)
    peaks = demo.set_index("event_id")["peak_amplitude"].to_dict()
    assert found["peak"] == pytest.approx(peaks)


def test_polars_reads_every_table_with_0101_as_text(blocks: dict[str, list[str]], demo: pd.DataFrame) -> None:
    pytest.importorskip("polars", reason="polars is not installed")
    found = run(blocks["Polars"])
    assert set(found["one_station"]["event_id"]) == set(demo.loc[demo["station"] == "0101", "event_id"])
    assert set(found["embeddings"].collect()["station"]) == {"VNA1", "VNA2", "0101"}
    expected = demo.groupby("cluster").agg(events=("event_id", "size"), snr_db=("snr_db", "median"))
    assert found["by_cluster"]["events"].to_list() == expected["events"].tolist()
    assert found["by_cluster"]["snr_db"].to_list() == pytest.approx(expected["snr_db"].tolist())
    assert found["vectors"].shape == (len(demo), 16)


def test_duckdb_reads_every_table_with_0101_as_text(blocks: dict[str, list[str]], demo: pd.DataFrame) -> None:
    pytest.importorskip("duckdb", reason="duckdb is not installed")
    found = run(blocks["DuckDB"])
    of_station = demo[demo["station"] == "0101"].sort_values("onset")
    assert [event_id for (event_id,) in found["one_station"]] == of_station["event_id"].tolist()
    expected = demo.groupby("cluster").agg(events=("event_id", "size"), snr_db=("snr_db", "median")).reset_index()
    np.testing.assert_allclose(np.array(found["by_cluster"], dtype=float), expected.to_numpy(dtype=float), rtol=1e-6)
    stations = found["connection"].sql("SELECT DISTINCT station FROM embeddings").fetchall()
    assert {station for (station,) in stations} == {"VNA1", "VNA2", "0101"}


def test_obspy_reads_the_catalogue_and_a_row_becomes_a_stream(blocks: dict[str, list[str]], demo: pd.DataFrame) -> None:
    found = run([*blocks["ObsPy"], *blocks["From the catalogue to the detections"]], pd=pd)
    assert found["stations"] == {"VNA1", "VNA2", "0101"}
    assert sum(len(event.picks) for event in found["catalog"]) == len(demo)
    assert set(found["picks"]["event_id"]) <= set(demo["event_id"])
    stream = found["stream"]
    assert [trace.id for trace in stream] == ["AW.VNA1..HHE", "AW.VNA1..HHN", "AW.VNA1..HHZ"]
    first = demo[demo["station"] == "VNA1"].sort_values("onset").iloc[0]
    assert stream[0].stats.starttime.ns == first["onset"].as_unit("ns").value - 1_500_000_000


def test_the_folders_types_cannot_be_left_to_guessing(demo: pd.DataFrame) -> None:
    pl = pytest.importorskip("polars", reason="polars is not installed")
    guessed = pl.read_parquet("runs/demo/embeddings/network=XX/*/*.parquet", hive_partitioning=True)
    assert guessed["station"].dtype != pl.String
