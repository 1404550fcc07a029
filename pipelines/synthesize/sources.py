"""Waveforms of the four classes as one station records them, before noise.

Each function returns float32 (3, sample), components E, N, Z, whose first sample is the first arrival. Filters are
causal, so nothing comes before the onset. Repeating sources share the source's random stream; the path's stream
belongs to a source and a station; only the variation's stream is the event's own.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import ndimage, signal

from pipelines.synthesize.noise import BAND_CORNERS, SIGNAL_BAND_HZ

Array = npt.NDArray[np.float64]
Waveform = npt.NDArray[np.float32]

CLASSES = ("icequake", "earthquake", "spike", "tremor")
"""The classes, in the order of the class numbers."""
SPIKE_KINDS = ("dropout", "step", "calibration", "telemetry")
ICE_P_KM_S, ICE_S_KM_S, ICE_RAYLEIGH_KM_S = 3.84, 1.93, 1.67
"""Velocities in ice (Kohnen 1974; Rayleigh waves at 0.93 of S on cold firn-free ice, less in firn)."""
CRUST_P_KM_S, CRUST_S_KM_S = 6.0, 3.46
QUALITY = 900.0
SNR_WINDOW_SECONDS = 0.5
LONGEST_RING_SECONDS = 1.4
LONGEST_TREMOR_SECONDS = 60.0
LONGEST_SPIKE_SECONDS = 22.0


@dataclass(frozen=True, kw_only=True)
class Streams:
    """Random generators of one arrival: what its source, its path and only this event contribute."""

    source: np.random.Generator
    path: np.random.Generator
    variation: np.random.Generator


@dataclass(frozen=True, kw_only=True)
class Ray:
    """How waves reach a station: distance (km), back-azimuth and incidence from the vertical (degrees)."""

    distance_km: float
    back_azimuth_deg: float
    incidence_deg: float


def icequake(streams: Streams, ray: Ray, rate_hz: int) -> tuple[Waveform, float]:
    """Return an icequake's waveform and its S-P time (s): P, S and a Rayleigh wave, each a short impulsive burst."""
    draw = streams.source
    frequency_hz = float(np.clip(draw.lognormal(np.log(14.0), 0.15), 8.0, 22.0))
    ring_seconds = float(np.clip(draw.lognormal(np.log(0.3), 0.5), 0.08, LONGEST_RING_SECONDS))
    surface = float(draw.uniform(0.2, 1.0))
    sp_ratio = float(np.exp(draw.normal(0.5, 0.4)))
    s_delay = ray.distance_km * (1 / ICE_S_KM_S - 1 / ICE_P_KM_S)
    rayleigh_delay = ray.distance_km * (1 / ICE_RAYLEIGH_KM_S - 1 / ICE_P_KM_S)
    length = int((rayleigh_delay + 9 * ring_seconds + 1.0) * rate_hz)

    def burst(random: np.random.Generator, frequency: float, ring: float) -> Array:
        return _peak_one(_burst(random, length, rate_hz, frequency, rise_seconds=0.15 / frequency, decay_seconds=ring))

    same, own, scattered = (random.spawn(3) for random in (draw, streams.variation, streams.path))
    p, s, r = (
        burst(same[number], part * frequency_hz, ring_seconds)
        + 0.12 * burst(own[number], part * frequency_hz, ring_seconds)
        for number, part in enumerate((1.0, 0.9, 0.75))
    )
    coda = [0.15 * burst(random, 0.9 * frequency_hz, 2 * ring_seconds) for random in scattered]
    s = _delay(s * sp_ratio, s_delay * rate_hz)
    r = _delay(r * surface, rayleigh_delay * rate_hz)
    inward, upward = np.sin(np.deg2rad(ray.incidence_deg)), np.cos(np.deg2rad(ray.incidence_deg))
    sv, sh = (float(v) for v in _unit_pair(draw))
    ellipticity = float(streams.path.lognormal(np.log(0.9), 0.3))
    quarter = np.imag(signal.hilbert(r)) * (np.arange(length) >= int(rayleigh_delay * rate_hz))
    vertical = upward * p + inward * sv * s + r + coda[2]
    radial = inward * p - upward * sv * s + ellipticity * quarter + coda[1]
    transverse = sh * s + coda[0]
    return _to_east_north_up(radial, transverse, vertical, ray.back_azimuth_deg), s_delay


def earthquake(streams: Streams, ray: Ray, magnitude: float, rate_hz: int) -> tuple[Waveform, float]:
    """Return an earthquake's waveform and its S-P time (s): P and S with codas that lengthen with both arguments.

    The corner frequency falls with magnitude (Brune 1970, stress drop near 1 MPa) and with anelastic attenuation
    along the path.
    """
    draw = streams.source
    s_delay = ray.distance_km * (1 / CRUST_S_KM_S - 1 / CRUST_P_KM_S)
    corner_hz = 10 ** (0.85 - 0.3 * magnitude)
    attenuation_hz = QUALITY * CRUST_S_KM_S / (np.pi * ray.distance_km)
    frequency_hz = float(
        np.clip(draw.lognormal(0, 0.1) / (1 / corner_hz + 1 / attenuation_hz), 1.3, min(16.0, 0.3 * rate_hz))
    )
    p_decay = 0.4 + 0.30 * s_delay * float(draw.lognormal(0, 0.25))
    s_decay = _s_decay(s_delay, magnitude) * float(np.clip(draw.lognormal(0, 0.25), 0.5, 1.8))
    sp_ratio = float(np.exp(draw.normal(0.75, 0.4)))
    length = int((s_delay + 6 * s_decay + 2) * rate_hz)

    def phase(random: np.random.Generator, frequency: float, rise: float, decay: float) -> Array:
        return _peak_one(_burst(random, length, rate_hz, frequency, rise_seconds=rise, decay_seconds=decay))

    p_hz, rise = min(1.25 * frequency_hz, 0.35 * rate_hz), 0.05 + 0.004 * ray.distance_km
    direct, scattered = draw.spawn(2), streams.path.spawn(6)
    p_coda = [phase(random, p_hz, rise, p_decay) for random in scattered[:3]]
    s_coda = [phase(random, frequency_hz, 1.5 * rise, s_decay) for random in scattered[3:]]
    p_direct = phase(direct[0], p_hz, rise / 2, 1.2 / p_hz)
    s_direct = phase(direct[1], frequency_hz, rise / 2, 1.5 / frequency_hz)
    inward, upward = np.sin(np.deg2rad(ray.incidence_deg)), np.cos(np.deg2rad(ray.incidence_deg))
    sv, sh = (float(v) for v in _unit_pair(draw))
    p_z, p_r, p_t = (0.6 * gain * coda for gain, coda in zip((1.0, 0.8, 0.5), p_coda, strict=True))
    s_z, s_r, s_t = (0.7 * gain * coda for gain, coda in zip((0.8, 1.0, 1.0), s_coda, strict=True))
    late = s_delay * rate_hz
    vertical = upward * p_direct + p_z + sp_ratio * _delay(inward * sv * s_direct + s_z, late)
    radial = inward * p_direct + p_r + sp_ratio * _delay(-upward * sv * s_direct + s_r, late)
    transverse = p_t + sp_ratio * _delay(sh * s_direct + s_t, late)
    return _to_east_north_up(radial, transverse, vertical, ray.back_azimuth_deg), s_delay


def longest_icequake_seconds(ray: Ray) -> float:
    """Return a time that no icequake's waveform exceeds, s."""
    return ray.distance_km * (1 / ICE_RAYLEIGH_KM_S - 1 / ICE_P_KM_S) + 9 * LONGEST_RING_SECONDS + 1.0


def longest_earthquake_seconds(ray: Ray, magnitude: float) -> float:
    """Return a time that no earthquake's waveform exceeds, s."""
    s_delay = ray.distance_km * (1 / CRUST_S_KM_S - 1 / CRUST_P_KM_S)
    return s_delay + 6 * 1.8 * _s_decay(s_delay, magnitude) + 2


def _s_decay(s_delay: float, magnitude: float) -> float:
    return 0.9 + 0.45 * s_delay + 0.5 * max(magnitude, 0.0)


def tremor(streams: Streams, ray: Ray, rate_hz: int) -> Waveform:
    """Return harmonic tremor: a gliding fundamental with overtones, mostly a Rayleigh wave."""
    draw = streams.source
    duration = float(np.clip(draw.lognormal(np.log(9.0), 0.6), 2.5, LONGEST_TREMOR_SECONDS))
    fundamental_hz = float(np.clip(draw.lognormal(np.log(2.0), 0.4), 1.0, 5.0))
    glide = float(draw.normal(0, 0.25))
    bend = float(draw.normal(0, 0.12))
    beat_hz, beat_depth = float(draw.uniform(0.1, 0.6)), float(draw.uniform(0.1, 0.6))
    rise, fall = float(draw.uniform(0.1, 0.25)) * min(duration, 8.0), float(draw.uniform(0.15, 0.4)) * duration
    length = int(duration * rate_hz)
    time = np.arange(length) / rate_hz
    part = time / duration
    frequency_hz = fundamental_hz * (1 + glide * (part - 0.5) + bend * np.sin(2 * np.pi * part))
    phase = 2 * np.pi * np.cumsum(frequency_hz) / rate_hz
    envelope = np.clip(time / rise, 0, 1) * np.clip((duration - time) / fall, 0, 1)
    envelope = envelope * (1 + beat_depth * np.sin(2 * np.pi * beat_hz * time + draw.uniform(0, 2 * np.pi)))
    highest = min(20.0, 0.4 * rate_hz)
    ellipticity = float(streams.path.lognormal(np.log(0.9), 0.4))
    radial, transverse, vertical = np.zeros(length), np.zeros(length), np.zeros(length)
    for number in range(1, 8):
        gain = float(draw.uniform(0.3, 1.0)) / number
        offset = float(draw.uniform(0, 2 * np.pi))
        love, phase_shift = float(streams.path.normal(0, 0.8)), float(streams.path.uniform(0, 2 * np.pi))
        if number * float(frequency_hz.max()) > highest:
            break
        angle = number * phase + offset
        vertical += gain * np.sin(angle)
        radial += ellipticity * gain * np.cos(angle)
        transverse += gain * love * np.sin(angle + phase_shift)
    return _to_east_north_up(radial * envelope, transverse * envelope, vertical * envelope, ray.back_azimuth_deg)


def spike(random: np.random.Generator, kind: str, rate_hz: int) -> Waveform:
    """Return an instrumental disturbance of one of SPIKE_KINDS, on one component or on all at the same instant."""
    span = float(np.clip(random.lognormal(np.log(3.0), 0.9), 0.05, 16.0))
    length = int((span + 6.0) * rate_hz)
    if kind == "dropout":
        trace = _dropouts(random, length, span, rate_hz)
    elif kind == "step":
        trace = _steps(random, length, span, rate_hz)
    elif kind == "calibration":
        trace = _calibration(random, length, span, rate_hz)
    else:
        trace = _telemetry(random, length, span, rate_hz)
    gains = random.uniform(0.4, 1.0, 3) * random.choice([-1.0, 1.0], 3)
    if random.uniform() < 0.2:
        gains = gains * (np.arange(3) == random.integers(3))
    return np.asarray(gains[:, None] * trace, np.float32)


def scale_to_snr(waveform: Waveform, snr: float, noise_rms: float, rate_hz: int) -> Waveform:
    """Scale a waveform to a signal-to-noise ratio.

    The ratio is that of the greatest root mean square over SNR_WINDOW_SECONDS, on the strongest component after the
    band-pass of SIGNAL_BAND_HZ, and `noise_rms`, the noise's in that band, which is what STA/LTA responds to.
    """
    sos = _signal_band(rate_hz)
    length = int(SNR_WINDOW_SECONDS * rate_hz)
    padded = np.pad(waveform.astype(np.float64), ((0, 0), (0, 2 * length)))
    power = ndimage.uniform_filter1d(signal.sosfilt(sos, padded, axis=1) ** 2, length, axis=1, mode="constant")
    strongest = float(np.sqrt(power.max()))
    return np.asarray(waveform * (snr * noise_rms / strongest), np.float32)


@lru_cache(maxsize=4)
def _signal_band(rate_hz: int) -> Array:
    low, high = SIGNAL_BAND_HZ
    sos = signal.butter(BAND_CORNERS, (low, min(high, 0.45 * rate_hz)), "bandpass", fs=rate_hz, output="sos")
    return np.asarray(sos)


def _burst(
    random: np.random.Generator,
    length: int,
    rate_hz: int,
    frequency_hz: float,
    *,
    rise_seconds: float,
    decay_seconds: float,
) -> Array:
    time = np.arange(length) / rate_hz
    envelope = (1 - np.exp(-time / max(rise_seconds, 0.5 / rate_hz))) * np.exp(-time / decay_seconds)
    # First-order Butterworth band-pass by the bilinear transform: scipy's design costs more than the filtering.
    low, high = np.tan(np.pi * np.array([frequency_hz / 1.5, min(1.5 * frequency_hz, 0.45 * rate_hz)]) / rate_hz)
    width, square = high - low, high * low
    numerator = [width, 0.0, -width]
    denominator = [1 + width + square, 2 * (square - 1), 1 - width + square]
    return np.asarray(signal.lfilter(numerator, denominator, random.standard_normal(length) * envelope))


def _dropouts(random: np.random.Generator, length: int, span: float, rate_hz: int) -> Array:
    trace = np.zeros(length)
    at = np.concatenate([[0.0], np.sort(random.uniform(0, span, min(int(random.geometric(0.25)), 12)))])
    trace[(at * rate_hz).astype(int)] = random.choice([-1.0, 1.0]) * random.uniform(0.6, 1.0, at.size)
    return trace


def _steps(random: np.random.Generator, length: int, span: float, rate_hz: int) -> Array:
    trace = np.zeros(length)
    at = np.concatenate([[0.0], np.sort(random.uniform(0, span, int(random.integers(0, 4))))])
    for start in (at * rate_hz).astype(int):
        recovery = np.arange(length - start) / rate_hz / float(np.exp(random.uniform(np.log(0.03), np.log(0.5))))
        trace[start:] += random.choice([-1.0, 1.0]) * random.uniform(0.6, 1.0) * np.exp(-recovery)
    return trace


def _calibration(random: np.random.Generator, length: int, span: float, rate_hz: int) -> Array:
    edges = np.zeros(length)
    width, period = float(random.uniform(0.2, 1.2)), float(random.uniform(1.5, 4.0))
    for start in np.arange(0, max(span, 0.1), period):
        edges[int(start * rate_hz)] += 1.0
        edges[min(int((start + width) * rate_hz), length - 1)] -= 1.0
    recovery = np.exp(-np.arange(length) / rate_hz / float(np.exp(random.uniform(np.log(0.02), np.log(0.2)))))
    return np.asarray(signal.fftconvolve(edges, recovery)[:length] * random.choice([-1.0, 1.0]))


def _telemetry(random: np.random.Generator, length: int, span: float, rate_hz: int) -> Array:
    trace = np.zeros(length)
    start = 0.0
    while start < span:
        count = max(int(random.uniform(0.02, 0.4) * rate_hz), 2)
        hold = int(random.integers(1, 4))
        values = np.repeat(random.uniform(-1, 1, count // hold + 1), hold)[:count]
        first = int(start * rate_hz)
        trace[first : first + count] = values[: length - first]
        start += count / rate_hz + float(random.exponential(0.8))
    return trace


def _to_east_north_up(radial: Array, transverse: Array, vertical: Array, back_azimuth_deg: float) -> Waveform:
    back = np.deg2rad(back_azimuth_deg)
    north = -np.cos(back) * radial + np.sin(back) * transverse
    east = -np.sin(back) * radial - np.cos(back) * transverse
    return np.stack([east, north, vertical]).astype(np.float32)


def _delay(trace: Array, samples: float) -> Array:
    shift = round(samples)
    delayed = np.zeros_like(trace)
    if shift < trace.size:
        delayed[shift:] = trace[: trace.size - shift]
    return delayed


def _unit_pair(random: np.random.Generator) -> tuple[float, float]:
    angle = float(random.uniform(0, 2 * np.pi))
    return float(np.cos(angle)), float(np.sin(angle))


def _peak_one(trace: Array) -> Array:
    return trace / max(float(np.abs(trace).max()), 1e-30)
