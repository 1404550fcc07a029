"""The listing of an archive that holds what cannot be read: the rest is used, and each of these has its reason."""

import gzip
import os
import shutil
import socket
import tempfile
from pathlib import Path

import numpy as np
import obspy
import pyarrow as pa
import pytest

from pipelines import config as configuration
from pipelines.archive.manifest import (
    MANIFEST_PATH,
    SCHEMA,
    Manifest,
    build_manifest,
    read_manifest,
    write_manifest,
)
from pipelines.detect.stage_plan import count_days, plan_shards
from pipelines.runtime.errors import InputError
from pipelines.workspace.storage import check_readable, open_store

SDS = "2022/XX/0101/HHZ.D/XX.0101..HHZ.D.2022.001"


def write_day(root: Path, path: str, *, start: str = "2022-01-01", network: str = "XX", station: str = "0101") -> None:
    """Write a minute of one channel, at the end of a file."""
    trace = obspy.Trace(np.arange(1200, dtype=np.int32), {"network": network, "station": station, "channel": "HHZ"})
    trace.stats.sampling_rate = 20.0
    trace.stats.starttime = obspy.UTCDateTime(start)
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    with (root / path).open("ab") as file:
        trace.write(file, format="MSEED", reclen=512)


def manifest_of(root: Path, **settings: object) -> Manifest:
    return build_manifest(open_store(str(root)), configuration.resolve({"archive": settings}).archive)


def listed(root: Path, layout: str = "auto", **settings: object):
    """Return the keys that can be used, and the reasons of those that cannot."""
    manifest = manifest_of(root, layout=layout, **settings)
    return manifest.usable()["key"].to_pylist(), dict(manifest.unusable())


@pytest.fixture
def archive():
    """Yield a folder with one day file that any user may read."""
    # Not pytest's folder, which is closed to others.
    root = Path(tempfile.mkdtemp(prefix="firnline-archive-"))
    try:
        root.chmod(0o755)
        write_day(root, SDS)
        yield root
    finally:
        shutil.rmtree(root)


@pytest.mark.parametrize("layout", ["auto", "flat"])
def test_what_others_keep_closed_is_listed_and_the_rest_is_used(archive, another_user, layout):
    closed = SDS.replace("001", "002")
    write_day(archive, closed)
    (archive / closed).chmod(0o600)
    (archive / "lost+found").mkdir(mode=0o700)
    if os.geteuid() != 0:
        (archive / closed).chmod(0)
        (archive / "lost+found").chmod(0)
    with another_user():
        usable, unusable = listed(archive, layout)
    assert usable == [SDS]
    assert unusable == {
        closed: "it cannot be read: permission denied",
        "lost+found": "the folder cannot be listed: permission denied",
    }


def test_an_archive_that_is_closed_altogether_is_named(archive, another_user):
    (archive / SDS).chmod(0 if os.geteuid() else 0o600)
    with another_user(), pytest.raises(InputError, match=rf"e\.g\. {SDS}: it cannot be read: permission denied"):
        listed(archive)
    archive.chmod(0 if os.geteuid() else 0o700)
    with another_user(), pytest.raises(InputError, match=f"the archive {archive} cannot be read: permission denied"):
        check_readable(open_store(str(archive)), what="archive")
    archive.chmod(0o755)


@pytest.mark.parametrize("layout", ["auto", "flat"])
def test_odd_names_and_links_in_a_circle_do_no_harm(archive, tmp_path, layout):
    Path(os.fsdecode(os.fsencode(archive) + b"/caf\xe9.txt")).write_text("not UTF-8")
    (archive / "itself").symlink_to("itself")
    (archive / "current").symlink_to(".")
    # A link must not take a file's own name from it; what only a link leads to is read there.
    (archive / "latest").symlink_to("2022")
    (archive / "above").symlink_to(archive)
    write_day(tmp_path, SDS.replace("001", "002"))
    (archive / "disk").symlink_to(tmp_path)
    usable, unusable = listed(archive, layout, follow_links=True)
    assert usable == [SDS, f"disk/{SDS.replace('001', '002')}"]
    assert unusable == {
        r"caf\xe9.txt": "its name is not UTF-8",
        "itself": "it cannot be read: too many levels of symbolic links",
    }


def test_a_damaged_manifest_is_made_anew(archive, tmp_path, capsys):
    workspace = open_store(str(tmp_path))
    manifest = build_manifest(open_store(str(archive)), configuration.resolve({"archive": {"layout": "flat"}}).archive)
    write_manifest(workspace, manifest)
    content = workspace.read(MANIFEST_PATH)
    for damaged in (content[:-100], b"", b"PAR1" + bytes(2000) + content[2004:]):
        workspace.write(MANIFEST_PATH, damaged)
        assert read_manifest(workspace) is None
        assert f"{MANIFEST_PATH} is damaged and is rebuilt from the archive" in capsys.readouterr().out


def test_a_manifest_of_many_files_that_are_much_alike_is_read(tmp_path):
    """Packed so well, 300,000 rows were taken for a file that decodes to more than a reader can hold."""
    days = [f"2022/XX/S{number // 365:04d}/HHZ.D/XX.S.{number % 365:03d}" for number in range(300_000)]
    columns = {name: pa.nulls(len(days), SCHEMA.field(name).type) for name in SCHEMA.names}
    columns |= {"key": pa.array(days), "etag": pa.array([f"{number:032x}" for number in range(len(days))])}
    workspace = open_store(str(tmp_path))
    write_manifest(workspace, Manifest("sds", pa.table(columns, schema=SCHEMA), len(days)))
    found = read_manifest(workspace)
    assert found is not None
    assert found[1]["key"].to_pylist() == days


def test_a_file_is_no_archive(archive):
    with pytest.raises(InputError, match=rf"the archive {archive / SDS} is a file; name the folder that holds it"):
        check_readable(open_store(str(archive / SDS)), what="archive")


def test_only_recordings_below_the_archive_are_opened_and_the_rest_is_named(archive, tmp_path):
    write_day(tmp_path, "elsewhere")
    (archive / "dangling").symlink_to("nowhere")
    (archive / "outside").symlink_to(tmp_path / "elsewhere")
    (archive / "endless").symlink_to("/dev/zero")
    (archive / "same").symlink_to(SDS)
    os.mkfifo(archive / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(archive / "socket"))
    with (archive / "sparse").open("wb") as file:
        file.truncate(2**40)
    (archive / "nothing").touch()
    usable, unusable = listed(archive, "flat")
    assert usable == [SDS, "same"] or usable == ["same", SDS]
    follow = "archive.follow_links true follows it"
    assert unusable == {
        "dangling": "it is a link to nowhere, which does not exist",
        "outside": f"it is a link out of the archive, to {tmp_path / 'elsewhere'}; {follow}",
        "endless": f"it is a link out of the archive, to /dev/zero; {follow}",
        "pipe": "it is a named pipe, not a file",
        "socket": "it is a socket, not a file",
        "sparse": f"it is a sparse file: of its {2**40} bytes only 0 are stored",
        "nothing": "the file is empty",
    }
    usable, unusable = listed(archive, "flat", follow_links=True)
    assert sorted(usable) == [SDS, "outside", "same"]
    assert unusable["endless"] == "it is a device, not a file"


def test_a_layout_is_believed_only_where_the_headers_say_the_same(archive):
    shutil.rmtree(archive / "2022")
    for day in range(1, 9):
        write_day(archive, f"XX.0101.2022.{day:03d}", start=f"2022-01-{day:02d}")
    manifest = manifest_of(archive)
    assert (manifest.layout, manifest.num_usable) == ("flat", 8)
    assert "the paths look like the earthscope layout but the headers disagree" in manifest.doubt
    assert set(manifest.usable()["station"].to_pylist()) == {"0101"}
    for day in range(1, 9):
        (archive / f"XX.0101.2022.{day:03d}").rename(archive / f"0101.XX.2022.{day:03d}")
    manifest = manifest_of(archive)
    assert (manifest.layout, manifest.num_usable, manifest.doubt) == ("earthscope", 8, None)
    # Dates that are not those of the records: in doubt, the headers are read.
    for day in range(1, 9):
        (archive / f"0101.XX.2022.{day:03d}").rename(archive / f"0101.XX.2022.{day + 100:03d}")
    assert manifest_of(archive).layout == "flat"


def test_a_record_of_another_year_costs_the_plan_a_day_and_not_the_years_between(archive):
    write_day(archive, SDS, start="1970-01-01T12:00:00")
    manifest = manifest_of(archive, layout="flat")
    assert (manifest.num_usable, manifest.num_listed) == (1, 1)
    table = manifest.usable()
    assert count_days(table) == 2
    for interval, number in {"day": 2, "month": 2, "hour": 2}.items():
        assert len(list(plan_shards(table, interval, before_ns=0, after_ns=0, settings={}))) == number


def test_a_template_without_a_day_plans_what_the_headers_hold(archive):
    shutil.rmtree(archive / "2022")
    write_day(archive, "XX_0101_2022.mseed")
    manifest = manifest_of(archive, layout="{network}_{station}_{year}.mseed")
    assert count_days(manifest.usable()) == 1


@pytest.mark.parametrize("year", ["0001", "1677", "2262", "9999"])
def test_a_year_that_no_recording_has_is_a_name_that_does_not_fit(archive, year):
    odd = SDS.replace("2022", year)
    write_day(archive, odd)
    usable, unusable = listed(archive, "sds")
    assert usable == [SDS]
    assert unusable == {odd: "its name does not fit archive.layout sds"}


def test_files_that_are_not_selected_are_counted_by_the_key_that_leaves_them_out(archive):
    for path in (SDS.replace("0101", "0102"), SDS.replace("HHZ", "HHN"), SDS.replace("001", "200")):
        write_day(archive, path)
    for layout in ("sds", "flat"):
        settings = {"layout": layout, "station": "0101", "channel": "HHZ", "end": "2022-02-01"}
        manifest = manifest_of(archive, **settings)
        assert manifest.num_listed == manifest.num_usable + manifest.not_selected.total()
    assert manifest_of(archive, layout="sds", station="0101", channel="HHZ", end="2022-02-01").not_selected == {
        "archive.station": 1,
        "archive.channel": 1,
        "archive.end": 1,
    }


def test_a_gzipped_file_confirms_a_layout_too(archive):
    content = (archive / SDS).read_bytes()
    (archive / SDS).unlink()
    (archive / f"{SDS}.gz").write_bytes(gzip.compress(content))
    assert manifest_of(archive).layout == "sds"


def with_codes(path: Path, station: bytes, channel: bytes = b"HHZ") -> None:
    """Write other codes into the headers of a file's records of 512 bytes."""
    content = bytearray(path.read_bytes())
    for first in range(0, len(content), 512):
        content[first + 8 : first + 13] = station.ljust(5)
        content[first + 15 : first + 18] = channel
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("station", [b"../..", b"A/B", b"A\x1b[2J", b"A.B"])
def test_a_header_whose_codes_act_on_a_path_is_refused_by_name(archive, station):
    write_day(archive, "evil.mseed")
    with_codes(archive / "evil.mseed", station)
    usable, unusable = listed(archive, "flat")
    assert usable == [SDS]
    assert unusable["evil.mseed"].startswith(f"the station code {station.decode()!r} in the headers is not usable")


def test_a_blank_in_a_channel_code_stays(archive):
    write_day(archive, "blank.mseed")
    with_codes(archive / "blank.mseed", b"0102", b"S Z")
    rows = {row["station"]: row for row in manifest_of(archive, layout="flat").usable().to_pylist()}
    assert (rows["0102"]["band"], rows["0102"]["channels"]) == ("S ", ["S Z"])


@pytest.mark.parametrize(("rate_hz", "num_days"), [(1e-3, 3), (1e-6, 0)])
def test_a_few_bytes_plan_a_few_days_whatever_time_they_claim(archive, rate_hz, num_days):
    trace = obspy.Trace(np.arange(90, dtype=np.int16), {"network": "XX", "station": "SLOW", "channel": "VHZ"})
    trace.stats.sampling_rate = rate_hz
    trace.stats.starttime = obspy.UTCDateTime("2022-01-01T12:00:00")
    trace.write(str(archive / "slow.mseed"), format="MSEED", reclen=256, encoding="INT16")
    assert (archive / "slow.mseed").stat().st_size == 256
    table = manifest_of(archive, layout="flat").usable()
    assert count_days(table.filter([station == "SLOW" for station in table["station"].to_pylist()])) <= num_days
