"""Detection compared with the script that an ObsPy user would write, on the same cores.

    python benchmarks/detect.py                      300 station-days, 5 pairs
    python benchmarks/detect.py --station-days 12 --pairs 2

Both read the same three-component day files (100 Hz, Steim2, 4096-byte records), find the same triggers on the same
components (overlapping ones of several components are one) and write the same windows as Parquet. ObsPy: read, merge,
detrend, band-pass, recursive_sta_lta, trigger_onset, cut, in a pool of as many processes as cores. Firnline: the job,
through Ray. A third row runs only decoding and the compiled pass, in as many processes at the same time: the most that
Firnline could reach. Runs are interleaved, and each begins with all files in the page cache. Start-up (a run over one
station-day) is reported separately and subtracted, so that rates are marginal.
"""

import argparse
import importlib.metadata
import io
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

RATE_HZ = 100.0
DAY_SAMPLES = 8_640_000
STA, LTA, ON, OFF, MAX_SECONDS = 0.5, 10.0, 4.0, 1.5, 60.0
BAND = (1.0, 20.0)
LEAD, LENGTH = 5.0, 30.0
YEAR, RECORD_BYTES, EVENTS_A_DAY = 2022, 4096, 200


def make_archive(root: Path, station_days: int) -> None:
    """Write 30 days a station: three different days by ObsPy, all others from their records with headers of their own.

    Every file is a file of its own; only station code and day of year in the record headers are rewritten.
    """
    import obspy

    rng = np.random.default_rng(1)
    records: dict[tuple[int, str], np.ndarray[Any, Any]] = {}
    num_variants = min(3, station_days)
    for variant in range(num_variants):
        places = rng.integers(0, DAY_SAMPLES - 3000, EVENTS_A_DAY)
        strengths = rng.pareto(1.2, EVENTS_A_DAY) * 50
        for channel in "ENZ":
            x = rng.normal(0, 20, DAY_SAMPLES)
            for place, strength in zip(places, strengths, strict=True):
                x[place : place + 3000] += strength * np.exp(-np.arange(3000) / 400) * rng.normal(size=3000)
            trace = obspy.Trace(x.astype(np.int32), {"network": "XX", "station": "B000", "channel": f"HH{channel}"})
            trace.stats.sampling_rate = RATE_HZ
            trace.stats.starttime = obspy.UTCDateTime(YEAR, 1, 1)
            content = io.BytesIO()
            trace.write(content, format="MSEED", encoding="STEIM2", reclen=RECORD_BYTES)
            records[variant, channel] = np.frombuffer(content.getvalue(), np.uint8).reshape(-1, RECORD_BYTES).copy()
    for number in range(station_days):
        station, day = f"B{number // 30:03d}", number % 30 + 1
        for channel in "ENZ":
            content = records[number % num_variants, channel]
            # miniSEED 2: station code in bytes 8 to 12, day of year in bytes 22 and 23 (big-endian).
            content[:, 8:13] = np.frombuffer(station.ljust(5).encode(), np.uint8)
            content[:, 22:24] = np.frombuffer(day.to_bytes(2, "big"), np.uint8)
            folder = root / f"{YEAR}/XX/{station}/HH{channel}.D"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"XX.{station}..HH{channel}.D.{YEAR}.{day:03d}").write_bytes(content.tobytes())


def obspy_day(task: tuple[str, str, str]) -> int:
    """Do one station-day as an ObsPy user would; return the number of windows written."""
    import obspy
    import pyarrow as pa
    import pyarrow.parquet as pq
    from obspy.signal.trigger import recursive_sta_lta, trigger_onset

    path_z, out, components = task
    stream = obspy.Stream()
    for channel in "ENZ":
        stream += obspy.read(path_z.replace("HHZ", f"HH{channel}"))
    stream.merge(fill_value=None)
    triggering = obspy.Stream([trace.copy() for trace in stream if trace.stats.component in components])
    triggering.detrend("linear")
    triggering.filter("bandpass", freqmin=BAND[0], freqmax=BAND[1], corners=4)
    found = []
    for trace in triggering:
        ratio = recursive_sta_lta(trace.data, round(STA * RATE_HZ), round(LTA * RATE_HZ))
        found += [tuple(span) for span in trigger_onset(ratio, ON, OFF, max_len=round(MAX_SECONDS * RATE_HZ))]
    events: list[list[int]] = []
    for first, last in sorted(found):
        if events and first <= events[-1][1]:
            events[-1][1] = max(events[-1][1], last)
        else:
            events.append([first, last])
    count = round(LENGTH * RATE_HZ)
    windows, onsets = [], []
    for onset, _ in events:
        first = onset - round(LEAD * RATE_HZ)
        window = np.full((3, count), np.nan, np.float32)
        for row, component in enumerate("ENZ"):
            data = stream.select(component=component)[0].data
            low, high = max(first, 0), min(first + count, len(data))
            window[row, low - first : high - first] = data[low:high]
        windows.append(window)
        onsets.append(stream[0].stats.starttime.ns + int(onset / RATE_HZ * 1e9))
    values = np.stack(windows) if windows else np.zeros((0, 3, count), np.float32)
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(values)
    pq.write_table(pa.table({"onset": onsets, "waveform": tensor}), out, compression="zstd")
    return len(onsets)


def run_obspy(archive: Path, out: Path, cores: int, components: str) -> tuple[float, int]:
    """Run the ObsPy script over a pool; return (seconds, windows)."""
    out.mkdir(parents=True)
    paths = sorted(map(str, archive.rglob("*HHZ.D.*")))
    tasks = [(path, str(out / f"{number}.parquet"), components) for number, path in enumerate(paths)]
    began = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        windows = sum(pool.imap_unordered(obspy_day, tasks))
    return time.perf_counter() - began, windows


def run_firnline(archive: Path, workspace: Path, cores: int, components: str) -> tuple[float, int]:
    """Run the job through Ray; return (seconds, windows)."""
    flags = {
        "detection.sta_seconds": STA,
        "detection.lta_seconds": LTA,
        "detection.on": ON,
        "detection.off": OFF,
        "detection.band_hz": list(BAND),
        "detection.trigger_components": components,
        "detection.max_seconds": MAX_SECONDS,
        "window.rate_hz": RATE_HZ,
        "window.lead_seconds": LEAD,
        "window.length_seconds": LENGTH,
        "archive.layout": "sds",
        "shards.interval": "day",
        "shards.num_workers": cores,
    }
    words = [word for key, value in flags.items() for word in (f"--{key}", json.dumps(value))]
    began = time.perf_counter()
    command = [sys.executable, "-m", "jobs.detect", str(archive), str(workspace), *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - began
    markers = (workspace / "ledger/detect").rglob("*.day.*.json")
    return seconds, sum(json.loads(path.read_text())["counts"]["events"] for path in markers)


def ceiling_process(paths: list[str], components: str, barrier: Any, results: Any) -> None:
    """Decode three components and scan those that trigger for some station-days, alone in a process."""
    from pipelines.archive.records import decode
    from pipelines.detect.kernel import design_bandpass, scan_all
    from pipelines.runtime.allocator import keep_freed_memory

    keep_freed_memory()
    sections = design_bandpass(*BAND, 4, RATE_HZ)

    def day(path: str) -> None:
        runs = [decode(Path(path.replace("HHZ", f"HH{channel}")).read_bytes()).runs for channel in "ENZ"]
        scan_all(
            [[run.data for run in found] for channel, found in zip("ENZ", runs, strict=True) if channel in components],
            sections,
            num_sta=round(STA * RATE_HZ),
            num_lta=round(LTA * RATE_HZ),
            on=ON,
            off=OFF,
            max_len=round(MAX_SECONDS * RATE_HZ),
        )

    day(paths[0])
    barrier.wait()
    began = time.perf_counter()
    for path in paths:
        day(path)
    results.put((len(paths), time.perf_counter() - began))


def warm(archive: Path) -> None:
    """Read every file once: what the system keeps of an archive depends on how long ago it was read."""
    for path in archive.rglob("*.D.*"):
        path.read_bytes()


def run_ceiling(archive: Path, cores: int, components: str) -> float:
    """Return the station-days per second of decode and compiled pass in as many processes at the same time as cores."""
    paths = sorted(map(str, archive.rglob("*HHZ.D.*")))
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(cores), context.Queue()
    shares = [paths[index::cores] for index in range(cores)]
    processes = [
        context.Process(target=ceiling_process, args=(share, components, barrier, results)) for share in shares
    ]
    for process in processes:
        process.start()
    rates = [count / seconds for count, seconds in (results.get() for _ in processes)]
    for process in processes:
        process.join()
    return sum(rates)


def measure(folder: Path, station_days: int, cores: int, components: str, tools: list[str]) -> dict[str, float]:
    """Return seconds and windows of one pair, and the rate of decode and pass alone, run one after the other."""
    archive, one, out = folder / f"archive-{station_days}", folder / "archive-1", folder / "out"
    row: dict[str, float] = {}
    for name, root in (("start", one), ("all", archive)):
        for tool in tools:
            run = {"obspy": run_obspy, "firnline": run_firnline}[tool]
            shutil.rmtree(out, ignore_errors=True)
            warm(root)
            row[f"{tool}.{name}"], row[f"{tool}.{name}.windows"] = run(root, out, cores, components)
    shutil.rmtree(out, ignore_errors=True)
    warm(archive)
    row["ceiling"] = run_ceiling(archive, cores, components)
    return row


def main() -> None:
    """Run the comparison and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--station-days", type=int, default=300)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--components", default="ZNE", help="components that trigger: Z or ZNE")
    parser.add_argument("--tools", nargs="*", choices=("obspy", "firnline"), default=["obspy", "firnline"])
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--folder",
        type=Path,
        help="keep archive and pairs here; later calls add to the pairs (default: keep nothing)",
    )
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="firnline-bench-"))
    for days in (1, options.station_days):
        if not (folder / f"archive-{days}").exists():
            make_archive(folder / f"archive-{days}", days)
    # Compiles what is compiled once on a machine.
    run_firnline(folder / "archive-1", folder / "out", options.cores, options.components)
    kept = folder / f"pairs-{options.station_days}-{options.cores}-{options.components}.jsonl"
    for _ in range(options.pairs):
        row = measure(folder, options.station_days, options.cores, options.components, options.tools)
        print(json.dumps({key: round(value, 3) for key, value in row.items()}), flush=True)
        with kept.open("a") as file:
            file.write(json.dumps(row) + "\n")
    rows = [json.loads(line) for line in kept.read_text().splitlines()]
    report(rows, options.station_days, options.cores, options.components)
    if options.folder is None:
        shutil.rmtree(folder)


def machine(cores: int) -> str:
    """Return the processor, the number of cores used and the versions that matter."""
    processor = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
    packages = ("obspy", "numpy", "scipy", "pymseed", "numba", "pyarrow", "ray")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    return f"{processor}, {cores} cores; Python {platform.python_version()}, {versions}"


def report(rows: list[dict[str, float]], station_days: int, cores: int, components: str) -> None:
    """Print medians, smallest and largest of the pairs, and of the runs without ObsPy what does not need it."""
    days = station_days - 1

    def rate(row: dict[str, float], tool: str) -> float:
        return days / (row[f"{tool}.all"] - row[f"{tool}.start"])

    pairs = [row for row in rows if "obspy.all" in row]
    print(f"\n{machine(cores)}")
    print(f"{station_days} station-days of 3 components at {RATE_HZ:g} Hz, {components} trigger, {len(rows)} pairs\n")
    print("| | median | least | most |\n|---|---|---|---|")
    lines = {
        "ObsPy in a process pool, station-days/s": [rate(row, "obspy") for row in pairs],
        "Firnline through Ray, station-days/s": [rate(row, "firnline") for row in rows],
        "Firnline / ObsPy": [rate(row, "firnline") / rate(row, "obspy") for row in pairs],
        "decode + pass alone in processes, station-days/s": [row["ceiling"] for row in rows],
        "Firnline / decode + pass alone": [rate(row, "firnline") / row["ceiling"] for row in rows],
        "start-up of ObsPy, with the first station-day, s": [row["obspy.start"] for row in pairs],
        "start-up of Firnline, with the first station-day, s": [row["firnline.start"] for row in rows],
        "windows of ObsPy": [row["obspy.all.windows"] for row in pairs],
        "windows, Firnline / ObsPy": [row["firnline.all.windows"] / row["obspy.all.windows"] for row in pairs],
    }
    for name, values in lines.items():
        if values:
            print(f"| {name} | {statistics.median(values):.4g} | {min(values):.4g} | {max(values):.4g} |")


if __name__ == "__main__":
    main()
