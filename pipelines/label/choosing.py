"""Which way of merging over-clusters is kept: the one that others confirm, and in which neighbours belong together."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from pipelines.config.label import KMeansSettings
from pipelines.label.cluster_model import ClusterModel
from pipelines.label.kmeans import label_rows
from pipelines.label.lloyd import Clustering
from pipelines.label.merging import JUDGED_SCALE, OVERLAP_SCALES, fit_to_merge, merge_overlap, merge_ward, overlaps_of
from pipelines.label.partitions import Gather, sample_rows
from pipelines.label.space import Space, measured_of

TOLERATED_OVERLAP = 30.0
"""A result whose clusters overlap more than this many times the smallest overlap found is taken to be wrong."""

SAMPLED_ROWS = 10_000
"""Ways to merge are compared over about this many rows, drawn by their event keys, or over all where there are
fewer."""
QUERIES, NEIGHBOURS = 2000, 5
"""Of these, so many rows at most are compared with so many nearest neighbours each."""
NEIGHBOURS_WEIGHT = 4.0
"""Weight of the share of rows whose neighbours are of their cluster, beside agreement and balance."""
MEASURED_WEIGHT = 0.5
"""Weight of how much of the variance of the measured component lies between the clusters."""
MEASURED_APART = 0.5
"""Centroids whose measured component differs by so much overlap less by a factor of e, in half of the tries."""
_SAMPLE_SEED = 0


def best_model(
    gather: Gather,
    space: Space,
    settings: KMeansSettings,
    k: int,
    num_rows: int,
    progress: Callable[[int, int, float], None] | None,
    *,
    measured: bool,
) -> ClusterModel:
    """Return the clustering into k of rows that are in its space; ValueError where there are too few of them.

    `measured` says whether the last component of an embedding is measured, not learned (see `merge`).
    """
    fits = fit_to_merge(gather, k, num_rows, settings, progress=progress)
    chosen, clusters = next(merge(gather, fits, k, settings.merge, measured_in=space if measured else None))
    return ClusterModel(
        space=space,
        centroids=chosen.centroids,
        clusters=clusters,
        inertia=chosen.inertia,
        inertia_history=chosen.inertia_history,
        converged=chosen.converged,
        restart_inertias=tuple(clustering.inertia for clustering in fits),
    )


def merge(
    gather: Gather,
    clusterings: Sequence[Clustering],
    k: int,
    method: Literal["ward", "overlap"],
    *,
    measured_in: Space | None = None,
) -> Iterator[tuple[Clustering, NDArray[np.int32]]]:
    """Merge each restart's clustering to k clusters, and yield them, the best first.

    Yields (clustering, int32 (m,): which of the k clusters each of its centroids belongs to). Plain k-means, whose
    centroids stay as they are, and `ward` are ranked by inertia. Merging by overlap is tried with every scale. Where a
    centroid happens to lie between two classes, they are joined, and another class is cut in two; the inertia does not
    show it. So tries whose k clusters overlap more than TOLERATED_OVERLAP times the smallest overlap come last. Of the
    others, the sum of four numbers decides: how much a try agrees with all of them (mean adjusted Rand index); the
    balance of its clusters, without which a few events far from all others would be a cluster in most tries, and two
    large classes would be one; with a weight of 4, how well nearest neighbours tell its clusters, which falls where one
    is cut in two; and, with a weight of a half, how much of the variance of what is measured lies between the clusters.
    That is how linear the motion is: so a few artefacts of the instrument stay a cluster where they could join a class
    and many codas could be one, which neighbours tell as well. This counts where `measured_in` is given: the space of
    the rows, without a basis, of embeddings whose last component is measured. There each restart is also merged with
    overlaps that are smaller where centroids differ in it, since others may join the artefacts first.
    """
    by_inertia = sorted(clusterings, key=lambda clustering: clustering.inertia)
    if measured_in is not None and measured_in.basis is not None:
        measured_in = None
    if method == "ward" or all(len(clustering.centroids) == k for clustering in by_inertia):
        yield from ((clustering, _merged_by_inertia(clustering, k)) for clustering in by_inertia)
        return
    every = [
        tried
        for number, clustering in enumerate(by_inertia)
        for tried in _merged_by_scales(gather, clustering, k, number, measured_in)
    ]
    most = TOLERATED_OVERLAP * min(tried.overlap for tried in every)
    tries = [tried for tried in every if tried.overlap <= most]
    share = min(1.0, SAMPLED_ROWS / max(1, int(by_inertia[0].counts.sum())))
    sample = np.concatenate([rows for _, rows in gather(sample_rows, _SAMPLE_SEED, share)])
    nearest = [label_rows(sample, clustering.centroids)[0] for clustering in by_inertia]
    found = [tried.clusters[nearest[tried.number]] for tried in tries]
    between = [0.0] * len(found)
    if measured_in is not None:
        measured = measured_of(sample, measured_in)
        between = [share_between(measured, clusters) for clusters in found]
    worth = [
        agrees
        + balance(by_inertia[tried.number].counts, tried.clusters, k)
        + NEIGHBOURS_WEIGHT * told
        + MEASURED_WEIGHT * apart
        for tried, agrees, told, apart in zip(
            tries, agreements(found), told_by_neighbours(sample, found), between, strict=True
        )
    ]
    ranked = [tries[index] for index in sorted(range(len(tries)), key=lambda index: -worth[index])]
    ranked += sorted((tried for tried in every if tried.overlap > most), key=lambda tried: tried.overlap)
    best_of_restart: dict[int, NDArray[np.int32]] = {}
    for tried in ranked:
        best_of_restart.setdefault(tried.number, tried.clusters)
    yield from ((by_inertia[number], clusters) for number, clusters in best_of_restart.items())


@dataclass(frozen=True)
class _Try:
    """One way to merge the centroids of one restart."""

    number: int
    """Of the restart."""
    clusters: NDArray[np.int32]
    """The cluster of each centroid, (m,)."""
    overlap: float
    """Of the k clusters at JUDGED_SCALE, the sum over all pairs of them."""


def _merged_by_inertia(clustering: Clustering, k: int) -> NDArray[np.int32]:
    if len(clustering.centroids) == k:
        return np.arange(k, dtype=np.int32)
    return merge_ward(clustering.centroids, clustering.counts, k)


def _merged_by_scales(
    gather: Gather, clustering: Clustering, k: int, number: int, measured_in: Space | None
) -> Iterator[_Try]:
    overlaps = overlaps_of(gather, clustering)
    judged = overlaps[OVERLAP_SCALES.index(JUDGED_SCALE)]
    ways = [
        merge_overlap(of_scale, clustering.counts, k)
        if _overlap(of_scale)
        else merge_ward(clustering.centroids, clustering.counts, k)
        for of_scale in overlaps
    ]
    if measured_in is not None:
        measured = measured_of(clustering.centroids, measured_in)
        apart = np.exp(-(((measured[:, None] - measured) / MEASURED_APART) ** 2))
        smaller = [of_scale * apart for of_scale in overlaps]
        ways += [merge_overlap(of_scale, clustering.counts, k) for of_scale in smaller if _overlap(of_scale)]
    for clusters in ways:
        yield _Try(number, clusters, float(judged[clusters[:, None] != clusters[None]].sum()))


def _overlap(overlaps: NDArray[np.float64]) -> bool:
    """Whether any two centroids overlap."""
    return bool(overlaps[~np.eye(len(overlaps), dtype=bool)].any())


def agreements(found: Sequence[NDArray[np.int32]]) -> list[float]:
    """Return the mean adjusted Rand index of each partition of some rows with all others; 0 of one alone."""
    alone = [_num_pairs(np.bincount(clusters)) for clusters in found]
    possible = _num_pairs(np.array([len(found[0])]))
    total = [0.0] * len(found)
    for one in range(len(found)):
        for other in range(one):
            cells = found[one].astype(np.int64) << 32 | found[other]
            together = _num_pairs(np.unique(cells, return_counts=True)[1])
            by_chance = alone[one] * alone[other] / max(possible, 1.0)
            room = (alone[one] + alone[other]) / 2 - by_chance
            index = (together - by_chance) / room if room > 0 else 1.0
            total[one] += index
            total[other] += index
    return [value / max(1, len(found) - 1) for value in total]


def _num_pairs(counts: NDArray[np.int64]) -> float:
    return float((counts * (counts - 1.0) / 2.0).sum())


def balance(counts: NDArray[np.int64], clusters: NDArray[np.int32], k: int) -> float:
    """Return the entropy of the k clusters' shares of all rows, in units of that of equal shares: from 0 to 1.

    `counts` (m,) are the rows of each centroid, `clusters` (m,) the cluster of each.
    """
    shares = np.bincount(clusters, weights=counts, minlength=k) / max(1, int(counts.sum()))
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum() / np.log(k)) if k > 1 else 1.0


def share_between(values: NDArray[Any], clusters: NDArray[np.int32]) -> float:
    """Return the share of the variance of values (n,) that lies between the clusters (n,) of their rows, from 0 to 1.

    That is eta squared, the correlation ratio; 0 where all values are the same.
    """
    deviations = values.astype(np.float64) - values.mean(dtype=np.float64)
    total = float((deviations**2).sum())
    # What is left of equal values is rounding.
    if total <= len(values) * 1e-12:
        return 0.0
    counts, sums = np.bincount(clusters), np.bincount(clusters, weights=deviations)
    return float((sums**2 / np.maximum(counts, 1)).sum()) / total


def told_by_neighbours(rows: NDArray[Any], found: Sequence[NDArray[np.int32]]) -> list[float]:
    """Return how well the nearest neighbours of rows (n, d) tell the cluster of each, for several partitions of them.

    That is the share of rows whose cluster is the most frequent one among their five nearest neighbours, less the share
    of the largest cluster, in units of the most that it can exceed it: 1 where neighbours tell every row's, at most 0
    where the largest cluster is as good a guess (as Cohen's kappa, 1960, with that guess for chance).
    """
    if len(rows) <= NEIGHBOURS:
        return [0.0] * len(found)
    asked = np.arange(0, len(rows), -(-len(rows) // QUERIES))
    search = NearestNeighbors(n_neighbors=NEIGHBOURS + 1, algorithm="brute").fit(rows)
    near = search.kneighbors(rows[asked], return_distance=False)
    # A row is its own nearest neighbour; of several equal rows any other may come first.
    others = np.stack([line[line != number][:NEIGHBOURS] for line, number in zip(near, asked, strict=True)])
    told = []
    for clusters in found:
        own, around = clusters[asked], clusters[others]
        votes = (around[:, :, None] == around[:, None, :]).sum(axis=2)
        guess = around[np.arange(len(around)), votes.argmax(axis=1)]
        largest = np.unique(own, return_counts=True)[1].max() / len(own)
        told.append((float((guess == own).mean()) - largest) / max(1.0 - largest, 1.0 / len(own)))
    return told
