"""Attention for training on a processor: plain products, and compiled loops for what lies between them.

    P = softmax(Q K^T / sqrt(K)),  O = P V                                        (Vaswani et al. 2017, eq. 1)
    dV = P^T dO,  dP = dO V^T,  dS_ij = P_ij (dP_ij - sum_k P_ik dP_ik) / sqrt(K),  dQ = dS K,  dK = dS^T Q

torch's own attention never holds P, which saves memory where texts are long; for the few hundred tokens of a model that
trains on a processor its small products cost more than these large ones, in bf16 2.4 times (docs/log.md). P is kept for
the way back: B H T S numbers. Queries are taken in blocks, so that a causal block meets no key behind its last query.

Shapes: B rows, H heads, N = B H, T queries, S keys, K head size.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from zhixing.models.exponential import FAST, exp32
from zhixing.models.few_rows import use_threads
from zhixing.models.half import Array, bits, greatest, number, put

BLOCK = 128  # queries


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
    """dp (S,) becomes dscores (S,)."""
    mean = np.float32(0)
    for j in range(seen):
        mean += number(p[j]) * number(dp[j])
    for j in range(seen):
        put(dp, j, number(p[j]) * (number(dp[j]) - mean) * scale)
    for j in range(seen, dp.shape[0]):
        put(dp, j, np.float32(0))


# lengths (B,) says how many keys of a row are real; empty: causal, query i of all sees keys 0..i


@njit(parallel=True, cache=True, error_model="numpy")
def _softmax(z: Array, lengths: Array, first: int, scale: float) -> None:
    """z (N, T, S) scores of queries first..first+T-1 -> probabilities, in place."""
    each = z.shape[1]
    heads = z.shape[0] // max(1, lengths.shape[0])
    for n in prange(z.shape[0]):
        for i in range(each):
            seen = lengths[n // heads] if lengths.shape[0] else first + i + 1
            _softmax_row(z[n, i], seen, np.float32(scale))


@njit(parallel=True, cache=True, error_model="numpy")
def _softmax_back(p: Array, dp: Array, lengths: Array, first: int, scale: float) -> None:
    """dp (N, T, S), the gradient of p, becomes that of the scores, in place."""
    each = p.shape[1]
    heads = p.shape[0] // max(1, lengths.shape[0])
    for n in prange(p.shape[0]):
        for i in range(each):
            seen = lengths[n // heads] if lengths.shape[0] else first + i + 1
            _softmax_back_row(p[n, i], dp[n, i], seen, np.float32(scale))


class Attention(torch.autograd.Function):
    """softmax(q k^T / sqrt(K)) v for q (N, T, K), k and v (N, S, K); lengths (B,) int64, or empty: causal."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> Tensor:
        count, causal = q.shape[1], not len(lengths)
        out, kept, scale = torch.empty_like(q), [], 1 / math.sqrt(q.shape[2])
        step = BLOCK if causal else count
        use_threads()
        for first in range(0, count, step):
            own = slice(first, first + step)
            seen = min(first + step, count) if causal else k.shape[1]
            p = torch.bmm(q[:, own], k[:, :seen].transpose(1, 2))  # (N, step, seen)
            _softmax(bits(p), lengths.numpy(), first, scale)
            out[:, own] = torch.bmm(p, v[:, :seen])
            kept.append(p)
        ctx.save_for_backward(q, k, v, lengths, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, lengths, *kept = ctx.saved_tensors
        d_out = grads[0].contiguous()
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        first, scale = 0, 1 / math.sqrt(q.shape[2])
        use_threads()
        for p in kept:
            own, seen = slice(first, first + p.shape[1]), p.shape[2]
            dv[:, :seen] += torch.bmm(p.transpose(1, 2), d_out[:, own])
            ds = torch.bmm(d_out[:, own], v[:, :seen].transpose(1, 2))
            _softmax_back(bits(p), bits(ds), lengths.numpy(), first, scale)
            dq[:, own] = torch.bmm(ds, k[:, :seen])
            dk[:, :seen] += torch.bmm(ds.transpose(1, 2), q[:, own])
            first += p.shape[1]
        return dq, dk, dv, None


def attention(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None) -> Tensor:
    """q (B, H, T, K), k and v (B, H, S, K), fp32 or bf16 on the CPU -> (B, H, T, K).

    lengths (B,): how many keys of each row are real, the others padding behind them. None: causal, with T = S.
    """
    flat = [x.reshape(-1, *x.shape[2:]) for x in (q, k, v)]
    apply: Any = Attention.apply
    out: Tensor = apply(*flat, torch.empty(0, dtype=torch.int64) if lengths is None else lengths)
    return out.view(*q.shape)
