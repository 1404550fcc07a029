"""`make demo` takes what its command line says and nothing that the environment happens to hold."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {"ARCHIVE": "of-the-shell", "WORKSPACE": "of-the-shell", "CONFIG": "of-the-shell"}


def demo(tmp_path: Path, *variables: str) -> list[str]:
    """Return the words of each command of `make demo` after the Python that would run it."""
    command = ["make", "--silent", "demo", "PY=echo", f"VENV={tmp_path}", *variables]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=60, check=True
    )
    return [line for line in done.stdout.splitlines() if line.startswith("-m jobs.")]


@pytest.mark.parametrize(
    ("variables", "commands"),
    [
        (
            [],
            [
                "-m jobs.synthesize runs/demo-archive --config configs/demo.yaml",
                "-m jobs.run runs/demo-archive runs/demo --config configs/demo.yaml",
            ],
        ),
        (
            ["ARCHIVE=/my archive", "WORKSPACE=mine", "CONFIG=mine.yaml"],
            ["-m jobs.run /my archive mine --config mine.yaml"],
        ),
    ],
)
def test_only_the_command_line_counts(tmp_path: Path, variables: list[str], commands: list[str]) -> None:
    assert demo(tmp_path, *variables) == commands


@pytest.mark.parametrize(
    ("words", "environment"),
    [(["test"], ".venv"), (["test", "PYTHON=python3.12"], "build/venv-python3.12"), (["test", "VENV=mine"], "mine")],
)
def test_another_python_is_tested_in_an_environment_of_its_own(words: list[str], environment: str) -> None:
    # A `make test VENV=...` that runs this test hands its variables down to every make below it.
    shell = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "VENV"))}
    done = subprocess.run(
        ["make", "--dry-run", *words], cwd=ROOT, env=shell, capture_output=True, text=True, timeout=60, check=True
    )
    assert f"{environment}/bin/python -m pytest --numprocesses=2 --dist=loadfile --cov" in done.stdout
