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
        found.resize(1400, 3600)
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
    browser.until("map.layout === 'neighbours'")
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


QUIET = "byId('events').getAttribute('aria-busy') === 'false'"
"""True once the events that were asked for are shown."""


def middle_of_cluster(browser: Chromium, cluster: int) -> tuple[float, float]:
    """Return where on the page the event of a cluster is that is nearest to the cluster's middle on the map."""
    return tuple(
        browser.run(
            f"""(() => {{
              const own = [...map.clusters.keys()].filter((at) => map.clusters[at] === {cluster});
              const mean = [0, 1].map((axis) => own.reduce((sum, at) => sum + map.xy[2 * at + axis], 0) / own.length);
              const far = (at) => Math.hypot(map.xy[2 * at] - mean[0], map.xy[2 * at + 1] - mean[1]);
              const at = own.sort((one, other) => far(one) - far(other))[0];
              const {{ left, top }} = byId("map").getBoundingClientRect();
              const [x, y] = toScreen(map.xy[2 * at], map.xy[2 * at + 1]);
              return [left + x, top + y];
            }})()"""
        )
    )


def open_map(browser: Chromium, server: ExplorerServer) -> None:
    browser.open(server.url)
    browser.until("map.deck && map.layout === 'neighbours' && document.querySelectorAll('.event').length === 6")


def test_a_click_on_the_map_opens_an_event_and_a_lasso_labels_what_it_holds_until_it_is_undone(
    browser: Chromium, server: ExplorerServer, labels_path: Path, small_workspace: Rows
) -> None:
    browser.resize(1400, 900)
    open_map(browser, server)
    x, y = middle_of_cluster(browser, 2)
    browser.drag((x, y))
    browser.until("state.events.length === 1 && document.querySelectorAll('.event .drawing svg').length === 1")
    cluster_of = small_workspace[1].set_index("event_id")["cluster"]
    assert cluster_of[browser.run("state.events[0].event_id")] == 2
    browser.run("document.querySelector('.event .near').click()")
    browser.until(f"state.events.length === 7 && {QUIET}")
    assert cluster_of[browser.run("state.events.map((event) => event.event_id)")].eq(2).all()
    browser.drag((x - 9, y - 9), (x + 9, y - 9), (x + 9, y + 9), (x - 9, y + 9), shift=True)
    browser.until("map.chosen !== null && state.page.points?.length > 1")
    chosen = browser.run("state.page.points.length")
    browser.until(QUIET)
    browser.run("byId('label-all').click()")
    assert browser.run("byId('bulk').firstChild.textContent") == f"Label all {chosen} chosen as"
    browser.run("byId('bulk').querySelectorAll('button')[3].click()")
    browser.until(f"byId('status').textContent.startsWith('{chosen} labelled by hand, saved')")
    saved = pd.read_csv(labels_path)
    assert (len(saved), set(saved["label"])) == (chosen, {"tremor"})
    events = f"{chosen} event{'s' * (chosen > 1)}"
    assert browser.run("byId('undo').textContent") == f"Undo: the label of {events} u"
    browser.run("byId('undo').click()")
    browser.until("byId('status').textContent.startsWith('undone: the label of')")
    assert labels_path.read_text() == "event_id,label\n"
    assert browser.complaints == []


def test_everything_on_the_map_can_be_done_with_keys_alone(
    browser: Chromium, server: ExplorerServer, labels_path: Path
) -> None:
    open_map(browser, server)
    browser.press("m")
    assert browser.run("document.activeElement.id") == "map"
    browser.press("+", "ArrowRight", "ArrowUp", "f", "s")
    browser.until("state.page.points?.length === map.count && state.events.length === 6")
    browser.press("Escape")
    browser.until(f"map.chosen === null && !state.page.points && {QUIET}")
    browser.press("j", "1", "j", "2")
    browser.until("byId('status').textContent.startsWith('2 labelled by hand, saved')")
    # A label that says what the cluster's name does not.
    words = "document.activeElement.querySelector('.cluster').textContent"
    assert browser.run(words) == "labelled earthquake (cluster 0 · icequake)"
    browser.press("u")
    browser.until("byId('status').textContent.startsWith('undone')")
    assert browser.run(words) == "cluster 0 · icequake"
    second = browser.run("document.activeElement.dataset.eventId")
    browser.press("n")
    browser.until(f"state.events.length === 7 && {QUIET}")
    browser.press(",")
    browser.until(f"state.events.length === 6 && {QUIET}")
    # Back on the event that it was opened from.
    browser.until(f"document.activeElement.dataset.eventId === {second!r}")
    assert pd.read_csv(labels_path)["label"].tolist() == ["icequake"]
    assert browser.complaints == []


def test_each_view_and_page_is_a_step_of_the_browsers_history(browser: Chromium, server: ExplorerServer) -> None:
    # So low that six cards do not fit.
    browser.resize(1400, 500)
    open_map(browser, server)

    def shown() -> list[object]:
        browser.until(QUIET)
        return list(browser.run("[state.view, byId('shown').textContent, document.querySelectorAll('.event').length]"))

    def click(where: str) -> list[object]:
        browser.run(f"document.querySelector('{where}').click()")
        return shown()

    # The workspace's summary of its clustering counts 40 events in each of three clusters, which have names.
    seen = [shown(), click("[data-view=list]"), click('#clusters li[data-number="1"] .choose')]
    assert seen[0] == ["map", "All events: 1–6 of 120", 6]
    assert seen[2] == ["list", "Cluster 1 · earthquake, typical first: 1–6 of 40", 6]
    seen.append(click(".next"))
    assert seen[3] == ["list", "Cluster 1 · earthquake, typical first: 7–12 of 40", 6]
    # From far down, where the header and the clusters are still in sight.
    browser.run("(focusCard(6), document.querySelectorAll('.event')[5].querySelector('.near').focus())")
    at = browser.run("[scrollY, document.activeElement.closest('.event').dataset.eventId]")
    tops = "['undo', 'clusters-box'].map((id) => byId(id).getBoundingClientRect().top)"
    assert at[0] > 0
    assert min(browser.run(tops)) >= 0
    browser.run("document.activeElement.click()")
    browser.until(f"byId('shown').textContent.startsWith('Nearest to') && {QUIET}")
    # What does not hold for the neighbours is not shown beside them.
    hidden = "byId('filter-box').checkVisibility() || document.querySelector('#clusters [aria-pressed=true]')"
    assert not browser.run(hidden)
    browser.run("document.querySelector('.return').click()")
    browser.until(f"byId('shown').textContent.includes('7–12') && {QUIET}")
    browser.until(f"scrollY === {at[0]} && document.activeElement.dataset.eventId === {at[1]!r}")
    click("[data-view=doubtful]")
    for step in reversed(seen):
        browser.run("history.back()")
        browser.until(f"byId('shown').textContent === {step[1]!r}")
        assert shown() == step
    browser.run("history.forward()")
    browser.until(f"state.view === 'list' && {QUIET}")
    # After a reload the view is as it was.
    browser.run("(byId('order').value = 'far', byId('order').dispatchEvent(new Event('change', {bubbles: true})))")
    browser.until(f"byId('shown').textContent.includes('farthest first') && {QUIET}")
    browser.run("(window.old = true, location.reload())")
    # Until the new page's scripts are there, the old one answers, or one without them.
    browser.until("!window.old && typeof byId === 'function' && typeof state === 'object'")
    browser.until("document.querySelectorAll('.event').length === 6 && state.view === 'list'")
    assert shown()[1] == "All events, farthest first: 1–6 of 120"
    browser.run("history.back()")
    browser.until("byId('shown').textContent === 'All events: 1–6 of 120'")
    assert browser.complaints == []


def test_a_cluster_is_named_in_place(browser: Chromium, server: ExplorerServer, small_workspace: Rows) -> None:
    open_map(browser, server)
    browser.run("document.querySelector('#clusters .rename').click()")
    browser.until("document.activeElement.classList.contains('typed')")
    browser.press(*"calving", "Enter")
    browser.until("byId('status').textContent.startsWith('cluster 0 is calving, saved')")
    assert "calving" in browser.run("byId('clusters').textContent")
    # Its events were shown, have the name now, and can get it as a label, too.
    assert browser.run("state.events.map((event) => event.cluster)") == [0] * 6
    assert set(browser.run("[...document.querySelectorAll('.event .cluster')].map((node) => node.textContent)")) == {
        "cluster 0 · calving"
    }
    assert "calving" in browser.run("document.querySelector('.event .buttons').textContent")
    browser.press("u")
    browser.until("byId('status').textContent.startsWith('undone: the name of cluster 0')")
    assert "calving" not in browser.run("byId('clusters').textContent")
    assert "calving" not in small_workspace[0].store.read("cluster-names.yaml").decode()

    # A name that is typed stays where the field is left by a click on the next cluster, whose field opens at once.
    def pencil(number: int) -> tuple[float, float]:
        place = "(({left, top, width, height}) => [left + width / 2, top + height / 2])"
        row = f"document.querySelector('#clusters li[data-number=\"{number}\"] .rename')"
        return tuple(browser.run(f"{place}({row}.getBoundingClientRect())"))

    browser.drag(pencil(0))
    browser.until("document.activeElement.classList.contains('typed')")
    browser.press(*"bergy bit")
    browser.drag(pencil(1))
    browser.until("document.activeElement.title === 'Name of cluster 1' && state.cluster === 1")
    browser.until("byId('clusters').textContent.includes('0 · bergy bit')")
    browser.press("Escape")
    browser.until("document.querySelectorAll('#clusters .typed').length === 0")
    assert "bergy bit" in small_workspace[0].store.read("cluster-names.yaml").decode()
    command = browser.run("byId('command').textContent")
    assert command.startswith(f"firnline label {small_workspace[0].url} --replace --labels.path ")
    browser.run("byId('undo').click()")
    browser.until("byId('status').textContent.startsWith('undone')")
    assert browser.complaints == []


def test_a_branch_of_the_merge_tree_is_shown_and_a_click_cuts_the_tree(
    browser: Chromium, clustered: Rows, labels_path: Path
) -> None:
    settings = ExploreSettings(port=0, labels_path=str(labels_path), page_events=6)
    browser.resize(1400, 900)
    with serving(open_explorer(clustered[0], settings, LabelsSettings()), settings) as server:
        open_map(browser, server)
        browser.run("document.querySelector('[data-view=tree]').click()")
        browser.until("tree.nodes?.length === 11 && byId('branch').options.length === 6")
        browser.run("byId('branch').selectedIndex = 1; byId('branch').dispatchEvent(new Event('change'))")
        browser.until(f"document.querySelector('#branch-figure svg') && {QUIET} && state.events.length === 6")
        left, top, width = browser.run("Object.values(byId('tree').getBoundingClientRect().toJSON()).slice(0, 3)")
        browser.drag((left + width * 0.5, top + 4))
        browser.until("byId('cut-words').textContent.startsWith('This cut gives 3 clusters')")
        assert browser.run("byId('cut-command').textContent").endswith("--replace --label.cut 3")
        browser.run("byId('own-cluster').click()")
        assert browser.run("byId('cut-command').textContent").endswith(f"'[{browser.run('tree.chosen')}]'")
    assert browser.complaints == []


def test_on_a_telephone_the_events_of_a_cluster_come_into_view(browser: Chromium, server: ExplorerServer) -> None:
    browser.resize(390, 844)
    open_map(browser, server)
    browser.run("byId('clusters-box').open = true")
    browser.run("document.querySelector('#clusters li[data-number=\"1\"] .choose').click()")
    browser.until(f"state.events.every((event) => event.cluster === 1) && {QUIET}")
    top = browser.run("document.querySelector('.event').getBoundingClientRect().top")
    assert 0 <= top < 844


@pytest.mark.parametrize("view", ["map", "list", "suggested", "tree"])
def test_the_page_fits_a_telephone(browser: Chromium, server: ExplorerServer, view: str) -> None:
    browser.resize(390, 844)
    open_map(browser, server)
    browser.run(f"document.querySelector('[data-view={view}]').click()")
    browser.until(f"{QUIET} || byId('status').classList.contains('error')")
    assert browser.run("document.documentElement.scrollWidth") <= 390
    assert browser.run("byId('clusters-box').open") is False
