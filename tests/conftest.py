"""Real servers on loopback for the tests: S3 (moto), MLflow, and a small Ray with token authentication."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines.cluster import RaySession, ray_session

SHARED_DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


@dataclass(frozen=True)
class S3Server:
    """An S3 server on loopback with one empty bucket; the AWS variables of this process already point to it."""

    endpoint_url: str
    bucket: str
    environment: dict[str, str]

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}"


def free_port() -> int:
    """Return a TCP port of the loopback address that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def server_process(command: list[str], url: str, log: Path, seconds: float = 60.0) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the block ends; raises RuntimeError with the end of its log where `url` does not answer."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        deadline = time.monotonic() + seconds
        while not _answers(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} does not answer at {url}:\n{log.read_text()[-2000:]}")
            time.sleep(0.1)
        yield process
    finally:
        # Its own process group: MLflow's server is a parent of the processes that serve.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


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


def point_to_s3(endpoint_url: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Set this process's AWS variables to a server on loopback, away from any profile of the user, and return them."""
    environment = {
        "AWS_ENDPOINT_URL": endpoint_url,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_CA_BUNDLE", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return environment


@pytest.fixture
def moto_s3(_moto_server: str, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """Return a real S3 server with an empty bucket of this test's own."""
    import boto3

    environment = point_to_s3(_moto_server, monkeypatch)
    bucket = f"firnline-{time.time_ns()}"
    boto3.client("s3", endpoint_url=_moto_server).create_bucket(Bucket=bucket)
    return S3Server(endpoint_url=_moto_server, bucket=bucket, environment=environment)


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
    with server_process(command, f"{url}/health", folder / "server.log", seconds=120):
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
