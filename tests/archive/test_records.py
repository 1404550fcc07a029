"""Decoding against ObsPy, on good files, on damaged ones, and on mutations."""

import gzip
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import obspy
import pytest

from pipelines.archive.clock import index_at, sample_time, sample_times
from pipelines.archive.records import Channel, decode, make_run, record_boundary, whole_records

NUM_MUTATIONS = int(os.environ.get("FIRNLINE_MUTATIONS", "2000"))
# ObsPy knows less than libmseed, or reads these otherwise: what it gives is no reference.
NOT_A_REFERENCE = ("oddrate", "invalid-blockette", "detection.record", "SRO", "GEOSCOPE", "CDSN", "DWWSSN")


def obspy_samples(path):
    """Return {(id, time of sample in ns): value} of ObsPy's reading."""
    stream = obspy.read(path, format="MSEED")
    return {trace.id: trace for trace in stream.merge(method=1)}


def reference_files(shared_data):
    files = sorted((shared_data / "miniseed").rglob("*.mseed2"))
    return [path for path in files if not any(word in path.name for word in (*NOT_A_REFERENCE, "text", "headeronly"))]


def test_samples_and_times_are_those_of_obspy(shared_data):
    compared = 0
    for path in reference_files(shared_data):
        theirs = obspy.read(path, format="MSEED").merge(method=1).split()
        mine = decode(path.read_bytes())
        assert not mine.num_problems, path
        assert sum(len(run.data) for run in mine.runs) == sum(len(trace) for trace in theirs), path
        for trace in theirs:
            runs = [run for run in mine.runs if ".".join(run.channel) == trace.id]
            inside = [
                run
                for run in runs
                if run.start_ns >= trace.stats.starttime.ns - 10**6 and run.end_ns <= trace.stats.endtime.ns + 10**11
            ]
            assert inside, path
            first = min(inside, key=lambda run: abs(run.start_ns - trace.stats.starttime.ns))
            assert abs(first.start_ns - trace.stats.starttime.ns) < 10**6
            count = min(len(first.data), len(trace))
            np.testing.assert_array_equal(first.data[:count], trace.data[:count], err_msg=str(path))
            compared += 1
    assert compared > 25


def test_version_3_holds_what_version_2_holds(shared_data):
    folder = shared_data / "miniseed" / "pymseed_tests_data"
    two, three = (decode((folder / f"testdata-COLA-signal.mseed{v}").read_bytes()) for v in (2, 3))
    key = lambda run: (run.channel, run.start_ns)  # noqa: E731
    for mine, theirs in zip(sorted(two.runs, key=key), sorted(three.runs, key=key), strict=True):
        assert (mine.channel, mine.start_ns, mine.rate_hz) == (theirs.channel, theirs.start_ns, theirs.rate_hz)
        np.testing.assert_array_equal(mine.data, theirs.data)


@pytest.fixture
def hour():
    data = np.cumsum(np.random.default_rng(0).integers(-50, 50, 36_000)).astype(np.int32)
    trace = obspy.Trace(data, {"network": "XX", "station": "A", "channel": "HHZ"})
    trace.stats.sampling_rate = 100.0
    content = io.BytesIO()
    trace.write(content, format="MSEED", reclen=512)
    return content.getvalue(), data


def test_a_damaged_record_costs_its_own_samples_only(hour):
    content, data = hour
    damaged = bytearray(content)
    damaged[512 * 20 : 512 * 20 + 64] = b"\xff" * 64
    found = decode(bytes(damaged))
    lost = len(data) - sum(len(run.data) for run in found.runs)
    assert 0 < lost < 1000
    assert found.num_problems == 1
    assert "10240" in found.problems[0]
    for run in found.runs:
        first = round(run.start_ns / 1e7)
        np.testing.assert_array_equal(run.data, data[first : first + len(run.data)])


def test_a_file_cut_short_gives_its_whole_records(hour):
    content, data = hour
    found = decode(content[:-300])
    assert found.problems == [f"bytes {len(content) - 512} to {len(content) - 300}: a record is cut short"]
    np.testing.assert_array_equal(found.runs[0].data, data[: len(found.runs[0].data)])


def test_rubbish_before_and_between_records_is_passed_over(hour):
    content, data = hour
    found = decode(b"rubbish" * 31 + content[:5120] + b"\0" * 777 + content[5120:])
    assert sum(len(run.data) for run in found.runs) == len(data)
    assert found.num_problems == 2


def test_gzip_is_read_and_a_cut_one_gives_what_it_holds(hour):
    content, data = hour
    np.testing.assert_array_equal(decode(gzip.compress(content)).runs[0].data, data)
    cut = decode(gzip.compress(content)[:-5000])
    assert 0 < sum(len(run.data) for run in cut.runs) < len(data)
    assert "gzip: the file ends early" in cut.problems[0]


def test_empty_and_foreign_files_say_so(tmp_path):
    assert decode(b"").problems == ["the file is empty"]
    assert "not miniSEED" in decode(b"<html>no</html>" * 50).problems[0]


def test_a_time_interval_reads_the_samples_inside(hour):
    content, data = hour
    found = decode(content, start_ns=10_005_000_000, end_ns=20_000_000_000)
    assert found.runs[0].start_ns == 10_010_000_000
    np.testing.assert_array_equal(found.runs[0].data, data[1001:2000])


def test_pieces_of_a_large_file_end_with_a_whole_record(hour):
    content, _ = hour
    assert whole_records(content) == len(content)
    assert whole_records(content[:5000]) == record_boundary(content[:5000]) == 4608
    damaged = content[:1024] + b"\xff" * 512 + content[1536:5000]
    assert whole_records(damaged) == 1024
    assert record_boundary(damaged) == 4608


def test_times_of_many_samples_are_those_of_each():
    random = np.random.default_rng(4)
    for rate_hz in (1.0, 20.0, 33.333333, 62.5, 99.9999, 100.0, 199.9, 1000.0):
        indexes = np.concatenate([[0, 1], random.integers(-(10**4), 10**9, 2000)])
        starts = random.integers(0, 2 * 10**18, len(indexes))
        each = [
            sample_time(start, index, rate_hz) for start, index in zip(starts.tolist(), indexes.tolist(), strict=True)
        ]
        assert sample_times(starts, indexes, rate_hz).tolist() == each


def test_sample_times_of_years_have_no_rounding_error():
    assert sample_time(0, 100 * 86400 * 3650 + 1, 100.0) == 86400 * 3650 * 10**9 + 10**7
    assert index_at(0, 100.0, 86400 * 3650 * 10**9 + 1) == 100 * 86400 * 3650 + 1
    run = make_run(Channel("XX", "A", "", "HHZ"), 40.0, 1, 0, np.arange(80))
    assert run.end_ns == 2 * 10**9
    assert run.clip(10**9, 10**10).data[0] == 40


MUTATE = """
import sys
import numpy as np
from pathlib import Path
from pipelines.archive.records import decode
rng = np.random.default_rng(int(sys.argv[1]))
files = [path for path in map(Path, sys.argv[3:]) if path.stat().st_size]
for number in range(int(sys.argv[2])):
    content = bytearray(files[rng.integers(len(files))].read_bytes()[:200_000])
    kind = rng.integers(4)
    if kind == 0:
        for place in rng.integers(0, len(content), rng.integers(1, 40)):
            content[place] = rng.integers(256)
    elif kind == 1:
        content = content[: rng.integers(len(content))]
    elif kind == 2:
        place = rng.integers(len(content))
        content[place:place] = bytes(rng.integers(0, 256, rng.integers(1, 600), dtype=np.uint8))
    else:
        place = rng.integers(min(len(content), 64))
        content[place : place + 8] = bytes(rng.integers(0, 256, 8, dtype=np.uint8))
    found = decode(bytes(content))
    for run in found.runs:
        assert len(run.data) and run.rate_hz > 0
print("done")
"""


def test_no_mutation_of_any_test_file_crashes_or_hangs(shared_data):
    import obspy.io.mseed

    files = sorted((shared_data / "miniseed").rglob("*.mseed*"))
    files += sorted((Path(obspy.io.mseed.__file__).parent / "tests" / "data").rglob("*.mseed"))
    command = [sys.executable, "-c", MUTATE, "7", str(NUM_MUTATIONS), *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.stdout.strip() == "done", done.stderr[-2000:]


def test_all_of_obspys_miniseed_tests_are_read_or_reported():
    import obspy.io.mseed

    files = sorted((Path(obspy.io.mseed.__file__).parent / "tests" / "data").rglob("*.mseed"))
    if not files:
        pytest.skip("this ObsPy was installed without its test data")
    for path in files:
        found = decode(path.read_bytes())
        assert found.runs or found.num_problems, path
