"""Whitening by views: the same information, scaled by what the views of a window disagree about."""

import numpy as np
import torch
from training_events import LEAD_SAMPLES, NUM_SAMPLES, make_windows

from pipelines.config.augmentation import AugmentationSettings
from pipelines.contrastive.augmentations import build_augmenter
from pipelines.contrastive.whitening import whiten_by_views, whitening_map
from pipelines.encoders import Encoder, NetworkConfig, build_network, load
from pipelines.encoders.preparation import prepare


def test_views_disagree_evenly_afterwards_and_components_are_sorted() -> None:
    generator = torch.Generator().manual_seed(0)
    windows = torch.randn((500, 4), generator=generator, dtype=torch.float64) * torch.tensor([1.0, 10.0, 3.0, 1.0])
    noise = torch.randn((3, 500, 4), generator=generator, dtype=torch.float64) * torch.tensor([0.1, 10.0, 1.0, 1.0])
    turn, mean = whitening_map(windows + noise)
    views = (windows + noise - mean) @ turn.T
    within = (views - views.mean(0)).square().sum((0, 1)) / (2 * 500)
    # The ridge keeps what hardly varies from being blown up.
    assert 0.001 < float(within.min()) <= 1
    assert float(within.max()) < 1.05
    assert bool((views[0].var(0).diff() < 1e-9).all())
    # What varies most between windows, but as much between views of one, does not come first.
    assert int(turn[0].abs().argmax()) != 1


def test_a_whitened_embedding_is_a_linear_map_of_the_old_one_and_is_stored() -> None:
    torch.manual_seed(0)
    config = NetworkConfig(
        kind="spectrogram",
        num_samples=NUM_SAMPLES,
        rate_hz=50,
        lead_samples=LEAD_SAMPLES,
        width=8,
        dim=6,
        num_frames=16,
    )
    network = build_network(config)
    raw, _ = make_windows(60)
    windows = prepare(torch.from_numpy(raw), LEAD_SAMPLES)
    augmenter = build_augmenter("both", AugmentationSettings().model_dump(), LEAD_SAMPLES)
    with torch.no_grad():
        before = network(windows).double()
        whiten_by_views(network, windows, augmenter, seed=0)
        after = network(windows).double()
    design = torch.cat([after, torch.ones(60, 1, dtype=torch.float64)], dim=1)
    fit = torch.linalg.lstsq(design, before).solution
    torch.testing.assert_close(design @ fit, before, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(after.mean(0), torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-3)
    encoder = Encoder(config, network)
    np.testing.assert_allclose(load(encoder.to_bytes()).embed(raw), after.numpy(), rtol=1e-3, atol=1e-3)
