"""Requests to a bucket: the filesystem of this process, and when a request that fails is sent again.

A request is repeated here and nowhere else (`retry`): s3fs and botocore try once.
"""

import contextlib
import functools
import os
import random
import threading
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

from pipelines.workspace.storage_errors import StorageFailed, error_code, reason_of, storage_errors

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
CHECK_ATTEMPTS = 5
CHECK_SECONDS = 8.0
CHECK_CONNECT_SECONDS = 4.0
CHECK_READ_SECONDS = 6.0
"""The same for the test whether a bucket can be reached, with which a job begins: some fourteen seconds at most."""
MAX_CONNECTIONS = 32
"""Connections that a process keeps open."""

# Errors of a wrong set-up, which no repetition mends.
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
_FINAL_CODES = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "NoSuchBucket", "ExpiredToken")
CONDITION_FAILED = ("PreconditionFailed", "412")
"""Codes of an answer that says that a write's condition does not hold."""
NO_SUCH_RANGE = ("InvalidRange", "416")
"""Codes of an answer that says that an object has no byte in the range."""
_NO_CONDITIONS = ("NotImplemented", "501")


def filesystem(anonymous: bool) -> Any:
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
        session=_session(),
        config_kwargs={
            "retries": {"mode": "standard", "total_max_attempts": 1},
            "read_timeout": READ_SECONDS,
            "connect_timeout": CONNECT_SECONDS,
            "max_pool_connections": MAX_CONNECTIONS,
        },
    )
    filesystem.retries = 1
    return filesystem


def _session() -> Any:
    """Return a session that reads the times of a listing, a thousand a page, without botocore's general parser.

    That takes two thirds of what reading a listing costs.
    """
    from aiobotocore.session import AioSession
    from botocore.utils import parse_timestamp

    def parse(value: Any) -> datetime:
        if isinstance(value, str) and value.endswith("Z") and "T" in value:
            with contextlib.suppress(ValueError):
                return datetime.fromisoformat(value)
        found: datetime = parse_timestamp(value)
        return found

    session = AioSession()
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=parse)
    return session


def tail_of(url: str, length: int, *, anonymous: bool) -> tuple[bytes, int, str]:
    """Return the last bytes of an object, its size and its tag, which one answer gives; errors as they come."""
    from fsspec.asyn import sync

    fs = filesystem(anonymous)
    bucket, _, key = url.removeprefix("s3://").partition("/")

    async def get() -> tuple[bytes, int, str]:
        answer = await fs._call_s3("get_object", Bucket=bucket, Key=key, Range=f"bytes=-{length}")
        async with answer["Body"] as body:
            content = await body.read()
        # A server that knows no ranges gives the whole object and does not name one.
        size = int(str(answer.get("ContentRange", f"/{len(content)}")).rpartition("/")[2])
        return content[-length:], size, str(answer["ETag"]).strip('"')

    found: tuple[bytes, int, str] = sync(fs.loop, get)
    return found


def retry(action: Callable[[], T], failing: str, *, attempts: int = MAX_ATTEMPTS, seconds: float | None = None) -> T:
    """Return what a request to a bucket gives; it is sent again after faults that may pass.

    Waits double and are drawn at random (full jitter). The request is sent at most `attempts` times, and no more once
    so many `seconds` (by default MAX_RETRY_SECONDS) have passed.

    Raises:
        StorageFailed: the fault stays; the sentence begins with `failing`.
        OSError: what no repetition mends, as it is: not found, no permission.
    """
    from botocore.exceptions import NoCredentialsError, PartialCredentialsError

    seconds = MAX_RETRY_SECONDS if seconds is None else seconds
    wait = FIRST_WAIT_SECONDS
    began = time.monotonic()
    attempt = 1
    while True:
        try:
            return action()
        except (*_FINAL, NoCredentialsError, PartialCredentialsError):
            raise
        except Exception as error:
            passing = isinstance(error, storage_errors()) or _is_transport(error)
            codes = _FINAL_CODES + CONDITION_FAILED + _NO_CONDITIONS
            if not passing or any(code in str(error) for code in _FINAL_CODES) or error_code(error) in codes:
                raise
            pause = random.uniform(0, wait)
            if attempt == attempts or time.monotonic() + pause - began > seconds:
                reason = f"{reason_of(error)} (tried {attempt} times)"
                raise StorageFailed(f"{failing}: {reason}", reason) from error
        time.sleep(pause)
        attempt += 1
        wait = min(2 * wait, MAX_WAIT_SECONDS)


def _is_transport(error: BaseException) -> bool:
    return type(error).__module__.split(".")[0] in {"aiohttp", "asyncio", "botocore", "urllib3"}


def holds_objects(url: str, *, anonymous: bool) -> bool:
    """Whether a bucket's prefix holds anything; a wrong or silent endpoint is reported within seconds.

    Raises:
        StorageFailed: no answer, or no valid endpoint.
        ClientError, BotoCoreError: what no repetition mends.
    """
    import botocore.session
    from botocore import UNSIGNED
    from botocore.config import Config

    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    config = Config(
        retries={"mode": "standard", "total_max_attempts": 1},
        connect_timeout=CHECK_CONNECT_SECONDS,
        read_timeout=CHECK_READ_SECONDS,
        signature_version=UNSIGNED if anonymous else None,
    )
    try:
        client = botocore.session.get_session().create_client("s3", config=config)
    except ValueError as error:
        if isinstance(error, storage_errors()):
            raise
        reason = f"{error}; give the endpoint as http(s)://host:port"
        raise StorageFailed(f"{url} cannot be read: {reason}", reason) from None
    found = retry(
        lambda: client.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/" if prefix else "", MaxKeys=1),
        f"{url} cannot be read",
        attempts=CHECK_ATTEMPTS,
        seconds=CHECK_SECONDS,
    )
    return bool(found["KeyCount"])
