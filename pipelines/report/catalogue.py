"""The catalogue: detections of several stations become events, as a table, as CSV, and (`quakeml.py`) as QuakeML.

A detection is one row of `events/` with its row of `labels/`. Detections belong together by
`pipelines.metrics.association.associate`. No location is computed.
"""

import heapq
import json
import struct
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from pipelines.handlabels.csv_cells import csv_cell
from pipelines.metrics import association

EVENT_TYPES: Mapping[str, str] = {
    "icequake": "ice quake",
    "ice quake": "ice quake",
    "earthquake": "earthquake",
    "explosion": "explosion",
    "quarry blast": "quarry blast",
    "avalanche": "avalanche",
    "rockfall": "rockslide",
    "landslide": "landslide",
    # QuakeML's word for a detection behind which there is no event of the ground.
    "spike": "not existing",
    "noise": "not existing",
}
"""QuakeML event type of a label; any other label is an "other event", no label "not reported"."""

_TIME = pa.timestamp("ns", tz="UTC")
CATALOGUE_SCHEMA = pa.schema(
    [
        ("catalog_id", pa.string()),
        ("onset", _TIME),
        ("last_onset", _TIME),
        ("num_stations", pa.int32()),
        ("num_detections", pa.int32()),
        ("stations", pa.list_(pa.string())),
        ("event_ids", pa.list_(pa.string())),
        ("cluster", pa.int32()),
        ("cluster_share", pa.float32()),
        ("label", pa.string()),
        ("label_source", pa.string()),
        ("confidence", pa.float32()),
        ("event_type", pa.string()),
        ("max_snr_db", pa.float32()),
        ("max_peak_ratio", pa.float32()),
        ("max_duration_s", pa.float32()),
        ("peak_amplitude", pa.float32()),
        ("units", pa.string()),
        ("clustering", pa.string()),
        ("geometry", pa.binary()),
    ]
)
_COMPUTED = [name for name in CATALOGUE_SCHEMA.names if name not in ("clustering", "geometry")]


def events_opened_before(
    detections: pd.DataFrame, end_ns: int, taken_until_ns: int, within_seconds: float
) -> tuple[pd.DataFrame, int]:
    """Return the detections of the events that open before `end_ns`, and until when the last of them takes detections.

    `detections` reach at least `within_seconds` beyond `end_ns` (ns since 1970-01-01 UTC); those up to
    `taken_until_ns` belong to an event that opened earlier, in another part, and are dropped. Since the first detection
    alone decides how long an event takes others, a record cut anywhere, with this number handed on, gives the events
    of one pass.
    """
    onset_ns = onset_nanoseconds(detections)
    free = onset_ns > taken_until_ns
    detections, onset_ns = detections[free], onset_ns[free]
    if not len(detections):
        return detections, taken_until_ns
    events = association.associate(onset_ns, within_seconds)
    first_ns = pd.Series(onset_ns).groupby(events).transform("min").to_numpy()
    ours = first_ns < end_ns
    if not ours.any():
        return detections[ours], taken_until_ns
    return detections[ours], int(first_ns[ours].max()) + round(within_seconds * 1e9)


def taken_before(onset_ns: npt.NDArray[np.int64], from_ns: int, within_seconds: float, *, complete: bool) -> int | None:
    """Return until when the last event that opens among some onsets takes detections (ns since 1970-01-01 UTC).

    The onsets are all of those from `from_ns` on; `complete` says that there are none before. Otherwise an event that
    opened earlier may hold the first ones, and each onset that may then be the first to open an event is followed. Such
    chains meet sooner or later: None where they have not.
    """
    times = np.sort(onset_ns)
    if not len(times):
        return int(np.iinfo(np.int64).min) if complete else None
    within_ns = round(within_seconds * 1e9)
    following = np.searchsorted(times, times + within_ns, side="right")
    num_free = 1 if complete else int(np.searchsorted(times, from_ns + within_ns, side="right")) + 1
    if num_free > len(times):
        return None
    openers = list(range(num_free))
    while len(openers) > 1 or following[openers[0]] < len(times):
        following_one = int(following[heapq.heappop(openers)])
        if following_one == len(times):
            return None
        if following_one not in openers:
            heapq.heappush(openers, following_one)
    return int(times[openers[0]]) + within_ns


def onset_nanoseconds(detections: pd.DataFrame) -> npt.NDArray[np.int64]:
    """Return the onsets in ns since 1970-01-01 UTC. Shape (detection,)."""
    times = detections["onset"].dt.tz_convert("UTC").dt.tz_localize(None).to_numpy(dtype="datetime64[ns]")
    return np.asarray(times.astype(np.int64))


def associated_events(
    detections: pd.DataFrame, within_seconds: float, min_stations: int, event_types: Mapping[str, str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the events of some detections, and the detections with the `catalog_id` of their event.

    `detections` has the columns of `events/` (without waveform) and of `labels/`. An event is named after its first
    detection. Its cluster is that of most of its detections, its label the most frequent one among them, hand labels
    before all others; ties fall to the detection with the largest margin. The confidence of a propagated label is the
    mean of the detections that have it. Events of fewer than `min_stations` stations are dropped. Both tables are in
    order of time.
    """
    if not len(detections):
        return _no_events(), detections.assign(catalog_id=pd.Series(dtype=object))
    onset_ns = onset_nanoseconds(detections)
    picks = detections.assign(
        catalog_id=association.event_names(onset_ns, detections["event_id"].to_numpy(dtype=object), within_seconds),
        site=detections["network"] + "." + detections["station"],
    )
    picks = picks.sort_values(["onset", "event_id"], kind="stable")
    groups = picks.groupby("catalog_id", sort=False)
    picks = picks[groups["site"].transform("nunique") >= min_stations]
    if not len(picks):
        return _no_events(), picks.drop(columns="site")
    groups = picks.groupby("catalog_id", sort=False)
    events = pd.DataFrame(
        {
            "onset": groups["onset"].min(),
            "last_onset": groups["onset"].max(),
            "num_stations": groups["site"].nunique().astype("int32"),
            "num_detections": groups.size().astype("int32"),
            "stations": groups["site"].agg(lambda sites: sorted(set(sites))),
            "event_ids": groups["event_id"].agg(list),
            "max_snr_db": groups["snr_db"].max(),
            "max_peak_ratio": groups["peak_ratio"].max(),
            "max_duration_s": groups["duration_s"].max(),
        }
    )
    events = events.join(_majority(picks, "cluster"))
    events["cluster_share"] = (events.pop("votes") / events["num_detections"]).astype("float32")
    events = events.join(_majority_label(picks))
    events["confidence"] = events["confidence"].astype("float32")
    for column in ("label", "label_source"):
        events[column] = pd.Series([None if pd.isna(name) else name for name in events[column]], events.index, object)
    # Amplitudes in different units cannot be compared: the unit is that of the strongest detection's instrument.
    strongest = picks.sort_values(["peak_amplitude", "event_id"], ascending=[False, True]).groupby(
        "catalog_id", sort=False
    )
    events = events.join(strongest[["peak_amplitude", "units"]].first())
    types = {**EVENT_TYPES, **event_types}
    events["event_type"] = [
        "not reported" if label is None else types.get(label, "other event") for label in events["label"].tolist()
    ]
    events = events.reset_index().sort_values(["onset", "catalog_id"], kind="stable")
    return events[_COMPUTED].reset_index(drop=True), picks.drop(columns="site").reset_index(drop=True)


def _no_events() -> pd.DataFrame:
    empty: pd.DataFrame = CATALOGUE_SCHEMA.empty_table().to_pandas()
    return empty[_COMPUTED]


def _majority(picks: pd.DataFrame, column: str) -> pd.DataFrame:
    votes = (
        picks.groupby(["catalog_id", column], sort=False)
        .agg(votes=("event_id", "size"), best=("margin", "max"), first=("event_id", "min"))
        .reset_index()
        .sort_values(["votes", "best", "first"], ascending=[False, False, True], kind="stable")
    )
    return votes.groupby("catalog_id", sort=False).first()[[column, "votes"]]


def _majority_label(picks: pd.DataFrame) -> pd.DataFrame:
    named = picks[picks["label"].notna()]
    if not len(named):
        nothing = pd.Series(None, index=pd.Index(picks["catalog_id"].unique(), name="catalog_id"), dtype=object)
        return pd.DataFrame({"label": nothing, "label_source": nothing, "confidence": nothing})
    by_hand = named["label_source"] == "hand"
    has_hand = named["catalog_id"].isin(set(named.loc[by_hand, "catalog_id"]))
    named = named[by_hand | ~has_hand]
    labels = _majority(named, "label")
    # Where detections of one label come by several ways, hand and propagated say more than the cluster's name.
    order = {"hand": 0, "propagated": 1, "cluster": 2}
    chosen = named.join(labels["label"].rename("chosen"), on="catalog_id")
    chosen = chosen[chosen["label"] == chosen["chosen"]]
    rank = chosen["label_source"].map(order).fillna(len(order))
    source = (
        chosen.assign(rank=rank)
        .sort_values(["rank", "event_id"])
        .groupby("catalog_id", sort=False)["label_source"]
        .first()
    )
    by_rank = chosen[chosen["label_source"] == chosen["catalog_id"].map(source)]
    confidence = by_rank.groupby("catalog_id", sort=False)["confidence"].mean()
    result = pd.DataFrame({"label": labels["label"], "label_source": source, "confidence": confidence})
    result = result.reindex(picks["catalog_id"].unique()).astype(object)
    result.index.name = "catalog_id"
    return result.where(result.notna(), None)


def catalogue_table(
    events: pd.DataFrame, clustering: str = "", points: Sequence[tuple[float, float] | None] | None = None
) -> pa.Table:
    """Return the events as an Arrow table of `CATALOGUE_SCHEMA`.

    Args:
        events: as `associated_events` returns them.
        clustering: id of the clustering that their clusters belong to.
        points: longitude and latitude (degrees) for each event; None where unknown. They become points in WKB.
    """
    known = [None] * len(events) if points is None else points
    geometry = [None if point is None else wkb_point(*point) for point in known]
    events = events.assign(clustering=clustering, geometry=pd.Series(geometry, events.index, dtype=object))
    table = pa.Table.from_pandas(events, schema=CATALOGUE_SCHEMA, preserve_index=False)
    return table.replace_schema_metadata(None)


def wkb_point(longitude_deg: float, latitude_deg: float) -> bytes:
    """Return a point as well-known binary (WKB): little-endian, type 1, x, y."""
    return struct.pack("<BIdd", 1, 1, longitude_deg, latitude_deg)


def geoparquet_metadata(*, has_points: bool) -> str:
    """Return the `geo` metadata of GeoParquet 1.1; the coordinates are WGS 84, longitude first, which is its default.

    https://geoparquet.org/releases/v1.1.0/
    """
    geometry = {"encoding": "WKB", "geometry_types": ["Point"] if has_points else []}
    return json.dumps({"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": geometry}})


def catalogue_csv(events: pd.DataFrame, clustering: str = "", *, header: bool = True) -> str:
    """Return the events as CSV: times in ISO 8601 with nine decimals and Z, lists joined by a semicolon.

    Text that a spreadsheet would run as a formula gets an apostrophe before it, see `csv_cell`.
    """
    table = events.assign(clustering=clustering)
    for column in ("onset", "last_onset"):
        table[column] = iso_times(table[column], "ns")
    for column in ("stations", "event_ids"):
        table[column] = [";".join(values) for values in table[column]]
    for column in ("catalog_id", "stations", "event_ids", "label", "label_source", "event_type", "units", "clustering"):
        table[column] = [None if pd.isna(text) else csv_cell(text) for text in table[column]]
    text: str = table.to_csv(index=False, header=header, lineterminator="\n", float_format="%.7g")
    return text


def iso_times(times: "pd.Series[pd.Timestamp]", unit: Literal["us", "ns"]) -> list[str]:
    """Return times (UTC) in ISO 8601 with microseconds or nanoseconds and Z."""
    values = times.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy(dtype=f"datetime64[{unit}]")
    texts: list[str] = np.datetime_as_string(values, unit=unit).tolist()
    return [text + "Z" for text in texts]
