"""What a file's path says about its content, for the layouts of public archives.

    sds          YEAR/NET/STA/CHAN.D/NET.STA.LOC.CHAN.D.YEAR.DAY
    scedc        YEAR/YEAR_DAY/NETSTA__CHAN_LOC_YEARDAY.ms        (s3://scedc-pds/continuous_waveforms)
    ncedc        NET/YEAR/YEAR.DAY/STA.NET.CHAN.LOC.D.YEAR.DAY    (s3://ncedc-pds/continuous_waveforms)
    earthscope   NET/YEAR/DAY/STA.NET.YEAR.DAY[#VERSION]          (several channels a file)

A template names the same parts in braces: `{network}`, `{station}`, `{location}`, `{channel}`, `{year}`, `{julday}`,
`{month}`, `{day}`, `{hour}`; `*` stands for anything within a folder's name. A trailing `.gz` is allowed everywhere.
"""

import calendar
import fnmatch
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache

DAY_NS = 86_400_000_000_000
MIN_YEAR, MAX_YEAR = 1900, 2199
"""Years that a path may say: 64 bits of nanoseconds reach from 1678 to 2262, and no recording is from outside these."""

_FIELDS = {
    "network": r"[A-Za-z0-9]{1,8}",
    "station": r"[A-Za-z0-9-]{1,8}",
    "location": r"[A-Za-z0-9]{0,8}|--|__",
    "channel": r"[A-Za-z0-9]{3}",
    "year": r"\d{4}",
    "julday": r"\d{3}",
    "month": r"\d{2}",
    "day": r"\d{2}",
    "hour": r"\d{2}",
}
_BUILT_IN = {
    "sds": r"(?:^|.*/){year}/{network}/{station}/{channel}\.D/{network}\.{station}\.{location}\.{channel}\.D\."
    r"{year}\.{julday}(?:\.gz)?$",
    "scedc": r"(?:^|.*/){network}{padded_station}{channel}{padded_location}_{year}{julday}\.ms(?:eed)?(?:\.gz)?$",
    "ncedc": r"(?:^|.*/){station}\.{network}\.{channel}\.{location}\.D\.{year}\.{julday}(?:\.gz)?$",
    "earthscope": r"(?:^|.*/){station}\.{network}\.{year}\.{julday}(?:\.\d+)?(?:#\d+)?(?:\.gz)?$",
}
_EXTRA = {
    "network": r"[A-Za-z0-9]{1,8}",
    "padded_station": r"(?P<station>[A-Za-z0-9_-]{5})",
    "padded_location": r"(?P<location>[A-Za-z0-9_-]{2})",
}


@dataclass(frozen=True, slots=True)
class PathInfo:
    """What a path says; None where it says nothing.

    Attributes:
        network, station, location, channel: codes ("" is the empty location code).
        start_ns, end_ns: the span of time in the name, in nanoseconds since 1970 (UTC).
    """

    network: str | None
    station: str | None
    location: str | None
    channel: str | None
    start_ns: int | None
    end_ns: int | None


@lru_cache(maxsize=64)
def path_parser(layout: str) -> Callable[[str], PathInfo | None]:
    """Return the function that reads a path in a layout (a built-in name or a template); None where it does not fit.

    Raises:
        ValueError: a template with an unknown field or without network and station.
    """
    pattern = _compile(layout)

    def parse(path: str) -> PathInfo | None:
        match = pattern.match(path)
        if match is None:
            return None
        parts = match.groupdict()
        span = _span(parts)
        if span is None:
            return None
        return PathInfo(
            parts.get("network"),
            (parts.get("station") or "").rstrip("_") or None,
            None if "location" not in parts else (parts["location"] or "").strip("_-"),
            parts.get("channel"),
            *span,
        )

    return parse


def is_indexed(layout: str) -> bool:
    """Return whether the headers of all files are read before a plan is made: paths of the layout name no day."""
    if layout in _BUILT_IN:
        return False
    return "{julday}" not in layout and not ("{month}" in layout and "{day}" in layout)


def guess_layout(paths: Iterable[str]) -> str:
    """Return the built-in layout that at least half of some paths fit by their names, or `flat`."""
    counts = dict.fromkeys(_BUILT_IN, 0)
    parsers = {name: path_parser(name) for name in _BUILT_IN}
    num_paths = 0
    for path in paths:
        num_paths += 1
        for name, parse in parsers.items():
            if parse(path) is not None:
                counts[name] += 1
                break
    best = max(counts, key=lambda name: counts[name])
    return best if 2 * counts[best] >= max(num_paths, 1) else "flat"


def code_matcher(patterns: str) -> Callable[[str], bool]:
    """Return whether a code fits one of some comma-separated patterns with * and ?; -- stands for the empty code."""
    wanted = [part.strip() for part in str(patterns).split(",") if part.strip()]
    wanted = ["" if part == "--" else part for part in wanted] or ["*"]
    compiled = [re.compile(fnmatch.translate(part)) for part in wanted]

    @lru_cache(maxsize=4096)
    def fits(code: str) -> bool:
        return any(pattern.match(code) for pattern in compiled)

    return fits


def folder_filter(layout: str, start: datetime | None, end: datetime | None) -> Callable[[str], bool]:
    """Return whether a folder can hold files of a period, so that a listing leaves out other years."""
    if layout not in ("sds", "scedc") or (start is None and end is None):
        return lambda folder: True
    first = (start - timedelta(days=1)).year if start else 0
    last = (end + timedelta(days=1)).year if end else 9999

    def keep(folder: str) -> bool:
        name = folder.rstrip("/").rpartition("/")[2]
        return not re.fullmatch(r"\d{4}", name) or first <= int(name) <= last

    return keep


def _compile(layout: str) -> re.Pattern[str]:
    if layout in _BUILT_IN:
        text = _BUILT_IN[layout]
        names = re.findall(r"\{([a-z_]+)\}", text)
    else:
        names = re.findall(r"\{([^}]*)\}", layout)
        unknown = [name for name in names if name not in _FIELDS]
        if unknown:
            raise ValueError(f"the template's field {{{unknown[0]}}} is unknown; the fields are {', '.join(_FIELDS)}")
        if "network" not in names or "station" not in names:
            raise ValueError("the template must hold {network} and {station}")
        escaped = re.escape(layout).replace(r"\{", "{").replace(r"\}", "}").replace(r"\*", "[^/]*")
        text = rf"(?:^|.*/){escaped}(?:\.gz)?$"
    seen: set[str] = set()
    for name in names:
        pattern = _EXTRA.get(name) if name.startswith("padded") else f"(?P<{name}>{_FIELDS[name]})"
        if name in seen:
            pattern = f"(?P={name})"
        seen.add(name)
        text = text.replace("{" + name + "}", str(pattern), 1)
    return re.compile(text)


@lru_cache(maxsize=65536)
def _day_ns(year: int, month: int, day: int) -> int:
    return calendar.timegm((year, month, day, 0, 0, 0)) * 1_000_000_000


def _span(parts: dict[str, str | None]) -> tuple[int | None, int | None] | None:
    """Return the span that a name's date says, (None, None) without a date, None for an impossible date."""
    if parts.get("year") is None:
        return None, None
    return _dated_span(*(parts.get(name) for name in ("year", "julday", "month", "day", "hour")))


@lru_cache(maxsize=100_000)
def _dated_span(
    year_text: str | None, julday_text: str | None, month_text: str | None, day_text: str | None, hour: str | None
) -> tuple[int, int] | None:
    parts = {"year": year_text, "julday": julday_text, "month": month_text, "day": day_text, "hour": hour}
    year = int(parts["year"] or 0)
    if not MIN_YEAR <= year <= MAX_YEAR:
        return None
    try:
        if parts.get("julday") is not None:
            julday = int(parts["julday"] or 0)
            if not 1 <= julday <= 366:
                return None
            start, length = _day_ns(year, 1, 1) + (julday - 1) * DAY_NS, DAY_NS
        elif parts.get("month") is not None and parts.get("day") is not None:
            datetime(year, int(parts["month"] or 0), int(parts["day"] or 0), tzinfo=UTC)
            start, length = _day_ns(year, int(parts["month"] or 0), int(parts["day"] or 0)), DAY_NS
        elif parts.get("month") is not None:
            month = int(parts["month"] or 0)
            start = _day_ns(year, month, 1)
            length = calendar.monthrange(year, month)[1] * DAY_NS
        else:
            start = _day_ns(year, 1, 1)
            length = _day_ns(year + 1, 1, 1) - start
    except ValueError:
        return None
    if parts.get("hour") is not None:
        start, length = start + int(parts["hour"] or 0) * DAY_NS // 24, DAY_NS // 24
    return start, start + length
