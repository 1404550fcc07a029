"""An MLflow server that dies in mid-training ends the job with one sentence, soon, and the next run clears up."""

import os
import signal
import sys
import time

import pytest
from loopback_servers import free_port, server_process
from training_events import make_workspace

from pipelines import config as configuration
from pipelines.runtime.errors import StageFailed
from pipelines.tracking.runs import stage_run
from pipelines.tracking.server import Tracking, open_tracking
from pipelines.train import stage_fit
from pipelines.train.stage import train_encoder
from pipelines.train.stage_checkpoints import watch_checkpoints, write_checkpoint
from pipelines.train.stage_ray import _interruptible
from pipelines.workspace.workspace import open_workspace

SMALL = {"width": 8, "dim": 8, "num_bands": 16, "num_frames": 16, "batch_size": 16, "num_threads": 1, "epochs": 4}


def test_a_server_killed_in_mid_training_is_one_sentence_and_the_next_run_ends_the_one_left(
    tmp_path, monkeypatch, capsys
):
    # Three attempts take about five seconds, the six of the default half a minute.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    workspace = make_workspace(str(tmp_path / "workspace"), count=24)
    config = configuration.resolve({"train": SMALL})
    port = free_port()
    url, database = f"http://127.0.0.1:{port}", f"sqlite:///{tmp_path}/mlflow.db"
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", database, "--no-serve-artifacts"),
        *("--default-artifact-root", (tmp_path / "artifacts").as_uri()),
    ]
    with server_process(command, f"{url}/health", tmp_path / "server.log", seconds=300) as server:
        tracking = open_tracking(workspace, url, None)
        # One of another workspace in the same experiment, which is left alone.
        client = tracking.client()
        tags = {"firnline.stage": "train", "firnline.workspace": "elsewhere"}
        other = client.create_run(tracking.experiment_id(), tags=tags).info.run_id
        killed_at = []

        def write_then_kill(store, folder, done, content):
            write_checkpoint(store, folder, done, content)
            if done == 2:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()
                killed_at.append(time.monotonic())

        monkeypatch.setattr(stage_fit, "write_checkpoint", write_then_kill)
        with pytest.raises(StageFailed) as caught:
            train_encoder(workspace, config, tracking)
    assert time.monotonic() - killed_at[0] < 20
    assert str(caught.value) == (
        f"MLflow at {url} has failed: connection refused; once it answers, run the same command again to continue"
    )
    monkeypatch.undo()
    # The same database, without the server.
    again = Tracking(
        uri=database,
        experiment=tracking.experiment,
        workspace=workspace.url,
    )
    [left] = set(status_of(again)) - {other}
    assert status_of(again)[left] == "RUNNING"
    summary = train_encoder(workspace, config, again)
    assert summary.resumed_from == 2
    found = status_of(again)
    assert (found.pop(left), found.pop(other)) == ("KILLED", "RUNNING")
    assert list(found.values()) == ["FINISHED"]


def status_of(tracking):
    runs = tracking.client().search_runs([tracking.experiment_id()], "tags.`firnline.stage` = 'train'")
    return {run.info.run_id: run.info.status for run in runs}


def test_runs_that_a_kill_left_in_the_workspaces_own_database_are_ended(tmp_path):
    workspace = open_workspace(str(tmp_path / "workspace"), create=True)
    tracking = open_tracking(workspace, None, None)
    client = tracking.client()
    left = {}
    for stage in ("train", "label"):
        tags = {"firnline.stage": stage, "firnline.workspace": ""}
        left[stage] = client.create_run(tracking.experiment_id(), tags=tags).info.run_id
    with stage_run(tracking, "train", {}, inputs={}) as run:
        assert client.get_run(left["train"]).info.status == "KILLED"
        with stage_run(tracking, "train", {}, inputs={}, parent=run):
            assert client.get_run(run.run_id).info.status == "RUNNING"
    assert client.get_run(left["label"]).info.status == "RUNNING"
    with pytest.raises(KeyboardInterrupt), stage_run(tracking, "label", {}, inputs={}) as run:
        raise KeyboardInterrupt
    assert client.get_run(run.run_id).info.status == "KILLED"


def test_what_fails_while_workers_train_ends_the_training(tmp_path, monkeypatch):
    workspace = make_workspace(str(tmp_path / "workspace"), count=24)
    contents = []
    monkeypatch.setattr(stage_fit, "write_checkpoint", lambda store, folder, done, content: contents.append(content))
    tracking = open_tracking(workspace, None, None)
    train_encoder(workspace, configuration.resolve({"train": SMALL | {"epochs": 1}}), tracking)
    write_checkpoint(workspace.store, "train/other", 1, contents[0])

    def fail(history):
        raise StageFailed("MLflow has failed")

    began = time.monotonic()
    with (
        pytest.raises(StageFailed, match="MLflow has failed"),
        watch_checkpoints(workspace.store, "train/other", fail) as errors,
    ):
        _interruptible(lambda: time.sleep(60), errors)
    assert time.monotonic() - began < 30
