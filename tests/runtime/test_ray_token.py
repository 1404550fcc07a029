"""The token and the folder of our Ray are this user's own, whatever another user has put in their places."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pipelines.runtime import ray_token
from pipelines.runtime.errors import InputError

ROOT = Path(__file__).resolve().parent.parent.parent
ANOTHER = 65_533


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    ray_token._private_folder.cache_clear()
    yield
    ray_token._private_folder.cache_clear()


@pytest.fixture
def base(monkeypatch):
    """Yield a folder for temporary files with a short path, which everybody can write in."""
    folder = Path(tempfile.mkdtemp(prefix="f", dir="/tmp"))
    folder.chmod(0o1777)
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    yield folder
    shutil.rmtree(folder)


def plant_file(path):
    path.write_text("planted")


def plant_link(path):
    path.symlink_to("/nowhere")


def plant_link_to_a_folder(path):
    (path.parent / "theirs").mkdir()
    path.symlink_to(path.parent / "theirs")


def plant_open_folder(path):
    path.mkdir()
    path.chmod(0o777)


def plant_folder_of_another(path):
    path.mkdir(mode=0o700)
    if os.getuid() != 0:
        pytest.skip("only root can make another user's folder")
    os.chown(path, ANOTHER, ANOTHER)


@pytest.mark.parametrize(
    "plant",
    [plant_file, os.mkfifo, plant_link, plant_link_to_a_folder, plant_open_folder, plant_folder_of_another],
)
def test_what_another_user_has_put_at_the_private_folders_path_is_left_alone(base, plant):
    usual = base / f"firnline-{os.getuid()}"
    plant(usual)
    before = usual.lstat()
    folder = ray_token.private_folder()
    assert folder.parent == base
    assert folder != usual
    assert folder.stat().st_uid == os.getuid()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert ray_token.private_folder() == folder
    assert (usual.lstat().st_ino, usual.lstat().st_mode) == (before.st_ino, before.st_mode)


def test_the_usual_private_folder_is_used_again(base):
    first = ray_token.private_folder()
    ray_token._private_folder.cache_clear()
    assert ray_token.private_folder() == first == base / f"firnline-{os.getuid()}"


def test_a_temporary_folder_that_does_not_exist_and_cannot_be_made_is_named(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(ray_token, "MAX_FOLDER_CHARACTERS", 1000)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "file" / "below"))
    with pytest.raises(InputError, match=r"no folder for Ray's sockets can be made in .*; set RAY_TMPDIR"):
        ray_token.private_folder()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make another user's file")
@pytest.mark.parametrize("configured", [True, False], ids=["in RAY_AUTH_TOKEN_PATH", "in the home folder"])
def test_a_token_file_of_another_user_is_refused_by_name(tmp_path, monkeypatch, configured):
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("f" * 64)
    os.chown(token, ANOTHER, ANOTHER)
    monkeypatch.setenv("HOME", str(tmp_path))
    if configured:
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    with pytest.raises(InputError, match=rf"{token}, which belongs to another user"):
        ray_token.token_environment()
    # Nor is it safe where they own the folder, and can put another file there.
    os.chown(token, 0, 0)
    os.chown(token.parent, ANOTHER, ANOTHER)
    with pytest.raises(InputError, match="belongs to another user"):
        ray_token.token_environment()


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (os.mkfifo, "is not a file"),
        (lambda path: path.mkdir(), "is not a file"),
        (lambda path: path.write_text(""), "is empty, unreadable or too large"),
        (lambda path: path.write_bytes(b"0" * 70_000), "is empty, unreadable or too large"),
        (lambda path: path.symlink_to("nowhere"), "cannot be read"),
    ],
    ids=["pipe", "folder", "empty", "too large", "dangling link"],
)
def test_a_token_file_that_holds_no_token_is_refused_by_name(tmp_path, monkeypatch, plant, words):
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    plant(token)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(InputError, match=rf"{token}, which {words}"):
        ray_token.token_environment()


SLEEPER = """
import sys, time
from jobs.command_line import leave, run_job
def body(arguments):
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        time.sleep(.5)
        print("cleaned up", flush=True)
leave(run_job("status", [], [], body))
"""


def test_sigterm_ends_a_job_after_its_cleaning_up_with_one_line_and_130():
    command = [sys.executable, "-c", SLEEPER]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        # A second one while it cleans up changes nothing.
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == "cleaned up\n"
    assert err == "firnline status: interrupted; run the same command again to continue\n"
