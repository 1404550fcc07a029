"""Which codes recordings are used under, where a path and its headers disagree, and which codes are never used."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.archive.codes import name_channels
from pipelines.archive.layouts import path_parser
from pipelines.archive.records import Channel

SDS = path_parser("sds")


def sds(network: str, station: str, location: str, channel: str):
    return SDS(f"2020/{network}/{station}/{channel}.D/{network}.{station}.{location}.{channel}.D.2020.061")


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (("XX", "C1", "", "HHZ"), ("XX", "C1", "--", "HHZ")),
        (("XX", "C6", "", "HHZ"), ("XX", "C6", "00", "HHZ")),
        (("XX", "C6", "10", "HHZ"), ("XX", "C6", "00", "HHZ")),
        (("9C", "C3", "", "HHZ"), ("XX", "C3", "", "HHZ")),
        (("XX", "NODE0012", "", "HHZ"), ("XX", "NODE0", "", "HHZ")),
        (("XX", "C1", "", "HHE"), ("XX", "C1", "", "HH1")),
        (("XX", "C1", "", "HHZ"), ("", "", "", "EHZ")),
    ],
)
def test_what_the_path_says_holds_and_the_difference_is_told(path, found):
    naming = name_channels(sds(*path), [Channel(*found)])
    assert naming.used == {Channel(*found): Channel(*path)}
    assert naming.differences == [(Channel(*found), Channel(*path))]
    assert not naming.refused


def test_records_of_another_channel_do_not_get_the_name_of_the_files_own():
    own, other = Channel("XX", "C1", "", "HHZ"), Channel("XX", "C2", "", "HHZ")
    naming = name_channels(sds(*own), [own, other])
    assert naming.used == {own: own}
    assert naming.refused == {other: "the records are of XX.C2..HHZ, in a file of XX.C1..HHZ"}
    third = Channel("XX", "C3", "", "HHZ")
    naming = name_channels(sds(*own), [other, third])
    assert not naming.used
    assert set(naming.refused) == {other, third}


def test_a_component_never_becomes_another():
    naming = name_channels(sds("XX", "C1", "", "HHZ"), [Channel("XX", "C1", "", "HHN")])
    assert naming.refused == {Channel("XX", "C1", "", "HHN"): "the headers say channel HHN, the path HHZ"}


def test_in_a_flat_folder_the_headers_hold_and_no_code_is_changed():
    for codes in (Channel("XX", "AB C", "00", "S Z"), Channel("", "a-b_c", "", "HHZ")):
        assert name_channels(None, [codes]).used == {codes: codes}
    # As people write the empty location code.
    assert name_channels(None, [Channel("XX", "A", "--", "HHZ")]).differences == [
        (Channel("XX", "A", "--", "HHZ"), Channel("XX", "A", "", "HHZ"))
    ]


@pytest.mark.parametrize(
    "station", ["../..", "..", ".", "A/B", "A\x1b[2J", "A\nB", "A=B", "*", "a.b", " A", "\u202eA", "A%2F"]
)
def test_a_code_that_acts_on_a_path_or_a_terminal_is_refused(station):
    naming = name_channels(None, [Channel("XX", station, "", "HHZ")])
    assert not naming.used
    (reason,) = naming.refused.values()
    assert reason.startswith("the station code ")
    assert reason.isprintable()


@given(st.lists(st.tuples(*[st.text(max_size=9)] * 4), max_size=4))
def test_every_channel_is_either_used_or_refused(found):
    channels = [Channel(*codes) for codes in found]
    for path in (None, sds("XX", "C1", "", "HHZ")):
        naming = name_channels(path, channels)
        assert set(naming.used) | set(naming.refused) == set(channels)
        assert not set(naming.used) & set(naming.refused)
        for codes in naming.used.values():
            assert not any(set(code) & set("/.\\*=%\x1b\n") for code in codes)
