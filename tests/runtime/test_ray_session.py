"""Every Ray that we start asks for its token on every port, and listens on loopback only."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from closed_ports import answers_without_token

from pipelines.runtime import ray_session as cluster
from pipelines.runtime import ray_token
from pipelines.runtime.errors import InputError
from pipelines.runtime.ray_session import RaySession, ray_session

ROOT = Path(__file__).resolve().parents[2]


def listening_ports() -> dict[int, set[str]]:
    """Return each listening TCP port of this process and of its Ray, with the addresses that it is bound to."""
    servers = [
        child for child in psutil.Process().children() if any("site-packages/ray/" in word for word in child.cmdline())
    ]
    ports: dict[int, set[str]] = {}
    for process in [
        psutil.Process(),
        *servers,
        *(worker for server in servers for worker in server.children(recursive=True)),
    ]:
        try:
            connections = process.net_connections(kind="tcp")
        except psutil.NoSuchProcess:
            continue
        for connection in connections:
            if connection.status == psutil.CONN_LISTEN:
                ports.setdefault(connection.laddr.port, set()).add(connection.laddr.ip)
    return ports


def test_every_listening_port_of_our_ray_refuses_without_the_token(ray_cluster: RaySession):
    import ray

    def start_a_worker() -> int:
        return os.getpid()

    ray.get(ray.remote(start_a_worker).remote())
    ports = listening_ports()
    assert len(ports) >= 6
    for port in ports:
        answers = answers_without_token(port)
        assert answers & {"UNAUTHENTICATED", "401", "403"}, f"port {port}: {answers}"
        assert not {answer for answer in answers if answer.endswith("answered")}, f"port {port}: {answers}"


def test_our_ray_listens_on_loopback_only(ray_cluster: RaySession):
    addresses = {address for bound in listening_ports().values() for address in bound}
    assert addresses <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_ray_data_has_a_cpu_beside_workers_on_every_core(ray_cluster: RaySession):
    import ray

    assert ray_cluster.num_cpus == 2
    assert ray.cluster_resources()["CPU"] == 2 + cluster.SPARE_CPUS


def test_a_second_session_uses_the_running_ray_and_leaves_it_running(ray_cluster: RaySession):
    import ray

    with ray_session(num_cpus=7) as second:
        assert (second.address, second.started, second.num_cpus) == (ray_cluster.address, False, 2)
    assert ray.is_initialized()


def test_another_address_is_refused_while_connected(ray_cluster: RaySession):
    with pytest.raises(InputError, match="connected to the Ray at"), ray_session("127.0.0.1:1"):
        pass


def test_transient_storage_errors_are_retried_and_others_are_not(ray_cluster: RaySession):
    from ray.data import DataContext

    context = DataContext.get_current()
    assert context.max_map_retries > 0
    matches = [
        any(pattern in message for pattern in context.retried_map_errors)
        for message in (
            "An error occurred (SlowDown): Please reduce your request rate.",
            "sta_seconds must be positive",
        )
    ]
    assert matches == [True, False]


def run_python(
    code: str, *arguments: str, environment: dict[str, str], folder: Path
) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**clean, "PYTHONPATH": str(ROOT), **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )


JOIN = """
import sys
from pipelines.runtime.ray_session import ray_session
from pipelines.runtime.errors import InputError
for address in sys.argv[1:]:
    try:
        with ray_session(address) as session:
            import ray
            def where():
                import pipelines
                return pipelines.__file__
            print("joined", session.started, ray.get(ray.remote(where).remote()))
    except InputError as error:
        print("refused", error)
"""


def test_another_process_joins_by_address_and_brings_its_code(ray_cluster: RaySession, tmp_path: Path):
    token = {"RAY_AUTH_TOKEN_PATH": os.environ["RAY_AUTH_TOKEN_PATH"]}
    done = run_python(JOIN, ray_cluster.address, environment=token, folder=tmp_path)
    assert "joined False" in done.stdout, done.stderr
    assert "py_modules_files" in done.stdout


def test_a_cluster_that_is_slow_to_take_a_job_is_waited_for_aloud(ray_cluster: RaySession, tmp_path: Path):
    [raylet] = [child for child in psutil.Process().children(recursive=True) if child.name() == "raylet"]
    impatient = "from pipelines.runtime import ray_session as module; module.WAIT_SECONDS = 1.0" + JOIN
    raylet.suspend()
    threading.Timer(8.0, raylet.resume).start()
    token = {"RAY_AUTH_TOKEN_PATH": os.environ["RAY_AUTH_TOKEN_PATH"]}
    done = run_python(impatient, ray_cluster.address, environment=token, folder=tmp_path)
    assert f"cluster: joining {ray_cluster.address}\n" in done.stderr
    assert "joined False" in done.stdout, done.stderr


def test_another_process_with_a_wrong_token_is_refused(ray_cluster: RaySession, tmp_path: Path):
    done = run_python(JOIN, ray_cluster.address, environment={"RAY_AUTH_TOKEN": "f" * 64}, folder=tmp_path)
    assert "refuses the token" in done.stdout, done.stderr


def test_an_address_that_is_no_cluster_is_refused_with_what_is_right(tmp_path: Path):
    right = {
        "http://127.0.0.1:8265": "firnline submit",
        "ray://127.0.0.1:10001": "firnline submit",
        "cluster": "host:port",
        "127.0.0.1:9": "does not answer",
    }
    done = run_python(JOIN, *right, environment={}, folder=tmp_path)
    sentences = done.stdout.splitlines()
    assert len(sentences) == len(right), done.stderr
    for sentence, (address, words) in zip(sentences, right.items(), strict=True):
        assert sentence.startswith("refused")
        assert address in sentence
        assert words in sentence


def test_a_new_token_is_private_and_the_same_for_processes_that_start_together(tmp_path: Path):
    code = (
        "from pathlib import Path; from pipelines.runtime.ray_token import token_environment;"
        "path = Path(token_environment()['RAY_AUTH_TOKEN_PATH']); print(path, path.read_text())"
    )
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        environment.pop(name, None)
    processes = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    outputs = {process.communicate(timeout=60)[0] for process in processes}
    assert len(outputs) == 1
    path, token = outputs.pop().split()
    assert len(token) == 64
    assert Path(path) == tmp_path / ".ray" / "auth_token"
    assert Path(path).stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in Path(path).parent.iterdir()] == ["auth_token"]


def test_without_a_home_to_write_in_the_token_lies_in_the_users_private_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    blocked = tmp_path / "no-folder"
    blocked.write_text("a file where the home folder would be")
    monkeypatch.setenv("HOME", str(blocked))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    path = Path(ray_token.token_environment()["RAY_AUTH_TOKEN_PATH"])
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_token_file_that_others_could_read_is_closed_to_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("0" * 64)
    token.chmod(0o644)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    ray_token.token_environment()
    assert token.stat().st_mode & 0o777 == 0o600


def test_a_configured_token_file_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="nowhere"):
        ray_token.token_environment()


def test_rays_sockets_fit_a_unix_path_whatever_the_temporary_folder(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/var/folders/zz/zyxvpxvq6csfxvn_n0000000000000/T")
    folder = ray_token.private_folder()
    socket_path = folder / "ray" / "session_2026-01-01_00-00-00_000000_4194304" / "sockets" / "plasma_store"
    assert len(str(socket_path)) < 104
    assert folder.stat().st_mode & 0o777 == 0o700
