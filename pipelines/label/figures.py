"""Figures that a labelling run keeps in MLflow, each returned as PNG bytes."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipelines.label.kselection import KScores

COMPONENTS = ("E", "N", "Z")
MAX_NAMED_CLASSES = 40
"""Most classes of a confusion matrix that are drawn with their names and counts."""


def draw_k_scores(scores: Sequence[KScores], suggested: int, used: int) -> bytes:
    """Draw every score of the compared numbers of clusters, with the suggested and the used one."""
    panels = {
        "inertia": "inertia",
        "silhouette": "silhouette (higher is better)",
        "calinski_harabasz": "Calinski-Harabasz (higher is better)",
        "davies_bouldin": "Davies-Bouldin (lower is better)",
        "ari_restarts": "stability between restarts (ARI)",
        "ari_halves": "stability between halves (ARI)",
    }
    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.subplots(2, 3)
    for axis, (name, title) in zip(axes.flat, panels.items(), strict=True):
        axis.plot([score.k for score in scores], [getattr(score, name) for score in scores], "o-", color="tab:blue")
        axis.axvline(suggested, color="tab:green", linestyle="--", label=f"suggested {suggested}")
        axis.axvline(used, color="tab:orange", linestyle=":", label=f"used {used}")
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("number of clusters k")
    axes.flat[0].legend(fontsize=8)
    return _png(figure)


def draw_confusion(matrix: NDArray[np.int64], classes: Sequence[str], columns: Sequence[str], title: str) -> bytes:
    """Draw counts (class, column) with the share of each row as colour.

    Of more than MAX_NAMED_CLASSES classes the colours alone are drawn, and every second, third, ... name.
    """
    shown = min(len(classes), MAX_NAMED_CLASSES)
    figure = Figure(figsize=(2.4 + 0.8 * shown, 1.8 + 0.6 * shown), layout="constrained")
    axis = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    if shown == len(classes):
        for (row, column), count in np.ndenumerate(matrix):
            color = "white" if shares[row, column] > 0.5 else "black"
            axis.text(column, row, str(count), ha="center", va="center", fontsize=8, color=color)
    step = -(-len(classes) // MAX_NAMED_CLASSES)
    # A class may be called anything, dollar signs included.
    axis.set_xticks(
        range(0, len(columns), step), columns[::step], rotation=30, ha="right", fontsize=8, parse_math=False
    )
    axis.set_yticks(range(0, len(classes), step), classes[::step], fontsize=8, parse_math=False)
    axis.set_xlabel("given")
    axis.set_ylabel("hand label")
    axis.set_title(title, fontsize=8)
    return _png(figure)


def draw_inertia(history: Sequence[float]) -> bytes:
    """Draw the inertia of each iteration of the kept fit."""
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axis = figure.subplots()
    axis.plot(range(1, len(history) + 1), history, "o-", markersize=3)
    axis.set_xlabel("iteration")
    axis.set_ylabel("inertia")
    return _png(figure)


def draw_gallery(windows: Mapping[str, Sequence[tuple[str, NDArray[Any]]]], rate_hz: float) -> bytes:
    """Draw the windows nearest to each centroid: a row a cluster, three traces an event.

    `windows` maps a cluster's title to (event title, (3, sample)); absent samples are NaN and leave a gap.
    """
    width = max((len(events) for events in windows.values()), default=1)
    figure = Figure(figsize=(2.6 * width, 1.5 * len(windows) + 0.4), layout="constrained")
    axes = np.atleast_2d(figure.subplots(len(windows), width, squeeze=False))
    for row, (cluster, events) in enumerate(windows.items()):
        axes[row, 0].set_ylabel(cluster, fontsize=7, parse_math=False)
        for column in range(width):
            axis = axes[row, column]
            axis.set_yticks([])
            axis.tick_params(labelsize=6)
            if column >= len(events):
                axis.set_axis_off()
                continue
            title, window = events[column]
            seconds = np.arange(window.shape[1]) / rate_hz
            # One scale for the three components, after their offsets are gone; an absent one leaves its row empty.
            traces = [row - (np.nanmean(row) if np.isfinite(row).any() else 0.0) for row in window]
            scale = max((float(np.nanmax(np.abs(row))) for row in traces if np.isfinite(row).any()), default=0.0) or 1.0
            for number, (component, trace) in enumerate(zip(COMPONENTS, traces, strict=True)):
                axis.plot(seconds, trace / scale - 1.5 * number, linewidth=0.4, color="black")
                axis.text(0, -1.5 * number + 0.2, component, fontsize=5, color="tab:blue")
            axis.set_ylim(-1.5 * (len(COMPONENTS) - 1) - 1.1, 1.1)
            axis.set_title(title, fontsize=6)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
