"""The explorer's server (uvicorn): on this machine unless configured otherwise, until Ctrl-C or SIGTERM."""

import asyncio
import socket
from types import FrameType
from typing import Any, Self

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from pipelines.config.report import ExploreSettings
from pipelines.explore.access import Access, address
from pipelines.explore.app import make_app
from pipelines.explore.explorer import Explorer
from pipelines.runtime.errors import InputError

REQUEST_SECONDS = 30.0
"""Time in which a connection must send a whole request."""
STOP_SECONDS = 5
"""Time that requests in work have to finish when the server stops."""
MAX_CONNECTIONS = 100


class ExplorerServer:
    """The server of one explorer: listens from when it is made, and answers while `serve` runs.

    Raises:
        InputError: the address is in use or not this machine's.
    """

    def __init__(self, explorer: Explorer, settings: ExploreSettings) -> None:
        self._socket = _listen(settings)
        self.port = int(self._socket.getsockname()[1])
        self.access = Access(settings.host, self.port, settings.allowed_hosts)
        self.url = address(settings.host, self.port, self.access.token)
        """Address to open, with the token that lets a browser in."""
        self._server = _Server(
            uvicorn.Config(
                make_app(explorer, self.access),
                http=_Connection,
                ws="none",
                lifespan="off",
                loop="asyncio",
                log_config=None,
                log_level="error",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                limit_concurrency=MAX_CONNECTIONS,
                timeout_graceful_shutdown=STOP_SECONDS,
            )
        )

    def serve(self) -> None:
        """Answer requests until `stop`, or until a signal where this is the main thread; then finish those in work."""
        self._server.run(sockets=[self._socket])

    def stop(self) -> None:
        """Let `serve` return; from any thread."""
        self._server.should_exit = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *reason: object) -> None:
        self._socket.close()


class _Server(uvicorn.Server):
    """A server for which a signal is the ordinary end: uvicorn's own would raise the signal again after it."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True


class _Connection(H11Protocol):
    """A connection that is closed where no whole request comes in time; uvicorn waits for the first one for ever."""

    _last_cycle: object = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(REQUEST_SECONDS, self._close_if_waiting)

    def _close_if_waiting(self) -> None:
        if self.transport.is_closing():
            return
        # A connection that has been answered and is quiet is closed by uvicorn long before.
        if self.cycle is self._last_cycle and (self.cycle is None or self.cycle.response_complete):
            self.transport.close()
            return
        self._last_cycle = self.cycle
        self.loop.call_later(REQUEST_SECONDS, self._close_if_waiting)


def _listen(settings: ExploreSettings) -> socket.socket:
    try:
        found: list[Any] = socket.getaddrinfo(
            settings.host or None, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, address_of_host = found[0][0], found[0][4]
        return socket.create_server(address_of_host, family=family)
    except OSError as error:
        raise InputError(
            f"explore cannot bind to explore.host {settings.host}, explore.port {settings.port} "
            f"({error.strerror or error}); give another port, or 0 for any free one"
        ) from None
