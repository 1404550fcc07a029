"""Where events lie on the map: in the plane of the principal components, or beside their neighbours (t-SNE).

Legend: n events, d dimensions of a point in the space of the clustering, m landmarks.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pipelines.report.embedding_map import neighbourhood_plane

MAX_LANDMARKS = 1500
"""Events that t-SNE places; all others lie between those that they are nearest to."""
NEAREST = 6
"""Landmarks between which an event lies."""
_CHUNK = 4096
_INSIDE = 0.995
"""Share of the events that lie within a distance of 1 of the middle of a map; those further out stay where they are."""


def principal_components(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the first two principal components (n, 2) of points (n, d).

    The sign of each component is the one for which its largest loading is positive.
    """
    mean = np.zeros(points.shape[1])
    products = np.zeros((points.shape[1], points.shape[1]))
    for chunk in _chunks(points):
        mean += chunk.sum(axis=0)
    mean /= len(points)
    for chunk in _chunks(points):
        chunk -= mean
        products += chunk.T @ chunk
    _, components = np.linalg.eigh(products)
    basis = np.pad(components[:, ::-1][:, :2], ((0, 0), (0, max(0, 2 - points.shape[1]))))
    largest = np.abs(basis).argmax(axis=0)
    basis = basis * np.where(basis[largest, (0, 1)] < 0, -1.0, 1.0)
    plane = np.concatenate([((chunk - mean) @ basis).astype(np.float32) for chunk in _chunks(points)])
    return _framed(plane)


def neighbourhoods(points: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """Return a plane (n, 2) in which events that are near in points (n, d) are near.

    t-SNE places the first m events, which must be a random sample; every other event lies between the `NEAREST`
    landmarks that it is nearest to, the nearer to one the more so.
    """
    num_landmarks = min(len(points), MAX_LANDMARKS)
    landmarks = points[:num_landmarks]
    placed = neighbourhood_plane(landmarks, seed)
    if num_landmarks == len(points):
        return _framed(placed.astype(np.float32))
    squares = (landmarks**2).sum(axis=1)
    plane = np.empty((len(points), 2), dtype=np.float32)
    plane[:num_landmarks] = placed
    for start in range(num_landmarks, len(points), _CHUNK):
        chunk = points[start : start + _CHUNK]
        distances = squares - 2 * (chunk @ landmarks.T)
        near = np.argpartition(distances, NEAREST, axis=1)[:, :NEAREST]
        excess = np.take_along_axis(distances, near, axis=1)
        excess -= excess.min(axis=1, keepdims=True)
        weights = np.exp(-2 * excess / np.maximum(excess.mean(axis=1, keepdims=True), 1e-30))
        weights /= weights.sum(axis=1, keepdims=True)
        plane[start : start + _CHUNK] = (weights[:, :, None] * placed[near]).sum(axis=1)
    return _framed(plane)


def nearest_points(points: NDArray[np.float32], wanted: NDArray[np.floating], count: int) -> NDArray[np.int64]:
    """Return the indices of the `count` points (n, d) nearest to one (d,), the nearest first; ties by index."""
    distances = np.concatenate([((chunk - wanted) ** 2).sum(axis=1) for chunk in _chunks(points)])
    count = min(count, len(points))
    near = np.flatnonzero(distances <= np.partition(distances, count - 1)[count - 1])
    return near[np.argsort(distances[near], kind="stable")][:count]


def _chunks(points: NDArray[np.float32]) -> Iterator[NDArray[np.float64]]:
    """Yield points some rows at a time, in double precision."""
    for start in range(0, len(points), _CHUNK):
        yield points[start : start + _CHUNK].astype(np.float64)


def _framed(plane: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a plane about its median, scaled so that most events lie within a distance of 1."""
    centred = plane - np.median(plane, axis=0)
    radius = float(np.quantile(np.hypot(centred[:, 0], centred[:, 1]), _INSIDE))
    return np.ascontiguousarray(centred / max(radius, 1e-30), dtype=np.float32)
