"""The compiled loops of k-means: one matrix product per chunk, then one pass over it while it is in the cache.

Legend: n rows, d dimensions, k centroids.
"""

from functools import cache
from typing import Any

import numpy as np
import scipy.linalg
from numba import njit
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

CHUNK_ROWS = 512
"""Rows of one matrix product: its buffer stays in the processor's cache."""

Array = NDArray[Any]


@cache
def _thread_pools() -> ThreadpoolController:
    # SciPy's BLAS, which the kernels call, must be loaded to be seen.
    scipy.linalg.get_blas_funcs("gemm")
    return ThreadpoolController()


def one_thread_per_pool() -> Any:
    """Return a context in which every thread pool of this process has one thread, BLAS's and OpenMP's."""
    return _thread_pools().limit(limits=1)


def one_thread_per_product() -> Any:
    """Return a context in which a matrix product runs on its caller's thread: its bits then depend on shape alone."""
    return _thread_pools().limit(limits=1, user_api="blas")


def prepare_centroids(centroids: NDArray[np.float64], dtype: Any) -> tuple[Array, Array]:
    """Return -2 centroids^T (d, k) and the squared norms (k,): added to a product they order the distances."""
    transposed = np.ascontiguousarray((-2.0 * centroids).T.astype(dtype))
    return transposed, (centroids**2).sum(axis=1).astype(dtype)


@njit(cache=True, nogil=True)
def _nearest(products: Array, norms: Array) -> tuple[Any, int]:
    """Add the norms to a row's products (k,) in place, which orders its distances; returns the least and its index.

    Two loops, so that the compiler adds the norms several at a time.
    """
    for centroid in range(len(norms)):
        products[centroid] += norms[centroid]
    least, nearest = products[0], 0
    for centroid in range(1, len(norms)):
        if products[centroid] < least:
            least, nearest = products[centroid], centroid
    return least, nearest


@njit(cache=True, nogil=True)
def assign_block(block: Array, transposed: Array, norms: Array, labels: Array, sums: Array, counts: Array) -> int:
    """Assign the block's rows (n, d) to their nearest centroids and return how many changed; adds to sums and counts.

    `transposed` and `norms` come from `prepare_centroids`. Changed in place: labels (n,), sums (k, d), counts (k,).
    """
    num_centroids, dim = transposed.shape[1], block.shape[1]
    buffer = np.empty((CHUNK_ROWS, num_centroids), block.dtype)
    changed = 0
    for start in range(0, len(block), CHUNK_ROWS):
        end = min(len(block), start + CHUNK_ROWS)
        products = buffer[: end - start]
        np.dot(block[start:end], transposed, products)
        for row in range(end - start):
            _, label = _nearest(products[row], norms)
            if labels[start + row] != label:
                labels[start + row] = label
                changed += 1
            counts[label] += 1
            for axis in range(dim):
                sums[label, axis] += np.float64(block[start + row, axis])
    return changed


@njit(cache=True, nogil=True)
def measure_block(
    block: Array, transposed: Array, norms: Array, nearest: Array, candidate: Array, first_number: int
) -> None:
    """Compare the block's rows with new candidates (`prepare_centroids`) and keep the nearest so far.

    Changed in place: nearest (n,), the squared distances; candidate (n,), which it is, numbered from `first_number`.
    """
    num_candidates, dim = transposed.shape[1], block.shape[1]
    noise = 16.0 * np.finfo(block.dtype).eps
    buffer = np.empty((CHUNK_ROWS, num_candidates), block.dtype)
    for start in range(0, len(block), CHUNK_ROWS):
        end = min(len(block), start + CHUNK_ROWS)
        products = buffer[: end - start]
        np.dot(block[start:end], transposed, products)
        for row in range(end - start):
            least, number = _nearest(products[row], norms)
            square = np.float64(0.0)
            for axis in range(dim):
                square += np.float64(block[start + row, axis]) ** 2
            distance = square + np.float64(least)
            # Rounding leaves a row that equals its candidate a small distance, by which it would be drawn again.
            if distance < noise * (square + np.float64(norms[number])):
                distance = np.float64(0.0)
            if np.float32(distance) < nearest[start + row]:
                nearest[start + row] = np.float32(distance)
                candidate[start + row] = first_number + number


@njit(cache=True, nogil=True)
def label_block(
    block: Array,
    transposed: Array,
    norms: Array,
    centroids: Array,
    clusters: Array,
    labels: Array,
    distances: Array,
    margins: Array,
) -> None:
    """Write each row's final cluster, distance and margin (n,) in place; see `kmeans.label_rows`."""
    num_centroids, dim = transposed.shape[1], block.shape[1]
    buffer = np.empty((CHUNK_ROWS, num_centroids), block.dtype)
    for start in range(0, len(block), CHUNK_ROWS):
        end = min(len(block), start + CHUNK_ROWS)
        products = buffer[: end - start]
        np.dot(block[start:end], transposed, products)
        for row in range(end - start):
            least, own = _nearest(products[row], norms)
            other = -1
            for centroid in range(num_centroids):
                if clusters[centroid] != clusters[own] and (other < 0 or products[row, centroid] < least):
                    least, other = products[row, centroid], centroid
            # The products order the centroids; the distances themselves are worth a subtraction in float64.
            near, far = 0.0, 0.0
            for axis in range(dim):
                value_own = np.float64(block[start + row, axis]) - centroids[own, axis]
                near += value_own * value_own
                if other >= 0:
                    value_other = np.float64(block[start + row, axis]) - centroids[other, axis]
                    far += value_other * value_other
            labels[start + row] = clusters[own]
            distances[start + row] = np.sqrt(near)
            margins[start + row] = max(0.0, np.sqrt(far) - np.sqrt(near)) if other >= 0 else np.inf


@njit(cache=True, nogil=True)
def sum_of_squares(block: Array) -> float:
    """Return the sum of the squares of all values of a block (n, d), in float64."""
    total = 0.0
    for row in range(block.shape[0]):
        square = 0.0
        for axis in range(block.shape[1]):
            square += np.float64(block[row, axis]) ** 2
        total += square
    return total
