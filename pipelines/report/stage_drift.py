"""What the report says of drift: the months whose events differ from those that the clustering was fitted on."""

import pandas as pd

from pipelines.report.page import DriftLine
from pipelines.report.words import count_words, percent, thousands
from pipelines.workspace.artifacts import DriftRecord, DriftRow
from pipelines.workspace.storage import Store

MAX_LINES = 120
"""Stations and months that the page shows; those that have changed come first, then the latest."""


def drift_section(store: Store) -> tuple[tuple[str, ...], tuple[DriftLine, ...]]:
    """Return sentences and the lines of a table; without later events a sentence alone.

    Raises:
        InputError: `clustering/drift.json` is damaged.
    """
    drift = DriftRecord.read(store)
    if drift is None:
        return ("Nothing is known of drift: these labels were not written by the present label stage.",), ()
    first, last = (f"{pd.Timestamp(time, tz='UTC'):%Y-%m-%d}" for time in (drift.first_ns, drift.last_ns))
    fitted = f"The clustering was fitted on {count_words(drift.reference_events, 'detection')} from {first} to {last}"
    if not drift.rows:
        return (f"{fitted}, which are all there are. Later ones will be compared with these.",), ()
    changed = [row for row in drift.rows if row.reasons]
    words = [f"{fitted}; {thousands(drift.events)} outside that time are compared with them, by station and month."]
    if changed:
        words.append(
            f"Retraining is advised: {len(changed)} of {count_words(len(drift.rows), 'month')} of a station differ by "
            "more than the reference period's own months and chance. To learn encoder and clustering anew: "
            "firnline run ARCHIVE WORKSPACE --run.on_growth retrain."
        )
    else:
        words.append("None differs by more than the reference period's own months and chance.")
    shown = sorted(changed, key=_latest_first) + sorted((r for r in drift.rows if not r.reasons), key=_latest_first)
    if len(shown) > MAX_LINES:
        words.append(f"The table shows {MAX_LINES} of them; all are in {DriftRecord.PATH}.")
    return tuple(words), tuple(_line(row) for row in shown[:MAX_LINES])


def _latest_first(row: DriftRow) -> tuple[int, str]:
    year, _, month = row.month.partition("-")
    return -(12 * int(year) + int(month)), row.station


def _line(row: DriftRow) -> DriftLine:
    return DriftLine(
        station=row.station,
        month=row.month,
        events=row.events,
        far=f"{percent(row.far_share)} ({percent(row.reference_far_share)})",
        distance=f"{row.distance_ratio:.2f}",
        balance=percent(row.balance),
        noise="–" if row.noise_db is None else f"{row.noise_db:+.1f}".replace("-", "\u2212"),
        reasons=row.reasons,
    )
