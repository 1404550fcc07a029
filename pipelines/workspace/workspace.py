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

# The folders that a stage's --replace removes: its own tables, state and markers and those derived from them.
STAGE_FOLDERS: dict[str, tuple[str, ...]] = {
    "detect": ("events", "triggers", "availability", "ledger/detect", "ledger/trigger"),
    "train": ("train",),
    "label": ("embeddings", "labels", "clustering", "ledger/embed", "ledger/label"),
    "report": ("catalog", "report", "ledger/report"),
}
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
        return configuration.read_yaml(content, name=self.store.full(path))

    def store_config(self, stage: str, config: configuration.Config) -> None:
        """Write the resolved configuration of a stage."""
        text = configuration.to_yaml(configuration.stage_config(config, stage))
        self.store.write(f"config/{stage}.yaml", text.encode())

    def refuse_conflict(self, stage: str, config: configuration.Config) -> None:
        """Raise InputError, naming the key, where the stage has results made with another configuration."""
        stored = self.stored_config(stage)
        if not stored or not stage_has_markers(self.store, stage):
            return
        was = configuration.stage_output_keys(configuration.resolve(stored), stage)
        now = configuration.stage_output_keys(config, stage)
        for key, value in now.items():
            if value != was.get(key):
                raise InputError(
                    f"{key} is {value!r} but {self.url} holds {stage} results made with {was.get(key)!r}; "
                    "use another workspace, the stored value, or --replace"
                )

    def claim(self, stage: str, config: configuration.Config, *, replace: bool) -> None:
        """Make the workspace ready for a stage: check for a conflicting configuration, then store the new one.

        Raises:
            InputError: the stage has results made with another configuration and `replace` is False; names the key.
        """
        if replace:
            self.remove_stage(stage)
        else:
            self.refuse_conflict(stage, config)
        self.update_state()
        self.store_config(stage, config)

    def remove_stage(self, stage: str) -> None:
        """Remove a stage's tables and markers and those derived from them (markers first: no marker without data)."""
        for name in (*reversed(DERIVED_STAGES.get(stage, ())), stage):
            for folder in sorted(STAGE_FOLDERS.get(name, ()), key=lambda folder: not folder.startswith("ledger/")):
                self.store.remove_folder(folder)


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
