"""From the configuration to the settings of a training; shared by the stages that train."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.config import MAX_YAML_BYTES, Config
from pipelines.config.augmentation import AugmentationSettings
from pipelines.contrastive.step import TrainPlan
from pipelines.encoders import NETWORKS, NetworkConfig
from pipelines.encoders.preparation import prepare
from pipelines.runtime.errors import InputError
from pipelines.workspace.artifacts import BEST_AUGMENTATION, read_augmentation
from pipelines.workspace.storage import read_file
from pipelines.workspace.workspace import Workspace

_PREPARE_BATCH = 64


def effective_augmentation(workspace: Workspace, config: Config) -> AugmentationSettings:
    """Return the augmentation section that is trained with: `train.augment_from`'s where that is given.

    Raises:
        InputError: the file cannot be read or is not an augmentation section.
    """
    source = config.train.augment_from
    if source is None:
        return config.augmentation
    name = workspace.store.full(BEST_AUGMENTATION) if source == "tune" else source
    if source == "tune" and not workspace.store.exists(BEST_AUGMENTATION):
        raise InputError(f"train.augment_from is {source!r}, but there is no {name}; run tune first or give a file")
    content = read_file(name, "train.augment_from", max_bytes=MAX_YAML_BYTES)
    return read_augmentation(content, name=f"train.augment_from {name}")


class WindowShape(Protocol):
    """What a network is built for; a sample of events has it, and the window settings before there are events."""

    @property
    def num_samples(self) -> int:
        """Samples of a window."""

    @property
    def rate_hz(self) -> float:
        """Sampling rate of a window."""

    @property
    def lead_samples(self) -> int:
        """Samples before the onset."""


def network_config(config: Config, window: WindowShape) -> NetworkConfig:
    """Return the network's configuration for windows of a shape.

    Raises:
        InputError: the windows are too short for an encoder.
    """
    settings = config.train
    kind = "spectrogram" if settings.encoder == "untrained" else settings.encoder
    try:
        return NetworkConfig(
            kind=kind,
            num_samples=window.num_samples,
            rate_hz=window.rate_hz,
            lead_samples=window.lead_samples,
            width=settings.width,
            blocks=settings.blocks,
            dim=settings.dim,
            num_bands=settings.num_bands,
            num_frames=settings.num_frames,
            log_amplitude=settings.log_amplitude,
            polarisation=settings.polarisation if settings.encoder in NETWORKS else 0.0,
        )
    except ValueError as error:
        shape = f"{window.num_samples} samples at {window.rate_hz:g} Hz"
        raise InputError(
            f"windows of {shape} (window.length_seconds, window.rate_hz) suit no encoder: {error}"
        ) from None


def train_plan(config: Config) -> TrainPlan:
    """Return the plan of the configured training."""
    settings = config.train
    return TrainPlan(
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        temperature=settings.temperature,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        warmup_epochs=settings.warmup_epochs,
        view_ramp_epochs=settings.view_ramp_epochs,
        seed=settings.seed,
        bf16=settings.bf16,
    )


def prepare_windows(windows: NDArray[np.float32], lead_samples: int) -> Tensor:
    """Return prepared windows, batch by batch, so that no second copy of all of them is made."""
    prepared = torch.from_numpy(np.array(windows, dtype=np.float32))
    for start in range(0, len(prepared), _PREPARE_BATCH):
        stop = start + _PREPARE_BATCH
        prepared[start:stop] = prepare(prepared[start:stop], lead_samples)
    return prepared


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch work with so many threads inside; sums depend on them, so the number is never left to chance."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
