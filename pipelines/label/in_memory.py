"""The clustering of `firnline label` on embeddings that fit into memory, and how good it looks without a label."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from pipelines.config.label import KMeansSettings
from pipelines.label.choosing import NEIGHBOURS_WEIGHT, best_model, told_by_neighbours
from pipelines.label.cluster_model import ClusterModel
from pipelines.label.draws import event_keys
from pipelines.label.kmeans import label_rows
from pipelines.label.partitions import gather_local, local_partitions
from pipelines.label.space import fit_space, to_space
from pipelines.metrics.evaluation import adjusted_rand_index


def cluster_in_memory(
    embeddings: NDArray[np.float32], event_ids: Sequence[str], settings: KMeansSettings, *, measured: bool
) -> tuple[NDArray[np.int32], ClusterModel]:
    """Return the cluster of each embedding (n,), from 0 and not by size, and the model.

    Args:
        embeddings: (n, d).
        event_ids: theirs.
        settings: how they are clustered.
        measured: whether the last component of an embedding is measured (`Encoder.measures`).

    Raises:
        ValueError: fewer embeddings than clusters.
    """
    gather = gather_local(local_partitions(embeddings, event_keys(event_ids)))
    space = fit_space(gather, normalize=settings.normalize, whiten=settings.whiten)
    model = best_model(gather, space, settings, settings.k, len(embeddings), None, measured=measured)
    return clusters_of(embeddings, model), model


def clusters_of(embeddings: NDArray[np.float32], model: ClusterModel) -> NDArray[np.int32]:
    """Return the cluster of each embedding (n,) by a model."""
    return label_rows(to_space(embeddings, model.space), model.centroids, model.clusters)[0]


def worth_of_clusters(embeddings: NDArray[np.float32], found: Sequence[NDArray[np.int32]], k: int) -> dict[str, float]:
    """Return how good clusterings of the same embeddings into k look, by three of the numbers that also choose a merge.

    Returns:
        `agreement` of the clusterings (mean adjusted Rand index of all pairs), `balance` of the clusters' sizes
        (entropy in units of that of equal sizes), `neighbours` (`told_by_neighbours`), and `worth`, their mean with the
        weight `NEIGHBOURS_WEIGHT` for the last: 1 is best.
    """
    agreement = float(np.mean([adjusted_rand_index(one, other) for one, other in combinations(found, 2)]))
    shares = [np.unique(clusters, return_counts=True)[1] / len(clusters) for clusters in found]
    balance = float(np.mean([-(each * np.log(each)).sum() / np.log(k) for each in shares]))
    neighbours = float(np.mean(told_by_neighbours(embeddings, found)))
    worth = (agreement + balance + NEIGHBOURS_WEIGHT * neighbours) / (2 + NEIGHBOURS_WEIGHT)
    return {"agreement": agreement, "balance": balance, "neighbours": neighbours, "worth": worth}
