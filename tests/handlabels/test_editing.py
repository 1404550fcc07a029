"""Hand labels as text: what is written is read back, and nothing dangerous gets in."""

import io

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.handlabels import editing
from pipelines.handlabels.label_text import check_typed_label

words = st.text("abcäö1 ._-", min_size=1, max_size=12).filter(lambda text: text.strip() and text.strip()[0].isalnum())


@given(st.dictionaries(st.text("VNA1.-:é", max_size=9).map("AW.{}".format), words, max_size=8))
def test_labels_written_are_read_back_by_pandas_and_by_us(labels: dict[str, str]) -> None:
    def possible(label: str) -> bool:
        try:
            return bool(check_typed_label(label))
        except ValueError:
            return False

    labels = {event_id: label for event_id, label in labels.items() if possible(label)}
    # Each in a spelling of its own: those of one class would become one.
    labels = {event_id: label for event_id, label in labels.items() if label == label.lower()}
    rows = editing.with_labels({}, labels)
    text = editing.write_labels(rows)
    assert editing.read_labels(text) == rows
    read = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
    assert dict(zip(read["event_id"], read["label"], strict=True)) == {key: rows[key]["label"] for key in labels}


def test_a_changed_label_keeps_other_columns_and_a_removed_one_goes() -> None:
    rows = editing.read_labels("event_id,label,split,who\na,icequake,test,NP\nb,spike,,NP\n")
    rows = editing.with_labels(rows, {"a": "tremor", "b": None, "c": "noise"})
    assert editing.write_labels(rows) == "event_id,label,split,who\na,tremor,test,NP\nc,noise,,\n"


def test_a_formula_in_a_column_that_others_have_added_is_saved_as_text() -> None:
    text = 'event_id,label,who\na,icequake,"=HYPERLINK(""http://x"")"\n'
    saved = editing.write_labels(editing.read_labels(text))
    assert saved == 'event_id,label,who\na,icequake,"\'=HYPERLINK(""http://x"")"\n'
    assert editing.write_labels(editing.read_labels(saved)) == saved


@pytest.mark.parametrize("label", ["", "  ", "=1+1", "@x", "-a", "a\nb", "<b>", 'a"b', "x" * 65])
def test_labels_that_a_spreadsheet_or_a_page_could_mistake_are_refused(label: str) -> None:
    with pytest.raises(ValueError, match="label"):
        check_typed_label(label)


def test_a_table_of_times_is_not_a_table_of_event_ids() -> None:
    with pytest.raises(ValueError, match="event_id"):
        editing.read_labels("network,station,time,label\nAW,VNA1,2020-01-01,icequake\n")
