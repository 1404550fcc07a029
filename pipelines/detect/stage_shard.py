"""Detect the shards of a batch one after the other, and make each durable: rows first, then its marker. No Ray."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa

from pipelines.config import Config
from pipelines.detect.anchored import split_days
from pipelines.detect.response import Responses
from pipelines.detect.stage_day import DayReader, io_threads
from pipelines.detect.stage_marker import ShardReport
from pipelines.detect.stage_plan import destination
from pipelines.detect.stage_rows import event_rows, owned_onsets
from pipelines.detect.stage_tasks import BatchTask, ShardTask
from pipelines.runtime.errors import describe
from pipelines.workspace import schemas, tables
from pipelines.workspace.ledger import MarkerName, write_marker
from pipelines.workspace.storage import Store

MAX_ATTEMPTS = 2
MAX_SHARDS_UNPUBLISHED = 4
MAX_ONSETS_PER_CUT = 128


class BatchDetector:
    """Detects a batch's shards; what their days and files share is read once."""

    def __init__(
        self, archive: Store, workspace: Store, config: Config, responses: Responses, batch: BatchTask
    ) -> None:
        self.workspace, self.config, self.batch = workspace, config, batch
        self.reader = DayReader(archive, config, responses, batch)

    def begin(self, shard: ShardTask) -> Future[dict[str, Any]]:
        """Detect one shard; its rows become durable, and then its marker is written, in the background."""
        began = time.perf_counter()
        config, reader = self.config, self.reader
        selected_ns = (reader.first_ns, reader.last_ns)
        report = ShardReport(shard, self.batch, config.detection, selected_ns)
        table, ledger = destination(config.detection)
        path = tables.shard_path(table, shard.name.network, shard.name.station, shard.name.shard)
        schema = schemas.events_schema(config.window.num_samples)
        rows, publish = tables.prepare_batches(self.workspace, path, schema, self._batches(shard, report))
        content = report.content(num_rows=rows, seconds=time.perf_counter() - began)
        if ledger == "trigger":
            content["onsets_ns"] = report.onsets_ns
        finished = _Finished(shard.name, ledger, publish if rows else None, path, report.availability(), content)
        return io_threads().submit(_publish, self.workspace, finished)

    def _batches(self, shard: ShardTask, report: ShardReport) -> Iterator[pa.RecordBatch]:
        for anchor_ns, start_ns, end_ns in split_days(shard.start_ns, shard.end_ns):
            day = self.reader.day(anchor_ns)
            report.add_day(day, start_ns, end_ns)
            owned = owned_onsets(day, start_ns, end_ns)
            report.onsets_ns += [onset.onset_ns for onset, _, _ in owned]
            for first in range(0, len(owned), MAX_ONSETS_PER_CUT):
                yield event_rows(owned[first : first + MAX_ONSETS_PER_CUT], shard.name.shard, self.config)
            # They would hold this day's samples until two more are read.
            del day, owned


@dataclass(frozen=True)
class _Finished:
    """A shard that is detected and not yet durable.

    Attributes:
        name, ledger: of its marker.
        publish: makes its rows durable; None where it has none.
        path: of its rows.
        availability: its rows of availability/.
        content: of its marker.
    """

    name: MarkerName
    ledger: str
    publish: Callable[[], None] | None
    path: str
    availability: pa.Table
    content: dict[str, Any]


def _publish(workspace: Store, finished: _Finished) -> dict[str, Any]:
    """Make a shard's files durable, or remove those of an earlier run where it has no rows, then write the marker."""
    name = finished.name
    if finished.publish is None:
        workspace.remove(finished.path)
    else:
        finished.publish()
    path = tables.shard_path("availability", name.network, name.station, name.shard)
    if not tables.write_table(workspace, path, finished.availability):
        workspace.remove(path)
    write_marker(workspace, finished.ledger, name, finished.content)
    return finished.content


def detect_batch(
    new_detector: Callable[[BatchTask], BatchDetector], batch: BatchTask
) -> Iterator[tuple[ShardTask, dict[str, Any]]]:
    """Detect a batch's shards, each tried twice; yield each, once it is durable, and its marker's content, or `error`.

    Shards become durable while the next ones are detected, MAX_SHARDS_UNPUBLISHED of them at most.
    """
    detector = new_detector(batch)
    begun: deque[tuple[ShardTask, Future[dict[str, Any]]]] = deque()

    def again(shard: ShardTask, problem: str) -> tuple[ShardTask, dict[str, Any]]:
        return shard, _detect_again(partial(new_detector, replace(batch, shards=(shard,))), shard, problem)

    def published() -> tuple[ShardTask, dict[str, Any]]:
        shard, future = begun.popleft()
        try:
            return shard, future.result()
        except Exception as error:
            problem = _describe(error)
        return again(shard, problem)

    try:
        for shard in batch.shards:
            while len(begun) >= MAX_SHARDS_UNPUBLISHED:
                yield published()
            problem = ""
            try:
                begun.append((shard, detector.begin(shard)))
            except Exception as error:
                problem = _describe(error)
            if problem:
                detector = new_detector(batch)
                yield again(shard, problem)
        detector.reader.forget()
        while begun:
            yield published()
    finally:
        wait([future for _, future in begun])


def _detect_again(new_detector: Callable[[], BatchDetector], shard: ShardTask, problem: str) -> dict[str, Any]:
    """Try a shard that failed again, from its files; return its marker's content, or what went wrong."""
    for attempt in range(1, MAX_ATTEMPTS):
        time.sleep(attempt)
        try:
            return new_detector().begin(shard).result()
        except Exception as error:
            problem = _describe(error)
    return {"error": problem}


def _describe(error: Exception) -> str:
    """Return an error on one line, and let go of its traceback, which holds a day's samples and may be held by them."""
    return describe(error.with_traceback(None))
