"""Who writes to a workspace: one job at a time, on any host, and another one once its process or host has died.

What else one job at a time may write, such as a copy of the explorer, is held in the same way, in a folder beside it.

`holder.json` names the job that writes. It is written with a condition (`Store.swap`), so that of two jobs that begin
at the same time one is refused, on a disk as in a bucket. A job that was killed leaves the file. On its own host the
next job sees that the process is gone; elsewhere it waits until the file is renewed, and is refused, or has not been
renewed for `LEASE_SECONDS`, and takes the workspace over.
"""

import contextlib
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from pydantic import Field

from pipelines.runtime.errors import InputError, StageFailed
from pipelines.runtime.text import printable
from pipelines.workspace.artifacts import Artifact
from pipelines.workspace.disk import missing_folders
from pipelines.workspace.storage import Store
from pipelines.workspace.storage_errors import StorageFailed

INTERRUPT = signal.SIGUSR2
"""Ends a job that has lost its hold. Not SIGINT: a job that a script starts in the background ignores that."""

LEASE_SECONDS = 180.0
"""A holder on another host that has not renewed its hold for so long is taken for dead."""
RENEW_SECONDS = 20.0
"""How often a holder renews its hold."""
LOOK_SECONDS = 2.0
"""How often a job looks whether a holder on another host renews its hold."""
SAY_SECONDS = 60.0
"""How often it says that it waits for that."""


class Holder(Artifact):
    """`holder.json`: the job that writes to the workspace; where there is none, no job does."""

    PATH = "holder.json"

    token: str
    """Of this hold alone."""
    host: str
    boot: str
    """Of the host's kernel, until it starts again; empty where it is not known."""
    processes: str
    """The host's namespace of processes, such as a container's; empty where it is not known."""
    process: int = Field(ge=0)
    started: str
    """The start of the process, in the kernel's clock; empty where it is not known."""
    command: str
    since: str
    """UTC."""
    renewals: int = Field(default=0, ge=0)

    def content(self) -> bytes:
        """Return the file's bytes; they differ with every renewal."""
        return (self.model_dump_json(indent=1) + "\n").encode()

    def is_gone(self) -> bool | None:
        """Whether the process has ended; None where this cannot be seen from here."""
        if not self.boot or (self.boot, self.processes) != _this_machine():
            return None
        return _start_of(self.process) != self.started

    def describe(self) -> str:
        """Return who holds the workspace, as part of a sentence."""
        text = f"`{self.command}` (process {self.process} on {self.host}, since {self.since})"
        return printable(text)


@contextlib.contextmanager
def held(store: Store, command: str, what: str | None = None) -> Iterator[None]:
    """Hold a workspace for a job that writes, until the block ends.

    Args:
        store: the workspace; its folder is made where it does not exist, and removed again where nothing was written.
        command: what is told to those who are refused.
        what: is held, as they are told; default: the workspace.

    Raises:
        InputError: another job holds it; names it.
        StageFailed: the job was taken for dead, since it could not renew its hold, and another took the workspace.
    """
    made = missing_folders(store.url) if store.is_local else []
    boot, processes = _this_machine()
    holder = Holder(
        token=secrets.token_hex(16),
        host=socket.gethostname(),
        boot=boot,
        processes=processes,
        process=os.getpid(),
        started=_start_of(os.getpid()),
        command=command,
        since=f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
    )
    what = what or store.url
    _take(store, holder, what)
    hold = _Hold(store, holder, what)
    hold.start()
    try:
        with _interrupted_by(INTERRUPT):
            yield
    except KeyboardInterrupt:
        if hold.lost:
            raise StageFailed(hold.lost) from None
        raise
    finally:
        hold.stop()
        with contextlib.suppress(OSError):
            for folder in made:
                folder.rmdir()


def _take(store: Store, holder: Holder, what: str) -> None:
    """Write who holds the workspace; InputError where another job does."""
    while True:
        try:
            found = store.read(Holder.PATH)
        except FileNotFoundError:
            found = None
        if found is not None:
            _wait_for_the_dead(store, found, what)
        if store.swap(Holder.PATH, holder.content(), was=found):
            if found is not None:
                print(f"{what}: taken over from {_described(_parse(found))}, which has died", flush=True)
            return


def _parse(content: bytes) -> Holder | None:
    """Return what the file holds; None where it was cut short or is of another version."""
    try:
        return Holder.model_validate_json(content)
    except ValueError:
        return None


def _described(holder: Holder | None) -> str:
    return "another job" if holder is None else holder.describe()


def _wait_for_the_dead(store: Store, found: bytes, what: str) -> None:
    """Return once a holder is taken for dead, or has given the workspace free; InputError once it is seen to live.

    Args:
        store: the workspace.
        found: what the file holds; a holder that lives on another host renews it.
        what: is held.
    """
    holder = _parse(found)
    gone = None if holder is None else holder.is_gone()
    said = time.monotonic() - SAY_SECONDS
    while gone is None:
        try:
            age = store.seconds_since_written(Holder.PATH)
            renewed = store.read(Holder.PATH) != found
        except FileNotFoundError:
            return
        if renewed:
            gone = False
        elif age > LEASE_SECONDS:
            return
        else:
            if time.monotonic() - said >= SAY_SECONDS:
                said = time.monotonic()
                print(
                    f"{what}: waiting for {_described(holder)}; it counts as dead, and this job begins, "
                    f"if it shows no sign of life for another {LEASE_SECONDS - max(age, 0):.0f} s",
                    file=sys.stderr,
                    flush=True,
                )
            time.sleep(LOOK_SECONDS)
    if not gone:
        raise InputError(f"{what} is in use by {_described(holder)}; wait until it has ended")


class _Hold:
    """Renews a hold in a thread of its own until it is stopped."""

    def __init__(self, store: Store, holder: Holder, what: str) -> None:
        self.store, self.holder, self.what = store, holder, what
        self.lost = ""
        """Why the hold does not hold any more; empty while it does."""
        self._owner = threading.get_ident()
        self._in_main_thread = threading.current_thread() is threading.main_thread()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Give the workspace free, where it is still held."""
        self._stop.set()
        self._thread.join()
        # What cannot be removed now ends by itself.
        with contextlib.suppress(StorageFailed, FileNotFoundError):
            if self._is_ours(self.store.read(Holder.PATH)):
                self.store.remove(Holder.PATH)

    def _is_ours(self, content: bytes) -> bool:
        found = _parse(content)
        return found is not None and found.token == self.holder.token

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_SECONDS):
            renewed = self.holder.model_copy(update={"renewals": self.holder.renewals + 1})
            try:
                found = self.store.read(Holder.PATH)
                if self._is_ours(found) and self.store.swap(Holder.PATH, renewed.content(), was=found):
                    self.holder = renewed
                    continue
            except FileNotFoundError:
                pass
            except (StorageFailed, OSError):
                # Storage that is away for a while; nobody else can take the workspace there, either.
                continue
            self.lost = (
                f"{self.what} was taken by another job, since this one could not renew its hold for "
                f"{LEASE_SECONDS:.0f} s; run the same command again once the other has ended"
            )
            if self._in_main_thread and not self._stop.is_set():
                signal.pthread_kill(self._owner, INTERRUPT)
            return


@contextlib.contextmanager
def _interrupted_by(number: signal.Signals) -> Iterator[None]:
    """Raise KeyboardInterrupt where a signal comes inside; Python can do that in the main thread alone."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(number, _interrupt) if main else None
    try:
        yield
    finally:
        if main:
            signal.signal(number, before if before is not None else signal.SIG_DFL)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _this_machine() -> tuple[str, str]:
    """Return what tells this run of this host, and this namespace of its processes, from others; empty if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return boot, os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - it links to no path
    except OSError:
        return "", ""


def _start_of(process: int) -> str:
    """Return when a process of this host started, in the kernel's clock; empty where it has ended."""
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return ""
    # Its name, in parentheses, may hold blanks; the state is the third field, the start the 22nd.
    fields = text.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else fields[19]
