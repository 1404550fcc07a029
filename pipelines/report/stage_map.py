"""Reads the embeddings of a sample of events and draws their map."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pipelines.config.report import ReportSettings
from pipelines.report import embedding_map
from pipelines.report.stage_reading import read_events
from pipelines.report.style import drawing
from pipelines.workspace import tables
from pipelines.workspace.storage import Store

MIN_EVENTS = 10
"""Fewest embeddings of which a map is drawn."""


def draw_map(
    store: Store, settings: ReportSettings, sample: pd.DataFrame, titles: Mapping[int, str]
) -> tuple[Figure | None, str]:
    """Return the map of a sample (None where none can be drawn) and its caption.

    `sample` has the columns of `labels/` and the `file` of each row; `titles` maps clusters to names in the legend.
    """
    embedded = {item.path.removeprefix("embeddings/") for item in tables.list_shards(store, "embeddings")}
    sample = sample[sample["file"].isin(embedded)]
    read = read_events(store, "embeddings", sample, ("event_id", "embedding"))
    vectors = {
        event_id: vector
        for table in read
        for event_id, vector in zip(table["event_id"].to_pylist(), tables.embeddings(table["embedding"]), strict=True)
    }
    finite = {event_id for event_id, vector in vectors.items() if np.isfinite(vector).all()}
    rows = sample[sample["event_id"].isin(finite)]
    if len(rows) < MIN_EVENTS:
        return None, f"A map needs the embeddings of at least {MIN_EVENTS} events; {len(rows)} were found."
    embeddings = np.stack([vectors[event_id] for event_id in rows["event_id"]])
    if not embedding_map.have_extent(embeddings):
        return None, f"There is no map: the embeddings of the {len(rows)} events chosen are all the same."
    plane, share = embedding_map.principal_plane(embeddings)
    planes = {f"principal components ({share:.0%} of the variance)": plane}
    words = f"{len(rows)} events, chosen at random and coloured by cluster. "
    if len(finite) < len(vectors):
        words += f"{len(vectors) - len(finite)} more have embeddings that are not finite numbers. "
    if settings.map_method == "tsne":
        planes["t-SNE: neighbourhoods"] = embedding_map.neighbourhood_plane(embeddings, settings.seed)
        words += "t-SNE keeps neighbours together; in it, distances between separate groups have no meaning. "
    by_hand = (rows["label_source"] == "hand").to_numpy()
    classes = rows["label"].to_numpy(dtype=object).copy()
    classes[~by_hand] = None
    if by_hand.any():
        words += f"Known classes come from hand labels or truth, for {int(by_hand.sum())} of these events."
    with drawing():
        figure = embedding_map.map_figure(planes, rows["cluster"].to_numpy(dtype=np.int32), titles, classes)
    return figure, words.strip()
