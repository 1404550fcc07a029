"""Times, rates, leap seconds and sample types: what the record headers say, read by ObsPy or written here."""

import io
from itertools import pairwise

import numpy as np
import obspy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_records import moment, nanoseconds, record2, record3

from pipelines.archive.continuity import LEAP_SECOND_DAYS, assemble
from pipelines.archive.headers import read_headers
from pipelines.archive.rates import RATE_TOLERANCE, merge_rates, nominal_rate
from pipelines.archive.records import Channel, decode
from pipelines.archive.sample_counts import Drop

NOON = "2020-03-01T12:00:00"


def segments_of(content, rate_hz=100.0):
    """Return the segments of the one channel in some records."""
    return assemble(decode(content).runs, rate_hz=rate_hz).segments


def header_times(records):
    """Return the time of every sample in nanoseconds, as ObsPy reads each record alone."""
    times = []
    for record in records:
        (trace,) = obspy.read(io.BytesIO(record), format="MSEED")
        times.append(trace.stats.starttime.ns + np.arange(trace.stats.npts) / trace.stats.sampling_rate * 1e9)
    return np.concatenate(times)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_sample_lies_within_half_a_sample_of_what_its_own_record_says(data):
    rate_hz = data.draw(st.floats(0.5, 1000.0), "rate")
    deviation = data.draw(st.sampled_from([0.0, 1e-6, 2e-5]), "deviation of the stated rates")
    jitter = data.draw(st.sampled_from([0.0, 0.05, 0.45]), "jitter in samples")
    drift = data.draw(st.floats(-4e-5, 4e-5), "drift of the true rate")
    lengths = data.draw(st.lists(st.integers(1, 300), min_size=2, max_size=12), "samples of each record")
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), "seed"))
    records, first = [], 0
    for length in lengths:
        begin = first / (rate_hz * (1 + drift)) + random.uniform(-jitter, jitter) / rate_hz / 2
        stated = rate_hz * (1 + deviation * random.uniform(-1, 1))
        records.append(record2(np.arange(first, first + length), moment(NOON, begin), rate_hz=stated, microseconds=0))
        first += length
    found = decode(b"".join(records))
    merged = merge_rates({run.rate_hz: len(run.data) for run in found.runs})
    assert len(set(merged.values())) == 1
    nominal = merged[found.runs[0].rate_hz]
    assert abs(nominal / rate_hz - 1) <= RATE_TOLERANCE + 3 * deviation
    (segment,) = assemble(found.runs, rate_hz=nominal).segments
    assert segment.samples(0, first).tolist() == list(range(first))
    expected = header_times(records)
    assert np.abs(segment.times_at(np.arange(first)) - expected).max() <= 0.5e9 / rate_hz
    # In fact they are those of the header: ObsPy rounds rates to 32 bits and times to a microsecond.
    assert np.abs(segment.times_at(np.arange(first)) - expected).max() <= 2000 + 1e9 / rate_hz * 1e-3


@pytest.mark.parametrize(
    ("factor", "multiplier", "rate_hz"),
    [(100, 1, 100.0), (100, -3, 100 / 3), (-10, 1, 0.1), (-10, -3, 1 / 30), (25, 4, 100.0), (-2, 125, 62.5)],
)
def test_factor_and_multiplier_of_either_sign_give_the_rate_of_the_seed_manual(factor, multiplier, rate_hz):
    (run,) = decode(record2(np.arange(50), moment(NOON), factor=factor, multiplier=multiplier)).runs
    assert run.rate_hz == nominal_rate(rate_hz)
    assert run.clock.rates_hz[0] == pytest.approx(rate_hz, rel=1e-12)
    assert run.end_ns - run.start_ns == pytest.approx(50e9 / rate_hz, abs=2)


def test_a_day_at_33_hertz_and_a_third_keeps_the_times_of_its_records_over_midnight_and_files():
    """Headers resolve 0.1 ms; a rate of six digits would be 86 ms off after a day."""
    records = []
    for number in range(2890):
        samples = np.arange(1000 * number, 1000 * (number + 1))
        records.append(record2(samples, moment("2020-03-01", number * 30.0), factor=100, multiplier=-3))
    files = [b"".join(records[:1445]), b"".join(records[1445:])]
    runs = [run for content in files for run in decode(content).runs]
    (segment,) = assemble(runs, rate_hz=runs[0].rate_hz).segments
    day = nanoseconds(moment("2020-03-01"))
    indexes = np.arange(0, 2_890_000, 997)
    exact = day + np.rint(indexes * 3e7).astype(np.int64)
    assert np.abs(segment.times_at(indexes) - exact).max() <= 1
    assert segment.index_from(day + 86_400 * 10**9) == 2_880_000


def test_a_digitiser_that_drifts_continues_over_hours():
    """The rate stated is 100 Hz, the true one 100.00049 Hz: 50 ms, five samples, in three hours."""
    records = [
        record2(np.arange(400), moment(NOON, 400 * number / 100.00049), microseconds=0) for number in range(2700)
    ]
    (segment,) = segments_of(b"".join(records))
    last = segment.time_at(2699 * 400) - nanoseconds(moment(NOON))
    assert abs(last / 1e9 - 2699 * 400 / 100.00049) < 1e-4


@pytest.mark.parametrize(
    ("stated", "nominal"),
    [
        (100.00049, 100.0),
        (99.9999, 100.0),
        (99.9904, 100.0),
        (33.333332, 100 / 3),
        (62.5, 62.5),
        (7.8125, 7.8125),
        (40.96, 40.96),
        (18.2, 18.2),
        (0.1, 0.1),
        (1 / 30, 1 / 30),
        (100.02, 100.02),
    ],
)
def test_the_nominal_rate_is_the_simplest_number_within_the_tolerance(stated, nominal):
    assert nominal_rate(stated) == nominal


@pytest.mark.parametrize("rate", [794.40625, 100.0, 33.333333, 0.0987])
def test_rates_that_differ_by_measurement_alone_are_one_whatever_nominal_rates_they_have(rate):
    """794.39 to 794.42 Hz have the nominal rates 794 1/3, 794.4 and 794.5."""
    nominal = {nominal_rate(rate * (1 + deviation)) for deviation in np.linspace(-5e-5, 5e-5, 41)}
    assert len(set(merge_rates(dict.fromkeys(nominal, 1)).values())) == 1


def test_rates_within_the_tolerance_are_one_group_and_others_are_not():
    assert merge_rates({100.0: 5, 100.01: 9, 100.05: 1, 50.0: 3}) == {
        100.01: 100.01,
        100.0: 100.01,
        50.0: 50.0,
        100.05: 100.05,
    }
    assert merge_rates({100.0: 5, 100.01: 5}) == {100.0: 100.0, 100.01: 100.0}


@pytest.mark.parametrize("applied", [False, True])
@pytest.mark.parametrize("correction", [0, 12_345, -7])
@pytest.mark.parametrize("microseconds", [None, 0, 49, -50])
def test_microseconds_and_time_corrections_are_used_as_obspy_uses_them(applied, correction, microseconds):
    record = record2(
        np.arange(80),
        moment(NOON),
        microseconds=microseconds,
        correction=correction,
        activity=2 if applied else 0,
    )
    (trace,) = obspy.read(io.BytesIO(record), format="MSEED")
    (run,) = decode(record).runs
    assert run.start_ns == trace.stats.starttime.ns
    expected = nanoseconds(moment(NOON)) + (microseconds or 0) * 1000 + (0 if applied else correction * 100_000)
    assert run.start_ns == expected


def test_tenths_of_milliseconds_beyond_a_second_carry_as_in_obspy():
    record = bytearray(record2(np.arange(80), moment(NOON)))
    record[28:30] = (10_000).to_bytes(2, "big")
    (run,) = decode(bytes(record)).runs
    assert run.start_ns == nanoseconds(moment(NOON, 1.0))


def test_a_negative_rate_of_miniseed_3_is_an_interval():
    (run,) = decode(record3(np.arange(50), moment(NOON), rate=-10.0)).runs
    assert (run.rate_hz, run.end_ns - run.start_ns) == (0.1, 500 * 10**9)
    assert run.start_ns == nanoseconds(moment(NOON))


def over_midnight(last, *, step, record=record2, **flags):
    """Return a record of 15 s at 100 Hz that begins 10 s before a midnight, and the next one, so much earlier."""
    begin = moment(f"{last}T23:59:50")
    first = record(np.arange(1500), begin, **flags)
    flags.pop("activity", None), flags.pop("extra", None)
    return first + record(
        np.arange(1500, 3000), begin.fromtimestamp(begin.timestamp() + 15 - step, begin.tzinfo), **flags
    )


@pytest.mark.parametrize("activity", [0, 16])
@pytest.mark.parametrize("table", [False, True])
def test_a_record_over_a_leap_second_continues_where_the_next_header_says(activity, table, monkeypatch, tmp_path):
    if table:
        # libmseed reads it on request only: it changes nothing here.
        (tmp_path / "leap").write_text("3692217600 37 # 1 Jan 2017\n")
        monkeypatch.setenv("LIBMSEED_LEAPSECOND_FILE", str(tmp_path / "leap"))
    (segment,) = segments_of(over_midnight("2016-12-31", step=1, activity=activity))
    midnight = nanoseconds(moment("2017-01-01"))
    assert segment.samples(0, 3000).tolist() == list(range(3000))
    times = segment.times_at(np.arange(3000))
    assert times[999] == midnight - 10**7
    # 23:59:60.00 to .99 have the times of the second after them; then UTC goes on at 00:00:00.
    assert times[1000:1100].tolist() == times[1100:1200].tolist() == list(range(midnight, midnight + 10**9, 10**7))
    assert times[1500] == midnight + 4 * 10**9
    assert segment.index_from(midnight) == 1100
    assert np.diff(times[1100:]).tolist() == [10**7] * 1899


def test_a_leap_second_in_the_extra_headers_of_miniseed_3_is_used_where_no_record_follows():
    extra = b'{"FDSN":{"Time":{"LeapSecond":1}}}'
    record = record3(np.arange(1500), moment("2025-12-31T23:59:50"), rate=100.0, extra=extra)
    (segment,) = segments_of(record)
    assert segment.time_at(1499) == nanoseconds(moment("2026-01-01T00:00:03.99"))
    (plain,) = segments_of(record3(np.arange(1500), moment("2025-12-31T23:59:50"), rate=100.0))
    assert plain.time_at(1499) == nanoseconds(moment("2026-01-01T00:00:04.99"))


def test_a_digitiser_that_makes_no_leap_second_is_believed():
    (segment,) = segments_of(over_midnight("2016-12-31", step=0))
    assert segment.time_at(2999) == nanoseconds(moment("2017-01-01T00:00:19.99"))


def test_a_step_back_at_another_midnight_is_no_leap_second():
    content = over_midnight("2017-12-31", step=1)
    result = assemble(decode(content).runs, rate_hz=100.0)
    assert result.conflicting_samples == 200
    assert [segment.num_samples for segment in result.segments] == [1400, 1400]


def test_a_record_that_begins_in_a_leap_second_continues():
    begin = moment("2016-12-31T23:59:50")
    content = (
        record2(np.arange(1050), begin)
        + record2(np.arange(1050, 1500), begin.replace(second=59, microsecond=500_000), second=60)
        + record2(np.arange(1500, 2000), moment("2017-01-01T00:00:04"))
    )
    (segment,) = segments_of(content)
    midnight = nanoseconds(moment("2017-01-01"))
    times = segment.times_at(np.array([999, 1050, 1099, 1100, 1500, 1999]))
    steps = (-0.01, 0.5, 0.99, 0.0, 4.0, 8.99)
    assert times.tolist() == [midnight + round(step * 1e9) for step in steps]


def test_the_leap_seconds_are_those_between_tai_and_utc():
    """37 s since 2017, of which 10 s were there in 1972 (IERS, Bulletin C)."""
    assert len(LEAP_SECOND_DAYS) == 37 - 10
    dates = np.array(sorted(LEAP_SECOND_DAYS), "datetime64[D]").astype(str)
    assert all(date.endswith(("-01-01", "-07-01")) for date in dates)


def stretch(dtypes, length=100):
    """Return records of these types that follow each other."""
    return b"".join(
        record2(np.arange(number * length, (number + 1) * length), moment(NOON, number * length / 100), dtype=dtype)
        for number, dtype in enumerate(dtypes)
    )


@pytest.mark.parametrize("dtypes", [["i4"] * 5 + ["f4"] * 5, ["i4", "f4", "i4"] * 4, ["i2", "f8", "i4", "f4", "f8"]])
def test_records_of_any_mix_of_types_are_one_stretch(dtypes):
    content = stretch(dtypes)
    found = decode(content)
    count = 100 * len(dtypes)
    assert not found.num_problems
    assert found.counts[Channel("XX", "A", "", "HHZ")].returned == count
    (segment,) = segments_of(content)
    np.testing.assert_array_equal(segment.samples(0, count), np.arange(count))
    (trace,) = obspy.Stream(
        [
            trace
            for one in (content[at:end] for at, end in pairwise(boundaries(content)))
            for trace in obspy.read(io.BytesIO(one))
        ]
    ).select(channel="HHZ")[:1]
    assert segment.start_ns == trace.stats.starttime.ns


def boundaries(content):
    return [*read_headers(np.frombuffer(content, np.uint8)).fields[:, 0].tolist(), len(content)]


def test_text_between_samples_is_counted_and_costs_nothing_else():
    log = record2(b"clock locked", moment(NOON, 1.0), encoding=0)
    first = stretch(["i4"])
    found = decode(first + log + stretch(["i4", "f4"])[len(first) :])
    counts = found.counts[Channel("XX", "A", "", "HHZ")]
    assert (counts.stated, counts.returned, dict(counts.dropped)) == (212, 200, {Drop.TEXT: 12})
    assert counts.balances
    assert found.problems == [
        f"XX.A..HHZ: 1 record (12 samples, first at byte {len(first)}): the samples are text",
    ]


def test_every_sample_that_the_headers_state_is_returned_or_counted(tmp_path):
    good = stretch(["i4"] * 3)
    content = good + b"".join(
        [
            record2(np.arange(70), moment(NOON, 100.0), encoding=77),
            record2(np.arange(71), moment(NOON, 100.0), count=5000),
            record2(np.arange(72), moment(NOON, 100.0), rate_hz=1e18),
            record2(np.arange(73), moment("9999-12-31")),
            record2(np.arange(74), moment(NOON), codes=("XX", "A", "", "LOG")),
            record3(np.arange(75), moment(NOON), rate=100.0, source="XFDSN:what"),
        ]
    )
    found = decode(content, wanted=lambda codes: codes.channel != "LOG")
    total = {drop: count for counts in found.counts.values() for drop, count in counts.dropped.items()}
    assert total == {
        Drop.UNDECODABLE: 70,
        # A record of 512 bytes has 448 after its header: 112 of four bytes, of which it claims 5000.
        Drop.CLAIM: 112,
        Drop.RATE: 72,
        Drop.TIME: 73,
        Drop.CHANNEL: 74,
        Drop.CODES: 75,
    }
    assert sum(counts.returned for counts in found.counts.values()) == 300 == sum(len(run.data) for run in found.runs)
    assert all(counts.balances for counts in found.counts.values())
    part = decode(content, start_ns=nanoseconds(moment(NOON, 1.5)))
    assert part.counts[Channel("XX", "A", "", "HHZ")].dropped[Drop.OUTSIDE] == 150
    assert all(counts.balances for counts in part.counts.values())


def test_codes_are_those_of_the_header():
    codes = ("9C", "NODE1", "--", "S Z")
    (run,) = decode(record2(np.arange(50), moment(NOON), codes=codes)).runs
    assert run.channel == codes
    (trace,) = obspy.read(io.BytesIO(record2(np.arange(50), moment(NOON), codes=codes)))
    assert trace.stats.channel == run.channel.channel
    (run,) = decode(record3(np.arange(50), moment(NOON), rate=100.0, source="FDSN:XX_NODE0012_00_S__Z")).runs
    assert run.channel == ("XX", "NODE0012", "00", "S Z")


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_no_sample_leaves_the_account_of_overlaps_versions_and_conflicts(data):
    random = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    truth = random.integers(-1000, 1000, 4000)
    records = []
    for _ in range(data.draw(st.integers(1, 25))):
        first, length = int(random.integers(0, 3500)), int(random.integers(1, 400))
        values = truth[first : first + length].copy()
        if random.random() < 0.3:
            values[random.integers(0, length)] += 1
        kind = str(random.choice(["i4", "f4"]))
        record = record2(values, moment(NOON, first / 100), quality=str(random.choice(["D", "D", "M"])), dtype=kind)
        records.append(record)
    orders = [records, [records[i] for i in random.permutation(len(records))]]
    results = []
    for order in orders:
        # In one file, or each record in a file of its own.
        for files in ([b"".join(order)], order):
            runs = [run for content in files for run in decode(content).runs]
            result = assemble(runs, rate_hz=100.0)
            dropped = (
                result.duplicate_samples + result.conflicting_samples + result.superseded_samples + result.bad_samples
            )
            assert result.num_samples == dropped + sum(segment.num_samples for segment in result.segments)
            results.append(
                [
                    (segment.start_ns, segment.samples(0, segment.num_samples).astype(float).tolist())
                    for segment in result.segments
                ]
            )
    assert results[0] == results[1] == results[2] == results[3]
