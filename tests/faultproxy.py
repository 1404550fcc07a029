"""An HTTP proxy on loopback that puts the faults of a busy network and a throttling store in front of an S3 server.

    with FaultProxy(server.endpoint_url) as proxy:
        proxy.add(Fault("throttle", method="GET", times=2))
        ...                                     # a client with proxy.url as its endpoint
        assert proxy.count("throttle") == 2

Requests are passed on with their own Host header, so that signatures stay valid.
"""

import random
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler
from typing import Literal
from urllib.parse import urlsplit

from local_server import LocalServer

Kind = Literal["throttle", "error", "deny", "reset", "reset_in_body", "end_early", "stall", "delay", "lose_answer"]
"""What goes wrong:

throttle: 503 SlowDown; error: 500 InternalError; deny: 403 AccessDenied without a message; reset: the connection is
reset before an answer; reset_in_body and end_early: reset or closed after `after_bytes` of the body; stall: silent for
`seconds` after `after_bytes` of the body, then closed; delay: the answer comes `seconds` later; lose_answer: the server
does what is asked, and the client never hears of it.
"""

_CANNED = {
    "throttle": (503, "SlowDown", "Please reduce your request rate."),
    "error": (500, "InternalError", "Again."),
    "deny": (403, "AccessDenied", ""),
}
_BLOCK = 1 << 16


@dataclass
class Fault:
    """One kind of fault, the requests it strikes, and how often."""

    kind: Kind
    method: str = ""
    """Only requests of this method; empty: any."""
    path: str = ""
    """Only requests whose path and query contain this."""
    times: int | None = 1
    """How many requests it strikes; None: no end."""
    skip: int = 0
    """How many matching requests pass before the first is struck."""
    probability: float = 1.0
    """Chance that a matching request is struck."""
    after_bytes: int = 0
    """Bytes of the answer's body that still arrive (reset_in_body, end_early, stall)."""
    seconds: float = 0.0
    """Length of a stall or delay."""


@dataclass(frozen=True)
class Request:
    """A request that came to the proxy, and the fault that struck it (empty: none)."""

    method: str
    path: str
    fault: str


class FaultProxy(LocalServer):
    """A proxy in front of `upstream` (http://host:port), from `with` to the end of its block."""

    def __init__(self, upstream: str, *, seed: int = 0, host: str = "127.0.0.1") -> None:
        parts = urlsplit(upstream)
        self.upstream = (parts.hostname or "127.0.0.1", parts.port or 80)
        self.requests: list[Request] = []
        self.body_bytes = 0
        """Bytes of the answers' bodies that were passed on."""
        self._faults: list[Fault] = []
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        super().__init__(type("Handler", (_Handler,), {"owner": self}), host)

    def add(self, *faults: Fault) -> None:
        """Let these faults strike from now on, the first that matches a request first."""
        with self._lock:
            self._faults += faults

    def clear(self) -> None:
        """End all faults; what was counted stays."""
        with self._lock:
            self._faults.clear()

    def count(self, kind: Kind | None = None, *, method: str = "") -> int:
        """Return how many requests came, or how many a kind of fault struck."""
        with self._lock:
            return sum(
                (kind is None or request.fault == kind) and (not method or request.method == method)
                for request in self.requests
            )

    def add_bytes(self, size: int) -> None:
        """Count bytes of an answer's body."""
        with self._lock:
            self.body_bytes += size

    def strike(self, method: str, path: str) -> Fault | None:
        """Record a request and return the fault that strikes it."""
        with self._lock:
            struck = next((fault for fault in self._faults if self._matches(fault, method, path)), None)
            self.requests.append(Request(method, path, struck.kind if struck else ""))
            return struck

    def _matches(self, fault: Fault, method: str, path: str) -> bool:
        if fault.times == 0 or (fault.method and fault.method != method) or fault.path not in path:
            return False
        if fault.skip > 0:
            fault.skip -= 1
            return False
        if fault.probability < 1 and self._random.random() >= fault.probability:
            return False
        if fault.times is not None:
            fault.times -= 1
        return True


class _Handler(BaseHTTPRequestHandler):
    """Passes one connection's requests on."""

    owner: FaultProxy
    protocol_version = "HTTP/1.1"
    timeout = 60

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent: the proxy keeps its own record."""

    def _serve(self) -> None:
        fault = self.owner.strike(self.command, self.path)
        body = self._read_body()
        kind = fault.kind if fault else None
        if fault and kind in _CANNED:
            self._answer_canned(*_CANNED[fault.kind])
            return
        if kind == "reset":
            self._cut(reset=True)
            return
        if fault and kind == "delay":
            time.sleep(fault.seconds)
        connection = HTTPConnection(*self.owner.upstream, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect", "transfer-encoding"):
                    connection.putheader(name, value)
            if "transfer-encoding" in self.headers:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body or None)
            answer = connection.getresponse()
            if kind == "lose_answer":
                answer.read()
                self._cut(reset=True)
                return
            bodiless = self.command == "HEAD" or answer.status in (204, 304)
            length = answer.getheader("Content-Length")
            whole = answer.read() if length is None and not bodiless else None
            self.send_response_only(answer.status, answer.reason)
            for name, value in answer.getheaders():
                if name.lower() not in ("connection", "transfer-encoding"):
                    self.send_header(name, value)
            if whole is not None:
                self.send_header("Content-Length", str(len(whole)))
            self.end_headers()
            if bodiless:
                return
            if whole is not None:
                read: Callable[[int], bytes] = _reader(whole)
            else:
                read = answer.read
            cutting = fault if fault and kind in ("reset_in_body", "end_early", "stall") else None
            self._send_body(read, cutting)
        except (OSError, HTTPException):
            self._cut(reset=True)
        finally:
            connection.close()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815

    def _read_body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            blocks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                blocks.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline() not in (b"\r\n", b"\n", b""):
                pass
            return b"".join(blocks)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send_body(self, read: Callable[[int], bytes], cutting: Fault | None) -> None:
        left = cutting.after_bytes if cutting else None
        while left != 0:
            block = read(_BLOCK if left is None else min(_BLOCK, left))
            if not block:
                break
            self.wfile.write(block)
            self.owner.add_bytes(len(block))
            left = None if left is None else left - len(block)
        if cutting is None:
            return
        # What was sent shall arrive: a reset would overtake it.
        time.sleep(0.05)
        if cutting.kind == "stall":
            time.sleep(cutting.seconds)
        self._cut(reset=cutting.kind == "reset_in_body")

    def _answer_canned(self, status: int, code: str, message: str) -> None:
        text = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'
        body = b"" if self.command == "HEAD" else text.encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(body)

    def _cut(self, *, reset: bool) -> None:
        self.close_connection = True
        if reset:
            # Close without lingering: the peer sees a reset instead of an orderly end.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            self.connection.shutdown(socket.SHUT_WR)
        self.rfile.close()
        self.connection.close()


def _reader(content: bytes) -> Callable[[int], bytes]:
    remaining = memoryview(content)

    def read(size: int) -> bytes:
        nonlocal remaining
        block, remaining = bytes(remaining[:size]), remaining[size:]
        return block

    return read
