"""k-means over Ray: partitions are actors that keep their rows; the driver adds sums and keeps centroids only."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import ObjectLostError, RayActorError

from pipelines.config import Config
from pipelines.config.label import KMeansSettings
from pipelines.label.choosing import best_model
from pipelines.label.cluster_model import ClusterModel
from pipelines.label.merging import MIN_ROWS_PER_OVER_CLUSTER, over_clusters
from pipelines.label.partitions import Gather, sample_rows
from pipelines.label.space import enter_space, fit_space
from pipelines.label.stage_partitions import ActorGather, Survey, fitted_rows, start_partitions, wait_for_actors
from pipelines.label.stage_shards import EventShard
from pipelines.label.tree import MergeTree, fit_tree
from pipelines.runtime.errors import InputError, StageFailed
from pipelines.workspace import tables
from pipelines.workspace.storage import Store

MAX_ATTEMPTS = 4
"""How often a fit is started: again after a worker was lost, with its rows or with sums that nobody had fetched yet.
Every start gives the same centroids."""


def check_enough_events(store: Store, shards: Sequence[EventShard], config: Config) -> None:
    """Raise InputError where there are fewer events than the fit, or a comparison of several k, needs.

    Reads event ids until there are enough.
    """
    settings, sweep, cut = config.kmeans, config.label.sweep_k, config.label.cut
    cut = cut if isinstance(cut, int) else 0
    # Of so many clusters each has so many events at least, else fewer are fitted.
    for_cut = cut * MIN_ROWS_PER_OVER_CLUSTER if cut > settings.k else cut
    # A comparison of several k finds each of them in both halves of its sample.
    for_sweep = 2 * min(sweep, default=0)
    num_events = num_fitted = 0
    for shard in shards:
        if num_fitted >= max(settings.k, for_sweep, for_cut):
            break
        ids = tables.read_table(store, shard.path("events"), ["event_id"]).column("event_id")
        _, fitted = fitted_rows(ids, settings)
        num_events, num_fitted = num_events + len(fitted), num_fitted + int(fitted.sum())
    if num_fitted < settings.k and num_fitted < num_events:
        raise InputError(
            f"kmeans.fraction {settings.fraction:g} leaves {num_fitted} of the {num_events} events for the fit, fewer "
            f"than kmeans.k, which is {settings.k}; give a larger kmeans.fraction or a smaller kmeans.k"
        )
    if num_fitted < settings.k:
        raise InputError(f"kmeans.k is {settings.k} but there are only {num_events} events; give a smaller kmeans.k")
    if num_fitted < for_cut:
        raise InputError(
            f"label.cut is {cut}, but the merge tree of {num_fitted} events has only "
            f"{over_clusters(settings.k, settings.overcluster, num_fitted)} leaves; give no more"
        )
    sampled = min(num_fitted, config.label.sweep_events)
    if sampled < for_sweep:
        raise InputError(
            f"label.sweep_k is {list(sweep)} but only {sampled} events can be compared, and each k is fitted to "
            "each half of them; use smaller values in label.sweep_k"
        )


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A clustering, and what else was asked of the same rows."""

    model: ClusterModel
    at_classes: ClusterModel | None
    """The same events at k = number of classes of the hand labels; None where that is not asked for, or cannot be."""
    tree: MergeTree | None
    """Of the model's centroids, where it is asked for."""
    keys: NDArray[np.uint64]
    """(n,): event keys of the sample."""
    sample: NDArray[Any]
    """(n, d): its points."""


def fit_model(
    store: Store,
    surveys: Sequence[Survey],
    settings: KMeansSettings,
    *,
    num_workers: int,
    measured: bool,
    cpus_per_worker: float = 1.0,
    known: ClusterModel | None = None,
    num_classes: int | None = None,
    known_rows: int = 0,
    with_tree: bool = False,
    progress: Callable[[int, int, float], None] | None = None,
    sample_events: int = 0,
) -> Fit:
    """Fit the clustering over actors that hold the embeddings, or stream them where they do not fit.

    Args:
        store, surveys, settings: which rows, and how they are clustered.
        num_workers, cpus_per_worker: actors, and the CPUs of each.
        measured: whether the last component of an embedding is measured (`Encoder.measures`).
        known: a clustering that stands; it is not fitted again.
        num_classes: fit another one with so many clusters.
        known_rows: how many rows `known` was fitted to.
        with_tree: join the centroids of the clustering to a tree.
        progress: called with (restart, iteration, inertia).
        sample_events: about how many events are drawn for a comparison of numbers of clusters.

    Raises:
        InputError: fewer events, or fewer distinct embeddings, than clusters, or all embeddings are the same.
        StageFailed: workers were lost again and again.
    """
    for attempt in range(MAX_ATTEMPTS):
        actors = start_partitions(store, surveys, settings, num_workers, cpus_per_worker)
        try:
            wait_for_actors(actors)
            return _fit(
                ActorGather(actors),
                surveys,
                settings,
                measured=measured,
                known=known,
                num_classes=num_classes,
                known_rows=known_rows,
                with_tree=with_tree,
                progress=progress,
                sample_events=sample_events,
            )
        except (RayActorError, ObjectLostError) as error:
            if attempt + 1 == MAX_ATTEMPTS:
                raise StageFailed(
                    f"k-means lost a worker {MAX_ATTEMPTS} times ({' '.join(str(error).split())[:200]}); give workers "
                    "more memory or a smaller kmeans.memory_gb"
                ) from None
        except ValueError as error:
            raise InputError(
                f"{error}; change kmeans.k ({settings.k}), kmeans.overcluster or label.model, with --replace, since "
                "the embeddings are written"
            ) from None
        finally:
            for actor in actors:
                ray.kill(actor)
    raise AssertionError("unreachable")


def _fit(
    gather: Gather,
    surveys: Sequence[Survey],
    settings: KMeansSettings,
    *,
    measured: bool,
    known: ClusterModel | None,
    num_classes: int | None,
    known_rows: int,
    with_tree: bool,
    progress: Callable[[int, int, float], None] | None,
    sample_events: int,
) -> Fit:
    num_rows = sum(survey.num_fitted for survey in surveys)
    if known is None:
        space = fit_space(gather, normalize=settings.normalize, whiten=settings.whiten)
        model = best_model(gather, space, settings, settings.k, num_rows, progress, measured=measured)
    else:
        model = known
        gather(enter_space, known.space)
    at_classes = None
    if num_classes == settings.k:
        at_classes = model
    elif num_classes is not None:
        try:
            at_classes = best_model(gather, model.space, settings, num_classes, num_rows, None, measured=measured)
        except ValueError as error:
            print(
                f"label: no clustering at k = number of classes ({num_classes}), so no score of it: {error}", flush=True
            )
    tree = None
    if with_tree:
        mean_square = model.inertia / max(num_rows if known is None else known_rows, 1)
        tree = fit_tree(gather, model.centroids, model.clusters, mean_square, settings.merge)
    sampled = gather(sample_rows, settings.seed, sample_events / num_rows) if sample_events else []
    return Fit(
        model=model,
        at_classes=at_classes,
        tree=tree,
        keys=np.concatenate([keys for keys, _ in sampled]) if sampled else np.zeros(0, dtype=np.uint64),
        sample=np.concatenate([rows for _, rows in sampled]) if sampled else np.zeros((0, 0), dtype=np.float32),
    )
