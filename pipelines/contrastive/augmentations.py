"""Augmentations of prepared windows as batched torch modules, in the four families of the paper's comparison.

Every augmentation draws for each window whether it applies, and how strongly, from a generator on the windows' device.
Windows are (B, 3, sample), rows E, N, Z, absent samples NaN; absent stays absent and never reaches another sample.
Shape suffixes: B window, C component, S sample, F frequency bin.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

Range = tuple[float, float]


def augmentation_seed(seed: int, epoch: int, rank: int) -> int:
    """Return the seed of the generator that one rank draws its augmentations from in one epoch (63 bits)."""
    digest = hashlib.sha256(f"augmentation {seed} {epoch} {rank}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class Augmentation(nn.Module):
    """One augmentation: `change` is applied to the windows that a coin of `probability` chooses."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        if not 0 <= probability <= 1:
            raise ValueError(f"probability is {probability}: it must lie in [0, 1].")
        self.probability = probability

    def forward(self, x_BCS: Tensor, generator: torch.Generator) -> Tensor:
        """Return the windows, some of them changed."""
        return self.into(x_BCS.clone(), generator)

    def into(self, x_BCS: Tensor, generator: torch.Generator, share: float = 1.0) -> Tensor:
        """Return what `forward` does, with `share` times the probability; the windows given may change."""
        probability = self.probability * share
        if probability == 1:
            return self.change(x_BCS, generator)
        chosen_B = _coins(len(x_BCS), probability, x_BCS, generator)
        return _put(x_BCS, chosen_B, lambda some: self.change(some, generator))

    def change(self, x_BCS: Tensor, generator: torch.Generator) -> Tensor:
        """Return every window changed."""
        raise NotImplementedError


class Gain(Augmentation):
    """Multiplies the window by a factor, and each component by one of its own."""

    def __init__(self, *, probability: float, db: Range, component_db: Range) -> None:
        super().__init__(probability)
        self.db, self.component_db = _ordered("db", db), _ordered("component_db", component_db)

    def change(self, x_BCS: Tensor, generator: torch.Generator) -> Tensor:
        """Return every window changed."""
        count = len(x_BCS)
        db = _uniform((count, 1, 1), self.db, x_BCS, generator)
        db = db + _uniform((count, 3, 1), self.component_db, x_BCS, generator)
        return x_BCS * torch.pow(10, db / 20)


class ColouredNoise(Augmentation):
    """Adds Gaussian noise whose power falls with a random power of the frequency, down to a signal-to-noise ratio."""

    def __init__(self, *, probability: float, lowest_snr_db: float, exponent: Range, lead_samples: int) -> None:
        super().__init__(probability)
        self.lowest_snr_db, self.exponent = lowest_snr_db, _ordered("exponent", exponent)
        self.lead_samples = lead_samples

    def change(self, x_BCS: Tensor, generator: torch.Generator) -> Tensor:
        """Return every window changed."""
        count, _, num_samples = x_BCS.shape
        num_bins = num_samples // 2 + 1
        white = torch.randn((2, count, 3, num_bins), generator=generator, device=x_BCS.device, dtype=x_BCS.dtype)
        exponent_B11 = _uniform((count, 1, 1), self.exponent, x_BCS, generator)
        frequency = torch.linspace(0, 1, num_bins, device=x_BCS.device, dtype=x_BCS.dtype).clamp(min=0.01)
        slope = torch.pow(frequency, -0.5 * exponent_B11)
        noise = torch.fft.irfft(torch.complex(white[0], white[1]) * slope, n=num_samples)
        share = _uniform((count, 1, 1), (0.0, 1.0), x_BCS, generator)
        return _add_noise(x_BCS, noise, self.lowest_snr_db, share, self.lead_samples)


class RealNoise(Augmentation):
    """Adds the noise before another window's onset, down to a signal-to-noise ratio.

    It is laid end to end, forwards and backwards in turn.
    """

    def __init__(self, *, probability: float, lowest_snr_db: float, lead_samples: int) -> None:
        super().__init__(probability)
        self.lowest_snr_db = lowest_snr_db
        self.lead_samples = lead_samples

    def change(self, x_BCS: Tensor, generator: torch.Generator) -> Tensor:
        """Return every window changed; none where windows have hardly any lead."""
        count, _, num_samples = x_BCS.shape
        length = self.lead_samples * 3 // 4
        order = torch.randperm(count, generator=generator, device=x_BCS.device)
        share = _uniform((count, 1, 1), (0.0, 1.0), x_BCS, generator)
        if length < 16:
            return x_BCS
        # Preparing tapers the first fiftieth of a window.
        lead = torch.nan_to_num(x_BCS[order][..., min(num_samples // 50, length // 2) : length])
        lead = lead - lead.mean(-1, keepdim=True)
        repeats = -(-num_samples // (2 * lead.shape[-1]))
        noise = torch.cat([lead, lead.flip(-1)], dim=-1).repeat(1, 1, repeats)[..., :num_samples]
        start = int(torch.randint(num_samples, (1,), generator=generator, device=x_BCS.device))
        return _add_noise(x_BCS, noise.roll(start, -1), self.lowest_snr_db, share, self.lead_samples)


class ComponentDrop(Augmentation):
    """Makes up to `max_components` components absent, never the last one present."""

    def __init__(self, *, probability: float, max_components: int) -> None:
        super().__init__(probability)
        if max_components not in (1, 2):
            raise ValueError(f"max_components is {max_components}: it must be 1 or 2.")
        self.max_components = max_components

    def change(self, x_BCS: Tensor, generator: torch.Generator) -> Tensor:
        """Return every window changed."""
        count = len(x_BCS)
        present_BC = torch.isfinite(x_BCS).any(-1)
        draw_BC = torch.rand((count, 3), generator=generator, device=x_BCS.device)
        number_B = torch.randint(1, self.max_components + 1, (count,), generator=generator, device=x_BCS.device)
        # Absent components rank last, so only present ones are dropped; one present component is kept.
        rank_BC = torch.where(present_BC, draw_BC, draw_BC + 2).argsort(-1).argsort(-1)
        number_B = torch.minimum(number_B, (present_BC.sum(-1) - 1).clamp(min=0))
        drop_BC = rank_BC < number_B[:, None]
        return x_BCS.masked_fill(drop_BC[..., None], math.nan)


class SpectralAugmentation(Augmentation):
    """An augmentation that multiplies the spectrum; those that follow each other share one Fourier transform."""

    def gain(self, num_windows: int, frequency_F: Tensor, generator: torch.Generator) -> Tensor:
        """Return the gain (window, 1 or 3, bin) of every window at frequencies in units of the Nyquist frequency."""
        raise NotImplementedError

    def into(self, x_BCS: Tensor, generator: torch.Generator, share: float = 1.0) -> Tensor:
        """Return the windows, some of them filtered."""
        return filter_spectrum(x_BCS, [self], generator, share)


class BandPass(SpectralAugmentation):
    """Keeps a random band with slopes of four poles; corners in units of the Nyquist frequency, drawn by octaves."""

    def __init__(self, *, probability: float, low: Range, high: Range) -> None:
        super().__init__(probability)
        self.low, self.high = _positive("low", low), _positive("high", high)

    def gain(self, num_windows: int, frequency_F: Tensor, generator: torch.Generator) -> Tensor:
        """Return the gain of every window."""
        low = _log_uniform((num_windows, 1, 1), self.low, frequency_F, generator)
        high = _log_uniform((num_windows, 1, 1), self.high, frequency_F, generator)
        return _high_pass(frequency_F, low) * _low_pass(frequency_F, torch.maximum(high, 2 * low))


class BandStop(SpectralAugmentation):
    """Weakens a random band; its centre is drawn by octaves over the spectrum, its width in octaves."""

    def __init__(self, *, probability: float, centre: Range, octaves: Range) -> None:
        super().__init__(probability)
        self.centre, self.octaves = _positive("centre", centre), _positive("octaves", octaves)

    def gain(self, num_windows: int, frequency_F: Tensor, generator: torch.Generator) -> Tensor:
        """Return the gain of every window."""
        centre = _log_uniform((num_windows, 1, 1), self.centre, frequency_F, generator)
        half = torch.pow(2, 0.5 * _uniform((num_windows, 1, 1), self.octaves, frequency_F, generator))
        return 1 - _high_pass(frequency_F, centre / half) * _low_pass(frequency_F, centre * half)


class SpectralResponse(SpectralAugmentation):
    """Multiplies the spectrum by a smooth random response: site, path and source of another event of its kind."""

    def __init__(self, *, probability: float, db: Range, knots: int) -> None:
        super().__init__(probability)
        if knots < 2:
            raise ValueError(f"knots is {knots}: a response needs at least 2.")
        self.db, self.knots = _ordered("db", db), knots

    def gain(self, num_windows: int, frequency_F: Tensor, generator: torch.Generator) -> Tensor:
        """Return the gain of every window: knots even over octaves, joined by straight lines in decibels."""
        size_db = _uniform((num_windows, 1, 1), self.db, frequency_F, generator)
        knot_db = size_db * torch.randn(
            (num_windows, 1, self.knots), generator=generator, device=frequency_F.device, dtype=frequency_F.dtype
        )
        lowest = 1.0 / 64
        position = (torch.log(frequency_F.clamp(min=lowest)) / -math.log(lowest) + 1) * (self.knots - 1)
        left = position.floor().clamp(0, self.knots - 2).long()
        share = position - left
        curve_db = knot_db[..., left] * (1 - share) + knot_db[..., left + 1] * share
        return torch.pow(10, curve_db / 20)


class TimeStretch(Augmentation):
    """Plays the window faster or slower about its onset; factors are drawn by octaves."""

    def __init__(self, *, probability: float, factor: Range, lead_samples: int) -> None:
        super().__init__(probability)
        self.factor = _positive("factor", factor)
        self.lead_samples = lead_samples

    def change(self, x_BCS: Tensor, generator: torch.Generator) -> Tensor:
        """Return every window changed; what lies beyond the window's ends is the window mirrored."""
        count, _, num_samples = x_BCS.shape
        factor = _log_uniform((count, 1), self.factor, x_BCS, generator)
        time = torch.arange(num_samples, device=x_BCS.device, dtype=x_BCS.dtype)
        index = _mirror(self.lead_samples + (time - self.lead_samples) * factor, num_samples - 1)
        left = index.floor()
        near = _take(x_BCS, left.long())
        far = _take(x_BCS, (left.long() + 1).clamp(max=num_samples - 1))
        return torch.lerp(near, far, (index - left)[:, None])


class TimeShift(Augmentation):
    """Moves the window in time by at most `lead_share` of its lead, so that the onset stays well inside."""

    def __init__(self, *, probability: float, lead_share: Range, lead_samples: int) -> None:
        super().__init__(probability)
        self.lead_share = _ordered("lead_share", lead_share)
        if max(abs(value) for value in self.lead_share) > 0.9:
            raise ValueError(f"lead_share is {list(lead_share)}: the onset would leave the window; stay within 0.9.")
        self.lead_samples = lead_samples

    def change(self, x_BCS: Tensor, generator: torch.Generator) -> Tensor:
        """Return every window changed; what lies beyond the window's ends is the window mirrored."""
        count, _, num_samples = x_BCS.shape
        share = _uniform((count, 1), self.lead_share, x_BCS, generator)
        time = torch.arange(num_samples, device=x_BCS.device, dtype=x_BCS.dtype)
        index = _mirror(time - torch.round(share * self.lead_samples), num_samples - 1)
        return _take(x_BCS, index.long())


class Polarity(Augmentation):
    """Turns the window's sign."""

    def change(self, x_BCS: Tensor, generator: torch.Generator) -> Tensor:
        """Return every window changed."""
        return -x_BCS


class Rotation(Augmentation):
    """Turns the horizontals about the vertical; windows that lack a horizontal stay as they are."""

    def __init__(self, *, probability: float, degrees: Range) -> None:
        super().__init__(probability)
        self.degrees = _ordered("degrees", degrees)

    def change(self, x_BCS: Tensor, generator: torch.Generator) -> Tensor:
        """Return every window changed."""
        angle = torch.deg2rad(_uniform((len(x_BCS), 1), self.degrees, x_BCS, generator))
        east, north = x_BCS[:, 0], x_BCS[:, 1]
        turned = torch.stack(
            [east * angle.cos() + north * angle.sin(), north * angle.cos() - east * angle.sin(), x_BCS[:, 2]], dim=1
        )
        both_B = torch.isfinite(east).any(-1) & torch.isfinite(north).any(-1)
        return torch.where(both_B[:, None, None], turned, x_BCS)


FAMILIES: dict[str, dict[str, type[Augmentation]]] = {
    "time": {"time_shift": TimeShift},
    "geometry": {"polarity": Polarity, "rotation": Rotation},
    "frequency": {
        "time_stretch": TimeStretch,
        "band_pass": BandPass,
        "band_stop": BandStop,
        "spectral_response": SpectralResponse,
    },
    "amplitude": {
        "gain": Gain,
        "coloured_noise": ColouredNoise,
        "real_noise": RealNoise,
        "component_drop": ComponentDrop,
    },
}
"""Every augmentation by family and by its name in the configuration."""

PRESETS: dict[str, tuple[str, ...]] = {
    "amplitude": ("time", "geometry", "amplitude"),
    "frequency": ("time", "geometry", "frequency"),
    "both": ("time", "geometry", "frequency", "amplitude"),
}
"""The families of a preset; every one of them has `time` and `geometry`."""

# The order of application: first what moves samples, last what makes them absent, so that filters see whole windows.
_ORDER = (
    "time_shift",
    "time_stretch",
    "polarity",
    "rotation",
    "band_pass",
    "band_stop",
    "spectral_response",
    "real_noise",
    "coloured_noise",
    "gain",
    "component_drop",
)
_NEEDS_LEAD = ("time_shift", "time_stretch", "real_noise", "coloured_noise")


class Augmenter(nn.Module):
    """A chain of augmentations: one call makes one view."""

    def __init__(self, augmentations: Mapping[str, Augmentation]) -> None:
        super().__init__()
        self.chain = nn.ModuleList(augmentations[name] for name in _ORDER if name in augmentations)

    @torch.no_grad()
    def forward(self, x_BCS: Tensor, generator: torch.Generator, share: float = 1.0) -> Tensor:
        """Return one random view of each prepared window; every probability is multiplied by `share`."""
        x_BCS = x_BCS.clone()
        filters: list[SpectralAugmentation] = []
        for augmentation in cast(Iterable[Augmentation], self.chain):
            if isinstance(augmentation, SpectralAugmentation):
                filters.append(augmentation)
                continue
            if filters:
                x_BCS = filter_spectrum(x_BCS, filters, generator, share)
                filters = []
            x_BCS = augmentation.into(x_BCS, generator, share)
        return filter_spectrum(x_BCS, filters, generator, share) if filters else x_BCS


def build_augmenter(preset: str, parameters: Mapping[str, Mapping[str, Any]], lead_samples: int) -> Augmenter:
    """Return the augmenter of a preset.

    Args:
        preset: a key of `PRESETS`.
        parameters: for each augmentation its `probability` and ranges, by name.
        lead_samples: samples before the onset.

    Raises:
        ValueError: an impossible parameter, named with its augmentation.
    """
    if preset not in PRESETS:
        raise ValueError(f"train.augmentation is {preset!r}: choose one of {', '.join(PRESETS)}.")
    augmentations: dict[str, Augmentation] = {}
    for family in PRESETS[preset]:
        for name, kind in FAMILIES[family].items():
            values = dict(parameters[name])
            if not values["probability"]:
                continue
            if name in _NEEDS_LEAD:
                values["lead_samples"] = lead_samples
            try:
                augmentations[name] = kind(**values)
            except ValueError as error:
                raise ValueError(f"augmentation.{name}.{error}") from None
    return Augmenter(augmentations)


def filter_spectrum(
    x_BCS: Tensor, filters: list[SpectralAugmentation], generator: torch.Generator, share: float = 1.0
) -> Tensor:
    """Return windows filtered by the product of the gains, with one Fourier transform; absent samples stay absent.

    Every probability is multiplied by `share`. The windows given may be changed themselves.
    """
    count, _, num_samples = x_BCS.shape
    frequency = torch.linspace(0, 1, num_samples // 2 + 1, device=x_BCS.device, dtype=x_BCS.dtype)
    gain = torch.ones((count, 1, len(frequency)), device=x_BCS.device, dtype=x_BCS.dtype)
    touched_B = torch.zeros(count, dtype=torch.bool, device=x_BCS.device)
    for one in filters:
        chosen_B = _coins(count, one.probability * share, x_BCS, generator)
        touched_B |= chosen_B

        def scale(some: Tensor, one: SpectralAugmentation = one) -> Tensor:
            return some * one.gain(len(some), frequency, generator)

        gain = _put(gain, chosen_B, scale)
    if x_BCS.device.type != "cpu":
        return _filtered(x_BCS, gain)
    return _put(x_BCS, touched_B, lambda some: _filtered(some, gain[touched_B]))


def _put(x: Tensor, chosen_B: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Return x with the chosen rows changed, on the CPU in place."""
    if x.device.type != "cpu":
        # The host does not know which rows are chosen: asking would make it wait for the device.
        return torch.where(chosen_B[:, None, None], change(x), x)
    rows = chosen_B.nonzero()[:, 0]
    return x.index_copy_(0, rows, change(x[rows])) if len(rows) else x


def _filtered(x_BCS: Tensor, gain: Tensor) -> Tensor:
    absent = torch.isnan(x_BCS)
    spectrum = torch.fft.rfft(x_BCS.masked_fill(absent, 0.0)).mul_(gain)
    filtered: Tensor = torch.fft.irfft(spectrum, n=x_BCS.shape[-1])
    return filtered.masked_fill_(absent, math.nan)


def _coins(count: int, probability: float, like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator, device=like.device) < probability


def _add_noise(x_BCS: Tensor, noise: Tensor, lowest_snr_db: float, share: Tensor, lead_samples: int) -> Tensor:
    """Add noise until the window's peak lies between its present and the lowest ratio above its noise's RMS.

    The ratio afterwards, in dB, lies `share` of the way from the present one down to the lowest; a window below that
    stays as it is. The views' ratios then reveal little of the window's own. Noise at a fixed ratio to the window would
    reveal it, and a network could tell windows apart by that alone.
    """
    tiny = torch.finfo(x_BCS.dtype).tiny
    filled = torch.nan_to_num(x_BCS)
    present = torch.isfinite(x_BCS)
    # A shift may have moved the onset to half the lead.
    lead = slice(0, max(1, lead_samples * 2 // 5))
    count = present[..., lead].sum((1, 2), keepdim=True).clamp(min=1)
    ground = filled[..., lead].square().sum((1, 2), keepdim=True) / count
    peak = filled.abs().amax((1, 2), keepdim=True).square()
    loudest = peak / 10 ** (lowest_snr_db / 10)
    quietest = torch.minimum(ground.clamp(min=1e-8 * peak), loudest)
    wanted = quietest * (loudest / quietest.clamp(min=tiny)).pow(share)
    own = (noise.square() * present).sum((1, 2), keepdim=True) / present.sum((1, 2), keepdim=True).clamp(min=1)
    scale = ((wanted - ground).clamp(min=0) / own.clamp(min=tiny)).sqrt()
    return x_BCS + torch.where(own > tiny, scale, torch.zeros_like(scale)) * noise


def _mirror(index_BS: Tensor, last: int) -> Tensor:
    """Return indices from 0 to `last`, those beyond mirrored at the ends as often as needed."""
    turns = (index_BS / (2 * last)).round()
    return (index_BS - 2 * last * turns).abs()


def _take(x_BCS: Tensor, index_BS: Tensor) -> Tensor:
    """Return the samples at integer indices."""
    return x_BCS.gather(-1, index_BS[:, None].expand(-1, 3, -1))


def _high_pass(frequency: Tensor, corner: Tensor) -> Tensor:
    return torch.rsqrt(1 + (corner / frequency.clamp(min=1e-4)).square().square().square())


def _low_pass(frequency: Tensor, corner: Tensor) -> Tensor:
    return torch.rsqrt(1 + (frequency / corner).square().square().square())


def _uniform(shape: tuple[int, ...], limits: Range, like: Tensor, generator: torch.Generator) -> Tensor:
    draw = torch.rand(shape, generator=generator, device=like.device, dtype=like.dtype)
    return limits[0] + (limits[1] - limits[0]) * draw


def _log_uniform(shape: tuple[int, ...], limits: Range, like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.exp(_uniform(shape, (math.log(limits[0]), math.log(limits[1])), like, generator))


def _ordered(name: str, limits: Range) -> Range:
    if len(limits) != 2 or not limits[0] <= limits[1]:
        raise ValueError(f"{name} is {list(limits)}: give [smallest, largest].")
    return float(limits[0]), float(limits[1])


def _positive(name: str, limits: Range) -> Range:
    low, high = _ordered(name, limits)
    if low <= 0:
        raise ValueError(f"{name} is {list(limits)}: both ends must be above 0.")
    return low, high
