"""One compiled pass over a run of samples: band-pass, STA/LTA, triggers.

Definitions are ObsPy's: the Butterworth band-pass of `obspy.signal.filter.bandpass` (second-order sections, transposed
direct form II, as `scipy.signal.sosfilt`), `recursive_sta_lta` and `classic_sta_lta` (Withers et al. 1998), and
`trigger_onset` with `max_len` and `max_len_delete=False`. The pass starts from rest at the run's first sample, whose
value is subtracted from all: that is the band-pass's steady state for it, so a run's offset causes no transient.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
from scipy.signal import iirfilter, zpk2sos

from pipelines.detect.lanes import LANES, SECTIONS, STATE_ROWS, advance_lanes

Array = np.ndarray[Any, Any]

# Blocks stay in the first-level cache: of one trace, and of all lanes together.
BLOCK = 4096
LANES_BLOCK = BLOCK // LANES


class Triggers(NamedTuple):
    """Triggers of one run.

    Attributes:
        on: (n,) int64, index of the first sample above the on threshold.
        off: (n,) int64, index of the last sample above the off threshold, at most `on + max_len`.
        peak: (n,) float64, largest STA/LTA from on to off.
        open: whether the last trigger was still open at the run's last sample.
    """

    on: Array
    off: Array
    peak: Array
    open: bool


@functools.lru_cache(maxsize=64)
def design_bandpass(low_hz: float, high_hz: float, corners: int, rate_hz: float) -> Array:
    """Return the (sections, 6) second-order sections of ObsPy's band-pass, padded with identity to a multiple of four.

    Raises:
        ValueError: the upper corner is not below the Nyquist frequency.
    """
    if high_hz >= rate_hz / 2:
        raise ValueError(f"the upper corner {high_hz:g} Hz is not below the Nyquist frequency {rate_hz / 2:g} Hz")
    nyquist = rate_hz / 2
    z, p, k = iirfilter(corners, [low_hz / nyquist, high_hz / nyquist], btype="band", ftype="butter", output="zpk")
    sections = zpk2sos(z, p, k)  # type: ignore[arg-type]
    padding = -len(sections) % SECTIONS
    identity = np.tile([1.0, 0.0, 0.0, 1.0, 0.0, 0.0], (padding, 1))
    return np.ascontiguousarray(np.vstack([sections, identity]))


def scan_all(
    runs: Sequence[Sequence[Array]],
    sections: Array,
    *,
    num_sta: int,
    num_lta: int,
    on: float,
    off: float,
    max_len: int,
    classic: bool = False,
) -> list[Triggers]:
    """Return the triggers of several runs of contiguous samples; what one gives does not depend on the others.

    Args:
        runs: each in one or several pieces, (samples,) int32, float32 or float64, without missing values.
        sections: from `design_bandpass`.
        num_sta, num_lta: lengths of the averages in samples; the first num_lta samples never trigger (classic: one
            less).
        on, off: thresholds.
        max_len: longest trigger in samples.
        classic: moving instead of exponential averages.
    """
    found: dict[int, Triggers] = {}
    ready: list[tuple[int, int, list[Array]]] = []
    for index, run in enumerate(runs):
        pieces = _of_one_kind(run)
        length = sum(map(len, pieces))
        if length < num_lta + (not classic):
            empty = np.zeros(0, np.int64)
            found[index] = Triggers(empty, empty, np.zeros(0), False)
        elif classic:
            signal = filtered(np.concatenate(pieces), sections)
            found[index] = Triggers(*_scan_classic(signal, num_sta, num_lta, on, off, max_len))
        else:
            leading = sections[:-SECTIONS]
            ready.append((index, length, [filtered(np.concatenate(pieces), leading)] if len(leading) else pieces))
    # Runs of one length go together, so that no lane waits for another.
    ready.sort(key=lambda item: (item[2][0].dtype.str, -item[1]))
    while ready:
        kind = ready[0][2][0].dtype
        group = [item for item in ready[:LANES] if item[2][0].dtype == kind]
        ready = ready[len(group) :]
        base = np.zeros(LANES)
        base[: len(group)] = [pieces[0][0] for _, _, pieces in group]
        addresses, bounds = _address([pieces for _, _, pieces in group])
        lanes = _scan_lanes(
            np.empty(0, kind), base, addresses, bounds, sections[-SECTIONS:], num_sta, num_lta, on, off, max_len
        )
        found |= {item[0]: Triggers(*lane) for item, lane in zip(group, lanes, strict=False)}
    return [found[index] for index in range(len(runs))]


def _of_one_kind(pieces: Sequence[Array]) -> list[Array]:
    """Return the pieces that hold samples, contiguous in memory and of one dtype."""
    kind = np.result_type(*pieces)
    return [np.ascontiguousarray(piece, kind) for piece in pieces if len(piece)] or [np.zeros(0, kind)]


def _address(traces: Sequence[Sequence[Array]]) -> tuple[Array, Array]:
    """Return where the pieces of up to LANES traces lie in memory.

    Returns:
        (LANES, pieces) int64 addresses, and (LANES, pieces + 1) int64: index of each piece's first sample, then the
        length of the trace as often as needed.
    """
    most = max(map(len, traces))
    addresses = np.zeros((LANES, most), np.int64)
    bounds = np.zeros((LANES, most + 1), np.int64)
    for lane, pieces in enumerate(traces):
        addresses[lane, : len(pieces)] = [piece.ctypes.data for piece in pieces]
        bounds[lane, 1 : len(pieces) + 1] = np.cumsum([len(piece) for piece in pieces])
        bounds[lane, len(pieces) + 1 :] = bounds[lane, len(pieces)]
    return addresses, bounds


def filtered(data: Array, sections: Array) -> Array:
    """Return the band-passed run (float64), from rest at its first sample, as `scan_all` sees it."""
    signal: Array = data
    for group in sections.reshape(-1, SECTIONS, 6):
        signal = _filter(signal, group)
    return signal


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _filter(data: Array, sos: Array) -> Array:  # pragma: no cover - compiled
    count = len(data)
    out = np.empty(count)
    b00, b01, b02, a01, a02 = sos[0, 0], sos[0, 1], sos[0, 2], sos[0, 4], sos[0, 5]
    b10, b11, b12, a11, a12 = sos[1, 0], sos[1, 1], sos[1, 2], sos[1, 4], sos[1, 5]
    b20, b21, b22, a21, a22 = sos[2, 0], sos[2, 1], sos[2, 2], sos[2, 4], sos[2, 5]
    b30, b31, b32, a31, a32 = sos[3, 0], sos[3, 1], sos[3, 2], sos[3, 4], sos[3, 5]
    u0 = u1 = v0 = v1 = w0 = w1 = q0 = q1 = 0.0
    base = np.float64(data[0])
    for i in range(count):
        x = np.float64(data[i]) - base
        y = b00 * x + u0
        u0 = b01 * x - a01 * y + u1
        u1 = b02 * x - a02 * y
        x = b10 * y + v0
        v0 = b11 * y - a11 * x + v1
        v1 = b12 * y - a12 * x
        y = b20 * x + w0
        w0 = b21 * x - a21 * y + w1
        w1 = b22 * x - a22 * y
        x = b30 * y + q0
        q0 = b31 * y - a31 * x + q1
        q1 = b32 * y - a32 * x
        out[i] = x
    return out


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _grow(values: Array) -> Array:  # pragma: no cover - compiled
    grown = np.empty(2 * len(values), values.dtype)
    grown[: len(values)] = values
    return grown


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _scan_lanes(
    kind: Array,
    base: Array,
    addresses: Array,
    bounds: Array,
    sos: Array,
    num_sta: int,
    num_lta: int,
    on: float,
    off: float,
    max_len: int,
) -> Any:  # pragma: no cover - compiled
    """Scan up to four runs together, the longest first.

    Args:
        kind: an array of their dtype.
        base: (LANES,) float64, first sample of each.
        addresses, bounds: where they lie, from `_address`.
    """
    state = np.zeros((STATE_ROWS, LANES))
    # ObsPy's LTA starts at 1e-99 and leaves out the first sample, which is zero here.
    state[STATE_ROWS - 2] = 1e-99
    ratios = np.empty((LANES_BLOCK, LANES))
    weights = np.array([1.0 / num_sta, 1.0 - 1.0 / num_sta, 1.0 / num_lta, 1.0 - 1.0 / num_lta])
    machines = np.zeros((LANES, 4))
    found = [_no_triggers() for _ in range(LANES)]
    here = np.zeros(LANES, np.int64)
    piece = np.zeros(LANES, np.int64)
    first, longest = 0, bounds[0, -1]
    while first < longest:
        last = min(first + LANES_BLOCK, longest)
        for lane in range(LANES):
            if first >= bounds[lane, -1]:
                # Nobody looks at a lane whose run has ended: it follows the longest.
                here[lane] = here[0]
                continue
            while first >= bounds[lane, piece[lane] + 1]:
                piece[lane] += 1
            here[lane] = addresses[lane, piece[lane]] + (first - bounds[lane, piece[lane]]) * kind.itemsize
            last = min(last, bounds[lane, piece[lane] + 1])
        state[STATE_ROWS - 1] = 0.0
        advance_lanes(kind, here, base, last - first, sos, state, weights, ratios)
        # The recursion runs without branches; the trigger logic looks at a block only if something in it can matter.
        for lane in range(LANES):
            machine = machines[lane]
            if last <= num_lta or first >= bounds[lane, -1]:
                continue
            if machine[0] > 0.0 or machine[3] > on or state[STATE_ROWS - 1, lane] > on:
                ratio = ratios[:, lane].copy()
                found[lane] = _watch(ratio, first, last, num_lta, on, off, max_len, machine, found[lane])
            else:
                machine[3] = ratios[last - first - 1, lane]
        first = last
    return (
        _finish(bounds[0, -1], machines[0], found[0]),
        _finish(bounds[1, -1], machines[1], found[1]),
        _finish(bounds[2, -1], machines[2], found[2]),
        _finish(bounds[3, -1], machines[3], found[3]),
    )


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _scan_classic(
    x: Array, num_sta: int, num_lta: int, on: float, off: float, max_len: int
) -> tuple[Array, Array, Array, bool]:  # pragma: no cover - compiled
    sta = lta = 0.0
    scale = num_lta / num_sta
    ratio = np.empty(BLOCK)
    found = _no_triggers()
    machine = np.zeros(4)
    for first in range(0, len(x), BLOCK):
        last = min(first + BLOCK, len(x))
        for i in range(first, last):
            energy = x[i] * x[i]
            lta += energy
            if i >= num_lta:
                lta -= x[i - num_lta] * x[i - num_lta]
            sta += energy
            if i >= num_sta:
                sta -= x[i - num_sta] * x[i - num_sta]
            ratio[i - first] = sta / lta * scale
        if last > num_lta - 1:
            found = _watch(ratio, first, last, num_lta - 1, on, off, max_len, machine, found)
    return _finish(len(x), machine, found)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _no_triggers() -> tuple[Array, Array, Array, int]:  # pragma: no cover - compiled
    return np.empty(64, np.int64), np.empty(64, np.int64), np.empty(64), 0


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _watch(
    ratio: Array,
    first: int,
    last: int,
    blank: int,
    on: float,
    off: float,
    max_len: int,
    machine: Array,
    found: tuple[Array, Array, Array, int],
) -> tuple[Array, Array, Array, int]:  # pragma: no cover - compiled
    """Run the trigger logic over one block; `machine` holds triggered, its first sample, its peak, the last ratio."""
    ons, offs, peaks, count = found
    triggered, start, peak, before = machine[0] > 0.0, int(machine[1]), machine[2], machine[3]
    for i in range(max(first, blank), last):
        value = ratio[i - first]
        if triggered:
            if not value > off:
                triggered = False
                ons[count], offs[count], peaks[count] = start, i - 1, peak
                count += 1
            elif i - start > max_len:
                triggered = False
                ons[count], offs[count], peaks[count] = start, start + max_len, peak
                count += 1
            elif value > peak:
                peak = value
        if not triggered and value > on and not before > on:
            triggered = True
            start, peak = i, value
            if count == len(ons):
                ons, offs, peaks = _grow(ons), _grow(offs), _grow(peaks)
        before = value
    machine[0], machine[1], machine[2], machine[3] = 1.0 if triggered else 0.0, float(start), peak, before
    return ons, offs, peaks, count


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _finish(
    num_samples: int, machine: Array, found: tuple[Array, Array, Array, int]
) -> tuple[Array, Array, Array, bool]:  # pragma: no cover - compiled
    ons, offs, peaks, count = found
    is_open = machine[0] > 0.0
    if is_open:
        ons[count], offs[count], peaks[count] = int(machine[1]), num_samples - 1, machine[2]
        count += 1
    return ons[:count].copy(), offs[:count].copy(), peaks[:count].copy(), is_open
