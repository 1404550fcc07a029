"""SIGTERM, as a batch system or a spot machine sends it, ends a job as Ctrl-C does: cleaned up, and resumable."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_active = [False]


@contextlib.contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Raise KeyboardInterrupt in this process's main thread when SIGTERM comes, once, until the block ends."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    _active[0] = True
    take_sigterm()
    try:
        yield
    finally:
        _active[0] = False
        # Python cannot put back a handler that C code has set.
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)


def take_sigterm() -> None:
    """Inside `sigterm_interrupts`, handle SIGTERM again after a library has put its own handler there.

    Ray's driver does, twice: Python code that exits with 15, and C++ code that prints a stack trace and aborts.
    """
    if _active[0] and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    # A second one would interrupt the cleaning up; SIGKILL still ends the process at once.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt
