"""What a stranger on the cluster's network can reach, and where secrets are found: nothing, and nowhere."""

import json
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from closed_ports import answers_without_token
from cluster_machines import Machine
from cluster_world import World

pytestmark = [pytest.mark.chaos_cluster, pytest.mark.timeout(3600)]


def open_ports(machine: Machine) -> list[int]:
    """Return the TCP ports of a host that others can reach."""
    command = ["ip", "netns", "exec", machine.host.namespace, "ss", "--no-header", "-ltn"]
    listening = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    addresses = [line.split()[3] for line in listening.splitlines()]
    return sorted({int(port) for host, _, port in (text.rpartition(":") for text in addresses) if host != "127.0.0.1"})


def test_every_port_of_every_host_refuses_without_the_token(world: World, undisturbed, record_property):
    asked = 0
    wrong = {}
    for machine in [world.cluster.head, *world.cluster.workers]:
        ports = open_ports(machine)
        assert len(ports) >= 3
        for port in ports:
            answers = answers_without_token(port, machine.host.address)
            told = {answer for answer in answers if answer.endswith("answered")}
            if told or not answers & {"UNAUTHENTICATED", "401", "403"}:
                wrong[f"{machine.host.name}:{port}"] = answers
            asked += 1
    record_property("figure", f"ports asked without the token: {asked}")
    assert not wrong


def test_no_secret_is_in_a_log_an_answer_a_record_a_package_or_a_workspace(world: World, undisturbed):
    found = {
        f"{what} in {where}"
        for where, content in everything(world)
        for what, secret in world.secrets.items()
        if secret.encode() in content
    }
    assert not found


def everything(world: World) -> Iterator[tuple[str, bytes]]:
    """Yield all that can be read of the cluster: files of its hosts, answers, MLflow's runs and the bucket."""
    for machine in [world.cluster.head, *world.cluster.workers]:
        for path in sorted(machine.folder.rglob("*")):
            if path.is_file() and not path.is_symlink() and path.name != "auth_token":
                yield f"{machine.host.name}:{path.relative_to(machine.folder)}", path.read_bytes()
        yield machine.host.name, (machine.folder.parent / f"{machine.host.name}.log").read_bytes()
    header = {"Authorization": f"Bearer {world.cluster.token_file.read_text()}"}
    for question in (
        "/api/jobs/",
        "/nodes?view=summary",
        "/api/v0/tasks",
        "/api/v0/actors?detail=1",
        "/api/v0/workers",
    ):
        with urllib.request.urlopen(
            urllib.request.Request(world.cluster.jobs_url + question, headers=header)
        ) as answer:
            yield question, answer.read()
    for question in ("experiments/search", "runs/search", "registered-models/search"):
        yield question, ask_mlflow(world, question)
    for item in world.bucket.tags("undisturbed"):
        yield item, world.bucket.read(f"undisturbed/{item}")
    for item in world.bucket.tags("mlflow"):
        yield item, world.bucket.read(f"mlflow/{item}")


def ask_mlflow(world: World, question: str) -> bytes:
    """Return what MLflow answers to a search over everything."""
    url = f"{world.mlflow.url}/api/2.0/mlflow/{question}"
    if question == "registered-models/search":
        with urllib.request.urlopen(url) as answer:
            content: bytes = answer.read()
        return content
    body: dict[str, object] = {"max_results": 1000}
    if question == "runs/search":
        experiments = json.loads(ask_mlflow(world, "experiments/search"))["experiments"]
        body["experiment_ids"] = [experiment["experiment_id"] for experiment in experiments]
    request = urllib.request.Request(
        url, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request) as answer:
        found: bytes = answer.read()
    return found


def test_the_log_of_mlflows_server_holds_no_secret(world: World, undisturbed):
    content = Path(world.mlflow.log).read_bytes()
    assert not [what for what, secret in world.secrets.items() if secret.encode() in content]
