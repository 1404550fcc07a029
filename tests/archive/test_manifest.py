"""The listing of an archive that holds what cannot be read: the rest is used, and each of these has its reason."""

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import obspy
import pytest

from pipelines import config as configuration
from pipelines.archive.manifest import MANIFEST_PATH, build_manifest, read_manifest, write_manifest
from pipelines.runtime.errors import InputError
from pipelines.workspace.storage import check_readable, open_store

SDS = "2022/XX/0101/HHZ.D/XX.0101..HHZ.D.2022.001"


def write_day(root: Path, path: str) -> None:
    """Write a file with a minute of one channel."""
    trace = obspy.Trace(np.arange(1200, dtype=np.int32), {"network": "XX", "station": "0101", "channel": "HHZ"})
    trace.stats.sampling_rate = 20.0
    trace.stats.starttime = obspy.UTCDateTime(2022, 1, 1)
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    trace.write(str(root / path), format="MSEED")


def listed(root: Path, layout: str = "auto"):
    """Return the keys that can be used, and the reasons of those that cannot."""
    manifest = build_manifest(open_store(str(root)), configuration.resolve({"archive": {"layout": layout}}).archive)
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
    usable, unusable = listed(archive, layout)
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
        assert f"{MANIFEST_PATH} is damaged and is made anew from the archive" in capsys.readouterr().out


def test_a_file_is_no_archive(archive):
    with pytest.raises(InputError, match=rf"the archive {archive / SDS} is a file; name the folder that holds it"):
        check_readable(open_store(str(archive / SDS)), what="archive")
