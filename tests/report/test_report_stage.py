"""The whole report of a small workspace: on a disk, in a bucket, again, and where something is missing."""

import html
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import obspy
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import report as job
from pipelines import config
from pipelines.config.report import CatalogSettings
from pipelines.report.stage import ReportResult, write_report
from pipelines.report.stage_catalogue import write_catalog
from pipelines.report.stage_inputs import label_files
from pipelines.report.stage_summary import summarise_files, summarise_labels
from pipelines.report.summary import LabelSummary, SummarySize, merge
from pipelines.runtime.errors import InputError
from pipelines.workspace import schemas, tables
from pipelines.workspace.ledger import list_markers, marker_path
from pipelines.workspace.workspace import Workspace, open_workspace

Make = Callable[..., tuple[Workspace, pd.DataFrame]]
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


class Reader(HTMLParser):
    """Collects what a browser would fetch, the identifiers, and whether every element is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.figures = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.figures += tag == "figure"
        for name, value in attrs:
            if name in ("src", "xlink:href", "srcset", "data") and value:
                self.fetched.append(value)
            if name == "href" and value:
                (self.fetched if tag in ("link", "image", "use") else self.links).append(value)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read_page(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    return reader


SMALL_REPORT = {
    "nearest_per_cluster": 1,
    "random_per_cluster": 1,
    "boundary_per_cluster": 0,
    "map_events": 60,
    "map_method": "pca",
}


def make_report(workspace: Workspace) -> ReportResult:
    return write_report(workspace, config.resolve({"report": SMALL_REPORT}), None)


def test_the_page_opens_without_a_network_and_shows_every_cluster(reported: tuple[Workspace, pd.DataFrame]) -> None:
    workspace, rows = reported
    text = (Path(workspace.url) / "report" / "index.html").read_text(encoding="utf-8")
    page = read_page(text)
    assert all(address.startswith(("data:image/png", "#")) for address in page.fetched)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    # Two events of each cluster; activity, hours and months, spectra, distributions, coverage, map.
    assert page.figures == 3 * 2 + 6
    assert len(text) < 8_000_000
    for cluster, count in rows["cluster"].value_counts().items():
        assert f'id="cluster-{cluster}"' in text
        assert f'<td class="number">{count}</td>' in text
    folder = Path(workspace.url) / "report"
    files = [link for link in page.links if link.startswith("../catalog/")]
    assert len(files) == 8
    assert all((folder / link).is_file() for link in files)


def test_the_catalogue_has_each_event_of_the_definition_once_and_every_detection_as_a_pick(
    reported: tuple[Workspace, pd.DataFrame],
) -> None:
    workspace, rows = reported
    # The definition: the first detection that is free takes all that follow within 30 s, at any station.
    expected: dict[str, set[str]] = {}
    opened = pd.Timestamp(0, tz="UTC")
    for event_id, onset in rows.sort_values("onset")[["event_id", "onset"]].itertuples(index=False):
        if onset - opened > pd.Timedelta(seconds=30):
            opened, first = onset, event_id
        expected.setdefault(first, set()).add(event_id)
    assert any(len(members) > 1 for members in expected.values())
    files = sorted((Path(workspace.url) / "catalog").glob("*.parquet"))
    assert [file.stem for file in files] == ["2020-12", "2021-01"]
    found = pd.concat(pq.read_table(file).to_pandas() for file in files)
    assert dict(zip(found["catalog_id"], found["event_ids"].map(set), strict=True)) == expected
    for file in files:
        catalog = obspy.read_events(str(file.with_suffix(".xml")))
        of_month = found[found["onset"].dt.strftime("%Y-%m") == file.stem]
        assert len(catalog) == len(of_month)
        picks = {pick.resource_id.id.rpartition("/")[2]: pick for event in catalog for pick in event.picks}
        assert set(picks) == set().union(*of_month["event_ids"])
        times = rows.set_index("event_id")["onset"]
        for event_id, pick in picks.items():
            assert pick.time.ns == times[event_id].value // 1000 * 1000
            assert pick.waveform_id.get_seed_string() == f"{'.'.join(event_id.split('.')[:3])}.HHZ"


def test_a_second_report_writes_the_same_bytes_and_removes_what_is_stale(new_workspace: Make) -> None:
    workspace, _ = new_workspace(events_per_file=4)
    make_report(workspace)
    first = {item.path: workspace.store.read(item.path) for item in workspace.store.walk("catalog")}
    page = workspace.store.read("report/index.html")
    workspace.store.write("catalog/1999-01.csv", b"stale")
    for name in list_markers(workspace.store, "report"):
        workspace.store.remove(marker_path("report", name))
    make_report(workspace)
    assert {item.path: workspace.store.read(item.path) for item in workspace.store.walk("catalog")} == first
    assert workspace.store.read("report/index.html") == page


def test_a_report_that_is_done_is_not_made_again_until_labels_or_settings_change(
    new_workspace: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace, _ = new_workspace(events_per_file=3)
    first = make_report(workspace)
    workspace.store.write("report/index.html", b"untouched")
    assert make_report(workspace) == first
    assert "nothing to do" in capsys.readouterr().out
    assert workspace.store.read("report/index.html") == b"untouched"
    other = config.resolve({"report": SMALL_REPORT, "catalog": {"min_stations": 2}})
    with pytest.raises(InputError, match=r"catalog\.min_stations"):
        write_report(workspace, other, None)
    fewer = write_report(workspace, other, None, replace=True)
    assert fewer.catalog_events < first.catalog_events
    table = tables.list_shards(workspace.store, "labels")[0]
    workspace.store.remove(table.path)
    assert write_report(workspace, other, None).events == first.events - 3
    assert len(list(list_markers(workspace.store, "report"))) == 1


def test_the_summary_of_all_files_is_that_of_the_files_one_by_one(small_workspace: tuple[Workspace, object]) -> None:
    store = small_workspace[0].store
    size = SummarySize(per_role=3, sample=50)
    files = [item.path.removeprefix("labels/") for item in tables.list_shards(store, "labels")]
    whole = summarise_files(store, files, size)
    parts = [summarise_files(store, files[start : start + 4], size) for start in range(0, len(files), 4)]
    backwards: LabelSummary = parts[-1]
    for part in parts[-2::-1]:
        backwards = merge(backwards, part, size)
    for field in ("groups", "sample", "files"):
        pd.testing.assert_frame_equal(getattr(whole, field), getattr(backwards, field))
    pd.testing.assert_series_equal(whole.by_cluster.counts, backwards.by_cluster.counts)


def test_ray_tasks_write_the_same_catalogue(
    ray_cluster: object,
    reported: tuple[Workspace, pd.DataFrame],
    fill_workspace: Callable[..., pd.DataFrame],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        tables, "by_task", lambda files: [files[start : start + 2] for start in range(0, len(files), 2)]
    )
    workspace = open_workspace(str(tmp_path / "tasks"), create=True)
    fill_workspace(workspace.store)
    summary = summarise_labels(workspace.store, label_files(workspace), SummarySize(per_role=1, sample=9))
    written, _ = write_catalog(workspace, CatalogSettings(), summary, 30.0)
    assert len(written) == 8
    for path in written:
        assert workspace.store.read(path) == reported[0].store.read(path)


def test_a_workspace_in_a_bucket_gets_the_same_catalogue(
    reported: tuple[Workspace, pd.DataFrame], fill_workspace: Callable[..., pd.DataFrame], moto_s3: object
) -> None:
    workspace, _ = reported
    bucket = open_workspace(f"{moto_s3.url}/archive/neumayer", create=True)  # type: ignore[attr-defined]
    bucket.update_state()
    fill_workspace(bucket.store)
    make_report(bucket)
    for item in workspace.store.walk("catalog"):
        assert bucket.store.read(item.path) == workspace.store.read(item.path)
    text = bucket.store.read("report/index.html").decode()
    read_page(text)
    assert f"aws s3 cp --recursive {bucket.url}/catalog catalog" in text


def test_one_event_a_station_without_embeddings_markers_or_scores_still_gives_a_report(new_workspace: Make) -> None:
    workspace, rows = new_workspace(events_per_file=1, by_hand=False)
    for folder in ("embeddings", "ledger"):
        workspace.store.remove_folder(folder)
    assert make_report(workspace).events == len(rows)
    text = workspace.store.read("report/index.html").decode()
    read_page(text)
    assert "nothing can be said about how well" in text
    assert "A map needs the embeddings of at least 10 events" in text
    assert "it is not known what was recorded" in text


def test_events_detected_after_the_labelling_are_counted_in_the_page_and_on_the_screen(
    new_workspace: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace, rows = new_workspace(events_per_file=8)
    store = workspace.store
    # Never labelled: the last day of each station, and two events of another file.
    for network, station in (("AW", "VNA1"), ("AW", "VNA2"), ("XX", "0101")):
        store.remove(tables.shard_path("labels", network, station, "2021-01-01"))
    grown = tables.shard_path("labels", "AW", "VNA1", "2020-12-30")
    tables.write_table(store, grown, tables.read_table(store, grown).slice(2))
    # Labelled, and then gone: one event of a file, and a whole file.
    shrunk = tables.shard_path("events", "AW", "VNA2", "2020-12-30")
    tables.write_table(store, shrunk, tables.read_table(store, shrunk).slice(1))
    store.remove(tables.shard_path("events", "XX", "0101", "2020-12-30"))
    make_report(workspace)
    said = " ".join(capsys.readouterr().out.split())
    page = html.unescape(" ".join(store.read("report/index.html").decode().split()))
    own = rows[(rows["station"] == "VNA1") & (rows["onset"].dt.strftime("%F") == "2020-12-30")]
    late = rows[rows["onset"].dt.strftime("%F") == "2021-01-01"]
    first, last = own["onset"].iloc[0], late["onset"].max()
    for text in (said, page):
        assert "26 of 63 events have no label and are not in this report" in text
        assert f"with onsets from {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC" in text
        assert f"run firnline label {workspace.url}, then firnline report {workspace.url}" in text
        assert "9 labels whose event is no longer in events/ are left out" in text
    # Said again where there is nothing to do, and no more once every event has its label.
    make_report(workspace)
    assert "26 of 63 events have no label" in capsys.readouterr().out


def test_embeddings_that_are_all_the_same_give_a_sentence_and_no_map(new_workspace: Make) -> None:
    workspace, rows = new_workspace(events_per_file=4)
    for item in tables.list_shards(workspace.store, "embeddings"):
        table = tables.read_table(workspace.store, item.path)
        same = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(16 * len(table), np.float32)), 16)
        table = pa.table([table["event_id"], same], schema=schemas.embeddings_schema(16))
        tables.write_table(workspace.store, item.path, table)
    write_report(workspace, config.resolve({"report": {**SMALL_REPORT, "map_method": "tsne"}}), None)
    text = workspace.store.read("report/index.html").decode()
    assert f"the embeddings of the {len(rows)} events chosen are all the same" in text


def test_odd_labels_and_names_cannot_put_anything_into_the_page(new_workspace: Make) -> None:
    workspace, _ = new_workspace(events_per_file=3)
    for item in tables.list_shards(workspace.store, "labels"):
        table = tables.read_table(workspace.store, item.path)
        evil = ["<script>alert(1)</script>"] * table.num_rows
        index = table.schema.get_field_index("label")
        tables.write_table(workspace.store, item.path, table.set_column(index, table.schema.field(index), [evil]))
    make_report(workspace)
    text = workspace.store.read("report/index.html").decode()
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    read_page(text)


def test_a_damaged_table_is_named_in_one_sentence(new_workspace: Make, capsys: pytest.CaptureFixture[str]) -> None:
    workspace, _ = new_workspace()
    damaged = tables.list_shards(workspace.store, "labels")[-1].path
    workspace.store.write(damaged, workspace.store.read(damaged)[:-100])
    assert job.main([workspace.url]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"firnline report: {workspace.store.full(damaged)} cannot be read as a table (")


def test_without_labels_one_sentence_says_what_to_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workspace = open_workspace(str(tmp_path / "empty"), create=True)
    workspace.update_state()
    with pytest.raises(InputError, match="firnline label"):
        make_report(workspace)
    assert job.main([workspace.url]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_job_logs_the_page_to_mlflow(reported: tuple[Workspace, pd.DataFrame]) -> None:
    from mlflow import MlflowClient

    workspace, rows = reported
    client = MlflowClient(tracking_uri=f"sqlite:///{workspace.url}/mlflow.db")
    (experiment,) = [found for found in client.search_experiments() if found.name != "Default"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["events"] == len(rows)
    assert run.data.params["report.map_events"] == "60"
    assert [item.path for item in client.list_artifacts(run.info.run_id, "report")] == [
        "report/figures",
        "report/index.html",
    ]


def test_labels_from_before_a_column_are_reported_as_they_were(new_workspace: Make) -> None:
    workspace, rows = new_workspace(events_per_file=12)
    for item in tables.list_shards(workspace.store, "labels"):
        tables.write_table(
            workspace.store, item.path, tables.read_table(workspace.store, item.path).drop_columns("confidence")
        )
    assert job.main([workspace.url, "--report.map_events=20"]) == 0
    months = [item.path for item in workspace.store.walk("catalog") if item.path.endswith(".parquet")]
    found = pa.concat_tables([pq.read_table(f"{workspace.url}/{path}") for path in months])
    assert sum(found["num_detections"].to_pylist()) == len(rows)
    assert found["confidence"].null_count == len(found)
