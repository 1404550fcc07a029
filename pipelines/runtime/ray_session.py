"""Starts a private Ray on this machine, or joins the cluster that is given; nothing else in Firnline calls `ray.init`.

Ray runs any code that reaches its ports, so every Ray that we start asks for a token, and on one machine it listens on
loopback only.
"""

import importlib
import logging
import os
import secrets
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib

from pipelines.runtime.errors import InputError, StageFailed

SPARE_CPUS = 2
"""Logical CPUs on top of the cores: training on every CPU would leave Ray Data none, and it would wait for ever."""

START_ATTEMPTS = 3
"""Ray gives its servers half a minute to come up, which a busy machine can exceed."""

CONNECT_SECONDS = 10.0
"""How long a cluster's address may take to accept a connection."""

NO_PROGRESS_SECONDS = 6 * 3600.0
"""How long Ray Data may wait on a cluster for capacity: spot machines can be away for hours."""

CLUSTER_CPUS_VARIABLE = "FIRNLINE_CLUSTER_CPUS"
"""Variable of a cluster's head: how many CPUs its autoscaler may bring the cluster to."""

_GIB = 1 << 30
_own_cores: list[int] = []
"""The cores of the Ray that this process started and has not ended yet; empty where it joined one."""
_TRANSIENT_ERRORS = (
    "SlowDown",
    "SLOW_DOWN",
    "Please reduce your request rate",
    "RequestTimeout",
    "InternalError",
    "IncompleteRead",
    "IncompleteBody",
    "Connection reset",
    "Connection closed before",
    "Connection was closed",
    "Could not connect to the endpoint URL",
    "Read timeout on endpoint URL",
    "timed out",
)


@dataclass(frozen=True, kw_only=True)
class RaySession:
    """The Ray that a job works with."""

    address: str
    """`host:port` of the cluster's control service."""
    started: bool
    """Whether it was started here, and so ends with the job."""
    num_cpus: int
    """Logical CPUs that may do work at once: all that the cluster has or may still start; of a Ray started here
    all but the spare ones."""


@contextmanager
def ray_session(
    address: str | None = None,
    num_cpus: int | None = None,
    *,
    include_dashboard: bool = False,
    worker_logs: bool = False,
) -> Iterator[RaySession]:
    """Yield a connected Ray: the given cluster, else the one this job runs on, else a new one on this machine.

    `address` is `host:port`, `auto`, or None. `num_cpus` counts the cores that a new Ray may use (default: those of
    this process); `SPARE_CPUS` come on top. A Ray that is already connected in this process is used and left running.
    Raises InputError where the cluster cannot be joined, StageFailed where a new Ray does not start.
    """
    import ray

    if ray.is_initialized():
        _refuse_other_cluster(address)
        yield _session(started=False)
        return
    joined = address or ("auto" if in_ray_job() else None)
    if joined is None:
        cores = local_cores() if num_cpus is None else num_cpus
        if cores < 1:
            raise InputError(f"num_cpus is {num_cpus}; a Ray on this machine needs at least 1.")
        session_folder = _start(cores, include_dashboard=include_dashboard, worker_logs=worker_logs)
    else:
        session_folder = None
        _join(joined, worker_logs=worker_logs)
    _configure_data(on_cluster=joined is not None)
    finished = False
    try:
        yield _session(started=joined is None)
        finished = True
    finally:
        _own_cores.clear()
        ray.shutdown()
        if finished and session_folder is not None:
            # A failed session's folder stays: it holds the workers' logs.
            shutil.rmtree(session_folder, ignore_errors=True)


def task_results(references: Sequence[Any]) -> list[Any]:
    """Return the results of tasks; an InputError or StageFailed of one is raised as it was there, without its trace."""
    import ray
    from ray.exceptions import RayTaskError

    try:
        results: list[Any] = ray.get(list(references))
    except RayTaskError as error:
        if isinstance(error.cause, InputError | StageFailed):
            raise error.cause from None
        raise
    return results


def in_ray_job() -> bool:
    """Return whether this process is the entry point of a job that Ray's Jobs server started."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def local_cores() -> int:
    """Return how many cores this process may use, with its CPU affinity and its container's quota."""
    return max(1, int(joblib.cpu_count()))


def private_ray_environment() -> dict[str, str]:
    """Return the variables under which a new Ray asks for our token and listens on loopback alone."""
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
    """Return the variables that give a process token authentication: the user's token, or a new private one."""
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
    if configured or _default_token_file().is_file():
        _apply_environment(token_environment())
    elif mode:
        raise InputError("RAY_AUTH_MODE is token, but there is no token; put the cluster's in RAY_AUTH_TOKEN_PATH.")


def _apply_environment(environment: dict[str, str]) -> None:
    os.environ.update(environment)
    raylet: Any = importlib.import_module("ray._raylet")
    # Ray read its settings when it was imported, perhaps before this.
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()


def _default_token_file() -> Path:
    return Path.home() / ".ray" / "auth_token"


def _token_file() -> Path:
    """Return the file that holds the token; where the user has none, a new token in a file that only they can read."""
    configured = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if configured:
        path = Path(configured)
        if not path.is_file():
            raise InputError(f"RAY_AUTH_TOKEN_PATH is {path}, which is no file; put the token of the cluster there.")
        return path
    path = _default_token_file()
    try:
        return _private_token(path)
    except OSError:
        # No home folder to write in, as in many containers.
        return _private_token(_private_folder() / "auth_token")


def _private_token(path: Path) -> Path:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.is_file():
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
    status = path.stat()
    if status.st_uid == os.getuid() and status.st_mode & 0o077:
        path.chmod(0o600)
    return path


def _private_folder() -> Path:
    """Return this user's own folder for Ray's sockets and logs, short enough for a Unix socket's path (107 bytes)."""
    base = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    if len(base) > 24:
        base = "/tmp"
    folder = Path(base) / f"firnline-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        return Path(tempfile.mkdtemp(prefix="firnline-", dir=base))
    folder.chmod(0o700)
    return folder


def _start(cores: int, *, include_dashboard: bool, worker_logs: bool) -> Path:
    _apply_environment(private_ray_environment())
    import ray
    from ray._private import ray_constants

    # The variable of this name may have come after Ray's import.
    ray_constants.ENABLE_RAY_CLUSTER = False
    folder = _private_folder()
    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            context: Any = ray.init(
                address="local",
                num_cpus=cores + SPARE_CPUS,
                include_dashboard=include_dashboard,
                dashboard_host="127.0.0.1",
                object_store_memory=_object_store_bytes(cores),
                logging_level=logging.WARNING,
                log_to_driver=worker_logs,
                _temp_dir=str(folder / "ray"),
            )
            break
        except Exception as error:  # Ray raises nothing narrower where a server of its own does not come up in time
            ray.shutdown()
            if attempt == START_ATTEMPTS:
                raise StageFailed(
                    f"Ray did not start on this machine ({_first_line(error)}); its logs are in {folder}/ray."
                ) from error
    _own_cores.append(cores)
    return Path(context.address_info["session_dir"])


def _join(address: str, *, worker_logs: bool) -> None:
    if address.startswith(("http://", "https://")):
        raise InputError(f"--address {address} is a Jobs server; use `firnline submit --address {address} JOB ...`.")
    if address.startswith("ray://"):
        raise InputError(
            f"--address {address} is a Ray Client server; use `firnline submit`, or host:port on a node of the cluster."
        )
    if not in_ray_job():
        use_token_if_available()
        _refuse_deaf_address(address)
    import ray

    # Inside a job Ray has sent our code already; a driver on a node sends its own, so that all nodes run the same.
    root = Path(__file__).resolve().parent.parent
    code = None if in_ray_job() else {"py_modules": [str(root / "pipelines"), str(root / "jobs")]}
    try:
        ray.init(
            address=address,
            runtime_env=code,
            logging_level=logging.WARNING,
            log_to_driver=worker_logs,
        )
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise InputError(
            f"--address {address} cannot be joined ({_first_line(error)}); from one of its nodes, give the "
            "host:port of a running cluster, with its token in RAY_AUTH_TOKEN_PATH."
        ) from error


def _refuse_deaf_address(address: str) -> None:
    """Raise InputError where nothing answers; Ray itself would try for minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdigit():
        raise InputError(f"--address is {address!r}; give host:port of a Ray cluster, or auto.")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise InputError(
            f"--address {address} does not answer ({error}); give host:port of a running Ray cluster."
        ) from error
    if host in ("localhost", "127.0.0.1", "::1"):
        _stay_on_loopback_with(int(port))
    _refuse_wrong_token(address)


def _refuse_wrong_token(address: str) -> None:
    """Raise InputError where the cluster refuses our token, at once; whatever else is wrong, Ray says itself."""
    grpc: Any = importlib.import_module("grpc")
    raylet: Any = importlib.import_module("ray._raylet")
    loader = raylet.AuthenticationTokenLoader.instance()
    header = loader.get_token_for_http_header() if loader.has_token() else {}
    with grpc.insecure_channel(address) as channel:
        question = channel.unary_unary("/ray.rpc.InternalKVGcsService/InternalKVExists")
        try:
            question(b"", timeout=CONNECT_SECONDS, metadata=[(name.lower(), value) for name, value in header.items()])
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                raise InputError(
                    f"--address {address} refuses the token; set RAY_AUTH_TOKEN_PATH to the file with its token."
                ) from None


def _stay_on_loopback_with(port: int) -> None:
    """Keep Ray from replacing the loopback address by this machine's, where its server listens on loopback alone."""
    from ray._private import ray_constants

    services: Any = importlib.import_module("ray._private.services")
    try:
        socket.create_connection((services.get_node_ip_address(), port), timeout=CONNECT_SECONDS).close()
    except OSError:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        ray_constants.ENABLE_RAY_CLUSTER = False


def _refuse_other_cluster(address: str | None) -> None:
    import ray

    connected = ray.get_runtime_context().gcs_address
    if address not in (None, "auto", connected):
        raise InputError(
            f"--address is {address}, but this process is connected to the Ray at {connected}; "
            "run the job in a process of its own."
        )


def _session(*, started: bool) -> RaySession:
    ray: Any = importlib.import_module("ray")
    return RaySession(
        address=ray.get_runtime_context().gcs_address,
        started=started,
        num_cpus=_own_cores[0] if _own_cores else _cluster_cpus(),
    )


def _cluster_cpus() -> int:
    """Return the CPUs of a cluster: those that are there, or those that it says it may grow to."""
    ray: Any = importlib.import_module("ray")
    # Ray does not tell what its autoscaler may still start; the heads of cluster.yaml and infra/kuberay do.
    promised = os.environ.get(CLUSTER_CPUS_VARIABLE, "0")
    if not promised.isdigit():
        raise InputError(
            f"{CLUSTER_CPUS_VARIABLE} is {promised!r}; it is the number of CPUs that the cluster may grow to."
        )
    return max(1, int(ray.cluster_resources().get("CPU", 0)), int(promised))


def _configure_data(*, on_cluster: bool) -> None:
    from ray.data import DataContext

    context: Any = DataContext.get_current()
    # They tell of Ray's operators; the stages' own bars tell of shards and events.
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Storage has its own retries; these catch what is still transient after them, and never wrong data.
    context.retried_io_errors = sorted({*context.retried_io_errors, *_TRANSIENT_ERRORS})
    context.retried_map_errors = sorted(_TRANSIENT_ERRORS)
    context.max_map_retries = 3
    if on_cluster:
        context.execution_no_progress_timeout_s = NO_PROGRESS_SECONDS
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    logging.getLogger("ray.tune").setLevel(logging.WARNING)


def _object_store_bytes(cores: int) -> int:
    """Return the shared memory for blocks in flight: some a core, at most a quarter of the memory, within /dev/shm."""
    from ray._common.utils import get_system_memory

    size = min(_GIB + cores * _GIB // 2, int(get_system_memory()) // 4)
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        # A container's 64 MB would not do: there Ray takes files in its session folder instead, and says so.
        if free > _GIB // 2:
            size = min(size, free * 9 // 10)
    return max(size, _GIB // 8)


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")
