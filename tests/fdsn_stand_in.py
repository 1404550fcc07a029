"""An FDSN data centre on loopback: the station and dataselect services, with the answers that ObsPy's client needs."""

import contextlib
import fnmatch
import io
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

from local_server import LocalServer
from obspy import Inventory, Stream, UTCDateTime

_PARAMETERS = {
    "dataselect": ("starttime", "endtime", "network", "station", "location", "channel"),
    "station": (
        *("starttime", "endtime", "network", "station", "location", "channel", "level", "format"),
        *("minlatitude", "maxlatitude", "minlongitude", "maxlongitude"),
    ),
}


@dataclass(frozen=True)
class Instead:
    """What a service answers instead of what it was asked for."""

    content: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    claimed_length: int | None = None
    """Content-Length, where it is not that of the content."""
    repeats: int = 1
    """How many times the content comes."""
    trickles: str = ""
    """What comes byte by byte, for ever: status, headers, or content by its length, closed or chunked."""


class FdsnStandIn(LocalServer):
    """A data centre that has `stream` and `inventory`, from `with` to the end of its block."""

    def __init__(self, stream: Stream, inventory: Inventory) -> None:
        self.stream = stream
        self.inventory = inventory
        self.dataselect_lines: list[str] = []
        """Every line of every request for waveforms."""
        self.instead_of_waveforms: dict[str, Instead] = {}
        """By station code, the answer to every request for its waveforms."""
        self.instead_of_stations: dict[str, Instead] = {}
        """By level (channel, response), the answer to every request for station metadata."""
        self.closing = threading.Event()
        super().__init__(type("Handler", (_Handler,), {"owner": self}))

    def __exit__(self, *error: Any) -> None:
        self.closing.set()
        super().__exit__(*error)

    def wadl(self, service: str) -> bytes:
        """Return a service's description of itself."""
        params = "".join(
            f'<param name="{name}" style="query" type="xs:{"dateTime" if name.endswith("time") else "string"}"/>'
            for name in _PARAMETERS[service]
        )
        return (
            '<?xml version="1.0"?><application xmlns="http://wadl.dev.java.net/2009/02" '
            'xmlns:xs="http://www.w3.org/2001/XMLSchema">'
            f'<resources base="{self.url}/fdsnws/{service}/1/"><resource path="query">'
            f'<method name="GET" id="query"><request>{params}</request></method></resource></resources></application>'
        ).encode()

    def waveforms(self, body: str) -> bytes:
        """Return the miniSEED of a request's lines; nothing where there are no data."""
        found = Stream()
        for line in body.splitlines():
            words = line.split()
            if len(words) != 6:
                continue
            self.dataselect_lines.append(line)
            network, station, location, channel, start, end = words
            found += self.stream.select(network, station, location.replace("--", ""), channel).slice(
                UTCDateTime(start), UTCDateTime(end)
            )
        if not found:
            return b""
        buffer = io.BytesIO()
        found.write(buffer, format="MSEED", reclen=512)
        return buffer.getvalue()

    def stations(self, query: dict[str, str]) -> bytes:
        """Return channels as text, or StationXML."""
        chosen = Inventory()
        for network in self.inventory:
            for station in network:
                for channel in station:
                    codes = {
                        "network": network.code,
                        "station": station.code,
                        "location": channel.location_code,
                        "channel": channel.code,
                    }
                    if all(_matches(code, query.get(name, "*")) for name, code in codes.items()):
                        chosen += self.inventory.select(**codes)
        if not chosen.networks:
            return b""
        if query.get("format") == "text":
            text = io.StringIO()
            chosen.write(text, format="STATIONTXT", level=query.get("level", "channel"))
            return text.getvalue().encode()
        buffer = io.BytesIO()
        chosen.write(buffer, format="STATIONXML")
        return buffer.getvalue()


def _matches(code: str, patterns: str) -> bool:
    return any(fnmatch.fnmatchcase(code, pattern.replace("--", "")) for pattern in patterns.split(","))


class _Handler(BaseHTTPRequestHandler):
    owner: FdsnStandIn

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        service = parts.path.removeprefix("/fdsnws/").partition("/")[0]
        if service not in _PARAMETERS:
            self._answer(404, b"no such service")
        elif parts.path.endswith("/application.wadl"):
            self._answer(200, self.owner.wadl(service), "application/xml")
        elif service == "station":
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            instead = self.owner.instead_of_stations.get(query.get("level", "station"))
            self._give(self.owner.stations(query)) if instead is None else self._misbehave(instead)
        else:
            self._answer(400, b"this stand-in takes waveform requests by POST")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if "/dataselect/" in self.path:
            stations = {line.split()[1] for line in body.splitlines() if len(line.split()) == 6}
            instead = next(
                (self.owner.instead_of_waveforms[code] for code in stations & {*self.owner.instead_of_waveforms}), None
            )
            if instead is not None:
                self._misbehave(instead)
                return
            self._give(self.owner.waveforms(body))
            return
        query = dict(line.split("=", 1) for line in body.splitlines() if "=" in line)
        lines = [line.split() for line in body.splitlines() if len(line.split()) == 6]
        for position, name in enumerate(("network", "station", "location", "channel")):
            query[name] = ",".join(sorted({words[position] for words in lines}))
        self._give(self.owner.stations(query))

    def _give(self, content: bytes) -> None:
        if content:
            self._answer(200, content, "application/octet-stream")
        else:
            self._answer(204, b"")

    def _trickle(self, what: str) -> None:
        begin = {
            "status": b"",
            "headers": b"HTTP/1.1 200 OK\r\n",
            "length": b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n",
            "closed": b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
            "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        }[what]
        part = {"headers": b"A: b\r\n", "chunked": b"1\r\n0\r\n"}.get(what, b"0")
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.write(begin)
            while not self.owner.closing.wait(0.2):
                self.wfile.write(part)

    def _misbehave(self, instead: Instead) -> None:
        if instead.trickles:
            self._trickle(instead.trickles)
            return
        self.send_response(instead.status)
        length = len(instead.content) * instead.repeats
        self.send_header("Content-Length", str(instead.claimed_length or length))
        for name, value in instead.headers.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            for _ in range(instead.repeats):
                self.wfile.write(instead.content)
        except OSError:
            # The client has had enough.
            pass
        self.close_connection = True

    def _answer(self, status: int, content: bytes, kind: str = "text/plain") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if status != 204:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if status != 204:
            self.wfile.write(content)
