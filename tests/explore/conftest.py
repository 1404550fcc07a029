"""Fixtures of the explorer's tests: small workspaces."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from chromium import Chromium, chromium
from small_workspace import fill_workspace, new_workspace, small_workspace

from pipelines.label.cluster_model import ClusterModel
from pipelines.label.space import Space
from pipelines.label.stage_tree import tree_record, with_clusters
from pipelines.label.tree import MergeTree
from pipelines.workspace import tables
from pipelines.workspace.artifacts import ClusteringSummary
from pipelines.workspace.storage import content_hash
from pipelines.workspace.workspace import Workspace

__all__ = ["fill_workspace", "new_workspace", "small_workspace"]


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chromium]:
    with chromium(tmp_path / "profile") as found:
        found.resize(1400, 1000)
        yield found


@pytest.fixture
def clustered(new_workspace: Callable[..., tuple[Workspace, pd.DataFrame]]) -> tuple[Workspace, pd.DataFrame]:
    """A workspace with the clustering of its labels: two centroids for each of the three classes."""
    workspace, rows = new_workspace()
    store = workspace.store
    centroids = np.repeat(3 * np.eye(16)[:3], 2, axis=0) + np.where(np.arange(6) % 2, 0.1, -0.1)[:, None]
    model = ClusterModel(
        space=Space(),
        centroids=centroids,
        clusters=np.repeat(np.arange(3, dtype=np.int32), 2),
        inertia=1.0,
        inertia_history=(1.0,),
        converged=True,
        restart_inertias=(1.0,),
    )
    content = model.to_bytes()
    store.write("clustering/0123456789abcdef.npz", content)
    counts = np.array([60, 60, 60, 60, 60, 60], dtype=np.int64)
    children = np.array([[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]], dtype=np.int64)
    tree = MergeTree(counts=counts, children=children, heights=np.array([0.1, 0.2, 0.3, 1.5, 2.0]))
    record = tree_record(tree, content_hash(content), "0123456789abcdef")
    with_clusters(record, model.clusters, (0, 1, 2)).write(store)
    summary = ClusteringSummary.read(store)
    assert summary is not None
    summary.model_copy(update={"clustering": content_hash(content)}).write(store)
    for item in tables.list_shards(store, "labels"):
        metadata = {"clustering": content_hash(content)}
        tables.write_table(store, item.path, tables.read_table(store, item.path), metadata)
    return workspace, rows
