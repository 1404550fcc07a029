"""What goes wrong with storage, on a disk or in a bucket, and how it is put into words."""

import errno
import re

from pipelines.runtime.errors import StageFailed

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a disk that has no room left."""


class StorageFailed(StageFailed, OSError):
    """Storage that cannot be read or written: a full disk, a folder without permission, an endpoint that keeps failing.

    Attributes:
        reason: the cause, without the path.
    """

    def __init__(self, text: str, reason: str = "") -> None:
        super().__init__(text)
        self.reason = reason or text


class OtherLength(OSError):
    """A body has another length than was asked for."""


def storage_errors() -> tuple[type[BaseException], ...]:
    """Return the errors that a disk or a bucket raises."""
    from botocore.exceptions import BotoCoreError, ClientError

    return OSError, BotoCoreError, ClientError


def error_code(error: BaseException) -> str:
    """Return S3's code of an error, such as AccessDenied; empty where it has none."""
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def reason_of(error: BaseException) -> str:
    """Return the cause of an error of storage in a few words, without a request's parameters."""
    if isinstance(error, StorageFailed):
        return error.reason
    text = re.sub(r" \(reached max retries: \d+\)", "", " ".join(str(error).split()))
    if text in ("", "None") or text.endswith("operation: None"):
        # Some servers give a code and no message.
        text = _CODES_IN_WORDS.get(error_code(error), error_code(error)) or type(error).__name__
    if isinstance(error, OSError) and error.strerror and not error.strerror.startswith("An error"):
        text = error.strerror
    # A request's address ends with its parameters.
    text = re.sub(r"\?list-type=\S*?(?=\"|\s|$)", "", text)
    # Not of an abbreviation.
    return text if text[1:2].isupper() else text[:1].lower() + text[1:]


_CODES_IN_WORDS = {
    "AccessDenied": "access denied",
    "403": "access denied",
    "Forbidden": "access denied",
    "NoSuchBucket": "the bucket does not exist",
    "InvalidAccessKeyId": "the access key (AWS_ACCESS_KEY_ID) is not known there",
    "SignatureDoesNotMatch": "the secret key (AWS_SECRET_ACCESS_KEY) is not that of the access key",
}
