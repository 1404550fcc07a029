"""`label.cut`: other clusters of the same tree, without embedding or clustering again."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_up_events import Example, write_example
from test_growth import add_day, files, rows

from jobs import label
from pipelines.label import stage_clustering
from pipelines.label.stage import label_events
from pipelines.runtime.errors import InputError
from pipelines.workspace.artifacts import ClusteringSummary, ClusterTree, FittedClustering


def cut(example: Example, value: object) -> object:
    return example.with_settings(labels={"path": None}, kmeans={"restarts": 1}, label={"cut": value})


def test_one_tree_serves_every_cut(tmp_path: Path, ray_cluster: object, monkeypatch: pytest.MonkeyPatch) -> None:
    example = write_example(tmp_path, stations=("VNA1",), num_days=2)
    store, workspace = example.workspace.store, example.workspace
    with pytest.raises(InputError, match=r"label\.cut is 61, but kmeans\.k 3 times kmeans\.overcluster 20 give"):
        label_events(workspace, cut(example, 61), example.tracking)
    with pytest.raises(InputError, match=r"label\.cut is 13, but the merge tree of 120 events has only 12 leaves"):
        label_events(workspace, cut(example, 13), example.tracking)
    with pytest.raises(InputError, match=r"label\.cut names the branch b0123456789, but .* has no clustering"):
        label_events(workspace, cut(example, ["b0123456789"]), example.tracking)
    assert not files(example, "embeddings")

    label_events(workspace, cut(example, None), example.tracking)
    tree, fitted, first = ClusterTree.read(store), FittedClustering.read(store), rows(example)
    assert (tree.clustering, tree.file) == (fitted.clustering, fitted.file)
    assert {entry.cluster for entry in tree.clusters} == set(fitted.numbers)
    events_of = {node.id: node.events for node in tree.nodes}
    sizes = {entry.cluster: sum(events_of[name] for name in entry.branches) for entry in tree.clusters}
    assert sizes == first["cluster"].value_counts().to_dict()
    embeddings, fit = files(example, "embeddings"), store.read(f"clustering/{fitted.file}.npz")

    # Nothing is fitted from here on.
    monkeypatch.setattr(stage_clustering, "fit_model", None)
    with pytest.raises(InputError, match=r"label\.cut is 5 but .* made with None"):
        label_events(workspace, cut(example, 5), example.tracking)
    found = label_events(workspace, cut(example, 5), example.tracking, replace=True)
    assert (found.num_embedded, found.num_written, len(found.cluster_sizes)) == (0, 2, 5)
    five = rows(example)
    together = pd.crosstab(first["cluster"], five["cluster"])
    assert ((together > 0).sum() == 1).all()
    assert five["distance"].equals(first["distance"])
    # A number stays with the cluster that has most of its events.
    assert all(together.loc[number].idxmax() == number for number in (0, 1, 2))
    assert ClusteringSummary.read(store).clustering == FittedClustering.read(store).clustering != fitted.clustering
    assert {entry.cluster for entry in ClusterTree.read(store).clusters} == set(found.cluster_sizes)

    # A branch of a cluster becomes one of its own.
    leaf = next(node for node in tree.nodes if not node.children and node.events > 3)
    label_events(workspace, cut(example, [leaf.id]), example.tracking, replace=True)
    named = rows(example)
    assert len(set(named["cluster"])) == 4
    own = named["cluster"].value_counts().index[named["cluster"].value_counts() == leaf.events]
    assert any(first.loc[named["cluster"] == number, "cluster"].nunique() == 1 for number in own)

    # A height.
    heights = sorted(node.height for node in tree.nodes)
    between = float(np.mean(heights[-2:]))
    two = label_events(workspace, cut(example, between), example.tracking, replace=True)
    assert len(two.cluster_sizes) == 2
    with pytest.raises(InputError, match=r"label\.cut is .*, at or above the highest branch"):
        label_events(workspace, cut(example, heights[-1] + 1.0), example.tracking, replace=True)
    assert len(set(rows(example)["cluster"])) == 2

    # New events get the clusters of the cut; the tree and all that was there keep their bytes.
    before = files(example, "labels")
    kept = store.read(ClusterTree.PATH)
    add_day(example, 2)
    found = label_events(workspace, cut(example, between), example.tracking)
    assert (found.num_embedded, found.num_written, found.num_events) == (1, 1, 180)
    assert {path: content for path, content in files(example, "labels").items() if path in before} == before
    assert store.read(ClusterTree.PATH) == kept
    assert FittedClustering.read(store).num_events == 120

    # Without a cut the labels are those of the fit again.
    label_events(workspace, cut(example, None), example.tracking, replace=True)
    again = rows(example).loc[first.index]
    assert all(len(set(part)) == 1 for _, part in again["cluster"].groupby(first["cluster"]))
    assert again["margin"].equals(first["margin"])
    assert store.read(f"clustering/{fitted.file}.npz") == fit
    assert FittedClustering.read(store).clustering == fitted.clustering
    assert {path: content for path, content in files(example, "embeddings").items() if path in embeddings} == embeddings
    assert len([item for item in store.walk("clustering") if item.path.endswith(".npz")]) == 1


@pytest.mark.parametrize("value", [None, 4])
def test_a_workspace_without_a_tree_gets_one_and_keeps_its_clusters(
    tmp_path: Path, ray_cluster: object, value: int | None
) -> None:
    example = write_example(tmp_path, stations=("VNA1",), num_days=2)
    store = example.workspace.store
    found = label_events(example.workspace, cut(example, value), example.tracking)
    assert len(found.cluster_sizes) == (value or 3)
    tree, fitted, labels = store.read(ClusterTree.PATH), FittedClustering.read(store), files(example, "labels")
    store.remove(ClusterTree.PATH)
    found = label_events(example.workspace, cut(example, value), example.tracking)
    assert (found.num_embedded, found.num_written) == (0, 0)
    assert store.read(ClusterTree.PATH) == tree
    assert (FittedClustering.read(store), files(example, "labels")) == (fitted, labels)


def test_a_bad_cut_ends_the_job_with_2_before_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = write_example(tmp_path, stations=("VNA1",), num_days=1)
    for value in ("1", "-0.5", "[]", "true", "[x]", "b0123456789"):
        assert label.main([example.workspace.url, "--label.cut", value]) == 2
        assert "label.cut is" in capsys.readouterr().err
    assert label.main([example.workspace.url, "--label.cut", "[b0123456789]"]) == 2
    assert "names the branch b0123456789" in capsys.readouterr().err
    assert not files(example, "embeddings")
    assert json.loads(example.workspace.store.read("workspace.json"))
