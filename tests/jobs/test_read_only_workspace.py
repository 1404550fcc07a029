"""A workspace that cannot be written is said in one sentence by the jobs that write, and read by those that do not."""

import importlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Imported by storage when it is needed: as another user this process may find no module.
import botocore.exceptions  # noqa: F401
import pytest

from jobs import label, report, status, train, tune
from pipelines.workspace import open_workspace

NOBODY = 65534


@pytest.fixture
def read_only_workspace() -> Iterator[str]:
    """Yield a workspace that this process may read but not write, until the test ends."""
    # Not pytest's folder, which is closed to others: root may write everywhere, so its tests become another user's.
    folder = Path(tempfile.mkdtemp(prefix="firnline-read-only-"))
    try:
        open_workspace(str(folder), create=True).update_state()
        folder.chmod(0o555)
        is_root = os.geteuid() == 0
        if is_root:
            try:
                os.seteuid(NOBODY)
            except PermissionError:
                pytest.skip("root without the right to become another user can write everywhere")
        try:
            yield str(folder)
        finally:
            if is_root:
                os.seteuid(0)
                importlib.invalidate_caches()
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
