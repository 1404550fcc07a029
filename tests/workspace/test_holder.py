"""One job writes to a workspace: a second one is refused by name, and one that died is taken over."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from jobs import report, status
from pipelines.runtime.errors import InputError, StageFailed
from pipelines.workspace import holder
from pipelines.workspace.holder import held
from pipelines.workspace.storage import open_store
from pipelines.workspace.workspace import open_workspace

HOLDING = """
import sys, time
from pipelines.workspace.holder import held
from pipelines.workspace.storage import open_store
with held(open_store(sys.argv[1]), "firnline label there"):
    print("held", flush=True)
    time.sleep(60)
"""


def start_holder(url):
    process = subprocess.Popen([sys.executable, "-c", HOLDING, url], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def rewrite(store, **values):
    """Make the file say something else, as a holder elsewhere would have written it."""
    content = json.loads(store.read("holder.json")) | values
    store.write("holder.json", json.dumps(content).encode())


def test_of_many_that_swap_at_the_same_time_one_succeeds(store):
    store.write("other", b"")
    for was in (None, b"first"):
        if was:
            store.write("x", was)
        ready, results = threading.Barrier(8), []

        def swap(number, was=was, ready=ready, results=results):
            ready.wait()
            results.append((store.swap("x", b"from %d" % number, was=was), number))

        threads = [threading.Thread(target=swap, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        [winner] = [number for done, number in results if done]
        assert store.read("x") == b"from %d" % winner
    assert not store.swap("x", b"new", was=None)
    assert not store.swap("nothing", b"new", was=b"something")
    assert not store.exists("nothing")
    assert -1 <= store.seconds_since_written("x") < 20


def test_a_second_job_is_told_who_holds_the_workspace_and_takes_it_once_that_one_was_killed(store, capsys):
    process = start_holder(store.url)
    try:
        said = rf"is in use by `firnline label there` \(process {process.pid} on .*, since 20.* UTC\); wait until"
        with pytest.raises(InputError, match=said), held(store, "firnline detect"):
            pass
        # Stopped is not dead.
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(InputError, match="is in use"), held(store, "firnline detect"):
            pass
    finally:
        process.kill()
        process.wait()
    with held(store, "firnline detect"):
        assert json.loads(store.read("holder.json"))["process"] == os.getpid()
        assert f"process {process.pid} on" in capsys.readouterr().out
    assert not store.exists("holder.json")


def test_a_holder_on_another_host_is_taken_over_once_its_lease_has_expired_and_until_then_that_is_said(
    store, monkeypatch, capsys
):
    monkeypatch.setattr(holder, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(holder, "LEASE_SECONDS", 1.5)
    with held(store, "firnline train"):
        left = json.loads(store.read("holder.json")) | {"boot": "another", "host": "node7"}
    store.write("holder.json", json.dumps(left).encode())
    with held(store, "firnline detect"):
        assert json.loads(store.read("holder.json"))["command"] == "firnline detect"
    said = capsys.readouterr()
    assert re.search(
        r"waiting for `firnline train` \(process \d+ on node7, .*; it counts as dead, .* another", said.err
    )
    assert "taken over from `firnline train`" in said.out


def test_a_holder_on_another_host_that_lives_is_seen_by_its_next_renewal(store, monkeypatch):
    monkeypatch.setattr(holder, "LOOK_SECONDS", 0.05)
    with held(store, "firnline train"):
        left = json.loads(store.read("holder.json")) | {"boot": "another", "host": "node7"}
    store.write("holder.json", json.dumps(left).encode())
    renewal = threading.Timer(0.5, lambda: rewrite(store, renewals=1))
    renewal.start()
    began = time.monotonic()
    with pytest.raises(InputError, match=r"in use by `firnline train` .* on node7, "), held(store, "firnline detect"):
        pass
    renewal.join()
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("sigint", [signal.default_int_handler, signal.SIG_IGN], ids=["foreground", "background"])
def test_a_job_that_lost_its_hold_ends(store, monkeypatch, sigint):
    before = signal.signal(signal.SIGINT, sigint)
    try:
        lose_the_hold(store, monkeypatch)
    finally:
        signal.signal(signal.SIGINT, before)


def lose_the_hold(store, monkeypatch):
    monkeypatch.setattr(holder, "RENEW_SECONDS", 0.2)

    def work():
        with held(store, "firnline train"):
            rewrite(store, token="another", command="firnline detect")
            time.sleep(30)

    with pytest.raises(StageFailed, match="was taken by another job, since this one could not renew"):
        work()
    assert json.loads(store.read("holder.json"))["command"] == "firnline detect"


def test_a_hold_is_renewed_and_a_file_that_was_cut_short_counts_as_one(store, monkeypatch):
    monkeypatch.setattr(holder, "RENEW_SECONDS", 0.05)
    with held(store, "firnline train"):
        give_up = time.monotonic() + 20
        while json.loads(store.read("holder.json"))["renewals"] < 2:
            assert time.monotonic() < give_up
            time.sleep(0.02)
    assert not store.exists("holder.json")
    monkeypatch.setattr(holder, "LEASE_SECONDS", 1.5)
    store.write("holder.json", b'{"tok')
    began = time.monotonic()
    with held(store, "firnline train"):
        assert time.monotonic() - began > 0.3


def test_jobs_that_write_are_refused_and_those_that_read_are_not(tmp_path, capsys):
    workspace = open_workspace(str(tmp_path / "workspace"), create=True)
    workspace.update_state()
    process = start_holder(workspace.url)
    try:
        assert report.main([workspace.url]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "is in use by `firnline label there`" in said
        assert status.main([workspace.url]) == 0
        assert status.main([workspace.url, "--plot"]) == 0
    finally:
        process.kill()
        process.wait()
    assert "report/coverage.png" in {item.path for item in workspace.store.walk()}


def test_a_folder_made_for_a_job_that_wrote_nothing_goes(tmp_path):
    with held(open_store(str(tmp_path / "a" / "b")), "firnline detect"):
        assert (tmp_path / "a" / "b" / "holder.json").is_file()
    assert not (tmp_path / "a").exists()
