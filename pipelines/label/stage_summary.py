"""What a labelling run found: as the report reads it (`clustering/summary.json`), and as it is printed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.label.cluster_model import ClusterModel
from pipelines.label.naming import ClusterName
from pipelines.label.scores import UNASSIGNED, Scores, protocol_of
from pipelines.label.stage_count import Count
from pipelines.workspace.artifacts import ClusterEntry, ClusteringSummary, ConfusionMatrix


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A clustering with its final numbers, names and scores."""

    model: ClusterModel
    model_hash: str
    count: Count
    numbers: NDArray[np.int32]
    """(k,): the final number of each of the model's clusters."""
    named: Mapping[int, ClusterName]
    """By final number, ascending."""
    scores: Scores | None
    """None without hand labels."""

    @property
    def sizes(self) -> dict[int, int]:
        """Events by final cluster number, ascending."""
        return {int(number): int(size) for number, size in sorted(zip(self.numbers, self.count.counts, strict=True))}

    @property
    def names(self) -> dict[int, str]:
        """Names by final cluster number, of the clusters that have one."""
        return {number: entry.name for number, entry in self.named.items() if entry.name}


def summary_of(outcome: Outcome, *, fingerprint: str, mark: str, sweep_k: Sequence[int]) -> ClusteringSummary:
    """Return what `clustering/summary.json` holds, with what it was made from (see ClusteringSummary)."""
    sizes, scores = outcome.sizes, outcome.scores
    clusters = tuple(
        ClusterEntry(
            cluster=number,
            events=sizes[number],
            name=entry.name,
            purity=entry.purity if entry.num_labels else None,
            hand_labels=entry.num_labels,
        )
        for number, entry in outcome.named.items()
    )
    metrics = {} if scores is None else scores.metrics()
    return ClusteringSummary(
        clusters=clusters,
        fingerprint=fingerprint,
        mark=mark,
        sweep_k=tuple(sweep_k),
        scores=metrics,
        protocol={name: protocol_of(name) for name in metrics},
        confusion=None if scores is None else _confusion(scores),
    )


def _confusion(scores: Scores) -> ConfusionMatrix:
    return ConfusionMatrix(
        hand_labels=scores.classes,
        given=(*scores.classes, UNASSIGNED),
        events=tuple(tuple(row) for row in scores.matrix.tolist()),
    )


def print_outcome(outcome: Outcome) -> None:
    """Print the clusters with their sizes and names, and the main scores."""
    sizes, scores = outcome.sizes, outcome.scores
    print(f"label: {sum(sizes.values())} events:")
    for number, size in sizes.items():
        entry = outcome.named[number]
        ground = f" (purity {entry.purity:.2f} of {entry.num_labels} hand labels)" if entry.num_labels else ""
        print(f"  cluster {number:>3} {size:>9} events  {entry.name or '-'}{ground}")
    if scores is not None:
        for name in ("test.hungarian_accuracy", "test.purity", "test.majority_baseline"):
            value = scores.intervals.get(name, f"{scores.values[name]:.3f}") if name in scores.metrics() else None
            print(f"  {name} {value or 'not available'}: {protocol_of(name)}")
