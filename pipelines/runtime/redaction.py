"""Keeps passwords and tokens, in URLs and in the environment, out of what is printed, logged or sent."""

import os
import re
from collections.abc import Iterable
from urllib.parse import unquote

HIDDEN = "***"

SECRET_VARIABLES = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "RAY_AUTH_TOKEN",
)
"""Variables whose values are never shown, wherever they turn up."""

URL_VARIABLES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")
"""Variables whose values are shown without what is secret in them."""

MIN_SECRET_CHARACTERS = 4
"""Shorter values would be found in every other word."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>\\]+")
# Keys and model names may hold an @; in all other URLs it ends a user name.
_NAMES_WITH_AT = ("s3", "s3a", "gs", "file", "sqlite", "models", "runs", "mlflow-artifacts")


def without_secrets(url: str) -> str:
    """Return a URL as it may be shown: without user name, password, query and fragment.

    A token may stand for a user name, and a password may hold `/`, `?`, `#` or `@` where it should have been escaped.
    In doubt more is hidden. What is no URL, such as a path, is returned as it is.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        if url.startswith(tuple(f"{name}:/" for name in _NAMES_WITH_AT)):
            return url
        user, at, host = url.rpartition("@")
        return f"{HIDDEN}@{host}" if at and ":" in user.partition("/")[0] else url
    head = re.split(r"[?#]", rest, maxsplit=1)[0]
    tail = rest[len(head) :]
    if "@" in tail:
        # A password with ? or #, or an @ in the query: they cannot be told apart.
        return f"{scheme}://{HIDDEN}"
    user, at, place = head.rpartition("@")
    authority = head.partition("/")[0]
    if at and (scheme.partition("+")[0] not in _NAMES_WITH_AT or "@" in authority or ":" in authority):
        head = f"{HIDDEN}@{place}"
    return f"{scheme}://{head}{tail[:1]}{HIDDEN if tail[1:] else ''}"


def holds_secret(url: str) -> bool:
    """Return whether a URL has a user name, a password, a query or a fragment, which may be secret."""
    return without_secrets(url) != url


def scrub(text: str, known: Iterable[str] = ()) -> str:
    """Return a text as it may be shown: every URL `without_secrets`, and no secret of the environment.

    Args:
        text: an error's message, a parameter, a line of a log.
        known: further URLs whose secrets may turn up on their own, as in the message of a database's driver.
    """
    urls = [*known, *filter(None, (os.environ.get(name) for name in URL_VARIABLES))]
    for url in sorted(filter(holds_secret, urls), key=len, reverse=True):
        text = text.replace(url, without_secrets(url))
    secrets = {os.environ.get(name, "") for name in SECRET_VARIABLES} | {part for url in urls for part in _secrets(url)}
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= MIN_SECRET_CHARACTERS:
            text = text.replace(secret, HIDDEN)
    return _URL.sub(lambda match: without_secrets(match[0]), text)


def _secrets(url: str) -> list[str]:
    """Return the password of a URL, as it is written and as it is meant; of one without a password the user name."""
    user, at, _ = url.partition("://")[2].rpartition("@")
    secret = user.partition(":")[2] or user
    return [secret, unquote(secret)] if at else []
