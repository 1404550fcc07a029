"""How many clusters: scores of several k on one sample of events, and a suggestion with its reason."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import calinski_harabasz_score, davies_bouldin_score, silhouette_score

from pipelines.config.label import KMeansSettings
from pipelines.label.choosing import merge
from pipelines.label.draws import uniform
from pipelines.label.kmeans import label_rows
from pipelines.label.merging import fit_to_merge
from pipelines.label.partitions import gather_local, local_partitions
from pipelines.label.space import Space
from pipelines.metrics.evaluation import adjusted_rand_index

SILHOUETTE_ROWS = 4000
STABLE = 0.05
"""A stability within this of the best counts as equally stable."""

_HALVES_SALT = -2


@dataclass(frozen=True, kw_only=True)
class KScores:
    """What a sample says about one number of clusters."""

    k: int
    inertia: float
    """Sum of squared distances of the sample's rows to the mean of their cluster, best restart."""
    silhouette: float
    """Mean silhouette of at most SILHOUETTE_ROWS of the rows, -1 to 1 (Rousseeuw, 1987)."""
    calinski_harabasz: float
    """Between-cluster over within-cluster variance, higher is better (Calinski & Harabasz, 1974)."""
    davies_bouldin: float
    """Mean similarity of each cluster to its most similar one, lower is better (Davies & Bouldin, 1979)."""
    ari_restarts: float
    """Mean adjusted Rand index between the best restart and the others; NaN with one restart."""
    ari_halves: float
    """Adjusted Rand index, over the whole sample, between the clusters found in its two halves."""


def score_k(
    rows: NDArray[np.float32],
    keys: NDArray[np.uint64],
    k: int,
    settings: KMeansSettings,
    *,
    measured_in: Space | None,
) -> KScores:
    """Find k clusters in a sample (n, d) with its event keys (n,), and in both of its halves, and score them.

    They are found as in a run with this `kmeans.k`, except that over-clusters are seeded with one try (see
    fit_to_merge). `measured_in` is the space of the sample, where the last component of an embedding is measured (see
    choosing.merge).

    Raises:
        ValueError: the sample or one of its halves has fewer rows, or fewer distinct rows, than k.
    """
    half = uniform(keys, settings.seed, _HALVES_SALT) < 0.5
    fewest = min(int(half.sum()), int((~half).sum()))
    if fewest < k:
        raise ValueError(f"there are {fewest} events, fewer than the {k} clusters asked for")
    labels, *others = (found_by(rows) for found_by in _found(rows, keys, k, settings, measured_in))
    halves = [_found(rows[part], keys[part], k, settings, measured_in)[0](rows) for part in (half, ~half)]
    few = np.argsort(uniform(keys, settings.seed, _HALVES_SALT, 1), kind="stable")[:SILHOUETTE_ROWS]
    several = 1 < len(np.unique(labels[few])) < len(few)
    return KScores(
        k=k,
        inertia=_inertia(rows, labels),
        silhouette=float(silhouette_score(rows[few], labels[few])) if several else float("nan"),
        calinski_harabasz=float(calinski_harabasz_score(rows, labels)) if several else float("nan"),
        davies_bouldin=float(davies_bouldin_score(rows, labels)) if several else float("nan"),
        ari_restarts=float(np.mean([adjusted_rand_index(labels, other) for other in others]))
        if others
        else float("nan"),
        ari_halves=adjusted_rand_index(halves[0], halves[1]),
    )


def suggest_k(scores: Sequence[KScores]) -> tuple[int, str]:
    """Suggest a k and say why: among the most stable between halves, the one with the highest silhouette."""
    most = max(score.ari_halves for score in scores)
    stable = [score for score in scores if score.ari_halves >= most - STABLE]
    chosen = max(stable, key=lambda score: (np.nan_to_num(score.silhouette, nan=-1.0), -score.k))
    others = "alone" if len(stable) == 1 else f"with k = {', '.join(str(s.k) for s in stable if s is not chosen)}"
    return chosen.k, (
        f"k = {chosen.k}: the two halves of the sample agree on it with ARI {chosen.ari_halves:.2f} ({others} within "
        f"{STABLE:g} of the best), and of these it has the highest silhouette ({chosen.silhouette:.3f})"
    )


def _found(
    rows: NDArray[np.float32], keys: NDArray[np.uint64], k: int, settings: KMeansSettings, measured_in: Space | None
) -> list[Callable[[NDArray[np.float32]], NDArray[np.int32]]]:
    """Return functions that label rows by each restart's k clusters, the best restart first."""
    gather = gather_local(local_partitions(rows, keys))
    fits = fit_to_merge(gather, k, len(rows), settings, quick=True)
    merged = merge(gather, fits, k, settings.merge, measured_in=measured_in)
    return [partial(_label, clustering.centroids, clusters) for clustering, clusters in merged]


def _label(centroids: NDArray[np.float64], clusters: NDArray[np.int32], rows: NDArray[np.float32]) -> NDArray[np.int32]:
    return label_rows(rows, centroids, clusters)[0]


def _inertia(rows: NDArray[np.float32], labels: NDArray[np.int32]) -> float:
    members = (rows[labels == label].astype(np.float64) for label in np.unique(labels))
    return float(sum(((part - part.mean(axis=0)) ** 2).sum() for part in members))
