"""A small workspace with made-up events of three kinds, and a registered encoder."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from pipelines.config import Config, resolve
from pipelines.encoders import Encoder, NetworkConfig, build_network
from pipelines.tracking.models import register_model
from pipelines.tracking.runs import stage_run
from pipelines.tracking.server import Tracking, open_tracking
from pipelines.workspace import schemas, tables
from pipelines.workspace.artifacts import ENCODER, TrainingRecord
from pipelines.workspace.workspace import Workspace, open_workspace

RATE_HZ = 50.0
NUM_SAMPLES = 256
LEAD_SAMPLES = 64
KINDS = ("earthquake", "icequake", "spike")
EVENTS_A_SHARD = 60
DAY = pd.Timestamp("2020-01-01", tz="UTC")


def window(kind: str, random: np.random.Generator) -> np.ndarray:
    """Return a window (3, sample): a long low, a short high, or a single-sample signal after the onset, in noise."""
    seconds = (np.arange(NUM_SAMPLES) - LEAD_SAMPLES) / RATE_HZ
    signal = np.zeros(NUM_SAMPLES)
    after = seconds >= 0
    if kind == "earthquake":
        signal[after] = 20 * np.sin(2 * np.pi * 3 * seconds[after]) * np.exp(-seconds[after] / 1.5)
    elif kind == "icequake":
        signal[after] = 20 * np.sin(2 * np.pi * 15 * seconds[after]) * np.exp(-seconds[after] / 0.15)
    else:
        signal[LEAD_SAMPLES + 2] = 60.0
    gains = random.uniform(0.5, 1.5, size=(3, 1))
    return (gains * signal + random.normal(size=(3, NUM_SAMPLES))).astype(np.float32)


def shard_table(network: str, station: str, day: int, num_events: int = EVENTS_A_SHARD) -> tuple[pa.Table, list[str]]:
    """Return a day's events of one station and their kinds; all stations have the same kinds at the same times."""
    random = np.random.default_rng([day, sum(station.encode())])
    kinds = np.random.default_rng(day).choice(KINDS, num_events, p=[0.3, 0.5, 0.2]).tolist()
    onsets = [
        DAY + pd.Timedelta(days=day, seconds=60 + 1200 * number + random.uniform(0, 3)) for number in range(num_events)
    ]
    ids = [f"{network}.{station}..HH.{onset.strftime('%Y%m%dT%H%M%S.%f')}" for onset in onsets]
    windows = np.stack([window(kind, random) for kind in kinds])
    schema = schemas.events_schema(NUM_SAMPLES)
    floats = pa.array(np.ones(num_events, dtype=np.float32))
    values = {
        "event_id": pa.array(ids),
        "network": pa.array([network] * num_events),
        "station": pa.array([station] * num_events),
        "location": pa.array([""] * num_events),
        "channels": pa.array([["HHE", "HHN", "HHZ"]] * num_events, pa.list_(pa.string(), 3)),
        "onset": pa.array(onsets, pa.timestamp("ns", tz="UTC")),
        "window_start": pa.array(
            [onset - pd.Timedelta(seconds=LEAD_SAMPLES / RATE_HZ) for onset in onsets], pa.timestamp("ns", tz="UTC")
        ),
        **dict.fromkeys(("duration_s", "peak_ratio", "snr_db", "peak_amplitude", "missing_fraction"), floats),
        "units": pa.array(["counts"] * num_events),
        "sampling_rate": pa.array([RATE_HZ] * num_events),
        "source_sampling_rate": pa.array([RATE_HZ] * num_events),
        "trigger_channel": pa.array(["HHZ"] * num_events),
        "shard": pa.array([f"day-{day}"] * num_events),
        "waveform": tables.tensor_array(windows),
    }
    return pa.table([values[name] for name in schema.names], schema=schema), kinds


def register(workspace: Workspace, encoder: Encoder) -> Tracking:
    """Register an encoder as this workspace's last training would."""
    tracking = open_tracking(workspace, None, None)
    with stage_run(tracking, "train", {}, inputs={}) as run:
        run.log_bytes(encoder.to_bytes(), "model/encoder.safetensors")
        folder = tracking.client().get_run(run.run_id).info.artifact_uri
        version = register_model(run, f"{folder}/model", "firnline-encoder", tags={})
    workspace.store.write(ENCODER, encoder.to_bytes())
    TrainingRecord(
        fingerprint="0123456789abcdef",
        keys={},
        content_hash=encoder.content_hash,
        num_events=1,
        model_uri=f"models:/firnline-encoder/{version}",
        alias="champion",
        run_id=run.run_id,
        score={},
    ).write(workspace.store)
    return tracking


def new_encoder(num_samples: int = NUM_SAMPLES, rate_hz: float = RATE_HZ, lead_samples: int = LEAD_SAMPLES) -> Encoder:
    """Return hand-made features as an encoder: classes lie apart in them without training."""
    torch.manual_seed(0)
    config = NetworkConfig(kind="features", num_samples=num_samples, rate_hz=rate_hz, lead_samples=lead_samples)
    return Encoder(config, build_network(config))


@dataclass(frozen=True)
class Example:
    """The workspace, where its runs go, a file with the true kinds, and a configuration that labels it."""

    workspace: Workspace
    tracking: Tracking
    truth: Path
    config: Config

    def with_settings(self, **sections: dict[str, object]) -> Config:
        return resolve(self.config.model_dump(mode="json"), sections)


def write_example(folder: Path, stations: tuple[str, ...] = ("VNA1", "0101"), num_days: int = 2) -> Example:
    """Write events of some stations and days, their truth, and register an encoder."""
    workspace = open_workspace(str(folder / "workspace"), create=True)
    workspace.update_state()
    truth = []
    for station in stations:
        for day in range(num_days):
            table, kinds = shard_table("AW", station, day)
            tables.write_table(workspace.store, tables.shard_path("events", "AW", station, f"day-{day}"), table)
            frame = table.select(["network", "station", "onset"]).to_pandas().rename(columns={"onset": "time"})
            truth.append(frame.assign(label=kinds))
    path = folder / "truth.csv"
    pd.concat(truth).to_csv(path, index=False, date_format="%Y-%m-%dT%H:%M:%S.%fZ")
    config = resolve({"kmeans": {"k": 3, "normalize": "none", "whiten": True}, "labels": {"path": str(path)}})
    return Example(workspace, register(workspace, new_encoder()), path, config)
