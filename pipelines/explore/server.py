"""The explorer: a small web server on this machine to look through events, label them by hand and name clusters.

It keeps nothing but what it has shown: lists are read file by file until a page is full, and a waveform when a
browser asks for it. A browser needs the token of the address that is printed at the start; requests for another host
name or from another site are refused, and only events that were shown can be labelled.
"""

import hmac
import json
import secrets
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from ipaddress import ip_address
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pandas as pd

from pipelines.config.label import LabelsSettings
from pipelines.config.report import ExploreSettings, ReportSettings
from pipelines.handlabels import editing
from pipelines.report.catalogue import onset_nanoseconds
from pipelines.report.gallery import event_hash
from pipelines.report.stage_gallery import GALLERY_COLUMNS, gallery_item, shown_band
from pipelines.report.stage_inputs import EVALUATION_PATH
from pipelines.report.stage_inputs import label_files as list_label_files
from pipelines.report.stage_reading import read_columns, read_rows
from pipelines.report.stage_summary import LABEL_COLUMNS
from pipelines.report.style import cluster_colour
from pipelines.runtime.errors import InputError
from pipelines.workspace.storage import Store, open_store
from pipelines.workspace.workspace import Workspace

MAX_BODY_BYTES = 1_000_000
MAX_SHOWN = 200_000
MAX_DRAWN = 400
MAX_RANKED = 2000
SOCKET_SECONDS = 30.0
ORDERS = {"time": None, "typical": "distance", "uncertain": "margin", "random": "hash"}

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_ASSETS = {"/explore.js": "text/javascript", "/explore.css": "text/css"}


class BadRequest(ValueError):
    """A request that cannot be answered; its text goes to the browser."""


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which events are listed, and in what order."""

    cluster: int | None = None
    site: str | None = None
    """network.station."""
    start_ns: int | None = None
    end_ns: int | None = None
    label: str | None = None
    """A hand label, or "" for events without one."""
    order: str = "time"


@dataclass(kw_only=True)
class Explorer:
    """What the server shows of a workspace, and the hand labels it keeps.

    Labels are read again before each change and written atomically, so that another program may change the file, too.
    """

    store: Store
    files: list[str]
    """Files of `labels/`, relative to it, sorted."""
    labels_store: Store
    labels_name: str
    names_name: str = "cluster-names.yaml"
    label_names: tuple[str, ...] = ()
    band_hz: tuple[float, float] | None = None
    """Band in which traces are drawn; None: as recorded."""
    shown: "OrderedDict[str, tuple[str, dict[str, Any]]]" = field(default_factory=OrderedDict)
    """Events that a browser has seen: their file and their row of `labels/`."""
    drawn: "OrderedDict[str, dict[str, Any]]" = field(default_factory=OrderedDict)
    sizes: dict[int, dict[str, Any]] | None = None
    """Events and name of each cluster, once read."""
    lock: threading.RLock = field(default_factory=threading.RLock)

    def summary(self) -> dict[str, Any]:
        """Return clusters, stations, label counts and where labels are kept."""
        sizes = self._cluster_sizes()
        names = self.read_names()
        labels = self.read_labels()
        counts = pd.Series([row["label"] for row in labels.values()], dtype=object).value_counts()
        sites = sorted({_site(file) for file in self.files})
        return {
            "workspace": self.store.url,
            "clusters": [
                {
                    "number": number,
                    "events": entry["events"],
                    "name": names.get(number) or entry["name"] or "",
                    "colour": cluster_colour(number),
                }
                for number, entry in sizes.items()
            ],
            "sites": sites,
            "labels": {str(label): int(count) for label, count in counts.items()},
            "label_names": list(dict.fromkeys((*self.label_names, *(str(label) for label in sorted(counts.index))))),
            "labels_path": self.labels_store.full(self.labels_name),
            "names_path": self.store.full(self.names_name),
        }

    def list_events(self, chosen: Filter, cursor: str, limit: int) -> tuple[list[dict[str, Any]], str]:
        """Return up to `limit` events and the cursor of the page after them ("" at the end).

        In order of time the files of a station are read one after the other, only as many as the page needs; other
        orders read all chosen files and keep the first `MAX_RANKED` events.
        """
        labels = self.read_labels()
        if ORDERS[chosen.order] is None:
            rows, following = self._page_in_time(chosen, labels, cursor, limit)
        else:
            rows, following = self._page_ranked(chosen, labels, cursor, limit)
        events = []
        with self.lock:
            for row in rows:
                file = str(row.pop("file"))
                self.shown[row["event_id"]] = (file, row)
                self.shown.move_to_end(row["event_id"])
                hand = labels.get(row["event_id"], {}).get("label")
                events.append(
                    {
                        "event_id": row["event_id"],
                        "site": f"{row['network']}.{row['station']}",
                        "onset": row["onset"].strftime("%Y-%m-%d %H:%M:%S"),
                        "cluster": int(row["cluster"]),
                        "margin": _number(row["margin"]),
                        "distance": _number(row["distance"]),
                        "label": hand,
                        "given": None if pd.isna(row["label"]) else row["label"],
                    }
                )
            while len(self.shown) > MAX_SHOWN:
                self.shown.popitem(last=False)
        return events, following

    def _page_in_time(
        self, chosen: Filter, labels: Mapping[str, Mapping[str, str]], cursor: str, limit: int
    ) -> tuple[list[dict[str, Any]], str]:
        start_file, start_row = _read_cursor(cursor)
        files = [file for file in self.files if chosen.site is None or _site(file) == chosen.site]
        found: list[dict[str, Any]] = []
        for number in range(start_file, len(files)):
            rows = self._matching(files[number], chosen, labels)
            taken = start_row if number == start_file else 0
            page = rows.iloc[taken : taken + limit - len(found)]
            found += _records(page, files[number])
            if len(found) == limit:
                return found, f"{number}-{taken + len(page)}"
        return found, ""

    def _page_ranked(
        self, chosen: Filter, labels: Mapping[str, Mapping[str, str]], cursor: str, limit: int
    ) -> tuple[list[dict[str, Any]], str]:
        column = str(ORDERS[chosen.order])
        _, first = _read_cursor(cursor)
        best: pd.DataFrame | None = None
        for file in self.files:
            if chosen.site is not None and _site(file) != chosen.site:
                continue
            rows = self._matching(file, chosen, labels).assign(file=file)
            rows = rows.assign(hash=event_hash(rows["event_id"])) if column == "hash" else rows
            pool = rows if best is None else pd.concat([best, rows])
            best = pool.sort_values([column, "event_id"], kind="stable").head(min(first + limit + 1, MAX_RANKED))
        if best is None:
            return [], ""
        page = best.iloc[first : first + limit].drop(columns="hash", errors="ignore")
        more = len(best) > first + limit
        return _records(page, None), f"0-{first + limit}" if more else ""

    def _matching(self, file: str, chosen: Filter, labels: Mapping[str, Mapping[str, str]]) -> pd.DataFrame:
        rows: pd.DataFrame = read_columns(self.store, f"labels/{file}", LABEL_COLUMNS).to_pandas()
        keep = np.ones(len(rows), dtype=bool)
        if chosen.cluster is not None:
            keep &= (rows["cluster"] == chosen.cluster).to_numpy()
        if chosen.start_ns is not None or chosen.end_ns is not None:
            onset_ns = onset_nanoseconds(rows)
            keep &= onset_ns >= (chosen.start_ns if chosen.start_ns is not None else np.iinfo(np.int64).min)
            keep &= onset_ns < (chosen.end_ns if chosen.end_ns is not None else np.iinfo(np.int64).max)
        if chosen.label is not None:
            hand = [labels.get(event_id, {}).get("label", "") for event_id in rows["event_id"]]
            keep &= np.array([label == chosen.label for label in hand], dtype=bool)
        return rows[keep]

    def figure(self, event_id: str) -> dict[str, Any]:
        """Return the figure (SVG) and the details of an event that was listed before."""
        with self.lock:
            if event_id in self.drawn:
                self.drawn.move_to_end(event_id)
                return self.drawn[event_id]
            if event_id not in self.shown:
                raise BadRequest("this event has not been listed; list it first")
            file, row = self.shown[event_id]
        event = read_rows(self.store, f"events/{file}", [event_id], GALLERY_COLUMNS)
        if not event.num_rows:
            raise BadRequest("this event has a label but no waveform; was the workspace changed?")
        item = gallery_item(event, row, self.band_hz)
        answer = {"svg": item.svg, "details": list(item.details), "time": item.time}
        with self.lock:
            self.drawn[event_id] = answer
            while len(self.drawn) > MAX_DRAWN:
                self.drawn.popitem(last=False)
        return answer

    def set_labels(self, changes: Mapping[str, str | None]) -> dict[str, int]:
        """Set or remove (None) the hand labels of events that were shown, save the file, and return counts by label."""
        with self.lock:
            unknown = [event_id for event_id in changes if event_id not in self.shown]
            if unknown:
                raise BadRequest(f"{len(unknown)} of the events have not been listed; list them first")
            try:
                rows = editing.with_labels(self.read_labels(), changes)
            except ValueError as error:
                raise BadRequest(str(error)) from None
            self.labels_store.write(self.labels_name, editing.write_labels(rows).encode())
        counts = pd.Series([row["label"] for row in rows.values()], dtype=object).value_counts()
        return {str(label): int(count) for label, count in counts.items()}

    def set_name(self, cluster: int, name: str | None) -> dict[int, str]:
        """Set or remove (None) the name of a cluster, save the file, and return all names."""
        with self.lock:
            if cluster not in self._cluster_sizes():
                raise BadRequest(f"there is no cluster {cluster}")
            names = self.read_names()
            try:
                names = {**names, cluster: editing.check_label(name)} if name else _without(names, cluster)
            except ValueError as error:
                raise BadRequest(str(error)) from None
            self.store.write(self.names_name, editing.write_names(names).encode())
        return names

    def read_labels(self) -> dict[str, dict[str, str]]:
        """Return the hand labels as they are stored now, by event id."""
        try:
            return editing.read_labels(self.labels_store.read(self.labels_name).decode())
        except FileNotFoundError:
            return {}

    def read_names(self) -> dict[int, str]:
        """Return the cluster names as they are stored now."""
        try:
            return editing.read_names(self.store.read(self.names_name).decode())
        except FileNotFoundError:
            return {}

    def _cluster_sizes(self) -> dict[int, dict[str, Any]]:
        """Return size and name of each cluster, from the label stage's summary, else counted once."""
        with self.lock:
            if self.sizes is None:
                self.sizes = self._read_cluster_sizes()
            return self.sizes

    def _read_cluster_sizes(self) -> dict[int, dict[str, Any]]:
        try:
            content = json.loads(self.store.read(EVALUATION_PATH))
            found = {int(entry["cluster"]): entry for entry in content["clusters"]}
            return {number: {"events": int(found[number]["events"]), "name": found[number]["name"]} for number in found}
        except (FileNotFoundError, KeyError, ValueError):
            counts: dict[int, int] = {}
            for file in self.files:
                for number in read_columns(self.store, f"labels/{file}", ("cluster",))["cluster"].to_pylist():
                    counts[number] = counts.get(number, 0) + 1
            return {number: {"events": counts[number], "name": None} for number in sorted(counts)}


def open_explorer(
    workspace: Workspace, settings: ExploreSettings, labels: LabelsSettings, report: ReportSettings | None = None
) -> Explorer:
    """Return the explorer of a workspace.

    Hand labels are kept in `explore.labels_path`, else in `labels.path` where that is a CSV by event id, else in
    `hand-labels.csv` of the workspace.

    Raises:
        InputError: the workspace has no labels, or the label file given cannot be edited.
    """
    files = list_label_files(workspace)
    store, name = workspace.store, "hand-labels.csv"
    if settings.labels_path is not None:
        store, name = _split(settings.labels_path)
        reason = _not_editable(store, name)
        if reason:
            raise InputError(f"explore.labels_path {settings.labels_path} cannot be edited: {reason}")
    elif labels.path is not None and not _not_editable(*_split(labels.path)):
        store, name = _split(labels.path)
    elif reason := _not_editable(store, name):
        raise InputError(f"{store.full(name)} cannot be edited: {reason}")
    return Explorer(
        store=workspace.store,
        files=files,
        labels_store=store,
        labels_name=name,
        label_names=settings.label_names,
        band_hz=shown_band(workspace, report or ReportSettings()),
    )


def _split(path: str) -> tuple[Store, str]:
    folder, _, name = open_store(path).url.rpartition("/")
    return open_store(folder or "/"), name


def _not_editable(store: Store, name: str) -> str:
    if not name.endswith(".csv"):
        return "it must be a .csv file with the columns event_id and label"
    try:
        editing.read_labels(store.read(name).decode())
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        return " ".join(str(error).split())
    return ""


def _site(file: str) -> str:
    network, station = file.split("/")[:2]
    return f"{network.removeprefix('network=')}.{station.removeprefix('station=')}"


def _read_cursor(cursor: str) -> tuple[int, int]:
    if not cursor:
        return 0, 0
    first, _, second = cursor.partition("-")
    if not (first.isdigit() and second.isdigit() and len(cursor) < 24):
        raise BadRequest("the cursor is not one of this server's")
    return int(first), int(second)


def _records(rows: pd.DataFrame, file: str | None) -> list[dict[str, Any]]:
    found = rows if file is None else rows.assign(file=file)
    return [{str(name): value for name, value in row.items()} for row in found.to_dict("records")]


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _without(names: Mapping[int, str], cluster: int) -> dict[int, str]:
    return {number: name for number, name in names.items() if number != cluster}


def read_filter(query: Mapping[str, list[str]]) -> Filter:
    """Return the filter that a query asks for.

    Raises:
        BadRequest: a value that is none.
    """

    def value(name: str) -> str | None:
        text = query.get(name, [""])[-1].strip()
        return text or None

    def nanoseconds(name: str) -> int | None:
        text = value(name)
        if text is None:
            return None
        try:
            time = pd.Timestamp(text)
            return int((time.tz_localize("UTC") if time.tzinfo is None else time).as_unit("ns").value)
        except (ValueError, OverflowError, TypeError):
            raise BadRequest(f"{name} is {text[:40]!r}, it must be a UTC time such as 2009-01-21T04:00") from None

    cluster, order, label = value("cluster"), value("order") or "time", query.get("label", [None])[-1]
    if cluster is not None and not (cluster.isdigit() and len(cluster) < 10):
        raise BadRequest(f"cluster is {cluster[:40]!r}, it must be a number")
    if order not in ORDERS:
        raise BadRequest(f"order is {order[:40]!r}, it must be one of {', '.join(ORDERS)}")
    return Filter(
        cluster=None if cluster is None else int(cluster),
        site=value("site"),
        start_ns=nanoseconds("start"),
        end_ns=nanoseconds("end"),
        label=label,
        order=order,
    )


class ExplorerServer(ThreadingHTTPServer):
    """The server of one explorer; `url` is the address with its token."""

    daemon_threads = True

    def __init__(self, explorer: Explorer, settings: ExploreSettings) -> None:
        self.explorer = explorer
        self.page_events = settings.page_events
        self.token = secrets.token_urlsafe(32)
        self.request_token = secrets.token_urlsafe(32)
        try:
            super().__init__((settings.host, settings.port), _Handler)
        except OSError as error:
            raise InputError(
                f"explore.host {settings.host}, explore.port {settings.port} cannot be listened on ({error.strerror}); "
                "give another port, or 0 for any free one"
            ) from None
        self.port = int(self.server_address[1])
        own = {"localhost", "127.0.0.1", "[::1]", settings.host}
        self.hosts = {f"{name}:{self.port}" for name in own} | set(settings.allowed_hosts)
        self.hosts |= {f"{name}:{self.port}" for name in settings.allowed_hosts}

    @property
    def url(self) -> str:
        """Return the address to open, with the token that lets a browser in."""
        host = str(self.server_address[0])
        name = "127.0.0.1" if host in ("0.0.0.0", "") else host
        return f"http://{name}:{self.port}/?token={self.token}"

    @property
    def cookie_name(self) -> str:
        """Return the name of the session's cookie; it holds the port, since cookies do not keep ports apart."""
        return f"firnline_{self.port}"


def is_loopback(host: str) -> bool:
    """Whether an address to listen on can be reached from this machine only."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Handler(BaseHTTPRequestHandler):
    server: ExplorerServer
    server_version = "firnline"
    sys_version = ""
    protocol_version = "HTTP/1.1"
    timeout = SOCKET_SECONDS

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_HEAD(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: the first request's address holds the token."""

    def _answer(self, handle: Any) -> None:
        self.close_connection = True
        try:
            if self.headers.get("Host", "").lower() not in self.server.hosts:
                self._send(HTTPStatus.FORBIDDEN, "this host name is not allowed; see explore.allowed_hosts\n")
                return
            handle(urlsplit(self.path))
        except BadRequest as error:
            self._send_json({"error": str(error)}, HTTPStatus.BAD_REQUEST)
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            pass
        except (InputError, OSError, ValueError, KeyError) as error:
            self._send_json({"error": f"the workspace cannot be read: {error}"}, HTTPStatus.INTERNAL_SERVER_ERROR)

    def _get(self, address: Any) -> None:
        query = parse_qs(address.query, keep_blank_values=True, max_num_fields=20)
        if address.path == "/" and "token" in query:
            self._let_in(query["token"][-1])
            return
        if not self._is_let_in():
            self._send(HTTPStatus.FORBIDDEN, "open the address with the token that firnline explore has printed\n")
            return
        explorer = self.server.explorer
        if address.path == "/":
            page = _asset("explore.html").replace("{{request_token}}", self.server.request_token)
            self._send(HTTPStatus.OK, page, "text/html")
        elif address.path in _ASSETS:
            self._send(HTTPStatus.OK, _asset(address.path[1:]), _ASSETS[address.path])
        elif address.path == "/api/summary":
            self._send_json(explorer.summary())
        elif address.path == "/api/events":
            cursor = query.get("cursor", [""])[-1]
            events, following = explorer.list_events(read_filter(query), cursor, self.server.page_events)
            self._send_json({"events": events, "cursor": following})
        elif address.path == "/api/figure":
            self._send_json(explorer.figure(query.get("event_id", [""])[-1]))
        else:
            self._send(HTTPStatus.NOT_FOUND, "there is nothing here\n")

    def _post(self, address: Any) -> None:
        origin = self.headers.get("Origin")
        own_site = origin is None or urlsplit(origin).netloc.lower() in self.server.hosts
        token = self.headers.get("X-Firnline-Token", "")
        if not (self._is_let_in() and own_site and _same(token, self.server.request_token)):
            self._send(HTTPStatus.FORBIDDEN, "only the explorer's own page may change labels\n")
            return
        body = self._read_body()
        if address.path == "/api/labels":
            counts = self.server.explorer.set_labels(_label_changes(body))
            self._send_json({"labels": counts})
        elif address.path == "/api/names":
            cluster, name = body.get("cluster"), body.get("name")
            if not isinstance(cluster, int) or isinstance(cluster, bool) or not (name is None or isinstance(name, str)):
                raise BadRequest("give a cluster's number and its name")
            self._send_json({"names": self.server.explorer.set_name(cluster, name)})
        else:
            self._send(HTTPStatus.NOT_FOUND, "there is nothing here\n")

    def _let_in(self, token: str) -> None:
        if not _same(token, self.server.token):
            self._send(HTTPStatus.FORBIDDEN, "this token is not the one that firnline explore has printed\n")
            return
        cookie = f"{self.server.cookie_name}={self.server.token}; Path=/; HttpOnly; SameSite=Strict"
        self._send(HTTPStatus.SEE_OTHER, "", headers={"Location": "/", "Set-Cookie": cookie})

    def _is_let_in(self) -> bool:
        try:
            cookies = SimpleCookie(self.headers.get("Cookie", ""))
        except CookieError:
            return False
        found = cookies.get(self.server.cookie_name)
        return found is not None and _same(found.value, self.server.token)

    def _read_body(self) -> dict[str, Any]:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > MAX_BODY_BYTES:
            raise BadRequest(f"the request must have a body of at most {MAX_BODY_BYTES} bytes")
        if self.headers.get_content_type() != "application/json":
            raise BadRequest("the request must be application/json")
        try:
            body = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            raise BadRequest("the request is not valid JSON") from None
        if not isinstance(body, dict):
            raise BadRequest("the request must be a JSON object")
        return body

    def _send_json(self, content: Mapping[str, Any], status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(status, json.dumps(content, allow_nan=False), "application/json")

    def _send(
        self, status: HTTPStatus, text: str, kind: str = "text/plain", headers: Mapping[str, str] | None = None
    ) -> None:
        content = text.encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(content)),
            "Content-Security-Policy": _POLICY,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Connection": "close",
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _label_changes(body: Mapping[str, Any]) -> dict[str, str | None]:
    event_ids, label = body.get("event_ids"), body.get("label")
    if not isinstance(event_ids, list) or not all(isinstance(event_id, str) for event_id in event_ids):
        raise BadRequest("event_ids must be a list of event ids")
    if not 1 <= len(event_ids) <= 1000:
        raise BadRequest(f"{len(event_ids)} events were given, 1 to 1000 can be labelled at once")
    if not (label is None or isinstance(label, str)):
        raise BadRequest("label must be text, or null to remove it")
    return dict.fromkeys(event_ids, label)


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(), expected.encode())


def _asset(name: str) -> str:
    return resources.files("pipelines.explore").joinpath(name).read_text(encoding="utf-8")
