"""The contrastive loss NT-Xent with the negatives of all ranks and exact gradients.

Chen et al. (2020), A Simple Framework for Contrastive Learning of Visual Representations, equation 1.
"""

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional


class _GatherRows(torch.autograd.Function):
    """Join the rows of all ranks; each rank's gradient sums what all ranks contribute for its rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.rank, ctx.count = dist.get_rank(), rows.shape[0]
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous()
        dist.all_reduce(total)
        return total[ctx.rank * ctx.count : (ctx.rank + 1) * ctx.count]


def gather_rows(rows: Tensor) -> Tensor:
    """Return the rows of all ranks in the order of ranks, with gradients; the same tensor without other ranks.

    Every rank must have the same number of rows.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    gathered: Tensor = _GatherRows.apply(rows)  # type: ignore[no-untyped-call]
    return gathered


def nt_xent(first_BD: Tensor, second_BD: Tensor, temperature: float) -> Tensor:
    """Return this rank's mean NT-Xent over its two views of B windows, negatives from all ranks.

    The mean over ranks is the loss of one process on the joined batch, and so is the mean of the gradients, which is
    what DistributedDataParallel forms: no factor of the world size is left to correct.

    Args:
        first_BD: projections of the first views, any length; the same B on every rank.
        second_BD: projections of the second views, row by row of the same windows.
        temperature: divides the cosine similarities.

    Returns:
        A scalar of at least float32.
    """
    wide = torch.promote_types(first_BD.dtype, torch.float32)
    first = functional.normalize(first_BD.to(wide), dim=1)
    second = functional.normalize(second_BD.to(wide), dim=1)
    count = first.shape[0]
    rank, world = 0, 1
    if dist.is_available() and dist.is_initialized():
        rank, world = dist.get_rank(), dist.get_world_size()
    candidates = gather_rows(torch.stack([first, second], dim=1)).flatten(0, 1)
    anchors = torch.stack([first, second], dim=1).flatten(0, 1)
    with torch.autocast(anchors.device.type, enabled=False):
        similarity = anchors @ candidates.T / temperature
    rows = torch.arange(2 * count, device=anchors.device)
    own = rows + 2 * count * rank
    assert similarity.shape == (2 * count, 2 * count * world)
    similarity = similarity.index_put((rows, own), similarity.new_tensor(-math.inf))
    positive = similarity[rows, own ^ 1]
    return (torch.logsumexp(similarity, dim=1) - positive).mean()


def num_candidates(global_batch_size: int) -> int:
    """Return how many windows an anchor is compared with: the other view of it and both of all others."""
    return 2 * global_batch_size - 1
