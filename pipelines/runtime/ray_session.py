"""Starts a private Ray on this machine or joins a given cluster; nothing else in Firnline calls `ray.init`.

Every Ray that we start requires a token, and on one machine it listens on loopback only.
"""

import importlib
import logging
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib

from pipelines.runtime import ray_private
from pipelines.runtime.capacity import WAIT_SECONDS, capacity, say_silence, say_waits
from pipelines.runtime.errors import InputError, StageFailed
from pipelines.runtime.ray_token import (
    apply_environment,
    private_folder,
    private_ray_environment,
    use_token_if_available,
)
from pipelines.runtime.signals import take_sigterm

SPARE_CPUS = 2
"""Logical CPUs in addition to the cores, so that other tasks can run beside workers that take all of those."""

START_ATTEMPTS = 3
"""Ray gives its servers half a minute to start, and a busy machine may need longer."""

CONNECT_SECONDS = 10.0
"""Longest wait for a cluster to accept a connection."""

NO_PROGRESS_SECONDS = 6 * 3600.0
"""Longest wait of Ray Data for capacity on a cluster: spot machines can be away for hours."""

_GIB = 1 << 30
_joined_as: list[str] = []
"""The address by which this process joined a cluster, as it was given."""
_own_cores: list[int] = []
"""The cores of the Ray that this process started; empty if it joined one, or after the end."""
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
    """Whether it was started here and ends with the job."""
    num_cpus: int
    """Logical CPUs that may work at the same time: all that the cluster has or may still start, without the spare ones
    of a Ray started here."""


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
        # The job has been silent since its start.
        with say_waits("cluster", lambda: f"joining {joined}", seconds=WAIT_SECONDS / 2):
            _join(joined, worker_logs=worker_logs)
        _joined_as.append(joined)
    _configure_data(on_cluster=joined is not None)
    finished = False
    try:
        with nullcontext() if joined is None else say_silence():
            yield _session(started=joined is None)
        finished = True
    finally:
        _own_cores.clear()
        _joined_as.clear()
        ray.shutdown()
        if finished and session_folder is not None:
            # A failed session's folder stays: it holds the workers' logs.
            shutil.rmtree(session_folder, ignore_errors=True)


def task_results(references: Sequence[Any]) -> list[Any]:
    """Return the results of tasks; an InputError or StageFailed in a task is raised here, without its traceback."""
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


def on_cluster() -> bool:
    """Return whether this process is connected to a Ray that it did not start, or is a cluster's job."""
    ray: Any = importlib.import_module("ray")
    return in_ray_job() or (ray.is_initialized() and not _own_cores)


def local_cores() -> int:
    """Return how many cores this process may use, given its CPU affinity and its container's quota."""
    return max(1, int(joblib.cpu_count()))


def _start(cores: int, *, include_dashboard: bool, worker_logs: bool) -> Path:
    apply_environment(private_ray_environment())
    import ray

    # The variable that says so may have been set after Ray was imported.
    ray_private.stay_on_loopback()
    folder = private_folder()
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
        except SystemExit:
            # Ray's own answer to SIGTERM while it starts.
            raise KeyboardInterrupt from None
        except Exception as error:  # Ray raises nothing narrower where one of its servers does not start in time
            ray.shutdown()
            if attempt == START_ATTEMPTS:
                raise StageFailed(
                    f"Ray did not start on this machine ({_first_line(error)}); its logs are in {folder}/ray."
                ) from error
    take_sigterm()
    _own_cores.append(cores)
    return Path(context.address_info["session_dir"])


def _join(address: str, *, worker_logs: bool) -> None:
    address = check_address(address)
    import ray

    # Inside a job Ray has already sent our code; a driver on a node sends its own, so that all nodes run the same code.
    root = Path(__file__).resolve().parents[2]
    code = None if in_ray_job() else {"py_modules": [str(root / "pipelines"), str(root / "jobs")]}
    try:
        ray.init(
            address=address,
            runtime_env=code,
            logging_level=logging.WARNING,
            log_to_driver=worker_logs,
        )
        take_sigterm()
    except SystemExit:
        # Ray's own answer to SIGTERM while it connects.
        raise KeyboardInterrupt from None
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise InputError(
            f"--address {address} cannot be joined ({_first_line(error)}); from one of its nodes, give the "
            "host:port of a running cluster, with its token in RAY_AUTH_TOKEN_PATH."
        ) from error


def check_address(address: str) -> str:
    """Return `host:port` of the cluster to join; refuse at once one for which Ray itself would try for minutes.

    Where this process is connected already, or is a cluster's job, nothing is asked. Else it takes twice
    `CONNECT_SECONDS` at most.

    Raises:
        InputError: nothing answers there, or it is no Ray, or refuses our token.
    """
    ray: Any = importlib.import_module("ray")
    if ray.is_initialized() or in_ray_job():
        return address
    use_token_if_available()
    where = ray_private.found_address() if address == "auto" else address
    if where is None:
        raise InputError("--address is auto, but no Ray runs on this machine; give host:port of a Ray cluster.")
    if where != address:
        address = f"{address} ({where})"
    if where.startswith(("http://", "https://")):
        raise InputError(f"--address {address} is a Jobs server; use `firnline submit --address {where} JOB ...`.")
    if where.startswith("ray://"):
        raise InputError(
            f"--address {address} is a Ray Client server; use `firnline submit`, or host:port on a node of the cluster."
        )
    host, _, port = where.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdigit():
        raise InputError(f"--address is {address!r}; give host:port of a Ray cluster, or auto.")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"--address {address} does not answer ({error}); give host:port of a running Ray cluster."
        ) from error
    if host in ("localhost", "127.0.0.1", "::1"):
        _stay_on_loopback_with(int(port))
    _refuse_stranger(address, where)
    return where


def _refuse_stranger(address: str, where: str) -> None:
    """Raise InputError if the cluster refuses our token, or if it is none: a port of another server, or of another Ray.

    Ray reports all other problems itself.
    """
    grpc: Any = importlib.import_module("grpc")
    header = ray_private.token_header()
    with grpc.insecure_channel(where) as channel:
        question = channel.unary_unary(ray_private.QUESTION_WITHOUT_RIGHTS)
        try:
            question(b"", timeout=CONNECT_SECONDS, metadata=[(name.lower(), value) for name, value in header.items()])
        except grpc.RpcError as error:
            code = error.code()
            if code is grpc.StatusCode.UNAUTHENTICATED:
                raise InputError(
                    f"--address {address} refuses the token; set RAY_AUTH_TOKEN_PATH to the file with its token."
                ) from None
            # With Ray's TLS this question, which is not encrypted, has no answer.
            deaf = code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
            if deaf and os.environ.get("RAY_USE_TLS", "0") in ("", "0"):
                raise InputError(
                    f"--address {address} answers, but not as a Ray cluster; give host:port of its head (mostly port "
                    "6379)."
                ) from None


def _stay_on_loopback_with(port: int) -> None:
    """Keep Ray from replacing the loopback address if the cluster's server listens on loopback alone."""
    try:
        socket.create_connection((ray_private.node_address(), port), timeout=CONNECT_SECONDS).close()
    except OSError:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        ray_private.stay_on_loopback()


def _refuse_other_cluster(address: str | None) -> None:
    import ray

    connected = ray.get_runtime_context().gcs_address
    if address not in (None, "auto", connected, *_joined_as):
        raise InputError(
            f"--address is {address}, but this process is connected to the Ray at {connected}; "
            "run the job in a process of its own."
        )


def _session(*, started: bool) -> RaySession:
    ray: Any = importlib.import_module("ray")
    return RaySession(
        address=ray.get_runtime_context().gcs_address,
        started=started,
        num_cpus=_own_cores[0] if _own_cores else max(1, int(capacity().cpus)),
    )


def _configure_data(*, on_cluster: bool) -> None:
    from ray.data import DataContext

    context: Any = DataContext.get_current()
    options: dict[str, Any] = {
        # They show Ray's operators; the stages' own bars show shards and events.
        "enable_progress_bars": False,
        "print_on_execution_start": False,
        # Storage has its own retries; these catch what is still transient after them, and never wrong data.
        "retried_io_errors": sorted({*context.retried_io_errors, *_TRANSIENT_ERRORS}),
        "retried_map_errors": sorted(_TRANSIENT_ERRORS),
        "max_map_retries": 3,
    }
    if on_cluster:
        options["execution_no_progress_timeout_s"] = NO_PROGRESS_SECONDS
    for name, value in options.items():
        ray_private.set_data_option(context, name, value)
    ray_private.quieten_libraries()


def _object_store_bytes(cores: int) -> int:
    """Return the bytes of shared memory for blocks in flight: at most a quarter of the memory, within /dev/shm."""
    size = min(_GIB + cores * _GIB // 2, ray_private.system_memory() // 4)
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        # A container's 64 MB are too little: Ray then uses files in its session folder, and says so.
        if free > _GIB // 2:
            size = min(size, free * 9 // 10)
    return max(size, _GIB // 8)


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")
