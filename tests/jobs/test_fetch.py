"""The recipe for Neumayer: from an FDSN service to SDS, on a disk and in a bucket."""

import gzip
import io
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import obspy
import pytest
from fdsn_stand_in import FdsnStandIn, Instead
from loopback_servers import S3Server
from obspy.core.inventory import Channel, Inventory, Network, Response, Site, Station
from pymseed import MS3TraceList

from jobs import fetch
from pipelines.workspace.storage import open_store

FIRST = obspy.UTCDateTime(2019, 1, 1)
DAYS = 3
RATE_HZ = 1.0


def recordings() -> obspy.Stream:
    """Return three days of VNA1 and VNA2, without VNA2's second day and with a gap at VNA1."""
    noise = np.random.default_rng(5)
    traces = []
    for station in ("VNA1", "VNA2"):
        for channel in ("HHZ", "HHN", "HHE", "LOG"):
            for day in range(DAYS):
                if station == "VNA2" and day == 1:
                    continue
                header = {
                    **{"network": "AW", "station": station, "channel": channel, "sampling_rate": RATE_HZ},
                    "starttime": FIRST + day * 86400,
                }
                samples = noise.integers(-1000, 1000, 86400).astype(np.int32)
                traces.append(obspy.Trace(samples, header))
    stream = obspy.Stream(traces)
    gap = stream.select(station="VNA1", channel="HHZ")[0]
    stream.remove(gap)
    stream += gap.slice(endtime=FIRST + 30000)
    stream += gap.slice(starttime=FIRST + 40000)
    return stream


def station_metadata() -> Inventory:
    channels = [
        Channel(
            code=code,
            location_code="",
            latitude=-70.6,
            longitude=-8.3,
            elevation=30.0,
            depth=0.0,
            sample_rate=RATE_HZ,
            start_date=obspy.UTCDateTime(2009, 1, 1),
            response=Response.from_paz(zeros=[0, 0], poles=[-0.037 + 0.037j, -0.037 - 0.037j], stage_gain=4e8),
        )
        for code in ("HHZ", "HHN", "HHE", "LOG")
    ]
    stations = [
        Station(
            code=code,
            latitude=-70.6,
            longitude=-8.3,
            elevation=30.0,
            site=Site(name=code),
            channels=channels,
            start_date=obspy.UTCDateTime(2009, 1, 1),
        )
        for code in ("VNA1", "VNA2")
    ]
    return Inventory(networks=[Network(code="AW", stations=stations)], source="test")


@pytest.fixture(scope="module")
def source() -> obspy.Stream:
    return recordings()


@pytest.fixture
def data_centre(source: obspy.Stream) -> Iterator[FdsnStandIn]:
    with FdsnStandIn(source, station_metadata()) as server:
        yield server


def words(archive: str, data_centre: FdsnStandIn, *more: str) -> list[str]:
    return [
        *(archive, "--fetch.provider", data_centre.url, "--fetch.network", "AW", "--fetch.station", "VNA1,VNA2"),
        *("--fetch.channel", "HH?", "--fetch.start", "2019-01-01", "--fetch.end", "2019-01-04", *more),
    ]


def test_an_fdsn_service_becomes_an_sds_archive_with_every_sample(
    data_centre: FdsnStandIn, source: obspy.Stream, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert fetch.main(words(str(tmp_path), data_centre, "--fetch.block_days", "2")) == 0
    assert "15 channel-days written" in capsys.readouterr().out
    assert (tmp_path / "2019/AW/VNA1/HHZ.D/AW.VNA1..HHZ.D.2019.001").is_file()
    assert not list(tmp_path.rglob("*VNA2*2019.002"))
    assert not list(tmp_path.rglob("*LOG*"))
    for station in ("VNA1", "VNA2"):
        for channel in ("HHZ", "HHN", "HHE"):
            fetched = obspy.Stream()
            for path in sorted(tmp_path.rglob(f"AW.{station}..{channel}.D.*")):
                fetched += obspy.read(str(path))
            fetched.merge(method=-1)
            expected = source.select(station=station, channel=channel).copy().merge(method=-1)
            assert len(fetched) == len(expected)
            for one, other in zip(fetched.sort(), expected.sort(), strict=True):
                assert one.stats.starttime == other.stats.starttime
                np.testing.assert_array_equal(one.data, other.data)


def test_stationxml_comes_with_responses_and_each_channel_once(data_centre: FdsnStandIn, tmp_path: Path):
    assert fetch.main(words(str(tmp_path), data_centre, "--fetch.block_days", "1")) == 0
    inventory = obspy.read_inventory(str(tmp_path / "stations.xml"))
    contents = sorted(inventory.get_contents()["channels"])
    assert contents == sorted(
        f"AW.{station}..{channel}" for station in ("VNA1", "VNA2") for channel in ("HHE", "HHN", "HHZ")
    )
    sensitivity = inventory.get_response("AW.VNA1..HHZ", FIRST).instrument_sensitivity
    assert sensitivity.value == pytest.approx(4e8, rel=0.01)


def test_a_second_fetch_asks_only_for_what_is_missing(
    data_centre: FdsnStandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert fetch.main(words(str(tmp_path), data_centre)) == 0
    lost = tmp_path / "2019/AW/VNA1/HHN.D/AW.VNA1..HHN.D.2019.003"
    before = lost.read_bytes()
    lost.unlink()
    data_centre.dataselect_lines.clear()
    capsys.readouterr()
    assert fetch.main(words(str(tmp_path), data_centre)) == 0
    assert "1 channel-day written" in capsys.readouterr().out
    assert lost.read_bytes() == before
    asked = {(*line.split()[:4], line.split()[4][:10]) for line in data_centre.dataselect_lines}
    assert ("AW", "VNA1", "--", "HHN", "2019-01-03") in asked
    assert not {line for line in asked if line[1] == "VNA1" and line[4] != "2019-01-03"}


def test_a_bucket_gets_the_same_bytes_as_a_disk(data_centre: FdsnStandIn, moto_s3: S3Server, tmp_path: Path):
    end = ("--fetch.end", "2019-01-02", "--fetch.station", "VNA1")
    assert fetch.main(words(str(tmp_path), data_centre, *end)) == 0
    assert fetch.main(words(f"{moto_s3.url}/archive", data_centre, *end)) == 0
    bucket = open_store(f"{moto_s3.url}/archive")
    on_disk = {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("AW.*") if path.is_file()}
    assert len(on_disk) == 3
    assert {item.path for item in bucket.walk("")} == {*on_disk, "stations.xml"}
    assert all(bucket.read(path) == content for path, content in on_disk.items())


@pytest.mark.parametrize(
    ("flags", "right"),
    [
        (["--fetch.station", "NONE"], "has no data"),
        (["--fetch.end", "2018-01-01"], "later than start"),
        (["--fetch.start", "2019-01-01T12:00:00"], "a day without a time"),
        (["--fetch.provider", "http://127.0.0.1:9"], "cannot be reached"),
        (["--fetch.provider", "NOWHERE"], "cannot be reached"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    flags: list[str], right: str, data_centre: FdsnStandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert fetch.main(words(str(tmp_path), data_centre, *flags)) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    assert right in errors[0]
    assert not list(tmp_path.rglob("*.D.*"))


def test_the_period_must_be_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert fetch.main([str(tmp_path)]) == 2
    assert "fetch.start is not set" in capsys.readouterr().err


def test_stationxml_that_an_interrupted_fetch_left_out_comes_with_the_next_one(
    data_centre: FdsnStandIn, tmp_path: Path
):
    one_day = ("--fetch.end", "2019-01-02")
    assert fetch.main(words(str(tmp_path), data_centre, *one_day)) == 0
    (tmp_path / "stations.xml").unlink()
    data_centre.dataselect_lines.clear()
    assert fetch.main(words(str(tmp_path), data_centre, *one_day)) == 0
    assert not data_centre.dataselect_lines
    assert len(obspy.read_inventory(str(tmp_path / "stations.xml")).get_contents()["channels"]) == 6


def mseed3(station: str) -> bytes:
    """Return a day of miniSEED 3 of a station, by libmseed."""
    samples = np.random.default_rng(8).integers(-1000, 1000, 86400).astype(np.int32)
    traces = MS3TraceList()
    traces.add_data(f"FDSN:AW_{station}__H_H_Z", samples, "i", RATE_HZ, starttime=FIRST.ns)
    return b"".join(bytes(record) for record in traces.generate(format_version=3))


@pytest.mark.parametrize(
    ("instead", "right"),
    [
        (Instead(b"<!DOCTYPE html><html>\x1b[31mWe are down"), "answered with '<!DOCTYPE html><html>\\x1b[31mWe are"),
        (Instead(b"x" * 100, claimed_length=5000), "ended after 100 of 5000 bytes"),
        (Instead(b"too much", status=413), "too much"),
        (Instead(b"Error 42", status=500), "Error 42"),
        (Instead(gzip.compress(b"0" * 10**6), headers={"Content-Encoding": "gzip"}), "the answer is packed"),
        (Instead(status=302, headers={"Location": "ftp://127.0.0.1/x"}), "ftp"),
        (Instead(status=302, headers={"Location": "file:///etc/passwd"}), "file"),
        (Instead(status=302, headers={"Location": "/fdsnws/dataselect/1/query"}), "would lead to an infinite loop"),
        (Instead(b"\0" * 2**20, repeats=100), "larger than"),
        (Instead(b""), "answered with nothing"),
    ],
)
def test_a_station_that_the_service_fails_at_costs_that_station_and_is_named(
    instead: Instead, right: str, data_centre: FdsnStandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    data_centre.instead_of_waveforms["VNA1"] = instead
    assert fetch.main(words(str(tmp_path), data_centre, "--fetch.end", "2019-01-02", "--fetch.channel", "HHZ")) == 1
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert "AW.VNA1" in error
    assert right in error
    assert "\x1b" not in error
    assert not list(tmp_path.rglob("*VNA1*"))
    assert (tmp_path / "2019/AW/VNA2/HHZ.D/AW.VNA2..HHZ.D.2019.001").is_file()


def test_a_station_that_is_answered_in_miniseed_3_is_kept_as_it_comes(data_centre: FdsnStandIn, tmp_path: Path):
    content = mseed3("VNA1")
    data_centre.instead_of_waveforms["VNA1"] = Instead(content)
    assert fetch.main(words(str(tmp_path), data_centre, "--fetch.end", "2019-01-02", "--fetch.channel", "HHZ")) == 0
    assert (tmp_path / "2019/AW/VNA1/HHZ.D/AW.VNA1..HHZ.D.2019.001").read_bytes() == content
    assert (tmp_path / "2019/AW/VNA2/HHZ.D/AW.VNA2..HHZ.D.2019.001").is_file()


def test_records_that_were_not_asked_for_are_not_kept_and_counted(
    data_centre: FdsnStandIn, source: obspy.Stream, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    buffer = io.BytesIO()
    source.select(station="VNA2", channel="HHZ")[:1].write(buffer, format="MSEED", reclen=4096)
    data_centre.instead_of_waveforms["VNA1"] = Instead(buffer.getvalue())
    assert fetch.main(words(str(tmp_path), data_centre, "--fetch.end", "2019-01-02", "--fetch.channel", "HHZ")) == 0
    assert (
        f"{len(buffer.getvalue()) // 4096} records were not kept: other codes or days than asked for"
        in capsys.readouterr().out
    )
    assert not list(tmp_path.rglob("*VNA1*"))


@pytest.mark.parametrize(
    "codes", ["..|VNA1||HHZ", "AW|../..||HHZ", "AW|VNA1|../../..|HHZ", "AW|VNA1||../x", "AW|VN\x1b1||HHZ", "/|/|/|/"]
)
def test_a_service_that_announces_codes_that_are_paths_writes_nothing_outside_the_archive(
    codes: str, data_centre: FdsnStandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rest = "|-70.6|-8.3|30|0|0|0||1|1|M/S|1.0|2009-01-01T00:00:00|"
    lines = ["#Network|Station|Location|Channel", codes + rest, "AW|VNA2||HHZ" + rest]
    data_centre.instead_of_stations["channel"] = Instead("\n".join(lines).encode())
    archive = tmp_path / "deep" / "archive"
    command = words(str(archive), data_centre, "--fetch.end", "2019-01-02", "--fetch.network", "*")
    assert fetch.main([*command, "--fetch.station", "*", "--fetch.channel", "*"]) == 1
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert "not FDSN codes" in error
    assert "\x1b" not in error
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    day = "deep/archive/2019/AW/VNA2/HHZ.D/AW.VNA2..HHZ.D.2019.001"
    assert written == {day, "deep/archive/stations.xml"}


@pytest.mark.parametrize(
    ("instead", "right"),
    [
        (Instead(b"<html><body>Please log in</body></html>"), "answered with '<html><body>Please log in"),
        (Instead(b"\x00\xff" * 1000), "not a list of channels"),
        (Instead(b"maintenance", status=503), "maintenance"),
        (Instead(b"#Network|Station|Location|Channel\n", status=200), "has no data"),
    ],
)
def test_a_station_service_that_answers_with_something_else_is_refused_with_what_it_said(
    instead: Instead, right: str, data_centre: FdsnStandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    data_centre.instead_of_stations["channel"] = instead
    assert fetch.main(words(str(tmp_path), data_centre)) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert right in error


@pytest.mark.parametrize("content", [b"<html>no</html>", b'<!DOCTYPE x [<!ENTITY y "z">]><x>&y;</x>', b""])
def test_stationxml_that_is_not_stationxml_is_named_and_the_recordings_are_kept(
    content: bytes, data_centre: FdsnStandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    data_centre.instead_of_stations["response"] = Instead(content)
    assert fetch.main(words(str(tmp_path), data_centre, "--fetch.end", "2019-01-02", "--fetch.station", "VNA1")) == 1
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert "StationXML of AW.VNA1" in error
    assert len(list(tmp_path.rglob("*.D.2019.001"))) == 3


@pytest.mark.parametrize(
    ("what", "right"),
    [
        ("status", "Timed Out"),
        ("headers", "Timed Out"),
        *((framing, "comes too slowly") for framing in ("length", "closed", "chunked")),
    ],
)
def test_an_answer_that_trickles_is_given_up(
    what: str, right: str, data_centre: FdsnStandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    # No byte takes longer than the timeout; all of them would take days.
    data_centre.instead_of_waveforms["VNA1"] = Instead(trickles=what)
    flags = ("--fetch.end", "2019-01-02", "--fetch.channel", "HHZ", "--fetch.timeout_seconds", "1")
    began = time.monotonic()
    assert fetch.main(words(str(tmp_path), data_centre, *flags)) == 1
    assert time.monotonic() - began < 20
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert "AW.VNA1" in error
    assert right in error
    assert not list(tmp_path.rglob("*VNA1*"))


def test_a_list_of_channels_may_begin_with_a_byte_order_mark(data_centre: FdsnStandIn, tmp_path: Path):
    content = data_centre.stations({"format": "text", "level": "channel", "channel": "HHZ", "station": "VNA2"})
    data_centre.instead_of_stations["channel"] = Instead(b"\xef\xbb\xbf" + content)
    assert fetch.main(words(str(tmp_path), data_centre, "--fetch.end", "2019-01-02")) == 0
    assert len(list(tmp_path.rglob("*.D.2019.001"))) == 1
