"""Detection where rates are measured, a leap second passes, or sample types change: recordings of public reports."""

from pathlib import Path

import numpy as np
import pytest
from detection_archives import detect, read_events

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"
FLAGS = {
    "archive": {"layout": "flat"},
    "detection": {"band_hz": [1, 20], "trigger_components": "Z"},
    "window": {"rate_hz": 50, "length_seconds": 20},
}
HOUR = "2020-03-01T01:0"
BURSTS = [HOUR + "1:00.01", HOUR + "1:50.01", HOUR + "2:55.01", HOUR + "4:00.01"]
NEW_YEAR = ["2017-01-01T00:00:39.01", "2017-01-01T00:01:39.02", "2017-01-01T00:03:19.01"]


@pytest.mark.parametrize(
    ("name", "onsets"),
    [
        ("1_rates/jitter", BURSTS),
        ("1_rates/two", BURSTS),
        ("5_leap/leap", NEW_YEAR),
        ("6_encodings/half", BURSTS),
        ("6_encodings/turn", BURSTS),
    ],
)
def test_every_burst_is_found_at_its_time_in_one_channel_group(name, onsets, tmp_path):
    source = CASES / f"{name}.mseed"
    if not source.is_file():
        pytest.skip("the small inputs (../shared/cases beside the project) are not on this machine")
    archive = tmp_path / "archive"
    archive.mkdir()
    (archive / source.name).write_bytes(source.read_bytes())
    detect(archive, tmp_path / "workspace", FLAGS)
    events = read_events(tmp_path / "workspace")
    found = np.sort(events["onset"].to_numpy())
    expected = np.array(onsets, "datetime64[ns]")
    assert np.abs(found[-len(expected) :] - expected).max() <= np.timedelta64(15, "ms")
    assert len(found) == (6 if "leap" in name else 4)
    assert set(events["source_sampling_rate"].to_pylist()) == {100.0}
