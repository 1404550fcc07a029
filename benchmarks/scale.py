"""A million shards in a bucket: what `firnline status`, and planning of an archive at 99 % done, take.

    python benchmarks/scale.py                                  10,000, 100,000 and 1,000,000 shards, 50 ms an answer
    python benchmarks/scale.py --shards 10000 --milliseconds 20
    python benchmarks/scale.py --shards 10000 --code ../before  `status` of another checkout of Firnline, too

The bucket is a server on loopback, a process of its own: it answers every request after a delay, counts requests by
kind, lists the markers of all shards but each hundredth, and makes their contents when they are asked for. The bundles
are those that Firnline's own code writes. One shard is a station's day with three channels; a station has ten years.

`status` is the command, in a process of its own. `without bundles` is the same where the bucket has none, and is
measured up to 10,000 shards: each marker is a request. `plan` is what the driver of a detection does before its first
task, and after its last: list the archive (generated, without the delay), compare its shards with the markers, and look
for stations that give nothing. Peaks are the processes' largest resident memory, the interpreter and its libraries
included.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl
from xml.sax.saxutils import escape

from detect import machine
from detect_bounds import GIB, GeneratedArchive, alone, peak_bytes

from pipelines.archive.manifest import build_manifest, write_manifest
from pipelines.config import Config, resolve
from pipelines.detect.stage_plan import make_plan
from pipelines.detect.stage_summary import DetectionSummary, find_empty_stations
from pipelines.detect.stage_tasks import tasks_of
from pipelines.workspace.artifacts import DetectionProgress
from pipelines.workspace.bundles import NOT_KEPT, Bundles
from pipelines.workspace.ledger import MarkerName, marker_bytes, parse_marker_path
from pipelines.workspace.storage import Store, open_store
from pipelines.workspace.workspace import Workspace

ROOT = Path(__file__).resolve().parents[1]
LEFT_EVERY = 100
"""One shard of so many is not done."""
MAX_ASKED_ONE_BY_ONE = 10_000
PAGE_KEYS = 1000
NAMES = "names.txt"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "bench",
    "AWS_SECRET_ACCESS_KEY": "bench",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}


class OneChannel(GeneratedArchive):
    """A file for each shard."""

    CHANNELS = "Z"


def settings() -> Config:
    """Return the configuration that all parts detect with."""
    return resolve({"archive": {"layout": "sds"}, "shards": {"interval": "day"}})


def content_of(name: MarkerName) -> dict[str, Any]:
    """Return what a marker holds; that of all shards is equally long."""
    day = name.shard.split(".")[2]
    number = int(name.fingerprint[:6], 16)
    events, seconds = 100 + number % 900, 86300 + number % 90 + 0.25
    coverage = [
        {"day": day, "channel": f"--.HH{letter}.100", "seconds": seconds, "blanked_seconds": 30.5, "gaps": 2}
        for letter in "ENZ"
    ]
    year, station = day[:4], f"{name.network}/{name.station}"
    inputs = [
        {"key": f"{year}/{station}/HH{letter}.D/{name.shard}", "size": 11_000_000, "etag": f"{number:032x}"}
        for letter in "ENZ"
    ]
    return {
        "outcome": "events",
        "start": f"{day}T00:00:00Z",
        "end": f"{day}T24:00:00Z",
        "inputs": inputs,
        "quarantined": [],
        "renamed": [],
        "skipped": [],
        "coverage": coverage,
        "gaps": 6,
        "counts": {"events": events},
        "events_by_day": {day: events},
        "account": {
            "samples": {"blanked": 9150, "used": round(300 * seconds)},
            "seconds": {"blanked": 91.5, "no_data": 100.25, "used": 3 * seconds},
            "files": {"used": 3},
        },
        "seconds": 0.265,
        "version": "0.1.0",
    }


def prepare(folder: Path, num_shards: int) -> dict[str, float]:
    """Write what the bucket holds: the names of its markers, their bundles, the listing, the progress."""
    config = settings()
    store = open_store(str(folder / "ws"))
    manifest = build_manifest(OneChannel(url=f"{folder}/generated-{num_shards}"), config.archive)
    plan = make_plan(manifest, Workspace(store), config, "")
    write_manifest(store, manifest)
    Workspace(store).update_state(shard_interval="day")
    done = [shard.name for number, shard in enumerate(plan.pending) if number % LEFT_EVERY]
    now = time.time() - 3600
    DetectionProgress(
        ledger="detect",
        planned=plan.num_shards,
        pending_at_start=plan.num_shards,
        done_since=len(done),
        failed=(),
        num_failed=0,
        running=0,
        started=now,
        updated=now,
        interval="day",
        unusable_files=0,
    ).write(store)
    num_bytes = len(marker_bytes(done[0], content_of(done[0])))
    bundles = Bundles(store, "detect")
    # Sixteen tasks at a time, as a cluster gives them: a bundle holds markers of many stations.
    tasks = [done[first : first + 64] for first in range(0, len(done), 64)]
    for first in range(0, len(tasks), 16):
        for row in range(64):
            for task in tasks[first : first + 16]:
                if row < len(task):
                    content = content_of(task[row])
                    kept = {key: value for key, value in content.items() if key not in NOT_KEPT}
                    bundles.add(task[row], num_bytes, json.dumps(kept).encode())
    bundles.write()
    paths = (f"ledger/detect/{name.partition}/{name.shard}.{name.fingerprint}.json\n" for name in done)
    (folder / NAMES).write_text("".join(paths))
    return {"shards": plan.num_shards, "done": len(done), "marker_bytes": num_bytes}


def serve(folder: Path, seconds: float, port: Any) -> None:
    """Answer S3 requests to a bucket that holds `folder`/ws and the generated markers; put the port into `port`."""
    import uvicorn

    names = (folder / NAMES).read_text().split()
    first = parse_marker_path(names[0])
    assert first is not None
    num_bytes = len(marker_bytes(first, content_of(first)))
    files = {item.path: item.size for item in open_store(str(folder / "ws")).walk()}
    below: dict[str, dict[str, int | None]] = {}
    for path, size in [*((name, num_bytes) for name in names), *files.items()]:
        folder_of, _, file = path.rpartition("/")
        below.setdefault(folder_of, {})[file] = size
        while folder_of:
            parent, _, last = folder_of.rpartition("/")
            below.setdefault(parent, {})[last] = None
            folder_of = parent
    listings = {name: sorted(entries.items()) for name, entries in below.items()}
    counts: Counter[str] = Counter()
    state = {"bundles": True}

    def page(query: dict[str, str]) -> bytes:
        prefix = query.get("prefix", "").removeprefix("ws/").rstrip("/")
        start, most = int(query.get("continuation-token", "0")), int(query.get("max-keys", PAGE_KEYS))
        entries = listings.get(prefix, [])
        if prefix.endswith("/bundles") and not state["bundles"]:
            entries = []
        at = f"ws/{prefix}/" if prefix else "ws/"
        parts = []
        for name, size in entries[start : start + most]:
            key = escape(at + name)
            if size is None:
                parts.append(f"<CommonPrefixes><Prefix>{key}/</Prefix></CommonPrefixes>")
            else:
                parts.append(
                    f"<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
                    f"<ETag>&quot;0123456789abcdef0123456789abcdef&quot;</ETag><Size>{size}</Size>"
                    "<StorageClass>STANDARD</StorageClass></Contents>"
                )
        more = start + most < len(entries)
        token = f"<NextContinuationToken>{start + most}</NextContinuationToken>" if more else ""
        return (
            '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>bench</Name>'
            f"<KeyCount>{len(parts)}</KeyCount><IsTruncated>{str(more).lower()}</IsTruncated>{token}{''.join(parts)}"
            "</ListBucketResult>"
        ).encode()

    def held(path: str) -> bytes | None:
        if path in files:
            return (folder / "ws" / path).read_bytes()
        folder_of, _, file = path.rpartition("/")
        name = parse_marker_path(path)
        there = name is not None and file in below.get(folder_of, {})
        return marker_bytes(name, content_of(name)) if there and name is not None else None

    def answer(method: str, path: str, query: dict[str, str], asked: str) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body."""
        key = path.removeprefix("/bench").removeprefix("/").removeprefix("ws/")
        if method == "GET" and "list-type" in query:
            counts["list"] += 1
            return 200, {"content-type": "application/xml"}, page(query)
        if method not in ("GET", "HEAD"):
            counts["write"] += 1
            return 200, {}, b""
        kind = "bundle" if "/bundles/" in key else "marker" if parse_marker_path(key) is not None else "other"
        counts[kind] += 1
        content = held(key)
        if content is None:
            missing = b"<Error><Code>NoSuchKey</Code><Message>no such key</Message></Error>"
            return 404, {"content-type": "application/xml"}, missing
        headers = {"etag": '"0123456789abcdef0123456789abcdef"'}
        if not asked:
            return 200, headers, content
        begin, _, end = asked.removeprefix("bytes=").partition("-")
        last = min(int(end), len(content) - 1) if end else len(content) - 1
        return 206, headers | {"content-range": f"bytes {begin}-{last}/{len(content)}"}, content[int(begin) : last + 1]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        query = dict(parse_qsl(scope["query_string"].decode(), keep_blank_values=True))
        asked = dict(scope["headers"]).get(b"range", b"").decode()
        if scope["path"] == "/-/counts":
            status, headers, body = 200, {}, json.dumps(counts).encode()
            counts.clear()
            state["bundles"] = query.get("bundles", "1") == "1"
        else:
            await asyncio.sleep(seconds)
            status, headers, body = answer(scope["method"], scope["path"], query, asked)
        pairs = [
            (name.encode(), value.encode()) for name, value in (headers | {"content-length": str(len(body))}).items()
        ]
        await send({"type": "http.response.start", "status": status, "headers": pairs})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    config = uvicorn.Config(app, lifespan="off", log_level="warning", access_log=False)
    listening = socket.create_server(("127.0.0.1", 0))
    # asyncio does so for sockets that it makes; without, each answer waits 40 ms more for an acknowledgement.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    port.put(listening.getsockname()[1])
    uvicorn.Server(config).run([listening])


@contextmanager
def bucket(folder: Path, milliseconds: float) -> Iterator[str]:
    """Yield the address of the server, which ends with the block."""
    context = multiprocessing.get_context("spawn")
    port = context.Queue()
    process = context.Process(target=serve, args=(folder, milliseconds / 1000, port), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{port.get(timeout=300)}"
    finally:
        process.terminate()
        process.join()


def counted(url: str, work: Callable[[], dict[str, Any]], *, bundles: bool = True) -> dict[str, Any]:
    """Return what some work gives, and the requests that it sent by kind."""
    urllib.request.urlopen(f"{url}/-/counts?bundles={int(bundles)}").close()
    found = work()
    with urllib.request.urlopen(f"{url}/-/counts") as answer:
        return found | {"requests": json.load(answer)}


def status(code: Path) -> dict[str, Any]:
    """Run the command of a checkout; return seconds, peak memory and what it says."""
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs.status", "s3://bench/ws", "--json"],
            stdout=output,
            cwd=code,
            env=os.environ | {"PYTHONPATH": str(code)},
        )
        _, code_word, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(code_word)
        if process.returncode:
            raise SystemExit(f"status ended with {process.returncode}")
        output.seek(0)
        told = json.load(output)
    return {
        "seconds": time.perf_counter() - began,
        "core_seconds": usage.ru_utime + usage.ru_stime,
        "peak_GiB": usage.ru_maxrss * 1024 / GIB,
        "done": told["shards"]["done"],
        "events": told["events"],
    }


def plan(folder: Path, num_shards: int) -> dict[str, Any]:
    """Plan an archive of which 99 % is done; return seconds and peak memory, step by step."""
    config = settings()
    workspace = Workspace(open_store("s3://bench/ws"))
    archive: Store = OneChannel(url=f"{folder}/generated-{num_shards}")
    began = time.perf_counter()
    manifest = build_manifest(archive, config.archive)
    listed, listed_bytes = time.perf_counter(), peak_bytes()
    planned = make_plan(manifest, workspace, config, "")
    num_tasks = sum(1 for _ in tasks_of(planned, 64))
    compared, compared_bytes = time.perf_counter(), peak_bytes()
    empty = find_empty_stations(workspace.store, "detect", manifest, DetectionSummary())
    return {
        "shards": planned.num_shards,
        "left": len(planned.pending),
        "tasks": num_tasks,
        "stale": len(planned.stale),
        "empty": len(empty),
        "list_archive_s": listed - began,
        "list_archive_GiB": listed_bytes / GIB,
        "compare_s": compared - listed,
        "compare_GiB": compared_bytes / GIB,
        "empty_stations_s": time.perf_counter() - compared,
        "peak_GiB": peak_bytes() / GIB,
    }


def show(what: str, figures: dict[str, Any]) -> None:
    """Print figures on one line."""
    rounded = {key: round(value, 3) if isinstance(value, float) else value for key, value in figures.items()}
    print(f"{what}: {json.dumps(rounded)}", flush=True)


def measure(num_shards: int, milliseconds: float, code: Path | None) -> dict[str, dict[str, Any]]:
    """Measure one number of shards; return and print the figures of each part."""
    found: dict[str, dict[str, Any]] = {}

    def note(what: str, figures: dict[str, Any]) -> None:
        found[what] = figures
        show(f"{num_shards:,} {what}", figures)

    with tempfile.TemporaryDirectory(prefix="firnline-bench-") as name:
        folder = Path(name)
        note("prepare", alone(prepare, folder, num_shards))
        with bucket(folder, milliseconds) as url:
            os.environ |= {"AWS_ENDPOINT_URL": url}
            note("status", counted(url, lambda: status(ROOT)))
            if num_shards <= MAX_ASKED_ONE_BY_ONE:
                note("status without bundles", counted(url, lambda: status(ROOT), bundles=False))
                if code is not None:
                    note("status before", counted(url, lambda: status(code.resolve()), bundles=False))
            note("plan", counted(url, lambda: alone(plan, folder, num_shards)))
    return found


def main(argv: list[str] | None = None) -> dict[int, dict[str, dict[str, Any]]]:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--milliseconds", type=float, default=50.0, help="until a request is answered")
    parser.add_argument("--code", type=Path, help="another checkout, whose `status` is measured beside")
    options = parser.parse_args(argv)
    os.environ |= ENVIRONMENT
    print(machine(len(os.sched_getaffinity(0))))
    return {number: measure(number, options.milliseconds, options.code) for number in options.shards}


if __name__ == "__main__":
    main()
