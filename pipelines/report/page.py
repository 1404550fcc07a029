"""The report's page: one HTML file with its style and figures inside, which opens without a network."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

import jinja2
from markupsafe import Markup

from pipelines.report.words import percent, thousands
from pipelines.runtime.text import fit_for_xml


@dataclass(frozen=True, kw_only=True)
class ClusterCard:
    """One cluster in words and numbers."""

    number: int
    name: str | None
    colour: str
    events: int
    share: float
    """Share of all events (0 to 1)."""
    sites: tuple[tuple[str, int], ...]
    """Stations and their events, most first."""
    hand: int
    """Events that carry a hand label."""
    duration_s: tuple[float, float, float] | None
    """Quartiles in the sample (s)."""
    snr_db: tuple[float, float, float] | None
    """Quartiles in the sample (dB)."""
    sampled: int
    """Events of this cluster in the sample."""


@dataclass(frozen=True, kw_only=True)
class GalleryItem:
    """One event of the gallery."""

    event_id: str
    cluster: int
    role: str
    site: str
    time: str
    """Onset, UTC."""
    details: tuple[str, ...]
    svg: str


@dataclass(frozen=True, kw_only=True)
class Statement:
    """A number with the protocol that gives it its meaning."""

    title: str
    value: str
    protocol: str


@dataclass(frozen=True, kw_only=True)
class ConfusionRow:
    """One class of the truth or of the hand labels."""

    name: str
    total: int
    cells: tuple[tuple[int, float, bool], ...]
    """For each column: events, their share of the row (0 to 1), and whether the column stands for this class."""


@dataclass(frozen=True, kw_only=True)
class ConfusionTable:
    """A confusion matrix and what it compares."""

    title: str
    protocol: str
    columns: tuple[str, ...]
    rows: tuple[ConfusionRow, ...]


@dataclass(frozen=True, kw_only=True)
class DriftLine:
    """The events of a station and month beside those that the clustering was fitted on."""

    station: str
    month: str
    events: int
    far: str
    distance: str
    balance: str
    noise: str
    reasons: tuple[str, ...]
    """Why retraining is advised; empty where it is not."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure of the page, which lies beside it as files, too."""

    name: str
    """Of the files, `figures/<name>.svg` and `.png`."""
    svg: str
    caption: str
    files: Mapping[str, bytes]
    """Content by suffix."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """Everything the page shows."""

    title: str
    lede: str
    facts: tuple[tuple[str, str], ...]
    """Large numbers under the title: value and what it counts."""
    clusters: tuple[ClusterCard, ...]
    gallery: tuple[GalleryItem, ...]
    band_words: str
    """How the traces of the gallery were filtered."""
    statements: tuple[Statement, ...] = ()
    confusions: tuple[ConfusionTable, ...] = ()
    no_evaluation: str = ""
    """Why there is no agreement with known classes, where there is none."""
    activity: tuple[Drawing, ...] = ()
    """Detections over time, by hour and month."""
    measures: tuple[Drawing, ...] = ()
    """What the clusters look like: spectra, durations, amplitudes."""
    coverage: tuple[Drawing, ...] = ()
    """What was recorded, and what became of it."""
    drift_words: tuple[str, ...] = ()
    """What has changed since the clustering was fitted, and how that was found."""
    drift: tuple[DriftLine, ...] = ()
    map: tuple[Drawing, ...] = ()
    no_map: str = ""
    """Why there is no map, where there is none."""
    catalogue_words: str = ""
    catalogue_files: tuple[tuple[str, str], ...] = ()
    """Links to the catalogue: relative address and name."""
    lineage: tuple[tuple[str, str], ...] = ()
    configuration: tuple[tuple[str, str], ...] = ()
    """Stages and their configuration as YAML."""
    notes: tuple[str, ...] = ()
    """What a reader must know before the numbers, such as events without a label."""
    catalogue_note: str = ""
    """How to open the links to the catalogue, where a browser may not find the files."""


def render(page: Page) -> str:
    """Return the page as HTML. All text is escaped; only the SVG of the figures is taken as it is."""
    folder = resources.files("pipelines.report")
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: fit_for_xml(value) if type(value) is str else value,
    )
    environment.filters["count"] = thousands
    environment.filters["percent"] = percent
    environment.filters["decimal"] = lambda value, digits: f"{value:.{digits}f}".replace("-", "\u2212")
    environment.filters["svg"] = Markup
    template = environment.from_string(folder.joinpath("page.html").read_text(encoding="utf-8"))
    style = Markup(folder.joinpath("page.css").read_text(encoding="utf-8"))
    text: str = template.render(page=page, style=style)
    return text
