"""`label --replace` leaves the old labels whole until the new ones are complete."""

import pytest
from made_up_events import write_example

from pipelines.label import stage
from pipelines.label.stage import label_events
from pipelines.runtime.errors import StageFailed
from pipelines.tracking.runs import finished_runs
from pipelines.workspace import tables


def contents(store):
    folders = ("embeddings", "labels", "clustering", "ledger", "config")
    return {item.path: store.read(item.path) for folder in folders for item in store.walk(folder)}


def clusters(store):
    files = [item.path for item in tables.list_shards(store, "labels")]
    return {number for file in files for number in tables.read_table(store, file, ("cluster",))["cluster"].to_pylist()}


def test_labels_stand_until_others_are_complete(tmp_path, ray_cluster, monkeypatch, capsys):
    example = write_example(tmp_path, num_days=1)
    store = example.workspace.store
    label_events(example.workspace, example.config, example.tracking)
    before = contents(store)
    other = example.with_settings(kmeans={"k": 2})

    def fail(*arguments):
        raise StageFailed("the disk is full")

    with monkeypatch.context() as broken:
        # After the new labels are written.
        broken.setattr(stage, "log_outcome", fail)
        with pytest.raises(StageFailed, match="the disk is full"):
            label_events(example.workspace, other, example.tracking, replace=True)
    assert contents(store) == before
    capsys.readouterr()
    label_events(example.workspace, example.config, example.tracking)
    assert "nothing to do" in capsys.readouterr().out
    # A deleted experiment is made anew; what was done before the failure is not done again.
    example.tracking.client().delete_experiment(example.tracking.experiment_id())
    assert len(clusters(store)) == 3
    summary = label_events(example.workspace, other, example.tracking, replace=True)
    assert (summary.num_embedded, summary.num_written) == (0, 0)
    assert len(clusters(store)) == 2
    assert [run.params["kmeans.k"] for run in finished_runs(example.tracking, "label")] == ["2"]
    after = contents(store)
    # Another k keeps the embeddings.
    assert {path for path in before if before[path] == after.get(path)} >= {
        path for path in before if path.startswith(("embeddings", "ledger/embed"))
    }
    assert example.workspace.stored_config("label")["kmeans"]["k"] == 2
    assert not list(store.walk("replacing"))
