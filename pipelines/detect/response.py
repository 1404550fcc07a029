"""Counts to metres per second: the sensitivity of StationXML, or the full response removed from cut windows."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.config.detection import WindowSettings
from pipelines.detect.anchored import Windows

Array = np.ndarray[Any, Any]

_FIRST_NS, _LAST_NS = -(2**63), 2**63 - 1


@dataclass(frozen=True)
class Responses:
    """The inventory's responses; without one, samples stay counts.

    Attributes:
        inventory: an ObsPy Inventory, or None for counts.
    """

    inventory: Any = None

    def missing(self, codes: tuple[str, str, str, str], channels: Iterable[str]) -> str:
        """Return the first channel without a sensitivity, "" where all have one or none is needed."""
        if self.inventory is None:
            return ""
        return next((channel for channel in channels if not self._entries(codes, channel)), "")

    def factors(
        self, codes: tuple[str, str, str, str], channels: Mapping[int, str], times_ns: Array
    ) -> dict[int, Array]:
        """Return by component row what counts are multiplied with at (n,) times: 1 / sensitivity. Empty for counts."""
        if self.inventory is None:
            return {}
        return {row: 1.0 / self._sensitivities(codes, channel, times_ns) for row, channel in channels.items()}

    def remove(
        self,
        windows: Windows,
        codes: tuple[str, str, str, str],
        channels: Mapping[int, str],
        window: WindowSettings,
        times_ns: Array,
    ) -> Windows:
        """Return the windows with the full response removed where `window.remove_response` asks for it.

        The spectral division of ObsPy's `Trace.remove_response` (velocity), on windows that were already divided by the
        sensitivity, with the response at each one's (n,) time. A component with an absent sample stays as it is.
        """
        if self.inventory is None or not window.remove_response:
            return windows
        from obspy import Trace, UTCDateTime

        waveforms = windows.waveforms.copy()
        network, station, location, _ = codes
        for row, channel in channels.items():
            sensitivities = self._sensitivities(codes, channel, times_ns)
            for index, time_ns in enumerate(times_ns.tolist()):
                samples = waveforms[index, row]
                if not np.isfinite(samples).all():
                    continue
                header = {"network": network, "station": station, "location": location, "channel": channel}
                trace = Trace(samples.astype(np.float64), header)
                trace.stats.sampling_rate = window.rate_hz
                # It only chooses the response.
                trace.stats.starttime = UTCDateTime(ns=time_ns)
                trace.data *= sensitivities[index]
                trace.remove_response(self.inventory, output="VEL", pre_filt=window.response_prefilt_hz)
                waveforms[index, row] = trace.data
        return windows._replace(waveforms=waveforms)

    def _sensitivities(self, codes: tuple[str, str, str, str], channel: str, times_ns: Array) -> Array:
        """Return the sensitivity at (n,) times; the first one where no epoch holds a time."""
        entries = self._entries(codes, channel)
        values = np.full(len(times_ns), entries[0][2])
        for begin_ns, end_ns, value in reversed(entries):
            values[(begin_ns <= times_ns) & (times_ns < end_ns)] = value
        return values

    def _entries(self, codes: tuple[str, str, str, str], channel: str) -> list[tuple[int, int, float]]:
        network, station, location, _ = codes
        found = self.inventory.select(network=network, station=station, location=location, channel=channel)
        return [
            (
                entry.start_date.ns if entry.start_date else _FIRST_NS,
                entry.end_date.ns if entry.end_date else _LAST_NS,
                float(entry.response.instrument_sensitivity.value),
            )
            for net in found
            for sta in net
            for entry in sta
            if entry.response is not None
            and entry.response.instrument_sensitivity is not None
            and entry.response.instrument_sensitivity.value
        ]
