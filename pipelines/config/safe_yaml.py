"""The one reader and writer of YAML: no tag runs code, and size, depth and aliases are bounded before values are built.

Booleans are those of YAML 1.2: `on` and `off` are words, as the keys detection.on and detection.off need.
"""

import re
from collections.abc import Mapping
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, Node, ScalarNode

from pipelines.runtime.errors import InputError

MAX_YAML_BYTES = 256 << 10
"""Of one YAML file; a configuration with every key has about 5 kB, names of a thousand clusters 20 kB."""

MAX_DEPTH = 16
"""Of nested mappings and lists; the configuration has 4."""

MAX_NODES = 20_000
"""Keys, values, lists and mappings of one file, an alias counted with all that it stands for."""

MAX_NUMBER_CHARACTERS = 64
"""Of a number as it is written."""

_STRING_TAG = "tag:yaml.org,2002:str"


def _problem(text: str, at: Any) -> ConstructorError:
    """Return the error that names a problem and the place of an event or node."""
    return ConstructorError(None, None, text, at.start_mark)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, bounded, with the booleans of YAML 1.2 and without duplicate keys."""

    def __init__(self, stream: str | bytes) -> None:
        super().__init__(stream)
        self.num_nodes = 0
        self.depth = 0
        self.nodes_below: dict[str, int] = {}

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        """Compose a node as PyYAML does, and count it."""
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        anchor: Any = getattr(event, "anchor", None)
        tag: Any = getattr(event, "tag", None)
        if tag not in (None, _STRING_TAG):
            raise _problem(f"the tag {tag!r} is not allowed", event)
        before = self.num_nodes
        self.num_nodes += 1
        if self.check_event(yaml.AliasEvent):
            if anchor in self.anchors and anchor not in self.nodes_below:
                raise _problem(f"the alias *{anchor} is part of what it stands for", event)
            self.num_nodes += self.nodes_below.get(anchor, 0)
        if self.num_nodes > MAX_NODES:
            raise _problem(f"it has more than {MAX_NODES} values, aliases counted in full", event)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _problem(f"it is nested more than {MAX_DEPTH} deep", event)
        node: Node | None = super().compose_node(parent, index)
        self.depth -= 1
        if anchor is not None and not isinstance(event, yaml.AliasEvent):
            self.nodes_below[anchor] = self.num_nodes - before
        return node

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Construct a mapping as PyYAML does; a key that is given twice is refused."""
        given: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                raise _problem("a key must be one word or number", key)
            if (key.tag, key.value) in given:
                raise _problem(f"the key {key.value!r} is given twice", key)
            given.add((key.tag, key.value))
        return super().construct_mapping(node, deep=deep)

    def construct_yaml_number(self, node: ScalarNode) -> Any:
        """Construct an integer or a float that is written in a reasonable length."""
        if len(node.value) > MAX_NUMBER_CHARACTERS:
            raise _problem(f"a number has more than {MAX_NUMBER_CHARACTERS} characters", node)
        if node.tag.endswith(":float"):
            return self.construct_yaml_float(node)
        value = self.construct_yaml_int(node)
        if not -(2**63) <= value < 2**63:
            raise _problem("a whole number is beyond 64 bits", node)
        return value


class _Dumper(yaml.SafeDumper):
    """Writes `on` and `off` without quotes, and a value that occurs twice twice."""

    def ignore_aliases(self, data: Any) -> bool:
        """Return True: what we write holds no alias."""
        return True

    def represent_text(self, text: str) -> Node:
        """Represent a text so that it reads back as it is; PyYAML writes some line separators raw."""
        style = '"' if set(text) & set("\x85\u2028\u2029\ufeff") else None
        return self.represent_scalar(_STRING_TAG, text, style=style)


for _yaml in (_Loader, _Dumper):
    _yaml.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in pairs if tag != "tag:yaml.org,2002:bool"]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    _yaml.add_implicit_resolver(
        "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
    )
_Dumper.add_representer(str, _Dumper.represent_text)
for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_yaml_number)


class Layer(dict[str, Any]):
    """Sections of a configuration and the name of the file that they come from."""

    def __init__(self, content: Mapping[str, Any], *, source: str) -> None:
        super().__init__(content)
        self.source = source


def load_yaml(text: str | bytes, *, name: str) -> Any:
    """Parse one YAML document.

    Raises:
        InputError: it is not valid YAML, is larger or deeper than the bounds above, holds a tag, a duplicate key or an
            alias that stands for too much; begins with the name, of a file or of its key too.
    """
    if len(text) > MAX_YAML_BYTES:
        raise InputError(f"{name} is larger than {MAX_YAML_BYTES >> 10} KiB, the largest YAML file that is read")
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        problem = " ".join(str(error.problem or error.context).split())
        raise InputError(f"{name} is not valid YAML: {problem}{where}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # A ValueError is an invalid date such as 2022-13-01.
        problem = " ".join(str(error).split())
        raise InputError(f"{name} is not valid YAML: {problem}") from None


def read_yaml(text: str | bytes, *, name: str) -> Layer:
    """Parse a configuration file's text; InputError names the file."""
    content = load_yaml(text, name=name)
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise InputError(f"{name} must hold sections such as 'detection:', not a {type(content).__name__}")
    for section in content:
        if not isinstance(section, str):
            raise InputError(f"{name} must hold sections such as 'detection:', not {section!r}")
    return Layer(content, source=name)


def to_yaml(values: Mapping[Any, Any]) -> str:
    """Return the YAML text of a mapping, in its order."""
    text: str = yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def value_to_yaml(value: Any) -> str:
    """Return the YAML text of one value on one line, as a flag takes it."""
    text: str = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=1000)
    return text.splitlines()[0]
