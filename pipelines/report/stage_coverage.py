"""Reads what was recorded from the markers of the detection: the coverage of each station and day."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pandas as pd

from pipelines.report.stage_reading import READ_THREADS
from pipelines.report.words import count_words
from pipelines.workspace.ledger import MarkerName, list_markers, read_marker
from pipelines.workspace.storage import Store

COVERAGE_STATIONS = 60


def read_coverage(store: Store) -> tuple[pd.DataFrame, str]:
    """Return the recorded part of each day by station, from the markers of the detection, and what else they say.

    Columns `station`, `day`, `fraction` (of the day, of the station's best channel); at most `COVERAGE_STATIONS`
    stations are read.
    """
    names = list(list_markers(store, "detect"))
    stations = sorted({f"{name.network}.{name.station}" for name in names})
    shown = set(stations[:COVERAGE_STATIONS])
    seconds: dict[tuple[str, str, str], float] = {}
    quarantined: set[str] = set()
    gaps = 0

    def read(name: MarkerName) -> tuple[str, dict[str, Any]]:
        return f"{name.network}.{name.station}", read_marker(store, "detect", name)

    with ThreadPoolExecutor(READ_THREADS) as pool:
        for station, marker in pool.map(read, [name for name in names if f"{name.network}.{name.station}" in shown]):
            gaps += int(marker.get("gaps", 0))
            quarantined.update(str(entry["key"]) for entry in marker.get("quarantined", []))
            for entry in marker.get("coverage", []):
                key = (station, entry["day"], entry["channel"])
                seconds[key] = seconds.get(key, 0.0) + float(entry["seconds"])
    rows = pd.DataFrame(
        [(*key, value) for key, value in seconds.items()], columns=["station", "day", "channel", "seconds"]
    )
    best = rows.groupby(["station", "day"], sort=True)["seconds"].max().reset_index()
    coverage = pd.DataFrame(
        {
            "station": best["station"],
            "day": pd.to_datetime(best["day"]),
            "fraction": best["seconds"].clip(upper=86_400) / 86_400,
        }
    )
    if not len(coverage):
        return coverage, "The workspace has no detection markers, so it is not known what was recorded."
    words = f"{count_words(len(coverage), 'station-day')} with data, {count_words(gaps, 'gap')}"
    words += f", {count_words(len(quarantined), 'file')} that could not be read." if quarantined else "."
    if len(stations) > len(shown):
        words += f" Shown are the first {len(shown)} of {len(stations)} stations, in order of their names."
    return coverage, words
