"""What `firnline suggest` does: read a sample of labelled events, choose those to label next, write them as CSV."""

import csv
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.config.label import LabelsSettings
from pipelines.config.suggest import SuggestSettings
from pipelines.handlabels.csv_cells import csv_cell
from pipelines.handlabels.sampling import labels_of_sample
from pipelines.label.cluster_model import ClusterModel
from pipelines.label.kmeans import label_rows
from pipelines.label.space import to_space
from pipelines.label.suggestions import Clustered, suggest
from pipelines.runtime.errors import InputError
from pipelines.workspace import tables
from pipelines.workspace.event_sample import READERS, EventSample, choose_events
from pipelines.workspace.storage import Store, content_hash

COLUMNS = ("event_id", "network", "station", "time", "cluster", "why")


@dataclass(frozen=True)
class SuggestedEvent:
    """One row of the table."""

    event_id: str
    network: str
    station: str
    time: str
    """Onset, UTC, ISO 8601 with nanoseconds."""
    cluster: int
    """As in labels/."""
    why: str
    file: str
    """That it lies in, below events/."""
    other: int | None = None
    """The cluster that it lies next to, where it is uncertain."""


def suggest_events(store: Store, settings: SuggestSettings, labels: LabelsSettings) -> list[SuggestedEvent]:
    """Return the events of a labelled workspace to label next, the most useful first.

    Args:
        store: of the workspace.
        settings: how many, and from how many.
        labels: the hand labels that there are; their events are not suggested.

    Raises:
        InputError: the workspace has no labels/, or they are not those of its events and clustering; a label table that
            cannot be read.
    """
    sample = choose_events(store, max_events=settings.max_events, seed=settings.seed)
    embeddings, numbers, clustering = _read_sample(store, sample)
    model = stored_clustering(store, clustering)
    if model is None:
        raise InputError(f"{store.url} holds no clustering of its labels; run `firnline label` again")
    points = to_space(embeddings, model.space)
    own, _, margins = label_rows(points, model.centroids, model.clusters)
    centroid_of, _, _ = label_rows(points, model.centroids)
    # The final number of each of the model's clusters: they are numbered when labels are written.
    final = np.zeros(int(model.clusters.max()) + 1, dtype=np.int32)
    final[own] = numbers
    if not np.array_equal(final[own], numbers):
        raise InputError(f"the labels in {store.url} are not those of its clustering; run `firnline label` again")
    known = labels_of_sample(store, sample, labels)
    clustered = Clustered(
        points=points,
        centroid_of=centroid_of,
        margins=margins,
        centroids=model.centroids,
        clusters=final[model.clusters],
        labelled=np.array([event_id in known for event_id in sample.event_ids], dtype=bool),
    )
    rows = []
    for suggestion in suggest(clustered, settings.number):
        network, _, station = sample.stations[suggestion.index].partition(".")
        onset = np.datetime64(int(sample.onsets[suggestion.index]), "ns")
        rows.append(
            SuggestedEvent(
                event_id=sample.event_ids[suggestion.index],
                network=network,
                station=station,
                time=f"{onset}Z",
                cluster=int(numbers[suggestion.index]),
                why=suggestion.why,
                file=sample.paths[sample.file_numbers[suggestion.index]].removeprefix("events/"),
                other=suggestion.other,
            )
        )
    return rows


def suggestions_csv(rows: Sequence[SuggestedEvent]) -> str:
    """Return the rows as CSV with a header; no cell is a formula to a spreadsheet."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow([csv_cell(str(getattr(row, name))) for name in COLUMNS])
    return text.getvalue()


def _read_sample(store: Store, sample: EventSample) -> tuple[NDArray[np.float32], NDArray[np.int32], str]:
    """Return the embeddings (n, d) and clusters (n,) of a sample's events, and the content hash of their clustering."""
    parts = list(sample.by_file(range(len(sample))))
    by_number: list[tuple[NDArray[np.float32], NDArray[np.int32], str]]

    def read(part: tuple[str, list[int], list[int]]) -> tuple[NDArray[np.float32], NDArray[np.int32], str]:
        path, rows, indices = part
        embedded, labelled = (tables.beside(path, table) for table in ("embeddings", "labels"))
        expected = [sample.event_ids[index] for index in indices]
        try:
            vectors = tables.read_rows(store, embedded, rows, ["event_id", "embedding"])
            with tables.open_table(store, labelled, ["event_id", "cluster"]) as file:
                clustering = (file.schema_arrow.metadata or {}).get(b"clustering", b"").decode()
                marked = file.read(columns=["event_id", "cluster"]).take(rows)
        except FileNotFoundError:
            raise InputError(f"{path} of {store.url} has no labels yet; run `firnline label` first") from None
        for table in (vectors, marked):
            if table.column("event_id").to_pylist() != expected:
                raise InputError(f"{path} has other events than its labels; run `firnline label` again")
        return tables.embeddings(vectors.column("embedding")), marked.column("cluster").to_numpy(), clustering

    with ThreadPoolExecutor(READERS) as pool:
        by_number = list(pool.map(read, parts))
    hashes = {clustering for _, _, clustering in by_number}
    if len(hashes) != 1:
        raise InputError(f"the labels in {store.url} are of {len(hashes)} clusterings; run `firnline label` again")
    order = np.concatenate([indices for _, _, indices in parts])
    embeddings = np.empty((len(sample), by_number[0][0].shape[1]), dtype=np.float32)
    clusters = np.empty(len(sample), dtype=np.int32)
    embeddings[order] = np.concatenate([vectors for vectors, _, _ in by_number])
    clusters[order] = np.concatenate([found for _, found, _ in by_number])
    return embeddings, clusters, hashes.pop()


def stored_clustering(store: Store, wanted: str) -> ClusterModel | None:
    """Return the clustering whose file has this content hash; None where the workspace does not hold it."""
    for item in store.walk("clustering"):
        if item.path.endswith(".npz"):
            content = store.read(item.path)
            if content_hash(content) == wanted:
                return ClusterModel.from_bytes(content)
    return None
