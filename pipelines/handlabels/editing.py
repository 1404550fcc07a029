"""Hand labels as text: a CSV with the columns `event_id` and `label`, read and changed."""

import csv
import io
from collections.abc import Mapping

from pipelines.handlabels.csv_cells import csv_cell
from pipelines.handlabels.csv_text import decode_text, read_rows
from pipelines.handlabels.label_text import check_typed_label, one_spelling, spelling_key


def read_labels(text: str | bytes) -> dict[str, dict[str, str]]:
    """Return the rows of a label CSV by event id, in their order; other columns (such as `split`) are kept.

    Raises:
        ValueError: a column is missing.
    """
    columns, rows = read_rows(text if isinstance(text, str) else decode_text(text))
    if not columns:
        return {}
    if not {"event_id", "label"} <= set(columns):
        raise ValueError("it must have the columns event_id and label")
    return {row["event_id"]: row for row in rows if row["event_id"]}


def write_labels(rows: Mapping[str, Mapping[str, str]]) -> str:
    """Return the CSV text of label rows, sorted by event id, so that changing one label changes one line."""
    columns = list(dict.fromkeys(("event_id", "label", *(name for row in rows.values() for name in row))))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for event_id in sorted(rows):
        # Columns that others have added may hold anything; an apostrophe keeps a spreadsheet from running it.
        writer.writerow({name: csv_cell(cell) for name, cell in rows[event_id].items()})
    return stream.getvalue()


def with_labels(rows: Mapping[str, Mapping[str, str]], changes: Mapping[str, str | None]) -> dict[str, dict[str, str]]:
    """Return label rows with some labels set, or removed where the new label is None.

    A class that is already there, perhaps in other capitals or blanks, keeps its spelling.

    Raises:
        ValueError: a label of a new class is not one that may be typed.
    """
    result = {event_id: dict(row) for event_id, row in rows.items()}
    spelling_of = one_spelling(row["label"] for row in rows.values())
    known = {spelling_key(label): spelling for label, spelling in spelling_of.items()}
    for event_id, label in changes.items():
        if label is None:
            result.pop(event_id, None)
        else:
            key = spelling_key(label)
            if not known.get(key):
                known[key] = check_typed_label(label)
            result[event_id] = {"event_id": event_id, **result.get(event_id, {}), "label": known[key]}
    return result
