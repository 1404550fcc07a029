"""YAML of strangers: what is refused, in which words, and that nothing is built before it is."""

import ast
import tracemalloc
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs import command_line
from pipelines import config as configuration
from pipelines.config import load_yaml, read_yaml, resolve, to_yaml
from pipelines.config.safe_yaml import MAX_DEPTH, MAX_NODES, MAX_YAML_BYTES
from pipelines.handlabels.cluster_names import read_cluster_names
from pipelines.runtime.errors import InputError
from pipelines.workspace.workspace import open_workspace

ROOT = Path(__file__).resolve().parent.parent


def billion_laughs() -> str:
    """459 bytes that stand for 9 ** 9 strings."""
    lines = ["a: &a [" + ",".join(["x"] * 9) + "]"]
    lines += [f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True)]
    return "\n".join(lines)


HOSTILE = {
    "aliases": (billion_laughs(), f"more than {MAX_NODES} values"),
    "recursion": ("a: &a [*a]", "part of what it stands for"),
    "depth": ("[" * 100_000, f"nested more than {MAX_DEPTH} deep"),
    "depth of mappings": ("{a: " * 10_000, f"nested more than {MAX_DEPTH} deep"),
    "size": ("#" * (MAX_YAML_BYTES + 1), "larger than 256 KiB"),
    "values": ("[" + "1," * 30_000, f"more than {MAX_NODES} values"),
    "long number": ("a: " + "9" * 10_000, "more than 64 characters"),
    "long hexadecimal number": ("a: 0x" + "f" * 10_000, "more than 64 characters"),
    "long sexagesimal number": ("a: 1" + ":59" * 10_000, "more than 64 characters"),
    "huge number": ("a: " + "9" * 30, "beyond 64 bits"),
    "duplicate key": ("detection:\n  on: 4\n  on: 5", "the key 'on' is given twice in line 3, column 3"),
    "code": ("a: !!python/object/apply:os.system ['touch /tmp/planted']", "is not allowed"),
    "wrong tag": ("a: !!bool maybe", "is not allowed"),
    "own tag": ("a: !planted 1", "is not allowed"),
    "key of lists": ("? [a]\n: 1", "a key must be one word or number"),
    "date": ("a: 2022-13-01", "month must be in 1..12"),
    "time zone": ("a: 2001-12-14T21:59:43+99:99", "offset must be"),
    "two documents": ("---\na: 1\n---\nb: 2", "another document"),
    "control character": ("a: \x07", "special characters are not allowed"),
    "no text": (b"\xff\x00\x80", "is not valid YAML"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_yaml_is_refused_with_one_short_sentence(name):
    text, words = HOSTILE[name]
    with pytest.raises(InputError, match=r"^of a stranger\.yaml is ") as caught:
        load_yaml(text, name="of a stranger.yaml")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_aliases_that_explode_take_no_memory():
    tracemalloc.start()
    with pytest.raises(InputError):
        load_yaml(billion_laughs(), name="x")
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 1 << 20


def test_config_workspace_and_cluster_names_refuse_aliases_that_explode(tmp_path):
    bomb = tmp_path / "bomb.yaml"
    bomb.write_text(billion_laughs())
    workspace = tmp_path / "workspace"
    (workspace / "config").mkdir(parents=True)
    (workspace / "workspace.json").write_text('{"layout_version": 1}')
    (workspace / "config" / "detect.yaml").write_text(billion_laughs())
    with pytest.raises(InputError, match=rf"bomb\.yaml is not valid YAML: it has more than {MAX_NODES} values"):
        command_line.parse("detect", ["ARCHIVE"], ["archive", "--config", str(bomb)], {})
    with pytest.raises(InputError, match=r"config/detect\.yaml is not valid YAML: it has more than"):
        open_workspace(str(workspace), create=False).stored_config("detect")
    with pytest.raises(InputError, match="it has more than"):
        read_cluster_names(billion_laughs(), source="cluster-names.yaml")


def test_a_device_is_not_read_as_a_configuration_file():
    with pytest.raises(InputError, match="/dev/zero is not a file"):
        command_line.read_config_file("/dev/zero")


def test_anchors_of_a_reasonable_size_are_read_as_pyyaml_reads_them():
    text = "base: &base {on: 4, off: 2}\nmine:\n  <<: *base\n  off: 1\nlist: [*base, *base]\nquoted: !!str 0101\n"
    found = load_yaml(text, name="x")
    assert found["mine"] == {"on": 4, "off": 1}
    assert found["list"] == [{"on": 4, "off": 2}] * 2
    assert found["quoted"] == "0101"


def test_an_unknown_key_of_another_version_names_its_file(tmp_path):
    (tmp_path / "config").mkdir()
    (tmp_path / "workspace.json").write_text('{"layout_version": 1}')
    (tmp_path / "config" / "label.yaml").write_text("kmeans:\n  k: 6\n  spectral: true\n")
    stored = open_workspace(str(tmp_path), create=False).stored_config("label")
    with pytest.raises(InputError, match=r"config/label\.yaml: unknown configuration key kmeans\.spectral$"):
        resolve(stored, read_yaml("kmeans:\n  k: 7\n", name="mine.yaml"), {"kmeans": {"k": 8}})


def test_a_wrong_value_names_the_file_that_gives_it():
    stored = read_yaml("detection:\n  band_hz: [1, 20]\n", name="stored.yaml")
    mine = read_yaml("detection:\n  band_hz: [1, high]\n", name="mine.yaml")
    with pytest.raises(InputError, match=r"^mine\.yaml: detection\.band_hz\.1 = 'high'"):
        resolve(stored, mine)
    with pytest.raises(InputError, match=r"^detection\.on = 'loud'"):
        resolve(stored, {"detection": {"on": "loud"}})
    with pytest.raises(InputError, match=r"must hold sections such as 'detection:', not 7"):
        read_yaml("7: 1", name="x")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(values=st.dictionaries(st.text(max_size=8), VALUES, max_size=4))
def test_what_is_written_reads_back_as_it_was(values):
    assert load_yaml(to_yaml(values), name="x") == values


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(text=st.text(max_size=200) | st.text("[]{}&*!|>-:?,'\"# \nab1.~<", max_size=200))
def test_any_text_is_read_or_refused_in_one_sentence(text):
    sentence = ""
    try:
        load_yaml(text, name="x")
    except InputError as error:
        sentence = str(error)
    assert "\n" not in sentence


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(text=st.text("abc:-[]{},1 \n.", max_size=60))
def test_plain_yaml_has_the_values_that_pyyaml_gives_it(text):
    try:
        ours = load_yaml(text, name="x")
    except InputError:
        return
    assert ours == yaml.safe_load(text)


def test_no_module_parses_yaml_on_its_own():
    for path in [*(ROOT / "pipelines").rglob("*.py"), *(ROOT / "jobs").rglob("*.py")]:
        if path.name == "safe_yaml.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "yaml":
                assert not node.attr.endswith(("load", "load_all", "parse", "compose")), path


def test_every_number_of_the_configuration_is_bounded():
    unbounded = []
    for stage in configuration.STAGE_SECTIONS:
        for key, default, _ in configuration.describe_keys(stage):
            is_number = isinstance(load_yaml(default, name=key), int | float) and default not in ("true", "false")
            if is_number and not _refuses(key, "1" + 17 * "0"):
                unbounded.append(key)
    assert sorted(set(unbounded)) == ["synthesize.seed"]


def _refuses(key: str, text: str) -> bool:
    try:
        resolve(configuration.read_flags([(key, text)]))
    except InputError:
        return True
    return False
