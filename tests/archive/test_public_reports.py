"""Situations that users of other programs have reported in public: what is right here, from the headers alone.

Each names the report: repository and number of the issue.
"""

from datetime import timedelta

import numpy as np
import pytest
from made_records import moment, nanoseconds, record2

from pipelines.archive.continuity import assemble
from pipelines.archive.layouts import guess_layout, path_parser
from pipelines.archive.records import decode

NOON = moment("2020-03-01T12:00:00")


def segments(content: bytes, rate_hz: float):
    decoded = decode(content)
    return decoded, assemble(decoded.runs, rate_hz=rate_hz)


def test_a_fraction_of_ten_thousand_is_the_next_second():
    """obspy/obspy 1531: the header's field of 0.0001 s reads 10000, though 9999 is the most that is allowed."""
    record = bytearray(record2(np.arange(100), NOON))
    record[28:30] = (10_000).to_bytes(2, "big")
    decoded, _ = segments(bytes(record), 100.0)
    assert [run.start_ns for run in decoded.runs] == [nanoseconds(NOON + timedelta(seconds=1))]


def test_a_logger_that_is_slower_than_its_headers_say_keeps_the_time_of_each_record():
    """obspy/obspy 3447: 0.1 Hz by name, 10.07 s between samples; ten minutes late at the end of a day elsewhere."""
    count, interval = 50, 10.07
    starts = [NOON + timedelta(seconds=number * count * interval) for number in range(170)]
    content = b"".join(record2(np.arange(count), start, factor=1, multiplier=-10) for start in starts)
    _, found = segments(content, 0.1)
    (segment,) = found.segments
    assert segment.num_samples == 170 * count
    times = segment.times_at(np.arange(0, 170 * count, count))
    # The fixed header's time is in units of 0.0001 s.
    assert np.abs(times - [nanoseconds(start) for start in starts]).max() <= 100_000


@pytest.mark.parametrize("blank", [b" " * 512, b"\0" * 512, b"000003  " + b" " * 504])
def test_a_blank_record_costs_itself_only_and_is_named(blank):
    """obspy/obspy 1981: 512 blank bytes within a file, or a record of noise as SEED calls it."""
    one, other = record2(np.arange(100), NOON), record2(np.arange(100, 200), NOON + timedelta(seconds=1))
    decoded, found = segments(one + blank + other, 100.0)
    np.testing.assert_array_equal(found.segments[0].samples(0, 200), np.arange(200))
    assert decoded.problems == [f"bytes {len(one)} to {len(one) + 512}: not miniSEED"]
    assert decoded.damaged_bytes == 512


def test_records_without_blockette_1000_end_and_are_counted():
    """SeisComP/main 16: many gaps and overlaps in records without blockette 1000; a server hung on them.

    Their encoding is Steim 1, as libmseed assumes it: one frame, and differences of four bytes each.
    """
    words = np.zeros(16, ">u4")
    values = np.arange(13) * 7
    words[0] = sum(3 << (2 * (15 - place)) for place in range(3, 16))
    words[1:3] = values[0], values[-1]
    words[3:] = np.diff(values, prepend=0)
    made = []
    for start in (0, 1, 1.05, 3, 2.5, 100):
        record = bytearray(record2(words.tobytes(), NOON + timedelta(seconds=start), count=13, encoding=10))
        record[39], record[46:48], record[48:64] = 0, b"\0\0", bytes(16)
        made.append(bytes(record))
    decoded, found = segments(b"".join(made), 100.0)
    assert sum(counts.stated for counts in decoded.counts.values()) == 6 * 13
    assert all(counts.returned == counts.stated for counts in decoded.counts.values())
    np.testing.assert_array_equal(decoded.runs[0].data[:13], values)
    used = sum(segment.num_samples for segment in found.segments)
    assert used + found.conflicting_samples + found.duplicate_samples == 6 * 13
    assert not decoded.num_problems


def test_days_whose_samples_lie_off_those_of_the_day_before_keep_their_own_times():
    """QuakeMigrate/QuakeMigrate 124: shifted to common sample times, a day lost its overlap and all its data."""
    midnight = moment("2020-01-01T00:00:00")
    before = record2(np.arange(500), midnight - timedelta(seconds=10.0091), factor=50)
    after = record2(np.arange(500, 1000), midnight + timedelta(seconds=0.0059), factor=50)
    _, found = segments(before + after, 50.0)
    assert [segment.num_samples for segment in found.segments] == [500, 500]
    assert [segment.start_ns for segment in found.segments] == [
        nanoseconds(midnight) - 10_009_100_000,
        nanoseconds(midnight) + 5_900_000,
    ]


def test_files_of_two_sample_types_that_overlap_are_one_recording():
    """QuakeMigrate/QuakeMigrate 137: one file in FLOAT64 and one in Steim 1, and every station was rejected."""
    one = record2(np.arange(400), NOON)
    other = record2(np.arange(300, 700), NOON + timedelta(seconds=3), dtype="f8")
    _, found = segments(one + other, 100.0)
    (segment,) = found.segments
    np.testing.assert_array_equal(segment.samples(0, 700), np.arange(700))
    assert (found.duplicate_samples, found.conflicting_samples) == (100, 0)


def test_an_sds_archive_is_read_for_its_type_d_alone():
    """FDSN/marine-seismology-standards 44: the type Q holds the same recording with a corrected clock.

    Both together would be two recordings of one time, so files of other types are listed as not fitting.
    """
    assert path_parser("sds")("2020/XX/BB/HHZ.D/XX.BB..HHZ.D.2020.061") is not None
    assert path_parser("sds")("2020/XX/BB/HHZ.Q/XX.BB..HHZ.Q.2020.061") is None


def test_an_order_of_codes_that_no_layout_has_is_read_from_the_headers():
    """GeoNet/fdsn 244: year, day and station first, location and channel joined by a dash."""
    assert guess_layout(["waveforms/miniseed/2023/2023.031/WTAZ.NZ/2023.031.WTAZ.12-HHE.NZ.D"]) == "flat"
