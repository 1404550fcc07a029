"""k-means over Ray: partitions are actors that keep their rows; the driver adds sums and keeps centroids only."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import RayActorError

from pipelines.config import Config
from pipelines.config.label import KMeansSettings
from pipelines.label.cluster_model import ClusterModel
from pipelines.label.merging import fit_to_merge, merge
from pipelines.label.partitions import Gather, sample_rows
from pipelines.label.space import fit_space
from pipelines.label.stage_partitions import ActorGather, Survey, fitted_rows, start_partitions, wait_for_actors
from pipelines.label.stage_shards import EventShard
from pipelines.runtime.errors import InputError, StageFailed
from pipelines.workspace import tables
from pipelines.workspace.storage import Store

MAX_ATTEMPTS = 4
"""How often a fit is started: again after a worker with its rows was lost. Every start gives the same centroids."""


def check_enough_events(store: Store, shards: Sequence[EventShard], config: Config) -> None:
    """Raise InputError where there are fewer events than the fit, or a comparison of several k, needs.

    Reads event ids until there are enough.
    """
    settings, sweep = config.kmeans, config.label.sweep_k
    # A comparison of several k finds each of them in both halves of its sample.
    for_sweep = 2 * min(sweep, default=0)
    num_events = num_fitted = 0
    for shard in shards:
        if num_fitted >= max(settings.k, for_sweep):
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
    sampled = min(num_fitted, config.label.sweep_events)
    if sampled < for_sweep:
        raise InputError(
            f"label.sweep_k is {list(sweep)} but only {sampled} events can be compared, and each k is fitted to "
            "each half of them; use smaller values in label.sweep_k"
        )


def fit_model(
    store: Store,
    surveys: Sequence[Survey],
    settings: KMeansSettings,
    *,
    num_workers: int,
    cpus_per_worker: float = 1.0,
    num_classes: int | None = None,
    progress: Callable[[int, int, float], None] | None = None,
    sample_events: int = 0,
) -> tuple[ClusterModel, tuple[NDArray[np.uint64], NDArray[Any]]]:
    """Fit the clustering over actors that hold the embeddings, or stream them where they do not fit.

    Returns the model, and event keys (n,) with points (n, d) of about `sample_events` events drawn for a comparison
    of numbers of clusters.

    Raises:
        InputError: fewer events, or fewer distinct embeddings, than clusters, or all embeddings are the same.
        StageFailed: workers were lost again and again.
    """
    for attempt in range(MAX_ATTEMPTS):
        actors = start_partitions(store, surveys, settings, num_workers, cpus_per_worker)
        try:
            wait_for_actors(actors)
            return _fit(ActorGather(actors), surveys, settings, num_classes, progress, sample_events)
        except RayActorError as error:
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
    num_classes: int | None,
    progress: Callable[[int, int, float], None] | None,
    sample_events: int,
) -> tuple[ClusterModel, tuple[NDArray[np.uint64], NDArray[Any]]]:
    space = fit_space(gather, normalize=settings.normalize, whiten=settings.whiten)
    num_rows = sum(survey.num_fitted for survey in surveys)
    fits = fit_to_merge(gather, settings.k, num_rows, settings, progress=progress)
    chosen, clusters = next(merge(gather, fits, settings.k, settings.merge))
    at_classes, clusters_at_classes = None, None
    if num_classes == settings.k:
        at_classes, clusters_at_classes = chosen.centroids, clusters
    elif num_classes is not None:
        at_classes, clusters_at_classes = _at_classes(gather, settings, num_classes, num_rows)
    model = ClusterModel(
        space=space,
        centroids=chosen.centroids,
        clusters=clusters,
        inertia=chosen.inertia,
        inertia_history=chosen.inertia_history,
        converged=chosen.converged,
        restart_inertias=tuple(clustering.inertia for clustering in fits),
        at_classes=at_classes,
        clusters_at_classes=clusters_at_classes,
    )
    share = sample_events / num_rows
    sampled = gather(sample_rows, settings.seed, share) if sample_events else []
    keys = np.concatenate([keys for keys, _ in sampled]) if sampled else np.zeros(0, dtype=np.uint64)
    rows = np.concatenate([rows for _, rows in sampled]) if sampled else np.zeros((0, 0), dtype=np.float32)
    return model, (keys, rows)


def _at_classes(
    gather: Gather, settings: KMeansSettings, num_classes: int, num_rows: int
) -> tuple[NDArray[np.float64], NDArray[np.int32]] | tuple[None, None]:
    """Return centroids and their clusters at k = number of classes; where there can be none, say why."""
    try:
        fits = fit_to_merge(gather, num_classes, num_rows, settings)
    except ValueError as error:
        print(f"label: no clustering at k = number of classes ({num_classes}), so no score of it: {error}", flush=True)
        return None, None
    chosen, clusters = next(merge(gather, fits, num_classes, settings.merge))
    return chosen.centroids, clusters
