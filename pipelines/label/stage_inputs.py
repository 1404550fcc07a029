"""What a labelling run reads: shards of events, the encoder, hand labels, cluster names, a reference clustering."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from pipelines.config import MAX_YAML_BYTES, Config
from pipelines.config.label import LabelsSettings
from pipelines.handlabels.cluster_names import NamesFile, read_names_file
from pipelines.handlabels.matching import HandLabels, match_hand_labels
from pipelines.handlabels.table import LabelTable
from pipelines.label.stage_encoder import RegisteredEncoder
from pipelines.label.stage_shards import EventShard
from pipelines.runtime.errors import InputError
from pipelines.runtime.ray_session import task_results
from pipelines.workspace import tables
from pipelines.workspace.ledger import fingerprint, list_markers
from pipelines.workspace.storage import Store, content_hash, read_file
from pipelines.workspace.workspace import open_workspace


@dataclass(frozen=True, kw_only=True)
class LabelInputs:
    """What a labelling run reads."""

    shards: Sequence[EventShard]
    registered: RegisteredEncoder
    hand: HandLabels | None
    user_names: NamesFile
    """Names of clusters that the user gives; None takes a name away."""
    named_by: str
    """Fingerprint of all that the names come from: hand labels, the user's names, settings."""
    reference: Store | None
    """A labelled workspace whose cluster numbers are kept."""
    events: str
    """Fingerprint of the events, which changes where the archive has grown."""
    fingerprints: Mapping[str, str]
    """Of everything that the run reads, as MLflow keeps them."""


def match_on_ray(store: Store, shards: Sequence[EventShard], settings: LabelsSettings, known: LabelTable) -> HandLabels:
    """Match a label table to the events, a station a task (see match_hand_labels)."""
    return match_hand_labels(store, [shard.path("events") for shard in shards], settings, known, _run_tasks)


def read_cluster_names(path: str | None) -> tuple[NamesFile, str]:
    """Return the user's names of clusters and a hash of the file; no names and "" where none is configured.

    Raises:
        InputError: the file cannot be read or does not map numbers to names.
    """
    if path is None:
        return NamesFile(names={}), ""
    content = read_file(path, "labels.names", max_bytes=MAX_YAML_BYTES)
    return read_names_file(content, source=f"labels.names {path}"), content_hash(content)


def refuse_foreign_names(path: str | None, names: NamesFile, known: Collection[str]) -> None:
    """Raise InputError where names were given to a clustering whose numbers mean nothing here.

    Args:
        path: of the file.
        names: its content.
        known: the clusterings whose numbers live on here, and that of the reference.
    """
    if names.clustering is not None and names.clustering not in known:
        here = f"the clustering here is {' or '.join(sorted(name[:12] for name in known))}"
        raise InputError(
            f"labels.names {path} names the clusters of clustering {names.clustering[:12]}, but "
            f"{here if known else 'no event has a cluster here yet'}; give a file of names for that, or the workspace "
            "that these names are of as label.reference"
        )


def _run_tasks(work: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]) -> list[Any]:
    task = ray.remote(work)
    return task_results([task.remote(*arguments) for arguments in tasks])


def lineage_of(
    shards: Sequence[EventShard],
    registered: RegisteredEncoder,
    reference: Store | None,
    table: LabelTable | None,
    names_hash: str,
) -> dict[str, str]:
    """Return the fingerprints of what a labelling run reads, by kind."""
    sources = "".join(f"{shard.path('events')}{shard.source}" for shard in shards)
    lineage = {
        "events": content_hash(sources.encode()),
        "encoder": registered.encoder.content_hash,
        "model": registered.uri,
    }
    if table is not None:
        lineage["labels"] = table.content_hash
    if names_hash:
        lineage["names"] = names_hash
    if reference is not None:
        marks = [f"{mark.partition}{mark.shard}{mark.fingerprint}" for mark in list_markers(reference, "label")]
        lineage["reference"] = content_hash("".join(sorted(marks)).encode())
    return lineage


def named_by(config: Config, table: LabelTable | None, names_hash: str) -> str:
    """Return the fingerprint of all that the names of clusters come from, but for the events."""
    settings = config.labels.output_keys()
    names = {name: settings[name] for name in ("min_purity", "tolerance_seconds", "association_seconds")}
    return fingerprint(names | {"labels": table.content_hash if table else "", "names": names_hash})


def open_reference(url: str | None, store: Store) -> Store | None:
    """Return the store of `label.reference`; None where none is configured.

    Raises:
        InputError: it is the workspace that is labelled, or holds no labels.
    """
    if url is None:
        return None
    reference = open_workspace(url, create=False, write=False).store
    if reference.url == store.url:
        raise InputError(
            f"label.reference {url} is the workspace that is labelled, and this run replaces its labels; copy them and "
            "workspace.json to a folder of their own and name that"
        )
    if not tables.list_shards(reference, "labels"):
        raise InputError(f"label.reference {url} holds no labels; give a workspace that has been labelled")
    return reference
