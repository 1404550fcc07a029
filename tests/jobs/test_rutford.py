"""The whole chain on an hour of real recordings: flat files beside others, 1000 Hz, two network codes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import obspy
import pyarrow as pa
import pytest
from obspy.signal.filter import bandpass
from obspy.signal.trigger import recursive_sta_lta, trigger_onset

from pipelines.config import read_yaml, resolve
from pipelines.workspace import tables
from pipelines.workspace.storage import open_store

ROOT = Path(__file__).resolve().parent.parent.parent
STATIONS = {"ZZ.ST01", "ZZ.ST04", "YG.ST08"}


MOST_SECONDS = 600.0
"""What two cores may take for the hour of three stations."""


@pytest.fixture(scope="module")
def rutford(shared_data, tmp_path_factory):
    workspace = tmp_path_factory.mktemp("rutford") / "workspace"
    command = [sys.executable, "-m", "jobs.run", str(shared_data / "rutford2009"), str(workspace)]
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    done = subprocess.run(
        [*command, "--config", str(ROOT / "configs/rutford.yaml")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=MOST_SECONDS,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return workspace, done.stdout


def read(workspace, table, columns=None):
    store = open_store(str(workspace))
    parts = [tables.read_table(store, item.path, columns) for item in tables.list_shards(store, table)]
    return pa.concat_tables(parts)


def p_picks(folder):
    """Return {station: P time} of the located icequake."""
    picks = {}
    for line in (folder / "loc.20090121.042009.grid0.loc.hyp").read_text().splitlines():
        words = line.split()
        if len(words) > 8 and words[4] == "P" and words[6].isdigit():
            day = obspy.UTCDateTime(words[6])
            picks[words[0]] = day + int(words[7][:2]) * 3600 + int(words[7][2:]) * 60 + float(words[8])
    return picks


@pytest.mark.timeout(700)
def test_icequakes_are_found_at_all_stations_the_located_one_among_them(rutford, shared_data):
    workspace, _ = rutford
    events = read(
        workspace, "events", ["network", "station", "onset", "units", "sampling_rate", "source_sampling_rate"]
    )
    stations = [f"{n}.{s}" for n, s in zip(events["network"].to_pylist(), events["station"].to_pylist(), strict=True)]
    counts = {station: stations.count(station) for station in set(stations)}
    assert set(counts) == STATIONS
    assert min(counts.values()) >= 100
    onsets = events["onset"].cast("int64").to_numpy()
    picks = p_picks(shared_data / "rutford2009")
    for station in STATIONS:
        mine = onsets[[code == station for code in stations]]
        pick = picks[station.partition(".")[2]].ns
        assert np.abs(mine - pick).min() < 60_000_000, station


def test_every_output_is_there(rutford):
    workspace, said = rutford
    events, labels = read(workspace, "events", ["event_id"]), read(workspace, "labels", ["event_id", "cluster"])
    embeddings = read(workspace, "embeddings", ["event_id"])
    ids = sorted(events["event_id"].to_pylist())
    assert (
        ids == sorted(set(ids)) == sorted(labels["event_id"].to_pylist()) == sorted(embeddings["event_id"].to_pylist())
    )
    assert len(set(labels["cluster"].to_pylist())) > 1
    assert (workspace / "report/index.html").stat().st_size > 100_000
    for name in ("2009-01.xml", "2009-01.csv", "2009-01.parquet"):
        assert (workspace / "catalog" / name).stat().st_size > 1000
    assert (workspace / "mlflow.db").exists()
    assert "3 files cannot be used" in said
    assert f"{len(ids)} events" in said


def test_onsets_are_those_of_obspys_endless_pass(rutford, shared_data, record_property):
    workspace, _ = rutford
    text = (ROOT / "configs/rutford.yaml").read_text()
    detection = resolve(read_yaml(text, name="rutford.yaml")).detection
    events = read(workspace, "events", ["station", "onset"])
    onsets = events["onset"].cast("int64").to_numpy()
    for station in ("ST01", "ST04", "ST08"):
        trace = obspy.read(shared_data / "rutford2009" / f"2009021_040000_{station}_Z2.m")[0]
        rate = trace.stats.sampling_rate
        x = bandpass(trace.data.astype(float) - float(trace.data[0]), *detection.band_hz, rate, detection.corners)
        ratio = recursive_sta_lta(x, round(detection.sta_seconds * rate), round(detection.lta_seconds * rate))
        found = trigger_onset(ratio, detection.on, detection.off, max_len=round(detection.max_seconds * rate))
        theirs, before = [], None
        for on, off in found:
            if before is None or (on - before) / rate >= detection.merge_seconds:
                theirs.append(trace.stats.starttime.ns + round(on / rate * 1e9))
            before = off
        mine = onsets[np.array(events["station"].to_pylist()) == station]
        agreeing = np.isin(theirs, mine).mean()
        record_property("figure", f"onsets equal to ObsPy's, Rutford {station}: {agreeing:.2%} of {len(theirs)}")
        assert agreeing >= 0.999
        assert len(mine) == len(theirs)
