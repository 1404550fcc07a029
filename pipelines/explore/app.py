"""The explorer's pages and calls over HTTP (Starlette).

The page itself, its script and its style hold nothing of the workspace and need no token; every call under `/api/`
does. A change must also come from the page itself, as far as the browser tells.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from importlib import resources
from typing import Any
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.explore.access import SECURITY_HEADERS, Access
from pipelines.explore.explorer import Explorer
from pipelines.explore.queries import BadRequest, read_filter, read_label_changes, read_name_change, read_object
from pipelines.runtime.errors import InputError

MAX_BODY_BYTES = 1_000_000
MAX_QUERY_FIELDS = 20
BODY_SECONDS = 30.0
"""Time in which a request's body must arrive."""

_ASSETS = {"/": ("explore.html", "text/html"), "/explore.js": ("explore.js", "text/javascript")}
_ASSETS["/explore.css"] = ("explore.css", "text/css")


def make_app(explorer: Explorer, access: Access, page_events: int) -> Starlette:
    """Return the application; `page_events` events are listed on a page."""

    def summary(request: Request) -> Response:
        return JSONResponse(explorer.summary())

    def events(request: Request) -> Response:
        query = _query(request)
        listed, following = explorer.list_events(read_filter(query), query.get("cursor", [""])[-1], page_events)
        return JSONResponse({"events": listed, "cursor": following})

    def figure(request: Request) -> Response:
        return JSONResponse(explorer.figure(_query(request).get("event_id", [""])[-1]))

    def set_labels(body: Mapping[str, Any]) -> dict[str, Any]:
        return {"labels": explorer.set_labels(read_label_changes(body))}

    def set_name(body: Mapping[str, Any]) -> dict[str, Any]:
        return {"names": explorer.set_name(*read_name_change(body))}

    return Starlette(
        routes=[
            *(Route(path, _asset(name, kind)) for path, (name, kind) in _ASSETS.items()),
            Route("/api/summary", summary),
            Route("/api/events", events),
            Route("/api/figure", figure),
            Route("/api/labels", _change(set_labels), methods=["POST"]),
            Route("/api/names", _change(set_name), methods=["POST"]),
        ],
        middleware=[Middleware(_Guard, access=access)],
        exception_handlers={
            HTTPException: _say_status,
            BadRequest: _say_bad_request,
            **dict.fromkeys((InputError, OSError, ValueError, KeyError), _say_unreadable),
        },
    )


class _Guard:
    """Refuses requests for another host or without the token, and adds the security headers to every answer."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(SECURITY_HEADERS)
            await send(message)

        reason = self.access.refusal(scope["path"], Headers(scope=scope))
        app = PlainTextResponse(f"{reason}\n", 403) if reason else self.app
        await app(scope, receive, send_guarded)


def _asset(name: str, kind: str) -> Callable[[Request], Response]:
    text = resources.files("pipelines.explore").joinpath(name).read_text(encoding="utf-8")

    def answer(request: Request) -> Response:
        return Response(text, media_type=kind)

    return answer


def _change(change: Callable[[Mapping[str, Any]], dict[str, Any]]) -> Callable[[Request], Awaitable[Response]]:
    """Return the endpoint that reads a request's JSON object, makes a change, and answers with its result."""

    async def answer(request: Request) -> Response:
        body = read_object(await _read_body(request))
        return JSONResponse(await run_in_threadpool(change, body))

    return answer


async def _read_body(request: Request) -> bytes:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise BadRequest("the request must be application/json")
    too_long = BadRequest(f"the request must have a body of at most {MAX_BODY_BYTES} bytes")
    length = request.headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()) or int(length) > MAX_BODY_BYTES:
        raise too_long
    body = b""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for piece in request.stream():
                body += piece
                if len(body) > MAX_BODY_BYTES:
                    raise too_long
    except (TimeoutError, ClientDisconnect):
        raise BadRequest("the request's body did not arrive") from None
    return body


def _query(request: Request) -> dict[str, list[str]]:
    try:
        return parse_qs(request.url.query, keep_blank_values=True, max_num_fields=MAX_QUERY_FIELDS)
    except ValueError:
        raise BadRequest(f"the address has more than {MAX_QUERY_FIELDS} fields") from None


def _say_status(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    text = {404: "there is nothing here", 405: "this address does not take this method"}.get(status, "refused")
    return PlainTextResponse(f"{text}\n", status)


def _say_bad_request(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 400)


def _say_unreadable(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": f"the workspace cannot be read or written: {error}"}, 500)
