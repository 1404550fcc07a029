"""Open an archive for detection: list it, probe its sampling rates, and check the configuration against them."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from pipelines.archive.layouts import code_matcher
from pipelines.archive.manifest import ANY, Manifest, build_manifest, probe, read_manifest
from pipelines.archive.stationxml import MAX_STATIONXML_BYTES, read_positions, read_stationxml
from pipelines.config import Config, with_keys
from pipelines.config.archive import ArchiveSettings
from pipelines.config.detection import DetectionSettings
from pipelines.detect.anchored import component_row
from pipelines.detect.response import Epoch, Responses
from pipelines.detect.stage_summary import print_some
from pipelines.runtime.errors import InputError
from pipelines.runtime.text import counted
from pipelines.workspace.artifacts import StationList, StationPosition
from pipelines.workspace.storage import Store, check_readable, content_hash, open_store, read_file
from pipelines.workspace.workspace import Workspace

MIN_SEISMIC_HZ = 10.0
"""`detection.fit_to_rate` fits the band to the lowest rate that is at least this."""


@dataclass(frozen=True, kw_only=True)
class Archive:
    """An archive that can be read with the configuration it was checked with."""

    store: Store
    """Where the recordings are."""
    manifest: Manifest
    """Its files."""
    config: Config
    """The configuration, fitted to the recordings where `detection.fit_to_rate` asks for it."""
    responses: Responses
    """Of `archive.stationxml`; none for counts."""
    stationxml_hash: str
    """Content hash of that file; "" for counts."""
    stationxml: bytes | None
    """Content of that file, in counts too; None without one."""
    stations: StationList | None
    """Where it says that the stations are."""


def open_archive(url: str, workspace: Workspace, config: Config) -> Archive:
    """List the archive and check that it can be read with this configuration, before anything is written.

    Raises:
        InputError: missing, empty, unreadable, nothing selected, a band above every Nyquist frequency, or a StationXML
            file that converts none of the recordings.
    """
    if config.detection.units == "m/s" and config.archive.stationxml is None:
        raise InputError("detection.units m/s needs archive.stationxml")
    if config.window.remove_response and config.detection.units != "m/s":
        raise InputError("window.remove_response needs detection.units m/s")
    archive = open_store(url, anonymous=config.archive.anonymous)
    check_readable(archive, what="archive")
    kept = read_manifest(workspace.store)
    before = kept[1] if kept is not None and kept[0] == "flat" else None
    manifest = build_manifest(archive, config.archive, before)
    fit, band = config.detection.fit_to_rate, config.detection.band_hz
    # Channel groups whose rate does not carry the band are skipped by name; there must be some that do.
    rates = probe(archive, manifest.usable(), enough=lambda rates: not fit and band[1] < max(rates) / 2)
    if fit:
        config = _fitted(config, rates)
    _check_rates(config.detection, rates)
    stationxml, inventory, stations = _read_stationxml(config.archive)
    in_counts = inventory is None or config.detection.units == "counts"
    try:
        responses = Responses() if in_counts else Responses.of(inventory, config.window)
    except ValueError as error:
        raise InputError(f"archive.stationxml {config.archive.stationxml} cannot be read: {error}") from None
    _check_responses(responses, manifest, config.archive)
    return Archive(
        store=archive,
        manifest=manifest,
        config=config,
        responses=responses,
        stationxml_hash="" if in_counts or stationxml is None else content_hash(stationxml),
        stationxml=stationxml,
        stations=stations,
    )


def _check_rates(detection: DetectionSettings, rates: set[float]) -> None:
    """Raise InputError where no rate carries the band, or one that does has too few samples for the averages."""
    high = detection.band_hz[1]
    if high >= max(rates) / 2:
        raise InputError(
            f"detection.band_hz reaches {high:g} Hz but the recordings have {max(rates):g} samples/s: "
            f"the upper corner must be below {max(rates) / 2:g} Hz"
        )
    for rate_hz in sorted(rate for rate in rates if high < rate / 2):
        num_sta, num_lta = detection.average_samples(rate_hz)
        if num_sta >= num_lta:
            raise InputError(
                f"detection.sta_seconds {detection.sta_seconds:g} and detection.lta_seconds {detection.lta_seconds:g} "
                f"are {num_sta} and {num_lta} samples at {rate_hz:g} samples/s: the STA must be shorter than the LTA"
            )


def _fitted(config: Config, rates: set[float]) -> Config:
    """Return the configuration with a band that every seismic rate carries, and windows of no more than the highest."""
    lowest = min((rate for rate in rates if rate >= MIN_SEISMIC_HZ), default=max(rates))
    low, high = config.detection.band_hz
    sections: dict[str, dict[str, Any]] = {}
    if high > 0.4 * lowest > low:
        sections["detection"] = {"band_hz": (low, 0.4 * lowest)}
    if config.window.rate_hz > max(rates):
        sections["window"] = {"rate_hz": max(rates)}
    if sections:
        fitted = with_keys(config, sections)
        band = ", ".join(f"{corner:g}" for corner in fitted.detection.band_hz)
        found = ", ".join(f"{rate:g}" for rate in sorted(rates))
        print(
            f"detect: the recordings have {found} samples/s; fitted to them: "
            f"detection.band_hz [{band}], window.rate_hz {fitted.window.rate_hz:g}"
        )
        return fitted
    return config


def _read_stationxml(settings: ArchiveSettings) -> tuple[bytes | None, Any, StationList | None]:
    """Return the content of `archive.stationxml`, its ObsPy inventory and its positions; None without the file."""
    path = settings.stationxml
    if path is None:
        return None, None, None
    content = read_file(path, "archive.stationxml", max_bytes=MAX_STATIONXML_BYTES)
    try:
        inventory = read_stationxml(content)
    except ValueError as error:
        raise InputError(f"archive.stationxml {path} cannot be read: {error}") from None
    positions = tuple(StationPosition(**dataclasses.asdict(position)) for position in read_positions(inventory))
    return content, inventory, StationList(content_hash=content_hash(content), positions=positions)


def _check_responses(responses: Responses, manifest: Manifest, archive: ArchiveSettings) -> None:
    """Print which channels `archive.stationxml` cannot convert to m/s; InputError where that is all of them.

    Channels and times are those that the manifest knows of; what else the headers turn out to hold is dropped by name
    and recorded in the markers.
    """
    if responses.channels is None:
        return
    stations: dict[tuple[str, str], dict[str, list[Epoch]]] = {}
    is_selected = code_matcher(archive.channel)
    for (network, station, location), channels in responses.channels.items():
        for channel, epochs in channels.items():
            if component_row(channel) is not None and is_selected(channel):
                name = f"{network}.{station}.{location}.{channel}"
                stations.setdefault((network, station), {}).setdefault(name, []).extend(epochs)
    groups = manifest.usable().group_by(["network", "station", "band"])
    problems: dict[str, str] = {}
    doubts: dict[str, str] = {}
    num_converted = 0
    for row in groups.aggregate([("start_ns", "min"), ("end_ns", "max")]).to_pylist():
        known = {
            name: epochs
            for name, epochs in stations.get((row["network"], row["station"]), {}).items()
            if row["band"] in (ANY, name.rpartition(".")[2][:2])
        }
        if not known:
            band = "" if row["band"] == ANY else f" {row['band']}"
            problems[f"{row['network']}.{row['station']}{band}"] = "archive.stationxml does not have its channels"
        for name, epochs in known.items():
            held = [
                epoch for epoch in epochs if epoch.start_ns < row["end_ns_max"] and epoch.end_ns > row["start_ns_min"]
            ]
            bad = {epoch.problem for epoch in held if epoch.problem}
            if not held:
                problems[name] = "archive.stationxml has no epoch for this channel at the time of the recordings"
            elif bad:
                problems[name] = min(bad)
            num_converted += any(not epoch.problem for epoch in held)
            doubt = next((epoch.doubt for epoch in held if epoch.doubt), "")
            if doubt:
                doubts[name] = doubt
    lines = [f"{name}: {problem}" for name, problem in sorted(problems.items())]
    if not num_converted:
        more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
        raise InputError(f"archive.stationxml {archive.stationxml} converts no recording to m/s: {lines[0]}{more}")
    print_some(
        lines,
        f"archive.stationxml cannot convert {counted(len(lines), 'channel')} to m/s for some or all of the time",
        rest="; ledger/ in the workspace lists those with recordings",
    )
    print_some(
        [f"{name}: {doubt}" for name, doubt in sorted(doubts.items())],
        f"archive.stationxml contradicts itself for {counted(len(doubts), 'channel')}",
        rest="",
    )
