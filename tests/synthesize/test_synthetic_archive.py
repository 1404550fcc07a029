"""The archive as others read it: SDS day files, truth, flaws, a folder or a bucket, the same for any way of writing."""

import json
from pathlib import Path

import numpy as np
import obspy
import pyarrow.compute as pc
import pytest
from loopback_servers import S3Server
from obspy.clients.filesystem.sds import Client

from pipelines.config import resolve
from pipelines.config.synthesize import SynthesizeSettings
from pipelines.runtime.errors import InputError
from pipelines.runtime.ray_session import RaySession
from pipelines.synthesize.plan import day_number, stations
from pipelines.synthesize.stage import (
    check_archive,
    manifest,
    read_truth,
    synthesize_archive,
    write_station_day,
)
from pipelines.synthesize.streams import VERSION
from pipelines.synthesize.windows import recording, to_counts
from pipelines.workspace.storage import Store, open_store

CLEAN = SynthesizeSettings(
    num_stations=1,
    num_days=2,
    rate_hz=40,
    events_per_station_day=40,
    gaps_per_station_day=0,
    overlaps_per_station_day=0,
    dead_component_share=0,
    missing_day_share=0,
)
DAY = day_number(CLEAN.start)


def write(store: Store, settings: SynthesizeSettings, station: str, day: int) -> None:
    row = write_station_day({"station": station, "day": day}, store, settings)
    assert row["error"] == ""


@pytest.fixture(scope="module")
def clean_archive(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = open_store(str(tmp_path_factory.mktemp("clean")))
    for day in (DAY + 1, DAY):
        write(store, CLEAN, "FL01", day)
    return store


def test_obspy_s_sds_client_reads_two_days_without_a_seam_at_midnight(clean_archive: Store) -> None:
    midnight = obspy.UTCDateTime(2020, 1, 2)
    stream = Client(clean_archive.url).get_waveforms("SY", "FL01", "00", "BH?", midnight - 60, midnight + 60)
    stream.merge(method=-1).sort(["channel"])
    assert [(trace.id, trace.stats.npts) for trace in stream] == [(f"SY.FL01.00.BH{c}", 4801) for c in "ENZ"]
    first = (DAY + 1) * 86_400 * 40 - 60 * 40
    expected = to_counts(recording(CLEAN, stations(CLEAN)[0], first, 4801))
    np.testing.assert_array_equal(np.stack([trace.data for trace in stream]), expected)


def test_day_files_are_steim2_in_4096_byte_records(clean_archive: Store) -> None:
    path = f"{clean_archive.url}/2020/SY/FL01/BHZ.D/SY.FL01.00.BHZ.D.2020.001"
    (trace,) = obspy.read(path, headonly=True)
    assert (trace.stats.mseed.encoding, trace.stats.mseed.record_length) == ("STEIM2", 4096)
    assert (trace.stats.npts, trace.stats.starttime) == (86_400 * 40, obspy.UTCDateTime(2020, 1, 1))


def test_a_station_day_has_the_same_bytes_written_alone_and_in_another_archive(
    clean_archive: Store, tmp_path: Path
) -> None:
    other = open_store(str(tmp_path))
    write(other, CLEAN.model_copy(update={"num_days": 1}), "FL01", DAY)
    for channel in ("BHE", "BHN", "BHZ"):
        path = f"2020/SY/FL01/{channel}.D/SY.FL01.00.{channel}.D.2020.001"
        assert other.read(path) == clean_archive.read(path)


def test_another_seed_gives_another_archive() -> None:
    first, second = (
        recording(CLEAN.model_copy(update={"seed": seed}), stations(CLEAN)[0], DAY * 86_400 * 40, 400)
        for seed in (0, 1)
    )
    assert np.abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.5


def test_the_truth_says_what_when_where_and_how_strong(clean_archive: Store) -> None:
    truth = read_truth(clean_archive)
    assert {"class", "event", "time", "station", "snr"} <= set(truth.column_names)
    assert truth.num_rows == pytest.approx(80, abs=30)
    assert pc.min(truth["snr"]).as_py() >= CLEAN.snr_floor
    days = {time.date().isoformat() for time in truth["time"].to_pylist()}
    assert days == {"2020-01-01", "2020-01-02"}


def test_flaws_come_at_their_stated_rates(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    flawed = CLEAN.model_copy(
        update={"gaps_per_station_day": 8, "overlaps_per_station_day": 8, "dead_component_share": 1.0}
    )
    write(store, flawed, "FL01", DAY)
    vertical = obspy.read(f"{store.url}/2020/SY/FL01/BH?.D/*")
    holes = vertical.select(channel="BHZ").get_gaps()
    assert 1 <= sum(seconds > 0 for *_, seconds, _ in holes) <= 20
    assert sum(seconds < 0 for *_, seconds, _ in holes) >= 1
    zeros = [max((trace.data == 0).mean() for trace in vertical.select(channel=f"BH{c}")) for c in "ENZ"]
    assert max(zeros) > 0.5
    assert sorted(zeros)[1] < 0.1
    spans = [(trace.stats.starttime, trace.stats.endtime) for trace in vertical.select(channel="BHZ")]
    times = read_truth(store)["time"].to_pylist()
    assert times
    for time in times:
        assert any(start <= obspy.UTCDateTime(time) <= end for start, end in spans)


def test_a_missing_day_has_no_file_and_no_truth(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    write(store, CLEAN.model_copy(update={"missing_day_share": 1.0}), "FL01", DAY)
    assert [item.path for item in store.walk()] == ["truth/2020/SY.FL01.2020.001.parquet"]
    assert read_truth(store).num_rows == 0


def test_ray_writes_the_same_archive_to_a_folder_and_a_bucket_and_goes_on_where_it_stopped(
    tmp_path: Path, moto_s3: S3Server, ray_cluster: RaySession
) -> None:
    settings = CLEAN.model_copy(update={"num_stations": 2, "num_days": 1, "events_per_station_day": 10.0})
    folder, bucket = open_store(str(tmp_path / "archive")), open_store(f"{moto_s3.url}/archive")
    summaries = [synthesize_archive(store, settings) for store in (folder, bucket)]
    assert [summary.num_written for summary in summaries] == [2, 2]
    assert summaries[0].num_arrivals == summaries[1].num_arrivals
    contents = [{item.path: store.read(item.path) for item in store.walk()} for store in (folder, bucket)]
    assert contents[0] == contents[1]
    assert json.loads(contents[0]["synthetic.json"])["version"] == VERSION
    inventory = obspy.read_inventory(f"{folder.url}/stations.xml")
    assert len(inventory.get_contents()["channels"]) == 6
    response = inventory.get_response("SY.FL02.00.BHZ", obspy.UTCDateTime(2020, 1, 1, 12))
    assert response.instrument_sensitivity.value == pytest.approx(2e9)

    folder.remove("truth/2020/SY.FL02.2020.001.parquet")
    assert synthesize_archive(folder, settings).num_written == 1
    assert {item.path: folder.read(item.path) for item in folder.walk()} == contents[0]

    with pytest.raises(InputError, match=r"synthesize\.seed = 0, not 1"):
        synthesize_archive(folder, settings.model_copy(update={"seed": 1}))


def test_replace_removes_the_old_archive_and_nothing_else(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.write("synthetic.json", json.dumps(manifest(CLEAN)).encode())
    with pytest.raises(InputError, match=r"num_days = 2, not 3"):
        check_archive(store, CLEAN.model_copy(update={"num_days": 3}))
    check_archive(store, CLEAN.model_copy(update={"num_days": 3}), replace=True)


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="holds files that are not part of a synthetic archive"):
        check_archive(open_store(str(tmp_path)), CLEAN, replace=True)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"shares": {"icequake": 0, "earthquake": 0, "spike": 0, "tremor": 0}}, "add up to 0"),
        ({"rate_hz": 20}, "synthesize.rate_hz.*40 to 1000 Hz"),
        ({"start": "1969-12-31"}, "synthesize.start"),
        ({"num_days": 0}, "synthesize.num_days"),
        ({"snr_floor": 500}, "must be below synthesize.snr_ceiling"),
        ({"network": "too long"}, "synthesize.network"),
        ({"events": 3}, "unknown configuration key synthesize.events"),
    ],
)
def test_impossible_settings_give_one_sentence_that_names_the_key(values: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as refused:
        resolve({"synthesize": values})
    assert "\n" not in str(refused.value)
