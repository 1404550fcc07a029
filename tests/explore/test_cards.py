"""The cards of the explorer in a real browser: a page that cannot be had, what labels them, what time they show."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from chromium import Chromium
from test_explore import serving

from pipelines.config.label import LabelsSettings
from pipelines.config.report import ExploreSettings
from pipelines.explore.explorer import Explorer, open_explorer
from pipelines.explore.server import ExplorerServer
from pipelines.workspace import tables
from pipelines.workspace.workspace import Workspace

Rows = tuple[Workspace, pd.DataFrame]
QUIET = "byId('events').getAttribute('aria-busy') === 'false'"
DRAWN = f"{QUIET} && document.querySelectorAll('.event .drawing svg').length === state.events.length"
"""True once the events that were asked for are shown with their figures."""


@pytest.fixture
def labels_path(tmp_path: Path) -> Path:
    return tmp_path / "labels.csv"


@pytest.fixture
def opened(clustered: Rows, labels_path: Path) -> Iterator[tuple[Explorer, ExplorerServer]]:
    """An explorer and its server, three events on a page."""
    settings = ExploreSettings(port=0, labels_path=str(labels_path), page_events=3)
    explorer = open_explorer(clustered[0], settings, LabelsSettings())
    with serving(explorer, settings) as server:
        yield explorer, server


def show(browser: Chromium, server: ExplorerServer, view: str = "list") -> None:
    browser.open(server.url)
    browser.until(f"{QUIET} && state.events.length === 3")
    browser.run(f"document.querySelector('#views [data-view={view}]').click()")
    browser.until(f"state.view === {view!r} && {DRAWN} && state.events.length === 3")


def test_a_page_that_cannot_be_had_says_why_in_the_place_of_the_old_cards_and_can_be_asked_for_again(
    browser: Chromium, opened: tuple[Explorer, ExplorerServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    explorer, server = opened
    show(browser, server)

    def fail(*values: Any) -> Any:
        raise OSError("the disk does not answer")

    monkeypatch.setattr(explorer, "list_events", fail)
    browser.run("document.querySelector('.next').click()")
    browser.until(f"{QUIET} && document.querySelector('.failure') !== null")
    seen = "[byId('shown').textContent, state.events.length, document.querySelectorAll('.event').length]"
    assert browser.run(seen) == ["All events: not read", 0, 0]
    said = browser.run("byId('events').textContent")
    assert said == "the workspace cannot be read or written: the disk does not answerTry again"
    assert not browser.run("byId('label-all').checkVisibility()")
    # What labels or opens an event does nothing without one, and the page before is a step back.
    browser.press("j", "1", "n", ".")
    monkeypatch.undo()
    browser.run("document.querySelector('#events button').focus()")
    browser.press("Enter")
    browser.until(f"{DRAWN} && state.events.length === 3")
    assert browser.run("byId('shown').textContent") == "All events: 4–6 of 120"
    browser.press(",")
    browser.until(f"{DRAWN} && byId('shown').textContent === 'All events: 1–3 of 120'")
    server.stop()
    browser.until("fetch('/').then(() => false, () => true)")
    browser.run("document.querySelector('.next').click()")
    browser.until(
        f"{QUIET} && document.querySelector('.failure')?.textContent.startsWith('The explorer does not answer')"
    )
    assert browser.run("document.querySelectorAll('.event').length") == 0


def misplace(workspace: Workspace, rows: pd.DataFrame) -> list[str]:
    """Move the embeddings of three events of cluster 1 among those of cluster 0; return their ids."""
    first = next(iter(tables.list_shards(workspace.store, "embeddings")))
    table = tables.read_table(workspace.store, first)
    ids = table["event_id"].to_pylist()
    clusters = rows.set_index("event_id")["cluster"][ids].to_numpy()
    vectors = tables.embeddings(table["embedding"]).copy()
    moved = (clusters == 1).nonzero()[0][:3]
    vectors[moved] = vectors[clusters == 0][:3] + 0.01
    at = table.column_names.index("embedding")
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    changed = table.set_column(at, table.schema.field(at), column.cast(table.schema.field(at).type))
    tables.write_table(workspace.store, first.path, changed)
    return [ids[number] for number in moved]


def test_what_is_probably_wrong_is_kept_or_changed_by_a_button_or_a_key_and_undone(
    browser: Chromium, opened: tuple[Explorer, ExplorerServer], clustered: Rows, labels_path: Path
) -> None:
    wrong = misplace(*clustered)
    browser.resize(390, 2400)
    show(browser, opened[1], "doubtful")
    ids = browser.run("state.events.map((event) => event.event_id)")
    assert set(ids) == set(wrong)
    assert "is left out at the next look" in browser.run("byId('purpose').textContent")
    words = "[...document.querySelectorAll('.verdicts')].map((node) => node.textContent)"
    assert browser.run(words) == ["keep earthquake ychange to icequake c"] * 3

    def saved() -> dict[str, str]:
        return dict(pd.read_csv(labels_path).set_index("event_id")["label"])

    before = browser.run("document.querySelectorAll('.event')[1].getBoundingClientRect().top")
    browser.run("document.querySelector('.verdicts button').click()")
    browser.until("byId('status').textContent.startsWith('1 labelled by hand, saved')")
    assert saved() == {ids[0]: "earthquake"}
    browser.run("document.querySelectorAll('.event')[1].focus()")
    browser.press("c")
    browser.until("byId('status').textContent.startsWith('2 labelled by hand, saved')")
    assert saved() == {ids[0]: "earthquake", ids[1]: "icequake"}
    pressed = "[...document.querySelectorAll('.verdicts [aria-pressed=true]')].map((node) => node.textContent)"
    assert browser.run(pressed) == ["keep earthquake y", "change to icequake c"]
    # Nothing has moved.
    assert browser.run("document.querySelectorAll('.event')[1].getBoundingClientRect().top") == before
    browser.press("u")
    browser.until("byId('status').textContent.startsWith('undone')")
    browser.press("y")
    browser.until("byId('status').textContent.startsWith('2 labelled by hand, saved')")
    assert saved() == {ids[0]: "earthquake", ids[1]: "earthquake"}
    assert browser.run("document.documentElement.scrollWidth") <= 390
    # Elsewhere the keys do nothing, and the next look leaves out what has a label.
    browser.run("document.querySelector('#views [data-view=doubtful]').click()")
    browser.until(f"state.events.length === 1 && {QUIET}")
    assert browser.run("state.events[0].event_id") == ids[2]
    browser.run("document.querySelector('#views [data-view=list]').click()")
    browser.until(f"state.events.length === 3 && {QUIET}")
    browser.press("j", "y", "c")
    assert len(saved()) == 2
    assert browser.complaints == []


@pytest.mark.parametrize("width", [1400, 390])
def test_a_card_stays_as_high_as_it_is_when_it_is_labelled(
    browser: Chromium, opened: tuple[Explorer, ExplorerServer], width: int
) -> None:
    browser.resize(width, 2400)
    show(browser, opened[1])
    heights = "[...document.querySelectorAll('.event')].map((node) => node.getBoundingClientRect().height)"
    before = browser.run(heights)
    browser.press("j", "2", "j", "1", "j", "2")
    browser.until("byId('status').textContent.startsWith('3 labelled by hand, saved')")
    assert "labelled earthquake (cluster" in browser.run("byId('events').textContent")
    assert browser.run(heights) == before


def test_the_page_of_suggestions_says_what_it_is_for_and_what_to_do(
    browser: Chromium, opened: tuple[Explorer, ExplorerServer]
) -> None:
    browser.open(opened[1].url)
    browser.until(f"{QUIET} && state.events.length === 3")
    assert not browser.run("byId('purpose').checkVisibility()")
    browser.run("document.querySelector('#views [data-view=suggested]').click()")
    browser.until(f"{QUIET} && state.events.length === 30")
    assert browser.run("byId('shown').textContent") == "Suggested, to name clusters by and to label next: 30 events"
    assert "name the cluster by them (✎)" in browser.run("byId('purpose').textContent")
    browser.run("document.querySelector('#views [data-view=list]').click()")
    browser.until(f"{QUIET} && state.events.length === 3 && !byId('purpose').checkVisibility()")


def test_the_figures_show_all_time_or_seconds_about_the_onset_by_a_key_or_a_button(
    browser: Chromium, opened: tuple[Explorer, ExplorerServer]
) -> None:
    browser.resize(390, 2400)
    show(browser, opened[1])

    def ticks() -> set[str]:
        texts = "[...document.querySelectorAll('.drawing svg text')].map((node) => node.textContent)"
        return set(browser.run(texts))

    # The window goes from 1.5 s before the onset to 4.5 s after it.
    assert "4" in ticks()
    browser.press("t")
    assert browser.run("document.querySelector('#seconds [aria-pressed=true]').textContent") == "10 s"
    browser.press("t")
    browser.until("![...document.querySelectorAll('.drawing svg text')].some((node) => node.textContent === '4')")
    assert "2.0" in ticks()
    # It holds for the pages after it, too, and fits a telephone.
    browser.press(".")
    browser.until(f"{DRAWN} && byId('shown').textContent.includes('4–6')")
    assert "4" not in ticks()
    assert browser.run("document.documentElement.scrollWidth") <= 390
    browser.run("document.querySelector('#seconds button').click()")
    browser.until("[...document.querySelectorAll('.drawing svg text')].some((node) => node.textContent === '4')")
    assert browser.complaints == []
