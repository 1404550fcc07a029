"""Shards become durable while others are detected: none is lost, and no marker comes before its rows."""

import gc
import gzip
import threading
import weakref
from functools import partial

import pytest
from detection_archives import DAY, make_noise, make_trace, write_sds

from pipelines.archive.manifest import build_manifest
from pipelines.config import resolve
from pipelines.detect import stage_day, stage_shard
from pipelines.detect.response import Responses
from pipelines.detect.stage_day import DayReader
from pipelines.detect.stage_plan import make_plan
from pipelines.detect.stage_shard import BatchDetector, detect_batch
from pipelines.detect.stage_tasks import tasks_of
from pipelines.workspace import s3_requests, storage, tables
from pipelines.workspace.ledger import list_markers, marker_path
from pipelines.workspace.storage import Store, open_store
from pipelines.workspace.workspace import Workspace

NUM_DAYS = 7
FLAGS = {
    "archive": {"spill_seconds": 0},
    "detection": {"band_hz": [1, 8], "max_seconds": 20},
    "window": {"rate_hz": 20, "lead_seconds": 3, "length_seconds": 12},
    "shards": {"interval": "day"},
}


@pytest.fixture(autouse=True)
def _own_filesystem():
    yield
    s3_requests._s3.cache_clear()


@pytest.fixture(scope="module")
def week(tmp_path_factory):
    root = tmp_path_factory.mktemp("week")
    write_sds(root, [make_trace(make_noise(NUM_DAYS * DAY, 20.0, 3, 300), "2021-03-01", 20.0, "BHZ")])
    return root


def batches(archive, workspace, interval="day"):
    """Return what makes a detector, and a batch, for each batch of the archive's tasks."""
    store, space = open_store(str(archive)), Workspace(open_store(str(workspace)))
    config = resolve(FLAGS | {"shards": {"interval": interval}})
    plan = make_plan(build_manifest(store, config.archive), space, config, "")
    return [
        (partial(BatchDetector, store, space.store, config, Responses()), batch)
        for task in tasks_of(plan, 1)
        for batch in task
    ]


def run(archive, workspace):
    return [content for made in batches(archive, workspace) for _, content in detect_batch(*made)]


def uploaded(archive, url, *, packed=False):
    """Return a bucket with the archive's files, gzipped if asked for."""
    bucket = open_store(url)
    for path in archive.rglob("*.D.*"):
        content = path.read_bytes()
        bucket.write(path.relative_to(archive).as_posix(), gzip.compress(content) if packed else content)
    return bucket


def contents(workspace):
    store = open_store(str(workspace))
    return {item.path: store.read(item.path) for item in store.walk("events")}


def test_a_marker_is_written_when_its_rows_are_in_place_and_while_others_are_detected(week, tmp_path, monkeypatch):
    seen, threads = [], set()

    def write_marker(store, ledger, name, content):
        if content["counts"]["events"]:
            seen.append(store.exists(tables.shard_path("events", name.network, name.station, name.shard)))
        threads.add(threading.current_thread() is threading.main_thread())
        store.write(marker_path(ledger, name), b"{}")

    monkeypatch.setattr(stage_shard, "write_marker", write_marker)
    found = run(week, tmp_path)
    assert len(found) == NUM_DAYS
    assert seen == [True] * NUM_DAYS
    assert threads == {False}


@pytest.mark.parametrize("step", ["rows begin", "rows end", "marker"])
def test_a_shard_that_cannot_be_published_is_tried_again(week, tmp_path, monkeypatch, step):
    run(week, tmp_path / "undisturbed")
    if step == "rows end":
        owner, name, number = storage, "flush", 4
    else:
        owner, name, number = Store, {"rows begin": "atomic_file", "marker": "write"}[step], 3
    whole, calls = getattr(owner, name), []

    def fails_once(*args):
        calls.append(args)
        if len(calls) == number:
            raise OSError("the disk is full")
        return whole(*args)

    monkeypatch.setattr(owner, name, fails_once)
    assert not any("error" in content for content in run(week, tmp_path / "disturbed"))
    assert len(calls) > number
    assert contents(tmp_path / "disturbed") == contents(tmp_path / "undisturbed")
    assert not list((tmp_path / "disturbed").rglob(".partial-*"))


def test_a_shard_that_fails_twice_is_named_and_has_no_marker_and_the_others_have(week, tmp_path, monkeypatch):
    whole = Store.write

    def fails(self, path, content):
        if "2021-03-03" in path:
            raise OSError("the disk is full")
        whole(self, path, content)

    monkeypatch.setattr(Store, "write", fails)
    found = run(week, tmp_path)
    assert [content["error"] for content in found if "error" in content] == ["OSError: the disk is full"]
    days = {name.shard.split(".")[2] for name in list_markers(open_store(str(tmp_path)), "detect")}
    assert days == {f"2021-03-0{day}" for day in range(1, NUM_DAYS + 1)} - {"2021-03-03"}


@pytest.mark.parametrize(("module", "failing"), [(stage_day, "find_onsets"), (stage_shard, "write_marker")])
def test_shards_that_fail_leave_no_day_in_memory(week, tmp_path, monkeypatch, module, failing):
    detectors = []

    def remember(self, *args):
        whole(self, *args)
        detectors.append(weakref.ref(self))

    def fail(*_args, **_keys):
        raise OSError("no")

    whole = BatchDetector.__init__
    monkeypatch.setattr(BatchDetector, "__init__", remember)
    monkeypatch.setattr(module, failing, fail)
    monkeypatch.setattr(stage_shard.time, "sleep", lambda _seconds: None)
    gc.collect()
    gc.disable()
    try:
        for made in batches(week, tmp_path):
            for _, content in detect_batch(*made):
                assert content["error"] == "OSError: no"
                assert sum(detector() is not None for detector in detectors) <= 2
    finally:
        gc.enable()
    assert len(detectors) >= NUM_DAYS


@pytest.mark.parametrize("packed", [False, True])
def test_files_of_a_bucket_are_fetched_once_and_before_they_are_needed(week, tmp_path, moto_s3, monkeypatch, packed):
    s3_requests._s3.cache_clear()
    bucket = uploaded(week, f"{moto_s3.url}/archive", packed=packed)
    events = []
    fetch, scan = Store.read_checked, stage_day.find_onsets

    def read_checked(self, item, *rest):
        events.append(("fetch", item.path))
        return fetch(self, item, *rest)

    def find_onsets(*args, **kwargs):
        events.append(("scan", ""))
        return scan(*args, **kwargs)

    monkeypatch.setattr(Store, "read_checked", read_checked)
    monkeypatch.setattr(stage_day, "find_onsets", find_onsets)
    makers = batches(bucket.url, tmp_path / "bucket")
    events.clear()
    for made in makers:
        assert not any("error" in content for _, content in detect_batch(*made))
    fetched = [path for kind, path in events if kind == "fetch"]
    files_of_batches = sum(len(batch.files) for _, batch in makers)
    assert len(fetched) == files_of_batches
    first_scan = events.index(("scan", ""))
    assert len([kind for kind, _ in events[:first_scan] if kind == "fetch"]) >= 3
    monkeypatch.undo()
    run(week, tmp_path / "disk")
    assert contents(tmp_path / "bucket") == contents(tmp_path / "disk")


def test_the_next_day_is_decoded_while_one_is_scanned(week, tmp_path, monkeypatch):
    read, scan = DayReader._read, stage_day.find_onsets
    days_read, waited = [], []
    more = threading.Condition()

    def remember(self, anchor_ns, *bounds):
        result = read(self, anchor_ns, *bounds)
        with more:
            days_read.append(anchor_ns)
            more.notify_all()
        return result

    def find_onsets(*args, anchor_ns, **keys):
        with more:
            if anchor_ns not in last_days:
                waited.append(more.wait_for(lambda: days_read[-1] > anchor_ns, timeout=60))
        return scan(*args, anchor_ns=anchor_ns, **keys)

    monkeypatch.setattr(DayReader, "_read", remember)
    monkeypatch.setattr(stage_day, "find_onsets", find_onsets)
    makers = batches(week, tmp_path)
    last_days = {max(new_detector(batch).reader.owned) for new_detector, batch in makers}
    assert not any("error" in content for made in makers for _, content in detect_batch(*made))
    assert waited == [True] * (NUM_DAYS - len(makers))


def test_a_day_that_could_not_be_read_ahead_is_read_again_and_costs_no_shard_an_attempt(week, tmp_path, monkeypatch):
    run(week, tmp_path / "undisturbed")
    read, calls = Store.read_checked, []

    def fails_once(*args):
        calls.append(args)
        if len(calls) == 4:
            raise OSError("the disk is away")
        return read(*args)

    monkeypatch.setattr(Store, "read_checked", fails_once)
    monkeypatch.setattr(stage_shard, "_detect_again", lambda *_args: {"error": "tried again"})
    assert not any("error" in content for content in run(week, tmp_path / "disturbed"))
    assert contents(tmp_path / "disturbed") == contents(tmp_path / "undisturbed")


@pytest.mark.parametrize(
    ("interval", "day_bytes", "others"), [("hour", 2**27, 1), ("day", 2**27, 1), ("month", 2**27, 1), ("day", 2**20, 0)]
)
def test_a_worker_holds_two_days_at_most_and_one_where_days_are_large(
    week, tmp_path, monkeypatch, interval, day_bytes, others
):
    monkeypatch.setattr(stage_day, "MAX_DAY_BYTES_AHEAD", day_bytes)
    days, held = [], []
    read = DayReader._read

    def remember(self, *args):
        held.append(sum(day() is not None for day in days))
        runs, day = read(self, *args)
        days.append(weakref.ref(day))
        return runs, day

    monkeypatch.setattr(DayReader, "_read", remember)
    gc.collect()
    gc.disable()
    try:
        for made in batches(week, tmp_path, interval):
            assert not any("error" in content for _, content in detect_batch(*made))
    finally:
        gc.enable()
    assert len(held) >= NUM_DAYS
    assert max(held) == others


def test_a_day_that_could_not_be_fetched_ahead_leaves_nothing_in_memory(week, tmp_path, moto_s3, monkeypatch):
    s3_requests._s3.cache_clear()
    bucket = uploaded(week, f"{moto_s3.url}/fetched-ahead")
    fetch, failed, detectors = Store.read_checked, [], []
    whole = BatchDetector.__init__

    def fails_once_a_file(self, item, *rest):
        if item.path not in failed:
            failed.append(item.path)
            raise OSError("the bucket is away")
        return fetch(self, item, *rest)

    def remember(self, *args):
        whole(self, *args)
        detectors.append(weakref.ref(self))

    makers = batches(bucket.url, tmp_path / "bucket")
    monkeypatch.setattr(Store, "read_checked", fails_once_a_file)
    monkeypatch.setattr(BatchDetector, "__init__", remember)
    monkeypatch.setattr(stage_shard.time, "sleep", lambda _seconds: None)
    gc.collect()
    gc.disable()
    try:
        for made in makers:
            list(detect_batch(*made))
        assert len(failed) > NUM_DAYS - len(makers)
        assert not any(detector() is not None for detector in detectors)
    finally:
        gc.enable()
