"""A new result is built beside the old one and takes its place at the end, whatever fails, at any moment."""

import dataclasses
import json
import shutil

import pytest

from pipelines.config import resolve
from pipelines.runtime.errors import InputError, StageFailed
from pipelines.workspace import s3_requests, storage
from pipelines.workspace.ledger import MarkerName, list_markers, write_marker
from pipelines.workspace.replacement import finish_replacements, result_of
from pipelines.workspace.storage import Store
from pipelines.workspace.workspace import open_workspace

NAME = MarkerName("XX", "A", "day", "abc")


def config(k):
    return resolve({"kmeans": {"k": k}})


def write(store, k, names):
    for name in names:
        store.write(f"labels/network=XX/station=A/{name}.parquet", b"%d" % k)
    store.write("clustering/summary.json", json.dumps({"k": k}).encode())
    write_marker(store, "label", NAME, {"k": k})


def contents(workspace):
    """Return everything but workspace.json, which is written at each claim."""
    store = workspace.store
    return {item.path: store.read(item.path) for item in store.walk() if item.path != "workspace.json"}


@pytest.fixture(params=["disk", "bucket"])
def workspace(request, tmp_path):
    """A labelled workspace."""
    url = str(tmp_path / "workspace")
    if request.param == "bucket":
        s3_requests._s3.cache_clear()
        url = f"{request.getfixturevalue('moto_s3').url}/workspace"
    opened = open_workspace(url, create=True)
    opened.store.write("events/network=XX/station=A/day.parquet", b"rows")
    with result_of(opened, "label", config(3), replace=False) as place:
        assert place is opened
        write(place.store, 3, ["one", "two"])
        place.store.write("embeddings/network=XX/station=A/day.parquet", b"points")
    return opened


def test_the_old_result_is_whole_until_the_new_one_is(workspace):
    before = contents(workspace)
    with pytest.raises(InputError, match=r"kmeans\.k is 4"), result_of(workspace, "label", config(4), replace=False):
        pass

    def fail(attempt):
        with result_of(workspace, "label", config(4), replace=True) as place:
            # What was done before the failure is found by the next attempt.
            assert list(list_markers(place.store, "label")) == [NAME] * attempt
            assert place.store.read("events/network=XX/station=A/day.parquet") == b"rows"
            assert place.url == workspace.url
            write(place.store, 4, ["one"])
            assert [item.path for item in place.store.walk("labels")] == ["labels/network=XX/station=A/one.parquet"]
            raise StageFailed("disk full")

    for attempt in range(2):
        with pytest.raises(StageFailed, match="disk full"):
            fail(attempt)
        now = contents(workspace)
        assert {path: content for path, content in now.items() if not path.startswith("replacing/")} == before
    # An attempt with other settings begins anew.
    with result_of(workspace, "label", config(5), replace=True) as place:
        assert list(list_markers(place.store, "label")) == []
        write(place.store, 5, ["two", "three"])
    assert {path for path in contents(workspace) if path.startswith(("labels", "replacing", "embeddings"))} == {
        "labels/network=XX/station=A/two.parquet",
        "labels/network=XX/station=A/three.parquet",
    }
    assert workspace.stored_config("label")["kmeans"]["k"] == 5
    # One that is not made goes with the next run that replaces nothing.
    with pytest.raises(StageFailed), result_of(workspace, "label", config(6), replace=True):
        raise StageFailed("killed")
    with result_of(workspace, "label", config(5), replace=False):
        pass
    assert not list(workspace.store.walk("replacing"))


class Killed(BaseException):
    pass


def contents_after_kills(workspace, old, stage, replace, monkeypatch):
    """Yield what there is after a kill at each moment of a replacement, and whether the new result was complete.

    Every change of the disk, or every fifth request to the bucket, in turn is the last before the kill.
    """
    store = workspace.store
    number, killed = 0, True
    while killed:
        number += 1 if store.is_local else 5
        # Every attempt begins with the same folders.
        if store.is_local:
            shutil.rmtree(store.url)
        else:
            store.remove_folder("")
        for path, content in old.items():
            store.write(path, content)
        workspace.update_state(shard_interval="day")
        left = [number]

        def count(call, left=left):
            def counted(*arguments, **named):
                left[0] -= 1
                if left[0] <= 0:
                    raise Killed
                return call(*arguments, **named)

            return counted

        killed = False
        with monkeypatch.context() as patched:
            if store.is_local:
                for name in ("write", "remove", "remove_folder"):
                    patched.setattr(Store, name, count(getattr(Store, name)))
                for name in ("rename", "mkdir"):
                    patched.setattr(storage.Path, name, count(getattr(storage.Path, name)))
            else:
                patched.setattr(storage, "retry", count(storage.retry))
            try:
                replace()
            except Killed:
                killed = True
        complete = store.exists(f"replacing/{stage}/complete.json") or not killed
        finish_replacements(store)
        yield {path: content for path, content in contents(workspace).items() if "replacing/" not in path}, complete
    assert not list(store.walk("replacing"))
    assert number > 10


def test_a_kill_at_any_moment_leaves_either_result_whole(workspace, monkeypatch):
    old, new = contents(workspace), None

    def replace():
        with result_of(workspace, "label", config(4), replace=True) as place:
            write(place.store, 4, ["one", "three"])

    for found, complete in contents_after_kills(workspace, old, "label", replace, monkeypatch):
        if complete and new is None:
            new = found
            assert new["labels/network=XX/station=A/three.parquet"] == b"4"
            assert "labels/network=XX/station=A/two.parquet" not in new
            assert not [path for path in new if path.startswith("embeddings")]
            assert new["events/network=XX/station=A/day.parquet"] == b"rows"
        # Once the new result is complete, a kill only delays that it takes its place.
        assert found == (old if new is None else new)


def test_a_kill_at_any_moment_leaves_either_detection_whole_with_what_is_derived_from_it(workspace, monkeypatch):
    store = workspace.store
    with result_of(workspace, "detect", resolve({"detection": {"on": 4.0}}), replace=False) as place:
        place.store.write("availability/network=XX/station=A/day.parquet", b"seconds")
        place.store.write("plan/manifest.parquet", b"files")
        write_marker(place.store, "detect", NAME, {"on": 4})
    store.write("train/encoder.safetensors", b"weights")
    store.write("report/index.html", b"page")
    old, new = contents(workspace), None
    detection = resolve({"detection": {"on": 5.0}})

    def replace():
        with result_of(workspace, "detect", detection, replace=True, with_derived=True) as place:
            assert place.read_state().shard_interval == "day"
            place.update_state(shard_interval="month")
            place.store.write("events/network=XX/station=A/month.parquet", b"other rows")
            place.store.write("availability/network=XX/station=A/month.parquet", b"other seconds")
            write_marker(place.store, "detect", dataclasses.replace(NAME, shard="month"), {"on": 5})

    for found, complete in contents_after_kills(workspace, old, "detect", replace, monkeypatch):
        if complete and new is None:
            new = found
            assert sorted(new) == [
                "availability/network=XX/station=A/month.parquet",
                "config/detect.yaml",
                "config/label.yaml",
                "events/network=XX/station=A/month.parquet",
                "ledger/detect/network=XX/station=A/month.abc.json",
            ]
        assert found == (old if new is None else new)
        # Until it holds, a new plan of the shards changes nothing of the old one.
        assert workspace.read_state().shard_interval == ("day" if new is None else "month")
    assert workspace.stored_config("detect")["detection"]["on"] == 5.0
