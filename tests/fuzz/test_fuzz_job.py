"""Changed files in an archive of a whole job: the good files beside them give what they give alone."""

from pathlib import Path

import mutations
import numpy as np
import obspy
import pytest

from jobs import detect as detect_job
from pipelines.archive.reading import spans
from pipelines.detect.stage_status import read_status
from pipelines.workspace import tables
from pipelines.workspace.storage import open_store

NUM_CHANGED = 200
RATE_HZ = 20.0
FLAGS = [
    *("--archive.layout", "flat", "--archive.allow_empty_stations", "true", "--shards.interval", "month"),
    *("--detection.band_hz", "[1, 8]", "--detection.sta_seconds", "0.5", "--detection.lta_seconds", "5"),
    *("--window.rate_hz", "20", "--window.lead_seconds", "2", "--window.length_seconds", "10"),
]


def write_good(root: Path) -> None:
    """Write ten minutes of three stations with four bursts each."""
    root.mkdir()
    for number in range(3):
        data = np.random.default_rng(number).normal(size=round(600 * RATE_HZ)) * 50
        for second in (100, 200, 300, 450):
            place = round(second * RATE_HZ) + number
            data[place : place + 60] += 4000 * np.exp(-np.arange(60) / 15) * np.sin(np.arange(60))
        trace = obspy.Trace(data.astype(np.int32), {"network": "YY", "station": f"GOOD{number}", "channel": "HHZ"})
        trace.stats.sampling_rate = RATE_HZ
        trace.stats.starttime = obspy.UTCDateTime("2020-03-01T06:00:00")
        trace.write(str(root / f"good{number}.mseed"), format="MSEED", reclen=512)


def rows_of_good(workspace: Path) -> dict[str, str]:
    store = open_store(str(workspace))
    items = [item.path for item in tables.list_shards(store, "events")]
    return {path: tables.rows_hash(tables.read_table(store, path)) for path in items if "network=YY" in path}


def test_changed_files_cost_the_files_beside_them_nothing_and_every_sample_ends_in_an_outcome(
    tmp_path: Path, ray_cluster: object, capsys: pytest.CaptureFixture[str]
) -> None:
    good, mixed = tmp_path / "good", tmp_path / "mixed"
    write_good(good)
    write_good(mixed)
    rng = np.random.default_rng(20261129)
    for number in range(NUM_CHANGED):
        (mixed / f"{number:03d}.mseed").write_bytes(mutations.mseed(rng))
    assert detect_job.main([str(good), str(tmp_path / "alone"), *FLAGS]) == 0
    assert detect_job.main([str(mixed), str(tmp_path / "together"), *FLAGS]) == 0
    alone = rows_of_good(tmp_path / "alone")
    assert len(alone) == 3
    assert rows_of_good(tmp_path / "together") == alone
    found = read_status(open_store(str(tmp_path / "together")))
    assert found.failed == 0
    assert found.done == found.planned
    assert sum(found.totals.files.values()) + found.unusable == NUM_CHANGED + 3
    # What the headers of each file state, one file after the other, is what the account of all has.
    store = open_store(str(mixed))
    counts = [span.counts for item in store.walk() for span in spans(store, item)]
    assert found.totals.samples.total() == sum(count.stated for count in counts if count is not None)
    assert "of 36,000 samples were used" in capsys.readouterr().out
