"""ChaCha blocks and BM32 normals, sixteen blocks at a time. Specification: docs/noise.md.

One lane is one block. A draw fills a (4, 16) array with the sixteen counters (`set_counter`), then calls
`normal_blocks` or `word_blocks_below`, which leaves lane l's block in row l of a (16, 16) array.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import int64, uint32
from numba.core import types

from samelaw.fast.cpu.compiled import inline
from samelaw.fast.cpu.lanes import (
    F32,
    I32,
    I64,
    LANES,
    Lanes,
    counted_loop,
    element_pointer,
    emitted,
    intrinsic,
    transpose,
)

_SIGMA = (0x61707865, 0x3320646E, 0x79622D32, 0x6B206574)  # "expand 32-byte k"
_COLUMNS = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15))
_DIAGONALS = ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))


def _float32(*values: float) -> tuple[float, ...]:
    return tuple(float(np.float32(v)) for v in values)


_LOG = _float32(
    -0.174447104, 0.287336856, -0.299045324, 0.331247866, -0.399136662, 0.500041485, -0.666683733, 0.999999762, -2.0
)  # fmt: skip
_SINE = _float32(-0.00460165786, 0.079680033, -0.64596349, 1.57079637)
_COSINE = _float32(-0.0203985814, 0.253594935, -1.2336967, 0.99999994)
(_MINUS_TWO_LN_2,) = _float32(-1.38629436)
_ANGLE_STEP = 2.0**-22


@inline
def set_counter(counters, lane, purpose, table, row, step, block):
    """Write one lane's 128-bit counter: step | row (low 32) | row (high 16), table | block, purpose."""
    counters[0, lane] = uint32(step)
    counters[1, lane] = uint32(int64(row) & int64(0xFFFFFFFF))
    counters[2, lane] = uint32((int64(row) >> int64(32)) | (int64(table) << int64(16)))
    counters[3, lane] = uint32(int64(block) | (int64(purpose) << int64(24)))


@intrinsic
def normal_blocks(typingctx: Any, key: Any, rounds: Any, counters: Any, out: Any) -> Any:
    """out[lane, :] = the 16 standard normals of counters[:, lane]. key uint32 (8,), out float32 (16, 16)."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        pointers = [element_pointer(context, builder, signature.args[i], arguments[i]) for i in (0, 2, 3)]
        _NORMALS(builder, [pointers[0], arguments[1], pointers[1], pointers[2]])
        return context.get_dummy_value()

    return types.void(key, types.int64, counters, out), codegen


@intrinsic
def word_blocks_below(typingctx: Any, key: Any, rounds: Any, counters: Any, out: Any, limit: Any) -> Any:
    """Whether an odd word of the sixteen blocks is <= limit; if so, out[lane, :] = the 16 words of each block.

    Odd words are the high halves of 64-bit words. out is uint32 (16, 16), limit uint32.
    """

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        pointers = [element_pointer(context, builder, signature.args[i], arguments[i]) for i in (0, 2, 3)]
        return _WORDS(builder, [pointers[0], arguments[1], pointers[1], pointers[2], arguments[4]])

    return types.boolean(key, types.int64, counters, out, types.uint32), codegen


def _chacha(builder: ir.IRBuilder, key: Any, rounds: Any, counters: Any) -> list[Lanes]:
    """The sixteen words of sixteen blocks: word j of lane l is lane l of result j."""
    seed = [Lanes(builder, ir.Constant(ir.VectorType(I32, LANES), [w] * LANES)) for w in _SIGMA]
    seed += [Lanes.splat(builder, builder.load(builder.gep(key, [I64(i)]))) for i in range(8)]
    seed += [Lanes.load(builder, builder.gep(counters, [I64(LANES * i)]), I32) for i in range(4)]

    def double_round(_: Any, x: list[Lanes]) -> list[Lanes]:
        x = list(x)
        for a, b, c, d in (*_COLUMNS, *_DIAGONALS):
            for p, q, r, left in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
                x[p] = x[p] + x[q]
                x[r] = (x[r] ^ x[p]).rotate_left(left)
        return x

    mixed = counted_loop(builder, builder.lshr(rounds, I64(1)), seed, double_round)
    return [m + s for m, s in zip(mixed, seed, strict=True)]


def _horner(coefficients: tuple[float, ...], t: Lanes) -> Lanes:
    value = t.constant(coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * t + coefficient
    return value


def _box_muller(a: Lanes, b: Lanes) -> tuple[Lanes, Lanes]:
    """BM32: two normals from two words."""
    high = (a >> 8).to_float(F32)
    low = (((a & 255) << 8) | (b & 255)).to_float(F32)
    bits = (high * 65536.0 + (low + 0.5)).bits_as(I32)
    exponent = (bits - 0x3F3504F3).shift_signed(23)
    t = (bits - (exponent << 23)).bits_as(F32) - 1.0
    radius = (_horner(_LOG, t) * t + (exponent - 40).to_float(F32) * _MINUS_TWO_LN_2).sqrt()
    angle = (((b >> 8) & 0x3FFFFF).to_float(F32) - 2097151.5) * _ANGLE_STEP
    square = angle * angle
    sine = radius * (_horner(_SINE, square) * angle)
    cosine = ((radius * _horner(_COSINE, square)).bits_as(I32) ^ (b & 0x80000000)).bits_as(F32)
    swap = (b & 0x40000000).nonzero()
    return sine.choose(swap, cosine), cosine.choose(swap, sine)


def _build_normals(builder: ir.IRBuilder, key: Any, rounds: Any, counters: Any, out: Any) -> None:
    words = _chacha(builder, key, rounds, counters)
    pairs = [_box_muller(words[j], words[j + 8]) for j in range(8)]
    for lane, block in enumerate(transpose([p[0] for p in pairs] + [p[1] for p in pairs])):
        block.store(builder.gep(out, [I64(LANES * lane)]))


def _build_words(builder: ir.IRBuilder, key: Any, rounds: Any, counters: Any, out: Any, limit: Any) -> Any:
    words = _chacha(builder, key, rounds, counters)
    bound = Lanes.splat(builder, limit)
    below = words[1].at_most(bound)
    for high in words[3::2]:
        below = below | high.at_most(bound)
    some = below.any()
    with builder.if_then(some):
        for lane, block in enumerate(transpose(words)):
            block.store(builder.gep(out, [I64(LANES * lane)]))
    return some


_POINTERS = [I32.as_pointer(), I64, I32.as_pointer()]
_NORMALS = emitted("samelaw_normal_blocks", [*_POINTERS, F32.as_pointer()], _build_normals)
_WORDS = emitted("samelaw_word_blocks", [*_POINTERS, I32.as_pointer(), I32], _build_words, ir.IntType(1))
