"""The files that set up a cluster are accepted by Ray's own schema, ask for tokens, and hold no secret."""

import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from pipelines.runtime.ray_token import private_ray_environment

ROOT = Path(__file__).resolve().parent.parent
SKYPILOT = ROOT / "infra" / "skypilot.yaml"
MANIFESTS = sorted(path for path in (ROOT / "infra").rglob("*.yaml") if path != SKYPILOT)
LOCK = (ROOT / "requirements.lock").read_text()
RAY_VERSION = re.search(r"^ray==(\S+)$", LOCK, re.MULTILINE)[1]  # type: ignore[index]

KUBERNETES = "1.37"

# The fields of KubeRay 1.6's resources that the manifests may use; a misspelt one would be dropped in silence.
CLUSTER_FIELDS = {
    *("rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec", "workerGroupSpecs"),
    *("suspend", "managedBy", "gcsFaultToleranceOptions", "headServiceAnnotations", "upgradeStrategy"),
}
JOB_FIELDS = {
    *("entrypoint", "submissionMode", "backoffLimit", "activeDeadlineSeconds", "deletionStrategy", "rayClusterSpec"),
    *("runtimeEnvYAML", "metadata", "clusterSelector", "submitterPodTemplate", "ttlSecondsAfterFinished", "suspend"),
    *("shutdownAfterJobFinishes", "submitterConfig", "preRunningDeadlineSeconds", "jobId"),
}
GROUP_FIELDS = {
    *("groupName", "replicas", "minReplicas", "maxReplicas", "numOfHosts", "rayStartParams", "template", "serviceType"),
    *("scaleStrategy", "idleTimeoutSeconds", "suspend", "enableIngress", "headService", "resources", "labels"),
}


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def cluster_specs() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in MANIFESTS:
        for document in documents(path):
            if document["kind"] == "RayCluster":
                yield path.name, document["spec"]
            if document["kind"] == "RayJob":
                yield path.name, document["spec"]["rayClusterSpec"]


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    return content


def test_rays_own_schema_accepts_the_cluster(cluster: dict[str, Any]):
    from ray.autoscaler._private.util import prepare_config, validate_config

    # With the provider's defaults filled in, as `ray up` does.
    validate_config(prepare_config(cluster))


def test_a_misspelt_key_of_the_cluster_would_be_noticed(cluster: dict[str, Any]):
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config({**cluster, "max_wokers": 3}))


def test_the_head_of_the_cluster_runs_no_work_and_is_not_a_spot_machine(cluster: dict[str, Any]):
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert head["resources"]["CPU"] == 0
    assert "InstanceMarketOptions" not in head["node_config"]
    assert any("--num-cpus=0" in command for command in cluster["head_start_ray_commands"])


def test_workers_are_spot_machines_and_one_group_has_gpus(cluster: dict[str, Any]):
    workers = {
        name: node for name, node in cluster["available_node_types"].items() if name != cluster["head_node_type"]
    }
    assert all(node["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"} for node in workers.values())
    assert all(node["min_workers"] == 0 for node in workers.values())
    assert any(node["resources"].get("GPU") for node in workers.values())


def test_every_ray_of_the_cluster_starts_with_a_token_and_its_dashboard_on_loopback(cluster: dict[str, Any]):
    starts = [
        command
        for commands in (cluster["head_start_ray_commands"], cluster["worker_start_ray_commands"])
        for command in commands
        if "ray start" in command
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token ray start" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert cluster["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"


def test_jobs_are_told_how_many_cpus_and_gpus_the_cluster_may_grow_to(cluster: dict[str, Any]):
    spot, with_gpu = (cluster["available_node_types"][name] for name in ("cpu-spot", "gpu-spot"))
    promised = (
        f"FIRNLINE_CLUSTER_CPUS={spot['max_workers'] * spot['resources']['CPU']} "
        f"FIRNLINE_CLUSTER_GPUS={with_gpu['max_workers'] * with_gpu['resources']['GPU']} "
    )
    assert any(promised in command for command in cluster["head_start_ray_commands"])
    for _, spec in cluster_specs():
        found = {"FIRNLINE_CLUSTER_CPUS": 0, "FIRNLINE_CLUSTER_GPUS": 0}
        for group in spec["workerGroupSpecs"]:
            requests = group["template"]["spec"]["containers"][0]["resources"]["requests"]
            gpus = int(requests.get("nvidia.com/gpu", 0))
            found["FIRNLINE_CLUSTER_GPUS"] += group["maxReplicas"] * gpus
            found["FIRNLINE_CLUSTER_CPUS"] += 0 if gpus else group["maxReplicas"] * int(requests["cpu"])
        variables = spec["headGroupSpec"]["template"]["spec"]["containers"][0]["env"]
        assert {one["name"]: int(one["value"]) for one in variables} == {
            name: count for name, count in found.items() if count
        }


def test_rays_metrics_which_ask_for_no_token_are_off_on_every_node(cluster: dict[str, Any]):
    off = {
        name: value
        for name, value in private_ray_environment().items()
        if name in ("RAY_enable_metrics_collection", "AUTOSCALER_METRIC_PORT", "DASHBOARD_METRIC_PORT")
    }
    assert len(off) == 3
    for name, value in off.items():
        assert f"--env {name}={value}" in cluster["docker"]["run_options"]
        assert f" {name}={value} " in (ROOT / "infra" / "Dockerfile").read_text()


def test_every_command_of_the_cluster_is_one_that_a_shell_reads(cluster: dict[str, Any]):
    kinds = ("setup_commands", "head_start_ray_commands", "worker_start_ray_commands")
    commands = [command for kind in kinds for command in cluster[kind]]
    assert len(commands) == 8
    for command in commands:
        assert subprocess.run(["bash", "-n", "-c", command], capture_output=True, check=False).stderr == b"", command


def test_nodes_without_a_gpu_get_torchs_build_for_cpus(cluster: dict[str, Any]):
    setup = cluster["setup_commands"]
    [on_cpus] = [i for i, command in enumerate(setup) if "whl/cpu" in command]
    assert setup[on_cpus].startswith("nvidia-smi -L > /dev/null 2>&1 || pip install")
    # Before the rest, which would bring the build with CUDA.
    assert on_cpus < next(i for i, command in enumerate(setup) if command.endswith("~/firnline"))
    for _, spec in cluster_specs():
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            container = group["template"]["spec"]["containers"][0]
            has_gpu = "nvidia.com/gpu" in container["resources"]["requests"]
            assert container["image"].endswith("-cpu") != has_gpu


def test_kubernetes_own_schema_accepts_the_manifests():
    for path in MANIFESTS:
        for document in documents(path):
            if not document["apiVersion"].startswith("ray.io/"):
                kubernetes_validate.validate(document, KUBERNETES, strict=True)
    for _, spec in cluster_specs():
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "a"}, "template": group["template"]}
            kubernetes_validate.validate(pod, KUBERNETES, strict=True)
            pod["template"] = group["template"] | {"spec": group["template"]["spec"] | {"toleration": []}}
            with pytest.raises(kubernetes_validate.ValidationError, match="toleration"):
                kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_what_the_cluster_copies_to_its_nodes_is_in_the_repository(cluster: dict[str, Any]):
    for local in cluster["file_mounts"].values():
        assert local.startswith("~") or (ROOT / local).exists(), local


def test_images_and_lock_have_one_version_of_ray(cluster: dict[str, Any]):
    images = [cluster["docker"]["image"]] + [
        node["docker"]["worker_image"] for node in cluster["available_node_types"].values() if "docker" in node
    ]
    assert all(image.split(":")[1].startswith(f"{RAY_VERSION}-py311") for image in images)
    assert all(spec["rayVersion"] == RAY_VERSION for _, spec in cluster_specs())


def test_the_mlflow_server_of_terraform_has_the_locked_version():
    locked = re.search(r"^mlflow==(\S+)$", LOCK, re.MULTILINE)
    assert locked
    assert f'default     = "{locked[1]}"' in (ROOT / "infra/terraform/variables.tf").read_text()


def test_the_head_may_start_exactly_the_machines_that_the_cluster_names(cluster: dict[str, Any]):
    text = (ROOT / "infra/terraform/variables.tf").read_text()
    allowed = re.search(r'variable "worker_instance_types".*?default\s+= \[(.*?)\]', text, re.DOTALL)
    assert allowed
    named = {
        node["node_config"]["InstanceType"]
        for name, node in cluster["available_node_types"].items()
        if name != cluster["head_node_type"]
    }
    assert set(re.findall(r'"([^"]+)"', allowed[1])) == named


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_every_manifest_names_what_it_is(path: Path):
    for document in documents(path):
        assert {"apiVersion", "kind", "metadata"} <= document.keys()
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", document["metadata"]["name"])


@pytest.mark.parametrize(("name", "spec"), list(cluster_specs()))
def test_kuberay_clusters_ask_for_a_token_and_keep_work_off_the_head(name: str, spec: dict[str, Any]):
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert set(spec) <= CLUSTER_FIELDS
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert set(group) <= GROUP_FIELDS
        # KubeRay takes these as text; a bare 0 is refused.
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        container = group["template"]["spec"]["containers"][0]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert group["template"]["spec"]["securityContext"]["runAsNonRoot"] is True


def test_a_retried_ray_job_gets_a_new_cluster_and_a_finished_one_goes_away():
    [job] = [document for document in documents(ROOT / "infra/kuberay/rayjob.yaml") if document["kind"] == "RayJob"]
    assert set(job["spec"]) <= JOB_FIELDS
    assert job["spec"]["backoffLimit"] >= 1
    rules = job["spec"]["deletionStrategy"]["deletionRules"]
    assert {rule["condition"]["jobStatus"] for rule in rules} == {"SUCCEEDED", "FAILED"}
    # KubeRay refuses rules together with the older switch.
    assert "shutdownAfterJobFinishes" not in job["spec"]
    words = job["spec"]["entrypoint"].split()
    config = words[words.index("--config") + 1]
    assert (ROOT / Path(config).relative_to("/opt/firnline")).is_file()


def test_the_skypilot_task_runs_the_job_on_a_spot_machine_and_resumes():
    task = yaml.safe_load(SKYPILOT.read_text())
    assert set(task) <= {"name", "resources", "envs", "workdir", "setup", "run"}
    assert task["resources"]["use_spot"] is True
    assert task["resources"]["job_recovery"]["max_restarts_on_errors"] >= 1
    assert "firnline run " in task["run"]
    assert set(re.findall(r"\$([A-Z]+)", task["run"])) <= set(task["envs"])
    assert (ROOT / task["envs"]["CONFIG"]).is_file()
    # What its machine installs is in the folder that is sent.
    assert task["workdir"] == "."
    assert "-c requirements.lock ." in task["setup"]


def test_the_mlflow_server_names_its_hosts_and_keeps_its_password_out_of_the_arguments():
    [server] = [d for d in documents(ROOT / "infra/mlflow/mlflow.yaml") if d["kind"] == "Deployment"]
    [container] = server["spec"]["template"]["spec"]["containers"]
    [hosts] = [word for word in container["args"] if word.startswith("--allowed-hosts=")]
    assert "*" not in hosts
    assert "mlflow:5000" in hosts
    assert not any("backend-store-uri" in word for word in container["args"])
    assert container["env"][0]["valueFrom"]["secretKeyRef"]


@pytest.mark.parametrize("path", ["infra/mlflow/Dockerfile", "infra/terraform/mlflow.tf"])
def test_every_mlflow_server_with_artifacts_in_a_bucket_has_boto3(path: str):
    # Without it MLflow answers each artifact with 500, and its clients try again for minutes.
    text = (ROOT / path).read_text()
    [install] = [line for line in text.splitlines() if "pip install" in line]
    assert "boto3" in install
    assert re.search(r"^boto3==", LOCK, re.MULTILINE)


def test_whoever_starts_machines_at_aws_has_boto3():
    # Ray's node provider needs it: on the machine of `ray up`, and on the head.
    from ray.autoscaler._private.aws import utils

    assert "import boto3" in Path(utils.__file__).read_text()
    guide = (ROOT / "docs" / "operations.md").read_text()
    assert 0 < guide.index("pip install -c requirements.lock boto3") < guide.index("ray up cluster.yaml\n")
    assert re.search(r"pip install .* '\.\[seisbench\]' boto3", (ROOT / "infra" / "Dockerfile").read_text())


def test_the_docs_install_boto3_where_they_start_a_server_on_a_bucket():
    page = (ROOT / "docs" / "operations.md").read_text()
    assert page.index("pip install boto3") < page.index("--artifacts-destination s3://")


def test_kuberays_head_has_shared_memory_and_no_deadline_ends_a_long_run():
    for name, spec in cluster_specs():
        pod = spec["headGroupSpec"]["template"]["spec"]
        assert {"mountPath": "/dev/shm", "name": "shared-memory"} in pod["containers"][0]["volumeMounts"], name
        assert [volume["emptyDir"]["medium"] for volume in pod["volumes"]] == ["Memory"]
    [job] = [document for document in documents(ROOT / "infra/kuberay/rayjob.yaml") if document["kind"] == "RayJob"]
    assert "activeDeadlineSeconds" not in job["spec"]


def test_the_network_policy_admits_the_operator_under_both_names_that_it_has():
    [policy] = [d for d in documents(ROOT / "infra/kuberay/access.yaml") if d["metadata"]["name"] == "firnline-ray"]
    selectors = [rule["podSelector"] for entry in policy["spec"]["ingress"] for rule in entry["from"]]
    names = [e for s in selectors for e in s["matchExpressions"] if e["key"] == "app.kubernetes.io/name"]
    # From the operator's Helm chart (kuberay-operator.name) and its Kustomize manifests.
    assert names[0]["values"] == ["kuberay-operator", "kuberay"]


def test_the_clusters_user_owns_the_folders_that_docker_makes_for_it(cluster: dict[str, Any]):
    own = next(i for i, command in enumerate(cluster["setup_commands"]) if command.startswith("sudo chown -R"))
    using = [i for i, command in enumerate(cluster["setup_commands"]) if "pip install" in command or "chmod" in command]
    assert own <= min(using)
    for folder in ("~/.ray", "~/firnline"):
        assert folder in cluster["setup_commands"][own]


# Keys of AWS, private keys, and tokens of Ray (64 hexadecimal digits).
SECRET = re.compile(
    r"AKIA[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE KEY|auth_token\s*[:=]\s*['\"]?[0-9a-f]{64}"
    r"|aws_secret_access_key\s*=\s*\S{30}"
)


def test_no_secret_is_in_a_tracked_file():
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False).stdout.decode()
    names = [name for name in tracked.split("\0") if name] or [
        str(p.relative_to(ROOT)) for p in ROOT.glob("infra/**/*")
    ]
    assert len(names) > 10
    for name in names:
        path = ROOT / name
        if path.is_file() and path.suffix in (".py", ".yaml", ".yml", ".tf", ".toml", ".md", ".lock", ".ipynb", ""):
            assert not SECRET.search(path.read_text(encoding="utf-8", errors="replace")), name


@pytest.mark.parametrize(
    "text",
    [
        "AKIA" + "A1B2C3D4E5F6G7H8",
        "-----BEGIN RSA " + "PRIVATE KEY-----",
        "auth_token: " + "0f" * 32,
        "aws_secret_access_key = " + "x" * 40,
    ],
)
def test_a_secret_in_a_file_would_be_noticed(text):
    assert SECRET.search(f"before\n{text}\nafter")


def test_the_lock_pins_every_declared_dependency_exactly():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {
        re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0].lower().replace("_", "-")
        for requirement in [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    }
    lines = [line for line in LOCK.splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!-]+", line) for line in lines)
    assert declared <= {line.split("==")[0].lower().replace("_", "-") for line in lines}
    assert "torch==2.13.0" in lines
