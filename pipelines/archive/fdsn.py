"""Brings recordings from an FDSN service into an SDS archive, on a disk or in a bucket, by ObsPy's mass downloader.

2020/AW/VNA2/HHZ.D/AW.VNA2..HHZ.D.2020.001           what the service gave, unchanged, a day a file
stations.xml                                         StationXML with responses
"""

import io
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from obspy import Inventory, UTCDateTime, read, read_inventory
from obspy.clients.fdsn import Client
from obspy.clients.fdsn.header import FDSNException
from obspy.clients.fdsn.mass_downloader import GlobalDomain, MassDownloader, Restrictions

from pipelines.config.fetch import FetchSettings
from pipelines.runtime.errors import InputError, StageFailed
from pipelines.workspace.storage import Store

STATION_XML = "stations.xml"
DAY_SECONDS = 86400


@dataclass(kw_only=True)
class FetchSummary:
    """What a fetch did; counts are channel-days."""

    num_written: int = 0
    """Written now."""
    num_there: int = 0
    """In the archive already, not asked for again."""
    num_without_data: int = 0
    """Announced by the service and not delivered: gaps, or downloads that failed; the next fetch asks again."""
    num_bytes: int = 0
    """Bytes of miniSEED written now."""


def fetch_recordings(
    store: Store, settings: FetchSettings, *, replace: bool = False, tell: Callable[[str], None] = print
) -> FetchSummary:
    """Bring the channel-days that the archive lacks, block of days by block of days.

    Each file is written whole or not at all, so that an interrupted fetch goes on where it stopped; `replace` asks for
    every day again. `tell` gets a line of progress a block. Raises InputError where the period is missing, the service
    is not reached or has nothing that matches; StageFailed where requests failed (all others are done).
    """
    if settings.start is None or settings.end is None:
        missing = "start" if settings.start is None else "end"
        raise InputError(f"fetch.{missing} is not set; give the days, such as --fetch.start 2019-01-01")
    client = _connect(settings)
    summary = FetchSummary()
    inventory = _stored_inventory(store)
    num_before = len(inventory)
    failures: list[str] = []
    first = settings.start
    while first < settings.end:
        last = min(first + timedelta(days=settings.block_days), settings.end)
        with tempfile.TemporaryDirectory(prefix="firnline-fetch-") as name:
            with _collected_errors() as errors:
                block = _fetch_block(store, settings, client, Path(name), first, last, replace=replace)
            failures += errors
            summary.num_written += block.num_written
            summary.num_there += block.num_there
            summary.num_without_data += block.num_without_data
            summary.num_bytes += block.num_bytes
            for path in sorted(Path(name).glob("*.xml")):
                inventory += read_inventory(str(path))
        tell(
            f"{first:%Y-%m-%d} to {last - timedelta(days=1):%Y-%m-%d}: {block.num_written} channel-days written "
            f"({block.num_bytes / 1e6:.1f} MB), {block.num_there} there already, {block.num_without_data} without data"
        )
        first = last
    if len(inventory) > num_before:
        store.write(STATION_XML, _merged_xml(inventory))
    if failures:
        raise StageFailed(
            f"fetch: {len(failures)} requests to {settings.provider} failed, the first: {failures[0]}; "
            "the same command asks for what is missing"
        )
    if summary.num_written + summary.num_there == 0:
        raise InputError(
            f"fetch: {settings.provider} has no data of network {settings.network}, station {settings.station}, "
            f"channel {settings.channel} from {settings.start:%Y-%m-%d} to {settings.end:%Y-%m-%d}"
        )
    return summary


def sds_path(network: str, station: str, location: str, channel: str, day: datetime) -> str:
    """Return the SDS path of a channel-day."""
    year = f"{day:%Y}"
    return f"{year}/{network}/{station}/{channel}.D/{network}.{station}.{location}.{channel}.D.{year}.{day:%j}"


@contextmanager
def _collected_errors() -> Iterator[list[str]]:
    """Yield the list that the mass downloader's errors go to: it logs them and goes on."""
    errors: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            errors.append(" ".join(record.getMessage().split()))

    log = logging.getLogger("obspy.clients.fdsn.mass_downloader")
    collector = Collector(level=logging.ERROR)
    propagate, log.propagate = log.propagate, False
    log.addHandler(collector)
    try:
        yield errors
    finally:
        log.removeHandler(collector)
        log.propagate = propagate


def _connect(settings: FetchSettings) -> Any:
    try:
        client = Client(settings.provider, timeout=settings.timeout_seconds)
    except (FDSNException, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"fetch.provider is {settings.provider}, which cannot be reached: {reason}") from None
    absent = {"dataselect", "station"} - set(client.services)
    if absent:
        raise InputError(
            f"fetch.provider is {settings.provider}, which has no FDSN service {' and '.join(sorted(absent))}"
        )
    return client


def _fetch_block(
    store: Store,
    settings: FetchSettings,
    client: Any,
    folder: Path,
    first: datetime,
    last: datetime,
    *,
    replace: bool,
) -> FetchSummary:
    summary = FetchSummary()
    asked: dict[Path, tuple[str, datetime]] = {}

    def waveform_place(
        network: str, station: str, location: str, channel: str, start: UTCDateTime, end: UTCDateTime
    ) -> str | bool:
        # The downloader's days begin at the block's start, which is a midnight.
        day = datetime.fromtimestamp(float(start) + (float(end) - float(start)) / 2, UTC)
        path = sds_path(network, station, location, channel, day)
        if not replace and store.exists(path):
            summary.num_there += 1
            return True
        place = folder / path
        asked[place] = path, day
        return str(place)

    downloader = MassDownloader(providers=[client], configure_logging=False)
    downloader.download(
        GlobalDomain(),
        Restrictions(
            starttime=UTCDateTime(first),
            endtime=UTCDateTime(last),
            chunklength_in_sec=DAY_SECONDS,
            network=settings.network,
            station=settings.station,
            location=settings.location,
            channel=settings.channel,
            # Everything that there is: gaps, short days and neighbouring stations are the detector's to deal with.
            reject_channels_with_gaps=False,
            minimum_length=0.0,
            sanitize=False,
            minimum_interstation_distance_in_m=0.0,
        ),
        mseed_storage=waveform_place,
        stationxml_storage=str(folder / "{network}.{station}.xml"),
        threads_per_client=settings.num_threads,
        print_report=False,
    )
    for place, (path, day) in sorted(asked.items()):
        if _has_samples_of(place, day):
            content = place.read_bytes()
            store.write(path, content)
            summary.num_written += 1
            summary.num_bytes += len(content)
        else:
            summary.num_without_data += 1
    return summary


def _has_samples_of(place: Path, day: datetime) -> bool:
    """Return whether a download has a sample of its day; many services add the first one of the next day."""
    if not place.is_file() or place.stat().st_size == 0:
        return False
    midnight = UTCDateTime(day.replace(hour=0, minute=0, second=0, microsecond=0)) + DAY_SECONDS
    return any(trace.stats.starttime < midnight for trace in read(str(place), format="MSEED", headonly=True))


def _stored_inventory(store: Store) -> Inventory:
    if not store.exists(STATION_XML):
        return Inventory()
    return read_inventory(io.BytesIO(store.read(STATION_XML)))


def _merged_xml(inventory: Inventory) -> bytes:
    """Return StationXML in which every network, station and channel epoch stands once; the last to come wins."""
    networks: dict[str, Any] = {}
    stations: dict[tuple[str, str], dict[tuple[str, str, str], Any]] = {}
    holders: dict[tuple[str, str], Any] = {}
    for network in inventory:
        networks[network.code] = network
        for station in network:
            key = (network.code, station.code)
            holders[key] = station
            for channel in station:
                epoch = (channel.code, channel.location_code, str(channel.start_date))
                stations.setdefault(key, {})[epoch] = channel
    for code, network in networks.items():
        network.stations = [holder for (owner, _), holder in sorted(holders.items()) if owner == code]
        for station in network.stations:
            epochs = stations.get((code, station.code), {})
            station.channels = [epochs[epoch] for epoch in sorted(epochs)]
    merged = Inventory(networks=[networks[code] for code in sorted(networks)], source="firnline")
    buffer = io.BytesIO()
    merged.write(buffer, format="STATIONXML")
    return buffer.getvalue()
