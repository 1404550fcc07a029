"""Numbers and names of clusters: by size or after an earlier clustering; by the majority of hand labels."""

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


def numbers_by_reference(shared: NDArray[np.int64], counts: NDArray[np.int64], first_new: int = 0) -> NDArray[np.int32]:
    """Return the new number of each cluster, matched one to one to the reference clusters that share most events.

    `shared` (k, reference k) counts the events of each pair. Clusters left over, and those that share no event, take
    the numbers after the reference's, none below `first_new`, by size.
    """
    rows, columns = linear_sum_assignment(shared, maximize=True)
    numbers = np.full(len(counts), -1, dtype=np.int32)
    for row, column in zip(rows, columns, strict=True):
        if shared[row, column] > 0:
            numbers[row] = column
    rest = np.flatnonzero(numbers < 0)
    numbers[rest] = max(shared.shape[1], first_new) + numbers_by_size(counts[rest])
    return numbers


@dataclass(frozen=True, kw_only=True)
class Move:
    """Where the events of a cluster come from, or, without `number`, an earlier cluster that has no successor."""

    number: int | None
    """Of the new cluster."""
    events: int
    """In it; of an earlier cluster without a successor, those that it had."""
    before: tuple[tuple[int, int], ...]
    """Earlier numbers with the events from each, most first; for one without a successor, itself."""

    def words(self) -> str:
        """Return it as a line of a table."""
        if self.number is None:
            return f"cluster {self.before[0][0]:>3} has no successor; its {self.events} events are in other clusters"
        parts = [f"{events} from {number}" for number, events in self.before]
        known = sum(events for _, events in self.before)
        others = [f"{self.events - known} that had none"] if self.events > known else []
        state = "kept" if any(number == self.number for number, _ in self.before) else "new"
        return f"cluster {self.number:>3} ({state}) {self.events:>9} events: {', '.join(parts + others) or 'none'}"


def moves_of(shared: NDArray[np.int64], counts: NDArray[np.int64], numbers: NDArray[np.int32]) -> list[Move]:
    """Return what moves where a clustering follows another: one row for each new cluster, then the old ones that end.

    Args:
        shared: (k, old numbers): events of each pair.
        counts: (k,): events of each new cluster.
        numbers: (k,): its number.
    """
    moves = []
    for row in np.argsort(numbers, kind="stable").tolist():
        columns = [column for column in np.argsort(-shared[row], kind="stable").tolist() if shared[row, column]]
        before = tuple((column, int(shared[row, column])) for column in columns)
        moves.append(Move(number=int(numbers[row]), events=int(counts[row]), before=before))
    had = shared.sum(axis=0)
    for column in np.flatnonzero(had).tolist():
        if column not in numbers:
            events = int(had[column])
            moves.append(Move(number=None, events=events, before=((column, events),)))
    return moves


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
