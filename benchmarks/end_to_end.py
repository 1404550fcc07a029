"""What a station-day costs from miniSEED to labels: core-seconds, requests to the bucket, US dollars a station-year.

    python benchmarks/end_to_end.py                              24 and 84 station-days, two rounds, ten minutes
    python benchmarks/end_to_end.py --station-days 1 2 --rounds 1

`firnline detect` and `firnline label` (embed, cluster, write labels) read day files of three components at 100 Hz from
a bucket and write to it, as jobs with a Ray of their own. What a further station-day costs is the difference between
the two archives: start-up, compilation and planning are not in it. Counted is the processor time of a job's process and
of all below it, Ray's servers included. Training is left out: its sample does not grow with the archive; the encoder is
an untrained one, whose arithmetic is that of a trained one. The store (moto) is a process of its own, whose log gives
the requests. Prices are in PRICES. Needs the test dependencies.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import detect as archives
import psutil

ROOT = Path(__file__).resolve().parents[1]
DAYS_A_YEAR = 365.25
SAMPLE_SECONDS = 0.1
"""How often the processes of a job are looked at; what a process does after its last look is lost."""

STRENGTHS_A_DAY = 190
"""Bursts in a day of the archive, of which about a hundred are found."""

PRICES = {
    "c7i.4xlarge on demand": (0.8148, 16),
    "c7i.4xlarge spot": (0.3258, 16),
}
"""US dollars an hour and vCPUs in eu-central-1: AWS's prices as SkyPilot's catalogue lists them, read on 2026-11-29
(catalogs/v8/aws/vms.csv in skypilot-org/skypilot-catalog, commit e385a0d; spot: the middle one of three zones)."""

PUT_DOLLARS, GET_DOLLARS = 0.0054 / 1000, 0.00043 / 1000
"""A request to S3 Standard in eu-central-1 that writes or lists, and one that reads: AWS's price list of 2026-09-28."""

JOBS = ("detect", "label")


@dataclass(frozen=True)
class Cost:
    """What a job took."""

    core_seconds: float
    requests: Counter[str]
    """`write` (PUT, POST and listings) and `read` (GET and HEAD)."""


class ProcessorTime:
    """Sums the processor time of a process and of all processes below it, also of those that have ended."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._seconds: dict[tuple[int, float], float] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            self._look()

    def _look(self) -> None:
        try:
            processes = [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for process in processes:
            try:
                times = process.cpu_times()
                self._seconds[process.pid, process.create_time()] = times.user + times.system
            except psutil.NoSuchProcess:
                continue

    def stop(self) -> float:
        """Return the core-seconds so far and look no more."""
        self._ended.set()
        self._thread.join()
        return sum(self._seconds.values())


def run_job(words: list[str], store_log: Path) -> Cost:
    """Run a job in a process of its own and return what it took; its output is shown where it fails."""
    before = store_log.stat().st_size
    job, *rest = words
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", f"jobs.{job}", *rest], env=environment, stdout=output, stderr=output
        )
        meter = ProcessorTime(process.pid)
        code = process.wait()
        seconds = meter.stop()
        if code:
            output.seek(0)
            raise RuntimeError(f"{job} ended with {code}:\n{output.read()[-3000:]}")
    with store_log.open() as log:
        log.seek(before)
        return Cost(seconds, requests_in(log.read()))


def requests_in(log: str) -> Counter[str]:
    """Return how many requests of each price a log of the store holds; deletions are free."""
    counts: Counter[str] = Counter()
    # The store colours the lines of answers other than 200.
    plain = re.sub(r"\x1b\[[\d;]*m", "", log)
    for method, path in re.findall(r'"(GET|HEAD|PUT|POST) (\S+) HTTP', plain):
        counts["write" if method in ("PUT", "POST") or "list-type=" in path else "read"] += 1
    return counts


def label_archive(archive: str, workspace: str, mlflow: str, store_log: Path) -> dict[str, Cost]:
    """Detect an archive, make an encoder, label the events; return what `detect` and `label` took."""
    detection = ["--archive.layout", "sds", "--shards.interval", "day", "--detection.trigger_components", "ZNE"]
    costs = {"detect": run_job(["detect", archive, workspace, "--mlflow", mlflow, *detection], store_log)}
    run_job(["train", workspace, "--mlflow", mlflow, "--train.encoder", "untrained"], store_log)
    costs["label"] = run_job(["label", workspace, "--mlflow", mlflow], store_log)
    return costs


def start_store(log: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Start an S3 server on loopback that logs its requests; return it and its address."""
    sys.path.append(str(ROOT / "tests"))
    from loopback_servers import free_port

    url = f"http://127.0.0.1:{(port := free_port())}"
    command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)]
    with log.open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output)
    for _ in range(300):
        try:
            urllib.request.urlopen(url).close()
            break
        except urllib.error.URLError:
            time.sleep(0.1)
    return server, url


def count_events(client: Any, prefix: str) -> int:
    """Return the rows of a workspace's events table."""
    import pyarrow.parquet as pq

    pages = client.get_paginator("list_objects_v2").paginate(Bucket="bench", Prefix=f"{prefix}/events/")
    count = 0
    for item in (one for page in pages for one in page.get("Contents", [])):
        if item["Key"].endswith(".parquet"):
            with tempfile.NamedTemporaryFile() as file:
                client.download_file("bench", item["Key"], file.name)
                count += pq.read_metadata(file.name).num_rows
    return count


def dollars_a_year(core_seconds: float, requests: dict[str, float], price: tuple[float, int]) -> tuple[float, float]:
    """Return the US dollars of a station-year: for the cores, and for the requests."""
    an_hour, cores = price
    compute = core_seconds * DAYS_A_YEAR / 3600 * an_hour / cores
    return compute, DAYS_A_YEAR * (requests["write"] * PUT_DOLLARS + requests["read"] * GET_DOLLARS)


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Measure, print a table, and return the core-seconds a station-day of each job and of both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--station-days", type=int, nargs=2, default=[24, 84], metavar=("FEW", "MANY"))
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args(argv)
    few, many = options.station_days
    archives.EVENTS_A_DAY = STRENGTHS_A_DAY
    marginal: dict[str, list[float]] = {job: [] for job in JOBS}
    with tempfile.TemporaryDirectory(prefix="firnline-bench-") as name:
        folder = Path(name)
        log = folder / "store.log"
        server, url = start_store(log)
        keys = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_DEFAULT_REGION": "us-east-1"}
        os.environ |= {"AWS_ENDPOINT_URL": url, **keys}
        try:
            client = boto3.client("s3")
            client.create_bucket(Bucket="bench")
            for station_days in (few, many):
                archives.make_archive(folder / f"{station_days}", station_days)
                for path in (folder / f"{station_days}").rglob("*.D.*"):
                    client.upload_file(str(path), "bench", f"{path.relative_to(folder)}")
                    path.unlink()
            # The first run on a machine compiles.
            label_archive(f"s3://bench/{few}", "s3://bench/first", f"sqlite:///{folder}/first.db", log)
            for round_ in range(options.rounds):
                costs = {
                    station_days: label_archive(
                        f"s3://bench/{station_days}",
                        f"s3://bench/workspace-{round_}-{station_days}",
                        f"sqlite:///{folder}/mlflow-{round_}-{station_days}.db",
                        log,
                    )
                    for station_days in (few, many)
                }
                for job in JOBS:
                    difference = costs[many][job].core_seconds - costs[few][job].core_seconds
                    marginal[job].append(difference / (many - few))
            requests = {
                job: {
                    kind: (costs[many][job].requests[kind] - costs[few][job].requests[kind]) / (many - few)
                    for kind in ("read", "write")
                }
                for job in JOBS
            }
            events = [count_events(client, f"workspace-0-{station_days}") for station_days in (few, many)]
        finally:
            server.kill()
            server.wait()
    found = {job: statistics.median(values) for job, values in marginal.items()}
    both = {kind: sum(requests[job][kind] for job in JOBS) for kind in ("read", "write")}
    print(f"{archives.machine(len(os.sched_getaffinity(0)))}")
    print(
        f"{few} and {many} station-days, {options.rounds} rounds, "
        f"{(events[1] - events[0]) / (many - few):.0f} events a station-day\n"
    )
    print("| a further station-day | core-seconds | least | most | requests that read | that write |")
    print("|---|---|---|---|---|---|")
    for job in JOBS:
        values = marginal[job]
        counts = f"{requests[job]['read']:.1f} | {requests[job]['write']:.1f}"
        print(f"| {job} | {found[job]:.3f} | {min(values):.3f} | {max(values):.3f} | {counts} |")
    total = sum(found.values())
    print(f"| both | {total:.3f} | | | {both['read']:.1f} | {both['write']:.1f} |\n")
    print("| machine | USD an hour | vCPUs | USD a station-year: cores | requests | both |\n|---|---|---|---|---|---|")
    for machine, price in PRICES.items():
        cores, asked = dollars_a_year(total, both, price)
        print(f"| {machine} | {price[0]} | {price[1]} | {cores:.4f} | {asked:.4f} | {cores + asked:.4f} |")
    return found | {"both": total}


if __name__ == "__main__":
    main()
