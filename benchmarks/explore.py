"""How long `firnline explore` takes to open a workspace of many events, and how its map moves.

    python benchmarks/explore.py                        # 1,000,000 events
    python benchmarks/explore.py --browser              # in headless Chromium, too

The workspace is that of `benchmarks/report.py`: made-up tables, a file for each station and day. `firnline explore`
runs as a process. The figures are seconds from its start until it prints its address, until a client has the summary, a
page of events, and the map in each of its layouts; seconds for the nearest neighbours of an event; and the largest
resident set of the process. With `--browser`: seconds from opening the address until the map is drawn, and frames a
second while it moves. A browser without a graphics card draws by software, which the output names.
"""

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

from report import write_workspace

from pipelines.workspace import tables
from pipelines.workspace.artifacts import ClusterEntry, ClusteringSummary
from pipelines.workspace.workspace import Workspace

CHROMIUM = Path(__file__).resolve().parent.parent / "tests" / "explore" / "chromium.py"
MOVE = """(async () => {
  const frames = [];
  const begin = performance.now();
  while (performance.now() - begin < SECONDS * 1000) {
    moveBy(Math.cos(performance.now() / 500) / 10, Math.sin(performance.now() / 500) / 10);
    frames.push(await new Promise(requestAnimationFrame));
  }
  const half = frames.slice(frames.length / 2);
  return { frames_a_second: 1000 * (half.length - 1) / (half.at(-1) - half[0]), drawn_while_moving: map.moving };
})()"""
"""Moves the map; the second half of the time counts, once the page has found how many events it can draw."""


def measure(workspace: str) -> dict[str, float]:
    """Return seconds and GB of an explorer that a client asks."""
    began = time.perf_counter()
    process, address = _start(workspace)
    found = {"open_s": time.perf_counter() - began}
    page, _, token = address.partition("#token=")

    def get(path: str) -> bytes:
        request = urllib.request.Request(page + path, headers={"Authorization": f"Bearer {token}"})
        return bytes(urllib.request.urlopen(request, timeout=600).read())

    try:
        for name, path in (
            ("summary_s", "api/summary"),
            ("page_s", "api/events"),
            ("first_look_s", "api/map/sketch"),
            ("map_s", "api/map/plane?layout=components"),
            ("neighbourhoods_s", "api/map/plane?layout=neighbours"),
        ):
            get(path)
            found[name] = time.perf_counter() - began
        event = json.loads(get("api/points?points=0"))["events"][0]["event_id"]
        asked = time.perf_counter()
        get(f"api/neighbours?event_id={event}")
        found["neighbours_of_an_event_s"] = time.perf_counter() - asked
        found["peak_gb"] = _peak_bytes(process.pid) / 1e9
    finally:
        process.terminate()
        process.wait(60)
    return found


def browse(workspace: str, seconds: float) -> dict[str, Any]:
    """Return what Chromium says of the map: seconds until it is drawn, frames a second while it moves."""
    spec = importlib.util.spec_from_file_location("chromium", CHROMIUM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.SECONDS = 600.0
    process, address = _start(workspace)
    try:
        with tempfile.TemporaryDirectory() as profile, module.chromium(Path(profile)) as browser:
            browser.resize(1280, 800)
            began = time.perf_counter()
            browser.open(address)
            browser.until("typeof map !== 'undefined' && map.drawn > 0")
            found: dict[str, Any] = {"first_map_s": time.perf_counter() - began}
            # The layouts take the processor while they are made.
            browser.until("map.layout === 'neighbours'")
            assert not browser.complaints, browser.complaints
            found |= browser.run(MOVE.replace("SECONDS", str(seconds)))
            context = "document.createElement('canvas').getContext('webgl2')"
            name = "WEBGL_debug_renderer_info').UNMASKED_RENDERER_WEBGL"
            found["drawn_by"] = browser.run(
                f"(() => {{ const c = {context}; return c.getParameter(c.getExtension('{name}) }})()"
            )
            return found
    finally:
        process.terminate()
        process.wait(60)


def _summarise(workspace: Workspace) -> None:
    """Write the sizes of the clusters, as `firnline label` does."""
    counts: Counter[int] = Counter()
    for item in tables.list_shards(workspace.store, "labels"):
        counts.update(tables.read_table(workspace.store, item, ("cluster",))["cluster"].to_pylist())
    entries = tuple(ClusterEntry(cluster=number, events=counts[number]) for number in sorted(counts))
    ClusteringSummary(clusters=entries).write(workspace.store)


def _start(workspace: str) -> tuple[subprocess.Popen[str], str]:
    """Return an explorer's process and its address."""
    command = [sys.executable, "-m", "jobs.explore", workspace, "--explore.port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, next(line.split()[1] for line in process.stdout if line.startswith("open "))


def _peak_bytes(process: int) -> int:
    text = Path(f"/proc/{process}/status").read_text()
    return sum(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmHWM:"))


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Write the workspace, explore it, print and return the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--stations", type=int, default=10)
    parser.add_argument("--days", type=int, default=365)
    parser.add_argument("--seconds", type=float, default=20.0, help="of moving the map")
    parser.add_argument("--browser", action="store_true")
    parser.add_argument("--folder", type=Path, help="where to keep the workspace (default: a temporary folder)")
    arguments = parser.parse_args(argv)
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="firnline-benchmark-"))
    try:
        path = folder / f"{arguments.events}-{arguments.stations}-{arguments.days}"
        if not (path / "written").exists():
            _summarise(write_workspace(str(path), arguments.events, arguments.stations, arguments.days))
            (path / "written").touch()
        found: dict[str, Any] = {"events": arguments.events} | measure(str(path))
        if arguments.browser:
            found |= browse(str(path), arguments.seconds)
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder)
    print(json.dumps({name: round(value, 2) if isinstance(value, float) else value for name, value in found.items()}))
    print(f"{os.cpu_count()} CPUs")
    return found


if __name__ == "__main__":
    main()
