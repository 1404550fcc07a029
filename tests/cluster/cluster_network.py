"""A network of hosts on one machine: each is a network namespace with an address of its own, joined by a bridge.

The bridge lies in a namespace, too, the hub, with the servers that all use. Nothing of it touches the machine's own
network. All needs root, and goes at the end; what a test that was killed has left goes when the next one begins.
"""

import contextlib
import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PREFIX = "firnline"
_SUBNET = "10.77.0"
_CLONE_NEWNET = 0x40000000


def why_not() -> str | None:
    """Return why this machine can have no such network; None where it can."""
    missing = [name for name in ("ip", "unshare", "setpriv", "mount") if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed (Debian: iproute2 util-linux mount)"
    if os.geteuid() != 0:
        return "network namespaces are root's to make"
    probe = f"{_PREFIX}-{os.getpid()}-probe"
    try:
        _ip("netns", "add", probe)
        _ip("-n", probe, "link", "add", "probe", "type", "bridge")
    except subprocess.CalledProcessError as error:
        return f"no network namespace can be made here: {error.stderr.strip()}"
    finally:
        subprocess.run(["ip", "netns", "del", probe], capture_output=True, check=False)
    return None


@dataclass(frozen=True)
class Host:
    """A host of the network."""

    name: str
    address: str
    namespace: str


class Network:
    """The hub and the hosts that are joined to it."""

    def __init__(self) -> None:
        self.hub = Host("hub", f"{_SUBNET}.1", f"{_PREFIX}-{os.getpid()}-hub")
        self._hosts: list[Host] = []

    def add(self, name: str) -> Host:
        """Return a new host, joined to the bridge."""
        number = 10 + len(self._hosts)
        host = Host(name, f"{_SUBNET}.{number}", f"{_PREFIX}-{os.getpid()}-{name}")
        _ip("netns", "add", host.namespace)
        self._hosts.append(host)
        far = ("peer", "name", "eth0", "netns", host.namespace)
        _ip("-n", self.hub.namespace, "link", "add", name, "type", "veth", *far)
        _ip("-n", self.hub.namespace, "link", "set", name, "master", "bridge", "up")
        _ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", host.namespace, "link", "set", device, "up")
        return host

    def cut(self, host: Host) -> None:
        """Cut a host off; whatever is sent to it or by it is lost."""
        _ip("-n", self.hub.namespace, "link", "set", host.name, "down")

    def join(self, host: Host) -> None:
        """Let a host that was cut off come back."""
        _ip("-n", self.hub.namespace, "link", "set", host.name, "up")


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """Yield a network with a hub, in which this thread is until the end of the block, and the servers it starts."""
    _remove_left()
    made = Network()
    own = os.open("/proc/self/ns/net", os.O_RDONLY)
    try:
        _ip("netns", "add", made.hub.namespace)
        _ip("-n", made.hub.namespace, "link", "add", "bridge", "type", "bridge")
        _ip("-n", made.hub.namespace, "address", "add", f"{made.hub.address}/24", "dev", "bridge")
        for device in ("lo", "bridge"):
            _ip("-n", made.hub.namespace, "link", "set", device, "up")
        hub = os.open(f"/run/netns/{made.hub.namespace}", os.O_RDONLY)
        _enter(hub)
        os.close(hub)
        yield made
    finally:
        _enter(own)
        os.close(own)
        for host in [*made._hosts, made.hub]:
            subprocess.run(["ip", "netns", "del", host.namespace], capture_output=True, check=False)


def _enter(namespace: int) -> None:
    """Put this thread, and all that it starts from now on, into a network namespace."""
    if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def _remove_left() -> None:
    """Remove the namespaces of tests that do not run any more."""
    for path in Path("/run/netns").glob(f"{_PREFIX}-*-*"):
        if not Path(f"/proc/{path.name.split('-')[1]}").exists():
            subprocess.run(["ip", "netns", "del", path.name], capture_output=True, check=False)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], capture_output=True, text=True, check=True)
