"""The detection stage: plan the shards, detect those without a marker over Ray Data, account for all of them."""

import json
import pickle
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.archive.layouts import DAY_NS
from pipelines.archive.manifest import (
    MANIFEST_PATH,
    Manifest,
    build_manifest,
    probe,
    read_manifest,
    selection,
    write_manifest,
)
from pipelines.config import Config, stage_config, stage_output_keys, with_keys
from pipelines.config.detection import DetectionSettings
from pipelines.detect.anchored import context_seconds
from pipelines.detect.response import Responses, read_stationxml
from pipelines.detect.stage_coincidence import ChoicePlan, ChoiceTask, choose, plan_choices
from pipelines.detect.stage_plan import Shard, choose_interval, plan_shards
from pipelines.detect.stage_shard import (
    ATTEMPTS,
    BatchDetector,
    BatchTask,
    ShardTask,
    destination,
    detect_batch,
)
from pipelines.runtime.allocator import keep_freed_memory
from pipelines.runtime.errors import InputError, StageFailed, describe
from pipelines.runtime.progress import progress_bar
from pipelines.tracking.runs import stage_run
from pipelines.tracking.server import Tracking
from pipelines.workspace import tables
from pipelines.workspace.event_sample import events_fingerprint
from pipelines.workspace.ledger import MarkerName, fingerprint, list_markers, read_marker, remove_stale
from pipelines.workspace.storage import Store, StoredObject, check_readable, content_hash, open_store, read_file
from pipelines.workspace.workspace import Workspace

# Raised by hand whenever the rows that the stage writes change.
ALGORITHM_VERSION = 3

TASK_MEMORY_BYTES = 3 * 2**29
LEAST_DAYS_A_TASK, MOST_DAYS_A_TASK = 15, 64
MORE_DAYS_A_TASK = 1.25
"""A task takes up to this many times its days where that makes it end with a group."""
TASKS_AHEAD = 1.5
"""A task is the days that are left, divided by this many times the workers."""
TASKS_A_ROUND = 10_000
PROGRESS_SECONDS = 5.0
LEAST_SEISMIC_HZ = 10.0
PROGRESS_PATH = "ledger/detect/progress.json"
LOGGED_PATH = "ledger/detect/logged"
"""Fingerprint of the events that MLflow was told of last."""


@dataclass
class Plan:
    """What a run has to do.

    Attributes:
        manifest: the archive's files.
        interval: hour, day, week or month.
        files: key, size and etag of the manifest's usable rows.
        spans: (files, 2) int64, start and end of what each is believed to hold.
        pending: shards without a marker.
        num_shards: shards in all.
        stale: markers of shards that are to be redone or no longer exist.
    """

    manifest: Manifest
    interval: str
    files: pa.Table
    spans: np.ndarray[Any, Any]
    pending: list[Shard]
    num_shards: int
    stale: list[MarkerName]


@dataclass
class Summary:
    """What a run did; sums only, whatever the archive's size. With a network coincidence `events` are triggers."""

    shards: int = 0
    events: int = 0
    chosen: int | None = None
    covered_seconds: float = 0.0
    gaps: int = 0
    by_station: Counter[str] = field(default_factory=Counter)
    quarantined: dict[str, str] = field(default_factory=dict)
    num_quarantined: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    failed: list[tuple[str, str]] = field(default_factory=list)
    failed_names: list[MarkerName] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Archive:
    """An archive that can be read with the configuration it was checked with."""

    store: Store
    """Where the recordings are."""
    manifest: Manifest
    """Its files."""
    config: Config
    """The configuration, fitted to the recordings where `detection.fit_to_rate` asks for it."""
    responses: Responses
    """Of `archive.stationxml`; none for counts."""
    stationxml_hash: str
    """Content hash of that file; "" for counts."""


def open_archive(url: str, workspace: Workspace, config: Config) -> Archive:
    """List the archive and check that it can be read with this configuration, before anything is written.

    Raises:
        InputError: missing, empty, unreadable, nothing selected, or a band above every Nyquist frequency.
    """
    if config.detection.units == "m/s" and config.archive.stationxml is None:
        raise InputError("detection.units m/s needs archive.stationxml")
    if config.window.remove_response and config.detection.units != "m/s":
        raise InputError("window.remove_response needs detection.units m/s")
    archive = open_store(url, anonymous=config.archive.anonymous)
    check_readable(archive, what="archive")
    kept = read_manifest(workspace.store)
    before = kept[1] if kept is not None and kept[0] == "flat" else None
    manifest = build_manifest(archive, config.archive, before)
    fit, band = config.detection.fit_to_rate, config.detection.band_hz
    # Channel groups whose rate does not carry the band are skipped by name; there must be some that do.
    rates = probe(archive, manifest.usable(), enough=lambda rates: not fit and band[1] < max(rates) / 2)
    if fit:
        config = _fitted(config, rates)
    _check_rates(config.detection, rates)
    responses, stationxml_hash = _read_responses(config)
    return Archive(
        store=archive, manifest=manifest, config=config, responses=responses, stationxml_hash=stationxml_hash
    )


def _check_rates(detection: DetectionSettings, rates: set[float]) -> None:
    """Raise InputError where no rate carries the band, or one that does has too few samples for the averages."""
    high = detection.band_hz[1]
    if high >= max(rates) / 2:
        raise InputError(
            f"detection.band_hz reaches {high:g} Hz but the recordings have {max(rates):g} samples/s: "
            f"the upper corner must be below {max(rates) / 2:g} Hz"
        )
    for rate_hz in sorted(rate for rate in rates if high < rate / 2):
        num_sta, num_lta = detection.average_samples(rate_hz)
        if num_sta >= num_lta:
            raise InputError(
                f"detection.sta_seconds {detection.sta_seconds:g} and detection.lta_seconds {detection.lta_seconds:g} "
                f"are {num_sta} and {num_lta} samples at {rate_hz:g} samples/s: the first must be the shorter"
            )


def _fitted(config: Config, rates: set[float]) -> Config:
    """Return the configuration with a band that every seismic rate carries, and windows of no more than the highest."""
    lowest = min((rate for rate in rates if rate >= LEAST_SEISMIC_HZ), default=max(rates))
    low, high = config.detection.band_hz
    sections: dict[str, dict[str, Any]] = {}
    if high > 0.4 * lowest > low:
        sections["detection"] = {"band_hz": (low, 0.4 * lowest)}
    if config.window.rate_hz > max(rates):
        sections["window"] = {"rate_hz": max(rates)}
    if sections:
        fitted = with_keys(config, sections)
        band = ", ".join(f"{corner:g}" for corner in fitted.detection.band_hz)
        found = ", ".join(f"{rate:g}" for rate in sorted(rates))
        print(
            f"detect: the recordings have {found} samples/s; fitted to them: "
            f"detection.band_hz [{band}], window.rate_hz {fitted.window.rate_hz:g}"
        )
        return fitted
    return config


def _read_responses(config: Config) -> tuple[Responses, str]:
    path = config.archive.stationxml
    if path is None:
        return Responses(), ""
    content = read_file(path, "archive.stationxml")
    if config.detection.units == "counts":
        return Responses(), ""
    try:
        return Responses(read_stationxml(content)), content_hash(content)
    except ValueError as error:
        raise InputError(f"archive.stationxml {path} cannot be read: {error}") from None


def make_plan(manifest: Manifest, workspace: Workspace, config: Config, stationxml_hash: str) -> Plan:
    """Compare the archive's shards with the ledger."""
    table = manifest.usable()
    interval: str = config.shards.interval
    if interval == "auto":
        interval = workspace.read_state().get("shard_interval") or choose_interval(table)
    before, after = context_seconds(config.detection, config.window)
    first, last = selection(config.archive)
    keys = stage_output_keys(config, "detect")
    elsewhere = ("shards.", "archive.stationxml", "detection.coincidence_")
    settings = {key: value for key, value in keys.items() if not key.startswith(elsewhere)}
    settings |= {"algorithm": ALGORITHM_VERSION, "stationxml": stationxml_hash}
    _, ledger = destination(config.detection)
    done = set(list_markers(workspace.store, ledger))
    kept: set[MarkerName] = set()
    pending: list[Shard] = []
    for shard in plan_shards(
        table,
        interval,
        before_ns=round(before * 1e9),
        after_ns=round(after * 1e9),
        settings=settings,
        start_ns=first,
        end_ns=last,
    ):
        if shard.name in done:
            kept.add(shard.name)
        else:
            pending.append(shard)
    files = table.select(["key", "size", "etag"])
    spans = np.stack([table["start_ns"].to_numpy(), table["end_ns"].to_numpy()], axis=1)
    return Plan(manifest, interval, files, spans, pending, len(kept) + len(pending), sorted(done - kept, key=str))


def detect_events(
    archive: Archive,
    workspace: Workspace,
    config: Config,
    *,
    tracking: Tracking | None,
    num_workers: int,
) -> Summary:
    """Detect every shard that has no marker yet, and print what was found.

    Args:
        archive, workspace: where from and where to.
        config: resolved configuration.
        tracking: MLflow; None logs nothing.
        num_workers: shards that are detected at the same time.

    Raises:
        StageFailed: a shard failed twice; all others are done.
    """
    manifest = archive.manifest
    plan = make_plan(manifest, workspace, config, archive.stationxml_hash)
    workspace.update_state(shard_interval=plan.interval, archive=archive.store.url, layout=manifest.layout)
    write_manifest(workspace.store, manifest)
    table, ledger = destination(config.detection)
    remove_stale(workspace.store, table, ledger, plan.stale, (shard.name for shard in plan.pending))
    done = plan.num_shards - len(plan.pending)
    print(f"detect: {len(plan.files)} files ({manifest.layout}); {plan.num_shards} {plan.interval} shards, {done} done")
    _print_unusable(manifest)
    summary = Summary()
    began = time.time()
    if plan.pending:
        _run(archive, workspace.store, config, plan, summary, num_workers)
    if ledger == "trigger":
        choices = plan_choices(workspace.store, config.detection, plan.interval, summary.failed_names)
        to_do = [chosen for task in choices.tasks for _, chosen in task.shards]
        remove_stale(workspace.store, "events", "detect", choices.stale, to_do)
        _choose(workspace.store, config, plan, choices, summary, num_workers)
    if plan.pending or summary.chosen is not None:
        _log(workspace, config, manifest, summary, tracking, time.time() - began)
        _print(summary, config.detection)
    else:
        print("detect: nothing to do, every shard is done")
        if tracking is not None and not _is_logged(workspace.store):
            # An earlier run did the work and was lost before it could tell MLflow.
            _log(workspace, config, manifest, _recounted(workspace.store, ledger), tracking, 0.0)
    if summary.failed:
        shard, reason = summary.failed[0]
        more = f" and {len(summary.failed) - 1} more" if len(summary.failed) > 1 else ""
        raise StageFailed(f"shard {shard}{more} failed after {ATTEMPTS} attempts: {reason}")
    return summary


def tasks_of(plan: Plan, num_workers: int) -> Iterator[tuple[BatchTask, ...]]:
    """Yield the pending shards as tasks of batches: successive shards of one group, whose files are read once.

    A task takes a part of the days that are left, so that all workers end at about the same time. It is not too small,
    since between two tasks a worker waits: LEAST_DAYS_A_TASK, or a quarter of a worker's share where that is less. Two
    tasks that share a group both read the files at the cut between them, so a task takes some more or less where that
    makes it end with a group. The cut into tasks has no influence on any row.
    """
    left = sum(map(_days, plan.pending))
    enough = min(LEAST_DAYS_A_TASK, left / (4 * num_workers))
    least = max(1.0, enough)
    task: list[BatchTask] = []
    room = taken = 0.0
    for stretch in _stretches(plan.pending):
        days = sum(map(_days, stretch))
        while stretch:
            if not task:
                room, taken = max(least, min(MOST_DAYS_A_TASK, left / (TASKS_AHEAD * num_workers))), 0.0
            whole = taken + days <= max(room, min(MORE_DAYS_A_TASK * room, MOST_DAYS_A_TASK))
            if task and not whole and taken > 0.999 * max(enough, room / 2):
                yield tuple(task)
                task = []
                continue
            count = len(stretch) if whole else max(1, _count(stretch, room - taken))
            part, stretch = stretch[:count], stretch[count:]
            task.append(_batch(part, plan))
            part_days = sum(map(_days, part))
            taken, days, left = taken + part_days, days - part_days, left - part_days
            if stretch or taken > 0.999 * room:
                yield tuple(task)
                task = []
    if task:
        yield tuple(task)


def _stretches(shards: Sequence[Shard]) -> Iterator[list[Shard]]:
    """Yield successive shards of one group that follow each other without a break."""
    stretch: list[Shard] = []
    for shard in shards:
        if stretch and not _continues(stretch[-1], shard):
            yield stretch
            stretch = []
        stretch.append(shard)
    if stretch:
        yield stretch


def _count(shards: Sequence[Shard], days: float) -> int:
    """Return how many of the first shards make up at most so many days."""
    for index, shard in enumerate(shards):
        days -= _days(shard)
        if days < -1e-6:
            return index
    return len(shards)


def _days(shard: Shard) -> float:
    return (shard.end_ns - shard.start_ns) / DAY_NS


def _continues(last: Shard, shard: Shard) -> bool:
    return (shard.name.partition, shard.location, shard.band, shard.start_ns) == (
        last.name.partition,
        last.location,
        last.band,
        last.end_ns,
    )


def _batch(shards: list[Shard], plan: Plan) -> BatchTask:
    rows = sorted({row for shard in shards for row in shard.files})
    place = {row: index for index, row in enumerate(rows)}
    tasks = tuple(
        ShardTask(shard.name, shard.start_ns, shard.end_ns, tuple(place[row] for row in shard.files))
        for shard in shards
    )
    spans = tuple((int(begin), int(end)) for begin, end in plan.spans[rows])
    names = plan.files.take(pa.array(rows, pa.int64())).to_pydict()
    files = tuple(StoredObject(*values) for values in zip(names["key"], names["size"], names["etag"], strict=True))
    return BatchTask(shards[0].location, shards[0].band, tasks, files, spans)


def _run(
    archive: Archive,
    workspace: Store,
    config: Config,
    plan: Plan,
    summary: Summary,
    num_workers: int,
) -> None:
    import ray

    shared = ray.put((archive.store, workspace, config, archive.responses))
    _, ledger = destination(config.detection)
    tasks = tasks_of(plan, num_workers)
    began = time.time()
    reported = 0.0
    with progress_bar("detect", unit="shard", total=len(plan.pending)) as bar:
        for row in _results(tasks, _Detector(shared), num_workers):
            _fold(summary, json.loads(row["marker"]))
            bar.set_postfix(events=summary.events, failed=len(summary.failed), refresh=False)
            bar.update()
            if time.time() - reported > PROGRESS_SECONDS:
                reported = time.time()
                _write_progress(workspace, plan, summary, began, num_workers, ledger, summary.shards)
    _write_progress(workspace, plan, summary, began, 0, ledger, summary.shards)


def _results(
    tasks: Iterable[tuple[BatchTask, ...] | ChoiceTask], work: Callable[..., Iterator[dict[str, Any]]], num_workers: int
) -> Iterator[dict[str, Any]]:
    """Yield what the tasks give, in Ray Data executions over their descriptions; rounds bound what the driver holds."""
    import ray

    remaining = iter(tasks)
    while round_ := list(islice(remaining, TASKS_A_ROUND)):
        rows = ray.data.from_items([{"task": pickle.dumps(task)} for task in round_], override_num_blocks=len(round_))
        results = rows.flat_map(
            work,
            num_cpus=1,
            memory=TASK_MEMORY_BYTES,
            compute=ray.data.TaskPoolStrategy(size=num_workers),
        )
        # What a task gave is passed on at once; iter_rows would wait for the next task's.
        given: Any = results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        for part in given:
            yield from part.to_pylist()


def _choose(
    workspace: Store, config: Config, plan: Plan, choices: ChoicePlan, summary: Summary, num_workers: int
) -> None:
    """Write the events of the network coincidence."""
    if not choices.tasks:
        return
    import ray

    shared = ray.put((workspace, config))
    began = reported = time.time()
    summary.chosen = done = 0
    with progress_bar("coincidence", unit="shard", total=sum(len(task.shards) for task in choices.tasks)) as bar:
        for row in _results(choices.tasks, _Chooser(shared), num_workers):
            bar.update()
            if row["error"]:
                summary.failed.append((row["shard"], row["error"]))
            else:
                done += 1
                summary.chosen += row["events"]
            if time.time() - reported > PROGRESS_SECONDS:
                reported = time.time()
                _write_progress(workspace, plan, summary, began, num_workers, "detect", done)
    _write_progress(workspace, plan, summary, began, 0, "detect", done)


class _Chooser:
    """What a Ray task runs in the network coincidence."""

    def __init__(self, shared: Any) -> None:
        self.shared = shared

    def __call__(self, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        import ray

        workspace, config = ray.get(self.shared)
        task: ChoiceTask = pickle.loads(row["task"])
        for attempt in range(1, ATTEMPTS + 1):
            try:
                rows = [
                    {"shard": content["name"], "events": content["counts"]["events"], "error": ""}
                    for content in choose(workspace, config.detection, config.window.num_samples, task)
                ]
                break
            except Exception as error:
                reason = describe(error)
                first = task.shards[0][0]
                rows = [{"shard": f"{first.partition}/{first.shard}", "events": 0, "error": reason}]
                time.sleep(attempt)
        yield from rows


class _Detector:
    """What a Ray task runs: every shard of its batches, each tried twice."""

    def __init__(self, shared: Any) -> None:
        self.shared = shared

    def __call__(self, row: dict[str, Any]) -> Iterator[dict[str, str]]:
        import ray

        keep_freed_memory()
        archive, workspace, config, responses = ray.get(self.shared)
        batches: tuple[BatchTask, ...] = pickle.loads(row["task"])
        new_detector = partial(BatchDetector, archive, workspace, config, responses)
        for batch in batches:
            for shard, content in detect_batch(new_detector, batch):
                marker = {"name": f"{shard.name.partition}/{shard.name.shard}", "station": _station(shard.name)}
                marker |= content | {"fingerprint": shard.name.fingerprint}
                yield {"marker": json.dumps({key: marker[key] for key in marker if key not in ("inputs", "onsets_ns")})}


def _station(name: MarkerName) -> str:
    return f"{name.network}.{name.station}"


def _fold(summary: Summary, marker: dict[str, Any]) -> None:
    if "error" in marker:
        summary.failed.append((marker["name"], marker["error"]))
        partition, _, shard = marker["name"].rpartition("/")
        network, station = (part.partition("=")[2] for part in partition.split("/"))
        summary.failed_names.append(MarkerName(network, station, shard, marker["fingerprint"]))
        return
    summary.shards += 1
    summary.events += marker["counts"]["events"]
    summary.by_station[marker["station"]] += marker["counts"]["events"]
    summary.gaps += marker["gaps"]
    summary.covered_seconds += sum(entry["seconds"] for entry in marker["coverage"])
    for entry in marker["quarantined"]:
        if entry["key"] not in summary.quarantined:
            summary.num_quarantined += 1
            if len(summary.quarantined) < 1000:
                summary.quarantined[entry["key"]] = entry["reasons"][0]
    summary.skipped.update(marker["skipped"])


def _write_progress(
    workspace: Store, plan: Plan, summary: Summary, began: float, running: int, ledger: str, done: int
) -> None:
    progress = {
        "ledger": ledger,
        "planned": plan.num_shards,
        "pending_at_start": len(plan.pending),
        "done_since": done,
        "failed": [{"shard": shard, "reason": reason} for shard, reason in summary.failed[:1000]],
        "num_failed": len(summary.failed),
        "running": running,
        "started": began,
        "updated": time.time(),
        "interval": plan.interval,
        "unusable_files": plan.manifest.num_unusable,
    }
    workspace.write(PROGRESS_PATH, (json.dumps(progress, indent=1, sort_keys=True) + "\n").encode())


def _log(
    workspace: Workspace,
    config: Config,
    manifest: Manifest,
    summary: Summary,
    tracking: Tracking | None,
    seconds: float,
) -> None:
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


def _is_logged(workspace: Store) -> bool:
    """Whether MLflow was told of the events that the workspace holds."""
    return workspace.exists(LOGGED_PATH) and workspace.read(LOGGED_PATH).decode() == events_fingerprint(workspace)


def _recounted(workspace: Store, ledger: str) -> Summary:
    """Return the sums over the whole ledger."""
    summary = Summary()
    for name in list_markers(workspace, ledger):
        _fold(summary, read_marker(workspace, ledger, name) | {"station": _station(name)})
    if ledger == "trigger":
        summary.chosen = sum(
            read_marker(workspace, "detect", name)["counts"]["events"] for name in list_markers(workspace, "detect")
        )
    return summary


def _manifest_fingerprint(table: pa.Table) -> str:
    return fingerprint({"files": tables.rows_hash(table.select(["key", "size", "etag"]))})


def _print_unusable(manifest: Manifest) -> None:
    unusable = manifest.unusable()
    lines = [f"{key}: {reason}" for key, reason in unusable]
    _print_some(lines, f"{len(unusable)} files cannot be used", where=MANIFEST_PATH)


def _print(summary: Summary, detection: DetectionSettings) -> None:
    stations = ", ".join(f"{name} {count}" for name, count in sorted(summary.by_station.items())[:20])
    days = summary.covered_seconds / 86400
    kind = "trigger" if detection.coincidence_stations > 1 else "event"
    found = f"{summary.events} {kind}s" if summary.events else f"no {kind} found"
    print(
        f"detect: {found} in {summary.shards} shards ({days:.2f} channel-days)" + (f": {stations}" if stations else "")
    )
    if summary.chosen is not None:
        print(
            f"detect: {summary.chosen or 'no'} events of at least {detection.coincidence_stations} stations within "
            f"{detection.coincidence_seconds:g} s"
        )
    quarantined = [f"{key}: {reason}" for key, reason in sorted(summary.quarantined.items())]
    _print_some(quarantined, f"{summary.num_quarantined} files quarantined, in whole or in part")
    _print_some(sorted(summary.skipped), f"{len(summary.skipped)} channel groups or channels skipped")


def _print_some(lines: Iterable[str], title: str, *, where: str = "ledger/") -> None:
    lines = list(lines)
    if lines:
        print(f"detect: {title}")
        for line in lines[:10]:
            print(f"    {line}")
        if len(lines) > 10:
            print(f"    and {len(lines) - 10} more; {where} in the workspace lists all")
