"""k-means over Ray: partitions are actors that keep their rows; the driver adds sums and keeps centroids only."""

import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray.exceptions import RayActorError

from pipelines.config import Config
from pipelines.config.label import KMeansSettings
from pipelines.label import kmeans
from pipelines.label.draws import event_keys, uniform
from pipelines.label.kmeans import Partition, block_rows, fit_space, partition_edges, sample_rows
from pipelines.label.merging import fit_to_merge, merge
from pipelines.label.space import Space
from pipelines.label.stage_shards import Shard
from pipelines.runtime.errors import InputError, StageFailed
from pipelines.runtime.ray_session import task_results
from pipelines.workspace import tables
from pipelines.workspace.storage import Store

T = TypeVar("T")

MOST_ATTEMPTS = 4
"""How often a fit starts again after a worker with its rows was lost; every start gives the same centroids."""

_FRACTION_SALT = -3


@dataclass(frozen=True, kw_only=True)
class Span:
    """Rows [first, end) among the rows of one embeddings file that the fit uses."""

    path: str
    first: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What one file of embeddings holds."""

    path: str
    num_rows: int
    num_fitted: int
    """Rows that kmeans.fraction leaves to the fit."""
    first_id: str
    dim: int


@dataclass(frozen=True, kw_only=True)
class Model:
    """Everything that labels an embedding: its space, the centroids there, and the cluster of each centroid."""

    space: Space
    centroids: NDArray[np.float64]
    """(m, d): m = k, or more where over-clusters are merged to k."""
    clusters: NDArray[np.int32]
    """(m,): which of the k clusters each centroid belongs to, before they are numbered for good."""
    inertia: float
    inertia_history: tuple[float, ...]
    converged: bool
    restart_inertias: tuple[float, ...]
    at_classes: NDArray[np.float64] | None = None
    """Centroids of the same clustering at k = number of classes of the hand labels; None without labels, or where there
    are fewer events, or fewer distinct embeddings, than classes."""
    clusters_at_classes: NDArray[np.int32] | None = None
    """Which of so many clusters each of these centroids belongs to."""

    def to_bytes(self) -> bytes:
        """Return the model as an npz archive without pickled objects."""
        arrays: dict[str, Any] = {
            "centroids": self.centroids,
            "clusters": self.clusters,
            "inertia_history": np.array(self.inertia_history),
            "restart_inertias": np.array(self.restart_inertias),
        }
        optional = {
            "mean": self.space.mean,
            "basis": self.space.basis,
            "at_classes": self.at_classes,
            "clusters_at_classes": self.clusters_at_classes,
        }
        arrays |= {name: array for name, array in optional.items() if array is not None}
        plain = {"normalize": self.space.normalize, "inertia": self.inertia, "converged": self.converged}
        arrays["plain"] = np.frombuffer(json.dumps(plain, sort_keys=True).encode(), dtype=np.uint8)
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        return buffer.getvalue()

    @staticmethod
    def from_bytes(content: bytes) -> "Model":
        """Return the model that `to_bytes` wrote."""
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            plain = json.loads(arrays["plain"].tobytes())
            optional = {name: arrays.get(name) for name in ("mean", "basis", "at_classes", "clusters_at_classes")}
            return Model(
                space=Space(normalize=plain["normalize"], mean=optional["mean"], basis=optional["basis"]),
                centroids=arrays["centroids"],
                clusters=arrays["clusters"],
                inertia=plain["inertia"],
                inertia_history=tuple(arrays["inertia_history"].tolist()),
                converged=plain["converged"],
                restart_inertias=tuple(arrays["restart_inertias"].tolist()),
                at_classes=optional["at_classes"],
                clusters_at_classes=optional["clusters_at_classes"],
            )


def check_enough_events(store: Store, shards: Sequence[Shard], config: Config) -> None:
    """Raise InputError where there are fewer events than the fit, or a comparison of several k, needs.

    Reads event ids until there are enough.
    """
    settings, sweep = config.kmeans, config.label.sweep_k
    # A comparison looks for each k in both halves of its sample.
    for_sweep = 2 * min(sweep, default=0)
    num_events = num_fitted = 0
    for shard in shards:
        if num_fitted >= max(settings.k, for_sweep):
            break
        fitted = _fitted(tables.read_table(store, shard.path("events"), ["event_id"]).column("event_id"), settings)[1]
        num_events, num_fitted = num_events + len(fitted), num_fitted + int(fitted.sum())
    if num_fitted < settings.k and num_fitted < num_events:
        raise InputError(
            f"kmeans.fraction {settings.fraction:g} leaves {num_fitted} of the {num_events} events to the fit, fewer "
            f"than kmeans.k, which is {settings.k}; give a larger kmeans.fraction or a smaller kmeans.k"
        )
    if num_fitted < settings.k:
        raise InputError(f"kmeans.k is {settings.k} but there are only {num_events} events; give a smaller kmeans.k")
    sampled = min(num_fitted, config.label.sweep_events)
    if sampled < for_sweep:
        raise InputError(
            f"label.sweep_k is {list(sweep)} but only {sampled} events can be compared, and each k is looked for in "
            "either half of them; give smaller numbers of clusters"
        )


def survey_embeddings(store: Store, shards: Sequence[Shard], settings: KMeansSettings) -> list[Survey]:
    """Return what each file of embeddings holds, in event_id order (of the files' first rows)."""
    groups = tables.by_task(shards)
    found = task_results([_survey.remote(store, group, settings.seed, settings.fraction) for group in groups])
    surveys = [survey for group in found for survey in group]
    return sorted(surveys, key=lambda survey: (survey.first_id, survey.path))


def fit_model(
    store: Store,
    surveys: Sequence[Survey],
    settings: KMeansSettings,
    *,
    num_workers: int,
    cpus_a_worker: float = 1.0,
    num_classes: int | None = None,
    progress: Callable[[int, int, float], None] | None = None,
    sample_events: int = 0,
) -> tuple[Model, tuple[NDArray[np.uint64], NDArray[Any]]]:
    """Fit the clustering over actors that hold the embeddings, or stream them where they do not fit.

    Returns the model, and event keys (n,) with points (n, d) of about `sample_events` events drawn for a comparison
    of numbers of clusters.

    Raises:
        InputError: fewer events, or fewer distinct embeddings, than clusters, or all embeddings are the same.
        StageFailed: workers were lost again and again.
    """
    for attempt in range(MOST_ATTEMPTS):
        actors = _start_partitions(store, surveys, settings, num_workers, cpus_a_worker)
        try:
            return _fit(_ActorGather(actors), surveys, settings, num_classes, progress, sample_events)
        except RayActorError as error:
            if attempt + 1 == MOST_ATTEMPTS:
                raise StageFailed(
                    f"k-means lost a worker {MOST_ATTEMPTS} times ({' '.join(str(error).split())[:200]}); give workers "
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
    gather: kmeans.Gather,
    surveys: Sequence[Survey],
    settings: KMeansSettings,
    num_classes: int | None,
    progress: Callable[[int, int, float], None] | None,
    sample_events: int,
) -> tuple[Model, tuple[NDArray[np.uint64], NDArray[Any]]]:
    space = fit_space(gather, normalize=settings.normalize, whiten=settings.whiten)
    num_rows = sum(survey.num_fitted for survey in surveys)
    fits = fit_to_merge(gather, settings.k, num_rows, settings, progress=progress)
    chosen, clusters = next(merge(gather, fits, settings.k, settings.merge))
    at_classes, clusters_at_classes = None, None
    if num_classes == settings.k:
        at_classes, clusters_at_classes = chosen.centroids, clusters
    elif num_classes is not None:
        at_classes, clusters_at_classes = _at_classes(gather, settings, num_classes, num_rows)
    model = Model(
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
    gather: kmeans.Gather, settings: KMeansSettings, num_classes: int, num_rows: int
) -> tuple[NDArray[np.float64], NDArray[np.int32]] | tuple[None, None]:
    """Return centroids and their clusters at k = number of classes; where there can be none, say why."""
    try:
        fits = fit_to_merge(gather, num_classes, num_rows, settings)
    except ValueError as error:
        print(f"label: no clustering at k = number of classes ({num_classes}), so no score of it: {error}", flush=True)
        return None, None
    chosen, clusters = next(merge(gather, fits, num_classes, settings.merge))
    return chosen.centroids, clusters


class PartitionActor:
    """A worker that keeps one partition and runs steps on it."""

    def __init__(
        self, store: Store, spans: list[Span], first_row: int, rows_a_block: int, settings: KMeansSettings, keep: bool
    ) -> None:
        keys = np.concatenate([_fitted_keys(store, span, settings) for span in spans])
        self.partition = Partition(
            lambda: _read_blocks(store, spans, rows_a_block, settings), keys, first_row, keep=keep
        )

    def run(self, step: Callable[..., T], *arguments: Any) -> T:
        """Return `step(partition, *arguments)`."""
        return step(self.partition, *arguments)


def _start_partitions(
    store: Store, surveys: Sequence[Survey], settings: KMeansSettings, num_workers: int, cpus_a_worker: float
) -> list[Any]:
    num_rows = sum(survey.num_fitted for survey in surveys)
    size = block_rows(num_rows)
    edges, needed, keep = plan_partitions(num_rows, surveys[0].dim, settings.memory_gb, num_workers, _cluster_memory())
    actor: Any = ray.remote(PartitionActor)
    return [
        actor.options(num_cpus=cpus_a_worker, memory=memory).remote(
            store, list(_spans(surveys, first, end)), first, size, settings, keep
        )
        for (first, end), memory in zip(edges, needed, strict=True)
    ]


def plan_partitions(
    num_rows: int, dim: int, memory_gb: float, num_workers: int, available: float
) -> tuple[list[tuple[int, int]], list[int], bool]:
    """Divide the rows among as many workers, up to `num_workers`, as the memory that Ray has (bytes) suffices for.

    Returns the rows [first, end) of each worker, the bytes that each takes, and whether they keep their rows; else they
    stream them. The fit is the same for any number of workers.

    Raises:
        StageFailed: it does not suffice for one.
    """
    for count in range(num_workers, 0, -1):
        edges = partition_edges(num_rows, count)
        fits = max(end - first for first, end in edges) * dim * 4 <= memory_gb * 1e9
        for keep in (True, False) if fits else (False,):
            needed = [_actor_bytes(edge, dim, keep=keep) for edge in edges]
            if sum(needed) <= available:
                return edges, needed, keep
    raise StageFailed(
        f"k-means over {num_rows} events needs {sum(needed) / 1e9:.1f} GB of memory in a worker, Ray has "
        f"{available / 1e9:.1f} GB; give it more, or a smaller kmeans.fraction"
    )


def _actor_bytes(edge: tuple[int, int], dim: int, *, keep: bool) -> int:
    """Return what a worker may take: key, distance and label of each row, and its rows or a few blocks."""
    num_rows = edge[1] - edge[0]
    return num_rows * 16 + (2 * num_rows * dim * 4 if keep else 0) + (1 << 28)


def _cluster_memory() -> float:
    """Return the memory that Ray hands out, in bytes."""
    resources: Any = ray.cluster_resources
    return float(resources().get("memory", np.inf))


@dataclass(frozen=True)
class _ActorGather:
    """Runs the steps on the actors; what they exchange goes from one to the other (see kmeans.Gather)."""

    actors: Sequence[Any]

    def __call__(self, step: Callable[..., T], *arguments: Any) -> list[T]:
        shared = [ray.put(value) if isinstance(value, np.ndarray) else value for value in arguments]
        return task_results([actor.run.remote(step, *shared) for actor in self.actors])

    def exchange(self, give: Callable[..., Any], step: Callable[..., T], *arguments: Any) -> list[T]:
        return self(step, *arguments, *[actor.run.remote(give) for actor in self.actors])


def _spans(surveys: Sequence[Survey], first: int, end: int) -> Iterator[Span]:
    """Yield what rows [first, end) of all fitted rows are in each file."""
    start = 0
    for survey in surveys:
        inside_first, inside_end = max(first - start, 0), min(end - start, survey.num_fitted)
        if inside_first < inside_end:
            yield Span(path=survey.path, first=inside_first, end=inside_end)
        start += survey.num_fitted


def _fitted(ids: pa.Array | pa.ChunkedArray, settings: KMeansSettings) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    keys = event_keys(ids)
    if settings.fraction == 1.0:
        return keys, np.ones(len(keys), dtype=bool)
    return keys, uniform(keys, settings.seed, _FRACTION_SALT) < settings.fraction


def _fitted_keys(store: Store, span: Span, settings: KMeansSettings) -> NDArray[np.uint64]:
    ids = tables.read_table(store, span.path, ["event_id"]).column("event_id").combine_chunks()
    keys, fitted = _fitted(ids, settings)
    return keys[fitted][span.first : span.end]


def _read_blocks(
    store: Store, spans: Sequence[Span], rows_a_block: int, settings: KMeansSettings
) -> Iterator[NDArray[np.float32]]:
    """Yield the spans' embeddings in blocks of a fixed number of rows, the last one shorter."""
    pending: list[NDArray[np.float32]] = []
    held = 0
    columns = ["embedding"] if settings.fraction == 1.0 else ["event_id", "embedding"]
    for span in spans:
        start = 0
        for batch in tables.iter_batches(store, span.path, columns, rows_a_block):
            rows = tables.embeddings(batch.column("embedding"))
            if settings.fraction != 1.0:
                rows = rows[_fitted(batch.column("event_id"), settings)[1]]
            inside = rows[max(span.first - start, 0) : max(span.end - start, 0)]
            start += len(rows)
            while len(inside):
                piece = inside[: rows_a_block - held]
                pending.append(piece)
                held += len(piece)
                inside = inside[len(piece) :]
                if held == rows_a_block:
                    yield np.concatenate(pending)
                    pending, held = [], 0
            if start >= span.end:
                break
    if held:
        yield np.concatenate(pending)


@ray.remote
def _survey(store: Store, shards: list[Shard], seed: int, fraction: float) -> list[Survey]:
    settings = KMeansSettings(seed=seed, fraction=fraction)
    found = []
    for shard in shards:
        path = shard.path("embeddings")
        with tables.open_table(store, path) as file:
            ids = file.read(columns=["event_id"]).column("event_id").combine_chunks()
            dim = file.schema_arrow.field("embedding").type.list_size
        found.append(
            Survey(
                path=path,
                num_rows=len(ids),
                num_fitted=int(_fitted(ids, settings)[1].sum()),
                first_id=ids[0].as_py(),
                dim=dim,
            )
        )
    return found
