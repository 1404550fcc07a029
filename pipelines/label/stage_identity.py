"""Which clusters these are: the numbers of a clustering, kept while it labels, matched where another follows it.

A number is never used for two clusters of one workspace. A new clustering takes over the numbers of the clusters that
it shares most events with, one to one; its other clusters get numbers that none had.
"""

from collections.abc import Collection, Mapping, Sequence

from pipelines.config import Config
from pipelines.label.cells import FITTED_SHARE, distance_exceeded_by
from pipelines.label.naming import Move, moves_of, numbers_by_reference, numbers_by_size
from pipelines.label.stage_clustering import (
    Clustering,
    clustering_settings,
    fit_of,
    read_record,
    remove_other_clusterings,
)
from pipelines.label.stage_count import Count, count_clusters
from pipelines.label.stage_inputs import LabelInputs
from pipelines.label.stage_shards import EventShard
from pipelines.label.stage_tree import with_clusters
from pipelines.workspace.artifacts import FittedClustering, ReferencePeriod
from pipelines.workspace.ledger import list_markers
from pipelines.workspace.storage import Store
from pipelines.workspace.workspace import Workspace


def known_clusterings(earlier: FittedClustering | None, reference: Store | None) -> set[str]:
    """Return the clusterings whose numbers mean the clusters that events will be labelled with.

    Args:
        earlier: the one that labels them now.
        reference: a labelled workspace whose numbers are kept.
    """
    records = [earlier, None if reference is None else FittedClustering.read(reference)]
    return {known for record in records if record for known in (record.clustering, *record.before)}


def settle_clustering(
    workspace: Workspace,
    inputs: LabelInputs,
    config: Config,
    clustering: Clustering,
    label_of: Mapping[str, str],
    probe_ids: Collection[str],
    *,
    labelled: Store,
) -> tuple[FittedClustering, Count, Sequence[Move]]:
    """Give the clusters their numbers, unless they have them.

    Returns what is known of the clustering (still without names where it is new), what its events say, and what moves
    from the clustering before, whose labels are in the store `labelled`.
    """
    store, model, at_classes = workspace.store, clustering.model, clustering.at_classes
    if clustering.record is not None:
        news = _shards_with_news(store, inputs)
        count = count_clusters(store, news, model, at_classes, label_of, probe_ids, None)
        return clustering.record, count, ()
    earlier = read_record(store, replace=True)
    followed = inputs.reference or labelled
    count = count_clusters(store, inputs.shards, model, at_classes, label_of, probe_ids, followed)
    first_new = workspace.read_state().next_cluster or 0
    if earlier is not None:
        first_new = max(first_new, *(number + 1 for number in earlier.numbers))
    matched = bool(count.shared.shape[1])
    numbers = (
        numbers_by_reference(count.shared, count.counts, first_new)
        if matched
        else first_new + numbers_by_size(count.counts)
    )
    follows = [] if earlier is None or not matched or inputs.reference else [earlier.clustering, *earlier.before]
    fitted = FittedClustering(
        clustering=clustering.id,
        file=clustering.file,
        fitted_file="" if clustering.fitted_file == clustering.file else clustering.fitted_file,
        settings=clustering_settings(inputs.registered.encoder, config),
        events=inputs.events,
        num_events=int(count.counts.sum()),
        numbers=tuple(numbers.tolist()),
        names=(None,) * len(numbers),
        named_by="",
        before=tuple(name for name in follows if name != clustering.id),
        far_distance=distance_exceeded_by(1 - FITTED_SHARE, count.distances),
        periods=tuple(
            ReferencePeriod(station=station, first_ns=first, last_ns=last)
            for station, (first, last) in count.periods.items()
        ),
    )
    if earlier is not None and fit_of(earlier) == clustering.fitted_file:
        # Another cut: what it was fitted on stays.
        kept = ("events", "num_events", "far_distance", "periods")
        fitted = fitted.model_copy(update={name: getattr(earlier, name) for name in kept})
    moves = moves_of(count.shared, count.counts, numbers) if matched else ()
    return fitted, count, moves


def keep_clustering(
    workspace: Workspace, clustering: Clustering, fitted: FittedClustering, *, num_classes: int
) -> None:
    """Write what is known of the clustering, before any event is labelled by it; remove the files of others."""
    store = workspace.store
    tree = with_clusters(clustering.tree, clustering.model.clusters, fitted.numbers)
    if tree != clustering.tree:
        tree.write(store)
    if read_record(store, replace=True) != fitted:
        fitted.write(store)
    next_cluster = max(fitted.numbers) + 1
    if next_cluster > (workspace.read_state().next_cluster or 0):
        workspace.update_state(next_cluster=next_cluster)
    remove_other_clusterings(store, clustering.file, clustering.fitted_file, num_classes)


def _shards_with_news(store: Store, inputs: LabelInputs) -> list[EventShard]:
    """Return the shards that no event was labelled of, and those with hand labels, which name and score clusters."""
    done = {(mark.network, mark.station, mark.shard) for mark in list_markers(store, "label")}
    by_hand = set(inputs.hand.file_of.values()) if inputs.hand else set()
    return [
        shard
        for shard in inputs.shards
        if (shard.network, shard.station, shard.name) not in done or shard.path("events") in by_hand
    ]
