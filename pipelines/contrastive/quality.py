"""How good an embedding is without any label.

Alignment and uniformity: Wang & Isola (2020). RankMe: Garrido et al. (2023).
"""

import torch
from torch import Tensor
from torch.nn import functional


def alignment(first_BD: Tensor, second_BD: Tensor) -> float:
    """Return the mean squared distance of the two views of a window on the unit sphere; 0 is perfect, 2 is chance."""
    difference = functional.normalize(first_BD.double(), dim=1) - functional.normalize(second_BD.double(), dim=1)
    return float(difference.square().sum(1).mean())


def uniformity(embedding_BD: Tensor) -> float:
    """Return log of the mean Gaussian potential of all pairs on the unit sphere; lower is more uniform."""
    distances = torch.pdist(functional.normalize(embedding_BD.double(), dim=1))
    return float(torch.exp(-2 * distances.square()).mean().log())


def effective_rank(embedding_BD: Tensor) -> float:
    """Return RankMe: the exponential of the entropy of the normalised singular values, between 1 and the dimension."""
    values = torch.linalg.svdvals(embedding_BD.double())
    share = values / values.sum().clamp(min=1e-12) + 1e-12
    return float(torch.exp(-(share * share.log()).sum()))
