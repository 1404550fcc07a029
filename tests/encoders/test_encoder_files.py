"""Encoder files of strangers: their sizes are checked before anything is built, and none of their code runs."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save

from pipelines import encoders
from pipelines.encoders import BASELINES, NETWORKS, Encoder, NetworkConfig, build_network

ROOT = Path(__file__).resolve().parents[2]
CONFIG = NetworkConfig(kind="spectrogram", num_samples=400, rate_hz=40.0, lead_samples=100, width=8, dim=6, num_bands=8)


def encoder(kind="spectrogram"):
    torch.manual_seed(0)
    config = NetworkConfig(**{**asdict(CONFIG), "kind": kind})
    return Encoder(config, build_network(config))


def with_config(content=None, **changes):
    """Return an encoder's file with its own tensors and a changed configuration."""
    values = {**asdict(CONFIG), **changes}
    return save(load_tensors(content or encoder().to_bytes()), metadata={"firnline_encoder": json.dumps(values)})


@pytest.mark.parametrize("kind", [*NETWORKS, *BASELINES])
def test_every_kind_of_encoder_reads_back_as_it_was(kind):
    stored = encoder(kind)
    again = encoders.load(stored.to_bytes())
    assert again.content_hash == stored.content_hash
    windows = np.random.default_rng(0).standard_normal((3, 3, 400)).astype(np.float32)
    np.testing.assert_array_equal(again.embed(windows), stored.embed(windows))


@pytest.mark.parametrize(
    "changes",
    [
        {"blocks": 1_000_000},
        {"blocks": -1},
        {"width": 1 << 40},
        {"dim": 10**12},
        {"dim": True},
        {"num_samples": 10**12},
        {"num_frames": 0},
        {"num_frames": "96"},
        {"num_bands": 1e3},
        {"rate_hz": "fast"},
        {"rate_hz": float("nan")},
        {"kind": ["spectrogram"]},
        {"kind": "os.system"},
        {"planted": 1},
        {"log_amplitude": 1},
        {"lead_samples": 500},
        {"num_samples": 36_000_000, "num_bands": 256, "num_frames": 16},
        {"width": 512, "blocks": 8},
        {"dim": 4096},
    ],
    ids=str,
)
def test_a_configuration_that_its_tensors_do_not_bear_out_is_refused(changes):
    with pytest.raises(ValueError, match=r"^There is no Firnline encoder in the given bytes: .*\.$") as caught:
        encoders.load(with_config(**changes))
    assert len(str(caught.value)) < 300


def broken_files():
    good = encoder().to_bytes()
    tensors = load_tensors(good)
    length = int.from_bytes(good[:8], "little")
    yield "empty", b""
    yield "text", b"<html>" * 100
    yield "cut", good[: len(good) // 2]
    yield "long header", (1 << 62).to_bytes(8, "little") + good[8:]
    yield "no configuration", save(tensors)
    yield "configuration is no object", save(tensors, metadata={"firnline_encoder": "[]"})
    yield "configuration is deep", save(tensors, metadata={"firnline_encoder": "[" * 100_000})
    yield (
        "more than its bytes",
        good[:8] + good[8 : 8 + length].replace(b"[8,2,5,5]", b"[8,2,5,9]") + good[8 + length :],
    )
    one_less = dict(tensors)
    one_less.popitem()
    yield "a tensor is missing", save(one_less, metadata={"firnline_encoder": json.dumps(asdict(CONFIG))})
    whole = {name: value.to(torch.int8) for name, value in tensors.items()}
    yield "whole numbers", save(whole, metadata={"firnline_encoder": json.dumps(asdict(CONFIG))})
    no_numbers = {name: torch.full_like(value, torch.nan) for name, value in tensors.items()}
    yield "no numbers", save(no_numbers, metadata={"firnline_encoder": json.dumps(asdict(CONFIG))})


@pytest.mark.parametrize(
    ("name", "content"), list(broken_files()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_broken_file_is_refused_in_one_sentence(name, content, tmp_path):
    path = tmp_path / "encoder.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"There is no Firnline encoder in .*encoder\.safetensors: "):
        encoders.load(path)


def test_what_is_no_file_or_too_large_is_never_read(tmp_path, monkeypatch):
    for path, words in ((Path("/dev/zero"), "it is not a file"), (tmp_path, "it is not a file")):
        with pytest.raises(ValueError, match=words):
            encoders.load(path)
    sparse = tmp_path / "sparse.safetensors"
    with sparse.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match="larger than 4 GiB"):
        encoders.load(sparse)


MEASURE = """
import resource, sys
from pathlib import Path
from pipelines import encoders
encoders.load(Path(sys.argv[1]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    encoders.load(Path(sys.argv[2]))
except ValueError as error:
    print(error, file=sys.stderr)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_a_million_blocks_allocate_no_memory(tmp_path):
    (tmp_path / "good").write_bytes(encoder().to_bytes())
    (tmp_path / "bad").write_bytes(with_config(blocks=1_000_000))
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "good"), str(tmp_path / "bad")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, check=True)
    assert "its blocks is '1000000'" in done.stderr
    assert int(done.stdout) < 64 << 20


def test_an_encoder_of_a_kind_that_is_gone_asks_for_another_training():
    with pytest.raises(ValueError, match="of the kind 'waveform', which there is no longer: train again"):
        encoders.load(with_config(kind="waveform"))
