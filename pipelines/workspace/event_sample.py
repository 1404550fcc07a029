"""The events that a training sees: a sample that depends on the events' ids alone, not on files, shards or workers."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.runtime.errors import InputError
from pipelines.workspace import tables
from pipelines.workspace.ledger import fingerprint, list_markers
from pipelines.workspace.storage import Store

READERS = 8
"""Files read at a time."""


@dataclass(frozen=True, kw_only=True)
class EventSample:
    """Chosen events in the order of their ids: where each lies, and what their windows are."""

    paths: tuple[str, ...]
    """Files of the events table."""
    file_numbers: NDArray[np.int32]
    """For each event, the place of its file in `paths`."""
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
        size = len(self) // world
        return [range(rank * size, (rank + 1) * size) for rank in range(world)]

    def spread(self, count: int) -> range:
        """Return at most `count` events, evenly spread over the sample, so over stations and time."""
        return range(0, len(self), max(1, -(-len(self) // count)))

    def by_file(self, events: Iterable[int]) -> Iterator[tuple[str, list[int], list[int]]]:
        """Yield (path, rows, places in `events`) for each file that some events lie in; rows rise."""
        places: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for place, event in enumerate(events):
            places[int(self.file_numbers[event])].append((int(self.row_numbers[event]), place))
        for number in sorted(places):
            chosen = sorted(places[number])
            yield self.paths[number], [row for row, _ in chosen], [place for _, place in chosen]


def events_fingerprint(store: Store) -> str:
    """Return a fingerprint of the events table: of the detection's markers, and of the files and their sizes."""
    markers = sorted(
        f"{name.network}.{name.station}.{name.shard}.{name.fingerprint}" for name in list_markers(store, "detect")
    )
    files = [(item.path, item.size) for item in tables.list_shards(store, "events")]
    return fingerprint({"markers": markers, "files": files})


def choose_events(store: Store, *, max_events: int | None, seed: int) -> EventSample:
    """Choose at most `max_events` events, stratified by station and month, by a hash of (seed, event id).

    Raises:
        InputError: there are no events.
    """
    paths = [item.path for item in tables.list_shards(store, "events")]
    if not paths:
        raise InputError(f"{store.url} has no events to train on; run detect first")
    with ThreadPoolExecutor(READERS) as pool:
        months = list(pool.map(partial(_onset_months, store), paths))
    strata: dict[str, list[int]] = defaultdict(list)
    counts: dict[str, int] = defaultdict(int)
    for number, by_month in enumerate(months):
        for month, count in by_month.items():
            name = f"{_station(paths[number])} {month}"
            strata[name].append(number)
            counts[name] += count
    given = quotas(counts, max_events if max_events is not None else sum(counts.values()))
    chosen: list[tuple[str, int, int, str, int]] = []
    for name in sorted(strata):
        station, _, month = name.partition(" ")
        with ThreadPoolExecutor(READERS) as pool:
            parts = list(pool.map(partial(_rows_of_month, store, month), [paths[n] for n in strata[name]]))
        members = [
            (event, number, row, onset)
            for number, part in zip(strata[name], parts, strict=True)
            for event, row, onset in part
        ]
        members.sort()
        for place in lowest_hashes([member[0] for member in members], given[name], seed):
            event, number, row, onset = members[place]
            chosen.append((event, number, row, station, onset))
    chosen.sort()
    if not chosen:
        raise InputError(f"{store.url} has no events to train on: detection found none")
    num_samples, rate_hz, lead_samples = window_shape(store, paths)
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


def read_windows(store: Store, path: str, rows: Sequence[int]) -> NDArray[np.float32]:
    """Return the windows (row, 3, sample) of the given rising rows of a file; absent samples NaN."""
    wanted = np.asarray(rows, dtype=np.int64)
    parts = []
    start = 0
    for batch in tables.iter_batches(store, path, ["waveform"], batch_rows=tables.ROWS_PER_GROUP):
        inside = wanted[(wanted >= start) & (wanted < start + batch.num_rows)] - start
        if len(inside):
            parts.append(tables.waveforms(batch.column("waveform"))[inside])
        start += batch.num_rows
    return np.concatenate(parts)


def read_rows(store: Store, sample: EventSample, events: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the windows of the sample's events at some places, in the order of the places."""
    return read_sample(store, sample, events.tolist())


def read_sample(store: Store, sample: EventSample, events: Sequence[int]) -> NDArray[np.float32]:
    """Return the windows of some of the sample's events, in the given order."""
    windows = np.empty((len(events), 3, sample.num_samples), dtype=np.float32)

    def fill(part: tuple[str, list[int], list[int]]) -> None:
        path, rows, places = part
        windows[places] = read_windows(store, path, rows)

    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(fill, sample.by_file(events)))
    return windows


def _station(path: str) -> str:
    return ".".join(tables.station_of(path))


def _onset_months(store: Store, path: str) -> dict[str, int]:
    onsets = tables.read_table(store, path, ["onset"]).column("onset").to_numpy()
    months, counts = np.unique(onsets.astype("datetime64[M]"), return_counts=True)
    return {str(month): int(count) for month, count in zip(months, counts, strict=True)}


def _rows_of_month(store: Store, month: str, path: str) -> list[tuple[str, int, int]]:
    table = tables.read_table(store, path, ["event_id", "onset"])
    onsets = table.column("onset").to_numpy().astype("datetime64[ns]")
    rows = np.flatnonzero(onsets.astype("datetime64[M]").astype(str) == month)
    event_ids = table.column("event_id").take(rows).to_pylist()
    return [(event, int(row), int(onsets[row].astype(np.int64))) for event, row in zip(event_ids, rows, strict=True)]


def window_shape(store: Store, paths: Sequence[str]) -> tuple[int, float, int]:
    """Return a window's samples, their rate (Hz) and how many lie before the onset, from the first file with rows.

    Raises:
        InputError: no file has rows.
    """
    columns = ["onset", "window_start", "sampling_rate", "waveform"]
    for path in paths:
        batch: Any = next(tables.iter_batches(store, path, columns, batch_rows=16), None)
        if batch is None:
            continue
        rate = float(batch.column("sampling_rate")[0].as_py())
        lead = batch.column("onset").to_numpy(zero_copy_only=False) - batch.column("window_start").to_numpy(
            zero_copy_only=False
        )
        seconds = float(np.median(lead.astype("timedelta64[ns]").astype(np.int64))) / 1e9
        return tables.waveforms(batch.column("waveform")).shape[-1], rate, round(seconds * rate)
    raise InputError("the events table has no rows")


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
    for place, name in enumerate(sorted(counts, key=lambda name: (counts[name], name))):
        given[name] = min(counts[name], left // (len(counts) - place))
        left -= given[name]
    for name in sorted(counts):
        extra = min(left, counts[name] - given[name])
        given[name] += extra
        left -= extra
    return given


def lowest_hashes(event_ids: Sequence[str], count: int, seed: int) -> NDArray[np.int64]:
    """Return the places of the `count` ids with the lowest hash of (seed, id), in rising order."""
    if count >= len(event_ids):
        return np.arange(len(event_ids), dtype=np.int64)
    hashes = np.array(
        [int.from_bytes(hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest()) for name in event_ids],
        dtype=np.uint64,
    )
    order = np.lexsort((np.asarray(event_ids), hashes))
    return np.sort(order[:count]).astype(np.int64)
