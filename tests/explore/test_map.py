"""The map of the embedding: where events lie on it, which are near, and what the explorer says and saves of it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from pipelines.config.label import LabelsSettings
from pipelines.config.report import ExploreSettings
from pipelines.explore import layout
from pipelines.explore.explorer import Explorer, open_explorer
from pipelines.explore.map_points import read_points
from pipelines.explore.queries import MAX_LISTED, BadRequest, Filter, read_point_label
from pipelines.explore.queries import read_points as read_numbers
from pipelines.workspace import tables
from pipelines.workspace.workspace import Workspace

Rows = tuple[Workspace, pd.DataFrame]


def blobs(count: int, dims: int = 8, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    kinds = random.integers(0, 4, count)
    return (6 * np.eye(dims)[kinds] + random.normal(size=(count, dims))).astype(np.float32), kinds


@pytest.fixture
def explorer(clustered: Rows, tmp_path: Path) -> Explorer:
    settings = ExploreSettings(labels_path=str(tmp_path / "labels.csv"), page_events=10)
    return open_explorer(clustered[0], settings, LabelsSettings())


def vectors_by_id(workspace: Workspace) -> dict[str, np.ndarray]:
    found = {}
    for item in tables.list_shards(workspace.store, "embeddings"):
        table = tables.read_table(workspace.store, item)
        found |= dict(zip(table["event_id"].to_pylist(), tables.embeddings(table["embedding"]), strict=True))
    return found


def test_the_components_are_those_of_scikit_learn() -> None:
    points, _ = blobs(10_000)
    plane = layout.principal_components(points)
    expected = PCA(2).fit_transform(points.astype(np.float64))
    for axis in (0, 1):
        assert abs(np.corrcoef(plane[:, axis], expected[:, axis])[0, 1]) > 0.999999
    assert np.quantile(np.hypot(*plane.T), layout._INSIDE) == pytest.approx(1, abs=1e-3)


def test_events_that_t_sne_has_not_placed_lie_beside_their_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "MAX_LANDMARKS", 400)
    points, kinds = blobs(6_000)
    plane = layout.neighbourhoods(points, seed=0)
    near = NearestNeighbors(n_neighbors=6).fit(plane[:400]).kneighbors(plane[400:], return_distance=False)
    assert np.mean(kinds[:400][near] == kinds[400:, None]) > 0.99


@pytest.mark.parametrize("dims", [1, 2, 5])
def test_the_nearest_are_found_in_any_number_of_dimensions(dims: int) -> None:
    points = np.random.default_rng(2).normal(size=(9_000, dims)).astype(np.float32)
    assert layout.principal_components(points).shape == (9_000, 2)
    expected = NearestNeighbors(n_neighbors=7).fit(points).kneighbors(points[:1], return_distance=False)[0]
    assert layout.nearest_points(points, points[0], 7).tolist() == expected.tolist()


def test_the_map_has_every_event_once_with_its_cluster_and_row(clustered: Rows, explorer: Explorer) -> None:
    points = explorer.map.points()
    rows = clustered[1].set_index("event_id")
    ids = points.event_ids.to_pylist()
    assert sorted(ids) == sorted(rows.index)
    assert points.clusters.tolist() == rows.loc[ids, "cluster"].tolist()
    listed = explorer.list_points([5, 3, 200])
    assert [event["event_id"] for event in listed] == [ids[number] for number in (5, 3, 200)]
    assert [event["point"] for event in listed] == [5, 3, 200]
    assert explorer.figure(listed[0]["event_id"])["svg"].startswith("<svg")
    assert explorer.map.plane("neighbours").shape == explorer.map.plane("components").shape == (len(ids), 2)


def test_a_sample_of_a_large_archive_is_the_same_each_time(clustered: Rows, explorer: Explorer) -> None:
    some = read_points(clustered[0].store, explorer.files, 0.25)
    again = read_points(clustered[0].store, explorer.files, 0.25)
    assert some.event_ids.equals(again.event_ids)
    assert 60 < len(some) < 120
    # An event that is not on the map still has neighbours there.
    explorer.map_events = 90
    explorer.__post_init__()
    assert explorer.map.state()["total"] == 120
    left_out = next(iter(set(clustered[1]["event_id"]) - set(explorer.map.points().event_ids.to_pylist())))
    with pytest.raises(BadRequest, match="not been listed"):
        explorer.neighbours(left_out, 4)
    cursor = "first"
    while cursor and left_out not in explorer.shown:
        _, cursor = explorer.list_events(Filter(), "" if cursor == "first" else cursor, 100)
    assert len(explorer.neighbours(left_out, 4)) == 4


def test_a_workspace_of_many_files_has_a_first_look_of_some_of_them(
    explorer: Explorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert explorer.map.sketch() is None
    explorer.files = explorer.files * 3
    explorer.__post_init__()
    sketch = explorer.map.sketch()
    assert sketch is not None
    assert sketch[0].shape == (len(sketch[1]), 2) == (120, 2)
    assert len(explorer.map.points()) == 3 * 360


def test_the_neighbours_of_an_event_are_those_of_its_embedding(clustered: Rows, explorer: Explorer) -> None:
    vector_of = vectors_by_id(clustered[0])
    ids = list(vector_of)
    finder = NearestNeighbors(n_neighbors=6).fit(np.stack([vector_of[one] for one in ids]))
    event = explorer.list_points([17])[0]["event_id"]
    near = finder.kneighbors(vector_of[event][None], return_distance=False)[0]
    found = [one["event_id"] for one in explorer.neighbours(event, 5)]
    assert found == [ids[number] for number in near[1:]]


def test_events_chosen_on_the_map_are_labelled_and_the_label_is_undone(explorer: Explorer, tmp_path: Path) -> None:
    ids = explorer.map.points().ids([1, 2, 3])
    assert explorer.set_point_labels([1, 2], "icequake") == {"labels": {"icequake": 2}, "undo": "the label of 2 events"}
    explorer.set_point_labels([2, 3], "spike")
    assert explorer.labelled_points() == {"icequake": [1], "spike": [2, 3]}
    # Another program has changed one of them since: that one stays.
    path = tmp_path / "labels.csv"
    path.write_text(path.read_text().replace(f"{ids[2]},spike", f"{ids[2]},tremor"))
    undone = explorer.undo()
    assert undone["changed"] == {ids[1]: "icequake"}
    assert (undone["labels"], undone["undo"]) == ({"icequake": 2, "tremor": 1}, "the label of 2 events")
    explorer.undo()
    assert pd.read_csv(path).to_dict("list") == {"event_id": [ids[2]], "label": ["tremor"]}
    with pytest.raises(BadRequest, match="nothing to undo"):
        explorer.undo()


def test_a_cluster_name_is_undone(explorer: Explorer) -> None:
    explorer.set_name(1, "iceberg")
    undone = explorer.undo()
    assert (undone["cluster"], undone["names"], undone["said"]) == (1, {}, "the name of cluster 1")


def test_the_map_and_the_list_have_the_same_typical_events_in_the_same_order(
    explorer: Explorer, clustered: Rows
) -> None:
    first, total = explorer.typical(2, 0, 8)
    own = clustered[1].query("cluster == 2").sort_values(["distance", "event_id"])
    assert ([event["event_id"] for event in first], total) == (own["event_id"].head(8).tolist(), len(own))
    listed, _ = explorer.list_events(Filter(cluster=2, order="typical"), "", 8)
    assert [event["event_id"] for event in listed] == [event["event_id"] for event in first]
    everything = [event["event_id"] for event in explorer.typical(2, 0, 1000)[0]]
    assert everything == own["event_id"].tolist()
    assert explorer.typical(2, 5, 3) == (first[5:], total)
    assert explorer.typical(99, 0, 8) == ([], 0)


def test_events_among_others_of_another_name_are_probably_in_the_wrong_cluster(
    explorer: Explorer, clustered: Rows
) -> None:
    points = explorer.map.points()
    nearest = NearestNeighbors(n_neighbors=21).fit(points.points).kneighbors(points.points, return_distance=False)
    names = points.clusters.copy()
    # Three events among others of cluster 0, and one beside them that a hand label says to be of cluster 1, too.
    odd = nearest[np.flatnonzero(names == 0)[0]][:4]
    points.clusters[odd] = 1
    explorer.set_point_labels([int(odd[3])], "iceberg")
    explorer.set_name(0, "icequake")
    found = explorer.doubtful()
    assert sorted(event["point"] for event in found) == sorted(odd[:3].tolist())
    others = {int(at): int((~np.isin(nearest[at][1:], odd)).sum()) for at in odd}
    for event in found:
        assert event["why"] == f"{others[event['point']]} of its 20 nearest events are icequake"
        assert event["other"] == "icequake"
    assert explorer.doubtful(0) == []
    # Of one name, the two clusters are one class.
    explorer.set_name(1, "icequake")
    assert explorer.doubtful() == []
    # Without a name there is nothing to change it to.
    explorer.sizes = dict.fromkeys(range(3), (40, ""))
    explorer.set_name(0, None)
    found = explorer.doubtful()
    assert {(event["why"].partition(" are ")[2], event["other"]) for event in found} == {("in cluster 0", "")}


def test_the_suggestions_are_those_of_suggest_and_leave_out_what_is_labelled(explorer: Explorer) -> None:
    suggested = explorer.suggestions()
    assert len(suggested) == 30
    assert suggested[0]["why"].startswith("typical of cluster")
    uncertain = [event for event in suggested if event["heading"].startswith("Uncertain")]
    assert uncertain
    assert uncertain == suggested[-len(uncertain) :]
    explorer.set_name(uncertain[0]["cluster"], "iceberg")
    why = explorer.suggestions()[-len(uncertain)]["why"]
    assert why.startswith("uncertain: almost as near to cluster ")
    assert why.endswith(f"as to {uncertain[0]['cluster']} (iceberg)")
    explorer.set_labels({suggested[0]["event_id"]: "icequake"})
    assert suggested[0]["event_id"] not in {event["event_id"] for event in explorer.suggestions()}


def test_a_workspace_whose_embeddings_are_all_the_same_has_no_map_and_says_why(
    new_workspace: Callable[..., Rows],
) -> None:
    workspace, _ = new_workspace(events_per_file=4)
    for item in tables.list_shards(workspace.store, "embeddings"):
        workspace.store.remove(item.path)
    explorer = open_explorer(workspace, ExploreSettings(), LabelsSettings())
    with pytest.raises(BadRequest, match="a map needs the embeddings of at least 10 events; 0 were found"):
        explorer.map.points()
    assert "0 were found" in explorer.map.state()["failure"]


@pytest.mark.parametrize("text", ["", "x", "-1", "1,,2", "1.5", "9" * 11, ",".join(["1"] * (MAX_LISTED + 1))])
def test_numbers_that_are_none_of_the_map_are_refused(text: str, explorer: Explorer) -> None:
    with pytest.raises(BadRequest):
        explorer.list_points(read_numbers(text))
    for body in ({"points": text, "label": "a"}, {"points": [True], "label": "a"}, {"points": [], "label": "a"}):
        with pytest.raises(BadRequest):
            read_point_label(body)
    with pytest.raises(BadRequest, match="has only 360 events"):
        explorer.list_points([360])
