"""A stage's new result is built beside the one that stands, and takes its place once it is complete.

    replacing/<stage>/...            the new result, under the paths that it will have
    replacing/<stage>/complete.json  which of these paths there are: from now on the new result holds
    replacing/detect/workspace.json  what a new detection says of the archive and its shards, until it holds

A job that fails or is killed before leaves the old result whole, and with the same command it continues beside it. One
that is killed while the new result takes its place leaves `complete.json`, and the next job that writes to the
workspace finishes that first.
"""

import contextlib
import dataclasses
from collections.abc import Collection, Iterator

from pydantic import Field

from pipelines.config import Config
from pipelines.runtime.errors import InputError
from pipelines.workspace.artifacts import Artifact, WorkspaceState, read_json
from pipelines.workspace.storage import Store
from pipelines.workspace.workspace import REPLACING, STAGE_FOLDERS, Workspace, derived_folders

_DETECTED = ("shard_interval", "archive", "layout", "experiment")
"""What a detection says in workspace.json."""


class Complete(Artifact):
    """`replacing/<stage>/complete.json`: a new result that is complete, and how far it has taken its place."""

    paths: tuple[str, ...] = Field(max_length=100)
    """What there is of it."""
    replaced: tuple[str, ...] = Field(max_length=100)
    """What it replaces; of these, the old one goes where it has none of its own."""
    removed: tuple[str, ...] = Field(default=(), max_length=100)
    """Folders of what is derived from the old result, which go with it."""
    state: dict[str, str | None] = {}
    """What changes in workspace.json."""
    switched: bool = False
    """Whether all of it has taken its place, so that only the copies are left to be removed."""


@contextlib.contextmanager
def result_of(
    workspace: Workspace,
    stage: str,
    config: Config,
    *,
    replace: bool,
    keep: Collection[str] = (),
    with_derived: bool = False,
) -> Iterator[Workspace]:
    """Yield the workspace to write a stage's result to; with `replace`, that lies beside the old one until the end.

    What the stage reads of other stages is where it was. Errors inside leave the old result as it was.

    Args:
        workspace, stage, config: whose result, and what it is made with.
        replace: build it beside the old one.
        keep: folders of the stage that are written in place all the same.
        with_derived: what is derived from the old result goes with it, once the new one takes its place.

    Raises:
        InputError: without `replace`, the stage has results made with another configuration.
    """
    store = workspace.store
    finish_replacements(store)
    if not replace:
        store.remove_folder(f"{REPLACING}/{stage}")
        workspace.claim(stage, config)
        yield workspace
        return
    workspace.migrate()
    paths = tuple(path for path in _paths(stage) if path not in keep)
    own_state = (WorkspaceState.PATH,) if stage == "detect" else ()
    beside = Workspace(dataclasses.replace(store, beside=f"{REPLACING}/{stage}", paths_beside=(*paths, *own_state)))
    try:
        beside.refuse_conflict(stage, config)
    except InputError:
        # Of an earlier attempt, with other settings.
        store.remove_folder(f"{REPLACING}/{stage}")
    if own_state and WorkspaceState.read(beside.store) is None:
        workspace.read_state().write(beside.store)
    beside.claim(stage, config)
    yield beside
    there = tuple(path for path in paths if next(_objects(beside.store, path), None) is not None)
    complete = Complete(
        paths=there,
        replaced=paths,
        removed=derived_folders(stage) if with_derived else (),
        state={key: getattr(beside.read_state(), key) for key in _DETECTED} if own_state else {},
    )
    _write(store, stage, complete)
    _switch(store, stage, complete)


def being_built(store: Store, stage: str) -> Store | None:
    """Return where a stage's new result is being built beside the one that stands; None where none is."""
    own_state = (WorkspaceState.PATH,) if stage == "detect" else ()
    beside = dataclasses.replace(store, beside=f"{REPLACING}/{stage}", paths_beside=(*_paths(stage), *own_state))
    there = beside.exists(f"config/{stage}.yaml") and not store.exists(_complete_path(stage))
    return beside if there else None


def finish_replacements(store: Store) -> None:
    """Finish what jobs have left that were killed while a new result took the place of the old one."""
    for stage in STAGE_FOLDERS:
        try:
            values = read_json(store, _complete_path(stage))
        except FileNotFoundError:
            continue
        found = Complete.from_values(values, name=store.full(_complete_path(stage)))
        if found.switched:
            _clean(store, stage)
        else:
            _switch(store, stage, found)


def _switch(store: Store, stage: str, complete: Complete) -> None:
    """Let a complete result take its place; after a kill it is called again."""
    for folder in complete.removed:
        store.remove_folder(folder)
    for path in _paths(stage):
        if path not in complete.replaced:
            continue
        if path in complete.paths:
            store.take_place(f"{REPLACING}/{stage}/{path}", path, old=f"{REPLACING}/{stage}/old/{path}")
        elif path.startswith("config/"):
            store.remove(path)
        else:
            store.remove_folder(path)
    if complete.state:
        Workspace(store).update_state(**complete.state)
    _write(store, stage, complete.model_copy(update={"switched": True}))
    _clean(store, stage)


def _clean(store: Store, stage: str) -> None:
    """Remove the copies of a result that has taken its place, and last of all the file that says so."""
    for path in (*_paths(stage), "old"):
        if path.startswith("config/"):
            store.remove(f"{REPLACING}/{stage}/{path}")
        else:
            store.remove_folder(f"{REPLACING}/{stage}/{path}")
    store.remove(f"{REPLACING}/{stage}/{WorkspaceState.PATH}")
    store.remove(_complete_path(stage))
    store.remove_folder(f"{REPLACING}/{stage}")
    if next(store.walk(REPLACING), None) is None:
        store.remove_folder(REPLACING)


def _write(store: Store, stage: str, complete: Complete) -> None:
    store.write(_complete_path(stage), complete.model_dump_json().encode())


def _complete_path(stage: str) -> str:
    return f"{REPLACING}/{stage}/complete.json"


def _paths(stage: str) -> tuple[str, ...]:
    """Return what a stage's result consists of: its folders, and the configuration that it was made with."""
    return (*STAGE_FOLDERS[stage], f"config/{stage}.yaml")


def _objects(store: Store, path: str) -> Iterator[str]:
    """Yield the objects at or below a path."""
    if path.startswith("config/"):
        yield from (path for _ in range(store.exists(path)))
    else:
        yield from (item.path for item in store.walk(path))
