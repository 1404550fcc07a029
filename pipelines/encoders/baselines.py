"""Encoders that are not trained by contrast, behind the same interface: they show whether that training helps.

Each holds what it was fitted to in buffers or weights, so that it is stored and loaded as a network is.
"""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

from .networks import NetworkConfig, SpectrogramPicture
from .preparation import standardise

FEATURE_NAMES = (
    "log_duration",
    "log_rise",
    "log_rise_to_decay",
    "envelope_kurtosis",
    "envelope_skewness",
    "centroid_time",
    "log_peak_to_rms",
    "dominant_frequency",
    "centroid_frequency",
    "bandwidth",
    "spectral_flatness",
    "low_band_share",
    "middle_band_share",
    "high_band_share",
    "zero_crossing_rate",
    "centroid_glide",
    "log_vertical_to_horizontal",
    "rectilinearity",
)


def hand_features(x_BCS: Tensor, rate_hz: float, lead_samples: int) -> Tensor:
    """Return temporal, spectral and polarisation features as used to discriminate seismic events.

    The envelope is the energy of all present components smoothed over a hundredth of the window; the spectrum that of
    the samples after the onset, above the ground noise before it.

    Args:
        x_BCS: prepared windows.
        rate_hz: sampling rate.
        lead_samples: samples before the onset.

    Returns:
        (window, len(FEATURE_NAMES)), finite; frequencies in units of the Nyquist frequency, times in seconds.
    """
    tiny = 1e-6
    standard, _, alive, _ = standardise(x_BCS)
    num_samples = standard.shape[-1]
    smooth = max(3, num_samples // 100) | 1
    energy = functional.avg_pool1d(standard.square().sum(1)[:, None], smooth, stride=1, padding=smooth // 2)[:, 0]
    noise = energy[:, : max(1, lead_samples * 3 // 4)].mean(-1, keepdim=True)
    envelope = (energy - noise).clamp(min=0).sqrt()
    time = torch.arange(num_samples, device=standard.device, dtype=standard.dtype) / rate_hz
    peak, peak_index = envelope.max(-1)
    above = (envelope > 0.25 * peak[:, None]).to(standard.dtype)
    duration = above.sum(-1) / rate_hz
    first = above.argmax(-1)
    last = num_samples - 1 - above.flip(-1).argmax(-1)
    rise = (peak_index - first) / rate_hz
    decay = (last - peak_index) / rate_hz
    share = envelope / envelope.sum(-1, keepdim=True).clamp(min=tiny)
    centroid_time = (share * time).sum(-1)
    mean = envelope.mean(-1, keepdim=True)
    deviation = envelope - mean
    spread = deviation.square().mean(-1).sqrt().clamp(min=tiny)
    skewness = deviation.pow(3).mean(-1) / spread.pow(3)
    kurtosis = deviation.pow(4).mean(-1) / spread.pow(4)
    peak_to_rms = standard.abs().amax((1, 2)) / standard.square().mean((1, 2)).sqrt().clamp(min=tiny)

    signal = standard[..., lead_samples:]
    power = torch.fft.rfft(signal).abs().square().sum(1) / signal.shape[-1]
    num_bins = power.shape[-1]
    smooth_bins = max(3, num_bins // 64) | 1
    power = functional.avg_pool1d(power[:, None], smooth_bins, stride=1, padding=smooth_bins // 2)[:, 0]
    if lead_samples >= 16:
        ground = torch.fft.rfft(standard[..., :lead_samples], n=signal.shape[-1]).abs().square().sum(1) / lead_samples
        ground = functional.avg_pool1d(ground[:, None], smooth_bins, stride=1, padding=smooth_bins // 2)[:, 0]
        power = torch.where(power > 2 * ground, power - ground, 0.05 * power)
    frequency = torch.linspace(0, 1, num_bins, device=power.device, dtype=power.dtype)
    power_share = power / power.sum(-1, keepdim=True).clamp(min=tiny)
    centroid_frequency = (power_share * frequency).sum(-1)
    bandwidth = (power_share * (frequency - centroid_frequency[:, None]).square()).sum(-1).sqrt()
    flatness = power.clamp(min=tiny).log().mean(-1) - power.mean(-1).clamp(min=tiny).log()
    edges = [0, num_bins // 10, num_bins * 3 // 10, num_bins]
    bands = [power_share[:, low:high].sum(-1) for low, high in itertools.pairwise(edges)]
    crossings = (signal[..., 1:] * signal[..., :-1] < 0).to(power.dtype).mean((1, 2))

    half = signal.shape[-1] // 2
    early = torch.fft.rfft(signal[..., :half]).abs().square().sum(1)
    late = torch.fft.rfft(signal[..., half : 2 * half]).abs().square().sum(1)
    axis = torch.linspace(0, 1, early.shape[-1], device=power.device, dtype=power.dtype)
    glide = (late * axis).sum(-1) / late.sum(-1).clamp(min=tiny) - (early * axis).sum(-1) / early.sum(-1).clamp(
        min=tiny
    )

    component = signal.square().mean(-1)
    horizontal = component[:, :2].sum(-1) / alive[:, :2].sum(-1).clamp(min=1)
    both = alive[:, :2].any(-1) & alive[:, 2]
    ratio = torch.where(both, torch.log10((component[:, 2] + tiny) / (horizontal + tiny)), torch.zeros_like(horizontal))
    covariance = signal @ signal.transpose(1, 2) / signal.shape[-1]
    eigen = torch.linalg.eigvalsh(covariance)
    rectilinearity = 1 - (eigen[:, 0] + eigen[:, 1]) / (2 * eigen[:, 2]).clamp(min=tiny)
    return torch.stack(
        [
            torch.log10(duration + 0.01),
            torch.log10(rise + 0.01),
            torch.log10((rise + 0.01) / (decay + 0.01)),
            kurtosis.log1p(),
            skewness,
            centroid_time,
            torch.log10(peak_to_rms + tiny),
            power.argmax(-1).to(power.dtype) / num_bins,
            centroid_frequency,
            bandwidth,
            flatness,
            *bands,
            crossings,
            glide,
            ratio,
            rectilinearity,
        ],
        dim=1,
    ).nan_to_num()


class HandFeatures(nn.Module):
    """Hand-made features, standardised by the mean and deviation of the windows they were fitted to."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.zeros(len(FEATURE_NAMES)))
        self.register_buffer("deviation", torch.ones(len(FEATURE_NAMES)))

    def forward(self, x_BCS: Tensor) -> Tensor:
        """Return standardised features (window, len(FEATURE_NAMES))."""
        features = hand_features(x_BCS, self.config.rate_hz, self.config.lead_samples)
        return (features - self.mean) / self.deviation


class PooledPicture(nn.Module):
    """The log spectrogram pooled to a small picture: what PCA and the autoencoder see."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.picture = SpectrogramPicture(config)
        self.size = (config.num_bands // 2, 32)

    def forward(self, x_BCS: Tensor) -> Tensor:
        """Return pictures (window, 2, band, frame) of zero mean and unit deviation over each window."""
        picture = self.picture(self.picture.frames(x_BCS))
        return functional.adaptive_avg_pool2d(picture, self.size)


class SpectrogramPca(nn.Module):
    """Principal components of pooled log spectrograms."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.pooled = PooledPicture(config)
        length = 2 * self.pooled.size[0] * self.pooled.size[1]
        self.mean: Tensor
        self.components: Tensor
        self.register_buffer("mean", torch.zeros(length))
        self.register_buffer("components", torch.zeros(config.dim, length))

    def forward(self, x_BCS: Tensor) -> Tensor:
        """Return the projections on the principal components (window, dim)."""
        picture: Tensor = self.pooled(x_BCS)
        return (picture.flatten(1) - self.mean) @ self.components.T


class ConvolutionalAutoencoder(nn.Module):
    """Compresses the pooled log spectrogram to `dim` numbers and reconstructs it from them."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.pooled = PooledPicture(config)
        width = config.width
        self.rows, self.columns = self.pooled.size[0] // 4, self.pooled.size[1] // 4
        self.encode = nn.Sequential(
            nn.Conv2d(2, width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * width * self.rows * self.columns, config.dim),
        )
        self.widen = nn.Linear(config.dim, 2 * width * self.rows * self.columns)
        self.decode = nn.Sequential(
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(width, 2, 4, stride=2, padding=1),
        )

    def forward(self, x_BCS: Tensor) -> Tensor:
        """Return the code (window, dim)."""
        code: Tensor = self.encode(self.pooled(x_BCS))
        return code

    def reconstruct(self, x_BCS: Tensor) -> tuple[Tensor, Tensor]:
        """Return the picture (window, 2, band, frame) and its reconstruction from the code."""
        picture = self.pooled(x_BCS)
        wide = functional.relu(self.widen(self.encode(picture)))
        return picture, self.decode(wide.reshape(len(picture), -1, self.rows, self.columns))
