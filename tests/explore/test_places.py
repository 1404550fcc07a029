"""Hours and stations: what the explorer counts, where stations are, and how a choice of them narrows every view."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from chromium import Chromium
from test_explore import serving

from pipelines.config.label import LabelsSettings
from pipelines.config.report import ExploreSettings
from pipelines.explore.explorer import Explorer, open_explorer
from pipelines.explore.places import hours_of_day
from pipelines.explore.queries import BadRequest, Filter, read_filter
from pipelines.workspace.artifacts import StationList, StationPosition
from pipelines.workspace.workspace import Workspace

Rows = tuple[Workspace, pd.DataFrame]
YEAR_3000_NS = 32_503_680_000 * 10**9


def position(station: str, latitude: float, longitude: float, *, first_ns: int = 0) -> StationPosition:
    return StationPosition(
        network="AW",
        station=station,
        location=None,
        latitude_deg=latitude,
        longitude_deg=longitude,
        elevation_m=40.0,
        first_ns=first_ns,
        end_ns=YEAR_3000_NS + first_ns,
    )


@pytest.fixture
def placed(clustered: Rows) -> Rows:
    """A workspace that knows two of its three stations, one of which has moved."""
    known = (
        position("VNA1", -70.5, -8.2),
        position("VNA1", -70.6, -8.3, first_ns=1),
        position("VNA2", -70.9, -7.4),
    )
    StationList(content_hash="0", positions=known).write(clustered[0].store)
    return clustered


@pytest.fixture
def explorer(placed: Rows, tmp_path: Path) -> Explorer:
    settings = ExploreSettings(labels_path=str(tmp_path / "labels.csv"), page_events=6)
    return open_explorer(placed[0], settings, LabelsSettings())


def test_the_counts_are_those_of_all_events_by_station_cluster_and_hour(explorer: Explorer, placed: Rows) -> None:
    explorer.map_events = 90
    explorer.__post_init__()
    counts, rows = explorer.map.counts(), placed[1]
    assert counts.sites == ("AW.VNA1", "AW.VNA2", "XX.0101")
    assert counts.events.sum() == len(rows) > len(explorer.map.points())
    expected = rows.groupby([rows["network"] + "." + rows["station"], "cluster", rows["onset"].dt.hour]).size()
    for (site, cluster, hour), events in expected.items():
        assert counts.events[counts.sites.index(site), counts.clusters.index(cluster), hour] == events
    points = explorer.map.points()
    by_id = rows.set_index("event_id").loc[points.event_ids.to_pylist()]
    assert hours_of_day(points.onset_ns).tolist() == by_id["onset"].dt.hour.tolist()
    assert [counts.sites[at] for at in points.sites(counts.sites)] == (
        by_id["network"] + "." + by_id["station"]
    ).tolist()


def test_hours_before_1970_count_forwards() -> None:
    times = pd.to_datetime(["1969-12-31T23:59:59.999999999", "1970-01-01", "1912-04-15T02:20"], format="ISO8601")
    assert hours_of_day(times.to_numpy("datetime64[ns]").astype(np.int64)).tolist() == [23, 0, 2]


def test_a_workspace_without_embeddings_has_counts_all_the_same(new_workspace: Callable[..., Rows]) -> None:
    workspace, rows = new_workspace(events_per_file=4)
    workspace.store.remove_folder("embeddings")
    explorer = open_explorer(workspace, ExploreSettings(), LabelsSettings())
    assert explorer.map.counts().events.sum() == len(rows)
    assert explorer.places()["positions"] == []


def test_stations_are_where_the_stationxml_says_they_were_last(explorer: Explorer) -> None:
    found = explorer.places()["positions"]
    assert [(one["site"], one["latitude_deg"], one["places"]) for one in found] == [
        ("AW.VNA1", -70.6, 2),
        ("AW.VNA2", -70.9, 1),
    ]


def test_the_list_of_an_hour_has_its_events(explorer: Explorer, placed: Rows) -> None:
    listed, _ = explorer.list_events(Filter(hour=7, site="AW.VNA2"), "", 200)
    rows = placed[1]
    wanted = rows[(rows["onset"].dt.hour == 7) & (rows["station"] == "VNA2")]
    assert [event["event_id"] for event in listed] == wanted.sort_values("onset")["event_id"].tolist()
    for hour in ("24", "-1", "x"):
        with pytest.raises(BadRequest, match="hour is"):
            read_filter({"hour": [hour]})


def test_an_hour_and_a_station_are_chosen_by_clicks_and_narrow_list_and_map(
    browser: Chromium, explorer: Explorer, placed: Rows
) -> None:
    rows = placed[1]
    settings = ExploreSettings(port=0, page_events=6)
    with serving(explorer, settings) as server:
        browser.open(server.url)
        browser.until("map.deck && map.layout === 'neighbours'")
        browser.run("document.querySelector('[data-view=places]').click()")
        browser.until("document.querySelectorAll('#hours .hit').length === 4 * 24")
        assert browser.run("byId('places-words').textContent").startswith(f"{len(rows)} events.")
        # The hour of all clusters, and the station on its map.
        x, y = browser.run(
            "(({left, top, width, height}) => [left + width / 2, top + height / 2])"
            "(document.querySelectorAll('#hours .hit')[7].getBoundingClientRect())"
        )
        browser.drag((x, y))
        hour = rows[rows["onset"].dt.hour == 7]
        browser.until(f"byId('places-words').textContent.startsWith('{len(hour)} event')")
        assert browser.run("document.querySelectorAll('#station-map circle').length") == 2
        assert "XX.0101" in browser.run("byId('station-words').textContent")
        circle = "document.querySelector('#station-map circle:nth-of-type(2)')"
        browser.run(f"{circle}.scrollIntoView({{block: 'center'}})")
        x, y = browser.run(
            "(({left, top, width, height}) => [left + width / 2, top + height / 2])"
            f"({circle}.getBoundingClientRect())"
        )
        browser.drag((x, y))
        chosen = hour[hour["station"] == "VNA2"]
        browser.until(f"state.events.length === {len(chosen)} && byId('events').getAttribute('aria-busy') === 'false'")
        assert set(browser.run("state.events.map((event) => event.event_id)")) == set(chosen["event_id"])
        assert browser.run("byId('narrowed').textContent") == "AW.VNA2 ✕07–08 UTC ✕"
        # The map shows the same events and fades the others, and a lasso chooses among them.
        browser.run("document.querySelector('[data-view=map]').click()")
        bright = "[...map.clusters.keys()].filter((at) => map.colours[4 * at + 3] === SHADE.chosen).length"
        browser.until(f"map.hours && {bright} === {len(chosen)}")
        browser.run("byId('in-view').click()")
        browser.until(f"state.page.points?.length === {len(chosen)}")
        # Each is taken away by its button.
        browser.run("byId('narrowed').querySelectorAll('button')[1].click()")
        browser.run("byId('narrowed').querySelector('button').click()")
        browser.until("byId('narrowed').parentElement.hidden && state.events.length === 6")
    assert browser.complaints == []


@pytest.mark.parametrize(
    ("places", "far_km"),
    [
        ([(-70.5, -8.2), (-70.5, -8.1)], 3.712),
        ([(10.0, 179.9), (10.0, -179.9)], 21.901),
        ([(-89.9, 0.0), (-89.9, 180.0)], 22.239),
    ],
    ids=["Neumayer", "the date line", "the South Pole"],
)
def test_the_map_of_stations_has_true_distances_anywhere(
    browser: Chromium, explorer: Explorer, places: list[tuple[float, float]], far_km: float
) -> None:
    with serving(explorer, ExploreSettings(port=0)) as server:
        browser.open(server.url)
        browser.until("state.summary !== null")
        positions = [{"latitude_deg": latitude, "longitude_deg": longitude} for latitude, longitude in places]
        found = browser.run(
            f"(() => {{ const given = {positions!r}; const {{ project }} = projection(given);"
            "const [one, other] = given.map((at) => project(at.latitude_deg, at.longitude_deg));"
            "return Math.hypot(one[0] - other[0], one[1] - other[1]); })()"
        )
    assert found == pytest.approx(far_km, abs=0.01)


@pytest.mark.parametrize("dark", [False, True])
def test_hours_and_stations_fit_a_telephone(browser: Chromium, explorer: Explorer, dark: bool) -> None:
    browser.resize(390, 844, dark)
    with serving(explorer, ExploreSettings(port=0, page_events=6)) as server:
        browser.open(server.url)
        browser.until("state.summary !== null && state.events.length > 0")
        browser.run("document.querySelector('[data-view=places]').click()")
        browser.until("document.querySelectorAll('#station-map circle').length === 2")
        assert browser.run("document.documentElement.scrollWidth") <= 390
        paper = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, paper.removeprefix("rgb(").removesuffix(")").split(","))) < 200) is dark
    assert browser.complaints == []
