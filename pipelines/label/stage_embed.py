"""Embedding by Ray Data: tasks, or actors on GPUs, turn each file of events into the file of embeddings beside it.

Only this module and `stage_encoder` need torch, so that the workers that cluster import none.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import ray
import torch

from pipelines import __version__
from pipelines.config.label import LabelSettings
from pipelines.encoders import Encoder, load
from pipelines.label.stage_shards import EventShard
from pipelines.runtime.capacity import missing_gpus, say_waits
from pipelines.runtime.errors import InputError, StageFailed
from pipelines.runtime.progress import progress_bar
from pipelines.runtime.text import counted
from pipelines.workspace import schemas, tables
from pipelines.workspace.ledger import MarkerName, WorkLeft, fingerprint, remove_stale, work_left, write_marker
from pipelines.workspace.storage import Store

ALGORITHM_VERSION = 1
"""Raised by hand when the same events and encoder give other embeddings."""

BATCH_ROWS = 512
WORKER_MEMORY_BYTES = 1 << 30
MAX_BLOCKS = 2000
"""Ray Data plans a block for each input; with more shards than this a block holds several."""


def embedding_fingerprint(shard: EventShard, encoder: Encoder, settings: LabelSettings) -> str:
    """Return what names a shard's marker: it changes with the events, the encoder and the arithmetic."""
    return fingerprint(
        {
            "events": shard.source,
            "encoder": encoder.content_hash,
            "precision": settings.precision,
            "use_gpu": settings.use_gpu,
            "algorithm_version": ALGORITHM_VERSION,
        }
    )


def unembedded_shards(
    store: Store, shards: Sequence[EventShard], encoder: Encoder, settings: LabelSettings
) -> list[EventShard]:
    """Return the shards that have no embedding yet, or one of other events, another encoder or other arithmetic."""
    return _embedding_left(store, shards, encoder, settings).left


def _embedding_left(
    store: Store, shards: Sequence[EventShard], encoder: Encoder, settings: LabelSettings
) -> WorkLeft[EventShard]:
    def marker(shard: EventShard) -> MarkerName:
        digits = embedding_fingerprint(shard, encoder, settings)
        return MarkerName(shard.network, shard.station, shard.name, digits)

    return work_left(store, "embed", shards, marker)


def embed_shards(
    store: Store, shards: Sequence[EventShard], encoder: Encoder, settings: LabelSettings, *, num_workers: int
) -> int:
    """Embed the shards that are not embedded yet and return how many those were.

    Raises:
        StageFailed: a shard could not be embedded; the others are done and stay.
    """
    work = _embedding_left(store, shards, encoder, settings)
    left = [asdict(shard) | {"fingerprint": embedding_fingerprint(shard, encoder, settings)} for shard in work.left]
    remove_stale(store, "embeddings", "embed", work.stale, work.current)
    if left:
        failed = [f"{row['name']}: {row['error']}" for row in _embed(store, left, encoder, settings, num_workers)]
        if failed:
            raise StageFailed(
                f"{len(failed)} of {counted(len(left), 'shard')} could not be embedded, first {failed[0]}"
            )
    return len(left)


def _embed(
    store: Store, rows: list[dict[str, Any]], encoder: Encoder, settings: LabelSettings, num_workers: int
) -> Iterator[dict[str, Any]]:
    from ray.data import ActorPoolStrategy, TaskPoolStrategy

    shards: Any = ray.data.from_items(rows, override_num_blocks=min(len(rows), MAX_BLOCKS))
    at_once = max(1, min(num_workers, len(rows), int(_memory() // WORKER_MEMORY_BYTES)))
    content = ray.put(encoder.to("cpu").to_bytes())
    if settings.use_gpu:
        # An actor keeps its GPU; a task with a GPU gets a new process each time.
        embedded = shards.map(
            EmbedShard,
            fn_constructor_args=(store, content, settings),
            compute=ActorPoolStrategy(size=at_once),
            num_cpus=1,
            num_gpus=1,
            memory=WORKER_MEMORY_BYTES,
        )
    else:
        work = _EmbedInTask(store, content, settings)
        embedded = shards.map(work, compute=TaskPoolStrategy(size=at_once), num_cpus=1, memory=WORKER_MEMORY_BYTES)
    waits = say_waits("embed", missing_gpus) if settings.use_gpu else nullcontext()
    with waits, progress_bar("embed", unit="shard", total=len(rows)) as bar:
        for row in embedded.iter_rows():
            bar.update()
            if row["error"]:
                yield row


def _memory() -> float:
    resources: Any = ray.cluster_resources
    return float(resources().get("memory", np.inf))


class _EmbedInTask:
    """What a Ray task runs on a CPU; the process keeps the encoder for its next tasks."""

    kept: ClassVar[dict[str, "EmbedShard"]] = {}

    def __init__(self, store: Store, encoder: Any, settings: LabelSettings) -> None:
        self.arguments = store, encoder, settings

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Embed one shard."""
        name = self.arguments[1].hex()
        if name not in self.kept:
            self.kept.clear()
            self.kept[name] = EmbedShard(*self.arguments)
        return self.kept[name](row)


class EmbedShard:
    """Holds the encoder and embeds one shard a call."""

    def __init__(self, store: Store, encoder: Any, settings: LabelSettings) -> None:
        torch.set_num_threads(1)
        self.store = store
        self.device = "cuda" if settings.use_gpu else "cpu"
        self.encoder = load(ray.get(encoder)).to(self.device)
        self.bfloat16 = settings.precision == "bfloat16"

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Embed one shard and write its marker; what went wrong, if anything, is in `error`."""
        started = time.monotonic()
        shard = EventShard(**{name: row[name] for name in ("network", "station", "name", "source")})
        try:
            num_events = tables.write_batches(
                self.store,
                shard.path("embeddings"),
                schemas.embeddings_schema(self.encoder.dim),
                self._batches(shard),
                {"encoder": self.encoder.content_hash},
            )
        except (InputError, ValueError, pa.ArrowException, OSError) as error:
            return row | {"error": " ".join(str(error).split()) or type(error).__name__}
        name = MarkerName(shard.network, shard.station, shard.name, row["fingerprint"])
        write_marker(
            self.store,
            "embed",
            name,
            {
                "outcome": "done",
                "inputs": [{"path": shard.path("events"), "source": shard.source}],
                "encoder": self.encoder.content_hash,
                "num_events": num_events,
                "seconds": round(time.monotonic() - started, 3),
                "code_version": __version__,
            },
        )
        return row | {"error": ""}

    def _batches(self, shard: EventShard) -> Iterator[pa.RecordBatch]:
        schema = schemas.embeddings_schema(self.encoder.dim)
        columns = ["event_id", "waveform"]
        for batch in tables.iter_batches(self.store, shard.path("events"), columns, BATCH_ROWS):
            arithmetic = torch.autocast(self.device, dtype=torch.bfloat16) if self.bfloat16 else nullcontext()
            with arithmetic:
                embedding = self.encoder.embed(tables.waveforms(batch.column("waveform")))
            wrong = ~np.isfinite(embedding).all(axis=1)
            if wrong.any():
                event_id = batch.column("event_id")[int(wrong.argmax())].as_py()
                raise ValueError(
                    f"the encoder gives event {event_id} an embedding that is not finite; check the training run for "
                    "a diverged loss and give another label.model"
                )
            flat = pa.array(embedding.reshape(-1))
            values = pa.FixedSizeListArray.from_arrays(flat, self.encoder.dim)
            yield pa.record_batch([batch.column("event_id"), values], schema=schema)
