"""The columns of the tables that stages share, as Arrow schemas."""

import pyarrow as pa

from pipelines.workspace.outcomes import TIMED

_TIME = pa.timestamp("ns", tz="UTC")


def events_schema(num_samples: int) -> pa.Schema:
    """Return the schema of events/: one row a detection; `waveform` is float32 (3, num_samples), rows E/1, N/2, Z."""
    return pa.schema(
        [
            ("event_id", pa.string()),
            ("network", pa.string()),
            ("station", pa.string()),
            ("location", pa.string()),
            ("channels", pa.list_(pa.string(), 3)),
            ("onset", _TIME),
            ("window_start", _TIME),
            ("duration_s", pa.float32()),
            ("peak_ratio", pa.float32()),
            ("snr_db", pa.float32()),
            ("peak_amplitude", pa.float32()),
            ("units", pa.string()),
            ("sampling_rate", pa.float64()),
            ("source_sampling_rate", pa.float64()),
            ("missing_fraction", pa.float32()),
            ("trigger_channel", pa.string()),
            ("shard", pa.string()),
            ("waveform", pa.fixed_shape_tensor(pa.float32(), (3, num_samples), dim_names=("component", "sample"))),
        ]
    )


def embeddings_schema(dim: int) -> pa.Schema:
    """Return the schema of embeddings/: one row an event, `embedding` a fixed-size list of float32."""
    return pa.schema([("event_id", pa.string()), ("embedding", pa.list_(pa.float32(), dim))])


def labels_schema() -> pa.Schema:
    """Return the schema of labels/: one row an event; `confidence` is null unless the label was propagated."""
    return pa.schema(
        [
            ("event_id", pa.string()),
            ("network", pa.string()),
            ("station", pa.string()),
            ("location", pa.string()),
            ("onset", _TIME),
            ("cluster", pa.int32()),
            ("distance", pa.float32()),
            ("margin", pa.float32()),
            ("label", pa.string()),
            ("label_source", pa.string()),
            ("confidence", pa.float32()),
        ]
    )


LATER_COLUMNS: dict[str, tuple[pa.Field, ...]] = {"labels": (labels_schema().field("confidence"),)}
"""Columns that a table did not have from the beginning, by table: a file without them is read as if they were null."""


def availability_schema() -> pa.Schema:
    """Return the schema of availability/: one row a channel, UTC day and rate; seconds by outcome.

    `location`, `channel` and `rate_hz` are null where nothing that was read tells them. A shard of less than a day
    counts its own part of the day.
    """
    return pa.schema(
        [
            ("network", pa.string()),
            ("station", pa.string()),
            ("location", pa.string()),
            ("channel", pa.string()),
            ("day", pa.date32()),
            ("rate_hz", pa.float64()),
            *((f"{outcome}_seconds", pa.float64()) for outcome in TIMED),
        ]
    )
