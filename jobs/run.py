"""Run the whole chain in one process and one Ray: detect, train, label, report (with `run.tune true`, tune first).

    firnline run ARCHIVE WORKSPACE
    firnline run runs/demo-archive runs/demo --config configs/demo.yaml

Each stage resumes where it stopped; a chain that is complete does nothing. Where the archive has grown, only what is
new is detected, embedded and labelled, unless `run.on_growth` is `retrain`. `--replace` begins at the first stage whose
settings differ from those of its results.
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
from pipelines.detect.stage_run import check_workers as check_detection_workers
from pipelines.handlabels.table import read_label_table
from pipelines.label.stage import check_events, check_labelling, label_embeds, label_events
from pipelines.label.stage import check_workers as check_label_workers
from pipelines.report.stage import PAGE_PATH, write_report
from pipelines.runtime.errors import InputError
from pipelines.runtime.ray_session import ray_session
from pipelines.runtime.redaction import without_secrets
from pipelines.tracking.server import Tracking, open_tracking
from pipelines.train.stage import (
    check_resources,
    check_training,
    train_encoder,
    training_conflict,
    where_it_runs,
)
from pipelines.tune.stage import check_search, tune_augmentations
from pipelines.tune.stage_workers import check_trials
from pipelines.workspace.artifacts import BEST_AUGMENTATION, TrainingRecord
from pipelines.workspace.replacement import result_of
from pipelines.workspace.tables import list_shards
from pipelines.workspace.workspace import Workspace

CHAIN = ("detect", "tune", "train", "label", "report")
RESULTS = {"detect": "events", "train": "encoder", "label": "labels and clustering", "report": "report and catalogue"}
"""What each stage leaves, in the order in which one is derived from the other."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `firnline run` and return its exit code."""
    return run_job("run", ["ARCHIVE", "WORKSPACE"], argv, run)


def run(arguments: Arguments) -> None:
    """Check everything that can be checked, then run the stages one after the other."""
    workspace = arguments.workspace(1, create=True)
    configs = stage_configs(arguments, workspace)
    tracking = open_tracking(workspace, arguments.mlflow, configs["detect"].mlflow.experiment)
    joined = arguments.join_cluster()
    if joined:
        check_ray(configs)
    archive = open_archive(arguments.positional[0], workspace, configs["detect"])
    configs["detect"] = archive.config
    replaced = check_chain(workspace, configs, tracking, replace=arguments.replace)
    on_growth = configs["detect"].run.on_growth
    if "tune" in configs and on_growth == "keep" and _is_trained(workspace, configs["train"], tracking, replaced):
        print("run: nothing is searched, since the encoder that is there is kept")
        del configs["tune"]
    for stage, config in configs.items():
        print_config(config, stage, workspace)
    began = time.monotonic()
    with ray_session(arguments.address) as session:
        if not joined:
            check_ray(configs)
        detection, anew = configs["detect"], "detect" in replaced
        with result_of(workspace, "detect", detection, replace=anew, with_derived=True) as place:
            detect_events(
                archive,
                place,
                detection,
                tracking=tracking,
                num_workers=detection.shards.num_workers or session.num_cpus,
            )
        if not list_shards(workspace.store, "events"):
            print("run: no event was found, so there is nothing to learn from, label or report")
            return
        check_events(workspace.store, configs["label"])
        if "tune" in configs:
            tune_augmentations(workspace, configs["tune"], tracking)
        train_encoder(workspace, configs["train"], tracking, replace="train" in replaced, on_growth=on_growth)
        label_events(workspace, configs["label"], tracking, replace="label" in replaced, on_growth=on_growth)
        write_report(workspace, configs["report"], tracking, replace="report" in replaced)
    _say_how_to_look(workspace, tracking, seconds=time.monotonic() - began)


def check_ray(configs: Mapping[str, Config]) -> None:
    """Refuse a Ray that is too small for one of the stages; a session must be open. Raises InputError."""
    check_detection_workers()
    check_resources(where_it_runs(configs["train"]))
    if "tune" in configs:
        check_trials(configs["tune"])
    check_label_workers(configs["label"])


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


def check_chain(
    workspace: Workspace, configs: Mapping[str, Config], tracking: Tracking, *, replace: bool
) -> tuple[str, ...]:
    """Refuse before detection what a later stage would refuse hours later; return the stages with other settings.

    Raises:
        InputError: of the stages; without `replace`, also settings that differ from those of a stage's results.
    """
    window = configs["detect"].window
    for path in filter(None, {config.labels.path for config in configs.values()}):
        read_label_table(path)
    if "tune" in configs:
        check_search(configs["tune"])
    conflicts = _conflicts(workspace, configs, tracking)
    check_training(
        workspace,
        configs["train"],
        tracking,
        window,
        replace="train" in conflicts,
        tuned_before="tune" in configs,
    )
    check_labelling(workspace.store, configs["label"], tracking, window)
    if not conflicts:
        if replace:
            print("run: --replace replaces nothing, since all results were made with these settings")
        return ()
    first = next(iter(conflicts))
    begin = list(RESULTS).index(first)
    anew, kept = list(RESULTS.values())[begin:], list(RESULTS.values())[:begin]
    if first == "label" and not label_embeds(workspace, configs["label"]):
        kept.append("embeddings")
    goes = f"{', '.join(anew)} are made anew"
    stays = f"{', '.join(kept)} stay" if kept else "nothing stays"
    if not replace:
        raise InputError(f"{conflicts[first]}; use another workspace, the stored value, or --replace ({goes}; {stays})")
    print(f"run: {conflicts[first]}, so with --replace {goes}; {stays}")
    return tuple(conflicts)


def _conflicts(workspace: Workspace, configs: Mapping[str, Config], tracking: Tracking) -> dict[str, str]:
    """Return what differs from the settings of each stage's results, in the order of the chain."""
    tuned = "tune" in configs and configs["train"].train.augment_from == "tune"
    found = {
        stage: None
        if stage == "train" and tuned
        else training_conflict(workspace, configs[stage], tracking)
        if stage == "train"
        else workspace.conflict(stage, configs[stage])
        for stage in RESULTS
    }
    return {stage: words for stage, words in found.items() if words is not None}


def _is_trained(workspace: Workspace, config: Config, tracking: Tracking, replaced: Sequence[str]) -> bool:
    """Whether there is a finished training, with the augmentations that a search found."""
    if {"detect", "train"} & set(replaced) or not workspace.store.exists(BEST_AUGMENTATION):
        return False
    trained = TrainingRecord.read(workspace.store) is not None
    return trained and training_conflict(workspace, config, tracking) is None


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
