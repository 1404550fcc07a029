"""Network coincidence: what several stations have becomes an event, whatever the shards."""

from pathlib import Path

import numpy as np
import obspy
import pytest
from detection_archives import DAY, detect, make_trace, read_events, write_sds

from pipelines.workspace import tables
from pipelines.workspace.ledger import list_markers, read_marker
from pipelines.workspace.storage import open_store

RATE = 20.0
START = obspy.UTCDateTime("2021-03-01")
# Seconds after the start: seen by all three stations, a few seconds apart; the third lies across midnight.
SHARED = [4_000.0, 50_000.0, DAY - 2.0, DAY + 30_000.0]
DELAYS = {"A": 0.0, "B": 1.5, "C": 3.0}
# Seen by two stations only, and by one.
PAIRS = [20_000.0, DAY + 60_000.0]
ALONE = {"A": [10_000.0, 70_000.0], "B": [30_000.0], "C": [DAY + 10_000.0]}
FLAGS = {
    "detection": {"band_hz": [1, 8], "on": 8, "max_seconds": 20, "coincidence_seconds": 5},
    "window": {"rate_hz": 20, "lead_seconds": 3, "length_seconds": 12},
}


def burst_times(station):
    times = [time + DELAYS[station] for time in SHARED] + ALONE[station]
    return times + ([time + DELAYS[station] for time in PAIRS] if station != "C" else [])


def write_network(root: Path, days: int = 2) -> None:
    """Write three stations with bursts at known times."""
    for number, station in enumerate(DELAYS):
        rng = np.random.default_rng(number)
        data = rng.normal(0, 40, round(2 * DAY * RATE))
        for time in burst_times(station):
            first = round(time * RATE)
            data[first : first + 200] += 4000 * np.exp(-np.arange(200) / 40) * rng.normal(size=200)
        samples = data[: round(days * DAY * RATE)].astype(np.int32)
        write_sds(root, [make_trace(samples, "2021-03-01", RATE, station=station)])


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    root = tmp_path_factory.mktemp("network")
    write_network(root)
    return root


def with_flags(stations, interval="day"):
    return FLAGS | {
        "detection": FLAGS["detection"] | {"coincidence_stations": stations},
        "shards": {"interval": interval},
    }


def found(workspace):
    """Return {(station, nearest tenth of a second after the start)} of the events."""
    events = read_events(workspace)
    seconds = (events["onset"].cast("int64").to_numpy() - START.ns) / 1e9
    return {(station, time) for station, time in zip(events["station"].to_pylist(), seconds, strict=True)}


def assert_found(workspace, expected):
    mine = sorted(found(workspace))
    assert [station for station, _ in mine] == [station for station, _ in sorted(expected)]
    np.testing.assert_allclose([time for _, time in mine], [time for _, time in sorted(expected)], atol=0.3)


@pytest.mark.parametrize("stations", [1, 2, 3])
def test_what_enough_stations_have_becomes_an_event(network, tmp_path, stations):
    detect(network, tmp_path, with_flags(stations))
    expected = {(station, time + DELAYS[station]) for station in DELAYS for time in SHARED}
    if stations < 3:
        expected |= {(station, time + DELAYS[station]) for station in "AB" for time in PAIRS}
    if stations < 2:
        expected |= {(station, time) for station, times in ALONE.items() for time in times}
    assert_found(tmp_path, expected)


@pytest.mark.parametrize("interval", ["hour", "week", "month"])
def test_every_interval_gives_the_same_events(network, tmp_path, interval):
    detect(network, tmp_path / "day", with_flags(2))
    detect(network, tmp_path / "other", with_flags(2, interval))
    mine, theirs = read_events(tmp_path / "other"), read_events(tmp_path / "day")
    assert mine["event_id"].to_pylist() == theirs["event_id"].to_pylist()
    assert tables.rows_hash(mine) == tables.rows_hash(theirs)


def test_new_input_decides_again_what_it_reaches_and_nothing_else(tmp_path):
    archive, workspace = tmp_path / "archive", tmp_path / "workspace"
    write_network(archive)
    late = {path: path.read_bytes() for path in archive.rglob("XX.C..HHZ.D.2021.061")}
    for path in late:
        path.unlink()
    detect(archive, workspace, with_flags(3, "hour"))
    store = open_store(str(workspace))
    triggers = set(list_markers(store, "trigger"))
    before = {(name.station, name.shard): name.fingerprint for name in list_markers(store, "detect")}
    assert not [time for _, time in found(workspace) if time > DAY]
    for path, content in late.items():
        path.write_bytes(content)
    detect(archive, workspace, with_flags(3, "hour"))
    after = {(name.station, name.shard): name.fingerprint for name in list_markers(store, "detect")}
    changed = {shard for shard in after if before.get(shard) != after[shard]}
    # A day is read in whole and into the next: the new file reaches the hours of its own and of the day before, at its
    # station alone. Of the others' events, those of an hour before wait for its triggers.
    redone = {(name.station, name.shard) for name in set(list_markers(store, "trigger")) - triggers}
    assert {station for station, _ in redone} == {"C"}
    assert min(shard for _, shard in redone) == "--.HH.2021-03-01T00.hour"
    assert min(shard for _, shard in changed) == "--.HH.2021-02-28T23.hour"
    expected = {(station, time + DELAYS[station]) for station in DELAYS for time in SHARED}
    assert_found(workspace, expected)
    # The same bytes as all at once.
    detect(archive, tmp_path / "at-once", with_flags(3, "hour"))
    contents = [
        {item.path: open_store(str(root)).read(item.path) for item in open_store(str(root)).walk("events")}
        for root in (workspace, tmp_path / "at-once")
    ]
    assert contents[0] == contents[1]


def test_a_marker_tells_triggers_and_events(network, tmp_path):
    detect(network, tmp_path, with_flags(3))
    store = open_store(str(tmp_path))
    markers = [read_marker(store, "detect", name) for name in list_markers(store, "detect")]
    assert sum(marker["counts"]["events"] for marker in markers) == 3 * len(SHARED)
    total = 3 * len(SHARED) + 2 * len(PAIRS) + sum(map(len, ALONE.values()))
    assert sum(marker["counts"]["triggers"] for marker in markers) == total
    assert all("onsets_ns" not in marker and marker["inputs"] for marker in markers)
    assert len(markers) == sum(1 for _ in list_markers(store, "trigger"))
