"""What a test of the cluster works with: its configuration, its servers, and how a stage is sent."""

from dataclasses import dataclass, replace
from pathlib import Path

from cluster_jobs import Bucket, Job, submit
from cluster_machines import Cluster
from cluster_servers import MlflowServer
from faultproxy import Fault, FaultProxy

CONFIG = {
    "synthesize": {"num_stations": 2, "num_days": 1, "rate_hz": 40, "events_per_station_day": 200, "seed": 4},
    "archive": {"layout": "sds"},
    "detection": {"band_hz": [2.0, 15.0], "trigger_components": "ZNE", "merge_seconds": 3.0},
    "window": {"rate_hz": 40.0, "lead_seconds": 5.0, "length_seconds": 20.0},
    "shards": {"interval": "hour"},
    # A fixed number of workers, with which training gives the same bytes; one of three hosts is spare.
    "train": {"num_workers": 2, "batch_size": 32, "epochs": 8, "width": 8, "seed": 1, "max_failures": 3},
    "kmeans": {"k": 4, "restarts": 12, "seed": 1},
}
TABLES = ("events", "embeddings", "labels", "catalog")
LATENCY_SECONDS = 0.03
STAGES = ("detect", "train", "label", "report")


@dataclass(frozen=True)
class World:
    """All that a test of the cluster needs."""

    cluster: Cluster
    bucket: Bucket
    proxy: FaultProxy
    mlflow: MlflowServer
    config: Path
    secrets: dict[str, str]
    """What may be found nowhere, by what it is."""
    words: str
    """Which servers these are."""

    def calm(self) -> None:
        """Let the store answer as one in a cloud: some milliseconds later."""
        self.disturb()

    def disturb(self, *faults: Fault) -> None:
        """Let faults strike the cluster's requests to the store."""
        self.proxy.clear()
        self.proxy.add(*(replace(fault) for fault in faults), Fault("delay", times=None, seconds=LATENCY_SECONDS))

    def submit(self, stage: str, workspace: str) -> Job:
        """Send a stage on a workspace of the bucket."""
        places = [f"s3://{self.bucket.name}/{name}" for name in (["archive"] if stage in ("detect", "run") else [])]
        places += [] if stage == "synthesize" else [f"s3://{self.bucket.name}/{workspace}"]
        places += [f"s3://{self.bucket.name}/archive"] if stage == "synthesize" else []
        more = [] if stage == "synthesize" else ["--mlflow", self.mlflow.url]
        variables = {
            "AWS_ENDPOINT_URL": self.proxy.url,
            "AWS_REGION": "us-east-1",
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        }
        words = [stage, *places, *more, "--config", str(self.config)]
        return submit(self.cluster.jobs_url, self.cluster.token_file, variables, words)
