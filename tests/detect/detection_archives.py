"""Archives for detection tests, written by ObsPy, and detection without Ray."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import obspy
import pyarrow as pa

from pipelines.archive.manifest import build_manifest
from pipelines.config import Config, resolve
from pipelines.detect.response import Responses
from pipelines.detect.stage_coincidence import choose, plan_choices
from pipelines.detect.stage_plan import Plan, destination, make_plan
from pipelines.detect.stage_shard import BatchDetector, detect_batch
from pipelines.detect.stage_tasks import tasks_of
from pipelines.workspace import tables
from pipelines.workspace.ledger import list_markers, read_marker, remove_stale
from pipelines.workspace.storage import open_store
from pipelines.workspace.workspace import Workspace

DAY = 86400


def make_noise(seconds: float, rate_hz: float, seed: int, num_events: int, offset: int = 300) -> np.ndarray:
    """Return int32 noise with decaying bursts at random times, over a slow drift and an offset."""
    rng = np.random.default_rng(seed)
    count = round(seconds * rate_hz)
    x = rng.normal(0, 60, count) + offset + 200 * np.sin(np.arange(count) / rate_hz / 700)
    length = round(15 * rate_hz)
    for place in rng.integers(0, count - length, num_events):
        decay = np.exp(-np.arange(length) / rate_hz / rng.uniform(0.3, 4))
        x[place : place + length] += rng.pareto(1.5) * 400 * decay * rng.normal(size=length)
    return x.astype(np.int32)


def write_sds(
    root: Path,
    traces: Sequence[obspy.Trace],
    *,
    file_seconds: int = DAY,
    reclen: int = 4096,
    encoding: str = "STEIM2",
) -> None:
    """Write traces as SDS day files; records may begin in one day and end in the next."""
    for trace in traces:
        stats = trace.stats
        start = obspy.UTCDateTime(stats.starttime.date)
        while start < stats.endtime:
            part = trace.slice(start, start + file_seconds - stats.delta / 2)
            if len(part):
                code = f"{stats.network}.{stats.station}.{stats.location}.{stats.channel}.D"
                folder = root / f"{start.year}/{stats.network}/{stats.station}/{stats.channel}.D"
                folder.mkdir(parents=True, exist_ok=True)
                path = folder / f"{code}.{start.year}.{start.julday:03d}"
                with path.open("ab") as file:
                    part.write(file, format="MSEED", reclen=reclen, encoding=encoding)
            start += file_seconds


def make_trace(
    data: np.ndarray, start: str, rate_hz: float, channel: str = "HHZ", network: str = "XX", station: str = "0101"
) -> obspy.Trace:
    header = {"network": network, "station": station, "location": "", "channel": channel}
    trace = obspy.Trace(np.require(data, requirements="C"), header)
    trace.stats.sampling_rate = rate_hz
    trace.stats.starttime = obspy.UTCDateTime(start)
    return trace


def detect(
    archive: Path | str,
    workspace: Path | str,
    flags: dict[str, Any],
    cut: Callable[[Plan], Plan] | None = None,
    responses: Responses | None = None,
) -> Config:
    """Detect an archive in this process."""
    config = resolve({section: dict(values) for section, values in flags.items()})
    responses = responses or Responses()
    store, space = open_store(str(archive)), Workspace(open_store(str(workspace)))
    manifest = build_manifest(store, config.archive)
    plan = make_plan(manifest, space, config, "")
    table, ledger = destination(config.detection)
    to_do = [shard.name for shard in plan.pending]
    remove_stale(space.store, table, ledger, plan.stale, to_do, beside=["availability"])
    for batch in chain.from_iterable(tasks_of(cut(plan) if cut else plan, 2)):
        for _, content in detect_batch(partial(BatchDetector, store, space.store, config, responses), batch):
            assert "error" not in content, content["error"]
    if config.detection.coincidence_stations > 1:
        choices = plan_choices(space.store, config.detection, plan.interval, [])
        remove_stale(
            space.store, "events", "detect", choices.stale, [c for task in choices.tasks for _, c in task.shards]
        )
        for task in choices.tasks:
            list(choose(space.store, config.detection, config.window.num_samples, task))
    return config


def read_events(workspace: Path) -> pa.Table:
    """Return all rows in order of event_id, without the column that names the shard."""
    store = open_store(str(workspace))
    found = [tables.read_table(store, item.path) for item in tables.list_shards(store, "events")]
    return pa.concat_tables(found).sort_by("event_id").drop_columns(["shard"]) if found else pa.table({})


def read_markers(workspace: Path, ledger: str = "detect") -> list[dict[str, Any]]:
    """Return all markers' contents."""
    store = open_store(str(workspace))
    return [read_marker(store, ledger, name) for name in list_markers(store, ledger)]


def write_three_days(root: Path) -> None:
    """Write three days at 20 Hz: components that start at different samples, gaps, overlaps, bursts at midnight."""
    rate = 20.0
    for number, channel in enumerate(("HHE", "HHN", "HHZ")):
        data = make_noise(3 * DAY, rate, 5, 220, offset=1000 * number)
        midnight = round(DAY * rate)
        burst = np.random.default_rng(1).normal(size=600) * 4000 * np.exp(-np.arange(600) / 200)
        data[midnight - 7 : midnight + 593] += burst.astype(np.int32)
        data[2 * midnight : 2 * midnight + 600] += burst.astype(np.int32)
        whole = make_trace(data[number:], "2022-12-30T00:00:00", rate, channel)
        whole.stats.starttime += number / rate
        parts = [
            whole.slice(endtime=obspy.UTCDateTime("2022-12-30T07:10:00")),
            whole.slice(starttime=obspy.UTCDateTime("2022-12-30T07:10:12.5")),
        ]
        again = whole.slice(obspy.UTCDateTime("2022-12-31T05:00:00"), obspy.UTCDateTime("2022-12-31T05:20:00"))
        other = whole.slice(obspy.UTCDateTime("2022-12-31T15:00:00"), obspy.UTCDateTime("2022-12-31T15:00:30")).copy()
        other.data = other.data + 11
        write_sds(root, [*parts, again, other])
