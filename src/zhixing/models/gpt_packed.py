"""One decoding step of a GPT as compiled loops: the fast path of `GPT.step` for one token a row on a processor.

A step of one token a row is a row of matrix-vector products: each weight is read once and used B times, so what counts
is to read the weights in one pass, with all cores, and do nothing else. torch runs some twenty operators a layer for it
and a matrix product made for large B; here a step is one call. Measured gain over the eager step: docs/log.md.

numba compiles the loops at their first use (about half a minute, kept on disk afterwards). `tests/test_gpt_packed.py`
holds them against `GPT.step`.

Shapes: L layers, B rows, D d_model, H query heads, G key and value heads, K head size, F d_ff, V vocab_size, S slots.
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
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor, nn

from zhixing.models.gpt import GPT
from zhixing.models.layers import DecodingState

FAST = {
    "reassoc",
    "contract",
    "nsz",
    "arcp",
}  # sums may be reordered (so that they vectorise); inf and NaN stay themselves
# error_model="numpy" below: a check for a division by zero would keep a loop from being vectorised (8 times as slow)

MOST_THREADS: int = numba.get_num_threads()  # what numba started with
MOST_ROWS = 16  # beyond it the products are large enough for torch's own

Array = Any  # np.ndarray of float32 inside compiled code


@intrinsic
def _float_of_bits(context: Any, bits: Any) -> Any:
    """The float32 whose bits are those of an int32."""

    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(numba.float32))

    return numba.float32(numba.int32), make


@njit(fastmath=FAST, inline="always", error_model="numpy")
def _exp(x: Any) -> Any:
    """e^x for float32 within 3e-7 of its value, without a call, so that loops over it vectorise (the library's do not).

    x = (n + f) ln 2 with n whole and |f| <= 1/2; 2^f is a Taylor polynomial, 2^n an exponent. Below -87 it is about 0.
    """
    z = min(max(x * np.float32(1.4426950408889634), np.float32(-126.0)), np.float32(126.0))
    whole = np.int32(z + np.float32(126.5))  # n + 126: never negative, so cutting off the fraction rounds
    f = (z - np.float32(whole - np.int32(126))) * np.float32(0.6931471805599453)
    p = np.float32(1 / 120) + f * np.float32(1 / 720)
    p = np.float32(1 / 6) + f * (np.float32(1 / 24) + f * p)
    p = np.float32(1) + f * (np.float32(1) + f * (np.float32(0.5) + f * p))
    return p * _float_of_bits((whole + np.int32(1)) << np.int32(23))  # type: ignore[call-arg]


def _widest() -> tuple[int, int]:
    """Numbers in a vector of this processor, and how many rows of x to take at once without spilling registers."""
    features = llvmlite.binding.get_host_cpu_features()
    if features.get("avx512f"):
        return 16, 4  # 32 registers of 16 numbers
    return (8, 2) if features.get("avx2") else (4, 4)  # 16 registers of 8; NEON and SSE: 4


LANES, COLUMNS = _widest()
ROWS = 4  # of w, in one tile


def _tile(columns: int, *, prefetch: bool) -> Any:
    """A compiled function (w, n, x, b, y): y[b + c, n + r] = x[b + c] . w[n + r] over whole vectors of k.

    ROWS rows of w times `columns` rows of x, written in LLVM's own language: sums stay in registers, each number loaded
    is used several times, and the rows of w that come next are asked for while these are multiplied. That last is what
    counts: the processor's own guess of what is needed stops at each tile, and the weights come from memory. Measured
    (docs/log.md): 8 rows by a (16384, 384) head 1,490 us without, 610 with.
    """
    F, I = ir.FloatType(), ir.IntType(32)
    V = ir.VectorType(F, LANES)
    byte_pointer = ir.IntType(8).as_pointer()

    def shuffle(builder: Any, a: Any, b: Any, places: list[int]) -> Any:
        return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I, len(places)), places))

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
        return builder.fadd(shuffle(builder, *halves, [0, 1, 4, 5]), shuffle(builder, *halves, [2, 3, 6, 7]))

    @intrinsic
    def tile(typing: Any, w: Any, n: Any, x: Any, b: Any, y: Any) -> Any:
        def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            arrays = [
                context.make_array(signature.args[i])(context, builder, arguments[i]) for i in (0, 2, 4)
            ]
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
            fma = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(V, [V, V, V]), f"llvm.fma.v{LANES}f32"
            )
            ask = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(ir.VoidType(), [byte_pointer, I, I, I]), "llvm.prefetch.p0"
            )
            ahead = builder.mul(K, whole(2 * ROWS))
            stop = builder.sub(K, builder.urem(K, whole(LANES)))
            with cgutils.for_range_slice(builder, whole(0), stop, whole(LANES)) as (k, _):
                weights = []
                for row in w_rows:
                    place = builder.gep(row, [k])
                    weights.append(builder.load(builder.bitcast(place, V.as_pointer()), align=4))
                    if prefetch:
                        later = builder.bitcast(builder.gep(place, [ahead]), byte_pointer)
                        builder.call(ask, [later, I(0), I(2), I(1)])  # to read, into the second-level cache
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
def _matmul_rows(w: Array, x: Array, y: Array, first: int, last: int) -> None:
    """Columns first..last-1 of y (B, N) = x (B, K) w (N, K)^T; all three contiguous."""
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
def matmul(w: Array, x: Array, y: Array, threads: int) -> None:
    """y (B, N) = x (B, K) w (N, K)^T; each thread takes a share of the rows of w."""
    count = w.shape[0]
    share = (count // threads + 3) // 4 * 4
    for t in prange(threads):
        first = min(t * share, count)
        last = count if t == threads - 1 else min((t + 1) * share, count)
        _matmul_rows(w, x, y, first, last)


@njit(fastmath=FAST, cache=True, error_model="numpy")
def _rms_norm(x: Array, weight: Array, eps: float, out: Array) -> None:
    """out = x / sqrt(mean(x^2) + eps) * weight, for each row."""
    for b in range(x.shape[0]):
        total = np.float32(0)
        for k in range(x.shape[1]):
            total += x[b, k] * x[b, k]
        scale = np.float32(1.0 / math.sqrt(total / x.shape[1] + eps))
        for k in range(x.shape[1]):
            out[b, k] = x[b, k] * scale * weight[k]


@njit(fastmath=FAST, cache=True, error_model="numpy")
def _layer_norm(x: Array, weight: Array, bias: Array, eps: float, out: Array) -> None:
    """out = (x - mean) / sqrt(var + eps) * weight + bias, for each row."""
    for b in range(x.shape[0]):
        mean = np.float32(0)
        for k in range(x.shape[1]):
            mean += x[b, k]
        mean /= np.float32(x.shape[1])
        total = np.float32(0)
        for k in range(x.shape[1]):
            total += (x[b, k] - mean) * (x[b, k] - mean)
        scale = np.float32(1.0 / math.sqrt(total / x.shape[1] + eps))
        for k in range(x.shape[1]):
            out[b, k] = (x[b, k] - mean) * scale * weight[k] + bias[k]


@njit(fastmath=FAST, cache=True, error_model="numpy")
def _norm_and_turn(head: Array, norm: Array, eps: float, turn: Array) -> None:
    """RMS-norm one head (K,) where `norm` is not empty, then turn its pairs by turn (2, K/2), where K may be 0."""
    size = head.shape[0]
    if norm.shape[0]:
        total = np.float32(0)
        for k in range(size):
            total += head[k] * head[k]
        scale = np.float32(1.0 / math.sqrt(total / size + eps))
        for k in range(size):
            head[k] = head[k] * scale * norm[k]
    half = turn.shape[1]
    for k in range(half):
        first, second = head[k], head[k + half]
        head[k] = first * turn[0, k] - second * turn[1, k]
        head[k + half] = second * turn[0, k] + first * turn[1, k]


@njit(fastmath=FAST, cache=True, error_model="numpy")
def _attend(
    b: int,
    g: int,
    qkv: Array,
    q_norm: Array,
    k_norm: Array,
    eps: float,
    turn: Array,
    keys: Array,
    values: Array,
    place: int,
    scores: Array,
    out: Array,
) -> None:
    """Row b, group g: store its key and value at slot `place`, then let each of its query heads look at 0..place."""
    size = keys.shape[1]
    heads = out.shape[1] // size
    groups = (qkv.shape[1] // size - heads) // 2
    shared = heads // groups
    scale = np.float32(1.0 / math.sqrt(size))
    k_new = qkv[b, (heads + g) * size : (heads + g + 1) * size]
    _norm_and_turn(k_new, k_norm, eps, turn)
    v_new = qkv[b, (heads + groups + g) * size : (heads + groups + g + 1) * size]
    for k in range(size):
        keys[place, k] = k_new[k]
        values[place, k] = v_new[k]
    for h in range(g * shared, (g + 1) * shared):
        q = qkv[b, h * size : (h + 1) * size]
        _norm_and_turn(q, q_norm, eps, turn)
        row = scores[b, h]
        top = np.float32(-np.inf)
        for s in range(place + 1):
            key = keys[s]
            total = np.float32(0)
            for k in range(size):
                total += q[k] * key[k]
            total *= scale
            row[s] = total
            top = max(top, total)
        norm = np.float32(0)
        for s in range(place + 1):
            row[s] = _exp(row[s] - top)
            norm += row[s]
        result = out[b, h * size : (h + 1) * size]
        for k in range(size):
            result[k] = np.float32(0)
        for s in range(place + 1):
            share = row[s] / norm
            value = values[s]
            for k in range(size):
                result[k] += share * value[k]


@njit(parallel=True, cache=True, error_model="numpy")
def attention(
    qkv: Array,
    q_norm: Array,
    k_norm: Array,
    eps: float,
    rotary: Array,
    keys: Array,
    values: Array,
    lengths: Array,
    scores: Array,
    out: Array,
) -> None:
    """Attend from the newest token of each row: qkv (B, (H + 2G) K), keys and values (B, G, S, K), out (B, H K).

    Row b's key and value are stored at slot lengths[b] first. scores (B, H, S) is scratch. rotary is (T, 2, K/2), or
    (1, 2, 0) where nothing turns.
    """
    groups = keys.shape[1]
    for task in prange(keys.shape[0] * groups):
        b, g = task // groups, task % groups
        place = lengths[b]
        turn = rotary[min(place, rotary.shape[0] - 1)]
        _attend(b, g, qkv, q_norm, k_norm, eps, turn, keys[b, g], values[b, g], place, scores, out)


@njit(fastmath=FAST, cache=True, error_model="numpy")
def modern_step(
    x: Array,
    attention_norm: Array,
    qkv: Array,
    q_norm: Array,
    k_norm: Array,
    out: Array,
    feed_forward_norm: Array,
    gate_up: Array,
    down: Array,
    final_norm: Array,
    eps: float,
    rotary: Array,
    keys: Array,
    values: Array,
    lengths: Array,
    threads: int,
) -> None:
    """x (B, D) embeddings -> hidden states, in place. Weights are stacked over layers, (L, rows, columns)."""
    layers, rows, d_model = qkv.shape[0], x.shape[0], x.shape[1]
    heads = out.shape[2] // keys.shape[4]
    normed = np.empty((rows, d_model), np.float32)
    projected = np.empty((rows, qkv.shape[1]), np.float32)
    mixed = np.empty((rows, out.shape[2]), np.float32)
    change = np.empty((rows, d_model), np.float32)
    both = np.empty((rows, gate_up.shape[1]), np.float32)
    d_ff = down.shape[2]
    inner = np.empty((rows, d_ff), np.float32)
    scores = np.empty((rows, heads, keys.shape[3]), np.float32)
    for layer in range(layers):
        _rms_norm(x, attention_norm[layer], eps, normed)
        matmul(qkv[layer], normed, projected, threads)
        attention(
            projected, q_norm[layer], k_norm[layer], eps, rotary, keys[layer], values[layer], lengths, scores, mixed
        )
        matmul(out[layer], mixed, change, threads)
        x += change
        _rms_norm(x, feed_forward_norm[layer], eps, normed)
        matmul(gate_up[layer], normed, both, threads)
        for b in range(rows):
            for k in range(d_ff):
                gate = both[b, k]
                inner[b, k] = gate / (np.float32(1) + _exp(-gate)) * both[b, d_ff + k]
        matmul(down[layer], inner, change, threads)
        x += change
    _rms_norm(x, final_norm, eps, x)


@njit(fastmath=FAST, cache=True, error_model="numpy")
def classic_step(
    x: Array,
    attention_norm: Array,
    attention_norm_bias: Array,
    qkv: Array,
    qkv_bias: Array,
    out: Array,
    out_bias: Array,
    feed_forward_norm: Array,
    feed_forward_norm_bias: Array,
    up: Array,
    up_bias: Array,
    down: Array,
    down_bias: Array,
    final_norm: Array,
    final_norm_bias: Array,
    eps: float,
    no_norm: Array,
    no_rotary: Array,
    keys: Array,
    values: Array,
    lengths: Array,
    threads: int,
) -> None:
    """The same for GPT-2's blocks: LayerNorm, biases, GELU in its tanh form."""
    layers, rows, d_model = qkv.shape[0], x.shape[0], x.shape[1]
    heads = out.shape[2] // keys.shape[4]
    normed = np.empty((rows, d_model), np.float32)
    projected = np.empty((rows, qkv.shape[1]), np.float32)
    mixed = np.empty((rows, out.shape[2]), np.float32)
    change = np.empty((rows, d_model), np.float32)
    inner = np.empty((rows, up.shape[1]), np.float32)
    scores = np.empty((rows, heads, keys.shape[3]), np.float32)
    root = np.float32(math.sqrt(2.0 / math.pi))
    for layer in range(layers):
        _layer_norm(x, attention_norm[layer], attention_norm_bias[layer], eps, normed)
        matmul(qkv[layer], normed, projected, threads)
        projected += qkv_bias[layer]
        attention(projected, no_norm, no_norm, eps, no_rotary, keys[layer], values[layer], lengths, scores, mixed)
        matmul(out[layer], mixed, change, threads)
        x += change + out_bias[layer]
        _layer_norm(x, feed_forward_norm[layer], feed_forward_norm_bias[layer], eps, normed)
        matmul(up[layer], normed, inner, threads)
        for b in range(rows):
            for k in range(inner.shape[1]):
                u = inner[b, k] + up_bias[layer, k]
                angle = root * (u + np.float32(0.044715) * u * u * u)
                # tanh(a) = 1 - 2 / (exp(2a) + 1)
                inner[b, k] = u - u / (_exp(np.float32(2) * angle) + np.float32(1))
        matmul(down[layer], inner, change, threads)
        x += change + down_bias[layer]
    _layer_norm(x, final_norm, final_norm_bias, eps, x)


class PackedGPT:
    """A GPT that takes its one-token steps through the compiled loops; the rest it leaves to the model.

    Keeps the decoding protocol (new_state, step, logits) and shares the model's memory: the parameters of one kind
    become views of one array over the layers. fp32 on the CPU only.
    """

    def __init__(self, model: GPT) -> None:
        self.model, self.settings = model, model.settings
        blocks: list[Any] = list(model.blocks)
        self.classic = self.settings.layout == "gpt2"

        def of(path: str) -> Array:
            return _stacked([block.get_parameter(path) for block in blocks])

        self.head_weight = model.head().detach().numpy()
        self.embedding = model.embedding.weight.detach()
        final: Any = model.norm
        eps = self.settings.norm_eps
        nothing = np.zeros((len(blocks), 0), np.float32)
        if self.classic:
            names = [
                "attention_norm.weight",
                "attention_norm.bias",
                "attention.qkv.weight",
                "attention.qkv.bias",
                "attention.out.weight",
                "attention.out.bias",
                "feed_forward_norm.weight",
                "feed_forward_norm.bias",
                "feed_forward.up.weight",
                "feed_forward.up.bias",
                "feed_forward.down.weight",
                "feed_forward.down.bias",
            ]
            weights = [of(name) for name in names]
            self.arguments = [
                *weights,
                final.weight.detach().numpy(),
                final.bias.detach().numpy(),
                eps,
                nothing[0],
                np.zeros((1, 2, 0), np.float32),
            ]
        else:
            q_norm = of("attention.q_norm.weight") if self.settings.layout == "qwen3" else nothing
            k_norm = of("attention.k_norm.weight") if self.settings.layout == "qwen3" else nothing
            self.arguments = [
                of("attention_norm.weight"),
                of("attention.qkv.weight"),
                q_norm,
                k_norm,
                of("attention.out.weight"),
                of("feed_forward_norm.weight"),
                of("feed_forward.gate_up.weight"),
                of("feed_forward.down.weight"),
                final.weight.detach().numpy(),
                eps,
                model.rotary.numpy(),
            ]

    @property
    def training(self) -> bool:
        return self.model.training

    def train(self, mode: bool = True) -> PackedGPT:
        self.model.train(mode)
        return self

    def head(self) -> Tensor:
        return self.model.head()

    def new_state(self, rows: int, max_len: int | None = None) -> DecodingState:
        return self.model.new_state(rows, max_len)

    def step(self, ids: Tensor, n_new: Tensor, state: DecodingState) -> Tensor:
        """As GPT.step; one token a row goes the fast way."""
        if ids.shape[1] > 1 or ids.shape[0] > MOST_ROWS or int(state.lengths.max()) >= state.capacity:
            return self.model.step(ids, n_new, state)
        x = self.embedding[ids[:, 0]]  # (B, D), a copy
        if self.model.positions is not None:
            x += self.model.positions.weight.detach()[state.lengths]
        threads = _use_threads()
        step: Any = classic_step if self.classic else modern_step
        step(x.numpy(), *self.arguments, state.keys.numpy(), state.values.numpy(), state.lengths.numpy(), threads)
        state.advance(n_new)
        return x.unsqueeze(1)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (..., D) -> logits (..., V) fp32."""
        flat = hidden.reshape(-1, hidden.shape[-1])
        if len(flat) > MOST_ROWS:
            return self.model.logits(hidden)
        out = torch.empty(len(flat), len(self.head_weight))
        matmul(self.head_weight, flat.contiguous().numpy(), out.numpy(), _use_threads())
        return out.view(*hidden.shape[:-1], -1)


def _use_threads() -> int:
    """Give numba as many threads as torch has, and say how many."""
    threads = min(torch.get_num_threads(), MOST_THREADS)
    numba.set_num_threads(threads)
    return threads


def _stacked(parameters: list[nn.Parameter]) -> Array:
    """Parameters of equal shape as one array (L, ...), of which each becomes a view (again no copy the next time)."""
    first = parameters[0].data
    size = first.numel() * first.element_size()
    in_place = all(
        p.data.is_contiguous() and p.data_ptr() == first.data_ptr() + i * size for i, p in enumerate(parameters)
    )
    same_storage = all(p.data.untyped_storage().data_ptr() == first.untyped_storage().data_ptr() for p in parameters)
    if in_place and same_storage:
        return first.as_strided((len(parameters), *first.shape), (first.numel(), *first.stride())).numpy()
    stacked = torch.stack([p.data for p in parameters])
    for parameter, view in zip(parameters, stacked, strict=True):
        parameter.data = view
    return stacked.numpy()
