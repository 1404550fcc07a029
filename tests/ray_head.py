"""A Ray head of its own on loopback, with a token, a Jobs server and ports that nothing else uses."""

import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from loopback_servers import free_port

from pipelines.runtime.ray_token import private_ray_environment

START_SECONDS = 120.0


def without_servers() -> dict[str, str]:
    """Return this process's variables without those that name a Ray, an MLflow or a bucket, or their secrets."""
    return {name: text for name, text in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_", "AWS_"))}


@dataclass(frozen=True)
class Head:
    """A Ray head on this machine: its addresses and the file with its token."""

    url: str
    """The Jobs server."""
    address: str
    """`host:port` of the control service."""
    token_file: Path

    def ask(self, path: str, *, token: bool) -> bytes:
        """Return the Jobs server's answer to a GET request."""
        headers = {"Authorization": f"Bearer {self.token_file.read_text()}"} if token else {}
        with urllib.request.urlopen(urllib.request.Request(self.url + path, headers=headers), timeout=10) as answer:
            body: bytes = answer.read()
        return body

    def environment(self) -> dict[str, str]:
        """Return the variables of a process that uses it, and no other server."""
        return {**without_servers(), "RAY_AUTH_TOKEN_PATH": str(self.token_file)}


@contextmanager
def ray_head(*, num_cpus: int, memory: int = 4 << 30) -> Iterator[Head]:
    """Run a head until the block ends.

    Args:
        num_cpus: that it gives to tasks.
        memory: bytes that it gives to tasks, whatever the machine has.
    """
    # Not pytest's folder: a Unix socket's path has 107 bytes.
    with tempfile.TemporaryDirectory(prefix="head-", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        token_file = folder / "token"
        token_file.write_text("0123456789abcdef" * 4)
        token_file.chmod(0o600)
        python = Path(sys.executable).parent
        environment = {
            **without_servers(),
            **private_ray_environment(),
            "RAY_AUTH_TOKEN_PATH": str(token_file),
            # A job's entry point finds its Python on the path that the head was started with.
            "PATH": f"{python}{os.pathsep}{os.environ['PATH']}",
        }
        environment.pop("RAY_AUTH_TOKEN", None)
        port, jobs_port = free_port(), free_port()
        command = [
            *(str(python / "ray"), "start", "--head", "--block", "--disable-usage-stats", f"--num-cpus={num_cpus}"),
            *("--object-store-memory=100000000", f"--memory={memory}", "--node-ip-address=127.0.0.1"),
            *("--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={jobs_port}"),
            *(f"--temp-dir={folder}", f"--port={port}", f"--ray-client-server-port={free_port()}"),
            *(f"--dashboard-agent-listen-port={free_port()}", f"--dashboard-agent-grpc-port={free_port()}"),
            *(f"--runtime-env-agent-port={free_port()}", f"--metrics-export-port={free_port()}"),
        ]
        with (folder / "head.log").open("wb") as log:
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        head = Head(url=f"http://127.0.0.1:{jobs_port}", address=f"127.0.0.1:{port}", token_file=token_file)
        try:
            _wait_until_ready(head, process, folder / "head.log")
            yield head
        finally:
            # Asked to end, a head gives each of its servers its time; nothing of this one is to be kept.
            for member in [*psutil.Process(process.pid).children(recursive=True), process]:
                with suppress(psutil.NoSuchProcess):
                    member.kill()
            process.wait()


def _wait_until_ready(head: Head, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when a job could be sent; raises RuntimeError with the head's log."""
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            head.ask("/api/jobs/", token=True)
            return
        except OSError:
            time.sleep(0.5)
    raise RuntimeError(log.read_text()[-3000:])
