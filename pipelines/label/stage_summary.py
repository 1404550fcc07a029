"""What a labelling run found: as the report reads it (`clustering/summary.json`), and as it is printed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipelines.label.naming import ClusterName, Move
from pipelines.label.scores import PROPAGATED, UNASSIGNED, Scores, protocol_of
from pipelines.label.stage_clustering import Clustering
from pipelines.label.stage_count import Count
from pipelines.runtime.text import counted
from pipelines.workspace.artifacts import ClusterEntry, ClusteringSummary, ConfusionMatrix, FittedClustering


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A clustering with its final numbers, names and scores."""

    clustering: Clustering
    fitted: FittedClustering
    count: Count
    """Of the events that this run went through."""
    sizes: Mapping[int, int]
    """Events by final cluster number, ascending; all events."""
    named: Mapping[int, ClusterName]
    """By final number, ascending."""
    scores: Scores | None
    """None without hand labels."""
    moves: Sequence[Move] = ()
    """What moves, where this clustering follows another."""


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
        clustering=outcome.clustering.id,
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


def print_outcome(outcome: Outcome, *, grown: bool) -> None:
    """Print what moves, the clusters with their sizes and names, and the main scores.

    Args:
        outcome: what the run found.
        grown: there are other events than the clustering was fitted on.
    """
    sizes, scores = outcome.sizes, outcome.scores
    if outcome.moves:
        print("label: numbers follow the clusters before, matched one to one by the events that they share:")
        for move in outcome.moves:
            print(f"  {move.words()}")
    if grown:
        print(f"label: the clustering of {outcome.fitted.num_events} events, fitted before, labels the new ones")
    print(f"label: {counted(sum(sizes.values()), 'event')}:")
    for number, size in sizes.items():
        entry = outcome.named[number]
        ground = f" (purity {entry.purity:.2f} of {entry.num_labels} hand labels)" if entry.num_labels else ""
        print(f"  cluster {number:>3} {size:>9} events  {entry.name or '-'}{ground}")
    if scores is not None:
        main = ("test.hungarian_accuracy", "test.purity", "test.majority_baseline")
        propagated = tuple(name for name in scores.metrics() if name in PROPAGATED)
        for name in (*main, *propagated):
            value = scores.intervals.get(name, f"{scores.values[name]:.3f}") if name in scores.metrics() else None
            print(f"  {name} {value or 'not available'}: {protocol_of(name)}")
