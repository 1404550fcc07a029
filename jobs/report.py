"""Write figures for people and a catalogue for other programs, from the tables of a workspace.

    firnline report WORKSPACE
    python -m jobs.report runs/demo --report.random_per_cluster 6 --catalog.min_stations 2

writes WORKSPACE/report/index.html (one file, opens offline) and WORKSPACE/catalog/<yyyy-mm>.xml, .csv and .parquet.
"""

import contextlib
from collections.abc import Sequence

from jobs.command_line import Arguments, leave, print_config, run_job
from pipelines.report.stage import write_report
from pipelines.report.stage_tasks import wants_ray
from pipelines.runtime.ray_session import in_ray_job, ray_session
from pipelines.tracking.server import open_tracking


def main(argv: Sequence[str] | None = None) -> int:
    """Run `firnline report`."""
    return run_job("report", ["WORKSPACE"], argv, report)


def report(arguments: Arguments) -> None:
    """Resolve the configuration and write catalogue and page; a small workspace needs no Ray."""
    workspace = arguments.workspace(0)
    config = arguments.config("report", workspace)
    print_config(config, "report", workspace)
    needed = wants_ray(workspace) or arguments.address is not None or in_ray_job()
    tracking = open_tracking(workspace, arguments.mlflow, config.mlflow.experiment)
    with ray_session(arguments.address) if needed else contextlib.nullcontext():
        write_report(workspace, config, tracking, replace=arguments.replace)


if __name__ == "__main__":
    leave(main())
