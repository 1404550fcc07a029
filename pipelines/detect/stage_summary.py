"""What a detection run did: sums over its shards, the progress file, and what is printed and sent to MLflow."""

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.archive.manifest import MANIFEST_PATH, Manifest
from pipelines.config import Config, stage_config
from pipelines.config.detection import DetectionSettings
from pipelines.detect.account import Totals, gives_samples
from pipelines.detect.stage_plan import Plan
from pipelines.runtime.ahead import read_ahead
from pipelines.runtime.text import counted, printable
from pipelines.tracking.runs import stage_run
from pipelines.tracking.server import Tracking
from pipelines.workspace import tables
from pipelines.workspace.artifacts import DetectionProgress, FailedShard
from pipelines.workspace.bundles import read_markers
from pipelines.workspace.event_sample import events_fingerprint
from pipelines.workspace.ledger import MarkerName, fingerprint, list_markers, read_detection_marker
from pipelines.workspace.storage import Store
from pipelines.workspace.workspace import Workspace

PROGRESS_SECONDS = 5.0
LOGGED_PATH = "ledger/detect/logged"
"""Fingerprint of the events that were last logged to MLflow."""
MAX_NAMED_FILES = 1000
MAX_PRINTED_LINES = 10
BESIDE_RECORDINGS = (".json", ".parquet", ".xml")
"""Suffixes of what lies beside recordings and is none: StationXML, the truth of a synthetic archive."""


@dataclass
class DetectionSummary:
    """What a run did; sums only, whatever the archive's size. With a network coincidence `events` are triggers."""

    shards: int = 0
    events: int = 0
    chosen: int | None = None
    covered_seconds: float = 0.0
    gaps: int = 0
    by_station: Counter[str] = field(default_factory=Counter)
    quarantined: dict[str, str] = field(default_factory=dict)
    num_quarantined: int = 0
    renamed: dict[str, str] = field(default_factory=dict)
    num_renamed: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    num_without_response: int = 0
    totals: Totals = field(default_factory=Totals)
    giving: set[tuple[str, str]] = field(default_factory=set)
    """Network and station of those that gave samples in which something can be detected."""
    failed: list[tuple[str, str]] = field(default_factory=list)
    failed_names: list[MarkerName] = field(default_factory=list)

    def add(self, name: MarkerName, marker: dict[str, Any]) -> None:
        """Add a shard: its marker's content, or `{"error": reason}`."""
        if "error" in marker:
            self.failed.append((f"{name.partition}/{name.shard}", marker["error"]))
            self.failed_names.append(name)
            return
        self.shards += 1
        self.events += marker["counts"]["events"]
        self.by_station[f"{name.network}.{name.station}"] += marker["counts"]["events"]
        self.gaps += marker["gaps"]
        self.covered_seconds += sum(entry["seconds"] for entry in marker["coverage"])
        for entry in marker["quarantined"]:
            if entry["key"] not in self.quarantined:
                self.num_quarantined += 1
                if len(self.quarantined) < MAX_NAMED_FILES:
                    self.quarantined[entry["key"]] = entry["reasons"][0]
        for entry in marker.get("renamed", ()):
            if entry["key"] not in self.renamed:
                self.num_renamed += 1
                if len(self.renamed) < MAX_NAMED_FILES:
                    self.renamed[entry["key"]] = f"headers say {entry['headers']}, used as {entry['used']}"
        self.skipped.update(marker["skipped"])
        self.num_without_response += marker["counts"].get("triggers_without_response", 0)
        self.totals.add(marker)
        if gives_samples(marker):
            self.giving.add((name.network, name.station))


def read_summary(workspace: Store, ledger: str) -> DetectionSummary:
    """Return the sums over the whole ledger."""
    summary = DetectionSummary()
    for name, marker in read_markers(workspace, ledger):
        summary.add(name, marker)
    if ledger == "trigger":
        summary.chosen = sum(marker["counts"]["events"] for _, marker in read_markers(workspace, "detect"))
    return summary


def find_empty_stations(workspace: Store, ledger: str, manifest: Manifest, summary: DetectionSummary) -> dict[str, int]:
    """Return the stations that have files and give no sample in which something can be detected, with their files.

    Of a station that gave none in this run the markers of earlier runs are read, until one has some; of several
    stations at a time.
    """
    table = manifest.table.filter(pc.is_valid(manifest.table["station"]))
    stations = table.group_by(["network", "station"]).aggregate([("key", "count_distinct")]).to_pylist()
    silent = [row for row in stations if (row["network"], row["station"]) not in summary.giving]

    def is_empty(row: dict[str, Any]) -> bool:
        names = list_markers(workspace, ledger, network=row["network"], station=row["station"])
        return not any(gives_samples(read_detection_marker(workspace, ledger, name)) for name in names)

    silent.sort(key=lambda row: (row["network"], row["station"]))
    found = zip(silent, read_ahead(is_empty, silent), strict=True)
    return {f"{row['network']}.{row['station']}": row["key_count_distinct"] for row, empty in found if empty}


@dataclass
class Progress:
    """Writes ledger/detect/progress.json, which `firnline status` reads, now and then while shards are detected.

    Attributes:
        workspace: where to.
        plan: the shards.
        summary: of the shards that are done.
        ledger: the ledger whose markers tell what is done.
        num_workers: shards that are detected at the same time.
        began: when the run began, in seconds since 1970.
    """

    workspace: Store
    plan: Plan
    summary: DetectionSummary
    ledger: str
    num_workers: int
    began: float = field(default_factory=time.time)
    _written: float = 0.0

    def update(self, num_done: int) -> None:
        """Write that so many shards are done since the run began, unless that was written a moment ago."""
        if time.time() - self._written > PROGRESS_SECONDS:
            self._write(num_done, self.num_workers)

    def finish(self, num_done: int) -> None:
        """Write that nothing runs any more."""
        self._write(num_done, 0)

    def _write(self, num_done: int, num_running: int) -> None:
        self._written = time.time()
        failed = self.summary.failed
        DetectionProgress(
            ledger=self.ledger,
            planned=self.plan.num_shards,
            pending_at_start=len(self.plan.pending),
            done_since=num_done,
            failed=tuple(FailedShard(shard=shard, reason=reason) for shard, reason in failed[:MAX_NAMED_FILES]),
            num_failed=len(failed),
            running=num_running,
            started=self.began,
            updated=self._written,
            interval=self.plan.interval,
            unusable_files=self.plan.manifest.num_unusable,
        ).write(self.workspace)


def log_detection(
    tracking: Tracking | None,
    workspace: Workspace,
    config: Config,
    manifest: Manifest,
    summary: DetectionSummary,
    *,
    seconds: float,
) -> None:
    """Log a run to MLflow, and note in the workspace for which events that was done; nothing without MLflow."""
    if tracking is None:
        return
    inputs = {"archive": _manifest_fingerprint(manifest.table)}
    with stage_run(tracking, "detect", stage_config(config, "detect"), inputs=inputs) as run:
        events = events_fingerprint(workspace.store)
        run.set_tags({"firnline.output.events": events})
        run.log_metrics(
            {
                "events": summary.events if summary.chosen is None else summary.chosen,
                "shards": summary.shards,
                "failed_shards": len(summary.failed),
                "quarantined_files": summary.num_quarantined + manifest.num_unusable,
                "covered_channel_days": summary.covered_seconds / 86400,
                "gaps": summary.gaps,
                "seconds": seconds,
            }
        )
    workspace.store.write(LOGGED_PATH, events.encode())


def is_logged(workspace: Store) -> bool:
    """Whether the events that the workspace holds were logged to MLflow."""
    return workspace.exists(LOGGED_PATH) and workspace.read(LOGGED_PATH).decode() == events_fingerprint(workspace)


def _manifest_fingerprint(table: pa.Table) -> str:
    return fingerprint({"files": tables.rows_hash(table.select(["key", "size", "etag"]))})


def print_listing(manifest: Manifest) -> None:
    """Print which files of the archive are not read at all."""
    if manifest.doubt is not None:
        print(f"detect: {printable(manifest.doubt)}")
    for key, count in sorted(manifest.not_selected.items()):
        print(f"detect: {counted(count, 'file is', 'files are')} not selected by {key}")
    unusable = manifest.unusable()
    beside = [key for key, _ in unusable if PurePosixPath(key).suffix in BESIDE_RECORDINGS]
    if beside:
        suffixes = ", ".join(sorted({PurePosixPath(key).suffix for key in beside}))
        print(f"detect: {counted(len(beside), 'file')} beside the recordings not read ({suffixes})")
    lines = [f"{key}: {reason}" for key, reason in unusable if PurePosixPath(key).suffix not in BESIDE_RECORDINGS]
    print_some(
        lines, f"{counted(len(lines), 'file')} cannot be used", rest=f"; {MANIFEST_PATH} in the workspace lists all"
    )


def print_empty_stations(empty: Mapping[str, int]) -> None:
    """Print the stations that have files and give nothing."""
    lines = [f"{station}: {counted(num_files, 'file')}" for station, num_files in empty.items()]
    print_some(lines, f"{counted(len(empty), 'station has', 'stations have')} files, but no sample that can be used")


def print_summary(summary: DetectionSummary, detection: DetectionSettings) -> None:
    """Print what a run found, and what it could not use."""
    stations = ", ".join(f"{printable(name)} {count}" for name, count in sorted(summary.by_station.items())[:20])
    days = summary.covered_seconds / 86400
    kind = "trigger" if detection.coincidence_stations > 1 else "event"
    found = counted(summary.events, kind) if summary.events else f"no {kind} found"
    print(
        f"detect: {found} in {counted(summary.shards, 'shard')} ({days:.2f} channel-days)"
        + (f": {stations}" if stations else "")
    )
    if summary.chosen is not None:
        print(
            f"detect: {counted(summary.chosen, 'event')} of at least {detection.coincidence_stations} stations within "
            f"{detection.coincidence_seconds:g} s"
        )
    quarantined = [f"{key}: {reason}" for key, reason in sorted(summary.quarantined.items())]
    print_some(quarantined, f"{counted(summary.num_quarantined, 'file')} quarantined, in whole or in part")
    renamed = [f"{key}: {difference}" for key, difference in sorted(summary.renamed.items())]
    print_some(
        renamed,
        f"{counted(summary.num_renamed, 'file is', 'files are')} used under the codes of the path, not of the headers",
    )
    sentence = summary.totals.sentence()
    print_some(
        sorted(summary.skipped),
        f"{counted(len(summary.skipped), 'channel group or channel', 'channel groups or channels')} skipped",
    )
    if summary.num_without_response:
        print(
            f"detect: {counted(summary.num_without_response, 'trigger')} dropped: archive.stationxml has no epoch for "
            "the channel at that time"
        )
    if sentence is not None:
        print(f"detect: {sentence}")


def print_some(lines: Iterable[str], title: str, *, rest: str = "; ledger/ in the workspace lists all") -> None:
    """Print a title and the first of some lines; nothing where there are none. `rest` says where the others are."""
    lines = list(lines)
    if lines:
        print(f"detect: {title}")
        for line in lines[:MAX_PRINTED_LINES]:
            print(f"    {printable(line)}")
        if len(lines) > MAX_PRINTED_LINES:
            print(f"    and {len(lines) - MAX_PRINTED_LINES} more{rest}")
