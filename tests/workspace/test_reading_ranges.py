"""Reading columns of tables in a bucket: what is fetched, and that it is what a disk gives."""

import hashlib
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faultproxy import FaultProxy
from loopback_servers import S3Server

from pipelines.config.label import LabelsSettings
from pipelines.handlabels.matching import match_hand_labels
from pipelines.handlabels.table import read_label_table
from pipelines.workspace import event_sample, s3_requests, schemas, tables
from pipelines.workspace.event_sample import choose_events, quotas, read_sample
from pipelines.workspace.storage import Store, open_store

EVENTS_PER_FILE = 400
SAMPLES = 500
COLUMNS = ("event_id", "onset")


@pytest.fixture(autouse=True)
def _fresh_filesystem() -> Iterator[None]:
    s3_requests._s3.cache_clear()
    yield
    s3_requests._s3.cache_clear()


def write_events(store: Store, *, days: int = 2, seed: int = 0) -> list[str]:
    """Write a file of events for each of two stations and some days; return all event ids, as written."""
    rng = np.random.default_rng(seed)
    schema = schemas.events_schema(SAMPLES)
    ids: list[str] = []
    for station in ("A", "B"):
        for day in pd.date_range("2022-01-30", periods=days, freq="D", tz="UTC"):
            onsets = day + pd.to_timedelta(np.sort(rng.integers(0, 86_400 * 10**9, EVENTS_PER_FILE)), unit="ns")
            names = [f"XX.{station}..HH.{onset:%Y%m%dT%H%M%S}.{onset.value % 10**9:09d}" for onset in onsets]
            count = len(onsets)
            columns = {
                "event_id": pa.array(names),
                "network": pa.array(["XX"] * count),
                "station": pa.array([station] * count),
                "location": pa.array([""] * count),
                "channels": pa.array([["HHE", "HHN", "HHZ"]] * count, schema.field("channels").type),
                "onset": pa.array(onsets).cast(schema.field("onset").type),
                "window_start": pa.array(onsets - pd.Timedelta(seconds=2)).cast(schema.field("onset").type),
                "sampling_rate": pa.array([50.0] * count),
                "units": pa.array(["counts"] * count),
                "waveform": tables.tensor_array(rng.normal(size=(count, 3, SAMPLES)).astype(np.float32)),
            }
            chosen = pa.schema([field for field in schema if field.name in columns])
            table = pa.table([columns[field.name] for field in chosen], schema=chosen)
            tables.write_table(store, tables.shard_path("events", "XX", station, f"--.HH.{day:%Y-%m-%d}.day"), table)
            ids += names
    return ids


def column_bytes(store: Store, columns: tuple[str, ...]) -> tuple[int, int, int]:
    """Return the bytes of some columns' chunks, of all footers, and of all files."""
    chunks = footers = whole = 0
    for item in tables.list_shards(store, "events"):
        with store.local_copy(item.path) as copy:
            metadata = pq.read_metadata(copy)
        for group in range(metadata.num_row_groups):
            found = [metadata.row_group(group).column(index) for index in range(metadata.num_columns)]
            chunks += sum(column.total_compressed_size for column in found if column.path_in_schema in columns)
        footers += metadata.serialized_size
        whole += item.size
    return chunks, footers, whole


@pytest.fixture
def bucket(moto_s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Store, FaultProxy]]:
    """A bucket behind a proxy that counts what is fetched."""
    with FaultProxy(moto_s3.endpoint_url) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield open_store(f"{moto_s3.url}/workspace"), proxy


def test_choosing_events_fetches_ids_and_onsets_once(bucket, record_property):
    store, proxy = bucket
    ids = write_events(store)
    chunks, footers, whole = column_bytes(store, COLUMNS)
    before, requests = proxy.body_bytes, len(proxy.requests)
    sample = choose_events(store, max_events=None, seed=0)
    fetched, num_requests = proxy.body_bytes - before, len(proxy.requests) - requests
    listing = listing_bytes(store, proxy)
    record_property(
        "figure",
        f"choose_events: {fetched} bytes in {num_requests} requests, {listing} of them the listing; columns {chunks}, "
        f"footers {footers}, whole files {whole} bytes",
    )
    assert sample.event_ids == tuple(sorted(ids))
    # A column cannot be found without the footer. What lies between two columns comes on top; the listing's text is no
    # part of the files.
    assert fetched - listing < chunks + 2 * footers
    assert fetched < whole / 50


def listing_bytes(store, proxy):
    """Return the bytes of a listing of the events table."""
    before = proxy.body_bytes
    tables.list_shards(store, "events")
    return proxy.body_bytes - before


def test_a_small_file_is_fetched_once_in_one_request(bucket):
    store, proxy = bucket
    path = tables.shard_path("labels", "XX", "A", "--.HH.2022-01-30.day")
    table = pa.table({"event_id": [f"e{number}" for number in range(50)]})
    tables.write_table(store, path, table)
    (item,) = tables.list_shards(store, "labels")
    before, requests = proxy.body_bytes, len(proxy.requests)
    assert tables.read_table(store, item, ["event_id"]).equals(table)
    assert (proxy.body_bytes - before, len(proxy.requests) - requests) == (item.size, 1)
    # Where only its path is known, too.
    before, requests = proxy.body_bytes, len(proxy.requests)
    assert tables.read_table(store, path, ["event_id"]).equals(table)
    assert (proxy.body_bytes - before, len(proxy.requests) - requests) == (item.size, 1)


def test_a_larger_file_whose_path_is_known_is_not_asked_for_its_size(bucket):
    store, proxy = bucket
    write_events(store, days=1)
    item = tables.list_shards(store, "events")[0]
    requests = len(proxy.requests)
    by_path = tables.read_table(store, item.path)
    # The end, and the whole.
    assert [request.method for request in proxy.requests[requests:]] == ["GET", "GET"]
    assert by_path.equals(tables.read_table(store, item))


def test_a_sample_is_the_lowest_hashes_of_each_station_and_month(tmp_path, monkeypatch):
    """The definition, spelled out over all events at once, whatever is kept while the files are read."""
    store = open_store(str(tmp_path))
    ids = write_events(store, days=4)
    monkeypatch.setattr(tables, "MAX_FILES_PER_TASK", 1)
    strata: dict[str, list[str]] = {}
    for name in ids:
        station, time = name.split(".")[1], name.split(".")[4]
        strata.setdefault(f"XX.{station} {time[:6]}", []).append(name)
    kept = []
    trim = event_sample._keep_lowest
    monkeypatch.setattr(
        event_sample, "_keep_lowest", lambda *args, **rest: kept.append(trim(*args, **rest)) or kept[-1]
    )
    for max_events in (1, 7, 100, 1500, 3200, 5000):
        kept.clear()
        share = quotas({name: len(members) for name, members in strata.items()}, max_events)
        expected = []
        for name, members in strata.items():
            digest = {event: hashlib.blake2b(f"5 {event}".encode(), digest_size=8).digest() for event in members}
            expected += sorted(members, key=lambda event: (digest[event], event))[: share[name]]
        sample = choose_events(store, max_events=max_events, seed=5)
        assert list(sample.event_ids) == sorted(expected)
        assert sample.num_total == len(ids)
        assert max(kept) <= max_events + len(strata)


def match(store, ids_or_rows, header, folder, paths):
    (folder / "labels.csv").write_text("\n".join([header, *ids_or_rows]))
    settings = LabelsSettings(path=str(folder / "labels.csv"))
    known = read_label_table(str(settings.path))
    return match_hand_labels(store, paths, settings, known, lambda work, tasks: [work(*task) for task in tasks])


def test_matching_labels_fetches_ids_and_onsets_of_the_row_groups_that_matter(bucket, tmp_path, record_property):
    store, proxy = bucket
    ids = write_events(store, days=4)
    chunks, footers, whole = column_bytes(store, COLUMNS)
    paths = [item.path for item in tables.list_shards(store, "events")]
    labelled = [name for name in ids if ".A." in name and "20220131T0" in name]
    times = [pd.Timestamp(".".join(name.split(".")[4:])).isoformat() for name in labelled]
    before = proxy.body_bytes
    hand = match(store, [f"XX,A,{time}Z,x" for time in times], "network,station,time,label", tmp_path, paths)
    by_time = proxy.body_bytes - before
    assert set(hand.label_of) == set(labelled)
    assert len(labelled) > 100
    tables._bucket_footer.cache_clear()
    before = proxy.body_bytes
    hand = match(store, [f"{name},x" for name in ids[::3]], "event_id,label", tmp_path, paths)
    by_id = proxy.body_bytes - before
    assert set(hand.label_of) == set(ids[::3])
    record_property(
        "figure",
        f"label matching: {by_time} bytes by time, {by_id} by id; columns {chunks}, footers {footers}, whole files "
        f"{whole} bytes",
    )
    # Once: an id states its onset as a time does. A column cannot be found without the footer.
    assert by_time < chunks + 2 * footers
    assert by_id < chunks + 2 * footers
    tables._bucket_footer.cache_clear()
    before = proxy.body_bytes
    match(store, [f"{name},x" for name in labelled], "event_id,label", tmp_path, paths)
    assert proxy.body_bytes - before <= by_time


def test_ids_of_another_spelling_are_found_in_the_whole_table(tmp_path):
    store = open_store(str(tmp_path / "workspace"))
    ids = write_events(store, days=3)
    paths = [item.path for item in tables.list_shards(store, "events")]
    other = tables.read_table(store, paths[-1])
    renamed = [f"mine {number}" for number in range(other.num_rows)]
    # One states another day than its own.
    renamed[7] = "XX.B..HH.20200101T000000.000000000"
    tables.write_table(store, paths[-1], other.set_column(0, "event_id", pa.array(renamed)))
    wanted = [ids[3], renamed[5], renamed[7]]
    hand = match(store, [f"{name},x" for name in [*wanted, "nowhere"]], "event_id,label", tmp_path, paths)
    assert set(hand.label_of) == set(wanted)
    assert [hand.file_of[name] for name in wanted] == [paths[0], paths[-1], paths[-1]]
    assert (hand.num_rows, hand.num_unmatched) == (4, 1)


def test_a_bucket_gives_the_rows_that_a_disk_gives(bucket, tmp_path):
    store, proxy = bucket
    disk = open_store(str(tmp_path / "disk"))
    ids = write_events(store)
    write_events(disk)
    path = tables.list_shards(store, "events")[0].path
    few = [5, 127, 128, 399]
    before = proxy.body_bytes
    mine = tables.read_rows(store, path, few, ["event_id", "waveform"])
    assert proxy.body_bytes - before < store.stat(path).size
    assert mine.equals(tables.read_rows(disk, path, few, ["event_id", "waveform"]))
    assert mine["event_id"].to_pylist() == [ids[row] for row in few]
    one = tables.read_events(store, path, [ids[130]], ["waveform", "event_id"])
    assert one.equals(tables.read_events(disk, path, [ids[130]], ["waveform", "event_id"]))
    assert one["event_id"].to_pylist() == [ids[130]]
    assert tables.read_table(store, path).equals(tables.read_table(disk, path))
    assert tables.read_events(store, path, ["none"], ["event_id"]).num_rows == 0
    sample = choose_events(store, max_events=20, seed=1)
    other = choose_events(disk, max_events=20, seed=1)
    assert sample.event_ids == other.event_ids
    assert (sample.num_samples, sample.rate_hz, sample.lead_samples) == (SAMPLES, 50.0, 100)
    np.testing.assert_array_equal(read_sample(store, sample, range(20)), read_sample(disk, other, range(20)))


def test_spans_give_the_rows_whose_onset_lies_in_them(tmp_path):
    store = open_store(str(tmp_path))
    write_events(store, days=1)
    path = tables.list_shards(store, "events")[0].path
    onsets = tables.read_table(store, path, ["onset"])["onset"].cast(pa.int64()).to_pylist()
    for spans in ([(onsets[0], onsets[1])], [(onsets[3], onsets[200]), (onsets[300], onsets[399] + 1)], [(0, 9)]):
        found = tables.read_spans(store, path, ["onset"], spans)["onset"].cast(pa.int64()).to_pylist()
        assert found == [time for time in onsets if any(start <= time < end for start, end in spans)]
