"""The partitions of k-means as Ray actors: which rows of which files each holds, and how steps run on them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from pipelines.config.label import KMeansSettings
from pipelines.label.draws import event_keys, uniform
from pipelines.label.partitions import Partition, block_rows, count_rows, partition_edges
from pipelines.label.stage_shards import EventShard
from pipelines.runtime.capacity import capacity
from pipelines.runtime.errors import InputError, StageFailed
from pipelines.runtime.ray_session import task_results
from pipelines.workspace import tables
from pipelines.workspace.storage import Store

T = TypeVar("T")
_FRACTION_SALT = -3

ROWS_OF_A_WORKER = 1_000_000
"""Rows for which a worker is worth a node that is not there yet; an iteration over them takes a core about a second."""

_BYTES_PER_ROW = 16
"""Of the key, the distance and the label of a row."""

ESTIMATED_FROM = 4
"""From about how many files the number of events is estimated."""
ESTIMATE_FACTOR = 4
"""By how much an estimate may be too small."""

REPORT_SECONDS = 60.0
"""How often a wait for workers is reported."""


@dataclass(frozen=True, kw_only=True)
class RowRange:
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


def survey_embeddings(store: Store, shards: Sequence[EventShard], settings: KMeansSettings) -> list[Survey]:
    """Return what each file of embeddings holds, in event_id order (of the files' first rows)."""
    groups = tables.by_task(shards)
    found = task_results([_survey.remote(store, group, settings.seed, settings.fraction) for group in groups])
    surveys = [survey for group in found for survey in group]
    return sorted(surveys, key=lambda survey: (survey.first_id, survey.path))


@ray.remote
def _survey(store: Store, shards: list[EventShard], seed: int, fraction: float) -> list[Survey]:
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
                num_fitted=int(fitted_rows(ids, settings)[1].sum()),
                first_id=ids[0].as_py(),
                dim=dim,
            )
        )
    return found


def check_memory(store: Store, shards: Sequence[EventShard], settings: KMeansSettings) -> None:
    """Refuse events whose clustering can never fit into the memory of the cluster, before any of them is embedded.

    No file is read where all of them are small beside the memory. Else the number of events is estimated from a few
    files; only where that comes near the memory are the rows of all files counted, by Ray tasks. A cluster that may
    grow, or whose nodes have not come yet, is not refused.

    Raises:
        InputError: says what is needed and what Ray has; or a file that was read is damaged.
    """
    most = capacity()
    available = _cluster("memory", np.inf)
    num_bytes = sum(shard.size for shard in shards)
    # A row of events takes more bytes in its file than k-means needs for it.
    if most.grows or most.unknown or _least_bytes(num_bytes / _BYTES_PER_ROW) <= available:
        return
    few = shards[:: max(1, len(shards) // ESTIMATED_FROM)]
    estimated = sum(_num_rows(store, few)) * num_bytes / max(1, sum(shard.size for shard in few))
    if ESTIMATE_FACTOR * _least_bytes(estimated * settings.fraction) <= available:
        return
    count: Any = ray.remote(_num_rows)
    num_rows = sum(sum(rows) for rows in task_results([count.remote(store, part) for part in tables.by_task(shards)]))
    # Which rows the fraction leaves is drawn: hardly ever fewer than six standard deviations below the mean.
    mean = num_rows * settings.fraction
    needed = _least_bytes(max(0.0, mean - 6 * np.sqrt(mean * (1 - settings.fraction))))
    if needed > available:
        raise InputError(
            f"k-means over {num_rows} events needs {needed / 1e9:.1f} GB of memory, and Ray has {available / 1e9:.1f} "
            "GB; give it more, or a smaller kmeans.fraction"
        )


def _num_rows(store: Store, shards: Sequence[EventShard]) -> list[int]:
    """Return how many events each file holds, by its footer."""
    found = []
    for shard in shards:
        with tables.open_table(store, shard.path("events"), ()) as file:
            found.append(int(file.metadata.num_rows))
    return found


def _least_bytes(num_rows: float) -> float:
    """Return the least that k-means can do with: one worker that keeps no rows."""
    return _actor_bytes((0, round(num_rows)), 0, keep=False)


class PartitionActor:
    """A worker that keeps one partition and runs steps on it."""

    def __init__(
        self,
        store: Store,
        row_ranges: list[RowRange],
        first_row: int,
        rows_per_block: int,
        settings: KMeansSettings,
        keep: bool,
    ) -> None:
        keys = np.concatenate([_fitted_keys(store, row_range, settings) for row_range in row_ranges])
        self.partition = Partition(
            lambda: _read_blocks(store, row_ranges, rows_per_block, settings), keys, first_row, keep=keep
        )

    def run(self, step: Callable[..., T], *arguments: Any) -> T:
        """Return `step(partition, *arguments)`."""
        return step(self.partition, *arguments)


def start_partitions(
    store: Store, surveys: Sequence[Survey], settings: KMeansSettings, num_workers: int, cpus_per_worker: float
) -> list[Any]:
    """Start the actors that share the rows and return their handles; `wait_for_actors` waits until they run.

    Raises:
        StageFailed: the cluster has too little memory for one of them.
    """
    num_rows = sum(survey.num_fitted for survey in surveys)
    size = block_rows(num_rows)
    there = int(_cluster("CPU", 0) / cpus_per_worker)
    count = useful_workers(num_workers, num_rows, there)
    edges, needed, keep = plan_partitions(
        num_rows, surveys[0].dim, settings.memory_gb, count, _cluster("memory", np.inf)
    )
    actor: Any = ray.remote(PartitionActor)
    return [
        actor.options(num_cpus=cpus_per_worker, memory=memory).remote(
            store, list(_row_ranges(surveys, first, end)), first, size, settings, keep
        )
        for (first, end), memory in zip(edges, needed, strict=True)
    ]


def wait_for_actors(actors: Sequence[Any], *, report_seconds: float = REPORT_SECONDS) -> None:
    """Return when all actors have started and read their rows; every `report_seconds` say what is waited for."""
    pending = [actor.run.remote(count_rows) for actor in actors]
    while True:
        _, pending = ray.wait(pending, num_returns=len(pending), timeout=report_seconds)
        if not pending:
            return
        free: Any = ray.available_resources
        print(
            f"k-means: waiting for {len(pending)} of {len(actors)} workers to start and read their embeddings; Ray has "
            f"{free().get('CPU', 0):g} free CPUs and {free().get('memory', 0) / 1e9:.1f} GB of free memory",
            flush=True,
        )


def useful_workers(num_workers: int, num_rows: int, there: int) -> int:
    """Return how many of `num_workers` take part: those with room in the cluster as it is, or more where rows are many.

    All wait for the last one, so that none is started that needs a node for a few rows.
    """
    return min(num_workers, max(there, -(-num_rows // ROWS_OF_A_WORKER), 1))


def plan_partitions(
    num_rows: int, dim: int, memory_gb: float, num_workers: int, available: float
) -> tuple[list[tuple[int, int]], list[int], bool]:
    """Divide the rows among as many workers, at most `num_workers`, as fit into the memory that Ray has (bytes).

    Returns the rows [first, end) of each worker, the bytes that each takes, and whether they keep their rows or stream
    them. The fit is the same for any number of workers.

    Raises:
        StageFailed: not even one fits.
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
    """Return how much memory a worker may take: key, distance and label of each row, and its rows or a few blocks."""
    num_rows = edge[1] - edge[0]
    return num_rows * _BYTES_PER_ROW + (2 * num_rows * dim * 4 if keep else 0) + (1 << 28)


def _cluster(resource: str, default: float) -> float:
    """Return how much of a resource the cluster has now."""
    resources: Any = ray.cluster_resources
    return float(resources().get(resource, default))


@dataclass(frozen=True)
class ActorGather:
    """Runs the steps on the actors; what they exchange goes from one to the other (see partitions.Gather)."""

    actors: Sequence[Any]

    def __call__(self, step: Callable[..., T], *arguments: Any) -> list[T]:
        """Return `step(partition, *arguments)` of every actor's partition."""
        shared = [ray.put(value) if isinstance(value, np.ndarray) else value for value in arguments]
        return task_results([actor.run.remote(step, *shared) for actor in self.actors])

    def exchange(self, give: Callable[..., Any], step: Callable[..., T], *arguments: Any) -> list[T]:
        """Return `step(partition, *arguments, *given)` of every actor's partition (see partitions.Gather)."""
        return self(step, *arguments, *[actor.run.remote(give) for actor in self.actors])


def _row_ranges(surveys: Sequence[Survey], first: int, end: int) -> Iterator[RowRange]:
    """Yield where rows [first, end) of all fitted rows lie, file by file."""
    start = 0
    for survey in surveys:
        inside_first, inside_end = max(first - start, 0), min(end - start, survey.num_fitted)
        if inside_first < inside_end:
            yield RowRange(path=survey.path, first=inside_first, end=inside_end)
        start += survey.num_fitted


def fitted_rows(
    ids: pa.Array | pa.ChunkedArray, settings: KMeansSettings
) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Return the event keys (n,) of a file's rows and which of them `kmeans.fraction` leaves to the fit."""
    keys = event_keys(ids)
    if settings.fraction == 1.0:
        return keys, np.ones(len(keys), dtype=bool)
    return keys, uniform(keys, settings.seed, _FRACTION_SALT) < settings.fraction


def _fitted_keys(store: Store, row_range: RowRange, settings: KMeansSettings) -> NDArray[np.uint64]:
    ids = tables.read_table(store, row_range.path, ["event_id"]).column("event_id").combine_chunks()
    keys, fitted = fitted_rows(ids, settings)
    return keys[fitted][row_range.first : row_range.end]


def _read_blocks(
    store: Store, row_ranges: Sequence[RowRange], rows_per_block: int, settings: KMeansSettings
) -> Iterator[NDArray[np.float32]]:
    """Yield the embeddings of row ranges in blocks of a fixed number of rows, the last one shorter."""
    pending: list[NDArray[np.float32]] = []
    held = 0
    columns = ["embedding"] if settings.fraction == 1.0 else ["event_id", "embedding"]
    for row_range in row_ranges:
        start = 0
        for batch in tables.iter_batches(store, row_range.path, columns, rows_per_block):
            rows = tables.embeddings(batch.column("embedding"))
            if settings.fraction != 1.0:
                rows = rows[fitted_rows(batch.column("event_id"), settings)[1]]
            inside = rows[max(row_range.first - start, 0) : max(row_range.end - start, 0)]
            start += len(rows)
            while len(inside):
                piece = inside[: rows_per_block - held]
                pending.append(piece)
                held += len(piece)
                inside = inside[len(piece) :]
                if held == rows_per_block:
                    yield np.concatenate(pending)
                    pending, held = [], 0
            if start >= row_range.end:
                break
    if held:
        yield np.concatenate(pending)
