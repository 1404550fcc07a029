"""Hand labels as spreadsheets and people write them: one reader, one spelling of a class, no formula."""

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.handlabels import csv_text, editing
from pipelines.handlabels.csv_text import iso_time
from pipelines.handlabels.label_text import check_label, check_typed_label, one_spelling, spelling_key
from pipelines.handlabels.table import read_label_table
from pipelines.runtime.errors import InputError

PLAIN = "network,station,time,label\nAW,0101,2020-01-31T06:00:01.5Z,icequake\nAW,VNA1,2020-01-31T07:00:00Z,Eisbär\n"
SEMICOLONS = PLAIN.replace(",", ";")
FORMS = {
    "byte-order mark": b"\xef\xbb\xbf" + PLAIN.encode(),
    "semicolons": SEMICOLONS.encode(),
    "tabs": PLAIN.replace(",", "\t").encode(),
    "a line that names the separator": b"sep=;\r\n" + SEMICOLONS.encode(),
    "decimal commas": SEMICOLONS.replace("01.5", "01,5").encode(),
    "Windows line ends": PLAIN.replace("\n", "\r\n").encode(),
    "UTF-16 with its mark": PLAIN.encode("utf-16"),
    "Western characters": PLAIN.encode("cp1252"),
    "headers in capitals": PLAIN.replace("network,station,time,label", "Network, STATION ,Time,Label").encode(),
    "blanks around cells": PLAIN.replace(",", " , ").encode(),
    "quotes": "".join(f'"{line}"\n' for line in PLAIN.replace(",", '","').splitlines()).encode(),
    "empty lines and cells": (PLAIN.replace("\n", ",,\n") + "\n,,,\nAW,VNA1,2020-01-31T08:00:00Z,\n").encode(),
    "an empty column": PLAIN.replace("label", "label,").replace("quake\n", "quake,\n").encode(),
    "time zones": PLAIN.replace("06:00:01.5Z", "07:00:01.5+01:00").replace("07:00:00Z", "05:30:00-0130").encode(),
    "a blank for the T, and UTC": PLAIN.replace("T06", " 06").replace("Z,Eis", " UTC,Eis").encode(),
    "no zone": PLAIN.replace("Z", "").encode(),
    "slashes, year first": PLAIN.replace("2020-01-31", "2020/01/31").encode(),
}


def read(tmp_path, content, name="labels.csv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_label_table(str(path))


@pytest.mark.parametrize("form", FORMS)
def test_a_file_of_any_spreadsheet_gives_the_same_labels(tmp_path, form):
    rows = read(tmp_path, FORMS[form]).rows
    assert rows["label"].tolist() == ["icequake", "Eisbär"]
    assert rows["station"].tolist() == ["0101", "VNA1"]
    assert rows["time_ns"].tolist() == [1_580_450_401_500_000_000, 1_580_454_000_000_000_000]


@pytest.mark.parametrize("form", ["byte-order mark", "semicolons", "Western characters", "headers in capitals"])
def test_the_explorer_reads_what_the_stages_read(form):
    content = FORMS[form].replace(b"station", b"event_id").replace(b"STATION", b"Event_ID")
    rows = editing.read_labels(content)
    assert {event_id: row["label"] for event_id, row in rows.items()} == {"0101": "icequake", "VNA1": "Eisbär"}


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (
            "AW,A,31.01.2020 06:00,x",
            r"row 2 after the header has the time '31\.01\.2020 06:00', where the day or the mo",
        ),
        ("AW,A,1/2/2020,x", "where the day or the month may come first; write 2020-01-31"),
        ("AW,A,2020-02-30,x", r"row 2 after the header has an invalid time \(2020-02-30\)"),
        ("AW,A,2020-01-31T25:00,x", "row 2 after the header has an invalid time"),
        ("AW,A,2020,x", "row 2 after the header has an invalid time"),
        ("AW,A,43861.25,x", "row 2 after the header has an invalid time"),
        ("AW,A,2020-01-31 06:00 CET,x", "row 2 after the header has an invalid time"),
        ("AW,A,2020-01-31,=1+1", "row 2 after the header has the label '=1.1', which a spreadsheet would run"),
        ("AW,A,2020-01-31,@SUM(A1)", "which a spreadsheet would run as a formula"),
        ("AW,A,2020-01-31,-2+3", "which a spreadsheet would run as a formula"),
        ("AW,A,2020-01-31,ice\x1b[31mquake", "row 2 after the header has the label .* with a control character"),
        ("AW,A,2020-01-31,ice\ufffequake", "with a control character"),
        ("AW,A,2020-01-31," + "x" * 65, "row 2 after the header has a label of 65 characters; at most 64 are used"),
        ("AW,A,2020-01-31,x,y", "row 2 after the header has 5 cells, but there are 4 columns"),
        ('AW,A,2020-01-31,"x', "cannot be read as a table"),
    ],
)
def test_a_row_that_may_be_misread_is_refused_with_its_number(tmp_path, row, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        read(tmp_path, f"network,station,time,label\nAW,A,2020-01-31,icequake\n{row}\n")
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_capitals_and_blanks_make_no_class_and_the_most_frequent_spelling_stands(tmp_path):
    labels = ["Icequake", "icequake", " icequake ", "ICEQUAKE", "deep  tremor", "Deep tremor", "icequake", "Spike"]
    text = "event_id,label\n" + "".join(f"e{number},{label}\n" for number, label in enumerate(labels))
    table = read(tmp_path, text)
    ice, deep = "icequake", "deep tremor"
    assert table.rows["label"].tolist() == [ice, ice, ice, ice, deep, deep, ice, "Spike"]
    assert table.notes == (
        "hand labels: 'Deep tremor' is read as 'deep tremor'",
        "hand labels: 'ICEQUAKE', 'Icequake' are read as 'icequake'",
    )


def test_spellings_in_several_files_are_one_class(tmp_path):
    (tmp_path / "1.csv").write_text("event_id,label\na,Tremor\n")
    pd.DataFrame({"Event_ID ": ["b", "c"], "LABEL": ["tremor ", "tremor"]}).to_parquet(tmp_path / "2.parquet")
    assert read_label_table(str(tmp_path)).rows["label"].tolist() == ["tremor"] * 3


def test_a_label_set_in_the_explorer_takes_the_spelling_that_is_there():
    rows = editing.with_labels(editing.read_labels("event_id,label\na,Icequake\n"), {"b": "icequake", "c": "Noise"})
    rows = editing.with_labels(rows, {"d": " NOISE "})
    assert [row["label"] for row in rows.values()] == ["Icequake", "Icequake", "Noise", "Noise"]


def test_a_class_of_the_file_can_be_given_to_another_event_though_it_could_not_be_typed():
    rows = editing.with_labels(editing.read_labels("event_id,label\na,quake & slip?\n"), {"b": "quake & slip?"})
    assert [row["label"] for row in rows.values()] == ["quake & slip?", "quake & slip?"]
    with pytest.raises(ValueError, match="must have 1 to 64 letters"):
        editing.with_labels(rows, {"c": "ice & water"})


@given(st.text(max_size=70))
def test_what_may_be_typed_is_read_as_it_was_typed(label):
    try:
        typed = check_typed_label(label)
    except ValueError:
        return
    assert check_label(typed) == typed


def test_a_file_of_a_header_alone_holds_no_label(tmp_path):
    assert len(read(tmp_path, "event_id,label\n").rows) == 0
    with pytest.raises(InputError, match="two columns are called 'label'"):
        read(tmp_path, "event_id,label,Label\na,b,c\n")


SPELLINGS = st.lists(
    st.sampled_from(["ice", "Ice", "ICE", "ice quake", "Ice  Quake", "straße", "STRASSE"]), max_size=30
)


@given(labels=SPELLINGS)
def test_a_spelling_stands_for_exactly_the_labels_that_differ_in_capitals_and_blanks(labels):
    spelling_of = one_spelling(labels)
    for label, spelling in spelling_of.items():
        assert spelling in labels
        assert spelling_key(label) == spelling_key(spelling)
        rivals = [other for other in labels if spelling_key(other) == spelling_key(label)]
        assert labels.count(spelling) == max(rivals.count(other) for other in rivals)
        assert spelling == min(
            (other for other in rivals if rivals.count(other) == labels.count(spelling)), key=rivals.index
        )


@given(
    moment=st.datetimes(pd.Timestamp("1700-01-01").to_pydatetime(), pd.Timestamp("2200-01-01").to_pydatetime()),
    minutes=st.integers(-14 * 60, 14 * 60),
)
def test_any_iso_time_with_any_zone_is_the_instant_that_pandas_gives(moment, minutes):
    zone = f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02}:{abs(minutes) % 60:02}"
    expected = pd.Timestamp(moment).tz_localize("UTC") - pd.Timedelta(minutes=minutes)
    for text in (f"{moment.isoformat()}{zone}", f"{moment.isoformat(' ')} {zone}".replace(".", ",")):
        assert pd.Timestamp(iso_time(text)).tz_convert("UTC") == expected


@given(content=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(content):
    try:
        csv_text.read_rows(csv_text.decode_text(content))
    except ValueError:
        return


def test_column_names_that_an_error_quotes_are_one_short_line(tmp_path):
    with pytest.raises(InputError, match="has the columns") as caught:
        read(tmp_path, '"a\nb\x1b[31m' + "x" * 5000 + '",c\n1,2\n')
    assert len(str(caught.value)) < 600
    assert str(caught.value).isprintable()
