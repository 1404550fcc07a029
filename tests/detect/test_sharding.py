"""The same rows whatever the cut: every sharding, other packings, and ObsPy's endless pass."""

import gzip
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import detection_archives
import numpy as np
import obspy
import pyarrow as pa
import pytest
from detection_archives import DAY, detect, make_noise, make_trace, read_events, write_sds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from obspy.core.inventory import Channel, Inventory, Network, Response, Station
from obspy.core.inventory.response import InstrumentSensitivity
from obspy.signal.filter import bandpass
from obspy.signal.trigger import recursive_sta_lta, trigger_onset

from pipelines.archive import reading
from pipelines.archive.layouts import DAY_NS
from pipelines.archive.manifest import Manifest
from pipelines.archive.records import Channel as Codes
from pipelines.archive.records import make_run
from pipelines.config.detection import WindowSettings
from pipelines.detect import stage_tasks
from pipelines.detect.intervals import interval_bounds, intervals, shard_bounds, shard_name
from pipelines.detect.response import Responses
from pipelines.detect.stage_plan import Plan, PlannedShard
from pipelines.detect.stage_tasks import tasks_of
from pipelines.workspace import tables
from pipelines.workspace.ledger import MarkerName, list_markers, read_marker
from pipelines.workspace.storage import open_store

FLAGS = {
    "detection": {"band_hz": [1, 8], "max_seconds": 20, "merge_seconds": 2, "trigger_components": "ZNE"},
    "window": {"rate_hz": 20, "lead_seconds": 3, "length_seconds": 12},
}


def assert_same_bits(mine, theirs):
    """Compare tables bit for bit: absent samples are NaN, which are equal to nothing."""
    assert mine["event_id"].to_pylist() == theirs["event_id"].to_pylist()
    assert tables.rows_hash(mine) == tables.rows_hash(theirs)


def with_flags(**sections):
    return {name: FLAGS.get(name, {}) | sections.get(name, {}) for name in FLAGS.keys() | sections.keys()}


@pytest.fixture(scope="module")
def by_day(three_days, tmp_path_factory):
    workspace = tmp_path_factory.mktemp("by-day")
    detect(three_days, workspace, with_flags(shards={"interval": "day"}))
    return read_events(workspace)


@pytest.mark.parametrize("interval", ["hour", "week", "month"])
def test_every_interval_gives_the_same_rows(three_days, by_day, tmp_path, interval):
    detect(three_days, tmp_path, with_flags(shards={"interval": interval}))
    assert by_day.num_rows > 150
    assert_same_bits(read_events(tmp_path), by_day)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(1, 3 * DAY - 1), min_size=1, max_size=6, unique=True))
def test_random_cuts_give_the_same_rows(three_days, by_day, tmp_path_factory, cuts):
    def cut(plan):
        first, last = plan.pending[0].start_ns, plan.pending[-1].end_ns
        start = obspy.UTCDateTime("2022-12-30").ns
        edges = [first, *sorted(start + seconds * 1_000_000_000 for seconds in cuts), last]
        every = tuple(range(len(plan.files)))
        shards = [
            PlannedShard(MarkerName("XX", "0101", f"cut{number}", "0"), "", "HH", begin, end, every)
            for number, (begin, end) in enumerate(pairwise(edges))
        ]
        return replace(plan, pending=shards)

    workspace = tmp_path_factory.mktemp("cuts")
    detect(three_days, workspace, with_flags(shards={"interval": "day"}), cut)
    assert_same_bits(read_events(workspace), by_day)


def test_the_same_samples_in_other_files_give_the_same_rows(tmp_path):
    traces = [make_trace(make_noise(2 * DAY, 20.0, 3, 80), "2021-03-01", 20.0, code) for code in ("BHE", "BHZ")]
    rows = []
    for name, options in {
        "day": {},
        "hour": {"file_seconds": 3600},
        "small": {"reclen": 512, "encoding": "STEIM1", "file_seconds": 3333},
    }.items():
        write_sds(tmp_path / name / "archive", traces, **options)
        detect(tmp_path / name / "archive", tmp_path / name / "workspace", with_flags())
        rows.append(read_events(tmp_path / name / "workspace"))
    assert rows[0].num_rows > 50
    assert_same_bits(rows[1], rows[0])
    assert_same_bits(rows[2], rows[0])


def test_files_with_all_channels_or_flat_give_the_same_rows(tmp_path):
    traces = [make_trace(make_noise(DAY, 20.0, 3, 40), "2021-03-01", 20.0, code) for code in ("BHE", "BHZ")]
    write_sds(tmp_path / "sds", traces)
    (tmp_path / "flat").mkdir()
    obspy.Stream(traces).write(str(tmp_path / "flat" / "all.mseed"), format="MSEED")
    (tmp_path / "flat" / "README.txt").write_text("not a seismogram")
    detect(tmp_path / "sds", tmp_path / "a", with_flags())
    detect(tmp_path / "flat", tmp_path / "b", with_flags())
    assert_same_bits(read_events(tmp_path / "a"), read_events(tmp_path / "b"))


def test_records_far_from_the_day_in_their_files_name_are_left_out_by_every_sharding(tmp_path):
    trace = make_trace(make_noise(DAY + 7200, 20.0, 3, 80), "2021-03-01", 20.0)
    folder = tmp_path / "archive/2021/XX/0101/HHZ.D"
    folder.mkdir(parents=True)
    trace.write(str(folder / "XX.0101..HHZ.D.2021.060"), format="MSEED", reclen=512)
    rows = []
    for interval in ("hour", "day", "month"):
        detect(tmp_path / "archive", tmp_path / interval, with_flags(shards={"interval": interval}))
        rows.append(read_events(tmp_path / interval))
        store = open_store(str(tmp_path / interval))
        markers = [read_marker(store, "detect", name) for name in list_markers(store, "detect")]
        reasons = [reason for marker in markers for entry in marker["quarantined"] for reason in entry["reasons"]]
        assert any("archive.spill_seconds" in reason for reason in reasons)
        seconds = sum(entry["seconds"] for marker in markers for entry in marker["coverage"])
        assert seconds == pytest.approx(DAY + 3600)
    assert_same_bits(rows[1], rows[0])
    assert_same_bits(rows[2], rows[0])


def test_a_trigger_at_midnight_is_found_once(three_days, by_day):
    onsets = by_day["onset"].cast("int64").to_numpy()
    for midnight in ("2022-12-31", "2023-01-01"):
        near = np.abs(onsets - obspy.UTCDateTime(midnight).ns) < 2_000_000_000
        assert near.sum() == 1


def test_gaps_do_not_trigger_and_windows_across_them_say_so(three_days, by_day):
    gap = obspy.UTCDateTime("2022-12-30T07:10:00").ns
    onsets = by_day["onset"].cast("int64").to_numpy()
    assert not ((onsets >= gap) & (onsets < gap + 22_000_000_000)).any()
    waves = tables.waveforms(by_day["waveform"])
    expected = np.isnan(waves).mean(axis=(1, 2))
    np.testing.assert_allclose(by_day["missing_fraction"].to_numpy(), expected, atol=1e-6)


def endless_pass(trace: obspy.Trace, band, sta, lta, max_seconds):
    """Return the onsets (ns) of ObsPy on one continuous trace, split at its gaps."""
    onsets = []
    for part in obspy.Stream([trace]).split() if np.ma.isMaskedArray(trace.data) else [trace]:
        rate = part.stats.sampling_rate
        if len(part) <= round(lta * rate):
            continue
        x = bandpass(part.data.astype(np.float64) - float(part.data[0]), *band, rate, 4)
        ratio = recursive_sta_lta(x, round(sta * rate), round(lta * rate))
        found = np.asarray(trigger_onset(ratio, 3.5, 1.5, max_len=round(max_seconds * rate))).reshape(-1, 2)
        onsets += [part.stats.starttime.ns + round(i / rate * 1e9) for i in found[:, 0]]
    return np.array(onsets)


def share_within_one_sample(mine, theirs, rate):
    def covered(a, b):
        return np.mean([np.min(np.abs(b - value)) <= 1.0001e9 / rate for value in a])

    return min(covered(theirs, mine), covered(mine, theirs))


def test_obspys_endless_pass_agrees_on_synthetic_days_with_gaps_and_overlaps(three_days, tmp_path, record_property):
    flags = with_flags(detection={"merge_seconds": 0, "trigger_components": "Z"})
    detect(three_days, tmp_path, flags)
    stream = obspy.Stream()
    for path in sorted(Path(three_days).rglob("*HHZ.D.*")):
        stream += obspy.read(path)
    stream.merge()
    theirs = endless_pass(stream[0], (1, 8), 0.5, 10, 20)
    mine = read_events(tmp_path)["onset"].cast("int64").to_numpy()
    agreeing = share_within_one_sample(mine, theirs, 20.0)
    record_property("figure", f"onsets within one sample of ObsPy's, synthetic: {agreeing:.2%} of {len(theirs)}")
    assert len(theirs) > 100
    assert agreeing >= 0.999


@pytest.mark.parametrize(
    ("name", "band"),
    [
        ("CIHEC__BHN___2022002.ms", (1, 15)),
        ("GR.FUR..BHN.D.2015.361", (1, 8)),
        ("IV.BDI_realgaps_example.mseed", (1, 8)),
    ],
)
def test_obspys_endless_pass_agrees_on_the_day_files(shared_data, tmp_path, name, band, record_property):
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / name).symlink_to(shared_data / "dayfiles" / name)
    detection = {"band_hz": list(band), "trigger_components": "N", "merge_seconds": 0}
    links = {"layout": "flat", "follow_links": True}
    detect(tmp_path / "archive", tmp_path / "workspace", with_flags(detection=detection, archive=links))
    stream = obspy.read(shared_data / "dayfiles" / name).select(component="N")
    rate = stream[0].stats.sampling_rate
    stream.merge()
    theirs = endless_pass(stream[0], band, 0.5, 10, 20)
    mine = read_events(tmp_path / "workspace")["onset"].cast("int64").to_numpy()
    agreeing = share_within_one_sample(mine, theirs, rate)
    record_property("figure", f"onsets within one sample of ObsPy's, {name}: {agreeing:.2%} of {len(theirs)}")
    assert len(theirs) > 20
    assert agreeing >= 0.999


@pytest.mark.parametrize("interval", ["hour", "day", "week", "month"])
def test_a_shards_name_says_its_interval(interval):
    time_ns = obspy.UTCDateTime("2024-12-30T13:14:15").ns
    start, end = interval_bounds(interval, time_ns)
    assert start <= time_ns < end
    assert shard_bounds(shard_name("", "HH", interval, start)) == (start, end)
    assert next(intervals(interval, start, end + 1)) == (start, end)
    assert obspy.UTCDateTime(ns=interval_bounds("week", time_ns)[0]).weekday == 0


def plan_of(days_by_station):
    """Return a plan of day shards, none of them done, of so many days for each station."""
    shards = [
        PlannedShard(
            MarkerName("XX", f"S{station:02d}", f"day{day}", "f"), "", "HH", day * DAY_NS, (day + 1) * DAY_NS, ()
        )
        for station, days in enumerate(days_by_station)
        for day in range(days)
    ]
    files = pa.table({name: [] for name in ("key", "size", "etag")})
    spans, homes = np.zeros((0, 2), np.int64), np.zeros(0, np.int64)
    return Plan(Manifest("sds", files), "day", files, spans, homes, homes.astype(bool), shards, len(shards), stale=[])


def test_tasks_end_with_a_station_where_they_can():
    plan = plan_of([30, 31, 62, 29, 33, 70, 20, 25])
    tasks = [[len(batch.shards) for batch in task] for task in tasks_of(plan, 2)]
    assert tasks[:3] == [[30, 31], [62], [29, 33]]
    assert sum(map(sum, tasks)) == 300
    # Eight stations; the one of 70 days is cut, and one or two at the end, where tasks become small.
    assert sum(map(len, tasks)) <= 8 + 3


@pytest.mark.parametrize(
    ("stations", "days", "workers"),
    [
        *[(1, 1, 2), (3, 3, 2), (10, 30, 2), (1, 400, 2), (20, 365, 64), (2, 40, 1), (1000, 1, 2), (2000, 3, 64)],
        *[(1, 365, 8), (10, 30, 8), (100, 30, 64)],
    ],
)
def test_tasks_hold_every_shard_once_and_become_smaller_towards_the_end(stations, days, workers):
    plan = plan_of([days] * stations)
    shards = plan.pending
    tasks = list(tasks_of(plan, workers))
    assert [shard.name for task in tasks for batch in task for shard in batch.shards] == [item.name for item in shards]
    for batch in (batch for task in tasks for batch in task):
        assert len({shard.name.station for shard in batch.shards}) == 1
        assert all(before.end_ns == after.start_ns for before, after in pairwise(batch.shards))
    for task in tasks:
        # A station that is cut between two batches is read there twice.
        assert len({batch.shards[0].name.station for batch in task}) == len(task)
    cut_stations = sum(map(len, tasks)) - stations
    assert cut_stations <= max(len(tasks) - 1, 0)
    sizes = [sum(len(batch.shards) for batch in task) for task in tasks]
    assert max(sizes) <= 64
    # Workers wait between tasks: few of them, but four a worker where there is enough to do, however short the groups.
    enough = min(15, len(shards) / (4 * workers))
    assert min(sizes[:-1], default=15) >= int(enough)
    assert len(tasks) >= min(len(shards), 2 * workers)
    if len(shards) >= 40 * workers:
        # What one worker may have left to do when the others have ended is a small part of each one's share.
        assert max(sizes[-workers:]) <= max(15, 0.1 * len(shards) / workers)


def test_two_channel_groups_in_one_shard_give_the_rows_of_two_archives_of_one_each(tmp_path):
    bands = {"HHZ": 40.0, "BHZ": 20.0}
    traces = [
        make_trace(make_noise(DAY, rate, seed, 80), "2021-03-01", rate, channel)
        for seed, (channel, rate) in enumerate(bands.items())
    ]
    for trace in traces:
        write_sds(tmp_path / "apart", [trace])
    (tmp_path / "together").mkdir()
    obspy.Stream(traces).write(tmp_path / "together/all.mseed", format="MSEED", encoding="STEIM2", reclen=4096)
    apart, together = (with_flags(archive={"layout": layout}, shards={"interval": "day"}) for layout in ("sds", "flat"))
    detect(tmp_path / "apart", tmp_path / "one-each", apart)
    detect(tmp_path / "together", tmp_path / "both", together)
    both = read_events(tmp_path / "both")
    assert set(both["source_sampling_rate"].to_pylist()) == {20.0, 40.0}
    # In each file rows are in order of onset, so those of the two groups alternate.
    assert both.sort_by("onset")["source_sampling_rate"].to_pylist() != sorted(both["source_sampling_rate"].to_pylist())
    assert_same_bits(both, read_events(tmp_path / "one-each"))


@pytest.mark.parametrize("interval", ["hour", "day", "month"])
def test_a_change_of_sensitivity_within_a_day_is_that_of_each_onset_whatever_the_cut(tmp_path, interval):
    noon = obspy.UTCDateTime("2021-03-01T12:00:00")
    write_sds(tmp_path / "archive", [make_trace(make_noise(DAY, 20.0, 3, 120), "2021-03-01", 20.0, "HHZ")])
    flags = with_flags(shards={"interval": interval})
    detect(tmp_path / "archive", tmp_path / "counts", flags)
    detect(
        tmp_path / "archive",
        tmp_path / "velocity",
        flags,
        responses=Responses.of(two_epochs(noon, 4.0, 8.0), WindowSettings()),
    )
    counts, velocity = read_events(tmp_path / "counts"), read_events(tmp_path / "velocity")
    assert counts["event_id"].to_pylist() == velocity["event_id"].to_pylist()
    late = counts["onset"].cast("int64").to_numpy() >= noon.ns
    assert 20 < late.sum() < len(late) - 20
    ratio = counts["peak_amplitude"].to_numpy() / velocity["peak_amplitude"].to_numpy()
    np.testing.assert_allclose(ratio, np.where(late, 8.0, 4.0), rtol=1e-5)


def two_epochs(change, before, after):
    """Return an inventory of XX.0101..HHZ whose sensitivity changes at a time."""
    place = {"latitude": 0.0, "longitude": 0.0, "elevation": 0.0}
    channels = [
        Channel(
            "HHZ",
            "",
            depth=0.0,
            start_date=start,
            end_date=end,
            response=Response(instrument_sensitivity=InstrumentSensitivity(value, 1.0, "M/S", "COUNTS")),
            **place,
        )
        for start, end, value in ((None, change, before), (change, None, after))
    ]
    return Inventory([Network("XX", [Station("0101", **place, channels=channels)])], source="test")


def write_awkward_days(root, layout):
    """Write five days whose channels change, with a gap, an overlap, strays, damage, and a large and a gzipped file."""
    rate = 20.0
    for day in range(1, 6):
        noise = make_noise(DAY, rate, day, 60)
        write_sds(root / "sds", [make_trace(noise, f"2021-03-0{day}", rate, "HHZ")])
    other = make_noise(3 * 3600, rate, 7, 20)
    # The same component under two codes, one in the morning, one in the afternoon; and another channel group.
    write_sds(root / "sds", [make_trace(other, "2021-03-04", rate, "HH1")])
    write_sds(root / "sds", [make_trace(other, "2021-03-04T15:00:00", rate, "HHE")])
    write_sds(root / "sds", [make_trace(other, "2021-03-02", 2 * rate, "BHZ")])
    _, second, third, fourth, fifth = sorted((root / "sds").rglob("*HHZ.D.*"))
    stream = obspy.read(fifth)
    data = stream[0].data.copy()
    begin = stream[0].stats.starttime
    stream = obspy.Stream([stream.slice(begin, begin + 12600)[0], stream.slice(begin + 36000, begin + 72000)[0]])
    stream += make_trace(data[70200 * 20 : 72000 * 20].copy(), str(begin + 70200), rate, "HHZ")
    stream.write(fifth, format="MSEED", reclen=4096, encoding="STEIM2")
    stray = make_trace(make_noise(2000, rate, 9, 3), "2021-02-26T03:00:00", rate, "HHZ")
    with third.open("ab") as file:
        stray.write(file, format="MSEED", reclen=4096, encoding="STEIM2")
    # The second ends early, and in rubbish.
    second.write_bytes(second.read_bytes()[: 4096 * 40] + b"\xff" * 4096)
    fourth.write_bytes(gzip.compress(fourth.read_bytes()))
    if layout == "flat":
        (root / "flat").mkdir()
        content = b"".join(path.read_bytes() for path in sorted((root / "sds").rglob("*.D.*")) if path != fourth)
        (root / "flat/all.mseed").write_bytes(content)
        (root / "flat/fourth.mseed.gz").write_bytes(fourth.read_bytes())
    return root / layout


@pytest.mark.parametrize("piece_bytes", [2**25, 200_000])
@pytest.mark.parametrize(
    ("layout", "interval"), [("sds", "hour"), ("sds", "day"), ("flat", "day"), ("flat", "hour"), ("sds", "week")]
)
def test_rows_and_markers_are_the_same_in_one_task_and_in_many(tmp_path, monkeypatch, layout, interval, piece_bytes):
    monkeypatch.setattr(reading, "PIECE_BYTES", piece_bytes)
    archive = write_awkward_days(tmp_path, layout)
    flags = with_flags(shards={"interval": interval}, archive={"layout": layout})
    found = {}
    for way in ("one task", "many"):
        with monkeypatch.context() as patch:
            if way == "one task":
                patch.setattr(detection_archives, "tasks_of", lambda plan, _: one_batch_a_group(plan))
            else:
                # Every second shard, then the others: none follows another of its run.
                detect(archive, tmp_path / way, flags, lambda plan: replace(plan, pending=plan.pending[::2]))
            detect(archive, tmp_path / way, flags)
        store = open_store(str(tmp_path / way))
        markers = {
            name.shard: {key: value for key, value in read_marker(store, "detect", name).items() if key != "seconds"}
            for name in list_markers(store, "detect")
        }
        found[way] = read_events(tmp_path / way), markers
    (rows, together), (others, alone) = found["one task"], found["many"]
    assert rows.num_rows > 150
    assert_same_bits(rows, others)
    assert alone == together
    assert len(together) >= {"hour": 96, "day": 5, "week": 2}[interval]
    reasons = [reason for marker in together.values() for item in marker["quarantined"] for reason in item["reasons"]]
    # A flat file's times are read from its headers: nothing in it is astray.
    assert {reason.split()[0] for reason in reasons} == ({"40000", "bytes"} if layout == "sds" else {"bytes"})


def test_an_event_goes_on_in_a_segment_that_begins_after_its_shard(tmp_path):
    rate, hour = 20.0, 3600
    rng = np.random.default_rng(5)
    vertical, north = (rng.normal(0, 50, round(2 * hour * rate)) for _ in range(2))
    # On the vertical before and over the full hour; on the north in a segment that begins after it.
    first, again = round((hour - 2) * rate), round((hour + 9) * rate)
    vertical[first : first + 400] += rng.normal(0, 600, 400) * np.exp(np.linspace(0, 9, 400))
    north[again : again + 400] += rng.normal(0, 20_000, 400)
    begin = round((hour + 2) * rate)
    traces = [make_trace(vertical.astype(np.int32), "2021-03-01", rate, "HHZ")]
    start = str(obspy.UTCDateTime("2021-03-01") + begin / rate)
    traces.append(make_trace(north[begin:].astype(np.int32), start, rate, "HHN"))
    write_sds(tmp_path / "archive", traces)
    flags = with_flags(detection=FLAGS["detection"] | {"sta_seconds": 0.5, "lta_seconds": 5.0})
    detect(tmp_path / "archive", tmp_path / "day", flags | {"shards": {"interval": "day"}})
    hours = flags | {"shards": {"interval": "hour"}}
    detect(tmp_path / "archive", tmp_path / "hour", hours, lambda plan: replace(plan, pending=plan.pending[::2]))
    detect(tmp_path / "archive", tmp_path / "hour", hours)
    mine, theirs = read_events(tmp_path / "hour"), read_events(tmp_path / "day")
    onsets, ends = theirs["onset"].cast("int64").to_numpy() / 1e9 % DAY, theirs["duration_s"].to_numpy()
    assert ((onsets < hour) & (onsets + ends > hour + 9)).any()
    assert_same_bits(mine, theirs)


def one_batch_a_group(plan):
    return [(stage_tasks._batch(stretch, plan),) for stretch in stage_tasks._stretches(plan.pending)]


def test_clipping_twice_gives_the_times_of_clipping_once():
    rng = np.random.default_rng(2)
    for rate in (64.1026, 99.9998, 100.0, 33.333333):
        run = make_run(Codes("XX", "A", "", "HHZ"), rate, 1, 45_938_271, np.arange(10**6))
        for _ in range(50):
            first, second = np.sort(rng.integers(0, int(5e5 / rate * 1e9), 2)).tolist()
            once, twice = run.clip(second, 10**18), run.clip(first, 10**18).clip(second, 10**18)
            assert (once.start_ns, once.end_ns, len(once.data)) == (twice.start_ns, twice.end_ns, len(twice.data))
            assert once.end_ns == run.end_ns
