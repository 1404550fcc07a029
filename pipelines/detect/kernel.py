"""One compiled pass over a run of samples: band-pass, STA/LTA, triggers.

Definitions are ObsPy's: the Butterworth band-pass of `obspy.signal.filter.bandpass` (second-order sections, transposed
direct form II, as `scipy.signal.sosfilt`), `recursive_sta_lta` and `classic_sta_lta` (Withers et al. 1998), and
`trigger_onset` with `max_len` and `max_len_delete=False`. The pass starts from rest at the run's first sample, whose
value is subtracted from all: that is the band-pass's steady state for it, so a run's offset causes no transient.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
from scipy.signal import iirfilter, zpk2sos

from pipelines.detect.lanes import LANES, SECTIONS, STATE_ROWS, advance_lanes

Array = np.ndarray[Any, Any]

BLOCK = 4096
# With lanes a block holds four traces.
LANES_BLOCK = 1024


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


def scan(
    data: Array,
    sections: Array,
    *,
    num_sta: int,
    num_lta: int,
    on: float,
    off: float,
    max_len: int,
    classic: bool = False,
) -> Triggers:
    """Return the triggers of a run of contiguous samples.

    Args:
        data: (samples,) int32, float32 or float64, without missing values.
        sections: from `design_bandpass`.
        num_sta, num_lta: lengths of the averages in samples; the first num_lta samples never trigger.
        on, off: thresholds.
        max_len: longest trigger in samples.
        classic: moving instead of exponential averages.
    """
    if len(data) <= num_lta:
        empty = np.zeros(0, np.int64)
        return Triggers(empty, empty, np.zeros(0), False)
    signal: Array = data
    groups = sections.reshape(-1, SECTIONS, 6)
    for group in groups[:-1]:
        signal = _filter(signal, group)
    kernel = _scan_classic if classic else _scan_recursive
    ons, offs, peaks, is_open = kernel(signal, groups[-1], num_sta, num_lta, on, off, max_len)
    return Triggers(ons, offs, peaks, bool(is_open))


def scan_all(
    runs: Sequence[Array],
    sections: Array,
    *,
    num_sta: int,
    num_lta: int,
    on: float,
    off: float,
    max_len: int,
    classic: bool = False,
) -> list[Triggers]:
    """Return the triggers of several runs; each the same, to the bit, as `scan` gives, in less time together."""
    found: dict[int, Triggers] = {}
    alone: dict[str, Any] = {
        "num_sta": num_sta,
        "num_lta": num_lta,
        "on": on,
        "off": off,
        "max_len": max_len,
        "classic": classic,
    }
    # Runs of one length go together, so that no lane waits for another.
    order = sorted(range(len(runs)), key=lambda index: (runs[index].dtype.str, -len(runs[index])))
    while order:
        group = [index for index in order[:LANES] if runs[index].dtype == runs[order[0]].dtype]
        order = order[len(group) :]
        if classic or len(sections) > SECTIONS or len(group) < 2 or len(runs[group[-1]]) < len(runs[group[0]]) / 2:
            found |= {index: scan(runs[index], sections, **alone) for index in group}
            continue
        a, b, c, d = (runs[group[min(lane, len(group) - 1)]] for lane in range(LANES))
        results = _scan_lanes(a, b, c, d, sections, num_sta, num_lta, on, off, max_len)
        found |= {index: Triggers(*result) for index, result in zip(group, results, strict=False)}
    return [found[index] for index in range(len(runs))]


def filtered(data: Array, sections: Array) -> Array:
    """Return the band-passed run (float64), from rest at its first sample, as `scan` sees it."""
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
def _advance(
    data: Array, first: int, last: int, sos: Array, state: Array, num_sta: int, num_lta: int, ratio: Array
) -> None:  # pragma: no cover - compiled
    """Filter samples [first, last) and write their STA/LTA; `state` holds 8 filter states, STA and LTA."""
    b00, b01, b02, a01, a02 = sos[0, 0], sos[0, 1], sos[0, 2], sos[0, 4], sos[0, 5]
    b10, b11, b12, a11, a12 = sos[1, 0], sos[1, 1], sos[1, 2], sos[1, 4], sos[1, 5]
    b20, b21, b22, a21, a22 = sos[2, 0], sos[2, 1], sos[2, 2], sos[2, 4], sos[2, 5]
    b30, b31, b32, a31, a32 = sos[3, 0], sos[3, 1], sos[3, 2], sos[3, 4], sos[3, 5]
    u0, u1, v0, v1, w0, w1, q0, q1 = state[0], state[1], state[2], state[3], state[4], state[5], state[6], state[7]
    sta, lta = state[8], state[9]
    new_sta, new_lta = 1.0 / num_sta, 1.0 / num_lta
    old_sta, old_lta = 1.0 - new_sta, 1.0 - new_lta
    base = np.float64(data[0])
    for i in range(first, last):
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
        energy = x * x
        sta = new_sta * energy + old_sta * sta
        lta = new_lta * energy + old_lta * lta
        ratio[i - first] = sta / lta
    state[0], state[1], state[2], state[3], state[4], state[5], state[6], state[7] = u0, u1, v0, v1, w0, w1, q0, q1
    state[8], state[9] = sta, lta


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _grow(values: Array) -> Array:  # pragma: no cover - compiled
    grown = np.empty(2 * len(values), values.dtype)
    grown[: len(values)] = values
    return grown


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _highest(values: Array, count: int) -> float:  # pragma: no cover - compiled
    highest = 0.0
    for i in range(count):
        highest = values[i] if values[i] > highest else highest
    return highest


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _scan_recursive(
    data: Array, sos: Array, num_sta: int, num_lta: int, on: float, off: float, max_len: int
) -> tuple[Array, Array, Array, bool]:  # pragma: no cover - compiled
    state = np.zeros(10)
    # ObsPy's LTA starts at 1e-99 and leaves out the first sample, which is zero here.
    state[9] = 1e-99
    return _go_on(data, 0, sos, state, np.zeros(4), _no_triggers(), num_sta, num_lta, on, off, max_len)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _go_on(
    data: Array,
    begin: int,
    sos: Array,
    state: Array,
    machine: Array,
    found: tuple[Array, Array, Array, int],
    num_sta: int,
    num_lta: int,
    on: float,
    off: float,
    max_len: int,
) -> tuple[Array, Array, Array, bool]:  # pragma: no cover - compiled
    # Blocks that stay in the first-level cache: the recursion runs without branches, and the trigger logic looks at a
    # block only if something in it can matter.
    ratio = np.empty(BLOCK)
    for first in range(begin, len(data), BLOCK):
        last = min(first + BLOCK, len(data))
        _advance(data, first, last, sos, state, num_sta, num_lta, ratio)
        if last <= num_lta:
            continue
        if machine[0] > 0.0 or machine[3] > on or _highest(ratio, last - first) > on:
            found = _watch(ratio, first, last, num_lta, on, off, max_len, machine, found)
        else:
            machine[3] = ratio[last - first - 1]
    return _finish(len(data), machine, found)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _scan_lanes(
    a: Array,
    b: Array,
    c: Array,
    d: Array,
    sos: Array,
    num_sta: int,
    num_lta: int,
    on: float,
    off: float,
    max_len: int,
) -> Any:  # pragma: no cover - compiled
    """Scan four runs together as far as the shortest reaches, then each to its end."""
    common = min(len(a), len(b), len(c), len(d))
    state = np.zeros((STATE_ROWS, LANES))
    state[9] = 1e-99
    values = np.empty((LANES_BLOCK, LANES))
    weights = np.array([1.0 / num_sta, 1.0 - 1.0 / num_sta, 1.0 / num_lta, 1.0 - 1.0 / num_lta])
    machines = np.zeros((LANES, 4))
    found = [_no_triggers() for _ in range(LANES)]
    base = np.array([np.float64(a[0]), np.float64(b[0]), np.float64(c[0]), np.float64(d[0])])
    for first in range(0, common, LANES_BLOCK):
        last = min(first + LANES_BLOCK, common)
        for i in range(last - first):
            values[i, 0] = np.float64(a[first + i]) - base[0]
            values[i, 1] = np.float64(b[first + i]) - base[1]
            values[i, 2] = np.float64(c[first + i]) - base[2]
            values[i, 3] = np.float64(d[first + i]) - base[3]
        state[STATE_ROWS - 1] = 0.0
        advance_lanes(values.ctypes.data, last - first, sos.ctypes.data, state.ctypes.data, weights.ctypes.data)
        if last <= num_lta:
            continue
        for lane in range(LANES):
            machine = machines[lane]
            if machine[0] > 0.0 or machine[3] > on or state[STATE_ROWS - 1, lane] > on:
                ratio = values[:, lane].copy()
                found[lane] = _watch(ratio, first, last, num_lta, on, off, max_len, machine, found[lane])
            else:
                machine[3] = values[last - first - 1, lane]
    return (
        _go_on(a, common, sos, state[:10, 0].copy(), machines[0], found[0], num_sta, num_lta, on, off, max_len),
        _go_on(b, common, sos, state[:10, 1].copy(), machines[1], found[1], num_sta, num_lta, on, off, max_len),
        _go_on(c, common, sos, state[:10, 2].copy(), machines[2], found[2], num_sta, num_lta, on, off, max_len),
        _go_on(d, common, sos, state[:10, 3].copy(), machines[3], found[3], num_sta, num_lta, on, off, max_len),
    )


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _scan_classic(
    data: Array, sos: Array, num_sta: int, num_lta: int, on: float, off: float, max_len: int
) -> tuple[Array, Array, Array, bool]:  # pragma: no cover - compiled
    x = _filter(data, sos)
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
