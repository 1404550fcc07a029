"""The detections as a dataset of SeisBench: names of its columns, and how a trace is found in its HDF5 files.

SeisBench's data format (https://seisbench.readthedocs.io, "Data format"): `metadata.csv` has a row for each trace,
whose `trace_name` leads to its samples in `waveforms.hdf5`; a dataset in several chunks has a pair of such files for
each. Detections are traces, associated events are sources.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipelines.handlabels.csv_cells import csv_cell
from pipelines.report.catalogue import iso_times, onset_nanoseconds
from pipelines.report.positions import Positions, position_at

COMPONENT_ORDER = "ENZ"
"""Rows of a window; E and N stand for 1 and 2 where the channels have these codes."""
FOLDER = "catalog/seisbench"


def data_format(units: str, sampling_rate: float, *, response_removed: bool) -> dict[str, str | float]:
    """Return what SeisBench's group `data_format` says of all traces.

    Args:
        units: of the samples, `counts` or `m/s`.
        sampling_rate: in Hz.
        response_removed: whether the instrument's response was removed, rather than its sensitivity.
    """
    restituted = "restituted" if response_removed else "gain only" if units == "m/s" else "not restituted"
    return {
        "dimension_order": "CW",
        "component_order": COMPONENT_ORDER,
        "unit": "mps" if units == "m/s" else units,
        "instrument_response": restituted,
        "sampling_rate": sampling_rate,
        **({"measurement": "velocity"} if units == "m/s" else {}),
    }


def filled(waveforms: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Return windows (trace, 3, sample) with zeros for absent samples, and the share of samples that are there.

    SeisBench fills with zeros, too, and calls the share `trace_completeness`.
    """
    absent = np.isnan(waveforms)
    return np.where(absent, np.float32(0), waveforms), 1.0 - absent.mean(axis=(1, 2))


def trace_rows(
    traces: pd.DataFrame,
    completeness: npt.NDArray[np.float64],
    bucket: int,
    num_samples: int,
    positions: Positions,
    clustering: str,
    splits: Sequence[str],
) -> pd.DataFrame:
    """Return the rows of `metadata.csv` for the traces of one bucket.

    Args:
        traces: detections in the order of their windows, with the columns of `events/` and `labels/`, `catalog_id`, and
            the event's `event_cluster`, `event_label` and `event_type`.
        completeness: share of samples that are there, for each trace.
        bucket: number of the HDF5 dataset that holds them.
        num_samples: of a window.
        positions: where the stations are.
        clustering: id of the clustering.
        splits: `train`, `dev` or `test` for each trace.
    """
    onset_ns = onset_nanoseconds(traces)
    start = traces["window_start"].dt.tz_convert("UTC").dt.tz_localize(None).to_numpy(dtype="datetime64[ns]")
    places = [
        position_at(positions, network, station, location, int(time))
        for network, station, location, time in zip(
            traces["network"], traces["station"], traces["location"], onset_ns, strict=True
        )
    ]
    rate_hz = traces["sampling_rate"].to_numpy(dtype=float)
    channels = [";".join(name or "" for name in three) for three in traces["channels"]]
    return pd.DataFrame(
        {
            "trace_name": [f"bucket{bucket}${row},:3,:{num_samples}" for row in range(len(traces))],
            "split": list(splits),
            "source_id": _texts(traces["catalog_id"]),
            "source_type": _texts(traces["event_type"]),
            "source_label": _texts(traces["event_label"]),
            "source_cluster": traces["event_cluster"].to_numpy(),
            "station_network_code": _texts(traces["network"]),
            "station_code": _texts(traces["station"]),
            "station_location_code": _texts(traces["location"]),
            "station_latitude_deg": [np.nan if place is None else place.latitude_deg for place in places],
            "station_longitude_deg": [np.nan if place is None else place.longitude_deg for place in places],
            "station_elevation_m": [np.nan if place is None else place.elevation_m for place in places],
            "trace_event_id": _texts(traces["event_id"]),
            "trace_start_time": iso_times(traces["window_start"], "us"),
            "trace_sampling_rate_hz": rate_hz,
            "trace_npts": num_samples,
            "trace_channel": [str(channel)[:2] for channel in traces["trigger_channel"]],
            "trace_channels": _texts(channels),
            "trace_completeness": completeness,
            "trace_onset_sample": (onset_ns - start.astype(np.int64)) / 1e9 * rate_hz,
            "trace_trigger_channel": _texts(traces["trigger_channel"]),
            "trace_trigger_duration_s": traces["duration_s"].to_numpy(),
            "trace_peak_ratio": traces["peak_ratio"].to_numpy(),
            "trace_snr_db": traces["snr_db"].to_numpy(),
            "trace_peak_amplitude": traces["peak_amplitude"].to_numpy(),
            "trace_clustering": clustering,
            "trace_cluster": traces["cluster"].to_numpy(),
            "trace_cluster_distance": traces["distance"].to_numpy(),
            "trace_cluster_margin": traces["margin"].to_numpy(),
            "trace_label": _texts(traces["label"]),
            "trace_label_source": _texts(traces["label_source"]),
            "trace_label_confidence": traces["confidence"].to_numpy(dtype=float),
        }
    )


def _texts(values: Iterable[str | None]) -> list[str | None]:
    return [None if value is None or pd.isna(value) else csv_cell(value) for value in values]
