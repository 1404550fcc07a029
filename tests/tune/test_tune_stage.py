"""The search on a small table: trials nested under one parent, the best section written, taken up by training."""

import json
import os
import signal
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from chromium import chromium

from pipelines import config as configuration
from pipelines.runtime.capacity import Capacity
from pipelines.runtime.errors import InputError, StageFailed
from pipelines.tracking.server import Tracking
from pipelines.train.stage_setup import effective_augmentation
from pipelines.tune import stage_search, stage_workers
from pipelines.tune.space import configure, searched_sections, space_of
from pipelines.tune.stage import tune_augmentations
from pipelines.tune.stage_records import Records
from pipelines.workspace.artifacts import BEST_AUGMENTATION

sys.path.insert(0, str(Path(__file__).parent.parent / "train"))
from training_events import make_workspace


def folder_of(workspace):
    [folder] = {item.path.split("/")[1] for item in workspace.store.walk("tune")}
    return Records(workspace.store, folder)


def records_of(workspace):
    return folder_of(workspace).read()


SMALL = {"width": 8, "dim": 8, "num_bands": 16, "num_frames": 16, "batch_size": 16}


@pytest.fixture(scope="module")
def searched(ray_cluster, mlflow_server, tmp_path_factory):
    root = tmp_path_factory.mktemp("tune")
    workspace = make_workspace(str(root / "workspace"), count=36)
    config = configuration.resolve(
        {
            "train": SMALL,
            "tune": {
                "num_trials": 4,
                "epochs": 2,
                "grace_epochs": 1,
                "max_events": 30,
                "clusters": 3,
                "num_workers": 1,
            },
        }
    )
    tracking = Tracking(uri=mlflow_server, experiment="tune")
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
    # Without labels the objective is how good the clusters look.
    assert all(run.data.metrics["score"] == run.data.metrics["clusters"] for run in children)


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


def test_the_configured_settings_are_never_stopped_early_and_stay_unless_another_trial_gains_enough(searched, capsys):
    workspace, config, tracking, _ = searched
    trials = records_of(workspace)
    assert (trials[0].point, trials[0].ended) == ({}, "done")
    last = trials[0].history[-1]
    better = replace(trials[1], ended="done", history=(last, last | {"score": last["score"] + 0.05}))
    folder_of(workspace).write(better)
    tuned = {}
    for gain in (0.0, 0.06):
        changed = configuration.resolve(config.model_dump(), {"tune": {"least_gain": gain}})
        capsys.readouterr()
        again = tune_augmentations(workspace, changed, tracking)
        assert again.configured_stay == ("so the configured settings stay" in capsys.readouterr().out) == (gain > 0)
        tuned[again.configured_stay] = yaml.safe_load(workspace.store.read("config/tuned.yaml"))
    assert records_of(workspace) == [trials[0], better, *trials[2:]]
    assert tuned[True] == searched_sections(config, space_of(config))
    assert tuned[False] == searched_sections(configure(config, space_of(config), better.point), space_of(config))
    folder_of(workspace).write(trials[1])
    tune_augmentations(workspace, config, tracking)


def test_the_parent_has_the_winners_settings_and_the_pictures(searched):
    workspace, _, tracking, summary = searched
    client = tracking.client()
    [parent] = [
        run for run in client.search_runs([tracking.experiment_id()]) if "mlflow.parentRunId" not in run.data.tags
    ]
    names = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert {"best-augmentation.yaml", "tuned.yaml", "search"} <= names
    assert {item.path for item in client.list_artifacts(parent.info.run_id, "search")} >= {"search/history.png"}
    tuned = yaml.safe_load(workspace.store.read("config/tuned.yaml"))
    assert tuned["augmentation"] == yaml.safe_load(Path(summary.path).read_text())["augmentation"]


def test_mlflows_pages_show_the_trials_nested_in_the_search_and_compare_them(searched, tmp_path):
    workspace, _, tracking, _ = searched
    experiment, trials = tracking.experiment_id(), records_of(workspace)
    children = [trial.run_id for trial in trials]
    [search] = {run.info.run_id for run in tracking.client().search_runs([experiment])} - set(children)
    rows = "[...document.querySelectorAll('.ag-center-cols-container .ag-row')].map(row => row.getAttribute('row-id'))"
    button = f"document.querySelector(`[row-id='{search}'] button`)"
    with chromium(tmp_path / "profile") as browser:
        browser.resize(1600, 1000)
        browser.open(f"{tracking.uri}/#/experiments/{experiment}/runs")
        browser.until(f"{button} !== null")
        assert browser.run(rows) == [search]
        browser.run(f"{button}.click()")
        browser.until(f"{rows}.length === 5")
        assert (browser.run(rows)[0], set(browser.run(rows)[1:])) == (search, set(children))

        browser.open(
            f"{tracking.uri}/#/compare-runs?runs={json.dumps(children)}&experiments={json.dumps([experiment])}"
        )
        # A line for each trial crosses an axis for each of three values and one for the score.
        titles = "[...document.querySelectorAll('.parcoords .axis-title')].map(title => title.textContent)"
        browser.until(f"{titles}.length === 4")
        assert browser.run(titles)[3] == "score"
        table = browser.run(
            "[...document.querySelectorAll('tr')].map(row => [...row.cells].map(cell => cell.innerText))"
        )
        cells = {name: values for name, *values in table}
        assert cells["Run ID:"] == children
        for key, value in trials[1].point.items():
            if key.endswith("probability"):
                assert cells[key][1] == str(value)
        assert cells["firnline.trial_ended"] == [trial.ended for trial in trials]
        _, _, figures = browser.run("document.body.innerText").partition("Metrics\nShow diff only\n")
        scores = "\n".join(f"{trial.score:.3f}".rstrip("0") for trial in trials)
        assert scores in figures


def test_a_search_that_is_interrupted_goes_on_to_the_same_trials_and_the_same_winner(searched, tmp_path, monkeypatch):
    undisturbed, config, _, summary = searched
    workspace = make_workspace(str(tmp_path / "workspace"), count=36)
    tracking = Tracking(uri=f"sqlite:///{tmp_path}/mlflow.db", experiment="tune", artifact_location=tmp_path.as_uri())
    before, begin = signal.getsignal(signal.SIGINT), stage_search.Watch.begin

    def interrupt_in_the_second_trial(watch, trial_id):
        begin(watch, trial_id)
        if watch.number_of[trial_id] == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(stage_search.Watch, "begin", interrupt_in_the_second_trial)
        with pytest.raises(KeyboardInterrupt):
            tune_augmentations(workspace, config, tracking)
    assert signal.getsignal(signal.SIGINT) == before
    runs = tracking.client().search_runs([tracking.experiment_id()])
    assert {run.info.run_name: run.info.status for run in runs} == {
        "tune": "KILLED",
        "as configured": "FINISHED",
        "trial 1": "KILLED",
    }
    assert not workspace.store.exists(BEST_AUGMENTATION)

    resumed = tune_augmentations(workspace, config, tracking)
    runs = tracking.client().search_runs([tracking.experiment_id()])
    assert sorted(run.info.run_name for run in runs) == ["as configured", "trial 1", "trial 2", "trial 3", "tune"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert (resumed.best_score, resumed.first_score) == (summary.best_score, summary.first_score)
    assert workspace.store.read(BEST_AUGMENTATION) == undisturbed.store.read(BEST_AUGMENTATION)
    assert [(r.point, r.history) for r in records_of(workspace)] == [
        (r.point, r.history) for r in records_of(undisturbed)
    ]


def test_a_search_that_is_done_repeats_no_trial_and_its_deleted_run_is_made_again(searched, capsys):
    workspace, config, tracking, summary = searched
    client = tracking.client()
    [parent] = [
        run for run in client.search_runs([tracking.experiment_id()]) if "mlflow.parentRunId" not in run.data.tags
    ]
    before = records_of(workspace)
    again = tune_augmentations(workspace, config, tracking)
    assert "rank correlation with the accuracy was 0.44 to 0.57 at that number" in capsys.readouterr().out
    assert (again.best_score, again.num_trials) == (summary.best_score, summary.num_trials)
    assert records_of(workspace) == before
    client.delete_run(parent.info.run_id)
    for record in before:
        client.delete_run(record.run_id)
    tune_augmentations(workspace, config, tracking)
    runs = client.search_runs([tracking.experiment_id()])
    assert len(runs) == 1 + summary.num_trials
    assert sorted(run.data.metrics["score"] for run in runs if "score" in run.data.metrics) == pytest.approx(
        sorted(record.score for record in before)
    )


@pytest.fixture
def begun(monkeypatch):
    """How often each trial of the test's searches has begun, by its number."""
    counts, begin = Counter(), stage_search.Watch.begin

    def count(watch, trial_id):
        counts[watch.number_of[trial_id]] += 1
        begin(watch, trial_id)

    monkeypatch.setattr(stage_search.Watch, "begin", count)
    return counts


IMPOSSIBLE = {"augmentation.spectral_response.db.0": 6.0, "augmentation.spectral_response.db.1": 4.0}
"""Each is possible beside the configured other, [2, 10]; a trial with both fails by an exception."""
WITH_IMPOSSIBLE = {key: {"choice": [value, value + 3]} for key, value in IMPOSSIBLE.items()}


def test_a_trial_that_fails_is_recorded_once_with_its_reason_and_the_search_goes_on(ray_cluster, tmp_path, begun):
    workspace = make_workspace(str(tmp_path / "workspace"), count=36)
    config = configuration.resolve(
        {
            "train": SMALL | {"weight_decay": 1000.0},
            "tune": {
                **{"num_trials": 3, "epochs": 2, "grace_epochs": 2, "max_events": 30, "clusters": 3},
                "space": {"train.learning_rate": {"choice": [1e-4, 1000.0]}} | WITH_IMPOSSIBLE,
                "start": [{"train.learning_rate": 1e-4}, {"train.learning_rate": 1000.0}, IMPOSSIBLE],
                "as_configured_first": False,
            },
        }
    )
    tracking = Tracking(uri=f"sqlite:///{tmp_path}/mlflow.db", experiment="tune", artifact_location=tmp_path.as_uri())
    summary = tune_augmentations(workspace, config, tracking)
    good, diverged, impossible = records_of(workspace)
    assert (good.ended, diverged.ended, impossible.ended) == ("done", "failed", "failed")
    assert "the loss is nan in epoch 2" in diverged.reason
    assert "db is [6.0, 4.0]; write [smallest, largest]" in impossible.reason
    assert begun == {0: 1, 1: 1, 2: 1}
    assert summary.best_score == good.score
    assert yaml.safe_load(workspace.store.read("config/tuned.yaml"))["train"] == {"learning_rate": 1e-4}
    runs = {run.info.run_name: run for run in tracking.client().search_runs([tracking.experiment_id()])}
    for name, failed in (("trial 1", diverged), ("trial 2", impossible)):
        assert runs[name].info.status == "FAILED"
        assert runs[name].data.tags["firnline.trial_reason"] == failed.reason
    assert runs["trial 2"].data.params == {key: str(value) for key, value in IMPOSSIBLE.items()}


def test_a_trial_on_two_workers_shares_the_windows_and_reports_each_epoch_once(ray_cluster, tmp_path, begun):
    workspace = make_workspace(str(tmp_path / "workspace"), count=36)
    config = configuration.resolve(
        {
            "train": SMALL
            | {"num_workers": 2, "cpus_per_worker": 0.5, "learning_rate": 1000.0, "weight_decay": 1000.0},
            "tune": {
                **{"num_trials": 2, "epochs": 3, "grace_epochs": 3, "max_events": 30, "clusters": 3},
                "space": WITH_IMPOSSIBLE,
                "start": [IMPOSSIBLE],
            },
        }
    )
    tracking = Tracking(uri=f"sqlite:///{tmp_path}/mlflow.db", experiment="tune", artifact_location=tmp_path.as_uri())
    with pytest.raises(StageFailed, match=r"no trial of the search ran to its end: .*the loss is nan in epoch 2"):
        tune_augmentations(workspace, config, tracking)
    diverged, impossible = records_of(workspace)
    # It has failed by itself, after an epoch that both workers have done; that both have reported it is up to chance.
    assert diverged.ended == "failed"
    [figures] = diverged.history
    assert figures["training_iteration"] == 1
    assert {"score", "loss", "stability"} <= set(figures)
    assert (impossible.ended, impossible.history) == ("failed", ())
    assert "db is [6.0, 4.0]; write [smallest, largest]" in impossible.reason
    assert begun == {0: 1, 1: 1}


def test_a_search_of_which_no_trial_fits_the_cluster_is_refused_before_it_starts(ray_cluster, tmp_path):
    workspace = make_workspace(str(tmp_path / "workspace"), count=12)
    tracking = Tracking(uri=f"sqlite:///{tmp_path}/mlflow.db", experiment="tune")
    for train, words in (
        ({"num_workers": 2, "cpus_per_worker": 500}, r"needs 1000 CPU .* but Ray has \d+ CPU and 0 GPU; ask for less"),
        ({"use_gpu": True}, r"needs 1 CPU and 1 GPU .*tune\.gpus_per_worker\), but Ray has"),
    ):
        with pytest.raises(InputError, match=words):
            tune_augmentations(workspace, configuration.resolve({"train": train}), tracking)
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("train", "tune", "most", "number"),
    [
        ({}, {}, Capacity(cpus=16, gpus=0, grows=False), 16),
        ({}, {"num_workers": 3}, Capacity(cpus=16, gpus=0, grows=False), 3),
        ({"num_workers": 4, "cpus_per_worker": 2}, {}, Capacity(cpus=20, gpus=0, grows=True), 2),
        ({"use_gpu": True}, {"gpus_per_worker": 0.25}, Capacity(cpus=16, gpus=2, grows=False), 8),
        ({"use_gpu": True}, {"gpus_per_worker": 0.1}, Capacity(cpus=4, gpus=1, grows=False), 4),
        ({"use_gpu": True, "num_workers": 2}, {}, Capacity(cpus=0, gpus=5, grows=True), 2),
        ({"use_gpu": True}, {}, Capacity(cpus=64, gpus=0, grows=False), 0),
        # No node has come yet.
        ({"use_gpu": True}, {}, Capacity(cpus=0, gpus=0, grows=False), 1),
    ],
)
def test_as_many_trials_run_at_a_time_as_fit_the_cluster(monkeypatch, train, tune, most, number):
    monkeypatch.setattr(stage_workers, "on_cluster", lambda: True)
    config = configuration.resolve({"train": {"batch_size": 64, **train}, "tune": tune})
    assert stage_workers.trials_at_once(config, most) == number


def test_training_takes_the_best_section_up_from_a_file_a_workspace_or_a_run(searched, tmp_path):
    workspace, config, tracking, summary = searched
    written = yaml.safe_load(Path(summary.path).read_text())["augmentation"]
    tuned = config.model_copy(update={"train": config.train.model_copy(update={"augment_from": "tune"})})
    assert effective_augmentation(workspace, tuned, tracking).model_dump(mode="json") == written
    elsewhere = make_workspace(str(tmp_path / "elsewhere"), count=12)
    [run_id] = [
        run.info.run_id
        for run in tracking.client().search_runs([tracking.experiment_id()])
        if "mlflow.parentRunId" not in run.data.tags
    ]
    for source in (summary.path, workspace.url, f"runs:/{run_id}"):
        taken = config.model_copy(update={"train": config.train.model_copy(update={"augment_from": source})})
        assert effective_augmentation(elsewhere, taken, tracking).model_dump(mode="json") == written, source


def test_a_run_or_a_workspace_without_a_section_says_so(searched, tmp_path):
    _, _, tracking, _ = searched
    untuned = make_workspace(str(tmp_path / "untuned"), count=12)
    [child, *_] = [
        run.info.run_id
        for run in tracking.client().search_runs([tracking.experiment_id()])
        if "mlflow.parentRunId" in run.data.tags
    ]
    for source, words in (
        (untuned.url, r"there is no .*untuned/config/best-augmentation.yaml; run tune first"),
        (f"runs:/{child}", "the run has no best-augmentation.yaml and no augmentation.yaml"),
        ("runs:/no-such-run", "has no such run"),
    ):
        config = configuration.resolve({"train": {"augment_from": source}})
        with pytest.raises(InputError, match=words):
            effective_augmentation(untuned, config, tracking)
    nowhere = Tracking(uri=f"sqlite:///{tmp_path}/no.db", experiment="tune")
    with pytest.raises(InputError, match=r"there is no .*no\.db"):
        effective_augmentation(untuned, configuration.resolve({"train": {"augment_from": "runs:/1"}}), nowhere)
    assert not (tmp_path / "no.db").exists()


def test_a_workspace_without_a_search_says_so(tmp_path):
    workspace = make_workspace(str(tmp_path / "untuned"), count=12)
    config = configuration.resolve({"train": {"augment_from": "tune"}})
    tracking = Tracking(uri=f"sqlite:///{tmp_path}/mlflow.db", experiment="tune")
    with pytest.raises(InputError, match=r"train\.augment_from is 'tune', but there is no .* run tune first"):
        effective_augmentation(workspace, config, tracking)


def test_an_encoder_without_augmentations_is_refused(tmp_path):
    workspace = make_workspace(str(tmp_path / "features"), count=12)
    tracking = Tracking(uri=f"sqlite:///{tmp_path}/mlflow.db", experiment="tune")
    with pytest.raises(InputError, match=r"train\.encoder is 'features'"):
        tune_augmentations(workspace, configuration.resolve({"train": {"encoder": "features"}}), tracking)


def test_an_objective_without_labels_is_refused(tmp_path):
    workspace = make_workspace(str(tmp_path / "unlabelled"), count=12)
    tracking = Tracking(uri=f"sqlite:///{tmp_path}/mlflow.db", experiment="tune")
    config = configuration.resolve({"train": SMALL | {"weight_decay": 1000.0}, "tune": {"objective": "validation"}})
    with pytest.raises(InputError, match=r"tune\.objective is validation"):
        tune_augmentations(workspace, config, tracking)
