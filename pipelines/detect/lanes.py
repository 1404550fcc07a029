"""The recursion of four traces at once, in the processor's vector registers: band-pass, STA, LTA and their ratio.

The compiler that Numba uses does not find this by itself. Every lane does the operations of `scipy.signal.sosfilt` and
of the exponential averages in their order, whatever is in the other lanes.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils as untyped_cgutils
from numba.extending import intrinsic

cgutils: Any = untyped_cgutils

LANES = 4
SECTIONS = 4
# Rows of the state: two of each section, STA, LTA, and the largest ratio so far.
STATE_ROWS = 2 * SECTIONS + 3

_DOUBLE = ir.DoubleType()
_LANES = ir.VectorType(_DOUBLE, LANES)
_BYTES = 8


def _advance_lanes(
    context: Any, kind: Any, addresses: Any, base: Any, count: Any, sections: Any, state: Any, weights: Any, ratios: Any
) -> tuple[Any, Callable[..., Any]]:
    """Carry the state of all lanes on over some samples and write their STA/LTA. All but `count` are arrays.

    Args:
        context: of the compiler.
        kind: an array of the samples' dtype (int32, float32 or float64); what is in it does not matter.
        addresses: (LANES,) int64, address of each lane's first sample.
        base: (LANES,) float64, what is subtracted from each lane's samples.
        count: samples a lane.
        sections: (SECTIONS, 6) float64, second-order sections.
        state: (STATE_ROWS, LANES) float64.
        weights: (4,) float64, of the new and the old value in the STA, then in the LTA.
        ratios: (at least count, LANES) float64, gets the STA/LTA.
    """
    signature = types.void(kind, addresses, base, count, sections, state, weights, ratios)
    return signature, _generate


advance_lanes: Any = intrinsic(_advance_lanes)


def _generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    count = arguments[3]
    addresses, base, sections, state, weights, ratios = (
        context.make_array(signature.args[index])(context, builder, arguments[index]).data
        for index in (1, 2, 4, 5, 6, 7)
    )
    number = context.get_data_type(signature.args[0].dtype)
    traces = [
        builder.inttoptr(builder.load(_at(builder, addresses, lane)), number.as_pointer()) for lane in range(LANES)
    ]
    states, out = (builder.bitcast(data, _LANES.as_pointer()) for data in (state, ratios))
    origin = _load(builder, builder.bitcast(base, _LANES.as_pointer()))
    # b0, b1, b2, a1, a2 of each section; a0 is one.
    coefficients = [[_spread(builder, sections, 6 * s + k) for k in (0, 1, 2, 4, 5)] for s in range(SECTIONS)]
    new_sta, old_sta, new_lta, old_lta = (_spread(builder, weights, k) for k in range(4))
    held = [cgutils.alloca_once(builder, _LANES) for _ in range(STATE_ROWS)]
    for row, slot in enumerate(held):
        builder.store(_load(builder, _at(builder, states, row)), slot)
    *filters, sta_slot, lta_slot, highest_slot = held
    with cgutils.for_range(builder, count) as loop:
        x = builder.fsub(_gather(builder, traces, loop.index), origin)
        for s, (b0, b1, b2, a1, a2) in enumerate(coefficients):
            first, second = filters[2 * s], filters[2 * s + 1]
            y = builder.fadd(builder.fmul(b0, x), builder.load(first))
            carried = builder.fsub(builder.fmul(b1, x), builder.fmul(a1, y))
            builder.store(builder.fadd(carried, builder.load(second)), first)
            builder.store(builder.fsub(builder.fmul(b2, x), builder.fmul(a2, y)), second)
            x = y
        energy = builder.fmul(x, x)
        sta = builder.fadd(builder.fmul(new_sta, energy), builder.fmul(old_sta, builder.load(sta_slot)))
        lta = builder.fadd(builder.fmul(new_lta, energy), builder.fmul(old_lta, builder.load(lta_slot)))
        builder.store(sta, sta_slot)
        builder.store(lta, lta_slot)
        ratio = builder.fdiv(sta, lta)
        highest = builder.load(highest_slot)
        above = builder.fcmp_ordered(">", ratio, highest)
        builder.store(builder.select(above, ratio, highest), highest_slot)
        _store(builder, ratio, builder.gep(out, [loop.index]))
    for row, slot in enumerate(held):
        _store(builder, builder.load(slot), _at(builder, states, row))
    return context.get_dummy_value()


def _gather(builder: Any, traces: list[Any], index: Any) -> Any:
    """Return sample `index` of every trace as a vector of float64."""
    number = traces[0].type.pointee
    gathered = ir.Constant(ir.VectorType(number, LANES), ir.Undefined)
    for lane, trace in enumerate(traces):
        value = builder.load(builder.gep(trace, [index]))
        gathered = builder.insert_element(gathered, value, ir.Constant(ir.IntType(32), lane))
    if number == _DOUBLE:
        return gathered
    widen = builder.sitofp if isinstance(number, ir.IntType) else builder.fpext
    return widen(gathered, _LANES)


def _at(builder: Any, pointer: Any, index: int) -> Any:
    return builder.gep(pointer, [ir.Constant(ir.IntType(64), index)])


def _load(builder: Any, pointer: Any) -> Any:
    # NumPy aligns to one number, not to a vector of them.
    value = builder.load(pointer)
    value.align = _BYTES
    return value


def _store(builder: Any, value: Any, pointer: Any) -> None:
    builder.store(value, pointer).align = _BYTES


def _spread(builder: Any, address: Any, index: int) -> Any:
    """Return a vector with one number of an array in every lane."""
    number = builder.load(_at(builder, address, index))
    undefined = ir.Constant(_LANES, ir.Undefined)
    one = builder.insert_element(undefined, number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))
