"""Which encoder labels the events, and whether their windows are those that it takes."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.config import Config
from pipelines.encoders import Encoder, load
from pipelines.label.stage_shards import EventShard
from pipelines.runtime.errors import InputError
from pipelines.tracking.models import download_artifact, is_registered, model_version
from pipelines.tracking.server import Tracking
from pipelines.workspace.artifacts import ENCODER, TrainingRecord
from pipelines.workspace.event_sample import window_shape
from pipelines.workspace.storage import Store


@dataclass(frozen=True, kw_only=True)
class RegisteredEncoder:
    """An encoder and where it is registered."""

    encoder: Encoder
    uri: str
    """Of its version: an alias may point elsewhere tomorrow."""
    run_id: str
    """Of its training, where that is known."""


def load_encoder(store: Store, config: Config, tracking: Tracking) -> RegisteredEncoder:
    """Return the workspace's own encoder, or download the one that `label.model` names.

    Raises:
        InputError: there is no such model, or it holds no encoder.
    """
    uri = config.label.model
    if uri is None:
        return _own_encoder(store, tracking)
    with tempfile.TemporaryDirectory(prefix="firnline-") as folder:
        found = download_artifact(tracking, uri, Path(folder))
        files = [found] if found.is_file() else sorted(found.rglob("*.safetensors"))
        if not files:
            raise InputError(f"label.model {uri} holds no encoder (*.safetensors); give a model that Firnline trained")
        try:
            encoder = load(files[0])
        except ValueError as error:
            raise InputError(f"label.model {uri}: {error}") from None
    version, run_id = model_version(tracking, uri)
    return RegisteredEncoder(encoder=encoder, uri=version, run_id=run_id)


def _own_encoder(store: Store, tracking: Tracking) -> RegisteredEncoder:
    """Return the encoder that this workspace trained last, whether or not MLflow still has it."""
    done = TrainingRecord.read(store)
    if done is None:
        raise InputError(
            f"label.model is not given and {store.url} has trained no encoder; run `firnline train` first or give a "
            "registered one, such as models:/firnline-encoder@champion"
        )
    name = store.full(ENCODER)
    try:
        encoder = load(store.read(ENCODER))
    except FileNotFoundError:
        raise InputError(f"{name} is missing; restore it, or run `firnline train --replace`") from None
    except ValueError as error:
        raise InputError(f"{name} is damaged ({error}); restore it, or run `firnline train --replace`") from None
    if encoder.content_hash != done.content_hash:
        raise InputError(
            f"{name} is not the encoder that {store.full(TrainingRecord.PATH)} tells of; restore it, or run "
            "`firnline train --replace`"
        )
    if not is_registered(tracking, done.model_uri):
        print(f"label: {done.model_uri} is not in MLflow; this workspace's own {ENCODER} is used", flush=True)
    return RegisteredEncoder(encoder=encoder, uri=done.model_uri, run_id=done.run_id)


def check_windows(store: Store, shards: Sequence[EventShard], encoder: Encoder) -> None:
    """Raise InputError where the events' windows are not those that the encoder takes: length, rate or onset differ."""
    refuse_other_windows(encoder, *window_shape(store, [shards[0].path("events")]))


def refuse_other_windows(encoder: Encoder, num_samples: int, rate_hz: float, lead_samples: int) -> None:
    """Raise InputError where windows of this length, rate and lead are not those that the encoder takes."""
    network = encoder.config
    same_rate = np.isclose(rate_hz, network.rate_hz)
    # An onset lies between samples, so that a window's lead may be rounded either way.
    same_lead = abs(lead_samples - network.lead_samples) <= 1
    if num_samples != network.num_samples or not same_rate or not same_lead:
        raise InputError(
            f"the encoder takes windows of {network.num_samples} samples at {network.rate_hz:g} Hz, "
            f"{network.lead_samples} of them before the onset, but an event's has {num_samples} at {rate_hz:g} Hz, "
            f"{lead_samples} of them before the onset; choose another label.model or train on these events"
        )
