"""The trained encoder as the stages share it: built from a configuration, stored as safetensors, applied to arrays."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .baselines import ConvolutionalAutoencoder, HandFeatures, SpectrogramPca
from .networks import NetworkConfig, SpectrogramNetwork, WaveformNetwork
from .preparation import prepare

NETWORKS: dict[str, type[nn.Module]] = {"spectrogram": SpectrogramNetwork, "waveform": WaveformNetwork}
"""Encoders that the contrastive training trains."""

BASELINES: dict[str, type[nn.Module]] = {
    "features": HandFeatures,
    "pca": SpectrogramPca,
    "autoencoder": ConvolutionalAutoencoder,
}
"""Encoders that are fitted otherwise, to compare with."""

EMBED_BATCH = 128
"""Windows of one forward pass of `Encoder.embed`; fixed, since a sum's order may depend on the batch's size."""

_HEADER_KEY = "firnline_encoder"


def build_network(config: NetworkConfig) -> nn.Module:
    """Return a network of the configured kind, its weights drawn from torch's global generator."""
    kinds = NETWORKS | BASELINES
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
        empty = torch.full((1, 3, self.num_samples), torch.nan, device=_device(self.network))
        with torch.inference_mode():
            return int(self.network(empty).shape[1])

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
            ValueError: if the windows have another shape than the encoder was trained for.
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
        # Ray and Arrow hand out read-only arrays, which torch warns of: this copies.
        raw = torch.from_numpy(np.array(waveforms, dtype=np.float32))
        with torch.inference_mode():
            return prepare(raw.to(_device(self.network)), self.config.lead_samples)

    def embed_prepared(self, windows: Tensor) -> NDArray[np.float32]:
        """Return the embeddings (window, dim) float32 of prepared windows."""
        with torch.inference_mode():
            parts = [self.network(batch).float().cpu() for batch in torch.split(windows, EMBED_BATCH)]
        return torch.cat(parts).numpy()

    def to_bytes(self) -> bytes:
        """Return the encoder as one safetensors file whose header holds the configuration as JSON."""
        from safetensors.torch import save

        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.network.state_dict().items()}
        return save(tensors, metadata={_HEADER_KEY: json.dumps(asdict(self.config), sort_keys=True)})

    def to(self, device: str) -> "Encoder":
        """Move the network to a device and return the encoder."""
        self.network.to(device)
        return self


def load(source: bytes | str | Path) -> Encoder:
    """Return the encoder stored by `Encoder.to_bytes`, from its bytes or a local file; executes no code of the file.

    Raises:
        ValueError: if the content is no encoder.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as load_tensors

    content = source if isinstance(source, bytes) else Path(source).read_bytes()
    try:
        tensors = load_tensors(content)
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length]).get("__metadata__", {})
        values: dict[str, Any] = json.loads(header[_HEADER_KEY])
        config = NetworkConfig(**values)
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        name = "the given bytes" if isinstance(source, bytes) else str(source)
        raise ValueError(f"There is no Firnline encoder in {name}: {type(error).__name__}: {error}.") from error
    network = build_network(config)
    network.load_state_dict(tensors)
    return Encoder(config, network)


def _content_hash(config: NetworkConfig, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _device(network: nn.Module) -> torch.device:
    tensors = [*network.parameters(), *network.buffers()]
    return tensors[0].device
