"""Learn the encoder from a workspace's events (SimCLR), store it there and register it in MLflow.

    firnline train WORKSPACE
    python -m jobs.train runs/demo --train.epochs 10 --train.num_workers 2

The same command resumes an interrupted training after its last complete epoch.
"""

import contextlib
from collections.abc import Sequence

from jobs.command_line import Arguments, leave, print_config, run_job
from pipelines.runtime.ray_session import in_ray_job, ray_session
from pipelines.tracking.server import open_tracking
from pipelines.train.stage import train_encoder


def main(argv: Sequence[str] | None = None) -> int:
    """Run `firnline train`."""
    return run_job("train", ["WORKSPACE"], argv, train)


def train(arguments: Arguments) -> None:
    """Resolve the configuration and train; without workers no Ray is needed, except on a cluster."""
    workspace = arguments.workspace(0)
    config = arguments.config("train", workspace)
    print_config(config, "train", workspace)
    tracking = open_tracking(workspace, arguments.mlflow, config.mlflow.experiment)
    with_ray = config.train.num_workers > 0 or arguments.address is not None or in_ray_job()
    with ray_session(arguments.address) if with_ray else contextlib.nullcontext():
        train_encoder(workspace, config, tracking, replace=arguments.replace)


if __name__ == "__main__":
    leave(main())
