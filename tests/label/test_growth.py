"""A workspace that grows and is corrected: rows, numbers and names stay, and another clustering takes them over."""

import json
from collections import Counter
from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from made_up_events import Example, shard_table, write_example

from pipelines.handlabels.cluster_names import write_cluster_names
from pipelines.label import stage_labels
from pipelines.label.cells import Cell, add_cells
from pipelines.label.cluster_model import ClusterModel
from pipelines.label.naming import moves_of, numbers_by_reference
from pipelines.label.space import Space
from pipelines.label.stage import label_events
from pipelines.label.stage_labels import Naming, _label_table, label_marks, marker_of
from pipelines.label.stage_shards import EventShard
from pipelines.runtime.errors import InputError
from pipelines.tracking.runs import finished_runs
from pipelines.workspace import schemas, tables
from pipelines.workspace.artifacts import ClusteringSummary, DriftRecord, FittedClustering
from pipelines.workspace.ledger import list_markers, marker_path, read_marker, remove_stale, work_left, write_marker
from pipelines.workspace.storage import open_store


def add_day(example: Example, day: int, *, gain: float = 1.0) -> None:
    """Add a day of events, with its markers, as detection does."""
    table, _ = shard_table("AW", "VNA1", day)
    levels = pa.array(np.full(len(table), gain, dtype=np.float32))
    table = table.set_column(
        table.schema.get_field_index("peak_amplitude"), table.schema.field("peak_amplitude"), levels
    )
    tables.write_table(example.workspace.store, tables.shard_path("events", "AW", "VNA1", f"day-{day}"), table)


def files(example: Example, table: str) -> dict[str, bytes]:
    store = example.workspace.store
    return {item.path: store.read(item.path) for item in tables.list_shards(store, table)}


def rows(example: Example) -> pd.DataFrame:
    store = example.workspace.store
    parts = [tables.read_table(store, item.path).to_pandas() for item in tables.list_shards(store, "labels")]
    return pd.concat(parts).set_index("event_id")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cells": None}, "cells: input should be a valid list"),
        ({"cells": [{"month": "2020-01"}]}, "cells.0.reference: field required"),
        ({"cells": [{"month": "\x1b[2J"}]}, "cells.0.month: string should match pattern"),
    ],
)
def test_a_marker_of_a_stranger_is_refused_by_the_member_that_is_wrong(
    tmp_path: Path, ray_cluster: object, change: dict[str, object], said: str
) -> None:
    example = write_example(tmp_path, stations=("VNA1",), num_days=1)
    plain = example.with_settings(labels={"path": None}, kmeans={"restarts": 1})
    label_events(example.workspace, plain, example.tracking)
    store = example.workspace.store
    (mark,) = list_markers(store, "label")
    path = Path(store.full(marker_path("label", mark)))
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    add_day(example, 1)
    with pytest.raises(InputError) as caught:
        label_events(example.workspace, plain, example.tracking)
    assert f"{path} is damaged: {said}" in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_days_are_added_and_labels_corrected_and_what_was_there_keeps_bytes_numbers_and_names(
    tmp_path: Path, ray_cluster: object, capsys: pytest.CaptureFixture[str]
) -> None:
    example = write_example(tmp_path, stations=("VNA1",), num_days=2)
    store = example.workspace.store
    plain = example.with_settings(labels={"path": None}, kmeans={"restarts": 1})
    label_events(example.workspace, plain, example.tracking)
    fitted = FittedClustering.read(store)
    assert fitted.numbers in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))

    # Names are given: no event is embedded or clustered again.
    names = tmp_path / "names.yaml"
    names.write_text(write_cluster_names({0: "calving", 2: "tremor"}, fitted.clustering))
    named = example.with_settings(labels={"path": None, "names": str(names)}, kmeans={"restarts": 1})
    embeddings, first = files(example, "embeddings"), rows(example)
    found = label_events(example.workspace, named, example.tracking, replace=True)
    assert (found.num_embedded, found.num_written) == (0, 2)
    assert rows(example)["cluster"].equals(first["cluster"])
    assert FittedClustering.read(store).clustering == fitted.clustering

    # A day is added: it alone is embedded and written.
    before = files(example, "labels")
    add_day(example, 2)
    capsys.readouterr()
    found = label_events(example.workspace, named, example.tracking)
    assert (found.num_embedded, found.num_written, found.num_events) == (1, 1, 180)
    assert {path: content for path, content in files(example, "labels").items() if path in before} == before
    assert found.cluster_sizes == dict(sorted(Counter(rows(example)["cluster"]).items()))
    assert found.cluster_names == {0: "calving", 2: "tremor"}
    assert "the clustering of 120 events, fitted before, labels the new ones" in capsys.readouterr().out
    drift = DriftRecord.read(store)
    assert (drift.events, drift.reference_events, drift.clustering) == (60, 120, fitted.clustering)
    run = finished_runs(example.tracking, "label")[-1]
    assert run.metrics["drift.events"] == 60
    assert {row.station for row in drift.rows} == {"AW.VNA1"}

    # Some events are labelled by hand: clusters stay, and of the files those with these events are written.
    by_hand = rows(example)["onset"].sort_index().index[:3]
    (tmp_path / "hand.csv").write_text("event_id,label\n" + "".join(f"{event},slip\n" for event in by_hand))
    settings = {"labels": {"path": str(tmp_path / "hand.csv"), "names": str(names)}, "kmeans": {"restarts": 1}}
    corrected = example.with_settings(**settings)
    found = label_events(example.workspace, corrected, example.tracking, replace=True)
    assert (found.num_embedded, found.num_written) == (0, 1)
    after = rows(example)
    assert after.loc[by_hand, "label"].tolist() == ["slip"] * 3
    assert after.loc[by_hand, "label_source"].tolist() == ["hand"] * 3
    assert after["cluster"].loc[first.index].equals(first["cluster"])
    assert all(files(example, "embeddings")[path] == content for path, content in embeddings.items())

    # A day of the next month, with another gain, is added: retraining is advised, and the rows stay.
    before = files(example, "labels")
    add_day(example, 40, gain=64.0)
    capsys.readouterr()
    found = label_events(example.workspace, corrected, example.tracking)
    assert (found.num_embedded, found.num_written) == (1, 1)
    assert {path: content for path, content in files(example, "labels").items() if path in before} == before
    printed = capsys.readouterr().out
    assert "retraining is advised" in printed
    assert "AW.VNA1 2020-02, 60 events: its noise level is 36 dB above that of before" in printed
    assert [bool(row.reasons) for row in DriftRecord.read(store).rows] == [False, True]
    assert label_events(example.workspace, corrected, example.tracking).run_id == ""

    # Another k: the embeddings stay, and each name stays with the cluster that has most of its events.
    other = example.with_settings(**settings | {"kmeans": {"restarts": 1, "k": 5}})
    with pytest.raises(InputError, match=r"kmeans\.k is 5 but .* made with 3"):
        label_events(example.workspace, other, example.tracking)
    four_days = files(example, "embeddings")
    before_k = rows(example)
    capsys.readouterr()
    found = label_events(example.workspace, other, example.tracking, replace=True)
    assert (found.num_embedded, found.num_written) == (0, 4)
    assert files(example, "embeddings") == four_days
    assert (found.cluster_names[0], found.cluster_names[2]) == ("calving", "tremor")
    numbers = set(found.cluster_sizes)
    assert len(numbers) == 5
    assert min(numbers - {0, 1, 2}) == 3
    shared = pd.crosstab(before_k["cluster"], rows(example)["cluster"])
    matched = [number for number in (0, 1, 2) if number in numbers]
    assert sum(shared.loc[number, number] for number in matched) == _most_one_to_one(shared.to_numpy())
    printed = capsys.readouterr().out
    assert "cluster   0 (kept)" in printed
    assert "(new)" in printed
    again = FittedClustering.read(store)
    assert again.before == (fitted.clustering,)
    assert json.loads(store.read("workspace.json"))["next_cluster"] == max(numbers) + 1

    # Fewer clusters again: no number comes back for another cluster.
    fewer = example.with_settings(**settings | {"kmeans": {"restarts": 1, "k": 2, "seed": 9}})
    found = label_events(example.workspace, fewer, example.tracking, replace=True)
    assert set(found.cluster_sizes) <= numbers
    assert ClusteringSummary.read(store).clustering == FittedClustering.read(store).clustering

    # Where all is clustered anew on growth, numbers and names still follow.
    add_day(example, 4)
    found_anew = label_events(example.workspace, fewer, example.tracking, on_growth="retrain")
    assert FittedClustering.read(store).num_events == 300
    assert set(found_anew.cluster_sizes) == set(found.cluster_sizes)
    assert found_anew.cluster_names == found.cluster_names
    assert len(set(list_markers(store, "label"))) == 5

    names.write_text(write_cluster_names({0: "calving"}, "0" * 64))
    with pytest.raises(InputError, match="names the clusters of clustering 000000000000, but the clustering here is"):
        label_events(example.workspace, fewer, example.tracking)


def test_labels_from_before_a_column_are_written_again_and_nothing_else(
    tmp_path: Path, ray_cluster: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = write_example(tmp_path, stations=("VNA1",), num_days=2)
    store = example.workspace.store
    with monkeypatch.context() as earlier:
        earlier.setattr(stage_labels, "ALGORITHM_VERSION", stage_labels.ALGORITHM_VERSION - 1)
        label_events(example.workspace, example.config, example.tracking)
    for path in files(example, "labels"):
        table = tables.read_table(store, path)
        metadata = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
        tables.write_table(store, path, table.drop_columns("confidence"), metadata)
    before, embeddings, clustering = rows(example), files(example, "embeddings"), FittedClustering.read(store)
    assert before["confidence"].isna().all()

    found = label_events(example.workspace, example.config, example.tracking)
    assert (found.num_embedded, found.num_written) == (0, 2)
    assert files(example, "embeddings") == embeddings
    assert FittedClustering.read(store) == clustering
    pd.testing.assert_frame_equal(rows(example), before)
    for path in files(example, "labels"):
        with tables.open_table(store, path) as file:
            assert file.schema_arrow.remove_metadata().equals(schemas.labels_schema())
    assert label_events(example.workspace, example.config, example.tracking).run_id == ""


def _most_one_to_one(shared: np.ndarray) -> int:
    """Return the most events that any one-to-one matching of rows to columns shares, by trying all of them."""
    num_rows, num_columns = shared.shape
    return max(
        sum(shared[row, column] for row, column in enumerate(columns))
        for columns in permutations(range(num_columns), num_rows)
    )


def test_over_thirty_days_each_day_costs_its_own_file_and_the_first_keeps_its_bytes(tmp_path: Path) -> None:
    """What labelling does day by day, without Ray: which files are left, and their rows. Corrections come on day 3."""
    store = open_store(str(tmp_path))
    random = np.random.default_rng(0)
    centroids = 5 * np.eye(3)
    model = ClusterModel(
        space=Space(),
        centroids=centroids,
        clusters=np.arange(3, dtype=np.int32),
        inertia=0.0,
        inertia_history=(0.0,),
        converged=True,
        restart_inertias=(0.0,),
    )
    naming = Naming(
        clustering="a" * 64,
        numbers=np.array([4, 0, 7], dtype=np.int32),
        names={4: "calving", 7: "tremor"},
        far_distance=2.0,
        periods={"AW.VNA1": (0, pd.Timestamp("2020-01-02", tz="UTC").value)},
    )
    shards: list[EventShard] = []
    corrected: dict[str, dict[str, str]] = {}
    kinds: list[int] = []
    first: dict[str, bytes] = {}
    for day in range(30):
        shard = EventShard(network="AW", station="VNA1", name=f"day-{day}", source=f"{day}")
        table, _ = shard_table("AW", "VNA1", day, 20)
        tables.write_table(store, shard.path("events"), table)
        kind = random.integers(0, 3, 20)
        points = (centroids[kind] + 0.3 * random.normal(size=(20, 3))).astype(np.float32)
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(points.reshape(-1)), 3)
        embedded = pa.table([table["event_id"], vectors], schema=schemas.embeddings_schema(3))
        tables.write_table(store, shard.path("embeddings"), embedded)
        shards.append(shard)
        kinds += kind.tolist()
        if day == 2:
            path = shards[1].path("events")
            corrected = {path: {tables.read_table(store, path, ["event_id"])["event_id"][0].as_py(): "slip"}}
        label_of = {event_id: label for labels in corrected.values() for event_id, label in labels.items()}
        marks = label_marks(shards, naming, {each: each.source for each in shards}, corrected)
        left = work_left(store, "label", marks, lambda each, marks=marks: marker_of(each, marks[each]))
        assert left.left == ([shards[1], shard] if day == 2 else [shard])
        for each in left.left:
            rows, cells = _label_table(store, each, model, naming, label_of)
            tables.write_table(store, each.path("labels"), rows, {"clustering": naming.clustering})
            counted = {"cells": [cell.as_json() for cell in cells]}
            write_marker(store, "label", marker_of(each, marks[each]), counted)
        remove_stale(store, "labels", "label", left.stale, left.current)
        now = {item.path: store.read(item.path) for item in tables.list_shards(store, "labels")}
        first = now if day == 2 else first
        assert all(now[path] == content for path, content in first.items())
    found = pa.concat_tables([tables.read_table(store, each.path("labels")) for each in shards])
    assert found["cluster"].to_pylist() == naming.numbers[kinds].tolist()
    assert found["label"].to_pylist().count("slip") == 1
    cells = [
        Cell.from_json("AW.VNA1", values)
        for mark in list_markers(store, "label")
        for values in read_marker(store, "label", mark)["cells"]
    ]
    inside, outside = add_cells(cells)[::-1][:2]
    assert (inside.reference, inside.events, outside.events) == (True, 20, 580)


def test_numbers_follow_shared_events_and_new_ones_were_never_used() -> None:
    shared = np.array([[0, 0, 0, 90], [40, 5, 0, 0], [30, 60, 0, 0], [0, 0, 0, 0]])
    counts = np.array([100, 50, 90, 7])
    numbers = numbers_by_reference(shared, counts, first_new=9)
    assert numbers.tolist() == [3, 0, 1, 9]
    words = [move.words() for move in moves_of(shared, counts, numbers)]
    assert words == [
        "cluster   0 (kept)        50 events: 40 from 0, 5 from 1, 5 that had none",
        "cluster   1 (kept)        90 events: 60 from 1, 30 from 0",
        "cluster   3 (kept)       100 events: 90 from 3, 10 that had none",
        "cluster   9 (new)         7 events: 7 that had none",
    ]
    ended = moves_of(np.array([[50, 20]]), np.array([70]), np.array([0], dtype=np.int32))
    assert ended[-1].words() == "cluster   1 has no successor; its 20 events are in other clusters"
