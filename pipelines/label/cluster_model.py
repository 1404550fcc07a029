"""The fitted clustering: what turns an embedding into its cluster, and the file that keeps it."""

import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.label.space import Space


@dataclass(frozen=True, kw_only=True)
class ClusterModel:
    """Everything needed to label an embedding: the space, the centroids there, and the cluster of each centroid."""

    space: Space
    centroids: NDArray[np.float64]
    """(m, d): m = k, or more where over-clusters are merged to k."""
    clusters: NDArray[np.int32]
    """(m,): which of the k clusters each centroid belongs to, before these get their final numbers."""
    inertia: float
    inertia_history: tuple[float, ...]
    converged: bool
    restart_inertias: tuple[float, ...]

    def to_bytes(self) -> bytes:
        """Return the model as an npz archive without pickled objects."""
        arrays: dict[str, Any] = {
            "centroids": self.centroids,
            "clusters": self.clusters,
            "inertia_history": np.array(self.inertia_history),
            "restart_inertias": np.array(self.restart_inertias),
        }
        optional = {
            "mean": self.space.mean,
            "basis": self.space.basis,
        }
        arrays |= {name: array for name, array in optional.items() if array is not None}
        plain = {"normalize": self.space.normalize, "inertia": self.inertia, "converged": self.converged}
        arrays["plain"] = np.frombuffer(json.dumps(plain, sort_keys=True).encode(), dtype=np.uint8)
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        return buffer.getvalue()

    @staticmethod
    def from_bytes(content: bytes) -> "ClusterModel":
        """Return the model that `to_bytes` wrote."""
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            plain = json.loads(arrays["plain"].tobytes())
            optional = {name: arrays.get(name) for name in ("mean", "basis")}
            return ClusterModel(
                space=Space(normalize=plain["normalize"], mean=optional["mean"], basis=optional["basis"]),
                centroids=arrays["centroids"],
                clusters=arrays["clusters"],
                inertia=plain["inertia"],
                inertia_history=tuple(arrays["inertia_history"].tolist()),
                converged=plain["converged"],
                restart_inertias=tuple(arrays["restart_inertias"].tolist()),
            )
