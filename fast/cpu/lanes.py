"""Vectors of 16 lanes for numba, written as LLVM IR, so that full width does not hang on what a compiler notices.

`Lanes` gives an LLVM vector the operators of arithmetic; nothing is fused or reordered, because no operation carries
a fast-math flag. LLVM splits a vector where the machine's are narrower, so the same text runs everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import extending
from numba.core import cgutils, types

LANES = 16

I32 = ir.IntType(32)
I64 = ir.IntType(64)
F32 = ir.FloatType()
F64 = ir.DoubleType()


# numba hands an intrinsic its typing context; callers do not pass one, which no type checker can follow.
intrinsic: Any = extending.intrinsic


class Lanes:
    """A vector value inside a function that is being built. `+ - * /` round once in every lane."""

    def __init__(self, builder: ir.IRBuilder, value: Any) -> None:
        self.builder, self.value = builder, value

    @classmethod
    def load(cls, builder: ir.IRBuilder, pointer: Any, element: ir.Type, count: int = LANES) -> Lanes:
        """`count` consecutive elements at `pointer`, which needs no more alignment than its elements have."""
        vector = builder.bitcast(pointer, ir.VectorType(element, count).as_pointer())
        return cls(builder, builder.load(vector, align=_bytes(element)))

    @classmethod
    def splat(cls, builder: ir.IRBuilder, scalar: Any, count: int = LANES) -> Lanes:
        """The same (run-time) scalar in every lane."""
        vector = ir.VectorType(scalar.type, count)
        one = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, I32(0))
        spread = ir.Constant(ir.VectorType(I32, count), [0] * count)
        return cls(builder, builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), spread))

    def store(self, pointer: Any) -> None:
        vector = self.builder.bitcast(pointer, self.value.type.as_pointer())
        self.builder.store(self.value, vector, align=_bytes(self.value.type.element))

    def constant(self, value: float) -> Lanes:
        """A literal in every lane, of this vector's type."""
        return Lanes(self.builder, ir.Constant(self.value.type, [value] * self.value.type.count))

    def __add__(self, other: Lanes | float) -> Lanes:
        return self._arithmetic(self.builder.fadd, self.builder.add, other)

    def __sub__(self, other: Lanes | float) -> Lanes:
        return self._arithmetic(self.builder.fsub, self.builder.sub, other)

    def __mul__(self, other: Lanes | float) -> Lanes:
        return self._arithmetic(self.builder.fmul, self.builder.mul, other)

    def __truediv__(self, other: Lanes) -> Lanes:
        return Lanes(self.builder, self.builder.fdiv(self.value, other.value))

    def __xor__(self, other: Lanes | int) -> Lanes:
        return self._arithmetic(None, self.builder.xor, other)

    def __and__(self, other: Lanes | int) -> Lanes:
        return self._arithmetic(None, self.builder.and_, other)

    def __or__(self, other: Lanes | int) -> Lanes:
        return self._arithmetic(None, self.builder.or_, other)

    def __lshift__(self, bits: int) -> Lanes:
        return self._arithmetic(None, self.builder.shl, bits)

    def __rshift__(self, bits: int) -> Lanes:
        """Logical shift: zeros come in."""
        return self._arithmetic(None, self.builder.lshr, bits)

    def shift_signed(self, bits: int) -> Lanes:
        """Arithmetic shift: copies of the sign come in."""
        return self._arithmetic(None, self.builder.ashr, bits)

    def rotate_left(self, bits: int) -> Lanes:
        return (self << bits) | (self >> (self.value.type.element.width - bits))

    def at_most(self, bound: Lanes) -> Lanes:
        """One-bit lanes: set where this is <= bound, both unsigned."""
        return Lanes(self.builder, self.builder.icmp_unsigned("<=", self.value, bound.value))

    def any(self) -> Any:
        """Whether a one-bit lane is set, as an i1."""
        word = ir.IntType(self.value.type.count)
        return self.builder.icmp_unsigned("!=", self.builder.bitcast(self.value, word), word(0))

    def nonzero(self) -> Any:
        """A mask for `choose`: lanes that are not zero."""
        return self.builder.icmp_unsigned("!=", self.value, self.constant(0).value)

    def choose(self, mask: Any, other: Lanes) -> Lanes:
        """This vector where `mask` holds, `other` elsewhere."""
        return Lanes(self.builder, self.builder.select(mask, self.value, other.value))

    def bits_as(self, element: ir.Type) -> Lanes:
        """The same bits under another type of the same width."""
        return Lanes(self.builder, self.builder.bitcast(self.value, self._vector(element)))

    def to_float(self, element: ir.Type) -> Lanes:
        """Signed integers to floating point, each rounded to nearest."""
        return Lanes(self.builder, self.builder.sitofp(self.value, self._vector(element)))

    def widen(self) -> Lanes:
        """float32 to float64, exactly."""
        return Lanes(self.builder, self.builder.fpext(self.value, self._vector(F64)))

    def narrow(self) -> Lanes:
        """float64 to float32, rounded to nearest."""
        return Lanes(self.builder, self.builder.fptrunc(self.value, self._vector(F32)))

    def truncate(self) -> Lanes:
        """float64 to int64, toward zero."""
        return Lanes(self.builder, self.builder.fptosi(self.value, self._vector(I64)))

    def sqrt(self) -> Lanes:
        """Correctly rounded."""
        return self._unary("llvm.sqrt")

    def _unary(self, name: str) -> Lanes:
        kind = self.value.type
        suffix = f"v{kind.count}f{32 if kind.element is F32 or isinstance(kind.element, ir.FloatType) else 64}"
        function = cgutils.get_or_insert_function(
            self.builder.module, ir.FunctionType(kind, [kind]), f"{name}.{suffix}"
        )
        return Lanes(self.builder, self.builder.call(function, [self.value]))

    def _vector(self, element: ir.Type) -> ir.VectorType:
        return ir.VectorType(element, self.value.type.count)

    def _arithmetic(self, real: Any, whole: Any, other: Lanes | float) -> Lanes:
        """Apply the operation that fits the element type; a Python number stands for a vector of it."""
        right = other if isinstance(other, Lanes) else self.constant(other)
        operation = whole if isinstance(self.value.type.element, ir.IntType) else real
        return Lanes(self.builder, operation(self.value, right.value))


def transpose(vectors: Sequence[Lanes]) -> list[Lanes]:
    """16 vectors of 16 lanes: lane l of vector j becomes lane j of vector l. Four rounds of pairwise shuffles."""
    builder, count = vectors[0].builder, len(vectors)
    rows = [v.value for v in vectors]
    index = ir.VectorType(I32, count)
    width = count // 2
    while width:
        # Swap the off-diagonal blocks of size `width`: (a b; c d) -> (a c; b d), within each pair of vectors.
        upper = ir.Constant(index, [i + (count - width if i & width else 0) for i in range(count)])
        lower = ir.Constant(index, [i + (count if i & width else width) for i in range(count)])
        swapped = list(rows)
        for i in range(count):
            if not i & width:
                swapped[i] = builder.shuffle_vector(rows[i], rows[i + width], upper)
                swapped[i + width] = builder.shuffle_vector(rows[i], rows[i + width], lower)
        rows, width = swapped, width // 2
    return [Lanes(builder, row) for row in rows]


def counted_loop(
    builder: ir.IRBuilder, count: Any, carried: Sequence[Lanes], body: Callable[[Any, list[Lanes]], list[Lanes]]
) -> list[Lanes]:
    """Run `body(index, carried) -> carried` for index = 0, ..., count - 1, the vectors in registers all the while."""
    before = builder.basic_block
    loop, inside, after = (builder.append_basic_block(name) for name in ("loop", "inside", "after"))
    builder.branch(loop)
    builder.position_at_end(loop)
    index = builder.phi(I64)
    index.add_incoming(I64(0), before)
    phis = [builder.phi(v.value.type) for v in carried]
    for phi, start in zip(phis, carried, strict=True):
        phi.add_incoming(start.value, before)
    builder.cbranch(builder.icmp_unsigned("<", index, count), inside, after)
    builder.position_at_end(inside)
    for phi, result in zip(phis, body(index, [Lanes(builder, phi) for phi in phis]), strict=True):
        phi.add_incoming(result.value, builder.basic_block)
    index.add_incoming(builder.add(index, I64(1)), builder.basic_block)
    builder.branch(loop)
    builder.position_at_end(after)
    return [Lanes(builder, phi) for phi in phis]


def emitted(
    name: str, arguments: Sequence[ir.Type], build: Callable[..., Any], result: ir.Type | None = None
) -> Callable[..., Any]:
    """A function of its own in the module, built once however often it is called, never inlined.

    `build(builder, *arguments)` writes its body and returns what the function returns, of type `result`.
    """

    def call(builder: ir.IRBuilder, values: Sequence[Any]) -> Any:
        kind = ir.FunctionType(result or ir.VoidType(), list(arguments))
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        if function.is_declaration:
            function.linkage = "internal"
            function.attributes.add("noinline")
            inner = ir.IRBuilder(function.append_basic_block("entry"))
            value = build(inner, *function.args)
            inner.ret_void() if result is None else inner.ret(value)
        return builder.call(function, list(values))

    return call


def element_pointer(context: Any, builder: ir.IRBuilder, array: Any, value: Any, index: Any = None) -> Any:
    """Address of the first (or of the flat index-th) element of a C-contiguous numba array."""
    data = context.make_array(array)(context, builder, value).data
    return data if index is None else builder.gep(data, [index])


@intrinsic
def prefetch(typingctx: Any, array: Any, index: Any) -> Any:
    """Ask for the cache line of array.flat[index], to be written. A hint: any index is allowed, nothing is read."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        element = element_pointer(context, builder, signature.args[0], arguments[0], arguments[1])
        pointer: Any = builder.bitcast(element, ir.IntType(8).as_pointer())
        function = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [pointer.type, I32, I32, I32]),
            "llvm.prefetch.p0",
        )
        builder.call(function, [pointer, I32(1), I32(3), I32(1)])
        return context.get_dummy_value()

    return types.void(array, types.int64), codegen


def _bytes(element: ir.Type) -> int:
    return 4 if isinstance(element, ir.FloatType) or element == I32 else 8
