"""Augmentations: what each leaves alone, that absent samples stay absent, and that a view depends on its seed alone."""

import inspect
import math

import numpy as np
import pytest
import torch
from hypothesis import given, strategies
from hypothesis import settings as hypothesis_settings
from training_events import LEAD_SAMPLES, make_windows

from pipelines.config.augmentation import AugmentationSettings
from pipelines.contrastive.augmentations import (
    FAMILIES,
    PRESETS,
    BandPass,
    BandStop,
    ColouredNoise,
    ComponentDrop,
    Gain,
    Polarity,
    RealNoise,
    Rotation,
    SpectralResponse,
    TimeShift,
    TimeStretch,
    build_augmenter,
)
from pipelines.encoders import NETWORKS, NetworkConfig, build_network
from pipelines.encoders.preparation import prepare

DEFAULTS = AugmentationSettings().model_dump()
ALWAYS = {name: values | {"probability": 1.0} for name, values in DEFAULTS.items()}
NAMES = [name for family in FAMILIES.values() for name in family]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def prepared() -> torch.Tensor:
    windows, _ = make_windows(24)
    return prepare(torch.from_numpy(windows), LEAD_SAMPLES)


def whole(prepared: torch.Tensor) -> torch.Tensor:
    return prepared[3:]


def alone(name: str, **changes: object) -> torch.nn.Module:
    others = {other: values | {"probability": 0.0} for other, values in DEFAULTS.items()}
    return build_augmenter("both", others | {name: ALWAYS[name] | changes}, LEAD_SAMPLES)


@pytest.mark.parametrize("name", NAMES)
def test_each_augmentation_has_its_parameters_in_the_configuration(name: str) -> None:
    kind = next(family[name] for family in FAMILIES.values() if name in family)
    accepted = set(inspect.signature(kind.__init__).parameters) - {"self", "lead_samples"}
    assert set(DEFAULTS[name]) == accepted


@pytest.mark.parametrize("name", NAMES)
def test_a_view_is_the_same_for_a_seed_and_another_for_another(prepared: torch.Tensor, name: str) -> None:
    augmenter = alone(name)
    first, again, other = (augmenter(prepared, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.nan_to_num(-1), again.nan_to_num(-1))
    if name not in ("polarity", "coloured_noise", "real_noise"):
        assert not torch.equal(first.nan_to_num(-1), other.nan_to_num(-1))
    if name not in ("coloured_noise", "real_noise"):
        assert not torch.equal(first.nan_to_num(-1), prepared.nan_to_num(-1))


@pytest.mark.parametrize("name", NAMES)
def test_probability_zero_changes_nothing(prepared: torch.Tensor, name: str) -> None:
    view = alone(name, probability=0.0)(prepared, generator())
    assert torch.equal(view.nan_to_num(-1), prepared.nan_to_num(-1))


@given(seed=strategies.integers(0, 2**31), preset=strategies.sampled_from(sorted(PRESETS)))
@hypothesis_settings(max_examples=15, deadline=None)
def test_absent_samples_never_reach_a_loss(seed: int, preset: str) -> None:
    random = np.random.default_rng(seed)
    windows, _ = make_windows(6, seed=seed)
    for window in windows:
        start, length = random.integers(0, 256), random.integers(0, 256)
        window[random.integers(3), start : start + length] = np.nan
    windows[0] = np.nan
    windows[1] = 0.0
    windows[2, 1] = 7.0
    view = build_augmenter(preset, ALWAYS, LEAD_SAMPLES)(
        prepare(torch.from_numpy(windows), LEAD_SAMPLES), generator(seed)
    )
    for kind in NETWORKS:
        torch.manual_seed(0)
        config = NetworkConfig(kind=kind, num_samples=256, rate_hz=50, lead_samples=64, width=8, dim=4, num_frames=16)
        assert torch.isfinite(build_network(config)(view)).all()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("time_shift", "time_stretch")])
def test_absent_stays_absent_where_time_is_not_changed(prepared: torch.Tensor, name: str) -> None:
    view = alone(name)(prepared, generator())
    was, now = torch.isnan(prepared), torch.isnan(view)
    assert bool((now | ~was).all())
    if name != "component_drop":
        assert torch.equal(was, now)


def test_gain_keeps_the_waveform_and_stays_in_its_range(prepared: torch.Tensor) -> None:
    view = Gain(probability=1, db=(-6, 6), component_db=(0, 0))(whole(prepared), generator())
    ratio = (view / whole(prepared)).nan_to_num(0)
    gain = ratio.abs().amax((1, 2))
    assert float(gain.min()) >= 10 ** (-6 / 20) - 1e-5
    assert float(gain.max()) <= 10 ** (6 / 20) + 1e-5
    torch.testing.assert_close(view, whole(prepared) * gain[:, None, None], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["coloured", "real"])
def test_noise_brings_windows_to_ratios_between_the_lowest_and_their_own(kind: str) -> None:
    windows = 0.1 * torch.randn((200, 3, 2000), generator=generator(2))
    windows[:, :, 500:520] += 100
    if kind == "coloured":
        noisy = ColouredNoise(probability=1, lowest_snr_db=20, exponent=(0, 2), lead_samples=500)
    else:
        noisy = RealNoise(probability=1, lowest_snr_db=20, lead_samples=500)
    view = noisy(windows, generator())
    rms = view[..., :500].square().mean((1, 2)).sqrt()
    ratio_db = 20 * torch.log10(windows.abs().amax((1, 2)) / rms)
    # The windows' own ratio is 60 dB; a coloured noise's RMS over a quarter of the window is known to a few dB.
    assert 15 < float(ratio_db.min()) < 24
    assert 57 < float(ratio_db.max()) < 61
    assert 35 < float(ratio_db.median()) < 45


def test_noise_is_not_added_to_a_window_that_is_as_noisy_already() -> None:
    windows = torch.randn((10, 3, 2000), generator=generator(2))
    noisy = ColouredNoise(probability=1, lowest_snr_db=30, exponent=(0, 2), lead_samples=500)
    torch.testing.assert_close(noisy(windows, generator()), windows)


def test_a_component_is_always_left(prepared: torch.Tensor) -> None:
    view = prepared
    for seed in range(5):
        view = ComponentDrop(probability=1, max_components=2)(view, generator(seed))
        assert bool(torch.isfinite(view).any(-1).any(-1).all())
    assert bool((torch.isfinite(view).any(-1).sum(-1) == 1).all())


def test_polarity_turned_twice_is_the_window(prepared: torch.Tensor) -> None:
    turn = Polarity(probability=1)
    torch.testing.assert_close(turn(turn(prepared, generator()), generator()), prepared, equal_nan=True)


def test_rotation_keeps_horizontal_energy_and_the_vertical(prepared: torch.Tensor) -> None:
    view = Rotation(probability=1, degrees=(0, 360))(whole(prepared), generator())
    before, after = whole(prepared)[:, :2].square().sum(1), view[:, :2].square().sum(1)
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3 * float(before.max()))
    torch.testing.assert_close(view[:, 2], whole(prepared)[:, 2])


def test_a_quarter_turn_exchanges_the_horizontals(prepared: torch.Tensor) -> None:
    view = Rotation(probability=1, degrees=(90, 90))(whole(prepared), generator())
    torch.testing.assert_close(view[:, 0], whole(prepared)[:, 1], rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(view[:, 1], -whole(prepared)[:, 0], rtol=1e-3, atol=1e-2)


def test_a_window_without_a_horizontal_is_not_rotated(prepared: torch.Tensor) -> None:
    assert bool(torch.isnan(prepared[1, 0]).all())
    view = Rotation(probability=1, degrees=(45, 45))(prepared, generator())
    torch.testing.assert_close(view[1], prepared[1], equal_nan=True)


def test_a_shift_moves_the_onset_within_the_lead() -> None:
    spike = torch.zeros(64, 3, 256)
    spike[:, :, LEAD_SAMPLES] = 1.0
    view = TimeShift(probability=1, lead_share=(-0.5, 0.5), lead_samples=LEAD_SAMPLES)(spike, generator())
    place = view[:, 0].argmax(-1)
    assert int(place.min()) >= LEAD_SAMPLES // 2
    assert int(place.max()) <= LEAD_SAMPLES + LEAD_SAMPLES // 2
    assert len(place.unique()) > 10


def test_a_stretch_keeps_the_onset_and_scales_frequencies() -> None:
    time = (torch.arange(512) - 64) / 50.0
    tone = torch.sin(2 * math.pi * 5 * time).expand(4, 3, 512)
    view = TimeStretch(probability=1, factor=(1.5, 1.5), lead_samples=64)(tone, generator())
    expected = torch.sin(2 * math.pi * 7.5 * time)
    torch.testing.assert_close(view[0, 0, 64:300], expected[64:300], rtol=0, atol=0.12)


def spectrum_gain(augmentation: torch.nn.Module) -> torch.Tensor:
    impulse = torch.zeros(32, 3, 512)
    impulse[:, :, 256] = 1
    return torch.fft.rfft(augmentation(impulse, generator())).abs()[:, 0]


def test_a_band_pass_keeps_its_band_and_halves_power_at_its_corners() -> None:
    gain = spectrum_gain(BandPass(probability=1, low=(0.1, 0.1), high=(0.5, 0.5)))[0]
    frequency = torch.linspace(0, 1, len(gain))
    assert float(gain[(frequency - 0.25).abs().argmin()]) == pytest.approx(1, abs=0.02)
    assert float(gain[(frequency - 0.1).abs().argmin()]) == pytest.approx(math.sqrt(0.5), abs=0.03)
    assert float(gain[(frequency - 0.5).abs().argmin()]) == pytest.approx(math.sqrt(0.5), abs=0.03)
    assert float(gain[(frequency - 0.02).abs().argmin()]) < 0.01


def test_a_band_stop_takes_its_band_out() -> None:
    gain = spectrum_gain(BandStop(probability=1, centre=(0.3, 0.3), octaves=(1, 1)))[0]
    frequency = torch.linspace(0, 1, len(gain))
    assert float(gain[(frequency - 0.3).abs().argmin()]) < 0.4
    assert float(gain[(frequency - 0.05).abs().argmin()]) == pytest.approx(1, abs=0.02)


def test_a_random_response_is_smooth_and_of_the_stated_size() -> None:
    gain_db = 20 * torch.log10(spectrum_gain(SpectralResponse(probability=1, db=(6, 6), knots=8)))
    assert float(gain_db[:, 8:].std()) == pytest.approx(6, abs=2)
    assert float(gain_db[:, 64:].diff(dim=-1).abs().max()) < 1.5


def test_presets_hold_their_families() -> None:
    assert set(PRESETS) == {"amplitude", "frequency", "both"}
    assert "amplitude" not in PRESETS["frequency"]
    assert "frequency" not in PRESETS["amplitude"]
    assert {"amplitude", "frequency"} <= set(PRESETS["both"])


def test_an_impossible_parameter_is_named() -> None:
    with pytest.raises(ValueError, match=r"augmentation\.gain\.db is \[3, -3\]"):
        build_augmenter("both", ALWAYS | {"gain": ALWAYS["gain"] | {"db": (3, -3)}}, LEAD_SAMPLES)
    with pytest.raises(ValueError, match=r"train\.augmentation is 'all'"):
        build_augmenter("all", ALWAYS, LEAD_SAMPLES)
