"""Configuration: who wins, what is refused, and in which words."""

import pytest

from pipelines import config as configuration
from pipelines.config import Config, read_flags, read_yaml, resolve, stage_config, stage_output_keys, to_yaml
from pipelines.runtime.errors import InputError


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
        ([("archive.start", "2022")], ["archive.start: 2022 is a number; write a time such as"]),
        ([("archive.end", "20220101")], ["archive.end: 20220101 is a number; write a time such as"]),
        ([("archive.end", "'20220101'")], ["archive.end: 20220101 is a number; write a time such as"]),
        ([("fetch.start", "0")], ["fetch.start: 0 is a number; write a time such as"]),
        ([("archive.station", "[A, B]")], ["archive.station = ['A', 'B']", "string"]),
        ([("detection.on", ".nan")], ["detection.on = nan", "finite"]),
        ([("detection.band_hz", "[1, .inf]")], ["detection.band_hz.1 = inf", "finite"]),
        ([("train.temperature", ".inf")], ["train.temperature = inf", "finite"]),
        ([("shards.interval", "year")], ["shards.interval", "year"]),
        ([("label.model", "http://127.0.0.1:9/x")], ["label.model is http://127.0.0.1:9/x", "models:/"]),
        ([("kmeans.seed", "-1")], ["kmeans.seed", "-1", "greater than or equal to 0"]),
        ([("report.seed", "-1")], ["report.seed", "-1", "greater than or equal to 0"]),
        ([("train.seed", "4294967296")], ["train.seed", "4294967296", "less than"]),
        ([("tune.seed", "4294967296")], ["tune.seed", "4294967296", "less than"]),
    ],
)
def test_a_mistake_gives_one_sentence_with_key_and_value(flags, words):
    with pytest.raises(InputError) as caught:
        resolve(read_flags(flags))
    sentence = str(caught.value)
    assert "\n" not in sentence
    for word in words:
        assert word in sentence


@pytest.mark.parametrize("code", ["00", "0101", "1e5", "true", "2022-01-01", "null", "--", "*", "HH?,BH?", "A #1"])
def test_a_text_key_takes_what_is_typed(code):
    assert resolve(read_flags([("archive.location", code)])).archive.location == code


def test_a_text_key_takes_quotes_as_yaml_and_null_where_there_may_be_none():
    resolved = resolve(read_flags([("archive.station", "'0101'"), ("labels.path", "null"), ("label.model", "7")]))
    assert (resolved.archive.station, resolved.labels.path, resolved.label.model) == ("0101", None, "7")


def test_a_number_in_place_of_a_code_is_refused_in_a_file():
    with pytest.raises(InputError, match=r"archive\.location = 0: must be text; put it in quotes"):
        resolve(read_yaml("archive:\n  location: 00\n", name="x"))


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
