"""The events that a training sees: a sample that depends on the events' ids alone, not on files, shards or workers."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.runtime.errors import InputError
from pipelines.workspace import tables
from pipelines.workspace.ledger import fingerprint, list_markers
from pipelines.workspace.storage import Store
from pipelines.workspace.stored_object import StoredObject

READERS = 8
"""Files read at a time."""

WindowShape = tuple[int, float, int]
"""A window's samples, their rate (Hz), and how many of them lie before the onset."""

_SHAPE_COLUMNS = ("onset", "window_start", "sampling_rate", "waveform")


@dataclass(frozen=True, kw_only=True)
class EventSample:
    """Chosen events in the order of their ids: where each lies, and what their windows are."""

    paths: tuple[str, ...]
    """Files of the events table."""
    file_numbers: NDArray[np.int32]
    """For each event, the index of its file in `paths`."""
    row_numbers: NDArray[np.int32]
    """For each event, its row in the file."""
    event_ids: tuple[str, ...]
    """The events' ids, sorted."""
    stations: tuple[str, ...]
    """For each event, `network.station`."""
    onsets: NDArray[np.int64]
    """For each event, its onset in nanoseconds since 1970, UTC."""
    num_total: int
    """Events in the table."""
    num_samples: int
    """Samples of a window."""
    rate_hz: float
    """Sampling rate of a window."""
    lead_samples: int
    """Samples before the onset."""

    def __len__(self) -> int:
        return len(self.event_ids)

    def shares(self, world: int) -> list[range]:
        """Return the events of each rank: equal numbers, neighbours together; fewer than `world` are left out."""
        return equal_shares(len(self), world)

    def spread(self, count: int) -> range:
        """Return at most `count` events, evenly spread over the sample, so over stations and time."""
        return range(0, len(self), max(1, -(-len(self) // count)))

    def by_file(self, events: Iterable[int]) -> Iterator[tuple[str, list[int], list[int]]]:
        """Yield (path, rows, indices into `events`) for each file that some events lie in; rows rise."""
        by_number: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for index, event in enumerate(events):
            by_number[int(self.file_numbers[event])].append((int(self.row_numbers[event]), index))
        for number in sorted(by_number):
            chosen = sorted(by_number[number])
            yield self.paths[number], [row for row, _ in chosen], [index for _, index in chosen]


def events_fingerprint(store: Store) -> str:
    """Return a fingerprint of the events table: of the detection's markers, and of the files and their sizes."""
    markers = sorted(
        f"{name.network}.{name.station}.{name.shard}.{name.fingerprint}" for name in list_markers(store, "detect")
    )
    files = [(item.path, item.size) for item in tables.list_shards(store, "events")]
    return fingerprint({"markers": markers, "files": files})


def equal_shares(count: int, world: int) -> list[range]:
    """Divide `count` rows among ranks: equal numbers, neighbours together; fewer than `world` are left out."""
    size = count // world
    return [range(rank * size, (rank + 1) * size) for rank in range(world)]


def choose_events(store: Store, *, max_events: int | None, seed: int) -> EventSample:
    """Choose at most `max_events` events, stratified by station and month, by a hash of (seed, event id).

    Ids and onsets are read once; while they are, no more than four times `max_events` candidates are kept.

    Raises:
        InputError: there are no events.
    """
    items = tables.list_shards(store, "events")
    if not items:
        raise InputError(f"{store.url} has no events to train on; run detect first")
    counts: dict[str, int] = defaultdict(int)
    candidates: dict[str, list[_Candidate]] = defaultdict(list)
    shape: WindowShape | None = None
    number = num_kept = 0
    for group in tables.by_task(items):
        with ThreadPoolExecutor(READERS) as pool:
            # Of the first file the windows' shape is read, too: to open it once more would fetch its footer again.
            for by_month, found in pool.map(lambda item: _read_by_month(store, item, item is items[0]), group):
                shape = shape or found
                station = ".".join(tables.station_of(items[number].path))
                for month, rows in by_month.items():
                    stratum = f"{station} {month}"
                    counts[stratum] += len(rows)
                    num_kept += len(rows)
                    candidates[stratum] += [(event, number, row, station, onset) for event, row, onset in rows]
                number += 1
        if max_events is not None and num_kept > 4 * max_events + tables.MAX_FILES_PER_TASK:
            num_kept = _keep_lowest(candidates, counts, max_events, seed)
    if max_events is not None:
        _keep_lowest(candidates, counts, max_events, seed, margin=0)
    chosen = sorted(candidate for kept in candidates.values() for candidate in kept)
    if not chosen:
        raise InputError(f"{store.url} has no events to train on: detection found none")
    paths = [item.path for item in items]
    num_samples, rate_hz, lead_samples = shape or window_shape(store, paths)
    return EventSample(
        paths=tuple(paths),
        file_numbers=np.array([number for _, number, _, _, _ in chosen], dtype=np.int32),
        row_numbers=np.array([row for _, _, row, _, _ in chosen], dtype=np.int32),
        event_ids=tuple(event for event, _, _, _, _ in chosen),
        stations=tuple(station for _, _, _, station, _ in chosen),
        onsets=np.array([onset for _, _, _, _, onset in chosen], dtype=np.int64),
        num_total=sum(counts.values()),
        num_samples=num_samples,
        rate_hz=rate_hz,
        lead_samples=lead_samples,
    )


_Candidate = tuple[str, int, int, str, int]
"""An event that may be chosen: its id, the number of its file, its row there, `network.station`, its onset (ns)."""


def _keep_lowest(
    candidates: dict[str, list[_Candidate]], counts: Mapping[str, int], max_events: int, seed: int, margin: int = 1
) -> int:
    """Keep of each stratum the candidates that a sample of `max_events` may take; return how many are kept.

    A stratum's share never grows by more than one (the margin, from rounding) while further events are counted.
    """
    for stratum, share in quotas(counts, max_events).items():
        members = sorted(candidates[stratum])
        lowest = lowest_hashes([member[0] for member in members], share + margin, seed)
        candidates[stratum] = [members[index] for index in lowest]
    return sum(len(members) for members in candidates.values())


def read_windows(store: Store, path: str, rows: Sequence[int]) -> NDArray[np.float32]:
    """Return the windows (row, 3, sample) of the given rising rows of a file; absent samples NaN."""
    return tables.waveforms(tables.read_rows(store, path, rows, ["waveform"]).column("waveform"))


def read_rows(store: Store, sample: EventSample, events: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the windows of the sample's events at some indices, in their order."""
    return read_sample(store, sample, events.tolist())


def read_sample(store: Store, sample: EventSample, events: Sequence[int]) -> NDArray[np.float32]:
    """Return the windows of some of the sample's events, in the given order."""
    windows = np.empty((len(events), 3, sample.num_samples), dtype=np.float32)

    def fill(part: tuple[str, list[int], list[int]]) -> None:
        path, rows, indices = part
        windows[indices] = read_windows(store, path, rows)

    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(fill, sample.by_file(events)))
    return windows


def _read_by_month(
    store: Store, item: StoredObject, with_shape: bool
) -> tuple[dict[str, list[tuple[str, int, int]]], WindowShape | None]:
    """Return (event id, row, onset in ns) of a file's events by month, such as 2020-01, and its windows' shape."""
    columns = ["event_id", "onset"]
    with tables.open_table(store, item, columns, also=_SHAPE_COLUMNS if with_shape else ()) as file:
        table = file.read(columns=columns)
        shape = _shape_of(file) if with_shape else None
    onsets = table.column("onset").to_numpy().astype("datetime64[ns]")
    event_ids = table.column("event_id").to_pylist()
    months, which = np.unique(onsets.astype("datetime64[M]"), return_inverse=True)
    by_month = {}
    for index, month in enumerate(months):
        rows = np.flatnonzero(which == index).tolist()
        onsets_ns = onsets[rows].astype(np.int64).tolist()
        by_month[str(month)] = [(event_ids[row], row, onset) for row, onset in zip(rows, onsets_ns, strict=True)]
    return by_month, shape


def window_shape(store: Store, paths: Sequence[str]) -> WindowShape:
    """Return the shape of the windows, from the first file with rows.

    Raises:
        InputError: no file has rows.
    """
    for path in paths:
        with tables.open_table(store, path, (), also=_SHAPE_COLUMNS) as file:
            shape = _shape_of(file)
        if shape is not None:
            return shape
    raise InputError("the events table has no rows")


def _shape_of(file: pq.ParquetFile) -> WindowShape | None:
    """Return the shape of a file's windows; None where it has no row."""
    # The type says how long a window is; no waveform is read.
    num_samples = file.schema_arrow.field("waveform").type.shape[-1]
    # Onsets apart from the others: of a bucket they were fetched with the ids.
    parts: list[Any] = [
        next(file.iter_batches(batch_size=16, columns=columns), None)
        for columns in (["onset"], ["window_start", "sampling_rate"])
    ]
    if None in parts:
        return None
    onsets, starts = (part.column(0).to_numpy(zero_copy_only=False) for part in parts)
    rate = float(parts[1].column("sampling_rate")[0].as_py())
    seconds = float(np.median((onsets - starts).astype("timedelta64[ns]").astype(np.int64))) / 1e9
    return num_samples, rate, round(seconds * rate)


def quotas(counts: Mapping[str, int], total: int) -> dict[str, int]:
    """Return how many of each stratum's members a sample of at most `total` takes.

    Every stratum gives the same number, or all that it has where that is fewer: a noisy month or station does not crowd
    out the others. What the equal shares leave over goes to the first strata in the order of their names.

    Args:
        counts: members of each stratum.
        total: size of the sample; all members where there are not more.
    """
    if sum(counts.values()) <= total:
        return dict(counts)
    given: dict[str, int] = {}
    left = total
    for index, name in enumerate(sorted(counts, key=lambda name: (counts[name], name))):
        given[name] = min(counts[name], left // (len(counts) - index))
        left -= given[name]
    for name in sorted(counts):
        extra = min(left, counts[name] - given[name])
        given[name] += extra
        left -= extra
    return given


def lowest_hashes(event_ids: Sequence[str], count: int, seed: int) -> NDArray[np.int64]:
    """Return the indices of the `count` ids with the lowest hash of (seed, id), in rising order."""
    if count >= len(event_ids):
        return np.arange(len(event_ids), dtype=np.int64)
    hashes = np.array(
        [int.from_bytes(hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest()) for name in event_ids],
        dtype=np.uint64,
    )
    order = np.lexsort((np.asarray(event_ids), hashes))
    return np.sort(order[:count]).astype(np.int64)
