"""The merge tree: every cut of it, and what makes it the tree of one clustering."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage, to_tree
from test_naming_and_merging import keys_of, two_moons

from pipelines.label.kmeans import best, fit, label_rows
from pipelines.label.merging import JUDGED_SCALE, OVERLAP_SCALES, merge_overlap, overlaps_of
from pipelines.label.partitions import gather_local, local_partitions
from pipelines.label.stage_tree import clusters_at, merge_tree_of, tree_record, with_clusters
from pipelines.label.tree import MergeTree, branches_of, cut_at, cut_branches, cut_to, fit_tree, leaves_of
from pipelines.metrics.evaluation import adjusted_rand_index
from pipelines.runtime.errors import InputError
from pipelines.workspace.artifacts import ClusterTree
from pipelines.workspace.storage import open_store

SMALL = MergeTree(
    counts=np.array([5, 4, 3, 2]), children=np.array([[0, 2], [1, 3], [4, 5]]), heights=np.array([0.5, 0.25, 2.0])
)
"""Leaves 0 and 2 are node 4, leaves 1 and 3 node 5, and these node 6."""


def moons_tree(parts: int = 1) -> tuple[MergeTree, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the tree of two moons, with its centroids, default clusters, rows and their moon."""
    rows, moon = two_moons()
    gather = gather_local(local_partitions(rows, keys_of(len(rows)), parts))
    over = best(fit(gather, 24, restarts=2))
    clusters = merge_overlap(overlaps_of(gather, over)[OVERLAP_SCALES.index(JUDGED_SCALE)], over.counts, 2)
    tree = fit_tree(gather, over.centroids, clusters, over.inertia / len(rows), "overlap")
    return tree, over.centroids, clusters, rows, moon


def test_the_default_cut_is_the_clustering_and_every_other_cut_is_nested_in_it():
    tree, centroids, clusters, rows, moon = moons_tree()
    assert np.array_equal(cut_to(tree, 2), clusters)
    assert adjusted_rand_index(label_rows(rows, centroids, cut_to(tree, 2))[0], moon) > 0.95
    cuts = [cut_to(tree, k) for k in range(1, 25)]
    for k, (coarse, fine) in enumerate(pairwise(cuts), start=1):
        assert len(set(fine.tolist())) == k + 1
        assert len(set(zip(coarse.tolist(), fine.tolist(), strict=True))) == k + 1
    assert tree.counts.tolist() == np.bincount(label_rows(rows, centroids)[0], minlength=24).tolist()


def test_clusters_of_another_rule_stay_whole_until_only_they_are_left():
    rows, _ = two_moons()
    gather = gather_local(local_partitions(rows, keys_of(len(rows))))
    over = best(fit(gather, 24, restarts=2))
    clusters = np.unique(label_rows(over.centroids, np.array([[0.0, 0], [1, 0], [2, 0]]))[0], return_inverse=True)[1]
    tree = fit_tree(gather, over.centroids, clusters.astype(np.int32), over.inertia / len(rows), "overlap")
    assert adjusted_rand_index(cut_to(tree, 3), clusters) == 1.0


def test_the_tree_is_the_same_bits_for_any_partitions():
    first, other = moons_tree(1)[0], moons_tree(3)[0]
    assert np.array_equal(first.children, other.children)
    assert np.array_equal(first.heights, other.heights)


def test_centroids_that_were_not_merged_join_by_wards_rule():
    """Each row is a centroid: heights and cuts are those of scipy, whose height is the root of twice the growth."""
    rows = np.random.default_rng(2).normal(size=(60, 5))
    gather = gather_local(local_partitions(rows, keys_of(60)))
    tree = fit_tree(gather, rows, np.arange(60, dtype=np.int32), 0.0, "overlap")
    expected = linkage(rows, "ward")
    np.testing.assert_allclose(tree.heights, expected[:, 2] ** 2 / 2 / 60, rtol=1e-9)
    for k in (2, 7, 30):
        assert adjusted_rand_index(cut_to(tree, k), fcluster(expected, k, criterion="maxclust")) == pytest.approx(1.0)
    one, other = tree.children[-1]
    root = to_tree(expected)
    found = {tuple(leaves_of(tree, each).tolist()) for each in (one, other)}
    assert found == {tuple(sorted(side.pre_order())) for side in (root.left, root.right)}


def test_a_cut_at_a_height_joins_all_that_is_no_higher():
    tree = moons_tree()[0]
    for number, children in enumerate(tree.children.tolist()):
        assert all(tree.heights[child - 24] <= tree.heights[number] for child in children if child >= 24)
    for height in (0.0, *np.quantile(tree.heights, [0.2, 0.5, 0.9]), tree.heights[-1]):
        clusters = cut_at(tree, height)
        assert clusters.max() + 1 == 24 - np.count_nonzero(tree.heights <= height)
        for number, at in enumerate(tree.heights):
            leaves = leaves_of(tree, 24 + number)
            assert (len(set(clusters[leaves].tolist())) == 1) == (at <= height)


def test_named_branches_become_clusters_and_the_rest_stays():
    default = np.array([0, 1, 0, 1], dtype=np.int32)
    assert cut_branches(SMALL, default, [3]).tolist() == [0, 1, 0, 2]
    assert cut_branches(SMALL, default, [3, 0]).tolist() == [0, 1, 2, 3]
    assert cut_branches(SMALL, default, [4]).tolist() == [0, 1, 0, 1]
    assert cut_branches(SMALL, np.array([0, 0, 0, 1], dtype=np.int32), [5]).tolist() == [0, 1, 0, 1]
    with pytest.raises(ValueError, match="one branch lies in another"):
        cut_branches(SMALL, default, [0, 4])


def test_a_cluster_consists_of_its_largest_branches():
    assert branches_of(SMALL, np.array([0, 1, 0, 1])) == {0: [4], 1: [5]}
    assert branches_of(SMALL, np.array([0, 1, 0, 2])) == {0: [4], 1: [1], 2: [3]}
    assert branches_of(SMALL, np.array([0, 0, 0, 1])) == {0: [1, 4], 1: [3]}


def test_a_kept_tree_is_read_as_it_was_and_its_ids_belong_to_its_clustering(tmp_path):
    store = open_store(str(tmp_path))
    tree = moons_tree()[0]
    record = with_clusters(tree_record(tree, "c" * 64, "0123456789abcdef"), moons_tree()[2], [7, 3])
    record.write(store)
    again = ClusterTree.read(store)
    assert again == record
    for name in ("counts", "children", "heights"):
        assert np.array_equal(getattr(merge_tree_of(again), name), getattr(tree, name))
    assert [entry.cluster for entry in record.clusters] == [3, 7]
    assert record.nodes[-1].events == 4000
    ids = {node.id for node in record.nodes}
    assert len(ids) == 47
    other = tree_record(tree, "d" * 64, "0123456789abcdef")
    assert not ids & {node.id for node in other.nodes}


@pytest.mark.parametrize(
    ("cut", "said"),
    [
        (5, "label.cut is 5, but the merge tree has only 4 leaves"),
        (2.0, r"label.cut is 2, at or above the highest branch of the merge tree \(height 2\)"),
        (("b0000000000",), "label.cut names the branch b0000000000, but the workspace has no clustering"),
        ("nested", "but one branch lies in another; name branches that share no event"),
        ("root", "which is all events as one cluster; name a smaller branch"),
    ],
)
def test_a_cut_that_the_tree_does_not_have_is_one_sentence(cut, said):
    record = tree_record(SMALL, "c" * 64, "0123456789abcdef")
    ids = [node.id for node in record.nodes]
    cut = {"nested": (ids[4], ids[0]), "root": (ids[6],)}.get(cut, cut) if isinstance(cut, str) else cut
    with pytest.raises(InputError, match=said):
        clusters_at(record, np.array([0, 1, 0, 1], dtype=np.int32), cut)


@pytest.mark.parametrize("damage", ["unknown child", "joined twice", "two roots", "leaf with children"])
def test_what_is_no_tree_is_refused_by_name(tmp_path, damage):
    store = open_store(str(tmp_path))
    record = tree_record(SMALL, "c" * 64, "0123456789abcdef").model_dump(mode="json")
    nodes = record["nodes"]
    if damage == "unknown child":
        nodes[4]["children"][0] = "bffffffffff"
    elif damage == "joined twice":
        nodes[5]["children"] = nodes[4]["children"]
    elif damage == "two roots":
        nodes[6]["children"] = []
    else:
        nodes[1]["children"] = [nodes[0]["id"], nodes[2]["id"]]
    with pytest.raises(InputError, match=r"clustering/tree\.json is damaged"):
        ClusterTree.from_values(record, name=store.full(ClusterTree.PATH))
