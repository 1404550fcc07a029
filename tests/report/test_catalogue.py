"""The catalogue: events from detections, and files that ObsPy and pandas read."""

import io
from pathlib import Path

import numpy as np
import obspy
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from obspy.io.quakeml.core import _validate

from pipelines.report import catalogue, quakeml

START = pd.Timestamp("2020-12-31T23:00:00", tz="UTC")


def detections(seconds: list[float], **columns: object) -> pd.DataFrame:
    """Return detections at these times after START, at three stations in turn."""
    count = len(seconds)
    onset = START + pd.to_timedelta(np.round(np.array(seconds, dtype=float) * 1e9).astype(np.int64), unit="ns")
    stations = ["VNA1", "VNA2", "0101"] * (count // 3 + 1)
    frame = pd.DataFrame(
        {
            "event_id": [f"AW.{station}..HH.{number}" for number, station in zip(range(count), stations, strict=False)],
            "network": "AW",
            "station": stations[:count],
            "location": ["", "00", ""] * (count // 3) + ["", "00", ""][: count % 3],
            "onset": onset,
            "duration_s": np.float32(1.5),
            "peak_ratio": np.float32(7.25),
            "snr_db": np.linspace(3, 20, count).astype(np.float32),
            "peak_amplitude": np.linspace(100, 900, count).astype(np.float32),
            "units": "counts",
            "trigger_channel": "HHZ",
            "cluster": np.int32(3),
            "distance": np.float32(0.5),
            "margin": np.linspace(0.1, 0.9, count).astype(np.float32),
            "label": "icequake",
            "label_source": "cluster",
            "confidence": np.float32(np.nan),
        }
    )
    return frame.assign(**columns)


def document(rows: pd.DataFrame, within_seconds: float = 10.0, **types: str) -> tuple[pd.DataFrame, str]:
    events, picks = catalogue.associated_events(rows, within_seconds, 1, types)
    return events, written(events, picks)


def written(events: pd.DataFrame, picks: pd.DataFrame) -> str:
    document = quakeml.Document(month="2020-12", authority="local", agency="AWI", method="sta-lta~abc")
    return "".join([document.head(), *document.body(events, picks), document.tail()])


def test_quakeml_passes_obspys_schema_and_reads_back_with_its_picks(tmp_path: Path) -> None:
    rows = detections([0, 1.5, 2.25, 100, 101, 500.123456789])
    events, text = document(rows)
    file = tmp_path / "2020-12.xml"
    file.write_text(text, encoding="utf-8")
    assert _validate(str(file), verbose=True)
    catalog = obspy.read_events(str(file), format="QUAKEML")
    assert [len(event.picks) for event in catalog] == [3, 2, 1] == events["num_detections"].tolist()
    assert [event.event_type for event in catalog] == ["ice quake"] * 3
    assert all(not event.origins and not event.magnitudes for event in catalog)
    pick = catalog[0].picks[1]
    assert pick.waveform_id.get_seed_string() == "AW.VNA2.00.HHZ"
    assert pick.time == obspy.UTCDateTime("2020-12-31T23:00:01.5")
    assert pick.evaluation_mode == "automatic"
    assert pick.phase_hint is None
    assert catalog[2].picks[0].time == obspy.UTCDateTime("2020-12-31T23:08:20.123456")
    identifiers = [pick.resource_id.id for event in catalog for pick in event.picks]
    assert identifiers[0] == "smi:local/firnline/pick/AW.VNA1..HH.0"
    assert len(set(identifiers)) == 6
    # What ObsPy writes again is the same catalogue: nothing was lost on the way in.
    again = io.BytesIO()
    catalog.write(again, format="QUAKEML")
    again.seek(0)
    assert [event.resource_id for event in obspy.read_events(again)] == [event.resource_id for event in catalog]


def test_the_same_rows_in_any_order_give_the_same_bytes() -> None:
    rows = detections(list(np.random.default_rng(0).uniform(0, 3000, 60)))
    _, text = document(rows)
    _, shuffled = document(rows.sample(frac=1, random_state=1))
    assert text == shuffled


@pytest.mark.parametrize("label", ["a<b>&\"'", "Eisbeben ✓", "bell\x07"])
def test_a_label_with_odd_characters_stays_readable(label: str, tmp_path: Path) -> None:
    _, text = document(detections([0.0], label=label, event_id="AW/VNA1 00:00+é"))
    file = tmp_path / "odd.xml"
    file.write_text(text, encoding="utf-8")
    assert _validate(str(file), verbose=True)
    (event,) = obspy.read_events(str(file))
    assert label.replace("\x07", "\ufffd") in event.comments[0].text


@pytest.mark.parametrize(
    ("label", "source", "event_type", "certainty"),
    [
        ("earthquake", "hand", "earthquake", "known"),
        ("spike", "cluster", "not existing", "suspected"),
        ("tremor", "propagated", "other event", "suspected"),
        (None, None, "not reported", None),
    ],
)
def test_labels_become_quakemls_event_types(
    label: str | None, source: str | None, event_type: str, certainty: str | None, tmp_path: Path
) -> None:
    _, text = document(detections([0.0], label=[label], label_source=[source]))
    file = tmp_path / "types.xml"
    file.write_text(text, encoding="utf-8")
    (event,) = obspy.read_events(str(file))
    assert event.event_type == event_type
    assert event.event_type_certainty == certainty


def test_an_event_has_the_cluster_and_label_of_most_of_its_detections_and_hand_labels_come_first() -> None:
    rows = detections(
        [0, 1, 2, 100, 101, 102],
        cluster=np.array([1, 2, 2, 4, 5, 5], np.int32),
        label=["icequake", "tremor", "tremor", "earthquake", "spike", "spike"],
        label_source=["cluster", "cluster", "cluster", "hand", "cluster", "cluster"],
    )
    events, _ = catalogue.associated_events(rows, 10.0, 1, {})
    assert events["cluster"].tolist() == [2, 5]
    assert events["cluster_share"].tolist() == pytest.approx([2 / 3, 2 / 3])
    assert events["label"].tolist() == ["tremor", "earthquake"]
    assert events["label_source"].tolist() == ["cluster", "hand"]
    assert events["catalog_id"].tolist() == ["AW.VNA1..HH.0", "AW.VNA1..HH.3"]


def test_a_propagated_label_has_the_mean_confidence_of_the_detections_that_have_it(tmp_path: Path) -> None:
    rows = detections(
        [0, 1, 2, 100, 101, 200],
        label=["tremor", "tremor", "icequake", "earthquake", "earthquake", "spike"],
        label_source=["propagated", "propagated", "propagated", "hand", "propagated", "cluster"],
        confidence=np.array([0.5, 0.75, 0.9, np.nan, 0.9, np.nan], np.float32),
    )
    events, text = document(rows)
    assert events["label_source"].tolist() == ["propagated", "hand", "cluster"]
    assert events["confidence"].tolist() == pytest.approx([0.625, np.nan, np.nan], nan_ok=True)
    table = catalogue.catalogue_table(events)
    assert table["confidence"].to_pylist() == [0.625, None, None]
    header, first, second, _ = catalogue.catalogue_csv(events).splitlines()
    column = header.split(",").index("confidence")
    assert [row.split(",")[column] for row in (first, second)] == ["0.625", ""]
    assert "label tremor (propagated, confidence 0.62)" in text
    assert "label earthquake (hand)" in text
    assert "label spike (cluster)" in text


def test_events_of_too_few_stations_are_left_out() -> None:
    rows = detections([0, 1, 100, 200, 201, 202])
    events, picks = catalogue.associated_events(rows, 10.0, 2, {})
    assert events["num_stations"].tolist() == [2, 3]
    assert len(picks) == 5


def events_by_definition(seconds: list[float], within_seconds: float) -> list[list[int]]:
    """Return the detections of each event: the first one free takes all that follow within the time, and so on."""
    order = sorted(range(len(seconds)), key=lambda index: seconds[index])
    events: list[list[int]] = []
    for index in order:
        if events and round(1e9 * (seconds[index] - seconds[events[-1][0]])) <= round(1e9 * within_seconds):
            events[-1].append(index)
        else:
            events.append([index])
    return events


@settings(max_examples=20, deadline=None)
@given(
    seconds=st.lists(st.floats(0, 200).map(lambda value: round(value, 2)), min_size=1, max_size=60),
    cuts=st.lists(st.floats(0, 200), max_size=4),
    within_seconds=st.sampled_from([0.0, 1.0, 7.5, 40.0]),
)
def test_a_record_cut_anywhere_gives_the_events_of_the_definition(
    seconds: list[float], cuts: list[float], within_seconds: float
) -> None:
    seconds = sorted(seconds)
    rows = detections(seconds)
    onset_ns = START.value + np.round(np.array(seconds) * 1e9).astype(np.int64)
    found: dict[str, list[str]] = {}
    taken_until_ns = -1
    start_ns = START.value
    for end in [*sorted(cuts), 300.0]:
        end_ns = START.value + int(end * 1e9)
        beyond_ns = end_ns + round(within_seconds * 1e9) + 1
        part = rows[(onset_ns >= start_ns) & (onset_ns < beyond_ns)]
        owned, taken_until_ns = catalogue.events_opened_before(part, end_ns, taken_until_ns, within_seconds)
        events, _ = catalogue.associated_events(owned, within_seconds, 1, {})
        for members in events["event_ids"]:
            found[min(members)] = sorted(members)
        start_ns = end_ns
    ids = rows["event_id"].tolist()
    expected = [sorted(ids[index] for index in members) for members in events_by_definition(seconds, within_seconds)]
    assert found == {members[0]: members for members in expected}


QUAKEML_BY_HAND = """<?xml version="1.0" encoding="utf-8"?>
<q:quakeml xmlns="http://quakeml.org/xmlns/bed/1.2" xmlns:q="http://quakeml.org/xmlns/quakeml/1.2">
<eventParameters publicID="smi:local/firnline/catalog/2020-12">
<event publicID="smi:local/firnline/event/AW.VNA1..HH.0">
<type>earthquake</type><typeCertainty>known</typeCertainty>
<creationInfo><agencyID>AWI</agencyID></creationInfo>
<pick publicID="smi:local/firnline/pick/AW.VNA1..HH.0">
<time><value>2020-12-31T23:00:00.000000Z</value></time>
<waveformID networkCode="AW" stationCode="VNA1" channelCode="HHZ"/>
<methodID>smi:local/firnline/method/sta-lta~7e~abc</methodID>
<evaluationMode>automatic</evaluationMode>
<creationInfo><agencyID>AWI</agencyID></creationInfo>
</pick>
<pick publicID="smi:local/firnline/pick/AW.VNA2..HH.1">
<time><value>2020-12-31T23:00:02.250000Z</value></time>
<waveformID networkCode="AW" stationCode="VNA2" locationCode="00" channelCode="HHZ"/>
<methodID>smi:local/firnline/method/sta-lta~7e~abc</methodID>
<evaluationMode>automatic</evaluationMode>
<creationInfo><agencyID>AWI</agencyID></creationInfo>
</pick>
</event>
</eventParameters>
</q:quakeml>
"""


def test_a_document_is_to_obspy_what_one_written_by_hand_is() -> None:
    _, text = document(detections([0.0, 2.25], label="earthquake", label_source="hand"))
    found, expected = (obspy.read_events(io.BytesIO(xml.encode()), format="QUAKEML") for xml in (text, QUAKEML_BY_HAND))
    for catalog in (found, expected):
        catalog.comments = catalog.creation_info = None
        for item in (*catalog, *catalog[0].picks):
            item.comments = []
    assert found.resource_id == expected.resource_id
    assert len(found) == len(expected) == 1
    for name in ("resource_id", "event_type", "event_type_certainty", "creation_info", "picks", "origins"):
        assert getattr(found[0], name) == getattr(expected[0], name), name


def test_csv_and_parquet_say_the_same() -> None:
    rows = detections([0, 1.5, 100.000000001], label=["icequake", None, None])
    events, _ = catalogue.associated_events(rows, 10.0, 1, {})
    table = catalogue.catalogue_table(events)
    read = pd.read_csv(io.StringIO(catalogue.catalogue_csv(events)), parse_dates=["onset", "last_onset"])
    assert table["catalog_id"].to_pylist() == read["catalog_id"].tolist()
    assert table["onset"].to_pandas().tolist() == read["onset"].tolist()
    assert [";".join(ids) for ids in table["event_ids"].to_pylist()] == read["event_ids"].tolist()
    assert table["label"].to_pylist() == [None if pd.isna(label) else label for label in read["label"]]


def test_no_detection_gives_an_empty_valid_document(tmp_path: Path) -> None:
    events, text = document(detections([]))
    file = tmp_path / "empty.xml"
    file.write_text(text, encoding="utf-8")
    assert _validate(str(file), verbose=True)
    assert len(obspy.read_events(str(file))) == 0
    assert catalogue.catalogue_table(events).num_rows == 0
