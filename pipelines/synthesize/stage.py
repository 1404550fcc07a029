"""Writes a synthetic archive: SDS day files, StationXML and truth, one Ray task for each station-day.

synthetic.json                                       generator version and settings; written first
stations.xml
2020/SY/FL01/HHZ.D/SY.FL01.00.HHZ.D.2020.001          miniSEED 2, Steim2, 4096-byte records
truth/2020/SY.FL01.2020.001.parquet                  arrivals of that station-day; written last, so it marks it done
"""

import io
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date, timedelta
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pymseed import MS3TraceList

from pipelines.config import flatten
from pipelines.config.synthesize import SynthesizeSettings
from pipelines.runtime.capacity import refuse_too_small
from pipelines.runtime.errors import InputError, StageFailed, describe
from pipelines.runtime.progress import progress_bar
from pipelines.synthesize.flaws import DayFlaws, Stretch, day_flaws
from pipelines.synthesize.plan import Arrival, Station, day_number, day_of, num_slots, render, stations, truth_arrivals
from pipelines.synthesize.records import pack, source_id
from pipelines.synthesize.stationxml import station_xml
from pipelines.synthesize.streams import VERSION
from pipelines.synthesize.windows import COUNTS_PER_M_S, onset_sample, recording, sample_ns, to_counts
from pipelines.workspace import tables
from pipelines.workspace.storage import Store

LOCATION = "00"
MANIFEST = "synthetic.json"
STATION_XML = "stations.xml"
TRUTH = "truth"

TRUTH_SCHEMA = pa.schema(
    [
        ("class", pa.string()),
        ("event", pa.string()),
        ("network", pa.string()),
        ("station", pa.string()),
        ("location", pa.string()),
        ("time", pa.timestamp("ns", tz="UTC")),
        ("snr", pa.float32()),
        ("kind", pa.string()),
        ("source", pa.string()),
        ("s_time", pa.timestamp("ns", tz="UTC")),
        ("end_time", pa.timestamp("ns", tz="UTC")),
        ("distance_km", pa.float32()),
        ("back_azimuth_deg", pa.float32()),
        ("magnitude", pa.float32()),
    ]
)
"""One row for each arrival in the record: `time` is the onset of the first arrival; repeating events share `source`."""

_CHUNK_SAMPLES = 1 << 21
_MAX_SLOTS = 4000


@dataclass(frozen=True, kw_only=True)
class SyntheticSummary:
    """What `synthesize_archive` did."""

    num_station_days: int
    """Station-days of the archive, those found done included."""
    num_written: int
    """Station-days written now."""
    num_bytes: int
    """Bytes of miniSEED written now."""
    num_arrivals: dict[str, int]
    """Truth rows by class, of the whole archive."""


def check_archive(store: Store, settings: SynthesizeSettings, *, replace: bool = False) -> None:
    """Check, before any work, that the archive can be written or resumed.

    Raises:
        InputError: the folder holds another archive or other files or cannot be written, or too many events.
    """
    if num_slots(settings) > _MAX_SLOTS:
        raise InputError(
            f"synthesize.events_per_station_day = {settings.events_per_station_day:g} needs {num_slots(settings)} "
            f"events a day over this network; at most {_MAX_SLOTS} can be kept from overlapping: give fewer"
        )
    store.check_writable(what="archive")
    present = _manifest(store)
    wanted = manifest(settings)
    if present is not None and present != wanted and not replace:
        before, after = dict(flatten(present)), dict(flatten(wanted))
        key = next(key for key in [*after, *before] if before.get(key) != after.get(key))
        name = key.replace("settings.", "synthesize.", 1)
        raise InputError(
            f"{store.url} holds a synthetic archive with {name} = {before.get(key)}, not {after.get(key)}; "
            "choose another folder or give --replace"
        )
    if present is None and next(iter(store.walk()), None) is not None:
        raise InputError(
            f"{store.url} holds files that are not part of a synthetic archive; choose a new or empty folder"
        )


def synthesize_archive(store: Store, settings: SynthesizeSettings, *, replace: bool = False) -> SyntheticSummary:
    """Write the archive's missing station-days; Ray must run.

    Raises:
        InputError: see `check_archive`; no node is large enough for a station-day.
        StageFailed: a station-day failed; the others are written.
    """
    import ray.data

    check_archive(store, settings, replace=replace)
    refuse_too_small("a station-day of synthesize", cpus=1, memory=settings.task_memory_mib << 20)
    present = _manifest(store)
    if present is not None and present != manifest(settings):
        _remove(store, present)
    store.write(MANIFEST, (json.dumps(manifest(settings), indent=2) + "\n").encode())
    placed = stations(settings)
    store.write(
        STATION_XML,
        station_xml(
            settings.network,
            placed,
            channels(settings.rate_hz),
            LOCATION,
            settings.rate_hz,
            COUNTS_PER_M_S,
            settings.start,
            settings.num_days,
        ),
    )
    done = {item.path for item in store.walk(TRUTH)}
    rows = [
        row for row in station_days(settings) if truth_path(settings.network, row["station"], row["day"]) not in done
    ]
    results: list[dict[str, Any]] = []
    if rows:
        dataset = ray.data.from_items(rows, override_num_blocks=min(len(rows), 10_000)).map(
            partial(write_station_day, store=store, settings=settings),
            num_cpus=1,
            memory=settings.task_memory_mib << 20,
        )
        with progress_bar("synthesize", unit="station-day", total=len(rows)) as bar:
            for row in dataset.iter_rows():
                results.append(row)
                bar.update()
    failed = sorted(f"{row['station']} {day_of(row['day'])}: {row['error']}" for row in results if row["error"])
    if failed:
        raise StageFailed(f"{len(failed)} station-days failed, the first is {failed[0]}")
    return SyntheticSummary(
        num_station_days=settings.num_stations * settings.num_days,
        num_written=len(results),
        num_bytes=sum(row["bytes"] for row in results),
        num_arrivals=_count(store),
    )


def manifest(settings: SynthesizeSettings) -> dict[str, Any]:
    """Return the content of synthetic.json: generator version and the settings that change the archive."""
    return {"generator": "firnline synthesize", "version": VERSION, "settings": settings.output_keys()}


def station_days(settings: SynthesizeSettings) -> Iterator[dict[str, Any]]:
    """Yield {"station": code, "day": days since 1970-01-01} for every file group of the archive, day by day."""
    first = day_number(settings.start)
    for day in range(first, first + settings.num_days):
        for station in stations(settings):
            yield {"station": station.code, "day": day}


def channels(rate_hz: int) -> tuple[str, str, str]:
    """Return the channel codes of a broadband velocity sensor at a rate, in the order E, N, Z."""
    band = "B" if rate_hz < 80 else "H" if rate_hz < 250 else "C"
    return f"{band}HE", f"{band}HN", f"{band}HZ"


def day_file_path(network: str, station: str, channel: str, day: int) -> str:
    """Return a day file's path in the SeisComP data structure."""
    at = day_of(day)
    return f"{at:%Y}/{network}/{station}/{channel}.D/{network}.{station}.{LOCATION}.{channel}.D.{at:%Y.%j}"


def truth_path(network: str, station: str, day: int) -> str:
    """Return the path of a station-day's truth."""
    at = day_of(day)
    return f"{TRUTH}/{at:%Y}/{network}.{station}.{at:%Y.%j}.parquet"


def read_truth(store: Store) -> pa.Table:
    """Return an archive's whole truth (TRUTH_SCHEMA), sorted by time, station and event."""
    paths = sorted(item.path for item in store.walk(TRUTH) if item.path.endswith(".parquet"))
    parts = [_read_parquet(store, path).replace_schema_metadata() for path in paths]
    table = pa.concat_tables(parts) if parts else TRUTH_SCHEMA.empty_table()
    return table.sort_by([("time", "ascending"), ("station", "ascending"), ("event", "ascending")])


def _read_parquet(store: Store, path: str, columns: list[str] | None = None) -> pa.Table:
    with tables.open_content(store.read(path), store.full(path)) as file:
        return file.read(columns=columns)


def write_station_day(row: dict[str, Any], store: Store, settings: SynthesizeSettings) -> dict[str, Any]:
    """Write one station-day and return its row with `bytes` and `error` (empty when it went well)."""
    try:
        station = next(station for station in stations(settings) if station.code == row["station"])
        return {**row, "bytes": _write_station_day(store, settings, station, row["day"]), "error": ""}
    except (OSError, ValueError, RuntimeError) as error:
        return {**row, "bytes": 0, "error": describe(error)}


def _write_station_day(store: Store, settings: SynthesizeSettings, station: Station, day: int) -> int:
    flaws = day_flaws(settings, station.name, day)
    num_bytes = 0
    if not flaws.missing:
        names = channels(settings.rate_hz)
        with ExitStack() as stack:
            paths = [
                stack.enter_context(store.atomic_file(day_file_path(station.network, station.code, name, day)))
                for name in names
            ]
            files = [stack.enter_context(path.open("wb")) for path in paths]
            identifiers = [source_id(station.network, station.code, LOCATION, name) for name in names]
            unpacked = [stack.enter_context(MS3TraceList()) for _ in names]
            for start_ns, counts, last in _chunks(settings, station, day, flaws):
                for number, file in enumerate(files):
                    records = pack(
                        unpacked[number], identifiers[number], start_ns, counts[number], settings.rate_hz, last=last
                    )
                    num_bytes += file.write(records)
            for file in files:
                file.close()
    table = _truth(settings, station, day, flaws)
    content = io.BytesIO()
    pq.write_table(table, content, compression="zstd")
    store.write(truth_path(station.network, station.code, day), content.getvalue())
    return num_bytes


def _chunks(
    settings: SynthesizeSettings, station: Station, day: int, flaws: DayFlaws
) -> Iterator[tuple[int, npt.NDArray[np.int32], bool]]:
    """Yield (time of the first sample in ns, counts (3, sample), whether a stretch ends here)."""
    midnight = day * 86_400 * settings.rate_hz
    for stretch in flaws.stretches:
        for first in range(stretch.first, stretch.end, _CHUNK_SAMPLES):
            end = min(first + _CHUNK_SAMPLES, stretch.end)
            counts = _counts(settings, station, midnight, Stretch(first=first, end=end, slip=stretch.slip), flaws)
            yield sample_ns(midnight + first, settings.rate_hz), counts, end == stretch.end


def _counts(
    settings: SynthesizeSettings, station: Station, midnight: int, stretch: Stretch, flaws: DayFlaws
) -> npt.NDArray[np.int32]:
    first = midnight + stretch.first - stretch.slip
    counts = to_counts(recording(settings, station, first, stretch.end - stretch.first))
    if flaws.dead_component is not None:
        low, high = (max(sample - stretch.first, 0) for sample in (flaws.dead.first, flaws.dead.end))
        counts[flaws.dead_component, low:high] = 0
    return counts


def _truth(settings: SynthesizeSettings, station: Station, day: int, flaws: DayFlaws) -> pa.Table:
    midnight = day * 86_400 * settings.rate_hz
    rows = []
    for arrival in truth_arrivals(settings, station, day):
        waveform, s_delay = render(settings, arrival)
        at = min(onset_sample(arrival.time_ns, settings.rate_hz) - midnight, 86_400 * settings.rate_hz - 1)
        felt = [number for number in range(3) if np.any(waveform[number]) and not flaws.is_dead(number, at)]
        if flaws.records(at) and felt:
            rows.append(_truth_row(arrival, s_delay, waveform.shape[1] / settings.rate_hz))
    metadata = {
        "generator": "firnline synthesize",
        "version": str(VERSION),
        "settings": json.dumps(settings.output_keys()),
    }
    return pa.Table.from_pylist(rows, schema=TRUTH_SCHEMA.with_metadata(metadata))


def _truth_row(arrival: Arrival, s_delay: float, seconds: float) -> dict[str, Any]:
    local = arrival.event_class != "spike"
    return {
        "class": arrival.event_class,
        "event": arrival.event,
        "network": arrival.station.network,
        "station": arrival.station.code,
        "location": LOCATION,
        "time": arrival.time_ns,
        "snr": arrival.snr,
        "kind": arrival.kind,
        "source": arrival.source,
        "s_time": None if np.isnan(s_delay) else arrival.time_ns + round(s_delay * 1e9),
        "end_time": arrival.time_ns + round(seconds * 1e9),
        "distance_km": arrival.ray.distance_km if local else None,
        "back_azimuth_deg": arrival.ray.back_azimuth_deg if local else None,
        "magnitude": None if np.isnan(arrival.magnitude) else arrival.magnitude,
    }


def _manifest(store: Store) -> dict[str, Any] | None:
    if not store.exists(MANIFEST):
        return None
    try:
        content = json.loads(store.read(MANIFEST))
    except ValueError:
        content = None
    if not isinstance(content, dict) or "settings" not in content:
        raise InputError(f"{store.full(MANIFEST)} does not describe a synthetic archive; choose another folder")
    return content


def _remove(store: Store, present: dict[str, Any]) -> None:
    """Remove an archive that this generator wrote, and nothing else."""
    settings = present["settings"]
    first = date.fromisoformat(settings["start"])
    last = first + timedelta(days=settings["num_days"] - 1)
    store.remove_folder(TRUTH)
    for year in range(first.year, last.year + 1):
        store.remove_folder(f"{year}/{settings['network']}")
    store.remove(STATION_XML)
    store.remove(MANIFEST)


def _count(store: Store) -> dict[str, int]:
    counts: dict[str, int] = {}
    for item in store.walk(TRUTH):
        names = _read_parquet(store, item.path, ["class"])["class"]
        for entry in names.value_counts().to_pylist():
            counts[entry["values"]] = counts.get(entry["values"], 0) + entry["counts"]
    return dict(sorted(counts.items()))
