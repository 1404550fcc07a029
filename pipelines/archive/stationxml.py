"""Read StationXML, of services and of strangers."""

import io
import math
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_STATIONXML_BYTES = 2**30
# In others "<!DOCTYPE" may be written in other bytes.
_ENCODING = re.compile(rb"\A[^>]{0,200}?encoding\s*=\s*[\"']([^\"']*)[\"']")
_LIKE_ASCII = re.compile(rb"(utf-?8|(us-)?ascii|iso-?8859-\d+|latin-?1|windows-125\d)", re.IGNORECASE)


def read_stationxml(content: bytes) -> Any:
    """Return the ObsPy inventory in a StationXML file's bytes; ValueError where it is not one."""
    from obspy import read_inventory

    declared = _ENCODING.match(content)
    if b"\0" in content or (declared and not _LIKE_ASCII.fullmatch(declared[1])):
        raise ValueError("not a StationXML file that is read: it must be in UTF-8 or Latin-1")
    if b"FDSNStationXML" not in content:
        raise ValueError("not a StationXML file: it has no element FDSNStationXML")
    # StationXML needs neither, and both can name other files or make a small file large.
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise ValueError("not a StationXML file: it declares a document type or entities")
    try:
        with warnings.catch_warnings():
            # A newer schema version, or a unit that ObsPy does not know: what matters of it is checked here.
            warnings.simplefilter("ignore")
            return read_inventory(io.BytesIO(content), format="STATIONXML")
    except (AttributeError, KeyError, TypeError):
        # ObsPy's own words for what is not there name its variables.
        raise ValueError("not a StationXML file: an element or attribute that it must have is missing") from None
    except Exception as error:
        raise ValueError(f"not a StationXML file: {' '.join(str(error).split()) or type(error).__name__}") from None


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where the instruments of a station and location code are (WGS 84; degrees, metres), and when."""

    network: str
    station: str
    location: str | None
    """None for the station as a whole."""
    latitude_deg: float
    longitude_deg: float
    elevation_m: float
    first_ns: int
    """Since 1970, UTC."""
    end_ns: int
    """Since 1970, UTC."""


_ALWAYS = (int(np.iinfo(np.int64).min), int(np.iinfo(np.int64).max))


def read_positions(inventory: Any) -> list[Position]:
    """Return where the stations of an ObsPy inventory are, sorted; what is no position on the Earth is left out.

    Epochs of one place are joined to one period.
    """
    periods: dict[tuple[str, str, str, float, float, float], tuple[int, int]] = {}
    for key, period in _epochs(inventory):
        first, end = periods.get(key, period)
        periods[key] = (min(first, period[0]), max(end, period[1]))
    found = []
    for (network, station, location, latitude, longitude, elevation), (first, end) in sorted(periods.items()):
        if abs(latitude) <= 90 and abs(longitude) <= 180 and math.isfinite(elevation):
            found.append(
                Position(
                    network=network,
                    station=station,
                    location=None if location == _STATION else location,
                    latitude_deg=latitude,
                    longitude_deg=longitude,
                    elevation_m=elevation,
                    first_ns=first,
                    end_ns=end,
                )
            )
    return found


_STATION = "\0"


def _epochs(inventory: Any) -> Iterator[tuple[tuple[str, str, str, float, float, float], tuple[int, int]]]:
    for network in inventory:
        for station in network:
            for item in (station, *station.channels):
                location = _STATION if item is station else str(item.location_code or "")
                place = (float(item.latitude), float(item.longitude), float(item.elevation))
                yield (str(network.code), str(station.code), location, *place), _period(item)


def _period(item: Any) -> tuple[int, int]:
    first, end = item.start_date, item.end_date
    return _ns(first, _ALWAYS[0]), _ns(end, _ALWAYS[1])


def _ns(time: Any, otherwise: int) -> int:
    return otherwise if time is None else min(max(int(time.ns), _ALWAYS[0]), _ALWAYS[1])
