"""Every request to MLflow either gets an answer or ends, within a stated time, as one sentence.

MLflow's client repeats a request that fails, and nothing else does: five times, after 0, 2, 4, 8 and 16 seconds. A
server that refuses connections is given up after half a minute, one that stays silent after two and a half.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any

from pipelines.runtime.errors import StageFailed
from pipelines.runtime.redaction import scrub, without_secrets

# MLflow reads them at every request; the user's own values hold.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "5")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
# Else a server with its artifacts in a bucket has the client talk to the bucket, at the address that the server knows:
# where that is another one, a download of a few kB is repeated for a quarter of an hour, without a word.
os.environ.setdefault("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "false")
os.environ.setdefault("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "false")


class TrackingFailed(StageFailed):
    """MLflow does not answer, or cannot do what it is asked.

    Attributes:
        reason: the cause, without the address.
    """

    def __init__(self, uri: str, reason: str) -> None:
        super().__init__(
            f"MLflow at {without_secrets(uri)} has failed: {reason}; once it answers, run the same command again to "
            "continue"
        )
        self.reason = reason


@contextlib.contextmanager
def answered(uri: str) -> Iterator[None]:
    """Turn MLflow's failures inside into TrackingFailed; what it refuses, such as a name it does not know, stays."""
    import requests
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, requests.RequestException) as error:
        # What a request is refused for has a code of its own.
        if isinstance(error, MlflowException) and error.error_code != "INTERNAL_ERROR":
            raise
        raise TrackingFailed(uri, _reason(scrub(" ".join(str(error).split()), [uri]))) from error


class AnsweringClient:
    """An MlflowClient whose calls raise TrackingFailed where MLflow fails."""

    def __init__(self, client: Any, uri: str) -> None:
        self._client, self._uri = client, uri

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        if not callable(method):
            return method

        def call(*arguments: Any, **named: Any) -> Any:
            with answered(self._uri):
                return method(*arguments, **named)

        return call


def _reason(text: str) -> str:
    """Return the cause in what the HTTP client says of a request that it has repeated, or all of it."""
    silent = re.search(r"(Failed to establish a new connection|Read timed out|too many \d+ error responses)", text)
    refused = re.search(r"\[Errno -?\d+\] ([A-Z][\w ]+)", text)
    found = refused or silent
    cause = found.group(1) if found else text
    return cause[:1].lower() + cause[1:]
