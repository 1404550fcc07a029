"""What the catalogue hands on to other programs: GeoParquet, Snuffler's markers, a SeisBench dataset, StationXML."""

import io
import json
import shlex
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import obspy
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from obspy.core.inventory import Channel, Inventory, Network, Station
from small_workspace import RATE_HZ

from pipelines import config
from pipelines.archive.stationxml import read_positions, read_stationxml
from pipelines.handlabels.halves import in_validation
from pipelines.report import catalogue, stage_catalogue
from pipelines.report.positions import position_at, positions_by_station
from pipelines.report.stage import write_report
from pipelines.runtime.errors import InputError
from pipelines.workspace import tables
from pipelines.workspace.artifacts import STATIONXML, StationList, StationPosition
from pipelines.workspace.storage import content_hash
from pipelines.workspace.workspace import Workspace

Make = Callable[..., tuple[Workspace, pd.DataFrame]]
REPORT = {"nearest_per_cluster": 0, "random_per_cluster": 0, "boundary_per_cluster": 0, "map_method": "pca"}
EVERY_FORMAT = ("quakeml", "csv", "parquet", "pyrocko", "seisbench")
PLACES = {"VNA1": (-70.6, -8.3), "VNA2": (-70.9, -7.4), "0101": (-71.25, 4.5)}
"""Latitude and longitude (degrees)."""


def stationxml() -> bytes:
    """Return StationXML of the small workspace's stations; VNA2's location 00 has moved within its station."""
    networks = {"AW": ["VNA1", "VNA2"], "XX": ["0101"]}
    inventory = Inventory(source="test", networks=[])
    for code, names in networks.items():
        stations = []
        for name in names:
            latitude, longitude = PLACES[name]
            station = Station(name, latitude, longitude, 40.0)
            if name == "VNA2":
                moved = obspy.UTCDateTime("2020-12-31T00:00:00Z")
                station.channels = [
                    Channel("HHZ", "00", latitude + 1, longitude, 41.0, 0.0, end_date=moved),
                    Channel("HHZ", "00", latitude + 2, longitude, 42.0, 0.0, start_date=moved),
                ]
            stations.append(station)
        inventory.networks.append(Network(code, stations=stations))
    stream = io.BytesIO()
    inventory.write(stream, format="STATIONXML")
    return stream.getvalue()


def keep_stations(workspace: Workspace) -> bytes:
    """Put StationXML into the workspace, as the detection does."""
    content = stationxml()
    positions = tuple(StationPosition(**vars(one)) for one in read_positions(read_stationxml(content)))
    workspace.store.write(STATIONXML, content)
    StationList(content_hash=content_hash(content), positions=positions).write(workspace.store)
    workspace.store_config("detect", config.resolve({"window": {"rate_hz": RATE_HZ}}))
    return content


def hand_on(workspace: Workspace, formats: tuple[str, ...] = EVERY_FORMAT) -> Path:
    """Write the report with these formats and return the folder of the catalogue."""
    resolved = config.resolve({"report": REPORT, "catalog": {"formats": formats}})
    write_report(workspace, resolved, None, replace=True)
    return Path(workspace.url) / "catalog"


def point(geometry: bytes) -> tuple[float, float]:
    """Return the longitude and latitude of a point in well-known binary (OGC 06-103r4, 8.2)."""
    order, kind, x, y = struct.unpack("<BIdd", geometry)
    assert (order, kind) == (1, 1)
    return x, y


def test_an_event_in_parquet_lies_where_its_first_station_was_at_that_time(new_workspace: Make) -> None:
    workspace, rows = new_workspace(events_per_file=12)
    content = keep_stations(workspace)
    folder = hand_on(workspace)
    assert (folder / "stations" / "stations.xml").read_bytes() == content
    codes = rows.set_index("event_id")[["station", "onset"]]
    found = 0
    for file in folder.glob("*.parquet"):
        table = pq.read_table(file)
        geo = json.loads(table.schema.metadata[b"geo"])
        assert geo["version"] == "1.1.0"
        assert geo["columns"][geo["primary_column"]] == {"encoding": "WKB", "geometry_types": ["Point"]}
        assert table.schema.field("geometry").type == pa.binary()
        for event in table.to_pylist():
            station, onset = codes.loc[event["catalog_id"]]
            latitude, longitude = PLACES[station]
            if station == "VNA2":
                latitude += 1 if onset < pd.Timestamp("2020-12-31", tz="UTC") else 2
            assert point(event["geometry"]) == (longitude, latitude)
            found += 1
    assert found > 50


def test_without_stationxml_no_event_lies_anywhere(new_workspace: Make) -> None:
    workspace, _ = new_workspace(events_per_file=3)
    folder = hand_on(workspace)
    assert not (folder / "stations").exists()
    for file in folder.glob("*.parquet"):
        table = pq.read_table(file)
        assert table["geometry"].null_count == table.num_rows > 0
        assert json.loads(table.schema.metadata[b"geo"])["columns"]["geometry"]["geometry_types"] == []


def test_positions_are_those_that_obspy_reads_from_the_stationxml() -> None:
    inventory = read_stationxml(stationxml())
    positions = positions_by_station(
        StationList(content_hash="", positions=tuple(StationPosition(**vars(one)) for one in read_positions(inventory)))
    )
    for time in ("2020-12-30T12:00:00", "2020-12-31T00:00:00", "2021-01-01T12:00:00"):
        time_ns = obspy.UTCDateTime(time).ns
        expected = inventory.get_coordinates("AW.VNA2.00.HHZ", obspy.UTCDateTime(time) + 1)
        place = position_at(positions, "AW", "VNA2", "00", time_ns)
        assert place is not None
        assert place.latitude_deg == expected["latitude"]
        assert place.elevation_m == expected["elevation"]
    other = position_at(positions, "AW", "VNA2", "10", 0)
    assert other is not None
    assert (other.latitude_deg, other.location) == (PLACES["VNA2"][0], None)
    assert position_at(positions, "AW", "VNA9", "", 0) is None


def test_the_dataset_for_seisbench_has_every_window_and_says_whose_it_is(new_workspace: Make) -> None:
    workspace, rows = new_workspace(events_per_file=20)
    keep_stations(workspace)
    folder = hand_on(workspace) / "seisbench"
    assert (folder / "chunks").read_text() == "_2020-12\n_2021-01\n"
    events = pd.concat(pq.read_table(file).to_pandas() for file in folder.parent.glob("*.parquet"))
    catalog_id = events.explode("event_ids").set_index("event_ids")["catalog_id"]
    of_id = rows.set_index("event_id")
    hand = set(catalog_id[rows.loc[rows["label_source"] == "hand", "event_id"]])
    windows = {}
    for item in tables.list_shards(workspace.store, "events"):
        table = tables.read_table(workspace.store, item.path)
        windows |= dict(zip(table["event_id"].to_pylist(), tables.waveforms(table["waveform"]), strict=True))
    seen = []
    for chunk in ("_2020-12", "_2021-01"):
        metadata = pd.read_csv(folder / f"metadata{chunk}.csv", dtype={"station_code": str})
        with h5py.File(folder / f"waveforms{chunk}.hdf5") as file:
            described = {name: value[()] for name, value in file["data_format"].items()}
            assert described["dimension_order"] == b"CW"
            assert described["component_order"] == b"ENZ"
            assert described["sampling_rate"] == RATE_HZ
            for row in metadata.itertuples():
                bucket, _, place = row.trace_name.partition("$")
                trace = file["data"][bucket][int(place.split(",")[0])]
                expected = windows[row.trace_event_id]
                np.testing.assert_array_equal(trace, np.nan_to_num(expected))
                assert row.trace_completeness == pytest.approx(1 - np.isnan(expected).mean())
                event = of_id.loc[row.trace_event_id]
                start = pd.Timestamp(row.trace_start_time)
                onset = start + pd.Timedelta(seconds=row.trace_onset_sample / row.trace_sampling_rate_hz)
                assert abs(onset - event["onset"]) < pd.Timedelta(microseconds=2)
                assert (row.station_code, row.trace_label) == (event["station"], event["label"])
                assert (row.trace_cluster, row.trace_clustering) == (event["cluster"], "0123456789abcdef")
                assert row.source_id == catalog_id[row.trace_event_id]
                assert row.station_longitude_deg == PLACES[event["station"]][1]
                validation = in_validation([row.source_id])[0]
                assert row.split == (("dev" if validation else "test") if row.source_id in hand else "train")
                seen.append(row.trace_event_id)
    assert sorted(seen) == sorted(rows["event_id"])


def test_halves_that_the_hand_labels_name_are_the_split_of_the_dataset(new_workspace: Make, tmp_path: Path) -> None:
    workspace, rows = new_workspace(events_per_file=6)
    hand = rows[rows["label_source"] == "hand"]
    given = hand[["event_id", "label"]].assign(split="validation")
    given.to_csv(tmp_path / "hand.csv", index=False)
    workspace.store_config("label", config.resolve({"labels": {"path": str(tmp_path / "hand.csv")}}))
    folder = hand_on(workspace, ("seisbench",)) / "seisbench"
    traces = pd.concat(pd.read_csv(file) for file in folder.glob("metadata*.csv"))
    assert set(traces.loc[traces["trace_event_id"].isin(hand["event_id"]), "split"]) == {"dev"}
    assert "test" not in set(traces["split"])
    (tmp_path / "hand.csv").unlink()
    with pytest.raises(InputError, match=r"labels\.path"):
        hand_on(workspace, ("seisbench",))


def test_a_dataset_of_one_month_is_one_pair_of_files_and_a_second_run_gives_the_same_bytes(new_workspace: Make) -> None:
    workspace, _ = new_workspace(events_per_file=4)
    for table in ("events", "embeddings", "labels"):
        for item in tables.list_shards(workspace.store, table):
            if item.path.endswith("2021-01-01.parquet"):
                workspace.store.remove(item.path)
    first = {file.name: file.read_bytes() for file in (hand_on(workspace) / "seisbench").iterdir()}
    assert set(first) == {"metadata.csv", "waveforms.hdf5"}
    assert {file.name: file.read_bytes() for file in (hand_on(workspace) / "seisbench").iterdir()} == first


def test_without_h5py_the_dataset_is_refused_and_the_catalogue_stays(
    new_workspace: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, _ = new_workspace(events_per_file=3)
    folder = hand_on(workspace, ("csv",))
    before = sorted(file.name for file in folder.iterdir())
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError, match=r"pip install 'firnline\[seisbench\]'"):
        hand_on(workspace)
    assert sorted(file.name for file in folder.iterdir()) == before


def test_markers_have_every_event_with_its_picks(new_workspace: Make) -> None:
    workspace, rows = new_workspace(events_per_file=10)
    folder = hand_on(workspace)
    events = pd.concat(pq.read_table(file).to_pandas() for file in sorted(folder.glob("*.parquet")))
    of_id = rows.set_index("event_id")
    lines = [line for file in sorted(folder.glob("*.markers")) for line in file.read_text().splitlines()]
    fields = [shlex.split(line) for line in lines if not line.startswith("#")]
    assert len(lines) - len(fields) == 2
    opened = [row for row in fields if row[0] == "event:"]
    assert [row[10] for row in opened] == events["catalog_id"].tolist()
    assert [int(row[3]) for row in opened] == events["cluster"].tolist()
    picks = [row for row in fields if row[0] == "phase:"]
    assert all(len(row) == 14 for row in picks)
    by_time = {(row[7], f"{row[1]}T{row[2]}Z"): row for row in picks}
    assert len(by_time) == len(picks) == len(rows)
    for event_id, row in of_id.iterrows():
        channel = f"{row['network']}.{row['station']}.{row['location']}.HHZ"
        marker = by_time[channel, catalogue.iso_times(pd.Series([row["onset"]]), "us")[0]]
        lasts = pd.Timestamp(f"{marker[3]} {marker[4]}") - pd.Timestamp(f"{marker[1]} {marker[2]}")
        assert lasts.total_seconds() == pytest.approx(row["duration_s"], abs=1e-5)
        assert event_id in set(events.set_index("catalog_id").loc[marker[8], "event_ids"])
        assert marker[11] == row["label"]


def test_the_confidence_of_propagated_labels_is_carried(new_workspace: Make) -> None:
    workspace, rows = new_workspace(events_per_file=6, by_hand=False)
    for item in tables.list_shards(workspace.store, "labels"):
        table = tables.read_table(workspace.store, item.path)
        given = np.linspace(0.5, 0.9, table.num_rows).astype(np.float32)
        index = table.schema.get_field_index("label_source")
        table = table.set_column(index, "label_source", pa.array(["propagated"] * table.num_rows))
        index = table.schema.get_field_index("confidence")
        tables.write_table(
            workspace.store, item.path, table.set_column(index, table.schema.field(index), pa.array(given))
        )
    folder = hand_on(workspace)
    events = pd.concat(pq.read_table(file).to_pandas() for file in folder.glob("*.parquet"))
    assert events["confidence"].between(0.5, 0.9).all()
    assert set(events["clustering"]) == {""}
    texts = "".join(file.read_text() for file in folder.glob("*.xml"))
    assert texts.count("propagated, confidence 0.") == len(events) + len(rows)
    traces = pd.concat(pd.read_csv(file) for file in (folder / "seisbench").glob("metadata*.csv"))
    assert traces["trace_label_confidence"].between(0.5, 0.9).all()


def test_slices_of_a_month_give_the_same_bytes_as_the_whole(
    new_workspace: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, _ = new_workspace(events_per_file=25)
    keep_stations(workspace)
    formats = ("quakeml", "csv", "parquet", "pyrocko")
    whole = {file.name: file.read_bytes() for file in hand_on(workspace, formats).glob("2*")}
    for rows in (1, 7, 60):
        monkeypatch.setattr(stage_catalogue, "SLICE_ROWS", rows)
        monkeypatch.setattr(stage_catalogue, "_FIRST_LOOK_BACK_S", 1.0)
        assert {file.name: file.read_bytes() for file in hand_on(workspace, formats).glob("2*")} == whole


@settings(max_examples=200, deadline=None)
@given(
    gaps=st.lists(st.integers(0, 40), min_size=1, max_size=60),
    within_seconds=st.sampled_from([0.0, 3.0, 10.0, 35.0]),
    cut=st.integers(0, 60),
)
def test_who_takes_detections_at_a_cut_is_known_from_the_onsets_just_before_or_not_at_all(
    gaps: list[int], within_seconds: float, cut: int
) -> None:
    onset_ns = np.cumsum(np.array(gaps, dtype=np.int64)) * 10**9
    opened = -(10**18)
    for onset in onset_ns.tolist():
        if onset > opened + within_seconds * 1e9:
            opened = onset
    expected = opened + round(within_seconds * 1e9)
    from_ns = int(onset_ns[min(cut, len(onset_ns) - 1)])
    part = onset_ns[onset_ns >= from_ns]
    assert catalogue.taken_before(onset_ns, 0, within_seconds, complete=True) == expected
    assert catalogue.taken_before(part, from_ns, within_seconds, complete=False) in (expected, None)


READERS = Path("build/venv-readers/bin/python")
PYROCKO = Path("build/venv-pyrocko/bin/python")


def read_by(python: Path, program: str, *arguments: object) -> dict[str, object]:
    """Run a program in another environment and return the JSON that it prints last."""
    command = [str(python), "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return answer


@pytest.mark.readers
def test_seisbench_itself_reads_the_dataset(new_workspace: Make) -> None:
    workspace, rows = new_workspace(events_per_file=20)
    keep_stations(workspace)
    folder = hand_on(workspace)
    program = """
import json, sys, warnings
import numpy as np
import seisbench.data, seisbench.generate
data = seisbench.data.WaveformDataset(sys.argv[1], component_order="ZNE")
ids = {row.trace_event_id: index for index, row in enumerate(data.metadata.itertuples())}
waveform, metadata = data.get_sample(ids[sys.argv[2]])
slow = seisbench.data.WaveformDataset(sys.argv[1], sampling_rate=25.0)
generator = seisbench.generate.GenericGenerator(data.train())
generator.augmentation(seisbench.generate.WindowAroundSample("trace_onset_sample", samples_before=50, windowlen=150,
    strategy="pad"))
print(json.dumps({
    "traces": len(data), "split": [len(data.train()), len(data.dev()), len(data.test())],
    "waveform": waveform.tolist(), "order": metadata["trace_component_order"], "rate": data.sampling_rate,
    "slow": list(slow.get_waveforms(0).shape), "window": list(generator[0]["X"].shape), "chunks": data.chunks}))
"""
    wanted = rows["event_id"].iloc[30]
    answer = read_by(READERS, program, folder / "seisbench", wanted)
    path = next(
        item.path
        for item in tables.list_shards(workspace.store, "events")
        if tables.read_events(workspace.store, item.path, [wanted], ["event_id"]).num_rows
    )
    window = tables.waveforms(tables.read_events(workspace.store, path, [wanted], ["waveform"])["waveform"])[0]
    assert answer["traces"] == sum(answer["split"]) == len(rows)  # type: ignore[call-overload]
    assert all(answer["split"])  # type: ignore[call-overload]
    np.testing.assert_allclose(answer["waveform"], window[::-1], rtol=1e-6)  # type: ignore[arg-type]
    assert answer["slow"] == [3, 150]
    assert answer["window"] == [3, 150]
    assert answer["chunks"] == ["_2020-12", "_2021-01"]


@pytest.mark.readers
def test_geopandas_reads_the_points(new_workspace: Make) -> None:
    workspace, _ = new_workspace(events_per_file=8)
    program = """
import glob, json, sys
import geopandas, pandas
frame = pandas.concat(geopandas.read_parquet(name) for name in sorted(glob.glob(sys.argv[1] + "/*.parquet")))
print(json.dumps({"crs": str(frame.crs), "events": len(frame), "known": int(frame.geometry.notna().sum()),
    "places": sorted({(one.x, one.y) for one in frame.geometry if one is not None})}))
"""
    nowhere = read_by(READERS, program, hand_on(workspace))
    assert nowhere["known"] == 0
    keep_stations(workspace)
    answer = read_by(READERS, program, hand_on(workspace))
    assert answer["crs"] == "OGC:CRS84"
    assert answer["known"] == answer["events"] == nowhere["events"]
    assert [4.5, -71.25] in answer["places"]  # type: ignore[operator]


@pytest.mark.readers
@pytest.mark.parametrize("label", ["icequake (deep)", 'it\'s\ta "spike" \\ bell\x07', "Eisbeben ✓", "None", "#"])
def test_pyrocko_itself_reads_the_markers(new_workspace: Make, label: str) -> None:
    workspace, rows = new_workspace(events_per_file=8)
    for item in tables.list_shards(workspace.store, "labels"):
        table = tables.read_table(workspace.store, item.path)
        index = table.schema.get_field_index("label")
        odd = table.set_column(index, table.schema.field(index), [[label] * table.num_rows])
        tables.write_table(workspace.store, item.path, odd)
    program = """
import glob, json, sys
from pyrocko.gui.marker import EventMarker, PhaseMarker, associate_phases_to_events, load_markers
markers = [one for name in sorted(glob.glob(sys.argv[1] + "/*.markers")) for one in load_markers(name)]
associate_phases_to_events(markers)
picks = [one for one in markers if isinstance(one, PhaseMarker)]
print(json.dumps({"events": [one.get_event().name for one in markers if isinstance(one, EventMarker)],
    "picks": len(picks), "without_event": sum(one.get_event() is None for one in picks),
    "phases": sorted({str(one.get_phasename()) for one in picks}),
    "channels": sorted({".".join(one.nslc_ids[0]) for one in picks})}))
"""
    folder = hand_on(workspace)
    answer = read_by(PYROCKO, program, folder)
    events = pd.concat(pq.read_table(file).to_pandas() for file in sorted(folder.glob("*.parquet")))
    assert answer["events"] == events["catalog_id"].tolist()
    assert answer["picks"] == len(rows)
    assert answer["without_event"] == 0
    assert answer["channels"] == ["AW.VNA1..HHZ", "AW.VNA2.00.HHZ", "XX.0101..HHZ"]
    shown = "".join(letter if letter.isprintable() and letter != "\\" else "\ufffd" for letter in label)
    assert answer["phases"] == [shown]
