"""The residual network on log spectrograms, which are computed on the device.

Normalisation is by group within one window (GroupNorm), so that no window's output depends on its batch.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from .polarisation import LinearMotion
from .preparation import (
    Frames,
    band_matrix,
    frame_length_for,
    frames_of,
    log_spectrogram,
    noise_frames,
)

NUM_GROUPS = 8


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The shape of a network; stored with its weights."""

    kind: str
    """`spectrogram`, or a baseline of `pipelines.encoders.baselines`."""
    num_samples: int
    """Samples of a window."""
    rate_hz: float
    """Sampling rate of a window."""
    lead_samples: int
    """Samples before the onset, ground noise."""
    width: int = 24
    """Channels of the first stage; each following stage has twice as many."""
    blocks: int = 1
    """Residual blocks of each stage."""
    dim: int = 64
    """Length of the embedding."""
    num_bands: int = 32
    """Frequency bands of the spectrogram."""
    num_frames: int = 96
    """About how many frames the spectrogram has."""
    log_amplitude: bool = False
    """Pass the window's log amplitude on to the embedding."""
    polarisation: float = 0.0
    """Weight of the last component of the embedding, which says how linear the motion is; 0: there is none."""

    def __post_init__(self) -> None:
        if self.num_samples < 64:
            raise ValueError(f"num_samples is {self.num_samples}: an encoder needs windows of at least 64 samples.")
        if self.width % NUM_GROUPS:
            raise ValueError(f"width is {self.width}: it must be a multiple of {NUM_GROUPS}.")
        if not 0 <= self.polarisation < math.inf:
            raise ValueError(f"polarisation is {self.polarisation}: it must not be negative.")
        if not 0 <= self.lead_samples < self.num_samples:
            raise ValueError(f"lead_samples is {self.lead_samples}: it must lie in [0, {self.num_samples}).")


class _Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        pad = kernel // 2
        self.first = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=pad, bias=False)
        self.first_norm = nn.GroupNorm(NUM_GROUPS, outputs)
        self.second = nn.Conv2d(outputs, outputs, kernel, padding=pad, bias=False)
        self.second_norm = nn.GroupNorm(NUM_GROUPS, outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
        nn.init.zeros_(self.second_norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        y = functional.relu(self.first_norm(self.first(x)))
        return functional.relu(self.second_norm(self.second(y)) + self.shortcut(x))


def _stages(
    width: int, multiples: tuple[int, ...], strides: tuple[int, ...], kernel: int, blocks: int
) -> nn.Sequential:
    layers: list[nn.Module] = []
    inputs = width
    for multiple, stride in zip(multiples, strides, strict=True):
        for block in range(blocks):
            layers.append(_Block(inputs, width * multiple, kernel, stride if block == 0 else 1))
            inputs = width * multiple
    return nn.Sequential(*layers)


class SpectrogramPicture(nn.Module):
    """The log spectrogram of a window, computed on the window's device; holds no weights."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.fft_length, self.hop = frame_length_for(config.num_samples, config.num_frames)
        self.num_noise_frames = noise_frames(config.lead_samples, self.fft_length, self.hop)
        self.bands: Tensor
        self.register_buffer("bands", band_matrix(config.num_bands, self.fft_length).float(), persistent=False)

    @torch.no_grad()
    def frames(self, x_BCS: Tensor) -> Frames:
        """Return the frames of prepared windows (window, 3, sample) that the picture is made of."""
        return frames_of(x_BCS, self.fft_length, self.hop)

    @torch.no_grad()
    def forward(self, frames: Frames) -> Tensor:
        """Return the picture (window, 2, band, frame).

        The channels are the horizontals' and the vertical's power in powers of ten over the noise before the onset.
        """
        log_power = log_spectrogram(frames, self.bands)
        return log_power - log_power[..., : self.num_noise_frames].mean((1, 2, 3), keepdim=True)


def learned_dim(config: NetworkConfig) -> int:
    """Return the length of the learned part of an embedding."""
    return config.dim - (config.polarisation > 0)


class SpectrogramNetwork(nn.Module):
    """A 2-D residual network on the log spectrogram of horizontals and vertical, and beside it what is measured.

    Both together are the embedding; training changes the learned part alone.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.linear_motion: LinearMotion | None = None
        if config.polarisation:
            self.linear_motion = LinearMotion(
                config.num_samples, config.lead_samples, config.num_bands, config.num_frames
            )
        self.picture = SpectrogramPicture(config)
        width = config.width
        self.stem = nn.Conv2d(2, width, 5, stride=(2, 2), padding=2, bias=False)
        self.stem_norm = nn.GroupNorm(NUM_GROUPS, width)
        self.trunk = _stages(width, (2, 4), (2, 2), 3, config.blocks)
        # The pooling keeps the band axis: the frequency of a signal tells what it is.
        rows = -(-config.num_bands // 8)
        self.out = nn.Linear(2 * 4 * width * rows + config.log_amplitude, learned_dim(config))

    def forward(self, x_BCS: Tensor) -> Tensor:
        """Return the embedding (window, dim) of prepared windows (window, 3, sample).

        The last component is `polarisation` times the length of the learned part times the linear motion, so that its
        weight does not depend on that length.
        """
        frames = self.picture.frames(x_BCS)
        learned = self._learned(frames)
        if self.linear_motion is None:
            return learned
        motion_B1 = self.linear_motion(frames)[:, None].to(learned.dtype)
        measured = self.config.polarisation * learned.norm(dim=1, keepdim=True) * motion_B1
        return torch.cat([learned, measured], dim=1)

    def learned(self, x_BCS: Tensor) -> Tensor:
        """Return the learned part of the embedding (window, learned_dim) of prepared windows (window, 3, sample)."""
        return self._learned(self.picture.frames(x_BCS))

    def _learned(self, frames: Frames) -> Tensor:
        y = functional.relu(self.stem_norm(self.stem(self.picture(frames))))
        y = self.trunk(y)
        pooled = torch.cat([y.mean(-1), y.amax(-1)], dim=1).flatten(1)
        if self.config.log_amplitude:
            pooled = torch.cat([pooled, frames.log_rms[:, None]], dim=1)
        embedding: Tensor = self.out(pooled)
        return embedding


class ProjectionHead(nn.Module):
    """Two layers from the embedding to where the contrastive loss works; discarded after training."""

    def __init__(self, dim: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Linear(dim, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.second = nn.Linear(hidden, outputs)

    def forward(self, embedding_BD: Tensor) -> Tensor:
        """Return projections (window, outputs), not yet of unit length."""
        projection: Tensor = self.second(functional.relu(self.norm(self.first(embedding_BD))))
        return projection
