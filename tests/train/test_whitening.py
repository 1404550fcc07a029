"""Evening out the embedding: the same information, in components of like variance."""

import numpy as np
import torch
from training_events import LEAD_SAMPLES, NUM_SAMPLES, make_windows

from pipelines.contrastive.whitening import whiten_output
from pipelines.encoders import Encoder, NetworkConfig, build_network, load
from pipelines.encoders.preparation import prepare


def test_the_first_components_become_even_and_nothing_is_lost() -> None:
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
    with torch.no_grad():
        before = network(windows).double()
        whiten_output(network, before, num_even=3)
        after = network(windows).double()
    covariance = torch.cov(after.T)
    variances = covariance.diagonal()
    assert bool((variances[:3] >= 0.49).all())
    assert bool((variances <= 1.01).all())
    assert bool((variances.diff() <= 1e-6).all())
    off_diagonal = covariance - torch.diag(variances)
    assert float(off_diagonal.abs().max()) < 1e-3
    # A linear map gives the old embedding back.
    design = torch.cat([after, torch.ones(60, 1, dtype=torch.float64)], dim=1)
    fit = torch.linalg.lstsq(design, before).solution
    torch.testing.assert_close(design @ fit, before, rtol=1e-3, atol=1e-4)
    encoder = Encoder(config, network)
    np.testing.assert_allclose(load(encoder.to_bytes()).embed(raw), after.numpy(), rtol=1e-3, atol=1e-4)
