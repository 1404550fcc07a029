"""Agreement with known classes: the published scores, and the confusion matrix as rows of a table."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from pipelines.report.page import ConfusionRow, ConfusionTable, Statement
from pipelines.report.words import percent
from pipelines.workspace.artifacts import ClusteringSummary

SCORE_TITLES = {
    "test.hungarian_accuracy": ("accuracy, one cluster to each class", True),
    "test.purity": ("accuracy, clusters named by their majority", True),
    "test.balanced_purity": ("mean recall of the classes, clusters named by their majority", True),
    "test.majority_baseline": ("accuracy of always saying the most frequent class", True),
    "test.knn_accuracy": ("accuracy of nearest neighbours in the embedding", True),
    "test.linear_accuracy": ("accuracy of a linear classifier on the embedding", True),
    "test.knn_station_accuracy": ("accuracy of nearest neighbours at an unseen station", True),
    "test.linear_station_accuracy": ("accuracy of a linear classifier at an unseen station", True),
    "test.propagated_accuracy": ("accuracy of propagated labels", True),
    "test.propagated_balanced_accuracy": ("mean recall of the classes, propagated labels", True),
    "test.propagated_calibration_error": ("expected calibration error of propagated labels", True),
    "test.nmi": ("normalised mutual information", False),
    "test.ari": ("adjusted Rand index", False),
}
"""Scores of the label stage that may be published, their titles, and whether they are shares."""


def statements(evaluation: ClusteringSummary) -> Iterator[Statement]:
    """Yield the published scores (of the test half) with their intervals and protocols."""
    scores, protocol = evaluation.scores, evaluation.protocol
    for name, (title, is_share) in SCORE_TITLES.items():
        if name not in scores or name not in protocol:
            continue
        low, high = scores.get(f"{name}.low"), scores.get(f"{name}.high")
        value = percent(scores[name]) if is_share else f"{scores[name]:.2f}"
        words = f"{protocol[name][:1].upper()}{protocol[name][1:]}."
        for other, (other_title, _) in SCORE_TITLES.items():
            words = words.replace(other, f"\u201c{other_title}\u201d")
        if low is not None and high is not None:
            words += f" 95 % interval {percent(low)} to {percent(high)}, from redrawn events."
        yield Statement(title=title, value=value, protocol=words)


def confusion_tables(evaluation: ClusteringSummary) -> Iterator[ConfusionTable]:
    """Yield the confusion matrix of the test half of the hand labels, where there is one."""
    found = evaluation.confusion
    if found is None or not found.hand_labels:
        return
    classes, given = list(found.hand_labels), list(found.given)
    counts = np.array(found.events, dtype=np.int64).reshape(len(classes), len(given))
    columns = [column for column, name in enumerate(given) if name in classes or counts[:, column].any()]
    yield ConfusionTable(
        title="Known class against the class given by the cluster",
        protocol=(
            f"Rows are the hand labels or the truth of the test half, {int(counts.sum())} detections; columns the "
            "class that their cluster was given by the majority of the validation half. Shares are of the row."
        ),
        columns=tuple(given[column] for column in columns),
        rows=tuple(
            confusion_rows(
                classes,
                [given[column] for column in columns],
                counts[:, columns],
                [given[column] if given[column] in classes else None for column in columns],
            )
        ),
    )


def confusion_rows(
    classes: Sequence[str], columns: Sequence[str], counts: npt.NDArray[np.int64], column_classes: Sequence[str | None]
) -> list[ConfusionRow]:
    """Return the rows of a confusion matrix.

    `counts` has shape (class, column); `column_classes` gives for each column the class that it was assigned, or None.
    """
    if counts.shape != (len(classes), len(columns)) or len(column_classes) != len(columns):
        raise ValueError(f"counts have shape {counts.shape}, not one row for each class and one column for each name")
    rows = []
    for name, row in zip(classes, counts, strict=True):
        total = int(row.sum())
        cells = tuple(
            (int(count), float(count) / total if total else 0.0, column_class == name)
            for count, column_class in zip(row, column_classes, strict=True)
        )
        rows.append(ConfusionRow(name=name, total=total, cells=cells))
    return rows
