"""Units: what StationXML says becomes m/s, or is refused by name. Expected values are ObsPy's."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import obspy
import pytest
from detection_archives import detect, make_noise, make_trace, read_events, read_markers, write_sds
from obspy.core.inventory import (
    Channel,
    InstrumentPolynomial,
    InstrumentSensitivity,
    Inventory,
    Network,
    Response,
    Site,
    Station,
)

from jobs import detect as detect_job
from pipelines.archive.stationxml import read_stationxml
from pipelines.config import resolve
from pipelines.config.detection import WindowSettings
from pipelines.detect.response import Responses, ground_motion
from pipelines.detect.stage_archive import open_archive
from pipelines.runtime.errors import InputError
from pipelines.workspace.artifacts import StationList
from pipelines.workspace.storage import open_store
from pipelines.workspace.workspace import Workspace

RATE_HZ = 50.0
SECONDS = 3600
FLAGS: dict[str, Any] = {
    "archive": {"layout": "sds"},
    "detection": {"sta_seconds": 0.5, "lta_seconds": 10.0, "on": 3.0, "band_hz": (2.0, 10.0), "units": "m/s"},
    "window": {"rate_hz": RATE_HZ, "lead_seconds": 5.0, "length_seconds": 30.0},
    "shards": {"interval": "hour"},
}
PREFILT = (0.5, 1.0, 15.0, 20.0)
REMOVE: dict[str, Any] = FLAGS | {"window": FLAGS["window"] | {"remove_response": True, "response_prefilt_hz": PREFILT}}
START = obspy.UTCDateTime("2021-03-01")


def geophone(unit: str, gain: float) -> Response:
    """Return a response whose sensitivity is `gain` counts per unit at 5 Hz."""
    zeros = {"velocity": [0j, 0j], "acceleration": [], "displacement": [0j, 0j, 0j]}[(ground_motion(unit) or ("",))[0]]
    # A corner at 4.5 Hz, so that the response is not flat in the band.
    corner = 2 * np.pi * 4.5
    poles = [corner * complex(-0.7, 0.714), corner * complex(-0.7, -0.714)]
    return Response.from_paz(
        zeros, poles, gain, 5.0, input_units=unit, output_units="COUNTS", normalization_frequency=5.0
    )


def only_sensitivity(unit: str | None, value: float, output: str = "COUNTS") -> Response:
    return Response(instrument_sensitivity=InstrumentSensitivity(value, 5.0, unit, output))


def inventory(*channels: tuple[str, Response | None], location: str = "", **epoch: obspy.UTCDateTime) -> Inventory:
    place = {"latitude": 0.0, "longitude": 0.0, "elevation": 0.0}
    made = [
        Channel(code, location, depth=0.0, sample_rate=RATE_HZ, response=response, **place, **epoch)
        for code, response in channels
    ]
    station = Station("0101", site=Site(name="x"), channels=made, **place)
    return Inventory(networks=[Network("XX", stations=[station])], source="test")


def joined(*parts: Inventory) -> Inventory:
    whole = parts[0]
    for part in parts[1:]:
        whole[0][0].channels += part[0][0].channels
    return whole


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An hour of three components."""
    root = tmp_path_factory.mktemp("archive")
    traces = [
        make_trace(make_noise(SECONDS, RATE_HZ, seed, 40), "2021-03-01", RATE_HZ, channel)
        for seed, channel in enumerate(("HHE", "HHN", "HHZ"))
    ]
    write_sds(root, traces)
    return root


@pytest.fixture(scope="module")
def counts(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    workspace = tmp_path_factory.mktemp("counts")
    detect(archive, workspace, FLAGS | {"detection": FLAGS["detection"] | {"units": "counts"}})
    return read_events(workspace)


def converted(archive: Path, workspace: Path, given: Inventory, flags: dict[str, Any] = FLAGS) -> Any:
    window = WindowSettings(**flags["window"])
    detect(archive, workspace, flags, responses=Responses.of(given, window))
    return read_events(workspace)


def windows(events: Any) -> np.ndarray:
    return np.asarray(events["waveform"].combine_chunks().to_numpy_ndarray())


def through_obspy(samples: np.ndarray, time_ns: int, given: Inventory, channel: str, *, remove: bool) -> np.ndarray:
    header = {"network": "XX", "station": "0101", "location": "", "channel": channel, "sampling_rate": RATE_HZ}
    trace = obspy.Trace(samples.astype(np.float64), header | {"starttime": obspy.UTCDateTime(ns=time_ns)})
    if remove:
        return trace.remove_response(given, output="VEL", pre_filt=PREFILT).data
    return trace.remove_sensitivity(given).data


@pytest.mark.parametrize(
    ("unit", "metres"),
    [("M/S", 1.0), ("m/s", 1.0), ("M/SEC", 1.0), ("NM/S", 1e-9), ("nm/s", 1e-9), ("MM/S", 1e-3), ("um/s", 1e-6)],
)
def test_a_velocity_in_any_unit_of_length_becomes_metres_per_second(
    unit: str, metres: float, archive: Path, counts: Any, tmp_path: Path
):
    given = inventory(*((channel, geophone(unit, 4e8 * metres)) for channel in ("HHE", "HHN", "HHZ")))
    events = converted(archive, tmp_path, given)
    assert events["event_id"].to_pylist() == counts["event_id"].to_pylist()
    assert len(events) > 5
    for index, onset_ns in enumerate(events["onset"].cast("int64").to_pylist()):
        for row, channel in enumerate(("HHE", "HHN", "HHZ")):
            expected = through_obspy(windows(counts)[index, row], onset_ns, given, channel, remove=False) * metres
            np.testing.assert_allclose(windows(events)[index, row], expected, rtol=1e-6)
    sensitivity = given[0][0][2].response.instrument_sensitivity.value
    peaks = counts["peak_amplitude"].to_numpy() / sensitivity * metres
    np.testing.assert_allclose(events["peak_amplitude"].to_numpy(), peaks, rtol=1e-3)
    assert set(events["units"].to_pylist()) == {"m/s"}


@pytest.mark.parametrize(
    ("unit", "metres"), [("M/S", 1.0), ("M/S**2", 1.0), ("m/s/s", 1.0), ("NM/S**2", 1e-9), ("M", 1.0), ("MM", 1e-3)]
)
def test_with_the_full_response_any_ground_motion_becomes_what_obspy_makes_of_it(
    unit: str, metres: float, archive: Path, counts: Any, tmp_path: Path
):
    given = inventory(*((channel, geophone(unit, 4e6 * metres)) for channel in ("HHE", "HHN", "HHZ")))
    events = converted(archive, tmp_path, given, REMOVE)
    assert events["event_id"].to_pylist() == counts["event_id"].to_pylist()
    raw, made = windows(counts), windows(events)
    compared = 0
    for index, onset_ns in enumerate(events["onset"].cast("int64").to_pylist()):
        for row, channel in enumerate(("HHE", "HHN", "HHZ")):
            if np.isfinite(raw[index, row]).all():
                expected = through_obspy(raw[index, row], onset_ns, given, channel, remove=True)
                np.testing.assert_allclose(made[index, row], expected, atol=1e-5 * np.abs(expected).max())
                compared += 1
    assert compared > 15
    # The peak is that of the window, in m/s: at most its largest sample, and not counts or m/s**2.
    whole = np.isfinite(made[:, 2]).all(axis=1)
    largest = np.abs(made[:, 2]).max(axis=1)[whole]
    peak = events["peak_amplitude"].to_numpy()[whole]
    assert (peak < 1.2 * largest).all()
    assert np.median(peak / largest) > 0.3


def test_an_acceleration_with_a_gap_in_its_window_is_absent_and_a_velocity_is_in_metres_per_second(tmp_path: Path):
    whole = make_trace(make_noise(SECONDS, RATE_HZ, 7, 0), "2021-03-01", RATE_HZ, "HHZ")
    whole.data[60000:61000] += (4000 * np.random.default_rng(1).normal(size=1000)).astype(np.int32)
    write_sds(tmp_path / "archive", [whole.slice(endtime=START + 1215), whole.slice(starttime=START + 1217)])
    absent = converted(tmp_path / "archive", tmp_path / "a", inventory(("HHZ", geophone("M/S**2", 4e6))), REMOVE)
    divided = converted(tmp_path / "archive", tmp_path / "v", inventory(("HHZ", geophone("M/S", 4e6))), REMOVE)
    assert len(absent) == len(divided) >= 1
    gapped = np.flatnonzero(np.isnan(windows(divided)[:, 2]).any(axis=1))
    assert len(gapped) >= 1
    for index in gapped:
        assert np.isnan(windows(absent)[index]).all()
        assert np.isnan(absent["peak_amplitude"][int(index)].as_py())
        assert absent["missing_fraction"][int(index)].as_py() == 1.0
        assert np.isfinite(windows(divided)[index, 2]).sum() > 100


@pytest.mark.parametrize(
    ("response", "right"),
    [
        (only_sensitivity("M/S**2", 4e6), "the unit M/S**2: a sensitivity does not turn acceleration into m/s"),
        (only_sensitivity("M", 4e6), "the unit M: a sensitivity does not turn displacement into m/s"),
        (only_sensitivity("PA", 4e6), "the unit PA, which is not one of ground motion"),
        (only_sensitivity("V", 4e6), "the unit V, which is not one of ground motion"),
        (only_sensitivity("COUNTS", 4e6), "the unit COUNTS, which is not one of ground motion"),
        (only_sensitivity(None, 4e6), "no input units"),
        (only_sensitivity("M/S", 4e6, "V"), "to V, not to counts"),
        (only_sensitivity("M/S", 0.0), "the sensitivity 0"),
        (only_sensitivity("M/S", float("nan")), "the sensitivity nan"),
        (only_sensitivity("M/S", float("inf")), "the sensitivity inf"),
        (Response(), "no sensitivity"),
        (None, "no sensitivity"),
        (
            Response(instrument_polynomial=InstrumentPolynomial("V", "COUNTS", 0, 1, 0, 1, 0.1, [0.0, 1.0])),
            "polynomial",
        ),
    ],
)
def test_what_a_sensitivity_does_not_convert_is_refused_by_name_before_detection(
    response: Response | None, right: str, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    responses = Responses.of(inventory(("HHZ", response)), WindowSettings())
    assert right in responses.of_group("XX", "0101", "").problem("HHZ")
    if response is None or any(word in right for word in ("nan", "inf", "polynomial", "no input units")):
        # ObsPy does not write these as they are.
        return
    xml = tmp_path / "stations.xml"
    inventory(("HHZ", response)).write(str(xml), format="STATIONXML")
    command = [str(archive), str(tmp_path / "w"), "--detection.units", "m/s", "--archive.stationxml", str(xml)]
    assert detect_job.main(command) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert right in error
    assert "XX.0101..HHZ" in error
    assert not (tmp_path / "w").exists() or not list((tmp_path / "w").rglob("*.parquet"))


def test_stationxml_stays_in_the_workspace_in_counts_too_and_follows_the_file(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    xml, workspace = tmp_path / "stations.xml", tmp_path / "w"
    command = [str(archive), str(workspace), "--archive.stationxml", str(xml)]
    for latitude in (-70.5, -71.25):
        stations = inventory(("HHZ", None))
        stations[0][0].latitude = latitude
        stations.write(str(xml), format="STATIONXML")
        assert detect_job.main(command) == 0
        assert (workspace / "stations" / "stations.xml").read_bytes() == xml.read_bytes()
        kept = StationList.read(open_store(str(workspace)))
        assert kept is not None
        assert {(one.network, one.station) for one in kept.positions} == {("XX", "0101")}
        assert latitude in {one.latitude_deg for one in kept.positions}
    assert "nothing to do" in capsys.readouterr().out
    xml.write_text("<html>")
    assert detect_job.main(command) == 2
    assert "archive.stationxml" in capsys.readouterr().err.splitlines()[-1]


def test_stationxml_without_stages_or_with_stages_of_no_gain_is_refused_where_the_response_is_asked_for():
    window = WindowSettings(remove_response=True)
    broken = geophone("M/S", 4e8)
    broken.response_stages[0].stage_gain = 0.0
    cases = {
        "no stages": only_sensitivity("M/S", 4e8),
        "a stage with the gain 0": broken,
    }
    for right, response in cases.items():
        assert right in Responses.of(inventory(("HHZ", response)), window).of_group("XX", "0101", "").problem("HHZ")


def test_units_of_sensitivity_and_first_stage_that_disagree_are_refused():
    response = geophone("M/S", 4e8)
    response.response_stages[0].input_units = "M/S**2"
    problem = Responses.of(inventory(("HHZ", response)), WindowSettings()).of_group("XX", "0101", "").problem("HHZ")
    assert "this channel's sensitivity in M/S and its first stage in M/S**2" in problem


def test_a_negative_sensitivity_reverses_the_polarity_as_in_obspy():
    given = inventory(("HHZ", only_sensitivity("M/S", -4.0)))
    (factor,) = Responses.of(given, WindowSettings()).of_group("XX", "0101", "").factors("HHZ", np.array([0]))
    assert factor == -0.25


@pytest.mark.parametrize("location", ["", "--", "  "])
def test_all_ways_of_writing_no_location_are_one(location: str):
    given = inventory(("HHZ", only_sensitivity("M/S", 4.0)), location=location)
    for asked in ("", "--"):
        responses = Responses.of(given, WindowSettings()).of_group("XX", "0101", asked)
        assert responses.problem("HHZ") == ""


def test_codes_of_headers_are_not_patterns():
    responses = Responses.of(inventory(("HHZ", only_sensitivity("M/S", 4.0))), WindowSettings())
    assert responses.of_group("*", "*", "*").problem("HH?") != ""


def test_epochs_hold_from_their_start_to_before_their_end_and_nothing_holds_outside():
    first, second, third = START, START + 100, START + 200
    given = joined(
        inventory(("HHZ", only_sensitivity("M/S", 2.0)), start_date=first, end_date=second - 1),
        inventory(("HHZ", only_sensitivity("M/S", 4.0)), start_date=second, end_date=third),
        inventory(("HHZ", only_sensitivity("M/S", 8.0)), start_date=third + 50),
    )
    responses = Responses.of(given, WindowSettings()).of_group("XX", "0101", "")
    seconds = [-1, 0, 98, 99.5, 100, 199, 200, 249, 250, 1e9]
    factors = responses.factors("HHZ", np.array([(START + second).ns for second in seconds]))
    # The first epoch's last second is bridged, as an end of 23:59:59 asks for; the gap of 50 s is not.
    expected = [np.nan, 0.5, 0.5, 0.5, 0.25, 0.25, np.nan, np.nan, 0.125, 0.125]
    np.testing.assert_array_equal(factors, expected)


def test_epochs_that_overlap_and_differ_convert_nothing_and_equal_ones_convert():
    late = START + 100
    different = joined(
        inventory(("HHZ", only_sensitivity("M/S", 2.0)), start_date=START),
        inventory(("HHZ", only_sensitivity("M/S", 4.0)), start_date=late),
    )
    times = np.array([(START + 50).ns, (late + 50).ns])
    factors = Responses.of(different, WindowSettings()).of_group("XX", "0101", "").factors("HHZ", times)
    np.testing.assert_array_equal(factors, [0.5, np.nan])
    equal = joined(
        inventory(("HHZ", only_sensitivity("M/S", 2.0)), start_date=START),
        inventory(("HHZ", only_sensitivity("m/s", 2.0)), start_date=late),
    )
    factors = Responses.of(equal, WindowSettings()).of_group("XX", "0101", "").factors("HHZ", times)
    np.testing.assert_array_equal(factors, [0.5, 0.5])


def test_a_date_beyond_what_nanoseconds_hold_is_an_open_end():
    given = inventory(
        ("HHZ", only_sensitivity("M/S", 2.0)),
        start_date=obspy.UTCDateTime(1500, 1, 1),
        end_date=obspy.UTCDateTime(9999, 12, 31),
    )
    (factor,) = Responses.of(given, WindowSettings()).of_group("XX", "0101", "").factors("HHZ", np.array([START.ns]))
    assert factor == 0.5


def test_a_component_that_stationxml_lacks_costs_that_component_alone_and_is_named(
    archive: Path, counts: Any, tmp_path: Path
):
    given = inventory(("HHN", only_sensitivity("M/S", 4.0)), ("HHZ", only_sensitivity("M/S", 4.0)))
    events = converted(archive, tmp_path, given)
    assert events["event_id"].to_pylist() == counts["event_id"].to_pylist()
    assert set(map(tuple, events["channels"].to_pylist())) == {(None, "HHN", "HHZ")}
    np.testing.assert_allclose(windows(events)[:, 2], windows(counts)[:, 2] / 4, rtol=1e-6)
    (reason,) = {reason for marker in read_markers(tmp_path) for reason in marker["skipped"]}
    assert "HHE" in reason
    assert "does not have this channel" in reason


def test_triggers_outside_every_epoch_are_dropped_and_counted(archive: Path, counts: Any, tmp_path: Path):
    begin = START + 1800
    given = inventory(("HHZ", only_sensitivity("M/S", 4.0)), start_date=begin)
    events = converted(archive, tmp_path, given)
    onsets = counts["onset"].cast("int64").to_numpy()
    expected = [name for name, onset in zip(counts["event_id"].to_pylist(), onsets, strict=True) if onset >= begin.ns]
    assert events["event_id"].to_pylist() == expected
    assert 0 < len(expected) < len(onsets)
    markers = read_markers(tmp_path)
    assert sum(marker["counts"].get("triggers_without_response", 0) for marker in markers) == len(onsets) - len(
        expected
    )
    assert any("XX.0101..HHZ" in reason and "epoch" in reason for marker in markers for reason in marker["skipped"])
    accounts = [marker["account"]["samples"] for marker in markers]
    # Three components of an hour; of the vertical the second half, without the first LTA, which lies in the first.
    assert sum(account.get("used", 0) for account in accounts) == SECONDS / 2 * RATE_HZ
    assert sum(account.get("no_sensitivity", 0) for account in accounts) == (3 * SECONDS - SECONDS / 2) * RATE_HZ


@pytest.mark.parametrize("flags", [FLAGS, REMOVE])
def test_a_sensitivity_that_its_stages_contradict_is_named_and_the_rule_is_obspys(
    flags: dict[str, Any], archive: Path, counts: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """`from_paz` itself writes one in NM/S 1e9 times too large."""
    given = inventory(*((channel, geophone("NM/S", 0.4)) for channel in ("HHE", "HHN", "HHZ")))
    stated = given[0][0][2].response.instrument_sensitivity.value
    assert stated == pytest.approx(3.14e8, rel=0.01)
    xml = tmp_path / "stations.xml"
    given.write(str(xml), format="STATIONXML")
    config = resolve(flags | {"archive": {"layout": "sds", "stationxml": str(xml)}})
    open_archive(str(archive), Workspace(open_store(str(tmp_path / "w"))), config)
    used = "stages are" if flags is REMOVE else "sensitivity is"
    told = capsys.readouterr().out
    assert "contradicts itself for 3 channels" in told
    assert re.search(
        rf"XX\.0101\.\.HHZ: .* the sensitivity 3\.139\d*e\+08 .* have the gain 0\.3139\d*.*; the {used} used", told
    ), told
    factors = Responses.of(given, config.window).of_group("XX", "0101", "").factors("HHZ", np.array([START.ns]))
    assert factors == pytest.approx(1e-9 / (stated * 1e-9 if flags is REMOVE else stated), rel=0.01)


def test_a_sensitivity_within_five_percent_of_its_stages_is_not_questioned(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    given = inventory(("HHZ", geophone("M/S", 4e8)))
    given[0][0][0].response.instrument_sensitivity.value *= 1.04
    xml = tmp_path / "stations.xml"
    given.write(str(xml), format="STATIONXML")
    config = resolve(FLAGS | {"archive": {"layout": "sds", "stationxml": str(xml)}})
    open_archive(str(archive), Workspace(open_store(str(tmp_path / "w"))), config)
    assert "contradicts" not in capsys.readouterr().out


def test_a_horizontal_outside_its_epochs_does_not_take_the_event_of_the_vertical_with_it(archive: Path, tmp_path: Path):
    flags = FLAGS | {"detection": FLAGS["detection"] | {"trigger_components": "ZE"}}
    only_z = FLAGS | {"detection": FLAGS["detection"] | {"trigger_components": "Z"}}
    good = ("HHZ", only_sensitivity("M/S", 4.0))
    given = joined(inventory(good), inventory(("HHE", only_sensitivity("M/S", 4.0)), end_date=START - 1))
    one = converted(archive, tmp_path / "both", given, flags)
    other = converted(archive, tmp_path / "z", inventory(good), only_z)
    assert one["event_id"].to_pylist() == other["event_id"].to_pylist()
    assert len(one) > 5


def test_what_stationxml_cannot_convert_is_named_before_detection_and_the_rest_goes_on(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    xml = tmp_path / "stations.xml"
    given = inventory(("HHZ", only_sensitivity("M/S", 4.0)), ("HHE", only_sensitivity("M/S**2", 4.0)))
    given.write(str(xml), format="STATIONXML")
    config = resolve(FLAGS | {"archive": {"layout": "sds", "stationxml": str(xml)}})
    opened = open_archive(str(archive), Workspace(open_store(str(tmp_path / "w"))), config)
    assert opened.responses.of_group("XX", "0101", "").problem("HHZ") == ""
    told = capsys.readouterr().out
    assert re.search(r"XX\.0101\.\.HHE: archive\.stationxml gives this channel the unit M/S\*\*2", told)


@pytest.mark.parametrize(
    ("given", "right"),
    [
        (
            inventory(("HHZ", only_sensitivity("M/S", 4.0)), end_date=START - 86400),
            "no epoch for this channel at the time",
        ),
        (inventory(("BHZ", only_sensitivity("M/S", 4.0))), "does not have its channels"),
        (Inventory(networks=[Network("YY", stations=[])], source="test"), "does not have its channels"),
    ],
)
def test_stationxml_of_other_times_or_channels_is_refused_before_detection(
    given: Inventory, right: str, archive: Path, tmp_path: Path
):
    xml = tmp_path / "stations.xml"
    given.write(str(xml), format="STATIONXML")
    config = resolve(FLAGS | {"archive": {"layout": "sds", "stationxml": str(xml)}})
    with pytest.raises(InputError, match=right):
        open_archive(str(archive), Workspace(open_store(str(tmp_path / "w"))), config)


@pytest.mark.parametrize(
    "content", [b"", b"<a/>", b"<html></html>", b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', b"\xff\xfe<"]
)
def test_what_is_not_stationxml_is_refused_in_one_sentence(content: bytes):
    with pytest.raises(ValueError, match="not a StationXML file") as caught:
        read_stationxml(content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("first", "last"), [(1900, 2599), (1, 9999)])
def test_an_epoch_that_ends_in_2599_is_open(first: int, last: int):
    """Data centres write 2599-12-31 for no end: more than 64 bits of nanoseconds hold."""
    epoch = {"start_date": obspy.UTCDateTime(first, 1, 1), "end_date": obspy.UTCDateTime(last, 12, 31)}
    responses = Responses.of(inventory(("HHZ", only_sensitivity("M/S", 4e8)), **epoch), WindowSettings())
    now = np.array([obspy.UTCDateTime(2022, 1, 1).ns])
    assert responses.of_group("XX", "0101", "").factors("HHZ", now) == pytest.approx(1 / 4e8, rel=1e-9)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-7", "cp037"])
def test_a_document_type_cannot_be_hidden_in_another_encoding(encoding: str):
    buffer = io.BytesIO()
    inventory(("HHZ", geophone("M/S", 4e8))).write(buffer, format="STATIONXML")
    text = buffer.getvalue().decode().partition("?>")[2].replace("</Source>", "&b;</Source>")
    text = f'<?xml version="1.0" encoding="{encoding}"?><!DOCTYPE a [<!ENTITY b "hidden">]>{text}'
    with pytest.raises(ValueError, match="not a StationXML file"):
        read_stationxml(text.encode(encoding))


def test_stationxml_comes_back_as_obspy_wrote_it():
    buffer = io.BytesIO()
    inventory(("HHZ", geophone("M/S", 4e8))).write(buffer, format="STATIONXML")
    assert read_stationxml(buffer.getvalue())[0][0][0].code == "HHZ"
