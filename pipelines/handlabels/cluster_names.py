"""Cluster names as YAML, such as `0: icequake`: the file that `labels.names` names and that the explorer edits."""

from collections.abc import Mapping

from pipelines.config import load_yaml, to_yaml
from pipelines.runtime.errors import InputError


def read_cluster_names(text: str | bytes, *, source: str) -> dict[int, str | None]:
    """Return names by cluster number; None where a number is given without a name.

    Args:
        text: the file's content; `on` and `off` are words, as in every YAML file here.
        source: the file, with which the sentence of an error begins.

    Raises:
        InputError: it does not map cluster numbers to names; names the source and the entry.
    """
    content = load_yaml(text, name=source)
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise InputError(f"{source} must map cluster numbers to names, such as '0: icequake'")
    names: dict[int, str | None] = {}
    for number, name in content.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise InputError(f"{source} names the cluster {number!r}; it must be a number such as 0")
        if name is not None and not isinstance(name, str):
            raise InputError(f"{source} gives cluster {number} the name {name!r}; it must be text; put it in quotes")
        names[number] = name or None
    return names


def write_cluster_names(names: Mapping[int, str | None]) -> str:
    """Return the YAML text of cluster names, sorted by number."""
    return to_yaml(dict(sorted(names.items())))
