"""A small workspace written from the contract's schemas: three stations, one named `0101`, over a turn of the year."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from jobs import report
from pipelines.workspace import schemas, tables
from pipelines.workspace.ledger import MarkerName, write_marker
from pipelines.workspace.storage import Store
from pipelines.workspace.workspace import Workspace, open_workspace

STATIONS = (("AW", "VNA1", ""), ("AW", "VNA2", "00"), ("XX", "0101", ""))
CLASSES = ("icequake", "earthquake", "spike")
DAYS = pd.date_range("2020-12-30", "2021-01-01", freq="D", tz="UTC")
RATE_HZ = 50.0
SAMPLES = 300
LEAD_S = 1.5


EVALUATION = {
    "clustering": "0123456789abcdef",
    "clusters": [{"cluster": number, "events": 40, "name": name} for number, name in enumerate(CLASSES)],
    "scores": {"test.purity": 0.873, "test.purity.low": 0.81, "test.purity.high": 0.92, "validation.purity": 0.99},
    "protocol": {"test.purity": "accuracy on the test half", "validation.purity": "never for publication"},
    "confusion": {
        "hand_labels": ["earthquake", "icequake"],
        "given": ["earthquake", "icequake", "(none)"],
        "events": [[40, 7, 0], [5, 61, 0]],
    },
}


def draw_waveform(kind: int, random: np.random.Generator) -> np.ndarray:
    """Return one window (3, SAMPLES) of a class: a short burst, a long one, or a single sample."""
    time = np.arange(SAMPLES) / RATE_HZ - LEAD_S
    noise = random.normal(size=(3, SAMPLES))
    if kind == 2:
        noise[:, int(LEAD_S * RATE_HZ)] += 400
        return noise.astype(np.float32)
    decay, frequency_hz = ((0.25, 14.0), (1.6, 4.0))[kind]
    envelope = np.where(time >= 0, np.exp(-time / decay), 0.0)
    carrier = np.sin(2 * np.pi * frequency_hz * time[None] + random.uniform(0, 6, size=(3, 1)))
    return (noise + 120 * random.uniform(0.2, 1, size=(3, 1)) * envelope * carrier).astype(np.float32)


def write_workspace(store: Store, *, events_per_file: int = 40, by_hand: bool = True) -> pd.DataFrame:
    """Write events, embeddings and labels, a file a station and day, and return the rows (without waveforms)."""
    random = np.random.default_rng(3)
    rows: list[pd.DataFrame] = []
    for network, station, location in STATIONS:
        for day in DAYS:
            kinds = random.integers(0, 3, events_per_file)
            onset = day + pd.to_timedelta(np.sort(random.integers(0, 86_400 * 10**9, events_per_file)), unit="ns")
            group = f"{network}.{station}.{location}.HH"
            ids = [f"{group}.{time:%Y%m%dT%H%M%S}.{time.nanosecond + time.microsecond * 1000:09d}" for time in onset]
            waveform = np.stack([draw_waveform(int(kind), random) for kind in kinds])
            if station == "0101":
                waveform[:, 1] = np.nan
            count = len(kinds)
            hand = by_hand & (random.random(count) < 0.3)
            frame = pd.DataFrame(
                {
                    "event_id": ids,
                    "network": network,
                    "station": station,
                    "location": location,
                    "onset": onset,
                    "duration_s": np.array([0.6, 3.1, 0.1], np.float32)[kinds],
                    "peak_ratio": random.uniform(4, 20, count).astype(np.float32),
                    "snr_db": random.uniform(3, 30, count).astype(np.float32),
                    "peak_amplitude": np.nanmax(np.abs(waveform), axis=(1, 2)),
                    "units": "counts",
                    "trigger_channel": "HHZ",
                    "cluster": kinds.astype(np.int32),
                    "distance": random.uniform(0.1, 2, count).astype(np.float32),
                    "margin": random.uniform(0, 1, count).astype(np.float32),
                    "label": [CLASSES[kind] for kind in kinds],
                    "label_source": np.where(hand, "hand", "cluster"),
                    "confidence": np.full(count, np.nan, np.float32),
                }
            )
            file = (network, station, f"{day:%Y-%m-%d}")
            channels = ["HHE", None if station == "0101" else "HHN", "HHZ"]
            columns = {
                **{name: pa.array(frame[name]) for name in frame if name not in ("onset",)},
                "onset": pa.array(onset),
                "window_start": pa.array(onset - pd.Timedelta(seconds=LEAD_S)),
                "channels": pa.array([channels] * count, pa.list_(pa.string(), 3)),
                "sampling_rate": pa.array([RATE_HZ] * count),
                "source_sampling_rate": pa.array([100.0] * count),
                "missing_fraction": pa.array(np.zeros(count, np.float32)),
                "shard": pa.array([file[2]] * count),
                "waveform": tables.tensor_array(waveform),
            }
            schema = schemas.events_schema(SAMPLES)
            table = pa.table([_cast(columns[field.name], field) for field in schema], schema=schema)
            tables.write_table(store, tables.shard_path("events", *file), table)
            vectors = random.normal(size=(count, 16)).astype(np.float32) * 0.4 + 3 * np.eye(16, dtype=np.float32)[kinds]
            flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 16)
            schema = schemas.embeddings_schema(16)
            table = pa.table([columns["event_id"].cast(pa.string()), flat], schema=schema)
            tables.write_table(store, tables.shard_path("embeddings", *file), table)
            schema = schemas.labels_schema()
            table = pa.table([_cast(columns[field.name], field) for field in schema], schema=schema)
            tables.write_table(store, tables.shard_path("labels", *file), table)
            rows.append(frame)
            name = MarkerName(*file, "0123456789abcdef")
            coverage = [{"day": file[2], "channel": "HHZ", "seconds": 80_000.0, "blanked_seconds": 0.0, "gaps": 1}]
            content = {"start": f"{file[2]}T00:00:00Z", "counts": {"events": count}, "skipped": [], "quarantined": []}
            write_marker(store, "detect", name, content | {"coverage": coverage, "gaps": 1})
    if by_hand:
        store.write("clustering/summary.json", json.dumps(EVALUATION).encode())
    return pd.concat(rows, ignore_index=True)


def _cast(array: pa.Array, field: pa.Field) -> pa.Array:
    return array if field.name in ("waveform", "channels") else array.cast(field.type)


@pytest.fixture(scope="session")
def fill_workspace() -> Callable[..., pd.DataFrame]:
    """Return the function that writes a small workspace's tables to a store."""
    return write_workspace


@pytest.fixture(scope="session")
def small_workspace(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, pd.DataFrame]:
    """An opened workspace and its rows; tests only read it."""
    folder = tmp_path_factory.mktemp("workspace") / "neumayer"
    workspace = open_workspace(str(folder), create=True)
    workspace.update_state()
    return workspace, write_workspace(workspace.store)


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, pd.DataFrame]:
    """A workspace that the report job has run on, and its rows; tests only read it."""
    workspace = open_workspace(str(tmp_path_factory.mktemp("reported") / "neumayer"), create=True)
    workspace.update_state()
    rows = write_workspace(workspace.store)
    counts = {"nearest_per_cluster": 1, "random_per_cluster": 1, "boundary_per_cluster": 0, "map_events": 60}
    assert report.main([workspace.url, *(f"--report.{key}={value}" for key, value in counts.items())]) == 0
    return workspace, rows


@pytest.fixture
def new_workspace(tmp_path: Path) -> Callable[..., tuple[Workspace, pd.DataFrame]]:
    """Make a workspace of one's own, to write to."""

    def make(**kwargs: int) -> tuple[Workspace, pd.DataFrame]:
        workspace = open_workspace(str(tmp_path / "own"), create=True)
        workspace.update_state()
        return workspace, write_workspace(workspace.store, **kwargs)

    return make
