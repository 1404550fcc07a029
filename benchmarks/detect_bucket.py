"""The cost of a bucket for a detection worker: a store on this machine that answers each request with a delay.

    python benchmarks/detect_bucket.py                  8 station-days, 0, 20 and 60 ms a request, three rounds
    python benchmarks/detect_bucket.py --station-days 20 --milliseconds 100

Day files of three components at 100 Hz (as of benchmarks/detect.py) lie in a bucket, and the events go there. One
worker detects them as the job does, while the files of the next day are fetched and finished shards are written. For
comparison the same worker waits for each request, and reads from and writes to a disk. The store (moto) and the proxy
that delays it are processes of their own on the same cores. Needs the test dependencies.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from functools import partial
from itertools import chain
from pathlib import Path

import boto3
from detect import machine, make_archive
from detect_bounds import peak_bytes

from pipelines.archive.manifest import build_manifest
from pipelines.config import resolve
from pipelines.detect import stage_day, stage_shard
from pipelines.detect.response import Responses
from pipelines.detect.stage_plan import make_plan
from pipelines.detect.stage_shard import BatchDetector, detect_batch
from pipelines.detect.stage_tasks import tasks_of
from pipelines.runtime.allocator import keep_freed_memory
from pipelines.workspace import s3_requests
from pipelines.workspace.storage import open_store
from pipelines.workspace.workspace import Workspace

TESTS = Path(__file__).resolve().parents[1] / "tests"
PROXY = """
import sys, time
from faultproxy import Fault, FaultProxy
with FaultProxy(sys.argv[1]) as proxy:
    if float(sys.argv[2]) > 0:
        proxy.add(Fault("delay", times=None, seconds=float(sys.argv[2])))
    print(proxy.url, flush=True)
    time.sleep(1e6)
"""
WAYS = {"ahead": (stage_day.MAX_BYTES_AHEAD, stage_shard.MAX_SHARDS_UNPUBLISHED), "one by one": (0, 1)}


def detect(archive: str, workspace: str, station_days: int) -> float:
    """Detect an archive by one worker in this process and return its seconds a station-day."""
    store, space = open_store(archive), Workspace(open_store(workspace))
    config = resolve(
        {
            "archive": {"layout": "sds", "spill_seconds": 0},
            "detection": {"on": 4.0, "trigger_components": "ZNE"},
            "shards": {"interval": "day"},
        }
    )
    plan = make_plan(build_manifest(store, config.archive), space, config, "")
    began = time.perf_counter()
    for batch in chain.from_iterable(tasks_of(plan, 1)):
        for _, content in detect_batch(partial(BatchDetector, store, space.store, config, Responses()), batch):
            assert "error" not in content, content["error"]
    return (time.perf_counter() - began) / station_days


def start_store() -> tuple[subprocess.Popen[bytes], str]:
    """Start an S3 server on loopback and return it and its address."""
    sys.path.append(str(TESTS))
    from loopback_servers import free_port

    port = free_port()
    command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(300):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}").close()
            break
        except urllib.error.URLError:
            time.sleep(0.1)
    return server, f"http://127.0.0.1:{port}"


def main() -> None:
    """Run the rounds and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--station-days", type=int, default=8)
    parser.add_argument("--milliseconds", type=float, nargs="*", default=[0, 20, 60])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    keep_freed_memory()
    server, url = start_store()
    os.environ |= {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_DEFAULT_REGION": "us-east-1"}
    try:
        with tempfile.TemporaryDirectory(prefix="firnline-bench-") as name:
            archive = Path(name) / "archive"
            make_archive(archive, options.station_days)
            client = boto3.client("s3", endpoint_url=url)
            client.create_bucket(Bucket="bench")
            for path in archive.rglob("*.D.*"):
                client.upload_file(str(path), "bench", f"archive/{path.relative_to(archive)}")
            found: dict[tuple[str, float], list[float]] = {}
            for round_ in range(options.rounds + 1):
                seconds = detect(str(archive), f"{name}/out-{round_}", options.station_days)
                found.setdefault(("disk", 0), []).append(seconds)
                for delay in options.milliseconds:
                    command = [sys.executable, "-c", PROXY, url, str(delay / 1000)]
                    environment = os.environ | {"PYTHONPATH": str(TESTS)}
                    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as proxy:
                        assert proxy.stdout is not None
                        os.environ["AWS_ENDPOINT_URL"] = proxy.stdout.readline().strip()
                        s3_requests._s3.cache_clear()
                        for way, (stage_day.MAX_BYTES_AHEAD, stage_shard.MAX_SHARDS_UNPUBLISHED) in WAYS.items():
                            target = f"s3://bench/out-{round_}-{delay:g}-{way.replace(' ', '-')}"
                            seconds = detect("s3://bench/archive", target, options.station_days)
                            found.setdefault((way, delay), []).append(seconds)
                        proxy.kill()
    finally:
        server.kill()
    print(f"{machine(len(os.sched_getaffinity(0)))}; one worker, {options.station_days} station-days\n")
    print(f"largest resident memory of the worker: {peak_bytes() / 2**30:.2f} GiB\n")
    print("| from and to | delay, ms | s a station-day | least | most |\n|---|---|---|---|---|")
    for (way, delay), values in found.items():
        # The first round compiles, and makes the store's threads.
        kept = values[1:]
        cells = f"{statistics.median(kept):.3f} | {min(kept):.3f} | {max(kept):.3f}"
        print(f"| {'disk' if way == 'disk' else f'bucket, {way}'} | {delay:g} | {cells} |")


if __name__ == "__main__":
    main()
