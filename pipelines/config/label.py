"""Sections `label`, `kmeans` and `labels`: the encoder, the clustering, and the hand labels."""

import math
import re
from typing import Literal

from pydantic import Field, field_validator

from pipelines.config.base import Section, operational

BRANCH = "b[0-9a-f]{10}"
"""What the id of a branch of the merge tree looks like."""


class LabelSettings(Section):
    """The encoder, the numbering of the clusters, and the search for k."""

    model: str | None = None
    """Registered encoder, such as `models:/firnline-encoder@champion` or `models:/firnline-encoder/3`; default: the
    workspace's own, `train/encoder.safetensors`."""

    reference: str | None = None
    """Workspace (path or URL) whose cluster numbers are kept: each new cluster takes the number of the old one that it
    shares most events with. Default: the numbers of this workspace's earlier clusters are kept so; the first ones are
    numbered by size, the largest is 0."""

    cut: int | float | tuple[str, ...] | None = None
    """Which cut through the merge tree (`clustering/tree.json`) labels the events: a number of clusters such as 5, a
    height such as 1.5, or a list of ids of branches, each of which becomes a cluster of its own. Another cut embeds
    and clusters nothing. Default: `kmeans.k` clusters."""

    propagate: Literal["none", "linear"] = "none"
    """How events without a hand label get one: `none`, their cluster's name; `linear`, by logistic regression on the
    embedding, learned from all hand labels, with a calibrated `confidence`."""

    sweep_k: tuple[int, ...] = operational(())
    """Numbers of clusters to compare, each in a child run with its scores; labels still use `kmeans.k` (counts)."""

    sweep_events: int = operational(20_000, ge=100, le=200_000)
    """Events sampled to compare numbers of clusters (count)."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the encoder's arithmetic; embeddings are stored as float32."""

    use_gpu: bool = False
    """Embed on GPUs, one for each worker."""

    num_workers: int | None = operational(None, ge=1, le=100_000)
    """Processes that embed and cluster (count); default: one for each CPU or GPU of the cluster."""

    bootstrap_draws: int = operational(200, ge=20, le=10_000)
    """Bootstrap samples for each confidence interval (count)."""

    @field_validator("model")
    @classmethod
    def _registered(cls, value: str | None) -> str | None:
        if value is not None and value.startswith(("http://", "https://")):
            raise ValueError(
                f"label.model is {value}, the address of a server; give --mlflow the server, and label.model a "
                "registered encoder such as models:/firnline-encoder/3"
            )
        return value

    @field_validator("cut", mode="before")
    @classmethod
    def _cut(cls, value: object) -> object:
        good = value is None
        if isinstance(value, int) and not isinstance(value, bool):
            good = 2 <= value <= 6_400_000
        elif isinstance(value, float):
            good = math.isfinite(value) and value > 0
        elif isinstance(value, list | tuple):
            good = 0 < len(value) == len({*map(str, value)}) and all(
                isinstance(name, str) and re.fullmatch(BRANCH, name) for name in value
            )
        if not good:
            raise ValueError(
                f"label.cut is {list(value) if isinstance(value, tuple) else value!r}; give a number of clusters from "
                "2 up, a height above 0 with a decimal point, or a list of different ids of branches from "
                "clustering/tree.json, such as [b0123456789]"
            )
        return value

    @field_validator("sweep_k")
    @classmethod
    def _clusters(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(not 2 <= k <= 100_000 for k in value):
            raise ValueError(f"label.sweep_k is {list(value)}; every number of clusters must be from 2 to 100000")
        return tuple(sorted(set(value)))


class KMeansSettings(Section):
    """The clustering of the embeddings."""

    k: int = Field(default=8, ge=2, le=100_000)
    """Number of clusters in the labels (count)."""

    restarts: int = Field(default=4, ge=1, le=1000)
    """Fits from different random centroids (count). Plain k-means and `ward` keep the fit with the lowest inertia;
    `overlap` keeps the one that agrees best with the others, has the least unequal clusters, and whose clusters
    nearest neighbours tell best, apart from failed merges."""

    normalize: Literal["none", "l2"] = "l2"
    """`l2` first scales every embedding to unit length, so that distances follow the cosine."""

    whiten: bool = False
    """First rotate to principal components and scale each to unit variance."""

    overcluster: int = Field(default=20, ge=1, le=64)
    """1: plain k-means; otherwise fit k times this many clusters (fewer if that leaves less than 10 events each) and
    merge them into k (factor)."""

    merge: Literal["ward", "overlap"] = "overlap"
    """How these clusters are merged: by `ward`, the smallest increase of the squared distances, or by `overlap`, how
    many events of one cluster also fit the other."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of all random draws (no unit)."""

    fraction: float = Field(default=1.0, gt=0.0, le=1.0)
    """Share of the events used to fit the centroids; every event is labelled (share)."""

    max_iterations: int = Field(default=300, ge=1, le=1_000_000)
    """Maximum number of Lloyd iterations of a fit (count)."""

    tolerance: float = Field(default=1e-4, ge=0.0, le=1.0)
    """A fit has converged when the centroids' summed squared shift is at most this share of the mean variance."""

    seeding_rounds: int = Field(default=5, ge=1, le=50)
    """Rounds of k-means|| that draw candidates for the first centroids (count)."""

    memory_gb: float = operational(1.0, gt=0.0, le=100_000)
    """Memory of a worker for embeddings; what does not fit is read again from storage in each iteration (GB)."""


class LabelsSettings(Section):
    """Hand labels (or the truth of a synthetic archive), and how they are used."""

    path: str | None = None
    """Hand labels: a CSV or Parquet file, or a folder of them (path or URL), with the columns `event_id, label` or
    `network, station, time, label`, and optionally `split` (validation or test)."""

    tolerance_seconds: float = Field(default=2.0, gt=0.0, le=3600)
    """Largest difference between the time of a hand label and the onset of its event (seconds)."""

    association_seconds: float = Field(default=30.0, ge=0.0, le=86_400)
    """Triggers of any station this soon after an event's first trigger belong to it (seconds)."""

    min_purity: float = Field(default=0.5, ge=0.0, le=1.0)
    """A cluster is named after its most frequent hand label if at least this share of its labels agrees (share)."""

    names: str | None = None
    """YAML file (path or URL) with names of clusters, such as `0: icequake`; they take precedence over hand labels."""
