"""The two pictures of a training: its augmentations on real windows, and a map of its embedding. PNG bytes."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from pipelines.contrastive.augmentations import FAMILIES, PRESETS, build_augmenter


def augmentation_gallery(
    windows_NCS: Tensor,
    parameters: Mapping[str, Mapping[str, Any]],
    preset: str,
    lead_samples: int,
    rate_hz: float,
    *,
    seed: int = 0,
) -> bytes:
    """Draw each augmentation of a preset, always applied, on the vertical of a few prepared windows.

    Args:
        windows_NCS: prepared windows, one a column.
        parameters: of the augmentations, by name.
        preset: whose families are drawn.
        lead_samples: samples before the onset.
        rate_hz: sampling rate.
        seed: of the drawn views.
    """
    names = [name for family in PRESETS[preset] for name in FAMILIES[family]]
    rows: list[tuple[str, Tensor]] = [("as prepared", windows_NCS)]
    for name in names:
        alone = {other: {**parameters[other], "probability": float(other == name)} for other in names}
        generator = torch.Generator().manual_seed(seed)
        rows.append((name.replace("_", " "), build_augmenter(preset, alone, lead_samples)(windows_NCS, generator)))
    figure = Figure(figsize=(3 * len(windows_NCS) + 1, 0.9 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), len(windows_NCS), squeeze=False, sharex=True)
    time = (np.arange(windows_NCS.shape[-1]) - lead_samples) / rate_hz
    for row, (name, views) in enumerate(rows):
        for column, axis in enumerate(axes[row]):
            axis.plot(time, views[column, 2].numpy(), linewidth=0.4, color="#1f4e79")
            axis.set_yticks([])
            axis.spines[["top", "right", "left"]].set_visible(False)
        axes[row][0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("seconds after onset", fontsize=8)
    return _png(figure)


def embedding_map(embeddings: NDArray[np.float32], stations: Sequence[str]) -> bytes:
    """Draw the first two principal components of embeddings (n, dim), coloured by station."""
    centred = embeddings - embeddings.mean(0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    flat = centred @ directions[:2].T
    if flat.shape[1] < 2:
        flat = np.pad(flat, ((0, 0), (0, 2 - flat.shape[1])))
    figure = Figure(figsize=(6, 5), layout="constrained")
    axis = figure.subplots()
    for station in sorted(set(stations)):
        chosen = np.array([name == station for name in stations])
        axis.scatter(flat[chosen, 0], flat[chosen, 1], s=4, alpha=0.6, label=station)
    axis.set_xlabel("first principal component")
    axis.set_ylabel("second principal component")
    if len(set(stations)) <= 12:
        axis.legend(markerscale=3, frameon=False)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
