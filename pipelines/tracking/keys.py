"""Names of metrics, parameters and tags that MLflow takes, whatever a user calls a class or a cluster."""

import hashlib
import posixpath
import re

MAX_KEY_CHARACTERS = 250
"""Of the key of a metric, parameter or tag in MLflow."""

_ALLOWED = re.compile(r"[\w .:/-]")


def mlflow_key(name: str) -> str:
    """Return a key that MLflow takes: other characters become `.<hex code>.`, and a long name ends in a hash.

    A key that MLflow takes is returned as it is, so that different names have different keys.
    """
    key = "".join(char if _ALLOWED.fullmatch(char) else f".{ord(char):x}." for char in name)
    if _is_no_path(key):
        key = key.replace("/", ".2f.")
        key = f"key {key}" if _is_no_path(key) else key
    if len(key) > MAX_KEY_CHARACTERS:
        key = f"{key[: MAX_KEY_CHARACTERS - 17]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return key


def _is_no_path(key: str) -> bool:
    # MLflow keeps keys as paths, and refuses one that another path could stand for.
    return key.startswith(("/", "..")) or posixpath.normpath(key) != key or key == "."
