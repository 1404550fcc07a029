"""Random streams keyed by what they are for, so that no draw depends on the order of the work or on where it runs."""

import zlib
from enum import IntEnum

import numpy as np

VERSION = 1
"""The generator's version: raised by hand whenever the same settings would give another archive."""


class Purpose(IntEnum):
    """What a random stream is drawn for; the numbers are part of the archive's identity."""

    STATIONS = 1
    NOISE = 2
    MICROSEISM = 3
    WIND = 4
    SLOTS = 5
    SWARM = 6
    SOURCE = 7
    PATH = 8
    VARIATION = 9
    FLAWS = 10
    AUDIBILITY = 11


def stream(seed: int, purpose: Purpose, *keys: int | str) -> np.random.Generator:
    """Return the generator of (seed, VERSION, purpose, keys...); equal keys give equal draws in any process.

    Text keys enter through their CRC-32; integers must lie in [0, 2**63).
    """
    words = [zlib.crc32(key.encode()) if isinstance(key, str) else key for key in keys]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, VERSION, int(purpose), *words])))
