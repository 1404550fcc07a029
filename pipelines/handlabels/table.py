"""Hand labels as a table: the content of a file or a folder of them, checked, before it is matched to events.

The one reader of hand labels, for `label`, `train`, `tune`, `report` and the checks of `run`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa

from pipelines.handlabels import csv_text, label_text
from pipelines.runtime.errors import InputError
from pipelines.runtime.text import printable
from pipelines.workspace import tables
from pipelines.workspace.storage import Store, content_hash, open_parent, open_store, said_of

TIMED = {"network", "station", "time", "label"}
MAX_SHOWN = 200
"""Characters of column names that an error quotes."""
MAX_FILE_BYTES = 2**28
"""Of a larger file nothing is read: some four million labels."""
BY_ID = {"event_id", "label"}
_TEXTS = {"event_id", "network", "station", "label", "class", "split"}


@dataclass(frozen=True, kw_only=True)
class LabelTable:
    """Hand labels as they were read."""

    rows: pd.DataFrame
    """`label`, and `event_id` or `network, station, time_ns`; perhaps `split`."""
    content_hash: str
    notes: tuple[str, ...] = ()
    """Sentences on spellings that were read as one class, to be reported with the matching."""


def read_label_table(path: str) -> LabelTable:
    """Read the hand labels; times become nanoseconds in `time_ns`, and rows without a label are left out.

    Spellings of a label that differ in capitals or blanks are one class, in its most frequent spelling. Where a table
    has both forms, its times count, and its `event_id` is left out.

    Raises:
        InputError: it cannot be read, lacks columns, or holds an invalid time, label or split; names file and row.
    """
    with said_of(path, "labels.path"):
        files = _label_files(path)
    parts, digests = [], []
    for name, content in files:
        try:
            part = _read_parquet(content, f"labels.path {name}") if name.endswith(".parquet") else _read_csv(content)
        except (ValueError, OSError) as error:
            raise InputError(f"labels.path {name} cannot be read as a table: {' '.join(str(error).split())}") from None
        parts.append(part.reset_index(drop=True))
        digests.append(content_hash(content))
    table = pd.concat(parts, keys=[name for name, _ in files])
    if "label" not in table and "class" in table:
        table = table.rename(columns={"class": "label"})
    if not (set(table) >= TIMED or set(table) >= BY_ID):
        columns = printable(", ".join(map(str, table)))[:MAX_SHOWN]
        raise InputError(
            f"labels.path {path} has the columns {columns}; it needs event_id, label or network, station, time, label"
        )
    if set(table) >= TIMED:
        # A catalogue, such as a synthetic archive's truth, may number events of its own: the time says which is meant.
        table = table.drop(columns="event_id", errors="ignore")
    for name in (_TEXTS - {"class"}) & set(table):
        table[name] = table[name].fillna("").astype(str).str.strip()
    if "split" in table:
        table["split"] = table["split"].str.lower()
        wrong = set(table["split"]) - {"validation", "test", ""}
        if wrong:
            raise InputError(f"labels.path {path} has the split {sorted(wrong)[0]!r}; it must be validation or test")
    table["label"] = _each(table["label"], label_text.check_label)
    rows = table[table["label"].str.len() > 0].copy()
    spelling_of = label_text.one_spelling(rows["label"])
    rows["label"] = rows["label"].map(spelling_of).astype(object)
    if set(rows) >= TIMED:
        rows["time_ns"] = _times_ns(rows["time"])
    return LabelTable(
        rows=rows.reset_index(drop=True),
        content_hash=content_hash("".join(digests).encode()),
        notes=tuple(f"hand labels: {note}" for note in label_text.describe_spellings(spelling_of)),
    )


def _read_csv(content: bytes) -> pd.DataFrame:
    columns, rows = csv_text.read_rows(csv_text.decode_text(content))
    return pd.DataFrame([list(row.values()) for row in rows], columns=columns, dtype=object)


def _each(column: pd.Series, change: Callable[[str], str]) -> pd.Series:
    """Return a column of text changed value by value; InputError names the file and row of one that is refused."""
    changed: dict[str, str] = {}
    for text in column.unique():
        try:
            changed[text] = change(text)
        except ValueError as error:
            file, row = column.index[int((column == text).to_numpy().argmax())]
            raise InputError(f"labels.path {file}: row {row + 1} after the header {error}") from None
    return column.map(changed)


def _read_parquet(content: bytes, name: str) -> pd.DataFrame:
    """Return a Parquet file's rows; what it says of pandas types and indices is not followed."""
    with tables.open_content(content, name) as file:
        table = file.read()
        # Text that is no text would fail wherever it is looked at first.
        table.validate(full=True)
        for field in table.schema:
            if field.name.strip().lower() in _TEXTS | {"time"} and not _is_plain(field.type):
                raise ValueError(f"its column {field.name!r} is {field.type}, which is neither text nor a number")
        rows: pd.DataFrame = table.to_pandas(ignore_metadata=True)
    return rows.rename(columns=lambda name: str(name).strip().lower())


def _is_plain(kind: pa.DataType) -> bool:
    """Return whether a column holds values that can be written as text: not bytes, lists or records."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return bool(is_text or (pa.types.is_primitive(kind) and not pa.types.is_duration(kind)) or pa.types.is_null(kind))


def _times_ns(column: pd.Series) -> pd.Series:
    """Return times in nanoseconds since 1970, int64.

    Raises:
        InputError: one is invalid; names its file and row, which the index holds.
    """
    texts = _each(column.astype(object).map(str), csv_text.iso_time)
    times = pd.to_datetime(texts, utc=True, format="ISO8601", errors="coerce")
    # Beyond these, nanoseconds do not fit into 64 bits.
    wrong = ~times.between(pd.Timestamp.min.tz_localize("UTC"), pd.Timestamp.max.tz_localize("UTC"))
    if wrong.any():
        file, row = column.index[int(wrong.argmax())]
        raise InputError(
            f"labels.path {file}: row {row + 1} after the header has an invalid time ({column[file, row]}); "
            "write it as 2020-01-01T00:00:00.00Z, from 1678 to 2261"
        )
    return times.dt.as_unit("ns").astype("int64")


def _label_files(path: str) -> list[tuple[str, bytes]]:
    if path.endswith((".csv", ".parquet")):
        store, name = open_parent(path)
        if store.exists(name) and not (store.is_local and Path(path).expanduser().is_dir()):
            return [(path, _read_bounded(store, name, path))]
    folder = open_store(path)
    names = sorted(item.path for item in folder.walk() if item.path.endswith((".csv", ".parquet")))
    if not names:
        raise InputError(f"labels.path {path} is neither a CSV or Parquet file nor a folder that holds one")
    return [(f"{path}/{name}", _read_bounded(folder, name, f"{path}/{name}")) for name in names]


def _read_bounded(store: Store, name: str, shown: str) -> bytes:
    content = store.read(name, 0, MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise InputError(f"labels.path {shown} has more than {MAX_FILE_BYTES >> 20} MiB, the largest that is read")
    return content
