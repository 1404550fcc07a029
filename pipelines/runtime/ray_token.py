"""The token and the folder of a Ray that we start: files of this user's alone, whatever others put in their places.

Ray runs any code that reaches its ports with the token, so a token that somebody else knows is as good as none.
"""

import functools
import os
import secrets
import stat
import tempfile
from pathlib import Path

from pipelines.runtime import ray_private
from pipelines.runtime.errors import InputError

MAX_FOLDER_CHARACTERS = 24
"""Of the folder that holds ours: a Unix socket's path has at most 107 bytes."""

MAX_TOKEN_BYTES = 64 << 10
"""Ray's own tokens have 64 bytes."""


def private_ray_environment() -> dict[str, str]:
    """Return the variables under which a new Ray requires our token and listens on loopback alone."""
    return {
        **token_environment(),
        # With its clusters "disabled" Ray gives the node the loopback address, and all its servers listen there.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # Metrics would be served without the token; on impossible ports their servers do not start.
        "RAY_enable_metrics_collection": "0",
        "AUTOSCALER_METRIC_PORT": "-1",
        "DASHBOARD_METRIC_PORT": "-1",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }


def token_environment() -> dict[str, str]:
    """Return the variables that give a process token authentication: the user's token, or a new private one.

    Raises:
        InputError: the token's file is missing, empty or not a file, or another user owns it or could change it.
    """
    environment = {"RAY_AUTH_MODE": "token"}
    if os.environ.get("RAY_AUTH_TOKEN"):
        environment["RAY_AUTH_TOKEN"] = os.environ["RAY_AUTH_TOKEN"]
    else:
        environment["RAY_AUTH_TOKEN_PATH"] = str(_token_file())
    return environment


def use_token_if_available() -> None:
    """Send the user's token to a cluster that somebody else started, unless `RAY_AUTH_MODE` turns that off."""
    mode = os.environ.get("RAY_AUTH_MODE", "")
    if mode not in ("", "token"):
        return
    configured = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if configured or _default_token_file().exists():
        apply_environment(token_environment())
    elif mode:
        raise InputError("RAY_AUTH_MODE is token, but there is no token; set RAY_AUTH_TOKEN_PATH to the cluster's")


def apply_environment(environment: dict[str, str]) -> None:
    """Set variables in this process and have its Ray read them."""
    os.environ.update(environment)
    ray_private.read_environment_again()


def private_folder() -> Path:
    """Return this user's own folder for Ray's sockets and logs, short enough for a Unix socket's path.

    Where somebody else has put a file, a link, a pipe or a folder of theirs at its usual path, a new folder with a
    random name is made; the same one is returned for the rest of this process.

    Raises:
        InputError: no folder can be made there.
    """
    base = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    return _private_folder("/tmp" if len(base) > MAX_FOLDER_CHARACTERS else base)


@functools.cache
def _private_folder(base: str) -> Path:
    folder = Path(base) / f"firnline-{os.getuid()}"
    try:
        try:
            folder.mkdir(mode=0o700, parents=True)
        except FileExistsError:
            status = folder.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
                # Others could have put files into a folder that they may write in.
                return Path(tempfile.mkdtemp(prefix="firnline-", dir=base))
            folder.chmod(0o700)
    except OSError as error:
        raise InputError(
            f"no folder for Ray's sockets can be made in {base} ({error.strerror}); set RAY_TMPDIR to a folder with a "
            "short path that you can write in"
        ) from None
    return folder


def _default_token_file() -> Path:
    return Path.home() / ".ray" / "auth_token"


def _token_file() -> Path:
    """Return the file that holds the token; where the user has none, a new token in a file that only they can read."""
    configured = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if configured:
        return _checked(Path(configured), "RAY_AUTH_TOKEN_PATH")
    path = _default_token_file()
    try:
        _make_token(path)
    except OSError:
        # No home folder to write in, as in many containers.
        path = private_folder() / "auth_token"
        _make_token(path)
    return _checked(path, "the token file of Ray")


def _make_token(path: Path) -> None:
    """Write a new token where there is nothing."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if os.path.lexists(path):
        return
    handle, draft = tempfile.mkstemp(prefix="auth_token.", dir=path.parent)
    try:
        os.write(handle, secrets.token_hex(32).encode())
        os.fsync(handle)
        os.close(handle)
        # A link fails where another process was first, and then both use that process's token.
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        Path(draft).unlink()


def _checked(path: Path, name: str) -> Path:
    """Return a token's file; InputError where somebody but this user and root may have written it, or it is none."""
    advice = "put the token of the cluster into a file of your own and name it in RAY_AUTH_TOKEN_PATH"
    trusted = (os.getuid(), 0)
    try:
        status, folder = path.stat(), path.resolve().parent.stat()
    except OSError as error:
        raise InputError(f"{name} is {path}, which cannot be read ({error.strerror}); {advice}") from None
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{name} is {path}, which is not a file; {advice}")
    if status.st_uid not in trusted or folder.st_uid not in trusted:
        raise InputError(f"{name} is {path}, which belongs to another user; {advice}")
    if not 0 < status.st_size <= MAX_TOKEN_BYTES or not os.access(path, os.R_OK):
        raise InputError(f"{name} is {path}, which is empty, unreadable or too large for a token; {advice}")
    if status.st_uid == os.getuid() and status.st_mode & 0o077:
        path.chmod(0o600)
    elif status.st_mode & 0o022:
        raise InputError(f"{name} is {path}, which other users can write to; {advice}")
    return path
