"""One storage interface over a disk and a bucket, and what it does when the bucket misbehaves."""

import errno
import os
from pathlib import Path

import boto3
import pytest
from faultproxy import Fault, FaultProxy

from pipelines.runtime.errors import InputError
from pipelines.workspace import s3_requests, storage
from pipelines.workspace.storage import check_readable, open_store
from pipelines.workspace.storage_errors import StorageFailed
from pipelines.workspace.stored_object import StoredObject


@pytest.fixture(autouse=True)
def _fresh_filesystem():
    yield
    s3_requests._s3.cache_clear()


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


def test_the_files_of_a_folder_are_those_of_the_folder_itself(store):
    for path in ("a/b/one", "a/two", "a/three", "ab/four"):
        store.write(path, b"x")
    assert [item.path for item in store.files("a")] == ["a/three", "a/two"]
    assert sorted(item.path for item in store.files("a/b")) == ["a/b/one"]
    assert list(store.files("nowhere")) == []


def test_the_first_file_of_a_large_folder_of_a_bucket_takes_one_request(moto_s3, monkeypatch):
    client = boto3.client("s3", endpoint_url=moto_s3.endpoint_url)
    for number in range(1_001):
        client.put_object(Bucket=moto_s3.bucket, Key=f"data/{number:04d}", Body=b"x")
    with FaultProxy(moto_s3.endpoint_url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        s3_requests._s3.cache_clear()
        store = open_store(moto_s3.url)
        assert next(store.files("data")).path == "data/0000"
        assert proxy.count() == 1
        assert sum(1 for _ in store.files("data")) == 1_001
        assert proxy.count() == 3


def test_times_of_answers_are_read_as_boto_reads_them(moto_s3):
    """In a listing they are ISO 8601, in a header as in mail."""
    open_store(moto_s3.url).write("x", b"content")
    client = boto3.client("s3", endpoint_url=moto_s3.endpoint_url)
    ours = s3_requests.filesystem(anonymous=False)
    [listed] = ours.call_s3("list_objects_v2", Bucket=moto_s3.bucket)["Contents"]
    assert listed["LastModified"] == client.list_objects_v2(Bucket=moto_s3.bucket)["Contents"][0]["LastModified"]
    found = ours.call_s3("head_object", Bucket=moto_s3.bucket, Key="x")
    assert found["LastModified"] == client.head_object(Bucket=moto_s3.bucket, Key="x")["LastModified"]


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


def test_the_tail_of_an_object_comes_with_its_size_and_tag(store):
    content = bytes(range(256)) * 300
    for name, stored in {"long": content, "short": content[:100], "as long": content[:1000], "empty": b""}.items():
        store.write(name, stored)
        tail, item = store.read_tail(name, 1000)
        assert tail == stored[-1000:]
        assert item == store.stat(name)
    with pytest.raises(FileNotFoundError):
        store.read_tail("nowhere", 1000)


@pytest.mark.parametrize("kind", ["throttle", "error", "reset", "reset_in_body", "end_early"])
def test_four_faults_in_a_row_are_survived(moto_s3, monkeypatch, kind):
    content = os.urandom(300_000)
    open_store(f"{moto_s3.url}/data").write("x", content)
    s3_requests._s3.cache_clear()
    with FaultProxy(moto_s3.endpoint_url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        store = open_store(f"{moto_s3.url}/data")
        proxy.add(Fault(kind, method="GET", times=4, after_bytes=1000))
        assert store.read_checked(next(store.walk())) == content
        proxy.add(Fault(kind, method="GET", times=4, after_bytes=1000))
        assert store.read_tail("x", 200_000)[0] == content[-200_000:]
        if kind == "throttle":
            proxy.add(Fault(kind, method="PUT", times=4))
            store.write("y", content)
            assert store.stat("y").size == len(content)
        assert proxy.count(kind) >= 8


def test_a_put_whose_answer_is_lost_ends_with_the_object_there(moto_s3, monkeypatch):
    with FaultProxy(moto_s3.endpoint_url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        s3_requests._s3.cache_clear()
        store = open_store(f"{moto_s3.url}/data")
        proxy.add(Fault("lose_answer", method="PUT", times=2))
        store.write("x", b"content")
        assert store.read("x") == b"content"


USES = {
    "read": lambda store: store.read("x"),
    "read of a listed object": lambda store: store.read_checked(StoredObject("x", 7, "")),
    "listing": lambda store: list(store.walk()),
    "stat": lambda store: store.stat("x"),
    "read of a tail": lambda store: store.read_tail("x", 4),
    "write": lambda store: store.write("x", b"content"),
    "removal": lambda store: store.remove("x"),
    "copy": lambda store: store.local_copy("x").__enter__(),
}


@pytest.fixture
def waits(monkeypatch):
    """The waits between attempts, which the test need not sit through."""
    drawn = []
    monkeypatch.setattr(s3_requests.time, "sleep", drawn.append)
    return drawn


@pytest.mark.parametrize("kind", ["throttle", "reset", "end_early", "reset_in_body"])
def test_a_fault_that_never_ends_costs_ten_requests_and_is_one_sentence(moto_s3, monkeypatch, waits, kind):
    open_store(f"{moto_s3.url}/data").write("x", b"content")
    s3_requests._s3.cache_clear()
    # aiohttp opens a connection that was reset once more by itself, for what may be sent twice without harm.
    most = 20 if kind == "reset" else 10
    with FaultProxy(moto_s3.endpoint_url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        store = open_store(f"{moto_s3.url}/data")
        for name, use in USES.items():
            if kind in ("end_early", "reset_in_body") and name in ("stat", "write", "removal", "copy"):
                # These answers have no body that could be cut.
                continue
            proxy.clear()
            proxy.add(Fault(kind, times=None, after_bytes=3))
            before = proxy.count()
            waits.clear()
            with pytest.raises(StorageFailed, match=rf"^{moto_s3.url}/data.* \(tried 10 times\)$") as caught:
                use(store)
            assert "\n" not in str(caught.value)
            assert 10 <= proxy.count() - before <= most, name
            # The proxy itself pauses 0.05 s before it cuts an answer.
            assert len([wait for wait in waits if wait != 0.05]) == 9


def test_ten_attempts_wait_half_a_minute_at_most(waits):
    def fail():
        raise OSError(5, "an error")

    with pytest.raises(StorageFailed, match=r"^x cannot be read: an error \(tried 10 times\)$"):
        s3_requests.retry(fail, "x cannot be read")
    limits = [min(0.1 * 2**index, s3_requests.MAX_WAIT_SECONDS) for index in range(9)]
    assert all(0 <= wait <= limit for wait, limit in zip(waits, limits, strict=True))
    assert sum(limits) < 33


def test_a_silent_endpoint_is_given_up_when_the_time_is_over(moto_s3, monkeypatch):
    open_store(f"{moto_s3.url}/data").write("x", b"content")
    s3_requests._s3.cache_clear()
    monkeypatch.setattr(s3_requests, "READ_SECONDS", 0.3)
    monkeypatch.setattr(s3_requests, "MAX_RETRY_SECONDS", 1.0)
    with FaultProxy(moto_s3.endpoint_url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        store = open_store(f"{moto_s3.url}/data")
        proxy.add(Fault("stall", times=None, seconds=5))
        with pytest.raises(StorageFailed, match=r"tried [1-5] times"):
            store.read("x")


def test_a_dead_endpoint_is_asked_ten_times_for_each_operation(moto_s3, monkeypatch, waits):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageFailed, match=r"cannot be read: .*127\.0\.0\.1:9.*\(tried 10 times\)"):
        open_store(f"{moto_s3.url}/x").read_checked(StoredObject("y", 10, ""))
    assert len(waits) == 9


def test_a_read_only_bucket_says_that_access_is_denied(moto_s3, monkeypatch):
    with FaultProxy(moto_s3.endpoint_url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        proxy.add(Fault("deny", method="PUT", times=None))
        store = open_store(f"{moto_s3.url}/workspace")
        with pytest.raises(InputError, match=r"the workspace s3://\S+/workspace cannot be written: access denied$"):
            store.check_writable()
        assert proxy.count("deny") == 1
        with pytest.raises(StorageFailed, match=r"^s3://\S+/workspace/a/b cannot be written: access denied$"):
            store.write("a/b", b"content")


def test_a_listing_of_many_pages_survives_a_fault_on_every_second_request(moto_s3, monkeypatch):
    store = open_store(f"{moto_s3.url}/data")
    for number in range(24):
        store.write(f"folder/{number:02d}", b"x")
    s3_requests._s3.cache_clear()
    monkeypatch.setattr(s3_requests, "FIRST_WAIT_SECONDS", 0.001)
    request = storage.Store._request

    def in_small_pages(store, failing, method, **arguments):
        return request(store, failing, method, **arguments, **({"MaxKeys": 3} if method == "list_objects_v2" else {}))

    monkeypatch.setattr(storage.Store, "_request", in_small_pages)
    with FaultProxy(moto_s3.endpoint_url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        proxy.add(*(Fault("throttle", skip=1) for _ in range(8)))
        assert len(list(store.walk())) == 24
        assert proxy.count("throttle") >= 4
        proxy.clear()
        store.remove_folder("folder")
        assert list(store.walk()) == []


def test_what_a_bucket_refuses_to_remove_is_named(moto_s3, monkeypatch):
    store = open_store(f"{moto_s3.url}/data")
    store.write("folder/x", b"x")
    request = storage.Store._request

    def refusing(store, failing, method, **arguments):
        if method == "delete_objects":
            return {"Errors": [{"Key": "data/folder/x", "Code": "AccessDenied", "Message": "Access Denied"}]}
        return request(store, failing, method, **arguments)

    monkeypatch.setattr(storage.Store, "_request", refusing)
    with pytest.raises(StorageFailed, match=r"s3://\S+/data/folder/x cannot be removed: Access Denied"):
        store.remove_folder("folder")


def test_reading_beyond_the_end_gives_what_there_is(store):
    store.write("x", b"12345")
    store.write("empty", b"")
    assert store.read("x", 3, 100) == b"45"
    assert store.read("x", 5, 100) == b""
    assert store.read("empty", 0, 100) == store.read("empty") == b""


def test_a_large_object_is_copied_in_pieces_that_are_whole(moto_s3, monkeypatch):
    content = os.urandom(300_000)
    store = open_store(f"{moto_s3.url}/data")
    store.write("x", content)
    s3_requests._s3.cache_clear()
    monkeypatch.setattr(storage, "COPY_PIECE_BYTES", 64_000)
    monkeypatch.setattr(s3_requests, "FIRST_WAIT_SECONDS", 0.001)
    with FaultProxy(moto_s3.endpoint_url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        proxy.add(*(Fault(kind, method="GET", times=4, after_bytes=10) for kind in ("end_early", "reset_in_body")))
        with store.local_copy("x") as copy:
            assert copy.read_bytes() == content
        assert proxy.count("end_early") == proxy.count("reset_in_body") == 4


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch, number):
    store = open_store(str(tmp_path))

    def fail(path):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(storage, "flush", fail)
    reason = os.strerror(number)
    with pytest.raises(StorageFailed, match=rf"^{tmp_path}/a/b cannot be written: {reason[:1].lower()}{reason[1:]}$"):
        store.write("a/b", b"content")
    assert not store.exists("a/b")


def test_a_disk_that_is_full_while_a_file_is_written_is_one_sentence(tmp_path):
    store = open_store(str(tmp_path))

    def write_to_a_full_disk():
        # /dev/full is a disk without space.
        with store.atomic_file("x"), Path("/dev/full").open("wb", buffering=0) as full:
            full.write(b"x")

    with pytest.raises(StorageFailed, match=r"/x cannot be written: no space left on device"):
        write_to_a_full_disk()
    assert list(tmp_path.iterdir()) == []


def test_missing_or_wrong_credentials_give_one_sentence(moto_s3, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    s3_requests._s3.cache_clear()
    with pytest.raises(InputError, match="credentials") as caught:
        check_readable(open_store(moto_s3.url), what="archive")
    assert "\n" not in str(caught.value)


def test_an_endpoint_that_does_not_answer_is_said_within_seconds(moto_s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    s3_requests._s3.cache_clear()
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
    s3_requests._s3.cache_clear()
    with pytest.raises(InputError, match="does not exist"):
        check_readable(open_store(str(tmp_path / "no")), what="archive")
    with pytest.raises(InputError, match="does not exist"):
        check_readable(open_store("s3://no-such-bucket-anywhere/x"), what="archive")


def test_a_file_that_a_key_names_is_read_up_to_its_bound(tmp_path):
    (tmp_path / "names.yaml").write_bytes(b"x" * 1000)
    assert storage.read_file(str(tmp_path / "names.yaml"), "labels.names", max_bytes=1000) == b"x" * 1000
    with pytest.raises(InputError, match=r"labels\.names .*names\.yaml is larger than 999 bytes"):
        storage.read_file(str(tmp_path / "names.yaml"), "labels.names", max_bytes=999)
    # It never ends.
    with pytest.raises(InputError, match="is larger than 1000 bytes"):
        storage.read_file("/dev/zero", "train.augment_from", max_bytes=1000)
