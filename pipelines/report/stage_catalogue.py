"""Writes `catalog/`: the events of each month as QuakeML, CSV, GeoParquet, markers and a SeisBench dataset.

A month is a task where Ray runs. It goes through the month in slices of so many detections, each read, associated and
added to all files, so memory is bounded whatever a month holds.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipelines.config.report import CatalogSettings
from pipelines.report import catalogue, markers, quakeml
from pipelines.report.positions import Positions, position_at, positions_by_station
from pipelines.report.stage_inputs import read_evaluation
from pipelines.report.stage_reading import EVENT_COLUMNS, read_ahead
from pipelines.report.stage_seisbench import chunk_writer, given_splits, import_h5py, read_format, write_chunk_list
from pipelines.report.stage_summary import LABEL_COLUMNS
from pipelines.report.stage_tasks import map_tasks
from pipelines.report.summary import LabelSummary
from pipelines.workspace import tables
from pipelines.workspace.artifacts import STATIONXML, StationList
from pipelines.workspace.ledger import fingerprint
from pipelines.workspace.storage import Store
from pipelines.workspace.workspace import Workspace

SLICE_ROWS = 50_000
"""Detections that a task holds at a time; more where one event has more."""
STATIONXML_COPY = "catalog/stations/stations.xml"
"""In a folder of its own, so that `catalog/*.xml` is QuakeML alone."""
_FIRST_LOOK_BACK_S = 3600.0

Add = Callable[[pd.DataFrame, pd.DataFrame], None]
"""Adds some events, and their detections with a `catalog_id`, to a file."""


def write_catalog(
    workspace: Workspace, settings: CatalogSettings, summary: LabelSummary, within_seconds: float
) -> tuple[list[str], int]:
    """Write `catalog/<yyyy-mm>.*` for every month with events; return the files and the number of events.

    Files of months or formats that no longer exist are removed. StationXML is passed along, see STATIONXML_COPY.

    Raises:
        InputError: `seisbench` is asked for without h5py, or hand labels that decide its split cannot be read.
    """
    store = workspace.store
    files = summary.files
    months = _months(files)
    parts = _Parts(
        settings=settings,
        clustering=read_evaluation(store).clustering,
        method=f"sta-lta/{fingerprint(workspace.stored_config('detect'))}",
        within_seconds=within_seconds,
        positions=positions_by_station(StationList.read(store)),
        trace_format=read_format(workspace),
        splits={},
        one_chunk=len(months) == 1,
    )
    if "seisbench" in settings.formats:
        import_h5py()
        parts = dataclasses.replace(parts, splits=given_splits(workspace))
    results = list(map_tasks(lambda month: _write_month(store, parts, files, month), months))
    written = sorted(path for files, _ in results for path in files)
    if "seisbench" in settings.formats:
        chunks = [parts.chunk(month.name) for month, (_, count) in zip(months, results, strict=True) if count]
        written += write_chunk_list(store, chunks)
    if store.exists(STATIONXML):
        store.write(STATIONXML_COPY, store.read(STATIONXML))
        written.append(STATIONXML_COPY)
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


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """What the files of all months have in common."""

    settings: CatalogSettings
    clustering: str
    method: str
    within_seconds: float
    positions: Positions
    trace_format: Mapping[str, str | float]
    splits: Mapping[str, str]
    one_chunk: bool

    @property
    def within_ns(self) -> int:
        return round(self.within_seconds * 1e9)

    def chunk(self, month: str) -> str:
        """Return the name of a month's chunk of the SeisBench dataset."""
        return "" if self.one_chunk else f"_{month}"


def _months(files: pd.DataFrame) -> list[_Month]:
    """Return every month that a file with rows touches, in order."""
    touched: set[np.datetime64] = set()
    for first_ns, last_ns in zip(files["first_ns"], files["last_ns"], strict=True):
        first, last = (np.datetime64(int(time), "ns").astype("datetime64[M]") for time in (first_ns, last_ns))
        touched.update(np.arange(first, last + 1))
    months = []
    for month in sorted(touched):
        start_ns, end_ns = (int(time.astype("datetime64[ns]").astype(np.int64)) for time in (month, month + 1))
        months.append(_Month(name=str(month), start_ns=start_ns, end_ns=end_ns))
    return months


def _overlapping(files: pd.DataFrame, start_ns: int, end_ns: int) -> list[str]:
    """Return the files with detections in [start, end)."""
    names: list[str] = files.loc[(files["first_ns"] < end_ns) & (files["last_ns"] >= start_ns), "file"].tolist()
    return names


def _write_month(store: Store, parts: _Parts, files: pd.DataFrame, month: _Month) -> tuple[list[str], int]:
    """Write the files of a month; return their paths and the number of events, nothing where there is none."""
    taken_until_ns = _taken_until(store, files, month.start_ns, parts.within_seconds)
    count = 0
    written: list[str] = []
    with contextlib.ExitStack() as stack:
        adds: list[Add] = []
        for start_ns, end_ns in _slices(store, files, month):
            beyond_ns = end_ns + parts.within_ns + 1
            detections = read_detections(store, _overlapping(files, start_ns, beyond_ns), start_ns, beyond_ns)
            owned, taken_until_ns = catalogue.events_opened_before(
                detections, end_ns, taken_until_ns, parts.within_seconds
            )
            settings = parts.settings
            events, picks = catalogue.associated_events(
                owned, parts.within_seconds, settings.min_stations, settings.event_types
            )
            if not len(events):
                continue
            if not count:
                written, adds = _open_files(stack, store, parts, month.name)
            count += len(events)
            for add in adds:
                add(events, picks)
    return written, count


def _taken_until(store: Store, files: pd.DataFrame, start_ns: int, within_seconds: float) -> int:
    """Return until when the last event before a month takes detections (ns since 1970-01-01 UTC).

    Since an event that opens earlier may decide which one opens next, onsets are read back until that is known.
    """
    first_ns = int(files["first_ns"].min())
    look_back_ns = max(round(_FIRST_LOOK_BACK_S * 1e9), 4 * round(within_seconds * 1e9))
    while True:
        from_ns = start_ns - look_back_ns
        complete = from_ns <= first_ns
        onset_ns = _read_onsets(store, _overlapping(files, from_ns, start_ns), from_ns, start_ns)
        found = catalogue.taken_before(onset_ns, from_ns, within_seconds, complete=complete)
        if found is not None:
            return found
        look_back_ns *= 8


def _slices(store: Store, files: pd.DataFrame, month: _Month) -> Iterator[tuple[int, int]]:
    """Yield stretches of a month, each with at most SLICE_ROWS detections unless their onsets are the same."""
    names = _overlapping(files, month.start_ns, month.end_ns)
    onset_ns = np.sort(_read_onsets(store, names, month.start_ns, month.end_ns))
    starts = [month.start_ns, *np.unique(onset_ns[SLICE_ROWS::SLICE_ROWS]).tolist()]
    yield from zip(starts, [*starts[1:], month.end_ns], strict=True)


def _read_onsets(store: Store, files: Sequence[str], start_ns: int, end_ns: int) -> npt.NDArray[np.int64]:
    """Return the onsets in [start, end) (ns since 1970-01-01 UTC)."""

    def read(file: str) -> npt.NDArray[np.int64]:
        table = tables.read_spans(store, f"labels/{file}", ("onset",), [(start_ns, end_ns)])
        return np.asarray(table["onset"].to_numpy().astype("datetime64[ns]").astype(np.int64))

    return np.concatenate([np.zeros(0, dtype=np.int64), *read_ahead(read, files)])


def _open_files(stack: contextlib.ExitStack, store: Store, parts: _Parts, month: str) -> tuple[list[str], list[Add]]:
    """Open the files of a month; return their paths and what adds to each."""
    settings = parts.settings
    written: list[str] = []
    adds: list[Add] = []

    def opened(path: str, add: contextlib.AbstractContextManager[Add]) -> None:
        written.append(path)
        adds.append(stack.enter_context(add))

    if "quakeml" in settings.formats:
        opened(f"catalog/{month}.xml", _quakeml_file(store, f"catalog/{month}.xml", parts, month))
    if "csv" in settings.formats:
        opened(f"catalog/{month}.csv", _csv_file(store, f"catalog/{month}.csv", parts))
    if "parquet" in settings.formats:
        opened(f"catalog/{month}.parquet", _parquet_file(store, f"catalog/{month}.parquet", parts))
    if "pyrocko" in settings.formats:
        opened(f"catalog/{month}.markers", _marker_file(store, f"catalog/{month}.markers"))
    if "seisbench" in settings.formats:
        writer = chunk_writer(
            store, parts.chunk(month), parts.trace_format, parts.positions, parts.clustering, parts.splits
        )
        adds.append(stack.enter_context(writer))
    return written, adds


@contextlib.contextmanager
def _quakeml_file(store: Store, path: str, parts: _Parts, month: str) -> Iterator[Add]:
    settings = parts.settings
    document = quakeml.Document(
        month=month,
        authority=settings.authority,
        agency=settings.agency,
        method=parts.method,
        clustering=parts.clustering,
    )
    with store.atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(document.head())
        yield lambda events, picks: file.writelines(document.body(events, picks))
        file.write(document.tail())


@contextlib.contextmanager
def _csv_file(store: Store, path: str, parts: _Parts) -> Iterator[Add]:
    with store.atomic_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:

        def add(events: pd.DataFrame, _: pd.DataFrame) -> None:
            file.write(catalogue.catalogue_csv(events, parts.clustering, header=file.tell() == 0))

        yield add


@contextlib.contextmanager
def _parquet_file(store: Store, path: str, parts: _Parts) -> Iterator[Add]:
    geo = catalogue.geoparquet_metadata(has_points=bool(parts.positions))
    metadata = {"clustering": parts.clustering, "geo": geo}
    with tables.table_writer(store, path, catalogue.CATALOGUE_SCHEMA, metadata) as write:
        yield lambda events, picks: write(
            catalogue.catalogue_table(events, parts.clustering, _points(parts.positions, events, picks))
        )


@contextlib.contextmanager
def _marker_file(store: Store, path: str) -> Iterator[Add]:
    with store.atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(markers.HEAD)
        yield lambda events, picks: file.writelines(markers.marker_lines(events, picks))


def _points(positions: Positions, events: pd.DataFrame, picks: pd.DataFrame) -> list[tuple[float, float] | None]:
    """Return longitude and latitude of the station with each event's first detection; None where unknown."""
    columns = ["network", "station", "location", "onset"]
    first = picks.set_index("event_id").loc[events["catalog_id"], columns]
    times = catalogue.onset_nanoseconds(first)
    places = [
        position_at(positions, network, station, location, int(time))
        for network, station, location, time in zip(
            first["network"], first["station"], first["location"], times, strict=True
        )
    ]
    return [None if place is None else (place.longitude_deg, place.latitude_deg) for place in places]


def read_detections(store: Store, files: Sequence[str], start_ns: int, end_ns: int) -> pd.DataFrame:
    """Return the rows of `labels/` with those of `events/` (no waveforms) whose onset lies in [start, end).

    `file` says which file a row comes from.
    """
    span = [(start_ns, end_ns)]

    def read(file: str) -> pd.DataFrame:
        labels = tables.read_spans(store, f"labels/{file}", LABEL_COLUMNS, span).to_pandas()
        events = tables.read_spans(store, f"events/{file}", EVENT_COLUMNS, span).to_pandas()
        joined: pd.DataFrame = labels.merge(events, on="event_id", how="inner", validate="one_to_one")
        return joined.assign(file=file)

    pieces = [piece for piece in read_ahead(read, files) if len(piece)]
    if not pieces:
        empty = pd.DataFrame(columns=[*LABEL_COLUMNS, *EVENT_COLUMNS[1:], "file"])
        return empty.astype({"onset": "datetime64[ns, UTC]"})
    return pd.concat(pieces, ignore_index=True)
