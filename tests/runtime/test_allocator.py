"""Freed memory that stays with the process."""

import subprocess
import sys

SCRIPT = """
import resource, sys
from pipelines.runtime.allocator import keep_freed_memory

if sys.argv[1] == "kept" and not keep_freed_memory():
    print("none")
    sys.exit()
for _ in range(3):
    bytes(32 * 2**20).find(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    bytearray(32 * 2**20).find(b"1")
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how):
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, how], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_freed_memory_is_not_asked_for_again():
    kept = faults("kept")
    if kept != "none":
        assert int(kept) * 10 < int(faults("given back"))
