"""The one module that knows storage: local folders and s3:// buckets behind the same few calls.

Paths are relative to a store's root and use `/`. Writes are atomic: a reader sees the whole object or none. On a disk
that is a temporary file beside the target, flushed and renamed; on a bucket a single PUT or a completed upload.
Filesystems are built lazily in each process, so a `Store` may be sent to Ray workers.
"""

import contextlib
import errno
import functools
import hashlib
import os
import random
import re
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlparse

from pipelines.runtime.errors import InputError

T = TypeVar("T")

MAX_ATTEMPTS = 10
FIRST_WAIT_SECONDS = 0.1
LONGEST_WAIT_SECONDS = 8.0
LISTING_THREADS = 16


# A file of which less than this share is stored has holes: reading them takes time that no recording is worth.
_MIN_STORED_SHARE = 1 / 16
_MIN_SPARSE_BYTES = 2**26


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
        """Return the absolute path or URL of a relative path."""
        return f"{self.url}/{path}" if path else self.url

    def child(self, path: str) -> "Store":
        """Return the store rooted at a folder of this one."""
        return Store(url=self.full(path), anonymous=self.anonymous)

    def exists(self, path: str) -> bool:
        """Whether an object is there; a failing store raises rather than answering no."""
        if self.is_local:
            return Path(self.full(path)).exists()
        return _retry(lambda: bool(_filesystem(self.anonymous).exists(self.full(path))))

    def stat(self, path: str) -> StoredObject:
        """Return size and tag of one object; FileNotFoundError where there is none."""
        if self.is_local:
            return _local_object(path, os.stat(self.full(path)))  # noqa: PTH116
        info = _retry(lambda: _filesystem(self.anonymous).info(self.full(path), refresh=True))
        return StoredObject(path, int(info["size"]), str(info["ETag"]).strip('"'))

    def read(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        """Return the bytes [start, start + length) of an object; all of them by default.

        A body that ends early is an error of the transport and is asked for again.
        """
        if self.is_local:
            with Path(self.full(path)).open("rb") as file:
                file.seek(start)
                return file.read() if length is None else file.read(length)
        end = None if length is None else start + length

        def fetch() -> bytes:
            content: bytes = _filesystem(self.anonymous).cat_file(self.full(path), start=start or None, end=end)
            if length is not None and len(content) > length:
                raise OSError(f"{self.full(path)}: asked for {length} bytes, got {len(content)}")
            return content

        return _retry(fetch)

    def read_checked(self, item: StoredObject, start: int = 0, length: int | None = None) -> bytes:
        """Return bytes of a listed object; a body shorter or longer than the listing says is asked for again.

        Raises:
            ObjectChanged: the object is no longer the one that was listed; of a file that has grown, the bytes that
                were listed are returned.
        """
        left = max(item.size - start, 0)
        expected = left if length is None else min(length, left)

        def fetch() -> bytes:
            content = self.read(item.path, start, length) if expected or not start else b""
            if len(content) != expected:
                raise OSError(
                    f"{self.full(item.path)} gives {len(content)} bytes from {start} on; the listing says {expected}"
                )
            return content

        if self.is_local:
            return _read_listed(self.full(item.path), item, start, expected)
        try:
            return _retry(fetch)
        except _storage_errors():
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

    def write(self, path: str, content: bytes) -> None:
        """Write an object atomically and durably."""
        if self.is_local:
            with self.atomic_file(path) as temporary:
                temporary.write_bytes(content)
            return
        _retry(lambda: _filesystem(self.anonymous).pipe_file(self.full(path), content))

    @contextlib.contextmanager
    def atomic_file(self, path: str) -> Iterator[Path]:
        """Yield a local path to write to; on a clean exit its content becomes the object, else it vanishes."""
        if self.is_local:
            target = Path(self.full(path))
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=".partial-", dir=target.parent)
            os.close(handle)
            temporary = Path(name)
            try:
                yield temporary
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
            _retry(lambda: _filesystem(self.anonymous).put_file(str(temporary), self.full(path)))

    @contextlib.contextmanager
    def local_copy(self, path: str) -> Iterator[Path]:
        """Yield a local path that holds the object: the file itself, or a download that is removed afterwards."""
        if self.is_local:
            yield Path(self.full(path))
            return
        with tempfile.TemporaryDirectory(prefix="firnline-") as folder:
            copy = Path(folder) / Path(path).name
            _retry(lambda: _filesystem(self.anonymous).get_file(self.full(path), str(copy)))
            yield copy

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
        """Remove an object; none there is no error."""
        if self.is_local:
            Path(self.full(path)).unlink(missing_ok=True)
            return
        with contextlib.suppress(FileNotFoundError):
            _retry(lambda: _filesystem(self.anonymous).rm_file(self.full(path)))

    def remove_folder(self, path: str) -> None:
        """Remove a folder and all below it; none there is no error."""
        if self.is_local:
            if Path(self.full(path)).exists():
                shutil.rmtree(self.full(path))
            return
        with contextlib.suppress(FileNotFoundError):
            _retry(lambda: _filesystem(self.anonymous).rm(self.full(path), recursive=True))

    def check_writable(self, *, what: str = "workspace") -> None:
        """Raise InputError with one sentence where nothing can be written; a folder made for the test goes again."""
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
        root = self.url.removeprefix("s3://") + "/"

        def fetch() -> list[dict[str, Any]]:
            try:
                found: list[dict[str, Any]] = _filesystem(self.anonymous).ls(
                    self.full(folder), detail=True, refresh=True
                )
                return found
            except FileNotFoundError:
                return []

        files, folders = [], []
        for info in _retry(fetch):
            path = str(info["name"]).removeprefix(root)
            if info["type"] == "directory":
                folders.append(path)
            elif path != folder and not path.endswith("/"):
                files.append(StoredObject(path, int(info["size"]), str(info["ETag"]).strip('"')))
        return sorted(files, key=lambda item: item.path), sorted(folders), []


def open_store(url: str, *, anonymous: bool = False) -> Store:
    """Return the store for a path, a file:// URL or an s3:// URL.

    Raises:
        InputError: another scheme, a bucket URL without a bucket, or no URL at all.
    """
    try:
        parsed = urlparse(url)
    except ValueError as error:
        raise InputError(f"{url} is no URL: {error}") from None
    if parsed.scheme == "s3":
        if not parsed.netloc:
            raise InputError(f"{url} names no bucket; write s3://BUCKET/PREFIX")
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
    """Whether a bucket's prefix holds anything; five attempts, so that a wrong endpoint is said within seconds."""
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
    # Most files may be read by all, and need no second question.
    if check and status.st_mode & 0o444 != 0o444 and not os.access(entry.path, os.R_OK, effective_ids=True):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), entry.path)
    return _local_object(path, status)


def _umask() -> int:
    """Return this process's mask without the moment of none that setting it takes, which other threads would see."""
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
    return s3fs.S3FileSystem(
        anon=anonymous,
        use_listings_cache=False,
        skip_instance_cache=True,
        default_fill_cache=False,
        config_kwargs={
            "retries": {"mode": "standard", "total_max_attempts": MAX_ATTEMPTS},
            "read_timeout": 60,
            "connect_timeout": 10,
            "max_pool_connections": 2 * LISTING_THREADS,
        },
    )


def _storage_errors() -> tuple[type[BaseException], ...]:
    from botocore.exceptions import BotoCoreError, ClientError

    return OSError, BotoCoreError, ClientError


# What a wrong set-up gives at once and no repetition mends.
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
_FINAL_CODES = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "NoSuchBucket", "ExpiredToken")


def _retry(action: Callable[[], T]) -> T:
    """Run an S3 action again after faults that may pass, with doubling waits and full jitter."""
    from botocore.exceptions import NoCredentialsError, PartialCredentialsError

    wait = FIRST_WAIT_SECONDS
    for attempt in range(1, MAX_ATTEMPTS + 1):
        try:
            return action()
        except (*_FINAL, NoCredentialsError, PartialCredentialsError):
            raise
        except Exception as error:
            passing = isinstance(error, _storage_errors()) or _is_transport(error)
            if not passing or attempt == MAX_ATTEMPTS or any(code in str(error) for code in _FINAL_CODES):
                raise
        time.sleep(random.uniform(0, wait))
        wait = min(2 * wait, LONGEST_WAIT_SECONDS)
    raise AssertionError("unreachable")


def _is_transport(error: BaseException) -> bool:
    return type(error).__module__.split(".")[0] in {"aiohttp", "asyncio", "botocore", "urllib3"}


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.strerror and not error.strerror.startswith("An error"):
        text = error.strerror
    # A request's address ends with its parameters.
    text = re.sub(r"\?list-type=\S*?(?=\"|\s|$)", "", text)
    return text[:1].lower() + text[1:]
