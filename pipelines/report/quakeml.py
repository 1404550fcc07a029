"""The catalogue as QuakeML 1.2, with picks and no origin, which QuakeML allows since no location is computed.

It is written event by event as text: ObsPy's writer holds a month's catalogue as objects, some 20 kB an event.
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import pandas as pd

from pipelines.report.catalogue import iso_times
from pipelines.runtime.text import fit_for_xml

_HEAD = """<?xml version="1.0" encoding="utf-8"?>
<q:quakeml xmlns="http://quakeml.org/xmlns/bed/1.2" xmlns:q="http://quakeml.org/xmlns/quakeml/1.2">
"""
_UNSAFE = re.compile(r"[^A-Za-z0-9_\-.*()']")


@dataclass(frozen=True, kw_only=True)
class Document:
    """A QuakeML 1.2 document in pieces: `head`, `body` of any number of tables, `tail`.

    Times are cut to microseconds. Picks are onsets found by an automatic detector: no phase is claimed. A character
    that XML cannot hold becomes U+FFFD.
    """

    month: str
    """Names the document, such as 2009-01."""
    authority: str
    """Of every resource identifier."""
    agency: str | None
    """Of the creation information; None: none is written."""
    method: str
    """Names the detector's configuration in the picks' method identifier."""
    clustering: str = ""
    """Id of the clustering that the clusters belong to."""

    def head(self) -> str:
        """Return what comes before the events."""
        words = "Detections associated in time only: no origin and no magnitude was computed."
        if self.clustering:
            words += f" Cluster numbers are those of clustering {self.clustering}."
        return (
            f'{_HEAD}<eventParameters publicID="{self._prefix}/catalog/{self.month}">\n'
            f"<comment><text>{_text(words)}</text></comment>\n"
        )

    def body(self, events: pd.DataFrame, picks: pd.DataFrame) -> Iterator[str]:
        """Yield some events with their picks (detections with their `catalog_id`), the same text for the same tables.

        What comes in several tables, one after the other in time, gives the text of one.
        """
        # An event ends before the next one begins, so in order of time its picks stand together.
        picks = picks.sort_values(["onset", "event_id"], kind="stable")
        pick_rows = picks.assign(time=iso_times(picks["onset"], "us") if len(picks) else []).itertuples(index=False)
        rows: Iterator[Any] = iter(events.itertuples(index=False))
        for event in rows:
            yield f'<event publicID="{self._prefix}/event/{_identifier(event.catalog_id)}">\n'
            label = "no label"
            if event.label is not None:
                label = f"label {_given(event.label, event.label_source, event.confidence)}"
            words = (
                f"cluster {event.cluster} ({event.cluster_share:.0%} of the detections); {label}; "
                f"{event.num_detections} detection(s) at {event.num_stations} station(s); no origin was computed"
            )
            yield f"<comment><text>{_text(words)}</text></comment>\n"
            for pick in itertools.islice(pick_rows, event.num_detections):
                yield _pick(pick, self._prefix, self.method, self._agency_line)
            yield f"<type>{event.event_type}</type>\n"
            if event.label is not None:
                certainty = "known" if event.label_source == "hand" else "suspected"
                yield f"<typeCertainty>{certainty}</typeCertainty>\n"
            yield self._agency_line
            yield "</event>\n"

    def tail(self) -> str:
        """Return what comes after the events."""
        return f"{self._agency_line}</eventParameters>\n</q:quakeml>\n"

    @property
    def _prefix(self) -> str:
        return f"smi:{self.authority}/firnline"

    @property
    def _agency_line(self) -> str:
        return f"<creationInfo><agencyID>{_text(self.agency)}</agencyID></creationInfo>" if self.agency else ""


def _pick(pick: Any, prefix: str, method: str, agency_line: str) -> str:
    row = pick._asdict()
    location = f" locationCode={_attribute(row['location'])}" if row["location"] else ""
    label = ""
    if not pd.isna(row["label"]):
        label = f"; label {_given(row['label'], row['label_source'], row['confidence'])}"
    words = (
        f"event_id {row['event_id']}; STA/LTA {row['peak_ratio']:.2f}; signal-to-noise {row['snr_db']:.1f} dB; "
        f"duration {row['duration_s']:.2f} s; cluster {row['cluster']}{label}"
    )
    return (
        f'<pick publicID="{prefix}/pick/{_identifier(row["event_id"])}">\n'
        f"<time><value>{row['time']}</value></time>\n"
        f"<waveformID networkCode={_attribute(row['network'])} stationCode={_attribute(row['station'])}"
        f"{location} channelCode={_attribute(row['trigger_channel'])}/>\n"
        f"<methodID>{prefix}/method/{_identifier(method)}</methodID>\n"
        "<evaluationMode>automatic</evaluationMode>\n"
        f"<comment><text>{_text(words)}</text></comment>\n"
        f"{agency_line}</pick>\n"
    )


def _given(label: str, source: str, confidence: float | None) -> str:
    """Return a label with where it comes from."""
    return f"{label} ({source}{'' if pd.isna(confidence) else f', confidence {confidence:.2f}'})"


def _identifier(name: str) -> str:
    """Return a name in which the characters that a QuakeML identifier cannot hold, and ~, are written as ~code~."""
    return _UNSAFE.sub(lambda match: f"~{ord(match.group()):x}~", name)


def _text(words: str | None) -> str:
    return escape(fit_for_xml(words or ""))


def _attribute(words: str) -> str:
    return quoteattr(fit_for_xml(words))
