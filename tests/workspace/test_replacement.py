"""A new result is built beside the old one and takes its place at the end, whatever fails, at any moment."""

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


def test_a_kill_at_any_moment_leaves_either_result_whole(workspace, monkeypatch):
    """Every change of the disk, or every fifth request to the bucket, in turn is the last before the kill."""
    store, old = workspace.store, contents(workspace)
    new, number, killed = None, 0, True
    while killed:
        number += 1 if store.is_local else 5
        # Every attempt begins with the same folders.
        if store.is_local:
            shutil.rmtree(store.url)
        else:
            store.remove_folder("")
        for path, content in old.items():
            store.write(path, content)
        workspace.update_state()
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
                with result_of(workspace, "label", config(4), replace=True) as place:
                    write(place.store, 4, ["one", "three"])
            except Killed:
                killed = True
        complete = store.exists("replacing/label/complete.json")
        finish_replacements(store)
        found = {path: content for path, content in contents(workspace).items() if "replacing/" not in path}
        if complete and new is None:
            new = found
            assert new["labels/network=XX/station=A/three.parquet"] == b"4"
            assert "labels/network=XX/station=A/two.parquet" not in new
            assert not [path for path in new if path.startswith("embeddings")]
            assert new["events/network=XX/station=A/day.parquet"] == b"rows"
        # Once the new result is complete, a kill only delays that it takes its place.
        assert found == (old if new is None else new)
    assert contents(workspace) == new
    assert number > 10
