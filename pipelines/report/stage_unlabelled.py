"""Counts what a report leaves out: events that have no label, and labels whose event or encoder is gone."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.report.catalogue import onset_nanoseconds
from pipelines.report.stage_reading import read_ahead
from pipelines.report.stage_tasks import map_tasks
from pipelines.report.words import count_words, thousands
from pipelines.workspace import tables
from pipelines.workspace.artifacts import TrainingRecord
from pipelines.workspace.storage import Store
from pipelines.workspace.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Unlabelled:
    """Events without a label, and labels without an event."""

    events: int = 0
    """Rows of `events/`."""
    without_label: int = 0
    """Rows of `events/` whose event_id is not in `labels/`."""
    without_event: int = 0
    """Rows of `labels/` whose event_id is not in `events/`."""
    first_ns: int | None = None
    """First onset of those without a label (ns since 1970-01-01 UTC)."""
    last_ns: int | None = None
    """Last onset of those without a label (ns since 1970-01-01 UTC)."""


def count_unlabelled(store: Store) -> Unlabelled:
    """Compare the event_ids of `events/` and `labels/`, file by file: as Ray tasks where they are many and Ray runs."""
    events, labels = (
        {item.path.removeprefix(f"{table}/") for item in tables.list_shards(store, table)}
        for table in ("events", "labels")
    )
    parts = tables.by_task(sorted(events | labels))

    def count(files: Sequence[str]) -> list[Unlabelled]:
        return list(read_ahead(count_file, files))

    def count_file(file: str) -> Unlabelled:
        return _count_file(store, file, has_events=file in events, has_labels=file in labels)

    found = [one for counts in map_tasks(count, parts) for one in counts]
    firsts = [one.first_ns for one in found if one.first_ns is not None]
    lasts = [one.last_ns for one in found if one.last_ns is not None]
    return Unlabelled(
        events=sum(one.events for one in found),
        without_label=sum(one.without_label for one in found),
        without_event=sum(one.without_event for one in found),
        first_ns=min(firsts, default=None),
        last_ns=max(lasts, default=None),
    )


def _count_file(store: Store, file: str, *, has_events: bool, has_labels: bool) -> Unlabelled:
    nothing = pa.table({"event_id": pa.array([], pa.string())})
    labelled = tables.read_table(store, f"labels/{file}", ("event_id",)) if has_labels else nothing
    if not has_events:
        return Unlabelled(without_event=labelled.num_rows)
    events = tables.read_table(store, f"events/{file}", ("event_id", "onset"))
    missing = events.filter(pc.invert(pc.is_in(events["event_id"], value_set=labelled["event_id"].combine_chunks())))
    known = pc.is_in(labelled["event_id"], value_set=events["event_id"].combine_chunks())
    onset_ns = onset_nanoseconds(missing.to_pandas())
    return Unlabelled(
        events=events.num_rows,
        without_label=missing.num_rows,
        without_event=labelled.num_rows - (pc.sum(known.cast(pa.int64())).as_py() or 0),
        first_ns=int(onset_ns.min()) if len(onset_ns) else None,
        last_ns=int(onset_ns.max()) if len(onset_ns) else None,
    )


def unlabelled_words(found: Unlabelled, workspace_url: str) -> list[str]:
    """Return what a reader must know of events without a label and labels without an event; [] where all match."""
    words = []
    if found.first_ns is not None and found.last_ns is not None:
        first, last = _minute(found.first_ns), _minute(found.last_ns)
        words.append(
            f"{thousands(found.without_label)} of {count_words(found.events, 'event')} "
            f"{'has no label and is' if found.without_label == 1 else 'have no label and are'} not in this report: "
            f"detected after the last labelling, with onsets from {first} to {last} UTC. For a complete report, "
            f"run firnline label {workspace_url}, then firnline report {workspace_url}."
        )
    if found.without_event:
        words.append(
            f"{count_words(found.without_event, 'label')} whose event is no longer in events/ "
            f"{'is' if found.without_event == 1 else 'are'} left out of the catalogue. "
            f"Run firnline label {workspace_url} again."
        )
    return words


def earlier_encoder_words(workspace: Workspace) -> list[str]:
    """Return that the labels are those of an earlier encoder than the workspace's own, where they are."""
    store = workspace.store
    trained = TrainingRecord.read(store)
    path = next((item.path for item in tables.list_shards(store, "embeddings")), None)
    if trained is None or path is None or workspace.stored_config("label").get("label", {}).get("model") is not None:
        return []
    with tables.open_table(store, path, ()) as file:
        encoder = (file.schema_arrow.metadata or {}).get(b"encoder")
    if encoder is None or encoder.decode() == trained.content_hash:
        return []
    return [
        "The labels were made with an earlier encoder than the one that this workspace holds now. Run firnline label "
        f"{workspace.url}, then firnline report {workspace.url}."
    ]


def _minute(time_ns: int) -> str:
    return f"{pd.Timestamp(time_ns, tz='UTC'):%Y-%m-%d %H:%M}"
