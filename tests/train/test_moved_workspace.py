"""A workspace is a folder: moved, renamed or copied, it finds its model and its runs, and nothing points back."""

import json
import shutil
from pathlib import Path

import pytest
from training_events import make_workspace

from jobs import compare
from pipelines import config as configuration
from pipelines.label.stage_encoder import load_encoder
from pipelines.runtime.errors import InputError
from pipelines.tracking.models import download_artifact
from pipelines.tracking.runs import finished_runs, stage_run
from pipelines.tracking.server import open_tracking
from pipelines.train.stage import train_encoder
from pipelines.workspace.artifacts import ENCODER, TrainingRecord
from pipelines.workspace.workspace import Workspace, open_workspace

CONFIG = configuration.resolve({"train": {"encoder": "features", "num_threads": 1}})


def train(workspace, *, replace=False):
    tracking = open_tracking(workspace, None, None)
    return train_encoder(workspace, CONFIG, tracking, replace=replace)


def files(workspace: Workspace) -> dict[str, tuple[int, str]]:
    return {item.path: (item.size, item.etag) for item in workspace.store.walk()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workspace = make_workspace(str(tmp_path_factory.mktemp("moved") / "first"), count=24)
    train(workspace)
    with stage_run(open_tracking(workspace, None, None), "label", {}, inputs={}) as run:
        run.log_metrics({"num_clusters": 4})
        run.log_text("of the first", "note.txt")
    return workspace


@pytest.fixture
def copied(trained, tmp_path):
    """A copy under another name, and a way to tell that the first was left alone."""
    shutil.copytree(trained.url, tmp_path / "second")
    return open_workspace(str(tmp_path / "second"), create=False)


def test_a_copied_workspace_trains_into_its_own_folder_and_knows_its_old_runs(trained, copied, capsys, tmp_path):
    before = files(trained)
    assert compare.main([copied.url]) == 0
    [run] = finished_runs(open_tracking(trained, None, None), "label")
    assert run.run_id[:8] in capsys.readouterr().out
    train(copied, replace=True)
    tracking = open_tracking(copied, None, None)
    assert [len(finished_runs(tracking, stage)) for stage in ("train", "label")] == [2, 1]
    assert TrainingRecord.read(copied.store).model_uri == "models:/firnline-encoder/2"
    assert files(trained) == before
    # Also what was logged before is read from the copy alone.
    shutil.move(trained.url, tmp_path / "away")
    try:
        note = download_artifact(tracking, f"runs:/{run.run_id}/note.txt", tmp_path)
        assert note.read_text() == "of the first"
        for version in (1, 2):
            assert list(
                download_artifact(tracking, f"models:/firnline-encoder/{version}", tmp_path / str(version)).rglob(
                    "*.safetensors"
                )
            )
    finally:
        shutil.move(tmp_path / "away", trained.url)


def test_the_encoder_is_the_workspaces_own_even_where_mlflow_has_lost_it(copied, capsys):
    tracking = open_tracking(copied, None, None)
    found = load_encoder(copied.store, CONFIG, tracking)
    done = TrainingRecord.read(copied.store)
    assert (found.encoder.content_hash, found.uri, found.run_id) == (done.content_hash, done.model_uri, done.run_id)
    assert capsys.readouterr().out == ""
    tracking.client().delete_model_version("firnline-encoder", "1")
    again = load_encoder(copied.store, CONFIG, tracking)
    assert (again.encoder.content_hash, again.uri) == (done.content_hash, done.model_uri)
    said = capsys.readouterr().out
    assert said == f"label: models:/firnline-encoder/1 is not in MLflow; this workspace's own {ENCODER} is used\n"
    Path(copied.url, "mlflow.db").unlink()
    assert load_encoder(copied.store, CONFIG, tracking).encoder.content_hash == done.content_hash
    assert not Path(copied.url, "mlflow.db").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, r"encoder\.safetensors is missing; restore it, or run `firnline train --replace`"),
        (b"damaged", r"encoder\.safetensors is damaged \(.*; restore it"),
    ],
)
def test_an_encoder_that_is_missing_or_damaged_is_named(trained, copied, content, sentence):
    copied.store.remove(ENCODER)
    if content is not None:
        copied.store.write(ENCODER, content)
    with pytest.raises(InputError, match=sentence):
        load_encoder(copied.store, CONFIG, open_tracking(copied, None, None))


def test_a_deleted_experiment_is_made_anew(copied):
    tracking = open_tracking(copied, None, None)
    tracking.client().delete_experiment(tracking.experiment_id())
    train(copied, replace=True)
    assert [run.tags["firnline.alias"] for run in finished_runs(open_tracking(copied, None, None), "train")]
    names = {item.name for item in open_tracking(copied, None, None).client().search_experiments()}
    assert {"firnline second"} <= names
    # Where the name itself was that of the deleted one, the next is numbered.
    tracking.client().delete_experiment(open_tracking(copied, None, None).experiment_id())
    with stage_run(open_tracking(copied, None, None), "label", {}, inputs={}):
        pass
    assert len(finished_runs(open_tracking(copied, None, None), "label")) == 1


def test_a_run_that_was_deleted_is_not_needed(copied):
    tracking = open_tracking(copied, None, None)
    done = TrainingRecord.read(copied.store)
    tracking.client().delete_run(done.run_id)
    assert load_encoder(copied.store, CONFIG, tracking).run_id == done.run_id
    assert train(copied).already_done
    assert train(copied, replace=True).model_uri == "models:/firnline-encoder/2"


def test_paths_are_stored_so_that_they_hold_elsewhere(tmp_path, monkeypatch):
    workspace = open_workspace(str(tmp_path / "one"), create=True)
    for path in (tmp_path / "here" / "outside.csv", tmp_path / "one" / "inside.yaml"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("event_id,label\n")
    monkeypatch.chdir(tmp_path / "here")
    typed = configuration.resolve({"labels": {"path": "outside.csv", "names": "../one/inside.yaml"}})
    workspace.claim("label", typed)
    marks = workspace.output_keys(typed, "label")
    monkeypatch.chdir(tmp_path)
    stored = workspace.stored_config("label")["labels"]
    assert stored["path"] == str(tmp_path / "here" / "outside.csv")
    assert stored["names"] == str(tmp_path / "one" / "inside.yaml")
    shutil.move(tmp_path / "one", tmp_path / "two")
    moved = open_workspace(str(tmp_path / "two"), create=False)
    stored = moved.stored_config("label")
    assert stored["labels"]["names"] == str(tmp_path / "two" / "inside.yaml")
    assert moved.output_keys(configuration.resolve(stored), "label") == marks
    assert moved.read_state().experiment == f"firnline {tmp_path / 'one'}"


def test_a_workspace_of_layout_1_is_migrated(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    for name in ("here/truth.csv", "names.yaml"):
        (tmp_path / name).write_text("")
    workspace = tmp_path / "workspace"
    (workspace / "config").mkdir(parents=True)
    (workspace / "workspace.json").write_text(json.dumps({"layout_version": 1, "shard_interval": "day", "extra": 7}))
    was = {"labels": {"path": "truth.csv", "names": "../names.yaml", "tolerance_seconds": 3.0}, "kmeans": {"k": 5}}
    (workspace / "config" / "label.yaml").write_text(configuration.to_yaml(was))
    (workspace / "config" / "best-augmentation.yaml").write_text("augmentation: {}\n")
    monkeypatch.chdir(tmp_path / "here")
    opened = open_workspace(str(workspace), create=False)
    # Who only reads takes paths as they were typed.
    assert opened.stored_config("label") == was
    opened.migrate()
    assert json.loads((workspace / "workspace.json").read_text()) == {
        "layout_version": 2,
        "shard_interval": "day",
        "extra": 7,
    }
    monkeypatch.chdir(tmp_path)
    found = opened.stored_config("label")
    assert found["labels"] == {
        "path": str(tmp_path / "here" / "truth.csv"),
        "names": str(tmp_path / "names.yaml"),
        "tolerance_seconds": 3.0,
    }
    assert found["kmeans"] == {"k": 5}
    assert (workspace / "config" / "best-augmentation.yaml").read_text() == "augmentation: {}\n"


def test_a_stored_key_of_another_version_is_named_with_its_file(trained, copied):
    copied.store.write("config/label.yaml", b"kmeans:\n  wings: 2\n")
    with pytest.raises(InputError, match=rf"^{copied.url}/config/label\.yaml: unknown configuration key kmeans\.wings"):
        configuration.resolve(copied.stored_config("label"))
