"""How much memory labelling takes when the embeddings do not fit: all processes together, sampled while it runs.

    python benchmarks/kmeans_memory.py                  # 10 GB
    python benchmarks/kmeans_memory.py --gigabytes 1

Embeddings of made-up events are written, then surveyed, clustered by streaming from Parquet (`kmeans.memory_gb` is far
below their size), counted and labelled over Ray, as `firnline label` does it. The figure is the largest sum, over all
processes of the run, of their proportional set sizes (shared pages counted once), Ray's own processes included.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

ROWS_A_FILE = 100_000


def proportional_bytes(group: int) -> int:
    """Return the proportional set size of all processes of a session (Linux)."""
    total = 0
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if os.getsid(int(folder.name)) != group and str(group) not in _ancestors(int(folder.name)):
                continue
            text = (folder / "smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:"))
    return total


def _ancestors(process: int) -> set[str]:
    found: set[str] = set()
    while process > 1:
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            break
        process = int(fields[1])
        found.add(str(process))
    return found


def work(folder: Path, dim: int, k: int, iterations: int) -> None:
    """Survey, cluster, count and label what lies in a folder."""
    from pipelines.config.label import KMeansSettings
    from pipelines.label.naming import numbers_by_size
    from pipelines.label.stage_count import count_clusters
    from pipelines.label.stage_kmeans import fit_model
    from pipelines.label.stage_labels import Naming, write_labels
    from pipelines.label.stage_partitions import survey_embeddings
    from pipelines.label.stage_shards import EventShard
    from pipelines.runtime.ray_session import ray_session
    from pipelines.workspace.storage import open_store
    from pipelines.workspace.tables import list_shards

    store = open_store(str(folder))
    shards = [
        EventShard(network="AW", station="VNA1", name=Path(item.path).stem, source="")
        for item in list_shards(store, "embeddings")
    ]
    settings = KMeansSettings(k=k, overcluster=1, restarts=1, max_iterations=iterations, tolerance=0.0, memory_gb=0.2)
    began = time.perf_counter()

    def say(what: str) -> None:
        print(f"{time.perf_counter() - began:8.1f} s  {what}", flush=True)

    with ray_session() as session:
        surveys = survey_embeddings(store, shards, settings)
        say(f"surveyed {sum(survey.num_rows for survey in surveys)} rows in {len(surveys)} files")
        model = fit_model(store, surveys, settings, num_workers=session.num_cpus, measured=False).model
        say(f"fitted k = {k} in {len(model.inertia_history)} iterations, inertia {model.inertia:.6g}")
        count = count_clusters(store, shards, model, None, {}, (), None)
        say(f"counted {int(count.counts.sum())} events")
        numbers = numbers_by_size(count.counts)
        naming = Naming(clustering="", numbers=numbers, names={}, far_distance=1.0, periods=count.periods)
        written = write_labels(store, model, naming, {}, dict.fromkeys(shards, "benchmark"))
        say(f"wrote {written} files of labels")


def write_events(folder: Path, gigabytes: float, dim: int) -> None:
    """Write files of embeddings, and of the columns of events that labels repeat, of a total size."""
    import pyarrow as pa

    from pipelines.workspace import schemas, tables
    from pipelines.workspace.storage import open_store

    store = open_store(str(folder))
    random = np.random.default_rng(3)
    centers = random.normal(size=(100, dim)).astype(np.float32)
    num_rows = int(gigabytes * 1e9 / 4 / dim)
    for number, first in enumerate(range(0, num_rows, ROWS_A_FILE)):
        size = min(ROWS_A_FILE, num_rows - first)
        rows = centers[random.integers(0, 100, size)] + random.standard_normal((size, dim), dtype=np.float32)
        ids = pa.array([f"AW.VNA1..HH.{first + row:09d}" for row in range(size)])
        values = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), dim)
        embeddings = pa.table([ids, values], schema=schemas.embeddings_schema(dim))
        tables.write_table(store, tables.shard_path("embeddings", "AW", "VNA1", f"{number:05d}"), embeddings)
        constant = {"network": "AW", "station": "VNA1", "location": ""}
        onsets = pa.array((first + np.arange(size)) * 1_000_000_000, pa.timestamp("ns", tz="UTC"))
        events = {"event_id": ids} | {name: pa.array([value] * size) for name, value in constant.items()}
        measures = dict.fromkeys(("peak_amplitude", "snr_db"), pa.array(np.ones(size, dtype=np.float32)))
        path = tables.shard_path("events", "AW", "VNA1", f"{number:05d}")
        tables.write_table(store, path, pa.table(events | {"onset": onsets} | measures))


def main() -> None:
    """Write the embeddings, run the work in a session of its own, and print the most memory that it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=10.0)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.folder, arguments.dim, arguments.k, arguments.iterations)
        return
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="firnline-benchmark-"))
    try:
        write_events(folder, arguments.gigabytes, arguments.dim)
        command = [sys.executable, __file__, "--work", "--folder", str(folder)]
        for key in ("dim", "k", "iterations"):
            command += [f"--{key}", str(getattr(arguments, key))]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
        process = subprocess.Popen(command, env=environment, start_new_session=True)
        most = [0]

        def watch() -> None:
            while process.poll() is None:
                most[0] = max(most[0], proportional_bytes(process.pid))
                time.sleep(0.5)

        watcher = threading.Thread(target=watch)
        watcher.start()
        code = process.wait()
        watcher.join()
        print(f"{arguments.gigabytes:g} GB of embeddings: at most {most[0] / 1e9:.2f} GB in all processes, exit {code}")
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
