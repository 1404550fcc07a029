"""Hand labels as people make them: a CSV from any spreadsheet, and its times.

Spreadsheets write a byte-order mark, semicolons, decimal commas, Windows line ends and other character sets. People
write headers in capitals and blanks around words.
"""

import csv
import io
import re
from collections import Counter

SEPARATORS = (",", ";", "\t")

_TIME = re.compile(
    r"(?P<day>\d{4}(?P<mark>[-/])\d{2}(?P=mark)\d{2}|\d{8})"
    r"(?:[T ]\s*(?P<clock>\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d+)?)?))?"
    r"\s*(?P<zone>Z|UTC|GMT|[+-]\d{2}(?::?\d{2})?)?",
    re.IGNORECASE,
)
_OTHER_ORDER = re.compile(r"\d{1,2}[./-]\d{1,2}[./-]\d{2,4}\b.*")


class RowError(ValueError):
    """A row that cannot be used; `row` counts the rows after the header from 1."""

    def __init__(self, row: int, problem: str) -> None:
        super().__init__(f"row {row} after the header {problem}")
        self.row = row


def decode_text(content: bytes) -> str:
    """Return the text of a file in UTF-8, UTF-16 with its mark, or the Western character set of old spreadsheets."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        # Excel's plain "CSV" has it; five bytes of it stand for nothing.
        return content.decode("cp1252")


def read_rows(text: str) -> tuple[list[str], list[dict[str, str]]]:
    """Return a CSV's columns, in lower case, and its rows by column, without blanks around cells.

    The separator is a comma, a semicolon or a tab, whichever the header has most of; a first line such as `sep=;` names
    it. An empty line is a row of empty cells.

    Raises:
        ValueError: it is not a CSV, two columns have one name, or a row has more cells than the header; names the row.
    """
    text = text.removeprefix("\ufeff")
    named = re.match(r"sep=(.)\r?\n", text, re.IGNORECASE)
    separator = named[1] if named else max(SEPARATORS, key=text.split("\n", 1)[0].count)
    if named:
        text = text[named.end() :]
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    found: list[dict[str, str]] = []
    try:
        header = [name.strip().lower() for name in next(rows, [])]
        named_columns = [name for name in header if name]
        if len(set(named_columns)) < len(named_columns):
            raise ValueError(f"two columns are called {Counter(named_columns).most_common(1)[0][0]!r}")
        for number, cells in enumerate(rows, 1):
            cells = [cell.strip() for cell in cells]
            if any(cells[len(header) :]):
                raise RowError(number, f"has {len(cells)} cells, but there are {len(header)} columns")
            padded = cells + [""] * (len(header) - len(cells))
            found.append({name: cell for name, cell in zip(header, padded, strict=False) if name})
    except csv.Error as error:
        raise ValueError(f"it is not a CSV file: {error}") from None
    return named_columns, found


def iso_time(text: str) -> str:
    """Return a time as `2020-01-31T06:00:00.5+01:00`, in UTC where no zone is given.

    Raises:
        ValueError: it is no such time; one with the day or the month first is named, since either may be meant.
    """
    text = text.strip()
    match = _TIME.fullmatch(text)
    if match is None:
        if _OTHER_ORDER.fullmatch(text):
            raise ValueError(f"has the time {text[:40]!r}, where the day or the month may come first; write 2020-01-31")
        raise ValueError(f"has an invalid time ({text[:40]})")
    day, clock, zone = match["day"], match["clock"] or "00:00", (match["zone"] or "Z").upper()
    digits = day.replace("-", "").replace("/", "")
    day = f"{digits[:4]}-{digits[4:6]}-{digits[6:]}"
    clock = clock.replace(",", ".").zfill(len(clock) + (clock[1] == ":"))
    zone = "+00:00" if zone in ("Z", "UTC", "GMT") else zone
    if len(zone) == 5:
        zone = f"{zone[:3]}:{zone[3:]}"
    return f"{day}T{clock}{zone}"
