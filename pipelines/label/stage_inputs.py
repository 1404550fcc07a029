"""What labelling reads beside the encoder and the events: hand labels, matched to the events, and cluster names."""

from collections.abc import Callable, Sequence
from typing import Any

import ray

from pipelines.config import load_yaml
from pipelines.config.label import LabelsSettings
from pipelines.handlabels.matching import HandLabels, match_hand_labels
from pipelines.handlabels.table import LabelTable
from pipelines.label.naming import read_names
from pipelines.label.stage_shards import Shard
from pipelines.runtime.errors import InputError
from pipelines.runtime.ray_session import task_results
from pipelines.workspace.storage import Store, content_hash, read_file


def match_on_ray(store: Store, shards: Sequence[Shard], settings: LabelsSettings, known: LabelTable) -> HandLabels:
    """Match a label table to the events, a station a task (see match_hand_labels)."""
    return match_hand_labels(store, [shard.path("events") for shard in shards], settings, known, _run_tasks)


def read_cluster_names(path: str | None) -> tuple[dict[int, str | None], str]:
    """Return the user's names of clusters and a hash of the file; ({}, "") where none is configured.

    Raises:
        InputError: the file cannot be read or is no mapping from numbers to names.
    """
    if path is None:
        return {}, ""
    content, source = read_file(path, "labels.names"), f"labels.names {path}"
    try:
        return read_names(load_yaml(content, name=source), source=source), content_hash(content)
    except ValueError as error:
        raise InputError(str(error)) from None


def _run_tasks(work: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]) -> list[Any]:
    task = ray.remote(work)
    return task_results([task.remote(*arguments) for arguments in tasks])
