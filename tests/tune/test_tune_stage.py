"""The search on a small table: trials nested under one parent, the best section written, taken up by training."""

import os
import signal
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from pipelines import config as configuration
from pipelines.config.augmentation import AugmentationSettings
from pipelines.contrastive.augmentations import PRESETS, build_augmenter
from pipelines.runtime.errors import InputError
from pipelines.tracking.server import Tracking
from pipelines.train.stage_setup import effective_augmentation
from pipelines.tune.space import DIMENSIONS, apply_point, dimensions_of
from pipelines.tune.stage import configured_score, finished_trials, tune_augmentations
from pipelines.workspace.artifacts import BEST_AUGMENTATION

sys.path.insert(0, str(Path(__file__).parent.parent / "train"))
from training_events import make_workspace

SMALL = {"width": 8, "dim": 8, "num_bands": 16, "num_frames": 16, "batch_size": 16}
BASE = AugmentationSettings().model_dump(mode="json")


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("end", ["low", "high"])
def test_every_corner_of_the_space_is_a_valid_configuration(preset, end):
    point = {name: getattr(one, end) for name, one in dimensions_of(preset).items()}
    section = AugmentationSettings.model_validate(apply_point(BASE, point)).model_dump()
    build_augmenter(preset, section, lead_samples=100)


def test_a_preset_searches_its_own_families_alone():
    amplitude, frequency = dimensions_of("amplitude"), dimensions_of("frequency")
    assert "coloured_noise.probability" in amplitude
    assert "coloured_noise.probability" not in frequency
    assert "spectral_response.reach_db" in frequency
    assert dimensions_of("both").keys() == DIMENSIONS.keys()


def test_what_a_point_leaves_open_stays_as_configured():
    assert apply_point(BASE, {}) == BASE
    changed = apply_point(BASE, {"gain.reach_db": 3.0})
    assert changed["gain"]["component_db"] == [-3.0, 3.0]
    assert {**changed, "gain": None} == {**BASE, "gain": None}


@pytest.fixture(scope="module")
def searched(ray_cluster, tmp_path_factory):
    root = tmp_path_factory.mktemp("tune")
    workspace = make_workspace(str(root / "workspace"), count=36)
    config = configuration.resolve(
        {
            "train": SMALL,
            "tune": {"num_trials": 4, "epochs": 2, "grace_epochs": 1, "max_events": 30, "clusters": 3},
        }
    )
    tracking = Tracking(uri=f"sqlite:///{root}/mlflow.db", experiment="tune", artifact_location=root.as_uri())
    return workspace, config, tracking, tune_augmentations(workspace, config, tracking)


def test_trials_are_children_of_one_parent_and_nothing_else_is(searched):
    _, _, tracking, summary = searched
    runs = tracking.client().search_runs([tracking.experiment_id()])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert [run.data.tags["firnline.stage"] for run in parents] == ["tune"]
    assert len(children) == summary.num_trials == 4
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parents[0].info.run_id}
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert all("score" in run.data.metrics for run in children)


def test_the_best_score_and_the_configured_one_are_those_of_trials_that_ran_to_their_end(searched):
    _, _, tracking, summary = searched
    client = tracking.client()
    finished = {
        run.info.run_name: run.data.metrics["score"]
        for run in client.search_runs([tracking.experiment_id()])
        if "mlflow.parentRunId" in run.data.tags and len(client.get_metric_history(run.info.run_id, "score")) == 2
    }
    assert summary.best_score == pytest.approx(max(finished.values()))
    assert summary.first_score == pytest.approx(finished.get("as configured"))


def test_a_configured_trial_that_failed_or_was_stopped_has_no_score():
    def result(score, *, first=False, epochs=4):
        metrics = None if score is None else {"score": score, "training_iteration": epochs}
        return SimpleNamespace(metrics=metrics, config={"first": first})

    others = [result(0.4), result(0.7), result(0.9, epochs=2)]
    for first in (result(None, first=True), result(0.95, first=True, epochs=1)):
        finished = finished_trials([first, *others], 4)
        assert [one.metrics["score"] for one in finished] == [0.4, 0.7]
        assert configured_score(finished) is None
    assert configured_score(finished_trials([result(0.5, first=True), *others], 4)) == 0.5


def test_an_interrupted_search_is_killed_in_mlflow_and_leaves_no_run_and_no_signal_handler(ray_cluster, tmp_path):
    workspace = make_workspace(str(tmp_path / "workspace"), count=36)
    config = configuration.resolve({"train": SMALL, "tune": {"num_trials": 3, "epochs": 200, "max_events": 30}})
    tracking = Tracking(uri=f"sqlite:///{tmp_path}/mlflow.db", experiment="tune", artifact_location=tmp_path.as_uri())
    before, done = signal.getsignal(signal.SIGINT), threading.Event()

    def interrupt_in_a_trial():
        while not done.wait(0.2):
            runs = tracking.client().search_runs([tracking.experiment_id()])
            if any("loss" in run.data.metrics and "mlflow.parentRunId" in run.data.tags for run in runs):
                os.kill(os.getpid(), signal.SIGINT)
                return

    thread = threading.Thread(target=interrupt_in_a_trial, daemon=True)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            tune_augmentations(workspace, config, tracking)
    finally:
        done.set()
        thread.join()
    assert signal.getsignal(signal.SIGINT) == before
    runs = tracking.client().search_runs([tracking.experiment_id()])
    assert len(runs) > 1
    assert {run.info.status for run in runs} == {"KILLED"}
    assert not workspace.store.exists(BEST_AUGMENTATION)


def test_training_takes_the_best_section_up(searched):
    workspace, config, _, summary = searched
    written = yaml.safe_load(Path(summary.path).read_text())["augmentation"]
    tuned = config.model_copy(update={"train": config.train.model_copy(update={"augment_from": "tune"})})
    assert effective_augmentation(workspace, tuned).model_dump(mode="json") == written
    by_path = config.model_copy(update={"train": config.train.model_copy(update={"augment_from": summary.path})})
    assert effective_augmentation(workspace, by_path).model_dump(mode="json") == written


def test_a_workspace_without_a_search_says_so(tmp_path):
    workspace = make_workspace(str(tmp_path / "untuned"), count=12)
    config = configuration.resolve({"train": {"augment_from": "tune"}})
    with pytest.raises(InputError, match=r"train\.augment_from is 'tune', but there is no .* run tune first"):
        effective_augmentation(workspace, config)


def test_an_encoder_without_augmentations_is_refused(tmp_path):
    workspace = make_workspace(str(tmp_path / "features"), count=12)
    tracking = Tracking(uri=f"sqlite:///{tmp_path}/mlflow.db", experiment="tune")
    with pytest.raises(InputError, match=r"train\.encoder is 'features'"):
        tune_augmentations(workspace, configuration.resolve({"train": {"encoder": "features"}}), tracking)


def test_an_objective_without_labels_is_refused(tmp_path):
    workspace = make_workspace(str(tmp_path / "unlabelled"), count=12)
    tracking = Tracking(uri=f"sqlite:///{tmp_path}/mlflow.db", experiment="tune")
    config = configuration.resolve({"train": SMALL, "tune": {"objective": "validation"}})
    with pytest.raises(InputError, match=r"tune\.objective is validation"):
        tune_augmentations(workspace, config, tracking)
