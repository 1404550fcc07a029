"""The degree of polarisation against eigenvalues and closed forms, and what it says of windows."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pipelines.encoders import NetworkConfig, build_network
from pipelines.encoders.polarisation import LinearMotion, squared_degree
from pipelines.encoders.preparation import frames_of, prepare

SAMPLES, LEAD = 1500, 300


@given(st.integers(0, 2**32 - 1), st.integers(2, 3), st.integers(1, 12))
def test_the_degree_is_that_of_the_eigenvalues_of_the_spectral_matrix(seed, components, frames):
    rng = np.random.default_rng(seed)
    spectra = np.zeros((1, 3, 1, frames), dtype=np.complex128)
    spectra[:, :components] = rng.normal(size=(components, 1, frames)) + 1j * rng.normal(size=(components, 1, frames))
    degree = squared_degree(torch.from_numpy(spectra), nn.AvgPool1d(frames))
    x = spectra[0, :components, 0]
    values = np.linalg.eigvalsh(x @ x.conj().T / frames)
    pairs = [(one, other) for one in range(components) for other in range(one)]
    # Samson & Olson (1980), from the differences of the eigenvalues.
    expected = sum((values[one] - values[other]) ** 2 for one, other in pairs)
    expected /= (components - 1) * values.sum() ** 2
    assert float(degree) == pytest.approx(expected, abs=1e-9)


def motion(window):
    prepared = prepare(torch.from_numpy(window[None].astype(np.float32)), LEAD)
    linear_motion = LinearMotion(window.shape[-1], LEAD, 32, 96)
    return float(linear_motion(frames_of(prepared, linear_motion.fft_length, linear_motion.hop))[0])


def noisy(rng, noise=0.01):
    return noise * rng.normal(size=(3, SAMPLES))


def burst(rng, width=200):
    signal = np.zeros(SAMPLES)
    signal[LEAD : LEAD + width] = rng.normal(size=width) * np.hanning(width)
    return signal


def test_one_waveform_on_all_components_or_on_one_is_linear_and_independent_ones_are_not():
    rng = np.random.default_rng(0)
    for direction in ([1.0, 1.0, 1.0], [0.5, -2.0, 1.0], [0.0, 0.0, 1.0]):
        one_line = noisy(rng) + np.outer(direction, burst(rng))
        assert motion(one_line) > 0.8
    step = noisy(rng)
    step[:, LEAD:] += 1.0
    assert motion(step) > 0.8
    independent = noisy(rng) + np.stack([burst(rng) for _ in range(3)])
    assert motion(independent) < 0.15


def test_it_depends_neither_on_gain_nor_on_polarity_nor_on_the_azimuth():
    rng = np.random.default_rng(1)
    window = noisy(rng) + np.outer([1, 2, 3], burst(rng)) + 0.5 * np.stack([burst(rng) for _ in range(3)])
    value = motion(window)
    assert 0.05 < value < 0.9
    turned = window.copy()
    turned[:2] = np.array([[0.6, 0.8], [-0.8, 0.6]]) @ window[:2]
    for other in (1e6 * window, -window, turned):
        assert motion(other) == pytest.approx(value, abs=1e-3)


def test_noise_alone_one_component_and_nothing_at_all_say_nothing():
    rng = np.random.default_rng(2)
    assert motion(noisy(rng)) < 0.2
    single = noisy(rng) + np.outer([0, 0, 1], burst(rng))
    single[:2] = np.nan
    assert motion(single) == 0
    assert motion(np.full((3, SAMPLES), np.nan)) == 0
    assert motion(np.zeros((3, SAMPLES))) == 0


def test_the_edge_of_a_gap_is_no_signal():
    rng = np.random.default_rng(3)
    window = noisy(rng) + np.stack([burst(rng) for _ in range(3)]) + np.array([[5.0], [-3.0], [4.0]])
    value = motion(window)
    gap = window.copy()
    gap[:, 900:960] = np.nan
    assert motion(gap) == pytest.approx(value, abs=0.05)


def test_independent_signals_of_unequal_power_have_the_degree_of_their_powers():
    """In closed form: the eigenvalues are the powers, 1 and s, so that P = (1 - s) / (1 + s)."""
    rng = np.random.default_rng(4)
    count = 200_000
    for share in (0.02, 0.1, 0.3, 1.0):
        line = rng.normal(size=count) + 1j * rng.normal(size=count)
        other = np.sqrt(share) * (rng.normal(size=count) + 1j * rng.normal(size=count))
        spectra = torch.from_numpy(np.stack([line, other])[None, :, None])
        degree = squared_degree(spectra, nn.AvgPool1d(count))
        assert float(degree) == pytest.approx(((1 - share) / (1 + share)) ** 2, abs=0.01)


def test_the_last_component_of_an_embedding_is_its_share_of_the_learned_length():
    torch.manual_seed(0)
    rng = np.random.default_rng(5)
    shape = {"num_samples": SAMPLES, "rate_hz": 100.0, "lead_samples": LEAD, "width": 8, "dim": 16}
    windows = np.stack([noisy(rng) + np.outer([1, 1, 1], burst(rng)), noisy(rng)]).astype(np.float32)
    prepared = prepare(torch.from_numpy(windows), LEAD)
    network = build_network(NetworkConfig(kind="spectrogram", polarisation=2.0, **shape)).eval()
    plain = build_network(NetworkConfig(kind="spectrogram", **shape)).eval()
    with torch.no_grad():
        embedding = network(prepared)
        assert embedding.shape == plain(prepared).shape == (2, 16)
    learned = embedding[:, :-1].norm(dim=1)
    expected = [2 * motion(window) for window in windows]
    assert (embedding[:, -1] / learned).tolist() == pytest.approx(expected, rel=1e-4)
