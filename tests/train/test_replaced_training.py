"""`train --replace` leaves the old encoder whole until the new one is complete, whatever happens meanwhile."""

import os
import signal
import subprocess
import sys
import time

import pytest
from training_events import make_workspace

from pipelines import config as configuration
from pipelines.label.stage_encoder import load_encoder
from pipelines.runtime.errors import InputError
from pipelines.tracking.server import open_tracking
from pipelines.train.stage import train_encoder
from pipelines.workspace.artifacts import TrainingRecord

SMALL = {"width": 8, "dim": 8, "num_bands": 16, "num_frames": 16, "batch_size": 16, "num_threads": 1, "epochs": 2}


def test_a_training_that_replaces_another_is_killed_and_continues_beside_it(tmp_path, capsys):
    workspace = make_workspace(str(tmp_path / "workspace"), count=24)
    store = workspace.store
    config = configuration.resolve({"train": SMALL})
    train_encoder(workspace, config, open_tracking(workspace, None, None))
    store.write("labels/network=XX/station=S0/month0.parquet", b"of the old encoder")
    before = {
        item.path: store.read(item.path) for folder in ("train", "config", "labels") for item in store.walk(folder)
    }
    # So many epochs that it is killed in the midst of them.
    flags = [f"--train.{key}={value}" for key, value in (SMALL | {"epochs": 5000}).items()]
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.train", workspace.url, "--replace", *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        give_up = time.monotonic() + 120
        while not list(store.walk("replacing/train/train")):
            assert process.poll() is None, process.stderr.read().decode()
            assert time.monotonic() < give_up
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    now = {item.path: store.read(item.path) for folder in ("train", "config", "labels") for item in store.walk(folder)}
    assert now == before
    tracking = open_tracking(workspace, None, None)
    old = load_encoder(store, config, tracking).encoder.content_hash
    with pytest.raises(InputError, match=r"train\.epochs is 3 but"):
        train_encoder(workspace, configuration.resolve({"train": SMALL | {"epochs": 3}}), tracking)
    capsys.readouterr()
    summary = train_encoder(workspace, configuration.resolve({"train": SMALL | {"epochs": 3}}), tracking, replace=True)
    assert load_encoder(store, config, tracking).encoder.content_hash == summary.content_hash != old
    assert TrainingRecord.read(store).keys["train.epochs"] == 3
    assert workspace.stored_config("train")["train"]["epochs"] == 3
    assert not list(store.walk("replacing"))
    # What is derived from the old one stays until its own successor is made.
    assert store.read("labels/network=XX/station=S0/month0.parquet") == b"of the old encoder"
