"""How a job's process ends."""

import subprocess
import sys

import pytest

from jobs.command_line import INTERRUPTED, JOBS, REPLACES, main, run_job

ENDS = """
import atexit, sys
from jobs.command_line import leave
atexit.register(print, "handler")
sys.stdout.write("said ")
leave({code})
"""


@pytest.mark.parametrize("code", [0, 1, 2, INTERRUPTED])
def test_a_process_ends_with_its_code_after_its_exit_handlers_and_with_all_that_it_said(code: int) -> None:
    done = subprocess.run([sys.executable, "-c", ENDS.format(code=code)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, "said handler\n", "")


def test_an_interrupt_while_a_class_is_made_is_an_interrupt(capsys: pytest.CaptureFixture[str]) -> None:
    class Interrupts:
        def __set_name__(self, owner: type, name: str) -> None:
            raise KeyboardInterrupt

    def body(_arguments: object) -> None:
        class Made:
            attribute = Interrupts()

    assert run_job("status", ["WORKSPACE"], ["somewhere"], body) == INTERRUPTED
    said = capsys.readouterr().err
    assert "firnline status: interrupted" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("job", sorted(set(JOBS) - {"submit"}))
def test_replace_is_offered_where_it_has_an_effect_and_refused_elsewhere(
    job: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([job, "--help"]) == 0
    assert ("  --replace  " in capsys.readouterr().out) == (job in REPLACES)
    if job not in REPLACES:
        assert main([job, "somewhere", "--replace"]) == 2
        assert capsys.readouterr().err == f"firnline {job}: --replace has no effect on {job}; leave it out\n"
