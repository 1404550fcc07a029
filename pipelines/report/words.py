"""Numbers and names as they stand in a sentence."""

import re

import numpy as np
import pandas as pd

# All that XML 1.0 cannot hold, the other control characters, and what turns the direction of the text that follows.
_UNFIT = re.compile(
    "[^\t\n\x20-\x7e\xa0-\u2029\u202f-\u2065\u206a-\ud7ff\ue000-\ufdcf\ufdf0-\ufffd\U00010000-\U0010ffff]"
)
MAX_SHORT_NAME = 28
"""Characters of a name in a figure."""


def fit_text(text: str) -> str:
    """Return a text with U+FFFD for each character that XML, a page or a terminal must not get.

    >>> fit_text("bell\\x07 <b> $x$")
    'bell\ufffd <b> $x$'
    """
    return _UNFIT.sub("\ufffd", text)


def short_name(name: str) -> str:
    """Return a name on one line with at most `MAX_SHORT_NAME` characters, as it fits into a figure.

    >>> short_name("a name that is longer than any legend has room for")
    'a name that is longer than …'
    """
    line = " ".join(name.split())
    return line if len(line) <= MAX_SHORT_NAME else f"{line[: MAX_SHORT_NAME - 1]}…"


def percent(share: float) -> str:
    """Return a share (0 to 1) in per cent, with a decimal where it is below ten.

    >>> percent(0.256), percent(0.0123), percent(0.0)
    ('26 %', '1.2 %', '0 %')
    """
    value = 100 * share
    digits = 1 if 0 < value < 9.95 else 0
    return f"{value:.{digits}f}\u00a0%"


def count_words(count: int, noun: str) -> str:
    """Return a count with its noun.

    >>> count_words(1, "file"), count_words(1575, "event")
    ('1 file', '1\u202f575 events')
    """
    return f"{thousands(count)} {noun}{'' if count == 1 else 's'}"


def thousands(count: int) -> str:
    """Return a count with a narrow space between thousands."""
    return f"{count:,}".replace(",", "\u202f")


def span_words(first: pd.Timestamp, last: pd.Timestamp) -> str:
    """Return how long it is from one time to another: in hours, days or years.

    >>> span_words(pd.Timestamp("2009-01-21T04:00"), pd.Timestamp("2009-01-21T10:30"))
    '6.5 h'
    """
    seconds = (last - first).total_seconds()
    for limit, width, unit in (
        (2 * 86_400, 3600, "h"),
        (800 * 86_400, 86_400, "days"),
        (np.inf, 365.25 * 86_400, "years"),
    ):
        if seconds < limit:
            return f"{seconds / width:.{1 if seconds / width < 10 else 0}f} {unit}"
    raise AssertionError("unreachable")
