"""Decode so that a crash of the decoder, which is C, costs one file: noted before, taken apart after.

What a process is decoding stands in a small note on this machine while it does so. A process that dies leaves its note;
whoever decodes that file next does it in a process of its own, and where that dies, too, the file's bytes are reported
as damaged. So a task that is tried again does not die again.
"""

import hashlib
import mmap
import os
import pickle
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipelines.archive.records import Channel, Decoded, decode
from pipelines.archive.sample_counts import Drop

MIN_SECONDS = 10.0
MIN_BYTES_PER_SECOND = 2**20
"""A process that decodes a part of a file apart may compute for `MIN_SECONDS` and so long. The slowest files that we
know, records of one sample each, take a fifteenth of that."""
MAX_SLOWNESS = 10
"""On a busy machine it may take so many times longer."""
_NAME_BYTES = 64
_CHILD = """
import math, pickle, resource, sys
from pipelines.archive.records import decode
content, options, seconds, record = pickle.load(sys.stdin.buffer)
decode(record)
limit = math.ceil(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]) + seconds)
resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
pickle.dump(decode(content, **options), sys.stdout.buffer)
"""
# Of one sample: what must be compiled is compiled over it, before the time is taken.
_RECORD = (
    b"000001D XX     HHZXX"
    + struct.pack(">HHBBBBHHhhBBBBiHH", 2020, 1, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 0, 64, 48)
    + struct.pack(">HHBBBB", 1000, 0, 3, 1, 7, 0)
).ljust(128, b"\0")
_here = threading.local()


def decode_file_part(
    name: str, content: bytes, wanted: Callable[[Channel], bool], *, folder: Path | None = None, **options: Any
) -> Decoded:
    """Return `records.decode` of a part of a file, in a process of its own where a process died over that file.

    Args:
        name: what tells this file, in this state, from all others.
        content: the part's bytes.
        wanted: as in `records.decode`.
        folder: where notes are kept; a private folder of this user by default.
        options: those of `records.decode`.
    """
    folder = _folder() if folder is None else folder
    if folder is None:
        return decode(content, wanted=wanted, **options)
    mark = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()
    _collect(folder)
    suspect = folder / f"{mark}.suspect"
    if suspect.exists():
        decoded = _decode_apart(content, wanted, options)
        if decoded is not None:
            suspect.unlink(missing_ok=True)
            return decoded
        offset = options.get("offset", 0)
        decoded = Decoded(damaged_bytes=len(content))
        decoded.report(f"bytes {offset} to {offset + len(content)}: the decoder crashes on them")
        return decoded
    with _noted(folder, mark):
        return decode(content, wanted=wanted, **options)


def _decode_apart(content: bytes, wanted: Callable[[Channel], bool], options: dict[str, Any]) -> Decoded | None:
    """Decode in a process of its own; None where that dies or does not end."""
    seconds = MIN_SECONDS + len(content) / MIN_BYTES_PER_SECOND
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _CHILD],
            input=pickle.dumps((content, options, seconds, _RECORD)),
            capture_output=True,
            check=True,
            timeout=MAX_SLOWNESS * seconds,
            env=environment,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return None
    decoded: Decoded = pickle.loads(done.stdout)
    decoded.runs = [run for run in decoded.runs if wanted(run.channel)]
    for channel, counts in decoded.counts.items():
        if channel is not None and not wanted(channel):
            counts.drop(Drop.CHANNEL, counts.returned)
    return decoded


def _folder() -> Path | None:
    """Return this user's folder of notes; None where another user made it."""
    folder = Path(tempfile.gettempdir()) / f"firnline-decoding-{os.getuid()}"
    with suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        state = folder.lstat()
        if state.st_uid == os.geteuid() and not state.st_mode & 0o077 and not folder.is_symlink():
            return folder
    return None


def _collect(folder: Path) -> None:
    """Make suspects of the files that stand in the notes of processes that died."""
    for note in folder.iterdir():
        process, _, kind = note.name.partition(".")
        if kind.endswith("suspect") or not process.isdigit() or int(process) == os.getpid() or _lives(int(process)):
            continue
        with suppress(OSError):
            mark = note.read_bytes()[:_NAME_BYTES].rstrip(b"\0").decode("ascii", "replace")
            if len(mark) == _NAME_BYTES and mark.isalnum():
                (folder / f"{mark}.suspect").touch()
            note.unlink()


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


@contextmanager
def _noted(folder: Path, mark: str) -> Iterator[None]:
    """Have a file's mark in this thread's note, in memory that outlives the process."""
    key = (os.getpid(), folder)
    if getattr(_here, "key", None) != key:
        path = folder / f"{os.getpid()}.{threading.get_native_id()}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        os.ftruncate(descriptor, _NAME_BYTES)
        _here.note = mmap.mmap(descriptor, _NAME_BYTES)
        os.close(descriptor)
        _here.key = key
    _here.note[:] = mark.encode()
    try:
        yield
    finally:
        _here.note[:] = bytes(_NAME_BYTES)
