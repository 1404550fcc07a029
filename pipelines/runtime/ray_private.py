"""All that Firnline uses of Ray beside its public interface; a part that another version of Ray has moved is named.

`PARTS` lists the names; `tests/runtime/test_ray_private.py` looks each of them up in the Ray that is installed.
"""

import importlib
import logging
import warnings
from typing import Any

from pipelines.runtime.errors import InputError

PARTS: dict[str, str] = {
    "ray._raylet.Config.initialize": "reads Ray's settings from the environment again",
    "ray._raylet.AuthenticationTokenLoader.instance": "holds the token of this process",
    "ray._private.ray_constants.ENABLE_RAY_CLUSTER": "decides whether a Ray listens on other addresses than loopback",
    "ray._private.services.get_node_ip_address": "is the address that Ray takes this machine to have",
    "ray._private.services.get_ray_address_from_environment": "finds the Ray that runs on this machine",
    "ray._common.utils.get_system_memory": "is the memory of this machine or container",
}
"""Private names of Ray, and what each is needed for."""

QUESTION_WITHOUT_RIGHTS = "/ray.rpc.InternalKVGcsService/InternalKVExists"
"""A question to a cluster's control service that changes nothing, and that is refused without the token."""

_LOUD_LOGGERS = {
    "ray.data": logging.WARNING,
    "ray.data._internal.progress": logging.ERROR,
    # Advice on `memory=`, on actor pools and on operators without output yet: the stages have set what it is about.
    "ray.data._internal.issue_detection": logging.ERROR,
    "ray.data._internal.actor_autoscaler": logging.ERROR,
    "ray.data._internal.execution.streaming_executor_state": logging.ERROR,
    "ray.train": logging.WARNING,
    "ray.tune": logging.WARNING,
}
_LOUD_WARNING = r"The (minimum|maximum) number of concurrent (actors|tasks) for "
"""Ray Data warns where there is less work than workers, which a small archive always has."""

_LOUD_CLIENT_LOGGERS = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env",
)


def part(name: str) -> Any:
    """Return a private part of Ray, one of PARTS; InputError where the installed Ray does not have it."""
    module_name, *attributes = _split(name)
    try:
        found: Any = _module(module_name)
        for attribute in attributes:
            found = getattr(found, attribute)
    except (ImportError, AttributeError):
        raise _moved(name) from None
    return found


def read_environment_again() -> None:
    """Have this process's Ray read its settings and token from the environment; it did so when it was imported."""
    part("ray._raylet.Config.initialize")("")
    part("ray._raylet.AuthenticationTokenLoader.instance")().reset_cache()


def token_header() -> dict[str, str]:
    """Return the header that carries this process's token to a cluster; empty without a token."""
    loader = part("ray._raylet.AuthenticationTokenLoader.instance")()
    return dict(loader.get_token_for_http_header()) if loader.has_token() else {}


def stay_on_loopback() -> None:
    """Keep Ray from replacing the loopback address by this machine's."""
    part("ray._private.ray_constants.ENABLE_RAY_CLUSTER")
    _module("ray._private.ray_constants").ENABLE_RAY_CLUSTER = False


def node_address() -> str:
    """Return the address that Ray takes this machine to have."""
    return str(part("ray._private.services.get_node_ip_address")())


def found_address() -> str | None:
    """Return `host:port` of the Ray that runs on this machine, or that RAY_ADDRESS names; None without one."""
    try:
        return str(part("ray._private.services.get_ray_address_from_environment")("auto", None))
    except ConnectionError:
        return None


def system_memory() -> int:
    """Return the memory of this machine or container in bytes."""
    return int(part("ray._common.utils.get_system_memory")())


def quieten_libraries() -> None:
    """Keep what Ray's libraries log about their own operators off the screen."""
    for name, level in _LOUD_LOGGERS.items():
        logging.getLogger(name).setLevel(level)
    warnings.filterwarnings("ignore", message=_LOUD_WARNING, category=UserWarning)


def quieten_jobs_client() -> None:
    """Keep what the client of a Jobs server logs about the upload off the screen."""
    for name in _LOUD_CLIENT_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)


def set_data_option(context: Any, name: str, value: Any) -> None:
    """Set an option of Ray Data's context; InputError where it has none of that name, which would have no effect."""
    if not hasattr(context, name):
        raise _moved(f"ray.data.DataContext.{name}")
    setattr(context, name, value)


def _split(name: str) -> list[str]:
    """Split a dotted name into its module and the attributes in it; modules are lower case, as is Ray's own rule."""
    words = name.split(".")
    count = 2 if words[1] == "_raylet" else 3
    return [".".join(words[:count]), *words[count:]]


def _module(name: str) -> Any:
    # Each import by a constant name, so that the test of the architecture sees it.
    if name == "ray._raylet":
        return importlib.import_module("ray._raylet")
    if name == "ray._private.ray_constants":
        return importlib.import_module("ray._private.ray_constants")
    if name == "ray._private.services":
        return importlib.import_module("ray._private.services")
    return importlib.import_module("ray._common.utils")


def _moved(name: str) -> InputError:
    ray: Any = importlib.import_module("ray")
    return InputError(
        f"Ray {ray.__version__} has no {name}, which Firnline uses; install the version in requirements.lock"
    )
