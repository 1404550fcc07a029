"""Cut the pending shards into tasks: successive shards of one channel group, whose files are read once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipelines.archive.layouts import DAY_NS
from pipelines.detect.stage_plan import NOWHERE, Plan, PlannedShard
from pipelines.workspace.ledger import MarkerName
from pipelines.workspace.stored_object import StoredObject

MIN_DAYS_PER_TASK, MAX_DAYS_PER_TASK = 15, 64
MAX_DAYS_STRETCH = 1.25
"""A task takes up to this many times its days where that lets it end with a group."""
TASKS_AHEAD = 1.5
"""A task is the days that are left, divided by this many times the workers."""


@dataclass(frozen=True)
class ShardTask:
    """A shard as it is sent to a worker.

    Attributes:
        name: marker, file name.
        start_ns, end_ns: the owned interval.
        files: indexes into the batch's files of those that the interval and its context reach.
    """

    name: MarkerName
    start_ns: int
    end_ns: int
    files: tuple[int, ...]

    def owns(self, time_ns: int) -> bool:
        """Return whether a time lies in the owned interval."""
        return self.start_ns <= time_ns < self.end_ns


@dataclass(frozen=True)
class BatchTask:
    """Successive shards of one channel group, and the files that they reach.

    Attributes:
        layout: of the archive; the paths of the files say what it tells.
        location, band: of the channel group; `*` where the paths do not say.
        shards: in order of time.
        files: what they read.
        spans: for each file the (start, end) in nanoseconds of what is believed to be in it.
        homes: for each file the time whose shard accounts for what concerns the file as a whole (see `Plan`).
        first: for each file whether its outcome is counted here, not with another channel group.
    """

    layout: str
    location: str
    band: str
    shards: tuple[ShardTask, ...]
    files: tuple[StoredObject, ...]
    spans: tuple[tuple[int, int], ...]
    homes: tuple[int, ...]
    first: tuple[bool, ...]


def tasks_of(plan: Plan, num_workers: int) -> Iterator[tuple[BatchTask, ...]]:
    """Yield the pending shards as tasks of batches: successive shards of one group, whose files are read once.

    A task takes a part of the days that are left, so that all workers end at about the same time. It is not too small,
    since between two tasks a worker waits: MIN_DAYS_PER_TASK, or a quarter of a worker's share where that is less. Two
    tasks that share a group both read the files at the cut between them, so a task takes some more or less where that
    makes it end with a group. The cut into tasks has no influence on any row.
    """
    left = sum(map(_days, plan.pending))
    enough = min(MIN_DAYS_PER_TASK, left / (4 * num_workers))
    least = max(1.0, enough)
    task: list[BatchTask] = []
    room = taken = 0.0
    for stretch in _stretches(plan.pending):
        days = sum(map(_days, stretch))
        while stretch:
            if not task:
                room, taken = max(least, min(MAX_DAYS_PER_TASK, left / (TASKS_AHEAD * num_workers))), 0.0
            whole = taken + days <= max(room, min(MAX_DAYS_STRETCH * room, MAX_DAYS_PER_TASK))
            if task and not whole and taken > 0.999 * max(enough, room / 2):
                yield tuple(task)
                task = []
                continue
            count = len(stretch) if whole else max(1, _count(stretch, room - taken))
            part, stretch = stretch[:count], stretch[count:]
            task.append(_batch(part, plan))
            part_days = sum(map(_days, part))
            taken, days, left = taken + part_days, days - part_days, left - part_days
            if stretch or taken > 0.999 * room:
                yield tuple(task)
                task = []
    if task:
        yield tuple(task)


def _stretches(shards: Sequence[PlannedShard]) -> Iterator[list[PlannedShard]]:
    """Yield successive shards of one group that follow each other without a break."""
    stretch: list[PlannedShard] = []
    for shard in shards:
        if stretch and not _continues(stretch[-1], shard):
            yield stretch
            stretch = []
        stretch.append(shard)
    if stretch:
        yield stretch


def _count(shards: Sequence[PlannedShard], days: float) -> int:
    """Return how many of the first shards make up at most so many days."""
    for index, shard in enumerate(shards):
        days -= _days(shard)
        if days < -1e-6:
            return index
    return len(shards)


def _days(shard: PlannedShard) -> float:
    return (shard.end_ns - shard.start_ns) / DAY_NS


def _continues(last: PlannedShard, shard: PlannedShard) -> bool:
    return (shard.name.partition, shard.location, shard.band, shard.start_ns) == (
        last.name.partition,
        last.location,
        last.band,
        last.end_ns,
    )


def _batch(shards: list[PlannedShard], plan: Plan) -> BatchTask:
    rows = sorted({row for shard in shards for row in shard.files})
    taken = plan.files.take(pa.array(rows, pa.int64())).to_pydict()
    # A file has several rows where its records lie days apart; it is read as one.
    index_of: dict[int, int] = {}
    numbers: dict[str, int] = {}
    for row, key in zip(rows, taken["key"], strict=True):
        index_of[row] = numbers.setdefault(key, len(numbers))
    files: dict[int, StoredObject] = {}
    spans: dict[int, tuple[int, int]] = {}
    homes: dict[int, int] = {}
    first: dict[int, bool] = {}
    for row, *item in zip(rows, taken["key"], taken["size"], taken["etag"], strict=True):
        index = index_of[row]
        begin, end = map(int, plan.spans[row])
        low, high = spans.get(index, (begin, end))
        files[index], spans[index] = StoredObject(*item), (min(begin, low), max(end, high))
        homes[index] = max(int(plan.homes[row]), homes.get(index, NOWHERE))
        first[index] = bool(plan.first[row]) or first.get(index, False)
    tasks = tuple(
        ShardTask(shard.name, shard.start_ns, shard.end_ns, tuple(dict.fromkeys(index_of[row] for row in shard.files)))
        for shard in shards
    )
    return BatchTask(
        plan.manifest.layout,
        shards[0].location,
        shards[0].band,
        tasks,
        tuple(files.values()),
        tuple(spans.values()),
        tuple(homes.values()),
        tuple(first.values()),
    )
