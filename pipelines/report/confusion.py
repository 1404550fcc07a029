"""The confusion matrix as rows of a table: counts, and the share of each row that shades its cells."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class ConfusionRow:
    """One class of the truth or of the hand labels."""

    name: str
    total: int
    cells: tuple[tuple[int, float, bool], ...]
    """For each column: events, their share of the row (0 to 1), and whether the column stands for this class."""


def confusion_rows(
    classes: Sequence[str], columns: Sequence[str], counts: npt.NDArray[np.int64], column_classes: Sequence[str | None]
) -> list[ConfusionRow]:
    """Return the rows of a confusion matrix.

    `counts` has shape (class, column); `column_classes` gives for each column the class that it was assigned, or None.
    """
    if counts.shape != (len(classes), len(columns)) or len(column_classes) != len(columns):
        raise ValueError(f"counts have shape {counts.shape}, they need one row a class and one column a name")
    rows = []
    for name, row in zip(classes, counts, strict=True):
        total = int(row.sum())
        cells = tuple(
            (int(count), float(count) / total if total else 0.0, column_class == name)
            for count, column_class in zip(row, column_classes, strict=True)
        )
        rows.append(ConfusionRow(name=name, total=total, cells=cells))
    return rows
