"""What the text of a hand label may be, and which spellings are one class.

A file of labels may hold any text that can be printed and that no spreadsheet runs as a formula. A label or name that
is typed in the explorer has usual characters only.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping

MAX_LABEL_CHARACTERS = 64

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff\ud800-\udfff]")
# Letters, digits, blanks and some punctuation: nothing that a spreadsheet runs as a formula or a page as markup.
_USUAL = re.compile(r"\w(?:[\w .,/()+-]*[\w.)])?")


def check_label(label: str) -> str:
    """Return a label of a file with single blanks.

    Raises:
        ValueError: a spreadsheet would run it, it cannot be printed, or it is too long; the sentence lacks its subject,
            the row.
    """
    label = _with_single_blanks(label)
    if _CONTROL.search(label):
        raise ValueError(f"has the label {label[:40]!r}, with a control character")
    if label.startswith(("=", "+", "-", "@")):
        raise ValueError(
            f"has the label {label[:40]!r}, which a spreadsheet would run as a formula; begin it with a letter or digit"
        )
    if len(label) > MAX_LABEL_CHARACTERS:
        raise ValueError(f"has a label of {len(label)} characters; at most {MAX_LABEL_CHARACTERS} are used")
    return label


def check_typed_label(label: str) -> str:
    """Return a label or a cluster's name that is typed in the explorer, with single blanks.

    Raises:
        ValueError: it is empty, too long, or has unusual characters.
    """
    label = _with_single_blanks(label)
    if len(label) > MAX_LABEL_CHARACTERS or not _USUAL.fullmatch(label):
        raise ValueError(
            f"the label {label[:MAX_LABEL_CHARACTERS]!r} must have 1 to {MAX_LABEL_CHARACTERS} letters, digits, blanks "
            "or .,/()+- and begin with a letter or digit"
        )
    return label


def _with_single_blanks(label: str) -> str:
    return re.sub("[ \u00a0]+", " ", unicodedata.normalize("NFC", label)).strip()


def spelling_key(label: str) -> str:
    """Return what is the same for all spellings of a class that differ in capitals and blanks alone."""
    return " ".join(unicodedata.normalize("NFKC", label).casefold().split())


def one_spelling(labels: Iterable[str]) -> dict[str, str]:
    """Return the spelling that stands for each label: the most frequent of its class; of equals the first."""
    counts = Counter(labels)
    chosen: dict[str, str] = {}
    # A counter keeps the order of first appearance, and a sort that of equals.
    for label, _ in sorted(counts.items(), key=lambda entry: -entry[1]):
        chosen.setdefault(spelling_key(label), label)
    return {label: chosen[spelling_key(label)] for label in counts}


def describe_spellings(spelling_of: Mapping[str, str]) -> list[str]:
    """Return a sentence for each class that was written in several ways."""
    others: dict[str, list[str]] = {}
    for label, spelling in spelling_of.items():
        if label != spelling:
            others.setdefault(spelling, []).append(label)
    return [
        f"{', '.join(map(repr, sorted(labels)))} {'is' if len(labels) == 1 else 'are'} read as {spelling!r}"
        for spelling, labels in sorted(others.items())
    ]
