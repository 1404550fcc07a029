"""Freed memory that stays with the process."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
from pipelines.runtime.allocator import keep_freed_memory

if sys.argv[1] == "kept":
    assert keep_freed_memory()
for _ in range(3):
    bytes(32 * 2**20).find(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    bytearray(32 * 2**20).find(b"1")
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", SCRIPT, how], check=True, capture_output=True, text=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only the GNU C library has mallopt's thresholds")
def test_freed_memory_is_not_asked_for_again() -> None:
    assert faults("kept") * 10 < faults("given back")
