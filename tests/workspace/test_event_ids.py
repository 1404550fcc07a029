"""The ids of events: they state the onset that they were made of."""

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from pipelines.workspace.event_ids import event_id, stated_onset


@given(st.integers(pd.Timestamp("1700-01-01").value, pd.Timestamp("2260-01-01").value))
def test_an_id_states_its_onset(onset_ns):
    name = event_id(("AW", "VNA1", "", "HH"), 100.0, onset_ns)
    assert stated_onset(name) == onset_ns
    # Pandas spells the same time.
    assert name.startswith(f"AW.VNA1..HH.100.{pd.Timestamp(onset_ns):%Y%m%dT%H%M%S}.")


def test_other_spellings_state_none():
    for name in ("", "ev1", "XX.A.2020", "XX.A.20201341T000000.000000000", "XX.A.20200101T000000.00000000"):
        assert stated_onset(name) is None
