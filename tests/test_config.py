"""Configuration: who wins, what is refused, and in which words."""

import pytest

from pipelines import config as configuration
from pipelines.config import Config, read_flags, read_yaml, resolve, stage_config, stage_output_keys, to_yaml
from pipelines.errors import InputError


def test_flags_win_over_the_file_over_the_workspace_over_defaults():
    stored = {"detection": {"on": 5, "off": 2, "lta_seconds": 20}}
    file = {"detection": {"on": 6, "off": 2.5}}
    resolved = resolve(stored, file, read_flags([("detection.on", "7")])).detection
    assert (resolved.on, resolved.off, resolved.lta_seconds, resolved.sta_seconds) == (7, 2.5, 20, 0.5)


def test_on_and_off_are_keys_not_booleans():
    assert read_yaml("detection:\n  on: 4\n  off: 2\n", name="x") == {"detection": {"on": 4, "off": 2}}


def test_what_is_stored_reads_back_as_what_was_resolved():
    resolved = resolve(read_flags([("detection.band_hz", "[2, 15]"), ("archive.start", "2022-01-01")]))
    again = resolve(read_yaml(to_yaml(stage_config(resolved, "detect")), name="x"))
    assert stage_output_keys(again, "detect") == stage_output_keys(resolved, "detect")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([("detection.sta_seconds", "40")], ["detection", "sta_seconds 40", "lta_seconds 10"]),
        ([("detection.foo", "1")], ["detection.foo", "unknown"]),
        ([("nonsense.key", "1")], ["nonsense", "unknown"]),
        ([("detection.on", "loud")], ["detection.on", "loud", "number"]),
        ([("detection.method", "fft")], ["detection.method", "fft", "recursive"]),
        ([("window.lead_seconds", "40")], ["lead_seconds 40", "length_seconds 30"]),
        ([("detection.trigger_components", "ZX")], ["trigger_components", "ZX"]),
        ([("detection.band_hz", "[5, 2]")], ["band_hz [5, 2]"]),
        ([("archive.layout", "sdss")], ["archive.layout", "sdss", "sds"]),
        ([("archive.start", "2022-02-01"), ("archive.end", "2022-01-01")], ["archive", "end must be later"]),
        ([("shards.interval", "year")], ["shards.interval", "year"]),
    ],
)
def test_a_mistake_gives_one_sentence_with_key_and_value(flags, words):
    with pytest.raises(InputError) as caught:
        resolve(read_flags(flags))
    sentence = str(caught.value)
    assert "\n" not in sentence
    for word in words:
        assert word in sentence


def test_every_key_is_documented():
    for stage in configuration.STAGE_SECTIONS:
        for key, _, text in configuration.describe_keys(stage):
            assert len(text) > 10, key


def test_workers_change_no_fingerprint():
    few, many = (resolve(read_flags([("shards.num_workers", str(count))])) for count in (1, 64))
    assert stage_output_keys(few, "detect") == stage_output_keys(many, "detect")
    assert "detection.on" in stage_output_keys(Config(), "detect")


def test_a_file_that_is_no_mapping_is_refused():
    with pytest.raises(InputError, match=r"list\.yaml must hold sections"):
        read_yaml("- 1\n- 2\n", name="list.yaml")
    with pytest.raises(InputError, match=r"broken\.yaml is not valid YAML"):
        read_yaml("a: [1", name="broken.yaml")
