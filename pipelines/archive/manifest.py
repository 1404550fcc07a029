"""The manifest: every usable file of the archive with what it holds, kept in the workspace and refreshed by each run.

One row a file, channel group and stretch of time. In layouts that name channel and day in the path nothing is opened;
in the others (`flat`, and templates without a day) the headers are read once, and again only where size or tag has
changed.
"""

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.archive.codes import group_of, name_channels
from pipelines.archive.layout_choice import choose_layout
from pipelines.archive.layouts import DAY_NS, PathInfo, code_matcher, folder_filter, is_indexed, path_parser
from pipelines.archive.reading import spans
from pipelines.archive.records import MAX_TIME_NS, MIN_TIME_NS, Channel, Payloads, decode
from pipelines.archive.sample_counts import SampleCounts
from pipelines.config.archive import ArchiveSettings
from pipelines.runtime.errors import InputError
from pipelines.runtime.text import counted
from pipelines.workspace import tables
from pipelines.workspace.outcomes import Outcome
from pipelines.workspace.storage import Store
from pipelines.workspace.stored_object import StoredObject

MANIFEST_PATH = "plan/manifest.parquet"
LAYOUT_KEY = b"firnline.layout"
LISTING_KEY = b"firnline.listing"
NUM_INDEX_THREADS = 4
MAX_GROUPS_PER_FILE = 4096
"""Each channel group reads the whole file."""
MAX_PROBES = 64
LAYOUT_SAMPLE = 10_000
MAX_LISTED_AT_A_TIME = 50_000
ROWS_PER_GROUP = 65_536
"""Of the file. What a file may decode to is counted from above, as the square of a row group's rows."""
PROBE_BYTES = 2**20
EMPTY = "the file is empty"
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
        ("dropped", pa.map_(pa.string(), pa.int64())),
    ]
)


@dataclass
class Manifest:
    """The archive's files.

    Attributes:
        layout: the layout that was used, never `auto`.
        table: rows as in SCHEMA; `location` and `band` are `*` where the path does not say, `reason` tells why a file
            or folder cannot be used (its other columns are then empty, but for what its path says of network and
            station), `dropped` how many samples such a file holds by outcome, where its headers were read, `channels`
            the codes that the headers hold (null in layouts that name the channel).
        num_listed: objects that were listed: those that can be used, those that cannot, and those not selected.
        not_selected: of those, how many each configuration key leaves out.
        doubt: why a layout that the paths fit was not believed.
    """

    layout: str
    table: pa.Table
    num_listed: int = 0
    not_selected: Counter[str] = field(default_factory=Counter)
    doubt: str | None = None

    @property
    def num_usable(self) -> int:
        """Return the number of files that can be used; a file of several channel groups has several rows."""
        if not is_indexed(self.layout):
            # A file has one row, and the keys of a million rows need not be compared.
            return int(self.table["reason"].null_count)
        return int(pc.count_distinct(self.usable()["key"]).as_py())

    @property
    def num_unusable(self) -> int:
        """Return the number of files and folders that cannot."""
        return int(self.table.num_rows) - int(self.table["reason"].null_count)

    @property
    def dropped(self) -> Counter[str]:
        """Return by outcome the samples of files that cannot be used, as far as their headers tell."""
        total: Counter[str] = Counter()
        for entries in self.table["dropped"].drop_null().to_pylist():
            total.update(dict(entries))
        return total

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
    walk = archive.walk(keep_folder=wanted, unreadable=unreadable, follow_links=settings.follow_links)
    listing = _named_in_text(walk, unreadable)
    # The first objects tell the layout; no list of all is kept.
    first = list(islice(listing, LAYOUT_SAMPLE))
    if not first:
        if unreadable:
            raise _unread(archive, *min(unreadable.items()))
        raise InputError(f"the archive {archive.url} is empty")
    layout, doubt = settings.layout, None
    if layout == "auto":
        layout, doubt = choose_layout(archive, first, round(settings.spill_seconds * 1e9))
    objects = chain(first, listing)
    manifest = (
        _indexed(archive, list(objects), layout, settings, before)
        if is_indexed(layout)
        else _named(archive, objects, layout, settings)
    )
    rows = [{"key": _as_text(path), "reason": reason} for path, reason in sorted(unreadable.items())]
    manifest.table = pa.concat_tables([manifest.table, pa.Table.from_pylist(rows, schema=SCHEMA)])
    manifest.num_listed += len(rows)
    manifest.doubt = doubt
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
    spread = np.linspace(0, table.num_rows - 1, min(MAX_PROBES, table.num_rows)).astype(int)
    first = [pc.index(table["band"], band).as_py() for band in table["band"].unique()]
    rows = dict.fromkeys([*first, *spread.tolist()])
    problem = ""
    rates: set[float] = set()
    for row in rows:
        item = StoredObject(*(table[name][row].as_py() for name in ("key", "size", "etag")))
        # The beginning tells enough.
        try:
            decoded = decode(archive.read(item.path, 0, PROBE_BYTES), payloads=Payloads.SKIP)
        except FileNotFoundError:
            problem = problem or f"{item.path}: it was removed after it was listed"
            continue
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
    table = _read(workspace, say=print)
    if table is None:
        return None
    return (table.schema.metadata or {}).get(LAYOUT_KEY, b"").decode(), table.replace_schema_metadata(None)


def _read(workspace: Store, *, say: Callable[[str], None]) -> pa.Table | None:
    try:
        content = workspace.read(MANIFEST_PATH)
    except FileNotFoundError:
        return None
    try:
        with tables.open_content(content, workspace.full(MANIFEST_PATH)) as file:
            table = file.read()
    except InputError as error:
        say(f"{workspace.full(MANIFEST_PATH)} is damaged and is rebuilt from the archive: {error}")
        return None
    if table.schema.names != SCHEMA.names:
        return None
    return table


def read_listing(workspace: Store) -> Manifest:
    """Return the last listing; an empty one where there is none, or a damaged one, which is said on stderr."""
    kept = _read(workspace, say=partial(print, file=sys.stderr))
    if kept is None:
        return Manifest("", SCHEMA.empty_table())
    listing = json.loads((kept.schema.metadata or {}).get(LISTING_KEY, b"{}"))
    return Manifest("", kept, not_selected=Counter(listing.get("not_selected", {})))


def write_manifest(workspace: Store, manifest: Manifest) -> None:
    """Keep a manifest in a workspace."""
    with workspace.atomic_file(MANIFEST_PATH) as temporary:
        listing = {"num_listed": manifest.num_listed, "not_selected": manifest.not_selected}
        metadata = {LAYOUT_KEY: manifest.layout.encode(), LISTING_KEY: json.dumps(listing, sort_keys=True).encode()}
        table = manifest.table.replace_schema_metadata(metadata)
        pq.write_table(table, temporary, compression="zstd", row_group_size=ROWS_PER_GROUP)


def selection(settings: ArchiveSettings) -> tuple[int | None, int | None]:
    """Return archive.start and archive.end in nanoseconds since 1970."""
    first, last = (
        # Times that no record is believed to have are the first or the last of those that one may have.
        None if time is None else min(max(round(time.timestamp() * 1e6) * 1000, MIN_TIME_NS), MAX_TIME_NS)
        for time in (settings.start, settings.end)
    )
    return first, last


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


def _parser(layout: str) -> Callable[[str], PathInfo | None]:
    try:
        return path_parser(layout)
    except ValueError as error:
        raise InputError(f"archive.layout {layout!r}: {error}") from None


def _misfit(layout: str) -> str:
    return f"its name does not fit archive.layout {layout}"


def _named(archive: Store, objects: Iterable[StoredObject], layout: str, settings: ArchiveSettings) -> Manifest:
    parse = _parser(layout)
    selects = _Selection(settings)
    manifest = Manifest(layout, SCHEMA.empty_table())
    parts = []
    objects = iter(objects)
    while some := list(islice(objects, MAX_LISTED_AT_A_TIME)):
        parts.append(_named_part(some, parse, selects, manifest))
    manifest.table = pa.concat_tables(parts).combine_chunks()
    if not manifest.num_usable:
        raise InputError(
            f"the archive {archive.url} holds nothing to read: of {counted(manifest.num_listed, 'file')} "
            f"{manifest.table.num_rows} do not fit archive.layout {layout!r} and the others are not selected"
        )
    return manifest


def _named_part(
    listed: list[StoredObject],
    parse: Callable[[str], PathInfo | None],
    selects: "_Selection",
    manifest: Manifest,
) -> pa.Table:
    spill = selects.spill_ns
    rows: list[dict[str, Any]] = []
    manifest.num_listed += len(listed)
    for item in listed:
        info = parse(item.path)
        row: dict[str, Any] = {"key": item.path, "size": item.size, "etag": item.etag}
        if info is None or info.start_ns is None or info.end_ns is None:
            rows.append(row | {"reason": _misfit(manifest.layout)})
            continue
        begin, end = info.start_ns - spill, info.end_ns + spill
        channels = None if info.channel is None else (info.channel,)
        left_out = selects.left_out(info.network or "", info.station or "", info.location, channels, begin, end)
        if left_out is not None:
            manifest.not_selected[left_out] += 1
            continue
        row |= {"network": info.network, "station": info.station}
        if not item.size:
            rows.append(row | {"reason": EMPTY})
            continue
        row["location"] = ANY if info.location is None else info.location
        row["band"] = ANY if info.channel is None else info.channel[:2]
        rows.append(row | {"start_ns": begin, "end_ns": end})
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _indexed(
    archive: Store, listed: list[StoredObject], layout: str, settings: ArchiveSettings, before: pa.Table | None
) -> Manifest:
    parse: Callable[[str], PathInfo | None] = _parser(layout) if layout != "flat" else lambda _: None
    known: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for row in before.to_pylist() if before is not None else []:
        known.setdefault((row["key"], row["size"], row["etag"]), []).append(row)

    def index(item: StoredObject) -> list[dict[str, Any]]:
        rows = known.get((item.path, item.size, item.etag))
        if rows is not None:
            return rows
        base = {"key": item.path, "size": item.size, "etag": item.etag}
        if not item.size:
            return [base | {"reason": EMPTY}]
        info = parse(item.path)
        if info is None and layout != "flat":
            return [base | {"reason": _misfit(layout)}]
        return [base | row for row in _headers(archive, item, info)]

    with ThreadPoolExecutor(NUM_INDEX_THREADS) as pool:
        rows = [row for found in pool.map(index, listed) for row in found]
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    manifest = Manifest(layout, table, len(listed))
    if not manifest.num_usable:
        raise _unread(archive, *manifest.unusable()[0])
    # The index covers all, the selection only what this run reads.
    manifest.table = _select(table, settings, manifest)
    if not manifest.num_usable:
        raise InputError(f"archive.network, station, location, channel, start and end select nothing in {archive.url}")
    return manifest


def _headers(archive: Store, item: StoredObject, info: PathInfo | None) -> Iterator[dict[str, Any]]:
    """Yield a row for each channel group of a file and each stretch of time that it holds without a gap of a day."""
    stretches: dict[Channel, list[tuple[int, int]]] = {}
    counts: dict[Channel | None, SampleCounts] = {}
    reason: str | None = None
    for span in spans(archive, item):
        if span.counts is not None:
            counts.setdefault(span.channel, SampleCounts()).add(span.counts)
        elif span.channel is None:
            reason = reason or span.problem
        else:
            stretches.setdefault(span.channel, []).append((span.start_ns, span.end_ns))
    naming = name_channels(info, [codes for codes in counts if codes is not None])
    groups: dict[tuple[str, str, str, str], dict[str, list[tuple[int, int]]]] = {}
    for found in naming.used.keys() & stretches.keys():
        codes = naming.used[found]
        groups.setdefault(group_of(codes), {}).setdefault(codes.channel, []).extend(stretches[found])
    if len(groups) > MAX_GROUPS_PER_FILE:
        stated = sum(count.stated for count in counts.values())
        reason = f"it holds {len(groups)} channel groups; at most {MAX_GROUPS_PER_FILE} are read of one file"
        yield {"reason": reason, "dropped": {str(Outcome.UNREADABLE): stated}}
        return
    for (network, station, location, band), channels in sorted(groups.items()):
        for begin, end in _joined(span for spans_of in channels.values() for span in spans_of):
            yield {
                "network": network,
                "station": station,
                "location": location,
                "band": band,
                "channels": sorted(channels),
                "start_ns": begin,
                "end_ns": end,
                "reason": None,
            }
    if not groups:
        dropped: Counter[str] = Counter()
        for count in counts.values():
            lost = count.lost()
            dropped += lost
            dropped[Outcome.OTHER_CHANNEL] += count.stated - lost.total()
        yield {
            "reason": reason or next(iter(naming.refused.values()), "no samples in it"),
            "dropped": {str(outcome): count for outcome, count in sorted(dropped.items()) if count},
        }


def _joined(stretches: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield stretches of time in order, those joined that lie less than a day apart.

    So a record of another year costs the plan a day or two, not all that lies between.
    """
    begin: int | None = None
    end = 0
    for first, last in sorted(stretches):
        if begin is not None and first - end < DAY_NS:
            end = max(end, last)
            continue
        if begin is not None:
            yield begin, end
        begin, end = first, last
    if begin is not None:
        yield begin, end


class _Selection:
    """What the section `archive` selects."""

    def __init__(self, settings: ArchiveSettings) -> None:
        self.network, self.station = code_matcher(settings.network), code_matcher(settings.station)
        self.location, self.channel = code_matcher(settings.location), code_matcher(settings.channel)
        self.first, self.last = selection(settings)
        self.spill_ns = round(settings.spill_seconds * 1e9)

    def left_out(
        self,
        network: str,
        station: str,
        location: str | None,
        channels: Iterable[str] | None,
        begin: int,
        end: int,
    ) -> str | None:
        """Return the first key that leaves a file's row out; None where it is selected. None as a code: not known."""
        if not self.network(network):
            return "archive.network"
        if not self.station(station):
            return "archive.station"
        if location is not None and not self.location(location):
            return "archive.location"
        if channels is not None and not any(map(self.channel, channels)):
            return "archive.channel"
        if self.first is not None and end <= self.first:
            return "archive.start"
        if self.last is not None and begin >= self.last:
            return "archive.end"
        return None


def _select(table: pa.Table, settings: ArchiveSettings, manifest: Manifest) -> pa.Table:
    """Return the selected rows of an index; the files of which no row is selected are counted by the key."""
    selects = _Selection(settings)
    keep: list[bool] = []
    kept_files: set[str] = set()
    left_out_files: dict[str, str] = {}
    columns = ["key", "network", "station", "location", "channels", "start_ns", "end_ns", "reason"]
    for row in table.select(columns).to_pylist():
        key, reason = row.pop("key"), row.pop("reason")
        left_out = None if reason is not None else selects.left_out(*row.values())
        keep.append(left_out is None)
        if left_out is None:
            kept_files.add(key)
        else:
            left_out_files.setdefault(key, left_out)
    manifest.not_selected.update(reason for key, reason in left_out_files.items() if key not in kept_files)
    return table.filter(pa.array(keep, pa.bool_()))
