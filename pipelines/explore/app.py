"""The explorer's pages and calls over HTTP (Starlette).

The page itself, its script and its style hold nothing of the workspace and need no token; every call under `/api/`
does. A change must also come from the page itself, as far as the browser tells.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import parse_qs

from numpy.typing import NDArray
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
from pipelines.explore.assets import Asset, page_assets
from pipelines.explore.explorer import Explorer
from pipelines.explore.places import hours_of_day
from pipelines.explore.queries import (
    BadRequest,
    read_cluster,
    read_filter,
    read_first,
    read_label_changes,
    read_name_change,
    read_object,
    read_point_label,
    read_points,
    read_seconds,
)
from pipelines.runtime.errors import InputError

MAX_BODY_BYTES = 1_000_000
MAX_QUERY_FIELDS = 20
BODY_SECONDS = 30.0
"""Time in which a request's body must arrive."""


def make_app(explorer: Explorer, access: Access) -> Starlette:
    """Return the application."""
    page_events = explorer.page_events

    def summary(request: Request) -> Response:
        return JSONResponse(explorer.summary())

    def events(request: Request) -> Response:
        query = _query(request)
        listed, following = explorer.list_events(read_filter(query), query.get("cursor", [""])[-1], page_events)
        return JSONResponse({"events": listed, "cursor": following})

    def figure(request: Request) -> Response:
        return JSONResponse(explorer.figure(_one(request, "event_id"), read_seconds(_one(request, "seconds"))))

    def map_state(request: Request) -> Response:
        return JSONResponse(explorer.map.state())

    def map_sketch(request: Request) -> Response:
        sketch = explorer.map.sketch()
        return Response(b"") if sketch is None else _binary(*sketch)

    def map_plane(request: Request) -> Response:
        return _binary(explorer.map.plane(_one(request, "layout")))

    def map_clusters(request: Request) -> Response:
        return _binary(explorer.map.points().clusters)

    def map_labelled(request: Request) -> Response:
        return JSONResponse(explorer.labelled_points())

    def map_hours(request: Request) -> Response:
        return _binary(hours_of_day(explorer.map.points().onset_ns))

    def map_sites(request: Request) -> Response:
        return _binary(explorer.map.points().sites(explorer.map.counts().sites))

    def places(request: Request) -> Response:
        return JSONResponse(explorer.places())

    def place_counts(request: Request) -> Response:
        return _binary(explorer.map.counts().events)

    def points(request: Request) -> Response:
        return JSONResponse({"events": explorer.list_points(read_points(_one(request, "points")))})

    def neighbours(request: Request) -> Response:
        return JSONResponse({"events": explorer.neighbours(_one(request, "event_id"), page_events)})

    def typical(request: Request) -> Response:
        cluster, first = read_cluster(_one(request, "cluster")), read_first(_one(request, "first"))
        listed, total = explorer.typical(cluster, first, page_events)
        return JSONResponse({"events": listed, "total": total})

    def doubtful(request: Request) -> Response:
        cluster = _one(request, "cluster")
        return JSONResponse({"events": explorer.doubtful(read_cluster(cluster) if cluster else None)})

    def suggestions(request: Request) -> Response:
        return JSONResponse({"events": explorer.suggestions()})

    def tree(request: Request) -> Response:
        return JSONResponse(explorer.tree.describe())

    def branch(request: Request) -> Response:
        return JSONResponse(explorer.tree_figure(_one(request, "id")))

    def set_labels(body: Mapping[str, Any]) -> dict[str, Any]:
        if "points" in body:
            return explorer.set_point_labels(*read_point_label(body))
        return explorer.set_labels(read_label_changes(body))

    def undo(body: Mapping[str, Any]) -> dict[str, Any]:
        return explorer.undo()

    def set_name(body: Mapping[str, Any]) -> dict[str, Any]:
        return explorer.set_name(*read_name_change(body))

    return Starlette(
        routes=[
            *(Route(asset.path, _answer_with(asset)) for asset in page_assets()),
            Route("/api/summary", summary),
            Route("/api/events", events),
            Route("/api/figure", figure),
            Route("/api/map", map_state),
            Route("/api/map/sketch", map_sketch),
            Route("/api/map/plane", map_plane),
            Route("/api/map/clusters", map_clusters),
            Route("/api/map/labelled", map_labelled),
            Route("/api/map/hours", map_hours),
            Route("/api/map/sites", map_sites),
            Route("/api/places", places),
            Route("/api/places/counts", place_counts),
            Route("/api/points", points),
            Route("/api/neighbours", neighbours),
            Route("/api/typical", typical),
            Route("/api/suggestions", suggestions),
            Route("/api/doubtful", doubtful),
            Route("/api/tree", tree),
            Route("/api/branch", branch),
            Route("/api/labels", _change(set_labels), methods=["POST"]),
            Route("/api/undo", _change(undo), methods=["POST"]),
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


def _answer_with(asset: Asset) -> Callable[[Request], Response]:
    content = asset.read()

    def answer(request: Request) -> Response:
        return Response(content, media_type=asset.kind)

    return answer


def _binary(*arrays: NDArray[Any]) -> Response:
    """Answer with numbers as they lie in memory, little-endian, one array after the other."""
    content = b"".join(numbers.astype(numbers.dtype.newbyteorder("<"), copy=False).tobytes() for numbers in arrays)
    return Response(content, media_type="application/octet-stream")


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


def _one(request: Request, name: str) -> str:
    """Return a value of the query; "" where it is not given."""
    return _query(request).get(name, [""])[-1]


def _say_status(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    text = {404: "there is nothing here", 405: "this address does not take this method"}.get(status, "refused")
    return PlainTextResponse(f"{text}\n", status)


def _say_bad_request(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 400)


def _say_unreadable(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": f"the workspace cannot be read or written: {error}"}, 500)
