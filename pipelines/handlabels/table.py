"""Hand labels as a table: what a file or a folder of them holds, checked, before it is matched to events."""

import io
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipelines.runtime.errors import InputError
from pipelines.workspace.storage import content_hash, open_parent, open_store, said_of


@dataclass(frozen=True, kw_only=True)
class LabelTable:
    """Hand labels as they were read."""

    rows: pd.DataFrame
    """`label`, and `event_id` or `network, station, time_ns`; perhaps `split`."""
    content_hash: str


def read_label_table(path: str) -> LabelTable:
    """Read the hand labels; times become nanoseconds in `time_ns`, and rows without a label are left out.

    Where a table has both forms, its times count, and its `event_id` is left out.

    Raises:
        InputError: it cannot be read, lacks columns, or holds a time or split that is none.
    """
    with said_of(path, "labels.path"):
        files = _label_files(path)
    parts, digests = [], []
    for name, content in files:
        try:
            part = (
                pd.read_parquet(io.BytesIO(content))
                if name.endswith(".parquet")
                else pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False)
            )
        except (ValueError, OSError) as error:
            raise InputError(f"labels.path {name} cannot be read as a table: {' '.join(str(error).split())}") from None
        parts.append(part.reset_index(drop=True))
        digests.append(content_hash(content))
    table = pd.concat(parts, keys=[name for name, _ in files])
    if "label" not in table and "class" in table:
        table = table.rename(columns={"class": "label"})
    timed = {"network", "station", "time", "label"}
    if not (timed <= set(table) or {"event_id", "label"} <= set(table)):
        raise InputError(
            f"labels.path {path} has the columns {', '.join(map(str, table))}; it needs event_id, label or "
            "network, station, time, label"
        )
    if timed <= set(table):
        # A catalogue, such as a synthetic archive's truth, may number events of its own: the time says which is meant.
        table = table.drop(columns="event_id", errors="ignore")
    if "split" in table:
        wrong = set(table["split"].dropna().astype(str)) - {"validation", "test", ""}
        if wrong:
            raise InputError(f"labels.path {path} has the split {sorted(wrong)[0]!r}; it must be validation or test")
    for name in {"event_id", "network", "station", "label"} & set(table):
        table[name] = table[name].fillna("").astype(str)
    rows = table[table["label"].str.len() > 0].copy()
    if timed <= set(rows):
        rows["time_ns"] = _times_ns(rows["time"])
    return LabelTable(rows=rows.reset_index(drop=True), content_hash=content_hash("".join(digests).encode()))


def _times_ns(column: pd.Series) -> pd.Series:
    """Return times in nanoseconds since 1970, int64.

    Raises:
        InputError: one is none; names its file and row, which the index holds.
    """
    times = pd.to_datetime(column.astype(str), utc=True, format="ISO8601", errors="coerce")
    # Beyond these, nanoseconds do not fit into 64 bits.
    wrong = ~times.between(pd.Timestamp.min.tz_localize("UTC"), pd.Timestamp.max.tz_localize("UTC"))
    if wrong.any():
        file, row = column.index[int(wrong.argmax())]
        raise InputError(
            f"labels.path {file} has a time that is none in row {row + 1} after the header ({column[file, row]}); "
            "write it as 2020-01-01T00:00:00.00Z, from 1678 to 2261"
        )
    return times.dt.as_unit("ns").astype("int64")


def _label_files(path: str) -> list[tuple[str, bytes]]:
    if path.endswith((".csv", ".parquet")):
        store, name = open_parent(path)
        if store.exists(name) and not (store.is_local and Path(path).expanduser().is_dir()):
            return [(path, store.read(name))]
    folder = open_store(path)
    names = sorted(item.path for item in folder.walk() if item.path.endswith((".csv", ".parquet")))
    if not names:
        raise InputError(f"labels.path {path} is no CSV or Parquet file and no folder that holds one")
    return [(f"{path}/{name}", folder.read(name)) for name in names]
