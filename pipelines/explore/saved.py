"""What the explorer saves: the hand labels as CSV and the names of the clusters as YAML.

Both are read again before each change and written atomically, so that another program may change them, too.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.config.label import LabelsSettings
from pipelines.config.report import ExploreSettings
from pipelines.explore.queries import BadRequest
from pipelines.handlabels import editing
from pipelines.handlabels.cluster_names import read_cluster_names, write_cluster_names
from pipelines.handlabels.label_text import check_typed_label
from pipelines.runtime.errors import InputError
from pipelines.workspace.artifacts import ClusteringSummary
from pipelines.workspace.storage import Store, open_store


@dataclass(frozen=True)
class SavedLabels:
    """The file of hand labels that the explorer reads and changes."""

    store: Store
    name: str

    @property
    def path(self) -> str:
        """Return the path or URL of the file."""
        return self.store.full(self.name)

    def read(self) -> dict[str, dict[str, str]]:
        """Return the hand labels as they are stored now, by event id."""
        try:
            return editing.read_labels(self.store.read(self.name))
        except FileNotFoundError:
            return {}

    def change(self, changes: Mapping[str, str | None]) -> dict[str, dict[str, str]]:
        """Set or remove (None) labels by event id, save the file, and return all labels; BadRequest for a bad label."""
        try:
            rows = editing.with_labels(self.read(), changes)
        except ValueError as error:
            raise BadRequest(str(error)) from None
        self.store.write(self.name, editing.write_labels(rows).encode())
        return rows


@dataclass(frozen=True)
class SavedNames:
    """The file of cluster names that the explorer reads and changes."""

    store: Store
    name: str = "cluster-names.yaml"

    @property
    def path(self) -> str:
        """Return the path or URL of the file."""
        return self.store.full(self.name)

    def read(self) -> dict[int, str]:
        """Return the cluster names as they are stored now."""
        try:
            names = read_cluster_names(self.store.read(self.name), source=self.path)
        except FileNotFoundError:
            return {}
        return {number: name for number, name in names.items() if name}

    def change(self, cluster: int, name: str | None) -> dict[int, str]:
        """Set or remove (None) a cluster's name, save the file, and return all names; BadRequest for a bad name."""
        names = {number: known for number, known in self.read().items() if number != cluster}
        if name:
            try:
                names[cluster] = check_typed_label(name)
            except ValueError as error:
                raise BadRequest(str(error)) from None
        summary = ClusteringSummary.read(self.store)
        clustering = None if summary is None else summary.clustering or None
        self.store.write(self.name, write_cluster_names(names, clustering).encode())
        return names


def choose_labels_file(workspace_store: Store, settings: ExploreSettings, labels: LabelsSettings) -> SavedLabels:
    """Return where hand labels are saved.

    That is `explore.labels_path`, else `labels.path` where it is a CSV by event id, else `hand-labels.csv` in the
    workspace.

    Raises:
        InputError: the file cannot be edited.
    """
    if settings.labels_path is not None:
        saved = _open(settings.labels_path)
        if reason := _not_editable(saved):
            raise InputError(f"explore.labels_path {settings.labels_path} cannot be edited: {reason}")
        return saved
    if labels.path is not None and not _not_editable(_open(labels.path)):
        return _open(labels.path)
    saved = SavedLabels(workspace_store, "hand-labels.csv")
    if reason := _not_editable(saved):
        raise InputError(f"{saved.path} cannot be edited: {reason}")
    return saved


def _open(path: str) -> SavedLabels:
    folder, _, name = open_store(path).url.rpartition("/")
    return SavedLabels(open_store(folder or "/"), name)


def _not_editable(saved: SavedLabels) -> str:
    """Return why a file cannot be edited; "" where it can."""
    if not saved.name.endswith(".csv"):
        return "it must be a .csv file with the columns event_id and label"
    try:
        saved.read()
    except (OSError, ValueError) as error:
        return " ".join(str(error).split())
    return ""
