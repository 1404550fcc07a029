"""How many clusters: scores of several k on one sample of events, and a suggestion with its reason."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import calinski_harabasz_score, davies_bouldin_score, silhouette_score

from pipelines.evaluation import adjusted_rand_index
from pipelines.label.draws import uniform
from pipelines.label.kmeans import Clustering, best, fit, gather_local, label_rows, local_partitions

SILHOUETTE_ROWS = 4000
STABLE = 0.05
"""A stability within this of the best counts as equally stable."""

_HALVES_SALT = -2


@dataclass(frozen=True, kw_only=True)
class KScores:
    """What a sample says about one number of clusters."""

    k: int
    inertia: float
    """Sum of squared distances in the sample, best restart."""
    silhouette: float
    """Mean silhouette of at most SILHOUETTE_ROWS of the rows, -1 to 1 (Rousseeuw, 1987)."""
    calinski_harabasz: float
    """Between-cluster over within-cluster variance, higher is better (Calinski & Harabasz, 1974)."""
    davies_bouldin: float
    """Mean similarity of each cluster to its most similar one, lower is better (Davies & Bouldin, 1979)."""
    ari_restarts: float
    """Mean adjusted Rand index between the best restart and the others; NaN with one restart."""
    ari_halves: float
    """Adjusted Rand index, over the whole sample, between the centroids of its two halves."""


def score_k(
    rows: NDArray[np.float32], keys: NDArray[np.uint64], k: int, *, seed: int = 0, restarts: int = 4
) -> KScores:
    """Fit k clusters to a sample (n, d) with its event keys (n,), and to both of its halves, and score the fits."""
    fits = _fits(rows, keys, k, seed, restarts)
    chosen = best(fits)
    labels = label_rows(rows, chosen.centroids)[0]
    others = [label_rows(rows, other.centroids)[0] for other in fits if other is not chosen]
    half = uniform(keys, seed, _HALVES_SALT) < 0.5
    halves = [
        label_rows(rows, best(_fits(rows[part], keys[part], k, seed, restarts)).centroids)[0] for part in (half, ~half)
    ]
    few = np.argsort(uniform(keys, seed, _HALVES_SALT, 1), kind="stable")[:SILHOUETTE_ROWS]
    several = len(np.unique(labels[few])) > 1
    return KScores(
        k=k,
        inertia=chosen.inertia,
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
    chosen = max(stable, key=lambda score: (score.silhouette, -score.k))
    others = "alone" if len(stable) == 1 else f"with k = {', '.join(str(s.k) for s in stable if s is not chosen)}"
    return chosen.k, (
        f"k = {chosen.k}: the two halves of the sample agree on it with ARI {chosen.ari_halves:.2f} ({others} within "
        f"{STABLE:g} of the best), and of these it has the highest silhouette ({chosen.silhouette:.3f})"
    )


def _fits(rows: NDArray[np.float32], keys: NDArray[np.uint64], k: int, seed: int, restarts: int) -> list[Clustering]:
    return fit(gather_local(local_partitions(rows, keys)), k, seed=seed, restarts=restarts)
