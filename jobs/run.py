"""Run the whole chain in one process and one Ray: detect, train, label, report (with `run.tune true`, tune first).

    firnline run ARCHIVE WORKSPACE
    firnline run runs/demo-archive runs/demo --config configs/demo.yaml

Each stage resumes where it stopped; a chain that is complete does nothing.
"""

import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from jobs.command_line import Arguments, leave, print_config, run_job
from pipelines.config import Config, with_keys
from pipelines.detect.stage import detect_events
from pipelines.detect.stage_archive import open_archive
from pipelines.handlabels.table import read_label_table
from pipelines.label.stage import check_events, check_gpus, check_labelling, label_events
from pipelines.report.stage import PAGE_PATH, write_report
from pipelines.runtime.ray_session import ray_session
from pipelines.runtime.redaction import without_secrets
from pipelines.tracking.server import Tracking, open_tracking
from pipelines.train.stage import check_resources, check_training, train_encoder, where_it_runs
from pipelines.tune.stage import check_search, tune_augmentations
from pipelines.workspace.tables import list_shards
from pipelines.workspace.workspace import Workspace

CHAIN = ("detect", "tune", "train", "label", "report")


def main(argv: Sequence[str] | None = None) -> int:
    """Run `firnline run` and return its exit code."""
    return run_job("run", ["ARCHIVE", "WORKSPACE"], argv, run)


def run(arguments: Arguments) -> None:
    """Check everything that can be checked, then run the stages one after the other."""
    workspace = arguments.workspace(1, create=True)
    configs = stage_configs(arguments, workspace)
    archive = open_archive(arguments.positional[0], workspace, configs["detect"])
    configs["detect"] = archive.config
    tracking = open_tracking(workspace, arguments.mlflow, configs["detect"].mlflow.experiment)
    check_chain(workspace, configs, tracking, replace=arguments.replace)
    for stage, config in configs.items():
        print_config(config, stage, workspace)
    began = time.monotonic()
    with ray_session(arguments.address) as session:
        check_resources(where_it_runs(configs["train"]))
        check_gpus(configs["label"])
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
        check_events(workspace.store, configs["label"])
        if "tune" in configs:
            tune_augmentations(workspace, configs["tune"], tracking)
        train_encoder(workspace, configs["train"], tracking, replace=arguments.replace)
        label_events(workspace, configs["label"], tracking, replace=arguments.replace)
        write_report(workspace, configs["report"], tracking, replace=arguments.replace)
    _say_how_to_look(workspace, tracking, seconds=time.monotonic() - began)


def stage_configs(arguments: Arguments, workspace: Workspace) -> dict[str, Config]:
    """Return the configuration of each stage of the chain, in its order; all log to one experiment of MLflow."""
    tune = arguments.config("run", workspace).run.tune
    configs = {stage: arguments.config(stage, workspace) for stage in CHAIN if stage != "tune" or tune}
    experiments = [config.mlflow.experiment for config in configs.values()]
    named = {"mlflow": {"experiment": next(filter(None, experiments), None)}}
    configs = {stage: with_keys(config, named) for stage, config in configs.items()}
    if tune:
        # Train with what the search finds, unless the user names another source.
        source = configs["train"].train.augment_from or "tune"
        configs["train"] = with_keys(configs["train"], {"train": {"augment_from": source}})
    return configs


def check_chain(workspace: Workspace, configs: Mapping[str, Config], tracking: Tracking, *, replace: bool) -> None:
    """Refuse before detection what a later stage would refuse hours later; raises the stages' InputErrors."""
    window = configs["detect"].window
    for path in filter(None, {config.labels.path for config in configs.values()}):
        read_label_table(path)
    if "tune" in configs:
        check_search(configs["tune"])
    check_training(workspace, configs["train"], window, replace=replace, tuned_before="tune" in configs)
    check_labelling(workspace.store, configs["label"], tracking, window)
    for stage in ("detect", "label", "report"):
        if not replace:
            workspace.refuse_conflict(stage, configs[stage])


def _say_how_to_look(workspace: Workspace, tracking: Tracking, *, seconds: float) -> None:
    page = workspace.store.full(PAGE_PATH)
    print(f"\nrun: done in {seconds:.0f} s")
    print(f"Report:        {Path(page).as_uri() if workspace.store.is_local else page}")
    print(f"Browse, label: {_command('firnline')} explore {shlex.quote(workspace.url)}")
    uri = without_secrets(tracking.uri)
    if tracking.uri.startswith("http"):
        print(f"MLflow:        {uri}")
        return
    uri = shlex.quote(uri)
    print(f"MLflow:        {_command('mlflow')} server --host 127.0.0.1 --port 5000 --backend-store-uri {uri}")
    print("               then open http://127.0.0.1:5000")


def _command(name: str) -> str:
    """Return how a command of this Python's environment is called from the present folder."""
    path = Path(sys.prefix) / "bin" / name
    if shutil.which(name) and Path(str(shutil.which(name))).resolve() == path.resolve():
        return name
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))


if __name__ == "__main__":
    leave(main())
