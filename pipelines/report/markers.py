"""The catalogue as a marker file of Pyrocko's Snuffler: an event marker for each event, a phase marker for each pick.

A line is an item: fields divided by blanks, text with blanks in single quotes, `None` for what is not known. The format
is documented with Pyrocko's `pyrocko.gui.marker`.
"""

import itertools
import re
from collections.abc import Iterator
from typing import Any

import pandas as pd

from pipelines.report.catalogue import iso_times
from pipelines.runtime.text import fit_for_xml

HEAD = "# Snuffler Markers File Version 0.2\n"
_PLAIN = re.compile(r"[A-Za-z0-9_.:~+/-]+")


def marker_lines(events: pd.DataFrame, picks: pd.DataFrame) -> Iterator[str]:
    """Yield the lines of some events with their picks (detections with their `catalog_id`), as `HEAD` opens them.

    An event marker has the event's id as name and hash, and no position, since none is computed. A phase marker spans
    the trigger on its channel; in the place of a phase stands the label, or the cluster where there is none, since no
    phase is claimed. The kind of both, which is the marker's colour, is the cluster's number.
    """
    picks = picks.sort_values(["onset", "event_id"], kind="stable")
    ends = picks["onset"] + pd.to_timedelta(picks["duration_s"].astype(float), unit="s")
    timed = picks.assign(
        begin=iso_times(picks["onset"], "us") if len(picks) else [], end=iso_times(ends, "us") if len(picks) else []
    )
    pick_rows: Iterator[Any] = timed.itertuples(index=False)
    begins = iso_times(events["onset"], "us") if len(events) else []
    rows: Iterator[Any] = iter(events.itertuples(index=False))
    for event, begin in zip(rows, begins, strict=True):
        name = _field(event.catalog_id)
        time = _time(begin)
        yield f"event: {time} {event.cluster} {name} None None None None None {name} None\n"
        for pick in itertools.islice(pick_rows, event.num_detections):
            label = pick.label if isinstance(pick.label, str) else f"cluster {pick.cluster}"
            channel = _field(f"{pick.network}.{pick.station}.{pick.location}.{pick.trigger_channel}")
            yield (
                f"phase: {_time(pick.begin)} {_time(pick.end)} {pick.duration_s:.3f} {pick.cluster} {channel} {name} "
                f"{time} {_field(label)} None True\n"
            )


def _time(iso: str) -> str:
    return iso.removesuffix("Z").replace("T", " ")


def _field(text: str) -> str:
    """Return text as one field; what would end the field or the line is written as U+FFFD."""
    text = "".join(character if character.isprintable() else "\ufffd" for character in fit_for_xml(text))
    if _PLAIN.fullmatch(text) and text != "None":
        return text
    return "'" + text.replace("\\", "\ufffd").replace("'", "\\'") + "'"
