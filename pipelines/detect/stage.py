"""The detection stage: plan the shards, detect those without a marker over Ray Data, account for all of them."""

import contextlib
import time

from pipelines.archive.manifest import write_manifest
from pipelines.config import Config
from pipelines.detect.stage_archive import Archive
from pipelines.detect.stage_coincidence import plan_choices
from pipelines.detect.stage_plan import destination, make_plan
from pipelines.detect.stage_run import check_workers, choose_events, detect_shards
from pipelines.detect.stage_shard import MAX_ATTEMPTS
from pipelines.detect.stage_summary import (
    DetectionSummary,
    Progress,
    find_empty_stations,
    is_logged,
    log_detection,
    print_empty_stations,
    print_listing,
    print_summary,
    read_summary,
)
from pipelines.runtime.errors import InputError, StageFailed
from pipelines.runtime.text import counted, printable
from pipelines.tracking.server import Tracking
from pipelines.workspace.artifacts import STATIONXML, StationList
from pipelines.workspace.ledger import remove_stale
from pipelines.workspace.storage import Store
from pipelines.workspace.workspace import Workspace


def detect_events(
    archive: Archive,
    workspace: Workspace,
    config: Config,
    *,
    tracking: Tracking | None,
    num_workers: int,
) -> DetectionSummary:
    """Detect every shard that has no marker yet, and print what was found.

    Args:
        archive, workspace: where from and where to.
        config: resolved configuration.
        tracking: MLflow; None logs nothing.
        num_workers: shards that are detected at the same time.

    Raises:
        InputError: the nodes of the Ray that is connected are too small for a task.
        StageFailed: a shard failed twice, or a station that has files gives nothing; all others are done.
    """
    check_workers()
    manifest = archive.manifest
    plan = make_plan(manifest, workspace, config, archive.stationxml_hash)
    workspace.update_state(shard_interval=plan.interval, archive=archive.store.url, layout=manifest.layout)
    write_manifest(workspace.store, manifest)
    _keep_stations(archive, workspace.store)
    table, ledger = destination(config.detection)
    to_do = (shard.name for shard in plan.pending)
    remove_stale(workspace.store, table, ledger, plan.stale, to_do, beside=["availability"])
    done = plan.num_shards - len(plan.pending)
    print(
        f"detect: {counted(manifest.num_usable, 'file')} ({printable(manifest.layout)}); "
        f"{counted(plan.num_shards, f'{plan.interval} shard')}, {done} done"
    )
    print_listing(manifest)
    summary = DetectionSummary()
    began = time.time()
    if plan.pending:
        progress = Progress(workspace.store, plan, summary, ledger, num_workers)
        detect_shards(archive, workspace.store, config, plan, progress)
    if ledger == "trigger":
        choices = plan_choices(workspace.store, config.detection, plan.interval, summary.failed_names)
        to_choose = [chosen for task in choices.tasks for _, chosen in task.shards]
        remove_stale(workspace.store, "events", "detect", choices.stale, to_choose)
        progress = Progress(workspace.store, plan, summary, "detect", num_workers)
        choose_events(workspace.store, config, choices, progress)
    if plan.pending or summary.chosen is not None:
        log_detection(tracking, workspace, config, manifest, summary, seconds=time.time() - began)
        summary.totals.samples.update(manifest.dropped)
        print_summary(summary, config.detection)
    else:
        print("detect: nothing to do, every shard is done")
        if tracking is not None and not is_logged(workspace.store):
            # An earlier run did the work and was lost before it could log it to MLflow.
            log_detection(tracking, workspace, config, manifest, read_summary(workspace.store, ledger), seconds=0.0)
    empty = find_empty_stations(workspace.store, ledger, manifest, summary)
    print_empty_stations(empty)
    if summary.failed:
        shard, reason = summary.failed[0]
        more = f" and {len(summary.failed) - 1} more" if len(summary.failed) > 1 else ""
        raise StageFailed(f"shard {shard}{more} failed after {MAX_ATTEMPTS} attempts: {reason}")
    if empty and not config.archive.allow_empty_stations:
        station, num_files = next(iter(empty.items()))
        more = f" and {counted(len(empty) - 1, 'more station')}" if len(empty) > 1 else ""
        raise StageFailed(
            f"station {station}{more}: nothing in {counted(num_files, 'file')} can be used; the lines above say why "
            "(archive.allow_empty_stations true accepts that)"
        )
    return summary


def _keep_stations(archive: Archive, store: Store) -> None:
    """Keep the StationXML file, and where it says that the stations are, for the stages that no archive is given to."""
    before = None
    with contextlib.suppress(InputError):
        before = StationList.read(store)
    if archive.stations is None or archive.stationxml is None:
        store.remove_folder("stations")
    elif before != archive.stations or not store.exists(STATIONXML):
        store.write(STATIONXML, archive.stationxml)
        archive.stations.write(store)
