"""The space that k-means runs in: embeddings scaled to unit length, centred, turned and whitened as configured."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Normalize = Literal["none", "l2"]

SMALLEST_VARIANCE = 1e-6
"""Principal components with less than this share of the largest variance hold rounding noise and are left out."""

CHUNK_ROWS = 8192
"""Rows turned at a time: the float64 copies stay small."""


@dataclass(frozen=True, kw_only=True)
class Space:
    """How an embedding (d,) becomes a point (r,): optional scaling to unit length, minus mean, times basis."""

    normalize: Normalize = "none"
    mean: NDArray[np.float64] | None = None
    """(d,), of the scaled embeddings; None leaves them where they are."""
    basis: NDArray[np.float64] | None = None
    """(d, r); None keeps the axes."""


def to_space(rows: NDArray[Any], space: Space) -> NDArray[Any]:
    """Return rows (n, d) as points (n, r) of the same float type; an embedding of length zero stays zero."""
    if len(rows) > CHUNK_ROWS:
        return np.concatenate(
            [to_space(rows[start : start + CHUNK_ROWS], space) for start in range(0, len(rows), CHUNK_ROWS)]
        )
    points = rows
    if space.normalize == "l2":
        lengths = np.sqrt((points.astype(np.float64) ** 2).sum(axis=1))
        points = points / np.where(lengths > 0, lengths, 1.0)[:, None]
    if space.mean is not None:
        points = points - space.mean
    if space.basis is not None:
        points = points.astype(np.float64, copy=False) @ space.basis
    return np.ascontiguousarray(points, dtype=rows.dtype)


def whitening_basis(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the basis (d, r) that turns centred rows to principal components of unit variance, the largest first.

    Signs are chosen so that the largest entry of each component is positive.
    """
    variances, components = np.linalg.eigh(covariance)
    order = np.argsort(-variances, kind="stable")
    variances, components = variances[order], components[:, order]
    kept = variances > SMALLEST_VARIANCE * max(float(variances[0]), 0.0)
    variances, components = variances[kept], components[:, kept]
    largest = np.abs(components).argmax(axis=0)
    components = components * np.sign(components[largest, np.arange(components.shape[1])])
    return np.asarray(components / np.sqrt(variances), dtype=np.float64)
