"""How the tests start real servers on loopback; the fixtures in conftest.py use it.

A module of its own, because several folders have a conftest.py, and only one of them can be imported by that name.
"""

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest


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
def server_process(
    command: list[str], url: str, log: Path, seconds: float = 120, variables: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the block ends; raises RuntimeError with the end of its log where `url` does not answer."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # MLflow would start a dozen processes that consume a job queue.
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"} | (variables or {}),
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


def point_to_s3(
    endpoint_url: str, monkeypatch: pytest.MonkeyPatch, keys: dict[str, str] | None = None
) -> dict[str, str]:
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
        # A store other than Amazon's may not know the checksums of newer clients.
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    } | (keys or {})
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_CA_BUNDLE", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return environment
