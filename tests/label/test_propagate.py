"""`label.propagate linear`: hand labels are carried to all other events, and the scored ones see no test half."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_up_events import Example, write_example
from test_growth import add_day, files, rows

from jobs import label
from pipelines.config import Config
from pipelines.label.stage import label_events
from pipelines.report.agreement import statements
from pipelines.runtime.errors import InputError
from pipelines.tracking.runs import finished_runs
from pipelines.workspace import tables
from pipelines.workspace.artifacts import ClusteringSummary, LabelPropagation

SCORES = {
    "test.propagated_accuracy",
    "test.propagated_balanced_accuracy",
    "test.propagated_calibration_error",
}


def truth_of(example: Example) -> pd.Series:
    """Return the true kinds by event id."""
    events = pd.concat([pd.DataFrame(table) for table in _events(example)]).set_index("event_id")
    truth = pd.read_csv(example.truth, dtype={"station": str})
    truth.index = truth["station"] + pd.to_datetime(truth["time"], format="ISO8601").dt.strftime("%Y%m%dT%H%M%S.%f")
    return events["key"].map(truth["label"])


def _events(example: Example) -> list[dict[str, list[str]]]:
    found = []
    for item in tables.list_shards(example.workspace.store, "events"):
        table = tables.read_table(example.workspace.store, item.path, ["event_id", "station", "onset"]).to_pandas()
        keys = table["station"] + table["onset"].dt.strftime("%Y%m%dT%H%M%S.%f")
        found.append({"event_id": table["event_id"].tolist(), "key": keys.tolist()})
    return found


def by_hand(path: Path, labels: pd.Series, test: list[bool]) -> Path:
    """Write hand labels by event id, each with its half."""
    halves = ["test" if each else "validation" for each in test]
    frame = pd.DataFrame({"event_id": labels.index, "label": labels.to_numpy(), "split": halves})
    frame.to_csv(path, index=False)
    return path


def propagating(example: Example, labels: Path | None, propagate: str = "linear") -> Config:
    return example.with_settings(
        labels={"path": None if labels is None else str(labels)},
        kmeans={"restarts": 1},
        label={"propagate": propagate},
    )


def test_hand_labels_are_carried_on_and_stay_as_the_archive_grows(tmp_path: Path, ray_cluster: object) -> None:
    example = write_example(tmp_path, stations=("VNA1",), num_days=2)
    store = example.workspace.store
    truth = truth_of(example)
    chosen = truth.sample(90, random_state=3)
    test = [number % 2 == 0 for number in range(90)]
    hand = by_hand(tmp_path / "hand.csv", chosen, test)
    config = propagating(example, hand)
    label_events(example.workspace, config, example.tracking)

    found = rows(example)
    assert set(found.loc[chosen.index, "label_source"]) == {"hand"}
    assert found.loc[chosen.index, "label"].equals(chosen.rename("label"))
    assert found.loc[chosen.index, "confidence"].isna().all()
    others = found.drop(chosen.index)
    assert set(others["label_source"]) == {"propagated"}
    assert others["confidence"].between(1 / 3, 1).all()
    assert others["confidence"].dtype == np.float32
    assert (others["label"] == truth.loc[others.index]).mean() > 0.8

    # The scores, with their protocol, are in the summary, in MLflow and in the report.
    summary, record = ClusteringSummary.read(store), LabelPropagation.read(store)
    assert set(summary.scores) >= SCORES
    assert all("validation half alone" in summary.protocol[name] for name in SCORES if "balanced" not in name)
    assert summary.scores["test.propagated_accuracy"] > summary.scores["test.majority_baseline"] + 0.2
    metrics = finished_runs(example.tracking, "label")[-1].metrics
    assert {name: metrics[name] for name in SCORES} == {name: summary.scores[name] for name in SCORES}
    assert metrics["propagation.labels"] == record.writes.num_labels == 90
    assert record.scored.num_labels == 45
    titles = [statement.title for statement in statements(summary)]
    assert "expected calibration error of propagated labels" in titles

    # A day is added: the classifier stays, and so do the bytes of all that was there.
    before, kept = files(example, "labels"), store.read(LabelPropagation.PATH)
    add_day(example, 2)
    grown = label_events(example.workspace, config, example.tracking)
    assert (grown.num_embedded, grown.num_written) == (1, 1)
    assert {path: content for path, content in files(example, "labels").items() if path in before} == before
    assert store.read(LabelPropagation.PATH) == kept
    assert set(rows(example).drop(found.index)["label_source"]) == {"propagated"}

    # Another cut of the clustering changes no label.
    labels = rows(example)
    cut = config.model_copy(update={"label": config.label.model_copy(update={"cut": 5})})
    label_events(example.workspace, cut, example.tracking, replace=True)
    assert store.read(LabelPropagation.PATH) == kept
    pd.testing.assert_frame_equal(rows(example)[["label", "confidence"]], labels[["label", "confidence"]])

    # Labels of the test half that are all wrong: the published numbers fall, but what is scored has not seen them.
    wrong = chosen.copy()
    wrong[test] = wrong[test].map({"earthquake": "icequake", "icequake": "spike", "spike": "earthquake"})
    misled = by_hand(tmp_path / "misled.csv", wrong, test)
    label_events(example.workspace, propagating(example, misled), example.tracking, replace=True)
    assert ClusteringSummary.read(store).scores["test.propagated_accuracy"] < 0.3
    record = LabelPropagation.read(store)
    label_events(example.workspace, config, example.tracking, replace=True)
    again = LabelPropagation.read(store)
    assert again.scored == record.scored
    assert again.writes != record.writes
    assert ClusteringSummary.read(store).scores["test.propagated_accuracy"] > 0.5

    # Names of clusters again, and no classifier.
    found = label_events(example.workspace, propagating(example, hand, "none"), example.tracking, replace=True)
    assert found.num_embedded == 0
    plain = rows(example)
    assert set(plain["label_source"].dropna()) == {"hand", "cluster"}
    assert plain["confidence"].isna().all()
    assert not store.exists(LabelPropagation.PATH)
    assert not SCORES & set(ClusteringSummary.read(store).scores)


def test_without_a_validation_half_labels_are_carried_on_and_not_scored(
    tmp_path: Path, ray_cluster: object, capsys: pytest.CaptureFixture[str]
) -> None:
    example = write_example(tmp_path, stations=("VNA1",), num_days=1)
    hand = by_hand(tmp_path / "hand.csv", truth_of(example).sample(20, random_state=1), [True] * 20)
    label_events(example.workspace, propagating(example, hand), example.tracking)
    assert "no score of the propagated labels" in capsys.readouterr().out
    assert (rows(example)["label_source"] == "propagated").sum() == 40
    summary = ClusteringSummary.read(example.workspace.store)
    assert not SCORES & set(summary.scores)


def test_what_cannot_be_carried_on_ends_with_2_before_work(
    tmp_path: Path, ray_cluster: object, capsys: pytest.CaptureFixture[str]
) -> None:
    example = write_example(tmp_path, stations=("VNA1",), num_days=1)
    truth = truth_of(example)
    with pytest.raises(InputError, match=r"label\.propagate is linear, but .* give labels\.path"):
        label_events(example.workspace, propagating(example, None), example.tracking)
    few = by_hand(tmp_path / "few.csv", truth.iloc[:9], [False] * 9)
    with pytest.raises(InputError, match=r"cannot learn from the hand labels of .*few\.csv: they are 9, fewer than 10"):
        label_events(example.workspace, propagating(example, few), example.tracking)
    one = by_hand(tmp_path / "one.csv", truth[truth == "icequake"], [False] * int((truth == "icequake").sum()))
    with pytest.raises(InputError, match="they are of one class only"):
        label_events(example.workspace, propagating(example, one), example.tracking)
    url = example.workspace.url
    assert label.main([url, "--kmeans.k", "3", "--label.propagate", "linear"]) == 2
    assert "give labels.path" in capsys.readouterr().err
    assert label.main([url, "--kmeans.k", "3", "--label.propagate", "often"]) == 2
    assert "label.propagate" in capsys.readouterr().err
    assert not files(example, "embeddings")
    assert not files(example, "labels")
