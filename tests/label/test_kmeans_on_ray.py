"""The partitions as Ray actors: the same model, to the last bit, for any number of them, kept or streamed or lost."""

import os
import signal
import threading
from contextlib import suppress
from itertools import pairwise

import numpy as np
import psutil
import pyarrow as pa
import pytest
import ray
from ray.exceptions import ObjectReconstructionFailedError
from small_workspace import write_workspace

from pipelines.config.label import KMeansSettings
from pipelines.label import stage_partitions
from pipelines.label.in_memory import cluster_in_memory
from pipelines.label.partitions import block_edges, count_rows
from pipelines.label.stage_kmeans import fit_model
from pipelines.label.stage_partitions import (
    check_memory,
    plan_partitions,
    start_partitions,
    survey_embeddings,
    useful_workers,
    wait_for_actors,
)
from pipelines.label.stage_shards import EventShard, list_event_shards
from pipelines.runtime.errors import InputError, StageFailed
from pipelines.workspace import schemas, tables
from pipelines.workspace.storage import Store, open_store

NUM_ROWS = 9000
DIM = 6


@pytest.fixture(scope="module")
def embedded(tmp_path_factory) -> tuple[Store, list[EventShard]]:
    """Files of unequal length at two stations; every tenth embedding is that of the row before."""
    store = open_store(str(tmp_path_factory.mktemp("embedded")))
    random = np.random.default_rng(5)
    centers = 3.0 * random.normal(size=(5, DIM))
    rows = (centers[random.integers(0, 5, NUM_ROWS)] + random.normal(size=(NUM_ROWS, DIM))).astype(np.float32)
    rows[1::10] = rows[0::10]
    shards = []
    edges = [0, 100, 1900, 1901, 5000, 7777, NUM_ROWS]
    for number, (first, end) in enumerate(pairwise(edges)):
        shard = EventShard(network="AW", station="VNA1" if first < 5000 else "VNA2", name=f"{number}", source="")
        ids = [f"AW.{shard.station}..HH.{row:06d}" for row in range(first, end)]
        values = pa.FixedSizeListArray.from_arrays(pa.array(rows[first:end].reshape(-1)), DIM)
        tables.write_table(store, shard.path("embeddings"), pa.table([ids, values], schemas.embeddings_schema(DIM)))
        shards.append(shard)
    return store, shards


def fitted(embedded: tuple[Store, list[EventShard]], num_workers: int, progress=None, **settings) -> bytes:
    store, shards = embedded
    chosen = KMeansSettings(**({"k": 4, "restarts": 2, "whiten": True, "overcluster": 2} | settings))
    surveys = survey_embeddings(store, shards, chosen)
    share = min(1.0, 2 / num_workers)
    found = fit_model(
        store,
        surveys,
        chosen,
        num_workers=num_workers,
        measured=True,
        cpus_per_worker=share,
        num_classes=3,
        progress=progress,
    )
    assert found.at_classes is not None
    return found.model.to_bytes() + found.at_classes.to_bytes()


def test_1_2_3_and_7_workers_give_the_same_bits_kept_or_streamed(embedded, ray_cluster):
    assert len(block_edges(NUM_ROWS)) - 1 >= 7
    models = [fitted(embedded, num_workers) for num_workers in (1, 2, 3, 7)]
    models += [fitted(embedded, num_workers, memory_gb=1e-9) for num_workers in (1, 3)]
    assert all(model == models[0] for model in models)


def test_embeddings_in_memory_have_the_model_that_workers_fit(embedded, ray_cluster):
    store, shards = embedded
    read = [tables.read_table(store, shard.path("embeddings"), ["event_id", "embedding"]) for shard in shards]
    ids = [name for table in read for name in table["event_id"].to_pylist()]
    rows = np.concatenate([tables.embeddings(table["embedding"]) for table in read])
    settings = KMeansSettings(k=4, restarts=2, whiten=True, overcluster=2)
    clusters, model = cluster_in_memory(rows, ids, settings, measured=False)
    assert fitted(embedded, 2).startswith(model.to_bytes())
    assert clusters.shape == (NUM_ROWS,)


def test_the_same_share_of_the_events_is_fitted_by_any_number_of_workers(embedded, ray_cluster):
    models = [fitted(embedded, num_workers, fraction=0.9, merge="overlap") for num_workers in (1, 3)]
    assert models[0] == models[1] != fitted(embedded, 1, merge="overlap")


def test_fewer_workers_share_the_rows_where_memory_is_short_for_many():
    """Each worker takes a quarter of a gigabyte before its first row."""
    edges, needed, keep = plan_partitions(20_000, 64, 1.0, 16, 3e9)
    assert (len(edges), keep) == (11, True)
    assert edges[0][0] == 0
    assert edges[-1][1] == 20_000
    assert sum(needed) <= 3e9
    assert plan_partitions(20_000, 64, 1e-4, 16, 3e9)[2] is False
    assert len(plan_partitions(20_000, 64, 1.0, 16, 30e9)[0]) == 16
    with pytest.raises(StageFailed, match=r"over 20000 events needs 0\.3 GB of memory in a worker, Ray has 0\.1 GB"):
        plan_partitions(20_000, 64, 1.0, 16, 1e8)


def test_events_that_the_memory_can_never_hold_are_refused_before_they_are_embedded(ray_cluster, tmp_path, monkeypatch):
    store = open_store(str(tmp_path))
    write_workspace(store)
    shards = list_event_shards(store)
    check_memory(store, shards, KMeansSettings())
    monkeypatch.setattr(stage_partitions, "_cluster", lambda resource, default: 2e8)
    with pytest.raises(InputError, match=r"k-means over 360 events needs 0\.3 GB of memory, and Ray has 0\.2 GB"):
        check_memory(store, shards, KMeansSettings())
    # Its nodes bring memory of their own.
    monkeypatch.setenv("FIRNLINE_CLUSTER_CPUS", "512")
    check_memory(store, shards, KMeansSettings())


def test_a_cluster_that_may_grow_is_not_asked_for_nodes_for_a_few_rows():
    assert useful_workers(512, 10_000_000, 16) == 16
    assert useful_workers(512, 10_000_000, 0) == 10
    assert useful_workers(512, 100_000_001, 16) == 101
    assert useful_workers(512, 9000, 0) == 1
    assert useful_workers(4, 10_000_000, 16) == 4


def test_a_wait_for_workers_says_what_is_missing(embedded, ray_cluster, capsys):
    store, shards = embedded
    settings = KMeansSettings(k=4)
    surveys = survey_embeddings(store, shards, settings)
    # It holds every CPU, so that no partition can start before it ends.
    blocker = ray.remote(threading.Event).options(num_cpus=2).remote()
    ray.get(blocker.is_set.remote())
    actors = start_partitions(store, surveys, settings, 2, 1.0)
    threading.Timer(3.0, lambda: ray.kill(blocker)).start()
    wait_for_actors(actors, report_seconds=0.5)
    assert sum(ray.get([actor.run.remote(count_rows) for actor in actors])) == NUM_ROWS
    for actor in actors:
        ray.kill(actor)
    assert "k-means: waiting for 2 of 2 workers to start" in capsys.readouterr().out


def test_a_killed_worker_changes_no_bit(embedded, ray_cluster):
    lost = []

    def kill_one(restart: int, iteration: int, inertia: float) -> None:
        if (restart, iteration) == (1, 1) and not lost:
            for process in psutil.Process().children(recursive=True):
                # One that has just ended has no command line any more.
                with suppress(psutil.NoSuchProcess):
                    if "PartitionActor" in " ".join(process.cmdline()):
                        lost.append(process.pid)
                        os.kill(process.pid, signal.SIGKILL)
                        return

    def lose_sums(restart: int, iteration: int, inertia: float) -> None:
        # As Ray says where a node dies whose sums nobody had fetched yet.
        if len(lost) < 2:
            lost.append(0)
            raise ObjectReconstructionFailedError("0" * 56, "", "")

    undisturbed = fitted(embedded, 2)
    assert fitted(embedded, 2, progress=kill_one) == undisturbed
    assert len(lost) == 1
    assert fitted(embedded, 2, progress=lose_sums) == undisturbed
    assert len(lost) == 2


def test_fewer_events_than_clusters_is_one_sentence(embedded, ray_cluster):
    with pytest.raises(
        InputError, match=r"there are 9000 events, fewer than the 9001 clusters .*; change .* --replace"
    ):
        fitted(embedded, 1, k=9001)


def test_more_classes_than_events_cost_the_score_at_their_number_alone(embedded, ray_cluster, capsys):
    store, shards = embedded
    settings = KMeansSettings(k=4, restarts=1, overcluster=1)
    found = fit_model(
        store, survey_embeddings(store, shards, settings), settings, num_workers=1, measured=False, num_classes=9001
    )
    assert len(found.model.centroids) == 4
    assert found.at_classes is None
    assert "no clustering at k = number of classes (9001), so no score of it: there are 9000" in capsys.readouterr().out
