"""Fits the baselines of `pipelines.encoders.baselines` to prepared windows."""

import torch
from torch import Tensor

from pipelines.encoders.baselines import ConvolutionalAutoencoder, HandFeatures, SpectrogramPca, hand_features

_BATCH = 256


@torch.no_grad()
def fit_features(baseline: HandFeatures, windows_NCS: Tensor) -> None:
    """Set the mean and deviation by which hand-made features are standardised."""
    config = baseline.config
    features = torch.cat(
        [hand_features(batch, config.rate_hz, config.lead_samples) for batch in torch.split(windows_NCS, _BATCH)]
    )
    baseline.mean.copy_(features.mean(0))
    baseline.deviation.copy_(features.std(0, correction=0).clamp(min=1e-6))


@torch.no_grad()
def fit_pca(baseline: SpectrogramPca, windows_NCS: Tensor) -> None:
    """Set the mean and the principal components of pooled log spectrograms.

    Raises:
        ValueError: there are fewer windows than components.
    """
    dim = len(baseline.components)
    if len(windows_NCS) < dim:
        raise ValueError(
            f"train.dim is {dim}, but there are only {len(windows_NCS)} windows: PCA needs at least train.dim."
        )
    # The covariance is summed over batches: pictures of all windows together need not fit in memory.
    length = baseline.mean.shape[0]
    total, products = torch.zeros(length, dtype=torch.float64), torch.zeros(length, length, dtype=torch.float64)
    for batch in torch.split(windows_NCS, _BATCH):
        pictures = baseline.pooled(batch).flatten(1).double()
        total += pictures.sum(0)
        products += pictures.T @ pictures
    mean = total / len(windows_NCS)
    covariance = products / len(windows_NCS) - torch.outer(mean, mean)
    _, vectors = torch.linalg.eigh(covariance)
    components = vectors[:, -dim:].flip(1).T
    # The sign of an eigenvector is free: the largest entry is made positive, so that a rerun gives the same.
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    baseline.mean.copy_(mean)
    baseline.components.copy_(components * torch.sign(largest))


def autoencoder_epoch(
    baseline: ConvolutionalAutoencoder, optimizer: torch.optim.Optimizer, windows_NCS: Tensor, order: Tensor, batch: int
) -> float:
    """Train the autoencoder one pass in the given order and return the mean squared error of its pictures."""
    losses = []
    for chosen in torch.split(order, batch):
        picture, drawn = baseline.reconstruct(windows_NCS[chosen])
        loss = (picture - drawn).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    return sum(losses) / len(losses)
