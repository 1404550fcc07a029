"""Learn the encoder from a workspace's events (SimCLR), store it there and register it in MLflow.

    firnline train WORKSPACE
    python -m jobs.train runs/demo --train.epochs 10 --train.num_workers 2

The same command resumes an interrupted training after its last complete epoch.
"""

import contextlib
from collections.abc import Sequence

from jobs.command_line import Arguments, leave, print_config, run_job
from pipelines.runtime.errors import InputError
from pipelines.runtime.ray_session import ray_session
from pipelines.tracking.server import open_tracking
from pipelines.train.stage import train_encoder


def main(argv: Sequence[str] | None = None) -> int:
    """Run `firnline train`."""
    return run_job("train", ["WORKSPACE"], argv, train)


def train(arguments: Arguments) -> None:
    """Resolve the configuration and train; without workers no Ray is needed."""
    workspace = arguments.workspace(0)
    config = arguments.config("train", workspace)
    print_config(config, "train", workspace)
    needed = config.train.num_workers > 0
    if arguments.address is not None and not needed:
        raise InputError(
            f"--address is {arguments.address}, but train.num_workers is 0, which trains in this process; "
            "give --train.num_workers, or no address"
        )
    tracking = open_tracking(workspace, arguments.mlflow, config.mlflow.experiment)
    with ray_session(arguments.address) if needed else contextlib.nullcontext():
        train_encoder(workspace, config, tracking, replace=arguments.replace)


if __name__ == "__main__":
    leave(main())
