"""Embed every event with a registered encoder, cluster the embeddings, and write a label for every event.

firnline label runs/demo --kmeans.k 4 --labels.path archive/truth
"""

from collections.abc import Sequence

from jobs.command_line import Arguments, leave, print_config, run_job
from pipelines.label.stage import label_events
from pipelines.tracking.server import open_tracking


def main(argv: Sequence[str] | None = None) -> int:
    """Run `firnline label`."""
    return run_job("label", ["WORKSPACE"], argv, label)


def label(arguments: Arguments) -> None:
    """Resolve the configuration and label the workspace's events."""
    workspace = arguments.workspace(0)
    config = arguments.config("label", workspace)
    print_config(config, "label", workspace)
    tracking = open_tracking(workspace, arguments.mlflow, config.mlflow.experiment)
    label_events(workspace, config, tracking, replace=arguments.replace, address=arguments.address)


if __name__ == "__main__":
    leave(main())
