"""Large and gzipped files, read in pieces: the samples are those of the file read whole."""

import gzip
import io
import tracemalloc
from datetime import UTC, datetime, timedelta

import numpy as np
import obspy
import pytest
from made_records import record2

from pipelines.archive import reading, unpacking
from pipelines.archive.continuity import DAY_NS, assemble
from pipelines.archive.reading import FileReader
from pipelines.archive.records import decode
from pipelines.archive.sample_counts import Drop
from pipelines.workspace.storage import Store, open_store


@pytest.fixture(scope="module")
def recording():
    """Return six minutes of two channels at 100 Hz, about 60 kB in records of 512 bytes."""
    rng = np.random.default_rng(3)
    stream = obspy.Stream()
    for code in ("HHN", "HHZ"):
        header = {"network": "XX", "station": "A", "channel": code, "sampling_rate": 100.0}
        stream += obspy.Trace(np.cumsum(rng.integers(-90, 90, 36_000)).astype(np.int32), header)
    content = io.BytesIO()
    stream.write(content, format="MSEED", reclen=512)
    return content.getvalue()


def samples(runs):
    """Return {channel: [(start, samples)]} after the rules of continuity."""
    found = {}
    for channel in {run.channel for run in runs}:
        segments = assemble([run for run in runs if run.channel == channel], rate_hz=100.0).segments
        found[channel] = [(segment.start_ns, segment.samples(0, segment.num_samples)) for segment in segments]
    return found


def assert_same_samples(mine, theirs):
    mine, theirs = samples(mine), samples(theirs)
    assert mine.keys() == theirs.keys()
    for channel, parts in theirs.items():
        assert [start for start, _ in mine[channel]] == [start for start, _ in parts]
        for (_, one), (_, other) in zip(mine[channel], parts, strict=True):
            np.testing.assert_array_equal(one, other)


def reader(tmp_path, content, monkeypatch, piece_bytes=10_000):
    monkeypatch.setattr(reading, "PIECE_BYTES", piece_bytes)
    monkeypatch.setattr(unpacking, "_FETCHED_BYTES", 3000)
    (tmp_path / "file").write_bytes(content)
    store = open_store(str(tmp_path))
    return FileReader(store, next(store.walk()))


PACKINGS = {
    "plain": lambda content: content,
    "gzip": gzip.compress,
    "two members": lambda content: gzip.compress(content[:20_480]) + gzip.compress(content[20_480:]),
    "gzip and padding": lambda content: gzip.compress(content) + b"\0" * 700,
}


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_file_in_pieces_gives_the_samples_of_the_whole(recording, tmp_path, monkeypatch, packing):
    mine = reader(tmp_path, PACKINGS[packing](recording), monkeypatch)
    found = mine.read(0, 10**12)
    assert not found.num_problems
    assert len(mine._pieces) > 4
    assert_same_samples(found.runs, decode(recording).runs)
    # A part in the middle, and one before it, which was passed already.
    for start_s, end_s in ((200, 210), (20, 31)):
        part = mine.read(start_s * 10**9, end_s * 10**9)
        expected = decode(recording, start_ns=start_s * 10**9, end_ns=end_s * 10**9)
        assert_same_samples(part.runs, expected.runs)


def test_a_gzipped_file_cut_short_gives_what_it_holds_and_says_so(recording, tmp_path, monkeypatch):
    packed = gzip.compress(recording)
    found = reader(tmp_path, packed[: len(packed) // 2], monkeypatch).read(0, 10**12)
    assert "gzip: the file ends early" in found.problems
    whole = sum(len(run.data) for run in decode(recording).runs)
    assert 0.3 * whole < sum(len(run.data) for run in found.runs) < 0.7 * whole


def test_a_damaged_record_of_a_large_file_costs_its_own_samples_only(recording, tmp_path, monkeypatch):
    damaged = bytearray(recording)
    damaged[512 * 31 : 512 * 31 + 64] = b"\xff" * 64
    found = reader(tmp_path, bytes(damaged), monkeypatch).read(0, 10**12)
    assert_same_samples(found.runs, decode(bytes(damaged)).runs)
    # Counted from the beginning of the file, whatever the pieces.
    assert found.problems == decode(bytes(damaged)).problems
    assert found.problems[0].startswith(f"bytes {512 * 31} to {512 * 32}: ")


@pytest.mark.parametrize("packing", ["plain", "gzip"])
def test_what_cannot_be_decoded_is_counted_alike_in_pieces(recording, tmp_path, monkeypatch, packing):
    damaged = bytearray(recording)
    # The last sample of the first frame, which Steim's differences must lead to, and one of the header's counts.
    damaged[512 * 30 + 64 + 8 : 512 * 30 + 64 + 12] = b"\x12\x34\x56\x78"
    damaged[512 * 80 + 30 : 512 * 80 + 32] = b"\xff\xff"
    whole = decode(bytes(damaged))
    found = reader(tmp_path, PACKINGS[packing](bytes(damaged)), monkeypatch).read(0, 10**12)
    assert whole.num_problems == found.num_problems > 0
    assert found.counts == whole.counts
    assert_same_samples(found.runs, whole.runs)


def test_reading_a_part_of_a_large_file_holds_no_more_than_a_piece_and_that_part(tmp_path, monkeypatch):
    rng = np.random.default_rng(4)
    header = {"network": "XX", "station": "A", "channel": "HHZ", "sampling_rate": 100.0}
    trace = obspy.Trace(np.cumsum(rng.integers(-90, 90, 4_000_000)).astype(np.int32), header)
    content = io.BytesIO()
    trace.write(content, format="MSEED", reclen=4096)
    decode(content.getvalue()[:8192])
    mine = reader(tmp_path, content.getvalue(), monkeypatch, piece_bytes=2**18)
    assert len(content.getvalue()) > 16 * 2**18
    end_ns = 40_000 * 10**9
    tracemalloc.start()
    try:
        part = mine.read(end_ns - 500 * 10**9, end_ns)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(len(run.data) for run in part.runs) == 50_000
    # A piece, its copy cut at a record, and what is asked for; the samples of the file take 16 MB.
    assert peak < 4 * 2**18 + 4 * 50_000


def test_of_a_file_that_was_cut_after_it_was_listed_the_first_piece_is_used(recording, tmp_path, monkeypatch):
    mine = reader(tmp_path, recording, monkeypatch)
    (tmp_path / "file").write_bytes(recording[:11_000])
    for _ in range(2):
        found = mine.read(0, 10**12)
        assert "changed after it was listed" in found.problems[0]
        # A piece of 10,000 bytes has 19 whole records.
        assert_same_samples(found.runs, decode(recording[: 19 * 512]).runs)


def test_a_file_that_could_be_read_in_part_only_is_read_again_in_whole(recording, tmp_path, monkeypatch):
    mine = reader(tmp_path, recording, monkeypatch)
    read, calls = Store.read_checked, []

    def fails_once(*args):
        calls.append(args)
        if len(calls) == 3:
            raise OSError("the disk is away")
        return read(*args)

    monkeypatch.setattr(Store, "read_checked", fails_once)
    with pytest.raises(OSError, match="away"):
        mine.read(0, 10**12)
    assert_same_samples(mine.read(0, 10**12).runs, decode(recording).runs)


def test_samples_of_other_channels_and_far_from_the_time_in_the_name_are_left_out_and_the_latter_told(tmp_path):
    traces = [
        obspy.Trace(
            np.arange(6000, dtype=np.int32),
            {
                "network": "XX",
                "station": "A",
                "channel": channel,
                "sampling_rate": 10.0,
                "starttime": obspy.UTCDateTime(start),
            },
        )
        for channel, start in (("HHZ", 0), ("HHZ", 5000), ("LOG", 90_000))
    ]
    obspy.Stream(traces).write(tmp_path / "file", format="MSEED", encoding="STEIM2", reclen=512)
    store = open_store(str(tmp_path))
    believed = (0, 300 * 10**9)
    mine = FileReader(store, next(store.walk()), believed, lambda codes: codes.channel == "HHZ")
    found = mine.read(0, 10**12)
    assert [(run.channel.channel, len(run.data)) for run in found.runs] == [("HHZ", 3000)]
    assert found.problems == ["9000 samples lie more than archive.spill_seconds from the time in its name"]
    mine.forget_before(200 * 10**9)
    assert mine.read(200 * 10**9, 10**12).problems == found.problems
    assert mine.read(10**13, 10**14).problems == found.problems


def test_a_file_that_changed_since_it_was_listed_is_named_and_ends_nothing(recording, tmp_path, monkeypatch):
    mine = reader(tmp_path, recording, monkeypatch)
    (tmp_path / "file").write_bytes(recording[:30_000])
    found = mine.read(0, 10**12)
    assert found.num_problems == 1
    assert "changed after it was listed" in found.problems[0]


def test_what_was_forgotten_is_read_again(recording, tmp_path, monkeypatch):
    mine = reader(tmp_path, recording, monkeypatch, piece_bytes=10**6)
    everything = mine.read(0, 10**12).runs
    mine.forget_before(300 * 10**9)
    assert_same_samples(mine.read(300 * 10**9, 10**12).runs, decode(recording, start_ns=300 * 10**9).runs)
    assert_same_samples(mine.read(0, 10**12).runs, everything)
    mine.forget_before(10**12)
    assert not mine.may_hold(10**12, 2 * 10**12)
    assert_same_samples(mine.read(0, 10**12).runs, everything)


@pytest.mark.parametrize("piece_bytes", [10_000, 10**6])
def test_out_of_reach_samples_are_counted_and_not_returned(recording, tmp_path, monkeypatch, piece_bytes):
    damaged = bytearray(recording)
    damaged[512 * 80 + 30 : 512 * 80 + 32] = b"\xff\xff"
    everywhere = reader(tmp_path, bytes(damaged), monkeypatch, piece_bytes=piece_bytes)
    within = (100 * 10**9, 120 * 10**9)
    mine = FileReader(everywhere.archive, everywhere.item, reach=within)
    found, whole = mine.read(*within), everywhere.read(0, 10**12)
    assert found.problems == whole.problems != []
    for codes, counts in whole.counts.items():
        assert found.counts[codes].stated == counts.stated
        assert found.counts[codes].lost() == counts.lost()
        assert found.counts[codes].balances
    expected = decode(bytes(damaged), start_ns=within[0], end_ns=within[1]).runs
    clipped = [part for run in found.runs if (part := run.clip(*within)) is not None]
    assert_same_samples(clipped, expected)


def test_a_task_makes_runs_of_those_records_only_that_its_days_reach(tmp_path):
    # A record a day for 400 days: whoever needs three days holds no 400 runs.
    content = b"".join(record2([day], datetime(2021, 1, 1, tzinfo=UTC) + timedelta(days=day)) for day in range(400))
    (tmp_path / "file").write_bytes(content)
    store = open_store(str(tmp_path))
    first_ns = 1_609_459_200 * 10**9
    within = (first_ns + 200 * DAY_NS, first_ns + 203 * DAY_NS)
    mine = FileReader(store, next(store.walk()), reach=within)
    assert sorted(int(run.data[0]) for run in mine.read(-(2**62), 2**62).runs) == [200, 201, 202, 203]
    (counts,) = mine.read(*within).counts.values()
    assert (counts.stated, counts.returned, counts.dropped) == (400, 4, {Drop.OUTSIDE: 396})


def test_little_that_unpacks_to_a_lot_is_read_in_pieces(tmp_path, monkeypatch):
    mine = reader(tmp_path, gzip.compress(b"\0" * 10**6), monkeypatch)
    assert mine.read(0, 10**12).num_problems
    assert len(mine._pieces) > 90
