"""What happens to sixteen consecutive columns at once: pay a draw, split a bridge node, square a gradient.

Every function here takes C-contiguous arrays and flat element positions, and trusts them: the callers check.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types

from samelaw.fast.cpu.lanes import F32, F64, I64, LANES, Lanes, counted_loop, element_pointer, intrinsic

_ROUND = 1.5 * 2.0**52  # x + _ROUND - _ROUND rounds |x| < 2^51 to the nearest integer, ties to even


@intrinsic
def subtract_block(typingctx: Any, weights: Any, position: Any, draws: Any, lane: Any, scale: Any) -> Any:
    """w = fl32(w - fl32(scale * z)) for weights.flat[position : position + 16] and z = draws[lane]."""

    def build(at: _Access) -> None:
        w = at.load(0, at.argument(1), F32)
        z = at.load(2, at.times(at.argument(3), LANES), F32)
        (w - at.splat(4) * z).store(at.pointer(0, at.argument(1)))

    signature = types.void(weights, types.int64, draws, types.int64, types.float32)
    return signature, _codegen(build)


@intrinsic
def copy_block(typingctx: Any, out: Any, position: Any, draws: Any, lane: Any) -> Any:
    """out.flat[position : position + 16] = draws[lane]."""

    def build(at: _Access) -> None:
        at.load(2, at.times(at.argument(3), LANES), F32).store(at.pointer(0, at.argument(1)))

    return types.void(out, types.int64, draws, types.int64), _codegen(build)


@intrinsic
def total_block(typingctx: Any, paths: Any, target: Any, draws: Any, lane: Any, scale: Any) -> Any:
    """paths.flat[target : target + 16] = rint(z * scale), z = draws[lane] widened: the end of a bridge."""

    def build(at: _Access) -> None:
        z = at.load(2, at.times(at.argument(3), LANES), F32).widen()
        _round(z * at.splat(4)).store(at.pointer(0, at.argument(1)))

    return types.void(paths, types.int64, draws, types.int64, types.float64), _codegen(build)


@intrinsic
def split_block(
    typingctx: Any,
    paths: Any,
    source: Any,
    draws: Any,
    lane: Any,
    ratio: Any,
    spread: Any,
    left: Any,
    right: Any,
    owed: Any,
    sign: Any,
) -> Any:
    """Split the node sums S at paths.flat[source:] by rint(S * ratio + z * spread) = left, S - left = right.

    Stores both halves at their positions and adds sign * left (sign is -1, 0 or 1) to what is owed. Positions may
    be equal to `source`; a half that nobody needs goes to a spare position.
    """

    def build(at: _Access) -> None:
        whole = at.load(0, at.argument(1), F64)
        z = at.load(2, at.times(at.argument(3), LANES), F32).widen()
        first = _round(whole * at.splat(4) + z * at.splat(5))
        paid = at.load(0, at.argument(8), F64) + first * at.splat(9)
        paid.store(at.pointer(0, at.argument(8)))
        (whole - first).store(at.pointer(0, at.argument(7)))
        first.store(at.pointer(0, at.argument(6)))

    i, f = types.int64, types.float64
    return types.void(paths, i, draws, i, f, f, i, i, i, f), _codegen(build)


@intrinsic
def pay_block(typingctx: Any, weights: Any, position: Any, paths: Any, owed: Any, unit: Any) -> Any:
    """w = fl32(w - fl32(owed * unit)) for sixteen weights; owed * unit is exact in float64."""

    def build(at: _Access) -> None:
        w = at.load(0, at.argument(1), F32)
        amount = (at.load(2, at.argument(3), F64) * at.splat(4)).narrow()
        (w - amount).store(at.pointer(0, at.argument(1)))

    return types.void(weights, types.int64, paths, types.int64, types.float64), _codegen(build)


@intrinsic
def product_lanes(typingctx: Any, gradients: Any, left: Any, right: Any, eights: Any, lanes: Any) -> Any:
    """lanes[j] = the sum over k < eights, in order, of left[8k + j] * right[8k + j], in float64 from 0.

    `left` and `right` are flat positions in the float32 `gradients`; lanes is float64 (8,).
    """
    i = types.int64
    return types.void(gradients, i, i, i, lanes), _codegen(_products(lambda _, d, e: d * e))


@intrinsic
def mean_product_lanes(
    typingctx: Any, gradients: Any, left: Any, right: Any, eights: Any, lanes: Any, p_count: Any, q_count: Any
) -> Any:
    """As `product_lanes`, each factor divided by its bag's count first."""

    def quotients(at: _Access, d: Lanes, e: Lanes) -> Lanes:
        return (d / at.splat(5, 8)) * (e / at.splat(6, 8))

    i, f = types.int64, types.float64
    return types.void(gradients, i, i, i, lanes, f, f), _codegen(_products(quotients))


def _products(product: Callable[[_Access, Lanes, Lanes], Lanes]) -> Callable[[_Access], None]:
    def build(at: _Access) -> None:
        zero = Lanes(at.builder, ir.Constant(ir.VectorType(F64, 8), [0.0] * 8))

        def add(index: Any, carried: list[Lanes]) -> list[Lanes]:
            shift = at.times(index, 8)
            d = at.load(0, at.builder.add(at.argument(1), shift), F32, 8).widen()
            e = at.load(0, at.builder.add(at.argument(2), shift), F32, 8).widen()
            return [carried[0] + product(at, d, e)]

        counted_loop(at.builder, at.argument(3), [zero], add)[0].store(at.pointer(4, I64(0)))

    return build


def _round(x: Lanes) -> Lanes:
    return (x + _ROUND) - _ROUND


class _Access:
    """Arguments of an intrinsic, as pointers, vectors and splats."""

    def __init__(self, context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> None:
        self.builder = builder
        self._context, self._signature, self._arguments = context, signature, arguments

    def argument(self, number: int) -> Any:
        return self._arguments[number]

    def times(self, value: Any, factor: int) -> Any:
        return self.builder.mul(value, I64(factor))

    def pointer(self, number: int, position: Any) -> Any:
        return element_pointer(
            self._context, self.builder, self._signature.args[number], self._arguments[number], position
        )

    def load(self, number: int, position: Any, element: ir.Type, count: int = LANES) -> Lanes:
        return Lanes.load(self.builder, self.pointer(number, position), element, count)

    def splat(self, number: int, count: int = LANES) -> Lanes:
        return Lanes.splat(self.builder, self._arguments[number], count)


def _codegen(build: Callable[[_Access], None]) -> Callable[..., Any]:
    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        build(_Access(context, builder, signature, arguments))
        return context.get_dummy_value()

    return codegen
