"""The chain on a small synthetic archive, in a bucket as on a disk, and again as a no-op."""

import json
import re

import numpy as np
import obspy
import pyarrow as pa
import pytest

from jobs import run as run_job
from jobs import synthesize as synthesize_job
from jobs.command_line import parse
from pipelines import config as configuration
from pipelines.runtime.redaction import SECRET_VARIABLES
from pipelines.tracking.server import Tracking
from pipelines.train.stage import _output_keys
from pipelines.workspace import s3_requests, tables
from pipelines.workspace.artifacts import BEST_AUGMENTATION, TrainingRecord
from pipelines.workspace.ledger import MarkerName, write_marker
from pipelines.workspace.storage import open_store
from pipelines.workspace.workspace import open_workspace

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


@pytest.fixture(scope="module")
def tiny_archive(tmp_path_factory):
    trace = obspy.Trace(np.arange(9000, dtype=np.int32), {"network": "XX", "station": "A", "channel": "HHZ"})
    trace.stats.sampling_rate = 100.0
    folder = tmp_path_factory.mktemp("archive")
    trace.write(str(folder / "file.mseed"), format="MSEED")
    return str(folder)


YAML_FILES = {
    "broken.yaml": "0: [",
    "typo.yaml": "typo: 1",
    "loud.yaml": "augmentation: {gain: {probability: loud}}",
    "empty.yaml": "",
}


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--labels.path", "no.csv"], "labels.path"),
        (["--labels.names", "no.yaml"], "labels.names"),
        (["--labels.names", "broken.yaml"], "labels.names broken.yaml is not valid YAML"),
        (["--label.reference", "nowhere"], "nowhere"),
        (["--label.model", "models:/nothing/7"], "the model models:/nothing/7 cannot be read"),
        (["--train.augment_from", "no.yaml"], "train.augment_from"),
        (["--train.augment_from", "a_folder"], "train.augment_from a_folder cannot be read: is a directory"),
        (["--train.augment_from", "broken.yaml"], "train.augment_from broken.yaml is not valid YAML"),
        (["--train.augment_from", "typo.yaml"], "section: unknown configuration key augmentation.typo\n"),
        (["--train.augment_from", "loud.yaml"], "section: augmentation.gain.probability = 'loud': input should be"),
        (["--train.augment_from", "empty.yaml"], "train.augment_from empty.yaml is not an augmentation section"),
        (["--train.augment_from", "tune"], "run tune first"),
        (["--archive.stationxml", "no.xml"], "archive.stationxml"),
        (["--window.rate_hz", "10", "--window.length_seconds", "6"], "window.length_seconds"),
        (["--run.tune", "true", "--train.encoder", "pca"], "train.encoder"),
        (["--run.tune", "true", "--tune.objective", "validation"], "labels.path"),
        (["--report.typo", "1"], "report.typo"),
    ],
)
def test_what_a_later_stage_would_stumble_on_is_said_before_the_first(
    tiny_archive, tmp_path, monkeypatch, capsys, flags, sentence
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_folder").mkdir()
    for name, text in YAML_FILES.items():
        (tmp_path / name).write_text(text)
    assert run_job.main([tiny_archive, "new", *flags]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_settings_that_conflict_with_what_a_later_stage_has_done_are_said_before_detection(
    tiny_archive, tmp_path, capsys
):
    workspace = open_workspace(str(tmp_path / "workspace"), create=True)
    workspace.claim("label", configuration.resolve({"kmeans": {"k": 3}}))
    write_marker(workspace.store, "label", MarkerName("XX", "A", "--.HH.2022-01-01.day", "abc"), {})
    TrainingRecord(
        fingerprint="0123456789abcdef",
        keys={"train.dim": 8},
        content_hash="abc",
        num_events=1,
        model_uri="models:/firnline-encoder/1",
        alias="champion",
        run_id="def",
        score={},
    ).write(workspace.store)
    before = {item.path for item in workspace.store.walk()}
    assert run_job.main([tiny_archive, workspace.url]) == 2
    assert "holds an encoder trained with" in capsys.readouterr().err
    workspace.store.remove("train/training.json")
    assert run_job.main([tiny_archive, workspace.url, "--kmeans.k", "4"]) == 2
    assert capsys.readouterr().err == (
        f"firnline run: kmeans.k is 4 but {workspace.url} holds label results made with 3; use another workspace, the "
        "stored value, or --replace (labels and clustering, report and catalogue are made anew; events, encoder, "
        "embeddings stay)\n"
    )
    assert {item.path for item in workspace.store.walk()} == before - {"train/training.json"}


@pytest.mark.parametrize(
    ("flags", "replaced", "words"),
    [
        (
            ["--kmeans.k", "4"],
            ("label",),
            "labels and clustering, report and catalogue are made anew; events, encoder, ",
        ),
        (["--label.precision", "bfloat16"], ("label",), "made anew; events, encoder stay"),
        (["--train.dim", "16"], ("train",), "encoder, labels and clustering, report and catalogue are made anew; ev"),
        (["--detection.on", "9", "--kmeans.k", "4"], ("detect", "label"), "are made anew; nothing stays"),
        ([], (), "replaces nothing, since all results were made with these settings"),
    ],
)
def test_replace_begins_at_the_first_stage_that_conflicts_and_says_what_goes(tmp_path, capsys, flags, replaced, words):
    workspace = open_workspace(str(tmp_path / "workspace"), create=True)
    trained = configuration.resolve({"train": {"dim": 8}})
    name = MarkerName("XX", "A", "--.HH.2022-01-01.day", "abc")
    for stage, config in (
        ("detect", configuration.resolve({})),
        ("label", configuration.resolve({"kmeans": {"k": 3}})),
    ):
        workspace.claim(stage, config)
        write_marker(workspace.store, stage, name, {})
    workspace.claim("train", trained)
    TrainingRecord(
        fingerprint="0123456789abcdef",
        keys=_output_keys(trained, trained.augmentation),
        content_hash="abc",
        num_events=1,
        model_uri="models:/firnline-encoder/1",
        alias="champion",
        run_id="def",
        score={},
    ).write(workspace.store)
    arguments = parse("run", ["ARCHIVE", "WORKSPACE"], ["archive", workspace.url, "--replace", *flags], {})
    configs = run_job.stage_configs(arguments, workspace)
    tracking = Tracking(uri="", experiment="")
    assert run_job.check_chain(workspace, configs, tracking, replace=True) == replaced
    assert words in capsys.readouterr().out
    # The encoder is kept where only the archive has grown.
    assert run_job._is_trained(workspace, configs["train"], tracking, replaced) is False
    workspace.store.write(BEST_AUGMENTATION, b"")
    assert run_job._is_trained(workspace, configs["train"], tracking, replaced) is not bool(
        {"detect", "train"} & set(replaced)
    )


@pytest.mark.timeout(900)
def test_the_chain_runs_in_a_bucket_and_again_as_a_no_op(
    moto_s3, mlflow_server, ray_cluster, capfd, monkeypatch, tmp_path_factory
):
    # Secrets that must be found nowhere at the end; the servers on loopback take any.
    for name in SECRET_VARIABLES[:-1]:
        monkeypatch.setenv(name, f"planted-{name.lower()}")
    monkeypatch.delenv("AWS_SESSION_TOKEN")
    plain_uri, mlflow_server = mlflow_server, mlflow_server.replace("http://", "http://me:planted-mlflow%2Fpassword@")
    s3_requests._s3.cache_clear()
    archive, workspace = f"{moto_s3.url}/archive", f"{moto_s3.url}/workspace"
    assert synthesize_job.main([archive, *SYNTHETIC]) == 0
    labels = ["--labels.path", f"{archive}/truth", "--mlflow", mlflow_server]
    # That there are too few events is known once they are detected, and said before an encoder is trained.
    too_many = ["--kmeans.k", "99999", "--mlflow.experiment", "the chain"]
    assert run_job.main([archive, workspace, *FLAGS, *labels, *too_many]) == 2
    refused = capfd.readouterr()
    assert "kmeans.k is 99999 but there are only" in refused.err
    assert not list(open_store(workspace).walk("train"))
    assert run_job.main([archive, workspace, *FLAGS, *labels]) == 0
    done = capfd.readouterr()
    # Lines of Ray's own, which nobody can do anything about.
    assert not re.search(r"core_worker|WARNING|Warning:", done.out + done.err), done.err
    assert f"Report:        {workspace}/report/index.html" in done.out
    assert f"MLflow:        {plain_uri.replace('http://', 'http://***@')}" in done.out
    store = open_store(workspace)
    events, found = rows(store, "events", ["event_id"]), rows(store, "labels", ["event_id", "cluster", "label_source"])
    assert 100 < events.num_rows == found.num_rows
    assert set(found["cluster"].to_pylist()) == set(range(4))
    for path in ("report/index.html", "catalog/2020-01.xml", "catalog/2020-01.csv", "catalog/2020-01.parquet"):
        assert store.exists(path), path
    assert not [item.path for item in store.walk("events") if not item.path.endswith(".parquet")]

    client = Tracking(uri=mlflow_server, experiment="").client()
    # The experiment that the detection was stored with is the whole chain's.
    experiment = client.get_experiment_by_name("the chain").experiment_id
    runs = {run.data.tags["firnline.stage"]: run for run in client.search_runs([experiment])}
    assert set(runs) == {"detect", "train", "label", "report"}
    assert client.get_experiment_by_name(f"firnline {workspace}") is None
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

    again = capfd.readouterr()
    shown = "".join((*refused, *done, *again)).encode()
    kept = {item.path: store.read(item.path) for item in store.walk()}
    folders = [path for path in tmp_path_factory.getbasetemp().iterdir() if path.name.startswith("mlflow")]
    kept |= {str(path): path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}
    assert any(name.endswith("mlflow.db") for name in kept)
    for secret in (b"planted-", b"%2Fpassword"):
        assert not [line for line in shown.splitlines() if secret in line]
    assert not [name for name, content in kept.items() if b"planted-" in content]
