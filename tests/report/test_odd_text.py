"""Names and labels as people, and strangers, write them: every figure, page, catalogue and cell holds them unharmed."""

import csv
import io
import re
import warnings
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import obspy
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from obspy.io.quakeml.core import _validate
from test_catalogue import detections, document

from pipelines.handlabels.csv_cells import csv_cell
from pipelines.report import activity, catalogue, embedding_map, quakeml, style
from pipelines.report.page import ClusterCard, Page, render
from pipelines.report.time_bins import add_onsets, no_counts
from pipelines.report.words import short_name
from pipelines.runtime.text import fit_for_xml

ODD = (
    "$x$",
    "$\\frac{1}{",
    "icequake (deep)",
    "<b>&amp;\"'",
    "=1+1",
    "@SUM(1)",
    "bell\x07 \x1b[31m",
    "not a letter \ufffe \uffff",
    "Eisbeben ✓ 🧊🇦🇶",
    "_hidden",
    "right \u202e left",
    "two\nlines\r",
    "0.123456 #1b2a38 DejaVu Sans",
    "冰震" * 32,
    "x" * 64,
)
TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=64) | st.sampled_from(ODD)
XML_LETTER = re.compile("[\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]*")


def svg_words(text: str) -> str:
    """Return all text of an SVG, which must be well-formed XML."""
    return " ".join(element.text or "" for element in ElementTree.fromstring(text).iter())


@settings(max_examples=6, deadline=None)
@given(name=TEXT)
def test_every_figure_shows_any_name_as_it_is(name: str) -> None:
    plane = np.random.default_rng(0).normal(size=(12, 2))
    classes = np.array([name] * 6 + [None] * 6, dtype=object)
    binned = add_onsets(no_counts(), np.arange(12) * 10**11, np.zeros(12, int), 100)
    with style.drawing(), warnings.catch_warnings():
        # A figure without room for its panels warns.
        warnings.simplefilter("error")
        map_figure = embedding_map.map_figure({"plane": plane}, np.zeros(12, np.int32), {0: name}, classes)
        drawn = [
            style.to_svg(map_figure, name),
            style.to_svg(activity.activity_figure(binned, {0: name}), "activity"),
        ]
    for text in drawn:
        assert "".join(fit_for_xml(short_name(name)).split()) in "".join(svg_words(text).split())


@settings(max_examples=15, deadline=None)
@given(name=TEXT)
def test_quakeml_with_any_label_and_any_code_is_well_formed_and_keeps_the_label(name: str) -> None:
    _, text = document(detections([0.0], label=name, event_id=name, trigger_channel=name))
    assert XML_LETTER.fullmatch(text)
    root = ElementTree.fromstring(text.encode())
    comments = [element.text or "" for element in root.iter("{http://quakeml.org/xmlns/bed/1.2}text")]
    assert any(fit_for_xml(name) in comment for comment in comments)


@pytest.mark.parametrize("name", ODD)
def test_quakeml_with_an_odd_label_passes_obspys_schema(name: str, tmp_path: Path) -> None:
    _, text = document(detections([0.0, 1.0], label=name, event_id=[name, f"{name}~"]))
    file = tmp_path / "odd.xml"
    file.write_text(text, encoding="utf-8")
    assert _validate(str(file), verbose=True)
    (event,) = obspy.read_events(str(file))
    assert fit_for_xml(name) in event.comments[0].text
    assert len({pick.resource_id.id for pick in event.picks}) == 2


@given(first=TEXT, second=TEXT)
def test_two_event_ids_never_share_an_identifier(first: str, second: str) -> None:
    assert (quakeml._identifier(first) == quakeml._identifier(second)) == (first == second)


@settings(max_examples=25, deadline=None)
@given(label=TEXT, station=TEXT)
def test_no_cell_of_the_catalogues_csv_begins_a_formula_whatever_separator_a_spreadsheet_takes(
    label: str, station: str
) -> None:
    rows = detections([0.0, 1.0], label=label, station=station)
    events, _ = catalogue.associated_events(rows, 10.0, 1, {})
    text = catalogue.catalogue_csv(events)
    for separator in (",", ";", "\t"):
        for row in csv.reader(io.StringIO(text), delimiter=separator):
            for cell in row:
                number = re.fullmatch(r"-?[0-9.e+-]*(,.*)?", cell)
                assert number or cell.lstrip(' "')[:1] not in tuple("=+-@＝＋－＠") or not cell.strip(' "'), cell
    (read,) = pd.read_csv(io.StringIO(text), keep_default_na=False, dtype=str).to_dict("records")
    assert read["label"] == csv_cell(label)


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=1+1", "'=1+1"),
        (" @SUM(A1)", " '@SUM(A1)"),
        ("a;=1+1", "a;'=1+1"),
        ('";-1', "\";'-1"),
        ("\t+1", "\ufffd+1"),
        ("icequake (deep)", "icequake (deep)"),
        ("a-b=c", "a-b=c"),
        ("＝1", "'＝1"),
    ],
)
def test_a_cell_that_would_be_a_formula_gets_an_apostrophe_and_any_other_stays(text: str, cell: str) -> None:
    assert csv_cell(text) == cell


@settings(max_examples=25, deadline=None)
@given(name=TEXT)
def test_the_page_escapes_any_name_and_drops_what_no_page_may_hold(name: str) -> None:
    card = ClusterCard(
        number=0,
        name=name,
        colour="#2f7fc1",
        events=1,
        share=1.0,
        sites=((name, 1),),
        hand=0,
        duration_s=None,
        snr_db=None,
        sampled=0,
    )
    html = render(Page(title=name, lede=name, facts=(), clusters=(card,), gallery=(), band_words="", notes=(name,)))
    assert XML_LETTER.fullmatch(html)
    escaped = fit_for_xml(name)
    for letter, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("'", "&#39;"), ('"', "&#34;")):
        escaped = escaped.replace(letter, entity)
    assert f'<p class="warning">{escaped}</p>' in html
    assert f"<h1>{escaped}</h1>" in html
