"""Where the station of a detection is, as the archive's StationXML says."""

from collections.abc import Mapping, Sequence

from pipelines.workspace.artifacts import StationList, StationPosition

Positions = Mapping[tuple[str, str], Sequence[StationPosition]]
"""Positions by network and station."""


def positions_by_station(stations: StationList | None) -> Positions:
    """Return the positions of a list by network and station; none of no list."""
    found: dict[tuple[str, str], list[StationPosition]] = {}
    for position in stations.positions if stations else ():
        found.setdefault((position.network, position.station), []).append(position)
    return found


def position_at(
    positions: Positions, network: str, station: str, location: str, time_ns: int
) -> StationPosition | None:
    """Return where a station's instruments of a location code are at a time (ns since 1970, UTC); None where unknown.

    Without an epoch of the location code, the station's own position counts.
    """
    there = [one for one in positions.get((network, station), ()) if one.first_ns <= time_ns < one.end_ns]
    own = [one for one in there if one.location == location]
    return next(iter(own or [one for one in there if one.location is None]), None)
