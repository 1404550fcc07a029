"""Sections `label`, `kmeans` and `labels`: which encoder embeds the events, how they are clustered, what is known."""

from typing import Literal

from pydantic import Field, field_validator

from pipelines.config.base import Section, operational


class LabelSettings(Section):
    """The encoder, the numbering of the clusters, and the search for k."""

    model: str | None = None
    """Registered encoder, such as `models:/firnline-encoder@champion` or `models:/firnline-encoder/3`; default: this
    workspace's last training."""

    reference: str | None = None
    """Workspace (path or URL) whose clusters give theirs to the new ones that share most events with them; default:
    clusters are numbered by size, the largest is 0."""

    sweep_k: tuple[int, ...] = operational(())
    """Numbers of clusters to compare, each a child run with its scores; `kmeans.k` stays what is used (counts)."""

    sweep_events: int = operational(20_000, ge=100, le=200_000)
    """Events drawn by a hash of their id for the comparison of numbers of clusters (count)."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the encoder's forward pass; embeddings are stored as float32."""

    use_gpu: bool = False
    """Embed on GPUs, one to each worker."""

    num_workers: int | None = operational(None, ge=1)
    """Processes that embed and cluster (count); default: one for each CPU or GPU of the cluster."""

    bootstrap_draws: int = operational(200, ge=20, le=10_000)
    """Redraws behind every interval (count)."""

    @field_validator("model")
    @classmethod
    def _registered(cls, value: str | None) -> str | None:
        if value is not None and value.startswith(("http://", "https://")):
            raise ValueError(
                f"label.model is {value}, the address of a server; give --mlflow the server, and label.model a "
                "registered encoder such as models:/firnline-encoder/3"
            )
        return value

    @field_validator("sweep_k")
    @classmethod
    def _clusters(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(k < 2 for k in value):
            raise ValueError(f"label.sweep_k is {list(value)}, every number of clusters must be 2 or more")
        return tuple(sorted(set(value)))


class KMeansSettings(Section):
    """The clustering of the embeddings."""

    k: int = Field(default=8, ge=2, le=100_000)
    """Number of clusters in the labels (count)."""

    restarts: int = Field(default=4, ge=1)
    """Fits from different draws of the first centroids (count). Of plain k-means and `ward` that of least inertia is
    kept, of clusters merged by `overlap` the one that agrees most with the others, wrong merges left out."""

    normalize: Literal["none", "l2"] = "l2"
    """`l2` scales every embedding to length one first (then distances follow the cosine)."""

    whiten: bool = False
    """Turn to principal components and scale each to unit variance first."""

    overcluster: int = Field(default=20, ge=1, le=64)
    """1: plain k-means; else fit k times this many clusters (fewer where that leaves less than 10 events each) and
    merge them to k (factor)."""

    merge: Literal["ward", "overlap"] = "overlap"
    """What merges over-clusters: `ward`, the least growth of the squared distances, or `overlap`, how much events of
    the one belong to the other."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of every draw (no unit)."""

    fraction: float = Field(default=1.0, gt=0.0, le=1.0)
    """Share of the events that the centroids are fitted to; every event is labelled (share)."""

    max_iterations: int = Field(default=300, ge=1)
    """Most Lloyd iterations of a fit (count)."""

    tolerance: float = Field(default=1e-4, ge=0.0)
    """A fit ends when the centroids' summed squared shift is at most this share of the mean variance (share)."""

    seeding_rounds: int = Field(default=5, ge=1, le=50)
    """Rounds of k-means|| in which candidates for the first centroids are drawn (count)."""

    memory_gb: float = operational(1.0, gt=0.0)
    """Embeddings that one worker keeps in memory; a larger part streams from storage in every iteration (GB)."""


class LabelsSettings(Section):
    """Hand labels (or a synthetic archive's truth), and what they are used for."""

    path: str | None = None
    """Hand labels, CSV or Parquet, a file or a folder, path or URL: columns `event_id, label` or
    `network, station, time, label`; optional `split` (validation or test)."""

    tolerance_seconds: float = Field(default=2.0, gt=0.0)
    """How far a label's time may lie from the onset that it labels (s)."""

    association_seconds: float = Field(default=30.0, ge=0.0)
    """Triggers of any station this soon after an event's first are the same event (s)."""

    min_purity: float = Field(default=0.5, ge=0.0, le=1.0)
    """A cluster takes its labels' majority as its name when at least this share of them agrees (share)."""

    names: str | None = None
    """YAML file (path or URL) with names of clusters, such as `0: icequake`; it overrides the majority."""
