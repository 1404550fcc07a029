"""Writes `catalog/`: the events of each month as QuakeML, CSV and Parquet, a month at a time."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pipelines.config.report import CatalogSettings
from pipelines.report import catalogue, quakeml
from pipelines.report.stage_inputs import read_evaluation
from pipelines.report.stage_reading import EVENT_COLUMNS, READ_THREADS
from pipelines.report.stage_summary import LABEL_COLUMNS
from pipelines.report.stage_tasks import map_tasks
from pipelines.report.summary import LabelSummary
from pipelines.workspace import tables
from pipelines.workspace.ledger import fingerprint
from pipelines.workspace.storage import Store
from pipelines.workspace.workspace import Workspace


def write_catalog(
    workspace: Workspace, settings: CatalogSettings, summary: LabelSummary, within_seconds: float
) -> tuple[list[str], int]:
    """Write `catalog/<yyyy-mm>.*` for every month with events; return the files and the number of events.

    Files of months or formats that no longer exist are removed. Months are written by a task each where Ray runs.
    """
    store = workspace.store
    clustering = read_evaluation(store).clustering
    method = f"sta-lta/{fingerprint(workspace.stored_config('detect'))}"

    def write(month: _Month) -> tuple[list[str], int]:
        detections = read_detections(store, month.files, month.start_ns, month.beyond_ns)
        owned, _ = catalogue.events_opened_before(detections, month.end_ns, month.taken_until_ns, within_seconds)
        events, picks = catalogue.associated_events(owned, within_seconds, settings.min_stations, settings.event_types)
        if not len(events):
            return [], 0
        return _write_month(store, settings, month.name, events, picks, method, clustering), len(events)

    results = list(map_tasks(write, _months(store, summary, within_seconds)))
    written = sorted(path for paths, _ in results for path in paths)
    for item in list(store.walk("catalog")):
        if item.path not in written:
            store.remove(item.path)
    return written, sum(count for _, count in results)


@dataclass(frozen=True, kw_only=True)
class _Month:
    """A month of the catalogue: times in ns since 1970-01-01 UTC."""

    name: str
    start_ns: int
    end_ns: int
    beyond_ns: int
    """Until when detections may belong to an event of the month."""
    taken_until_ns: int
    """Until when detections belong to an event of an earlier month."""
    files: tuple[str, ...]
    """Files of `labels/` with detections of the month or just after it."""


def _months(store: Store, summary: LabelSummary, within_seconds: float) -> list[_Month]:
    """Return every month that a file with rows touches, in order.

    An event that opens at the end of a month takes detections of the next one, so the months are looked at one after
    the other first, at onsets alone.
    """
    touched: set[np.datetime64] = set()
    for first_ns, last_ns in zip(summary.files["first_ns"], summary.files["last_ns"], strict=True):
        first, last = (np.datetime64(int(time), "ns").astype("datetime64[M]") for time in (first_ns, last_ns))
        touched.update(np.arange(first, last + 1))
    months = []
    taken_until_ns = int(np.iinfo(np.int64).min)
    for month in sorted(touched):
        start_ns, end_ns = (int(time.astype("datetime64[ns]").astype(np.int64)) for time in (month, month + 1))
        beyond_ns = end_ns + round(within_seconds * 1e9) + 1
        overlapping = summary.files[(summary.files["first_ns"] < beyond_ns) & (summary.files["last_ns"] >= start_ns)]
        files = tuple(overlapping["file"].tolist())
        months.append(
            _Month(
                name=str(month),
                start_ns=start_ns,
                end_ns=end_ns,
                beyond_ns=beyond_ns,
                taken_until_ns=taken_until_ns,
                files=files,
            )
        )
        onsets = _read_onsets(store, files, start_ns, beyond_ns)
        _, taken_until_ns = catalogue.events_opened_before(onsets, end_ns, taken_until_ns, within_seconds)
    return months


def _read_onsets(store: Store, files: Sequence[str], start_ns: int, end_ns: int) -> pd.DataFrame:
    def read(file: str) -> pd.DataFrame:
        onsets: pd.DataFrame = tables.read_table(store, f"labels/{file}", ("onset",)).to_pandas()
        onset_ns = catalogue.onset_nanoseconds(onsets)
        return onsets[(onset_ns >= start_ns) & (onset_ns < end_ns)]

    with ThreadPoolExecutor(READ_THREADS) as pool:
        return pd.concat(pool.map(read, files), ignore_index=True)


def _write_month(
    store: Store,
    settings: CatalogSettings,
    month: str,
    events: pd.DataFrame,
    picks: pd.DataFrame,
    method: str,
    clustering: str,
) -> list[str]:
    written = []
    if "quakeml" in settings.formats:
        pieces = quakeml.document(month, events, picks, settings.authority, settings.agency, method)
        with store.atomic_file(f"catalog/{month}.xml") as temporary, temporary.open("w", encoding="utf-8") as file:
            file.writelines(pieces)
        written.append(f"catalog/{month}.xml")
    if "csv" in settings.formats:
        store.write(f"catalog/{month}.csv", catalogue.catalogue_csv(events).encode())
        written.append(f"catalog/{month}.csv")
    if "parquet" in settings.formats:
        tables.write_table(
            store, f"catalog/{month}.parquet", catalogue.catalogue_table(events), {"clustering": clustering}
        )
        written.append(f"catalog/{month}.parquet")
    return written


def read_detections(store: Store, files: Sequence[str], start_ns: int, end_ns: int) -> pd.DataFrame:
    """Return the rows of `labels/` with those of `events/` (no waveforms) whose onset lies in [start, end)."""

    def read(file: str) -> pd.DataFrame:
        labels = tables.read_table(store, f"labels/{file}", LABEL_COLUMNS).to_pandas()
        onset_ns = catalogue.onset_nanoseconds(labels)
        labels = labels[(onset_ns >= start_ns) & (onset_ns < end_ns)]
        events = tables.read_table(store, f"events/{file}", EVENT_COLUMNS).to_pandas()
        joined: pd.DataFrame = labels.merge(events, on="event_id", how="inner", validate="one_to_one")
        return joined

    with ThreadPoolExecutor(READ_THREADS) as pool:
        pieces = [piece for piece in pool.map(read, files) if len(piece)]
    if not pieces:
        return pd.DataFrame(columns=[*LABEL_COLUMNS, *EVENT_COLUMNS[1:]]).astype({"onset": "datetime64[ns, UTC]"})
    return pd.concat(pieces, ignore_index=True)
