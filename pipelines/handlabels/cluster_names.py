"""Cluster names as YAML, such as `0: icequake`: the file that `labels.names` names and that the explorer edits."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.config import load_yaml, to_yaml
from pipelines.runtime.errors import InputError

CLUSTERING = "clustering"
"""The key that says which clustering the names were given to."""


@dataclass(frozen=True, kw_only=True)
class NamesFile:
    """What a file of cluster names holds."""

    names: dict[int, str | None]
    """By cluster number; None where a number is given without a name."""
    clustering: str | None = None
    """The clustering that they were given to; None where the file does not say."""


def read_names_file(text: str | bytes, *, source: str) -> NamesFile:
    """Return the content of a file of cluster names.

    Args:
        text: the file's content; `on` and `off` are words, as in every YAML file here.
        source: the file, with which the sentence of an error begins.

    Raises:
        InputError: it does not map cluster numbers to names; names the source and the entry.
    """
    content = load_yaml(text, name=source)
    if content is None:
        return NamesFile(names={})
    if not isinstance(content, Mapping):
        raise InputError(f"{source} must map cluster numbers to names, such as '0: icequake'")
    clustering = content.get(CLUSTERING)
    if clustering is not None and not isinstance(clustering, str):
        raise InputError(f"{source} gives the clustering {clustering!r}; it must be text; put it in quotes")
    names: dict[int, str | None] = {}
    for number, name in content.items():
        if number == CLUSTERING:
            continue
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise InputError(f"{source} names the cluster {number!r}; it must be a number such as 0")
        if name is not None and not isinstance(name, str):
            raise InputError(f"{source} gives cluster {number} the name {name!r}; it must be text; put it in quotes")
        names[number] = name or None
    return NamesFile(names=names, clustering=clustering)


def read_cluster_names(text: str | bytes, *, source: str) -> dict[int, str | None]:
    """Return names by cluster number; arguments and errors are those of `read_names_file`."""
    return read_names_file(text, source=source).names


def write_cluster_names(names: Mapping[int, str | None], clustering: str | None = None) -> str:
    """Return the YAML text of cluster names, sorted by number, below the clustering that they were given to."""
    head = {} if clustering is None else {CLUSTERING: clustering}
    return to_yaml(head | dict(sorted(names.items())))
