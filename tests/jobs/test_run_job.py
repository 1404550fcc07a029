"""The chain on a small synthetic archive, in a bucket as on a disk, and again as a no-op."""

import json

import numpy as np
import obspy
import pyarrow as pa
import pytest

from jobs import run as run_job
from jobs import synthesize as synthesize_job
from pipelines import storage, tables
from pipelines.storage import open_store
from pipelines.tracking import Tracking

FLAGS = [
    *("--detection.band_hz", "[1, 15]", "--detection.on", "4"),
    *("--window.rate_hz", "40", "--window.length_seconds", "20"),
    *("--train.epochs", "2", "--train.width", "8", "--train.batch_size", "64", "--train.num_workers", "2"),
    *("--kmeans.k", "4", "--kmeans.restarts", "2"),
    *("--report.map_method", "pca", "--report.random_per_cluster", "1"),
]
SYNTHETIC = [
    *("--synthesize.num_stations", "2", "--synthesize.num_days", "1", "--synthesize.rate_hz", "40"),
    *("--synthesize.missing_day_share", "0", "--synthesize.events_per_station_day", "200"),
]


def rows(store, table, columns):
    return pa.concat_tables([tables.read_table(store, item.path, columns) for item in tables.list_shards(store, table)])


@pytest.mark.parametrize("key", ["labels.path", "train.augment_from", "archive.stationxml", "report.typo"])
def test_what_a_later_stage_would_stumble_on_is_said_before_the_first(tmp_path, capsys, key):
    trace = obspy.Trace(np.arange(9000, dtype=np.int32), {"network": "XX", "station": "A", "channel": "HHZ"})
    trace.stats.sampling_rate = 100.0
    (tmp_path / "archive").mkdir()
    trace.write(str(tmp_path / "archive" / "file.mseed"), format="MSEED")
    assert run_job.main([str(tmp_path / "archive"), str(tmp_path / "new"), f"--{key}", str(tmp_path / "no.csv")]) == 2
    said = capsys.readouterr().err
    assert key in said
    assert said.count("\n") == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.timeout(900)
def test_the_chain_runs_in_a_bucket_and_again_as_a_no_op(moto_s3, mlflow_server, ray_cluster, capsys):
    storage._s3.cache_clear()
    archive, workspace = f"{moto_s3.url}/archive", f"{moto_s3.url}/workspace"
    assert synthesize_job.main([archive, *SYNTHETIC]) == 0
    labels = ["--labels.path", f"{archive}/truth", "--mlflow", mlflow_server]
    assert run_job.main([archive, workspace, *FLAGS, *labels]) == 0
    said = capsys.readouterr().out
    assert f"Report:        {workspace}/report/index.html" in said
    store = open_store(workspace)
    events, found = rows(store, "events", ["event_id"]), rows(store, "labels", ["event_id", "cluster", "label_source"])
    assert 100 < events.num_rows == found.num_rows
    assert set(found["cluster"].to_pylist()) == set(range(4))
    for path in ("report/index.html", "catalog/2020-01.xml", "catalog/2020-01.csv", "catalog/2020-01.parquet"):
        assert store.exists(path), path
    assert not [item.path for item in store.walk("events") if not item.path.endswith(".parquet")]

    client = Tracking(uri=mlflow_server, experiment="").client()
    experiment = client.get_experiment_by_name(f"firnline {workspace}").experiment_id
    runs = {run.data.tags["firnline.stage"]: run for run in client.search_runs([experiment])}
    assert {"detect", "train", "label"} <= set(runs)
    assert all(run.info.status == "FINISHED" for run in runs.values())
    assert runs["train"].data.tags["firnline.input.events"] == runs["detect"].data.tags["firnline.output.events"]
    # Ray Train had two workers from epoch 0 on.
    assert json.loads(runs["train"].data.tags["firnline.workers"]) == [[0, 2]]
    assert client.get_model_version_by_alias("firnline-encoder", "champion")

    before = {
        item.path: item.etag for item in store.walk() if not item.path.startswith(("ledger/detect/progress", "plan"))
    }
    assert run_job.main([archive, workspace, "--mlflow", mlflow_server]) == 0
    after = {
        item.path: item.etag for item in store.walk() if not item.path.startswith(("ledger/detect/progress", "plan"))
    }
    written = {path for path in after if before.get(path) != after[path]}
    assert not {path for path in written if path.startswith(("events", "embeddings", "labels", "train", "catalog"))}
