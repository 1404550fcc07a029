"""Background noise between the Peterson models, continuous, and the same samples for any piece that is asked for.

Noise is a sum of half-overlapping blocks, each a coloured random spectrum under a sine window. Sine windows of
half-overlapping blocks have squares that add up to one, so the sum has the wanted power everywhere. A block is keyed
by its number since 1970-01-01, never by the piece of the record that is requested.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import scipy.fft
from obspy.signal.spectral_estimation import get_nhnm, get_nlnm

from pipelines.synthesize.streams import Purpose, stream

Array = npt.NDArray[np.float64]

CORNER_HZ = 1 / 120
"""Low corner of the seismometers, critically damped to 0.707 as broadband sensors are."""
DAMPING = 0.707
SIGNAL_BAND_HZ = (1.0, 20.0)
"""The band in which signal-to-noise ratios are defined, a Butterworth band-pass of BAND_CORNERS corners."""
BAND_CORNERS = 4

_BLOCK_SECONDS = 256.0
_DAY_SECONDS = 86_400
_WIND_NODE_SECONDS = 10_800
_MICROSEISM_RANGE_DB = (-7.0, 9.0)
_WIND_SHARE = (0.40, 0.52)
_QUIET_SHARE = 0.2


def velocity_psd(frequency_hz: Array, microseism_db: float, wind_share: float) -> Array:
    """Return the PSD of ground velocity as the seismometer passes it on, (m/s)^2/Hz, zero at 0 Hz.

    In acceleration it is a mean of Peterson's (1993) new low and high noise models in dB, `wind_share` of the way up
    at 1 Hz and above and a fifth of the way at long periods, plus a bump of `microseism_db` around a period of 5 s.
    Frequencies beyond the models' 10 Hz take their value at 10 Hz.
    """
    return _velocity_psd(_spectral_shape(frequency_hz), microseism_db, wind_share)


def noise_level(seed: int, station: str, at_seconds: float) -> tuple[float, float]:
    """Return (microseism_db, wind_share) at a time in seconds since 1970-01-01.

    The microseism varies from day to day for all stations alike, the wind from hour to hour at each; both are
    interpolated between nodes, so that neither jumps.
    """
    microseism = _between_nodes(seed, Purpose.MICROSEISM, "", at_seconds / _DAY_SECONDS - 0.5, _MICROSEISM_RANGE_DB)
    wind = _between_nodes(seed, Purpose.WIND, station, at_seconds / _WIND_NODE_SECONDS, _WIND_SHARE)
    return microseism, wind


def band_rms(seed: int, station: str, at_seconds: float) -> float:
    """Return the noise's root mean square at a time after the Butterworth band-pass of SIGNAL_BAND_HZ, m/s."""
    shape, weight = _band()
    psd = _velocity_psd(shape, *noise_level(seed, station, at_seconds)) * weight
    return float(np.sqrt(psd.sum()))


def noise(seed: int, station: str, first_sample: int, num_samples: int, rate_hz: int) -> npt.NDArray[np.float32]:
    """Return ground noise, float32 (3, num_samples), m/s, components E, N, Z.

    `first_sample` counts samples at `rate_hz` since 1970-01-01. Any two pieces agree where they overlap.
    """
    block_samples = 1 << int(np.ceil(np.log2(_BLOCK_SECONDS * rate_hz)))
    hop = block_samples // 2
    end = first_sample + num_samples
    total = np.zeros((3, num_samples), np.float32)
    window = np.sin(np.pi * (np.arange(block_samples) + 0.5) / block_samples).astype(np.float32)
    shape = _block_shape(block_samples, rate_hz)
    for block in range(first_sample // hop - 1, (end - 1) // hop + 1):
        start = block * hop
        level = noise_level(seed, station, (start + hop) / rate_hz)
        amplitude = np.sqrt(_velocity_psd(shape, *level) * (rate_hz * block_samples / 4))
        normals = stream(seed, Purpose.NOISE, station, block).standard_normal((3, hop + 1, 2), dtype=np.float32)
        spectrum = normals.view(np.complex64)[..., 0] * amplitude.astype(np.float32)
        piece = scipy.fft.irfft(spectrum, n=block_samples, axis=1) * window
        low, high = max(start, first_sample), min(start + block_samples, end)
        total[:, low - first_sample : high - first_sample] += piece[:, low - start : high - start]
    return total


def _velocity_psd(shape: Array, microseism_db: float, wind_share: float) -> Array:
    calm, wind, microseism = shape
    return np.asarray(10 ** ((calm + (wind_share - _QUIET_SHARE) * wind + microseism_db * microseism) / 10))


@lru_cache(maxsize=2)
def _block_shape(block_samples: int, rate_hz: int) -> Array:
    return _spectral_shape(np.asarray(np.fft.rfftfreq(block_samples, 1 / rate_hz), np.float64))


@lru_cache(maxsize=1)
def _band() -> tuple[Array, Array]:
    """Return the spectral shape on a grid over SIGNAL_BAND_HZ and the band-pass's power times the grid step, Hz."""
    low, high = SIGNAL_BAND_HZ
    frequency = np.geomspace(low / 4, 2 * high, 300)
    passed = 1 / (1 + ((frequency**2 - low * high) / (frequency * (high - low))) ** (2 * BAND_CORNERS))
    return _spectral_shape(frequency), passed * np.gradient(frequency)


def _spectral_shape(frequency_hz: Array) -> Array:
    """Return (3, frequency): velocity PSD in dB of calm air, dB per unit of wind share, dB per dB of microseism."""
    period, low = get_nlnm()
    _, high = get_nhnm()
    frequency = np.maximum(frequency_hz, 1e-5)
    at = np.log10(frequency)
    low_db, high_db = np.interp(at, -np.log10(period), low), np.interp(at, -np.log10(period), high)
    rise = np.clip((at - np.log10(0.3)) / (np.log10(1.0) - np.log10(0.3)), 0, 1)
    smooth_rise = rise * rise * (3 - 2 * rise)
    s = 1j * frequency / CORNER_HZ
    sensor_db = 20 * np.log10(np.abs(s**2 / (s**2 + 2 * DAMPING * s + 1)))
    calm = low_db + _QUIET_SHARE * (high_db - low_db) - 20 * np.log10(2 * np.pi * frequency) + sensor_db
    bump = np.exp(-0.5 * ((at - np.log10(0.2)) / 0.15) ** 2)
    return np.stack([np.where(frequency_hz > 0, calm, -1000.0), smooth_rise * (high_db - low_db), bump])


def _between_nodes(seed: int, purpose: Purpose, key: str, position: float, span: tuple[float, float]) -> float:
    node = int(np.floor(position))
    weight = position - node
    low, high = (_node(seed, purpose, key, number) for number in (node, node + 1))
    return span[0] + (span[1] - span[0]) * ((1 - weight) * low + weight * high)


@lru_cache(maxsize=4096)
def _node(seed: int, purpose: Purpose, key: str, number: int) -> float:
    return float(stream(seed, purpose, key, number).uniform())
