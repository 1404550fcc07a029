"""Local folders and s3:// buckets behind the same few calls: what all other code opens storage with.

Paths are relative to a store's root and use `/`; none leads outside it (`Store.full`). Writes are atomic: a reader sees
the whole object or none. On a disk that is a temporary file beside the target, flushed and renamed; on a bucket a
single PUT or a completed upload. Filesystems are built lazily in each process, so a `Store` may be sent to Ray workers.

`workspace/s3_requests.py` decides how often a failing request to a bucket is repeated, and `workspace/disk.py` which
files of a disk are not opened.
"""

import contextlib
import fcntl
import hashlib
import itertools
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlparse

from pipelines.runtime.errors import InputError
from pipelines.workspace.disk import file_object, flush, list_folder, missing_folders, read_listed, umask
from pipelines.workspace.s3_requests import CONDITION_FAILED, NO_SUCH_RANGE, filesystem, holds_objects, retry, tail_of
from pipelines.workspace.storage_errors import (
    DISK_FULL,
    OtherLength,
    StorageFailed,
    error_code,
    reason_of,
    storage_errors,
)
from pipelines.workspace.stored_object import ObjectChanged, StoredObject

T = TypeVar("T")

LISTING_THREADS = 16
COPY_THREADS = 4
COPY_PIECE_BYTES = 16 << 20
MAX_GAP_BYTES = 4096
"""Bytes between two ranges of an object that are fetched along with them rather than by a request more."""
MAX_KEYS_PER_DELETE = 1000
"""Keys that one request may remove, by S3's rule."""


def path_part(value: str, *, what: str) -> str:
    """Return a value that becomes one folder's or file's name; InputError where it would lead elsewhere.

    Args:
        value: a code, a shard or a name.
        what: what it is, for the sentence.
    """
    if value in ("", ".", "..") or "/" in value or "\0" in value:
        raise InputError(f"the {what} {value!r} cannot be the name of a file")
    return value


@dataclass(frozen=True, kw_only=True)
class Store:
    """A folder or bucket prefix.

    Attributes:
        url: an absolute local path, or `s3://bucket/prefix`, without a trailing slash.
        anonymous: read a bucket without credentials.
        beside: a folder of the store, in which the paths of `paths_beside` and all below them lie.
    """

    url: str
    anonymous: bool = field(default=False)
    beside: str = ""
    paths_beside: tuple[str, ...] = ()

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
        if any(path == known or path.startswith(f"{known}/") for known in self.paths_beside):
            path = f"{self.beside}/{path}"
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
            return file_object(path, os.stat(self.full(path)))  # noqa: PTH116
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
            return read_listed(self.full(item.path), item, start, expected)
        if start and not expected:
            return b""
        try:
            return self._read(item.path, start, length, lambda size: size == expected)
        except (FileNotFoundError, StorageFailed) as error:
            if isinstance(error, FileNotFoundError) or isinstance(error.__cause__, OtherLength):
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
                raise OtherLength(f"it gives {len(content)} bytes from byte {start} on, not what its listing says")
            return content

        return fetch() if self.is_local else retry(fetch, self._reading(path))

    def _read_local(self, path: str, start: int, length: int | None) -> bytes:
        with Path(self.full(path)).open("rb") as file:
            file.seek(start)
            return file.read() if length is None else file.read(length)

    def read_tail(self, path: str, length: int) -> tuple[bytes, StoredObject]:
        """Return the last bytes of an object, all of a shorter one, and its size and tag: of a bucket in one request.

        Raises:
            FileNotFoundError: there is no such object.
        """
        if self.is_local:
            item = self.stat(path)
            return self.read_checked(item, max(item.size - length, 0), length), item

        def fetch() -> tuple[bytes, StoredObject]:
            try:
                content, size, etag = tail_of(self.full(path), length, anonymous=self.anonymous)
            except OSError as error:
                if error_code(error) not in NO_SUCH_RANGE:
                    raise
                # Of an empty object there are no last bytes.
                return b"", self.stat(path)
            if len(content) != min(length, size):
                raise OtherLength(f"it gives {len(content)} of its last {length} bytes, and has {size}")
            return content, StoredObject(path, size, etag)

        return retry(fetch, self._reading(path))

    def _fetch(self, path: str, start: int, length: int | None) -> bytes:
        """Return what one GET gives."""
        end = None if length is None else start + length
        try:
            # One connection: for more, s3fs would ask for the size first.
            content: bytes = filesystem(self.anonymous).cat_file(
                self.full(path), start=start if start or end is not None else None, end=end, max_concurrency=1
            )
        except OSError as error:
            if error_code(error) in NO_SUCH_RANGE:
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
            retry(lambda: filesystem(self.anonymous).pipe_file(self.full(path), content), self._written(path))

    def swap(self, path: str, content: bytes, *, was: bytes | None) -> bool:
        """Write an object only where it still holds `was`, or where there is none (None); return whether it did.

        Of several processes that swap the same content at the same time, on any host, one succeeds: a bucket takes
        writes with a condition (If-None-Match, If-Match). No two calls may write the same content.

        Raises:
            StorageFailed: it cannot be written.
        """
        if self.is_local:
            return self._swap_local(path, content, was)
        condition = {"IfNoneMatch": "*"}
        if was is not None:
            try:
                condition = {"IfMatch": self.stat(path).etag}
                if self.read(path) != was:
                    return False
            except FileNotFoundError:
                return False
        with self._writing(path):
            try:
                self._request(self._written(path), "put_object", Key=self._key(path), Body=content, **condition)
            except FileNotFoundError:
                return False
            except OSError as error:
                if error_code(error) not in CONDITION_FAILED:
                    raise
                # An answer may have been lost after the object was written.
                return self._holds(path, content)
        return True

    def _swap_local(self, path: str, content: bytes, was: bytes | None) -> bool:
        target = Path(self.full(path))
        with self._writing(path):
            target.parent.mkdir(parents=True, exist_ok=True)
            folder = os.open(target.parent, os.O_RDONLY)
            try:
                # Not every network file system locks folders.
                with contextlib.suppress(OSError):
                    fcntl.flock(folder, fcntl.LOCK_EX)
                if was is not None:
                    if not self._holds(path, was):
                        return False
                    self.write(path, content)
                    return True
                try:
                    with target.open("xb") as file:
                        file.write(content)
                except FileExistsError:
                    return False
                except OSError:
                    target.unlink()
                    raise
            finally:
                os.close(folder)
        return True

    def _holds(self, path: str, content: bytes) -> bool:
        try:
            return self.read(path) == content
        except FileNotFoundError:
            return False

    def seconds_since_written(self, path: str) -> float:
        """Return how long ago an object was written, by the clock of its storage; FileNotFoundError without one."""
        if self.is_local:
            target = Path(self.full(path))
            # Opening a file asks its server for the time as it is now.
            with target.open("rb") as file, self._writing(path):
                written = os.fstat(file.fileno()).st_mtime
                with tempfile.NamedTemporaryFile(prefix=".partial-", dir=target.parent) as now:
                    return os.fstat(now.fileno()).st_mtime - written
        found = self._request(self._reading(path), "head_object", Key=self._key(path))
        now_there = parsedate_to_datetime(found["ResponseMetadata"]["HTTPHeaders"]["date"])
        return float((now_there - found["LastModified"]).total_seconds())

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
                with self._writing(path, only=DISK_FULL):
                    yield temporary
                with self._writing(path):
                    flush(temporary)
                    temporary.chmod(0o666 & ~umask())
                    temporary.replace(target)
                    flush(target.parent)
            finally:
                temporary.unlink(missing_ok=True)
            return
        with tempfile.TemporaryDirectory(prefix="firnline-") as folder:
            temporary = Path(folder) / "object"
            yield temporary
            with self._writing(path):
                retry(lambda: filesystem(self.anonymous).put_file(str(temporary), self.full(path)), self._written(path))

    @contextlib.contextmanager
    def local_copy(self, item: StoredObject | str) -> Iterator[Path]:
        """Yield a local path that holds the object: the file itself, or a download that is removed afterwards.

        Args:
            item: its path, or its entry in a listing, which saves a request to a bucket.
        """
        path = item if isinstance(item, str) else item.path
        if self.is_local:
            yield Path(self.full(path))
            return
        item = self.stat(path) if isinstance(item, str) else item
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
        except storage_errors() as error:
            if only and getattr(error, "errno", None) not in only:
                raise
            raise StorageFailed(f"{self._written(path)}: {reason_of(error)}", reason_of(error)) from error

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
        return retry(lambda: filesystem(self.anonymous).call_s3(method, Bucket=bucket, **arguments), failing)

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

    def files(self, folder: str) -> Iterator[StoredObject]:
        """Yield the objects of a folder, not those of the folders in it; of a bucket's no more pages than it takes."""
        if self.is_local:
            yield from self._list_folder(folder, None, None)[0]
        else:
            for files, _ in self._bucket_folder(folder):
                yield from files

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

    def take_place(self, path: str, target: str, *, old: str) -> None:
        """Let a folder or an object take the place of another one; after a kill it can be called again.

        Args:
            path: what takes the place. On a disk it is renamed, in a bucket copied, so that it stays.
            target: whose place that is.
            old: where the other one goes on a disk.
        """
        if self.is_local:
            source, place, aside = Path(self.full(path)), Path(self.full(target)), Path(self.full(old))
            with self._writing(target):
                if not source.exists():
                    return
                aside.parent.mkdir(parents=True, exist_ok=True)
                place.parent.mkdir(parents=True, exist_ok=True)
                if place.exists():
                    if aside.is_dir():
                        self.remove_folder(old)
                    place.rename(aside)
                source.rename(place)
                flush(place.parent)
            return
        items = list(self.walk(path)) or [self.stat(path)]
        kept = {target + item.path.removeprefix(path) for item in items}

        def copy(item: StoredObject) -> None:
            source, place = self.full(item.path), self.full(target + item.path.removeprefix(path))
            retry(lambda: filesystem(self.anonymous).cp_file(source, place), f"{place} cannot be written")

        with self._writing(target), ThreadPoolExecutor(LISTING_THREADS) as pool:
            list(pool.map(copy, items))
        for item in list(self.walk(target)):
            if item.path not in kept:
                self.remove(item.path)

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
        made = missing_folders(self.url) if self.is_local else []
        try:
            if not self.is_local:
                holds_objects(self.url, anonymous=self.anonymous)
            self.write(probe, b"firnline")
            self.remove(probe)
        except storage_errors() as error:
            raise InputError(f"the {what} {self.url} cannot be written: {reason_of(error)}") from None
        finally:
            with contextlib.suppress(OSError):
                for folder in made:
                    folder.rmdir()

    def _list_folder(
        self, folder: str, unreadable: dict[str, str] | None, inside: str | None
    ) -> tuple[list[StoredObject], list[str], list[str]]:
        """Return a folder's files, its folders, and its links to folders."""
        if self.is_local:
            return list_folder(self.full(folder), folder, unreadable, inside)
        files, folders = [], []
        for found, below in self._bucket_folder(folder):
            files += found
            folders += below
        return sorted(files, key=lambda item: item.path), sorted(folders), []

    def _bucket_folder(self, folder: str) -> Iterator[tuple[list[StoredObject], list[str]]]:
        """Yield the files and folders of a bucket's folder, page by page."""
        _, root = self._root
        prefix = f"{self._key(folder)}/" if folder else root
        path_before = f"{folder}/" if folder else ""
        for page in self._pages(f"{self.full(folder)} cannot be listed", Prefix=prefix, Delimiter="/"):
            names = [str(entry["Prefix"])[len(prefix) : -1] for entry in page.get("CommonPrefixes", [])]
            files = []
            for entry in page.get("Contents", []):
                name = str(entry["Key"])[len(prefix) :]
                path = path_before + name
                # Some programs keep an empty object for each folder.
                if not path.endswith("/") and name:
                    files.append(StoredObject(path, int(entry["Size"]), str(entry["ETag"]).strip('"')))
            yield files, [path_before + name for name in names]

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
            raise InputError(f"the {what} {store.url} cannot be read: {reason_of(error)}") from None
        return
    try:
        found = holds_objects(store.url, anonymous=store.anonymous)
    except storage_errors() as error:
        raise InputError(f"the {what} {store.url} cannot be read: {reason_of(error)}") from None
    if not found:
        raise InputError(f"the {what} {store.url} does not exist or is empty")


def content_hash(content: bytes) -> str:
    """Return the SHA-256 of some bytes as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def open_parent(url: str) -> tuple[Store, str]:
    """Return the store of the folder that a file lies in, and the file's name in it; InputError as `open_store`."""
    folder, slash, name = url.rpartition("/")
    return open_store(folder + slash or "."), name


def read_file(url: str, key: str, *, max_bytes: int) -> bytes:
    """Return the content of a file that a configuration key names.

    Raises:
        InputError: it cannot be read, or is larger than that; names key and file.
    """
    store, name = open_parent(url)
    with said_of(url, key):
        # A byte more tells that there are more; what stands behind the name may never end.
        content = store.read(name, 0, max_bytes + 1)
    if len(content) > max_bytes:
        raise InputError(f"{key} {url} is larger than {max_bytes} bytes, the most that is read")
    return content


@contextlib.contextmanager
def said_of(url: str, key: str) -> Iterator[None]:
    """Turn what storage raises inside into an InputError that names a configuration key and its file or folder."""
    try:
        yield
    except storage_errors() as error:
        raise InputError(f"{key} {url} cannot be read: {reason_of(error)}") from None


def _batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while some := list(itertools.islice(iterator, size)):
        yield some
