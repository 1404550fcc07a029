import json
import shutil
import tempfile
from itertools import permutations
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
import torch
from made_up_events import (
    DAY,
    LEAD_SAMPLES,
    NUM_SAMPLES,
    RATE_HZ,
    Example,
    new_encoder,
    register,
    shard_table,
    write_example,
)

from jobs import compare, label
from pipelines.config import resolve
from pipelines.encoders import Encoder, NetworkConfig, build_network
from pipelines.handlabels.sampling import label_sample
from pipelines.handlabels.table import LabelTable, read_label_table
from pipelines.label.cluster_model import ClusterModel
from pipelines.label.stage import label_events
from pipelines.label.stage_count import count_clusters
from pipelines.label.stage_embed import embed_shards
from pipelines.label.stage_encoder import load_encoder
from pipelines.label.stage_inputs import match_on_ray
from pipelines.label.stage_shards import list_event_shards
from pipelines.runtime.errors import InputError, StageFailed
from pipelines.tracking.runs import finished_runs, stage_run
from pipelines.tracking.server import open_tracking
from pipelines.workspace import schemas, tables
from pipelines.workspace.artifacts import ClusteringSummary, FittedClustering
from pipelines.workspace.event_sample import choose_events
from pipelines.workspace.workspace import Workspace, open_workspace


def read_all(workspace: Workspace, table: str) -> pa.Table:
    return pa.concat_tables(
        [
            tables.read_table(workspace.store, item.path).replace_schema_metadata(None)
            for item in tables.list_shards(workspace.store, table)
        ]
    )


def read_all_of(workspace: Workspace, station: str) -> list[str]:
    rows = read_all(workspace, "events").select(["event_id", "station"]).to_pylist()
    return sorted(row["event_id"] for row in rows if row["station"] == station)


def contents(workspace: Workspace) -> dict[str, bytes]:
    return {
        item.path: workspace.store.read(item.path)
        for table in ("embeddings", "labels", "clustering")
        for item in workspace.store.walk(table)
    }


def read_artifact(example: Example, run_id: str, path: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        return Path(example.tracking.client().download_artifacts(run_id, path, folder)).read_text()


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory, ray_cluster: object) -> Example:
    example = write_example(tmp_path_factory.mktemp("labelled"))
    label_events(example.workspace, example.config, example.tracking)
    return example


def test_every_event_has_exactly_one_label_row(labelled):
    events, labels, embeddings = (read_all(labelled.workspace, table) for table in ("events", "labels", "embeddings"))
    assert labels.schema.equals(schemas.labels_schema())
    joined = events.select(["event_id"]).join(labels, "event_id", join_type="full outer")
    assert joined.num_rows == events.num_rows == labels.num_rows == embeddings.num_rows
    assert joined.column("cluster").null_count == 0
    assert labels.select(["event_id", "network", "station", "location", "onset"]).equals(
        events.select(["event_id", "network", "station", "location", "onset"])
    )
    assert labels.column("margin").to_pandas().min() >= 0
    assert "0101" in labels.column("station").to_pylist()


def test_clusters_are_numbered_by_size_and_named_by_the_validation_half(labelled):
    counts = read_all(labelled.workspace, "labels").column("cluster").to_pandas().value_counts()
    assert counts.sort_index().tolist() == sorted(counts.tolist(), reverse=True)
    summary = json.loads(labelled.workspace.store.read(ClusteringSummary.PATH))
    truth = pd.read_csv(labelled.truth, parse_dates=["time"])["label"]
    rows = read_all(labelled.workspace, "labels").sort_by([("station", "descending"), ("onset", "ascending")])
    kinds = pd.crosstab(rows.column("cluster").to_pandas(), truth)
    assert rows.column("station").to_pylist() == pd.read_csv(labelled.truth, dtype=str)["station"].tolist()
    for entry in summary["clusters"]:
        assert entry["name"] == kinds.loc[entry["cluster"]].idxmax()
    assert summary["scores"]["test.purity"] > summary["scores"]["test.majority_baseline"]
    assert all(entry["hand_labels"] < entry["events"] for entry in summary["clusters"])


def test_the_run_in_mlflow_leads_back_to_encoder_and_events(labelled):
    runs = labelled.tracking.client().search_runs(
        [labelled.tracking.experiment_id()], filter_string="tags.`firnline.stage` = 'label'"
    )
    tags = runs[0].data.tags
    assert tags["firnline.model"] == "models:/firnline-encoder/1"
    assert tags["firnline.input.encoder"] == new_encoder().content_hash
    assert {"firnline.input.events", "firnline.input.labels", "firnline.clustering"} <= set(tags)
    assert runs[0].data.metrics["num_events"] == 240
    artifacts = {item.path for item in labelled.tracking.client().list_artifacts(runs[0].info.run_id, "clusters")}
    assert {"clusters/gallery.png", "clusters/names.yaml", "clusters/clusters.json"} <= artifacts
    artifacts = {item.path for item in labelled.tracking.client().list_artifacts(runs[0].info.run_id, "scores")}
    assert artifacts == {"scores/confusion.png", "scores/confusion.json", "scores/protocol.txt"}
    # Every number of the scores stands with its protocol in the run's artifacts and the summary, and its description.
    summary = json.loads(labelled.workspace.store.read(ClusteringSummary.PATH))
    assert set(summary["protocol"]) == set(summary["scores"])
    protocol = read_artifact(labelled, runs[0].info.run_id, "scores/protocol.txt")
    for name, words in summary["protocol"].items():
        assert f"{name} = {runs[0].data.metrics[name]:.4f}: {words}" in protocol
        assert words.split(": ", 1)[-1] in tags["mlflow.note.content"]


def test_a_model_named_by_alias_version_or_run_is_logged_as_its_version_and_run(labelled):
    client = labelled.tracking.client()
    run_id = client.get_model_version("firnline-encoder", "1").run_id
    client.set_registered_model_alias("firnline-encoder", "winter", "1")
    for name in ("firnline-encoder@winter", "firnline-encoder/latest", "firnline-encoder/1"):
        config = labelled.with_settings(label={"model": f"models:/{name}"})
        found = load_encoder(labelled.workspace.store, config, labelled.tracking)
        assert (found.uri, found.run_id) == ("models:/firnline-encoder/1", run_id)
    by_run = labelled.with_settings(label={"model": f"runs:/{run_id}/model"})
    assert load_encoder(labelled.workspace.store, by_run, labelled.tracking).run_id == run_id


def test_of_many_labelled_events_the_driver_gets_the_embeddings_of_the_probed_ones_alone(labelled):
    store = labelled.workspace.store
    fitted = FittedClustering.read(store)
    embeddings = read_all(labelled.workspace, "embeddings")
    ids = embeddings.column("event_id").to_pylist()
    probed = sorted(ids[::50])
    count = count_clusters(
        store,
        list_event_shards(store),
        ClusterModel.from_bytes(store.read(f"clustering/{fitted.file}.npz")),
        None,
        dict.fromkeys(ids, "spike"),
        probed,
        None,
    )
    assert count.labelled.event_ids.tolist() == sorted(ids)
    assert count.labelled.event_ids[count.labelled.probed].tolist() == probed
    expected = tables.embeddings(embeddings.column("embedding"))[[ids.index(event_id) for event_id in probed]]
    assert (count.labelled.embeddings == expected).all()


def test_a_split_column_puts_an_event_with_all_its_triggers_into_one_half(labelled, capsys):
    """Both stations see each event: one row's split counts for both triggers, and of two that differ, neither."""
    store = labelled.workspace.store
    of_station = [read_all_of(labelled.workspace, station) for station in ("0101", "VNA1")]
    rows = pd.DataFrame({"event_id": of_station[0][:3] + of_station[1][:3], "label": "spike"})
    settings = labelled.config.labels
    shards = list_event_shards(store)
    bare = match_on_ray(store, shards, settings, LabelTable(rows=rows, content_hash=""))
    first = bare.validation[rows["event_id"][0]]
    other, same = ("test", "validation") if first else ("validation", "test")
    rows["split"] = [other, other, "", None, same, ""]
    found = match_on_ray(store, shards, settings, LabelTable(rows=rows, content_hash=""))
    given = [found.validation[event_id] for event_id in rows["event_id"]]
    assert given[:3] == given[3:]
    assert given[0] == (other == "validation")
    assert given[1:3] == [bare.validation[event_id] for event_id in rows["event_id"][1:3]]
    assert "hand labels: 1 event has labels in both validation and test" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["times", "ids with splits"])
def test_training_on_half_the_triggers_puts_every_event_into_the_half_that_labelling_does(labelled, tmp_path, form):
    """Many events have a trigger in the sample whose first one, of the other station, is not in it."""
    workspace = labelled.workspace
    path = tmp_path / "labels.csv"
    rows = pd.read_csv(labelled.truth)
    if form != "times":
        # The two stations' rows of an event name a half in turn, so that some events have one in one row alone.
        ids = [event_id for station in ("0101", "VNA1") for event_id in read_all_of(workspace, station)]
        splits = [("", "validation", "test", "")[number % 4] for number in range(len(ids) + 1)]
        rows = pd.DataFrame({"event_id": ids, "label": "spike", "split": splits[1:]})
    rows.to_csv(path, index=False)
    settings = labelled.with_settings(labels={"path": str(path)}).labels
    of_all = match_on_ray(workspace.store, list_event_shards(workspace.store), settings, read_label_table(str(path)))
    sample = choose_events(workspace.store, max_events=120, seed=3)
    events_cut = {of_all.event_of[event_id] for event_id in sample.event_ids} - set(sample.event_ids)
    assert len(events_cut) > 20
    found = label_sample(workspace.store, sample, settings)
    ids = [sample.event_ids[index] for index in found.indices]
    assert ids == [event_id for event_id in sample.event_ids if of_all.validation[event_id]]
    assert found.labels.tolist() == [of_all.label_of[event_id] for event_id in ids]
    folds = dict.fromkeys(zip((of_all.event_of[event_id] for event_id in ids), found.folds.tolist(), strict=True))
    assert len(folds) == len({event for event, _ in folds})


def test_a_rerun_recomputes_nothing_and_a_damaged_workspace_gets_the_same_bytes_back(labelled):
    workspace = labelled.workspace
    before = contents(workspace)
    again = label_events(workspace, labelled.config, labelled.tracking)
    assert (again.num_embedded, again.num_written) == (0, 0)
    assert contents(workspace) == before

    # What a kill can leave: a file without its marker, neither, and no clustering.
    for stage in ("embed", "label"):
        marker = next(item.path for item in workspace.store.walk(f"ledger/{stage}") if "day-0" in item.path)
        workspace.store.remove(marker)
    markers = [item.path for item in workspace.store.walk("ledger/label")]
    workspace.store.remove(markers[-1])
    workspace.store.remove(sorted(path for path in before if path.startswith("labels"))[-1])
    workspace.store.remove(next(path for path in before if path.endswith(".npz")))
    # Other workers, and rows that stream from Parquet: neither is in the bytes.
    config = labelled.with_settings(label={"num_workers": 1}, kmeans={"memory_gb": 1e-9})
    redone = label_events(workspace, config, labelled.tracking)
    assert (redone.num_embedded, redone.num_written) == (1, 2)
    assert contents(workspace) == before


def test_other_hand_labels_interrupted_leave_nothing_behind_when_the_first_ones_are_back(labelled, capsys):
    """Labels of other inputs, some written when the run ends: the markers of the first may hold for none of them."""
    workspace = labelled.workspace
    before, truth = contents(workspace), labelled.truth.read_bytes()
    other = truth.replace(b",spike", b",icequake (near)").replace(b",earthquake", b",low")
    labelled.truth.write_bytes(other)
    blocked = sorted(path for path in before if path.startswith("labels"))[1]
    workspace.store.remove(blocked)
    Path(workspace.store.full(blocked)).mkdir()
    with pytest.raises(StageFailed, match="1 of 4 shards could not be labelled"):
        label_events(workspace, labelled.config, labelled.tracking)
    Path(workspace.store.full(blocked)).rmdir()
    assert not workspace.store.exists(ClusteringSummary.PATH)
    # What a kill among the removals leaves.
    workspace.store.write("clustering/0123456789abcdef.npz", b"of other settings")
    labelled.truth.write_bytes(truth)
    back = label_events(workspace, labelled.config, labelled.tracking)
    assert (back.num_embedded, back.num_written) == (0, 4)
    assert contents(workspace) == before

    labelled.truth.write_bytes(other)
    label_events(workspace, labelled.config, labelled.tracking)
    labelled.truth.write_bytes(truth)
    capsys.readouterr()
    assert compare.main([workspace.url]) == 0
    printed = capsys.readouterr().out
    runs = finished_runs(labelled.tracking, "label")
    assert len(runs) > 2
    for run in runs:
        row = next(line for line in printed.splitlines() if run.run_id[:8] in line)
        assert "firnline-encoder/1" in row
        assert f"{run.metrics['inertia']:.6g}" in row
        assert f"{run.metrics['test.purity']:.3f} [" in row
    classes = [line.split("  ")[1] for line in printed.splitlines() if line.startswith(runs[-1].run_id[:8])]
    assert classes == ["icequake", "icequake (near)", "low"]
    near = next(line for line in printed.splitlines() if "icequake (near)" in line)
    assert near.endswith(f"{runs[-1].metrics['test.recall.icequake .28.near.29.']:.3f}")
    for words in ("purity: accuracy on the test half", "recall: share of this class", "inertia: sum of the squared"):
        assert f"\n{words}" in printed
    label_events(workspace, labelled.config, labelled.tracking)


def test_a_bucket_holds_the_same_bytes_as_a_disk(labelled, moto_s3):
    bucket = open_workspace(f"{moto_s3.url}/workspace", create=True)
    for item in tables.list_shards(labelled.workspace.store, "events"):
        bucket.store.write(item.path, labelled.workspace.store.read(item.path))
    config = labelled.with_settings(label={"model": "models:/firnline-encoder/1"})
    label_events(bucket, config, labelled.tracking)
    in_bucket, on_disk = contents(bucket), contents(labelled.workspace)
    assert {path for path in in_bucket if path.endswith(".parquet")} == {
        path for path in on_disk if path.endswith(".parquet")
    }
    assert all(in_bucket[path] == on_disk[path] for path in in_bucket if path.endswith(".parquet"))


def test_new_events_alone_are_embedded_and_each_compared_k_is_a_child_run(labelled, capsys):
    workspace = labelled.workspace
    table, _ = shard_table("AW", "VNA1", 2)
    tables.write_table(workspace.store, tables.shard_path("events", "AW", "VNA1", "day-2"), table)
    config = labelled.with_settings(label={"sweep_k": [2, 3, 149]})
    grown = label_events(workspace, config, labelled.tracking)
    assert grown.num_embedded == 1
    assert grown.num_written == 1
    assert len(read_all(workspace, "labels")) == 300
    children = labelled.tracking.client().search_runs(
        [labelled.tracking.experiment_id()], filter_string=f"tags.`mlflow.parentRunId` = '{grown.run_id}'"
    )
    assert {run.data.params["kmeans.k"] for run in children} == {"2", "3"}
    assert "label.sweep_k: k = 149 is left out, since in half of the 300 events there are 1" in capsys.readouterr().out
    assert all("k.silhouette" in run.data.metrics for run in children)
    inputs = {"firnline.input.events", "firnline.input.encoder", "firnline.input.model", "firnline.input.labels"}
    assert all(inputs <= set(run.data.tags) for run in children)
    artifacts = {item.path for item in labelled.tracking.client().list_artifacts(grown.run_id, "k")}
    assert artifacts == {"k/scores.png", "k/scores.json", "k/suggestion.txt"}
    again = label_events(workspace, config, labelled.tracking)
    assert (again.run_id, again.num_events) == ("", 300)


def test_other_settings_are_refused_and_replace_takes_names_and_numbers_from_where_it_is_told(
    labelled, tmp_path, ray_cluster
):
    names = tmp_path / "names.yaml"
    names.write_text("0: calving\n1:\n")
    unlabelled = labelled.with_settings(labels={"path": None, "names": str(names)}, kmeans={"seed": 5, "k": 4})
    with pytest.raises(InputError, match=r"kmeans\.k is 4 but .* holds label results made with 3"):
        label_events(labelled.workspace, unlabelled, labelled.tracking)
    reference = tmp_path / "reference"
    shutil.copytree(labelled.workspace.url, reference)
    before = read_all(labelled.workspace, "labels").to_pandas().set_index("event_id")["cluster"]
    own = labelled.with_settings(label={"reference": labelled.workspace.url})
    with pytest.raises(InputError, match=r"label\.reference .* is the workspace that is labelled"):
        label_events(labelled.workspace, own, labelled.tracking, replace=True)
    assert tables.list_shards(labelled.workspace.store, "labels")
    config = resolve(
        unlabelled.model_dump(mode="json"),
        {"label": {"reference": str(reference)}, "kmeans": {"k": 3, "fraction": 0.8}},
    )
    label_events(labelled.workspace, config, labelled.tracking, replace=True)
    after = read_all(labelled.workspace, "labels").to_pandas().set_index("event_id")
    agreement = {
        numbers: (after["cluster"].map(dict(enumerate(numbers))) == before.loc[after.index]).mean()
        for numbers in permutations(range(3))
    }
    assert max(agreement, key=agreement.__getitem__) == (0, 1, 2)
    assert set(after.loc[after["cluster"] == 0, "label"]) == {"calving"}
    assert after.loc[after["cluster"] != 0, "label"].isna().all()
    assert set(after["label_source"].dropna()) == {"cluster"}


def test_mistakes_are_one_sentence_before_anything_is_written(tmp_path, ray_cluster):
    example = write_example(tmp_path, stations=("VNA1",), num_days=1)
    other_times = tmp_path / "other.csv"
    late = DAY + pd.Timedelta(days=400)
    pd.DataFrame({"network": ["AW"], "station": ["VNA1"], "time": [late.isoformat()], "label": ["spike"]}).to_csv(
        other_times, index=False
    )
    names = tmp_path / "names.yaml"
    names.write_text("- icequake\n")
    bare = open_workspace(str(tmp_path / "bare"), create=True)
    bare.update_state()
    for sections, sentence in (
        ({"kmeans": {"k": 61}}, r"kmeans\.k is 61 but there are only 60 events"),
        ({"label": {"model": "models:/nothing/7"}}, "the model models:/nothing/7 cannot be read"),
        ({"labels": {"path": str(other_times)}}, "matches no event"),
        ({"labels": {"path": str(tmp_path / "none.csv")}}, r"labels\.path .*none\.csv"),
        ({"labels": {"names": str(names)}}, "must map cluster numbers to names"),
        ({"label": {"reference": bare.url}}, "holds no labels"),
        ({"kmeans": {"fraction": 1e-6}}, r"kmeans\.fraction 1e-06 leaves 0 of the 60 events for the fit"),
        ({"label": {"sweep_k": [31, 60]}}, r"label\.sweep_k is \[31, 60\] but only 60 events can be compared"),
        ({"label": {"use_gpu": True}}, r"label\.use_gpu is true, but Ray has no GPU"),
    ):
        with pytest.raises(InputError, match=sentence):
            label_events(example.workspace, example.with_settings(**sections), example.tracking)
    for changed, sentence in (
        ({"num_samples": 512}, r"takes windows of 512 samples at 50 Hz, 64 of them before .* has 256 at 50 Hz"),
        ({"lead_samples": 100}, r"100 of them before the onset, but .* at 50 Hz, 64 of them before the onset"),
        ({"rate_hz": 100.0}, r"takes windows of 256 samples at 100 Hz"),
    ):
        register(example.workspace, new_encoder(**changed))
        with pytest.raises(InputError, match=sentence):
            label_events(example.workspace, example.config, example.tracking)
    assert not list(example.workspace.store.walk("ledger"))
    assert not example.workspace.store.exists("config/label.yaml")


def test_a_damaged_file_of_events_is_named_in_one_sentence_before_or_after_work_starts(tmp_path, ray_cluster):
    example = write_example(tmp_path, stations=("VNA1",))
    store = example.workspace.store
    damaged = tables.shard_path("events", "AW", "VNA1", "day-1")
    store.write(damaged, store.read(damaged)[:-100])
    sentence = rf"^{store.full(damaged)} cannot be read as a table \(.*\); restore it or .* --replace$"
    with pytest.raises(InputError, match=sentence):
        choose_events(store, max_events=None, seed=0)
    with pytest.raises(InputError, match=sentence):
        label_events(example.workspace, example.config, example.tracking)
    assert not list(store.walk("ledger"))
    with pytest.raises(StageFailed, match=rf"1 of 2 shards could not be embedded, first day-1: {store.full(damaged)} "):
        label_events(example.workspace, example.with_settings(labels={"path": None}), example.tracking)


def test_embeddings_in_bfloat16_point_where_those_in_float32_do(tmp_path, ray_cluster):
    example = write_example(tmp_path, stations=("VNA1",), num_days=1)
    store = example.workspace.store
    config = NetworkConfig(kind="spectrogram", num_samples=NUM_SAMPLES, rate_hz=RATE_HZ, lead_samples=LEAD_SAMPLES)
    torch.manual_seed(3)
    encoder = Encoder(config, build_network(config))
    shards = list_event_shards(store)
    found = []
    for precision in ("float32", "bfloat16"):
        settings = example.with_settings(label={"precision": precision}).label
        # Other arithmetic is another embedding: all is embedded anew.
        assert embed_shards(store, shards, encoder, settings, num_workers=1) == 1
        column = read_all(example.workspace, "embeddings")["embedding"].combine_chunks()
        assert column.type.value_type == pa.float32()
        found.append(torch.from_numpy(tables.embeddings(column).copy()))
    assert not torch.equal(*found)
    assert torch.cosine_similarity(*found).min() > 0.999


def test_an_encoder_that_gives_nan_or_always_the_same_is_named(tmp_path, ray_cluster):
    example = write_example(tmp_path, stations=("VNA1",), num_days=1)
    config = NetworkConfig(kind="spectrogram", num_samples=NUM_SAMPLES, rate_hz=RATE_HZ, lead_samples=LEAD_SAMPLES)
    for value, error, sentence in (
        (float("nan"), InputError, "its weights are not all finite"),
        # Finite weights whose products are not.
        (1e30, StageFailed, r"the encoder gives event AW\.VNA1.* an embedding that is not finite"),
        (0.0, InputError, "all 60 embeddings are the same"),
    ):
        network = build_network(config)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.fill_(value)
        register(example.workspace, Encoder(config, network))
        with pytest.raises(error, match=sentence):
            label_events(example.workspace, example.config, example.tracking)
        assert not tables.list_shards(example.workspace.store, "labels")


def test_compare_looks_where_the_workspace_was_labelled_unless_told_otherwise(tmp_path, capsys):
    workspace = open_workspace(str(tmp_path / "workspace"), create=True)
    workspace.update_state()
    workspace.store_config("label", resolve({"mlflow": {"experiment": "winter"}}))
    with stage_run(open_tracking(workspace, None, "winter"), "label", {}, inputs={}) as run:
        pass
    assert compare.main([workspace.url]) == 0
    assert f"winter      {run.run_id[:8]}" in capsys.readouterr().out
    assert compare.main([workspace.url, "--mlflow.experiment", "summer"]) == 0
    assert "no finished labelling run" in capsys.readouterr().out


def test_the_job_exits_with_2_and_one_sentence_where_nothing_was_detected(tmp_path, capsys):
    assert label.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
