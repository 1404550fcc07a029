"""Tell how far a detection is: shards done, running, failed, what became of the recordings, events a day, time left.

    firnline status WORKSPACE
    firnline status WORKSPACE --json
    firnline status s3://bucket/workspace --plot

`--json` prints totals by outcome for a program; a detection that is to replace another is under `replacement`. `--plot`
writes WORKSPACE/report/coverage.png as well. Only the ledger and the list of files are read, so it works while a
detection runs.
"""

import json
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd

from jobs.command_line import Arguments, leave, run_job
from pipelines.detect.stage_status import DetectionStatus, read_status
from pipelines.report.coverage import coverage_plot
from pipelines.report.time_bins import BinnedCounts
from pipelines.runtime.text import counted, printable
from pipelines.workspace.replacement import being_built

PLOT_PATH = "report/coverage.png"
MAX_LINES = 40
DAY_SECONDS = 86400


def main(argv: Sequence[str] | None = None) -> int:
    """Run `firnline status` and return its exit code."""
    switches = {
        "json": "print totals by outcome as JSON",
        "plot": "draw coverage and events a day into the workspace's report/coverage.png",
    }
    return run_job("status", ["WORKSPACE"], argv, status, switches=switches)


def status(arguments: Arguments) -> None:
    """Read the ledger and print it."""
    workspace = arguments.workspace(0, write="plot" in arguments.switches, hold=False)
    found = read_status(workspace.store)
    beside = being_built(workspace.store, "detect")
    successor = None if beside is None else read_status(beside)
    as_json = "json" in arguments.switches
    if as_json:
        both = totals(found) | ({} if successor is None else {"replacement": totals(successor)})
        print(json.dumps(both, indent=2, sort_keys=True))
    else:
        print(describe(found))
        if successor is not None:
            print(f"\nthe detection that will replace this one:\n{describe(successor)}")
    if "plot" in arguments.switches:
        workspace.store.write(PLOT_PATH, draw(found))
        if not as_json:
            print(f"coverage and events a day: {workspace.store.full(PLOT_PATH)}")


def totals(found: DetectionStatus) -> dict[str, Any]:
    """Return the totals: shards, events, and samples, channel-seconds and files by outcome."""
    return {
        "shards": {
            "planned": found.planned,
            "done": found.done,
            "running": found.running,
            "failed": found.failed,
            "without_account": found.totals.num_unknown,
        },
        "events": found.num_events,
        "gaps": found.gaps,
        "samples": dict(found.totals.samples),
        "seconds": {outcome: round(seconds, 6) for outcome, seconds in found.totals.seconds.items()},
        "files": dict(found.totals.files) | {"cannot be used": found.unusable, "not selected": found.not_selected},
        "quarantined": found.quarantined,
        "renamed": found.renamed,
    }


def describe(found: DetectionStatus) -> str:
    """Return the status as text: totals, then a table of coverage and events by station and day."""
    if found.planned is None and not found.done:
        return "no detection has run in this workspace"
    planned = max(found.planned or 0, found.done)
    left = "" if found.seconds_left is None else f", about {_duration(found.seconds_left)} left"
    lines = [
        f"shards: {found.done} done, {found.running} running, {found.failed} failed, of {planned}{left}",
        f"events: {found.num_events}; gaps: {found.gaps}; "
        f"blanked after gaps: {_duration(found.blanked_seconds)} in all channels",
        f"quarantined: {counted(len(found.quarantined), 'file')}",
    ]
    sentence = found.totals.sentence()
    lines[2:2] = [f"recordings: {sentence}"] if sentence is not None else []
    lines += [printable(f"    {key}: {reasons[0]}") for key, reasons in sorted(found.quarantined.items())[:10]]
    if found.renamed:
        lines.append(f"used under the codes of the path, not of the headers: {counted(len(found.renamed), 'file')}")
        differences = sorted(found.renamed.items())[:10]
        lines += [
            printable(f"    {key}: headers say {was}, used as {used}")
            for key, codes in differences
            for was, used in sorted(codes.items())
        ]
    lines += [printable(f"failed: {shard}: {reason}") for shard, reason in found.failures[:10]]
    num_rows = sum(days.num_days() for days in found.stations.values())
    rows = (
        f"{printable(station):<12} {one.day}  {100 * one.share:6.2f} %  {one.events:6d} events"
        for station in sorted(found.stations)
        for one in found.stations[station].recorded()
    )
    lines += ["", f"{'station':<12} {'day':<10}  covered"] if num_rows else []
    lines += islice(rows, MAX_LINES)
    if num_rows > MAX_LINES:
        lines.append(f"and {counted(num_rows - MAX_LINES, 'more station-day')}; --plot draws all")
    return "\n".join(lines)


def draw(found: DetectionStatus) -> bytes:
    """Return a PNG of coverage by station and day, and of events a day."""
    coverage = pd.DataFrame(
        [
            {"station": station, "day": pd.Timestamp(one.day), "fraction": min(one.share, 1.0)}
            for station, days in found.stations.items()
            for one in days.recorded()
        ],
        columns=["station", "day", "fraction"],
    )
    counts = {
        (station, int(np.datetime64(day, "s").astype(np.int64)) // DAY_SECONDS): count
        for station, days in found.stations.items()
        for day, count in days.events().items()
        if count
    }
    index = pd.MultiIndex.from_tuples(list(counts), names=["series", "bin"])
    events = BinnedCounts(width_s=DAY_SECONDS, counts=pd.Series(list(counts.values()), index=index, dtype=np.int64))
    return coverage_plot(coverage, events)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


if __name__ == "__main__":
    leave(main())
