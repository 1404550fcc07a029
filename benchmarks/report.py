"""How long `firnline report` takes and how much memory, on made-up tables of many events.

    python benchmarks/report.py                                   # 100,000 and 1,000,000 events
    python benchmarks/report.py --events 10000000 --days 1825     # ten million, in five years

Events, embeddings, labels, availability and markers are written as the stages write them: a file for each station and
day. Windows are short (3 x 64 samples), since of those a report reads a few hundred whatever their number. Then
`firnline report` runs as a process. The figures are its wall time, the largest resident set of the driver, and the
largest sum over all processes of the run of their proportional set sizes (shared pages counted once), Ray's own
included.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from pipelines.workspace import schemas, tables
from pipelines.workspace.ledger import MarkerName, write_marker
from pipelines.workspace.outcomes import TIMED, Outcome
from pipelines.workspace.workspace import Workspace, open_workspace

SAMPLES, DIM, RATE_HZ, CLUSTERS = 64, 32, 20.0, 20
CLASSES = ("icequake", "earthquake", "spike", "tremor")
DAY_NS = 86_400 * 10**9


def write_workspace(url: str, num_events: int, num_stations: int, num_days: int) -> Workspace:
    """Write the tables of a workspace with about so many events."""
    workspace = open_workspace(url, create=True)
    workspace.update_state()
    random = np.random.default_rng(5)
    start = pd.Timestamp("2015-01-01", tz="UTC").value
    # One day's windows and embeddings serve for all: nobody reads enough of them to see it.
    most = max(1, 4 * num_events // (num_stations * num_days))
    windows = tables.tensor_array(random.normal(size=(most, 3, SAMPLES)).astype(np.float32) * 100)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(random.normal(size=most * DIM).astype(np.float32)), DIM)
    for station in (f"S{number:03d}" for number in range(num_stations)):
        for day in range(num_days):
            size = min(most, int(random.poisson(num_events / (num_stations * num_days))))
            shard = str(np.datetime64(start + day * DAY_NS, "ns").astype("datetime64[D]"))
            _write_day(workspace, station, shard, start + day * DAY_NS, size, random, windows, vectors)
    return workspace


def _write_day(
    workspace: Workspace,
    station: str,
    shard: str,
    start_ns: int,
    size: int,
    random: np.random.Generator,
    windows: pa.Array,
    vectors: pa.Array,
) -> None:
    store = workspace.store
    onset_ns = start_ns + np.sort(random.integers(0, DAY_NS, size))
    onsets = pa.array(onset_ns, pa.timestamp("ns", tz="UTC"))
    clusters = np.minimum(random.geometric(0.2, size) - 1, CLUSTERS - 1).astype(np.int32)
    same = {"network": "XX", "station": station, "location": "", "units": "counts", "trigger_channel": "HHZ"}
    same |= {"shard": shard, "label_source": "cluster"}
    columns: dict[str, Any] = {name: pa.array([value] * size, pa.string()) for name, value in same.items()}
    columns |= {
        "event_id": pa.array([f"XX.{station}..HH.{time}" for time in onset_ns], pa.string()),
        "channels": pa.array([["HHE", "HHN", "HHZ"]] * size, pa.list_(pa.string(), 3)),
        "onset": onsets,
        "window_start": pa.array(onset_ns - 10**9, pa.timestamp("ns", tz="UTC")),
        "sampling_rate": pa.array(np.full(size, RATE_HZ)),
        "source_sampling_rate": pa.array(np.full(size, 100.0)),
        "missing_fraction": pa.array(np.zeros(size, np.float32)),
        "waveform": windows.slice(0, size),
        "cluster": pa.array(clusters),
        "label": pa.array([CLASSES[cluster % len(CLASSES)] for cluster in clusters], pa.string()),
        "confidence": pa.nulls(size, pa.float32()),
        "embedding": vectors.slice(0, size),
    }
    for name in ("duration_s", "peak_ratio", "snr_db", "peak_amplitude", "distance", "margin"):
        columns[name] = pa.array(random.lognormal(1 + clusters / 10, 0.5).astype(np.float32))
    place = ("XX", station, shard)
    kinds = {
        "events": schemas.events_schema(SAMPLES),
        "embeddings": schemas.embeddings_schema(DIM),
        "labels": schemas.labels_schema(),
    }
    for table, schema in kinds.items():
        rows = pa.table([columns[field.name] for field in schema], schema=schema)
        tables.write_table(store, tables.shard_path(table, *place), rows, {"clustering": "b" * 16})
    _write_account(workspace, place, shard)


def _write_account(workspace: Workspace, place: tuple[str, str, str], shard: str) -> None:
    schema = schemas.availability_schema()
    channels = ["HHE", "HHN", "HHZ"]
    values: dict[str, Any] = {f"{outcome}_seconds": [0.0] * 3 for outcome in TIMED}
    values |= {f"{Outcome.USED}_seconds": [80_000.0] * 3, f"{Outcome.NO_DATA}_seconds": [6_400.0] * 3}
    values |= {"network": ["XX"] * 3, "station": [place[1]] * 3, "location": [""] * 3, "channel": channels}
    values |= {"day": [np.datetime64(shard, "D").item()] * 3, "rate_hz": [100.0] * 3}
    rows = pa.table([pa.array(values[field.name], field.type) for field in schema], schema=schema)
    tables.write_table(workspace.store, tables.shard_path("availability", *place), rows)
    coverage = [{"day": shard, "channel": "HHZ", "seconds": 80_000.0, "blanked_seconds": 0.0, "gaps": 1}]
    name = MarkerName(*place, "0" * 16)
    content = {"start": f"{coverage[0]['day']}T00:00:00Z", "counts": {"events": 0}, "skipped": [], "quarantined": []}
    write_marker(workspace.store, "detect", name, content | {"coverage": coverage, "gaps": 1})


def measure(workspace: str, arguments: list[str]) -> dict[str, float]:
    """Run `firnline report` and return seconds, and GB of the driver and of all processes."""
    command = [sys.executable, "-m", "jobs.report", workspace, "--replace", *arguments]
    began = time.perf_counter()
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    driver = together = 0
    while job.poll() is None:
        driver = max(driver, _resident_bytes(job.pid))
        together = max(together, _proportional_bytes(job.pid))
        time.sleep(0.5)
    if job.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {job.returncode}")
    return {
        "seconds": time.perf_counter() - began,
        "driver_gb": driver / 1e9,
        "together_gb": together / 1e9,
    }


def _resident_bytes(process: int) -> int:
    try:
        text = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmRSS:"))


def _proportional_bytes(root: int) -> int:
    """Return the proportional set size of a process and all that it has started (Linux)."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    total = 0
    for process in parents:
        ancestor = process
        while ancestor in parents and ancestor != root:
            ancestor = parents[ancestor]
        if ancestor == root:
            try:
                text = Path(f"/proc/{process}/smaps_rollup").read_text()
            except OSError:
                continue
            total += sum(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:"))
    return total


def main(argv: list[str] | None = None) -> list[dict[str, float]]:
    """Write the workspaces, run the report on each, print and return the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--stations", type=int, default=10)
    parser.add_argument("--days", type=int, default=365)
    parser.add_argument("--folder", type=Path, help="where to keep the workspaces (default: a temporary folder)")
    parser.add_argument("flags", nargs="*", help="further flags of firnline report, after --")
    arguments = parser.parse_args(argv)
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="firnline-benchmark-"))
    found = []
    try:
        for num_events in arguments.events:
            path = folder / f"{num_events}-{arguments.stations}-{arguments.days}"
            if not (path / "written").exists():
                began = time.perf_counter()
                write_workspace(str(path), num_events, arguments.stations, arguments.days)
                (path / "written").touch()
                print(f"{num_events} events written in {time.perf_counter() - began:.0f} s", flush=True)
            figures = {"events": num_events} | measure(str(path), arguments.flags)
            found.append(figures)
            print(json.dumps({name: round(value, 2) for name, value in figures.items()}), flush=True)
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder)
    print(f"{os.cpu_count()} CPUs")
    return found


if __name__ == "__main__":
    main()
