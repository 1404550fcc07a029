import tracemalloc

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.handlabels.table import read_label_table
from pipelines.runtime.errors import InputError
from pipelines.workspace import s3_requests

TIMED = {"network": "AW", "station": "0101", "time": "2020-01-01T00:00:01Z", "label": "icequake"}


def test_a_folder_of_csv_and_parquet_is_one_table_and_rows_without_a_label_are_left_out(tmp_path):
    pd.DataFrame({"event_id": ["a", "b"], "label": ["icequake", ""]}).to_csv(tmp_path / "1.csv", index=False)
    pd.DataFrame({"event_id": ["c", "d"], "label": ["spike", None]}).to_parquet(tmp_path / "2.parquet")
    rows = read_label_table(str(tmp_path)).rows
    assert rows[["event_id", "label"]].to_numpy().tolist() == [["a", "icequake"], ["c", "spike"]]


def test_times_count_where_a_catalogue_numbers_events_of_its_own(tmp_path):
    pd.DataFrame([TIMED | {"event_id": "17"}]).to_csv(tmp_path / "truth.csv", index=False)
    rows = read_label_table(str(tmp_path / "truth.csv")).rows
    assert "event_id" not in rows
    assert rows["station"].tolist() == ["0101"]
    assert rows["time_ns"].tolist() == [pd.Timestamp("2020-01-01T00:00:01Z").value]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"time": "yesterday"}, r"labels\.csv: row 2 after the header has an invalid time \(yesterday\)"),
        ({"time": ""}, r"labels\.csv: row 2 after the header has an invalid time \(\)"),
        ({"time": "0001-01-01"}, r"labels\.csv: row 2 after the header has an invalid time \(0001-01-01\)"),
        ({"time": "", "label": ""}, None),
        ({"split": "train"}, "has the split 'train'; it must be validation or test"),
        ({"label": None}, None),
    ],
)
def test_an_invalid_row_is_refused_in_one_sentence(tmp_path, change, sentence):
    path = tmp_path / "labels.csv"
    pd.DataFrame([TIMED, TIMED | change]).to_csv(path, index=False)
    if sentence is None:
        assert len(read_label_table(str(path)).rows) == 1
        return
    with pytest.raises(InputError, match=sentence):
        read_label_table(str(path))


def test_a_parquet_time_that_is_missing_or_too_early_is_named_with_its_file(tmp_path):
    for number, moments in enumerate(
        (["2020-01-01", "2020-01-02"], ["2020-01-03", None], ["2020-01-04", "0001-01-01"])
    ):
        times = pd.to_datetime(pd.Series(moments)).astype("datetime64[us]")
        pd.DataFrame([TIMED] * 2).assign(time=times).to_parquet(tmp_path / f"{number}.parquet")
    with pytest.raises(InputError, match=r"1\.parquet: row 2 after the header has an invalid time"):
        read_label_table(str(tmp_path))
    (tmp_path / "1.parquet").unlink()
    with pytest.raises(InputError, match=r"2\.parquet: row 2 after the header has an invalid time"):
        read_label_table(str(tmp_path))
    (tmp_path / "2.parquet").unlink()
    assert read_label_table(str(tmp_path)).rows["time_ns"].diff().tolist()[1:] == [86_400 * 10**9]


def test_a_bucket_without_credentials_is_named(moto_s3, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    s3_requests._s3.cache_clear()
    for path in (f"{moto_s3.url}/labels", f"{moto_s3.url}/labels.csv"):
        with pytest.raises(InputError, match=rf"labels\.path {path} cannot be read: .*credentials"):
            read_label_table(path)
    s3_requests._s3.cache_clear()


def test_missing_columns_and_files_are_named(tmp_path):
    pd.DataFrame({"station": ["VNA1"], "label": ["spike"]}).to_csv(tmp_path / "labels.csv", index=False)
    with pytest.raises(InputError, match="has the columns station, label; it needs event_id, label or"):
        read_label_table(str(tmp_path / "labels.csv"))
    with pytest.raises(InputError, match="is neither a CSV or Parquet file nor a folder that holds one"):
        read_label_table(str(tmp_path / "none.csv"))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("event_id", pa.array([b"\xff"])),
        ("label", pa.array([["Eis"]])),
        ("Label", pa.array([b"Eis"])),
        ("label", pa.array([{"class": "Eis"}])),
        ("label", pa.array([[("Eis", 1)]], pa.map_(pa.string(), pa.int64()))),
        ("split", pa.array([["test"]])),
    ],
)
def test_a_column_that_is_neither_text_nor_numbers_is_refused_by_name(tmp_path, name, values):
    # str() of a list would be a class of its own.
    path = tmp_path / "labels.parquet"
    columns = {"event_id": pa.array(["a"]), "label": pa.array(["Eis"])} | {name: values}
    if name == "Label":
        del columns["label"]
    pq.write_table(pa.table(columns), path)
    with pytest.raises(InputError, match=f"its column '{name}' is .*, which is neither text nor a number"):
        read_label_table(str(path))


@pytest.mark.parametrize(
    ("values", "label"),
    [
        (pa.array(["Eis"]).dictionary_encode(), "Eis"),
        (pa.array(["Eis"], pa.large_string()), "Eis"),
        (pa.array(["Eis"], pa.string_view()), "Eis"),
        (pa.array([3]), "3"),
    ],
)
def test_text_of_any_arrow_type_and_numbers_are_labels(tmp_path, values, label):
    path = tmp_path / "labels.parquet"
    pq.write_table(pa.table({"event_id": pa.array(["a"]), "label": values}), path)
    assert read_label_table(str(path)).rows["label"].tolist() == [label]


def test_a_file_larger_than_any_label_table_is_not_read(tmp_path):
    path = tmp_path / "labels.csv"
    with path.open("w") as file:
        file.write("event_id,label\n")
        file.truncate(2**40)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="has more than 256 MiB, the largest that is read"):
            read_label_table(str(path))
        assert tracemalloc.get_traced_memory()[1] < 3 * 2**28
    finally:
        tracemalloc.stop()
