"""Events by station, cluster and hour of the day (UTC), and where the stations are."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.report.positions import Positions

HOURS = 24

Cells = Mapping[tuple[int, int], int]
"""Events by cluster and hour."""


@dataclass(frozen=True)
class EventCounts:
    """Events by station, cluster and hour of the day."""

    sites: tuple[str, ...]
    """network.station, sorted."""
    clusters: tuple[int, ...]
    """Rising."""
    events: NDArray[np.uint32]
    """(site, cluster, 24)"""


def hours_of_day(onset_ns: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return the hour of the day (UTC, 0 to 23) of each onset (ns since 1970)."""
    return (onset_ns // (3600 * 10**9) % HOURS).astype(np.uint8)


def count_cells(onset_ns: NDArray[np.int64], clusters: NDArray[np.int32]) -> dict[tuple[int, int], int]:
    """Return the events of each cluster and hour of the day that has any."""
    cells, events = np.unique(clusters.astype(np.int64) * HOURS + hours_of_day(onset_ns), return_counts=True)
    return {divmod(cell, HOURS): count for cell, count in zip(cells.tolist(), events.tolist(), strict=True)}


def add_cells(parts: Iterable[tuple[str, Cells]]) -> EventCounts:
    """Return the sums of several counts, each of one station."""
    by_site: dict[str, dict[tuple[int, int], int]] = {}
    for site, cells in parts:
        own = by_site.setdefault(site, {})
        for cell, events in cells.items():
            own[cell] = own.get(cell, 0) + events
    sites = tuple(sorted(by_site))
    clusters = tuple(sorted({cluster for own in by_site.values() for cluster, _ in own}))
    place = {cluster: number for number, cluster in enumerate(clusters)}
    found = np.zeros((len(sites), len(clusters), HOURS), dtype=np.uint32)
    for number, site in enumerate(sites):
        for (cluster, hour), events in by_site[site].items():
            found[number, place[cluster], hour] = events
    return EventCounts(sites, clusters, found)


def last_positions(positions: Positions, sites: Sequence[str]) -> list[dict[str, Any]]:
    """Return where stations (network.station) were last, and at how many places in all; those of unknown place are left
    out. The station's own position counts before those of its instruments.
    """
    found = []
    for site in sites:
        network, _, station = site.partition(".")
        known = positions.get((network, station), ())
        if known:
            last = max(known, key=lambda one: (one.end_ns, one.location is None, one.first_ns))
            found.append(
                {
                    "site": site,
                    "latitude_deg": last.latitude_deg,
                    "longitude_deg": last.longitude_deg,
                    "elevation_m": last.elevation_m,
                    # To about 10 m.
                    "places": len({(round(one.latitude_deg, 4), round(one.longitude_deg, 4)) for one in known}),
                }
            )
    return found
