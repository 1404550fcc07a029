"""What others wrote does nothing to a terminal."""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from pipelines.runtime.text import counted, printable


def test_names_that_are_text_stay_as_they_are():
    for name in ("2022/XX/0101/HHZ.D", "Neumayer Ⅲ", "Mýrdalsjökull", "C:\\data", "日本"):
        assert printable(name) == name


def test_what_acts_on_a_terminal_becomes_visible():
    assert printable("a\x1b[2Jb\r\n") == r"a\x1b[2Jb\r\n"
    assert printable("\u202egpj.exe") == r"\u202egpj.exe"
    assert printable("caf\udce9") == r"caf\udce9"


def test_a_count_has_its_noun_in_the_right_number():
    assert [counted(count, "file") for count in (0, 1, 2)] == ["0 files", "1 file", "2 files"]
    assert [counted(count, "event has", "events have") for count in (1, 3)] == ["1 event has", "3 events have"]


@given(st.text())
def test_no_control_character_is_left(text):
    assert not {unicodedata.category(letter) for letter in printable(text)} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
