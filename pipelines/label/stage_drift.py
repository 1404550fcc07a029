"""What the markers of `ledger/label/` count: sizes of clusters, and drift, kept in `clustering/drift.json`."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import ray

from pipelines.label.cells import Cell, add_cells
from pipelines.label.drift import compare_cells
from pipelines.runtime.ray_session import task_results
from pipelines.runtime.text import counted
from pipelines.tracking.runs import StageRun
from pipelines.workspace import tables
from pipelines.workspace.artifacts import DriftRecord, DriftRow, FittedClustering
from pipelines.workspace.ledger import MarkerName, read_label_marker
from pipelines.workspace.storage import Store

READERS = 16
"""Markers read at a time."""
SHOWN = 5
"""Months whose drift is printed."""


def read_cells(store: Store, marks: Sequence[MarkerName]) -> list[Cell]:
    """Return what the markers count, added up by station, month and side of the reference period."""
    groups = tables.by_task(sorted(marks, key=lambda mark: (mark.partition, mark.shard)))
    return add_cells(cell for part in task_results([_read.remote(store, group) for group in groups]) for cell in part)


@ray.remote
def _read(store: Store, marks: list[MarkerName]) -> list[Cell]:
    with ThreadPoolExecutor(READERS) as pool:
        markers = list(pool.map(lambda mark: read_label_marker(store, mark), marks))
    return add_cells(
        Cell.from_json(f"{mark.network}.{mark.station}", values)
        for mark, marker in zip(marks, markers, strict=True)
        for values in marker["cells"]
    )


def cluster_sizes(cells: Sequence[Cell], numbers: Sequence[int]) -> dict[int, int]:
    """Return the events of each cluster by its final number, ascending."""
    sizes: Counter[int] = Counter()
    for cell in cells:
        sizes.update(cell.clusters)
    return {number: sizes[number] for number in sorted(numbers)}


def drift_of(cells: Sequence[Cell], fitted: FittedClustering) -> DriftRecord:
    """Compare the events outside the reference period with those inside."""
    return DriftRecord(
        clustering=fitted.clustering,
        first_ns=min(period.first_ns for period in fitted.periods),
        last_ns=max(period.last_ns for period in fitted.periods),
        reference_events=sum(cell.events for cell in cells if cell.reference),
        events=sum(cell.events for cell in cells if not cell.reference),
        rows=tuple(compare_cells(cells)),
    )


def log_drift(run: StageRun, drift: DriftRecord) -> None:
    """Log the drift to the run: the extremes as metrics, every month as a table, and whether to train again."""
    alarms = [row for row in drift.rows if row.reasons]
    run.set_tags({"firnline.retraining": f"advised: {drift_words(drift)[0]}" if alarms else "not advised"})
    metrics = {"drift.events": float(drift.events), "drift.alarms": float(len(alarms))}
    if drift.rows:
        metrics |= {
            "drift.far_share": sum(row.far_share * row.events for row in drift.rows) / drift.events,
            "drift.max_far_share": max(row.far_share for row in drift.rows),
            "drift.max_distance_ratio": max(row.distance_ratio for row in drift.rows),
            "drift.max_balance": max(row.balance for row in drift.rows),
        }
        levels = [abs(row.noise_db) for row in drift.rows if row.noise_db is not None]
        metrics |= {"drift.max_noise_db": max(levels)} if levels else {}
        columns = {
            name: [getattr(row, name) for row in drift.rows] for name in DriftRow.model_fields if name != "reasons"
        }
        run.log_table(columns | {"reasons": ["; ".join(row.reasons) for row in drift.rows]}, "drift/drift.json")
    run.log_metrics(metrics)


def drift_words(drift: DriftRecord) -> list[str]:
    """Return why retraining is advised, a line for each station and month, those with most reasons first."""
    alarms = sorted((row for row in drift.rows if row.reasons), key=lambda row: (-len(row.reasons), -row.far_share))
    return [f"{row.station} {row.month}, {counted(row.events, 'event')}: {'; '.join(row.reasons)}" for row in alarms]


def print_drift(drift: DriftRecord) -> None:
    """Print whether later events differ from those that the clustering was fitted on, and what to do."""
    words = drift_words(drift)
    if not drift.events:
        return
    if not words:
        print(
            f"label: {counted(drift.events, 'event is', 'events are')} later than the clustering and like those that "
            "it was fitted on"
        )
        return
    print("label: retraining is advised (--run.on_growth retrain of `firnline run`), since events have changed:")
    for line in words[:SHOWN]:
        print(f"  {line}")
    if len(words) > SHOWN:
        print(f"  and {len(words) - SHOWN} more stations and months in {DriftRecord.PATH}", flush=True)
