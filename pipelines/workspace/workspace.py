"""The workspace: where a run's configuration, plan, markers and tables lie, on a disk or in a bucket.

`workspace.json` holds the layout version and the shard interval; `config/<stage>.yaml` what each stage ran with.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines import config as configuration
from pipelines.runtime.errors import InputError
from pipelines.workspace.artifacts import WorkspaceState
from pipelines.workspace.ledger import stage_has_markers
from pipelines.workspace.storage import Store, check_readable, open_store

# The folders that a stage writes: what its --replace makes anew.
STAGE_FOLDERS: dict[str, tuple[str, ...]] = {
    "detect": ("events", "triggers", "availability", "stations", "plan", "ledger/detect", "ledger/trigger"),
    "train": ("train",),
    "label": ("embeddings", "labels", "clustering", "ledger/embed", "ledger/label"),
    "report": ("catalog", "report", "ledger/report"),
}
REPLACING = "replacing"
"""Folder of the results that will replace others once they are complete."""

DERIVED_STAGES: dict[str, tuple[str, ...]] = {
    "detect": ("train", "label", "report"),
    "train": ("label", "report"),
    "label": ("report",),
    "report": (),
}


@dataclass(frozen=True)
class Workspace:
    """An opened workspace."""

    store: Store

    @property
    def url(self) -> str:
        """Return the workspace's absolute path or URL."""
        return self.store.url

    def read_state(self) -> WorkspaceState:
        """Return the content of workspace.json, all defaults in a new workspace; InputError where it is damaged."""
        return WorkspaceState.read(self.store) or WorkspaceState()

    def update_state(self, **values: Any) -> None:
        """Set values in workspace.json; the others stay."""
        self.read_state().model_copy(update=values).write(self.store)

    def stored_config(self, stage: str) -> dict[str, Any]:
        """Return the configuration a stage ran with here ({} if it never ran)."""
        path = f"config/{stage}.yaml"
        try:
            # One byte more than is read as YAML, which then refuses it.
            content = self.store.read(path, 0, configuration.MAX_YAML_BYTES + 1)
        except FileNotFoundError:
            return {}
        stored = configuration.read_yaml(content, name=self.store.full(path))
        values = configuration.of_this_release(stored)
        if self.read_state().layout_version >= 2:
            values = configuration.map_paths(values, self._from_here)
        return configuration.Layer(values, source=stored.source)

    def store_config(self, stage: str, config: configuration.Config) -> None:
        """Write the resolved configuration of a stage; paths in the workspace are relative to it, others absolute."""
        self.migrate()
        portable = configuration.map_paths(configuration.stage_config(config, stage), self._portable)
        self.store.write(f"config/{stage}.yaml", configuration.to_yaml(portable).encode())

    def output_keys(self, config: configuration.Config, stage: str) -> dict[str, Any]:
        """Return the keys of a stage that change its output, flat; the same wherever the workspace lies."""
        return configuration.map_paths(configuration.stage_output_keys(config, stage), self._portable)

    def migrate(self) -> None:
        """Bring a workspace of an earlier layout to this one; each step may be done twice, as after a kill."""
        state = self.read_state()
        if state.layout_version < 2:
            # Relative paths in configurations were stored as typed, and meant the folder that the job ran in.
            for item in list(self.store.walk("config")):
                stage = item.path.removeprefix("config/").removesuffix(".yaml")
                if stage in configuration.STAGE_SECTIONS:
                    stored = configuration.read_yaml(self.store.read(item.path), name=self.store.full(item.path))
                    moved = configuration.map_paths(stored, self._found)
                    self.store.write(item.path, configuration.to_yaml(moved).encode())
            self.update_state(layout_version=2)

    def _portable(self, path: str) -> str:
        """Return a path as it is stored: relative to the workspace where it lies in it, else absolute."""
        absolute = path if "://" in path else open_store(path).url
        return absolute.removeprefix(f"{self.url}/")

    def _from_here(self, path: str) -> str:
        """Return a stored path as an absolute one."""
        return path if path.startswith(("/", "~")) or "://" in path else f"{self.url}/{path}"

    def _found(self, path: str) -> str:
        """Return the portable form of a path of layout 1: in the present folder, else in the workspace."""
        return self._portable(path) if "://" in path or Path(path).expanduser().exists() else path

    def conflict(self, stage: str, config: configuration.Config) -> str | None:
        """Return what differs from the configuration of the stage's results, naming the key; None where nothing does.

        A clause such as `kmeans.k is 4 but runs/demo holds label results made with 3`.
        """
        stored = self.stored_config(stage)
        if not stored or not stage_has_markers(self.store, stage):
            return None
        was = self.output_keys(configuration.resolve(stored), stage)
        now = self.output_keys(config, stage)
        for key, value in now.items():
            # 5 and 5.0 are equal to Python, and may mean different things.
            if (type(value), value) != (type(was.get(key)), was.get(key)):
                return f"{key} is {value!r} but {self.url} holds {stage} results made with {was.get(key)!r}"
        return None

    def refuse_conflict(self, stage: str, config: configuration.Config) -> None:
        """Raise InputError, naming the key, where the stage has results made with another configuration."""
        found = self.conflict(stage, config)
        if found is not None:
            raise InputError(f"{found}; use another workspace, the stored value, or --replace")

    def claim(self, stage: str, config: configuration.Config) -> None:
        """Make the workspace ready for a stage: check for a conflicting configuration, then store the new one.

        Raises:
            InputError: the stage has results made with another configuration; names the key.
        """
        self.refuse_conflict(stage, config)
        self.accept(stage, config)

    def accept(self, stage: str, config: configuration.Config) -> None:
        """Store the configuration that a stage's results are made with from now on."""
        self.update_state(experiment=self.read_state().experiment or f"firnline {self.url}")
        self.store_config(stage, config)


def derived_folders(stage: str) -> tuple[str, ...]:
    """Return the folders of what is derived from a stage's result, the markers of each before its tables."""
    found: list[str] = []
    for name in reversed(DERIVED_STAGES[stage]):
        found += sorted(STAGE_FOLDERS[name], key=lambda folder: not folder.startswith("ledger/"))
        found.append(f"{REPLACING}/{name}")
    return tuple(found)


def open_workspace(url: str, *, create: bool, write: bool = True) -> Workspace:
    """Open a workspace, check its layout version and, with `write`, that it can be written.

    Args:
        url: a folder or a bucket's prefix.
        create: take one that is new as well.
        write: the caller means to write; False opens what is read-only.

    Raises:
        InputError: it does not exist (without `create`), cannot be written, or was written by a newer Firnline.
    """
    store = open_store(url)
    workspace = Workspace(store)
    if create:
        if store.is_local and Path(store.url).is_file():
            raise InputError(f"the workspace {store.url} is a file; name a folder")
        store.check_writable()
    elif not store.is_local:
        check_readable(store, what="workspace")
    if WorkspaceState.read(store) is None and not create:
        raise InputError(f"{store.url} is not a workspace: it has no workspace.json")
    if write and not create:
        store.check_writable()
    return workspace
