"""The space that k-means runs in: embeddings scaled to unit length, centred, turned and whitened as configured.

Legend: n rows, d dimensions of an embedding, r of a point, b blocks of a partition.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.label.kernels import Array, one_thread_per_pool, sum_of_squares
from pipelines.label.partitions import Gather, Partition, add_blocks, count_rows, total_of

Normalize = Literal["none", "l2"]

MIN_VARIANCE_SHARE = 1e-6
"""Principal components with less than this share of the largest variance hold rounding noise and are dropped."""

TURNED_ROWS = 8192
"""Rows turned at a time, so that the float64 copies stay small."""


@dataclass(frozen=True, kw_only=True)
class Space:
    """How an embedding (d,) becomes a point (r,): optional scaling to unit length, minus mean, times basis."""

    normalize: Normalize = "none"
    mean: NDArray[np.float64] | None = None
    """(d,), of the scaled embeddings; None: they are not centred."""
    basis: NDArray[np.float64] | None = None
    """(d, r); None: the axes are kept."""

    def num_dims(self, num_embedded: int) -> int:
        """Return the dimensions of a point, r, where an embedding has `num_embedded`."""
        return num_embedded if self.basis is None else self.basis.shape[1]


def fit_space(gather: Gather, *, normalize: Normalize = "none", whiten: bool = False) -> Space:
    """Fit the space of the clustering to all rows, from sums over blocks, and turn the rows into its points.

    Raises:
        ValueError: every row is the same.
    """
    num_rows = sum(gather(count_rows))
    scaled = Space(normalize=normalize)
    mean = add_blocks(gather(sum_rows, scaled)) / num_rows
    space = Space(normalize=normalize, mean=mean)
    if whiten:
        covariance = add_blocks(gather(sum_products, space)) / num_rows
        if np.trace(covariance) > 0:
            with one_thread_per_pool():
                space = Space(normalize=normalize, mean=mean, basis=whitening_basis(covariance))
    gather(enter_space, space)
    squares = total_of(gather(sum_squares))
    # A constant in float32 minus its float64 mean is rounding noise, far below any spread that could be clustered.
    if squares <= num_rows * 1e-12 * max(1.0, float(mean @ mean)):
        raise ValueError(f"all {num_rows} embeddings are the same, so there is nothing to cluster")
    return space


def to_space(rows: NDArray[Any], space: Space) -> NDArray[Any]:
    """Return rows (n, d) as points (n, r) of the same float type; an embedding of length zero stays zero."""
    if len(rows) > TURNED_ROWS:
        return np.concatenate(
            [to_space(rows[start : start + TURNED_ROWS], space) for start in range(0, len(rows), TURNED_ROWS)]
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


def measured_of(points: NDArray[Any], space: Space) -> NDArray[np.float64]:
    """Return what is measured of events, up to a factor, from points (n, d) of embeddings whose last component it is.

    It is that component over the length of the others (see `SpectrogramNetwork`); 0 where these are 0.

    Args:
        points: in a space without a basis.
        space: theirs.
    """
    rows = points.astype(np.float64) + (0.0 if space.mean is None else space.mean)
    lengths = np.sqrt((rows[:, :-1] ** 2).sum(axis=1))
    return np.asarray(rows[:, -1] / np.where(lengths > 0, lengths, np.inf), dtype=np.float64)


def whitening_basis(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the basis (d, r) that turns centred rows to principal components of unit variance, the largest first.

    Signs are chosen so that the largest entry of each component is positive.
    """
    variances, components = np.linalg.eigh(covariance)
    order = np.argsort(-variances, kind="stable")
    variances, components = variances[order], components[:, order]
    kept = variances > MIN_VARIANCE_SHARE * max(float(variances[0]), 0.0)
    variances, components = variances[kept], components[:, kept]
    largest = np.abs(components).argmax(axis=0)
    components = components * np.sign(components[largest, np.arange(components.shape[1])])
    return np.asarray(components / np.sqrt(variances), dtype=np.float64)


def enter_space(partition: Partition, space: Space) -> None:
    """Turn the rows into points of a space (see Partition.turn)."""
    partition.turn(partial(to_space, space=space))


def sum_rows(partition: Partition, space: Space) -> NDArray[np.float64]:
    """Return the sum of each block's rows in a space, (b, d)."""
    return np.stack(partition.map_blocks(lambda block, _: to_space(block, space).sum(axis=0, dtype=np.float64)))


def sum_products(partition: Partition, space: Space) -> NDArray[np.float64]:
    """Return each block's sum of outer products of its rows in a space, (b, d, d)."""

    def products(block: Array, _: slice) -> NDArray[np.float64]:
        rows = to_space(block, space).astype(np.float64)
        return np.asarray(rows.T @ rows, dtype=np.float64)

    return np.stack(partition.map_blocks(products))


def sum_squares(partition: Partition) -> NDArray[np.float64]:
    """Return each block's sum of squares, (b,)."""
    return np.array(partition.map_blocks(lambda block, _: sum_of_squares(block)))
