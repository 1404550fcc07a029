"""Every sample, file and channel-day ends in one outcome; expected counts come from how the archives are made."""

import io
import json
import time
from collections import Counter
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import obspy
import pyarrow as pa
import pytest
from detection_archives import DAY, detect, make_noise, make_trace, read_markers, write_sds
from made_records import moment, record3
from obspy.signal.trigger import classic_sta_lta

from jobs.status import main as status_job
from jobs.status import totals
from pipelines.archive import manifest as manifest_module
from pipelines.archive.codes import Naming
from pipelines.archive.manifest import build_manifest, write_manifest
from pipelines.archive.records import Channel, Decoded
from pipelines.archive.sample_counts import SampleCounts
from pipelines.config import resolve
from pipelines.detect import stage_day
from pipelines.detect.account import Totals, Unbalanced, account_of_file
from pipelines.detect.response import Responses
from pipelines.detect.stage_plan import make_plan
from pipelines.detect.stage_shard import BatchDetector, detect_batch
from pipelines.detect.stage_status import read_status
from pipelines.detect.stage_tasks import tasks_of
from pipelines.workspace import tables
from pipelines.workspace.ledger import list_markers, read_marker
from pipelines.workspace.storage import open_store
from pipelines.workspace.workspace import Workspace, open_workspace

FLAGS = {
    "detection": {"band_hz": [1, 8], "sta_seconds": 0.5, "lta_seconds": 10, "max_seconds": 20},
    "window": {"rate_hz": 20, "lead_seconds": 3, "length_seconds": 12},
}
RATE, NUM_LTA = 20, 200


def totals_of(workspace: Path) -> Totals:
    store = open_store(str(workspace))
    totals = Totals()
    for name in list_markers(store, "detect"):
        totals.add(read_marker(store, "detect", name))
    return totals


def availability(workspace: Path) -> pa.Table:
    store = open_store(str(workspace))
    return pa.concat_tables([tables.read_table(store, item.path) for item in tables.list_shards(store, "availability")])


def count_written(archive: Path) -> tuple[int, int]:
    """Return how many samples the headers of an archive state, and at how many times, as ObsPy reads them."""
    times: dict[str, list[np.ndarray]] = {}
    for path in archive.rglob("*"):
        for trace in obspy.read(str(path), headonly=True) if path.is_file() else ():
            first = round(trace.stats.starttime.timestamp * RATE)
            times.setdefault(trace.id, []).append(np.arange(first, first + trace.stats.npts))
    joined = [np.concatenate(parts) for parts in times.values()]
    return sum(map(len, joined)), sum(len(np.unique(indexes)) for indexes in joined)


@pytest.mark.parametrize("interval", ["day", "month"])
def test_samples_in_are_samples_used_and_dropped_by_reason(three_days, tmp_path, interval):
    detect(three_days, tmp_path, FLAGS | {"shards": {"interval": interval}})
    totals = totals_of(tmp_path)
    # Of each component twenty minutes were written twice, and thirty seconds with two values; a gap and those thirty
    # seconds leave three segments.
    written, distinct = count_written(three_days)
    differing, blanked = 3 * 2 * (30 * RATE + 1), 3 * 3 * NUM_LTA
    twice = written - distinct - differing // 2
    assert twice >= 3 * (1200 * RATE + 1)
    used = written - twice - differing - blanked
    assert totals.samples == {"used": used, "duplicate": twice, "conflicting": differing, "blanked": blanked}
    assert totals.files == {"used": len([path for path in three_days.rglob("*") if path.is_file()])}
    table = availability(tmp_path)
    assert sum(table["used_seconds"].to_pylist()) == pytest.approx(used / RATE, abs=1e-3)
    # Without overlaps the outcomes of a channel's day are the whole day.
    (row,) = (
        row
        for row in table.to_pylist()
        if row["channel"] == "HHZ" and str(row["day"]) == "2022-12-30" and row["rate_hz"]
    )
    assert row["used_seconds"] + row["blanked_seconds"] + row["no_data_seconds"] == pytest.approx(DAY, abs=1e-6)
    # The gap of 12.5 s, and the two samples by which the component starts late.
    assert row["no_data_seconds"] == pytest.approx(12.5 - 1 / RATE + 2 / RATE, abs=1.5 / RATE)


def write_mixture(root: Path) -> None:
    """Write an hour each of a component, a slow channel, a channel without direction, another component's channel."""
    hour = 3600
    for channel, rate in (("HHZ", 20), ("HHA", 20), ("HH3", 20), ("LHZ", 1)):
        write_sds(root, [make_trace(make_noise(hour, rate, 1, 4), "2022-01-01T03:00:00", rate, channel)])
    folder = root / "2022/XX/0102/HHZ.D"
    folder.mkdir(parents=True)
    (folder / "XX.0102..HHZ.D.2022.001").write_text("no seismogram at all")


def test_what_cannot_be_used_is_counted_with_its_reason(tmp_path):
    write_mixture(tmp_path / "archive")
    detect(tmp_path / "archive", tmp_path / "workspace", FLAGS | {"archive": {"layout": "sds"}})
    totals = totals_of(tmp_path / "workspace")
    assert totals.samples == {
        "used": 3600 * 20 - NUM_LTA,
        "blanked": NUM_LTA,
        "no_component": 3600 * 20,
        "other_component": 3600 * 20,
        "rate": 3600,
    }
    assert totals.files == {"used": 4, "unreadable": 1}
    rows = {(row["station"], row["channel"]): row for row in availability(tmp_path / "workspace").to_pylist()}
    assert rows["0101", "HHA"]["no_component_seconds"] == 3600
    assert rows["0101", "LHZ"]["rate_seconds"] == 3600
    assert rows["0101", "LHZ"]["no_data_seconds"] == DAY - 3600
    assert rows["0102", "HHZ"]["unreadable_seconds"] == DAY
    assert rows["0102", "HHZ"]["rate_hz"] is None
    sentence = totals.sentence()
    total = 3 * 3600 * 20 + 3600
    assert sentence.startswith(
        f"{100 * (3600 * 20 - NUM_LTA) / total:.2f} % of {total:,} samples were used; not used: "
    )
    assert sentence.count(";") == 4
    assert sentence.endswith("; 1.00 channel-days are in files that cannot be read")


def test_records_without_a_channel_group_of_their_own_are_counted_once(tmp_path):
    """In a flat folder the channel groups come from what can be read; what cannot is in the totals all the same."""
    archive = tmp_path / "archive"
    archive.mkdir()
    log = make_trace(np.frombuffer(b"all is well " * 25, "S1"), "2022-01-01T03:00:00", 1.0, "LOG")
    good = [make_trace(make_noise(600, RATE, 1, 2), "2022-01-01T03:00:00", RATE, channel) for channel in ("HHZ", "BHZ")]
    content = io.BytesIO()
    for trace in good:
        trace.write(content, format="MSEED", encoding="STEIM2", reclen=512)
    log.write(content, format="MSEED", encoding="ASCII", reclen=512)
    (archive / "mixed").write_bytes(content.getvalue())
    log.stats.station = "TEXT"
    log.write(str(archive / "text"), format="MSEED", encoding="ASCII", reclen=512)
    flags = FLAGS | {"archive": {"layout": "flat"}}
    detect(archive, tmp_path / "workspace", flags)
    store = open_store(str(tmp_path / "workspace"))
    write_manifest(store, build_manifest(open_store(str(archive)), resolve(flags).archive))
    found = read_status(store)
    assert found.totals.samples == {"used": 2 * (600 * RATE - NUM_LTA), "blanked": 2 * NUM_LTA, "text": 2 * 300}
    assert found.totals.files == {"used in part": 1}
    assert found.unusable == 1


def test_status_names_every_file_and_channel_whose_headers_say_other_codes_than_its_path(tmp_path):
    traces = [
        make_trace(make_noise(600, RATE, 1, 2), "2022-01-01T03:00:00", RATE, channel, "YY")
        for channel in ("HHN", "HHZ")
    ]
    (tmp_path / "archive").mkdir()
    obspy.Stream(traces).write(str(tmp_path / "archive/XX.0101.2022.001"), format="MSEED")
    archive = {"layout": "{network}.{station}.{year}.{julday}"}
    detect(tmp_path / "archive", tmp_path / "workspace", FLAGS | {"archive": archive})
    told = totals(read_status(open_store(str(tmp_path / "workspace"))))
    assert told["renamed"] == {"XX.0101.2022.001": {f"YY.0101..{code}": f"XX.0101..{code}" for code in ("HHN", "HHZ")}}


def test_a_file_of_too_many_channel_groups_is_refused_by_name(tmp_path, monkeypatch):
    """Each of them reads the whole file: a small file of thousands would take hours."""
    monkeypatch.setattr(manifest_module, "MAX_GROUPS_PER_FILE", 3)
    for name, number in (("three", 3), ("four", 4)):
        traces = [
            make_trace(make_noise(60, RATE, 1, 1), "2022-01-01", RATE, station=f"{name[:2].upper()}{index}")
            for index in range(number)
        ]
        obspy.Stream(traces).write(str(tmp_path / name), format="MSEED")
    manifest = build_manifest(open_store(str(tmp_path)), resolve({"archive": {"layout": "flat"}}).archive)
    assert manifest.unusable() == [("four", "it holds 4 channel groups; at most 3 are read of one file")]
    assert manifest.dropped == {"unreadable": 4 * 60 * RATE}
    assert set(manifest.usable()["station"].to_pylist()) == {"TH0", "TH1", "TH2"}


@pytest.mark.parametrize("year", [1800, 1823, 2117, 2199])
def test_recordings_of_any_year_that_is_believed_are_used(tmp_path, year):
    content = io.BytesIO()
    trace = make_trace(make_noise(600, RATE, 1, 2), "2022-01-02T03:00:00", RATE)
    trace.write(content, format="MSEED", encoding="STEIM2", reclen=512)
    records = bytearray(content.getvalue())
    for first in range(0, len(records), 512):
        records[first + 20 : first + 22] = year.to_bytes(2, "big")
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive/file").write_bytes(records)
    selection = {"layout": "flat", "start": "0001-01-02T00:00:00Z", "end": "9999-12-30T00:00:00Z"}
    detect(tmp_path / "archive", tmp_path / "workspace", FLAGS | {"archive": selection})
    assert totals_of(tmp_path / "workspace").samples == {"used": 600 * RATE - NUM_LTA, "blanked": NUM_LTA}


def test_what_the_classic_average_blanks_is_what_obspy_leaves_zero(tmp_path):
    data = make_noise(600, RATE, 1, 2)
    write_sds(tmp_path / "archive", [make_trace(data, "2022-01-02T03:00:00", RATE)])
    classic = FLAGS | {"detection": FLAGS["detection"] | {"method": "classic"}}
    detect(tmp_path / "archive", tmp_path / "workspace", classic)
    num_sta = round(FLAGS["detection"]["sta_seconds"] * RATE)
    ratio = classic_sta_lta(data.astype(np.float64), num_sta, NUM_LTA)
    num_zero = int(np.flatnonzero(ratio)[0])
    assert num_zero == NUM_LTA - 1
    assert totals_of(tmp_path / "workspace").samples == {"used": len(data) - num_zero, "blanked": num_zero}
    (row,) = (row for row in availability(tmp_path / "workspace").to_pylist() if row["rate_hz"])
    assert row["blanked_seconds"] == pytest.approx(num_zero / RATE)


def test_a_header_that_claims_more_than_its_record_holds_does_not_weigh_in_the_share(tmp_path):
    trace = make_trace(make_noise(600, RATE, 1, 2), "2022-01-02T03:00:00", RATE)
    archive = tmp_path / "archive"
    archive.mkdir()
    trace.write(str(archive / "file"), format="MSEED", reclen=512)
    claim = record3(np.arange(10), moment("2022-01-02", 12.0), rate=RATE, count=4 * 10**9, source="FDSN:XX_0101__H_H_Z")
    with (archive / "file").open("ab") as file:
        file.write(claim)
    detect(archive, tmp_path / "workspace", FLAGS | {"archive": {"layout": "flat"}})
    found = totals_of(tmp_path / "workspace")
    assert found.samples == {"used": 600 * RATE - NUM_LTA, "blanked": NUM_LTA, "undecodable": 10}
    assert found.files == {"used in part": 1}
    (marker,) = read_markers(tmp_path / "workspace")
    (reasons,) = (item["reasons"] for item in marker["quarantined"])
    assert "claims more samples than the record can hold, 4000000000" in reasons[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gaps": None}, "gaps: input should be a valid integer"),
        ({"counts": {}}, "counts has no number of events"),
        ({"counts": {"events": -1}}, "counts.events: input should be greater than or equal to 0"),
        ({"coverage": "all"}, "coverage: input should be a valid list"),
        ({"coverage": [{"day": "2022-01-02"}]}, "coverage.0.channel: field required"),
        ({"quarantined": [{"key": "a", "reasons": []}]}, "quarantined.0.reasons"),
        ({"renamed": [{"key": "a"}]}, "renamed.0.headers: field required"),
        ({"events_by_day": [1]}, "events_by_day: input should be a valid dictionary"),
        ({"account": {"samples": {"used": 1e400}, "seconds": {}, "files": {}}}, "account.samples.used"),
        ({"account": {"samples": {"\x1b[2J": 5}, "seconds": {}, "files": {}}}, "account.samples.\\x1b[2J"),
    ],
)
def test_a_marker_of_a_stranger_is_refused_by_the_member_that_is_wrong(tmp_path, capsys, change, said):
    """Each is valid JSON; `firnline status` ended in a traceback, or gave the terminal what the marker said."""
    write_sds(tmp_path / "archive", [make_trace(make_noise(600, RATE, 1, 2), "2022-01-02T03:00:00", RATE)])
    workspace = open_workspace(str(tmp_path / "workspace"), create=True)
    workspace.update_state()
    detect(tmp_path / "archive", tmp_path / "workspace", FLAGS)
    assert status_job([workspace.url]) == 0
    path = min((tmp_path / "workspace/ledger/detect").rglob("*.day.*.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    capsys.readouterr()
    for words in ([], ["--json"]):
        assert status_job([workspace.url, *words]) == 2
        (sentence,) = capsys.readouterr().err.splitlines()
        assert f"{path} is damaged: " in sentence
        assert said in sentence
        assert "\x1b" not in sentence


def test_thousands_of_fragments_of_a_day_take_time_in_proportion(tmp_path):
    """20,000 records of one sample, out of order, with a gap after each; 80,000 take four times as long."""
    record = bytearray(512)
    content = io.BytesIO()
    make_trace(np.array([7], np.int32), "2022-01-01", RATE).write(content, format="MSEED", encoding="INT32", reclen=512)
    record[:] = content.getvalue()
    # The record's length is 2 to the power in byte 54; it holds one sample after 64 bytes.
    assert record[54] == 9
    record = record[:128]
    record[54] = 7
    made = []
    for place in np.random.default_rng(1).permutation(20_000).tolist():
        hour, rest = divmod(4 * place, 3600)
        record[24:27] = bytes([hour, *divmod(rest, 60)])
        made.append(bytes(record))
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive/file").write_bytes(b"".join(made))
    flags = FLAGS | {"archive": {"layout": "flat"}}
    detect(tmp_path / "archive", tmp_path / "first", flags)
    began = time.process_time()
    detect(tmp_path / "archive", tmp_path / "second", flags)
    assert time.process_time() - began < 4.0
    assert totals_of(tmp_path / "second").samples == {"blanked": 20_000}


@pytest.mark.parametrize("interval", ["day", "month"])
def test_records_of_another_year_in_a_file_are_used_once(tmp_path, interval):
    (tmp_path / "archive").mkdir()
    path = tmp_path / "archive" / "all.mseed"
    with path.open("ab") as file:
        # A day without records lies between the last two, so that a month reads it together with both.
        for number, start in enumerate(("1970-01-01T12:00:00", "2022-01-01T23:30:00", "2022-01-03T00:10:00")):
            trace = make_trace(make_noise(1200, 20, number, 2), start, 20)
            trace.write(file, format="MSEED", reclen=512)
    flags = FLAGS | {"archive": {"layout": "flat"}, "shards": {"interval": interval}}
    detect(tmp_path / "archive", tmp_path / "workspace", flags)
    totals = totals_of(tmp_path / "workspace")
    assert totals.samples == {"used": 3 * (1200 * 20 - NUM_LTA), "blanked": 3 * NUM_LTA}
    assert totals.files == {"used": 1}
    store = open_store(str(tmp_path / "workspace"))
    assert not any(read_marker(store, "detect", name)["quarantined"] for name in list_markers(store, "detect"))


def test_what_lies_outside_the_selection_is_not_selected(tmp_path):
    write_sds(tmp_path / "archive", [make_trace(make_noise(7200, 20, 1, 4), "2022-01-01T03:00:00", 20)])
    selected = {"archive": {"start": "2022-01-01T04:00:00", "end": "2022-01-01T12:00:00"}}
    detect(tmp_path / "archive", tmp_path / "workspace", FLAGS | selected)
    assert totals_of(tmp_path / "workspace").samples == {"used": 3600 * 20 - NUM_LTA, "blanked": NUM_LTA}
    (row,) = availability(tmp_path / "workspace").to_pylist()
    assert row["not_selected_seconds"] == DAY - 8 * 3600
    assert row["no_data_seconds"] == 7 * 3600


def test_availability_is_the_same_bytes_in_one_task_and_in_many(three_days, tmp_path):
    hours = FLAGS | {"shards": {"interval": "day"}}
    detect(three_days, tmp_path / "one", hours)
    store = open_store(str(tmp_path / "one"))
    whole = {item.path: store.read(item.path) for item in store.walk("availability")}
    assert len(whole) >= 3
    config = resolve({section: dict(values) for section, values in hours.items()})
    archive, space = open_store(str(three_days)), Workspace(open_store(str(tmp_path / "many")))
    plan = make_plan(build_manifest(archive, config.archive), space, config, "")
    for batch in chain.from_iterable(tasks_of(plan, 64)):
        list(detect_batch(partial(BatchDetector, archive, space.store, config, Responses()), batch))
    assert {item.path: space.store.read(item.path) for item in space.store.walk("availability")} == whole


def test_the_guides_call_reads_availability(three_days, tmp_path, monkeypatch):
    guide = (Path(__file__).resolve().parents[2] / "docs" / "reading-the-tables.md").read_text(encoding="utf-8")
    block = guide.partition("## Availability")[2].partition("```python\n")[2].partition("```")[0]
    detect(three_days, tmp_path / "runs" / "demo", FLAGS | {"shards": {"interval": "month"}})
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    exec(block, found)
    assert set(found["availability"]["station"]) == {"0101"}
    assert found["share_used"].max() == pytest.approx((DAY - NUM_LTA / RATE) / DAY, abs=1e-3)
    assert found["lost"].index[0] == "duplicate_seconds"


def test_a_shard_whose_account_does_not_balance_fails_by_name(tmp_path, monkeypatch):
    write_sds(tmp_path / "archive", [make_trace(make_noise(3600, 20, 1, 4), "2022-01-01T03:00:00", 20)])
    whole = stage_day.assemble

    def lose(*args, **keys):
        continuity = whole(*args, **keys)
        continuity.segments.clear()
        return continuity

    monkeypatch.setattr(stage_day, "assemble", lose)
    with pytest.raises(
        AssertionError, match=r"the account of XX.0101..HHZ at 20 Hz does not balance: 72000 samples read"
    ):
        detect(tmp_path / "archive", tmp_path / "workspace", FLAGS)
    names = {name.shard for name in list_markers(open_store(str(tmp_path / "workspace")), "detect")}
    assert "--.HH.2022-01-01.day" not in names


def test_a_file_whose_samples_are_not_all_counted_does_not_balance():
    codes = Channel("XX", "0101", "", "HHZ")
    decoded = Decoded(counts={codes: SampleCounts(stated=100, returned=99)})
    with pytest.raises(Unbalanced, match="the account of a/file does not balance: 100 samples stated, 99 returned"):
        account_of_file(
            "a/file", decoded, Naming(used={codes: codes}), is_wanted=lambda _: True, is_selected=lambda _: True
        )


def test_a_share_is_not_rounded_to_all_or_nothing():
    assert Totals(samples=Counter(used=999_999, duplicate=1)).sentence() == (
        "more than 99.99 % of 1,000,000 samples were used; "
        "not used: less than 0.01 % recorded twice with the same values"
    )
    assert Totals(samples=Counter(used=5)).sentence() == "100.00 % of 5 samples were used"
    assert Totals().sentence() is None


def test_a_file_that_shrinks_or_goes_after_it_was_listed_is_named_and_ends_nothing(tmp_path):
    for day, seed in ((1, 1), (2, 2), (3, 3)):
        trace = make_trace(make_noise(DAY - 1, 20, seed, 50), f"2022-01-0{day}", 20)
        write_sds(tmp_path / "archive", [trace])
    files = sorted(path for path in (tmp_path / "archive").rglob("*") if path.is_file())
    config = resolve({section: dict(values) for section, values in FLAGS.items()})
    archive, space = open_store(str(tmp_path / "archive")), Workspace(open_store(str(tmp_path / "workspace")))
    plan = make_plan(build_manifest(archive, config.archive), space, config, "")
    size = files[0].stat().st_size
    with files[0].open("r+b") as file:
        file.truncate(size // 2)
    files[1].unlink()
    with files[2].open("ab") as file:
        file.write(np.zeros(100, np.uint8).tobytes())
    for batch in chain.from_iterable(tasks_of(plan, 1)):
        for _, content in detect_batch(partial(BatchDetector, archive, space.store, config, Responses()), batch):
            assert "error" not in content
    markers = {name.shard: read_marker(space.store, "detect", name) for name in list_markers(space.store, "detect")}
    reasons = [markers[f"--.HH.2022-01-0{day}.day"]["quarantined"] for day in (1, 2, 3)]
    said = {entry["key"].rpartition(".")[2]: entry["reasons"][0] for entry in chain.from_iterable(reasons)}
    assert said == {
        "001": f"it changed after it was listed with {size} bytes: it has {size // 2}; the rest is not read",
        "002": "it was removed after it was listed; the rest is not read",
    }
    assert totals_of(tmp_path / "workspace").files == {"unreadable": 2, "used": 1}
