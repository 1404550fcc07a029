"""The whole chain in one process and one Ray: detect, train, label, report; with `run.tune true`, tune before train.

    firnline run ARCHIVE WORKSPACE
    firnline run runs/demo-archive runs/demo --config configs/demo.yaml

Each stage goes on where it stopped; a chain that is done is a no-op.
"""

import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from jobs.command_line import Arguments, print_config, run_job
from pipelines.cluster import ray_session
from pipelines.detect.stage import detect_events, open_archive
from pipelines.label.stage import label_events
from pipelines.label_table import read_label_table
from pipelines.report.stage import PAGE_PATH, write_report
from pipelines.tables import list_shards
from pipelines.tracking import Tracking, open_tracking
from pipelines.train.stage import check_resources, train_encoder
from pipelines.training_setup import effective_augmentation
from pipelines.tune.stage import tune_augmentations
from pipelines.workspace import Workspace

CHAIN = ("detect", "tune", "train", "label", "report")


def main(argv: Sequence[str] | None = None) -> int:
    """Run `firnline run` and return its exit code."""
    return run_job("run", ["ARCHIVE", "WORKSPACE"], argv, run)


def run(arguments: Arguments) -> None:
    """Check all that can be wrong, then run the stages one after the other."""
    workspace = arguments.workspace(1, create=True)
    config = arguments.config("run", workspace)
    stages = [stage for stage in CHAIN if stage != "tune" or config.run.tune]
    configs = {stage: arguments.config(stage, workspace) for stage in stages}
    if config.run.tune:
        # What the search finds is what is trained with, unless the user names another source.
        settings = configs["train"].train
        source = settings.augment_from or "tune"
        configs["train"] = configs["train"].model_copy(
            update={"train": settings.model_copy(update={"augment_from": source})}
        )
    archive = open_archive(arguments.positional[0], workspace, configs["detect"])
    configs["detect"] = archive.config
    if config.labels.path is not None:
        read_label_table(config.labels.path)
    if configs["train"].train.augment_from != "tune":
        effective_augmentation(workspace, configs["train"])
    tracking = open_tracking(workspace, arguments.mlflow, config.mlflow.experiment)
    for stage in stages:
        print_config(configs[stage], stage)
    began = time.monotonic()
    with ray_session(arguments.address) as session:
        if session.started:
            check_resources(configs["train"])
        workspace.claim("detect", configs["detect"], replace=arguments.replace)
        detect_events(
            archive,
            workspace,
            configs["detect"],
            tracking=tracking,
            num_workers=configs["detect"].shards.num_workers or session.num_cpus,
        )
        if not list_shards(workspace.store, "events"):
            print("run: no event was found, so there is nothing to learn from, label or report")
            return
        if config.run.tune:
            tune_augmentations(workspace, configs["tune"], tracking)
        train_encoder(workspace, configs["train"], tracking, replace=arguments.replace)
        label_events(workspace, configs["label"], tracking, replace=arguments.replace)
        write_report(workspace, configs["report"], tracking, replace=arguments.replace)
    _say_how_to_look(workspace, tracking, seconds=time.monotonic() - began)


def _say_how_to_look(workspace: Workspace, tracking: Tracking, *, seconds: float) -> None:
    page = workspace.store.full(PAGE_PATH)
    print(f"\nrun: done in {seconds:.0f} s")
    print(f"Report:        {Path(page).as_uri() if workspace.store.is_local else page}")
    print(f"Browse, label: {_command('firnline')} explore {shlex.quote(workspace.url)}")
    if tracking.uri.startswith("http"):
        print(f"MLflow:        {tracking.uri}")
        return
    uri = shlex.quote(tracking.uri)
    print(f"MLflow:        {_command('mlflow')} server --host 127.0.0.1 --port 5000 --backend-store-uri {uri}")
    print("               then open http://127.0.0.1:5000")


def _command(name: str) -> str:
    """Return how a command of this Python's environment is called from the present folder."""
    path = Path(sys.prefix) / "bin" / name
    if shutil.which(name) and Path(str(shutil.which(name))).resolve() == path.resolve():
        return name
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))


if __name__ == "__main__":
    sys.exit(main())
