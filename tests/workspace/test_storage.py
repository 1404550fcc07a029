"""One storage interface over a disk and a bucket, and what it does when the bucket misbehaves."""

import os
from pathlib import Path

import pytest
from faultproxy import Fault, FaultProxy

from pipelines.runtime.errors import InputError
from pipelines.workspace import storage
from pipelines.workspace.storage import check_readable, open_store


@pytest.fixture(params=["disk", "bucket"])
def store(request, tmp_path):
    if request.param == "disk":
        return open_store(str(tmp_path / "root"))
    server = request.getfixturevalue("moto_s3")
    storage._s3.cache_clear()
    return open_store(f"{server.url}/root")


@pytest.fixture(autouse=True)
def _fresh_filesystem():
    yield
    storage._s3.cache_clear()


def test_what_is_written_is_read_listed_and_removed(store):
    for path, content in {"a/b/one": b"1" * 1000, "a/two": b"22", "three": b"", "ab/four": b"4"}.items():
        store.write(path, content)
    assert sorted(item.path for item in store.walk()) == ["a/b/one", "a/two", "ab/four", "three"]
    assert [(item.path, item.size) for item in store.walk("a")] == [("a/two", 2), ("a/b/one", 1000)]
    assert store.read("a/b/one", 10, 5) == b"11111"
    assert store.stat("a/two").etag == next(store.walk("a")).etag
    assert store.exists("a/two")
    assert not store.exists("a/none")
    store.remove_folder("a")
    store.remove("nothing/there")
    assert sorted(item.path for item in store.walk()) == ["ab/four", "three"]


def test_a_tag_changes_with_the_content(store):
    store.write("x", b"one")
    before = store.stat("x").etag
    store.write("x", b"two")
    assert store.stat("x").etag != before


def test_a_missing_object_is_file_not_found(store):
    with pytest.raises(FileNotFoundError):
        store.read("nowhere")
    with pytest.raises(FileNotFoundError):
        store.stat("nowhere")
    assert list(store.walk("nowhere")) == []


def test_a_failed_write_leaves_nothing(store):
    def fail():
        with store.atomic_file("x") as temporary:
            temporary.write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not store.exists("x")
    assert list(store.walk()) == []


def test_folders_that_are_not_kept_are_not_listed(store):
    for year in ("2020", "2021"):
        store.write(f"{year}/file", b"x")
    assert [item.path for item in store.walk(keep_folder=lambda folder: folder != "2020")] == ["2021/file"]


def test_a_local_copy_of_a_bucket_object_goes_away(store):
    store.write("x", b"content")
    with store.local_copy("x") as copy:
        assert copy.read_bytes() == b"content"
        kept = copy
    assert kept.exists() == store.is_local


@pytest.mark.parametrize("kind", ["throttle", "error", "reset", "reset_in_body", "end_early"])
def test_four_faults_in_a_row_are_survived(moto_s3, monkeypatch, kind):
    content = os.urandom(300_000)
    open_store(f"{moto_s3.url}/data").write("x", content)
    storage._s3.cache_clear()
    with FaultProxy(moto_s3.endpoint_url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        store = open_store(f"{moto_s3.url}/data")
        proxy.add(Fault(kind, method="GET", times=4, after_bytes=1000))
        assert store.read_checked(next(store.walk())) == content
        if kind == "throttle":
            proxy.add(Fault(kind, method="PUT", times=4))
            store.write("y", content)
            assert store.stat("y").size == len(content)
        assert proxy.count(kind) >= 4


def test_a_put_whose_answer_is_lost_ends_with_the_object_there(moto_s3, monkeypatch):
    with FaultProxy(moto_s3.endpoint_url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        storage._s3.cache_clear()
        store = open_store(f"{moto_s3.url}/data")
        proxy.add(Fault("lose_answer", method="PUT", times=2))
        store.write("x", b"content")
        assert store.read("x") == b"content"


def test_missing_or_wrong_credentials_give_one_sentence(moto_s3, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    storage._s3.cache_clear()
    with pytest.raises(InputError, match="credentials") as caught:
        check_readable(open_store(moto_s3.url), what="archive")
    assert "\n" not in str(caught.value)


def test_an_endpoint_that_does_not_answer_is_said_within_seconds(moto_s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    storage._s3.cache_clear()
    with pytest.raises(InputError, match=r"the archive s3://\S+ cannot be read: .*127\.0\.0\.1:9") as caught:
        check_readable(open_store(f"{moto_s3.url}/x"), what="archive")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["s3://", "ftp://host/x", "gs://bucket/x", "s3://[x/a"])
def test_a_url_that_is_not_supported_is_named(url):
    with pytest.raises(InputError, match=url.split(":")[0]):
        open_store(url)


def test_file_urls_and_homes_are_local(tmp_path):
    assert open_store(f"file://{tmp_path}").url == str(tmp_path.resolve())
    assert Path(open_store("~").url) == Path.home().resolve()
    assert open_store("s3://bucket/a/").child("b").url == "s3://bucket/a/b"


def test_what_does_not_exist_is_said(tmp_path, moto_s3):
    storage._s3.cache_clear()
    with pytest.raises(InputError, match="does not exist"):
        check_readable(open_store(str(tmp_path / "no")), what="archive")
    with pytest.raises(InputError, match="does not exist"):
        check_readable(open_store("s3://no-such-bucket-anywhere/x"), what="archive")
