"""The explorer: what it lists and saves, and whom it refuses."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pandas as pd
import pytest
import yaml

from jobs import explore as job
from pipelines.config.label import LabelsSettings
from pipelines.config.report import ExploreSettings
from pipelines.explore import server as server_module
from pipelines.explore.access import is_loopback
from pipelines.explore.explorer import Explorer, open_explorer
from pipelines.explore.queries import Filter
from pipelines.explore.server import ExplorerServer
from pipelines.runtime.errors import InputError
from pipelines.workspace.workspace import Workspace, open_workspace

Rows = tuple[Workspace, pd.DataFrame]


@dataclass
class Browser:
    """A client that sends exactly what a test says."""

    server: ExplorerServer
    token: str = ""

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
        connection = HTTPConnection("127.0.0.1", self.server.port, timeout=30)
        sent = {"Host": f"127.0.0.1:{self.server.port}"} | {
            name.replace("_", "-"): text for name, text in headers.items()
        }
        if self.token:
            sent["Authorization"] = f"Bearer {self.token}"
        content = None if body is None else json.dumps(body)
        connection.request(method, path, content, {name: text for name, text in sent.items() if text})
        answer = connection.getresponse()
        found = answer.status, dict(answer.getheaders()), answer.read()
        connection.close()
        return found

    def get(self, path: str, **query: object) -> Any:
        status, _, content = self.ask("GET", f"{path}?{urlencode(query)}")
        assert status == 200, content
        return json.loads(content)

    def post(self, path: str, body: object, **headers: str) -> tuple[int, Any]:
        sent = {"Content_Type": "application/json"} | headers
        status, _, content = self.ask("POST", path, body, **sent)
        return status, json.loads(content) if content.startswith(b"{") else content.decode()


@contextmanager
def serving(explorer: Explorer, settings: ExploreSettings) -> Iterator[ExplorerServer]:
    with ExplorerServer(explorer, settings) as server:
        thread = threading.Thread(target=server.serve)
        thread.start()
        yield server
        server.stop()
        thread.join()


@pytest.fixture
def browser(small_workspace: Rows, tmp_path: Path) -> Iterator[Browser]:
    """A browser that knows the token of a server whose labels lie in a folder of the test's own."""
    settings = ExploreSettings(port=0, labels_path=str(tmp_path / "labels.csv"), page_events=50)
    explorer = open_explorer(small_workspace[0], settings, LabelsSettings())
    with serving(explorer, settings) as server:
        yield Browser(server, server.access.token)


def all_pages(browser: Browser, **query: object) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    cursor = ""
    while True:
        answer = browser.get("/api/events", cursor=cursor, **query)
        events += answer["events"]
        cursor = answer["cursor"]
        if not cursor:
            return events


def test_all_pages_together_list_every_event_once_in_order_of_station_and_time(
    browser: Browser, small_workspace: Rows
) -> None:
    events = all_pages(browser)
    rows = small_workspace[1].sort_values(["network", "station", "onset"])
    assert [event["event_id"] for event in events] == rows["event_id"].tolist()


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"cluster": 1}, "cluster == 1"),
        ({"site": "XX.0101"}, "station == '0101'"),
        ({"start": "2020-12-30T06:00", "end": "2020-12-31"}, "@at('2020-12-30 06:00') <= onset < @at('2020-12-31')"),
        ({"cluster": 2, "site": "AW.VNA2"}, "cluster == 2 and station == 'VNA2'"),
        ({"label": "icequake"}, "cluster > 9"),
    ],
)
def test_filters_list_the_events_that_they_say(
    browser: Browser, small_workspace: Rows, query: dict[str, object], expected: str
) -> None:
    rows = small_workspace[1]

    def at(text: str) -> pd.Timestamp:
        return pd.Timestamp(text, tz="UTC")

    assert {event["event_id"] for event in all_pages(browser, **query)} == set(
        rows.query(expected, local_dict={"at": at})["event_id"]
    )


@pytest.mark.parametrize(
    ("order", "column", "rising"),
    [("uncertain", "margin", True), ("typical", "distance", True), ("far", "distance", False)],
)
def test_the_first_page_has_the_least_certain_the_most_typical_or_the_farthest_events(
    browser: Browser, small_workspace: Rows, order: str, column: str, rising: bool
) -> None:
    first = browser.get("/api/events", order=order)["events"]
    sorted_rows = small_workspace[1].sort_values([column, "event_id"], ascending=[rising, True])
    expected = sorted_rows["event_id"].head(50)
    assert [event["event_id"] for event in first] == expected.tolist()
    assert len(all_pages(browser, order=order)) == len(small_workspace[1])


def test_a_label_is_saved_in_the_form_that_labels_path_reads_and_can_be_removed(
    browser: Browser, tmp_path: Path
) -> None:
    listed = browser.get("/api/events")["events"]
    ids = [event["event_id"] for event in listed[:3]]
    status, answer = browser.post("/api/labels", {"event_ids": ids, "label": "icequake"})
    assert (status, answer) == (200, {"labels": {"icequake": 3}, "undo": "the label of 3 events"})
    browser.post("/api/labels", {"event_ids": ids[:1], "label": None})
    table = pd.read_csv(tmp_path / "labels.csv", dtype=str)
    assert table.to_dict("list") == {"event_id": sorted(ids[1:]), "label": ["icequake", "icequake"]}
    assert {event["event_id"] for event in all_pages(browser, label="icequake")} == set(ids[1:])
    assert browser.get("/api/summary")["labels"] == {"icequake": 2}


def test_labels_that_another_program_adds_meanwhile_are_kept(browser: Browser, tmp_path: Path) -> None:
    event_id = browser.get("/api/events")["events"][0]["event_id"]
    (tmp_path / "labels.csv").write_text("event_id,label\nsomeone-elses,spike\n")
    browser.post("/api/labels", {"event_ids": [event_id], "label": "icequake"})
    assert set(pd.read_csv(tmp_path / "labels.csv")["event_id"]) == {"someone-elses", event_id}


def test_a_figure_is_drawn_for_a_listed_event_only(browser: Browser) -> None:
    event_id = browser.get("/api/events")["events"][0]["event_id"]
    figure = browser.get("/api/figure", event_id=event_id)
    assert figure["svg"].startswith("<svg")
    assert figure["details"][0].startswith("SNR")
    status, _, content = browser.ask("GET", "/api/figure?event_id=../../workspace.json")
    assert status == 400
    assert b"listed" in content


def test_only_listed_events_and_plain_labels_are_taken(browser: Browser, tmp_path: Path) -> None:
    assert browser.post("/api/labels", {"event_ids": ["AW.X"], "label": "icequake"})[0] == 400
    event_id = browser.get("/api/events")["events"][0]["event_id"]
    for label in ("=cmd()", "<script>", "", 5, ["a"]):
        assert browser.post("/api/labels", {"event_ids": [event_id], "label": label})[0] == 400
    assert browser.post("/api/labels", ["no object"])[0] == 400
    assert not (tmp_path / "labels.csv").exists()


def test_a_cluster_gets_a_name_that_labels_names_reads(new_workspace: Callable[..., Rows]) -> None:
    workspace, _ = new_workspace(events_per_file=2)
    explorer = open_explorer(workspace, ExploreSettings(), LabelsSettings())
    explorer.set_name(0, "icequake")
    explorer.set_name(2, "spike")
    assert explorer.set_name(2, None) == {"names": {0: "icequake"}, "undo": "the name of cluster 2"}
    saved = yaml.safe_load(workspace.store.read("cluster-names.yaml"))
    assert saved.pop("clustering")
    assert saved == {0: "icequake"}
    with pytest.raises(ValueError, match="no cluster 7"):
        explorer.set_name(7, "tremor")


def test_a_workspace_in_a_bucket_is_browsed_and_labelled(
    fill_workspace: Callable[..., pd.DataFrame], moto_s3: Any
) -> None:
    workspace = open_workspace(f"{moto_s3.url}/runs/neumayer", create=True)
    workspace.update_state()
    rows = fill_workspace(workspace.store, events_per_file=2)
    explorer = open_explorer(workspace, ExploreSettings(), LabelsSettings())
    events, _ = explorer.list_events(Filter(site="XX.0101"), "", 50)
    assert {event["event_id"] for event in events} == set(rows.loc[rows["station"] == "0101", "event_id"])
    assert explorer.figure(events[0]["event_id"])["svg"].startswith("<svg")
    explorer.set_labels({events[0]["event_id"]: "spike"})
    assert workspace.store.read("hand-labels.csv").decode() == f"event_id,label\n{events[0]['event_id']},spike\n"


def test_without_the_token_nothing_of_the_workspace_is_shown(browser: Browser) -> None:
    for token in ("", "guess", f"{browser.token}x"):
        stranger = Browser(browser.server, token)
        paths = ("/api/summary", "/api/events", "/api/figure?event_id=a", "/api/map/clusters", "/api/nothing", "/api/")
        for path in paths:
            status, _, content = stranger.ask("GET", path)
            assert status == 403
            assert b"AW" not in content
        for path in ("/", "/explore.js", "/explore.css", f"/?token={browser.token}"):
            status, _, content = stranger.ask("GET", path)
            assert status == 200
            assert b"VNA1" not in content
            assert browser.token.encode() not in content


def test_no_answer_sets_a_cookie_and_a_cookie_lets_nobody_in(browser: Browser) -> None:
    for path in ("/", f"/?token={browser.token}", "/api/summary", "/explore.js"):
        assert "set-cookie" not in {name.lower() for name in browser.ask("GET", path)[1]}
    stranger = Browser(browser.server)
    cookie = f"firnline_{browser.server.port}={browser.token}; token={browser.token}"
    assert stranger.ask("GET", "/api/summary", Cookie=cookie)[0] == 403
    assert stranger.ask("GET", f"/api/summary?token={browser.token}")[0] == 403


def test_another_site_cannot_change_labels_through_the_browser(browser: Browser, tmp_path: Path) -> None:
    event_id = browser.get("/api/events")["events"][0]["event_id"]
    change = {"event_ids": [event_id], "label": "icequake"}
    assert Browser(browser.server).post("/api/labels", change)[0] == 403
    assert Browser(browser.server, "guess").post("/api/labels", change)[0] == 403
    assert browser.post("/api/labels", change, Origin="http://evil.example")[0] == 403
    assert browser.post("/api/labels", change, Origin="null")[0] == 403
    assert browser.post("/api/labels", change, Origin=f"http://127.0.0.1:{browser.server.port + 1}")[0] == 403
    assert browser.post("/api/labels", change, Content_Type="text/plain")[0] == 400
    assert browser.ask("GET", "/api/labels")[0] == 405
    # A page of another origin may send the header only where the server agrees beforehand; it never does.
    status, headers, _ = browser.ask("OPTIONS", "/api/labels", Origin="http://evil.example")
    assert status != 200
    assert not [name for name in headers if name.lower().startswith("access-control")]
    assert not (tmp_path / "labels.csv").exists()
    own = f"http://127.0.0.1:{browser.server.port}"
    assert browser.post("/api/labels", change, Origin=own)[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1", "localhost:1", ""])
def test_a_name_that_points_here_but_is_not_ours_is_refused(browser: Browser, host: str) -> None:
    status, _, content = browser.ask("GET", "/api/summary", Host=host or " ")
    assert status == 403
    assert b"host name" in content


def test_every_answer_forbids_foreign_scripts_and_caches(browser: Browser) -> None:
    for path in ("/", "/explore.js", "/api/summary", "/nothing", "/api/nothing", "/api/figure"):
        _, found, _ = browser.ask("GET", path)
        headers = {name.lower(): text for name, text in found.items()}
        assert "default-src 'none'; script-src 'self'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers


@pytest.mark.parametrize("path", ["/../workspace.json", "/%2e%2e/workspace.json", "//etc/passwd", "/explore.html"])
def test_no_other_file_is_served(browser: Browser, path: str) -> None:
    assert browser.ask("GET", path)[0] == 404


def test_bodies_that_are_too_long_or_odd_are_refused(browser: Browser) -> None:
    head = f"POST /api/labels HTTP/1.1\r\nHost: 127.0.0.1:{browser.server.port}\r\n"
    head += f"Authorization: Bearer {browser.token}\r\nContent-Type: application/json\r\n"
    for rest in (
        "Content-Length: 99999999\r\n\r\n",
        "\r\n",
        "Content-Length: 2\r\n\r\n[[",
        "Content-Length: -1\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", browser.server.port), timeout=10) as raw:
            raw.sendall((head + rest).encode())
            assert b" 400 " in raw.recv(4096)


@pytest.mark.parametrize("query", ["cluster=x", "order=drop", "start=yesterdayish", "cursor=../../etc", "cluster=-1"])
def test_a_query_that_is_not_valid_gets_a_sentence(browser: Browser, query: str) -> None:
    status, _, content = browser.ask("GET", f"/api/events?{query}")
    assert status == 400
    assert json.loads(content)["error"]


def test_a_label_table_that_cannot_be_edited_is_named(small_workspace: Rows, tmp_path: Path) -> None:
    times = tmp_path / "times.csv"
    times.write_text("network,station,time,label\n")
    settings = ExploreSettings(labels_path=str(times))
    with pytest.raises(InputError, match=r"explore\.labels_path .*event_id and label"):
        open_explorer(small_workspace[0], settings, LabelsSettings())
    # A table of times given as labels.path stays as it is; the explorer keeps its own beside the tables.
    explorer = open_explorer(small_workspace[0], ExploreSettings(), LabelsSettings(path=str(times)))
    assert explorer.labels.path == f"{small_workspace[0].url}/hand-labels.csv"


def test_an_empty_workspace_and_a_taken_port_are_reported_in_one_sentence(
    small_workspace: Rows, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = open_workspace(str(tmp_path / "empty"), create=True)
    workspace.update_state()
    assert job.main([workspace.url]) == 2
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert job.main([small_workspace[0].url, "--explore.port", str(taken.getsockname()[1])]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 2
    assert "firnline label" in lines[0]
    assert "explore.port" in lines[1]


def test_a_connection_without_a_whole_request_is_closed(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "REQUEST_SECONDS", 0.2)
    for sent in (b"", b"GET / HTTP/1.1\r\nHost: "):
        with socket.create_connection(("127.0.0.1", browser.server.port), timeout=10) as raw:
            raw.sendall(sent)
            assert raw.recv(100) == b""


def test_loopback_addresses_are_told_from_others() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "127.1.2.3"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "192.168.1.5", "::", "example.org"))
    assert is_loopback(ExploreSettings().host)


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_the_job_prints_an_address_that_opens_and_ends_well_at_a_signal(
    small_workspace: Rows, sign: signal.Signals
) -> None:
    command = [sys.executable, "-m", "jobs.explore", small_workspace[0].url, "--explore.port", "0"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        address = next(line.split()[1] for line in process.stdout if line.startswith("open "))
        page, _, token = address.partition("#token=")
        assert page.startswith("http://127.0.0.1:")
        assert b"Firnline explorer" in urllib.request.urlopen(address, timeout=30).read()
        allowed = urllib.request.Request(f"{page}api/summary", headers={"Authorization": f"Bearer {token}"})
        assert json.load(urllib.request.urlopen(allowed, timeout=30))["workspace"] == small_workspace[0].url
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"{page}api/summary", timeout=30)
    finally:
        process.send_signal(sign)
        assert process.wait(60) == 0
        assert process.stderr.read() == ""
        process.stdout.close()
        process.stderr.close()
