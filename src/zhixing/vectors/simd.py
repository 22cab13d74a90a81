"""Sixteen numbers at a time inside compiled loops, named one by one: load, store, multiply-add, sum.

numba vectorises a plain loop over a row only in whole strides of four vectors and leaves the rest to a scalar loop: of
100 numbers that is a third, and of two matrices it first asks at run time whether they overlap. Word vectors are
nothing but short rows, so here a row is padded to a multiple of 16 (`padded`) and read as values of a type of its own,
16 float32 wide. LLVM turns that into whatever the processor has: one AVX-512 register, two of AVX2, four of NEON.

Nothing of this exists outside compiled functions; a value of the type may be a local variable only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils as numba_cgutils
from numba.extending import intrinsic, models, register_model
from numpy.typing import NDArray

cgutils: Any = numba_cgutils

LANES = 16
ALIGNMENT = 64  # bytes: a row begins where a line of the cache begins

_VECTOR = ir.VectorType(ir.FloatType(), LANES)
_WHOLE = ir.VectorType(ir.IntType(32), LANES)


def padded(size: int) -> int:
    """The next multiple of 16: 100 -> 112."""
    return -(-size // LANES) * LANES


def aligned_zeros(rows: int, size: int) -> NDArray[np.float32]:
    """(rows, padded(size)) zeros that begin at a line of the cache; pages are taken only when written."""
    width = padded(size)
    raw = np.zeros(rows * width + ALIGNMENT // 4, np.float32)
    skip = -(raw.ctypes.data // 4) % (ALIGNMENT // 4)
    return raw[skip : skip + rows * width].reshape(rows, width)


class _Vector(types.Type):
    def __init__(self) -> None:
        super().__init__(name="float32x16")


float32x16 = _Vector()


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _VECTOR)  # type: ignore[no-untyped-call]


def _compiled(function: Callable[..., Any]) -> Any:
    """numba's intrinsic: `function` writes the instructions; calls of it have one argument fewer than it."""
    return intrinsic(function)


def _constant(value: float) -> ir.Constant:
    return ir.Constant(_VECTOR, [ir.Constant(ir.FloatType(), float(np.float32(value)))] * LANES)


def _whole(value: int) -> ir.Constant:
    return ir.Constant(_WHOLE, [ir.Constant(ir.IntType(32), value)] * LANES)


def _place(context: Any, builder: Any, kind: Any, array: Any, row: Any, column: Any) -> Any:
    """Pointer to array[row, column] of a C-contiguous float32 matrix, as one to 16 numbers."""
    struct = context.make_array(kind)(context, builder, array)
    width = cgutils.unpack_tuple(builder, struct.shape, 2)[1]
    offset = builder.add(builder.mul(row, width), column)
    return builder.bitcast(builder.gep(struct.data, [offset]), _VECTOR.as_pointer())


def _multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(_VECTOR, [_VECTOR] * 3), "llvm.fmuladd.v16f32"
    )
    return builder.call(function, [a, b, c])


def _splat(builder: Any, number: Any) -> Any:
    one = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, ir.Constant(_VECTOR, ir.Undefined), _whole(0))


@_compiled
def zero(typing: Any) -> Any:
    """Sixteen zeros."""

    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _constant(0.0)

    return float32x16(), make


@_compiled
def load(typing: Any, matrix: Any, row: Any, column: Any) -> Any:
    """matrix[row, column : column + 16]."""

    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, row, column = arguments
        pointer = _place(context, builder, signature.args[0], array, row, column)
        return builder.load(pointer, align=4)

    return float32x16(matrix, types.intp, types.intp), make


@_compiled
def store(typing: Any, matrix: Any, row: Any, column: Any, value: Any) -> Any:
    """matrix[row, column : column + 16] = value."""

    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, row, column, value = arguments
        pointer = _place(context, builder, signature.args[0], array, row, column)
        builder.store(value, pointer, align=4)
        return context.get_dummy_value()

    return types.void(matrix, types.intp, types.intp, float32x16), make


@_compiled
def add(typing: Any, a: Any, b: Any) -> Any:
    """a + b."""

    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fadd(*arguments)

    return float32x16(float32x16, float32x16), make


@_compiled
def multiply_add(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, in one instruction where the processor has it."""

    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _multiply_add(builder, *arguments)

    return float32x16(float32x16, float32x16, float32x16), make


@_compiled
def scale_add(typing: Any, number: Any, b: Any, c: Any) -> Any:
    """number * b + c for a single number."""

    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number, b, c = arguments
        return _multiply_add(builder, _splat(builder, number), b, c)

    return float32x16(types.float32, float32x16, float32x16), make


@_compiled
def total(typing: Any, a: Any) -> Any:
    """The sum of the sixteen, in a tree, as one float32."""

    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.FloatType(), [ir.FloatType(), _VECTOR]), "llvm.vector.reduce.fadd.v16f32"
        )
        return builder.call(function, [ir.Constant(ir.FloatType(), -0.0), arguments[0]], fastmath=("reassoc",))

    return types.float32(float32x16), make


@_compiled
def sigmoid(typing: Any, x: Any) -> Any:
    """1 / (1 + e^-x), within 2e-7, for |x| cut off at 30.

    e^-x = 2^(n + f) with n whole and |f| <= 1/2: 2^f a Taylor polynomial, 2^n an exponent.
    """

    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def clip(value: Any, limit: float) -> Any:
            low = builder.fcmp_ordered(">", value, _constant(-limit))
            value = builder.select(low, value, _constant(-limit))
            return builder.select(builder.fcmp_ordered("<", value, _constant(limit)), value, _constant(limit))

        z = builder.fmul(clip(arguments[0], 30.0), _constant(-1.4426950408889634))
        n = builder.fptosi(builder.fadd(z, _constant(126.5)), _WHOLE)  # n + 126 is positive: cutting off rounds
        f = builder.fsub(z, builder.sitofp(builder.sub(n, _whole(126)), _VECTOR))
        f = builder.fmul(f, _constant(0.6931471805599453))
        p = _constant(1 / 5040)
        for divisor in (720, 120, 24, 6, 2, 1, 1):
            p = _multiply_add(builder, p, f, _constant(1 / divisor))
        power = builder.bitcast(builder.shl(builder.add(n, _whole(1)), _whole(23)), _VECTOR)
        return builder.fdiv(_constant(1.0), _multiply_add(builder, p, power, _constant(1.0)))

    return float32x16(float32x16), make


@_compiled
def prefetch(typing: Any, matrix: Any, row: Any) -> Any:
    """Ask for a row before it is needed: a cache miss then costs nothing."""

    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, row = arguments
        kind = signature.args[0]
        struct = context.make_array(kind)(context, builder, array)
        width = cgutils.unpack_tuple(builder, struct.shape, 2)[1]
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [byte, word, word, word]), "llvm.prefetch.p0"
        )
        start = builder.mul(row, width)
        with cgutils.for_range(builder, builder.udiv(width, context.get_constant(types.intp, LANES))) as loop:
            place = builder.add(start, builder.mul(loop.index, context.get_constant(types.intp, LANES)))
            pointer = builder.bitcast(builder.gep(struct.data, [place]), byte)
            builder.call(function, [pointer, ir.Constant(word, 1), ir.Constant(word, 3), ir.Constant(word, 1)])
        return context.get_dummy_value()

    return types.void(matrix, types.intp), make
