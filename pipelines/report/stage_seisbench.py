"""Writes `catalog/seisbench/`: the detections with their windows as a dataset of SeisBench, a month at a time.

A dataset of one month is `metadata.csv` and `waveforms.hdf5`; one of several has a pair of files for each month, and
the file `chunks`, which names them. h5py is imported here alone: only who asks for these files needs it.
"""

import contextlib
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from pipelines.config.label import LabelsSettings
from pipelines.handlabels.halves import in_validation
from pipelines.handlabels.matching import match_hand_labels
from pipelines.handlabels.table import read_label_table
from pipelines.report.positions import Positions
from pipelines.report.seisbench import FOLDER, data_format, filled, trace_rows
from pipelines.runtime.errors import InputError
from pipelines.workspace import tables
from pipelines.workspace.storage import Store
from pipelines.workspace.workspace import Workspace

_COLUMNS = ("event_id", "window_start", "channels", "sampling_rate", "waveform")


def import_h5py() -> Any:
    """Return the module h5py; InputError where it is not installed."""
    try:
        return importlib.import_module("h5py")
    except ImportError:
        raise InputError(
            "catalog.formats has seisbench, whose files need h5py: pip install 'firnline[seisbench]'"
        ) from None


def chunk_paths(chunk: str) -> tuple[str, str]:
    """Return the paths of a chunk's two files."""
    return f"{FOLDER}/waveforms{chunk}.hdf5", f"{FOLDER}/metadata{chunk}.csv"


def read_format(workspace: Workspace) -> dict[str, str | float]:
    """Return SeisBench's `data_format` of the windows, from the configuration that they were detected with."""
    stored = workspace.stored_config("detect")
    window = stored.get("window", {})
    units = stored.get("detection", {}).get("units", "counts")
    return data_format(units, float(window.get("rate_hz", 100.0)), response_removed=bool(window.get("remove_response")))


def given_splits(workspace: Workspace) -> dict[str, str]:
    """Return `dev` or `test` by associated event, for the hand labels whose rows name a half.

    Raises:
        InputError: the hand labels that the workspace was labelled with cannot be read.
    """
    settings = LabelsSettings.model_validate(workspace.stored_config("label").get("labels", {}))
    if settings.path is None:
        return {}
    known = read_label_table(settings.path)
    if "split" not in known.rows:
        return {}
    store = workspace.store
    paths = [item.path for item in tables.list_shards(store, "events")]
    hand = match_hand_labels(
        store, paths, settings, known, lambda task, arguments: [task(*values) for values in arguments]
    )
    return {hand.event_of[event_id]: "dev" if half else "test" for event_id, half in hand.validation.items()}


@contextlib.contextmanager
def chunk_writer(
    store: Store,
    chunk: str,
    trace_format: Mapping[str, str | float],
    positions: Positions,
    clustering: str,
    given: Mapping[str, str],
) -> Iterator[Callable[[pd.DataFrame, pd.DataFrame], None]]:
    """Yield what adds some events with their detections (`catalog_id`, `file`) to a chunk.

    Of the windows, a row group is in memory at a time.
    """
    h5py = import_h5py()
    waveforms_path, metadata_path = chunk_paths(chunk)
    bucket = 0
    with (
        store.atomic_file(metadata_path) as metadata_file,
        store.atomic_file(waveforms_path) as waveforms_file,
        metadata_file.open("w", encoding="utf-8") as metadata,
        h5py.File(waveforms_file, "w", libver="v110") as file,
    ):
        described = file.create_group("data_format")
        for name, value in trace_format.items():
            described.create_dataset(name, data=value)
        data = file.create_group("data")

        def add(events: pd.DataFrame, picks: pd.DataFrame) -> None:
            nonlocal bucket
            own = events.set_index("catalog_id")[["cluster", "label", "event_type"]]
            own = own.rename(columns={"cluster": "event_cluster", "label": "event_label"})
            of_event = picks.join(own, on="catalog_id")
            splits = _splits(picks, given)
            for name, rows in of_event.groupby("file", sort=True):
                for group in tables.iter_events(store, f"events/{name}", rows["event_id"].tolist(), _COLUMNS):
                    waveforms, completeness = filled(tables.waveforms(group["waveform"]))
                    window = group.drop_columns(["waveform"]).to_pandas()
                    traces = window.merge(rows, on="event_id", how="left", validate="one_to_one")
                    described = trace_rows(
                        traces,
                        completeness,
                        bucket,
                        waveforms.shape[2],
                        positions,
                        clustering,
                        [splits.get(name, "train") for name in traces["catalog_id"]],
                    )
                    data.create_dataset(f"bucket{bucket}", data=waveforms)
                    described.to_csv(metadata, index=False, header=bucket == 0, lineterminator="\n")
                    bucket += 1

        yield add


def _splits(picks: pd.DataFrame, given: Mapping[str, str]) -> dict[str, str]:
    """Return `dev` or `test` for each event that has a hand label, by `catalog_id`: the halves of all other stages."""
    named: Sequence[str] = np.unique(picks.loc[picks["label_source"] == "hand", "catalog_id"].astype(str)).tolist()
    halves = dict(zip(named, in_validation(named).tolist(), strict=True))
    return {name: given.get(name, "dev" if half else "test") for name, half in halves.items()}


def write_chunk_list(store: Store, chunks: Sequence[str]) -> list[str]:
    """Write the file that names the chunks of a dataset of several, and return the files of the dataset."""
    written = [path for chunk in chunks for path in chunk_paths(chunk)]
    if any(chunks):
        store.write(f"{FOLDER}/chunks", "".join(f"{chunk}\n" for chunk in sorted(chunks)).encode())
        written.append(f"{FOLDER}/chunks")
    return written
