"""Text for people: what others wrote made fit to be shown, and counts with their nouns."""

import re
import unicodedata

# Control characters, surrogates, invisible formatting (which turns the direction of what follows), line separators.
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}

# All that XML 1.0 cannot hold, the other control characters, and what turns the direction of the text that follows.
_UNFIT = re.compile(
    "[^\t\n\x20-\x7e\xa0-\u2029\u202f-\u2065\u206a-\ud7ff\ue000-\ufdcf\ufdf0-\ufffd\U00010000-\U0010ffff]"
)


def printable(text: object) -> str:
    """Return a text on one line in which nothing acts on a terminal: such characters become backslash escapes."""
    shown = str(text)
    if shown.isascii() and shown.isprintable():
        return shown
    return "".join(_escaped(letter) if unicodedata.category(letter) in _HIDDEN else letter for letter in shown)


def fit_for_xml(text: str) -> str:
    """Return a text with U+FFFD for each character that XML, a page or a terminal must not get.

    >>> fit_for_xml("bell\\x07 <b> $x$")
    'bell\ufffd <b> $x$'
    """
    return _UNFIT.sub("\ufffd", text)


def counted(count: int, one: str, many: str = "") -> str:
    """Return a count with its noun, and the verb where one is given.

    >>> counted(1, "file"), counted(0, "file"), counted(1, "event has", "events have")
    ('1 file', '0 files', '1 event has')
    """
    return f"{count} {one if count == 1 else many or f'{one}s'}"


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape", "surrogatepass").decode("ascii")
