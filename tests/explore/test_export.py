"""The copy of the explorer for reading: what it holds, that it opens from a disk, and that it destroys nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from chromium import Chromium

from jobs import explore as job
from pipelines.explore.export import held_target
from pipelines.explore.export_sample import choose_branches, choose_events, nearest_of
from pipelines.workspace import tables
from pipelines.workspace.storage import open_store
from pipelines.workspace.workspace import Workspace

Rows = tuple[Workspace, pd.DataFrame]
QUIET = "byId('events').getAttribute('aria-busy') === 'false'"


def export(workspace: Workspace, folder: object, **settings: int) -> int:
    flags = [word for name, value in settings.items() for word in (f"--explore.{name}", str(value))]
    return job.main([workspace.url, "--explore.export", str(folder), *flags])


def opened(browser: Chromium, folder: Path) -> None:
    browser.open((folder / "index.html").as_uri())
    browser.until(f"map.deck && map.layout === 'neighbours' && state.events.length && {QUIET}")


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_colleague_opens_the_copy_from_a_disk_and_looks_through_it_without_a_network(
    browser: Chromium, clustered: Rows, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace, rows = clustered
    event_id = rows["event_id"].iloc[0]
    workspace.store.write("hand-labels.csv", f"event_id,label\n{event_id},iceberg\n".encode())
    assert export(workspace, tmp_path / "copy", export_events=30, page_events=6) == 0
    said = capsys.readouterr().out
    assert f"open {tmp_path}/copy/index.html" in said
    # Moved to a place of its own, as when it is handed on; the workspace is gone.
    folder = Path(shutil.move(tmp_path / "copy", tmp_path / "colleague's desk"))
    shutil.move(workspace.url, tmp_path / "gone")
    opened(browser, folder)
    words = browser.run("byId('export').textContent")
    assert words in said
    assert "have all 360 events" in words
    assert "are here for 30 of them: from every cluster alike" in words

    # A click on an event shows its waveform and spectrogram.
    drawn = browser.run("firnline.found.map.drawn[0]")
    x, y = browser.run(
        f"(({{left, top}}) => {{ const [x, y] = toScreen(map.xy[2 * {drawn}], map.xy[2 * {drawn} + 1]);"
        "return [left + x, top + y]; })(byId('map').getBoundingClientRect())"
    )
    browser.drag((x, y))
    browser.until("state.events.length === 1 && document.querySelectorAll('.event .drawing svg').length === 1")
    shown = rows.set_index("event_id").loc[browser.run("state.events[0].event_id")]
    assert browser.run("[state.events[0].site, state.events[0].onset, state.events[0].cluster]") == [
        f"{shown['network']}.{shown['station']}",
        shown["onset"].strftime("%Y-%m-%d %H:%M:%S"),
        shown["cluster"],
    ]
    assert "SNR" in browser.run("document.querySelector('.event .details').textContent")
    # Of the window of 6 s, 1.5 of them before the onset, half about the onset.
    texts = "[...document.querySelectorAll('.drawing svg text')].map((node) => node.textContent)"
    assert {"2", "4"} <= set(browser.run(texts))
    browser.press("t", "t")
    browser.until(f"!{texts}.includes('4')")
    assert "2.0" in browser.run(texts)
    browser.press("t")
    browser.until(f"{texts}.includes('4')")
    browser.run("document.querySelector('.event .near').click()")
    browser.until(f"state.events.length === 13 && {QUIET}")

    # An event without one says so.
    plain = browser.run("[...map.clusters.keys()].find((at) => !firnline.found.map.drawn.includes(at))")
    browser.run(f"open_(ofPoints('The event', [{plain}]))")
    browser.until(f"state.events.length === 1 && {QUIET}")
    assert "is not in this copy" in browser.run("document.querySelector('.event .drawing').textContent")

    # The list is filtered by cluster, hour, station, time and hand label as at the server.
    browser.run("document.querySelector('[data-view=list]').click()")
    browser.run("narrow({ label: 'iceberg' })")
    browser.until(f"state.events.length === 1 && {QUIET}")
    assert browser.run("state.events[0].event_id") == event_id
    assert browser.run("document.querySelector('.event .buttons').textContent") == "labelled by hand: iceberg"
    browser.run("narrow({ label: '*', site: 'XX.0101', hour: '11', start: '2020-12-31', end: '2021-01-01T00:00' })")
    browser.until(f"state.events.every((event) => event.site === 'XX.0101') && {QUIET}")
    times = rows[(rows["station"] == "0101") & (rows["onset"].dt.hour == 11)].set_index("onset").sort_index()
    wanted = times[(times.index >= "2020-12-31") & (times.index < "2021-01-01")]["event_id"].tolist()
    assert browser.run("state.events.map((event) => event.event_id)") == wanted

    # Hours and stations count all events, and the merge tree has its branches.
    browser.run("narrow({ site: '', hour: '', start: '', end: '' })")
    browser.run("document.querySelector('[data-view=places]').click()")
    browser.until("byId('places-words').textContent.startsWith('360 events.')")
    browser.run("document.querySelector('[data-view=tree]').click()")
    browser.until("byId('branch').options.length === 6")
    browser.run("byId('branch').selectedIndex = 1; byId('branch').dispatchEvent(new Event('change'))")
    browser.until(f"document.querySelector('#branch-figure svg') && {QUIET} && state.events.length === 6")

    # Nothing can be changed, and no request has left the disk.
    changing = "#undo, .rename, .bulk, [data-view=suggested], [data-view=doubtful], .buttons button"
    visible = f"[...document.querySelectorAll('{changing}')]"
    assert browser.run(f"{visible}.filter((node) => node.checkVisibility()).length") == 0
    browser.run("document.querySelector('.event').focus()")
    browser.press("1", "u", "j", "n")
    assert browser.run("fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'refused')") == "refused"
    refused = [text for text in browser.complaints if "127.0.0.1:9" not in text]
    assert refused == []
    loaded = browser.run("performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert {name.partition(":")[0] for name in loaded} <= {"file", "data"}


def test_the_copy_fits_a_telephone_and_follows_the_dark_theme(
    browser: Chromium, clustered: Rows, tmp_path: Path
) -> None:
    assert export(clustered[0], tmp_path / "copy", export_events=6, page_events=6) == 0
    browser.resize(390, 844, dark=True)
    opened(browser, tmp_path / "copy")
    for view in ("map", "list", "places", "tree"):
        browser.run(f"document.querySelector('[data-view={view}]').click()")
        browser.until(QUIET)
        if view == "tree":
            browser.until("byId('branch').options.length > 0")
        assert browser.run("document.documentElement.scrollWidth") <= 390
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(16, 22, 29)"
    assert browser.complaints == []


def test_a_large_workspace_says_how_many_of_its_events_are_on_the_map(
    browser: Chromium, clustered: Rows, tmp_path: Path
) -> None:
    # The sizes that the label stage wrote are those of a part; the share is taken of them.
    assert export(clustered[0], tmp_path / "copy", export_events=0, export_map_events=40) == 0
    opened(browser, tmp_path / "copy")
    shown = browser.run("map.count")
    assert 60 < shown < 200
    words = browser.run("byId('export').textContent")
    assert f"the map and the list have {shown} of 360 events, drawn at random, by a hash of their ids." in words
    assert "Waveforms and spectrograms are here for 0 of them" in words
    browser.run("document.querySelector('[data-view=places]').click()")
    browser.until("byId('places-words').textContent.startsWith('360 events.')")
    assert browser.complaints == []


def test_the_same_workspace_gives_the_same_files(clustered: Rows, tmp_path: Path) -> None:
    assert export(clustered[0], tmp_path / "one", export_events=4) == 0
    first = files_of(tmp_path / "one")
    assert export(clustered[0], tmp_path / "one", export_events=4) == 0
    assert files_of(tmp_path / "one") == first
    assert set(first) == {*json.loads(first["firnline-export.json"])["files"], "firnline-export.json"}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("one")] == ["one"]
    # Nothing in it says where it was made.
    assert [path for path, content in first.items() if str(tmp_path).encode() in content] == []


@pytest.mark.parametrize("content", ["a photograph", "an export and a note", "a file", "a half export of another"])
def test_what_is_no_export_is_refused_in_one_sentence_and_stays(
    clustered: Rows, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    target = tmp_path / "target"
    if content == "an export and a note":
        assert export(clustered[0], target, export_events=0) == 0
        (target / "note.txt").write_text("mine")
    elif content == "a photograph":
        (target / "album").mkdir(parents=True)
        (target / "album" / "photo.jpg").write_bytes(b"\xff\xd8")
    elif content == "a file":
        target.write_text("mine")
    else:
        (tmp_path / "target.firnline-partial").mkdir()
        (tmp_path / "target.firnline-partial" / "thesis.tex").write_text("mine")
    before = files_of(tmp_path)
    capsys.readouterr()
    assert export(clustered[0], target, export_events=0) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.strip().splitlines()) == 1
    assert "explore.export" in said.err
    assert str(target) in said.err
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("folder", ["", "/events", "/labels/copy", "/../own", "/report"])
def test_no_copy_goes_into_the_folders_of_a_workspace(
    clustered: Rows, capsys: pytest.CaptureFixture[str], folder: str
) -> None:
    before = files_of(Path(clustered[0].url))
    assert export(clustered[0], clustered[0].url + folder) == 2
    assert "explore.export" in capsys.readouterr().err
    assert files_of(Path(clustered[0].url)) == before


def test_an_export_that_is_killed_leaves_the_old_copy_whole_and_the_next_one_takes_its_place(
    clustered: Rows, tmp_path: Path
) -> None:
    target = tmp_path / "copy"
    assert export(clustered[0], target, export_events=2) == 0
    before = files_of(target)
    command = [sys.executable, "-m", "jobs.explore", clustered[0].url, "--explore.export", str(target)]
    process = subprocess.Popen([*command, "--explore.export_events", "300"], start_new_session=True)
    begun = tmp_path / "copy.firnline-partial" / "figures"
    end = time.monotonic() + 120
    while not (begun.is_dir() and len(list(begun.iterdir())) > 2):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(60)
    assert files_of(target) == before
    assert export(clustered[0], target, export_events=3) == 0
    # Each in three lengths of time.
    assert len([path for path in files_of(target) if path.startswith("figures/")]) == 9
    # Nothing is left beside it, neither the beginning of the other one nor who wrote it.
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith("copy")} == {"copy"}


@pytest.mark.parametrize("where", ["a folder", "a bucket"])
def test_of_two_exports_to_one_place_the_second_is_told_who_writes_there_and_mixes_nothing(
    clustered: Rows, tmp_path: Path, moto_s3: Any, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    url = str(tmp_path / "copy") if where == "a folder" else f"{moto_s3.url}/shared/copy"
    workspace, place = clustered[0], open_store(url.rpartition("/")[0])
    with held_target(url, workspace, "firnline explore there"):
        assert export(workspace, url, export_events=1) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert len(said.err.strip().splitlines()) == 1
        assert f"{url} is in use by `firnline explore there` (process {os.getpid()} on " in said.err
        there = [item.path for item in place.walk() if item.path.startswith("copy")]
        assert there == ["copy.firnline-holder/holder.json"]
    # Who holds a place is asked before anything is read, and another place is free.
    with held_target(url, workspace, "firnline explore there"):
        assert export(workspace, f"{url}-2", export_events=1) == 0
    assert {item.path.partition("/")[0] for item in place.walk() if item.path.startswith("copy")} == {"copy-2"}


def test_a_copy_goes_to_a_bucket_and_only_an_export_is_replaced_there(
    clustered: Rows, moto_s3: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = open_store(f"{moto_s3.url}/shared")
    store.write("letters/one.txt", b"mine")
    assert export(clustered[0], f"{moto_s3.url}/shared", export_events=0) == 2
    assert "letters/one.txt" in capsys.readouterr().err or store.exists("letters/one.txt")
    assert export(clustered[0], moto_s3.url) == 2
    for events in (3, 2):
        assert export(clustered[0], f"{moto_s3.url}/shared/copy", export_events=events) == 0
    copy = store.child("copy")
    there = {item.path for item in copy.walk()}
    assert len([path for path in there if path.startswith("figures/")]) == 6
    assert {item.path.partition("/")[0] for item in store.walk()} == {"letters", "copy"}
    assert export(clustered[0], tmp_path / "copy", export_events=2) == 0
    assert {path: copy.read(path) for path in there} == files_of(tmp_path / "copy")


def test_an_event_without_its_waveform_is_counted_and_says_why(
    browser: Chromium, new_workspace: Callable[..., Rows], tmp_path: Path
) -> None:
    workspace, _ = new_workspace(events_per_file=4)
    [first, *_] = tables.list_shards(workspace.store, "events")
    table = tables.read_table(workspace.store, first)
    tables.write_table(workspace.store, first.path, table.slice(3))
    assert export(workspace, tmp_path / "copy", export_events=36) == 0
    opened(browser, tmp_path / "copy")
    assert "are here for 33 of them" in browser.run("byId('export').textContent")
    browser.run("document.querySelector('[data-view=list]').click()")
    browser.until("byId('events').textContent.includes('this event has a label but no waveform')")


def test_events_are_chosen_from_every_cluster_alike() -> None:
    random = np.random.default_rng(5)
    clusters = np.repeat(np.array([0, 1, 2], dtype=np.int32), (900, 90, 4))
    order = random.permutation(len(clusters))
    clusters = clusters[order]
    points = random.normal(size=(len(clusters), 3)).astype(np.float32) + 9 * clusters[:, None]
    distances, margins = random.random((2, len(clusters))).astype(np.float32)
    chosen = choose_events(clusters, distances, margins, [7, 8], 60)
    assert len(chosen) == len(set(chosen)) == 60
    assert {7, 8} <= set(chosen)
    sizes = np.bincount(clusters[chosen])
    assert sizes[2] == 4
    assert abs(int(sizes[0]) - int(sizes[1])) <= 2
    for cluster in (0, 1):
        own = np.flatnonzero(clusters == cluster)
        assert {*own[np.argsort(distances[own])[:8]], own[margins[own].argmin()]} <= set(chosen)
    near = nearest_of(points, chosen, 5)
    one = chosen[0]
    others = sorted(
        (number for number in chosen if number != one), key=lambda at: ((points[at] - points[one]) ** 2).sum()
    )
    assert near[one] == others[:5]
    assert len(choose_events(clusters, distances, margins, [], 10**6)) == len(clusters)
    assert choose_events(clusters, distances, margins, [], 0) == []


def test_branches_of_clusters_come_first_and_then_the_highest() -> None:
    heights = {"a": 1.0, "b": 3.0, "c": 2.0, "d": 0.5}
    assert choose_branches(heights, ["d", "leaf", "a"], 4) == ["d", "leaf", "b", "c"]
    assert choose_branches(heights, [], 9) == ["b", "c", "a", "d"]
