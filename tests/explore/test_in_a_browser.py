"""The explorer in a real browser: what a person sees and clicks, and what the browser sends elsewhere."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest
from chromium import Chromium, chromium
from test_explore import serving

from pipelines.config.label import LabelsSettings
from pipelines.config.report import ExploreSettings
from pipelines.explore.explorer import open_explorer
from pipelines.explore.server import ExplorerServer
from pipelines.workspace.workspace import Workspace

Rows = tuple[Workspace, pd.DataFrame]


@pytest.fixture
def labels_path(tmp_path: Path) -> Path:
    return tmp_path / "labels.csv"


@pytest.fixture
def server(small_workspace: Rows, labels_path: Path) -> Iterator[ExplorerServer]:
    settings = ExploreSettings(port=0, labels_path=str(labels_path), page_events=6)
    with serving(open_explorer(small_workspace[0], settings, LabelsSettings()), settings) as found:
        yield found


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chromium]:
    with chromium(tmp_path / "profile") as found:
        # Figures are drawn once they are near the visible part.
        found.resize(1400, 2000)
        yield found


def open_explorer_page(browser: Chromium, server: ExplorerServer) -> None:
    browser.open(server.url)
    browser.until("document.querySelectorAll('.event .drawing svg').length === 6")


def test_a_label_given_by_a_click_or_a_key_is_in_the_file_and_the_console_has_no_error(
    browser: Chromium, server: ExplorerServer, labels_path: Path, small_workspace: Rows
) -> None:
    open_explorer_page(browser, server)
    first, second = small_workspace[1].sort_values(["network", "station", "onset"])["event_id"].head(2)
    browser.run("document.querySelector('.event .buttons button').click()")
    browser.until("document.getElementById('status').textContent.startsWith('1 labelled by hand, saved')")
    for key in ("j", "j", "2"):
        browser.run(
            f"document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {{key: '{key}', bubbles: true}}))"
        )
    browser.until("document.getElementById('status').textContent.startsWith('2 labelled by hand, saved')")
    saved = pd.read_csv(labels_path).set_index("event_id")["label"].to_dict()
    assert saved == {first: "icequake", second: "earthquake"}
    # A reload keeps the access, and the token is not in the address.
    browser.run("location.reload()")
    browser.until("document.querySelectorAll('.event .drawing svg').length === 6")
    assert browser.run("location.href") == f"http://127.0.0.1:{server.port}/"
    assert browser.complaints == []


def test_the_page_says_what_to_do_where_the_token_is_missing_and_opens_once_it_is_there(
    browser: Chromium, server: ExplorerServer
) -> None:
    browser.open(f"http://127.0.0.1:{server.port}/")
    browser.until("document.getElementById('status').textContent.includes('it holds the token')")
    assert browser.run("document.querySelectorAll('.event').length") == 0
    # Only the fragment changes, so that the browser itself does not load the page again.
    browser.run(f"location.href = {server.url!r}")
    browser.until("document.querySelectorAll('.event .drawing svg').length === 6")


def test_a_server_on_another_port_of_this_machine_gets_nothing_that_lets_it_in(
    browser: Chromium, server: ExplorerServer
) -> None:
    received: list[str] = []

    class Recorder(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            received.append(f"{self.requestline}\n{self.headers}")
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><link rel=icon href='data:,'><p>other</p>")

        def log_message(self, format: str, *args: object) -> None:
            pass

    other = ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
    threading.Thread(target=other.serve_forever, daemon=True).start()
    try:
        open_explorer_page(browser, server)
        # The recorder does see what browsers send by themselves: a cookie of this host, whatever its port.
        browser.run("document.cookie = 'planted=cookie'")
        # Left from the explorer's own page, so that a referrer would be sent, too.
        browser.run(f"location.href = 'http://127.0.0.1:{other.server_port}/'")
        browser.until("document.body?.textContent === 'other'")
        found = browser.run(
            "JSON.stringify([{...sessionStorage}, {...localStorage}, document.cookie, document.referrer])"
        )
        answer = browser.run(
            f"fetch('http://127.0.0.1:{server.port}/api/summary', {{credentials: 'include'}})"
            ".then((answer) => answer.text(), () => 'refused')"
        )
    finally:
        other.shutdown()
        other.server_close()
    assert "planted=cookie" in received[0]
    assert server.access.token not in "\n".join(received)
    assert not [line for line in received[0].splitlines() if line.lower().startswith(("referer", "authorization"))]
    assert found == '[{},{},"planted=cookie",""]'
    assert answer == "refused"
