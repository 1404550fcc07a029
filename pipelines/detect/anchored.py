"""The anchored pass: the events of one channel group and one UTC day, the same whatever else is read.

All recursive state starts afresh at anchors: a segment's first sample and every 00:00 UTC. The pass of an anchor
begins one warm-up (`DetectionSettings.warmup_seconds`) earlier, or where the segment begins, and owns the events
whose onset lies between its anchor and the next. An event open at the next anchor is followed to its end by the pass
that it began in; whether an onset just after an anchor begins an event or belongs to one before it is read off the
anchor's own warm-up. An event's end and peak are followed for at most five times the longest trigger. So a day's
events depend on the archive from the warm-up to the end of its last event, and on nothing else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any, NamedTuple

import numpy as np

from pipelines.archive.clock import bounds_of, sample_times
from pipelines.archive.continuity import Segment
from pipelines.archive.layouts import DAY_NS
from pipelines.config.detection import DetectionSettings, WindowSettings
from pipelines.detect.kernel import Triggers, design_bandpass, scan_all
from pipelines.detect.response import GroupResponses
from pipelines.detect.windows import amplitudes, cut, resample, resampling_margin, source_samples

Array = np.ndarray[Any, Any]

COMPONENTS = "ENZ"
# An event that triggers keep joining is followed for this many times the longest trigger.
FOLLOWED_TRIGGERS = 5
# Room for the resampling filter (10 samples of the lower rate) and for the rules of continuity.
SLACK_SECONDS = 60.0
MAX_SAMPLES_TOGETHER = 2**19
"""Windows are cut together up to so many samples of a component at the source rate: some 100 MB with all copies."""
# Of equal onsets the vertical names the event, then north, then east.
_PRECEDENCE = {2: 0, 1: 1, 0: 2}


class Onset(NamedTuple):
    """An event before its window is cut.

    Attributes:
        onset_ns, end_ns: first and last triggered sample.
        channel: code of the channel that triggered.
        peak: largest STA/LTA.
    """

    onset_ns: int
    end_ns: int
    channel: str
    peak: float

    @property
    def row(self) -> int:
        """Return the row of the channel in a window: 0 E, 1 N, 2 Z."""
        row = component_row(self.channel)
        assert row is not None
        return row


@dataclass
class Pass:
    """What one anchored pass found.

    Attributes:
        onsets: events owned, in order of onset.
        without_response: triggers owned and dropped, since no epoch of `archive.stationxml` holds their onset.
        blanked_seconds: by channel, time in the owned interval in which nothing can trigger after a gap.
        covered_seconds: by channel, time in the owned interval with samples.
        gaps: by channel, how many gaps begin in the owned interval.
    """

    onsets: list[Onset] = field(default_factory=list)
    without_response: list[Onset] = field(default_factory=list)
    blanked_seconds: dict[str, float] = field(default_factory=dict)
    covered_seconds: dict[str, float] = field(default_factory=dict)
    gaps: dict[str, int] = field(default_factory=dict)


def follow_seconds(detection: DetectionSettings) -> float:
    """Return how long after its onset an event is followed at most, however long triggers keep joining it."""
    return FOLLOWED_TRIGGERS * detection.max_seconds + detection.merge_seconds


def context_seconds(detection: DetectionSettings, window: WindowSettings) -> tuple[float, float]:
    """Return the seconds that are read before the anchor and after the owned interval.

    The first covers the warm-up and the window's lead; the second the triggers that join an event, those that overlap
    it on another component, and the window; both the resampling filter and the rules of continuity.
    """
    return (
        max(detection.warmup_seconds, window.lead_seconds) + SLACK_SECONDS,
        max(2 * follow_seconds(detection) + detection.max_seconds, window.length_seconds) + SLACK_SECONDS,
    )


def find_onsets(
    segments: Mapping[str, Sequence[Segment]],
    detection: DetectionSettings,
    rate_hz: float,
    responses: GroupResponses,
    *,
    anchor_ns: int,
) -> Pass:
    """Return the events of the anchor's pass: those with an onset in its day.

    Args:
        segments: segments by channel code, from the anchor's warm-up to the end of the context after its day.
        detection: settings.
        rate_hz: sampling rate of the channel group in Hz.
        responses: of the group; triggers at times that they do not know are dropped before any are united.
        anchor_ns: 00:00 UTC of the day.

    Raises:
        ValueError: the band does not fit the sampling rate.
    """
    result = Pass()
    end_ns = anchor_ns + DAY_NS
    sections = design_bandpass(*detection.band_hz, detection.corners, rate_hz)
    num_sta, num_lta = detection.average_samples(rate_hz)
    warmup_ns = round(detection.warmup_seconds * 1e9)
    passes = [
        (channel, segment, segment.index_from(anchor_ns - warmup_ns))
        for channel, pieces in segments.items()
        if component_letter(channel) in detection.trigger_components
        for segment in pieces
        # Nothing triggers within an LTA: short segments, of which damaged files can have many, cost nothing.
        if segment.num_samples >= num_lta and segment.end_ns > anchor_ns and segment.start_ns < end_ns
    ]
    found = scan_all(
        [segment.parts(first, segment.num_samples) for _, segment, first in passes],
        sections,
        num_sta=num_sta,
        num_lta=num_lta,
        on=detection.on,
        off=detection.off,
        max_len=round(detection.max_seconds * rate_hz),
        classic=detection.method == "classic",
    )
    spans = [
        onset
        for (channel, segment, first), triggers in zip(passes, found, strict=True)
        for onset in _merge(triggers, segment, first, channel, detection, rate_hz)
    ]
    if not responses.is_counts:
        spans, unknown = _known(spans, responses)
        result.without_response = [span for span in unknown if anchor_ns <= span.onset_ns < end_ns]
    events = _unite(spans, round(follow_seconds(detection) * 1e9), round(0.5e9 / rate_hz))
    result.onsets = [event for event in events if anchor_ns <= event.onset_ns < end_ns]
    return result


def _merge(
    triggers: Triggers, segment: Segment, first: int, channel: str, detection: DetectionSettings, rate_hz: float
) -> list[Onset]:
    """Drop short triggers, then join each to the one before it where it begins soon after that one's end."""
    kept = np.flatnonzero((triggers.off - triggers.on) / rate_hz >= detection.min_seconds)
    merge = detection.merge_seconds * rate_hz
    follow = round(follow_seconds(detection) * rate_hz)
    groups: list[tuple[int, int, float]] = []
    before = 0
    for on, off, peak in zip(
        triggers.on[kept].tolist(), triggers.off[kept].tolist(), triggers.peak[kept].tolist(), strict=True
    ):
        if groups and on - before < merge:
            group_on, _, group_peak = groups[-1]
            if on - group_on <= follow:
                groups[-1] = (group_on, min(off, group_on + follow), max(group_peak, peak))
        else:
            groups.append((on, off, peak))
        before = off
    if not groups:
        return []
    bounds = first + np.array([(on, off) for on, off, _ in groups], np.int64)
    times = segment.times_at(bounds.ravel()).reshape(-1, 2).tolist()
    return [Onset(on_ns, off_ns, channel, peak) for (on_ns, off_ns), (_, _, peak) in zip(times, groups, strict=True)]


def _known(spans: Sequence[Onset], responses: GroupResponses) -> tuple[list[Onset], list[Onset]]:
    """Return the triggers whose counts can be converted at their onset, and the others."""
    known: list[Onset] = []
    unknown: list[Onset] = []
    for channel in dict.fromkeys(span.channel for span in spans):
        mine = [span for span in spans if span.channel == channel]
        holds = responses.is_known(channel, np.array([span.onset_ns for span in mine], np.int64)).tolist()
        for span, is_known in zip(mine, holds, strict=True):
            (known if is_known else unknown).append(span)
    return known, unknown


def _unite(spans: Sequence[Onset], follow_ns: int, slack_ns: int) -> list[Onset]:
    """Make overlapping triggers of several components one event with the earliest onset.

    Samples of two components less than half an interval apart (`slack_ns`) are samples of one instant.
    """
    united: list[Onset] = []
    reach = 0
    for span in sorted(spans, key=lambda span: (span.onset_ns, _PRECEDENCE[span.row], span.channel)):
        if united and span.onset_ns <= reach + slack_ns:
            event = united[-1]
            if span.onset_ns - event.onset_ns <= follow_ns:
                end_ns = min(max(event.end_ns, span.end_ns), event.onset_ns + follow_ns)
                united[-1] = event._replace(end_ns=end_ns, peak=max(event.peak, span.peak))
            reach = max(reach, span.end_ns)
        else:
            united.append(span)
            reach = span.end_ns
    return united


def account(
    result: Pass, channel: str, pieces: Sequence[Segment], num_blanked: int, rate_hz: float, start_ns: int, end_ns: int
) -> None:
    """Add to a pass the coverage, blanked time and gaps of one channel in an interval."""
    begins, ends = bounds_of([segment.clock for segment in pieces], [segment.num_samples for segment in pieces])
    blank_until = np.minimum(sample_times(begins, np.full(len(begins), num_blanked), rate_hz), ends)
    result.covered_seconds[channel] = _shared(begins, ends, start_ns, end_ns) / 1e9
    result.blanked_seconds[channel] = _shared(begins, blank_until, start_ns, end_ns) / 1e9
    result.gaps[channel] = int(((start_ns <= ends[:-1]) & (ends[:-1] < end_ns)).sum())


def _shared(begins: Array, ends: Array, start_ns: int, end_ns: int) -> int:
    """Return how many nanoseconds of spans lie in `[start_ns, end_ns)`."""
    return int(np.maximum(np.minimum(ends, end_ns) - np.maximum(begins, start_ns), 0).sum())


class Windows(NamedTuple):
    """Windows cut around onsets.

    Attributes:
        waveforms: float32 (n, 3, samples), rows E/1, N/2, Z/3; NaN where absent.
        channels: (n, 3) object, the channel code of each row; None where a row is absent.
        window_start_ns: (n,) int64, time of the first sample.
        snr_db, peak_amplitude, missing_fraction: (n,) float32.
    """

    waveforms: Array
    channels: Array
    window_start_ns: Array
    snr_db: Array
    peak_amplitude: Array
    missing_fraction: Array


def cut_windows(
    segments: Mapping[str, Sequence[Segment]],
    onsets: Sequence[Onset],
    detection: DetectionSettings,
    window: WindowSettings,
    rate_hz: float,
    responses: GroupResponses,
) -> Windows:
    """Cut and resample the windows of some onsets, in counts or in m/s.

    Args:
        segments: segments by channel code; of two codes of one component the one that comes first is preferred.
        onsets: events, in order of onset.
        detection, window: settings.
        rate_hz: source sampling rate in Hz.
        responses: of the channel group; those of the onset's time convert the whole window.
    """
    num_source = source_samples(window.num_samples, rate_hz, window.rate_hz)
    together = max(MAX_SAMPLES_TOGETHER // num_source, 1)
    if len(onsets) > together:
        parts = [
            cut_windows(segments, onsets[first : first + together], detection, window, rate_hz, responses)
            for first in range(0, len(onsets), together)
        ]
        return Windows(*(np.concatenate(values) for values in zip(*parts, strict=True)))
    margin = resampling_margin(rate_hz, window.rate_hz)
    lead = round(window.lead_seconds * rate_hz)
    onset_ns = np.array([onset.onset_ns for onset in onsets], np.int64)
    starts = sample_times(onset_ns, np.full(len(onsets), -lead), rate_hz)
    # Samples that are neither scaled nor resampled need no more digits on their way.
    plain = margin == 0 and responses.is_counts
    waveforms = np.full((len(onsets), 3, window.num_samples), np.nan, np.float32)
    channels = np.full((len(onsets), 3), None, object)
    firsts = sample_times(starts, np.full(len(starts), -margin), rate_hz)
    rows = np.array([onset.row for onset in onsets], np.int64)
    for row in range(3):
        mine = {code: pieces for code, pieces in segments.items() if component_row(code) == row}
        source = waveforms[:, row] if plain else np.full((len(onsets), num_source), np.nan)
        channels[:, row] = _cut_component(source, mine, onsets, firsts, rate_hz)
        for code in mine if not responses.is_counts else ():
            chosen = channels[:, row] == code
            source[chosen] *= responses.factors(code, onset_ns[chosen])[:, None]
        if not plain:
            waveforms[:, row] = resample(source, rate_hz, window.rate_hz, window.num_samples)
    if window.remove_response and not responses.is_counts:
        for code in segments:
            row = COMPONENTS.index(component_letter(code))
            chosen = channels[:, row] == code
            waveforms[chosen, row] = responses.remove(waveforms[chosen, row], code, window, onset_ns[chosen])
    channels[~np.isfinite(waveforms).any(axis=2)] = None
    num_signal = np.array([ceil((o.end_ns - o.onset_ns) / 1e9 * window.rate_hz) for o in onsets], np.int64)
    snr_db, peak = amplitudes(
        waveforms,
        rows,
        window.lead_samples,
        num_signal,
        band_hz=detection.band_hz,
        corners=detection.corners,
        rate_hz=window.rate_hz,
    )
    missing = np.isnan(waveforms).mean(axis=(1, 2))
    return Windows(
        waveforms,
        channels,
        starts,
        snr_db.astype(np.float32),
        peak.astype(np.float32),
        missing.astype(np.float32),
    )


def _cut_component(
    out: Array, segments: Mapping[str, Sequence[Segment]], onsets: Sequence[Onset], firsts: Array, rate_hz: float
) -> Array:
    """Fill one component's windows, each with the samples of one channel code, and return the codes, (n,) object.

    The code is the trigger's where that is of this component, else the one with more samples in the window.
    """
    chosen = np.full(len(out), next(iter(segments), None), object)
    if len(segments) == 1:
        cut(out, segments[chosen[0]], firsts, rate_hz)
    elif segments:
        parts = {code: np.full_like(out, np.nan) for code in segments}
        counts = np.zeros((len(segments), len(out)), np.int64)
        for count, (code, part) in zip(counts, parts.items(), strict=True):
            cut(part, segments[code], firsts, rate_hz)
            count[:] = np.isfinite(part).sum(axis=1)
            count[[onset.channel == code for onset in onsets]] = out.shape[1] + 1
        codes = np.array(list(segments), object)
        chosen = codes[counts.argmax(axis=0)]
        for code, part in parts.items():
            out[chosen == code] = part[chosen == code]
    return chosen


def component_row(channel: str) -> int | None:
    """Return the row of a channel code in a window (0 E or 1, 1 N or 2, 2 Z or 3); None for other channels."""
    return {"E": 0, "1": 0, "N": 1, "2": 1, "Z": 2, "3": 2}.get(channel[-1:])


def component_letter(channel: str) -> str:
    """Return the letter of a channel code's component, E, N or Z, also where the code has a digit; "" for others."""
    row = component_row(channel)
    return "" if row is None else COMPONENTS[row]


def split_days(start_ns: int, end_ns: int) -> list[tuple[int, int, int]]:
    """Return (00:00 UTC, start, end) for each UTC day of an interval."""
    days = []
    anchor = start_ns - start_ns % DAY_NS
    while anchor < end_ns:
        days.append((anchor, max(start_ns, anchor), min(end_ns, anchor + DAY_NS)))
        anchor += DAY_NS
    return days
