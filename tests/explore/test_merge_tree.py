"""The merge tree in the explorer: its branches, their events, and the mean of their waveforms."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipelines.config.label import LabelsSettings
from pipelines.config.report import ExploreSettings
from pipelines.explore.branch_figure import aligned
from pipelines.explore.explorer import Explorer, open_explorer
from pipelines.explore.queries import BadRequest
from pipelines.workspace.workspace import Workspace

Rows = tuple[Workspace, pd.DataFrame]


@pytest.fixture
def explorer(clustered: Rows, tmp_path: Path) -> Explorer:
    return open_explorer(clustered[0], ExploreSettings(labels_path=str(tmp_path / "labels.csv")), LabelsSettings())


def test_traces_that_differ_by_a_shift_a_sign_and_a_gain_lie_on_each_other() -> None:
    random = np.random.default_rng(0)
    seconds = np.arange(400) / 50 - 2
    pulse = np.exp(-((seconds / 0.3) ** 2)) * np.sin(20 * seconds)
    shifts, gains = random.integers(-20, 21, 30), random.uniform(0.1, 9, 30) * random.choice([-1, 1], 30)
    traces = np.stack([gain * np.roll(pulse, shift) for shift, gain in zip(shifts, gains, strict=True)])
    lined_up = aligned(traces.astype(np.float32), 50.0, max_shift_s=1.0)
    assert np.abs(lined_up - lined_up[0]).max() < 1e-5
    # Further than that no event is moved, and one without signal stays as it is.
    far = np.stack([pulse, np.roll(pulse, 100), np.zeros_like(pulse)]).astype(np.float32)
    assert np.abs(aligned(far, 50.0)[1].argmax() - 100 - far[0].argmax()) <= 25
    assert not aligned(far, 50.0)[2].any()


def test_the_branches_of_a_cluster_hold_its_events(clustered: Rows, explorer: Explorer) -> None:
    described = explorer.tree.describe()
    assert len(described["nodes"]) == 11
    cluster_of = clustered[1].set_index("event_id")["cluster"]
    for cluster, branches in described["clusters"].items():
        ids = explorer.map.points().ids([point for one in branches for point in explorer.tree.members(one)])
        assert (cluster_of[ids] == cluster).mean() > 0.95
    assert len(explorer.tree.members(described["nodes"][-1]["id"])) == len(cluster_of)


def test_a_branch_has_a_figure_of_its_mean(explorer: Explorer) -> None:
    [branch] = explorer.tree.describe()["clusters"][1]
    found = explorer.tree.figure(branch, "#0072b2", (2.0, 20.0))
    assert found["svg"].startswith("<svg")
    assert found["words"].startswith("The mean of 40 events")
    assert found["points"] == explorer.tree.members(branch)
    with pytest.raises(BadRequest, match="no branch"):
        explorer.tree.figure("b0000000000", "#0072b2", None)


def test_a_workspace_without_a_tree_says_what_adds_it(small_workspace: Rows) -> None:
    explorer = open_explorer(small_workspace[0], ExploreSettings(), LabelsSettings())
    with pytest.raises(BadRequest, match="firnline label"):
        explorer.tree.describe()
