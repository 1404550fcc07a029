"""A score of an encoder that needs no label and does not depend on the augmentations that it was trained with."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.contrastive.augmentations import build_augmenter
from pipelines.contrastive.quality import effective_rank, uniformity
from pipelines.encoders import Encoder

# The disturbances that every encoder is judged by: no class of events may depend on them.
DISTURBANCES: dict[str, dict[str, object]] = {
    "time_shift": {"probability": 1.0, "lead_share": (-0.4, 0.4)},
    "polarity": {"probability": 0.5},
    "rotation": {"probability": 1.0, "degrees": (0.0, 360.0)},
    "gain": {"probability": 1.0, "db": (-6.0, 6.0), "component_db": (-3.0, 3.0)},
    "coloured_noise": {"probability": 0.5, "lowest_snr_db": 16.0, "exponent": (0.0, 1.0)},
    "real_noise": {"probability": 1.0, "lowest_snr_db": 14.0},
    "component_drop": {"probability": 0.3, "max_components": 1},
}


def cluster_stability(
    encoder: Encoder, windows: NDArray[np.float32], *, num_clusters: int, seed: int
) -> dict[str, float]:
    """Return how well clusters survive what should not matter.

    The windows are disturbed (shift, turn, noise of other windows, a lost component) and clustered twice, as they are
    and disturbed, with the same number of clusters; `stability` is the adjusted Rand index of the two partitions. An
    encoder that mixes events up, or that clusters by noise level or missing data, scores low; so does one that has
    collapsed, whose clusters are arbitrary.

    Returns:
        stability (1 is perfect, 0 is chance), effective_rank and uniformity of the embeddings.
    """
    augmenter = build_augmenter("amplitude", DISTURBANCES, encoder.config.lead_samples)
    generator = torch.Generator().manual_seed(seed)
    plain = torch.from_numpy(encoder.embed(windows))
    disturbed_windows = torch.cat(
        [
            # On the host, so that a GPU's windows are disturbed by the same random numbers.
            augmenter(encoder.prepare(windows[start : start + 128]).cpu(), generator)
            for start in range(0, len(windows), 128)
        ]
    )
    disturbed = torch.from_numpy(encoder.embed_prepared(disturbed_windows.to(encoder.device)))
    clusters = min(num_clusters, max(2, len(windows) // 4))
    scores = [
        adjusted_rand(kmeans(plain, clusters, seed + turn), kmeans(disturbed, clusters, seed + turn))
        for turn in range(3)
    ]
    return {
        "stability": float(np.mean(scores)),
        "final_effective_rank": effective_rank(plain),
        "final_uniformity": uniformity(plain) if len(plain) > 1 else 0.0,
    }


def kmeans(points_ND: Tensor, num_clusters: int, seed: int, *, restarts: int = 4, iterations: int = 50) -> Tensor:
    """Return the labels of the best of a few k-means fits (k-means++ starts, Lloyd), for scores on small samples."""
    generator = torch.Generator().manual_seed(seed)
    points = points_ND.double()
    best: tuple[float, Tensor] | None = None
    for _ in range(restarts):
        centres = points[torch.randint(len(points), (1,), generator=generator)]
        for _ in range(num_clusters - 1):
            nearest = torch.cdist(points, centres).amin(1).square() + 1e-30
            centres = torch.cat([centres, points[torch.multinomial(nearest, 1, generator=generator)]])
        labels = torch.zeros(len(points), dtype=torch.long)
        for _ in range(iterations):
            updated = torch.cdist(points, centres).argmin(1)
            if bool((updated == labels).all()):
                break
            labels = updated
            members = torch.nn.functional.one_hot(labels, num_clusters).double()
            counts = members.sum(0).clamp(min=1)
            means = members.T @ points / counts[:, None]
            centres = torch.where((members.sum(0) > 0)[:, None], means, centres)
        inertia = float(torch.cdist(points, centres).amin(1).square().sum())
        if best is None or inertia < best[0]:
            best = (inertia, labels)
    assert best is not None
    return best[1]


def adjusted_rand(first: Tensor, second: Tensor) -> float:
    """Return the Rand index of two partitions adjusted for chance (Hubert & Arabie, 1985)."""
    table = torch.zeros(int(first.max()) + 1, int(second.max()) + 1, dtype=torch.double)
    table.index_put_((first, second), torch.ones(len(first), dtype=torch.double), accumulate=True)

    def pairs(counts: Tensor) -> float:
        return float((counts * (counts - 1) / 2).sum())

    both, rows, columns = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
    expected = rows * columns / max(1.0, len(first) * (len(first) - 1) / 2)
    largest = (rows + columns) / 2
    return 1.0 if largest == expected else (both - expected) / (largest - expected)
