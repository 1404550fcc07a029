"""How well the default recipe separates three classes on windows from a generator other than the project's.

    python benchmarks/three_classes.py --folder runs/three-classes

Windows of one station's noise contain an icequake, an earthquake or a spike (60/30/10 %), all with one distribution of
signal-to-noise ratios. Frequency and duration of the classes overlap widely; there are four kinds of spikes; in
4 % of the windows a component is missing. Nothing is shared with `pipelines.synthesize`. `firnline train` uses no
labels, `firnline label` clusters with k = 3 and scores against the truth, by the protocol of docs/labelling.md.
"""

import argparse
import json
import os
import platform
import shlex
import shutil
import statistics
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
from recipe import job

from pipelines.workspace import schemas, tables
from pipelines.workspace.workspace import Workspace, open_workspace

RATE_HZ, NUM_SAMPLES, LEAD = 100.0, 3000, 500
CLASSES, SHARES = ("icequake", "earthquake", "spike"), (0.6, 0.3, 0.1)
WINDOWS_A_FILE = 600
SCORES = ("hungarian_accuracy", "nmi", "ari", "knn_accuracy", "linear_accuracy", "majority_baseline")

Array = np.ndarray


def noise(random: np.random.Generator, response: Array) -> Array:
    """Return one window of stationary noise, (3, NUM_SAMPLES), of RMS 1 in each component."""
    spectrum = np.fft.rfft(random.standard_normal((3, NUM_SAMPLES))) * response
    trace = np.fft.irfft(spectrum, NUM_SAMPLES)
    return np.asarray(trace / trace.std(axis=1, keepdims=True))


def band(random: np.random.Generator, count: int, centre_hz: float, octaves: float) -> Array:
    """Return Gaussian noise (3, count) of a band whose amplitude falls off like a bell in octaves."""
    size = max(count, 512)
    octave = np.log2(np.maximum(np.fft.rfftfreq(size, 1 / RATE_HZ), 1e-3) / centre_hz)
    spectrum = np.fft.rfft(random.standard_normal((3, size))) * np.exp(-((octave / octaves) ** 2))
    trace = np.fft.irfft(spectrum, size)[:, :count]
    return np.asarray(trace / (trace.std() + 1e-12))


def octaves_between(random: np.random.Generator, low: float, high: float) -> float:
    """Draw a value whose logarithm is uniform."""
    return float(low * (high / low) ** random.uniform())


def icequake(random: np.random.Generator) -> Array:
    """An abrupt onset, a wavelet or two that ring down fast, surface waves in some."""
    time = np.arange(NUM_SAMPLES - LEAD) / RATE_HZ
    hertz, decay = octaves_between(random, 3, 30), octaves_between(random, 0.1, 1.2)
    direction = random.standard_normal((3, 1))
    out = direction * np.exp(-time / decay) * np.sin(2 * np.pi * hertz * time + random.uniform(0, 2 * np.pi))
    out = out + 0.4 * np.exp(-time / decay) * band(random, len(time), hertz, 0.8)
    if random.uniform() < 0.5:
        later = np.clip(time - random.uniform(0.1, 1.0), 0, None)
        wave = np.where(later > 0, np.exp(-later / (2 * decay)) * np.sin(2 * np.pi * 0.5 * hertz * later), 0)
        out = out + random.uniform(0.3, 1.2) * random.standard_normal((3, 1)) * wave
    return np.asarray(out)


def earthquake(random: np.random.Generator) -> Array:
    """P, then S with a coda that outlasts it, both emergent and of broad band."""
    time = np.arange(NUM_SAMPLES - LEAD) / RATE_HZ
    hertz, delay = octaves_between(random, 2, 15), octaves_between(random, 1.0, 12.0)
    coda = octaves_between(random, 1.0, 10.0)
    out = np.zeros((3, len(time)))
    weights = (np.array([[0.5], [0.5], [1.0]]), np.array([[1.0], [1.0], [0.5]]))
    for start, size, pitch, weight in ((0.0, random.uniform(0.2, 0.9), 1.2, weights[0]), (delay, 1.0, 0.8, weights[1])):
        since = np.clip(time - start, 0, None)
        shape = since**0.5 * np.exp(-since / coda)
        out += size * weight * shape / shape.max() * band(random, len(time), hertz * pitch, 1.0)
    return out


def spike(random: np.random.Generator) -> Array:
    """Of the instrument, not of the ground: lone samples, a step, a calibration pulse, a burst of telemetry errors."""
    out = np.zeros((3, NUM_SAMPLES - LEAD))
    kind = random.integers(4)
    on = np.ones(3, dtype=bool) if random.uniform() < 0.5 else np.arange(3) == random.integers(3)
    sign = random.choice((-1.0, 1.0))
    if kind == 0:
        out[:, 0] = sign
        if random.uniform() < 0.3:
            out[:, random.integers(1, 400)] = sign
    elif kind == 1:
        out[:] = sign * np.exp(-np.arange(out.shape[1]) / RATE_HZ / octaves_between(random, 0.5, 5))
    elif kind == 2:
        out[:, : random.integers(10, 300)] = sign
    else:
        length = random.integers(20, 400)
        wild = random.uniform(size=(3, length)) < octaves_between(random, 0.05, 0.6)
        wild[:, 0] = True
        out[:, :length] = wild * random.choice((-1.0, 1.0), (3, length)) * random.uniform(0.3, 1.0, (3, length))
    return np.asarray(out * on[:, None])


def make_windows(count: int, seed: int) -> tuple[Array, list[str]]:
    """Return windows float32 (count, 3, NUM_SAMPLES), counts, absent components NaN, and the class of each."""
    random = np.random.default_rng(seed)
    hertz = np.fft.rfftfreq(NUM_SAMPLES, 1 / RATE_HZ)
    rough = np.exp(np.interp(np.log2(np.maximum(hertz, 0.05)), np.linspace(-5, 6, 12), random.normal(0, 0.5, 12)))
    response = rough * np.where(hertz > 0, np.maximum(hertz, 0.05) ** -0.5, 0)
    response *= 1 + 8 * np.exp(-(((hertz - 0.2) / 0.1) ** 2))
    makers = {"icequake": icequake, "earthquake": earthquake, "spike": spike}
    names = random.choice(CLASSES, count, p=SHARES).tolist()
    windows = np.empty((count, 3, NUM_SAMPLES), dtype=np.float32)
    for window, name in zip(windows, names, strict=True):
        signal = makers[name](random)
        snr_db = 16 + min(random.gamma(2.0, 5.0), 40.0)
        signal *= 10 ** (snr_db / 20) / np.abs(signal).max()
        late = random.integers(0, 40)
        total = noise(random, response)
        total[:, LEAD + late :] += signal[:, : NUM_SAMPLES - LEAD - late]
        if random.uniform() < 0.04:
            total[random.integers(3)] = np.nan
        window[:] = 300 * total
    return windows, names


def write_events(workspace: Workspace, windows: Array) -> list[str]:
    """Write windows as the events of one station, a minute apart, and return their ids."""
    start = np.datetime64("2020-01-01", "ns")
    onsets = start + np.arange(len(windows)) * np.timedelta64(60, "s")
    lead = np.timedelta64(round(LEAD / RATE_HZ * 1e9), "ns")
    time_type, ids = pa.timestamp("ns", tz="UTC"), [f"XX.SIM..HH.{onset}" for onset in onsets]
    schema = schemas.events_schema(NUM_SAMPLES)
    for first in range(0, len(windows), WINDOWS_A_FILE):
        part = slice(first, first + WINDOWS_A_FILE)
        count = len(onsets[part])
        same = {
            "network": "XX",
            "station": "SIM",
            "location": "",
            "channels": ["HHE", "HHN", "HHZ"],
            "units": "counts",
            "sampling_rate": RATE_HZ,
            "source_sampling_rate": RATE_HZ,
            "trigger_channel": "HHZ",
            "shard": f"part-{first}",
        }
        columns = {
            "event_id": pa.array(ids[part]),
            "onset": pa.array(onsets[part], time_type),
            "window_start": pa.array(onsets[part] - lead, time_type),
            "missing_fraction": pa.array(np.isnan(windows[part]).mean(axis=(1, 2)).astype(np.float32)),
            "waveform": tables.tensor_array(windows[part]),
        }
        arrays = [
            columns[field.name] if field.name in columns else pa.array([same.get(field.name, 1.0)] * count, field.type)
            for field in schema
        ]
        path = tables.shard_path("events", "XX", "SIM", f"part-{first:06d}")
        tables.write_table(workspace.store, path, pa.table(arrays, schema=schema))
    return ids


def scores_of(
    folder: Path, count: int, windows_seed: int, seed: int, train: list[str], label: list[str]
) -> dict[str, float]:
    """Train and label in a workspace of its own; return the scores of the test half, and the seconds of training."""
    # A training is used again by a later call with the same windows and flags alone.
    kind = "-".join([str(count), str(windows_seed), *(word.strip("-") for word in train)])
    workspace, truth = folder / f"{kind}-seed-{seed}", folder / f"truth-{count}-{windows_seed}.csv"
    if not (workspace / "seconds").exists():
        shutil.rmtree(workspace, ignore_errors=True)
        windows, names = make_windows(count, windows_seed)
        opened = open_workspace(str(workspace), create=True)
        opened.update_state()
        ids = write_events(opened, windows)
        pa.csv.write_csv(pa.table({"event_id": ids, "label": names}), truth)
        seconds = job("train", str(workspace), "--train.seed", str(seed), *train)
        (workspace / "seconds").write_text(str(seconds))
    settings = ("--kmeans.k", "3", "--kmeans.seed", str(seed), "--labels.path", str(truth))
    job("label", str(workspace), "--replace", *settings, *label)
    summary = json.loads((workspace / "clustering" / "summary.json").read_text())
    scores: dict[str, float] = summary["scores"]
    return {name: scores[f"test.{name}"] for name in SCORES} | {"s": float((workspace / "seconds").read_text())}


def main() -> None:
    """Measure and print a table, a row a seed, then the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/three-classes"))
    parser.add_argument("--windows", type=int, default=2400)
    parser.add_argument("--windows-seed", type=int, default=1, help="seed of the windows, the same for all trainings")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4], help="of training and clustering")
    parser.add_argument("--train", default="", help="more flags of `firnline train`")
    parser.add_argument("--label", default="", help="more flags of `firnline label`")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    print(f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}; {vars(arguments)}\n")
    print("| seed | " + " | ".join(SCORES) + " | training, s |")
    print("|---" * (len(SCORES) + 2) + "|")
    rows = []
    for seed in arguments.seeds:
        flags = shlex.split(arguments.train), shlex.split(arguments.label)
        row = scores_of(arguments.folder, arguments.windows, arguments.windows_seed, seed, *flags)
        rows.append(row)
        print(f"| {seed} | " + " | ".join(f"{value:.3f}" for value in row.values()) + " |", flush=True)
    means = {name: statistics.mean(row[name] for row in rows) for name in rows[0]}
    print("| mean | " + " | ".join(f"{value:.3f}" for value in means.values()) + " |")


if __name__ == "__main__":
    main()
