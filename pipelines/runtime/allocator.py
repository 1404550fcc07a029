"""The C library's allocator, for processes that take and free large arrays again and again."""

import contextlib
import ctypes

# Of mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES = 2**29


def keep_freed_memory() -> bool:
    """Let this process use freed memory again rather than give it back and have every page cleared for it anew.

    A day of one channel at 100 Hz is 35 MB, which the C library asks of the system and returns each time: half of the
    time of decoding goes into that, and a seventh of a training step on the CPU. At most `KEPT_BYTES` at the end of the
    heap stay with the process.

    Returns:
        Whether the C library is one that can do it (GNU's); elsewhere nothing changes.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, 2 * KEPT_BYTES) and mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES))


def give_back_freed_memory() -> None:
    """Return all freed memory to the system, also what lies between arrays that are still used; GNU's C library only.

    After very large arrays: those that follow are of other sizes, and fit into their places only in part.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
