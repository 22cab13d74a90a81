"""Attention of one new token a row as compiled loops: softmax(q K^T / sqrt(K)) V (Vaswani et al. 2017, eq. 1).

A step of decoding has one query for each row and head. torch's attention is made for many: for one it packs blocks that
are read once, and takes eight times as long (64 rows, 8 heads, 32 keys: 0.8 ms; docs/log.md). Here each head of each
row is a task of its own. A row's numbers have the same bits whatever stands beside it.

`tests/test_step_attention.py` holds it against torch.

Shapes: B rows, H query heads, G key and value heads, K head size, S slots, R rows of the caches.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from zhixing.models.exponential import FAST, exp32
from zhixing.models.few_rows import NEAR, Array, ask_for, matmul_rows, use_threads


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
def _store(
    k_new: Array, v_new: Array, k_norm: Array, eps: float, turn: Array, keys: Array, values: Array, place: int
) -> None:
    """A row's new key and value (K,) of one group go to slot `place` of keys and values (S, K)."""
    _norm_and_turn(k_new, k_norm, eps, turn)
    for k in range(keys.shape[1]):
        keys[place, k] = k_new[k]
        values[place, k] = v_new[k]


@njit(fastmath=FAST, cache=True, error_model="numpy")
def _attend(
    q: Array,
    q_norm: Array,
    eps: float,
    turn: Array,
    keys: Array,
    values: Array,
    place: int,
    scores: Array,
    result: Array,
) -> None:
    """One query head (K,) looks at slots 0..place of keys and values (S, K); scores (S,) is scratch."""
    size = keys.shape[1]
    scale = np.float32(1.0 / math.sqrt(size))
    _norm_and_turn(q, q_norm, eps, turn)
    seen = place + 1
    for s in range(min(NEAR, seen)):
        ask_for(values, s)  # type: ignore[call-arg]
    matmul_rows(keys, q.reshape(1, size), scores.reshape(1, scores.shape[0]), 0, seen)
    top = np.float32(-np.inf)
    for s in range(seen):
        top = max(top, scores[s])
    norm = np.float32(0)
    for s in range(seen):
        scores[s] = exp32((scores[s] - top) * scale)
        norm += scores[s]
    for k in range(size):
        result[k] = np.float32(0)
    in_fours = seen // 4 * 4
    for s in range(0, in_fours, 4):  # four values at a time: the result is loaded and stored once for them
        for i in range(4):
            ask_for(values, s + NEAR + i)  # type: ignore[call-arg]
        p, q0, r, t = scores[s], scores[s + 1], scores[s + 2], scores[s + 3]
        a, b, c, d = values[s], values[s + 1], values[s + 2], values[s + 3]
        for k in range(size):
            result[k] += p * a[k] + q0 * b[k] + r * c[k] + t * d[k]
    for s in range(in_fours, seen):
        for k in range(size):
            result[k] += scores[s] * values[s, k]
    for k in range(size):
        result[k] /= norm


@njit(fastmath=FAST, cache=True, error_model="numpy")
def _store_all(
    qkv: Array,
    k_norm: Array,
    eps: float,
    rotary: Array,
    keys: Array,
    values: Array,
    owner: Array,
    places: Array,
) -> None:
    """The new keys and values of all tokens go to the caches: too little work to share among threads."""
    groups, size = keys.shape[1], keys.shape[3]
    heads = qkv.shape[1] // size - 2 * groups
    for b in range(qkv.shape[0]):
        place, row = places[b], owner[b]
        turn = rotary[min(place, rotary.shape[0] - 1)]
        for g in range(groups):
            k_new = qkv[b, (heads + g) * size : (heads + g + 1) * size]
            v_new = qkv[b, (heads + groups + g) * size : (heads + groups + g + 1) * size]
            _store(k_new, v_new, k_norm, eps, turn, keys[row, g], values[row, g], place)


@njit(fastmath=FAST, cache=True, error_model="numpy")
def _attend_task(
    task: int,
    qkv: Array,
    q_norm: Array,
    eps: float,
    rotary: Array,
    keys: Array,
    values: Array,
    owner: Array,
    places: Array,
    scores: Array,
    out: Array,
) -> None:
    """Attend from one token and head; task numbers them."""
    size = keys.shape[3]
    heads = out.shape[1] // size
    b, h = task // heads, task % heads
    place, row, g = places[b], owner[b], h // (heads // keys.shape[1])
    turn = rotary[min(place, rotary.shape[0] - 1)]
    part = slice(h * size, (h + 1) * size)
    _attend(qkv[b, part], q_norm, eps, turn, keys[row, g], values[row, g], place, scores[b, h], out[b, part])


@njit(parallel=True, cache=True, error_model="numpy")
def _look(
    q: Array,
    q_norm: Array,
    eps: float,
    rotary: Array,
    keys: Array,
    values: Array,
    owner: Array,
    places: Array,
    scores: Array,
    out: Array,
) -> None:
    """Each head of each token looks: q (B, at least H K), keys and values (R, G, S, K), out (B, H K)."""
    for task in prange(q.shape[0] * (out.shape[1] // keys.shape[3])):
        _attend_task(task, q, q_norm, eps, rotary, keys, values, owner, places, scores, out)


@njit(cache=True, error_model="numpy")
def attention(
    qkv: Array,
    q_norm: Array,
    k_norm: Array,
    eps: float,
    rotary: Array,
    keys: Array,
    values: Array,
    owner: Array,
    places: Array,
    scores: Array,
    out: Array,
) -> None:
    """Attend from new tokens: qkv (B, (H + 2G) K), keys and values (R, G, S, K), out (B, H K).

    Token b belongs to row owner[b] of the caches and stands at slot places[b]; all keys and values are stored before
    any query looks, so several tokens of one row see one another as they should. scores (B, H, S) is scratch. rotary is
    (T, 2, K/2), or (1, 2, 0) where nothing turns.
    """
    _store_all(qkv, k_norm, eps, rotary, keys, values, owner, places)
    _look(qkv, q_norm, eps, rotary, keys, values, owner, places, scores, out)


NO_NORM, NO_TURN = np.zeros(0, np.float32), np.zeros((1, 2, 0), np.float32)


def attend_and_store(qkv: Tensor, keys: Tensor, values: Tensor, place: int) -> Tensor:
    """One new token in each row, all at slot `place`: qkv (B, (H + 2G) K), keys and values (B, G, S, K) -> (B, H K).

    Neither positions turn q and k, nor are they normed. fp32 on the CPU, contiguous, without gradients.
    """
    rows, groups, slots, size = keys.shape
    heads = qkv.shape[1] // size - 2 * groups
    out = torch.empty(rows, heads * size)
    scores = np.empty((rows, heads, slots), np.float32)
    owner, places = np.arange(rows), np.full(rows, place)
    use_threads()
    attention(
        qkv.numpy(), NO_NORM, NO_NORM, 0.0, NO_TURN, keys.numpy(), values.numpy(), owner, places, scores, out.numpy()
    )
    return out


def look(q: Tensor, keys: Tensor, values: Tensor, owners: Tensor, lengths: Tensor) -> Tensor:
    """q (B, H K) looks at the first lengths[owners[b]] of keys and values (G, H, S, K) of its owner -> (B, H K).

    fp32 on the CPU, contiguous, without gradients.
    """
    out = torch.empty_like(q)
    scores = np.empty((len(q), keys.shape[1], keys.shape[2]), np.float32)
    use_threads()
    last = (lengths[owners] - 1).numpy()
    _look(q.numpy(), NO_NORM, 0.0, NO_TURN, keys.numpy(), values.numpy(), owners.numpy(), last, scores, out.numpy())
    return out
