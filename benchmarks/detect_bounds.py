"""The memory of detection and the cost of planning: a worker over 2 and 60 days, a listing of a million objects.

    python benchmarks/detect_bounds.py                     all
    python benchmarks/detect_bounds.py plan --objects 1000000
    python benchmarks/detect_bounds.py worker --days 2 60 --rate-hz 100
    python benchmarks/detect_bounds.py driver --days 60

`plan` times what the driver does before the first shard runs, on a generated listing in SDS (so the store's own time is
excluded): manifest, shards, fingerprints, tasks. `worker` detects so many days of three components (all of them
trigger) in a process of its own, as one Ray task would. `driver` runs the job over the same days with a high and a low
threshold and measures only its own process. Peaks are the processes' largest resident memory, the interpreter and its
libraries included.
"""

import argparse
import contextlib
import json
import multiprocessing
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import psutil
from detect import machine

from pipelines.archive.manifest import build_manifest, write_manifest
from pipelines.config import resolve
from pipelines.detect.response import Responses
from pipelines.detect.stage_plan import make_plan
from pipelines.detect.stage_shard import BatchDetector, detect_batch
from pipelines.detect.stage_summary import DetectionSummary
from pipelines.detect.stage_tasks import tasks_of
from pipelines.runtime.allocator import keep_freed_memory
from pipelines.workspace.storage import Store, open_store
from pipelines.workspace.stored_object import StoredObject
from pipelines.workspace.workspace import Workspace

GIB = 2**30
FIRST_DAY = datetime(2022, 1, 1, tzinfo=UTC)


class GeneratedArchive(Store):
    """An archive of which only the listing exists: CHANNELS of as many stations and days as it takes."""

    CHANNELS: ClassVar[str] = "ENZ"

    def walk(
        self,
        prefix: str = "",
        *,
        keep_folder: Callable[[str], bool] | None = None,
        unreadable: dict[str, str] | None = None,
        follow_links: bool = True,
    ) -> Iterator[StoredObject]:
        """Yield the objects of an SDS archive whose number stands at the end of the URL."""
        days, channels = 10 * 365, self.CHANNELS
        num_objects = int(self.url.rpartition("-")[2])
        made = 0
        for year in range(2010, 2020):
            for station in range(-(-num_objects // (days * len(channels)))):
                for channel in channels:
                    for day in range(1, 366):
                        if made == num_objects:
                            return
                        name = f"XX.S{station:04d}..HH{channel}.D.{year}.{day:03d}"
                        path = f"{year}/XX/S{station:04d}/HH{channel}.D/{name}"
                        yield StoredObject(path, 11_000_000 + made, f"{made:032x}")
                        made += 1


def plan(folder: Path, num_objects: int) -> dict[str, float]:
    """Plan a generated archive; return seconds, peak memory and counts."""
    before = peak_bytes()
    config = resolve({"archive": {"layout": "sds"}})
    workspace = Workspace(open_store(str(folder / f"plan-{num_objects}")))
    archive = GeneratedArchive(url=f"{folder}/generated-{num_objects}")
    began = time.perf_counter()
    manifest = build_manifest(archive, config.archive)
    listed = time.perf_counter()
    planned = make_plan(manifest, workspace, config, "")
    write_manifest(workspace.store, manifest)
    num_tasks = sum(1 for _ in tasks_of(planned, 64))
    return {
        "objects": num_objects,
        "shards": planned.num_shards,
        "tasks": num_tasks,
        "manifest_s": listed - began,
        "plan_s": time.perf_counter() - began,
        "peak_GiB": peak_bytes() / GIB,
        "before_GiB": before / GIB,
    }


def worker(folder: Path, num_days: int, rate_hz: float) -> dict[str, float]:
    """Detect some days in this process as one task; return peak memory and events."""
    keep_freed_memory()
    config = resolve(
        {
            "detection": {"trigger_components": "ZNE", "on": 4},
            "archive": {"layout": "sds", "start": FIRST_DAY, "end": FIRST_DAY + timedelta(days=num_days)},
            "shards": {"interval": "day"},
        }
    )
    store, workspace = open_store(str(folder / f"days-{rate_hz:g}")), open_store(str(folder / f"out-{num_days}"))
    shutil.rmtree(workspace.url, ignore_errors=True)
    manifest = build_manifest(store, config.archive)
    planned = make_plan(manifest, Workspace(workspace), config, "")
    summary = DetectionSummary()
    began = time.perf_counter()
    for batch in chain.from_iterable(tasks_of(planned, 1)):
        for shard, content in detect_batch(partial(BatchDetector, store, workspace, config, Responses()), batch):
            summary.add(shard.name, json.loads(json.dumps(content)))
    return {
        "days": num_days,
        "rate_hz": rate_hz,
        "events": summary.events,
        "seconds": time.perf_counter() - began,
        "peak_GiB": peak_bytes() / GIB,
    }


def driver(folder: Path, num_days: int, rate_hz: float, on: float) -> dict[str, float]:
    """Run the job over some days through Ray; return the largest memory of its own process and the events."""
    workspace = folder / f"driver-{on:g}"
    shutil.rmtree(workspace, ignore_errors=True)
    end = (FIRST_DAY + timedelta(days=num_days)).isoformat()
    flags = {"detection.on": on, "detection.trigger_components": "ZNE", "archive.layout": "sds", "archive.end": end}
    words = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
    command = [sys.executable, "-m", "jobs.detect", str(folder / f"days-{rate_hz:g}"), str(workspace), *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        with contextlib.suppress(psutil.Error):
            peak = max(peak, psutil.Process(process.pid).memory_info().rss)
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    markers = (workspace / "ledger/detect").rglob("*.day.*.json")
    events = sum(json.loads(path.read_text())["counts"]["events"] for path in markers)
    return {"days": num_days, "on": on, "events": events, "driver_peak_GiB": peak / GIB}


def make_days(root: Path, num_days: int, rate_hz: float) -> None:
    """Write day files of three components; all days hold the same samples."""
    import obspy

    count = round(86400 * rate_hz)
    rng = np.random.default_rng(2)
    for channel in "ENZ":
        data = rng.normal(0, 80, count)
        for place in rng.integers(0, count - 3000, 300):
            data[place : place + 3000] += 3000 * np.exp(-np.arange(3000) / 400) * rng.normal(size=3000)
        header = {"network": "XX", "station": "A", "channel": f"HH{channel}", "sampling_rate": rate_hz}
        trace = obspy.Trace(data.astype(np.int32), header)
        for day in range(1, num_days + 1):
            trace.stats.starttime = obspy.UTCDateTime(FIRST_DAY) + (day - 1) * 86400
            path = root / f"2022/XX/A/HH{channel}.D/XX.A..HH{channel}.D.2022.{day:03d}"
            path.parent.mkdir(parents=True, exist_ok=True)
            trace.write(str(path), format="MSEED", encoding="STEIM2", reclen=4096)


def peak_bytes() -> int:
    """Return the largest resident memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def alone(function: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    """Run a function in a new process and return what it returns."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=["plan", "worker", "driver", "all"], default="all")
    parser.add_argument("--objects", type=int, default=1_000_000)
    parser.add_argument("--days", type=int, nargs="+", default=[2, 60])
    parser.add_argument("--rate-hz", type=float, default=100.0)
    parser.add_argument("--folder", type=Path, help="keep the archive here (default: keep nothing)")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="firnline-bench-"))
    print(machine(1))
    if options.part in ("plan", "all"):
        print(json.dumps({name: round(value, 3) for name, value in alone(plan, folder, options.objects).items()}))
    archive = folder / f"days-{options.rate_hz:g}"
    if options.part != "plan" and not archive.exists():
        make_days(archive, max(options.days), options.rate_hz)
    if options.part in ("worker", "all"):
        for days in options.days:
            result = alone(worker, folder, days, options.rate_hz)
            print(json.dumps({name: round(value, 3) for name, value in result.items()}), flush=True)
    if options.part in ("driver", "all"):
        for on in (8.0, 2.0):
            result = driver(folder, max(options.days), options.rate_hz, on)
            print(json.dumps({name: round(value, 3) for name, value in result.items()}), flush=True)
    if options.folder is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
