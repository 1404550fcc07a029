"""The files that stages share beside tables and markers: one type each, which writes it, and checks it when it is read.

    workspace.json                  WorkspaceState     the workspace's layout and shard plan
    ledger/detect/progress.json     DetectionProgress  what `firnline status` knows of a detection that runs
    train/training.json             TrainingRecord     what the finished training gave; present = done
    clustering/summary.json         ClusteringSummary  sizes, names and scores of the clusters; present = done
    clustering/fitted.json          FittedClustering   the clustering that labels the events, and what it was fitted on
    clustering/tree.json            ClusterTree        the merge tree of its centroids
    clustering/propagation.json     LabelPropagation   the classifier that carries hand labels to other events
    clustering/drift.json           DriftRecord        how later events differ from those that it was fitted on
    stations/stations.json          StationList        where the stations are, as the archive's StationXML says
    config/best-augmentation.yaml   an augmentation section that a search found (read_augmentation)

A workspace may come from a stranger: what is read is bounded in size and depth, and every value has its type.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import from_json

from pipelines.config import load_yaml, resolve, to_yaml
from pipelines.config.augmentation import AugmentationSettings
from pipelines.runtime.errors import InputError
from pipelines.runtime.text import printable
from pipelines.workspace.storage import Store

LAYOUT_VERSION = 2
"""Of the workspaces that this program writes; it refuses newer ones, and migrates older ones where it writes."""

MAX_JSON_BYTES = 64 << 20
"""Of a JSON file that is read: ten times the marker of a month with a trigger every ten seconds."""

_MAX_SHOWN = 200
"""Characters of a key that an error quotes."""

ENCODER = "train/encoder.safetensors"
"""The encoder that was last trained here; `train/training.json` says that the training is done."""

STATIONXML = "stations/stations.xml"
"""The StationXML file that the archive was detected with, as it was; `stations/stations.json` says what is used of it.
"""

BEST_AUGMENTATION = "config/best-augmentation.yaml"
"""Where `tune` writes the best augmentation section."""


def read_json(store: Store, path: str) -> dict[str, Any]:
    """Return the content of a JSON file that holds an object.

    Raises:
        FileNotFoundError: there is none.
        InputError: it is too large, nested too deeply, not valid JSON or not an object; names the file.
    """
    name = store.full(path)
    try:
        content = store.read(path, 0, MAX_JSON_BYTES + 1)
    except IsADirectoryError:
        raise InputError(f"{name} is a folder, not a file") from None
    if len(content) > MAX_JSON_BYTES:
        raise InputError(f"{name} is larger than {MAX_JSON_BYTES >> 20} MiB, the largest JSON file that is read")
    try:
        # This parser refuses what is nested more than 200 deep.
        values = from_json(content)
    except ValueError as error:
        reason = "it is nested too deeply" if "recursion" in str(error) else " ".join(str(error).split())
        raise InputError(f"{name} is not valid JSON: {reason}") from None
    if not isinstance(values, dict):
        raise InputError(f"{name} must hold a JSON object, not a {type(values).__name__}")
    return values


class Artifact(BaseModel):
    """A JSON file at a fixed path of the workspace."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", ser_json_inf_nan="constants")
    PATH: ClassVar[str]
    REMEDY: ClassVar[str] = "restore it or run its stage with --replace"

    @classmethod
    def read(cls, store: Store) -> Self | None:
        """Return what the file holds; None where there is no file.

        Raises:
            InputError: it is damaged; names the file and what is wrong.
        """
        try:
            values = read_json(store, cls.PATH)
        except FileNotFoundError:
            return None
        return cls.from_values(values, name=store.full(cls.PATH))

    @classmethod
    def from_values(cls, values: Mapping[str, Any], *, name: str) -> Self:
        """Return the values of a file, checked; InputError names the file."""
        try:
            return cls.model_validate_json(json.dumps(values))
        except ValidationError as error:
            raise cls._damaged(error, name) from None

    @classmethod
    def _damaged(cls, error: ValidationError, name: str) -> InputError:
        first = error.errors(include_url=False)[0]
        key = printable(".".join(str(part) for part in first["loc"]))[:_MAX_SHOWN]
        message = first["msg"][:1].lower() + first["msg"][1:]
        return InputError(f"{name} is damaged: {key}: {message}; {cls.REMEDY}")

    def write(self, store: Store) -> None:
        """Write the file, atomically."""
        text = json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True)
        store.write(self.PATH, (text + "\n").encode())


class WorkspaceState(Artifact):
    """`workspace.json`: what holds for all stages. Keys that this program does not know are kept."""

    model_config = ConfigDict(extra="allow")
    PATH = "workspace.json"
    REMEDY = "restore it"

    layout_version: int = LAYOUT_VERSION
    shard_interval: Literal["hour", "day", "week", "month"] | None = None
    """Chosen by the first detection and kept by every later one."""
    archive: str | None = None
    """The archive's path or URL at the last detection."""
    layout: str | None = None
    """The archive's layout."""
    experiment: str | None = None
    """Name of the experiment at an MLflow server if `mlflow.experiment` gives none; it stays when the folder moves."""
    next_cluster: int | None = Field(default=None, ge=0, lt=2**31)
    """The lowest cluster number that no clustering of this workspace has used."""

    @classmethod
    def from_values(cls, values: Mapping[str, Any], *, name: str) -> Self:
        """As for every artifact; a newer layout is refused by its number, whatever else the file holds."""
        version = values.get("layout_version", 1)
        if isinstance(version, bool) or not isinstance(version, int):
            raise InputError(f"{name} has the layout_version {version!r}, which is not a whole number")
        if version > LAYOUT_VERSION:
            raise InputError(
                f"{name} has layout version {version}, newer than the {LAYOUT_VERSION} that this program knows; "
                "use the program that wrote it"
            )
        return super().from_values({"layout_version": 1} | dict(values), name=name)

    def write(self, store: Store) -> None:
        """Write the file, atomically; keys without a value are left out."""
        text = json.dumps(self.model_dump(mode="json", exclude_none=True), indent=2, sort_keys=True)
        store.write(self.PATH, (text + "\n").encode())


_Text = Annotated[str, Field(max_length=4096)]
_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
# JSON has text for the keys of an object.
_Number = Annotated[str, Field(pattern=r"^-?\d{1,9}$")]
_Day = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$")]
# A later program may have outcomes that this one does not know.
_OutcomeName = Annotated[str, Field(pattern="^[a-z_ ]{1,40}$")]


class DayCoverage(BaseModel):
    """What a detection marker says of a channel's day."""

    model_config = Artifact.model_config

    day: _Day
    channel: _Text
    seconds: _Seconds
    blanked_seconds: _Seconds
    gaps: _Count


class QuarantinedFile(BaseModel):
    """What a detection marker says of a file of which something could not be read."""

    model_config = Artifact.model_config

    key: str
    reasons: list[str] = Field(min_length=1)


class RenamedChannel(BaseModel):
    """What a detection marker says of a file whose headers have other codes than its path."""

    model_config = Artifact.model_config

    key: str
    headers: _Text
    used: _Text


class ShardAccount(BaseModel):
    """What became of a shard's recordings, by outcome."""

    model_config = Artifact.model_config

    samples: dict[_OutcomeName, _Count]
    seconds: dict[_OutcomeName, Annotated[float, Field(allow_inf_nan=False)]]
    files: dict[_OutcomeName, _Count]


class Marker(Artifact):
    """A marker, of which others read more than the name."""

    @classmethod
    def from_values(cls, values: Mapping[str, Any], *, name: str) -> Self:
        """As for every artifact, without another pass through JSON: there may be a million of them."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise cls._damaged(error, name) from None


class DetectionMarker(Marker):
    """A marker of `ledger/detect/` or `ledger/trigger/`, as far as others read it."""

    PATH = "ledger/detect/..."
    REMEDY = "remove it, and run firnline detect again"

    start: _Text
    counts: dict[_Text, _Count]
    coverage: list[DayCoverage]
    gaps: _Count
    quarantined: list[QuarantinedFile]
    skipped: list[str]
    seconds: _Seconds = 0.0
    """That it took."""
    renamed: list[RenamedChannel] = []
    events_by_day: dict[_Day, _Count] | None = None
    onsets_ns: list[Annotated[int, Field(ge=-(2**63), lt=2**63)]] | None = None
    """In the order of the rows; of a trigger's marker."""
    account: ShardAccount | None = None
    """None in one that was written before there was one."""

    @model_validator(mode="after")
    def _counts_events(self) -> Self:
        if "events" not in self.counts:
            raise ValueError("counts has no number of events")
        return self


class MonthCounts(BaseModel):
    """What a label marker counts of a month's events, inside or outside the reference period."""

    model_config = Artifact.model_config

    month: Annotated[str, Field(pattern=r"^\d{4}-\d\d$")]
    reference: bool
    events: _Count
    far: _Count
    clusters: dict[_Number, _Count]
    distances: dict[_Number, _Count]
    noise_db: dict[_Number, _Count]


class LabelMarker(Marker):
    """A marker of `ledger/label/`, as far as others read it."""

    PATH = "ledger/label/..."
    REMEDY = "remove it, and run firnline label again"

    cells: list[MonthCounts]


class StationPosition(BaseModel):
    """Where a station's instruments of one location code are, in one period."""

    model_config = Artifact.model_config

    network: str
    station: str
    location: str | None
    """None for the station as a whole."""
    latitude_deg: float = Field(ge=-90, le=90, allow_inf_nan=False)
    """WGS 84, north positive."""
    longitude_deg: float = Field(ge=-180, le=180, allow_inf_nan=False)
    """WGS 84, east positive."""
    elevation_m: float = Field(allow_inf_nan=False)
    first_ns: int
    """Since when (ns since 1970, UTC)."""
    end_ns: int
    """Until when (ns since 1970, UTC)."""


class StationList(Artifact):
    """`stations/stations.json`: where the stations are, as the archive's StationXML says."""

    PATH = "stations/stations.json"
    REMEDY = "restore it or run firnline detect again"

    content_hash: str
    """Of `stations/stations.xml`."""
    positions: tuple[StationPosition, ...]


class FailedShard(BaseModel):
    """A shard that failed after its retries, and why."""

    model_config = Artifact.model_config

    shard: str
    reason: str


class DetectionProgress(Artifact):
    """`ledger/detect/progress.json`: how far a detection is, written every few seconds and at its end."""

    PATH = "ledger/detect/progress.json"

    ledger: str = Field(pattern="^(detect|trigger)$")
    """The ledger that its shards' markers go to."""
    planned: int = Field(ge=0)
    """Shards of the archive."""
    pending_at_start: int = Field(ge=0)
    """Shards that were still to do when it began."""
    done_since: int = Field(ge=0)
    """Shards that it has done."""
    failed: tuple[FailedShard, ...]
    """The first thousand."""
    num_failed: int = Field(ge=0)
    running: int = Field(ge=0)
    """Shards in work; 0 at the end."""
    started: float = Field(allow_inf_nan=False)
    """Seconds since 1970."""
    updated: float = Field(allow_inf_nan=False)
    """Seconds since 1970."""
    interval: str
    """Of the shards."""
    unusable_files: int = Field(ge=0)
    """Files of the archive that cannot be used."""


class TrainingRecord(Artifact):
    """`train/training.json`: what the workspace's finished training gave."""

    PATH = "train/training.json"

    fingerprint: str
    """Of all that decides the encoder: keys, events, algorithm version."""
    keys: dict[str, Any]
    """The configuration's keys that change the encoder, by dotted name."""
    content_hash: str
    """Of the encoder."""
    num_events: int = Field(ge=0)
    """Events trained on."""
    model_uri: str
    """The registered model."""
    alias: str
    """The alias that it was given."""
    run_id: str
    """Of MLflow."""
    score: dict[str, float]
    """What the encoder was judged by."""


class ClusterEntry(BaseModel):
    """One cluster of a clustering."""

    model_config = Artifact.model_config

    cluster: int = Field(ge=0, lt=2**31)
    """Its number."""
    events: int = Field(ge=0, lt=2**63)
    """Events in it."""
    name: str | None = None
    purity: float | None = None
    """Share of its most frequent class among its hand labels of the validation half; None without any."""
    hand_labels: int = Field(default=0, ge=0)
    """Hand labels of the validation half in it."""


class ConfusionMatrix(BaseModel):
    """Events of the test half by hand label and by the class that their cluster was given."""

    model_config = Artifact.model_config

    hand_labels: tuple[str, ...]
    """Of the rows."""
    given: tuple[str, ...]
    """Of the columns: the classes, and last the one for events without any."""
    events: tuple[tuple[int, ...], ...]
    """One row for each hand label, one column for each class that was given."""


class ClusteringSummary(Artifact):
    """`clustering/summary.json`: the clusters by number, and how well they agree with hand labels."""

    PATH = "clustering/summary.json"

    clusters: tuple[ClusterEntry, ...]
    clustering: str = ""
    """Which clustering it is: the content hash of its file."""
    fingerprint: str = ""
    """Of all that the labelling read; with the same one there is nothing to do."""
    mark: str = ""
    """One fingerprint of all markers in ledger/label/."""
    sweep_k: tuple[int, ...] = ()
    """The numbers of clusters that were compared."""
    scores: dict[str, float] = {}
    """By name as in MLflow, such as test.purity; empty without hand labels."""
    protocol: dict[str, str] = {}
    """How each score was computed, in words."""
    confusion: ConfusionMatrix | None = None


class ReferencePeriod(BaseModel):
    """The time of a station's events that a clustering was fitted on."""

    model_config = Artifact.model_config

    station: str
    """Network and station, such as AW.VNA1."""
    first_ns: int
    """Onset of the first event (ns since 1970, UTC)."""
    last_ns: int
    """Onset of the last event (ns since 1970, UTC)."""


class FittedClustering(Artifact):
    """`clustering/fitted.json`: the clustering that labels the events, with the numbers and names of its clusters.

    It is written when a clustering is fitted, before any event is labelled by it. It stays when the archive grows.
    """

    PATH = "clustering/fitted.json"

    clustering: str
    """Which one it is: the content hash of its file."""
    file: str = Field(pattern="^[0-9a-f]{16}$")
    """The name of its file, clustering/<file>.npz."""
    fitted_file: str = Field(default="", pattern="^([0-9a-f]{16})?$")
    """The name of the file of the fit that it is a cut of; empty where it is the fit itself."""
    settings: dict[str, Any]
    """What decides a clustering beside the events: the encoder, its arithmetic, the keys of k-means."""
    events: str
    """Fingerprint of the events that it was fitted on."""
    num_events: int = Field(ge=0)
    """How many these were."""
    numbers: tuple[int, ...]
    """The number of each of its clusters. No other cluster of the workspace ever had or gets it."""
    names: tuple[str | None, ...]
    """The name of each of its clusters; None without one."""
    named_by: str
    """Fingerprint of the hand labels, names and settings that the names come from."""
    before: tuple[str, ...] = ()
    """Earlier clusterings, whose numbers live on in this one where clusters share events."""
    far_distance: float = Field(ge=0, allow_inf_nan=False)
    """The distance to the nearest centroid that 1 % of the fitted events exceed."""
    periods: tuple[ReferencePeriod, ...]
    """When the fitted events were, by station."""


class TreeNode(BaseModel):
    """A branch of the merge tree."""

    model_config = Artifact.model_config

    id: str = Field(pattern="^b[0-9a-f]{10}$")
    """What it is called, in `label.cut` too: no branch of another clustering is called so."""
    children: tuple[str, ...] = Field(max_length=2)
    """The two branches that it joins; none for a leaf, which is one centroid."""
    events: int = Field(ge=0, lt=2**63)
    """Events of the fit in it."""
    height: float = Field(ge=0, allow_inf_nan=False)
    """How far apart its children are, see docs/labelling.md; 0 for a leaf."""


class ClusterBranches(BaseModel):
    """The branches that a cluster consists of, the largest ones that lie wholly in it."""

    model_config = Artifact.model_config

    cluster: int = Field(ge=0, lt=2**31)
    """Its number."""
    branches: tuple[str, ...]
    """Their ids."""


class ClusterTree(Artifact):
    """`clustering/tree.json`: the merge tree of the fitted centroids. It stays when the archive grows."""

    PATH = "clustering/tree.json"

    clustering: str
    """The fit that it is of: the content hash of its file."""
    file: str = Field(pattern="^[0-9a-f]{16}$")
    """The name of that file, clustering/<file>.npz."""
    nodes: tuple[TreeNode, ...] = Field(min_length=1)
    """The leaves in the order of the centroids, then every other branch in the order in which they were joined."""
    clusters: tuple[ClusterBranches, ...] = ()
    """What the events are labelled with; empty until the first of them is."""

    @model_validator(mode="after")
    def _is_a_tree(self) -> Self:
        num_leaves = (len(self.nodes) + 1) // 2
        free: set[str] = set()
        for number, node in enumerate(self.nodes):
            if len(node.children) != (0 if number < num_leaves else 2):
                raise ValueError(f"node {node.id} has {len(node.children)} children")
            if not free.issuperset(node.children) or len(set(node.children)) != len(node.children) or node.id in free:
                raise ValueError(
                    f"node {node.id} does not join two branches that come before it and are not joined yet"
                )
            free = (free - set(node.children)) | {node.id}
        if len(free) != 1:
            raise ValueError("its nodes are not one tree")
        return self


class FittedClassifier(BaseModel):
    """A multinomial logistic regression with a temperature. Legend: d dimensions, c classes."""

    model_config = Artifact.model_config

    classes: tuple[str, ...] = Field(min_length=2)
    """(c,)"""
    weights: tuple[tuple[float, ...], ...]
    """(d, c), of standardised points."""
    intercepts: tuple[float, ...]
    """(c,)"""
    strength: float = Field(gt=0, allow_inf_nan=False)
    """Inverse of the regularisation, chosen by cross-validation."""
    temperature: float = Field(gt=0, allow_inf_nan=False)
    """By which logits are divided."""
    num_labels: int = Field(ge=2)
    """Events that it was fitted to."""

    @model_validator(mode="after")
    def _shapes_agree(self) -> Self:
        if {len(self.classes)} != {len(self.intercepts), *map(len, self.weights)}:
            raise ValueError(f"its weights are not of {len(self.classes)} classes")
        return self


class LabelPropagation(Artifact):
    """`clustering/propagation.json`: the classifier that carries hand labels on. It stays when the archive grows."""

    PATH = "clustering/propagation.json"

    ground: str
    """Fingerprint of the hand labels, the clustering and the settings that it comes from."""
    mean: tuple[float, ...]
    """(d,), by which points in the space of the clustering are centred."""
    scale: tuple[float, ...]
    """(d,), by which they are then divided."""
    writes: FittedClassifier
    """Fitted to all hand labels: what `labels/` has."""
    scored: FittedClassifier | None
    """Fitted to the validation half in the same way: what the published scores are of; None where it is too small."""

    @model_validator(mode="after")
    def _shapes_agree(self) -> Self:
        dims = {len(self.mean), len(self.scale), len(self.writes.weights)}
        if len(dims | ({len(self.scored.weights)} if self.scored else set())) != 1:
            raise ValueError("its parts are of different dimensions")
        return self


class DriftRow(BaseModel):
    """The events of one station and month that are not of the reference period, compared with those that are."""

    model_config = Artifact.model_config

    station: str
    """Network and station, such as AW.VNA1."""
    month: str
    """Such as 2020-01."""
    events: int = Field(ge=0)
    """Its events."""
    reference_events: int = Field(ge=0)
    """The events that it is compared with: the station's own, or of all stations where it has too few."""
    own_reference: bool
    """Whether these are the station's own."""
    far_share: float
    """Share of events farther from every centroid than 99 % of the fitted ones."""
    reference_far_share: float
    """The same in the reference."""
    distance_ratio: float
    """Median distance to the nearest centroid divided by the reference's."""
    balance: float
    """Share of events that would have to change cluster to give the reference's class balance (0 to 1)."""
    noise_db: float | None
    """Median noise level minus the reference's (dB); None where one of them is unknown."""
    reasons: tuple[str, ...] = ()
    """Why retraining is advised, in words; empty where it is not."""


class DriftRecord(Artifact):
    """`clustering/drift.json`: how events since the clustering was fitted differ from those that it was fitted on."""

    PATH = "clustering/drift.json"

    clustering: str
    """Which clustering it is about."""
    first_ns: int
    """First onset of the reference period (ns since 1970, UTC)."""
    last_ns: int
    """Last onset of the reference period (ns since 1970, UTC)."""
    reference_events: int = Field(ge=0)
    """Events of the reference period."""
    events: int = Field(ge=0)
    """Events outside it."""
    rows: tuple[DriftRow, ...] = ()
    """By station and month."""


def write_augmentation(store: Store, section: Mapping[str, Any]) -> str:
    """Write the best augmentation section, atomically, and return its text."""
    text = to_yaml({"augmentation": dict(section)})
    store.write(BEST_AUGMENTATION, text.encode())
    return text


def read_augmentation(content: bytes, *, name: str) -> AugmentationSettings:
    """Return the augmentation section of a YAML file, which holds it alone or under `augmentation:`.

    Raises:
        InputError: it is not one; the sentence begins with `name`.
    """
    values = load_yaml(content, name=name)
    if not isinstance(values, dict):
        raise InputError(f"{name} is not an augmentation section: it holds a {type(values).__name__}")
    try:
        return resolve({"augmentation": values.get("augmentation", values)}).augmentation
    except InputError as error:
        raise InputError(f"{name} is not an augmentation section: {error}") from None
