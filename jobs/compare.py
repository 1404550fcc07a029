"""Print the labelling runs of one or more workspaces side by side, with the protocol behind every number.

firnline compare runs/demo runs/demo-whitened
"""

from collections.abc import Sequence

from jobs.command_line import Arguments, leave, run_job
from pipelines.label.stage_compare import compare_runs
from pipelines.tracking.server import open_tracking


def main(argv: Sequence[str] | None = None) -> int:
    """Run `firnline compare`."""
    return run_job("compare", ["WORKSPACE..."], argv, compare)


def compare(arguments: Arguments) -> None:
    """Open every workspace's tracking and print one table."""
    trackings = []
    for position in range(len(arguments.positional)):
        workspace = arguments.workspace(position, write=False)
        # Where the workspace's labelling logged to, unless the file or a flag says otherwise.
        config = arguments.config("label", workspace)
        trackings.append(open_tracking(workspace, arguments.mlflow, config.mlflow.experiment, write=False))
    print(compare_runs(trackings))


if __name__ == "__main__":
    leave(main())
