"""What a browser may ask for: filters, pages and changes, checked before anything is read or saved."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

ORDERS = {"time": None, "typical": "distance", "far": "-distance", "uncertain": "margin", "random": "hash"}
"""Orders of a list, and the column that each sorts by, with a minus the largest first (None: by station and time)."""

SHOWN_SECONDS = (10, 3)
"""Lengths of time about the onset that a figure may show in place of the whole window (s)."""

MAX_LABELLED = 1000
"""Events that one request may label by their ids."""
MAX_POINTS_LABELLED = 100_000
"""Events that one request may label by their numbers on the map."""
MAX_LISTED = 200
"""Events of the map that one request may list."""


class BadRequest(ValueError):
    """A request that cannot be answered; its text goes to the browser."""


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which events are listed, and in what order."""

    cluster: int | None = None
    site: str | None = None
    """network.station."""
    start_ns: int | None = None
    """First onset (ns since 1970-01-01 UTC)."""
    end_ns: int | None = None
    """End of the onsets, itself excluded (ns since 1970-01-01 UTC)."""
    hour: int | None = None
    """Of the day, UTC, 0 to 23."""
    label: str | None = None
    """A hand label, or "" for events without one."""
    order: str = "time"


def read_filter(query: Mapping[str, list[str]]) -> Filter:
    """Return the filter that a query asks for.

    Raises:
        BadRequest: a value is not valid; names it.
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
            raise BadRequest(f"{name} is {text[:40]!r}; it must be a UTC time such as 2009-01-21T04:00") from None

    cluster, order, label = value("cluster"), value("order") or "time", query.get("label", [None])[-1]
    if order not in ORDERS:
        raise BadRequest(f"order is {order[:40]!r}; it must be one of {', '.join(ORDERS)}")
    return Filter(
        cluster=None if cluster is None else read_cluster(cluster),
        site=value("site"),
        hour=None if (hour := value("hour")) is None else _read_hour(hour),
        start_ns=nanoseconds("start"),
        end_ns=nanoseconds("end"),
        label=label,
        order=order,
    )


def read_cursor(cursor: str) -> tuple[int, int]:
    """Return the file and the row that a page begins with ("" is the first page); BadRequest for anything else."""
    if not cursor:
        return 0, 0
    first, _, second = cursor.partition("-")
    if not (cursor.isascii() and first.isdigit() and second.isdigit() and len(cursor) < 24):
        raise BadRequest("the cursor is not one that this server gave")
    return int(first), int(second)


def read_object(body: bytes) -> dict[str, Any]:
    """Return a request's JSON object; BadRequest where it is not one."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequest("the request is not valid JSON") from None
    if not isinstance(content, dict):
        raise BadRequest("the request must be a JSON object")
    return content


def read_label_changes(body: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the labels to set by event id (None: remove the label); BadRequest where the request is not valid."""
    event_ids, label = body.get("event_ids"), body.get("label")
    if not isinstance(event_ids, list) or not all(isinstance(event_id, str) for event_id in event_ids):
        raise BadRequest("event_ids must be a list of event ids")
    if not 1 <= len(event_ids) <= MAX_LABELLED:
        raise BadRequest(f"the request has {len(event_ids)} events; 1 to {MAX_LABELLED} can be labelled at once")
    if not (label is None or isinstance(label, str)):
        raise BadRequest("label must be text, or null to remove it")
    return dict.fromkeys(event_ids, label)


def read_point_label(body: Mapping[str, Any]) -> tuple[list[int], str | None]:
    """Return events of the map and their new label (None: remove it); BadRequest where the request is not valid."""
    points, label = body.get("points"), body.get("label")
    if not isinstance(points, list) or not all(type(number) is int for number in points):
        raise BadRequest("points must be a list of numbers")
    if not 1 <= len(points) <= MAX_POINTS_LABELLED:
        raise BadRequest(f"{len(points)} events are chosen; 1 to {MAX_POINTS_LABELLED} can be labelled at once")
    if not (label is None or isinstance(label, str)):
        raise BadRequest("label must be text, or null to remove it")
    return points, label


def read_points(text: str) -> list[int]:
    """Return the numbers of events of the map that a query lists, such as 3,17; BadRequest for anything else."""
    numbers = text.split(",") if len(text) < 16 * MAX_LISTED else []
    if not 1 <= len(numbers) <= MAX_LISTED or not all(map(_is_number, numbers)):
        raise BadRequest(f"points must be 1 to {MAX_LISTED} numbers with commas between them")
    return [int(number) for number in numbers]


def read_first(text: str) -> int:
    """Return the number of the first event that is asked for ("": 0); BadRequest for anything else."""
    if text and not _is_number(text):
        raise BadRequest(f"first is {text[:40]!r}; it must be a number")
    return int(text or 0)


def read_cluster(text: str) -> int:
    """Return the number of a cluster; BadRequest for anything else."""
    if not _is_number(text):
        raise BadRequest(f"cluster is {text[:40]!r}; it must be a number")
    return int(text)


def read_seconds(text: str) -> int | None:
    """Return the seconds that a figure is to show ("": None, the whole window); BadRequest for anything else."""
    if not text:
        return None
    if text not in map(str, SHOWN_SECONDS):
        raise BadRequest(f"seconds is {text[:40]!r}; it must be one of {', '.join(map(str, SHOWN_SECONDS))}")
    return int(text)


def _read_hour(text: str) -> int:
    if not _is_number(text) or int(text) > 23:
        raise BadRequest(f"hour is {text[:40]!r}; it must be a number from 0 to 23")
    return int(text)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def read_name_change(body: Mapping[str, Any]) -> tuple[int, str | None]:
    """Return a cluster and its new name (None: remove the name); BadRequest where the request is not valid."""
    cluster, name = body.get("cluster"), body.get("name")
    if not isinstance(cluster, int) or isinstance(cluster, bool) or not (name is None or isinstance(name, str)):
        raise BadRequest("the request must have the number of a cluster and its name")
    return cluster, name
