"""The rows of events/: cut the windows of a day's onsets and fill the columns."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipelines.config import Config
from pipelines.detect.anchored import Onset, Windows, cut_windows
from pipelines.detect.stage_day import ChannelGroup, Day
from pipelines.workspace import schemas, tables
from pipelines.workspace.event_ids import event_id


class OwnedOnset(NamedTuple):
    """An onset that a shard owns.

    Attributes:
        onset: the event before its window is cut.
        event_id: as `event_id` gives it.
        group: its channel group on this day.
    """

    onset: Onset
    event_id: str
    group: ChannelGroup


def owned_onsets(day: Day, start_ns: int, end_ns: int) -> list[OwnedOnset]:
    """Return the day's onsets in `[start_ns, end_ns)`, in order of time and event_id."""
    owned = [
        OwnedOnset(onset, event_id(group.codes, group.rate_hz, onset.onset_ns), group)
        for group, found in zip(day.groups, day.passes, strict=True)
        for onset in found.result().onsets
        if start_ns <= onset.onset_ns < end_ns
    ]
    owned.sort(key=lambda item: item[:2])
    return owned


def event_rows(owned: Sequence[OwnedOnset], shard: str, config: Config) -> pa.RecordBatch:
    """Return the rows of some onsets, in their order.

    Args:
        owned: at least one onset.
        shard: name of the shard.
        config: resolved configuration.
    """
    window = config.window
    count = len(owned)
    waveforms, channels, starts, snr_db, peak, missing = _cut(owned, config)
    onset_ns = np.array([onset.onset_ns for onset, _, _ in owned], np.int64)
    end_ns = np.array([onset.end_ns for onset, _, _ in owned], np.int64)
    columns: Mapping[str, Any] = {
        "event_id": [name for _, name, _ in owned],
        "network": [group.codes[0] for _, _, group in owned],
        "station": [group.codes[1] for _, _, group in owned],
        "location": [group.codes[2] for _, _, group in owned],
        "channels": channels.tolist(),
        "onset": onset_ns,
        "window_start": starts,
        "duration_s": ((end_ns - onset_ns) / 1e9).astype(np.float32),
        "peak_ratio": np.array([onset.peak for onset, _, _ in owned], np.float32),
        "snr_db": snr_db,
        "peak_amplitude": peak,
        "units": [config.detection.units] * count,
        "sampling_rate": np.full(count, window.rate_hz),
        "source_sampling_rate": np.array([group.rate_hz for _, _, group in owned]),
        "missing_fraction": missing,
        "trigger_channel": [onset.channel for onset, _, _ in owned],
        "shard": [shard] * count,
    }
    schema = schemas.events_schema(window.num_samples)
    arrays = [pa.array(columns[name], schema.field(name).type) for name in schema.names[:-1]]
    return pa.RecordBatch.from_arrays([*arrays, tables.tensor_array(waveforms)], schema=schema)


def _cut(owned: Sequence[OwnedOnset], config: Config) -> Windows:
    """Cut the windows of some onsets, in their order."""
    order: list[int] = []
    parts: list[Windows] = []
    for number in dict.fromkeys(id(group) for _, _, group in owned):
        indexes = [index for index, (_, _, group) in enumerate(owned) if id(group) == number]
        onsets, group = [owned[index].onset for index in indexes], owned[indexes[0]].group
        parts.append(
            cut_windows(group.segments, onsets, config.detection, config.window, group.rate_hz, group.responses)
        )
        order += indexes
    if len(parts) == 1:
        return parts[0]
    back = np.argsort(order)
    return Windows(*(np.concatenate(values)[back] for values in zip(*parts, strict=True)))
