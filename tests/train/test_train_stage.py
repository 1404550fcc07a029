"""Training from a workspace: resumed to the last bit, on Ray, on a bucket, registered, and refused where it must be."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress

import mlflow
import numpy as np
import psutil
import pytest
from training_events import LEAD_SAMPLES, NUM_SAMPLES, make_windows, make_workspace, write_events

from jobs import train as train_job
from pipelines import config as configuration
from pipelines import encoders
from pipelines.contrastive.checkpoint import read_facts
from pipelines.runtime.capacity import CLUSTER_CPUS_VARIABLE, CLUSTER_GPUS_VARIABLE
from pipelines.runtime.errors import InputError, StageFailed
from pipelines.tracking.models import alias_version, download_artifact
from pipelines.tracking.server import Tracking, as_default
from pipelines.train.stage import ENCODER, _mark, _output_keys, check_resources, train_encoder, where_it_runs
from pipelines.train.stage_checkpoints import last_checkpoint
from pipelines.train.stage_ray import interface_of
from pipelines.workspace.artifacts import TrainingRecord
from pipelines.workspace.event_sample import choose_events, events_fingerprint, read_sample
from pipelines.workspace.workspace import open_workspace

SMALL = {"width": 8, "dim": 8, "num_bands": 16, "num_frames": 16, "batch_size": 16, "num_threads": 1}


def settings(**changes):
    return configuration.resolve({"train": SMALL | {"epochs": 3} | changes})


def tracking_of(workspace):
    root = workspace.url
    return Tracking(
        uri=f"sqlite:///{root}/mlflow.db", experiment="training", artifact_location=f"file://{root}/mlartifacts"
    )


def loss_curve(tracking: Tracking) -> list[float]:
    client = tracking.client()
    run = client.search_runs([tracking.experiment_id()], order_by=["attributes.start_time DESC"], max_results=1)[0]
    return [metric.value for metric in client.get_metric_history(run.info.run_id, "loss")]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A workspace trained in this process for three epochs without a stop."""
    workspace = make_workspace(str(tmp_path_factory.mktemp("train") / "undisturbed"))
    return workspace, train_encoder(workspace, settings(), tracking_of(workspace))


def test_a_training_that_was_killed_goes_on_to_the_same_encoder(undisturbed, tmp_path):
    workspace, summary = undisturbed
    disturbed = make_workspace(str(tmp_path / "disturbed"))
    flags = [part for name, value in (SMALL | {"epochs": 3}).items() for part in (f"--train.{name}", str(value))]
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.train", disturbed.url, *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while process.poll() is None:
            if any("epoch-" in item.path for item in disturbed.store.walk("train")):
                break
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert TrainingRecord.read(disturbed.store) is None, "the training was done before it could be killed"
    resumed = train_encoder(disturbed, settings(), tracking_of(disturbed))
    assert 1 <= resumed.resumed_from < 3
    assert resumed.content_hash == summary.content_hash
    assert loss_curve(tracking_of(disturbed)) == loss_curve(tracking_of(workspace))
    assert len(loss_curve(tracking_of(workspace))) == 3


def test_a_finished_training_is_not_done_again(undisturbed, capsys):
    workspace, summary = undisturbed
    again = train_encoder(workspace, settings(num_threads=2), tracking_of(workspace))
    assert again.already_done
    assert again.content_hash == summary.content_hash
    assert "nothing to do" in capsys.readouterr().out


def test_a_training_is_kept_when_the_archive_has_grown_where_that_is_wanted(tmp_path, capsys):
    workspace = make_workspace(str(tmp_path / "grown"), count=12)
    config = settings()
    TrainingRecord(
        fingerprint="of fewer events",
        keys=_output_keys(config, config.augmentation),
        content_hash="abc",
        num_events=12,
        model_uri="models:/firnline-encoder/1",
        alias="champion",
        run_id="def",
        score={},
    ).write(workspace.store)
    kept = train_encoder(workspace, config, tracking_of(workspace), on_growth="keep")
    assert (kept.already_done, kept.num_events, kept.content_hash) == (True, 12, "abc")
    assert "kept the encoder that was trained on 12 events before the archive grew" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"train\.epochs is 4 .*3"):
        train_encoder(workspace, settings(epochs=4), tracking_of(workspace), on_growth="keep")
    assert not workspace.store.exists(ENCODER)


def test_a_training_of_an_earlier_release_is_kept_where_only_keys_have_come_or_gone(undisturbed, tmp_path, capsys):
    workspace = open_workspace(str(tmp_path / "earlier"), create=True)
    for item in undisturbed[0].store.walk():
        if item.path.startswith(("events/", "ledger/", "train/", "config/", "workspace.json")):
            workspace.store.write(item.path, undisturbed[0].store.read(item.path))
    config = settings(polarisation=0.0)
    done = TrainingRecord.read(workspace.store)
    keys = done.keys | {"augmentation.spectral_mask.probability": 0.3}
    del keys["train.polarisation"]
    mark = _mark(keys, events_fingerprint(workspace.store))
    earlier = done.model_copy(update={"keys": keys, "fingerprint": mark})
    earlier.write(workspace.store)
    assert train_encoder(workspace, config, tracking_of(workspace)).already_done
    assert "nothing to do" in capsys.readouterr().out
    assert TrainingRecord.read(workspace.store) == earlier
    with pytest.raises(InputError, match=r"train\.polarisation is 1\.0 but .* trained with 0\.0"):
        train_encoder(workspace, settings(), tracking_of(workspace))


def test_another_configuration_is_refused_by_name_unless_replaced(undisturbed):
    workspace, _ = undisturbed
    with pytest.raises(InputError, match=r"train\.temperature is 0\.5 .*0\.2"):
        train_encoder(workspace, settings(temperature=0.5), tracking_of(workspace))
    changed = configuration.resolve({"train": SMALL | {"epochs": 3}, "augmentation": {"gain": {"probability": 0.125}}})
    with pytest.raises(InputError, match=r"augmentation\.gain\.probability"):
        train_encoder(workspace, changed, tracking_of(workspace))


def test_the_registered_model_loads_in_a_fresh_process_without_firnline(undisturbed, tmp_path):
    workspace, _ = undisturbed
    windows, _ = make_windows(6)
    np.save(tmp_path / "windows.npy", windows)
    script = (
        "import mlflow, numpy as np, sys\n"
        f"mlflow.set_tracking_uri({tracking_of(workspace).uri!r})\n"
        "model = mlflow.pyfunc.load_model('models:/firnline-encoder@champion')\n"
        f"np.save({str(tmp_path / 'embeddings.npy')!r}, model.predict(np.load({str(tmp_path / 'windows.npy')!r})))\n"
        "assert not [name for name in sys.modules if name.split('.')[0] == 'pipelines']\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path, capture_output=True)
    expected = encoders.load(workspace.store.read(ENCODER)).embed(windows)
    np.testing.assert_allclose(np.load(tmp_path / "embeddings.npy"), expected, rtol=1e-4, atol=1e-5)


def test_a_training_leaves_mlflow_addresses_of_its_process_alone(undisturbed, monkeypatch):
    workspace, _ = undisturbed
    assert not {"MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_EXPERIMENT_ID"} & set(os.environ)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://127.0.0.1:10")
    with as_default(tracking_of(workspace)):
        assert mlflow.get_registry_uri() == mlflow.get_tracking_uri() == tracking_of(workspace).uri
    assert (mlflow.get_tracking_uri(), mlflow.get_registry_uri()) == ("http://127.0.0.1:9", "http://127.0.0.1:10")


def test_no_file_of_the_model_is_pickled(undisturbed, tmp_path):
    workspace, _ = undisturbed
    tracking = tracking_of(workspace)
    version = alias_version(tracking, "firnline-encoder", "champion")
    folder = download_artifact(tracking, f"models:/firnline-encoder/{version.version}", tmp_path)
    names = [name for _, _, files in os.walk(folder) for name in files]
    assert "encoder.safetensors" in names
    assert not [name for name in names if name.endswith((".pkl", ".pt", ".pth", ".bin"))]


def test_a_later_model_is_candidate_unless_it_scores_better(undisturbed, tmp_path):
    workspace, _ = undisturbed
    tracking = tracking_of(workspace)
    before = alias_version(tracking, "firnline-encoder", "champion")
    other = make_workspace(str(tmp_path / "other"))
    summary = train_encoder(other, settings(encoder="untrained"), tracking)
    scores = [TrainingRecord.read(one.store).score["stability"] for one in (other, workspace)]
    expected = "champion" if scores[0] > scores[1] else "candidate"
    assert summary.alias == expected
    after = alias_version(tracking, "firnline-encoder", "champion")
    assert (after.version == before.version) == (expected == "candidate")


def test_new_events_are_trained_on(tmp_path):
    workspace = make_workspace(str(tmp_path / "growing"), count=24)
    first = train_encoder(workspace, settings(epochs=1), tracking_of(workspace))
    windows, _ = make_windows(9, seed=5)
    write_events(workspace, "S2", "month0", windows, month=0)
    second = train_encoder(workspace, settings(epochs=1), tracking_of(workspace))
    assert (first.num_events, second.num_events) == (24, 33)
    assert first.content_hash != second.content_hash


@pytest.mark.parametrize("kind", ["features", "pca", "autoencoder"])
def test_baselines_train_and_embed_through_the_same_interface(tmp_path, kind):
    workspace = make_workspace(str(tmp_path / kind), count=24)
    train_encoder(workspace, settings(encoder=kind, epochs=2), tracking_of(workspace))
    encoder = encoders.load(workspace.store.read(ENCODER))
    windows, _ = make_windows(24)
    embeddings = encoder.embed(windows)
    assert embeddings.shape == (24, encoder.dim)
    assert np.isfinite(embeddings).all()


def test_a_stuck_loss_is_an_error_and_registers_nothing(tmp_path):
    workspace = make_workspace(str(tmp_path / "stuck"), count=32)
    # At this temperature every candidate looks alike, so that the loss cannot leave ln(candidates).
    with pytest.raises(StageFailed, match="learns nothing"):
        train_encoder(workspace, settings(temperature=1000, epochs=18, batch_size=4), tracking_of(workspace))
    assert alias_version(tracking_of(workspace), "firnline-encoder", "champion") is None
    assert TrainingRecord.read(workspace.store) is None


def test_a_diverging_loss_is_one_sentence_and_registers_nothing(tmp_path):
    workspace = make_workspace(str(tmp_path / "diverged"), count=32)
    with pytest.raises(StageFailed, match=r"^training diverged: .*; use a smaller train\.learning_rate$"):
        # Each step multiplies the weights by some -250,000: after eight they are beyond float32.
        train_encoder(
            workspace,
            settings(learning_rate=1000, weight_decay=1000, warmup_epochs=0, epochs=10),
            tracking_of(workspace),
        )
    assert alias_version(tracking_of(workspace), "firnline-encoder", "champion") is None
    assert TrainingRecord.read(workspace.store) is None


def test_too_few_events_for_the_workers_are_refused_before_work_starts(tmp_path, ray_cluster):
    for count, workers, sentence in (
        (1, 0, "only 1 event to train on"),
        (2, 3, r"train\.num_workers is 3, but there are only 2 events"),
    ):
        workspace = open_workspace(str(tmp_path / f"{count}"), create=True)
        workspace.update_state()
        write_events(workspace, "S0", "all", make_windows(3)[0][:count], month=0)
        # Three workers need a third of a CPU each, so that the cluster has room for them.
        config = settings(num_workers=workers, cpus_per_worker=0.1, batch_size=18)
        with pytest.raises(InputError, match=sentence):
            train_encoder(workspace, config, tracking_of(workspace))
        assert not list(workspace.store.walk("train"))


def test_gloo_listens_on_the_interface_that_has_the_nodes_address():
    addresses = {
        entry.address: name
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if entry.family == socket.AF_INET
    }
    assert addresses["127.0.0.1"] == interface_of("127.0.0.1")
    assert {address: interface_of(address) for address in addresses} == addresses
    assert interface_of("192.0.2.1") is None


@pytest.mark.timeout(300)
def test_a_training_on_ray_that_is_interrupted_is_killed_in_mlflow_and_can_be_resumed(tmp_path):
    workspace = make_workspace(str(tmp_path / "interrupted"))
    changes = {"num_workers": 1, "cpus_per_worker": 2, "epochs": 500}
    flags = [part for name, value in (SMALL | changes).items() for part in (f"--train.{name}", str(value))]
    # A process of its own: the training ends with it.
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.train", workspace.url, "--mlflow.experiment", "training", *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while not any("epoch-" in item.path for item in workspace.store.walk("train")):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert said.endswith("firnline train: interrupted; run the same command again to continue\n")
    assert last_checkpoint(workspace.store, f"train/{folder_of(workspace)}") is not None
    tracking = tracking_of(workspace)
    run = tracking.client().search_runs([tracking.experiment_id()])[0]
    assert run.info.status == "KILLED"


def folder_of(workspace):
    return next(item.path.split("/")[1] for item in workspace.store.walk("train") if "epoch-" in item.path)


def test_an_empty_workspace_says_what_to_do(tmp_path):
    workspace = open_workspace(str(tmp_path / "empty"), create=True)
    workspace.update_state()
    with pytest.raises(InputError, match="run detect first"):
        train_encoder(workspace, settings(), tracking_of(workspace))


def test_the_sample_is_stratified_and_the_same_however_the_files_are_cut(tmp_path):
    windows, _ = make_windows(60)
    one, many = (open_workspace(str(tmp_path / name), create=True) for name in ("one", "many"))
    write_events(one, "S0", "all", windows[:50], month=0)
    write_events(one, "S1", "all", windows[50:], month=0)
    ids = choose_events(one.store, max_events=None, seed=0)
    assert len(ids) == 60
    chosen = choose_events(one.store, max_events=24, seed=3)
    for start in range(0, 50, 7):
        write_events(many, "S0", f"part{start}", windows[start : min(start + 7, 50)], month=0, first=start)
    write_events(many, "S1", "all", windows[50:], month=0)
    assert choose_events(many.store, max_events=24, seed=3).event_ids == chosen.event_ids
    stations = [name.partition(".")[2] for name in chosen.stations]
    assert (stations.count("S0"), stations.count("S1")) == (14, 10)
    assert chosen.lead_samples == LEAD_SAMPLES
    assert chosen.num_samples == NUM_SAMPLES
    np.testing.assert_array_equal(
        read_sample(one.store, chosen, range(len(chosen)))[3],
        windows[[*ids.event_ids].index(chosen.event_ids[3])],
    )


@pytest.mark.chaos
@pytest.mark.timeout(1500)
def test_training_on_ray_survives_a_lost_worker_bit_for_bit(ray_cluster, tmp_path):
    plain, disturbed = (make_workspace(str(tmp_path / name)) for name in ("plain", "disturbed"))
    on_ray = settings(num_workers=2, epochs=4, cpus_per_worker=1)
    first = train_encoder(plain, on_ray, tracking_of(plain))
    killed = threading.Event()

    def kill_a_worker():
        while not killed.is_set():
            content = last_checkpoint(disturbed.store, folder_of(disturbed)) if folder_of(disturbed) else None
            if content is not None and read_facts(content)[0] >= 1:
                for process in psutil.Process().children(recursive=True):
                    with suppress(psutil.NoSuchProcess):
                        if "RayTrainWorker" in " ".join(process.cmdline()):
                            process.kill()
                            killed.set()
                            return
            time.sleep(0.01)

    def folder_of(workspace):
        names = [item.path for item in workspace.store.walk("train") if "epoch-" in item.path]
        return names[0].rpartition("/")[0] if names else None

    thread = threading.Thread(target=kill_a_worker, daemon=True)
    thread.start()
    second = train_encoder(disturbed, on_ray, tracking_of(disturbed))
    was_killed = killed.is_set()
    killed.set()
    thread.join()
    assert was_killed, "the training was over before a worker could be killed"
    assert second.content_hash == first.content_hash
    assert loss_curve(tracking_of(disturbed)) == loss_curve(tracking_of(plain))


def test_a_training_on_a_cluster_has_a_worker_since_the_head_is_too_small(undisturbed, capsys, monkeypatch):
    assert where_it_runs(settings()).train.num_workers == 0
    # The variable that Ray's Jobs server sets.
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert where_it_runs(settings()).train.num_workers == 1
    assert where_it_runs(settings(num_workers=2)).train.num_workers == 2
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR")
    # An address is joined although train.num_workers is 0.
    assert train_job.main([undisturbed[0].url, "--address", "127.0.0.1:9"]) == 2
    said = capsys.readouterr().err
    assert "127.0.0.1:9" in said
    assert said.count("\n") == 1


def test_a_cluster_that_is_too_small_is_refused_at_once_and_one_that_grows_is_not(ray_cluster, monkeypatch):
    for name in (CLUSTER_CPUS_VARIABLE, CLUSTER_GPUS_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    on_all, on_64, on_gpu = (
        settings(num_workers=4),
        settings(num_workers=64, batch_size=64),
        settings(num_workers=2, use_gpu=True, cpus_per_worker=4),
    )
    check_resources(on_all)
    with pytest.raises(InputError, match=r"train\.num_workers is 64 with train\.cpus_per_worker 1, but Ray has 4 CPUs"):
        check_resources(on_64)
    with pytest.raises(InputError, match=r"train\.use_gpu is true for 2 workers, but Ray has 0 GPUs"):
        check_resources(on_gpu)
    monkeypatch.setenv(CLUSTER_CPUS_VARIABLE, "63")
    monkeypatch.setenv(CLUSTER_GPUS_VARIABLE, "2")
    check_resources(on_gpu)
    with pytest.raises(InputError, match=r"Ray may grow to 63 CPUs"):
        check_resources(on_64)
    monkeypatch.setenv(CLUSTER_CPUS_VARIABLE, "64")
    check_resources(on_64)
    with pytest.raises(InputError, match=r"Ray may grow to 2 GPUs"):
        check_resources(settings(num_workers=4, use_gpu=True))


def test_a_bucket_holds_checkpoints_and_encoder_as_a_disk_does(moto_s3, tmp_path, undisturbed):
    workspace = make_workspace(f"{moto_s3.url}/workspace")
    tracking = Tracking(uri=f"sqlite:///{tmp_path}/mlflow.db", experiment="bucket", artifact_location=tmp_path.as_uri())
    summary = train_encoder(workspace, settings(), tracking)
    assert summary.content_hash == undisturbed[1].content_hash
    assert json.loads(workspace.store.read("train/training.json"))["content_hash"] == summary.content_hash
