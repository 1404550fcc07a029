"""Search for the best augmentations on a workspace's events and store them for the training.

    firnline tune WORKSPACE
    python -m jobs.tune runs/demo --tune.num_trials 4 --tune.epochs 3

Then `firnline train WORKSPACE --train.augment_from tune`.
"""

from collections.abc import Sequence

from jobs.command_line import Arguments, leave, print_config, run_job
from pipelines.runtime.ray_session import ray_session
from pipelines.tracking.server import open_tracking
from pipelines.tune.stage import tune_augmentations


def main(argv: Sequence[str] | None = None) -> int:
    """Run `firnline tune`."""
    return run_job("tune", ["WORKSPACE"], argv, tune)


def tune(arguments: Arguments) -> None:
    """Resolve the configuration and search."""
    workspace = arguments.workspace(0)
    config = arguments.config("tune", workspace)
    print_config(config, "tune", workspace)
    tracking = open_tracking(workspace, arguments.mlflow, config.mlflow.experiment)
    with ray_session(arguments.address):
        tune_augmentations(workspace, config, tracking)


if __name__ == "__main__":
    leave(main())
