"""Distributed k-means compared with scikit-learn, dask-ml and Spark MLlib: one run, the same cores, the same rows.

    python benchmarks/kmeans.py
    python benchmarks/kmeans.py --peers PYTHON                 # an environment with dask-ml and pyspark (and Java 17)
    python benchmarks/kmeans.py --peers PYTHON --peer dask-ml  # one of them
    python benchmarks/kmeans.py --restarts 4                   # ours and scikit-learn's best of as many restarts

The peers need packages that Firnline does not, so they have an environment of their own:

    python -m venv peers && peers/bin/pip install dask-ml pyspark pyarrow

Rows: 500,000 x 128 float32 from 100 overlapping normal distributions, k = 64. Two things are timed. An iteration:
`--iterations` Lloyd iterations from the same start, less the rest (a run with one iteration). A whole fit: seeding by
k-means|| (scikit-learn: k-means++) and Lloyd to the same tolerance, rows already in memory; ours once more through Ray,
where the workers' start and their reading of Parquet, before which no row is in memory, are timed apart.

The peers get the same work. The tolerance is scikit-learn's, the centroids' summed squared shift as a share
of the rows' mean variance: dask-ml takes it without that share; Spark MLlib ends when no centroid moves farther than a
distance, and gets the distance that the summed shift allows a single centroid, so that it ends earlier rather than
later. k-means|| draws 2 k candidates a round, in 5 rounds (Spark's own default: 2); left to itself dask-ml draws 2 in
each of some 18 rounds and fills up by chance, which takes longer and gives a worse result.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

TOLERANCE = 1e-4
MAX_ITERATIONS = 100
SEEDING_ROUNDS = 5


def make_rows(num_rows: int, dim: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return rows of 100 overlapping groups of unequal size."""
    random = np.random.default_rng(7)
    centers = random.normal(size=(100, dim)).astype(np.float32)
    shares = random.dirichlet(np.full(100, 2.0))
    groups = random.choice(100, num_rows, p=shares)
    return centers[groups] + 0.9 * random.standard_normal((num_rows, dim), dtype=np.float32)


def most_shift(rows: np.ndarray[Any, Any]) -> float:
    """Return the summed squared shift of the centroids at which a fit ends."""
    return TOLERANCE * float(rows.var(axis=0, dtype=np.float64).mean())


def inertia_of(rows: np.ndarray[Any, Any], centroids: np.ndarray[Any, Any]) -> float:
    """Return the sum of squared distances to the nearest centroid, in float64."""
    total = 0.0
    for start in range(0, len(rows), 20_000):
        block = rows[start : start + 20_000].astype(np.float64)
        squares = (block**2).sum(axis=1)[:, None] - 2 * block @ centroids.T + (centroids**2).sum(axis=1)
        total += float(squares.min(axis=1).sum())
    return total


def ours(folder: Path, k: int, iterations: int, cores: int, restarts: int) -> dict[str, Any]:
    """Time our iterations and fit in one process."""
    from pipelines.label.draws import event_keys
    from pipelines.label.kmeans import best, fit
    from pipelines.label.lloyd import lloyd
    from pipelines.label.partitions import gather_local, local_partitions

    rows = np.load(folder / "rows.npy")
    keys = event_keys([f"AW.VNA1..HH.{number:09d}" for number in range(len(rows))])
    gather = gather_local(local_partitions(rows, keys, num_threads=cores))
    start = rows[:k].astype(np.float64)
    lloyd(gather, start, max_iterations=1, tolerance=0.0)
    seconds = [timed(lambda n=n: lloyd(gather, start, max_iterations=n, tolerance=0.0))[0] for n in (1, 1 + iterations)]
    whole, fits = timed(
        lambda: fit(
            gather,
            k,
            restarts=restarts,
            tolerance=TOLERANCE,
            max_iterations=MAX_ITERATIONS,
            seeding_rounds=SEEDING_ROUNDS,
        )
    )
    found = best(fits)
    return {
        "iteration_s": (seconds[1] - seconds[0]) / iterations,
        "fit_s": whole,
        "iterations": len(found.inertia_history),
        "inertia": inertia_of(rows, found.centroids),
        "version": version("numba"),
    }


def ours_on_ray(folder: Path, k: int, iterations: int, cores: int, restarts: int) -> dict[str, Any]:
    """Time our fit over Ray actors that read their rows from Parquet."""
    import pyarrow as pa

    from pipelines.config.label import KMeansSettings
    from pipelines.label.partitions import count_rows
    from pipelines.label.stage_kmeans import _fit
    from pipelines.label.stage_partitions import ActorGather, start_partitions, survey_embeddings
    from pipelines.label.stage_shards import EventShard
    from pipelines.runtime.ray_session import ray_session
    from pipelines.workspace import schemas, tables
    from pipelines.workspace.storage import open_store

    rows = np.load(folder / "rows.npy", mmap_mode="r")
    store = open_store(str(folder / "workspace"))
    shards = []
    for number, first in enumerate(range(0, len(rows), 25_000)):
        part = rows[first : first + 25_000]
        ids = [f"AW.VNA1..HH.{first + row:09d}" for row in range(len(part))]
        values = pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(part).reshape(-1)), part.shape[1])
        table = pa.table([ids, values], schema=schemas.embeddings_schema(part.shape[1]))
        shards.append(EventShard(network="AW", station="VNA1", name=f"{number:05d}", source=""))
        tables.write_table(store, shards[-1].path("embeddings"), table)
    settings = KMeansSettings(
        k=k,
        normalize="none",
        overcluster=1,
        restarts=restarts,
        tolerance=TOLERANCE,
        max_iterations=MAX_ITERATIONS,
        seeding_rounds=SEEDING_ROUNDS,
    )
    with ray_session(num_cpus=cores):
        surveys = survey_embeddings(store, shards, settings)

        def start() -> ActorGather:
            gather = ActorGather(start_partitions(store, surveys, settings, cores, 1.0))
            assert sum(gather(count_rows)) == len(rows)
            return gather

        ready, gather = timed(start)
        whole, (model, _) = timed(lambda: _fit(gather, surveys, settings, None, None, 0))
    centroids = model.centroids + (model.space.mean if model.space.mean is not None else 0.0)
    return {
        "fit_s": whole,
        "ready_s": ready,
        "iterations": len(model.inertia_history),
        "inertia": inertia_of(np.asarray(rows), centroids),
        "version": version("ray"),
    }


def scikit_learn(folder: Path, k: int, iterations: int, cores: int, restarts: int) -> dict[str, Any]:
    """Time scikit-learn's Lloyd."""
    import warnings

    from sklearn.cluster import KMeans
    from sklearn.cluster._kmeans import _kmeans_single_lloyd

    warnings.filterwarnings("ignore")
    rows = np.load(folder / "rows.npy")
    start = rows[:k].copy()
    weights = np.ones(len(rows), dtype=rows.dtype)

    def iterate(num: int) -> Any:
        # The loop alone: KMeans.fit also copies and centres the rows, which is no part of an iteration.
        return _kmeans_single_lloyd(rows, weights, start.copy(), max_iter=num, tol=0.0, n_threads=cores)

    iterate(1)
    seconds = [timed(lambda n=n: iterate(n))[0] for n in (1, 1 + iterations)]
    model = KMeans(k, n_init=restarts, random_state=0, tol=TOLERANCE, max_iter=MAX_ITERATIONS)
    whole, _ = timed(lambda: model.fit(rows))
    return {
        "iteration_s": (seconds[1] - seconds[0]) / iterations,
        "fit_s": whole,
        "iterations": model.n_iter_,
        "inertia": inertia_of(rows, model.cluster_centers_.astype(np.float64)),
        "version": version("scikit-learn"),
    }


def dask_ml(folder: Path, k: int, iterations: int, cores: int, restarts: int) -> dict[str, Any]:
    """Time dask-ml's KMeans on a threaded scheduler."""
    import dask
    import dask.array as da
    from dask_ml.cluster import KMeans

    rows = np.load(folder / "rows.npy")
    dask.config.set(scheduler="threads", num_workers=cores)
    chunks = da.from_array(rows, chunks=(-(-len(rows) // (4 * cores)), -1)).persist()
    model = KMeans(
        k,
        init="k-means||",
        random_state=0,
        tol=most_shift(rows),
        max_iter=MAX_ITERATIONS,
        oversampling_factor=2 * k,
        init_max_iter=SEEDING_ROUNDS,
    )
    whole, _ = timed(lambda: model.fit(chunks))
    return {
        "fit_s": whole,
        "iterations": int(model.n_iter_),
        "inertia": inertia_of(rows, np.asarray(model.cluster_centers_, dtype=np.float64)),
        "version": version("dask-ml"),
    }


def spark(folder: Path, k: int, iterations: int, cores: int, restarts: int) -> dict[str, Any]:
    """Time Spark MLlib's KMeans on a local master, its rows cached."""
    from pyspark.ml.clustering import KMeans
    from pyspark.ml.functions import array_to_vector
    from pyspark.sql import SparkSession
    from pyspark.sql.functions import col

    session = (
        SparkSession.builder.master(f"local[{cores}]")
        .config("spark.driver.memory", "6g")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.sql.parquet.enableVectorizedReader", "false")
        .getOrCreate()
    )
    session.sparkContext.setLogLevel("ERROR")
    frame = session.read.parquet(str(folder / "spark.parquet")).repartition(4 * cores)
    frame = frame.select(array_to_vector(col("embedding")).alias("features")).cache()
    frame.count()
    rows = np.load(folder / "rows.npy")
    model = KMeans(
        k=k,
        initMode="k-means||",
        initSteps=SEEDING_ROUNDS,
        seed=0,
        tol=most_shift(rows) ** 0.5,
        maxIter=MAX_ITERATIONS,
    )
    whole, fitted = timed(lambda: model.fit(frame))
    return {
        "fit_s": whole,
        "iterations": fitted.summary.numIter,
        "inertia": inertia_of(rows, np.array(fitted.clusterCenters())),
        "version": version("pyspark"),
    }


CONTESTANTS = {
    "scikit-learn": scikit_learn,
    "firnline": ours,
    "firnline on Ray": ours_on_ray,
    "dask-ml": dask_ml,
    "Spark MLlib": spark,
}
PEERS = ("dask-ml", "Spark MLlib")


def timed(work: Any) -> tuple[float, Any]:
    """Return the wall-clock seconds of a call, and its result."""
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def run(name: str, python: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one contestant in a process of its own and return its figures."""
    command = [python, __file__, "--only", name, "--folder", str(folder)]
    for key in ("k", "iterations", "cores", "restarts"):
        command += [f"--{key}", str(getattr(arguments, key))]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    environment |= {"OMP_NUM_THREADS": str(arguments.cores), "PYSPARK_PYTHON": python}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{name} failed:\n{result.stderr[-3000:]}")
    figures: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])
    return figures


def main() -> None:
    """Run every contestant, one after the other, and print a table with ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--restarts", type=int, default=1, help="of our fits and scikit-learn's; the peers know one")
    parser.add_argument("--peers", help="Python of an environment with dask-ml and pyspark")
    parser.add_argument("--peer", choices=PEERS, action="append", help="which of them (default: both)")
    parser.add_argument("--only", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        figures = CONTESTANTS[arguments.only](
            arguments.folder, arguments.k, arguments.iterations, arguments.cores, arguments.restarts
        )
        print(json.dumps(figures))
        return
    with tempfile.TemporaryDirectory(prefix="firnline-benchmark-") as name:
        folder = Path(name)
        rows = make_rows(arguments.rows, arguments.dim)
        np.save(folder / "rows.npy", rows)
        peers = (arguments.peer or PEERS) if arguments.peers else ()
        names = [name for name in CONTESTANTS if name not in PEERS or name in peers]
        if arguments.peers:
            import pyarrow as pa
            import pyarrow.parquet as pq

            lists = pa.ListArray.from_arrays(
                np.arange(0, rows.size + 1, arguments.dim, dtype=np.int32), pa.array(rows.reshape(-1))
            )
            pq.write_table(pa.table({"embedding": lists}), folder / "spark.parquet", row_group_size=25_000)
        del rows
        python = {name: arguments.peers if name in PEERS else sys.executable for name in names}
        figures = {}
        for name in names:
            figures[name] = run(name, python[name], folder, arguments)
            print(f"{name}: {figures[name]}", file=sys.stderr, flush=True)
    machine = platform.processor() or platform.machine()
    print(
        f"{arguments.rows} x {arguments.dim} float32, k = {arguments.k}, restarts {arguments.restarts}, "
        f"{arguments.cores} cores of {machine}"
    )
    print(f"Python {platform.python_version()}, NumPy {np.__version__}, load {os.getloadavg()[0]:.1f}")
    print(f"{'':<16}{'version':>10}{'iteration s':>13}{'fit s':>9}{'its':>6}{'inertia':>14}")
    for name, values in figures.items():
        iteration = f"{values['iteration_s']:.3f}" if "iteration_s" in values else "-"
        print(
            f"{name:<16}{values['version']:>10}{iteration:>13}{values['fit_s']:>9.2f}{values['iterations']:>6}"
            f"{values['inertia']:>14.6g}"
        )
    mine, theirs = figures["firnline"], figures["scikit-learn"]
    print(f"iteration: {mine['iteration_s'] / theirs['iteration_s']:.2f} x scikit-learn's")
    for name in (name for name in PEERS if name in figures):
        for own in ("firnline", "firnline on Ray"):
            print(f"whole fit: {own} is {figures[name]['fit_s'] / figures[own]['fit_s']:.1f} x as fast as {name}")
    over_ray = figures["firnline on Ray"]
    print(f"firnline on Ray: workers started and rows read in {over_ray['ready_s']:.2f} s, apart from the fit")
    for name in (name for name in PEERS if name in figures):
        ratio = figures[name]["fit_s"] / (over_ray["fit_s"] + over_ray["ready_s"])
        print(f"whole fit, firnline on Ray with that time, the peer without: {ratio:.1f} x as fast as {name}")
    best = min(values["inertia"] for values in figures.values())
    print(f"inertia: firnline on Ray {100 * (figures['firnline on Ray']['inertia'] / best - 1):+.2f} % of the best")


if __name__ == "__main__":
    main()
