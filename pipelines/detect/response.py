"""Counts to metres per second: the sensitivity of StationXML, or the full response removed from cut windows."""

import contextlib
import copy
import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from pipelines.config.detection import WindowSettings

Array = np.ndarray[Any, Any]

EPOCH_SLACK_NS = 1_000_000_000
"""An epoch that ends up to this long before the next one begins lasts until then: many end at 23:59:59."""

SENSITIVITY_TOLERANCE = 0.05
"""How far the gain of the stages may be from the sensitivity at its frequency; evalresp's own limit."""

MAX_EPOCHS_PER_CHANNEL = 1000
MAX_SHOWN_CHARACTERS = 40

_FIRST_NS, _LAST_NS = -(2**63), 2**63 - 1
_UNIT = re.compile(
    r"(?P<length>[NUMC]?M|(?:NANO|MICRO|MILLI|CENTI)?MET(?:ER|RE)S?)"
    r"(?P<motion>(?P<velocity>/S|/SEC|/SECONDS?)|"
    r"(?P<acceleration>/\(?(?:S|SEC|SECONDS?)(?:\*\*|\^)?2\)?|/(?:S|SEC)/(?:S|SEC)|/\((?:S|SEC)\*(?:S|SEC)\)))?"
)
_METRES = {"N": 1e-9, "U": 1e-6, "C": 1e-2, "M": 1e-3}
_SI = {"displacement": "M", "velocity": "M/S", "acceleration": "M/S**2"}
_COUNTS = re.compile(r".*COUNTS?\b.*|CTS?|CNTS?|DU|LSB|")


@dataclass(frozen=True)
class Epoch:
    """What is known of a channel between two times.

    Attributes:
        start_ns, end_ns: the times, in nanoseconds since 1970 (UTC); the second is exclusive.
        sensitivity: counts per unit of ground motion; NaN where counts cannot be converted.
        metres: what that unit is in m, m/s or m/s**2.
        is_velocity: whether the division by the sensitivity alone gives a velocity.
        response: ObsPy's, where it is to be removed, with its input unit in metres.
        problem: why counts cannot be converted; "" where they can.
        doubt: what the file contradicts itself in, and what is used; "" for nothing.
    """

    start_ns: int
    end_ns: int
    sensitivity: float = np.nan
    metres: float = 1.0
    is_velocity: bool = True
    response: Any = None
    problem: str = ""
    doubt: str = ""

    @property
    def factor(self) -> float:
        """Return what counts are multiplied with."""
        return 1.0 / self.sensitivity * self.metres

    def says_the_same(self, other: "Epoch") -> bool:
        """Return whether two epochs convert counts alike."""
        if self.problem or other.problem:
            return self.problem == other.problem
        return bool(
            (self.sensitivity, self.metres, self.is_velocity) == (other.sensitivity, other.metres, other.is_velocity)
            and self.response == other.response
        )


@dataclass(frozen=True)
class GroupResponses:
    """The responses of one channel group: by channel code, its epochs in order of time, none of which overlap.

    Attributes:
        epochs: None where samples stay counts.
    """

    epochs: Mapping[str, Sequence[Epoch]] | None = None

    @property
    def is_counts(self) -> bool:
        """Return whether samples stay counts."""
        return self.epochs is None

    def problem(self, channel: str) -> str:
        """Return why no sample of a channel can be converted, with what `archive.stationxml` says; "" if some can."""
        if self.epochs is None:
            return ""
        epochs = self.epochs.get(channel, ())
        if any(not epoch.problem for epoch in epochs):
            return ""
        return epochs[0].problem if epochs else "archive.stationxml does not have this channel"

    def known(self, channel: str) -> list[tuple[int, int]] | None:
        """Return the times whose samples can be converted, exclusive at the end, in order; None: all, since they stay
        counts."""
        if self.epochs is None:
            return None
        return [(epoch.start_ns, epoch.end_ns) for epoch in self.epochs.get(channel, ()) if not epoch.problem]

    def factors(self, channel: str, times_ns: Array) -> Array:
        """Return what counts are multiplied with at (n,) times: (n,) float64; 1 for counts, NaN where nothing is known.

        The product is in m/s, or in what `remove` makes m/s of.
        """
        if self.epochs is None:
            return np.ones(len(times_ns))
        values = np.full(len(times_ns), np.nan)
        for epoch in self.epochs.get(channel, ()):
            values[(epoch.start_ns <= times_ns) & (times_ns < epoch.end_ns)] = epoch.factor
        return values

    def is_known(self, channel: str, times_ns: Array) -> Array:
        """Return whether samples of a channel at (n,) times can be converted: (n,) bool."""
        return np.isfinite(self.factors(channel, times_ns))

    def remove(self, waveforms: Array, channel: str, window: WindowSettings, times_ns: Array) -> Array:
        """Return one component's windows, with the response removed where `window.remove_response` asks for it.

        The spectral division of ObsPy's `Trace.remove_response` (velocity), with the response at each window's time. A
        window with an absent sample cannot be divided so: of a velocity it stays as it is, in m/s by its sensitivity;
        of a displacement or an acceleration nothing is left.

        Args:
            waveforms: (n, samples) float32, already multiplied with `factors`; NaN where absent.
            channel: its code.
            window: settings.
            times_ns: (n,) int64.
        """
        if self.epochs is None or not window.remove_response:
            return waveforms
        from obspy import Trace

        waveforms = waveforms.copy()
        for epoch in self.epochs.get(channel, ()):
            if epoch.response is None:
                continue
            for index in np.flatnonzero((epoch.start_ns <= times_ns) & (times_ns < epoch.end_ns)).tolist():
                samples = waveforms[index]
                if not np.isfinite(samples).all():
                    if not epoch.is_velocity:
                        waveforms[index] = np.nan
                    continue
                trace = Trace(samples.astype(np.float64))
                trace.stats.sampling_rate = window.rate_hz
                trace.stats.response = epoch.response
                trace.data *= epoch.sensitivity
                trace.remove_response(output="VEL", pre_filt=window.response_prefilt_hz)
                waveforms[index] = trace.data
        return waveforms


@dataclass(frozen=True)
class Responses:
    """What a StationXML file says about the units of its channels; without one, samples stay counts.

    Attributes:
        channels: epochs by network, station and location code ("" for none), then by channel code; None for counts.
    """

    channels: Mapping[tuple[str, str, str], Mapping[str, Sequence[Epoch]]] | None = None

    @classmethod
    def of(cls, inventory: Any, window: WindowSettings) -> "Responses":
        """Return the responses of an ObsPy Inventory, as `window.remove_response` needs them."""
        found: dict[tuple[str, str, str], dict[str, list[Epoch]]] = {}
        for network in inventory:
            for station in network:
                for channel in station:
                    # Looked up as they are: `select` of an inventory takes the codes of headers for patterns.
                    codes = (network.code, station.code, _location(channel.location_code))
                    found.setdefault(codes, {}).setdefault(channel.code, []).append(_epoch(channel, window))
        return cls(
            {codes: {code: _in_order(epochs) for code, epochs in channels.items()} for codes, channels in found.items()}
        )

    def of_group(self, network: str, station: str, location: str) -> GroupResponses:
        """Return the responses of the channels of a station and location."""
        if self.channels is None:
            return GroupResponses()
        return GroupResponses(self.channels.get((network, station, _location(location)), {}))


def ground_motion(unit: str) -> tuple[str, float] | None:
    """Return what a unit of StationXML measures and its length in metres; None where it is not ground motion.

    `NM/S` gives ("velocity", 1e-9). Case, blanks and the ways of writing a square do not matter.
    """
    match = _UNIT.fullmatch("".join(unit.upper().replace("µ", "U").replace("μ", "U").split()))
    if match is None:
        return None
    motion = "acceleration" if match["acceleration"] else "velocity" if match["velocity"] else "displacement"
    length = match["length"]
    prefix = {"NANO": "N", "MICRO": "U", "MILLI": "M", "CENTI": "C"}
    short = next((letter for word, letter in prefix.items() if length.startswith(word)), "")
    if not short and len(length) == 2:
        short = length[0]
    return motion, _METRES.get(short, 1.0)


def _one_line(unit: str) -> str:
    """Return a unit as it is shown: on one line, printable, not too long."""
    return "".join(letter for letter in " ".join(unit.split()) if letter.isprintable())[:MAX_SHOWN_CHARACTERS]


def _location(code: str | None) -> str:
    """Return a location code without the ways of writing that there is none."""
    code = (code or "").strip()
    return "" if code == "--" else code


def _epoch(channel: Any, window: WindowSettings) -> Epoch:
    """Return the epoch of an ObsPy channel."""
    start_ns = max(channel.start_date.ns, _FIRST_NS) if channel.start_date else _FIRST_NS
    end_ns = min(channel.end_date.ns, _LAST_NS) if channel.end_date else _LAST_NS
    try:
        return _converted(channel.response, start_ns, end_ns, window)
    except ValueError as error:
        return Epoch(start_ns, end_ns, problem=str(error))


def _converted(response: Any, start_ns: int, end_ns: int, window: WindowSettings) -> Epoch:
    """Return how a response converts counts; ValueError with the reason where it does not."""
    sensitivity = response.instrument_sensitivity if response is not None else None
    if sensitivity is None or sensitivity.value is None:
        if response is not None and response.instrument_polynomial is not None:
            raise ValueError("archive.stationxml has a polynomial for this channel, not a sensitivity")
        raise ValueError("archive.stationxml has no sensitivity for this channel")
    value = float(sensitivity.value)
    if not np.isfinite(value) or value == 0 or not np.isfinite(1.0 / value):
        raise ValueError(f"archive.stationxml has the sensitivity {value:g} for this channel")
    stages = sorted(response.response_stages or [], key=lambda stage: stage.stage_sequence_number)
    units = (sensitivity.input_units, stages[0].input_units if stages else None)
    given = [_one_line(unit) for unit in units if unit]
    if not given:
        raise ValueError("archive.stationxml has no input units for this channel")
    motions = [ground_motion(unit) for unit in given]
    if motions[0] is None:
        raise ValueError(
            f"archive.stationxml gives this channel the unit {given[0]}, which is not one of ground motion"
        )
    if any(motion != motions[0] for motion in motions):
        raise ValueError(
            f"archive.stationxml has this channel's sensitivity in {given[0]} and its first stage in {given[1]}"
        )
    output = _one_line(sensitivity.output_units or "")
    if not _COUNTS.fullmatch(output.upper()):
        raise ValueError(f"archive.stationxml has this channel's sensitivity to {output}, not to counts")
    motion, metres = motions[0]
    gain = _gain_of_stages(response, stages, motion, value)
    doubt = ""
    if abs(gain / value - 1) > SENSITIVITY_TOLERANCE:
        doubt = (
            f"archive.stationxml has the sensitivity {value:g} for this channel, but its stages have the gain {gain:g} "
            f"at that frequency; the {'stages are' if window.remove_response else 'sensitivity is'} used"
        )
    if not window.remove_response:
        if motion != "velocity":
            raise ValueError(
                f"archive.stationxml gives this channel the unit {given[0]}: a sensitivity does not turn {motion} into "
                "m/s, but window.remove_response does"
            )
        return Epoch(start_ns, end_ns, value, metres, doubt=doubt)
    if not stages:
        raise ValueError(
            "archive.stationxml has a sensitivity for this channel and no stages, which window.remove_response needs"
        )
    gains = [stage.stage_gain for stage in stages if stage.stage_gain is not None]
    bad = next((gain for gain in gains if not np.isfinite(gain) or gain == 0), None)
    if bad is not None:
        raise ValueError(f"archive.stationxml has a stage with the gain {bad:g} for this channel")
    response = _in_metres(response, motion)
    _check_response(response, window)
    # A window with a gap is divided by one number: it must be in the units of the others.
    value = gain if doubt else value
    return Epoch(start_ns, end_ns, value, metres, motion == "velocity", response, doubt=doubt)


def _gain_of_stages(response: Any, stages: Sequence[Any], motion: str, sensitivity: float) -> float:
    """Return the gain of all stages at the sensitivity's frequency; the sensitivity itself where they do not say.

    The product of the stages' gains tells it in most files, and costs nothing. Where a gain holds at another frequency,
    the response is evaluated. Its sign is that of the sensitivity, since a response has a phase in its place.
    """
    gains = [stage.stage_gain for stage in stages]
    if not gains or any(gain is None for gain in gains):
        return sensitivity
    product = float(np.prod([float(gain) for gain in gains]))
    if abs(product / sensitivity - 1) > SENSITIVITY_TOLERANCE:
        in_metres = _in_metres(response, motion)
        output = {"displacement": "DISP", "velocity": "VEL", "acceleration": "ACC"}[motion]
        # What cannot be evaluated has the product alone.
        with contextlib.suppress(Exception):
            evaluated = in_metres.get_evalresp_response_for_frequencies(
                [float(response.instrument_sensitivity.frequency)],
                output=output,
                hide_sensitivity_mismatch_warning=True,
            )
            product = float(np.copysign(np.abs(evaluated[0]), sensitivity))
    return product if np.isfinite(product) and product != 0 else sensitivity


def _in_metres(response: Any, motion: str) -> Any:
    """Return a copy of a response whose input unit is that of SI: ObsPy knows fewer ways of writing a unit, and scales
    some of them and others not."""
    response = copy.deepcopy(response)
    first = min(response.response_stages, key=lambda stage: stage.stage_sequence_number)
    first.input_units = _SI[motion]
    return response


def _check_response(response: Any, window: WindowSettings) -> None:
    """Raise ValueError where ObsPy cannot evaluate a response in the band that is kept, or finds nothing in it."""
    frequencies = np.minimum(window.response_prefilt_hz[1:3], 0.4 * window.rate_hz)
    try:
        values = response.get_evalresp_response_for_frequencies(
            frequencies, output="VEL", hide_sensitivity_mismatch_warning=True
        )
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"archive.stationxml has stages for this channel that cannot be evaluated: {reason}") from None
    if not np.isfinite(values).all() or not np.abs(values).all():
        low, high = frequencies
        raise ValueError(
            f"archive.stationxml has stages for this channel whose response at {low:g} or {high:g} Hz "
            "(window.response_prefilt_hz) is zero or not a number"
        )


def _in_order(epochs: list[Epoch]) -> tuple[Epoch, ...]:
    """Return epochs in order of time, without overlaps: where some that differ overlap, nothing is known."""
    if len(epochs) > MAX_EPOCHS_PER_CHANNEL:
        problem = f"archive.stationxml has {len(epochs)} epochs for this channel, more than {MAX_EPOCHS_PER_CHANNEL}"
        return (Epoch(_FIRST_NS, _LAST_NS, problem=problem),)
    starts = sorted(epoch.start_ns for epoch in epochs)
    lasting = []
    for epoch in epochs:
        index = bisect_left(starts, epoch.end_ns)
        gap_ns = starts[index] - epoch.end_ns if index < len(starts) else 0
        lasting.append(replace(epoch, end_ns=epoch.end_ns + gap_ns) if gap_ns <= EPOCH_SLACK_NS else epoch)
    edges = sorted({edge for epoch in lasting for edge in (epoch.start_ns, epoch.end_ns)})
    result: list[Epoch] = []
    for start_ns, end_ns in pairwise(edges):
        here = [epoch for epoch in lasting if epoch.start_ns <= start_ns and end_ns <= epoch.end_ns]
        if not here:
            continue
        if all(epoch.says_the_same(here[0]) for epoch in here):
            result.append(replace(here[0], start_ns=start_ns, end_ns=end_ns))
        else:
            problem = "archive.stationxml has epochs for this channel that overlap and differ"
            result.append(Epoch(start_ns, end_ns, problem=problem))
    return tuple(result)
