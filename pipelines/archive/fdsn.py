"""Bring recordings from an FDSN service into an SDS archive, on a disk or in a bucket, through ObsPy's client.

2020/AW/VNA2/HHZ.D/AW.VNA2..HHZ.D.2020.001           the records that the service gave, unchanged, a day a file
stations.xml                                         StationXML with responses

The service is not trusted: codes that are not FDSN codes are refused before they become a path, an answer has a largest
size and a longest time, and an answer that is not what was asked for costs the station that it was asked for.
"""

import http.client
import io
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.message import Message
from fnmatch import fnmatchcase
from itertools import groupby, islice
from typing import Any, NamedTuple

from obspy import Inventory, UTCDateTime
from obspy.clients.fdsn import Client
from obspy.clients.fdsn.client import CustomRedirectHandler
from obspy.clients.fdsn.header import FDSNNoDataException
from pymseed import MS3Record, clear_error_messages, sourceid2nslc
from pymseed.exceptions import MiniSEEDError

from pipelines.archive.layouts import DAY_NS
from pipelines.archive.stationxml import read_stationxml
from pipelines.config.fetch import FetchSettings
from pipelines.runtime.errors import InputError, StageFailed
from pipelines.runtime.text import counted, printable
from pipelines.workspace.storage import Store

STATION_XML = "stations.xml"
REQUEST_BYTES = 64 * 2**20
"""A request asks for about so many bytes of one station, at 2 bytes a sample, or for one channel-day."""
MAX_METADATA_BYTES = 64 * 2**20
MAX_WAVEFORM_BYTES = 2**30
MIN_BYTES_PER_SECOND = 10_000
"""An answer that takes longer than `fetch.timeout_seconds` must come at this rate."""
BYTES_PER_SAMPLE = 2
"""What a sample is believed to take, compressed."""
MAX_FAILURES_KEPT = 100

_PART_BYTES = 2**16
_SHOWN_CHARACTERS = 60
MAX_REASON_CHARACTERS = 300
_CODES = (re.compile(r"[A-Za-z0-9]{1,8}"), re.compile(r"[A-Za-z0-9-]{1,8}"), re.compile(r"[A-Za-z0-9]{0,8}"))
_CHANNEL_CODE = re.compile(r"[A-Za-z0-9]{3}")
_NUM_TEXT_COLUMNS = 17


@dataclass(kw_only=True)
class FetchSummary:
    """What a fetch did; counts are channel-days."""

    num_written: int = 0
    """Written now."""
    num_there: int = 0
    """In the archive already, not asked for again."""
    num_without_data: int = 0
    """Announced by the service and not delivered: gaps, or requests that failed; the next fetch asks again."""
    num_bytes: int = 0
    """Bytes of miniSEED written now."""
    num_unasked: int = 0
    """Records that the service gave and nobody asked for: of other codes or days. They are not kept."""
    num_failures: int = 0
    """Requests that failed, and codes that cannot be used."""
    failures: list[str] = field(default_factory=list)
    """What went wrong with the first of them."""

    def fail(self, problem: str) -> None:
        """Count a failure; the text of the first ones is kept."""
        self.num_failures += 1
        if len(self.failures) < MAX_FAILURES_KEPT:
            self.failures.append(problem)


class _Channel(NamedTuple):
    """A channel's epoch as the service announces it."""

    network: str
    station: str
    location: str
    channel: str
    rate_hz: float
    start_ns: int
    end_ns: int


class _ChannelDay(NamedTuple):
    """What is asked for."""

    network: str
    station: str
    location: str
    channel: str
    rate_hz: float
    day: int
    """Days since 1970."""

    @property
    def path(self) -> str:
        return sds_path(*self[:4], datetime.fromtimestamp(self.day * 86400, UTC))

    @property
    def num_bytes(self) -> float:
        return self.rate_hz * 86400 * BYTES_PER_SAMPLE


def fetch_recordings(
    store: Store, settings: FetchSettings, *, replace: bool = False, tell: Callable[[str], None] = print
) -> FetchSummary:
    """Bring the channel-days that the archive lacks, block of days by block of days.

    Each file is written whole or not at all, so that an interrupted fetch resumes where it stopped; `replace` asks for
    every day again. `tell` gets a line of progress a block. Raises InputError where the period is missing, the service
    cannot be reached, answers with something else or has nothing that matches; StageFailed where requests failed (all
    others are done).
    """
    if settings.start is None or settings.end is None:
        missing = "start" if settings.start is None else "end"
        raise InputError(f"fetch.{missing} is not set; give the days, such as --fetch.start 2019-01-01")
    client = _connect(settings)
    summary = FetchSummary()
    inventory = _stored_inventory(store)
    channels = _announced(client, settings, summary)
    # Of stations that an interrupted fetch left without StationXML it is asked for, too.
    known = {(net.code, sta.code) for net in inventory for sta in net}
    described: set[tuple[str, str]] = set()
    first = settings.start
    while first < settings.end:
        last = min(first + timedelta(days=settings.block_days), settings.end)
        block = FetchSummary()
        written, there = _fetch_block(store, settings, client, channels, first, last, block, replace=replace)
        to_describe = (written | (there - known)) - described
        for network, station in sorted(to_describe):
            inventory += _describe_station(client, settings, network, station, block)
        described |= to_describe
        if to_describe:
            store.write(STATION_XML, _merged_xml(inventory))
        summary.num_written += block.num_written
        summary.num_there += block.num_there
        summary.num_without_data += block.num_without_data
        summary.num_bytes += block.num_bytes
        summary.num_unasked += block.num_unasked
        summary.num_failures += block.num_failures
        summary.failures += block.failures[: MAX_FAILURES_KEPT - len(summary.failures)]
        tell(
            f"{first:%Y-%m-%d} to {last - timedelta(days=1):%Y-%m-%d}: {counted(block.num_written, 'channel-day')} "
            f"written ({block.num_bytes / 1e6:.1f} MB), {block.num_there} there already, {block.num_without_data} "
            "without data"
        )
        first = last
    if summary.num_unasked:
        tell(
            f"{counted(summary.num_unasked, 'record was', 'records were')} not kept: other codes or days than asked for"
        )
    if summary.num_failures:
        raise StageFailed(
            f"fetch: {counted(summary.num_failures, 'request')} to {settings.provider} failed, the first: "
            f"{summary.failures[0]}; the same command asks for what is missing"
        )
    if summary.num_written + summary.num_there == 0:
        raise InputError(_nothing(settings))
    return summary


def sds_path(network: str, station: str, location: str, channel: str, day: datetime) -> str:
    """Return the SDS path of a channel-day."""
    year = f"{day:%Y}"
    return f"{year}/{network}/{station}/{channel}.D/{network}.{station}.{location}.{channel}.D.{year}.{day:%j}"


def _nothing(settings: FetchSettings) -> str:
    return (
        f"fetch: {settings.provider} has no data of network {settings.network}, station {settings.station}, "
        f"channel {settings.channel} from {settings.start:%Y-%m-%d} to {settings.end:%Y-%m-%d}"
    )


class _AnswerError(Exception):
    """An answer that is too large, too slow or cut short."""


class _Answer:
    """An answer that was read to its end, as ObsPy's client takes it from `urllib`."""

    def __init__(self, code: int, headers: Message, content: bytes) -> None:
        self.code, self.headers, self.content = code, headers, content

    def getcode(self) -> int:
        return self.code

    def info(self) -> Message:
        return self.headers

    def read(self) -> bytes:
        return self.content


class _PromptConnection(http.client.HTTPConnection):
    """A connection whose answer's status and headers must come within its timeout, not only each byte of them."""

    def getresponse(self) -> http.client.HTTPResponse:
        """Return the answer, of which the content is still to come; TimeoutError where it takes too long."""
        assert self.timeout is not None
        sock, timeout = self.sock, self.timeout
        late = threading.Event()

        def hang_up() -> None:
            late.set()
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(timeout, hang_up)
        timer.daemon = True
        timer.start()
        try:
            answer = super().getresponse()
        except Exception:
            if not late.is_set():
                raise
        finally:
            timer.cancel()
        if late.is_set():
            # Headers that end there would be taken for whole ones, and the answer for an empty one.
            raise TimeoutError(f"the answer did not begin within {timeout:g} s")
        return answer


class _PromptSecureConnection(_PromptConnection, http.client.HTTPSConnection):
    """The same through TLS."""


class _HTTPHandler(urllib.request.HTTPHandler):
    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_PromptConnection, request)


class _HTTPSHandler(urllib.request.HTTPSHandler):
    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_PromptSecureConnection, request)


class _BoundedOpener:
    """What ObsPy's client opens URLs with: HTTP and HTTPS only, and every answer has a largest size and longest time.

    Answers are asked for as they are: packed ones could become any size.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.max_bytes = MAX_METADATA_BYTES
        self.opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler(),
            urllib.request.UnknownHandler(),
            _HTTPHandler(),
            _HTTPSHandler(),
            urllib.request.HTTPDefaultErrorHandler(),
            CustomRedirectHandler(),
            urllib.request.HTTPErrorProcessor(),
        ):
            self.opener.add_handler(handler)

    def open(self, request: urllib.request.Request, timeout: float, data: bytes | None = None) -> _Answer:
        request.remove_header("Accept-encoding")
        began = time.monotonic()
        try:
            with self.opener.open(request, data=data, timeout=timeout) as answer:
                encoding = answer.headers.get("Content-Encoding", "identity")
                if encoding != "identity":
                    raise _AnswerError(f"the answer is packed ({_shown(encoding.encode())}), which was not asked for")
                return _Answer(answer.getcode(), answer.headers, _read(answer, self.max_bytes, began + self.seconds))
        except urllib.error.HTTPError as error:
            # What it says may have any length, and take any time.
            told = io.BytesIO()
            with suppress(OSError, http.client.HTTPException):
                read: Any = error.fp
                while told.tell() < _PART_BYTES and time.monotonic() < began + self.seconds:
                    if not told.write(read.read1(_PART_BYTES)):
                        break
            told.seek(0)
            raise urllib.error.HTTPError(error.url, error.code, str(error.reason), error.headers, told) from None


def _read(answer: Any, max_bytes: int, until: float) -> bytes:
    parts: list[bytes] = []
    size = 0
    # What is there, however little: a server that sends a byte now and then is to be noticed.
    while part := answer.read1(_PART_BYTES):
        parts.append(part)
        size += len(part)
        if size > max_bytes:
            raise _AnswerError(f"the answer is larger than {max_bytes} bytes")
        if time.monotonic() > until + size / MIN_BYTES_PER_SECOND:
            raise _AnswerError(f"the answer comes too slowly, {size} bytes so far")
    announced = answer.headers.get("Content-Length", "")
    if announced.isdecimal() and size < int(announced):
        raise _AnswerError(f"the answer ended after {size} of {announced} bytes")
    return b"".join(parts)


class _Client(Client):  # type: ignore[misc]
    """ObsPy's client behind a bounded opener."""

    def __init__(self, provider: str, seconds: float, max_bytes: int = MAX_METADATA_BYTES) -> None:
        self._seconds, self._max_bytes = seconds, max_bytes
        super().__init__(provider, timeout=seconds)

    def _set_opener(self, user: str | None, password: str | None) -> None:
        self._url_opener = _BoundedOpener(self._seconds)


def _connect(settings: FetchSettings) -> _Client:
    try:
        client = _Client(settings.provider, settings.timeout_seconds)
    except Exception as error:
        # Whatever a service answers to be discovered: not XML, not text, another service's description.
        raise InputError(
            f"fetch.provider is {settings.provider}, which cannot be reached as an FDSN service: {_reason(error)}"
        ) from None
    absent = {"dataselect", "station"} - set(client.services)
    if absent:
        raise InputError(
            f"fetch.provider is {settings.provider}, which has no FDSN service {' and '.join(sorted(absent))}"
        )
    return client


def _reason(error: BaseException) -> str:
    """Return what went wrong, with what a service says of it, on one line of printable characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return printable(re.sub(r"^Unknown Error \(\w+\): ", "", text))[:MAX_REASON_CHARACTERS]


def _shown(content: bytes) -> str:
    """Return the beginning of an answer, to be shown."""
    text = " ".join(content[: 4 * _SHOWN_CHARACTERS].decode("utf-8", "replace").split())
    return f"'{printable(text)[:_SHOWN_CHARACTERS]}'"


def _announced(client: _Client, settings: FetchSettings, summary: FetchSummary) -> list[_Channel]:
    """Return the channel epochs that the service has of what is wanted, in order of their codes."""
    buffer = io.BytesIO()
    try:
        client.get_stations(
            network=settings.network,
            station=settings.station,
            location=settings.location,
            channel=settings.channel,
            starttime=UTCDateTime(settings.start),
            endtime=UTCDateTime(settings.end),
            level="channel",
            format="text",
            filename=buffer,
        )
    except FDSNNoDataException:
        raise InputError(_nothing(settings)) from None
    except Exception as error:
        raise InputError(
            f"fetch: the station service of {settings.provider} cannot be used: {_reason(error)}"
        ) from None
    content = buffer.getvalue()
    found: set[_Channel] = set()
    for line in content.decode("utf-8-sig", "replace").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        try:
            channel = _channel(line)
        except ValueError as error:
            summary.fail(f"the station service announces {error}")
            continue
        patterns = (settings.network, settings.station, settings.location, settings.channel)
        if all(_is_wanted(code, wanted) for code, wanted in zip(channel[:4], patterns, strict=True)):
            found.add(channel)
    if not found and summary.num_failures:
        raise InputError(
            f"fetch: the station service of {settings.provider} answered with {_shown(content)}, "
            "which is not a list of channels"
        )
    return sorted(found)


def _channel(line: str) -> _Channel:
    """Return the channel in a line of FDSN station text; ValueError says what it is instead."""
    columns = [column.strip() for column in line.split("|")]
    if len(columns) != _NUM_TEXT_COLUMNS:
        raise ValueError(f"{_shown(line.encode())}, which is not a channel")
    network, station, location, channel = columns[:4]
    location = "" if location == "--" else location
    codes = zip((*_CODES, _CHANNEL_CODE), (network, station, location, channel), strict=True)
    if not all(pattern.fullmatch(code) for pattern, code in codes):
        shown = ".".join(columns[:4])
        raise ValueError(f"{_shown(shown.encode())}, which are not FDSN codes")
    try:
        rate_hz = float(columns[14] or 0)
        start_ns = UTCDateTime(columns[15]).ns if columns[15] else -(2**63)
        end_ns = UTCDateTime(columns[16]).ns if columns[16] else 2**63
    except Exception:
        raise ValueError(f"{_shown(line.encode())}, whose rate or times are not valid") from None
    return _Channel(network, station, location, channel, rate_hz if 0 < rate_hz < 1e6 else 1.0, start_ns, end_ns)


def _is_wanted(code: str, patterns: str) -> bool:
    wanted = [part.strip() for part in str(patterns).split(",")]
    return any(fnmatchcase(code, "" if part == "--" else part) for part in wanted)


def _fetch_block(
    store: Store,
    settings: FetchSettings,
    client: _Client,
    channels: Iterable[_Channel],
    first: datetime,
    last: datetime,
    summary: FetchSummary,
    *,
    replace: bool,
) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    """Ask for what is missing of some days.

    Returns the (network, station) of which something was written now, and of which something was there.
    """
    days = range(round(first.timestamp()) // 86400, round(last.timestamp()) // 86400)
    missing: dict[str, _ChannelDay] = {}
    written: set[tuple[str, str]] = set()
    there: set[tuple[str, str]] = set()
    for channel in channels:
        for day in days:
            if channel.start_ns < (day + 1) * DAY_NS and channel.end_ns > day * DAY_NS:
                wanted = _ChannelDay(*channel[:5], day)
                if wanted.path in missing:
                    continue
                if not replace and store.exists(wanted.path):
                    summary.num_there += 1
                    there.add(wanted[:2])
                else:
                    missing[wanted.path] = wanted
    with ThreadPoolExecutor(settings.num_threads, thread_name_prefix="firnline-fetch") as pool:
        requests = _requests(sorted(missing.values(), key=lambda wanted: (*wanted[:2], wanted.day, *wanted[2:4])))
        running: dict[Future[tuple[dict[_ChannelDay, bytes], int]], list[_ChannelDay]] = {}
        while True:
            for request in islice(requests, settings.num_threads - len(running)):
                running[pool.submit(_ask, settings, client, request)] = request
            if not running:
                return written, there
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                request = running.pop(future)
                given: dict[_ChannelDay, bytes] = {}
                try:
                    given, num_unasked = future.result()
                    summary.num_unasked += num_unasked
                except _AnswerError as error:
                    network, station = request[0][:2]
                    summary.fail(f"{network}.{station}: {error}")
                for wanted, content in given.items():
                    store.write(wanted.path, content)
                    summary.num_written += 1
                    summary.num_bytes += len(content)
                    written.add(wanted[:2])
                summary.num_without_data += len(request) - len(given)


def _requests(missing: Iterable[_ChannelDay]) -> Iterator[list[_ChannelDay]]:
    """Yield channel-days of one station that are asked for together."""
    for _, of_station in groupby(missing, key=lambda wanted: wanted[:2]):
        request: list[_ChannelDay] = []
        num_bytes = 0.0
        for wanted in of_station:
            if request and num_bytes + wanted.num_bytes > REQUEST_BYTES:
                yield request
                request, num_bytes = [], 0.0
            request.append(wanted)
            num_bytes += wanted.num_bytes
        yield request


def _ask(settings: FetchSettings, client: _Client, request: list[_ChannelDay]) -> tuple[dict[_ChannelDay, bytes], int]:
    """Return the records of each channel-day of a request, and how many records nobody asked for.

    Raises:
        _AnswerError: the service fails, or answers with something else than whole records; says what.
    """
    lines = []
    for codes, of_channel in groupby(sorted(request), key=lambda wanted: wanted[:4]):
        for first, last in _stretches([wanted.day for wanted in of_channel]):
            network, station, location, channel = codes
            bounds = UTCDateTime(first * 86400), UTCDateTime((last + 1) * 86400)
            lines.append((network, station, location or "--", channel, *bounds))
    expected = sum(wanted.num_bytes for wanted in request)
    buffer = io.BytesIO()
    # Each thread's answers have a limit of their own.
    mine = _sibling(client, round(min(MAX_WAVEFORM_BYTES, 8 * expected + MAX_METADATA_BYTES)))
    try:
        mine.get_waveforms_bulk(lines, filename=buffer)
    except FDSNNoDataException:
        return {}, 0
    except Exception as error:
        raise _AnswerError(_reason(error)) from None
    if not buffer.tell():
        # A service without data says so, with 204.
        raise _AnswerError("answered with nothing")
    return _by_day(buffer.getvalue(), request)


def _sibling(client: _Client, max_bytes: int) -> _Client:
    """Return a client of the same service whose answers may have another size; nothing is asked for it."""
    mine = _Client.__new__(_Client)
    mine.__dict__.update(client.__dict__)
    mine._url_opener = _BoundedOpener(client._seconds)
    mine._url_opener.max_bytes = max_bytes
    return mine


def _stretches(days: list[int]) -> Iterator[tuple[int, int]]:
    """Yield the first and last of days that follow each other."""
    for _, stretch in groupby(enumerate(days), key=lambda item: item[1] - item[0]):
        some = [day for _, day in stretch]
        yield some[0], some[-1]


def _by_day(content: bytes, request: list[_ChannelDay]) -> tuple[dict[_ChannelDay, bytes], int]:
    """Split an answer's records, unchanged, by the channel-day that each begins in, or else ends in."""
    asked = {(*wanted[:4], wanted.day): wanted for wanted in request}
    # miniSEED 2 has five letters for a station.
    asked |= {(key[0], key[1][:5], *key[2:]): wanted for key, wanted in asked.items()}
    parts: dict[_ChannelDay, list[bytes]] = {}
    num_unasked = position = 0
    try:
        for record in MS3Record.from_buffer(content, validate_crc=False):
            codes = tuple(code or "" for code in sourceid2nslc(record.sourceid))
            network, station, location, channel = codes
            key = network, station, "" if location == "--" else location, channel
            days = record.starttime // DAY_NS, record.endtime // DAY_NS
            wanted = next((asked[(*key, day)] for day in days if (*key, day) in asked), None)
            if wanted is None:
                num_unasked += 1
            else:
                parts.setdefault(wanted, []).append(bytes(record.record))
            position += record.reclen
    except (MiniSEEDError, ValueError) as error:
        rest = content[position:]
        where = f" after {position} bytes of records" if position else ""
        raise _AnswerError(f"answered with {_shown(rest)}{where}, which is not miniSEED ({_reason(error)})") from None
    finally:
        clear_error_messages()
    return {wanted: b"".join(records) for wanted, records in parts.items()}, num_unasked


def _describe_station(
    client: _Client, settings: FetchSettings, network: str, station: str, summary: FetchSummary
) -> Inventory:
    """Return the StationXML of a station's wanted channels; empty, and counted, where the service fails."""
    buffer = io.BytesIO()
    try:
        client.get_stations(
            network=network,
            station=station,
            location=settings.location,
            channel=settings.channel,
            starttime=UTCDateTime(settings.start),
            endtime=UTCDateTime(settings.end),
            level="response",
            filename=buffer,
        )
        found = read_stationxml(buffer.getvalue())
    except Exception as error:
        summary.fail(f"StationXML of {network}.{station}: {_reason(error)}")
        return Inventory()
    kept = Inventory()
    for net in found:
        net.stations = [sta for sta in net if (net.code, sta.code) == (network, station)]
        if net.stations:
            kept.networks.append(net)
    if not kept.networks:
        summary.fail(f"StationXML of {network}.{station}: answered with that of other stations")
    return kept


def _stored_inventory(store: Store) -> Inventory:
    if not store.exists(STATION_XML):
        return Inventory()
    try:
        return read_stationxml(store.read(STATION_XML))
    except ValueError as error:
        raise InputError(f"fetch: {store.full(STATION_XML)} cannot be read: {error}; repair or remove it") from None


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
