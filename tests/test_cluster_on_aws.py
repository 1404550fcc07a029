"""`ray up` with cluster.yaml and what infra/terraform makes, at a stand-in for AWS: which machines would start."""

import copy
import re
from pathlib import Path
from typing import Any

import boto3
import hcl2
import pytest
import yaml
from loopback_servers import point_to_s3

ROOT = Path(__file__).resolve().parent.parent
TERRAFORM = sorted((ROOT / "infra" / "terraform").glob("*.tf"))
REGION = "eu-central-1"
ATTRIBUTE = re.compile(r"(?<![\w.])(data\.)?(aws_[a-z0-9_]+)\.(\w+)|(?<![\w.])(var|local)\.(\w+)")


def unquoted(value: Any) -> Any:
    """Return what the parser gives, without the quotes that it keeps."""
    if isinstance(value, dict):
        return {unquoted(key): unquoted(one) for key, one in value.items() if not key.startswith("__")}
    if isinstance(value, list):
        return [unquoted(one) for one in value]
    return value.removeprefix('"').removesuffix('"') if isinstance(value, str) else value


@pytest.fixture(scope="module")
def terraform() -> dict[str, list[dict[str, Any]]]:
    """The blocks of all files by kind: `resource`, `data`, `variable`, ..."""
    blocks: dict[str, list[dict[str, Any]]] = {}
    for path in TERRAFORM:
        with path.open() as file:
            for kind, found in unquoted(hcl2.load(file)).items():
                blocks.setdefault(kind, []).extend(found)
    return blocks


def named(blocks: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    [found] = [block[kind][name] for block in blocks if name in block.get(kind, {})]
    assert isinstance(found, dict)
    return found


def test_everything_that_terraforms_files_refer_to_is_declared(terraform: dict[str, list[dict[str, Any]]]):
    declared = {(kind, name) for block in terraform["resource"] for kind, named in block.items() for name in named}
    declared |= {(f"data.{kind}", name) for block in terraform["data"] for kind, one in block.items() for name in one}
    declared |= {("var", name) for block in terraform["variable"] for name in block}
    declared |= {("local", name) for block in terraform["locals"] for name in block}
    used = set()
    for path in TERRAFORM:
        text = re.sub(r"^\s*#.*$", "", path.read_text(), flags=re.M)
        for data, kind, name, scope, variable in ATTRIBUTE.findall(text):
            used.add((scope, variable) if scope else (data + kind, name))
    assert used <= declared
    assert {name for kind, name in declared if kind == "var"} == {name for kind, name in used if kind == "var"}


def test_only_rays_machines_reach_mlflow_and_ssh_is_open_to_named_addresses_alone(
    terraform: dict[str, list[dict[str, Any]]],
):
    rules = [
        rule for block in terraform["resource"] for rule in block.get("aws_vpc_security_group_ingress_rule", {}).items()
    ]
    assert dict(rules).keys() == {"ray", "ssh", "mlflow"}
    assert dict(rules)["ray"]["referenced_security_group_id"] == "${aws_security_group.ray.id}"
    assert dict(rules)["mlflow"]["referenced_security_group_id"] == "${aws_security_group.ray.id}"
    assert dict(rules)["ssh"]["for_each"] == "${toset(var.ssh_from)}"
    # Nobody's address is assumed.
    [ssh_from] = [block["ssh_from"] for block in terraform["variable"] if "ssh_from" in block]
    assert "default" not in ssh_from


@pytest.fixture
def account(_moto_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, terraform: Any) -> list[str]:
    """An AWS account in which terraform has made what `ray up` needs; the calls that follow are listed."""
    point_to_s3(_moto_server, monkeypatch)
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    # `ray up` writes an SSH key there.
    monkeypatch.setenv("HOME", str(tmp_path))
    iam = boto3.client("iam")
    for block in terraform["resource"]:
        for profile in block.get("aws_iam_instance_profile", {}).values():
            iam.create_instance_profile(InstanceProfileName=profile["name"])
    ec2 = boto3.client("ec2")
    [vpc] = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    group = named(terraform["resource"], "aws_security_group", "ray")
    made = ec2.create_security_group(GroupName=group["name"], Description=group["description"], VpcId=vpc["VpcId"])
    ec2.authorize_security_group_ingress(
        GroupId=made["GroupId"],
        IpPermissions=[{"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": made["GroupId"]}]}],
    )
    calls: list[str] = []
    session = boto3.Session(region_name=REGION)
    session.events.register(
        "before-call", lambda model, **_: calls.append(f"{model.service_model.service_id.lower()}:{model.name}")
    )
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", session)
    return calls


def test_ray_up_starts_what_the_cluster_names_and_the_head_may_do_all_that_it_does(
    account: list[str], terraform: dict[str, list[dict[str, Any]]]
):
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text()))
    validate_config(prepared)
    config = bootstrap_aws(prepared)
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    # From here on it is what the head does.
    account.clear()
    for name, node in config["available_node_types"].items():
        provider.create_node(copy.deepcopy(node["node_config"]), {"ray-user-node-type": name}, 1)
    started = provider.non_terminated_nodes({})
    assert len(started) == 3
    ec2 = boto3.client("ec2")
    reservations = ec2.describe_instances(InstanceIds=started)["Reservations"]
    machines = {one["InstanceType"]: one for part in reservations for one in part["Instances"]}
    provider.set_node_tags(started[0], {"ray-node-status": "setting-up"})
    provider.terminate_nodes(started)
    assert {"ec2:RunInstances", "ec2:CreateTags", "ec2:TerminateInstances"} <= set(account)
    scaling = named(terraform["data"], "aws_iam_policy_document", "scaling")["statement"]
    allowed = {action for statement in scaling for action in statement["actions"]}
    assert {call for call in account if call not in allowed} == set()
    # EC2 looks the image up, and makes its own role for spot machines, with the rights of whoever starts a machine.
    assert {"ssm:GetParameters", "iam:CreateServiceLinkedRole", "iam:PassRole"} <= allowed

    assert machines.keys() == {"m7i.large", "c7i.4xlarge", "g6.xlarge"}
    assert [machines[kind].get("InstanceLifecycle") for kind in ("m7i.large", "c7i.4xlarge", "g6.xlarge")] == [
        *(None, "spot", "spot")
    ]
    for kind, machine in machines.items():
        assert machine["ImageId"].startswith("resolve:ssm:/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver")
        assert [group["GroupName"] for group in machine["SecurityGroups"]] == ["firnline-ray"]
        role = machine["IamInstanceProfile"]["Arn"].rpartition("/")[2]
        assert role == ("firnline-head" if kind == "m7i.large" else "firnline-nodes")
    [group] = ec2.describe_security_groups(Filters=[{"Name": "group-name", "Values": ["firnline-ray"]}])[
        "SecurityGroups"
    ]
    # Ray has added none of its rules, one of which admits SSH from everywhere.
    assert [rule["IpRanges"] for rule in group["IpPermissions"]] == [[]]
