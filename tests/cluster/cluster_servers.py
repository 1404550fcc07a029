"""The servers of a hub: MLflow with PostgreSQL, where that is installed, and its artifacts in a bucket."""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from loopback_servers import free_port, server_process

ROOT = Path(__file__).resolve().parents[2]
DRIVER = ROOT / "build" / "postgres-driver"
"""PostgreSQL's driver, as the image of infra/mlflow has it; `make chaos-cluster` puts it there."""

PASSWORD = "a-planted-database-password"
MLFLOW_PORT = 5000


class MlflowServer:
    """An MLflow server that can be stopped and started again."""

    def __init__(self, address: str, database: str, artifacts: str, folder: Path, variables: Mapping[str, str]) -> None:
        self.url = f"http://{address}:{MLFLOW_PORT}"
        self.log = folder / "mlflow.log"
        self._command = [
            *(sys.executable, "-m", "mlflow", "server", "--host", address, "--port", str(MLFLOW_PORT)),
            *("--allowed-hosts", f"{address}:{MLFLOW_PORT}", "--workers", "1"),
            *("--backend-store-uri", database, "--artifacts-destination", artifacts),
        ]
        path = os.pathsep.join(filter(None, [str(DRIVER), os.environ.get("PYTHONPATH")]))
        self._variables = {**variables, "PYTHONPATH": path}
        self._running = contextlib.ExitStack()

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._running.enter_context(
            server_process(self._command, f"{self.url}/health", self.log, seconds=300, variables=self._variables)
        )

    def stop(self) -> None:
        """End it; whoever asks it is refused the connection."""
        self._running.close()


def why_no_postgres() -> str | None:
    """Return why PostgreSQL cannot be used here; None where it can."""
    if _postgres_folder() is None:
        return "PostgreSQL is not installed (Debian: postgresql)"
    if not DRIVER.is_dir():
        return f"{DRIVER} is missing (make chaos-cluster)"
    return None


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """Yield the URI of an empty database of a PostgreSQL server of its own, on loopback, with a password."""
    programs = _postgres_folder()
    assert programs is not None
    # The server does not run as root.
    as_postgres = ["setpriv", "--pdeathsig=KILL", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]
    with tempfile.TemporaryDirectory(prefix="postgres-", dir="/tmp") as name:
        folder = Path(name)
        (folder / "password").write_text(PASSWORD)
        subprocess.run(["chown", "-R", "postgres", str(folder)], check=True)
        data = folder / "data"
        begin = [str(programs / "initdb"), "-D", str(data), "--auth=scram-sha-256", "--username=mlflow"]
        begin += [f"--pwfile={folder / 'password'}", "--encoding=UTF8", "--locale=C.UTF-8"]
        subprocess.run([*as_postgres, *begin], capture_output=True, check=True)
        port = free_port()
        serve = [str(programs / "postgres"), "-D", str(data), "-p", str(port), "-c", "unix_socket_directories="]
        server = subprocess.Popen(
            [*as_postgres, *serve, "-c", "listen_addresses=127.0.0.1"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=(folder / "log").open("wb"),
            start_new_session=True,
        )
        try:
            subprocess.run(
                [str(programs / "pg_isready"), "-h", "127.0.0.1", "-p", str(port), "-t", "60"],
                capture_output=True,
                check=False,
            )
            create = [str(programs / "createdb"), "-h", "127.0.0.1", "-p", str(port), "-U", "mlflow", "mlflow"]
            for _ in range(60):
                done = subprocess.run(
                    create, env=os.environ | {"PGPASSWORD": PASSWORD}, capture_output=True, text=True, check=False
                )
                if done.returncode == 0:
                    break
            else:
                raise RuntimeError(f"PostgreSQL does not start: {done.stderr}")
            yield f"postgresql://mlflow:{PASSWORD}@127.0.0.1:{port}/mlflow"
        finally:
            server.terminate()
            server.wait(30)


def _postgres_folder() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None
