"""Sections `report`, `catalog` and `explore`: the figures, the catalogue, and access to the explorer."""

from typing import Literal

from pydantic import Field, field_validator

from pipelines.config.base import Section, operational


class ReportSettings(Section):
    """How many events the report shows, and how it draws the map of the embedding."""

    nearest_per_cluster: int = Field(2, le=10_000)
    """Events nearest to the centroid, shown for each cluster (count)."""

    random_per_cluster: int = Field(3, le=10_000)
    """Randomly drawn events, shown for each cluster (count)."""

    boundary_per_cluster: int = Field(1, le=10_000)
    """Events with the smallest margin to another cluster, shown for each cluster (count)."""

    traces: Literal["detection", "recorded"] = "detection"
    """Traces in the report and the explorer: filtered to the `detection` band, or as `recorded`."""

    max_gallery_events: int = Field(96, le=10_000)
    """Maximum number of events in the gallery; with many clusters each shows fewer (count)."""

    map_events: int = 1500
    """Randomly drawn events for the map and the descriptions of the clusters (count)."""

    map_method: Literal["tsne", "pca"] = "tsne"
    """Map of the embedding: `pca`, the principal components, or `tsne`, t-SNE beside them."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the map (no unit)."""

    @field_validator("nearest_per_cluster", "random_per_cluster", "boundary_per_cluster", "max_gallery_events")
    @classmethod
    def _not_negative(cls, value: int) -> int:
        if value < 0:
            raise ValueError(f"a number of gallery events is {value}; it must be 0 or more")
        return value

    @field_validator("map_events")
    @classmethod
    def _bounded(cls, value: int) -> int:
        if not 10 <= value <= 20_000:
            raise ValueError(f"report.map_events is {value}; it must lie between 10 and 20000")
        return value


class CatalogSettings(Section):
    """Which events enter the catalogue, and how QuakeML identifies them."""

    min_stations: int = Field(1, le=100_000)
    """Minimum number of stations that detected an event (count)."""

    formats: tuple[Literal["quakeml", "csv", "parquet", "pyrocko", "seisbench"], ...] = (
        "quakeml",
        "csv",
        "parquet",
        "pyrocko",
    )
    """Files to write for each month: `quakeml` (.xml), `csv`, `parquet` (GeoParquet), `pyrocko` (.markers), and
    `seisbench` (seisbench/, with a copy of every window; needs `pip install 'firnline[seisbench]'`)."""

    authority: str = "local"
    """Authority in every QuakeML resource identifier, `smi:<authority>/firnline/...`."""

    agency: str | None = None
    """Agency in QuakeML's creation information; null: none is written."""

    event_types: dict[str, str] = {}
    """QuakeML event types of labels, in addition to the built-in ones, such as `{calving: "ice quake"}`."""

    @field_validator("min_stations")
    @classmethod
    def _at_least_one(cls, value: int) -> int:
        if value < 1:
            raise ValueError(f"catalog.min_stations is {value}; it must be 1 or more")
        return value

    @field_validator("authority")
    @classmethod
    def _identifier(cls, value: str) -> str:
        allowed = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")
        if len(value) < 3 or not set(value) <= allowed or not value[0].isalnum():
            raise ValueError(
                f"catalog.authority is {value!r}; it must be three or more letters, digits, '-', '.' or '_', "
                "the first a letter or digit, as in 'org.example'"
            )
        return value

    @field_validator("agency")
    @classmethod
    def _short(cls, value: str | None) -> str | None:
        if value is not None and not 1 <= len(value) <= 64:
            raise ValueError(f"catalog.agency has {len(value)} characters; QuakeML allows 1 to 64")
        return value

    @field_validator("event_types")
    @classmethod
    def _known_types(cls, value: dict[str, str]) -> dict[str, str]:
        from obspy.core.event.header import EventType

        known = set(EventType.keys())
        for label, event_type in value.items():
            if event_type not in known:
                raise ValueError(
                    f"catalog.event_types maps {label!r} to {event_type!r}; it must be a QuakeML event type "
                    'such as "ice quake", "earthquake" or "other event"'
                )
        return value


class ExploreSettings(Section):
    """Where the explorer listens and where it keeps the hand labels."""

    host: str = operational("127.0.0.1")
    """Address that the explorer listens on; with any other than a loopback address other machines can reach it."""

    port: int = operational(8765, ge=0, le=65535)
    """Port that the explorer listens on; 0: any free port."""

    allowed_hosts: tuple[str, ...] = operational(())
    """Further host names that browsers may use for the explorer, as behind a proxy; without a port."""

    labels_path: str | None = operational(None)
    """CSV file (path or URL) in which hand labels are saved; default: `labels.path` if given, or else
    `hand-labels.csv` in the workspace."""

    label_names: tuple[str, ...] = operational(("icequake", "earthquake", "spike", "tremor", "noise"))
    """Labels offered as buttons; others can be typed."""

    page_events: int = operational(24, ge=1, le=200)
    """Events on a page (count)."""

    map_events: int = operational(1_000_000, ge=10, le=5_000_000)
    """Events of the map; of more, about so many are drawn at random (count)."""

    export: str | None = operational(None)
    """Folder or bucket prefix to write a copy of the explorer to, for reading: a page that opens from a disk, without a
    server or a network. No server is started then."""

    export_map_events: int = operational(200_000, ge=10, le=2_000_000)
    """Events of the map of an export; of more, about so many are drawn at random (count)."""

    export_events: int = operational(400, ge=0, le=20_000)
    """Events of an export that have waveform and spectrogram, from every cluster alike; some 120 kB each (count)."""
