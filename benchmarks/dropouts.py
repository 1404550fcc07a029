"""Do windows with a digitiser dropout get clusters of their own? On recordings whose dropouts can be counted.

    firnline run ../shared/data/rutford2009 runs/rutford --config configs/rutford.yaml
    python benchmarks/dropouts.py ../shared/data/rutford2009 runs/rutford

A dropout is one sample of value 0 whose two neighbours lie on the same side, at least 20 times the median step between
samples away. A cluster most of whose windows contain one is a dropout cluster. Purity is the share of its windows that
contain one, recall the share of all such windows that are in dropout clusters; chance would give their share of all
windows.
"""

import argparse
from pathlib import Path

import numpy as np
import obspy

from pipelines.workspace import tables
from pipelines.workspace.storage import open_store

FAR = 20.0
"""Least distance of a dropout from its neighbours, in median steps between samples."""


def dropout_times(archive: Path) -> dict[str, np.ndarray]:
    """Return the times of the dropouts by network.station, ns since 1970, all components together."""
    found: dict[str, list[np.ndarray]] = {}
    for path in sorted(archive.iterdir()):
        try:
            stream = obspy.read(str(path), format="MSEED")
        except (OSError, ValueError, TypeError, obspy.io.mseed.ObsPyMSEEDError):
            continue
        for trace in stream:
            data = trace.data.astype(np.float64)
            before, after = data[:-2], data[2:]
            far = FAR * np.median(np.abs(np.diff(data)))
            lone = (data[1:-1] == 0) & (before * after > 0) & (np.minimum(np.abs(before), np.abs(after)) > far)
            times = trace.stats.starttime.ns + ((np.flatnonzero(lone) + 1) * 1e9 * trace.stats.delta).astype(np.int64)
            found.setdefault(f"{trace.stats.network}.{trace.stats.station}", []).append(times)
    return {name: np.sort(np.concatenate(times)) for name, times in found.items()}


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("workspace")
    arguments = parser.parse_args()
    times = dropout_times(arguments.archive)
    store = open_store(arguments.workspace)
    clusters, holds = [], []
    for item in tables.list_shards(store, "events"):
        columns = ["event_id", "network", "station", "window_start", "sampling_rate", "waveform"]
        events = tables.read_table(store, item.path, columns)
        labels = tables.read_table(store, item.path.replace("events/", "labels/", 1), ["event_id", "cluster"])
        cluster_of = dict(zip(labels["event_id"].to_pylist(), labels["cluster"].to_pylist(), strict=True))
        starts = events["window_start"].cast("int64").to_numpy()
        lengths = tables.waveforms(events["waveform"]).shape[2] / events["sampling_rate"].to_numpy() * 1e9
        names = zip(events["network"].to_pylist(), events["station"].to_pylist(), strict=True)
        for event, name, start, length in zip(events["event_id"].to_pylist(), names, starts, lengths, strict=True):
            inside = np.searchsorted(times[".".join(name)], [start, start + int(length)])
            clusters.append(cluster_of[event])
            holds.append(bool(inside[1] > inside[0]))
    cluster, hold = np.array(clusters), np.array(holds)
    own = [number for number in np.unique(cluster) if hold[cluster == number].mean() > 0.5]
    inside = np.isin(cluster, own)
    print(f"{len(hold)} windows, {hold.sum()} hold a dropout ({hold.mean():.3f}); dropouts by station:")
    print("  " + ", ".join(f"{name} {len(found)}" for name, found in times.items()))
    for number in np.unique(cluster):
        print(f"  cluster {number}: {(cluster == number).sum()} windows, {hold[cluster == number].sum()} hold one")
    purity = hold[inside].mean() if inside.any() else float("nan")
    print(f"dropout clusters {[int(number) for number in own]}: purity {purity:.3f}, recall {inside[hold].mean():.3f}")


if __name__ == "__main__":
    main()
