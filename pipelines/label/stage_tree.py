"""The merge tree as the workspace keeps it, and which clusters `label.cut` makes of it."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.config import Config
from pipelines.label.cluster_model import ClusterModel
from pipelines.label.tree import MergeTree, branches_of, cut_at, cut_branches, cut_to
from pipelines.runtime.errors import InputError
from pipelines.workspace.artifacts import ClusterBranches, ClusterTree, TreeNode
from pipelines.workspace.ledger import fingerprint
from pipelines.workspace.storage import Store, content_hash

_NO_BRANCH = (
    "label.cut names the branch {name}, but {url} has no clustering of these settings with it; label without label.cut "
    "first, and take ids from clustering/tree.json"
)
Cut = int | float | tuple[str, ...] | None
"""As `label.cut`."""


def tree_record(tree: MergeTree, clustering: str, file: str) -> ClusterTree:
    """Return a tree as it is kept; ids of branches follow from the clustering (content hash of `file`) and the leaves.

    Args:
        tree: of the centroids in the file.
        clustering, file: which fit it is of.
    """
    ids = [_id(clustering, str(leaf)) for leaf in range(len(tree.counts))]
    events = tree.counts.tolist()
    nodes = [TreeNode(id=name, children=(), events=count, height=0.0) for name, count in zip(ids, events, strict=True)]
    for (one, other), height in zip(tree.children.tolist(), tree.heights.tolist(), strict=True):
        children = (ids[one], ids[other])
        ids.append(_id(*children))
        events.append(events[one] + events[other])
        nodes.append(TreeNode(id=ids[-1], children=children, events=events[-1], height=height))
    return ClusterTree(clustering=clustering, file=file, nodes=tuple(nodes))


def _id(*parts: str) -> str:
    return f"b{hashlib.blake2b(' '.join(parts).encode(), digest_size=5).hexdigest()}"


def merge_tree_of(record: ClusterTree) -> MergeTree:
    """Return the tree that `tree_record` keeps."""
    number_of = {node.id: number for number, node in enumerate(record.nodes)}
    num_leaves = (len(record.nodes) + 1) // 2
    joined = record.nodes[num_leaves:]
    children = [[number_of[child] for child in node.children] for node in joined]
    return MergeTree(
        counts=np.array([node.events for node in record.nodes[:num_leaves]], dtype=np.int64),
        children=np.array(children, dtype=np.int64).reshape(-1, 2),
        heights=np.array([node.height for node in joined], dtype=np.float64),
    )


def with_clusters(record: ClusterTree, clusters: NDArray[np.int32], numbers: Sequence[int]) -> ClusterTree:
    """Return the tree with the branches of each cluster: `clusters` (m,) of the leaves, and the number of each."""
    found = branches_of(merge_tree_of(record), clusters)
    named = {numbers[cluster]: tuple(record.nodes[node].id for node in nodes) for cluster, nodes in found.items()}
    entries = tuple(ClusterBranches(cluster=number, branches=named[number]) for number in sorted(named))
    return record.model_copy(update={"clusters": entries})


def cut_file(fitted_file: str, cut: Cut) -> str:
    """Return the name of the file of a cut through a fit: that of the fit itself where `label.cut` is not given."""
    return fitted_file if cut is None else fingerprint({"fitted": fitted_file, "cut": cut})


def clusters_at(record: ClusterTree, default: NDArray[np.int32], cut: Cut) -> NDArray[np.int32]:
    """Return the cluster of each leaf, int32 (m,), that `label.cut` asks for; `default` (m,) are those of `kmeans.k`.

    Raises:
        InputError: the tree has no such cut, or it makes one cluster of all events.
    """
    if cut is None:
        return default
    tree = merge_tree_of(record)
    if isinstance(cut, int):
        num_leaves = len(tree.counts)
        if cut > num_leaves:
            raise InputError(f"label.cut is {cut}, but the merge tree has only {num_leaves} leaves; give no more")
        return cut_to(tree, cut)
    if isinstance(cut, float):
        clusters = cut_at(tree, cut)
        if not clusters.any():
            raise InputError(
                f"label.cut is {cut:g}, at or above the highest branch of the merge tree (height "
                f"{record.nodes[-1].height:.4g}), so that all events would be one cluster; give a lower height"
            )
        return clusters
    number_of = {node.id: number for number, node in enumerate(record.nodes)}
    for name in cut:
        if name not in number_of:
            raise InputError(_NO_BRANCH.format(name=name, url="the workspace"))
    try:
        clusters = cut_branches(tree, default, [number_of[name] for name in cut])
    except ValueError as error:
        raise InputError(f"label.cut is {list(cut)}, but {error}; name branches that share no event") from None
    if not clusters.any():
        raise InputError(f"label.cut is {list(cut)}, which is all events as one cluster; name a smaller branch")
    return clusters


def check_settings(store: Store, config: Config) -> None:
    """Refuse a cut that no tree of these settings has, or branches that no clustering here has.

    Raises:
        InputError: names the key.
    """
    cut, settings = config.label.cut, config.kmeans
    most = settings.k * settings.overcluster
    if isinstance(cut, int) and cut > most:
        raise InputError(
            f"label.cut is {cut}, but kmeans.k {settings.k} times kmeans.overcluster {settings.overcluster} give a "
            f"merge tree of at most {most} leaves; give no more, or a larger kmeans.overcluster"
        )
    if isinstance(cut, tuple):
        record = read_tree(store, replace=True)
        missing = sorted(set(cut) - {node.id for node in record.nodes} if record else cut)
        if missing:
            raise InputError(_NO_BRANCH.format(name=missing[0], url=store.url))


def check_cut(store: Store, fitted_file: str, cut: Cut, *, replace: bool = False) -> None:
    """Refuse a cut that the tree of a fit does not have, as far as that fit stands here.

    Args:
        store: of the workspace.
        fitted_file: the name of the fit's file.
        cut: `label.cut`.
        replace: a damaged tree is as none.

    Raises:
        InputError: there is no such cut; or branches are named, and the fit is still to be made.
    """
    if cut is None:
        return
    record = read_tree(store, replace=replace)
    path = f"clustering/{fitted_file}.npz"
    if record is not None and record.file == fitted_file and store.exists(path):
        content = store.read(path)
        if content_hash(content) == record.clustering:
            clusters_at(record, ClusterModel.from_bytes(content).clusters, cut)
            return
    if isinstance(cut, tuple):
        raise InputError(_NO_BRANCH.format(name=cut[0], url=store.url))


def read_tree(store: Store, *, replace: bool) -> ClusterTree | None:
    """Return the merge tree that is kept; None without one, and where it is damaged but all is replaced.

    Raises:
        InputError: it is damaged.
    """
    try:
        return ClusterTree.read(store)
    except InputError:
        if not replace:
            raise
        return None
