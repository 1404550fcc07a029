"""`firnline detect` as its user runs it: exit codes, sentences, resume, growth, quarantine, buckets."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import obspy
import pytest
from job_session import kill_session

from jobs import detect as detect_job
from jobs import status as status_job
from pipelines import config as configuration
from pipelines.archive.manifest import build_manifest
from pipelines.detect.stage_archive import open_archive
from pipelines.detect.stage_status import read_status
from pipelines.runtime.errors import InputError
from pipelines.tracking.runs import finished_runs
from pipelines.tracking.server import open_tracking
from pipelines.workspace import s3_requests, tables
from pipelines.workspace.bundles import list_with_bundles
from pipelines.workspace.ledger import list_markers, read_marker
from pipelines.workspace.storage import open_store
from pipelines.workspace.workspace import open_workspace

FLAGS = [
    *("--detection.band_hz", "[1, 8]", "--detection.max_seconds", "20"),
    *("--window.rate_hz", "20", "--window.lead_seconds", "3", "--window.length_seconds", "12"),
]
DAYS = 3


def write_archive(root: Path, days: int = DAYS) -> None:
    """Write day files of one component at 20 Hz with a burst an hour."""
    rng = np.random.default_rng(4)
    for day in range(days):
        data = rng.normal(0, 50, 86400 * 20)
        for place in range(20_000, 86400 * 20 - 1000, 72_000):
            data[place : place + 600] += 3000 * np.exp(-np.arange(600) / 100) * rng.normal(size=600)
        trace = obspy.Trace(data.astype(np.int32), {"network": "XX", "station": "0101", "channel": "HHZ"})
        trace.stats.sampling_rate = 20.0
        trace.stats.starttime = obspy.UTCDateTime(2022, 1, 1) + day * 86400
        folder = root / "2022/XX/0101/HHZ.D"
        folder.mkdir(parents=True, exist_ok=True)
        trace.write(str(folder / f"XX.0101..HHZ.D.2022.{day + 1:03d}"), format="MSEED")


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    root = tmp_path_factory.mktemp("archive")
    write_archive(root)
    return root


def run(*words, **environment):
    """Run `firnline detect` in a process of its own; return (exit code, stdout, stderr)."""
    command = [sys.executable, "-m", "jobs.detect", *map(str, words)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env=os.environ | environment
    )
    return done.returncode, done.stdout, done.stderr


def contents(workspace: Path):
    store = open_store(str(workspace))
    return {item.path: store.read(item.path) for item in store.walk("events")}


def assert_bundled(store, ledger, capsys):
    """Check that bundles hold what the markers say, each of them, and that status says the same without."""
    listed = list_with_bundles(store, ledger)
    assert listed.bundles
    copies = dict(listed.take_copies())
    assert not listed.sizes
    names = set(list_markers(store, ledger))
    said = {name: read_marker(store, ledger, name) for name in names}
    left_out = {"inputs", "onsets_ns", "network", "station", "shard", "fingerprint"}
    assert copies == {name: {key: said[name][key] for key in said[name].keys() - left_out} for name in names}
    told = []
    for _ in range(2):
        assert status_job.main([store.url, "--json"]) == 0
        assert status_job.main([store.url]) == 0
        told.append(capsys.readouterr().out)
        store.remove_folder(f"ledger/{ledger}/bundles")
    assert told[0] == told[1]


def test_detection_resumes_grows_and_quarantines(archive, tmp_path, ray_cluster, capsys):
    mine = tmp_path / "archive"
    shutil.copytree(archive, mine)
    workspace = tmp_path / "workspace"
    assert detect_job.main([str(mine), str(workspace), *FLAGS]) == 0
    first = capsys.readouterr().out
    assert "    detection.band_hz: " in first
    store = open_store(str(workspace))
    before = {(name.shard, name.fingerprint) for name in list_markers(store, "detect")}
    rows = contents(workspace)
    events = sum(tables.read_table(store, path).num_rows for path in rows)
    assert events >= DAYS * 23
    assert f"{events} events" in first

    assert_bundled(store, "detect", capsys)

    # The same again: nothing is done, stored settings need not be given again.
    assert detect_job.main([str(mine), str(workspace)]) == 0
    assert "5 done" in capsys.readouterr().out
    assert contents(workspace) == rows

    # A run that was lost before it could tell MLflow is made up for, once, with the sums of the whole ledger.
    experiment = open_tracking(open_workspace(str(workspace), create=False), None, None)
    assert len(finished_runs(experiment, "detect")) == 1
    store.remove("ledger/detect/logged")
    for _ in range(2):
        assert detect_job.main([str(mine), str(workspace)]) == 0
    capsys.readouterr()
    first_run, second_run = finished_runs(experiment, "detect")
    assert first_run.metrics | {"seconds": 0} == second_run.metrics | {"seconds": 0}
    assert first_run.tags["firnline.output.events"] == second_run.tags["firnline.output.events"]

    # Another threshold conflicts, naming the key.
    assert detect_job.main([str(mine), str(workspace), "--detection.on", "5"]) == 2
    assert "detection.on is 5" in capsys.readouterr().err
    assert contents(workspace) == rows

    # A new day invalidates the shards that it reaches and no other; a damaged one is quarantined.
    folder = mine / "2022/XX/0101/HHZ.D"
    damaged = bytearray((folder / "XX.0101..HHZ.D.2022.003").read_bytes())
    damaged[4096 * 5 : 4096 * 5 + 48] = b"?" * 48
    (folder / "XX.0101..HHZ.D.2022.004").write_bytes(bytes(damaged))
    (folder / "XX.0101..HHZ.D.2022.004").write_text("no seismogram at all")
    assert detect_job.main([str(mine), str(workspace)]) == 0
    output = capsys.readouterr().out
    # The third day again, in which nothing is blanked, since the second goes on in it.
    assert (
        "detect: 100.00 % of 1,728,000 samples were used; 1.00 channel-days are in files that cannot be read" in output
    )
    assert status_job.main([str(workspace), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["files"] == {"used": 3, "unreadable": 1, "cannot be used": 0, "not selected": {}}
    assert sum(told["samples"].values()) == DAYS * 86400 * 20
    assert told["seconds"]["unreadable"] == 86400
    assert told["events"] == events
    assert "1 file quarantined" in output
    assert "XX.0101..HHZ.D.2022.004: " in output
    after = {(name.shard, name.fingerprint) for name in list_markers(store, "detect")}
    kept = {shard for shard, _ in before & after}
    assert "--.HH.2022-01-01.day" in kept
    assert "--.HH.2022-01-02.day" in kept
    assert "--.HH.2022-01-03.day" not in kept
    assert contents(workspace) == rows

    # The file goes: its shards go, and what was is again.
    (folder / "XX.0101..HHZ.D.2022.004").unlink()
    assert detect_job.main([str(mine), str(workspace)]) == 0
    assert {(name.shard, name.fingerprint) for name in list_markers(store, "detect")} == before
    assert contents(workspace) == rows
    assert {item.path.rpartition("/")[2] for item in store.walk("availability")} == {
        f"--.HH.2022-01-0{day}.day.parquet" for day in range(1, DAYS + 1)
    }
    capsys.readouterr()

    # --replace with other settings leaves no stale file beside a new one.
    assert detect_job.main([str(mine), str(workspace), "--shards.interval", "month", "--replace"]) == 0
    assert all(path.endswith(".month.parquet") for path in contents(workspace))

    assert status_job.main([str(workspace), "--plot"]) == 0
    output = capsys.readouterr().out
    assert "0 failed" in output
    assert "XX.0101      2022-01-02  100.00 %" in output
    assert (workspace / "report/coverage.png").read_bytes().startswith(b"\x89PNG")
    assert read_status(store).num_events == events


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interrupted_job_says_so_and_ends_with_130(archive, tmp_path, name):
    command = [sys.executable, "-u", "-m", "jobs.detect", str(archive), str(tmp_path / "workspace"), *FLAGS]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests run in the background of a shell, it has their processes ignore the signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("detect: ") and "shards" in line:
                break
        process.send_signal(signal.Signals[name])
        _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "interrupted; run the same command again to continue" in said
    assert "Traceback" not in said
    assert "SIGTERM received" not in said


def test_a_bucket_gives_the_same_bytes_as_a_disk(archive, tmp_path, moto_s3, mlflow_server, ray_cluster):
    s3_requests._s3.cache_clear()
    bucket = open_store(f"{moto_s3.url}/archive")
    for path in archive.rglob("*HHZ.D.2022*"):
        bucket.write(path.relative_to(archive).as_posix(), path.read_bytes())
    workspace = f"{moto_s3.url}/workspace"
    assert detect_job.main([f"{moto_s3.url}/archive", workspace, *FLAGS, "--mlflow", mlflow_server]) == 0
    assert detect_job.main([str(archive), str(tmp_path / "workspace"), *FLAGS]) == 0
    store = open_store(workspace)
    there = {item.path: store.read(item.path) for item in store.walk("events")}
    assert there == contents(tmp_path / "workspace")
    assert there
    name = next(list_markers(store, "detect"))
    assert read_marker(store, "detect", name)["version"]


def test_a_network_coincidence_keeps_what_two_stations_have(archive, tmp_path, ray_cluster, capsys):
    mine, workspace = tmp_path / "archive", tmp_path / "workspace"
    for station in ("0101", "0202"):
        folder = mine / f"2022/XX/{station}/HHZ.D"
        folder.mkdir(parents=True)
        for day in (1, 2) if station == "0101" else (1,):
            trace = obspy.read(archive / f"2022/XX/0101/HHZ.D/XX.0101..HHZ.D.2022.{day:03d}")[0]
            trace.stats.station = station
            trace.write(str(folder / f"XX.{station}..HHZ.D.2022.{day:03d}"), format="MSEED")
    words = [str(mine), str(workspace), *FLAGS, "--detection.coincidence_stations", "2"]
    assert detect_job.main(words) == 0
    said = capsys.readouterr().out
    assert "events of at least 2 stations within 10 s" in said
    store = open_store(str(workspace))
    onsets = [tables.read_table(store, path, ["onset"]) for path in contents(workspace)]
    assert {len(part) for part in onsets} == {len(onsets[0])}
    assert len(onsets) == 2
    assert max(part["onset"].cast("int64").to_numpy().max() for part in onsets) < obspy.UTCDateTime(2022, 1, 2).ns
    rows = contents(workspace)
    assert read_status(store).num_events == sum(map(len, onsets))
    for ledger in ("trigger", "detect"):
        assert_bundled(store, ledger, capsys)
    # The same again does nothing; another number of stations conflicts by name.
    assert detect_job.main([str(mine), str(workspace)]) == 0
    assert "events of at least" not in capsys.readouterr().out
    assert contents(workspace) == rows
    assert detect_job.main([*words[:-1], "1"]) == 2
    assert "detection.coincidence_stations is 1" in capsys.readouterr().err


def test_a_first_look_takes_any_folder_of_recordings_as_it_is(tmp_path, ray_cluster, capsys):
    """One file fits a layout, two do not; rates of 20 and 40 Hz, one component each, and notes beside them."""
    rng = np.random.default_rng(1)
    folder = tmp_path / "archive"
    folder.mkdir()
    for name, rate, channel in [("CIHEC__BHN___2022002.ms", 40, "BHN"), ("a.mseed", 20, "BHZ"), ("b.mseed", 20, "BHE")]:
        data = rng.normal(0, 50, 3600 * rate)
        for place in range(600 * rate, 3600 * rate, 600 * rate):
            data[place : place + 10 * rate] += (
                3000 * np.exp(-np.arange(10 * rate) / (2 * rate)) * rng.normal(size=10 * rate)
            )
        header = {"network": "CI", "station": f"A{rate}{channel[2]}", "channel": channel, "sampling_rate": rate}
        obspy.Trace(data.astype(np.int32), header).write(str(folder / name), format="MSEED")
    (folder / "notes.txt").write_text("no seismogram")
    configuration = Path(__file__).resolve().parent.parent.parent / "configs/first-look.yaml"
    assert detect_job.main([str(folder), str(tmp_path / "workspace"), "--config", str(configuration)]) == 0
    said = capsys.readouterr().out
    assert "detection.band_hz [1, 8], window.rate_hz 40" in said
    assert "4 files (flat)" in said or "3 files (flat)" in said
    for station in ("CI.A40N", "CI.A20Z", "CI.A20E"):
        found = int(said.partition(f"{station} ")[2].split(",")[0].split()[0])
        assert found >= 5, station
    # A component that never triggers is named, not passed over.
    words = ["--detection.trigger_components", "Z", "--detection.band_hz", "[1, 8]", "--window.rate_hz", "20"]
    words += ["--archive.allow_empty_stations", "true"]
    assert detect_job.main([str(folder), str(tmp_path / "vertical"), *words]) == 0
    assert "no component of detection.trigger_components Z" in capsys.readouterr().out


def test_channels_of_a_rate_that_carries_the_band_are_found_behind_others_that_do_not(archive, tmp_path):
    mine = tmp_path / "archive"
    shutil.copytree(archive, mine)
    (mine / "readme.txt").write_text("not in the layout")
    folder = mine / "2021/XX/0101/BHZ.D"
    folder.mkdir(parents=True)
    # More files of the slow channel than the probe's, and listed before the fast one's.
    for day in range(1, 100):
        header = {"network": "XX", "station": "0101", "channel": "BHZ", "sampling_rate": 1.0}
        trace = obspy.Trace(np.arange(100, dtype=np.int32), header)
        trace.stats.starttime = obspy.UTCDateTime(2021, 1, 1) + day * 86400
        trace.write(str(folder / f"XX.0101..BHZ.D.2021.{day + 1:03d}"), format="MSEED")
    workspace = open_workspace(str(tmp_path / "workspace"), create=True)
    settings = configuration.resolve({"detection": {"band_hz": [1, 8]}, "archive": {"layout": "sds"}})
    found = open_archive(str(mine), workspace, settings)
    assert found.manifest.unusable() == [("readme.txt", "its name does not fit archive.layout sds")]
    slow = configuration.with_keys(settings, {"archive": {"channel": "BHZ"}})
    with pytest.raises(InputError, match="the recordings have 1 samples/s"):
        open_archive(str(mine), workspace, slow)


def test_a_flat_archive_is_read_where_its_channels_are_wanted(archive, tmp_path):
    source = archive / "2022/XX/0101/HHZ.D/XX.0101..HHZ.D.2022.001"
    trace = obspy.read(source)[0]
    for channel in ("HHZ", "HNZ", "HHE"):
        trace.stats.channel = channel
        trace.write(str(tmp_path / f"{channel}.mseed"), format="MSEED")
    for wanted, files in (("*", 3), ("HH?", 2), ("?HZ", 1), ("HHE,HNZ", 2)):
        settings = configuration.resolve({"archive": {"layout": "flat", "channel": wanted}}).archive
        assert build_manifest(open_store(str(tmp_path)), settings).usable().num_rows == files


def test_a_bucket_workspace_needs_a_tracking_server(archive, moto_s3, monkeypatch, capsys):
    s3_requests._s3.cache_clear()
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert detect_job.main([str(archive), f"{moto_s3.url}/workspace", *FLAGS]) == 2
    assert "--mlflow" in capsys.readouterr().err


class LoginFirst(BaseHTTPRequestHandler):
    """A gateway in front of MLflow that lets health checks through, and nobody else in."""

    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        """Say nothing."""


@pytest.fixture
def gateway():
    with ThreadingHTTPServer(("127.0.0.1", 0), LoginFirst) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def bad_inputs(archive, tmp_path):
    empty, text, flat = tmp_path / "empty", tmp_path / "text", tmp_path / "flat"
    flat.mkdir()
    shutil.copy(archive / "2022/XX/0101/HHZ.D/XX.0101..HHZ.D.2022.001", flat / "one.mseed")
    empty.mkdir()
    text.mkdir()
    (text / "notes.txt").write_text("no seismogram")
    broken = tmp_path / "broken" / "2022/XX/0101/HHZ.D"
    broken.mkdir(parents=True)
    (broken / "XX.0101..HHZ.D.2022.001").write_bytes(b"\0" * 5000)
    (tmp_path / "file").write_text("x")
    new = tmp_path / "new"
    yield [tmp_path / "missing", new], "does not exist"
    yield [empty, new], "is empty"
    yield [text, new], "can be read"
    yield [tmp_path / "broken", new], "XX.0101..HHZ.D.2022.001"
    yield [archive, new, "--archive.station", "NONE"], "not selected"
    yield [archive, new, "--detection.sta_seconds", "20"], "detection.sta_seconds 20"
    yield [archive, new, "--detection.band_hz", "[1, 15]"], "detection.band_hz"
    yield [archive, new, "--window.lead_seconds", "99"], "window.lead_seconds 99"
    yield [archive, new, "--archive.start", "2022-13-01"], "archive.start"
    short = ["--window.length_seconds", "0.001", "--window.lead_seconds", "0"]
    yield [archive, new, *short], "window.length_seconds 0.001 at rate_hz 100 is 0 samples"
    averages = ["--detection.sta_seconds", "0.5", "--detection.lta_seconds", "0.51"]
    yield [archive, new, *FLAGS, *averages], "detection.sta_seconds 0.5 and detection.lta_seconds 0.51 are 10 and 10"
    yield [flat, new, *FLAGS, "--archive.layout", "flat", "--archive.channel", "HHE"], "channel, start and end select"
    yield [archive, new, "--detection.typo", "1"], "detection.typo"
    yield [archive, new, "--typo", "1"], "--typo"
    yield [archive, new, "--config", tmp_path / "no.yaml"], "no.yaml"
    yield [archive], "WORKSPACE"
    yield [archive, tmp_path / "file"], "file"
    yield [archive, tmp_path / "file" / "new", *FLAGS], "file/new"
    yield [archive, new / "below", *FLAGS, "--mlflow", "http://127.0.0.1:9"], "MLflow"
    yield [archive, new, *FLAGS, "--mlflow", f"sqlite:///{tmp_path}/no/mlflow.db"], "no/mlflow.db"
    yield [archive, new, *FLAGS, "--mlflow", "postgresql://me:secret@127.0.0.1:9/x"], "postgresql://***@"
    yield [archive, new, *FLAGS, "--archive.stationxml", tmp_path / "no.xml", "--detection.units", "m/s"], "no.xml"
    yield [archive, new, *FLAGS, "--archive.stationxml", tmp_path / "no.xml"], "no.xml"


def test_a_tracking_server_that_refuses_us_is_said_before_detection(archive, tmp_path, gateway, capsys):
    assert detect_job.main([str(archive), str(tmp_path / "new"), *FLAGS, "--mlflow", gateway]) == 2
    said = capsys.readouterr().err
    assert f"MLflow at {gateway} refuses" in said
    assert "401" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_bad_input_gives_one_sentence_and_exit_code_2_and_writes_nothing(archive, tmp_path, capsys):
    for words, expected in bad_inputs(archive, tmp_path):
        assert detect_job.main([str(word) for word in words]) == 2, words
        said = capsys.readouterr().err.strip()
        assert expected in said, (words, said)
        assert "\n" not in said
        assert not (tmp_path / "new").exists(), words
    code, _, said = run(tmp_path / "missing", tmp_path / "new")
    assert code == 2
    assert "Traceback" not in said
    # In a process of its own, since this one may be connected to a Ray.
    code, _, said = run(archive, tmp_path / "new", *FLAGS, "--address", "127.0.0.1:9")
    assert (code, (tmp_path / "new").exists()) == (2, False)
    assert "--address 127.0.0.1:9" in said


def test_a_station_that_has_files_and_gives_nothing_is_an_error_unless_allowed(archive, tmp_path, ray_cluster, capsys):
    mine = tmp_path / "archive"
    shutil.copytree(archive, mine)
    for station, text in (("0102", "no seismogram at all"), ("0103", "")):
        folder = mine / f"2022/XX/{station}/HHZ.D"
        folder.mkdir(parents=True)
        (folder / f"XX.{station}..HHZ.D.2022.001").write_text(text)
    workspace = str(tmp_path / "workspace")
    for _ in range(2):
        assert detect_job.main([str(mine), workspace, *FLAGS]) == 1
        said = capsys.readouterr()
        assert "2 stations have files, but no sample that can be used" in said.out
        assert "XX.0102: 1 file\n" in said.out
        assert "station XX.0102 and 1 more station: nothing in 1 file can be used" in said.err
    assert detect_job.main([str(mine), workspace, "--archive.allow_empty_stations", "true"]) == 0


def everything(workspace: Path) -> dict[str, bytes]:
    """Return every file of what was detected and of what is derived from it, but for what MLflow and a job keep."""
    store = open_store(str(workspace))
    folders = ("events", "availability", "ledger", "plan", "config", "labels", "report")
    return {item.path: store.read(item.path) for folder in folders for item in store.walk(folder)}


def test_a_detection_that_replaces_another_is_killed_and_continues_beside_it(archive, tmp_path, ray_cluster, capsys):
    workspace, fresh = tmp_path / "workspace", tmp_path / "fresh"
    assert detect_job.main([str(archive), str(workspace), *FLAGS, "--shards.interval", "day"]) == 0
    store = open_store(str(workspace))
    store.write("labels/network=XX/station=0101/x.parquet", b"labels")
    store.write("report/index.html", b"page")
    before = everything(workspace)
    assert any(path.startswith("availability") for path in before)
    other = [*FLAGS, "--detection.on", "5", "--shards.interval", "hour"]
    command = [sys.executable, "-m", "jobs.detect", str(archive), str(workspace), *other, "--replace"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        while not list((workspace / "replacing/detect/ledger/detect").glob("network=XX/station=0101/*.json")):
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        kill_session(process)
    assert everything(workspace) == before
    assert open_workspace(str(workspace), create=False).read_state().shard_interval == "day"
    capsys.readouterr()
    assert status_job.main([str(workspace), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["shards"]["done"] == DAYS + 2
    assert told["replacement"]["shards"]["done"] > 0
    # The same command goes on where the other was, and only then all that was before goes.
    assert detect_job.main([str(archive), str(workspace), *other, "--replace"]) == 0
    said = capsys.readouterr().out
    assert f"{told['replacement']['shards']['done']} done" in said
    assert detect_job.main([str(archive), str(fresh), *other]) == 0
    after, expected = everything(workspace), everything(fresh)
    # Bundles of copies are called by the time, and one that was killed wrote none.
    paths, expected_paths = ({path for path in found if "/bundles/" not in path} for found in (after, expected))
    assert paths == expected_paths
    for path, content in expected.items():
        if path.startswith(("events", "availability")):
            assert after[path] == content
    assert not (workspace / "replacing").exists()
    assert open_workspace(str(workspace), create=False).read_state().shard_interval == "hour"


def test_a_detection_that_fails_to_replace_another_leaves_it_whole(archive, tmp_path, ray_cluster, capsys):
    workspace, mine = tmp_path / "workspace", tmp_path / "archive"
    shutil.copytree(archive, mine)
    assert detect_job.main([str(mine), str(workspace), *FLAGS]) == 0
    before = everything(workspace)
    # A station whose files hold nothing that can be used.
    folder = mine / "2022/XX/0202/HHZ.D"
    folder.mkdir(parents=True)
    (folder / "XX.0202..HHZ.D.2022.001").write_bytes(b"nothing of use")
    assert detect_job.main([str(mine), str(workspace), *FLAGS, "--detection.on", "5", "--replace"]) == 1
    assert "archive.allow_empty_stations" in capsys.readouterr().err
    assert everything(workspace) == before
    accepted = ["--archive.allow_empty_stations", "true"]
    assert detect_job.main([str(mine), str(workspace), *FLAGS, "--detection.on", "5", "--replace", *accepted]) == 0
    assert everything(workspace) != before
    assert not (workspace / "replacing").exists()
