"""Numbers and names as they stand in a sentence."""

import numpy as np
import pandas as pd

from pipelines.runtime.text import counted

MAX_SHORT_NAME = 28
"""Characters of a name in a figure."""


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
    ('26\\xa0%', '1.2\\xa0%', '0\\xa0%')
    """
    value = 100 * share
    digits = 1 if 0 < value < 9.95 else 0
    return f"{value:.{digits}f}\u00a0%"


def count_words(count: int, noun: str) -> str:
    """Return a count with its noun.

    >>> count_words(1, "file"), count_words(1575, "event")
    ('1 file', '1\u202f575 events')
    """
    return f"{thousands(count)} {counted(count, noun).partition(' ')[2]}"


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
