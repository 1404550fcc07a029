"""Records that nobody would write: time and memory stay in proportion to their size, and every sample is counted."""

import gzip
import time
import zlib
from datetime import timedelta

import numpy as np
import pytest
from made_records import moment, record2, record3

from pipelines.archive import reading, records, unpacking
from pipelines.archive.continuity import assemble
from pipelines.archive.manifest import build_manifest, probe
from pipelines.archive.reading import FileReader
from pipelines.archive.records import MAX_UNPACKED_BYTES, decode
from pipelines.archive.sample_counts import Drop
from pipelines.config import resolve
from pipelines.workspace.storage import open_store

NOON = moment("2020-03-01T12:00:00")
COUNT = 2000


@pytest.mark.parametrize("rate_hz", [1e18, 3e38, 1e-30, -5.0, 0.0, float("nan"), float("inf")])
def test_an_impossible_rate_costs_its_record_and_is_named(rate_hz):
    good = record2(np.arange(50), NOON)
    found = decode(good + record2(np.arange(10), NOON, rate_hz=rate_hz))
    assert [len(run.data) for run in found.runs] == [50]
    (counts,) = found.counts.values()
    assert counts.balances
    assert counts.dropped == {Drop.RATE: 10}
    assert found.problems[0].endswith("the sampling rate is invalid")


@pytest.mark.parametrize("rate", [1e18, 1.7e308, 1e-300, -1e-300, -1e300, 0.0])
def test_an_impossible_rate_or_interval_of_miniseed_3_is_named(rate):
    found = decode(record3(np.arange(10), NOON, rate=rate))
    (counts,) = found.counts.values()
    assert (counts.dropped, counts.balances, found.runs) == ({Drop.RATE: 10}, True, [])


@pytest.mark.parametrize("year", [1, 1677, 2262, 9999])
def test_an_impossible_year_costs_its_record_and_is_named(year):
    found = decode(record2(np.arange(10), NOON.replace(year=year)) + record2(np.arange(50), NOON))
    (counts,) = found.counts.values()
    assert (counts.dropped, counts.returned, counts.balances) == ({Drop.TIME: 10}, 50, True)


def test_what_a_header_promises_is_not_allocated():
    """Four thousand million samples in a record of 96 bytes, and a record of 2 GiB."""
    found = decode(record3(np.arange(10), NOON, rate=100.0, count=4_000_000_000))
    (counts,) = found.counts.values()
    # Ten of four bytes are all that its payload can hold: the rest of the claim is no sample that anybody lost.
    assert (counts.stated, counts.dropped) == (10, {Drop.CLAIM: 10})
    assert found.problems == [
        "XX.A..HHZ: 1 record (10 samples, first at byte 0): the header claims more samples than the record can hold, "
        "4000000000"
    ]
    found = decode(record2(np.arange(10), NOON, power=31))
    assert found.problems == ["bytes 0 to 104: the record states an impossible length"]


def records_of(kind):
    """Return records that once took quadratic time."""
    random = np.random.default_rng(0)
    if kind == "out of order":
        return [record2([i], NOON + timedelta(seconds=int(i)), factor=1) for i in random.permutation(COUNT)]
    if kind == "two versions":
        return [
            record2([i], NOON + timedelta(seconds=2 * i), factor=1, quality=quality)
            for i in range(COUNT // 2)
            for quality in "DM"
        ]
    if kind == "overlapping":
        return [record2(np.arange(20), NOON + timedelta(seconds=0.1 * i)) for i in range(COUNT)]
    assert kind == "all within one"
    long = record2(np.zeros(60_000), NOON, factor=1)
    return [long] + [record2([i], NOON + timedelta(seconds=i), factor=1) for i in range(COUNT)]


@pytest.mark.parametrize("kind", ["out of order", "two versions", "overlapping", "all within one"])
def test_thousands_of_records_take_time_in_proportion(kind):
    made = records_of(kind)

    def seconds(number):
        content = b"".join(made[:number])
        began = time.process_time()
        result = assemble(decode(content).runs, rate_hz=100.0 if kind == "overlapping" else 1.0)
        passed = time.process_time() - began
        dropped = result.duplicate_samples + result.conflicting_samples + result.superseded_samples
        assert result.num_samples == dropped + sum(segment.num_samples for segment in result.segments)
        return passed

    seconds(COUNT)
    # A second for two thousand, on a loaded machine.
    assert seconds(COUNT) < 3.0


def test_damaged_headers_with_checksums_of_megabytes_are_given_up():
    header = bytearray(40)
    header[:3] = b"MS\x03"
    header[36:40] = (2**22).to_bytes(4, "little")
    began = time.process_time()
    found = decode(bytes(header) * 200_000)
    assert time.process_time() - began < 5.0
    assert "too much of the data is damaged" in found.problems[0]


def read(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    store = open_store(str(tmp_path))
    return FileReader(store, next(store.walk())).read(-(2**62), 2**62)


def test_a_gzip_that_unpacks_to_far_more_than_its_size_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(unpacking, "MIN_UNPACKED_BYTES", 2**16)
    monkeypatch.setattr(reading, "PIECE_BYTES", 2**16)
    content = b"".join(record2(np.zeros(900), NOON + timedelta(seconds=9 * i)) for i in range(200))
    packed = gzip.compress(content)
    assert len(packed) * 16 + 2**16 < len(content)
    monkeypatch.setattr(records, "read_headers", None)
    found = read(tmp_path, packed)
    assert found.problems == ["gzip: it unpacks to more than 0 MiB and 16 times its size, and is not read"]
    assert found.damaged_bytes == len(packed)
    assert not found.runs


def test_a_gzip_of_thousandfold_expansion_takes_a_second(tmp_path):
    packer = zlib.compressobj(1, wbits=31)
    packed = b"".join(packer.compress(bytes(2**24)) for _ in range(32)) + packer.flush()
    assert len(packed) > 2**21
    began = time.process_time()
    found = read(tmp_path, packed)
    assert time.process_time() - began < 3.0
    assert found.problems == ["gzip: it unpacks to more than 32 MiB and 16 times its size, and is not read"]


def test_many_empty_members_of_a_gzip_take_time_in_proportion(tmp_path):
    record = record2(np.arange(50), NOON)
    began = time.process_time()
    found = read(tmp_path, gzip.compress(b"") * 100_000 + gzip.compress(record))
    assert time.process_time() - began < 5.0
    assert [len(run.data) for run in found.runs] == [50]


def test_what_follows_a_gzip_is_named_unless_it_is_padding(tmp_path):
    packed = gzip.compress(record2(np.arange(50), NOON))
    found = read(tmp_path, packed + b"\0\0something else")
    assert found.problems == [f"gzip: bytes {len(packed)} to {len(packed) + 16} of the packed file are not gzip"]
    assert len(found.runs) == 1


def test_an_archive_is_listed_and_planned_without_the_decoder(tmp_path, monkeypatch):
    """So a crash of the decoder, which is C, never ends the job: only tasks, which are tried again, decode."""
    folder = tmp_path / "2022/XX/A/HHZ.D"
    folder.mkdir(parents=True)
    (folder / "XX.A..HHZ.D.2022.001").write_bytes(record2(np.arange(500), moment("2022-01-01T12:00:00")))

    def crash(*_):
        raise AssertionError("a payload is decoded")

    monkeypatch.setattr(records, "_decode_payloads", crash)
    store = open_store(str(tmp_path))
    for layout in ("auto", "flat"):
        manifest = build_manifest(store, resolve({"archive": {"layout": layout}}).archive)
        assert manifest.layout == {"auto": "sds", "flat": "flat"}[layout]
        assert probe(store, manifest.usable(), enough=lambda _: False) == {100.0}


def test_decoding_the_beginning_of_a_gzip_unpacks_no_more_than_64_mib():
    found = decode(gzip.compress(bytes(2**27)))
    assert found.damaged_bytes == MAX_UNPACKED_BYTES
    assert any("unpacks to more than" in problem for problem in found.problems)


def test_a_file_that_is_empty_for_long_is_read_no_further(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAX_BARREN_BYTES", 2**16)
    monkeypatch.setattr(reading, "PIECE_BYTES", 2**15)
    record = record2(np.arange(50), NOON)
    (tmp_path / "file").write_bytes(record)
    with (tmp_path / "file").open("r+b") as file:
        file.truncate(2**40)
    store = open_store(str(tmp_path))
    found = FileReader(store, next(store.walk())).read(-(2**62), 2**62)
    assert sum(len(run.data) for run in found.runs) == 50
    assert "not read, since" in found.problems[-1]
    assert found.damaged_bytes == 2**40 - len(record)


def test_full_seed_gives_its_data_records_and_its_control_headers_are_no_problem():
    control = b"000001V 0100018" + b" " * 4081
    found = decode(control + record2(np.arange(50), NOON))
    assert [len(run.data) for run in found.runs] == [50]
    assert not found.num_problems
