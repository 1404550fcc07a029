"""Reads the events of the gallery and draws them; the explorer draws its events with it, too."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from pipelines.config.report import ReportSettings
from pipelines.report.event_figure import event_figure
from pipelines.report.gallery import choose_gallery
from pipelines.report.page import GalleryItem
from pipelines.report.stage_reading import EVENT_COLUMNS, read_events
from pipelines.report.style import cluster_colour, drawing, to_svg
from pipelines.report.summary import LabelSummary
from pipelines.workspace import tables
from pipelines.workspace.storage import Store
from pipelines.workspace.workspace import Workspace

GALLERY_COLUMNS = (*EVENT_COLUMNS, "channels", "onset", "window_start", "sampling_rate", "waveform")


def shown_band(workspace: Workspace, settings: ReportSettings) -> tuple[float, float] | None:
    """Return the band (Hz) in which traces are drawn: that of the detection, or None for all that was recorded."""
    band = workspace.stored_config("detect").get("detection", {}).get("band_hz")
    return None if band is None or settings.traces == "recorded" else (float(band[0]), float(band[1]))


def band_words(band_hz: tuple[float, float] | None) -> str:
    """Return how the traces of the figures were filtered, in words."""
    if band_hz is None:
        return "as recorded, with medians removed"
    return f"between {band_hz[0]:g} and {band_hz[1]:g} Hz, the band of the detection"


def gallery_items(
    store: Store, settings: ReportSettings, summary: LabelSummary, band_hz: tuple[float, float] | None
) -> Iterator[GalleryItem]:
    """Yield the gallery's figures in the order of the page."""
    chosen = choose_gallery(
        summary.candidates,
        nearest=settings.nearest_per_cluster,
        random=settings.random_per_cluster,
        boundary=settings.boundary_per_cluster,
        at_most=settings.max_gallery_events,
    )
    events: dict[str, tuple[pa.Table, int]] = {}
    for table in read_events(store, "events", chosen, GALLERY_COLUMNS):
        events.update({event_id: (table, row) for row, event_id in enumerate(table["event_id"].to_pylist())})
    for choice in _records(chosen):
        if choice["event_id"] in events:
            table, row = events[choice["event_id"]]
            yield gallery_item(table.slice(row, 1), choice, band_hz)


def _records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in rows.to_dict("records")]


def gallery_item(
    event: pa.Table, label: Mapping[str, Any], band_hz: tuple[float, float] | None, shown_s: float | None = None
) -> GalleryItem:
    """Draw one event (a table of one row of `events/`) with its row of `labels/`, see `event_svg`."""
    waveform = tables.waveforms(event["waveform"])[0]
    values = {
        name: event[name][0].as_py() for name in event.column_names if name not in ("waveform", "onset", "window_start")
    }
    onset, window_start = (pd.Timestamp(event[name][0].value, tz="UTC") for name in ("onset", "window_start"))
    site = f"{label['network']}.{label['station']}" + (f".{label['location']}" if label["location"] else "")
    onset_s = (onset - window_start).total_seconds()
    svg = event_svg(waveform, values, onset_s, int(label["cluster"]), site, band_hz, shown_s)
    known = {"hand": f"known: {label['label']}", "propagated": f"{label['label']}: {label['confidence']:.0%}"}
    details = [
        f"SNR {_tenths(values['snr_db'])} dB",
        f"STA/LTA {values['peak_ratio']:.1f}",
        f"to centroid {label['distance']:.2f}",
        f"margin {label['margin']:.2f}",
        known.get(label["label_source"] or "", ""),
    ]
    return GalleryItem(
        event_id=str(label["event_id"]),
        cluster=int(label["cluster"]),
        role=str(label.get("role", "")),
        site=site,
        time=f"{onset:%Y-%m-%d %H:%M:%S}.{onset.microsecond // 10_000:02d} UTC",
        details=tuple(detail.replace(" -", " \u2212") for detail in details if detail),
        svg=svg,
    )


def _tenths(value: float) -> str:
    """Return a number with one decimal place, and no sign before 0.0."""
    return f"{round(value, 1) + 0.0:.1f}"


def event_svg(
    waveform: npt.NDArray[np.float32],
    values: Mapping[str, Any],
    onset_s: float,
    cluster: int,
    site: str,
    band_hz: tuple[float, float] | None,
    shown_s: float | None = None,
) -> str:
    """Draw one event as SVG, its whole window or only so many seconds about the onset."""
    with drawing():
        figure = event_figure(
            waveform,
            float(values["sampling_rate"]),
            onset_s=onset_s,
            duration_s=float(values["duration_s"]),
            channels=list(values["channels"]),
            trigger_channel=str(values["trigger_channel"]),
            units=str(values["units"]),
            colour=cluster_colour(cluster),
            band_hz=band_hz,
            shown_s=shown_s,
        )
        words = f"Waveforms and spectrogram of a detection at {site}, trigger {values['duration_s']:.2f} s long"
        return to_svg(figure, words)
