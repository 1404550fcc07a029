"""The configurations in configs/ are accepted, and each says what its story needs."""

from pathlib import Path

import pytest

from pipelines.config import Config, read_yaml, resolve

CONFIGS = sorted((Path(__file__).resolve().parent.parent / "configs").glob("*.yaml"))


def resolved(name: str) -> Config:
    [path] = [path for path in CONFIGS if path.stem == name]
    return resolve(read_yaml(path.read_text(), name=path.name))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_is_accepted_and_detects_below_the_nyquist_frequency(path: Path):
    config = resolved(path.stem)
    assert config.detection.band_hz[1] < config.window.rate_hz / 2
    assert config.detection.sta_seconds < config.detection.lta_seconds
    assert config.window.lead_seconds < config.window.length_seconds


def test_neumayer_means_the_three_stations_of_the_aw_network():
    config = resolved("neumayer")
    assert (config.archive.network, config.archive.station) == ("AW", "VNA1,VNA2,VNA3")
    assert (config.fetch.network, config.fetch.station) == ("AW", "VNA1,VNA2,VNA3")
    # A switch in YAML's eyes if it were not quoted.
    assert (config.detection.on, config.detection.off) == (4.0, 1.5)


def test_every_value_for_neumayer_is_marked_as_ours():
    text = next(path for path in CONFIGS if path.stem == "neumayer").read_text()
    assert "OUR choice" in text
    assert "Kinzel" in text
