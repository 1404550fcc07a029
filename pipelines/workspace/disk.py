"""Files of this machine: what a folder holds, what is not opened, and reading what may have changed since."""

import contextlib
import errno
import os
import stat
import threading
from pathlib import Path

from pipelines.workspace.storage_errors import reason_of
from pipelines.workspace.stored_object import ObjectChanged, StoredObject

# A file of which less than this share is stored has holes: reading them takes time that no recording is worth.
_MIN_STORED_SHARE = 1 / 16
_MIN_SPARSE_BYTES = 2**26


def file_object(path: str, status: os.stat_result) -> StoredObject:
    """Return a file as a listing gives it; its tag changes with the time of its last change and its size."""
    return StoredObject(path, status.st_size, f"{status.st_mtime_ns:x}-{status.st_size:x}")


def list_folder(
    absolute: str, folder: str, unreadable: dict[str, str] | None, inside: str | None
) -> tuple[list[StoredObject], list[str], list[str]]:
    """Return a folder's files, its folders and its links to folders; links lead to below `inside` where it is given."""
    files: list[StoredObject] = []
    folders: list[str] = []
    links: list[str] = []
    try:
        with os.scandir(absolute) as entries:
            for entry in entries:
                path = f"{folder}/{entry.name}" if folder else entry.name
                try:
                    reason = None if unreadable is None else _not_a_file(entry, inside)
                    if reason is not None and unreadable is not None:
                        unreadable[path] = reason
                    elif entry.is_dir():
                        (links if entry.is_symlink() else folders).append(path)
                    elif entry.is_file() and not entry.name.startswith(".partial-"):
                        files.append(_listed_file(entry, path, check=unreadable is not None))
                except FileNotFoundError:
                    # It was removed meanwhile.
                    continue
                except OSError as error:
                    if unreadable is None:
                        raise
                    unreadable[path] = f"it cannot be read: {reason_of(error)}"
    except (FileNotFoundError, NotADirectoryError):
        return [], [], []
    except OSError as error:
        if unreadable is None:
            raise
        unreadable[folder] = f"the folder cannot be listed: {reason_of(error)}"
    return sorted(files, key=lambda item: item.path), sorted(folders), sorted(links)


def _not_a_file(entry: os.DirEntry[str], inside: str | None) -> str | None:
    """Return why an entry of a folder is not opened: where its link leads, or what it is; None where it can be."""
    if entry.is_symlink():
        try:
            target = os.path.realpath(entry.path, strict=True)
        except FileNotFoundError:
            return f"it is a link to {os.readlink(entry.path)}, which does not exist"  # noqa: PTH115
        if inside is not None and os.path.commonpath([inside, target]) != inside:
            return f"it is a link out of the archive, to {target}; archive.follow_links true follows it"
    mode = entry.stat().st_mode
    if stat.S_ISDIR(mode):
        return None
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
        return f"it is {kinds.get(stat.S_IFMT(mode), 'a device')}, not a file"
    size, stored = entry.stat().st_size, entry.stat().st_blocks * 512
    if size >= _MIN_SPARSE_BYTES and stored < size * _MIN_STORED_SHARE:
        return f"it is a sparse file: of its {size} bytes only {stored} are stored"
    return None


def read_listed(absolute: str, item: StoredObject, start: int, length: int) -> bytes:
    """Return bytes of a file of this machine, which may have become anything since it was listed."""
    try:
        handle = os.open(absolute, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        raise ObjectChanged("it was removed after it was listed") from None
    with open(handle, "rb", buffering=0) as file:  # noqa: PTH123
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise ObjectChanged("it is not a file any more")
        file.seek(start)
        parts: list[bytes] = []
        missing = length
        while missing and (part := file.read(missing)):
            parts.append(part)
            missing -= len(part)
        if missing:
            size = os.fstat(handle).st_size
            raise ObjectChanged(f"it changed after it was listed with {item.size} bytes: it has {size}")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _listed_file(entry: os.DirEntry[str], path: str, *, check: bool) -> StoredObject:
    """Return a file's size and tag; with `check`, PermissionError where this process may not read it."""
    status = entry.stat()
    # Most files may be read by all; the others need a second check.
    if check and status.st_mode & 0o444 != 0o444 and not os.access(entry.path, os.R_OK, effective_ids=True):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), entry.path)
    return file_object(path, status)


def umask() -> int:
    """Return this process's umask; where possible without setting it, which other threads would notice."""
    with contextlib.suppress(OSError), Path("/proc/self/status").open() as status:
        for line in status:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    with _UMASK_LOCK:
        mask = os.umask(0)
        os.umask(mask)
    return mask


_UMASK_LOCK = threading.Lock()


def flush(path: Path) -> None:
    """Make a file's or folder's content durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def missing_folders(path: str) -> list[Path]:
    """Return the folders on the way to a path that do not exist, deepest first."""
    return [folder for folder in (Path(path), *Path(path).parents) if not folder.exists()]
