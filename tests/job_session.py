"""The processes of a job that was started in a session of its own: the job, and the Ray that it started."""

import os
import signal
import subprocess
from contextlib import suppress

import psutil


def session_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Return all processes of a job's session, also after the job has ended."""
    found = []
    for other in psutil.process_iter():
        with suppress(ProcessLookupError, PermissionError, psutil.Error):
            if os.getsid(other.pid) == process.pid or os.getpgid(other.pid) == process.pid:
                found.append(other)
    return found


def kill_session(process: subprocess.Popen[bytes]) -> None:
    """Kill a job and its Ray (SIGKILL), the job first, and wait for the job."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for member in session_of(process):
        with suppress(psutil.Error):
            member.kill()
    process.wait()
