"""Numbers and names of clusters: by size or after a reference clustering; by the majority of hand labels."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from pipelines.metrics.evaluation import Labels, contingency


@dataclass(frozen=True, kw_only=True)
class ClusterName:
    """What a cluster is called, and on what ground."""

    name: str | None
    """None where the labels do not agree well enough, or where there are none."""
    purity: float
    """Share of the cluster's labelled events that have the most frequent label; NaN without labels."""
    num_labels: int


def numbers_by_size(counts: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return the new number of each cluster, int32 (k,): 0 for the largest (ties: the lower old number)."""
    order = np.argsort(-counts, kind="stable")
    numbers = np.empty(len(counts), dtype=np.int32)
    numbers[order] = np.arange(len(counts), dtype=np.int32)
    return numbers


def numbers_by_reference(shared: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return the new number of each cluster, matched one to one to the reference clusters that share most events.

    `shared` (k, reference k) counts the events of each pair. Clusters left over, and those that share no event, take
    the numbers after the reference's, by size.
    """
    rows, columns = linear_sum_assignment(shared, maximize=True)
    numbers = np.full(len(counts), -1, dtype=np.int32)
    for row, column in zip(rows, columns, strict=True):
        if shared[row, column] > 0:
            numbers[row] = column
    rest = np.flatnonzero(numbers < 0)
    numbers[rest] = shared.shape[1] + numbers_by_size(counts[rest])
    return numbers


def names_by_majority(
    labels: Labels, clusters: NDArray[Any], num_clusters: int, *, min_purity: float
) -> dict[int, ClusterName]:
    """Name each of the clusters 0 .. num_clusters - 1 by the most frequent of its labels (ties: the first by name).

    A cluster whose majority has less than `min_purity` of the labels stays without a name.
    """
    names = {number: ClusterName(name=None, purity=float("nan"), num_labels=0) for number in range(num_clusters)}
    classes, groups, counts = contingency(labels, clusters)
    for column, number in enumerate(groups.tolist()):
        total, most = int(counts[:, column].sum()), int(counts[:, column].argmax())
        purity = float(counts[most, column] / total)
        names[int(number)] = ClusterName(
            name=str(classes[most]) if purity >= min_purity else None, purity=purity, num_labels=total
        )
    return names


def name_clusters(
    numbers: NDArray[np.int32],
    labels: Labels,
    clusters: NDArray[Any],
    given: Mapping[int, str | None],
    *,
    min_purity: float,
) -> dict[int, ClusterName]:
    """Name the clusters `numbers`, ascending: by the user where `given` has the number, else by `names_by_majority`.

    `labels` and `clusters` are those of the events whose hand labels may name, with their final numbers.
    """
    final = sorted(int(number) for number in numbers)
    found = names_by_majority(labels, clusters, max(final) + 1, min_purity=min_purity)
    named = {number: found[number] for number in final}
    for number in final:
        if number in given:
            named[number] = replace(named[number], name=given[number])
    return named
