"""Formats that are not read are named; ObsPy writes the files."""

import io
import tarfile
from pathlib import Path

import numpy as np
import obspy
import pytest
from obspy.core.inventory import Inventory

from pipelines.archive.formats import NAMED_FROM_BYTES, format_problem
from pipelines.archive.manifest import build_manifest
from pipelines.archive.records import decode
from pipelines.config.archive import ArchiveSettings
from pipelines.workspace.storage import open_store


def written(name: str, path: Path, dtype: type = np.int32) -> bytes:
    samples = (np.random.default_rng(3).normal(size=3000) * 1000).astype(dtype)
    header = {"network": "XX", "station": "ABC", "channel": "HHZ", "sampling_rate": 100.0}
    obspy.Stream([obspy.Trace(samples, header)]).write(str(path / "file"), format=name)
    return next(file for file in sorted(path.iterdir()) if not file.name.endswith(".QHD")).read_bytes()


@pytest.mark.parametrize(
    ("name", "right", "dtype"),
    [
        ("SAC", "SAC", np.float32),
        ("GSE2", "GSE2", np.int32),
        ("SEGY", "SEG-Y", np.float32),
        ("SLIST", "SLIST", np.int32),
        ("TSPAIR", "TSPAIR", np.int32),
        ("SH_ASC", "SH", np.int32),
        ("WAV", "WAV", np.int32),
        ("SACXY", "text file", np.float32),
    ],
)
def test_a_file_that_obspy_writes_in_another_format_is_named(name: str, right: str, dtype: type, tmp_path: Path):
    problem = format_problem(written(name, tmp_path, dtype)[:NAMED_FROM_BYTES])
    assert right in problem
    assert "miniSEED" in problem


def test_big_endian_sac_is_named(tmp_path: Path):
    trace = obspy.Trace(np.arange(1000, dtype=np.float32), {"sampling_rate": 50.0})
    trace.write(str(tmp_path / "file"), format="SAC", byteorder=1)
    assert "SAC" in format_problem((tmp_path / "file").read_bytes())


def test_archives_and_metadata_are_named(tmp_path: Path):
    buffer = io.BytesIO()
    Inventory(networks=[], source="test").write(buffer, format="STATIONXML")
    assert "archive.stationxml takes it" in format_problem(buffer.getvalue())
    with tarfile.open(tmp_path / "x.tar", "w") as packed:
        packed.add(__file__, "x")
    assert "tar archive" in format_problem((tmp_path / "x.tar").read_bytes()[:NAMED_FROM_BYTES])
    assert "XML or HTML" in format_problem(b"<!DOCTYPE html><html>")
    assert "text file" in format_problem(b"station,time\nA,2020-01-01\n")


def test_a_folder_of_several_formats_is_read_where_it_is_miniseed_and_named_where_not(tmp_path: Path):
    archive = tmp_path / "archive"
    archive.mkdir()
    for name in ("MSEED", "SAC", "GSE2"):
        (tmp_path / name).mkdir()
        content = written(name, tmp_path / name, np.float32 if name == "SAC" else np.int32)
        (archive / f"file.{name.lower()}").write_bytes(content)
    manifest = build_manifest(open_store(str(archive)), ArchiveSettings(layout="flat"))
    reasons = dict(manifest.unusable())
    assert set(reasons) == {"file.sac", "file.gse2"}
    assert reasons["file.sac"].startswith("SAC, which is not read")
    assert reasons["file.gse2"].startswith("GSE2 or IMS, which is not read")
    assert set(manifest.usable()["key"].to_pylist()) == {"file.mseed"}


def test_control_headers_of_full_seed_do_not_spoil_its_data_records(tmp_path: Path):
    data = written("MSEED", tmp_path)
    text = b"010009502.1121992,001,00:00:00.0000~1992,002,00:00:00.0000~~D RQ".ljust(4088)
    control = b"".join(b"%06d%c " % (number, kind) + text for number, kind in enumerate(b"VAST", 1))
    alone, full = decode(data), decode(control + data)
    assert full.num_problems == 0
    assert len(full.runs) == len(alone.runs) >= 1
    for one, other in zip(full.runs, alone.runs, strict=True):
        assert (one.start_ns, one.rate_hz) == (other.start_ns, other.rate_hz)
        np.testing.assert_array_equal(one.data, other.data)
    (problem,) = decode(control).problems
    assert "without data records" in problem


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_and_miniseed_have_no_other_name(seed: int, tmp_path: Path):
    assert format_problem(np.random.default_rng(seed).bytes(5000)) == ""
    assert format_problem(b"") == ""
    assert format_problem(written("MSEED", tmp_path)) == ""
