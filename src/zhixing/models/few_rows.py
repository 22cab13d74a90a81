"""y = x W^T for a few rows of x, as compiled loops: each weight is read once, and is asked for before it is needed.

A matrix product made for many rows is slow for one to sixteen: what counts then is to stream the weights from memory
with all cores. Weights are float32, or int8 with a scale a row (symmetric rounding, w ~ scale * q with
scale = max |w| / 127), which is a quarter of the memory and near enough to guess with.

numba compiles the loops at their first use and keeps them on disk. `tests/test_few_rows.py` holds them against torch.

Shapes: B rows, K numbers a row, N rows of w.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding
import numba
import numpy as np
import torch
from llvmlite import ir
from numba import njit, prange
from numba.core import cgutils as untyped_cgutils
from numba.extending import intrinsic

from zhixing.models.exponential import FAST

cgutils: Any = untyped_cgutils


def _start_numba() -> int:
    """Start numba's threads, and say how many there are.

    Where numba and torch share an OpenMP this sets the threads of both, so those of torch are put back: a run of one
    thread would go on with two.
    """
    threads = torch.get_num_threads()
    most: int = numba.get_num_threads()
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    return most


MOST_THREADS = _start_numba()
UNSCALED = np.zeros(0, np.float32)  # the scale of float32 weights

Array = Any  # np.ndarray of float32 inside compiled code


def _widest() -> tuple[int, int]:
    """Numbers in a vector of this processor, and how many rows of x to take at once without spilling registers."""
    features = llvmlite.binding.get_host_cpu_features()
    if features.get("avx512f"):
        return 16, 4  # 32 registers of 16 numbers
    return (8, 2) if features.get("avx2") else (4, 4)  # 16 registers of 8; NEON and SSE: 4


LANES, COLUMNS = _widest()
ROWS = 4  # of w, in one tile
AHEAD = 3072  # numbers between what is multiplied and what is asked for: 12 KB cover the way from memory ...
NEAR = 16  # ... but no more rows than this, so that little is asked for behind the end of short matrices


def _tile(columns: int, *, prefetch: bool) -> Any:
    """A compiled function (w, n, x, b, y): y[b + c, n + r] = x[b + c] . w[n + r] over whole vectors of k.

    ROWS rows of w times `columns` rows of x, written in LLVM's own language: sums stay in registers, each number loaded
    is used several times, and the rows of w that come next are asked for while these are multiplied. That last is what
    counts: the processor's own guess of what is needed stops at each tile, and the weights come from memory. Measured
    (docs/log.md): 8 rows by a (16384, 384) head 1,490 us without, 610 with.
    """
    F, whole32 = ir.FloatType(), ir.IntType(32)
    V, bytes_, wholes = (ir.VectorType(kind, LANES) for kind in (F, ir.IntType(8), whole32))
    byte_pointer = ir.IntType(8).as_pointer()

    def shuffle(builder: Any, a: Any, b: Any, places: list[int]) -> Any:
        return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(whole32, len(places)), places))

    def folded(builder: Any, v: Any) -> Any:
        """LANES sums to 4 whose sum is the same."""
        lanes = LANES
        while lanes > 4:
            lanes //= 2
            low, high = list(range(lanes)), list(range(lanes, 2 * lanes))
            v = builder.fadd(shuffle(builder, v, v, low), shuffle(builder, v, v, high))
        return v

    def four_sums(builder: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
        """[sum a, sum b, sum c, sum d] of four vectors of 4."""
        halves = [
            builder.fadd(shuffle(builder, p, q, [0, 4, 1, 5]), shuffle(builder, p, q, [2, 6, 3, 7]))
            for p, q in ((a, b), (c, d))
        ]
        p, q = halves
        return builder.fadd(shuffle(builder, p, q, [0, 1, 4, 5]), shuffle(builder, p, q, [2, 3, 6, 7]))

    @intrinsic
    def tile(typing: Any, w: Any, n: Any, x: Any, b: Any, y: Any) -> Any:
        def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            arrays = [context.make_array(signature.args[i])(context, builder, arguments[i]) for i in (0, 2, 4)]
            w_, x_, y_ = (array.data for array in arrays)
            K = cgutils.unpack_tuple(builder, arrays[0].shape)[1]
            N = cgutils.unpack_tuple(builder, arrays[2].shape)[1]
            whole = K.type
            first_w, first_x = builder.mul(arguments[1], K), builder.mul(arguments[3], K)
            w_rows = [builder.gep(w_, [builder.add(first_w, builder.mul(K, whole(r)))]) for r in range(ROWS)]
            x_rows = [builder.gep(x_, [builder.add(first_x, builder.mul(K, whole(c)))]) for c in range(columns)]
            sums = [cgutils.alloca_once(builder, V) for _ in range(ROWS * columns)]
            for place in sums:
                builder.store(ir.Constant(V, [0.0] * LANES), place)
            fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(V, [V, V, V]), f"llvm.fma.v{LANES}f32")
            ask = cgutils.get_or_insert_function(
                builder.module,
                ir.FunctionType(ir.VoidType(), [byte_pointer, whole32, whole32, whole32]),
                "llvm.prefetch.p0",
            )
            far, near = whole(AHEAD), builder.mul(K, whole(NEAR))
            ahead = builder.select(builder.icmp_signed("<", near, far), near, far)
            stop = builder.sub(K, builder.urem(K, whole(LANES)))
            with cgutils.for_range_slice(builder, whole(0), stop, whole(LANES)) as (k, _):
                weights = []
                for row in w_rows:
                    place = builder.gep(row, [k])
                    if signature.args[0].dtype == numba.int8:
                        stored = builder.load(builder.bitcast(place, bytes_.as_pointer()), align=1)
                        weights.append(builder.sitofp(builder.sext(stored, wholes), V))
                    else:
                        weights.append(builder.load(builder.bitcast(place, V.as_pointer()), align=4))
                    if prefetch:
                        later = builder.bitcast(builder.gep(place, [ahead]), byte_pointer)
                        builder.call(
                            ask, [later, whole32(0), whole32(2), whole32(1)]
                        )  # to read, into the second-level cache
                for c, row in enumerate(x_rows):
                    numbers = builder.load(builder.bitcast(builder.gep(row, [k]), V.as_pointer()), align=4)
                    for r, weight in enumerate(weights):
                        place = sums[c * ROWS + r]
                        builder.store(builder.call(fma, [weight, numbers, builder.load(place)]), place)
            for c in range(columns):
                parts = [folded(builder, builder.load(place)) for place in sums[c * ROWS : (c + 1) * ROWS]]
                place = builder.add(builder.mul(builder.add(arguments[3], whole(c)), N), arguments[1])
                target = builder.bitcast(builder.gep(y_, [place]), ir.VectorType(F, 4).as_pointer())
                builder.store(four_sums(builder, *parts), target, align=4)
            return context.get_dummy_value()

        return numba.void(w, n, x, b, y), make

    return tile


_first_tile, _next_tile = _tile(COLUMNS, prefetch=True), _tile(COLUMNS, prefetch=False)
_first_row, _next_row = _tile(1, prefetch=True), _tile(1, prefetch=False)


@njit(fastmath=FAST, cache=True, error_model="numpy")
def matmul_rows(w: Array, x: Array, y: Array, first: int, last: int) -> None:
    """Columns first..last-1 of y (B, N) = x (B, K) w (N, K)^T, unscaled; all three contiguous."""
    rows, size = x.shape
    whole = first + (last - first) // ROWS * ROWS
    in_vectors = size // LANES * LANES
    for n in range(first, whole, ROWS):
        if rows >= COLUMNS:
            _first_tile(w, n, x, 0, y)
            b = COLUMNS
        else:
            _first_row(w, n, x, 0, y)
            b = 1
        while b + COLUMNS <= rows:
            _next_tile(w, n, x, b, y)
            b += COLUMNS
        while b < rows:
            _next_row(w, n, x, b, y)
            b += 1
        for k in range(in_vectors, size):
            for b in range(rows):
                for r in range(ROWS):
                    y[b, n + r] += w[n + r, k] * x[b, k]
    for n in range(whole, last):
        for b in range(rows):
            total = np.float32(0)
            for k in range(size):
                total += w[n, k] * x[b, k]
            y[b, n] = total


# The bodies of parallel loops are functions of their own: numba's parallel passes are slow on long ones.


@njit(parallel=True, cache=True, error_model="numpy")
def matmul(w: Array, scale: Array, x: Array, y: Array, threads: int) -> None:
    """y (B, N) = x (B, K) w (N, K)^T; each thread takes a share of the rows of w.

    scale (N,) where w is int8; empty where it is float32.
    """
    count = w.shape[0]
    share = (count // threads + 3) // 4 * 4
    for t in prange(threads):
        first = min(t * share, count)
        last = count if t == threads - 1 else min((t + 1) * share, count)
        matmul_rows(w, x, y, first, last)
        if scale.shape[0]:
            for b in range(y.shape[0]):
                for n in range(first, last):
                    y[b, n] *= scale[n]


@intrinsic
def ask_for(typing: Any, rows: Any, s: Any) -> Any:
    """Have the processor fetch row s of rows (S, K) from memory; behind the end it does no harm."""

    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        size = cgutils.unpack_tuple(builder, array.shape)[1]
        row = builder.gep(array.data, [builder.mul(arguments[1], size)])
        byte_pointer, whole32 = ir.IntType(8).as_pointer(), ir.IntType(32)
        ask = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [byte_pointer, whole32, whole32, whole32]),
            "llvm.prefetch.p0",
        )
        with cgutils.for_range_slice(builder, size.type(0), size, size.type(16)) as (k, _):  # 64 bytes a cache line
            later = builder.bitcast(builder.gep(row, [k]), byte_pointer)
            builder.call(ask, [later, whole32(0), whole32(2), whole32(1)])
        return context.get_dummy_value()

    return numba.void(rows, s), make


@njit(fastmath=FAST, cache=True, error_model="numpy")
def quantise(w: Array, rounded: Array, scale: Array) -> None:
    """w (N, K) float32 -> rounded (N, K) int8 and scale (N,): the nearest of 255 steps, w ~ scale * rounded."""
    for n in range(w.shape[0]):
        most = np.float32(0)
        for k in range(w.shape[1]):
            most = max(most, abs(w[n, k]))
        scale[n] = most / np.float32(127)
        steps = np.float32(127) / most if most > 0 else np.float32(0)
        for k in range(w.shape[1]):
            rounded[n, k] = np.int8(np.rint(w[n, k] * steps))


def use_threads() -> int:
    """Give numba as many threads as torch has, and say how many."""
    threads = min(torch.get_num_threads(), MOST_THREADS)
    numba.set_num_threads(threads)
    return threads
