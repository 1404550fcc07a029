"""A crash of the decoder costs its file: processes that really die."""

import os
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest
from made_records import moment, record2

from pipelines.archive import crashes
from pipelines.archive.crashes import decode_file_part

NOON = moment("2020-03-01T12:00:00")
GOOD = record2(np.arange(50), NOON) + record2(np.arange(20), NOON, codes=("XX", "B", "", "HHZ"))

DIES = """
import os, signal, sys
from pathlib import Path
from pipelines.archive import crashes
crashes.decode = lambda *args, **options: os.kill(os.getpid(), signal.SIGSEGV)
crashes.decode_file_part("the file", b"bytes", lambda codes: True, folder=Path(sys.argv[1]))
"""


def part(name, folder):
    return decode_file_part(name, GOOD, lambda codes: codes.station == "A", folder=folder, offset=512)


@pytest.fixture
def died(tmp_path):
    """Return a folder of notes in which a process died over "the file"."""
    done = subprocess.run([sys.executable, "-c", DIES, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGSEGV
    return tmp_path


def test_a_file_over_which_a_process_died_is_decoded_in_one_of_its_own_and_gives_the_same(died):
    (run,) = part("the file", died).runs
    expected = part("another file", died)
    np.testing.assert_array_equal(run.data, np.arange(50))
    assert run.start_ns == expected.runs[0].start_ns
    # It was not the file's fault: it is no longer suspect.
    assert not list(died.glob("*.suspect"))


def test_a_file_over_which_every_process_dies_is_damaged_and_the_others_are_read(died, monkeypatch):
    monkeypatch.setattr(crashes, "_CHILD", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    for _ in range(2):
        found = part("the file", died)
        assert (found.runs, found.damaged_bytes) == ([], len(GOOD))
        assert found.problems == [f"bytes 512 to {512 + len(GOOD)}: the decoder crashes on them"]
    assert len(part("another file", died).runs) == 1


def test_the_account_of_a_file_decoded_apart_balances_like_any_other(died):
    apart, here = part("the file", died), part("another file", died)
    assert apart.counts == here.counts
    assert all(counts.balances for counts in apart.counts.values())


def test_notes_of_processes_that_live_make_no_file_suspect(tmp_path):
    (tmp_path / f"{os.getppid()}.1").write_bytes(b"a" * 64)
    assert len(part("the file", tmp_path).runs) == 1
    assert not list(tmp_path.glob("*.suspect"))


def test_a_decoder_that_does_not_end_is_stopped_after_a_time_that_grows_with_the_bytes(died, monkeypatch):
    monkeypatch.setattr(crashes, "MIN_SECONDS", 0.5)
    monkeypatch.setattr(crashes, "_CHILD", crashes._CHILD.replace("pickle.dump(", "while True: pass\npickle.dump("))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = part("the file", died)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert found.damaged_bytes == len(GOOD)
    # Its imports, and no more than two seconds rounded up.
    assert after.ru_utime - before.ru_utime < 10.0
