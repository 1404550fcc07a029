"""Jobs sent to a cluster by `firnline submit`, their log line by line with the time of each, and what they write."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Job:
    """A job that `firnline submit` sends and follows."""

    process: subprocess.Popen[str]
    lines: list[tuple[float, str]] = field(default_factory=list)
    """Time (monotonic) and text of each line."""
    ended: float = 0.0
    """When its log ended (monotonic); 0 before that."""
    reader: threading.Thread = field(default_factory=threading.Thread)

    @property
    def log(self) -> str:
        """What it has said."""
        return "\n".join(text for _, text in self.lines)

    def longest_silence(self) -> tuple[float, str]:
        """Return the longest time without a line, and the line before it."""
        moments = [*self.lines, (self.ended or time.monotonic(), "")]
        gaps = [(after[0] - before[0], before[1]) for before, after in pairwise(moments)]
        return max(gaps, default=(0.0, ""))

    def wait(self, seconds: float) -> int:
        """Return its exit code; AssertionError with the end of its log where it does not end in time."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end in {seconds:.0f} s:\n{self.log[-4000:]}") from None
        self.reader.join(10)
        return code

    def interrupt(self) -> None:
        """Stop following it."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(30)

    def read(self) -> None:
        """Collect its lines in a thread."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), line.rstrip()))
        self.ended = time.monotonic()


def submit(jobs_url: str, token_file: Path, variables: Mapping[str, str], words: list[str]) -> Job:
    """Send a job and return it; its log is followed in a thread."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_", "AWS_"))}
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.submit", "--address", jobs_url, *words],
        env={**clean, "RAY_AUTH_TOKEN_PATH": str(token_file), "PYTHONUNBUFFERED": "1", **variables},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    job = Job(process)
    job.lines.append((time.monotonic(), "(sent)"))
    job.reader = threading.Thread(target=job.read, daemon=True)
    job.reader.start()
    return job


class Bucket:
    """A bucket as the tests see it, past the faults that the cluster meets."""

    def __init__(self, client: Any, name: str) -> None:
        self.client, self.name = client, name

    def tags(self, prefix: str) -> dict[str, str]:
        """Return the tag of each object below a prefix, by its path there."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=f"{prefix}/")
        return {
            item["Key"].removeprefix(f"{prefix}/"): item["ETag"] for page in pages for item in page.get("Contents", [])
        }

    def digests(self, prefix: str, tables: tuple[str, ...]) -> dict[str, str]:
        """Return the SHA-256 of every file of some tables of a workspace."""
        return {
            path: sha256(self.read(f"{prefix}/{path}")).hexdigest()
            for path in self.tags(prefix)
            if path.startswith(tuple(f"{table}/" for table in tables))
        }

    def read(self, path: str) -> bytes:
        """Return an object's content."""
        content: bytes = self.client.get_object(Bucket=self.name, Key=path)["Body"].read()
        return content

    def copy(self, source: str, target: str) -> None:
        """Copy all objects below one prefix to another."""
        for path in self.tags(source):
            self.client.copy_object(
                Bucket=self.name, Key=f"{target}/{path}", CopySource={"Bucket": self.name, "Key": f"{source}/{path}"}
            )


def wait_until(what: str, holds: Callable[[], bool], seconds: float, job: Job | None = None) -> float:
    """Return after how many seconds something holds; AssertionError if it does not in time or before the job ends."""
    began = time.monotonic()
    while not holds():
        waited = time.monotonic() - began
        ended = job is not None and job.process.poll() is not None
        if waited > seconds or ended:
            raise AssertionError(
                f"{what}: not after {waited:.0f} s{' and the job has ended' if ended else ''}:\n"
                f"{job.log[-4000:] if job else ''}"
            )
        time.sleep(0.3)
    return time.monotonic() - began
