"""`detection.`, `window.` and `shards.`: what a trigger is, what is cut around it, and how the work is divided."""

from typing import Literal

from pydantic import field_validator, model_validator

from pipelines.config.base import Section, operational


class DetectionSettings(Section):
    """STA/LTA on the causally band-passed trace, defined as in ObsPy."""

    method: Literal["recursive", "classic"] = "recursive"
    """recursive (exponential averages) or classic (moving averages)."""
    sta_seconds: float = 0.5
    """Length of the short-term average in seconds."""
    lta_seconds: float = 10.0
    """Length of the long-term average in seconds; no trigger begins this soon after a gap."""
    on: float = 3.5
    """A trigger starts where STA/LTA rises above this."""
    off: float = 1.5
    """A trigger ends where STA/LTA falls to this."""
    band_hz: tuple[float, float] = (1.0, 20.0)
    """Corners [low, high] of the causal Butterworth band-pass in Hz."""
    fit_to_rate: bool = operational(False)
    """For a first look at an archive: where the recordings' sampling rate is too low for band_hz or window.rate_hz,
    lower the upper corner and the windows' rate instead of refusing."""
    corners: int = 4
    """Order of the band-pass."""
    trigger_components: str = "Z"
    """Components that trigger, such as Z or ZNE; overlapping triggers are one event from the first onset."""
    min_seconds: float = 0.0
    """Shorter triggers are dropped (seconds)."""
    max_seconds: float = 60.0
    """A longer trigger is ended after this many seconds (ObsPy's max_len with max_len_delete=False)."""
    merge_seconds: float = 0.0
    """A trigger that starts less than this many seconds after the previous one ended is merged with it; 0: never."""
    coincidence_stations: int = 1
    """Stations that must trigger within coincidence_seconds to make an event; 1: every trigger is an event (count)."""
    coincidence_seconds: float = 10.0
    """Triggers of other stations this soon after an event's first trigger belong to it (seconds)."""
    units: Literal["counts", "m/s"] = "counts"
    """Unit of the windows: counts, or m/s through the sensitivity in archive.stationxml, of velocities in any unit."""

    @field_validator("trigger_components")
    @classmethod
    def _components(cls, value: str) -> str:
        letters = value.upper()
        if not letters or set(letters) - set("ZNE123") or len(set(letters)) != len(letters):
            raise ValueError("must be letters out of Z, N, E (or 3, 2, 1), each once, such as Z or ZNE")
        return letters.translate(str.maketrans("123", "ENZ"))

    @model_validator(mode="after")
    def _consistent(self) -> "DetectionSettings":
        low, high = self.band_hz
        checks = [
            (self.sta_seconds > 0, f"sta_seconds {self.sta_seconds:g} must be positive"),
            (
                self.sta_seconds < self.lta_seconds,
                f"sta_seconds {self.sta_seconds:g} must be shorter than lta_seconds {self.lta_seconds:g}",
            ),
            (self.lta_seconds <= 3600, f"lta_seconds {self.lta_seconds:g} must be at most 3600"),
            (0 < low < high, f"band_hz [{low:g}, {high:g}] must be two rising positive corners"),
            (low >= 0.001, f"band_hz [{low:g}, {high:g}] must start at 0.001 Hz or above"),
            (self.on <= 1e6, f"on {self.on:g} must be at most 1e6"),
            (0 < self.off <= self.on, f"off {self.off:g} must be positive and at most on ({self.on:g})"),
            (1 <= self.corners <= 16, f"corners {self.corners} must lie between 1 and 16"),
            (self.min_seconds >= 0, f"min_seconds {self.min_seconds:g} must not be negative"),
            (0 < self.max_seconds <= 3600, f"max_seconds {self.max_seconds:g} must lie above 0 and be at most 3600"),
            (
                self.min_seconds <= self.max_seconds,
                f"min_seconds {self.min_seconds:g} must be at most max_seconds {self.max_seconds:g}",
            ),
            (0 <= self.merge_seconds <= 3600, f"merge_seconds {self.merge_seconds:g} must lie between 0 and 3600"),
            (
                1 <= self.coincidence_stations <= 100_000,
                f"coincidence_stations {self.coincidence_stations} must lie between 1 and 100000",
            ),
            (
                0 < self.coincidence_seconds <= 600,
                f"coincidence_seconds {self.coincidence_seconds:g} must lie above 0 and be at most 600",
            ),
        ]
        for holds, sentence in checks:
            if not holds:
                raise ValueError(sentence)
        return self

    def average_samples(self, rate_hz: float) -> tuple[int, int]:
        """Return the lengths of the short-term and the long-term average in samples, at least 1 each."""
        return max(round(self.sta_seconds * rate_hz), 1), max(round(self.lta_seconds * rate_hz), 1)

    def blanked_samples(self, rate_hz: float) -> int:
        """Return how many samples at the beginning of a segment cannot trigger: as ObsPy's STA/LTA, which is 0 there.

        The recursive average gives the first ratio after the long-term average's samples, the classic at their last.
        """
        num_lta = self.average_samples(rate_hz)[1]
        return num_lta - 1 if self.method == "classic" else num_lta

    @property
    def warmup_seconds(self) -> float:
        """Return the warm-up before an anchor: 40 LTA, 10 periods of the low corner, the longest trigger and merge."""
        return 40 * self.lta_seconds + 10 / self.band_hz[0] + self.max_seconds + self.merge_seconds


class WindowSettings(Section):
    """The window cut around each onset, at one sampling rate for the whole table."""

    rate_hz: float = 100.0
    """Sampling rate of the windows in Hz; records of another rate are resampled (polyphase)."""
    lead_seconds: float = 5.0
    """Seconds before the onset."""
    length_seconds: float = 30.0
    """Length of the window in seconds."""
    remove_response: bool = False
    """Deconvolve the full instrument response of archive.stationxml from each window (units m/s): of velocities,
    displacements and accelerations."""
    response_prefilt_hz: tuple[float, float, float, float] = (0.5, 1.0, 40.0, 45.0)
    """Corners in Hz of the cosine taper that stabilises the deconvolution."""

    @model_validator(mode="after")
    def _consistent(self) -> "WindowSettings":
        if not 0 < self.rate_hz <= 10000:
            raise ValueError(f"rate_hz {self.rate_hz:g} must lie above 0 and be at most 10000 Hz")
        if not 0 < self.length_seconds <= 3600:
            raise ValueError(f"length_seconds {self.length_seconds:g} must lie above 0 and be at most 3600")
        if not 0 <= self.lead_seconds < self.length_seconds:
            raise ValueError(
                f"lead_seconds {self.lead_seconds:g} must be shorter than length_seconds {self.length_seconds:g}"
            )
        if not self.lead_samples < self.num_samples:
            raise ValueError(
                f"length_seconds {self.length_seconds:g} at rate_hz {self.rate_hz:g} is {self.num_samples} samples, "
                f"{self.lead_samples} of them before the onset: at least one must follow it"
            )
        corners = self.response_prefilt_hz
        if list(corners) != sorted(corners) or corners[0] <= 0:
            raise ValueError(f"response_prefilt_hz {list(corners)} must be four rising positive corners")
        return self

    @property
    def num_samples(self) -> int:
        """Return the number of samples of a window."""
        return round(self.length_seconds * self.rate_hz)

    @property
    def lead_samples(self) -> int:
        """Return the number of samples before the onset."""
        return round(self.lead_seconds * self.rate_hz)


class ShardSettings(Section):
    """How the archive is divided into units of work; results do not depend on it."""

    interval: Literal["hour", "day", "week", "month", "auto"] = "auto"
    """UTC interval of a shard; auto: chosen once from the length of the archive and kept in workspace.json."""
    num_workers: int = operational(0, ge=0, le=100_000)
    """Shards processed at the same time; 0: one for each logical CPU of the machine or cluster (count)."""
