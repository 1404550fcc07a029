"""What a person labels in the browser is in the tables after `firnline label`: real processes, a real browser."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
from chromium import chromium
from made_up_events import write_example

from pipelines.workspace import tables
from pipelines.workspace.storage import Store


def label_table(store: Store) -> pd.DataFrame:
    files = tables.list_shards(store, "labels")
    found: pd.DataFrame = pd.concat([tables.read_table(store, file).to_pandas() for file in files])
    return found.set_index("event_id").sort_index()


def test_a_label_and_a_name_set_in_the_browser_are_in_the_table_after_label(tmp_path: Path) -> None:
    example = write_example(tmp_path, stations=("VNA1",), num_days=2)
    workspace, store = example.workspace.url, example.workspace.store

    def run_label(*flags: str) -> None:
        command = [sys.executable, "-m", "jobs.label", workspace, "--mlflow", example.tracking.uri, *flags]
        said = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
        assert said.returncode == 0, said.stderr[-3000:]

    run_label("--kmeans.k", "3", "--label.model", "models:/firnline-encoder/1")
    before = label_table(store)
    assert before["label_source"].isna().all()

    explore = [sys.executable, "-m", "jobs.explore", workspace, "--explore.port", "0", "--explore.page_events", "6"]
    process = subprocess.Popen(explore, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        saved = next(line for line in lines if line.startswith("hand labels: ")).split(": ", 1)[1].strip()
        names = next(line for line in lines if line.startswith("cluster names: ")).split(": ", 1)[1].strip()
        address = next(line for line in lines if line.startswith("open ")).split()[1]
        with chromium(tmp_path / "profile") as browser:
            browser.resize(1280, 900)
            browser.open(address)
            browser.until("map.layout === 'neighbours' && document.querySelectorAll('.event').length === 6")
            # A button, a key, and a name that is typed.
            first, second, third = browser.run("state.events.slice(0, 3).map((event) => event.event_id)")
            browser.run("document.querySelector('.event .buttons button').click()")
            browser.until("byId('status').textContent.startsWith('1 labelled by hand, saved')")
            browser.run("document.querySelectorAll('.event')[1].focus()")
            browser.press("3")
            browser.until("byId('status').textContent.startsWith('2 labelled by hand, saved')")
            browser.run("document.querySelectorAll('.event')[2].querySelector('.other').click()")
            browser.until("document.activeElement.classList.contains('typed')")
            browser.press(*"iceberg", "Enter")
            browser.until("byId('status').textContent.startsWith('3 labelled by hand, saved')")
            # The whole of a cluster gets a name.
            browser.run("document.querySelectorAll('#clusters .rename')[1].click()")
            browser.until("document.activeElement.classList.contains('typed')")
            browser.press(*"calving", "Enter")
            browser.until("byId('status').textContent.startsWith('cluster 1 is calving, saved')")
            assert browser.complaints == []
    finally:
        process.terminate()
        assert process.wait(60) == 0
        process.stdout.close()

    run_label("--replace", "--labels.path", saved, "--labels.names", names)
    after = label_table(store)
    by_hand = after[after["label_source"] == "hand"]["label"].to_dict()
    assert by_hand == {first: "icequake", second: "spike", third: "iceberg"}
    assert after["cluster"].equals(before["cluster"])
    others = after[after["label_source"] != "hand"]
    assert set(others.loc[others["cluster"] == 1, "label"]) == {"calving"}
