"""Any name that a user gives a class works as the name of a metric, a parameter or a tag in MLflow."""

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from mlflow.utils.validation import _validate_metric_name, _validate_param_name, _validate_tag_name

from pipelines.tracking.keys import MAX_KEY_CHARACTERS, mlflow_key
from pipelines.tracking.runs import stage_run
from pipelines.tracking.server import open_tracking
from pipelines.workspace.workspace import open_workspace

NAMES = (
    "icequake (deep)",
    "tremor, harmonic",
    "50 % noise",
    "$x^2$",
    "=1+1",
    "a/../b",
    "a//b",
    "ice/",
    ".",
    "..",
    "é" * 400,
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(name=st.text(min_size=1, max_size=300))
@example(name="icequake (deep)")
@example(name="/")
@example(name="a/./b")
@example(name="./")
def test_every_key_is_one_that_mlflow_takes(name):
    key = mlflow_key(name)
    assert len(key) <= MAX_KEY_CHARACTERS
    _validate_metric_name(key)
    _validate_param_name(key)
    _validate_tag_name(key)


@given(name=st.from_regex(r"[a-z][a-z0-9_. -]{0,40}", fullmatch=True))
def test_a_key_that_mlflow_takes_stays_as_it_is(name):
    assert mlflow_key(name) == name


@given(names=st.lists(st.text("ab()/.%$", min_size=1, max_size=8), unique=True, min_size=2, max_size=8))
def test_different_names_have_different_keys(names):
    # A name that spells out a code of its own, such as "a.28.", is no name of a class.
    assert len({mlflow_key(f"test.recall.{name}") for name in names}) == len(names)


def test_a_run_takes_any_name_of_a_class_as_metric_parameter_and_tag(tmp_path):
    workspace = open_workspace(str(tmp_path / "workspace"), create=True)
    tracking = open_tracking(workspace, None, None)
    config = {"catalog": {"event_types": dict.fromkeys(NAMES, "ice quake")}}
    with stage_run(tracking, "report", config, inputs={}) as run:
        run.log_metrics({f"test.recall.{name}": 0.5 for name in NAMES})
        run.set_tags({f"firnline.{name}": "x" for name in NAMES})
    logged = tracking.client().get_run(run.run_id).data
    assert len(logged.metrics) == len(logged.params) == len(NAMES)
    assert logged.metrics["test.recall.icequake .28.deep.29."] == 0.5


@pytest.mark.parametrize("key", ["detection.band_hz", "k.silhouette", "test.recall.icequake", "firnline.input.events"])
def test_the_keys_of_today_stay(key):
    assert mlflow_key(key) == key
