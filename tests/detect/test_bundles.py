"""Bundles are copies of markers: they save requests, and whatever becomes of them, sums are those of the markers."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import unquote

import pyarrow as pa
import pytest
from faultproxy import FaultProxy

from jobs.status import describe, totals
from jobs.status import main as status_job
from pipelines.config import resolve
from pipelines.detect.stage_status import read_status
from pipelines.detect.stage_summary import read_summary
from pipelines.report.stage_coverage import read_coverage
from pipelines.runtime.errors import InputError
from pipelines.workspace import bundles, s3_requests
from pipelines.workspace.bundles import Bundles, bundled, read_markers
from pipelines.workspace.ledger import (
    MarkerName,
    list_markers,
    marker_bytes,
    marker_path,
    work_left,
    write_marker,
)
from pipelines.workspace.replacement import result_of
from pipelines.workspace.storage import Store, open_store
from pipelines.workspace.workspace import open_workspace

FOLDER = "ledger/detect/bundles"
STATIONS, DAYS = ("A", "B", "C"), 30
NUM_SHARDS = len(STATIONS) * DAYS


@dataclass(frozen=True)
class Shard:
    name: MarkerName
    content: dict


def shard_of(station: str, number: int, events: int | None = None) -> Shard:
    """Return a day's marker; the number of events and the seconds come from the station and the day."""
    day = f"2022-{1 + number // 28:02d}-{1 + number % 28:02d}"
    events = number + 100 * STATIONS.index(station) if events is None else events
    channels = {"--.HHE.100": 43_200.1, "--.HHZ.100": 64_800.2}
    content = {
        "outcome": "events",
        "start": f"{day}T00:00:00Z",
        "inputs": [{"key": f"{station}/{day}", "size": 1, "etag": "x"}],
        "onsets_ns": [1, 2, 3],
        # Files that reach into two days, of which each day says something else.
        "quarantined": [{"key": f"{station}/{number // 2}", "reasons": [f"seen on {day}"]}],
        "renamed": [{"key": f"{station}/{number // 2}", "headers": "YY.A..HHZ", "used": f"XX.A..HH{number % 2}"}],
        "skipped": [],
        "coverage": [
            {"day": day, "channel": channel, "seconds": seconds, "blanked_seconds": 0.1, "gaps": 1}
            for channel, seconds in channels.items()
        ],
        "gaps": 2,
        "counts": {"events": events},
        "events_by_day": {day: events} if events else {},
        "account": {"samples": {"used": 10, "blanked": 1}, "seconds": {"used": 0.1, "blanked": 0.2}, "files": {}},
        "seconds": 0.25,
        "version": "1",
    }
    return Shard(MarkerName("XX", station, f"--.HH.{day}.day", f"{number:016x}"), content)


SHARDS = [shard_of(station, number) for station in STATIONS for number in range(DAYS)]
NUM_EVENTS = sum(range(DAYS)) * len(STATIONS) + 100 * DAYS * (0 + 1 + 2)


def take(into: Bundles, shard: Shard) -> None:
    """Tell what bundles markers that one was written, as the driver is told."""
    kept = {key: value for key, value in shard.content.items() if key not in ("inputs", "onsets_ns")}
    into.add(shard.name, len(marker_bytes(shard.name, shard.content)), json.dumps(kept).encode())


def write(store: Store, shards: list[Shard] = SHARDS, ledger: str = "detect") -> None:
    for shard in shards:
        write_marker(store, ledger, shard.name, shard.content)


@pytest.fixture(autouse=True)
def _small_bundles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles, "BUNDLE_MARKERS", 40)
    monkeypatch.setattr(bundles, "MAX_PART_BUNDLES", 4)


@pytest.fixture
def store(tmp_path) -> Store:
    """Return a workspace of 90 markers, given in any order to three bundles."""
    made = open_workspace(str(tmp_path / "workspace"), create=True)
    made.update_state()
    write(made.store)
    with bundled(made.store, "detect", NUM_SHARDS) as into:
        for shard in random.Random(3).sample(SHARDS, NUM_SHARDS):
            take(into, shard)
    assert len(names(made.store)) == 3
    return made.store


def names(store: Store) -> list[str]:
    return sorted(item.path for item in store.walk(FOLDER))


def contents(store: Store) -> dict[str, bytes]:
    return {item.path: store.read(item.path) for item in store.walk()}


def told(store: Store) -> tuple:
    """Return all that is summed over the markers."""
    status, summary = read_status(store), read_summary(store, "detect")
    coverage, words = read_coverage(store)
    sums = (summary.shards, summary.events, summary.by_station, summary.num_quarantined, summary.totals.seconds)
    return json.dumps(totals(status), sort_keys=True), describe(status), sums, coverage.to_csv(), words


def assert_right(store: Store) -> None:
    """Check the sums against what the markers were made with."""
    found = totals(read_status(store))
    assert found["shards"]["done"] == NUM_SHARDS
    assert found["events"] == NUM_EVENTS
    assert found["gaps"] == 2 * NUM_SHARDS
    assert found["samples"] == {"used": 10 * NUM_SHARDS, "blanked": NUM_SHARDS}
    # Exactly, though neither number is one of a float.
    assert found["seconds"] == {"used": 9.0, "blanked": 18.0}
    # Of a file that two days speak of, the later one holds.
    later = {
        f"{station}/{number // 2}": shard_of(station, number) for station in STATIONS for number in range(1, DAYS, 2)
    }
    assert found["quarantined"] == {key: shard.content["quarantined"][0]["reasons"] for key, shard in later.items()}
    assert found["renamed"] == {key: {"YY.A..HHZ": "XX.A..HH1"} for key in later}


def count_asked(store: Store) -> tuple[int, list]:
    """Return how many markers are read themselves by `read_markers`, and what it gives in order of names."""
    listed = bundles.list_with_bundles(store, "detect")
    found = list(listed.take_copies())
    num_asked = len(listed.sizes)
    assert [name for name, _ in listed.ask()] == list(listed.names())
    return num_asked, sorted((found), key=lambda item: str(item[0]))


def test_the_sums_are_those_of_the_markers(store):
    num_asked, found = count_asked(store)
    assert num_asked == 0
    assert [name for name, _ in found] == sorted((shard.name for shard in SHARDS), key=str)
    assert_right(store)
    # What is done is said by the listing of the markers, in which no bundle is.
    assert set(list_markers(store, "detect")) == {shard.name for shard in SHARDS}
    work = work_left(store, "detect", SHARDS, lambda shard: shard.name)
    assert (work.left, work.num_done, work.stale) == ([], NUM_SHARDS, [])
    with_bundles = told(store)
    store.remove_folder(FOLDER)
    assert count_asked(store)[0] == NUM_SHARDS
    assert told(store) == with_bundles
    assert_right(store)


def test_status_writes_nothing(store, capsys):
    before = contents(store)
    assert status_job([store.url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["events"] == NUM_EVENTS
    assert contents(store) == before


def test_a_damaged_list_of_files_leaves_the_json_of_status_whole(store, capsys):
    store.write("plan/manifest.parquet", b"no table")
    assert status_job([store.url, "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["events"] == NUM_EVENTS
    assert "plan/manifest.parquet is damaged" in said.err


def compressed(lines: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(lines)
    return sink.getvalue().to_pybytes()


def lines_of(content: bytes) -> list[list]:
    text = pa.CompressedInputStream(pa.BufferReader(content), "zstd").read()
    return [json.loads(line) for line in text.splitlines()]


def _changed(change):
    """Return what writes a bundle again with each of its entries changed."""

    def spoil(content: bytes) -> bytes:
        return compressed(b"".join(json.dumps(change(*entry)).encode() + b"\n" for entry in lines_of(content)))

    return spoil


SPOILED = {
    "empty": lambda content: b"",
    "cut off": lambda content: content[: len(content) // 2],
    "other bytes": lambda content: b"\0" * 1000,
    "no lines": lambda content: compressed(b""),
    "not JSON": lambda content: compressed(b"[[[[\n\xff\n{}\n"),
    "deep": lambda content: compressed(b"[" * 100_000),
    "of other things": _changed(lambda path, size, marker: {"path": path}),
    "three of other types": _changed(lambda path, size, marker: [size, path, [marker]]),
    "markers that are not listed": _changed(lambda path, size, marker: [f"{path[:-6]}z.json", size, marker]),
    "paths out of the ledger": _changed(lambda path, size, marker: [f"../detect/{path}", size, marker]),
    "markers of another size": _changed(lambda path, size, marker: [path, size + 1, marker | {"gaps": 7}]),
    "a marker with a member of another type": _changed(lambda path, size, marker: [path, size, marker | {"gaps": "7"}]),
    "a marker that lacks a member": _changed(lambda path, size, marker: [path, size, {}]),
}


@pytest.mark.parametrize("how", SPOILED)
@pytest.mark.parametrize("which", [0, 2])
def test_a_bundle_that_is_spoiled_changes_no_result(store, how, which):
    expected = told(store)
    path = names(store)[which]
    content = store.read(path)
    store.write(path, SPOILED[how](content))
    assert count_asked(store)[0] == len(lines_of(content))
    assert told(store) == expected
    assert_right(store)
    # Nor does it stop a run.
    with bundled(store, "detect", NUM_SHARDS) as into:
        take(into, SHARDS[0])
    into.merge(list(store.walk(FOLDER)))
    assert told(store) == expected


def test_a_bundle_that_is_gone_or_not_to_be_read_changes_no_result(store, monkeypatch):
    expected = told(store)
    listed = bundles.list_with_bundles(store, "detect")
    first, second, _ = names(store)
    store.remove(first)
    store.remove(second)
    (_, *_), asked = list(listed.take_copies()), len(listed.sizes)
    assert asked == 80
    assert told(store) == expected
    store.write(f"{FOLDER}/a file of someone else", b"hello")
    store.write(f"{FOLDER}/network=XX/station=A/x.1.json", b"hello")
    assert told(store) == expected
    monkeypatch.setattr(bundles, "MAX_STORED_BYTES", 100)
    assert count_asked(store)[0] == NUM_SHARDS
    assert told(store) == expected


def test_what_decodes_to_more_than_a_bundle_may_hold_is_not_read(store, monkeypatch):
    store.write(names(store)[0], compressed(b" " * (2 * bundles.MAX_LINES_BYTES)))
    assert len(store.read(names(store)[0])) < 10_000
    assert count_asked(store)[0] == 40
    assert_right(store)


def test_a_marker_that_was_written_again_or_is_damaged_is_read_itself(store):
    """Its size is another one, and what the listing says counts."""
    again = shard_of("A", 0, events=12_345)
    write_marker(store, "detect", again.name, again.content)
    assert count_asked(store)[0] == 1
    assert read_status(store).num_events == NUM_EVENTS + 12_345
    store.write(marker_path("detect", again.name), b'{"counts": {}}')
    with pytest.raises(InputError, match=r"station=A/\S+json is damaged"):
        read_status(store)


def test_a_marker_that_is_gone_does_not_count(store):
    store.remove(marker_path("detect", shard_of("C", 5).name))
    assert read_status(store).num_events == NUM_EVENTS - 205
    assert read_status(store).done == NUM_SHARDS - 1


def test_days_of_runs_end_in_few_bundles(tmp_path):
    store = open_store(str(tmp_path))
    for number, shard in enumerate(SHARDS):
        with bundled(store, "detect", number + 1) as into:
            write(store, [shard])
            take(into, shard)
        # Full ones, and fewer than four that are not, one of them just written.
        assert len(names(store)) <= number // 40 + 4
    assert count_asked(store)[0] == 0
    assert_right(store)


def test_copies_of_shards_that_were_redone_do_not_pile_up(tmp_path):
    store = open_store(str(tmp_path))
    for time in range(40):
        with bundled(store, "detect", 10) as into:
            for number in range(10):
                shard = shard_of("A", number, events=time)
                name = MarkerName("XX", "A", shard.name.shard, f"{time:04x}")
                store.remove(marker_path("detect", MarkerName("XX", "A", shard.name.shard, f"{time - 1:04x}")))
                write(store, [Shard(name, shard.content)])
                take(into, Shard(name, shard.content))
        num_copies = sum(len(lines_of(store.read(path))) for path in names(store))
        assert num_copies <= 3 * 10 + 4 * 40 + 10
        assert count_asked(store)[0] == 0
    assert read_status(store).num_events == 10 * 39


def test_a_run_that_is_killed_while_it_merges_leaves_all(store, monkeypatch):
    expected = told(store)

    def killed(self, path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            Bundles(store, "detect").merge(list(store.walk(FOLDER)))
    assert len(names(store)) == 6
    assert count_asked(store)[0] == 0
    assert told(store) == expected
    Bundles(store, "detect").merge(list(store.walk(FOLDER)))
    assert len(names(store)) == 3
    assert told(store) == expected


def test_an_interrupted_run_writes_what_it_took_and_a_killed_one_loses_one_bundle(tmp_path):
    store = open_store(str(tmp_path))
    write(store)

    def interrupted():
        with bundled(store, "detect", NUM_SHARDS) as into:
            for shard in SHARDS[:50]:
                take(into, shard)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert count_asked(store)[0] == NUM_SHARDS - 50
    # Killed: the block never ends.
    into = Bundles(store, "detect")
    for shard in SHARDS[50:]:
        take(into, shard)
    assert count_asked(store)[0] == 0
    store.remove(names(store)[-1])
    assert count_asked(store)[0] == 40
    assert_right(store)


def test_markers_without_a_copy_get_one_a_bounded_number_in_a_run(tmp_path, monkeypatch):
    """Those of an older release, for example."""
    store = open_store(str(tmp_path))
    write(store)
    monkeypatch.setattr(bundles, "MAX_ADOPTED", 30)
    monkeypatch.setattr(Bundles.adopt, "__defaults__", (30,))
    asked = []
    for _ in range(3):
        with bundled(store, "detect", NUM_SHARDS):
            pass
        asked.append(count_asked(store)[0])
    # Within one bundle's worth nothing is done: it would be for every run that was interrupted.
    assert asked == [60, 30, 30]
    assert_right(store)
    assert all("inputs" not in marker for path in names(store) for _, _, marker in lines_of(store.read(path)))


def test_a_marker_larger_than_a_bundle_is_read_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(bundles, "BUNDLE_BYTES", 5_000)
    store = open_store(str(tmp_path))
    large = shard_of("A", 0)
    large.content["skipped"] = ["x" * 6_000]
    write(store, [large, *SHARDS[1:]])
    with bundled(store, "detect", NUM_SHARDS) as into:
        for shard in [large, *SHARDS[1:]]:
            take(into, shard)
    assert count_asked(store)[0] == 1
    assert max(len(lines_of(store.read(path))) for path in names(store)) < 10
    assert_right(store)


def test_triggers_have_bundles_of_their_own(tmp_path):
    store = open_store(str(tmp_path))
    write(store, ledger="trigger")
    with bundled(store, "trigger", NUM_SHARDS) as into:
        for shard in SHARDS:
            take(into, shard)
    assert not names(store)
    markers = dict(read_markers(store, "trigger"))
    assert sum(marker["counts"]["events"] for marker in markers.values()) == NUM_EVENTS
    assert all("onsets_ns" not in marker for marker in markers.values())


def test_a_detection_that_replaces_another_brings_its_own_bundles(store):
    workspace = open_workspace(store.url, create=False)
    before = names(store)
    with result_of(workspace, "detect", resolve({}), replace=True) as place:
        assert place.store != store
        write(place.store, SHARDS[:50])
        with bundled(place.store, "detect", 50) as into:
            for shard in SHARDS[:50]:
                take(into, shard)
        assert names(store) == before
        assert read_status(place.store).done == 50
        assert_right(store)
    assert len(names(store)) == 2
    assert not set(names(store)) & set(before)
    assert count_asked(store) == (0, sorted(read_markers(store, "detect"), key=lambda item: str(item[0])))
    assert read_status(store).done == 50


@pytest.fixture
def proxy(moto_s3, monkeypatch) -> Iterator[FaultProxy]:
    with FaultProxy(moto_s3.endpoint_url) as made:
        monkeypatch.setenv("AWS_ENDPOINT_URL", made.url)
        s3_requests._s3.cache_clear()
        yield made
    s3_requests._s3.cache_clear()


def test_a_bucket_is_asked_for_bundles_and_for_no_marker(proxy, moto_s3):
    store = open_store(f"{moto_s3.url}/workspace")
    write(store)
    with bundled(store, "detect", NUM_SHARDS) as into:
        for shard in SHARDS[:85]:
            take(into, shard)
    proxy.requests.clear()
    status = read_status(store)
    assert (status.done, status.num_events) == (NUM_SHARDS, NUM_EVENTS)
    sent = [(request.method, unquote(request.path)) for request in proxy.requests]
    paths = [path for method, path in sent if method == "GET" and "list-type" not in path]
    assert sum("/bundles/" in path for path in paths) == 3
    # Those that no bundle has.
    assert sum("/station=" in path for path in paths) == 5
    listings = [path for _, path in sent if "list-type" in path]
    # ledger/detect, bundles, network, three stations.
    assert len(listings) == 6
    # On a bucket, too, a workspace is a folder: its bundles hold in a copy, whatever their tags.
    copy = open_store(f"{moto_s3.url}/copy")
    for path, content in contents(store).items():
        copy.write(path, content)
    assert count_asked(copy)[0] == 5
    assert_right(copy)
