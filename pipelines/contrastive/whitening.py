"""Turns a trained embedding to its principal components and evens them out, inside the network's last layer.

Contrastive training spreads what it learned over directions of very unequal variance, and k-means sees little but the
strongest. Nothing is lost: the new embedding is an invertible linear map of the old one.
"""

import torch
from torch import Tensor, nn


@torch.no_grad()
def whiten_output(network: nn.Module, embeddings_ND: Tensor, num_even: int) -> None:
    """Change a network's last layer so that its embedding has even principal components.

    Component i, of variance v_i (sorted, largest first), is divided by sqrt(v_i + v_k) with k = `num_even`: the first k
    come out with variances between one half and one, those behind fall off as before.

    Args:
        network: ends in a linear layer `out`; changed in place.
        embeddings_ND: its embeddings of many windows.
        num_even: components that are evened out; fewer where the embedding has not so many.
    """
    last = network.out
    assert isinstance(last, nn.Linear)
    points = embeddings_ND.double()
    mean = points.mean(0)
    centred = points - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred / max(1, len(points) - 1))
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    # The sign of an eigenvector is free: the largest entry is made positive, so that a rerun gives the same.
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    vectors = vectors * torch.where(largest < 0, -1.0, 1.0)
    level = values[min(num_even, len(values)) - 1].clamp(min=1e-12)
    turn = (vectors / (values + level).sqrt()).T
    last.bias.copy_(turn @ (last.bias.double() - mean))
    last.weight.copy_(turn @ last.weight.double())
