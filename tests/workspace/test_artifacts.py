"""The JSON and YAML files that stages share: what is written is read, and what is damaged or hostile is named."""

import json
import tracemalloc

import pytest

from pipelines.config.augmentation import AugmentationSettings
from pipelines.runtime.errors import InputError
from pipelines.workspace import artifacts
from pipelines.workspace.artifacts import (
    BEST_AUGMENTATION,
    ClusterEntry,
    ClusteringSummary,
    ConfusionMatrix,
    DetectionProgress,
    FailedShard,
    TrainingRecord,
    WorkspaceState,
    read_augmentation,
    write_augmentation,
)
from pipelines.workspace.ledger import MarkerName, marker_path, read_marker
from pipelines.workspace.storage import open_store

SUMMARY = ClusteringSummary(
    clusters=(
        ClusterEntry(cluster=0, events=7, name="icequake", purity=0.75, hand_labels=4),
        ClusterEntry(cluster=1, events=5),
    ),
    fingerprint="0123456789abcdef",
    mark="fedcba9876543210",
    sweep_k=(2, 3),
    scores={"test.purity": 0.75},
    protocol={"test.purity": "accuracy on the test half"},
    confusion=ConfusionMatrix(hand_labels=("icequake",), given=("icequake", "(none)"), events=((3, 1),)),
)
TRAINING = TrainingRecord(
    fingerprint="0123456789abcdef",
    keys={"train.dim": 8, "augmentation.gain.range_db": [-6.0, 6.0]},
    content_hash="abc",
    num_events=12,
    model_uri="models:/firnline-encoder/3",
    alias="champion",
    run_id="def",
    score={"score": 0.5, "stability": 0.5},
)
PROGRESS = DetectionProgress(
    ledger="detect",
    planned=10,
    pending_at_start=8,
    done_since=3,
    failed=(FailedShard(shard="network=XX/station=A/x", reason="no"),),
    num_failed=1,
    running=2,
    started=1.7e9,
    updated=1.7e9,
    interval="day",
    unusable_files=0,
)
STATE = WorkspaceState(shard_interval="day", archive="/archive", layout="sds")


@pytest.mark.parametrize("artifact", [SUMMARY, TRAINING, PROGRESS, STATE], ids=lambda one: type(one).__name__)
def test_what_one_stage_writes_another_reads(tmp_path, artifact):
    store = open_store(str(tmp_path))
    assert type(artifact).read(store) is None
    artifact.write(store)
    assert type(artifact).read(store) == artifact
    assert isinstance(json.loads((tmp_path / artifact.PATH).read_text()), dict)


@pytest.mark.parametrize(
    ("kind", "content", "sentence"),
    [
        (ClusteringSummary, b"", "is not valid JSON"),
        (ClusteringSummary, b"\xff\xfe", "is not valid JSON"),
        (ClusteringSummary, b'{"clusters": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "it is nested too deeply"),
        (ClusteringSummary, b"{}", r"is damaged: clusters: field required; restore it or run its stage with --replace"),
        (ClusteringSummary, b'{"clusters": [{"cluster": -1, "events": 2}]}', r"clusters\.0\.cluster"),
        (ClusteringSummary, b'{"clusters": [{"cluster": 1' + b"0" * 300 + b', "events": 2}]}', r"clusters\.0\.cluster"),
        (ClusteringSummary, b'{"clusters": [], "scores": {"test.purity": "high"}}', r"scores\.test\.purity"),
        (TrainingRecord, b'{"model_uri": ["x"]}', "is damaged"),
        (DetectionProgress, b'{"ledger": "../../elsewhere"}', "is damaged: ledger"),
        (WorkspaceState, b'{"shard_interval": "second"}', "is damaged: shard_interval"),
        (WorkspaceState, b'{"layout_version": 1e400}', "layout_version"),
    ],
)
def test_a_damaged_file_is_one_sentence_with_its_path(tmp_path, kind, content, sentence):
    store = open_store(str(tmp_path))
    store.write(kind.PATH, content)
    with pytest.raises(InputError, match=sentence) as caught:
        kind.read(store)
    assert str(caught.value).startswith(str(tmp_path / kind.PATH))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_file_of_absurd_size_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(artifacts, "MAX_JSON_BYTES", 1 << 20)
    store = open_store(str(tmp_path))
    path = tmp_path / ClusteringSummary.PATH
    path.parent.mkdir()
    with path.open("wb") as file:
        file.truncate(1 << 40)
    tracemalloc.start()
    with pytest.raises(InputError, match="larger than 1 MiB"):
        ClusteringSummary.read(store)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_a_damaged_marker_is_named(tmp_path):
    store = open_store(str(tmp_path))
    name = MarkerName("XX", "A", "--.HH.2022-01-01.day", "abc")
    store.write(marker_path("detect", name), b"[" * 10_000)
    with pytest.raises(InputError, match=r"ledger/detect/network=XX/station=A/\S+ is not valid JSON"):
        read_marker(store, "detect", name)


def test_keys_of_workspace_json_that_are_not_known_are_kept(tmp_path):
    store = open_store(str(tmp_path))
    store.write("workspace.json", b'{"layout_version": 1, "note": "of another program"}')
    WorkspaceState.read(store).model_copy(update={"shard_interval": "day"}).write(store)
    assert json.loads(store.read("workspace.json")) == {
        "layout_version": 1,
        "note": "of another program",
        "shard_interval": "day",
    }


def test_the_augmentation_that_a_search_writes_is_the_one_that_training_reads(tmp_path):
    store = open_store(str(tmp_path))
    settings = AugmentationSettings()
    write_augmentation(store, settings.model_dump(mode="json"))
    assert read_augmentation(store.read(BEST_AUGMENTATION), name="x") == settings
