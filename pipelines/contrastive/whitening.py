"""Scales a trained embedding by what its views disagree about, inside the network's last layer.

Contrastive training leaves directions of very unequal variance, and some of the strong ones still hold what the views
should not: the signal-to-noise ratio above all. K-means sees little else. Whitening by the covariance within the views
of a window (within-class covariance normalisation, Hatch et al. 2006, with windows as classes) weakens them. Nothing is
lost: the new embedding is an invertible linear map of the old one.
"""

import torch
from torch import Tensor, nn

from pipelines.contrastive.augmentations import Augmenter, augmentation_seed
from pipelines.encoders.networks import SpectrogramNetwork

_RIDGE = 0.01
"""Share of the mean variance within views that is added to every direction, so that none is blown up."""


@torch.no_grad()
def whiten_by_views(network: nn.Module, windows_NCS: Tensor, augmenter: Augmenter, seed: int) -> None:
    """Change a network's last layer so that its embedding's unit is the deviation between views of a window.

    The components come sorted, the one that tells windows best from each other first.

    Args:
        network: its last layer `out` is changed in place; what it measures beside is left as it is.
        windows_NCS: prepared windows, on the network's device.
        augmenter: makes views.
        seed: of the views.
    """
    assert isinstance(network, SpectrogramNetwork)
    last = network.out
    assert isinstance(last, nn.Linear)
    generator = torch.Generator(windows_NCS.device).manual_seed(augmentation_seed(seed, -1, 0))
    parts = []
    for batch in torch.split(windows_NCS, 128):
        views = [batch, augmenter(batch, generator), augmenter(batch, generator)]
        parts.append(torch.stack([network.learned(view).double() for view in views]))
    views_VND = torch.cat(parts, dim=1)
    turn, mean = whitening_map(views_VND)
    last.bias.copy_(turn @ (last.bias.double() - mean))
    last.weight.copy_(turn @ last.weight.double())


def whitening_map(views_VND: Tensor) -> tuple[Tensor, Tensor]:
    """Return the linear map (D, D) and the mean (D,) that whiten by the covariance within views.

    Args:
        views_VND: embeddings (view, window, dim), float64; the first view is the window as it is.
    """
    views, count, dim = views_VND.shape
    deviations = (views_VND - views_VND.mean(0)).flatten(0, 1)
    within = deviations.T @ deviations / max(1, count * (views - 1))
    ridge = _RIDGE * within.diagonal().mean() + 1e-12
    within = within + ridge * torch.eye(dim, dtype=within.dtype, device=within.device)
    values, vectors = torch.linalg.eigh(within)
    unit = vectors / values.sqrt() @ vectors.T
    mean = views_VND[0].mean(0)
    points = (views_VND[0] - mean) @ unit
    _, turns = torch.linalg.eigh(points.T @ points)
    turns = turns.flip(1)
    # The sign of an eigenvector is free: the largest entry is made positive, so that a rerun gives the same.
    largest = turns.gather(0, turns.abs().argmax(0, keepdim=True))
    turns = turns * torch.where(largest < 0, -1.0, 1.0)
    return turns.T @ unit, mean
