"""The workspace: layout version, conflicts, --replace; markers; the tables' bytes."""

import json

import numpy as np
import pyarrow as pa
import pytest

from pipelines.config import read_flags, resolve
from pipelines.runtime.errors import InputError
from pipelines.workspace import schemas, tables
from pipelines.workspace.ledger import MarkerName, fingerprint, list_markers, read_marker, work_left, write_marker
from pipelines.workspace.storage import open_store
from pipelines.workspace.workspace import open_workspace


def config(**detection):
    return resolve({"detection": detection})


def test_a_new_layout_version_is_refused(tmp_path):
    (tmp_path / "workspace.json").write_text(json.dumps({"layout_version": 99}))
    with pytest.raises(InputError, match="layout version 99"):
        open_workspace(str(tmp_path), create=False)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"[1]", r"workspace\.json must hold a JSON object, not a list"),
        (b'"x"', r"workspace\.json must hold a JSON object, not a str"),
        (b"5", r"workspace\.json must hold a JSON object, not a int"),
        (b"\xff", r"workspace\.json is not valid JSON"),
        (b'{"layout_version": "1"}', r"workspace\.json has the layout_version '1', which is not a whole number"),
    ],
)
def test_a_damaged_workspace_json_is_named(tmp_path, content, sentence):
    (tmp_path / "workspace.json").write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        open_workspace(str(tmp_path), create=True)
    assert [path.name for path in tmp_path.iterdir()] == ["workspace.json"]


def test_a_stored_configuration_that_is_no_text_is_named(tmp_path):
    workspace = open_workspace(str(tmp_path), create=True)
    workspace.store.write("config/detect.yaml", b"detection:\n  method: caf\xe9\n")
    with pytest.raises(InputError, match=r"config/detect\.yaml is not valid YAML"):
        workspace.stored_config("detect")


def test_a_folder_without_workspace_json_is_no_workspace(tmp_path):
    with pytest.raises(InputError, match=r"is not a workspace"):
        open_workspace(str(tmp_path / "nowhere"), create=False)
    assert not (tmp_path / "nowhere").exists()


def test_a_file_or_a_read_only_folder_is_no_place_for_a_workspace(tmp_path):
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="workspace"):
            open_workspace(str(place), create=True)


def test_another_configuration_conflicts_only_where_there_are_results(tmp_path):
    workspace = open_workspace(str(tmp_path / "w"), create=True)
    workspace.claim("detect", config(on=3))
    workspace.claim("detect", config(on=4))
    name = MarkerName("XX", "0101", "--.HH.2022-01-01.day", "abc")
    write_marker(workspace.store, "detect", name, {"outcome": "events"})
    workspace.store.write("events/network=XX/station=0101/x.parquet", b"rows")
    workspace.claim("detect", config(on=4))
    with pytest.raises(InputError, match=r"detection\.on is 5.*made with 4.*--replace"):
        workspace.claim("detect", config(on=5))
    assert list(list_markers(workspace.store, "detect")) == [name]
    assert resolve(workspace.stored_config("detect")).detection.on == 4


def test_a_marker_says_what_its_name_says(tmp_path):
    store = open_store(str(tmp_path))
    name = MarkerName("XX", "0101", "00.HH.2022-01-01T05.hour", fingerprint({"a": 1}))
    write_marker(store, "detect", name, {"counts": {"events": 3}})
    assert list(list_markers(store, "detect")) == [name]
    assert read_marker(store, "detect", name)["counts"] == {"events": 3}
    assert (
        fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1}) != fingerprint({"a": 2, "b": [1, 2]})
    )


def test_a_shard_is_done_where_its_marker_has_its_fingerprint(tmp_path):
    store = open_store(str(tmp_path))
    for shard, digits in (("same", "1"), ("changed", "1"), ("gone", "1")):
        write_marker(store, "detect", MarkerName("XX", "A", shard, digits), {})
    write_marker(store, "label", MarkerName("XX", "A", "new", "1"), {})
    wanted = {"new": "1", "changed": "2", "same": "1"}
    work = work_left(store, "detect", iter(wanted), lambda shard: MarkerName("XX", "A", shard, wanted[shard]))
    assert work.left == ["new", "changed"]
    assert work.num_done == 1
    assert {name.shard for name in work.current} == {"new", "changed", "same"}
    assert work.stale == [MarkerName("XX", "A", "changed", "1"), MarkerName("XX", "A", "gone", "1")]


@pytest.mark.parametrize("cut", [1, 7, 128, 300, 1000])
def test_a_tables_bytes_do_not_depend_on_its_batches(tmp_path, cut):
    rng = np.random.default_rng(0)
    table = pa.table(
        {
            "waveform": tables.tensor_array(rng.normal(size=(300, 3, 20)).astype(np.float32)),
            "name": pa.array([f"e{i}" for i in range(300)]),
        }
    )
    store = open_store(str(tmp_path))
    for path, size in (("whole.parquet", 10**6), ("cut.parquet", cut)):
        rows = tables.write_batches(store, path, table.schema, table.to_batches(max_chunksize=size), {"encoder": "x"})
        assert rows == 300
    assert store.read("whole.parquet") == store.read("cut.parquet")
    back = tables.read_table(store, "cut.parquet")
    np.testing.assert_array_equal(tables.waveforms(back["waveform"]), tables.waveforms(table["waveform"]))
    assert back.schema.metadata == {b"encoder": b"x"}


def test_nothing_is_written_where_there_is_no_row(tmp_path):
    store = open_store(str(tmp_path))
    assert tables.write_batches(store, "x.parquet", schemas.labels_schema(), []) == 0
    assert not list(store.walk())


def test_flags_are_yaml():
    assert read_flags([("a.b.c", "[1, 2]"), ("a.d", "true")]) == {"a": {"b": {"c": [1, 2]}, "d": True}}


def test_a_workspace_from_before_a_key_keeps_what_was_done_then(tmp_path):
    workspace = open_workspace(str(tmp_path / "w"), create=True)
    workspace.store_config("train", resolve({"train": {"seed": 3}}))
    assert resolve(workspace.stored_config("train")).train.polarisation == resolve({}).train.polarisation > 0
    path = tmp_path / "w" / "config" / "train.yaml"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if "polarisation" not in line))
    found = resolve(workspace.stored_config("train")).train
    assert (found.seed, found.polarisation) == (3, 0.0)
