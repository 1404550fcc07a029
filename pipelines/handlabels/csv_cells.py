"""Text as a cell of a CSV file that a spreadsheet shows, and never runs as a formula."""

import re
import unicodedata

# A formula begins with one of these (also in full width), in a cell of its own: at the start of the text, or after a
# separator of another country's spreadsheet, which cuts the text where the file's own separator does not.
_FORMULA = re.compile(r"""((?:^|[;,|\t"])[\s"]*)([=+\-@＝＋－＠])""")


def csv_cell(text: str) -> str:
    """Return a text with an apostrophe before what a spreadsheet would take for a formula, on one line.

    Control characters and line separators become U+FFFD. Any other text stays as it is.

    >>> csv_cell("=1+1"), csv_cell("icequake (deep)")
    ("'=1+1", 'icequake (deep)')
    """
    plain = "".join("\ufffd" if unicodedata.category(letter) in ("Cc", "Zl", "Zp") else letter for letter in text)
    return _FORMULA.sub(r"\1'\2", plain)
