"""A workspace that cannot be written is said in one sentence by the jobs that write, and read by those that do not."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from jobs import label, report, status, train, tune
from pipelines.workspace.workspace import open_workspace


@pytest.fixture
def read_only_workspace(another_user: Callable[[], AbstractContextManager[None]]) -> Iterator[str]:
    """Yield a workspace that this process may read but not write, until the test ends."""
    # Not pytest's folder, which is closed to others: root may write everywhere, so its tests become another user's.
    folder = Path(tempfile.mkdtemp(prefix="firnline-read-only-"))
    try:
        open_workspace(str(folder), create=True).update_state()
        folder.chmod(0o555)
        with another_user():
            yield str(folder)
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


def test_the_jobs_that_write_say_that_they_cannot(read_only_workspace: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name, job in (("tune", tune), ("train", train), ("label", label), ("report", report)):
        assert job.main([read_only_workspace]) == 2
        said = capsys.readouterr().err
        assert said == f"firnline {name}: the workspace {read_only_workspace} cannot be written: permission denied\n"


def test_a_job_that_reads_reads(read_only_workspace: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status.main([read_only_workspace]) == 0
    assert "no detection has run" in capsys.readouterr().out
    assert status.main([read_only_workspace, "--plot"]) == 2
    assert "cannot be written: permission denied" in capsys.readouterr().err
