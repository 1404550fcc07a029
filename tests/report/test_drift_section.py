"""What the report says of drift, and which clustering its tables name."""

from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from pipelines.report.stage_drift import MAX_LINES, drift_section
from pipelines.workspace.artifacts import DriftRecord, DriftRow
from pipelines.workspace.storage import open_store
from pipelines.workspace.workspace import Workspace

JANUARY_NS = pd.Timestamp("2020-01-01", tz="UTC").value


def row(station: str, month: str, *reasons: str, noise_db: float | None = 0.5) -> DriftRow:
    return DriftRow(
        station=station,
        month=month,
        events=1200,
        reference_events=600,
        own_reference=True,
        far_share=0.12,
        reference_far_share=0.01,
        distance_ratio=1.5,
        balance=0.25,
        noise_db=noise_db,
        reasons=reasons,
    )


def record(*rows: DriftRow) -> DriftRecord:
    events = sum(one.events for one in rows)
    return DriftRecord(
        clustering="a" * 64,
        first_ns=JANUARY_NS,
        last_ns=JANUARY_NS + 9 * 86_400 * 10**9,
        reference_events=600,
        events=events,
        rows=rows,
    )


def test_the_section_says_what_has_changed_first_and_why_retraining_is_advised(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    assert "not written by the present label stage" in drift_section(store)[0][0]
    record().write(store)
    words, lines = drift_section(store)
    assert words == (
        "The clustering was fitted on 600 detections from 2020-01-01 to 2020-01-10, which are all there are. Later "
        "ones will be compared with these.",
    )
    assert not lines
    record(row("AW.A", "2020-03"), row("AW.B", "2020-02", "it is new", noise_db=-12.0), row("AW.A", "2021-01")).write(
        store
    )
    words, lines = drift_section(store)
    assert words[1].startswith("Retraining is advised: 1 of 3 months of a station differ")
    assert [(line.station, line.month) for line in lines] == [
        ("AW.B", "2020-02"),
        ("AW.A", "2021-01"),
        ("AW.A", "2020-03"),
    ]
    assert (lines[0].far, lines[0].noise, lines[0].reasons) == ("12\u00a0% (1.0\u00a0%)", "\u221212.0", ("it is new",))
    many = [row("AW.A", f"{year}-{month:02}", noise_db=None) for year in range(2000, 2020) for month in range(1, 13)]
    record(*many).write(store)
    words, lines = drift_section(store)
    assert len(lines) == MAX_LINES
    assert words[1].startswith("None differs")
    assert (lines[0].month, lines[0].noise) == ("2019-12", "–")


def test_the_catalogue_names_its_clustering_and_the_page_has_a_section_on_drift(
    reported: tuple[Workspace, pd.DataFrame],
) -> None:
    store = reported[0].store
    metadata = pq.read_schema(store.full("catalog/2020-12.parquet")).metadata
    assert metadata[b"clustering"] == b"0123456789abcdef"
    page = store.read("report/index.html").decode()
    assert '<section id="drift">' in page
    assert "Nothing is known of drift" in page
