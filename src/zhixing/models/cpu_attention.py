"""Attention for training on a processor: plain products, and compiled loops for what lies between them.

    P = softmax(Q K^T / sqrt(K)),  O = P V                                        (Vaswani et al. 2017, eq. 1)
    dV = P^T dO,  dP = dO V^T,  dS_ij = P_ij (dP_ij - sum_k P_ik dP_ik) / sqrt(K),  dQ = dS K,  dK = dS^T Q
    with Q K^T + A, a bias A of each head that all rows share: dA = sum over rows of dS

torch's own attention never holds P, which saves memory where texts are long; for the few hundred tokens of a model
that trains on a processor its small products cost more than these large ones, in bf16 2.4 times, and with dropout it
falls back to plain operators that hold P three times (docs/log.md). Here P is kept for the way back while it is small,
else made again. Queries are taken in blocks, so that a causal block meets no key behind its last query.

Dropout (Srivastava et al. 2014) has O = M P V / (1 - p) with M 0 or 1. A dropped P_ij is kept as -P_ij: the sign is M.
Whether it drops is a hash of its place and of a seed from torch's generator, the same whenever P is made again.

Shapes: B rows, H heads, N = B H, T queries, S keys, K head size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from zhixing.models.exponential import FAST, exp32
from zhixing.models.few_rows import use_threads
from zhixing.models.half import Array, bits, greatest, number, put
from zhixing.models.layers import MOST_KEPT

BLOCK = 128  # queries
MOST_MADE = 2**21  # numbers of P at once where it is not kept


@njit(fastmath=FAST, cache=True, error_model="numpy", forceinline=True)
def _softmax_row(z: Array, seen: int, scale: Any) -> None:
    """z (S,) scores -> probabilities over the first `seen`, in place; 0 behind them."""
    if seen > 0:
        e, total = np.empty(seen, np.float32), np.float32(0)
        top = greatest(z[:seen])
        for j in range(seen):
            e[j] = exp32((number(z[j]) - top) * scale)
            total += e[j]
        whole = np.float32(1) / total
        for j in range(seen):
            put(z, j, e[j] * whole)
    for j in range(seen, z.shape[0]):
        put(z, j, np.float32(0))


@njit(fastmath=FAST, cache=True, error_model="numpy", forceinline=True)
def _softmax_back_row(p: Array, dp: Array, seen: int, scale: Any) -> None:
    """dp (S,) becomes dscores (S,), whatever the signs of p (S,)."""
    mean = np.float32(0)
    for j in range(seen):
        mean += abs(number(p[j])) * number(dp[j])
    for j in range(seen):
        put(dp, j, abs(number(p[j])) * (number(dp[j]) - mean) * scale)
    for j in range(seen, dp.shape[0]):
        put(dp, j, np.float32(0))


@njit(fastmath=FAST, cache=True, error_model="numpy", forceinline=True)
def _undrop_row(p: Array, dp: Array, seen: int, more: Any) -> None:
    """dp (S,) loses what was dropped, where p (S,) is negative; the rest of dp grows."""
    for j in range(seen):
        put(dp, j, number(dp[j]) * more if number(p[j]) > 0 else np.float32(0))


@njit(inline="always")
def _mixed(x: Any) -> Any:
    """32 well mixed bits of 32 (the finalizer of MurmurHash3, Appleby 2011)."""
    x = np.uint32((x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B))
    x = np.uint32((x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35))
    return np.uint32(x ^ (x >> np.uint32(16)))


@njit(cache=True, error_model="numpy", forceinline=True)
def _drop_row(p: Array, seen: int, key: Any, below: Any) -> None:
    """Turn the sign of those of p (S,) whose hash is below `below`, a share of 2^32."""
    for j in range(seen):
        dropped = _mixed(np.uint32(key + np.uint32(j) * np.uint32(0x9E3779B9))) < below
        put(p, j, -number(p[j]) if dropped else number(p[j]))


# lengths (N,) says how many keys of a row are real; empty: causal, query i of all sees keys 0..i


@njit(parallel=True, cache=True, error_model="numpy")
def _softmax(z: Array, lengths: Array, row: int, first: int, scale: float, below: Any, seed: Any) -> None:
    """z (N, T, S) scores of rows row.. and queries first.. -> probabilities, in place, the dropped ones negative."""
    each = z.shape[1]
    for n in prange(z.shape[0]):
        for i in range(each):
            seen = lengths[row + n] if lengths.shape[0] else first + i + 1
            _softmax_row(z[n, i], seen, np.float32(scale))
            if below > 0:
                key = _mixed(np.uint32(seed + np.uint32(row + n)))
                key = _mixed(np.uint32(key + np.uint32(first + i)))
                _drop_row(z[n, i], seen, key, below)


@njit(parallel=True, cache=True, error_model="numpy")
def _softmax_back(p: Array, dp: Array, lengths: Array, row: int, first: int, scale: float, kept: float) -> None:
    """dp (N, T, S), the gradient of what multiplies V, becomes that of the scores, in place; `kept` is 1 - dropout."""
    each = p.shape[1]
    for n in prange(p.shape[0]):
        for i in range(each):
            seen = lengths[row + n] if lengths.shape[0] else first + i + 1
            if kept < 1:
                _undrop_row(p[n, i], dp[n, i], seen, np.float32(1 / kept))
            _softmax_back_row(p[n, i], dp[n, i], seen, np.float32(scale))


class Attention(torch.autograd.Function):
    """softmax((q k^T + bias) / sqrt(K)) v for q (N, T, K), k and v (N, S, K), bias (H, T, S) or none of it.

    lengths (N,) int64, or empty: causal.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, dropout: float, bias: Tensor | None
    ) -> Tensor:
        ctx.dropout, ctx.seed = dropout, int(torch.randint(2**32, ())) if dropout else 0
        ctx.whole = q.shape[0] * q.shape[1] * k.shape[1] <= MOST_KEPT
        out, kept = torch.empty_like(q), []
        for rows, own, seen in _pieces(q, k, not len(lengths), ctx.whole, 1 if bias is None else len(bias)):
            p = _weights(ctx, q, k, lengths, bias, rows, own, seen)
            out[rows, own] = _mixture(p, v[rows, :seen], dropout)
            if ctx.whole:
                kept.append(p)
        ctx.save_for_backward(q, k, v, lengths, bias, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, Tensor | None]:
        q, k, v, lengths, bias, *kept = ctx.saved_tensors
        d_out = grads[0].contiguous()
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        d_bias = None if bias is None else torch.zeros_like(bias)
        share, scale = 1 - ctx.dropout, 1 / math.sqrt(q.shape[2])
        for rows, own, seen in _pieces(q, k, not len(lengths), ctx.whole, 1 if bias is None else len(bias)):
            p = kept.pop(0) if ctx.whole else _weights(ctx, q, k, lengths, bias, rows, own, seen)
            dv[rows, :seen] += _mixture(p.transpose(1, 2), d_out[rows, own], ctx.dropout)
            ds = torch.bmm(d_out[rows, own], v[rows, :seen].transpose(1, 2))
            use_threads()
            _softmax_back(bits(p), bits(ds), lengths.numpy(), rows.start, own.start, scale, share)
            dq[rows, own] = torch.bmm(ds, k[rows, :seen])
            dk[rows, :seen] += torch.bmm(ds.transpose(1, 2), q[rows, own])
            if d_bias is not None:
                d_bias[:, own, :seen] += ds.view(-1, len(d_bias), *ds.shape[1:]).sum(0)
        return dq, dk, dv, None, None, d_bias


def _pieces(q: Tensor, k: Tensor, causal: bool, whole: bool, together: int) -> Iterator[tuple[slice, slice, int]]:
    """Rows, a multiple of `together`, queries, and how many keys they may see: P is made piece by piece."""
    rows, count, keys = q.shape[0], q.shape[1], k.shape[1]
    step = BLOCK if causal or not whole else count
    at_once = rows if whole else max(1, MOST_MADE // (min(step, count) * keys * together)) * together
    for row in range(0, rows, at_once):
        for first in range(0, count, step):
            end = min(first + step, count)
            yield slice(row, min(row + at_once, rows)), slice(first, end), end if causal else keys


def _weights(
    ctx: Any, q: Tensor, k: Tensor, lengths: Tensor, bias: Tensor | None, rows: slice, own: slice, seen: int
) -> Tensor:
    """P of a piece (N, T, S), a dropped one with its sign turned."""
    p = torch.bmm(q[rows, own], k[rows, :seen].transpose(1, 2))
    if bias is not None:
        p.view(-1, len(bias), *p.shape[1:]).add_(bias[:, own, :seen])
    below = np.uint32(min(round(ctx.dropout * 2**32), 2**32 - 1))
    use_threads()
    _softmax(bits(p), lengths.numpy(), rows.start, own.start, 1 / math.sqrt(q.shape[2]), below, np.uint32(ctx.seed))
    return p


def _mixture(p: Tensor, v: Tensor, dropout: float) -> Tensor:
    """What is left of p times v, divided by the share that is left."""
    return torch.bmm(p.relu(), v) / (1 - dropout) if dropout else torch.bmm(p, v)


def attention(
    q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, dropout: float = 0.0, bias: Tensor | None = None
) -> Tensor:
    """q (B, H, T, K), k and v (B, H, S, K), fp32 or bf16 on the CPU -> (B, H, T, K).

    lengths (B,): how many keys of each row are real, the others padding behind them. None: causal, with T = S.
    dropout: the share of P that is set to 0, 0 <= dropout < 1, while the rest grows by 1 / (1 - dropout).
    bias (H, T, S), in the dtype of q: what is added to q k^T before it is divided.
    """
    flat = [x.reshape(-1, *x.shape[2:]) for x in (q, k, v)]
    each = torch.empty(0, dtype=torch.int64) if lengths is None else lengths.repeat_interleave(q.shape[1])
    apply: Any = Attention.apply
    out: Tensor = apply(*flat, each, dropout, bias)
    return out.view(*q.shape)
