"""How strongly a window's signal is polarised: what tells artefacts of the instrument from motion of the ground.

A glitch, a step or a calibration pulse of the digitiser has one waveform on all components, or lies on one of them:
the signal moves along one line (or, with phases of its own on each component, one ellipse), whatever its duration and
frequency. Waves of the ground arrive along several paths with delays of their own, so that over a second or more their
motion fills an ellipsoid. Contrastive learning uses this little, since duration and frequency tell windows apart more
easily.

Legend of shape suffixes: B window, C component (E, N, Z), S sample, F frequency band, T frame.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool1d

from .preparation import Frames, band_matrix, frame_length_for, noise_frames, power_of

FRAMES, STRIDE = 5, 2
"""Frames, of about a hundredth of the window each, over which components are compared, and between two comparisons."""

BANDS_SHARE = 0.28
"""Share of the frequency bands over which components are compared."""

OVER_NOISE = 4.0
"""Signal is where the power exceeds this many times the mean power before the onset."""

LEAST_HALVINGS, MOST_HALVINGS = 2.0, 5.5
"""The linear motion is 0 where 1 - P^2 is at least a half to the power of the first (.25), and 1 where it is at most a
half to the power of the second (.022). Waves of the ground rarely reach the middle between them."""


def squared_degree(spectrum_BCFT: Tensor, average: Callable[[Tensor], Tensor], num_noise_frames: int = 0) -> Tensor:
    """Return the squared degree of polarisation of averaged spectral matrices, (B, F', T').

    The degree is that of Samson & Olson (1980, doi:10.1111/j.1365-246X.1980.tb04308.x): with n components and the
    matrix S of their cross-spectra, P^2 = (n tr(S^2) - tr(S)^2) / ((n - 1) tr(S)^2). It is 1 for motion along one line
    or one ellipse, and 0 for motion of equal power in all directions that has no phase in common.

    Args:
        spectrum_BCFT: complex spectra, zero for absent components.
        average: averages real values (B, F, T) over neighbouring frequencies and frames.
        num_noise_frames: the mean matrix of this many first frames, the noise, is subtracted: otherwise a weak signal
            would seem less polarised than a strong one.

    Returns:
        P^2; 0 where fewer than two components are present, or where nothing exceeds the noise.
    """
    # `abs` of complex values takes ten times as long.
    power_BCFT = power_of(spectrum_BCFT)
    count = (power_BCFT.amax((2, 3)) > 0).sum(1)[:, None, None]

    def above_noise(values: Tensor) -> Tensor:
        averaged = average(values)
        return averaged - averaged[..., :num_noise_frames].mean(-1, keepdim=True) if num_noise_frames else averaged

    total = squares = torch.zeros((), device=spectrum_BCFT.device)
    for one in range(spectrum_BCFT.shape[1]):
        power = above_noise(power_BCFT[:, one]).clamp(min=0)
        total = total + power
        squares = squares + power.square()
        for other in range(one):
            cross = spectrum_BCFT[:, one] * spectrum_BCFT[:, other].conj()
            squares = squares + 2 * (above_noise(cross.real).square() + above_noise(cross.imag).square())
    square_of_total = total.square()
    degree = (count * squares - square_of_total) / ((count - 1).clamp(min=1) * square_of_total).clamp(min=1e-20)
    return torch.where((count > 1) & (total > 0), degree.clamp(0, 1), torch.zeros_like(degree))


class LinearMotion(nn.Module):
    """Whether a window's signal moves along one line, from 0 (as waves of the ground do not) to 1; no weights."""

    def __init__(self, num_samples: int, lead_samples: int, num_bands: int, num_frames: int) -> None:
        super().__init__()
        self.fft_length, self.hop = frame_length_for(num_samples, num_frames)
        self.num_noise_frames = (noise_frames(lead_samples, self.fft_length, self.hop) - 1) // STRIDE + 1
        bands = band_matrix(num_bands, self.fft_length)
        half = max(1, int(num_bands * BANDS_SHARE) // 2)
        # Each row is the mean of a band and its neighbours; neighbouring rows overlap by half.
        rows = [bands[max(0, centre - half) : centre + half + 1].mean(0) for centre in range(0, num_bands, half)]
        self.rows: Tensor
        self.register_buffer("rows", torch.stack(rows).float(), persistent=False)

    @torch.no_grad()
    def forward(self, frames: Frames) -> Tensor:
        """Return for each prepared window a value from 0 to 1, (window,), from frames of `fft_length` and `hop`.

        The squared degree of polarisation P^2 is averaged over the signal, weighted with its amplitude; the value rises
        smoothly with -log2(1 - P^2), from LEAST_HALVINGS to MOST_HALVINGS. It is 0 without signal and where only one
        component is present.
        """
        with torch.autocast(frames.spectrum.device.type, enabled=False):
            # The edge of a gap steps on all components at once.
            spectrum = frames.spectrum * (~frames.touched)[:, None, None]
            degree = squared_degree(spectrum, self._average, self.num_noise_frames)
            power = self._average(power_of(spectrum).sum(1))
            noise = power[..., : self.num_noise_frames].mean((1, 2), keepdim=True)
            weight = (power - OVER_NOISE * noise).clamp(min=0).sqrt()
            mean = (degree * weight).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1e-9)
            halvings = -torch.log2((1 - mean).clamp(min=2.0**-MOST_HALVINGS))
            share = ((halvings - LEAST_HALVINGS) / (MOST_HALVINGS - LEAST_HALVINGS)).clamp(0, 1)
            smooth: Tensor = share.square() * (3 - 2 * share)
            return smooth

    def _average(self, values_BFT: Tensor) -> Tensor:
        """Return means over wide bands and FRAMES frames, every second frame."""
        averaged: Tensor = avg_pool1d(
            torch.matmul(self.rows, values_BFT), FRAMES, STRIDE, FRAMES // 2, count_include_pad=False
        )
        return averaged
