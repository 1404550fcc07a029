"""The trained encoder as the stages share it: built from a configuration, stored as safetensors, applied to arrays."""

import hashlib
import json
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .baselines import ConvolutionalAutoencoder, HandFeatures, SpectrogramPca
from .networks import NetworkConfig, SpectrogramNetwork
from .preparation import frame_length_for, prepare

NETWORKS: dict[str, type[nn.Module]] = {"spectrogram": SpectrogramNetwork}
"""Encoders that the contrastive training trains."""

BASELINES: dict[str, type[nn.Module]] = {
    "features": HandFeatures,
    "pca": SpectrogramPca,
    "autoencoder": ConvolutionalAutoencoder,
}
"""Encoders that are fitted in another way, for comparison."""

GONE = ("waveform",)
"""Kinds of encoders that a workspace may hold and that this release cannot apply."""

EMBED_BATCH = 128
"""Windows in one forward pass of `Encoder.embed`; fixed, since the order of a sum may depend on the batch size."""

MAX_FILE_BYTES = 4 << 30
"""Of an encoder's file; the largest network that can be configured has 2.3 GB."""

MAX_SIZES = {
    "num_samples": 36_000_000,
    "lead_samples": 36_000_000,
    "width": 512,
    "blocks": 8,
    "dim": 4096,
    "num_bands": 256,
    "num_frames": 1024,
}
"""Largest values in a stored configuration: those of the sections `train` and `window`."""

MAX_RATE_HZ = 10_000.0

MAX_POLARISATION = 100.0

MAX_BAND_MATRIX = 1 << 25
"""Bands times samples of a frame: a matrix that is computed, not stored, of at most 128 MiB."""

_HEADER_KEY = "firnline_encoder"


def build_network(config: NetworkConfig) -> nn.Module:
    """Return a network of the configured kind, its weights drawn from torch's global generator."""
    kinds = NETWORKS | BASELINES
    if config.kind in GONE:
        raise ValueError(f"The encoder is of the kind {config.kind!r}, which there is no longer: train again.")
    if config.kind not in kinds:
        raise ValueError(f"The encoder kind is {config.kind!r}: choose one of {', '.join(kinds)}.")
    return kinds[config.kind](config)


class Encoder:
    """A network with its configuration: windows in, embeddings out."""

    def __init__(self, config: NetworkConfig, network: nn.Module) -> None:
        self.config = config
        self.network = network.eval()
        for parameter in self.network.parameters():
            parameter.requires_grad_(False)
        tensors = {name: tensor.detach().cpu() for name, tensor in self.network.state_dict().items()}
        self.content_hash = _content_hash(config, tensors)

    @property
    def dim(self) -> int:
        """The length of an embedding."""
        empty = torch.full((1, 3, self.num_samples), torch.nan, device=self.device)
        with torch.inference_mode():
            return int(self.network(empty).shape[1])

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        tensors = [*self.network.parameters(), *self.network.buffers()]
        return tensors[0].device

    @property
    def measures(self) -> bool:
        """Whether the last component of an embedding is measured: how linear the motion is."""
        return self.config.polarisation > 0

    @property
    def num_samples(self) -> int:
        """Samples of the windows that it takes."""
        return self.config.num_samples

    @property
    def rate_hz(self) -> float:
        """Sampling rate of the windows that it takes."""
        return self.config.rate_hz

    def embed(self, waveforms: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the embeddings of raw windows.

        Args:
            waveforms: (window, 3, sample) float32, rows E, N, Z, absent samples NaN.

        Returns:
            (window, dim) float32, finite; zero rows for zero windows.

        Raises:
            ValueError: if the windows do not have the shape that the encoder was trained for.
        """
        if waveforms.ndim != 3 or waveforms.shape[1:] != (3, self.num_samples):
            raise ValueError(
                f"The windows have the shape {waveforms.shape}: this encoder takes (n, 3, {self.num_samples}) "
                f"at {self.rate_hz:g} Hz."
            )
        if not len(waveforms):
            return np.zeros((0, self.dim), dtype=np.float32)
        batches = range(0, len(waveforms), EMBED_BATCH)
        return np.concatenate(
            [self.embed_prepared(self.prepare(waveforms[start : start + EMBED_BATCH])) for start in batches]
        )

    def prepare(self, waveforms: NDArray[np.float32]) -> Tensor:
        """Return prepared windows on the network's device (see `preparation.prepare`)."""
        # Ray and Arrow give read-only arrays, which torch warns about, so the array is copied.
        raw = torch.from_numpy(np.array(waveforms, dtype=np.float32))
        with torch.inference_mode():
            return prepare(raw.to(self.device), self.config.lead_samples)

    def embed_prepared(self, windows: Tensor) -> NDArray[np.float32]:
        """Return the embeddings (window, dim) float32 of prepared windows."""
        with torch.inference_mode():
            parts = [self.network(batch).float().cpu() for batch in torch.split(windows, EMBED_BATCH)]
        return torch.cat(parts).numpy()

    def to_bytes(self) -> bytes:
        """Return the encoder as one safetensors file whose header holds the configuration as JSON."""
        from safetensors.torch import save

        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.network.state_dict().items()}
        return save(tensors, metadata={_HEADER_KEY: _stored(self.config)})

    def to(self, device: str) -> "Encoder":
        """Move the network to a device and return the encoder."""
        self.network.to(device)
        return self


def load(source: bytes | str | Path) -> Encoder:
    """Return the encoder stored by `Encoder.to_bytes`, from its bytes or a local file; executes no code of the file.

    Memory is bounded by the file's size: the sizes that its configuration states are checked against the stated bounds
    and against the tensors that the file holds before a network is built.

    Raises:
        ValueError: if the content is not an encoder, or its configuration and its tensors disagree.
    """
    name = "the given bytes" if isinstance(source, bytes) else str(source)
    try:
        content = source if isinstance(source, bytes) else _read(Path(source))
        config, tensors = _parse(content)
        network = _build(config, tensors)
    except ValueError as error:
        raise ValueError(f"There is no Firnline encoder in {name}: {error}") from error
    return Encoder(config, network)


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise ValueError("it is not a file.")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"it is larger than {MAX_FILE_BYTES >> 30} GiB.")
    return path.read_bytes()


def _parse(content: bytes) -> tuple[NetworkConfig, dict[str, Tensor]]:
    """Return the configuration and the tensors of a safetensors file, each of its stated kind and within the bounds."""
    from safetensors import SafetensorError
    from safetensors.torch import load as load_tensors

    try:
        # It checks the header against the file's size.
        tensors = load_tensors(content)
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length]).get("__metadata__", {})
        values: Any = json.loads(header[_HEADER_KEY])
    except (SafetensorError, KeyError, AttributeError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}.") from error
    kinds = {field.name: field.type for field in fields(NetworkConfig)}
    required = {field.name for field in fields(NetworkConfig) if field.default is MISSING}
    if not isinstance(values, dict) or not required <= set(values) <= set(kinds):
        raise ValueError(f"its configuration must have the keys {', '.join(kinds)}.")
    for key, value in values.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if key == "kind" or key == "log_amplitude":
            right = isinstance(value, str if key == "kind" else bool)
        elif key == "rate_hz":
            right = number and 0 < value <= MAX_RATE_HZ
        elif key == "polarisation":
            right = number and 0 <= value <= MAX_POLARISATION
        else:
            right = number and isinstance(value, int) and 0 <= value <= MAX_SIZES[key]
        if not right:
            raise ValueError(f"its {key} is {str(value)[:40]!r}.")
    return NetworkConfig(**values), tensors


def _build(config: NetworkConfig, tensors: dict[str, Tensor]) -> nn.Module:
    """Return the network with these weights; nothing is allocated before the shapes agree."""
    fft_length, _ = frame_length_for(config.num_samples, max(config.num_frames, 1))
    if config.num_bands * fft_length > MAX_BAND_MATRIX:
        raise ValueError(f"its {config.num_bands} bands of {fft_length} samples are too many.")
    try:
        with torch.device("meta"):
            expected = {name: (value.shape, value.dtype) for name, value in build_network(config).state_dict().items()}
    except (RuntimeError, ZeroDivisionError, IndexError) as error:
        raise ValueError(f"its configuration gives no network: {error}.") from error
    if expected != {name: (value.shape, value.dtype) for name, value in tensors.items()}:
        raise ValueError("its tensors are not those of the network in its configuration.")
    if not all(bool(torch.isfinite(value).all()) for value in tensors.values()):
        raise ValueError("its weights are not all finite.")
    network = build_network(config)
    network.load_state_dict(tensors)
    return network


def _stored(config: NetworkConfig) -> str:
    """Return a configuration as JSON; `polarisation` is left out where it is 0, as it was before there was the key."""
    values = asdict(config)
    if not config.polarisation:
        del values["polarisation"]
    return json.dumps(values, sort_keys=True)


def _content_hash(config: NetworkConfig, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(_stored(config).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
