"""Whatever is wrong with a cluster or a bucket is one sentence and exit code 2, in seconds and before any work."""

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import numpy as np
import obspy
import pytest
from loopback_servers import free_port, point_to_s3, server_process
from ray_head import ray_head
from small_workspace import write_workspace

from jobs import detect as detect_job
from jobs import label as label_job
from jobs import run as run_job
from jobs import submit as submit_job
from jobs import train as train_job
from jobs import tune as tune_job
from pipelines.runtime import ray_session
from pipelines.workspace import s3_requests
from pipelines.workspace.workspace import open_workspace

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 30.0
"""The longest that any of them may take; most take one or two, and a busy machine needs more."""


@contextmanager
def silent_server() -> Iterator[str]:
    """Yield `host:port` of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        kept: list[socket.socket] = []

        def take() -> None:
            while True:
                try:
                    kept.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=take, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        for connection in kept:
            connection.close()


@contextmanager
def deaf_server() -> Iterator[str]:
    """Yield `host:port` where no connection is accepted or refused, as behind a firewall: its queue is full."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        waiting = [socket.socket() for _ in range(3)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(server.getsockname())
        yield f"127.0.0.1:{server.getsockname()[1]}"
        for one in waiting:
            one.close()


@pytest.fixture(scope="module")
def strict_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield an S3 server that checks keys and signatures, with the keys that it knows; its bucket is `there`."""
    url = f"http://127.0.0.1:{free_port()}"
    command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", url.rpartition(":")[2]]
    log = tmp_path_factory.mktemp("strict") / "log"
    # Nothing is checked until the user is made, who may do all.
    with server_process(command, url, log, variables={"INITIAL_NO_AUTH_ACTION_COUNT": "1000"}):
        known = {"region_name": "us-east-1", "aws_access_key_id": "x", "aws_secret_access_key": "x"}
        iam = boto3.client("iam", endpoint_url=url, **known)
        iam.create_user(UserName="observatory")
        all_rights = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
        iam.put_user_policy(UserName="observatory", PolicyName="all", PolicyDocument=json.dumps(all_rights))
        made = iam.create_access_key(UserName="observatory")["AccessKey"]
        keys = {"AWS_ACCESS_KEY_ID": made["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": made["SecretAccessKey"]}
        boto3.client("s3", endpoint_url=url, **known).create_bucket(Bucket="there")
        check_from_now = urllib.request.Request(
            f"{url}/moto-api/reset-auth", data=b"0", headers={"Content-Type": "text/plain"}
        )
        urllib.request.urlopen(check_from_now).close()
        yield url, keys


JOBS_ON_BUCKETS = {
    "detect": (detect_job, ["s3://there/archive", "s3://there/workspace"]),
    "run": (run_job, ["s3://there/archive", "s3://there/workspace"]),
    "train": (train_job, ["s3://there/workspace"]),
    "tune": (tune_job, ["s3://there/workspace"]),
    "label": (label_job, ["s3://there/workspace"]),
}


@pytest.mark.parametrize(
    ("job", "variables", "sentence"),
    [
        ("detect", {"AWS_ACCESS_KEY_ID": "nobodyknowsthiskey"}, "cannot be written: .*[Aa]ccess [Kk]ey"),
        ("run", {"AWS_SECRET_ACCESS_KEY": "wrong"}, "cannot be written: .*(signature|secret key)"),
        ("train", {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "unable to locate credentials"),
        ("label", {"AWS_SECRET_ACCESS_KEY": ""}, "missing: AWS_SECRET_ACCESS_KEY"),
        ("tune", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, r"could not connect .*127\.0\.0\.1:9"),
        ("label", {"AWS_ENDPOINT_URL": "http://nobody.invalid:9"}, r"could not connect .*nobody\.invalid"),
        ("train", {"AWS_ENDPOINT_URL": "127.0.0.1:9000"}, r"nvalid endpoint: 127\.0\.0\.1:9000; give .*http"),
        ("detect", {"AWS_REGION": "eu central", "AWS_DEFAULT_REGION": "eu central"}, "region_name 'eu central'"),
        # A region that does not exist is looked up at Amazon, by a name that does not exist either.
        ("run", {"AWS_ENDPOINT_URL": "", "AWS_REGION": "eu-moon-1", "AWS_DEFAULT_REGION": "eu-moon-1"}, "eu-moon-1"),
        ("tune", {"AWS_PROFILE": "nobody"}, "profile .nobody. could not be found"),
    ],
)
def test_what_is_wrong_with_a_bucket_is_said(job, variables, sentence, strict_s3, monkeypatch, tmp_path, capsys):
    url, keys = strict_s3
    point_to_s3(url, monkeypatch, keys)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, text in variables.items():
        monkeypatch.setenv(name, text)
    module, places = JOBS_ON_BUCKETS[job]
    assert refused(module, places, capsys, sentence)


def refused(module, words, capsys, sentence) -> bool:
    """Run a job in this process; whether it says one sentence, and nothing else, in time."""
    s3_requests._s3.cache_clear()
    began = time.monotonic()
    code = module.main(words)
    seconds = time.monotonic() - began
    out, said = capsys.readouterr()
    assert code == 2, said
    assert not out
    assert said.startswith("firnline ")
    assert said.count("\n") == 1, said
    assert re.search(sentence, said), said
    assert seconds < SECONDS, f"{seconds:.0f} s"
    return True


def test_a_bucket_that_does_not_exist_is_said(strict_s3, monkeypatch, tmp_path, capsys):
    url, keys = strict_s3
    point_to_s3(url, monkeypatch, keys)
    for module, places in (
        (detect_job, ["s3://not-there/archive", "s3://there/workspace"]),
        (run_job, ["s3://there/archive", "s3://not-there/workspace"]),
        (train_job, ["s3://not-there/workspace"]),
        (tune_job, ["s3://not-there/workspace"]),
        (label_job, ["s3://not-there/workspace"]),
    ):
        words = [*places, "--mlflow", f"sqlite:///{tmp_path}/mlflow.db"]
        assert refused(module, words, capsys, "s3://not-there/.* bucket does not exist")


@pytest.mark.parametrize(("job", "server"), [("detect", silent_server), ("label", deaf_server)])
def test_an_endpoint_that_stays_silent_is_said(job, server, strict_s3, monkeypatch, capsys):
    longest = max(s3_requests.CHECK_READ_SECONDS, s3_requests.CHECK_CONNECT_SECONDS)
    assert s3_requests.CHECK_SECONDS + longest < SECONDS / 2
    for name in ("CHECK_SECONDS", "CHECK_READ_SECONDS", "CHECK_CONNECT_SECONDS"):
        monkeypatch.setattr(s3_requests, name, getattr(s3_requests, name) / 4)
    module, places = JOBS_ON_BUCKETS[job]
    with server() as place:
        point_to_s3(f"http://{place}", monkeypatch, strict_s3[1])
        assert refused(module, places, capsys, f"timeout on endpoint .*{place}")


@pytest.mark.parametrize("server", [silent_server, deaf_server])
def test_a_jobs_server_that_stays_silent_is_said(server, monkeypatch, capsys):
    assert submit_job.CONNECT_SECONDS + submit_job.ANSWER_SECONDS < SECONDS
    for name in ("CONNECT_SECONDS", "ANSWER_SECONDS"):
        monkeypatch.setattr(submit_job, name, 2.0)
    with server() as place:
        words = ["--address", f"http://{place}", "detect", "s3://there/archive", "s3://there/workspace"]
        assert refused(submit_job, words, capsys, f"the Jobs server http://{place} does not answer: no answer in time")


# In a process of its own, since this one may be connected to a Ray, and has that one's token.
MAINS = """
import json, sys, time
from jobs.command_line import leave, main
from pipelines.runtime import capacity, ray_session
capacity.WAIT_SECONDS = 1.0
ray_session.CONNECT_SECONDS = 2.0
for words in json.loads(sys.argv[1]):
    began = time.monotonic()
    code = main(words)
    print("code", code, "after", round(time.monotonic() - began, 1), file=sys.stderr, flush=True)
leave(code)
"""


def run_mains(commands: list[list[str]], environment: dict[str, str]) -> list[tuple[int, float, list[str]]]:
    """Run jobs one after the other in one process; return the code, the seconds and the standard error of each."""
    done = subprocess.run(
        [sys.executable, "-c", MAINS, json.dumps(commands)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    results: list[tuple[int, float, list[str]]] = []
    lines: list[str] = []
    for line in done.stderr.splitlines():
        if line.startswith("code "):
            _, code, _, seconds = line.split()
            results.append((int(code), float(seconds), lines))
            lines = []
        else:
            lines.append(line)
    assert len(results) == len(commands), done.stderr
    return results


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Return an archive, and a workspace with events and an encoder."""
    folder = tmp_path_factory.mktemp("places")
    samples = np.random.default_rng(1).normal(0, 100, 4000).astype(np.int32)
    header = {"network": "XX", "station": "A", "channel": "HHZ", "sampling_rate": 100.0}
    target = folder / "archive/1970/XX/A/HHZ.D/XX.A..HHZ.D.1970.001"
    target.parent.mkdir(parents=True)
    obspy.Trace(samples, header).write(str(target), format="MSEED")
    workspace = open_workspace(str(folder / "workspace"), create=True)
    workspace.update_state()
    write_workspace(workspace.store)
    assert train_job.main([workspace.url, "--train.encoder", "features", "--train.num_workers", "0"]) == 0
    return str(folder / "archive"), workspace.url


def test_a_cluster_that_is_none_refuses_us_or_is_too_small_is_said(places, tmp_path):
    # It may be asked twice; the test does not wait as long.
    assert 2 * ray_session.CONNECT_SECONDS < SECONDS
    archive, workspace = places
    new = str(tmp_path / "new")
    detect, run = ["detect", archive, new], ["run", archive, new]
    train, tune, label = (["train", workspace, "--replace"], ["tune", workspace], ["label", workspace, "--replace"])
    workers = ["--train.num_workers", "1"]
    with ray_head(num_cpus=1, memory=800 << 20) as head, silent_server() as silent, deaf_server() as deaf:
        here = ["--address", head.address]
        cases = [
            ([*detect, "--address", silent], "not as a Ray cluster"),
            ([*label, "--address", deaf], "does not answer (timed out)"),
            ([*tune, "--address", head.url.removeprefix("http://")], "not as a Ray cluster"),
            ([*detect, *here], "a task of detect takes 1 CPU and 1.6 GB of memory on one node, but the largest"),
            ([*run, *here], "a task of detect takes 1 CPU and 1.6 GB of memory on one node, but the largest"),
            ([*label, *here], "a worker that embeds takes 1 CPU and 1.1 GB of memory on one node, but the largest"),
            ([*label, *here, "--label.use_gpu", "true"], "Ray has no GPU"),
            ([*train, *here, "--train.num_workers", "2"], "Ray has 1 CPUs"),
            ([*train, *here, *workers, "--train.use_gpu", "true"], "Ray has 0 GPUs"),
        ]
        results = run_mains([words for words, _ in cases], head.environment())
        strangers = [[*words, *here] for words in (detect, run, train, tune, label)]
        results += run_mains(strangers, head.environment() | {"RAY_AUTH_TOKEN": "f" * 64, "RAY_AUTH_TOKEN_PATH": ""})
        cases += [(words, "refuses the token") for words in strangers]
    for (words, sentence), (code, seconds, said) in zip(cases, results, strict=True):
        assert code == 2, (words, said)
        assert sentence in said[-1], (words, said)
        assert seconds < SECONDS, (words, seconds)
        # Where a Ray ended, its own libraries may have a word of their own.
        assert not any("Traceback" in line for line in said), said
    assert not Path(new).exists()


def test_a_job_waits_for_the_first_node_and_says_so_again_and_again(places, tmp_path):
    archive, workspace = places
    jobs = {
        "detect": ["detect", archive, str(tmp_path / "new")],
        "label": ["label", workspace],
        "tune": ["tune", workspace, "--tune.num_trials", "2"],
        "train": ["train", workspace, "--replace", "--train.encoder", "spectrogram", "--train.num_workers", "1"],
    }
    # Nodes come later, and its head does not say how many.
    with ray_head(num_cpus=0) as head:
        commands = [[*words, "--address", head.address] for words in jobs.values()]
        process = subprocess.Popen(
            [sys.executable, "-c", MAINS, json.dumps(commands)],
            env=head.environment(),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stderr is not None
        for job in jobs:
            wanted = "train: waiting for 1 worker(s) with 1 CPU each" if job == "train" else "waiting for a node"
            said: list[str] = []
            for line in process.stderr:
                said.append(line.rstrip())
                if line.startswith("code "):
                    break
                if wanted in line and sum(wanted in one for one in said) == 2:
                    process.send_signal(signal.SIGINT)
            assert said[-1].startswith("code 130 "), (job, said)
            assert sum(wanted in line for line in said) >= 2, (job, said)
            assert not any("Traceback" in line for line in said), said
        assert process.wait(60) == 130
