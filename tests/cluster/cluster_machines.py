"""A Ray cluster whose head and workers are hosts of a network of namespaces, each with its own processes and /tmp.

A host that is lost is a process namespace whose first process is killed: everything in it ends at once.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil
from cluster_network import Host, Network

BIN = Path(sys.executable).parent
START_SECONDS = 180.0
JOBS_PORT = 8265


class Machine:
    """A host on which Ray runs, from `start` to `kill`."""

    def __init__(self, host: Host, folder: Path, command: list[str], environment: Mapping[str, str]) -> None:
        """`folder` holds the hosts' files and the token, as `token`."""
        self.host = host
        self.folder = folder / host.name
        """What lies in the host's /tmp."""
        self._command, self._environment = command, environment
        self._process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    def start(self) -> None:
        """Start Ray on it, as a new machine of the same address would."""
        self.kill()
        self.starts += 1
        shutil.rmtree(self.folder, ignore_errors=True)
        token_file = self.folder / "home" / ".ray" / "auth_token"
        token_file.parent.mkdir(parents=True, mode=0o700)
        shutil.copy(self.folder.parent / "token", token_file)
        inside = f'hostname {self.host.name} && mount --bind {self.folder} /tmp && exec "$@"'
        command = [
            # Whatever happens to the test, its hosts go with it.
            *("setpriv", "--pdeathsig", "KILL", "ip", "netns", "exec", self.host.namespace),
            *("unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
            *("sh", "-c", inside, "sh", *self._command),
        ]
        with (self.folder.parent / f"{self.host.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                env=dict(self._environment),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def runs(self) -> bool:
        """Whether Ray runs on it."""
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """Lose the host: all its processes end at once, without a word to anybody."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def work(self) -> list[str]:
        """Return the names that Ray gives the processes which do something on it."""
        if self._process is None or self._process.poll() is not None:
            return []
        found = []
        for process in psutil.Process(self._process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                name = " ".join(process.cmdline()).strip()
                if name.startswith("ray::") and not name.startswith("ray::IDLE"):
                    found.append(name.removeprefix("ray::"))
        return found


class Cluster:
    """A head that runs no work, and workers with one CPU each; all ask for the token."""

    def __init__(
        self, network: Network, folder: Path, token_file: Path, variables: Mapping[str, str], *, num_workers: int
    ) -> None:
        self.network, self.token_file = network, token_file
        head = network.add("head")
        self.jobs_url = f"http://{head.address}:{JOBS_PORT}"
        common = ("--block", "--disable-usage-stats", "--object-store-memory=200000000", "--memory=4000000000")
        environment = {
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "HOME": "/tmp/home",
            "LANG": "C.UTF-8",
            "OMP_NUM_THREADS": "1",
            "RAY_AUTH_MODE": "token",
            # As in cluster.yaml: Ray's metrics would be served without the token.
            "RAY_enable_metrics_collection": "0",
            "AUTOSCALER_METRIC_PORT": "-1",
            "DASHBOARD_METRIC_PORT": "-1",
            # All hosts share the machine's cores with whatever else runs there, to which Ray's workers give way.
            "RAY_worker_niceness": "0",
            **variables,
        }
        ray = str(BIN / "ray")
        self.head = Machine(
            head,
            folder,
            [
                *(ray, "start", "--head", "--port=6379", "--num-cpus=0", f"--node-ip-address={head.address}", *common),
                *(f"--dashboard-host={head.address}", f"--dashboard-port={JOBS_PORT}"),
            ],
            environment,
        )
        self.workers = [
            Machine(
                host,
                folder,
                [
                    *(ray, "start", f"--address={head.address}:6379", "--num-cpus=1", *common),
                    f"--node-ip-address={host.address}",
                ],
                environment,
            )
            for host in (network.add(f"worker{number}") for number in range(num_workers))
        ]

    def start(self) -> None:
        """Start whatever does not run, as an autoscaler or an operator would, and wait until all takes part."""
        if not self.head.runs():
            self.head.start()
        for worker in self.workers:
            self.network.join(worker.host)
        self._wait("the head", lambda: self._ask("/api/version") is not None)
        self._wait("the workers", self._all_take_part)

    def _all_take_part(self) -> bool:
        for worker in self.workers:
            # Those of a lost head end by themselves.
            if not worker.runs():
                worker.start()
        return self.num_alive() == 1 + len(self.workers)

    def stop(self) -> None:
        """End all hosts."""
        for machine in [*self.workers, self.head]:
            machine.kill()

    def busy_worker(self) -> Machine:
        """Return the worker on which most is done."""
        return max(self.workers, key=lambda worker: len(worker.work()))

    def num_alive(self) -> int:
        """Return how many nodes the head takes to be alive."""
        answer = self._ask("/api/v0/nodes?detail=0")
        return answer.count(b'"ALIVE"') if answer else 0

    def _ask(self, path: str) -> bytes | None:
        request = urllib.request.Request(
            self.jobs_url + path, headers={"Authorization": f"Bearer {self.token_file.read_text()}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                body: bytes = answer.read()
        except OSError:
            return None
        return body

    def _wait(self, what: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            if time.monotonic() > deadline:
                logs = sorted(self.head.folder.parent.glob("*.log"))
                text = "\n".join(f"{path.name}: {path.read_text()[-1500:]}" for path in logs)
                raise RuntimeError(f"{what} did not start in {START_SECONDS:.0f} s\n{text}")
            time.sleep(0.5)


@contextlib.contextmanager
def ray_cluster_of_hosts(network: Network, variables: Mapping[str, str], *, num_workers: int) -> Iterator[Cluster]:
    """Yield a running cluster; its hosts and their files go at the end."""
    # Not pytest's folder: a Unix socket's path has 107 bytes.
    with tempfile.TemporaryDirectory(prefix="hosts-", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        token_file = folder / "token"
        token_file.write_text("a-planted-token-" + "0123456789abcdef" * 3)
        token_file.chmod(0o600)
        cluster = Cluster(network, folder, token_file, variables, num_workers=num_workers)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()
