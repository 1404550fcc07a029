"""Encoders: what they do not depend on, what they are stored as, and the baselines against scikit-learn."""

import io
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies
from sklearn.decomposition import PCA

from pipelines.encoders import BASELINES, NETWORKS, Encoder, NetworkConfig, ProjectionHead, build_network, load
from pipelines.encoders.baselines import FEATURE_NAMES, SpectrogramPca, hand_features
from pipelines.encoders.preparation import band_matrix, prepare, standardise
from pipelines.train.baselines import fit_features, fit_pca

SAMPLES, LEAD, RATE = 512, 128, 50.0
KINDS = sorted(NETWORKS | BASELINES)


def config(kind: str, **changes: object) -> NetworkConfig:
    values = {"num_samples": SAMPLES, "rate_hz": RATE, "lead_samples": LEAD, "width": 8, "dim": 6, "num_frames": 32}
    if kind == "pca":
        # Its fit takes the third power of the number of cells.
        values |= {"num_bands": 12, "num_frames": 16}
    return NetworkConfig(kind=kind, **(values | changes))


def encoder(kind: str, **changes: object) -> Encoder:
    torch.manual_seed(1)
    network = build_network(config(kind, **changes))
    if isinstance(network, SpectrogramPca):
        fit_pca(network, prepare(torch.from_numpy(windows(40)), LEAD))
    return Encoder(network.config, network)


def windows(count: int, seed: int = 0, samples: int = SAMPLES, lead: int = LEAD) -> np.ndarray:
    random = np.random.default_rng(seed)
    time = np.arange(samples) - lead
    burst = np.where(time >= 0, np.exp(-time / 40.0) * np.sin(time * random.uniform(0.3, 1.5, (count, 1))), 0)
    direction = random.standard_normal((count, 3, 1))
    return (random.standard_normal((count, 3, samples)) + 12 * direction * burst[:, None]).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_an_embedding_depends_on_its_window_alone(kind: str) -> None:
    built, x = encoder(kind), windows(9)
    together = built.embed(x)
    apart = np.concatenate([built.embed(one[None]) for one in x])
    np.testing.assert_allclose(apart, together, rtol=1e-3, atol=1e-4)
    assert np.array_equal(built.embed(x), together)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factor", [1e-9, 1e6])
def test_units_do_not_matter(kind: str, factor: float) -> None:
    built, x = encoder(kind), windows(6)
    np.testing.assert_allclose(built.embed(np.float32(factor) * x), built.embed(x), rtol=2e-2, atol=5e-3)


@pytest.mark.parametrize("kind", sorted(NETWORKS))
def test_amplitude_is_passed_on_where_it_is_asked_for(kind: str) -> None:
    built, x = encoder(kind, log_amplitude=True), windows(4)
    assert np.abs(built.embed(1000 * x) - built.embed(x)).max() > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_an_offset_does_not_matter(kind: str) -> None:
    built, x = encoder(kind), windows(6)
    np.testing.assert_allclose(built.embed(x + 500), built.embed(x), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_dead_component_counts_as_a_missing_one(kind: str) -> None:
    built, x = encoder(kind), windows(6)
    missing, dead = x.copy(), x.copy()
    missing[:, 0], dead[:, 0] = np.nan, 3.0
    np.testing.assert_allclose(built.embed(dead), built.embed(missing), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_windows_without_data_give_finite_embeddings(kind: str) -> None:
    x = windows(5)
    x[0], x[1], x[2, :, 40:] = np.nan, 0.0, np.nan
    x[3, 1:] = np.nan
    assert np.isfinite(encoder(kind).embed(x)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_storing_and_loading_keeps_every_bit(kind: str, tmp_path) -> None:
    built, x = encoder(kind), windows(4)
    (tmp_path / "encoder.safetensors").write_bytes(built.to_bytes())
    for again in (load(built.to_bytes()), load(tmp_path / "encoder.safetensors")):
        assert again.content_hash == built.content_hash
        assert again.config == built.config
        assert again.dim == built.dim
        assert np.array_equal(again.embed(x), built.embed(x))


def test_the_content_hash_changes_with_weights_and_configuration() -> None:
    first = encoder("spectrogram")
    torch.manual_seed(2)
    other = Encoder(first.config, build_network(first.config))
    torch.manual_seed(1)
    faster = Encoder(config("spectrogram", rate_hz=51.0), build_network(config("spectrogram")))
    assert len({first.content_hash, other.content_hash, faster.content_hash}) == 3


def test_a_pickle_is_not_opened() -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return pytest.fail, ("the file was unpickled",)

    buffer = io.BytesIO()
    torch.save({"weights": Trap()}, buffer)
    for content in (pickle.dumps(Trap()), buffer.getvalue(), b"", b"\x00" * 64):
        with pytest.raises(ValueError, match="no Firnline encoder"):
            load(content)


def test_windows_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"takes \(n, 3, 512\) at 50 Hz"):
        encoder("spectrogram").embed(windows(2, samples=400))


@given(samples=strategies.integers(64, 4000), lead_share=strategies.floats(0, 0.9), count=strategies.integers(0, 3))
@settings(max_examples=20, deadline=None)
def test_any_window_length_and_lead_works(samples: int, lead_share: float, count: int) -> None:
    lead = int(lead_share * samples)
    for kind in KINDS:
        torch.manual_seed(0)
        shape = config(kind, num_samples=samples, lead_samples=lead)
        built = Encoder(shape, build_network(shape))
        embeddings = built.embed(windows(count, samples=samples, lead=lead))
        assert embeddings.shape == (count, built.dim)
        assert np.isfinite(embeddings).all()


def test_preparing_takes_the_microseism_out_and_makes_the_noise_white() -> None:
    random = np.random.default_rng(4)
    time = np.arange(3000) / 100
    microseism = 300 * np.sin(2 * np.pi * 0.2 * time + random.uniform(0, 6, (16, 3, 1)))
    spectrum = np.fft.rfft(random.standard_normal((16, 3, 3000)))
    coloured = np.fft.irfft(spectrum / np.maximum(np.fft.rfftfreq(3000, 0.01), 0.1))
    prepared = prepare(torch.from_numpy(microseism + coloured), 500)
    power = torch.fft.rfft(prepared[..., 60:-60]).abs().square().mean((0, 1))
    frequency = np.fft.rfftfreq(2880, 0.01)
    octaves = [float(power[(frequency >= low) & (frequency < 2 * low)].mean()) for low in (3, 6, 12, 24)]
    assert max(octaves) / min(octaves) < 2.5
    # It was a hundred million times stronger; what is left rings at the edges.
    assert float(power[frequency < 0.5].mean()) < 5 * min(octaves)


def test_preparing_keeps_absent_samples_absent() -> None:
    x = torch.from_numpy(windows(3))
    x[0, 1], x[1, :, 200:220] = torch.nan, torch.nan
    prepared = prepare(x, LEAD)
    assert torch.equal(torch.isnan(prepared), torch.isnan(x))


def test_standardised_windows_have_unit_energy_over_present_samples() -> None:
    x = torch.from_numpy(windows(5))
    x[1, 2], x[2, :, :50] = torch.nan, torch.nan
    standard, present, alive, log_rms = standardise(x)
    energy = (standard.square() * present).sum((1, 2)) / present.sum((1, 2))
    torch.testing.assert_close(energy, torch.ones(5), rtol=1e-4, atol=0)
    assert alive.sum().item() == 14
    _, _, _, louder = standardise(100 * x)
    torch.testing.assert_close(louder - log_rms, torch.full((5,), 2.0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("bands", "length"), [(32, 128), (16, 64), (64, 128), (8, 16)])
def test_bands_average_the_spectrum(bands: int, length: int) -> None:
    weights = band_matrix(bands, length)
    torch.testing.assert_close(weights.sum(1), torch.ones(bands, dtype=torch.float64))
    assert bool((weights >= 0).all())
    centres = weights @ torch.arange(length // 2 + 1, dtype=torch.float64)
    assert bool((centres.diff() > -1e-9).all())


def test_pca_is_that_of_scikit_learn() -> None:
    x = prepare(torch.from_numpy(windows(40)), LEAD)
    baseline = SpectrogramPca(config("pca"))
    fit_pca(baseline, x)
    pictures = baseline.pooled(x).flatten(1).numpy()
    theirs = PCA(6, svd_solver="full").fit_transform(pictures)
    ours = baseline(x).numpy()
    signs = np.sign((ours * theirs).sum(0))
    np.testing.assert_allclose(ours, theirs * signs, rtol=1e-2, atol=1e-3 * np.abs(theirs).max())


def test_features_have_a_unit_spread_and_know_frequencies() -> None:
    time = (np.arange(SAMPLES) - LEAD) / RATE
    noise = np.random.default_rng(0).standard_normal((20, 3, SAMPLES)) * 0.05
    tones = np.where(time >= 0, np.sin(2 * np.pi * np.linspace(4, 20, 20)[:, None] * time), 0)[:, None]
    x = prepare(torch.from_numpy((tones + noise).astype(np.float32)), LEAD)
    features = hand_features(x, RATE, LEAD)
    dominant = features[:, FEATURE_NAMES.index("dominant_frequency")] * RATE / 2
    np.testing.assert_allclose(dominant.numpy(), np.linspace(4, 20, 20), atol=1.0)
    baseline = build_network(config("features"))
    fit_features(baseline, x)
    fitted = baseline(x)
    torch.testing.assert_close(fitted.mean(0), torch.zeros(len(FEATURE_NAMES)), rtol=0, atol=1e-3)


def test_the_projection_head_is_no_part_of_an_encoder() -> None:
    head = {name for name, _ in ProjectionHead(6, 8, 4).named_parameters()}
    for kind in NETWORKS:
        assert not head & {name for name, _ in build_network(config(kind)).named_parameters()}
