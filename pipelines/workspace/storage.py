"""The one module that knows storage: local folders and s3:// buckets behind the same few calls.

Paths are relative to a store's root and use `/`; none leads outside it (`Store.full`). Writes are atomic: a reader sees
the whole object or none. On a disk that is a temporary file beside the target, flushed and renamed; on a bucket a
single PUT or a completed upload. Filesystems are built lazily in each process, so a `Store` may be sent to Ray workers.

A request to a bucket that fails is repeated here and nowhere else (`_retry`): s3fs and botocore try once. The one
exception is the test whether a bucket can be reached (`_holds_objects`), which leaves five attempts to botocore.
"""

import contextlib
import errno
import functools
import hashlib
import itertools
import os
import random
import re
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlparse

from pipelines.runtime.errors import InputError, StageFailed

T = TypeVar("T")

MAX_ATTEMPTS = 10
"""How often a request is sent while it fails."""
FIRST_WAIT_SECONDS = 0.1
MAX_WAIT_SECONDS = 8.0
"""Longest wait between two attempts; ten attempts wait 32 seconds at most and half of that on average."""
MAX_RETRY_SECONDS = 180.0
"""No attempt begins later than this after the first one, so that a silent endpoint is reported in four minutes."""
CONNECT_SECONDS = 5.0
READ_SECONDS = 60.0
"""How long an endpoint may stay silent within an answer."""
LISTING_THREADS = 16
COPY_THREADS = 4
COPY_PIECE_BYTES = 16 << 20
MAX_GAP_BYTES = 4096
"""Bytes between two ranges of an object that are fetched along with them rather than by a request more."""
MAX_KEYS_PER_DELETE = 1000
"""Keys that one request may remove, by S3's rule."""


class StorageFailed(StageFailed, OSError):
    """Storage that cannot be read or written: a full disk, a folder without permission, an endpoint that keeps failing.

    Attributes:
        reason: the cause, without the path.
    """

    def __init__(self, text: str, reason: str = "") -> None:
        super().__init__(text)
        self.reason = reason or text


def path_part(value: str, *, what: str) -> str:
    """Return a value that becomes one folder's or file's name; InputError where it would lead elsewhere.

    Args:
        value: a code, a shard or a name.
        what: what it is, for the sentence.
    """
    if value in ("", ".", "..") or "/" in value or "\0" in value:
        raise InputError(f"the {what} {value!r} cannot be the name of a file")
    return value


# A file of which less than this share is stored has holes: reading them takes time that no recording is worth.
_MIN_STORED_SHARE = 1 / 16
_MIN_SPARSE_BYTES = 2**26


class _OtherLength(OSError):
    """A body has another length than was asked for."""


class ObjectChanged(OSError):
    """An object is no longer what the listing said: it was removed, cut short or replaced meanwhile."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object or file: path relative to the store's root, size in bytes, and a tag that changes with its content."""

    path: str
    size: int
    etag: str


@dataclass(frozen=True, kw_only=True)
class Store:
    """A folder or bucket prefix.

    Attributes:
        url: an absolute local path, or `s3://bucket/prefix`, without a trailing slash.
        anonymous: read a bucket without credentials.
    """

    url: str
    anonymous: bool = field(default=False)

    @property
    def is_local(self) -> bool:
        """Whether the store is a folder of this machine."""
        return not self.url.startswith("s3://")

    def full(self, path: str) -> str:
        """Return the absolute path or URL of a relative path.

        Raises:
            InputError: the path would lead outside the store.
        """
        parts = path.split("/")
        # A bucket's key may hold empty parts; of a path on a disk the first one would make it absolute.
        if ".." in parts or "\0" in path or (self.is_local and path and "" in parts):
            raise InputError(f"the path {path!r} leads outside {self.url}")
        return f"{self.url}/{path}" if path else self.url

    def child(self, path: str) -> "Store":
        """Return the store rooted at a folder of this one."""
        return Store(url=self.full(path), anonymous=self.anonymous)

    def exists(self, path: str) -> bool:
        """Whether an object is there; a failing store raises rather than answering no."""
        if self.is_local:
            return Path(self.full(path)).exists()
        try:
            self.stat(path)
        except FileNotFoundError:
            return False
        return True

    def stat(self, path: str) -> StoredObject:
        """Return size and tag of one object; FileNotFoundError where there is none."""
        if self.is_local:
            return _local_object(path, os.stat(self.full(path)))  # noqa: PTH116
        found = self._request(self._reading(path), "head_object", Key=self._key(path))
        return StoredObject(path, int(found["ContentLength"]), str(found["ETag"]).strip('"'))

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        """Return the bytes [start, start + length) of an object, fewer where it ends; all of them by default.

        A body that ends early is an error of the transport and is requested again.
        """
        return self._read(path, start, length, lambda size: length is None or size <= length)

    def read_checked(self, item: StoredObject, start: int = 0, length: int | None = None) -> bytes:
        """Return bytes of a listed object; a body shorter or longer than its listing is requested again.

        Raises:
            ObjectChanged: the object is no longer the one that was listed; of a file that has grown, the bytes that
                were listed are returned.
        """
        left = max(item.size - start, 0)
        expected = left if length is None else min(length, left)
        if self.is_local:
            return _read_listed(self.full(item.path), item, start, expected)
        if start and not expected:
            return b""
        try:
            return self._read(item.path, start, length, lambda size: size == expected)
        except (FileNotFoundError, StorageFailed) as error:
            if isinstance(error, FileNotFoundError) or isinstance(error.__cause__, _OtherLength):
                self._check_unchanged(item)
            raise

    def _check_unchanged(self, item: StoredObject) -> None:
        """Raise ObjectChanged where an object that cannot be read is not the one that was listed."""
        try:
            now = self.stat(item.path)
        except FileNotFoundError:
            raise ObjectChanged("it was removed after it was listed") from None
        if (now.size, now.etag) != (item.size, item.etag):
            raise ObjectChanged(f"it changed after it was listed with {item.size} bytes: it has {now.size}") from None

    def _read(self, path: str, start: int, length: int | None, fits: Callable[[int], bool]) -> bytes:
        def fetch() -> bytes:
            content = self._read_local(path, start, length) if self.is_local else self._fetch(path, start, length)
            if not fits(len(content)):
                raise _OtherLength(f"it gives {len(content)} bytes from byte {start} on, not what its listing says")
            return content

        return fetch() if self.is_local else _retry(fetch, self._reading(path))

    def _read_local(self, path: str, start: int, length: int | None) -> bytes:
        with Path(self.full(path)).open("rb") as file:
            file.seek(start)
            return file.read() if length is None else file.read(length)

    def _fetch(self, path: str, start: int, length: int | None) -> bytes:
        """Return what one GET gives."""
        end = None if length is None else start + length
        try:
            # One connection: for more, s3fs would ask for the size first.
            content: bytes = _filesystem(self.anonymous).cat_file(
                self.full(path), start=start if start or end is not None else None, end=end, max_concurrency=1
            )
        except OSError as error:
            if _code(error) in ("InvalidRange", "416"):
                return b""
            raise
        return content

    def write(self, path: str, content: bytes) -> None:
        """Write an object atomically and durably.

        Raises:
            StorageFailed: it cannot be written; names the path and the reason.
        """
        if self.is_local:
            with self.atomic_file(path) as temporary:
                temporary.write_bytes(content)
            return
        with self._writing(path):
            _retry(lambda: _filesystem(self.anonymous).pipe_file(self.full(path), content), self._written(path))

    @contextlib.contextmanager
    def atomic_file(self, path: str) -> Iterator[Path]:
        """Yield a local path to write to; on a clean exit its content becomes the object, else it vanishes.

        Raises:
            StorageFailed: it cannot be written, or the disk is full; names the path and the reason.
        """
        if self.is_local:
            target = Path(self.full(path))
            with self._writing(path):
                target.parent.mkdir(parents=True, exist_ok=True)
                handle, name = tempfile.mkstemp(prefix=".partial-", dir=target.parent)
                os.close(handle)
            temporary = Path(name)
            try:
                with self._writing(path, only=_DISK_FULL):
                    yield temporary
                with self._writing(path):
                    _flush(temporary)
                    temporary.chmod(0o666 & ~_umask())
                    temporary.replace(target)
                    _flush(target.parent)
            finally:
                temporary.unlink(missing_ok=True)
            return
        with tempfile.TemporaryDirectory(prefix="firnline-") as folder:
            temporary = Path(folder) / "object"
            yield temporary
            with self._writing(path):
                _retry(
                    lambda: _filesystem(self.anonymous).put_file(str(temporary), self.full(path)), self._written(path)
                )

    @contextlib.contextmanager
    def local_copy(self, path: str) -> Iterator[Path]:
        """Yield a local path that holds the object: the file itself, or a download that is removed afterwards."""
        if self.is_local:
            yield Path(self.full(path))
            return
        item = self.stat(path)
        with tempfile.TemporaryDirectory(prefix="firnline-") as folder:
            copy = Path(folder) / Path(path).name
            with copy.open("wb") as file, ThreadPoolExecutor(COPY_THREADS) as pool:

                def fetch(start: int) -> None:
                    os.pwrite(file.fileno(), self.read_checked(item, start, COPY_PIECE_BYTES), start)

                list(pool.map(fetch, range(0, item.size, COPY_PIECE_BYTES)))
            yield copy

    def open_ranges(self, item: StoredObject, ranges: Iterable[tuple[int, int]] = ()) -> Any:
        """Return a listed object of a bucket as a binary file; what is read of it is fetched, and no more.

        Args:
            item: the object.
            ranges: bytes [start, end) to fetch at once, several at a time; ranges that nearly touch are one request.
        """
        from fsspec.spec import AbstractBufferedFile
        from fsspec.utils import merge_offset_ranges

        store = self
        wanted = sorted((start, end) for start, end in ranges if 0 <= start < end <= item.size)
        starts, ends = [start for start, _ in wanted], [end for _, end in wanted]
        _, starts, ends = merge_offset_ranges([item.path] * len(wanted), starts, ends, MAX_GAP_BYTES, COPY_PIECE_BYTES)
        with ThreadPoolExecutor(COPY_THREADS) as pool:
            parts = pool.map(lambda start, end: self.read_checked(item, start, end - start), starts, ends)
            fetched = list(zip(starts, parts, strict=True))

        class Ranges(AbstractBufferedFile):  # type: ignore[misc]
            """A file whose ranges were fetched before, or are when they are read."""

            def _fetch_range(self, start: int, end: int) -> bytes:
                for begin, part in fetched:
                    if begin <= start and end <= begin + len(part):
                        return part[start - begin : end - begin]
                return store.read_checked(item, start, end - start)

        return Ranges(None, item.path, mode="rb", size=item.size, cache_type="none")

    def _reading(self, path: str) -> str:
        return f"{self.full(path)} cannot be read"

    def _written(self, path: str) -> str:
        return f"{self.full(path)} cannot be written"

    @contextlib.contextmanager
    def _writing(self, path: str, only: Collection[int] = ()) -> Iterator[None]:
        """Turn errors of storage inside into a StorageFailed that names the path; with `only`, those error numbers."""
        try:
            yield
        except StorageFailed:
            raise
        except _storage_errors() as error:
            if only and getattr(error, "errno", None) not in only:
                raise
            raise StorageFailed(f"{self._written(path)}: {_reason(error)}", _reason(error)) from error

    @property
    def _root(self) -> tuple[str, str]:
        """The bucket, and the beginning of every key with its slash."""
        bucket, _, prefix = self.url.removeprefix("s3://").partition("/")
        return bucket, f"{prefix}/" if prefix else ""

    def _key(self, path: str) -> str:
        return self.full(path).removeprefix("s3://").partition("/")[2]

    def _request(self, failing: str, method: str, **arguments: Any) -> Any:
        """Return the answer to one request to the bucket; `failing` says what cannot be done where it keeps failing."""
        bucket, _ = self._root
        return _retry(lambda: _filesystem(self.anonymous).call_s3(method, Bucket=bucket, **arguments), failing)

    def walk(
        self,
        prefix: str = "",
        *,
        keep_folder: Callable[[str], bool] | None = None,
        unreadable: dict[str, str] | None = None,
        follow_links: bool = True,
    ) -> Iterator[StoredObject]:
        """Yield every object below a folder, each folder listed once, several at a time, in sorted order of folders.

        Links to folders come last, and only those that lead to a folder which was not listed before.

        Args:
            prefix: folder relative to the root.
            keep_folder: called with each relative folder; False leaves it and all below it out.
            unreadable: takes the files and folders of a disk that cannot be read or are not files, with the reason;
                without it a folder that cannot be listed raises OSError.
            follow_links: also those out of the store, which are unreadable otherwise.
        """
        root = None if follow_links or not self.is_local else os.path.realpath(self.url)
        level, visited = [prefix], set[object]()
        links: list[str] = []
        while level:
            below: list[str] = []
            with ThreadPoolExecutor(LISTING_THREADS) as pool:
                fresh = level if not self.is_local else self._unvisited(level, visited)
                for files, folders, linked in pool.map(
                    lambda folder: self._list_folder(folder, unreadable, root), fresh
                ):
                    yield from files
                    below.extend(folder for folder in folders if keep_folder is None or keep_folder(folder))
                    links.extend(folder for folder in linked if keep_folder is None or keep_folder(folder))
            level = sorted(below)
            if not level:
                level, links = sorted(links), []

    def _unvisited(self, folders: Iterable[str], visited: set[object]) -> list[str]:
        """Return the folders of a disk that are not among the visited ones, and add them to these."""
        fresh = []
        for folder in folders:
            try:
                status = os.stat(self.full(folder))  # noqa: PTH116
            except OSError:
                # The listing says why.
                fresh.append(folder)
                continue
            identity = (status.st_dev, status.st_ino)
            if identity not in visited:
                visited.add(identity)
                fresh.append(folder)
        return fresh

    def remove(self, path: str) -> None:
        """Remove an object; it is no error where there is none."""
        with self._writing(path), contextlib.suppress(FileNotFoundError):
            if self.is_local:
                Path(self.full(path)).unlink(missing_ok=True)
            else:
                self._request(f"{self.full(path)} cannot be removed", "delete_object", Key=self._key(path))

    def remove_folder(self, path: str) -> None:
        """Remove a folder and all below it; it is no error where there is none."""
        if self.is_local:
            with self._writing(path):
                if Path(self.full(path)).exists():
                    shutil.rmtree(self.full(path))
            return
        # As many as one listing gives and one request removes.
        for some in _batched(self.walk(path), MAX_KEYS_PER_DELETE):
            self._remove_all([item.path for item in some])

    def _remove_all(self, paths: list[str]) -> None:
        keys = [{"Key": self._key(path)} for path in paths]
        failing = f"{self.full(paths[0])} and {len(paths) - 1} more cannot be removed"
        answer = self._request(failing, "delete_objects", Delete={"Objects": keys, "Quiet": True})
        for error in answer.get("Errors", []):
            reason = f"{error.get('Message') or error.get('Code')}"
            raise StorageFailed(f"s3://{self._root[0]}/{error.get('Key')} cannot be removed: {reason}", reason)

    def check_writable(self, *, what: str = "workspace") -> None:
        """Raise InputError with one sentence where nothing can be written; a folder made for the test is removed."""
        probe = f".write-probe-{os.getpid()}-{random.getrandbits(32):08x}"
        made = _missing_folders(self.url) if self.is_local else []
        try:
            if not self.is_local:
                _holds_objects(self)
            self.write(probe, b"firnline")
            self.remove(probe)
        except _storage_errors() as error:
            raise InputError(f"the {what} {self.url} cannot be written: {_reason(error)}") from None
        finally:
            with contextlib.suppress(OSError):
                for folder in made:
                    folder.rmdir()

    def _list_folder(
        self, folder: str, unreadable: dict[str, str] | None, inside: str | None
    ) -> tuple[list[StoredObject], list[str], list[str]]:
        """Return a folder's files, its folders, and its links to folders."""
        if self.is_local:
            return _list_local(self.full(folder), folder, unreadable, inside)
        _, root = self._root
        prefix = f"{self._key(folder)}/" if folder else root
        files, folders = [], []
        for page in self._pages(f"{self.full(folder)} cannot be listed", Prefix=prefix, Delimiter="/"):
            folders += [str(entry["Prefix"])[len(root) : -1] for entry in page.get("CommonPrefixes", [])]
            for entry in page.get("Contents", []):
                path = str(entry["Key"])[len(root) :]
                # Some programs keep an empty object for each folder.
                if not path.endswith("/") and path:
                    files.append(StoredObject(path, int(entry["Size"]), str(entry["ETag"]).strip('"')))
        return sorted(files, key=lambda item: item.path), sorted(folders), []

    def _pages(self, failing: str, **arguments: Any) -> Iterator[dict[str, Any]]:
        """Yield a listing page by page, each its own request; nothing of a bucket that does not exist."""
        while True:
            try:
                page = self._request(failing, "list_objects_v2", **arguments)
            except FileNotFoundError:
                return
            yield page
            if not page.get("IsTruncated"):
                return
            arguments["ContinuationToken"] = page["NextContinuationToken"]


def open_store(url: str, *, anonymous: bool = False) -> Store:
    """Return the store for a path, a file:// URL or an s3:// URL.

    Raises:
        InputError: another scheme, a bucket URL without a bucket, or no URL at all.
    """
    try:
        parsed = urlparse(url)
    except ValueError as error:
        raise InputError(f"{url} is not a valid URL: {error}") from None
    if parsed.scheme == "s3":
        if not parsed.netloc:
            raise InputError(f"{url} does not name a bucket; write s3://BUCKET/PREFIX")
        return Store(url=url.rstrip("/"), anonymous=anonymous)
    if parsed.scheme == "file":
        return Store(url=str(Path(unquote(parsed.path)).resolve()))
    if "://" in url:
        raise InputError(f"{url}: only local paths, file:// and s3:// URLs are supported")
    return Store(url=str(Path(url).expanduser().resolve()))


def check_readable(store: Store, *, what: str) -> None:
    """Raise InputError with one sentence where the folder or bucket is missing or refuses its credentials."""
    if store.is_local:
        try:
            if Path(store.url).is_file():
                raise InputError(f"the {what} {store.url} is a file; name the folder that holds it")
            os.scandir(store.url).close()
        except FileNotFoundError:
            raise InputError(f"the {what} {store.url} does not exist") from None
        except OSError as error:
            raise InputError(f"the {what} {store.url} cannot be read: {_reason(error)}") from None
        return
    try:
        found = _holds_objects(store)
    except _storage_errors() as error:
        raise InputError(f"the {what} {store.url} cannot be read: {_reason(error)}") from None
    if not found:
        raise InputError(f"the {what} {store.url} does not exist or is empty")


def content_hash(content: bytes) -> str:
    """Return the SHA-256 of some bytes as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def open_parent(url: str) -> tuple[Store, str]:
    """Return the store of the folder that a file lies in, and the file's name in it; InputError as `open_store`."""
    folder, slash, name = url.rpartition("/")
    return open_store(folder + slash or "."), name


def read_file(url: str, key: str) -> bytes:
    """Return the content of a file that a configuration key names; InputError names both where it cannot be read."""
    store, name = open_parent(url)
    with said_of(url, key):
        return store.read(name)


@contextlib.contextmanager
def said_of(url: str, key: str) -> Iterator[None]:
    """Turn what storage raises inside into an InputError that names a configuration key and its file or folder."""
    try:
        yield
    except _storage_errors() as error:
        raise InputError(f"{key} {url} cannot be read: {_reason(error)}") from None


def _missing_folders(path: str) -> list[Path]:
    """Return the folders on the way to a path that do not exist, deepest first."""
    return [folder for folder in (Path(path), *Path(path).parents) if not folder.exists()]


def _holds_objects(store: Store) -> bool:
    """Whether a bucket's prefix holds anything; five attempts, so that a wrong endpoint is reported within seconds."""
    import botocore.session
    from botocore import UNSIGNED
    from botocore.config import Config

    bucket, _, prefix = store.url.removeprefix("s3://").partition("/")
    config = Config(
        retries={"mode": "standard", "total_max_attempts": 5},
        connect_timeout=5,
        read_timeout=20,
        signature_version=UNSIGNED if store.anonymous else None,
    )
    client = botocore.session.get_session().create_client("s3", config=config)
    found = client.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/" if prefix else "", MaxKeys=1)
    return bool(found["KeyCount"])


def _local_object(path: str, status: os.stat_result) -> StoredObject:
    return StoredObject(path, status.st_size, f"{status.st_mtime_ns:x}-{status.st_size:x}")


def _list_local(
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
                    unreadable[path] = f"it cannot be read: {_reason(error)}"
    except (FileNotFoundError, NotADirectoryError):
        return [], [], []
    except OSError as error:
        if unreadable is None:
            raise
        unreadable[folder] = f"the folder cannot be listed: {_reason(error)}"
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


def _read_listed(absolute: str, item: StoredObject, start: int, length: int) -> bytes:
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
    return _local_object(path, status)


def _umask() -> int:
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


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _filesystem(anonymous: bool) -> Any:
    """Return this process's S3 filesystem, the same to threads that ask for it at the same time."""
    with _S3_LOCK:
        return _s3(anonymous)


_S3_LOCK = threading.Lock()


@functools.cache
def _s3(anonymous: bool) -> Any:
    """Return this process's filesystem; endpoint, region, keys and profile come from the standard AWS variables."""
    import s3fs

    os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    os.environ.setdefault("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
    filesystem = s3fs.S3FileSystem(
        anon=anonymous,
        use_listings_cache=False,
        skip_instance_cache=True,
        default_fill_cache=False,
        config_kwargs={
            "retries": {"mode": "standard", "total_max_attempts": 1},
            "read_timeout": READ_SECONDS,
            "connect_timeout": CONNECT_SECONDS,
            "max_pool_connections": 2 * LISTING_THREADS,
        },
    )
    filesystem.retries = 1
    return filesystem


def _storage_errors() -> tuple[type[BaseException], ...]:
    from botocore.exceptions import BotoCoreError, ClientError

    return OSError, BotoCoreError, ClientError


# Errors of a wrong set-up, which no repetition mends.
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
_FINAL_CODES = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "NoSuchBucket", "ExpiredToken")
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _retry(action: Callable[[], T], failing: str) -> T:
    """Return what a request to a bucket gives; it is sent again after faults that may pass.

    Waits double and are drawn at random (full jitter). The request is sent at most MAX_ATTEMPTS times, and no more once
    MAX_RETRY_SECONDS have passed.

    Raises:
        StorageFailed: the fault stays; the sentence begins with `failing`.
        OSError: what no repetition mends, as it is: not found, no permission.
    """
    from botocore.exceptions import NoCredentialsError, PartialCredentialsError

    wait = FIRST_WAIT_SECONDS
    began = time.monotonic()
    attempt = 1
    while True:
        try:
            return action()
        except (*_FINAL, NoCredentialsError, PartialCredentialsError):
            raise
        except Exception as error:
            passing = isinstance(error, _storage_errors()) or _is_transport(error)
            if not passing or any(code in str(error) for code in _FINAL_CODES) or _code(error) in _FINAL_CODES:
                raise
            pause = random.uniform(0, wait)
            if attempt == MAX_ATTEMPTS or time.monotonic() + pause - began > MAX_RETRY_SECONDS:
                reason = f"{_reason(error)} (tried {attempt} times)"
                raise StorageFailed(f"{failing}: {reason}", reason) from error
        time.sleep(pause)
        attempt += 1
        wait = min(2 * wait, MAX_WAIT_SECONDS)


def _code(error: BaseException) -> str:
    """Return S3's code of an error, such as AccessDenied; empty where it has none."""
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def _is_transport(error: BaseException) -> bool:
    return type(error).__module__.split(".")[0] in {"aiohttp", "asyncio", "botocore", "urllib3"}


def _batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while some := list(itertools.islice(iterator, size)):
        yield some


def _reason(error: BaseException) -> str:
    if isinstance(error, StorageFailed):
        return error.reason
    text = " ".join(str(error).split())
    if text in ("", "None"):
        # Some servers give a code and no message.
        text = _CODES_IN_WORDS.get(_code(error), _code(error)) or type(error).__name__
    if isinstance(error, OSError) and error.strerror and not error.strerror.startswith("An error"):
        text = error.strerror
    # A request's address ends with its parameters.
    text = re.sub(r"\?list-type=\S*?(?=\"|\s|$)", "", text)
    return text[:1].lower() + text[1:]


_CODES_IN_WORDS = {"AccessDenied": "access denied", "403": "access denied", "Forbidden": "access denied"}
