"""Detection against the script that an ObsPy user would write, side by side on the same cores.

    python benchmarks/detect.py                      300 station-days, 5 pairs
    python benchmarks/detect.py --station-days 12 --pairs 2

Both read the same three-component day files (100 Hz, Steim2, 4096-byte records), find the same triggers on Z and write
the same windows as Parquet. ObsPy: read, merge, detrend, band-pass, recursive_sta_lta, trigger_onset, cut, in a pool of
as many processes as cores. Firnline: the job, through Ray. A third row runs decode and compiled pass alone, in
two processes at the same time: what Firnline could reach at most. Runs are interleaved; start-up (a run over one
station-day) is stated apart and taken off, so that rates are marginal.
"""

import argparse
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


def make_archive(root: Path, station_days: int) -> None:
    """Write day files of ten different days; stations and days beyond are links to them, with headers of their own."""
    import obspy

    stations = max(1, round(station_days / 30))
    days = -(-station_days // stations)
    rng = np.random.default_rng(1)
    base: dict[tuple[int, str], np.ndarray[Any, Any]] = {}
    for variant in range(3):
        for channel in "ENZ":
            x = rng.normal(0, 80, DAY_SAMPLES)
            for place in np.random.default_rng(variant).integers(0, DAY_SAMPLES - 3000, 200):
                decay = np.exp(-np.arange(3000) / 400)
                x[place : place + 3000] += rng.pareto(1.2) * 200 * decay * rng.normal(size=3000)
            base[variant, channel] = x.astype(np.int32)
    written = 0
    for station in range(stations):
        for day in range(days):
            if written >= station_days:
                return
            written += 1
            start = obspy.UTCDateTime(2022, 1, 1) + 86400 * day
            for channel in "ENZ":
                code = f"XX.B{station:03d}..HH{channel}.D"
                folder = root / f"{start.year}/XX/B{station:03d}/HH{channel}.D"
                folder.mkdir(parents=True, exist_ok=True)
                trace = obspy.Trace(base[(station + day) % 3, channel])
                trace.stats.update(
                    {"network": "XX", "station": f"B{station:03d}", "channel": f"HH{channel}", "sampling_rate": RATE_HZ}
                )
                trace.stats.starttime = start
                path = folder / f"{code}.{start.year}.{start.julday:03d}"
                trace.write(str(path), format="MSEED", encoding="STEIM2", reclen=4096)


def obspy_day(task: tuple[str, str, str]) -> int:
    """Do one station-day as an ObsPy user would; return the number of windows written."""
    import obspy
    import pyarrow as pa
    import pyarrow.parquet as pq
    from obspy.signal.trigger import recursive_sta_lta, trigger_onset

    path_z, out, _ = task
    stream = obspy.Stream()
    for channel in "ENZ":
        stream += obspy.read(path_z.replace("HHZ", f"HH{channel}"))
    stream.merge(fill_value=None)
    vertical = stream.select(component="Z")[0].copy()
    vertical.detrend("linear")
    vertical.filter("bandpass", freqmin=BAND[0], freqmax=BAND[1], corners=4)
    ratio = recursive_sta_lta(vertical.data, round(STA * RATE_HZ), round(LTA * RATE_HZ))
    found = trigger_onset(ratio, ON, OFF, max_len=round(MAX_SECONDS * RATE_HZ))
    count = round(LENGTH * RATE_HZ)
    windows, onsets = [], []
    for onset, _ in found:
        first = onset - round(LEAD * RATE_HZ)
        window = np.full((3, count), np.nan, np.float32)
        for row, component in enumerate("ENZ"):
            data = stream.select(component=component)[0].data
            low, high = max(first, 0), min(first + count, len(data))
            window[row, low - first : high - first] = data[low:high]
        windows.append(window)
        onsets.append(vertical.stats.starttime.ns + int(onset / RATE_HZ * 1e9))
    values = np.stack(windows) if windows else np.zeros((0, 3, count), np.float32)
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(values)
    pq.write_table(pa.table({"onset": onsets, "waveform": tensor}), out, compression="zstd")
    return len(onsets)


def run_obspy(archive: Path, out: Path, cores: int) -> tuple[float, int]:
    """Run the ObsPy script over a pool; return (seconds, windows)."""
    out.mkdir(parents=True)
    paths = sorted(map(str, archive.rglob("*HHZ.D.*")))
    tasks = [(path, str(out / f"{number}.parquet"), "") for number, path in enumerate(paths)]
    began = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        windows = sum(pool.imap_unordered(obspy_day, tasks))
    return time.perf_counter() - began, windows


def run_firnline(archive: Path, workspace: Path, cores: int) -> tuple[float, int]:
    """Run the job through Ray; return (seconds, windows)."""
    flags = {
        "detection.sta_seconds": STA,
        "detection.lta_seconds": LTA,
        "detection.on": ON,
        "detection.off": OFF,
        "detection.band_hz": list(BAND),
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


def ceiling_process(paths: list[str], barrier: Any, results: Any) -> None:
    """Decode three components and scan Z for some station-days, alone in a process."""
    from pipelines.archive.records import decode
    from pipelines.detect.kernel import design_bandpass, scan

    sections = design_bandpass(*BAND, 4, RATE_HZ)

    def day(path: str) -> None:
        runs = [decode(Path(path.replace("HHZ", f"HH{channel}")).read_bytes()).runs for channel in "ENZ"]
        scan(
            runs[2][0].data,
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


def run_ceiling(archive: Path, cores: int, most_days: int) -> float:
    """Return the station-days per second of decode and compiled pass in as many processes at the same time as cores."""
    paths = sorted(map(str, archive.rglob("*HHZ.D.*")))[:most_days]
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(cores), context.Queue()
    shares = [paths[index::cores] for index in range(cores)]
    processes = [context.Process(target=ceiling_process, args=(share, barrier, results)) for share in shares]
    for process in processes:
        process.start()
    rates = [count / seconds for count, seconds in (results.get() for _ in processes)]
    for process in processes:
        process.join()
    return sum(rates)


def main() -> None:
    """Run the comparison and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--station-days", type=int, default=300)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--folder", type=Path, help="where the archive is made (default: a temporary folder)")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="firnline-bench-"))
    archive, one = folder / "archive", folder / "one"
    for root, days in ((archive, options.station_days), (one, 1)):
        if not root.exists():
            make_archive(root, days)
    rows: list[dict[str, float]] = []
    for number in range(options.pairs + 1):
        row: dict[str, float] = {}
        for name, root in (("start", one), ("all", archive)):
            out = folder / "out"
            for tool, run in (("obspy", run_obspy), ("firnline", run_firnline)):
                shutil.rmtree(out, ignore_errors=True)
                row[f"{tool}.{name}"], row[f"{tool}.{name}.windows"] = run(root, out, options.cores)
        row["ceiling"] = run_ceiling(archive, options.cores, 60)
        # The first round compiles, and fills the caches.
        if number:
            rows.append(row)
            print(f"pair {number}: {json.dumps({key: round(value, 3) for key, value in row.items()})}", flush=True)
    report(rows, options.station_days, options.cores)
    if options.folder is None:
        shutil.rmtree(folder)


def report(rows: list[dict[str, float]], station_days: int, cores: int) -> None:
    """Print medians, smallest and largest of the pairs."""
    days = station_days - 1
    rates = {
        tool: [days / (row[f"{tool}.all"] - row[f"{tool}.start"]) for row in rows] for tool in ("obspy", "firnline")
    }
    ratio = [mine / theirs for mine, theirs in zip(rates["firnline"], rates["obspy"], strict=True)]
    of_ceiling = [rate / row["ceiling"] for rate, row in zip(rates["firnline"], rows, strict=True)]
    print(f"\n{platform.processor() or platform.machine()}, {cores} cores, Python {platform.python_version()}")
    print(f"{station_days} station-days of 3 components at {RATE_HZ:g} Hz, {len(rows)} pairs; median (least, most)")
    lines = {
        "ObsPy, station-days/s": rates["obspy"],
        "Firnline, station-days/s": rates["firnline"],
        "Firnline / ObsPy": ratio,
        "decode + pass in processes, station-days/s": [row["ceiling"] for row in rows],
        "Firnline / decode + pass": of_ceiling,
        "start-up ObsPy, s": [row["obspy.start"] for row in rows],
        "start-up Firnline, s": [row["firnline.start"] for row in rows],
        "windows, Firnline / ObsPy": [row["firnline.all.windows"] / row["obspy.all.windows"] for row in rows],
    }
    for name, values in lines.items():
        print(f"| {name:<43} | {statistics.median(values):8.3f} ({min(values):.3f}, {max(values):.3f}) |")


if __name__ == "__main__":
    main()
