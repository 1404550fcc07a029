"""From raw windows with absent samples to what a network sees: demeaned, one scale, absent data not recognisable.

Legend of shape suffixes: B window, C component (E, N, Z), S sample, F frequency band, T frame.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

DEAD_RATIO = 1e-5
"""A component whose RMS is below this share of the strongest component's counts as absent: a dead channel."""

MIN_PRESENT_SHARE = 0.2
"""A component with less than this share of its samples counts as absent."""


def standardise(x_BCS: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Remove each component's mean, divide the window by one RMS, and put zeros where samples are absent.

    Args:
        x_BCS: (window, 3, sample) floating point, absent samples NaN.

    Returns:
        The standardised windows (relative amplitudes of components kept, so polarisation is kept), the mask of present
        samples of the same shape (all False for a component that is absent or dead), the mask of present components
        (window, 3), and log10 of the RMS that was divided out (window,), 0 for an empty window.
    """
    present_BCS = torch.isfinite(x_BCS)
    zero = x_BCS.new_zeros(())
    count_BC = present_BCS.sum(-1)
    filled = torch.where(present_BCS, x_BCS, zero)
    mean_BC = filled.sum(-1) / count_BC.clamp(min=1)
    filled = torch.where(present_BCS, filled - mean_BC[..., None], zero)
    # Divided by the peak before squaring: raw counts of 1e25 (or metres of 1e-25) would leave float32.
    peak_B = filled.abs().amax((-2, -1))
    safe_peak_B = torch.where(peak_B > 0, peak_B, torch.ones_like(peak_B))
    filled = filled / safe_peak_B[:, None, None]
    energy_BC = filled.square().sum(-1)
    rms_BC = (energy_BC / count_BC.clamp(min=1)).sqrt()
    enough_BC = count_BC >= MIN_PRESENT_SHARE * x_BCS.shape[-1]
    alive_BC = enough_BC & (rms_BC > DEAD_RATIO * rms_BC.amax(-1, keepdim=True)) & (rms_BC > 0)
    energy_B = (energy_BC * alive_BC).sum(-1)
    rms_B = (energy_B / (count_BC * alive_BC).sum(-1).clamp(min=1)).sqrt()
    safe_rms_B = torch.where(rms_B > 0, rms_B, torch.ones_like(rms_B))
    standard = filled * alive_BC[..., None] / safe_rms_B[:, None, None]
    log_rms_B = torch.where(rms_B > 0, torch.log10(safe_rms_B * safe_peak_B), torch.zeros_like(rms_B))
    return standard, present_BCS & alive_BC[..., None], alive_BC, log_rms_B


def prepare(x_BCS: Tensor, lead_samples: int) -> Tensor:
    """Remove from raw windows what belongs to ground and instrument: offset, microseism, colour of the noise.

    The spectrum of a window is divided by that of its noise before the onset. One noise spectrum, the mean over the
    components, serves all three, so that polarisation is kept. Frequencies too low for
    that spectrum to resolve are removed. This is done once, before any augmentation; the windows keep their amplitude.

    Args:
        x_BCS: (window, 3, sample) raw windows, absent samples NaN.
        lead_samples: samples before the onset; the last quarter is not used, since an emergent onset reaches into it.

    Returns:
        The same shape, absent samples and dead components NaN.
    """
    standard, present, _, log_rms = standardise(x_BCS)
    num_samples = standard.shape[-1]
    length = noise_length_for(num_samples, lead_samples)
    like: dict[str, Any] = {"dtype": standard.dtype, "device": standard.device}
    edge = max(1, num_samples // 50)
    ramp = 0.5 - 0.5 * torch.cos(math.pi * torch.linspace(0, 1, edge, **like))
    window = torch.ones(num_samples, **like)
    window[:edge] = ramp
    window[-edge:] = ramp.flip(0)
    # Below its second bin the noise spectrum resolves nothing. What lies there is removed first: it can be 80 dB above
    # the rest, and would leak into the noise spectrum.
    num_bins = num_samples // 2 + 1
    bin_number = torch.linspace(0, length / 2, num_bins, **like)
    high_pass = 0.5 - 0.5 * torch.cos(math.pi * (bin_number - 0.5).clamp(0, 1))
    spectrum = torch.fft.rfft(standard * window) * high_pass
    quick = torch.fft.irfft(spectrum, n=num_samples) * present
    usable = max(edge + length, lead_samples * 3 // 4)
    frames = quick[..., edge:usable].unfold(-1, length, max(1, length // 4))
    taper = torch.hann_window(length, **like)
    # A dead frame (all absent) says nothing about the noise: only frames that hold data are averaged.
    weight = (frames.abs().amax(-1, keepdim=True) > 0).to(standard.dtype)
    power = (torch.fft.rfft(frames * taper).abs().square() * weight).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1)
    power = power / taper.square().sum()
    floor = 1e-6 * power.amax(-1, keepdim=True) + 1e-14
    # The high-pass has emptied the first bins; dividing by their own power would bring back what it removed.
    power = torch.cat([power[:, 2:3], power[:, 2:3], power[:, 2:]], dim=1)
    log_power = torch.log((power + floor)[:, None])
    fine = torch.nn.functional.interpolate(log_power, size=num_bins, mode="linear", align_corners=True)
    white = torch.fft.irfft(spectrum * torch.exp(-0.5 * fine), n=num_samples) * torch.pow(10, log_rms)[:, None, None]
    return torch.where(present, white, white.new_tensor(math.nan))


def noise_length_for(num_samples: int, lead_samples: int) -> int:
    """Return the samples of a frame of the noise spectrum: a power of two that fits the lead several times."""
    longest = max(16, min(lead_samples // 2, num_samples // 8))
    return int(2 ** math.floor(math.log2(longest)))


def frame_length_for(num_samples: int, num_frames: int) -> tuple[int, int]:
    """Return the FFT length and the hop (samples) that cut a window into about `num_frames` overlapping frames."""
    hop = max(1, round(num_samples / num_frames))
    length = 2 ** math.ceil(math.log2(max(8, 3 * hop)))
    return min(length, 2 ** math.floor(math.log2(max(8, num_samples)))), hop


def band_matrix(num_bands: int, fft_length: int) -> Tensor:
    """Return triangular bands over the bins of a real FFT, linear in frequency below, logarithmic above.

    Bands follow log(1 + f / f0) with f0 a fifth of the Nyquist frequency, without the bin of the mean.

    Returns:
        (band, fft_length // 2 + 1) float64, every row sums to 1.
    """
    num_bins = fft_length // 2 + 1
    bins = torch.arange(num_bins, dtype=torch.float64)
    corner = (num_bins - 1) / 5.0
    top = math.log1p((num_bins - 1) / corner)
    bottom = math.log1p(1.0 / corner)
    centres = corner * torch.expm1(torch.linspace(bottom, top, num_bands, dtype=torch.float64))
    lower = torch.cat([centres[:1] - 1.0, centres[:-1]])
    upper = torch.cat([centres[1:], centres[-1:] + 1.0])
    # Where bands are narrower than a bin a triangle would fall between bins: it is at least one bin wide on each side.
    lower = torch.minimum(lower, centres - 1.0)
    upper = torch.maximum(upper, centres + 1.0)
    rising = (bins - lower[:, None]) / (centres - lower)[:, None]
    falling = (upper[:, None] - bins) / (upper - centres)[:, None]
    weight = torch.minimum(rising, falling).clamp(min=0)
    weight[:, 0] = 0
    return weight / weight.sum(1, keepdim=True)


def noise_frames(lead_samples: int, fft_length: int, hop: int) -> int:
    """Return how many of the first frames hold the noise before the onset alone, at least one."""
    return max(1, (lead_samples * 3 // 4 - fft_length) // hop + 1)


def frame_spectra(standard_BCS: Tensor, fft_length: int, hop: int) -> Tensor:
    """Return the complex spectra (window, component, bin, frame) of Hann-tapered frames."""
    num_windows, num_components, num_samples = standard_BCS.shape
    taper = torch.hann_window(fft_length, dtype=standard_BCS.dtype, device=standard_BCS.device)
    spectrum = torch.stft(
        standard_BCS.reshape(-1, num_samples), fft_length, hop, window=taper, center=False, return_complex=True
    )
    return spectrum.reshape(num_windows, num_components, *spectrum.shape[1:])


def power_of(spectrum: Tensor) -> Tensor:
    """Return the power of complex spectra."""
    return spectrum.real.square() + spectrum.imag.square()


class Frames(NamedTuple):
    """The spectra of windows' frames, and which of them hold data."""

    spectrum: Tensor
    """(window, component, bin, frame), complex: of Hann-tapered frames of standardised windows."""
    touched: Tensor
    """(window, frame): frames that touch absent samples of a present component."""
    alive: Tensor
    """(window, component): which components are present."""
    log_rms: Tensor
    """(window,): log10 of the RMS that was divided out."""


def frames_of(x_BCS: Tensor, fft_length: int, hop: int) -> Frames:
    """Standardise windows (window, 3, sample), absent samples NaN, and return the spectra of their frames."""
    standard_BCS, present_BCS, alive_BC, log_rms_B = standardise(x_BCS)
    return Frames(
        frame_spectra(standard_BCS, fft_length, hop),
        frames_with_gaps(present_BCS, alive_BC, fft_length, hop, standard_BCS.dtype),
        alive_BC,
        log_rms_B,
    )


def frames_with_gaps(present_BCS: Tensor, alive_BC: Tensor, fft_length: int, hop: int, dtype: torch.dtype) -> Tensor:
    """Return which frames touch absent samples of a present component (window, frame): an edge, not the ground."""
    absent_BS = ((~present_BCS) & alive_BC[..., None]).any(1).to(dtype)
    touched = torch.nn.functional.max_pool1d(absent_BS[:, None], kernel_size=fft_length, stride=hop)
    return touched[:, 0] > 0


def log_spectrogram(frames: Frames, bands: Tensor) -> Tensor:
    """Return log10 band power of the horizontals and of the vertical, absent frames at the band's background.

    The two horizontals are joined by power, so the picture does not depend on the sensor's azimuth.

    Args:
        frames: of the windows.
        bands: (band, bin) weights from `band_matrix`.

    Returns:
        (window, 2, band, frame): horizontal, vertical.
    """
    power = power_of(frames.spectrum)
    band_power = torch.matmul(bands.to(power.dtype), power)
    weight_BC11 = frames.alive.to(power.dtype)[..., None, None]
    horizontal = (band_power[:, :2] * weight_BC11[:, :2]).sum(1) / weight_BC11[:, :2].sum(1).clamp(min=1)
    vertical = band_power[:, 2]
    has_horizontal = frames.alive[:, :2].any(1)[:, None, None]
    has_vertical = frames.alive[:, 2][:, None, None]
    pair = torch.stack(
        [torch.where(has_horizontal, horizontal, vertical), torch.where(has_vertical, vertical, horizontal)], dim=1
    )
    log_power = torch.log10(pair + 1e-8)
    touched_B11T = frames.touched[:, None, None]
    good = (~touched_B11T).to(power.dtype)
    background = (log_power * good).sum(-1, keepdim=True) / good.sum(-1, keepdim=True).clamp(min=1)
    return torch.where(touched_B11T, background, log_power)
