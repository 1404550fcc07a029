"""A training's state as one safetensors file: weights, AdamW's moments, and everything else as JSON."""

import json
from typing import Any

import torch
from torch import Tensor

from pipelines.contrastive.step import TrainState

_HEADER_KEY = "firnline_training"


def state_to_bytes(state: TrainState, facts: dict[str, Any]) -> bytes:
    """Return a training's state; `facts` are JSON values stored with it.

    No generator's state is needed: order and augmentations are drawn from (seed, epoch, rank).
    """
    from safetensors.torch import save

    tensors = {f"model.{name}": tensor for name, tensor in state.learner.state_dict().items()}
    for index, moments in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
    header = {"epochs_done": state.epochs_done, "facts": facts}
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return save(plain, metadata={_HEADER_KEY: json.dumps(header, sort_keys=True)})


def read_facts(content: bytes) -> tuple[int, dict[str, Any]]:
    """Return the epochs done and the facts of a stored state.

    Raises:
        ValueError: if the content is no stored state.
    """
    try:
        length = int.from_bytes(content[:8], "little")
        header = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][_HEADER_KEY])
        return int(header["epochs_done"]), dict(header["facts"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"this is no training checkpoint: {type(error).__name__}: {error}") from error


def restore_state(state: TrainState, content: bytes) -> None:
    """Load a stored state into one of the same network and plan; executes no code of the file."""
    from safetensors.torch import load

    epochs_done, _ = read_facts(content)
    tensors = load(content)
    state.learner.load_state_dict(_below("model.", tensors))
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _below("optimizer.", tensors).items():
        index, _, key = name.partition(".")
        moments.setdefault(int(index), {})[key] = tensor
    full = state.optimizer.state_dict()
    state.optimizer.load_state_dict({"state": moments, "param_groups": full["param_groups"]})
    state.epochs_done = epochs_done


def network_state(content: bytes) -> dict[str, Tensor]:
    """Return the encoder's part of a stored state, without the projection head."""
    from safetensors.torch import load

    return _below("model.network.", load(content))


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
