"""Torch's OpenMP threads sleep while they wait, whichever of our modules is imported first."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "given", "expected"),
    [("jobs.train", None, "0"), ("pipelines.encoders", None, "0"), ("jobs.train", "ACTIVE", "30000000000")],
)
def test_openmp_reads_that_its_threads_sleep_unless_told_otherwise(module: str, given: str | None, expected: str):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    environment |= {"OMP_DISPLAY_ENV": "VERBOSE"} | ({} if given is None else {"OMP_WAIT_POLICY": given})
    done = subprocess.run(
        [sys.executable, "-c", f"import {module}, torch; torch.ones(1)"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("this build of torch uses an OpenMP that does not show its settings")
    # How often a waiting thread looks before it sleeps.
    read = {line.split("'")[1] for line in done.stderr.splitlines() if "GOMP_SPINCOUNT" in line}
    assert read == {expected}
