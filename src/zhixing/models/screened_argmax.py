"""argmax_n w_n . x for a few rows x, reading next to nothing of w in fp32: what greedy decoding needs of the head.

The head of a language model is a large part of its weights, and a step of a few rows waits for memory. To know which
score is the greatest one need not know the scores. With w = w' + e and x = x' + r, where w' and x' are int8 times a
scale, w' . x' is exact in integers and, by Cauchy and Schwarz,

    |w . x - w' . x'| = |w' . r + e . x| <= |w'| |r| + |e| |x|

so every score lies in an interval known from a quarter of the memory. Only the few whose interval reaches above the
best lower end can be the greatest; those are multiplied in fp32, by the very loop that makes all scores of few rows
(models/few_rows.py). So the answer is that of the fp32 product to the last bit, not an approximation. Measured gain:
docs/log.md; `tests/test_screened_argmax.py` holds it.

Shapes: B rows, K numbers a row (a multiple of 4), N rows of w. Weights are packed (N / 16, K / 4, 16, 4) int8: a vector
holds four numbers of sixteen rows, so that one AVX-512 VNNI instruction adds 64 products and nothing is summed across.
"""

from __future__ import annotations

import math
from typing import Any

import llvmlite.binding
import numba
import numpy as np
import torch
from llvmlite import ir
from numba import njit, prange
from numba.core import cgutils as untyped_cgutils
from numba.extending import intrinsic
from torch import Tensor

from zhixing.models.exponential import FAST
from zhixing.models.few_rows import matmul_rows, quantise, use_threads

cgutils: Any = untyped_cgutils
Array = Any  # np.ndarray inside compiled code

LANES = 16
HAS_VNNI = bool(llvmlite.binding.get_host_cpu_features().get("avx512vnni"))
PART = 64  # rows of w whose intervals are looked at together: most such parts hold no candidate
MOST_CANDIDATES = 1 / 64  # of N; with more of them the whole product is as fast


def _sixteen(columns: int) -> Any:
    """A compiled function (packed, n, x, b, start, y): y[b + c, 16 n + r] = start + x[b + c] . (row r of block n).

    x (B, K) holds p + 128 in uint8 (p is x' over its scale), as the instruction wants one factor unsigned; start (N,),
    which is -128 sum q, takes it back.
    """
    whole32 = ir.IntType(32)
    V = ir.VectorType(whole32, LANES)

    def four_products(builder: Any, total: Any, numbers: Any, weights: Any) -> Any:
        """total + the sum of four products in each lane; numbers are unsigned bytes, weights signed."""
        if HAS_VNNI:
            kind = ir.FunctionType(V, [V, V, V])
            add = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512.vpdpbusd.512")
            return builder.call(add, [total, numbers, weights])
        for i in range(4):
            low = ir.Constant(V, [8 * i] * LANES)
            number = builder.and_(builder.lshr(numbers, low), ir.Constant(V, [255] * LANES))
            weight = builder.ashr(
                builder.shl(weights, ir.Constant(V, [24 - 8 * i] * LANES)), ir.Constant(V, [24] * LANES)
            )
            total = builder.add(total, builder.mul(number, weight))
        return total

    @intrinsic
    def block(typing: Any, packed: Any, n: Any, x: Any, b: Any, start: Any, y: Any) -> Any:
        def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            arrays = [context.make_array(signature.args[i])(context, builder, arguments[i]) for i in (0, 2, 4, 5)]
            w_, x_, start_, y_ = (array.data for array in arrays)
            K = cgutils.unpack_tuple(builder, arrays[1].shape)[1]
            N = cgutils.unpack_tuple(builder, arrays[3].shape)[1]
            whole = K.type
            first = builder.gep(w_, [builder.mul(arguments[1], builder.mul(K, whole(LANES)))])
            rows = [builder.gep(x_, [builder.mul(builder.add(arguments[3], whole(c)), K)]) for c in range(columns)]
            sums = [cgutils.alloca_once(builder, V) for _ in range(columns)]
            begin = builder.gep(start_, [builder.mul(arguments[1], whole(LANES))])
            begin = builder.load(builder.bitcast(begin, V.as_pointer()), align=4)
            for place in sums:
                builder.store(begin, place)
            with cgutils.for_range_slice(builder, whole(0), K, whole(4)) as (k, _):
                place = builder.gep(first, [builder.mul(k, whole(LANES))])
                weights = builder.load(builder.bitcast(place, V.as_pointer()), align=1)
                for row, total in zip(rows, sums, strict=True):
                    four = builder.load(builder.bitcast(builder.gep(row, [k]), whole32.as_pointer()), align=1)
                    alone = builder.insert_element(ir.Constant(V, ir.Undefined), four, whole32(0))
                    numbers = builder.shuffle_vector(alone, ir.Constant(V, ir.Undefined), ir.Constant(V, [0] * LANES))
                    builder.store(four_products(builder, builder.load(total), numbers, weights), total)
            for c, total in enumerate(sums):
                to = builder.add(
                    builder.mul(builder.add(arguments[3], whole(c)), N), builder.mul(arguments[1], whole(LANES))
                )
                target = builder.bitcast(builder.gep(y_, [to]), V.as_pointer())
                builder.store(builder.load(total), target, align=4)
            return context.get_dummy_value()

        return numba.void(packed, n, x, b, start, y), make

    return block


_eight, _one = _sixteen(8), _sixteen(1)


@njit(cache=True, error_model="numpy")
def _pack(w: Array, q: Array, scale: Array, packed: Array, start: Array, sizes: Array, errors: Array) -> None:
    """w (N, K), its rounding q with scale (N,) -> packed; start (N,) = -128 sum q, sizes (N,) = |w'|, errors = |e|."""
    for n in range(q.shape[0]):
        total, size, error = np.int32(0), 0.0, 0.0
        for k in range(q.shape[1]):
            packed[n // LANES, k // 4, n % LANES, k % 4] = q[n, k]
            rounded = scale[n] * np.float32(q[n, k])
            total += np.int32(q[n, k])
            size += rounded * rounded
            error += (w[n, k] - rounded) ** 2
        start[n], sizes[n], errors[n] = -128 * total, math.sqrt(size), math.sqrt(error)


@njit(cache=True, error_model="numpy")
def _some_blocks(packed: Array, x: Array, start: Array, y: Array, first: int, last: int) -> None:
    rows = x.shape[0]
    for n in range(first, last):
        b = 0
        while b + 8 <= rows:
            _eight(packed, n, x, b, start, y)
            b += 8
        while b < rows:
            _one(packed, n, x, b, start, y)
            b += 1


@njit(parallel=True, cache=True, error_model="numpy")
def _integer_products(packed: Array, x: Array, start: Array, y: Array, threads: int) -> None:
    """y (B, N) int32 = x (B, K) uint8 times packed, plus start; each thread takes a share of the blocks."""
    blocks = packed.shape[0]
    for t in prange(threads):
        _some_blocks(packed, x, start, y, blocks * t // threads, blocks * (t + 1) // threads)


@njit(fastmath=FAST | {"nnan"}, cache=True, error_model="numpy")
def _ends(y: Array, scale: Array, sizes: Array, errors: Array, t: Any, r: Any, x: Any) -> tuple[Any, Any]:
    """The greatest lower and the greatest upper end of the intervals of some scores."""
    low, high = np.float32(-np.inf), np.float32(-np.inf)
    for n in range(y.shape[0]):
        score = scale[n] * t * np.float32(y[n])
        error = sizes[n] * r + errors[n] * x
        low, high = max(low, score - error), max(high, score + error)
    return low, high


@njit(fastmath=FAST, cache=True, error_model="numpy")
def _best_of_row(
    x: Array,
    w: Array,
    y: Array,
    scale: Array,
    sizes: Array,
    errors: Array,
    t: Any,
    x_error: Any,
    x_size: Any,
    excluded: Array,
    highest: Array,
) -> int:
    """The greatest of one row: y (N,) integer products; -1 if too many might be it."""
    count, size = w.shape
    for i in range(excluded.shape[0]):
        y[excluded[i]] = -(2**30)
    floor = np.float32(-np.inf)
    for part in range(highest.shape[0]):
        own = slice(PART * part, min(PART * (part + 1), count))
        low, highest[part] = _ends(y[own], scale[own], sizes[own], errors[own], t, x_error, x_size)
        floor = max(floor, low)
    best, place, tried = np.float32(-np.inf), -1, 0
    exact = np.empty((1, count), np.float32)
    for part in range(highest.shape[0]):
        if highest[part] < floor:
            continue
        for n in range(PART * part, min(PART * (part + 1), count)):
            upper = scale[n] * t * np.float32(y[n]) + (sizes[n] * x_error + errors[n] * x_size)
            if upper < floor or (excluded == n).any():
                continue
            tried += 1
            if tried > 64 + count * MOST_CANDIDATES:
                return -1
            four = n // 4 * 4
            matmul_rows(w, x.reshape(1, size), exact, four, min(four + 4, count))
            if exact[0, n] > best:
                best, place = exact[0, n], n
    return place


@njit(parallel=True, cache=True, error_model="numpy")
def _best_of_rows(
    x: Array,
    w: Array,
    y: Array,
    scale: Array,
    sizes: Array,
    errors: Array,
    of_x: Array,
    excluded: Array,
    highest: Array,
    out: Array,
) -> None:
    for b in prange(x.shape[0]):
        t, r, size = of_x[b]
        out[b] = _best_of_row(x[b], w, y[b], scale, sizes, errors, t, r, size, excluded, highest[b])


@njit(fastmath=FAST, cache=True, error_model="numpy")
def _round(x: Array, rounded: Array, of_x: Array) -> bool:
    """x (B, K) -> rounded = p + 128, of_x (B, 3) = scale, |r|, |x|; False if a row is all 0 or not finite."""
    for b in range(x.shape[0]):
        top, size = np.float32(0), np.float32(0)
        for k in range(x.shape[1]):
            top = max(top, abs(x[b, k]))
            size += x[b, k] * x[b, k]
        if not (top > 0 and size < np.inf):
            return False
        t, error = top / np.float32(127), np.float32(0)
        for k in range(x.shape[1]):
            p = np.int32(np.rint(x[b, k] / t))
            rounded[b, k] = np.uint8(p + np.int32(128))
            error += (x[b, k] - t * np.float32(p)) ** 2
        of_x[b, 0], of_x[b, 1], of_x[b, 2] = t, math.sqrt(error), math.sqrt(size)
    return True


class ScreenedArgmax:
    """The greatest of w . x, with w (N, K) float32 kept in int8 beside itself: a quarter of its memory more."""

    def __init__(self, weight: Array) -> None:
        count, size = weight.shape
        assert size % 4 == 0, "four numbers of a row are multiplied at once"
        self.weight, self.count, self.size = weight, count, size
        self.scale = np.empty(count, np.float32)
        q = np.empty((count, size), np.int8)
        quantise(weight, q, self.scale)
        self.packed = np.zeros((-(-count // LANES), size // 4, LANES, 4), np.int8)
        self.start = np.zeros(LANES * len(self.packed), np.int32)
        self.sizes, self.errors = np.empty(count, np.float32), np.empty(count, np.float32)
        _pack(weight, q, self.scale, self.packed, self.start, self.sizes, self.errors)
        self.scratch = np.empty((0, len(self.start)), np.int32)  # (B, N): kept, as fresh memory costs more than its use

    def __call__(self, hidden: Tensor, excluded: tuple[int, ...] = ()) -> Tensor | None:
        """hidden (B, K) fp32 -> ids (B,), none of them an excluded one; None where too many might be the greatest.

        None too where a row is all 0 or holds a number that is not finite.
        """
        x, rows = hidden.contiguous().numpy(), len(hidden)
        rounded, of_x = np.empty(x.shape, np.uint8), np.empty((rows, 3), np.float32)
        if not _round(x, rounded, of_x):
            return None
        if len(self.scratch) < rows:
            self.scratch = np.empty((rows, len(self.start)), np.int32)
        y = self.scratch[:rows]
        _integer_products(self.packed, rounded, self.start, y, use_threads())
        out = np.empty(rows, np.int64)
        highest = np.empty((rows, -(-self.count // PART)), np.float32)
        _best_of_rows(
            x, self.weight, y, self.scale, self.sizes, self.errors, of_x, np.array(excluded, np.int64), highest, out
        )
        return None if out.min() < 0 else torch.from_numpy(out)
