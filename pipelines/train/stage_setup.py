"""From the configuration to the settings of a training; shared by the stages that train."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.config import MAX_YAML_BYTES, OF_A_RUN, Config
from pipelines.config.augmentation import AugmentationSettings
from pipelines.contrastive.step import TrainPlan
from pipelines.encoders import NETWORKS, NetworkConfig
from pipelines.encoders.preparation import prepare
from pipelines.runtime.errors import InputError
from pipelines.tracking.runs import file_of_run
from pipelines.tracking.server import Tracking
from pipelines.workspace.artifacts import BEST_AUGMENTATION, WorkspaceState, read_augmentation
from pipelines.workspace.storage import Store, open_store, read_file, said_of
from pipelines.workspace.workspace import Workspace

_PREPARE_BATCH = 64
AUGMENTATION_OF_TRAINING, AUGMENTATION_OF_SEARCH = "augmentation.yaml", "best-augmentation.yaml"
"""The artifact of MLflow with the augmentation section that a training used, and the one that a search found."""


def effective_augmentation(workspace: Workspace, config: Config, tracking: Tracking) -> AugmentationSettings:
    """Return the augmentation section that is trained with: `train.augment_from`'s where that is given.

    Args:
        workspace: whose own search `tune` names.
        config: of the training.
        tracking: where the run `runs:/ID` is.

    Raises:
        InputError: what `train.augment_from` names cannot be read, has had no search, or is not an augmentation
            section.
    """
    source = config.train.augment_from
    if source is None:
        return config.augmentation
    if source.startswith(OF_A_RUN):
        return read_augmentation(_augmentation_of_run(tracking, source), name=f"train.augment_from {source}")
    store = workspace.store if source == "tune" else _workspace_at(source)
    if store is not None and not store.exists(BEST_AUGMENTATION):
        where = "give a file" if source == "tune" else "give another source"
        raise InputError(
            f"train.augment_from is {source!r}, but there is no {store.full(BEST_AUGMENTATION)}; run tune first or "
            f"{where}"
        )
    name = source if store is None else store.full(BEST_AUGMENTATION)
    content = read_file(name, "train.augment_from", max_bytes=MAX_YAML_BYTES)
    return read_augmentation(content, name=f"train.augment_from {name}")


def _workspace_at(url: str) -> Store | None:
    """Return the storage of a workspace; None where there is none, as for a file."""
    with said_of(url, "train.augment_from"):
        store = open_store(url)
        is_folder = not store.is_local or Path(store.url).is_dir()
        return store if is_folder and store.exists(WorkspaceState.PATH) else None


def _augmentation_of_run(tracking: Tracking, source: str) -> bytes:
    """Return the augmentation section of the run `runs:/ID`, a search or a training."""
    names = (AUGMENTATION_OF_SEARCH, AUGMENTATION_OF_TRAINING)
    try:
        return file_of_run(tracking, source.removeprefix(OF_A_RUN), names, max_bytes=MAX_YAML_BYTES)
    except InputError as error:
        raise InputError(f"train.augment_from {source} cannot be read: {error}") from None


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


def fits_on_device(windows: Tensor, device: torch.device) -> bool:
    """Return whether windows take less than half of the free memory of a CUDA device."""
    free, _ = torch.cuda.mem_get_info(device)
    return windows.nbytes < free // 2


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch work with so many threads inside; sums depend on them, so the number is never left to chance."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
