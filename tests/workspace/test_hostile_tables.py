"""Tables of a stranger: none runs code, none decodes to more than a stated multiple of its size."""

import base64
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.handlabels.table import read_label_table
from pipelines.runtime.errors import InputError
from pipelines.workspace import tables
from pipelines.workspace.event_sample import choose_events
from pipelines.workspace.ledger import MarkerName, marker_path
from pipelines.workspace.parquet_footer import Chunk, with_pages
from pipelines.workspace.storage import Store, open_store

PATH = "labels/network=XX/station=A/day.parquet"


class Planted:
    """What a stranger pickles: unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.write_text, (self.path, "ran")


@pytest.fixture
def planted(tmp_path: Path) -> tuple[bytes, Path]:
    """A Parquet file with a column of Ray's type that unpickles, and the file that unpickling it would write."""
    import ray.data  # noqa: F401  it registers the type in this process

    ran = tmp_path / "ran"
    kind = _registered("ray.data.arrow_pickled_object")
    column = pa.ExtensionArray.from_storage(kind, pa.array([pickle.dumps(Planted(ran))] * 2, pa.large_binary()))
    onsets = pa.array([1, 2], pa.timestamp("ns", tz="UTC"))
    table = pa.table({"event_id": ["a", "b"], "onset": onsets, "label": column})
    return parquet(table), ran


def _registered(name: str) -> pa.ExtensionType:
    """Return the registered extension type of a name, as Arrow makes it from a file's schema."""
    field = pa.field("x", pa.large_binary(), metadata={"ARROW:extension:name": name, "ARROW:extension:metadata": ""})
    return pa.ipc.read_schema(pa.schema([field]).serialize()).field("x").type


def parquet(table: pa.Table, **options: Any) -> bytes:
    stream = io.BytesIO()
    pq.write_table(table, stream, **options)
    return stream.getvalue()


def test_the_planted_column_would_run_code_if_it_were_read(planted: tuple[bytes, Path]) -> None:
    content, ran = planted
    pq.read_table(io.BytesIO(content))["label"].to_pylist()
    assert ran.read_text() == "ran"


READERS: dict[str, Callable[[Store, str], Any]] = {
    "read_table": lambda store, path: tables.read_table(store, path),
    "one other column": lambda store, path: tables.read_table(store, path, ["event_id"]),
    "iter_batches": lambda store, path: list(tables.iter_batches(store, path)),
    "read_events": lambda store, path: tables.read_events(store, path, ["a"], ["event_id", "label"]),
    "read_rows": lambda store, path: tables.read_rows(store, path, [0], ["label"]),
    "read_spans": lambda store, path: tables.read_spans(store, path, ["label"], [(0, 9)]),
    "hand labels": lambda store, path: read_label_table(store.full(path)),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_column_that_unpickles_is_refused_before_it_is_read(
    tmp_path: Path, planted: tuple[bytes, Path], reader: str
) -> None:
    content, ran = planted
    store = open_store(str(tmp_path / "workspace"))
    store.write(PATH, content)
    with pytest.raises(
        InputError, match=r"day\.parquet is refused: its column 'label' has the extension type"
    ) as caught:
        READERS[reader](store, PATH)
    assert "ray.data.arrow_pickled_object" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not ran.exists()


def test_a_training_on_a_strangers_events_runs_nothing(tmp_path: Path, planted: tuple[bytes, Path]) -> None:
    content, ran = planted
    store = open_store(str(tmp_path / "workspace"))
    store.write("events/network=XX/station=A/day.parquet", content)
    with pytest.raises(InputError, match="is refused"):
        choose_events(store, max_events=None, seed=0)
    assert not ran.exists()


@pytest.mark.parametrize("where", ["struct", "list", "dictionary", "map"])
def test_a_type_that_is_hidden_inside_another_is_refused(tmp_path: Path, where: str) -> None:
    kind = _hidden(where)
    schema = pa.schema([("event_id", pa.string()), ("x", kind)])
    store = open_store(str(tmp_path))
    store.write(PATH, with_arrow_schema(parquet(pa.table({"event_id": ["a"]})), schema))
    with pytest.raises(InputError, match="extension type"):
        tables.read_table(store, PATH, ["event_id"])


def _hidden(where: str) -> pa.DataType:
    class Other(pa.ExtensionType):
        def __init__(self) -> None:
            super().__init__(pa.large_binary(), "somebody.else")

        def __arrow_ext_serialize__(self) -> bytes:
            return b""

        @classmethod
        def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> "Other":
            return cls()

    kind: dict[str, pa.DataType] = {
        "struct": pa.struct([("deep", pa.struct([("er", Other())]))]),
        "list": pa.list_(pa.list_(Other())),
        "dictionary": pa.dictionary(pa.int32(), pa.list_(Other())),
        "map": pa.map_(pa.string(), Other()),
    }
    return kind[where]


def with_arrow_schema(content: bytes, schema: pa.Schema, times: int = 1) -> bytes:
    """Return a Parquet file whose footer holds another Arrow schema, as somebody with a hex editor writes it."""
    neutral = pq.read_table(io.BytesIO(content)).replace_schema_metadata()
    encoded = base64.b64encode(schema.serialize().to_pybytes())
    stream = io.BytesIO()
    metadata = {f"NEVER:schem{chr(97 + index)}": encoded for index in range(times)}
    with pq.ParquetWriter(stream, neutral.schema, store_schema=False) as writer:
        writer.write_table(neutral)
        writer.add_key_value_metadata(metadata)
    changed = stream.getvalue()
    for index in range(times):
        changed = changed.replace(f"NEVER:schem{chr(97 + index)}".encode(), b"ARROW:schema")
    return changed


def test_a_footer_with_two_arrow_schemas_is_refused(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    harmless = pa.schema([("event_id", pa.string())])
    content = parquet(pa.table({"event_id": ["a"]}))
    store.write(PATH, with_arrow_schema(content, harmless))
    assert tables.read_table(store, PATH)["event_id"].to_pylist() == ["a"]
    store.write(PATH, with_arrow_schema(content, harmless, times=2))
    with pytest.raises(InputError, match="two Arrow schemas"):
        tables.read_table(store, PATH)


def bombs() -> dict[str, bytes]:
    """Small files whose columns decode to hundreds of megabytes."""
    zeros = pa.table({"event_id": np.zeros(20_000_000)})
    long_text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(300, np.int32)), pa.array(["x" * 1_000_000]))
    return {
        "a number repeated": parquet(zeros, compression="none"),
        "zeros compressed": parquet(zeros, compression="zstd", use_dictionary=False),
        "a long text repeated": parquet(pa.table({"event_id": long_text}), compression="zstd", store_schema=False),
    }


def test_a_small_file_that_decodes_to_gigabytes_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    for name, content in bombs().items():
        assert len(content) < 110_000, name
        store.write(PATH, content)
        before = pa.total_allocated_bytes()
        peak = pa.default_memory_pool().max_memory()
        with pytest.raises(InputError, match="more than 200 times as many"):
            tables.read_table(store, PATH)
        assert pa.total_allocated_bytes() == before
        assert pa.default_memory_pool().max_memory() <= max(peak, before + (64 << 20)), name
        with pytest.raises(InputError, match="more than 200 times as many"):
            read_label_table(store.full(PATH))


def test_a_large_honest_file_with_few_different_texts_is_read(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    names = [f"a long name of a class, number {number % 3}, of {'x' * 200}" for number in range(200_000)]
    store.write(PATH, parquet(pa.table({"label": names, "cluster": pa.array(range(200_000), pa.int32())})))
    assert tables.read_table(store, PATH, ["label"])["label"].to_pylist() == names


@pytest.mark.parametrize("encoding", ["PLAIN", "dictionary", "DELTA_BYTE_ARRAY"])
def test_pages_that_hold_more_than_the_footer_says_are_refused_before_they_are_decoded(
    tmp_path: Path, encoding: str
) -> None:
    """The footer may say anything; what is allocated is what the headers of the pages say."""
    content = io.BytesIO()
    table = pa.table({"event_id": ["a" * 100_000_000], "label": ["b"]})
    options = {"use_dictionary": True} if encoding == "dictionary" else {"use_dictionary": False}
    if encoding == "DELTA_BYTE_ARRAY":
        options |= {"column_encoding": {"event_id": encoding, "label": encoding}}
    pq.write_table(table, content, compression="zstd", write_statistics=False, **options)
    metadata = pq.read_metadata(content)
    stated = varint(2 * metadata.row_group(0).column(0).total_uncompressed_size)
    small = bytes(byte | 0x80 for byte in varint(2 * 100).ljust(len(stated), b"\0")[:-1]) + b"\0"
    whole = content.getvalue()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    assert stated in whole[footer:]
    store = open_store(str(tmp_path))
    store.write(PATH, whole[:footer] + whole[footer:].replace(stated, small))
    (tmp_path / "labels.parquet").write_bytes(whole[:footer] + whole[footer:].replace(stated, small))
    with pytest.raises(InputError, match=r"bytes decode to .*, more than 200 times as many"):
        tables.read_table(store, PATH)
    with pytest.raises(InputError, match=r"bytes decode to .*, more than 200 times as many"):
        read_label_table(str(tmp_path / "labels.parquet"))


def varint(value: int) -> bytes:
    """Return a number as Thrift's compact protocol writes it: seven bits a byte, the lowest first."""
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def test_a_page_for_every_few_bytes_is_refused() -> None:
    header = bytes([0x15, 0x00, 0x15, 0x00, 0x15, 0x00, 0x00])
    chunk = Chunk("x", "INT64", 8, "", 1, len(header) * 5000, 8, 0, None)
    with pytest.raises(ValueError, match="a page for every few bytes"):
        with_pages(chunk, lambda start, length: (header * 5000)[start : start + length])


def test_a_list_where_the_contract_has_another_type_is_named(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.write("events/x.parquet", parquet(pa.table({"event_id": ["a"], "channels": [["HHZ"]]})))
    with pytest.raises(InputError, match="its column channels has the type list"):
        tables.read_table(store, "events/x.parquet")


def test_text_of_labels_that_is_no_text_is_refused(tmp_path: Path) -> None:
    content = parquet(pa.table({"event_id": ["a"], "label": ["readable"]}))
    assert content.count(b"readable") >= 1
    (tmp_path / "labels.parquet").write_bytes(content.replace(b"readable", b"\xff\xfeadable"))
    with pytest.raises(InputError, match="cannot be read as a table"):
        read_label_table(str(tmp_path / "labels.parquet"))


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("cluster", pa.array(["0"]), "its column cluster has the type string, not int32"),
        ("onset", pa.array([1], pa.int64()), "its column onset has the type int64"),
        ("event_id", pa.array([1]), "its column event_id has the type int64, not string"),
    ],
)
def test_a_column_of_another_type_than_the_contracts_is_named(
    tmp_path: Path, column: str, values: pa.Array, said: str
) -> None:
    store = open_store(str(tmp_path))
    store.write(PATH, parquet(pa.table({column: values})))
    with pytest.raises(InputError, match=said):
        tables.read_table(store, PATH)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.write(PATH, parquet(pa.table({"event_id": ["a"]})))
    with pytest.raises(InputError, match=r"day\.parquet has no column cluster"):
        tables.read_table(store, PATH, ["event_id", "cluster"])


def test_a_column_that_came_later_is_null_in_files_from_before(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.write(PATH, parquet(pa.table({"cluster": pa.array([4, 7], pa.int32())})))
    found = tables.read_table(store, PATH, ["confidence", "cluster"])
    assert found.schema.names == ["confidence", "cluster"]
    assert found.to_pydict() == {"confidence": [None, None], "cluster": [4, 7]}
    assert tables.read_table(store, PATH).schema.names == ["cluster", "confidence"]
    assert tables.read_table(store, PATH, ["cluster"]).schema.names == ["cluster"]


@pytest.mark.parametrize("cut", [0, 3, 11, 100, -9, -1])
def test_a_file_that_is_cut_is_one_sentence(tmp_path: Path, cut: int) -> None:
    store = open_store(str(tmp_path))
    content = parquet(pa.table({"event_id": ["a"] * 1000}))
    (tmp_path / PATH).parent.mkdir(parents=True)
    (tmp_path / PATH).write_bytes(content[:cut])
    with pytest.raises(InputError, match="cannot be read as a table") as caught:
        tables.read_table(store, PATH)
    assert "\n" not in str(caught.value)


def test_mutated_tables_are_read_or_refused(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    rng = np.random.default_rng(0)
    onsets = pd.date_range("2022-01-01", periods=300, freq="s", tz="UTC", unit="ns")
    content = parquet(pa.table({"event_id": [f"e{i}" for i in range(300)], "onset": onsets}), compression="zstd")
    outcomes = set()
    for _ in range(300):
        changed = bytearray(content)
        for position in rng.integers(0, len(content), rng.integers(1, 8)):
            changed[position] = rng.integers(256)
        (tmp_path / PATH).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / PATH).write_bytes(changed)
        try:
            outcomes.add(tables.read_table(store, PATH, ["event_id", "onset"]).num_rows)
        except InputError as error:
            outcomes.add(str(error).partition("day.parquet ")[2][:14])
    assert "cannot be read" in outcomes, outcomes
    assert any(isinstance(outcome, int) for outcome in outcomes)


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/x", "a//x", "a\0b", "a/.."])
def test_nothing_is_written_read_or_removed_outside_a_store(tmp_path: Path, path: str) -> None:
    (tmp_path / "x").write_text("of somebody")
    store = open_store(str(tmp_path / "root"))
    for use in (
        lambda: store.write(path, b"y"),
        lambda: store.read(path),
        lambda: store.remove(path),
        lambda: store.remove_folder(path),
        lambda: store.child(path),
        lambda: list(store.walk(path)),
        lambda: store.atomic_file(path).__enter__(),
        lambda: store.exists(path),
    ):
        with pytest.raises(InputError, match="leads outside"):
            use()
    assert (tmp_path / "x").read_text() == "of somebody"
    assert [item.name for item in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("code", ["", "a/b", "../../x", "a\0"])
def test_no_code_becomes_a_path_elsewhere(code: str) -> None:
    if code:
        with pytest.raises(InputError, match="cannot be the name of a file"):
            tables.shard_path("events", code, "A", "day")
        with pytest.raises(InputError, match="cannot be the name of a file"):
            marker_path("detect", MarkerName("XX", code, "day", "0123"))
        with pytest.raises(InputError, match="cannot be the name of a file"):
            marker_path("detect", MarkerName("XX", "A", code, "0123"))
    with pytest.raises(InputError, match="cannot be the name of a file"):
        tables.shard_path("events", "XX", "A", code)


def test_a_table_outside_the_folders_of_a_station_is_named(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.write("events/stray.parquet", b"PAR1")
    with pytest.raises(InputError, match=r"stray\.parquet is not part of events/"):
        tables.list_shards(store, "events")


@pytest.mark.parametrize("compression", ["zstd", "none"])
@pytest.mark.parametrize("use_dictionary", [True, False])
def test_a_table_without_rows_is_read(compression, use_dictionary):
    plain = pa.table({"event_id": pa.array([], pa.string()), "onset": pa.array([], pa.timestamp("ns", tz="UTC"))})
    buffer = io.BytesIO()
    pq.write_table(plain, buffer, compression=compression, use_dictionary=use_dictionary)
    with tables.open_content(buffer.getvalue(), "labels") as file:
        assert file.read().equals(plain)
