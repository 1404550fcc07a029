"""A cluster of hosts in network namespaces, with a store, an MLflow server, and an undisturbed run to compare with."""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster_jobs import Bucket
from cluster_machines import ray_cluster_of_hosts
from cluster_network import network, why_not
from cluster_servers import MlflowServer, postgres, why_no_postgres
from cluster_world import CONFIG, STAGES, TABLES, World
from faultproxy import FaultProxy


def _store(request: pytest.FixtureRequest) -> tuple[dict[str, str], str]:
    """Return the variables of an S3 server, and its name; both listen on loopback, in the hub."""
    tool = Path(__file__).resolve().parents[3] / "shared" / "tools" / "ceph-s3"
    if tool.exists() and shutil.which("radosgw"):
        return dict(request.getfixturevalue("_ceph_server")), "Ceph"
    keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "a-planted-secret-key"}
    return {"AWS_ENDPOINT_URL": request.getfixturevalue("_moto_server"), **keys}, "moto (Ceph is not installed)"


@pytest.fixture(scope="session")
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Yield a running cluster of a head and three workers with an archive in a bucket."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    import boto3

    folder = tmp_path_factory.mktemp("cluster")
    # A test that is asked to end takes its hosts and servers with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with network() as joined:
        store, store_name = _store(request)
        keys = {name: store[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
        client: Any = boto3.client(
            "s3",
            endpoint_url=store["AWS_ENDPOINT_URL"],
            region_name="us-east-1",
            **{name.lower(): key for name, key in keys.items()},
        )
        bucket = Bucket(client, f"firnline-{time.time_ns()}")
        client.create_bucket(Bucket=bucket.name)
        aws = {
            **keys,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        }
        login = {"MLFLOW_TRACKING_USERNAME": "operator", "MLFLOW_TRACKING_PASSWORD": "a-planted-mlflow-password"}
        no_postgres = why_no_postgres()
        with (
            _sqlite(folder) if no_postgres else postgres() as database,
            FaultProxy(store["AWS_ENDPOINT_URL"], host=joined.hub.address) as proxy,
        ):
            mlflow = MlflowServer(
                joined.hub.address,
                database,
                f"s3://{bucket.name}/mlflow",
                folder,
                {**aws, "AWS_ENDPOINT_URL": store["AWS_ENDPOINT_URL"]},
            )
            mlflow.start()
            variables = {**aws, **login, "AWS_ENDPOINT_URL": proxy.url}
            try:
                with ray_cluster_of_hosts(joined, variables, num_workers=3) as cluster:
                    config = folder / "cluster.yaml"
                    config.write_text(yaml.safe_dump(CONFIG))
                    made = World(
                        cluster=cluster,
                        bucket=bucket,
                        proxy=proxy,
                        mlflow=mlflow,
                        config=config,
                        secrets={
                            "the S3 key": keys["AWS_SECRET_ACCESS_KEY"],
                            "MLflow's password": login["MLFLOW_TRACKING_PASSWORD"],
                            "the database's password": database.partition("mlflow:")[2].partition("@")[0] or "no-such",
                            "the token": cluster.token_file.read_text(),
                        },
                        words=f"{store_name}, MLflow with {no_postgres or 'PostgreSQL'}",
                    )
                    made.calm()
                    yield made
            finally:
                mlflow.stop()


class _sqlite:  # noqa: N801
    def __init__(self, folder: Path) -> None:
        self.uri = f"sqlite:///{folder}/mlflow.db"

    def __enter__(self) -> str:
        return self.uri

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture(scope="session")
def undisturbed(world: World) -> dict[str, str]:
    """Run all stages, keep the workspace before each as `before-STAGE`, and return the digests of the tables."""
    for stage in ("synthesize", *STAGES):
        if stage in STAGES:
            world.bucket.copy("undisturbed", f"before-{stage}")
        began = time.monotonic()
        job = world.submit(stage, "undisturbed")
        assert job.wait(600) == 0, job.log[-4000:]
        print(f"undisturbed {stage}: {time.monotonic() - began:.0f} s, longest silence {job.longest_silence()}")
    digests = world.bucket.digests("undisturbed", TABLES)
    assert {path.partition("/")[0] for path in digests} == set(TABLES)
    return digests
