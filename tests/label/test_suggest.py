"""`firnline suggest`: typical events of every part of the clustering first, then uncertain ones; none with a label."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest

from jobs import suggest as job
from pipelines.label.cluster_model import ClusterModel
from pipelines.label.kmeans import label_rows
from pipelines.label.space import Space
from pipelines.label.suggestions import Clustered, suggest
from pipelines.workspace import tables
from pipelines.workspace.storage import content_hash

CENTRES = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 30.0], [30.0, 0.0]])
"""The first two are two parts of cluster 0, the others clusters 1 and 2."""
CLUSTERS = np.array([0, 0, 1, 2])
SIZES = (300, 120, 60, 20)


def blobs(labelled: list[int] | None = None, copies: int = 1) -> Clustered:
    random = np.random.default_rng(4)
    rows = [centre + random.normal(size=(size, 2)) for centre, size in zip(CENTRES, SIZES, strict=True)]
    points = np.concatenate(rows * copies).astype(np.float32)
    own, _, _ = label_rows(points, CENTRES)
    _, _, margins = label_rows(points, CENTRES, CLUSTERS.astype(np.int32))
    marked = np.zeros(len(points), dtype=bool)
    marked[labelled or []] = True
    return Clustered(
        points=points, centroid_of=own, margins=margins, centroids=CENTRES, clusters=CLUSTERS, labelled=marked
    )


def most_typical(points: np.ndarray, members: np.ndarray) -> int:
    """The member with the smallest mean distance to its twenty nearest, by brute force."""
    distances = np.sort(np.linalg.norm(points[members][:, None] - points[None], axis=2), axis=1)[:, 1:21]
    return int(members[distances.mean(axis=1).argmin()])


def test_first_comes_the_most_typical_event_of_each_cluster_the_largest_first():
    sample = blobs()
    cluster = CLUSTERS[sample.centroid_of]
    expected = [most_typical(sample.points, np.flatnonzero(cluster == number)) for number in (0, 1, 2)]
    assert [one.index for one in suggest(sample, 3)] == expected
    assert suggest(sample, 3)[0].why == "typical of cluster 0 (84.0% of the events)"


def test_then_come_the_branches_that_hold_neither_a_label_nor_a_suggestion():
    sample = blobs()
    fourth = suggest(sample, 4)[3]
    taken = sample.centroid_of[suggest(sample, 1)[0].index]
    other = np.flatnonzero(sample.centroid_of == 1 - taken)
    assert fourth.index == most_typical(sample.points, other)
    assert fourth.why.startswith("typical of a part of cluster 0")


def test_a_cluster_with_a_label_waits_and_a_labelled_event_is_never_suggested():
    labelled = int(np.flatnonzero(blobs().centroid_of == 2)[7])
    sample = blobs([labelled])
    found = [one.index for one in suggest(sample, len(sample.points))]
    assert CLUSTERS[sample.centroid_of[found[:2]]].tolist() == [0, 2]
    assert sorted(found) == sorted(set(range(len(sample.points))) - {labelled})


def test_the_last_tenth_lies_between_clusters():
    sample = blobs()
    found = suggest(sample, 40)
    uncertain = [one for one in found if one.why.startswith("uncertain")]
    assert found[-len(uncertain) :] == uncertain
    assert len(uncertain) >= 4
    free = np.setdiff1d(np.arange(len(sample.points)), [one.index for one in found[: -len(uncertain)]])
    assert uncertain[0].index == free[sample.margins[free].argmin()]
    for one in uncertain:
        far = {
            number: np.linalg.norm(CENTRES[number == CLUSTERS] - sample.points[one.index], axis=1).min()
            for number in (0, 1, 2)
        }
        own, other = sorted(far, key=far.__getitem__)[:2]
        assert one.why == f"uncertain: almost as near to cluster {other} as to {own}"


def test_events_that_coincide_are_suggested_like_others():
    sample = blobs(copies=25)
    assert len({one.index for one in suggest(sample, 10)}) == 10


@pytest.fixture
def clustered_workspace(new_workspace):
    """A workspace whose labels/ are those of a stored clustering, and its rows."""
    workspace, rows = new_workspace(by_hand=False)
    model = ClusterModel(
        space=Space(),
        centroids=3.0 * np.eye(16)[:3],
        clusters=np.array([2, 0, 1], dtype=np.int32),
        inertia=1.0,
        inertia_history=(1.0,),
        converged=True,
        restart_inertias=(1.0,),
    )
    store = workspace.store
    store.write("clustering/0123.npz", model.to_bytes())
    for item in tables.list_shards(store, "labels"):
        table = tables.read_table(store, item.path)
        tables.write_table(store, item.path, table, {"clustering": content_hash(model.to_bytes())})
    return workspace, rows


def read_out(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_the_job_writes_the_columns_of_the_contract_and_changes_nothing_in_the_workspace(
    clustered_workspace, tmp_path, capsys
):
    workspace, rows = clustered_workspace
    before = {item.path: item.etag for item in workspace.store.walk()}
    out = tmp_path / "next.csv"
    assert job.main([workspace.url, str(out), "--suggest.number", "12"]) == 0
    assert "12 events to label next" in capsys.readouterr().out
    found = read_out(out)
    assert list(found[0]) == ["event_id", "network", "station", "time", "cluster", "why"]
    known = rows.set_index("event_id")
    for row in found:
        event = known.loc[row["event_id"]]
        assert (row["network"], row["station"]) == (event["network"], event["station"])
        assert row["time"] == f"{np.datetime64(event['onset'].value, 'ns')}Z"
        assert int(row["cluster"]) == event["cluster"]
    assert {row["cluster"] for row in found[:3]} == {"0", "1", "2"}
    assert {item.path: item.etag for item in workspace.store.walk()} == before
    labels = tmp_path / "labels.csv"
    labels.write_text("event_id,label\n" + "".join(f"{row['event_id']},icequake\n" for row in found))
    assert job.main([workspace.url, str(out), "--suggest.number", "12", "--labels.path", str(labels)]) == 0
    assert not {row["event_id"] for row in found} & {row["event_id"] for row in read_out(out)}


def test_a_file_that_may_hold_labels_is_kept(clustered_workspace, tmp_path, capsys):
    out = tmp_path / "next.csv"
    out.write_text("event_id,network,station,time,cluster,why,label\na,b,c,d,0,e,icequake\n")
    assert job.main([clustered_workspace[0].url, str(out)]) == 2
    assert "may hold labels; give another name" in capsys.readouterr().err
    assert out.read_text().endswith("icequake\n")


def test_events_without_labels_or_with_those_of_another_clustering_are_refused_in_one_sentence(
    clustered_workspace, new_workspace, tmp_path, capsys
):
    workspace, _ = clustered_workspace
    store, out = workspace.store, str(tmp_path / "next.csv")
    first = tables.list_shards(store, "labels")[0].path
    tables.write_table(store, first, tables.read_table(store, first), {"clustering": "another"})
    assert job.main([workspace.url, out]) == 2
    assert "are of 2 clusterings; run `firnline label` again" in capsys.readouterr().err
    store.remove(first)
    assert job.main([workspace.url, out]) == 2
    assert "has no labels yet; run `firnline label` first" in capsys.readouterr().err
    assert not Path(out).exists()
