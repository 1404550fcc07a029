"""Rows that stay where they are: fixed blocks, the partitions that hold them, and how a step runs on all of them.

The rows, in `event_id` order, are cut into blocks whose size depends on the number of rows alone. A partition holds a
run of whole blocks. Every step gives sums per block, which the driver adds in block order, so that no result depends on
how the blocks are divided among partitions, workers and threads.

Legend: n rows, d dimensions, b blocks of a partition.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipelines.label.draws import uniform
from pipelines.label.kernels import CHUNK_ROWS, Array, one_thread_per_product

MIN_BLOCK_ROWS = 1024
USUAL_BLOCKS = 64
USUAL_BLOCK_ROWS = 8192

MAX_BLOCKS = 256
"""Limit of the blocks, and so of the partitions, of a fit: the driver holds this many (k, d) sums at a time."""
_SAMPLE_SALT = -1
S = TypeVar("S")
T = TypeVar("T")


def block_rows(num_rows: int) -> int:
    """Return the rows of a block for a fit of `num_rows` rows, a multiple of the chunk.

    64 blocks of 1024 to 8192 rows, then up to 256 of these, then 256 larger ones.
    """
    rows = max(MIN_BLOCK_ROWS, min(USUAL_BLOCK_ROWS, -(-num_rows // USUAL_BLOCKS)), -(-num_rows // MAX_BLOCKS))
    return -(-rows // CHUNK_ROWS) * CHUNK_ROWS


def block_edges(num_rows: int) -> NDArray[np.int64]:
    """Return the first row of every block, and the number of rows at the end: int64 (blocks + 1,)."""
    return np.append(np.arange(0, num_rows, block_rows(num_rows), dtype=np.int64), num_rows)


def partition_edges(num_rows: int, num_partitions: int) -> list[tuple[int, int]]:
    """Divide the blocks among partitions as evenly as whole blocks allow; returns (first row, end row) of each.

    There are no more partitions than blocks.
    """
    edges = block_edges(num_rows)
    cuts = np.linspace(0, len(edges) - 1, min(num_partitions, len(edges) - 1) + 1).round().astype(int)
    return [(int(edges[first]), int(edges[end])) for first, end in pairwise(cuts)]


class Partition:
    """A run of whole blocks, and what the algorithm remembers of their rows.

    Args:
        read: returns the partition's blocks in order, each (rows, d) float32 or float64.
        keys: the event key of each row, uint64 (n,).
        first_row: index of the partition's first row among all rows.
        keep: hold the blocks in memory; else `read` is called again in every step.
        num_threads: blocks worked on at a time (held blocks only).
    """

    def __init__(
        self,
        read: Callable[[], Iterator[Array]],
        keys: NDArray[np.uint64],
        first_row: int = 0,
        *,
        keep: bool = True,
        num_threads: int = 1,
    ) -> None:
        self.keys = keys
        self.first_row = first_row
        self.labels = np.full(len(keys), -1, dtype=np.int32)
        """Centroid of each row; while candidates are drawn, the nearest of them."""
        self.nearest = np.empty(0, dtype=np.float32)
        """Squared distance of each row to the nearest candidate, while these are drawn."""
        self._turn: Callable[[Array], Array] | None = None
        self._read = read
        self._held = list(read()) if keep else None
        self._num_threads = num_threads if keep else 1

    def turn(self, into: Callable[[Array], Array]) -> None:
        """Replace every row by `into(row)`, once and for all; `into` takes and returns a block of rows."""
        if self._held is not None:
            self._held = self.map_blocks(lambda block, _: into(block))
        self._turn = into

    def map_blocks(self, work: Callable[[Array, slice], T]) -> list[T]:
        """Return `work(block, rows of the partition)` of every block, in block order."""
        return self.map_threads(lambda item: work(*item), self._blocks())

    def map_threads(self, work: Callable[[S], T], items: Iterable[S]) -> list[T]:
        """Return `work(item)` of every item, in their order, on the partition's threads."""
        with one_thread_per_product():
            if self._num_threads == 1:
                return [work(item) for item in items]
            with ThreadPoolExecutor(self._num_threads) as pool:
                return list(pool.map(work, items))

    def _blocks(self) -> Iterator[tuple[Array, slice]]:
        start = 0
        for block in self._held if self._held is not None else self._read():
            turned = self._turn(block) if self._held is None and self._turn is not None else block
            yield turned, slice(start, start + len(block))
            start += len(block)


class Gather(Protocol):
    """Runs a step on every partition, wherever it is, and returns the results in the order of the partitions."""

    def __call__(self, step: Callable[..., T], *arguments: Any) -> list[T]:
        """Return `step(partition, *arguments)` of every partition."""

    def exchange(self, give: Callable[..., Any], step: Callable[..., T], *arguments: Any) -> list[T]:
        """Return `step(partition, *arguments, *given)` of every partition.

        `given` holds `give(partition)` of each of them, sent from partition to partition and not through the driver.
        """


@dataclass(frozen=True)
class LocalGather:
    """Runs the steps on partitions of this process, one after the other."""

    partitions: Sequence[Partition]

    def __call__(self, step: Callable[..., T], *arguments: Any) -> list[T]:
        """Return `step(partition, *arguments)` of every partition."""
        return [step(partition, *arguments) for partition in self.partitions]

    def exchange(self, give: Callable[..., Any], step: Callable[..., T], *arguments: Any) -> list[T]:
        """Return `step(partition, *arguments, *given)` of every partition (see Gather)."""
        return self(step, *arguments, *self(give))


def gather_local(partitions: Sequence[Partition]) -> Gather:
    """Return a `Gather` over partitions of this process, one after the other."""
    return LocalGather(partitions)


def local_partitions(
    rows: Array, keys: NDArray[np.uint64], num_partitions: int = 1, *, num_threads: int = 1
) -> list[Partition]:
    """Divide an array (n, d), its rows in event_id order, among partitions of this process."""
    size = block_rows(len(rows))

    def reader(first: int, end: int) -> Callable[[], Iterator[Array]]:
        return lambda: (rows[start : min(start + size, end)] for start in range(first, end, size))

    return [
        Partition(reader(first, end), keys[first:end], first, num_threads=num_threads)
        for first, end in partition_edges(len(rows), num_partitions)
    ]


def count_rows(partition: Partition) -> int:
    """Return the number of rows."""
    return len(partition.keys)


def first_row_of(partition: Partition) -> int:
    """Return the index of the first row among all rows."""
    return partition.first_row


def take_rows(partition: Partition, drawn: Callable[[slice], NDArray[np.bool_]]) -> Array:
    """Return the rows (m, d) for which `drawn`, given the rows of a block, is true."""

    def work(block: Array, rows: slice) -> Array:
        taken: Array = block[drawn(rows)]
        return taken

    return np.concatenate(partition.map_blocks(work))


def sample_rows(partition: Partition, seed: int, share: float, restart: int = 0) -> tuple[NDArray[np.uint64], Array]:
    """Return rows that are each drawn with probability `share`, as (event keys, rows)."""

    def drawn(rows: slice) -> NDArray[np.bool_]:
        return np.asarray(uniform(partition.keys[rows], seed, _SAMPLE_SALT, restart) < share, dtype=np.bool_)

    keys = partition.map_blocks(lambda _, rows: partition.keys[rows][drawn(rows)])
    return np.concatenate(keys), take_rows(partition, drawn)


def add_blocks(parts: Sequence[Array]) -> Array:
    """Add arrays of block sums (b, ...) one after the other, in block order."""
    total: Array = np.zeros(parts[0].shape[1:], dtype=parts[0].dtype)
    for part in parts:
        for block in part:
            total = total + block
    return total


def total_of(parts: Sequence[NDArray[np.float64]]) -> float:
    """Return the sum of one number per block (b,), added in block order."""
    return float(add_blocks(parts))
