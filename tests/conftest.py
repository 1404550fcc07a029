"""Real servers on loopback for the tests: S3 (moto), MLflow, and a small Ray with token authentication."""

import contextlib
import importlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# Imported by storage when it is needed: as another user this process may find no module.
import botocore.exceptions  # noqa: F401
import numpy as np
import obspy
import pytest
from hypothesis import HealthCheck, settings
from loopback_servers import S3Server, free_port, point_to_s3, server_process

from pipelines.archive.records import decode
from pipelines.runtime.ray_session import RaySession, ray_session

# The tests start their own servers; those of the shell they run in are not theirs.
for _name in (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_REGISTRY_URI",
    "MLFLOW_EXPERIMENT_ID",
    "RAY_ADDRESS",
    "RAY_API_SERVER_ADDRESS",
):
    os.environ.pop(_name, None)
# Tiny matrices gain nothing from a second thread, and lose much where another process holds the other core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What a script starts in the background ignores SIGINT, and so would the jobs that tests interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# On a busy machine an example may take any time; pytest's own limit ends what hangs.
settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")

NOBODY = 65534
SHARED = Path(__file__).resolve().parent.parent.parent / "shared"
SHARED_DATA = SHARED / "data"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures that tests recorded as the property `figure`, whether they hold or not."""
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    figures = [text for report in reports for name, text in report.user_properties if name == "figure"]
    if figures:
        terminalreporter.section("figures")
        for text in figures:
            terminalreporter.line(str(text))


@contextlib.contextmanager
def _as_nobody() -> Iterator[None]:
    if os.geteuid() != 0:
        yield
        return
    try:
        os.seteuid(NOBODY)
    except PermissionError:
        pytest.skip("root without the right to become another user can read and write everywhere")
    try:
        yield
    finally:
        os.seteuid(0)
        importlib.invalidate_caches()


@pytest.fixture(scope="session")
def another_user() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Return the context in which this process, where it is root's, has no more rights than another user."""
    # The compiled decoder is kept beside its source, where another user cannot write: it is compiled before.
    content = io.BytesIO()
    obspy.Trace(np.arange(100, dtype=np.int32)).write(content, format="MSEED")
    assert decode(content.getvalue()).runs
    return _as_nobody


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real recordings beside the project, or skip."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the real recordings (../shared/data beside the project) are not on this machine")
    return SHARED_DATA


@pytest.fixture(scope="session")
def _moto_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)]
    with server_process(command, url, tmp_path_factory.mktemp("moto") / "server.log"):
        yield url


@pytest.fixture
def moto_s3(_moto_server: str, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """Return a real S3 server with an empty bucket of this test's own."""
    import boto3

    environment = point_to_s3(_moto_server, monkeypatch)
    bucket = f"firnline-{time.time_ns()}"
    boto3.client("s3", endpoint_url=_moto_server).create_bucket(Bucket=bucket)
    return S3Server(endpoint_url=_moto_server, bucket=bucket, environment=environment)


@pytest.fixture(scope="session")
def _ceph_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Yield the variables of a Ceph gateway with a store of its own, which goes when the tests end."""
    tool = SHARED / "tools" / "ceph-s3"
    if not tool.exists():
        pytest.skip("the tool that starts Ceph (../shared/tools/ceph-s3 beside the project) is not on this machine")
    missing = [name for name in ("radosgw", "ceph-mon", "ceph-osd", "ceph-mgr") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed (Debian: radosgw ceph-mon ceph-osd ceph-mgr ceph-common curl)")
    # Its sockets' paths must be short.
    folder = Path(tempfile.mkdtemp(prefix="ceph-", dir="/tmp"))
    first = free_port()
    settings = {
        "CEPH_S3_PORT": str(free_port()),
        "CEPH_S3_MON_PORT": str(first),
        "CEPH_S3_OSD_PORTS": f"{first + 1}-{first + 60}",
        "CEPH_S3_SIZE_GB": "4",
    }
    try:
        said = subprocess.run(
            [str(tool), "start", str(folder)],
            env=os.environ | settings,
            capture_output=True,
            text=True,
            timeout=180,
            check=True,
        ).stdout
        yield dict(
            line.removeprefix("export ").split("=", 1) for line in said.splitlines() if line.startswith("export ")
        )
    finally:
        subprocess.run([str(tool), "wipe", str(folder)], capture_output=True, timeout=120, check=False)


@pytest.fixture
def ceph_s3(_ceph_server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """Return a real Ceph gateway with an empty bucket of this test's own."""
    import boto3

    keys = {name: _ceph_server[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    environment = point_to_s3(_ceph_server["AWS_ENDPOINT_URL"], monkeypatch, keys)
    bucket = f"firnline-{time.time_ns()}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    return S3Server(endpoint_url=_ceph_server["AWS_ENDPOINT_URL"], bucket=bucket, environment=environment)


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the URI of a real MLflow tracking server with sqlite and its own artifact folder."""
    folder = tmp_path_factory.mktemp("mlflow")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db"),
        *("--artifacts-destination", str(folder / "artifacts")),
    ]
    with server_process(command, f"{url}/health", folder / "server.log", seconds=300):
        yield url


@pytest.fixture(scope="session")
def ray_cluster(_moto_server: str) -> Iterator[RaySession]:
    """Yield a small Ray with token authentication that this process is connected to until the tests end.

    Its workers keep the environment that this process had when it began; they reach the S3 server of `moto_s3`.
    """
    with pytest.MonkeyPatch.context() as environment:
        point_to_s3(_moto_server, environment)
        session = ray_session(num_cpus=2)
        connected = session.__enter__()
    try:
        yield connected
    finally:
        session.__exit__(None, None, None)
