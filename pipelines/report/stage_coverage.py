"""Reads what was recorded, and what became of it: coverage by station and day, outcomes by channel and day."""

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from pipelines.report.stage_reading import read_ahead
from pipelines.report.stage_tasks import map_tasks
from pipelines.report.words import count_words
from pipelines.workspace import tables
from pipelines.workspace.bundles import list_with_bundles
from pipelines.workspace.ledger import MarkerName, read_detection_marker
from pipelines.workspace.outcomes import TIMED, Outcome
from pipelines.workspace.storage import Store

COVERAGE_STATIONS = 60
COVERAGE_CHANNELS = 60


def read_coverage(store: Store) -> tuple[pd.DataFrame, str]:
    """Return the recorded part of each day by station, from the markers of the detection, and what else they say.

    Columns `station`, `day`, `fraction` (of the day, of the station's best channel); at most `COVERAGE_STATIONS`
    stations are read: what bundles have copies of here, the others as Ray tasks where they are many and Ray runs.
    """
    listed = list_with_bundles(store, "detect")
    stations = sorted({_station(name) for name in listed.names()})
    shown = set(stations[:COVERAGE_STATIONS])
    listed.keep(lambda name: _station(name) in shown)
    read = [_sum_up(listed.take_copies())]
    wanted = list(listed.names())
    parts = [wanted[start : start + _MARKERS_A_TASK] for start in range(0, len(wanted), _MARKERS_A_TASK)]
    read += map_tasks(lambda part: _read_markers(store, part), parts)
    gaps = sum(found for _, found, _ in read)
    quarantined = {key for _, _, keys in read for key in keys}
    rows = pd.concat([_NO_SECONDS, *(found for found, _, _ in read)])
    # In one order, the sums have the same bits wherever the markers were read.
    rows = rows.sort_values(list(_NO_SECONDS.columns))
    rows = rows.groupby(["station", "day", "channel"], sort=True)["seconds"].sum().reset_index()
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


_MARKERS_A_TASK = 1024
_NO_SECONDS = pd.DataFrame([], columns=["station", "day", "channel", "seconds"]).astype({"seconds": float})


def _station(name: MarkerName) -> str:
    return f"{name.network}.{name.station}"


def _read_markers(store: Store, names: Sequence[MarkerName]) -> tuple[pd.DataFrame, int, set[str]]:
    """Return what `_sum_up` does of some markers, which are read."""
    markers = read_ahead(lambda one: read_detection_marker(store, "detect", one), names)
    return _sum_up(zip(names, markers, strict=True))


def _sum_up(markers: Iterable[tuple[MarkerName, dict[str, Any]]]) -> tuple[pd.DataFrame, int, set[str]]:
    """Return recorded seconds by station, day and channel, the number of gaps, and the files that cannot be read."""
    rows: list[tuple[str, str, str, float]] = []
    gaps = 0
    quarantined: set[str] = set()
    for name, marker in markers:
        gaps += int(marker.get("gaps", 0))
        quarantined.update(str(entry["key"]) for entry in marker.get("quarantined", []))
        rows += [
            (_station(name), entry["day"], entry["channel"], float(entry["seconds"]))
            for entry in marker.get("coverage", [])
        ]
    return pd.DataFrame(rows, columns=list(_NO_SECONDS)), gaps, quarantined


def read_channels(store: Store) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """Return what became of each channel's recordings, from `availability/`: for the figure of `channels.py`.

    The first table has `channel` (network.station.location.channel), `day` and `fraction` (used part of the day), the
    second the seconds by outcome, a row a channel; the sentence says how many are shown. At most `COVERAGE_CHANNELS`
    channels are, in order of their names; of all others only the names are kept.
    """
    files = [item.path for item in tables.list_shards(store, "availability")]
    found = list(map_tasks(lambda part: _read_availability(store, part), tables.by_task(files)))
    names = sorted(set().union(*(part.keys() for part in found)))
    shown = names[:COVERAGE_CHANNELS]
    parts = [part[name] for part in found for name in shown if name in part]
    if not parts:
        return pd.DataFrame({"channel": [], "day": [], "fraction": []}), pd.DataFrame(), ""
    rows = pd.concat(parts).groupby(["channel", "day"], sort=True).sum()
    used = (rows[str(Outcome.USED)].clip(upper=86_400) / 86_400).rename("fraction").reset_index()
    words = f"{count_words(len(names), 'channel')}"
    if len(names) > len(shown):
        words += f", of which the first {len(shown)} are shown"
    return used[used["fraction"] > 0], rows.groupby(level="channel", sort=True).sum(), words


def _read_availability(store: Store, files: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Return `channel`, `day` and seconds by outcome, by channel."""
    outcomes = {f"{outcome}_seconds": str(outcome) for outcome in TIMED}
    columns = ["network", "station", "location", "channel", "day", *outcomes]
    found = read_ahead(lambda file: tables.read_table(store, file, columns).to_pandas(), files)
    rows = pd.concat(found, ignore_index=True)
    known = rows[rows["channel"].notna()].rename(columns=outcomes)
    codes = ("network", "station", "location")
    name = known["channel"].astype(str)
    for code in reversed(codes):
        name = known[code].fillna("").astype(str) + "." + name
    known = known.assign(channel=name, day=pd.to_datetime(known["day"]))
    seconds = known.groupby(["channel", "day"], sort=True)[list(outcomes.values())].sum().reset_index()
    return {str(channel): group for channel, group in seconds.groupby("channel", sort=True)}
