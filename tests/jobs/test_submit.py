"""Jobs go to a real Ray head on this machine, with token authentication, and come back with log and exit code."""

import json
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from ray_head import Head, ray_head

from jobs import submit
from pipelines.config import describe_keys
from pipelines.runtime.errors import InputError, StageFailed

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """Start a Ray head with a token and ports of its own."""
    with ray_head(num_cpus=3) as started:
        yield started


def run_submit(head: Head, *words: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jobs.submit", *words],
        env=head.environment() | (environment or {}),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_log_and_exit_code_of_a_good_job_come_back_and_no_credential_is_shown_with_it(head: Head):
    secrets = {"AWS_SECRET_ACCESS_KEY": "secret-one", "MLFLOW_TRACKING_URI": "http://me:secret-two@127.0.0.1:9"}
    shown = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9000"}
    done = run_submit(head, "detect", "--help", environment={**secrets, **shown, "RAY_API_SERVER_ADDRESS": head.url})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: firnline detect ARCHIVE WORKSPACE") == 1
    jobs = head.ask("/api/jobs/", token=True).decode()
    assert shown["AWS_ENDPOINT_URL"] in jobs
    assert "secret-one" not in jobs + done.stdout + done.stderr
    assert "secret-two" not in jobs + done.stdout + done.stderr


def test_the_exit_code_of_a_bad_job_comes_back_and_a_local_path_is_said(head: Head, tmp_path: Path):
    workspace = tmp_path / "never-made"
    done = run_submit(head, "--address", head.url, "report", str(workspace))
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"{workspace} must exist on the nodes" in done.stderr
    assert str(workspace) in done.stdout


def test_a_job_runs_on_the_cluster_with_the_configuration_read_here(head: Head, tmp_path: Path):
    config = tmp_path / "mine.yaml"
    config.write_text("synthesize: {num_days: 1, num_stations: 1, rate_hz: 40, events_per_station_day: 3, seed: 5}\n")
    done = run_submit(head, "synthesize", str(tmp_path / "archive"), "--config", str(config), "--address", head.url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "seed: 5" in done.stdout
    assert list((tmp_path / "archive").rglob("SY.*.D.2020.001"))


def test_the_jobs_server_refuses_whoever_has_no_token(head: Head):
    for path in ("/api/jobs/", "/api/version", "/nodes"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            head.ask(path, token=False)
        assert refused.value.code == 401
    assert isinstance(json.loads(head.ask("/api/jobs/", token=True)), list)


def test_a_wrong_token_and_a_dead_server_are_one_sentence_and_exit_code_2(head: Head, tmp_path: Path):
    wrong = tmp_path / "wrong"
    wrong.write_text("f" * 64)
    for address, sentence in ((head.url, "refuses the token"), ("http://127.0.0.1:9", "does not answer")):
        done = run_submit(
            head,
            "--address",
            address,
            "status",
            "s3://bucket/workspace",
            environment={"RAY_AUTH_TOKEN_PATH": str(wrong)},
        )
        assert done.returncode == 2
        assert sentence in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_a_job_that_a_head_started_anew_does_not_know_is_given_up_at_once(head: Head):
    # In a process of its own: the token is the head's, and this process has that of its own Ray.
    program = "import sys; from jobs.submit import connect, follow; follow(connect(sys.argv[1]), *sys.argv[2:])"
    done = subprocess.run(
        [sys.executable, "-c", program, head.url, "raysubmit_lost", head.url],
        cwd=ROOT,
        env=os.environ | {"RAY_AUTH_TOKEN_PATH": str(head.token_file), "RAY_AUTH_TOKEN": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    last = done.stderr.strip().splitlines()[-1]
    assert "StageFailed" in last
    assert "does not know raysubmit_lost any more, since its head was started again; run the same command again" in last


class StartingHead(BaseHTTPRequestHandler):
    """Answers as a head whose process that starts jobs is not there yet, `refusals` times; then it takes the job."""

    refusals = 0
    reason = "No available agent to submit job, please try again later."

    def do_GET(self) -> None:
        self.reply(200, {"version": "4", "ray_version": "2.60.0", "ray_commit": "", "session_name": ""})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        type(self).refusals -= 1
        if self.refusals >= 0:
            self.reply(500, self.reason)
        else:
            self.reply(200, {"job_id": "job_7", "submission_id": "job_7"})

    def reply(self, status: int, content: str | dict[str, str]) -> None:
        body = content if isinstance(content, str) else json.dumps(content)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def starting_head() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), StartingHead) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_head_that_has_just_started_is_asked_again_and_that_is_said(
    starting_head: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from ray.job_submission import JobSubmissionClient

    client = JobSubmissionClient(starting_head)
    monkeypatch.setattr(StartingHead, "refusals", 2)
    assert submit.send(client, starting_head, pause=0.01, entrypoint="true") == "job_7"
    line = f"firnline submit: waiting for the head of {starting_head}, which still starts\n"
    assert capsys.readouterr().err == 2 * line
    monkeypatch.setattr(StartingHead, "refusals", 10**6)
    with pytest.raises(StageFailed, match=r"has started no job for 0 s; look at `ray status`"):
        submit.send(client, starting_head, patience=0.1, pause=0.01, entrypoint="true")
    monkeypatch.setattr(StartingHead, "reason", "Traceback (most recent call last)\n  ...")
    with pytest.raises(StageFailed, match=r"does not take the job: .* 500: Traceback \(most recent call last\)$"):
        submit.send(client, starting_head, entrypoint="true")


def test_the_address_and_the_config_are_not_passed_on():
    own, rest = submit.take_flags(
        ["--address=http://head:8265", "run", "s3://b/a", "s3://b/w", "--python", "python3.11", "--kmeans.k", "8"],
        ("address", "python"),
    )
    assert own == {"address": "http://head:8265", "python": "python3.11"}
    assert rest == ["run", "s3://b/a", "s3://b/w", "--kmeans.k", "8"]


def test_paths_become_absolute_and_values_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("truth", "before", "sds"):
        (tmp_path / folder).mkdir()
    (tmp_path / "mine.yaml").write_text("labels: {names: names.yaml, path: of-the-file}\nlabel: {reference: null}\n")
    sent = submit.prepare(
        [
            *("run", "archive", "s3://bucket/workspace", "--config", "mine.yaml"),
            *("--archive.layout", "sds", "--replace"),
            *("--labels.path", "truth", "--label.reference=before", "--train.augment_from", "tune"),
            *("--archive.stationxml=s3://bucket/stations.xml", "--detection.trigger_components=ZNE"),
        ]
    )
    assert sent.words[:6] == [
        *(str(tmp_path / "archive"), "s3://bucket/workspace", "--archive.layout", "sds", "--replace"),
        "--detection.trigger_components=ZNE",
    ]
    keys = dict(zip(sent.words[6::2], sent.words[7::2], strict=True))
    assert keys == {
        "--labels.names": str(tmp_path / "names.yaml"),
        "--labels.path": str(tmp_path / "truth"),
        "--label.reference": str(tmp_path / "before"),
        "--train.augment_from": "tune",
        "--archive.stationxml": "s3://bucket/stations.xml",
    }
    assert len(sent.notes) == 4
    # A job is given the keys of the file that are its own.
    assert submit.prepare(["report", "s3://bucket/w", "--config", "mine.yaml"]).words == ["s3://bucket/w"]


def test_the_keys_that_name_files_are_keys():
    assert set(submit.PATH_KEYS) <= {key for key, _, _ in describe_keys("run")}


def test_the_command_line_survives_a_shell():
    submission = submit.Submission(job="run", words=["s3://b/a b", "--detection.band_hz", "[1, 20]"], config_text="")
    assert submit.entrypoint(submission, "python") == (
        "python -m jobs.run 's3://b/a b' --detection.band_hz '[1, 20]' --config config.yaml"
    )


def test_only_code_and_configuration_leave_this_machine():
    submission = submit.Submission(job="run", words=[], config_text="kmeans: {k: 8}\n", config_name="mine.yaml")
    with submit.working_folder(submission) as folder:
        assert {entry.name for entry in folder.iterdir()} <= {
            "pipelines",
            "jobs",
            "mine.yaml",
            ".gitignore",
            ".rayignore",
        }
        assert (folder / "mine.yaml").read_text() == "kmeans: {k: 8}\n"
        assert not list(folder.rglob("__pycache__"))
        total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        assert total < submit.UPLOAD_LIMIT_BYTES / 100


@pytest.mark.parametrize(
    ("words", "right"),
    [
        (["--address", "head:8265", "run"], "http"),
        (["--address", "http://head:8265", "paint"], "unknown job"),
        (["--address", "http://head:8265", "explore", "w"], "explore is not submitted"),
        (["--address", "http://head:8265"], "no JOB is given"),
        (["--address"], "needs a value"),
        (["run", "a", "b"], "RAY_API_SERVER_ADDRESS"),
        (["--address", "http://head:8265", "run", "a", "b", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (
            ["--address", "http://head:8265", "run", "a", "b", "--mlflow", "http://me:pw@host"],
            "MLFLOW_TRACKING_PASSWORD",
        ),
    ],
)
def test_a_mistake_is_found_before_anything_is_sent(words: list[str], right: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    with pytest.raises(InputError, match=right):
        submit.submit(words)
