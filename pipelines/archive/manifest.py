"""The manifest: every usable file of the archive with what it holds, kept in the workspace and refreshed by each run.

One row a file and channel group. In layouts that name channel and date in the path nothing is opened; in the others
(`flat`) the headers are read once, and again only where size or tag has changed.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.archive.layouts import PathInfo, code_matcher, detect_layout, folder_filter, path_parser
from pipelines.archive.reading import spans
from pipelines.archive.records import decode
from pipelines.config.archive import ArchiveSettings
from pipelines.runtime.errors import InputError
from pipelines.workspace.storage import Store, StoredObject

MANIFEST_PATH = "plan/manifest.parquet"
LAYOUT_KEY = b"firnline.layout"
INDEX_THREADS = 4
PROBES = 64
LAYOUT_SAMPLE = 10_000
LISTED_AT_A_TIME = 50_000
PROBE_BYTES = 2**20
ANY = "*"

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("size", pa.int64()),
        ("etag", pa.string()),
        ("network", pa.string()),
        ("station", pa.string()),
        ("location", pa.string()),
        ("band", pa.string()),
        ("channels", pa.list_(pa.string())),
        ("start_ns", pa.int64()),
        ("end_ns", pa.int64()),
        ("reason", pa.string()),
    ]
)


@dataclass
class Manifest:
    """The archive's files.

    Attributes:
        layout: the layout that was used, never `auto`.
        table: rows as in SCHEMA; `location` and `band` are `*` where the path does not say, `reason` tells why a file
            or folder cannot be used (its other columns are then empty), `channels` the codes that the headers hold
            (null in layouts that name the channel).
        num_listed: objects that were listed.
    """

    layout: str
    table: pa.Table
    num_listed: int = 0

    @property
    def num_usable(self) -> int:
        """Return the number of rows of files that can be used."""
        return int(self.table["reason"].null_count)

    @property
    def num_unusable(self) -> int:
        """Return the number of rows of files and folders that cannot."""
        return int(self.table.num_rows) - self.num_usable

    def usable(self) -> pa.Table:
        """Return the rows of files that can be used."""
        return self.table.filter(pc.is_null(self.table["reason"]))

    def unusable(self) -> list[tuple[str, str]]:
        """Return (key, reason) of files whose path does not fit the layout or whose headers cannot be read."""
        rows = self.table.filter(pc.is_valid(self.table["reason"]))
        return list(zip(rows["key"].to_pylist(), rows["reason"].to_pylist(), strict=True))


def build_manifest(archive: Store, settings: ArchiveSettings, before: pa.Table | None = None) -> Manifest:
    """List the archive and return the manifest of what the settings select.

    Args:
        archive: where the recordings are.
        settings: layout and selection.
        before: an earlier manifest of the same layout, so that unchanged headers are not read again.

    Raises:
        InputError: the archive is empty, or holds nothing that can be read and is selected.
    """
    unreadable: dict[str, str] = {}
    wanted = folder_filter(settings.layout, settings.start, settings.end)
    listing = _named_in_text(archive.walk(keep_folder=wanted, unreadable=unreadable), unreadable)
    # The first objects tell the layout; no list of all is kept.
    first = list(islice(listing, LAYOUT_SAMPLE))
    if not first:
        if unreadable:
            raise _unread(archive, *min(unreadable.items()))
        raise InputError(f"the archive {archive.url} is empty")
    layout = settings.layout
    if layout == "auto":
        layout = detect_layout(item.path for item in first)
    objects = chain(first, listing)
    manifest = (
        _indexed(archive, list(objects), settings, before)
        if layout == "flat"
        else _named(archive, objects, layout, settings)
    )
    rows = [{"key": _as_text(path), "reason": reason} for path, reason in sorted(unreadable.items())]
    manifest.table = pa.concat_tables([manifest.table, pa.Table.from_pylist(rows, schema=SCHEMA)])
    manifest.num_listed += len(rows)
    return manifest


def probe(archive: Store, table: pa.Table, *, enough: Callable[[set[float]], bool]) -> set[float]:
    """Return the sampling rates (Hz) in files of a manifest, read one after the other until the rates are enough.

    Args:
        archive: where the recordings are.
        table: usable rows of the manifest.
        enough: called with the rates so far. Where it never holds, they are those in the first file of each band and
            instrument code and in 64 files spread over the archive.

    Raises:
        InputError: none of these files holds a readable sample.
    """
    spread = np.linspace(0, table.num_rows - 1, min(PROBES, table.num_rows)).astype(int)
    first = [pc.index(table["band"], band).as_py() for band in table["band"].unique()]
    rows = dict.fromkeys([*first, *spread.tolist()])
    problem = ""
    rates: set[float] = set()
    for row in rows:
        item = StoredObject(*(table[name][row].as_py() for name in ("key", "size", "etag")))
        # The beginning tells enough.
        decoded = decode(archive.read(item.path, 0, PROBE_BYTES))
        rates |= {run.rate_hz for run in decoded.runs}
        if rates and enough(rates):
            break
        problem = problem or f"{item.path}: {decoded.problems[0] if decoded.problems else 'no samples in it'}"
    if not rates:
        raise InputError(f"nothing in the archive {archive.url} can be read, e.g. {problem}")
    return rates


def read_manifest(workspace: Store) -> tuple[str, pa.Table] | None:
    """Return (layout, table) of the manifest kept in a workspace.

    None where there is none, one of other columns, or a damaged one: all that it holds is read from the archive again.
    """
    try:
        content = workspace.read(MANIFEST_PATH)
    except FileNotFoundError:
        return None
    try:
        table = pq.read_table(pa.BufferReader(content))
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        print(f"{workspace.full(MANIFEST_PATH)} is damaged and is made anew from the archive: {reason}", flush=True)
        return None
    if table.schema.names != SCHEMA.names:
        return None
    return (table.schema.metadata or {}).get(LAYOUT_KEY, b"").decode(), table.replace_schema_metadata(None)


def write_manifest(workspace: Store, manifest: Manifest) -> None:
    """Keep a manifest in a workspace."""
    with workspace.atomic_file(MANIFEST_PATH) as temporary:
        table = manifest.table.replace_schema_metadata({LAYOUT_KEY: manifest.layout.encode()})
        pq.write_table(table, temporary, compression="zstd")


def selection(settings: ArchiveSettings) -> tuple[int | None, int | None]:
    """Return archive.start and archive.end in nanoseconds since 1970."""
    return (
        None if settings.start is None else round(settings.start.timestamp() * 1e6) * 1000,
        None if settings.end is None else round(settings.end.timestamp() * 1e6) * 1000,
    )


def _named_in_text(listing: Iterable[StoredObject], unreadable: dict[str, str]) -> Iterator[StoredObject]:
    """Yield the objects whose path is text; the others cannot be kept in a table, and become unreadable."""
    for item in listing:
        if _as_text(item.path) == item.path:
            yield item
        else:
            unreadable[item.path] = "its name is not UTF-8"


def _as_text(path: str) -> str:
    """Return a path with the bytes that are not UTF-8 written as backslash escapes."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _unread(archive: Store, path: str, reason: str) -> InputError:
    return InputError(f"nothing in the archive {archive.url} can be read, e.g. {_as_text(path)}: {reason}")


def _named(archive: Store, objects: Iterable[StoredObject], layout: str, settings: ArchiveSettings) -> Manifest:
    try:
        parse = path_parser(layout)
    except ValueError as error:
        raise InputError(f"archive.layout {layout!r}: {error}") from None
    manifest = Manifest(layout, SCHEMA.empty_table())
    parts = []
    objects = iter(objects)
    while some := list(islice(objects, LISTED_AT_A_TIME)):
        parts.append(_named_part(some, parse, settings, manifest))
    manifest.table = pa.concat_tables(parts).combine_chunks()
    if not manifest.num_usable:
        raise InputError(
            f"the archive {archive.url} holds nothing to read: of {manifest.num_listed} files "
            f"{manifest.table.num_rows} do not fit archive.layout {layout!r} and the others are not selected"
        )
    return manifest


def _named_part(
    listed: list[StoredObject],
    parse: Callable[[str], PathInfo | None],
    settings: ArchiveSettings,
    manifest: Manifest,
) -> pa.Table:
    network, station = code_matcher(settings.network), code_matcher(settings.station)
    location, channel = code_matcher(settings.location), code_matcher(settings.channel)
    first, last = selection(settings)
    spill = round(settings.spill_seconds * 1e9)
    rows: list[dict[str, Any]] = []
    manifest.num_listed += len(listed)
    for item in listed:
        info = parse(item.path)
        row: dict[str, Any] = {"key": item.path, "size": item.size, "etag": item.etag}
        if info is None or info.start_ns is None or info.end_ns is None:
            rows.append(row | {"reason": f"its name does not fit archive.layout {manifest.layout}"})
            continue
        if not (network(info.network or "") and station(info.station or "")):
            continue
        if (info.location is not None and not location(info.location)) or (
            info.channel is not None and not channel(info.channel)
        ):
            continue
        if (last is not None and info.start_ns - spill >= last) or (first is not None and info.end_ns + spill <= first):
            continue
        row |= {"network": info.network, "station": info.station}
        row["location"] = ANY if info.location is None else info.location
        row["band"] = ANY if info.channel is None else info.channel[:2]
        rows.append(row | {"start_ns": info.start_ns - spill, "end_ns": info.end_ns + spill})
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _indexed(
    archive: Store, listed: list[StoredObject], settings: ArchiveSettings, before: pa.Table | None
) -> Manifest:
    known: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for row in before.to_pylist() if before is not None else []:
        known.setdefault((row["key"], row["size"], row["etag"]), []).append(row)

    def index(item: StoredObject) -> list[dict[str, Any]]:
        rows = known.get((item.path, item.size, item.etag))
        return rows if rows is not None else list(_headers(archive, item))

    with ThreadPoolExecutor(INDEX_THREADS) as pool:
        rows = [row for found in pool.map(index, listed) for row in found]
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    manifest = Manifest("flat", table, len(listed))
    if not manifest.num_usable:
        raise _unread(archive, *manifest.unusable()[0])
    # The index covers all, the selection only what this run reads.
    manifest.table = _select(table, settings)
    if not manifest.num_usable:
        raise InputError(f"archive.network, station, location, channel, start and end select nothing in {archive.url}")
    return manifest


def _headers(archive: Store, item: StoredObject) -> Iterator[dict[str, Any]]:
    base = {"key": item.path, "size": item.size, "etag": item.etag}
    groups: dict[tuple[str, str, str, str], tuple[int, int]] = {}
    channels: dict[tuple[str, str, str, str], set[str]] = {}
    reason: str | None = None
    for span in spans(archive, item):
        if span.channel is None:
            reason = reason or span.problem
            continue
        codes = span.channel
        group = (codes.network, codes.station, codes.location, codes.channel[:2])
        channels.setdefault(group, set()).add(codes.channel)
        begin, end = groups.get(group, (span.start_ns, span.end_ns))
        groups[group] = (min(begin, span.start_ns), max(end, span.end_ns))
    for group, (begin, end) in groups.items():
        network, station, location, band = group
        yield base | {
            "network": network,
            "station": station,
            "location": location,
            "band": band,
            "channels": sorted(channels[group]),
            "start_ns": begin,
            "end_ns": end,
            "reason": None,
        }
    if not groups:
        yield base | {"reason": reason or "no samples in it"}


def _select(table: pa.Table, settings: ArchiveSettings) -> pa.Table:
    first, last = selection(settings)
    network, station = code_matcher(settings.network), code_matcher(settings.station)
    location, channel = code_matcher(settings.location), code_matcher(settings.channel)
    keep = []
    columns = ["network", "station", "location", "channels", "start_ns", "end_ns", "reason"]
    for row in table.select(columns).to_pylist():
        keep.append(
            row["reason"] is not None
            or (
                network(row["network"])
                and station(row["station"])
                and location(row["location"])
                and any(map(channel, row["channels"]))
                and (last is None or row["start_ns"] < last)
                and (first is None or row["end_ns"] > first)
            )
        )
    return table.filter(pa.array(keep, pa.bool_()))
