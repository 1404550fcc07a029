"""Small events tables for the tests of training: three kinds of signals in noise, two stations, two months."""

import numpy as np
import pyarrow as pa

from pipelines.workspace import schemas, tables
from pipelines.workspace.workspace import Workspace, open_workspace

RATE_HZ = 50.0
NUM_SAMPLES = 256
LEAD_SAMPLES = 64


def make_windows(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return raw windows (count, 3, 256) and their kinds: short burst, long low ringing, single sample."""
    random = np.random.default_rng(seed)
    time = (np.arange(NUM_SAMPLES) - LEAD_SAMPLES) / RATE_HZ
    kinds = np.arange(count) % 3
    windows = random.standard_normal((count, 3, NUM_SAMPLES))
    for window, kind in zip(windows, kinds, strict=True):
        direction = random.standard_normal((3, 1))
        if kind == 0:
            shape = np.exp(-np.clip(time, 0, None) / 0.15) * np.sin(2 * np.pi * random.uniform(10, 16) * time)
        elif kind == 1:
            shape = np.exp(-np.clip(time, 0, None) / 1.0) * np.sin(2 * np.pi * random.uniform(2, 4) * time)
        else:
            shape = np.where(np.arange(NUM_SAMPLES) == LEAD_SAMPLES, 3.0, 0.0)
        window += 15 * direction * np.where(time >= 0, shape, 0)
    windows *= 10 ** random.uniform(0, 4, (count, 1, 1))
    windows[1, 0] = np.nan
    windows[2, :, 100:120] = np.nan
    return windows.astype(np.float32), kinds


def make_workspace(url: str, count: int = 48, seed: int = 0) -> Workspace:
    """Return a workspace whose events table holds `count` windows in four files."""
    windows, _ = make_windows(count, seed)
    workspace = open_workspace(url, create=True)
    workspace.update_state()
    for station in range(2):
        for month in range(2):
            chosen = np.arange(count)[(np.arange(count) // 3) % 4 == 2 * station + month]
            write_events(workspace, f"S{station}", f"month{month}", windows[chosen], month=month)
    return workspace


def write_events(
    workspace: Workspace, station: str, shard: str, windows: np.ndarray, *, month: int, first: int = 0
) -> None:
    """Write one file of events, ten minutes apart from the first of a month of 2020 on."""
    count = len(windows)
    start = np.datetime64(f"2020-{month + 1:02d}-01", "ns")
    onsets = start + np.arange(first, first + count) * np.timedelta64(600, "s")
    lead = np.timedelta64(round(LEAD_SAMPLES / RATE_HZ * 1e9), "ns")
    kind = pa.timestamp("ns", tz="UTC")
    columns = {
        "event_id": [f"XX.{station}..HH.{onset}" for onset in onsets],
        "network": ["XX"] * count,
        "station": [station] * count,
        "location": [""] * count,
        "channels": [["HHE", "HHN", "HHZ"]] * count,
        "onset": pa.array(onsets, kind),
        "window_start": pa.array(onsets - lead, kind),
        "duration_s": [1.0] * count,
        "peak_ratio": [5.0] * count,
        "snr_db": [10.0] * count,
        "peak_amplitude": [1.0] * count,
        "units": ["counts"] * count,
        "sampling_rate": [RATE_HZ] * count,
        "source_sampling_rate": [RATE_HZ] * count,
        "missing_fraction": [0.0] * count,
        "trigger_channel": ["HHZ"] * count,
        "shard": [shard] * count,
        "waveform": tables.tensor_array(windows),
    }
    schema = schemas.events_schema(windows.shape[-1])
    arrays = [
        column if isinstance(column := columns[field.name], pa.Array) else pa.array(column, field.type)
        for field in schema
    ]
    table = pa.table(arrays, schema=schema)
    tables.write_table(workspace.store, tables.shard_path("events", "XX", station, shard), table)
