"""Find the events of an archive: STA/LTA over sharded miniSEED, one Parquet file of windows for each shard.

firnline detect ARCHIVE WORKSPACE
firnline detect s3://bucket/archive s3://bucket/workspace --config configs/neumayer.yaml --mlflow http://mlflow:5000
firnline detect runs/demo-archive runs/demo --detection.on 4 --detection.trigger_components ZNE
"""

from collections.abc import Sequence

from jobs.command_line import Arguments, leave, print_config, run_job
from pipelines.detect.stage import detect_events
from pipelines.detect.stage_archive import open_archive
from pipelines.detect.stage_run import check_workers
from pipelines.runtime.ray_session import ray_session
from pipelines.tracking.server import open_tracking
from pipelines.workspace.replacement import result_of


def main(argv: Sequence[str] | None = None) -> int:
    """Run `firnline detect` and return its exit code."""
    return run_job("detect", ["ARCHIVE", "WORKSPACE"], argv, detect)


def detect(arguments: Arguments) -> None:
    """Check the archive, claim the workspace, detect."""
    workspace = arguments.workspace(1, create=True)
    config = arguments.config("detect", workspace)
    tracking = open_tracking(workspace, arguments.mlflow, config.mlflow.experiment)
    if arguments.join_cluster():
        check_workers()
    archive = open_archive(arguments.positional[0], workspace, config)
    config = archive.config
    print_config(config, "detect", workspace)
    with (
        ray_session(arguments.address) as session,
        result_of(workspace, "detect", config, replace=arguments.replace, with_derived=True) as place,
    ):
        detect_events(
            archive,
            place,
            config,
            tracking=tracking,
            num_workers=config.shards.num_workers or session.num_cpus,
        )


if __name__ == "__main__":
    leave(main())
