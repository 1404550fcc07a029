"""Detection from and to a bucket, with faults in front of it: the same bytes as from and to a disk.

Against moto in `make test`, against a Ceph gateway in `make test-ceph`.
"""

import os
import subprocess
import sys

import pytest
from detection_archives import DAY, detect, make_noise, make_trace, write_sds
from faultproxy import Fault, FaultProxy

from pipelines.runtime.errors import InputError
from pipelines.workspace import s3_requests
from pipelines.workspace.ledger import list_markers
from pipelines.workspace.storage import check_readable, open_store

FLAGS = {
    "detection": {"band_hz": [1, 8], "max_seconds": 20},
    "window": {"rate_hz": 20, "lead_seconds": 3, "length_seconds": 12},
    "shards": {"interval": "day"},
}
WORDS = [
    word
    for section, keys in FLAGS.items()
    for key, value in keys.items()
    for word in (f"--{section}.{key}", str(value))
]


@pytest.fixture(params=["moto", pytest.param("ceph", marks=pytest.mark.ceph)])
def server(request):
    found = request.getfixturevalue(f"{request.param}_s3")
    s3_requests._s3.cache_clear()
    yield found
    s3_requests._s3.cache_clear()


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    """Return an archive of two days, and the events that are found in it on the disk."""
    root = tmp_path_factory.mktemp("on-disk")
    traces = [make_trace(make_noise(2 * DAY, 20.0, 3, 80), "2021-03-01", 20.0, code) for code in ("BHE", "BHZ")]
    write_sds(root / "archive", traces)
    detect(root / "archive", root / "workspace", FLAGS)
    rows = contents(str(root / "workspace"))
    assert len(rows) >= 2
    return root / "archive", rows


def contents(url):
    store = open_store(url)
    return {item.path: store.read(item.path) for item in store.walk("events")}


def upload(archive, url):
    store = open_store(url)
    for path in archive.rglob("*.D.*"):
        store.write(path.relative_to(archive).as_posix(), path.read_bytes())


def faults():
    """Return what a busy store does to one request in three, and never to one request five times in a row."""
    return (
        Fault("throttle", probability=0.12, times=40),
        Fault("reset", probability=0.06, times=20),
        Fault("error", probability=0.06, times=20),
        Fault("reset_in_body", method="GET", path="/archive/", probability=0.2, after_bytes=3000, times=20),
        Fault("end_early", method="GET", path="/archive/", probability=0.2, after_bytes=5000, times=20),
        Fault("lose_answer", method="PUT", probability=0.1, times=10),
        Fault("delay", probability=0.1, seconds=0.3, times=20),
    )


def test_a_bucket_with_faults_in_front_gives_the_same_bytes_as_a_disk(server, on_disk, monkeypatch):
    archive, rows = on_disk
    upload(archive, f"{server.url}/archive")
    with FaultProxy(server.endpoint_url, seed=5) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        s3_requests._s3.cache_clear()
        proxy.add(*faults())
        detect(f"{server.url}/archive", f"{server.url}/workspace", FLAGS)
        struck = {request.fault for request in proxy.requests}
    assert {"throttle", "reset_in_body", "end_early"} <= struck
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint_url)
    s3_requests._s3.cache_clear()
    assert contents(f"{server.url}/workspace") == rows
    assert sum(1 for _ in list_markers(open_store(f"{server.url}/workspace"), "detect")) >= 2


@pytest.mark.parametrize("kind", ["throttle", "error", "reset", "reset_in_body", "end_early", "stall"])
@pytest.mark.ceph
def test_four_faults_in_a_row_are_survived_on_ceph(ceph_s3, monkeypatch, kind):
    s3_requests._s3.cache_clear()
    content = os.urandom(3_000_000)
    with FaultProxy(ceph_s3.endpoint_url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        s3_requests._s3.cache_clear()
        store = open_store(f"{ceph_s3.url}/data")
        proxy.add(Fault("throttle", method="PUT", times=4), Fault("lose_answer", method="PUT", times=1))
        store.write("x", content)
        proxy.add(Fault(kind, method="GET", path="/data/x", times=4, after_bytes=1000, seconds=0.2))
        item = next(store.walk())
        assert store.read_checked(item) == content
        assert store.read_checked(item, 1_000_000, 5000) == content[1_000_000:1_005_000]
        assert proxy.count(kind) >= 4
    s3_requests._s3.cache_clear()


@pytest.mark.ceph
def test_what_is_written_to_ceph_is_read_listed_replaced_and_removed(ceph_s3):
    s3_requests._s3.cache_clear()
    store = open_store(f"{ceph_s3.url}/root")
    for path, content in {"a/b/one": b"1" * 1000, "a/two": b"22", "three": b"", "ab/four": b"4"}.items():
        store.write(path, content)
    assert sorted(item.path for item in store.walk()) == ["a/b/one", "a/two", "ab/four", "three"]
    before = store.stat("a/two").etag
    with store.atomic_file("a/two") as temporary:
        temporary.write_bytes(b"3" * 20_000_000)
    assert store.stat("a/two").size == 20_000_000
    assert store.stat("a/two").etag != before
    assert store.read("a/two", 19_999_990, 10) == b"3" * 10
    store.remove_folder("a")
    assert sorted(item.path for item in store.walk()) == ["ab/four", "three"]
    with pytest.raises(FileNotFoundError):
        store.read("a/two")


@pytest.mark.ceph
def test_a_wrong_secret_gives_one_sentence(ceph_s3, monkeypatch):
    open_store(f"{ceph_s3.url}/data").write("x", b"content")
    for name, value in {"AWS_SECRET_ACCESS_KEY": "wrong", "AWS_ACCESS_KEY_ID": "nobody"}.items():
        monkeypatch.setenv(name, value)
        s3_requests._s3.cache_clear()
        with pytest.raises(InputError, match="cannot be read") as caught:
            check_readable(open_store(f"{ceph_s3.url}/data"), what="archive")
        assert "\n" not in str(caught.value)
    s3_requests._s3.cache_clear()


@pytest.mark.ceph
def test_the_job_gives_the_same_bytes_on_ceph_with_faults_in_front(ceph_s3, on_disk, tmp_path):
    archive, rows = on_disk
    s3_requests._s3.cache_clear()
    upload(archive, f"{ceph_s3.url}/archive")
    with FaultProxy(ceph_s3.endpoint_url, seed=6) as proxy:
        proxy.add(*faults())
        command = [sys.executable, "-m", "jobs.detect", f"{ceph_s3.url}/archive", f"{ceph_s3.url}/workspace", *WORDS]
        done = subprocess.run(
            [*command, "--mlflow", f"sqlite:///{tmp_path}/mlflow.db"],
            env=os.environ | {"AWS_ENDPOINT_URL": proxy.url},
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        assert proxy.count("throttle") > 0
    assert contents(f"{ceph_s3.url}/workspace") == rows
    s3_requests._s3.cache_clear()
