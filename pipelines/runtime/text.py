"""Text of others, made fit to be shown: names of files, codes of headers, errors that quote them."""

import unicodedata

# Control characters, surrogates, invisible formatting (which turns the direction of what follows), line separators.
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def printable(text: object) -> str:
    """Return a text on one line in which nothing acts on a terminal: such characters become backslash escapes."""
    shown = str(text)
    if shown.isascii() and shown.isprintable():
        return shown
    return "".join(_escaped(letter) if unicodedata.category(letter) in _HIDDEN else letter for letter in shown)


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape", "surrogatepass").decode("ascii")
