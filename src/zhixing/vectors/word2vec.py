"""Word2Vec: a word is known by the company it keeps (Mikolov et al. 2013a, arXiv:1301.3781; 2013b, arXiv:1310.4546).

Each word has a vector v and an output vector u. For a word w and a neighbour c in its window, with K words n drawn from
the noise count^(3/4), the loss is (2013b, equation 4)

    skip-gram   - log σ(v_c · u_w) - Σ log σ(-v_c · u_n)          the neighbour's vector must tell w from the noise
    CBOW        the same, with v_c replaced by the mean of v over all neighbours

and its gradient needs only g = label - σ(v · u):  u += rate g v,  v += rate g u.  The window reaches 1 to `window`
words to each side, drawn for each word; frequent words are left out at random (2013b, section 2.3).

What differs from word2vec.c: skip-gram draws the K noise words once for a word and shares them among all its neighbours
(Ji et al. 2016, arXiv:1604.04661), and all of these pairs are computed from the vectors as they stood before, and then
added: two small matrix products where the original has eighty vector operations on rows all over memory.

A slice of the text is first drawn (which words are kept, how far windows reach, which noise) and then learnt from; so
the naive reference below and the compiled loops can be given the very same draw.

Shapes: V words, D dimensions padded to a multiple of 16, n kept words of a slice, C neighbours, J = 1 + K targets.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor
from torch.nn import functional as F

from zhixing.vectors.simd import add, load, multiply_add, prefetch, scale_add, sigmoid, store, total, zero

Array = Any  # np.ndarray inside compiled code

AHEAD = 2  # words by which rows are asked for in advance


# ---- drawing: which words, which windows, which noise -----------------------------------------------------------


@njit(inline="always")
def _next(state: Any) -> Any:
    """SplitMix64 (Steele, Lea and Flood 2014): 64 random bits from a counter."""
    x = state
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit(nogil=True, cache=True)
def draw(
    ids: Array,
    start: int,
    stop: int,
    keep: Array,
    share: Array,
    other: Array,
    window: int,
    n_negative: int,
    per_neighbour: bool,
    seed: Any,
    words: Array,
    left: Array,
    right: Array,
    negatives: Array,
) -> int:
    """Draw the slice ids[start:stop]; returns n, how many words it keeps.

    keep (V,) int64: a word stays where a number below 2^32 is less. share, other (V,): the alias table of the noise.
    Filled: words (n,); the neighbours of i are words[left[i]:right[i]] but i itself; negatives (n, K), none of them the
    word itself, or, with per_neighbour, (n, 2 window K): K for each neighbour in turn, none of them that neighbour.
    All is a function of `seed` and `start`, not of threads or of what was drawn before.
    """
    golden = np.uint64(0x9E3779B97F4A7C15)
    low = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    state = _next(np.uint64(seed) + golden * np.uint64(start + 1))
    n = first = 0
    for place in range(start, stop + 1):
        word = ids[place] if place < stop else -1
        if word >= 0:
            state += golden
            bits = _next(state)
            if np.int64(bits >> half) < keep[word]:
                words[n] = word
                left[n] = 1 + np.int64(((bits & low) * np.uint64(window)) >> half)
                n += 1
            continue
        for i in range(first, n):
            reach = left[i]
            left[i] = max(first, i - reach)
            right[i] = min(n, i + reach + 1)
        first = n
    size = np.uint64(share.shape[0])
    for i in range(n):
        target = words[i]
        for p in range(left[i] if per_neighbour else i, right[i] if per_neighbour else i + 1):
            first = 0
            if per_neighbour:
                if p == i:
                    continue
                target = words[p]
                first = (p - left[i] - (p > i)) * n_negative
            for j in range(first, first + n_negative):
                while True:
                    state += golden
                    bits = _next(state)
                    row = np.int64(((bits >> half) * size) >> half)
                    if np.int64(bits & low) >= share[row]:
                        row = np.int64(other[row])
                    if row != target:
                        break
                negatives[i, j] = row
    return n


# ---- skip-gram --------------------------------------------------------------------------------------------------


@njit(nogil=True, cache=True)
def clear_row(target: Array, place: int) -> None:
    """target[place] = 0."""
    for k in range(0, target.shape[1], 16):
        store(target, place, k, zero())


@njit(nogil=True, cache=True)
def copy_row(source: Array, row: int, target: Array, place: int) -> None:
    """target[place] = source[row]."""
    for k in range(0, source.shape[1], 16):
        store(target, place, k, load(source, row, k))


@njit(nogil=True, cache=True)
def add_row(target: Array, row: int, number: Any, source: Array, place: int) -> None:
    """target[row] += number * source[place]."""
    for k in range(0, target.shape[1], 16):
        store(target, row, k, scale_add(number, load(source, place, k), load(target, row, k)))


@njit(nogil=True, cache=True)
def _products(x: Array, n_x: int, y: Array, n_y: int, rate: Any, g: Array) -> None:
    """g[c, j] = rate * (label - σ(x_c · y_j)), label 1 for j = 0. x may have any row after the last, y up to 3 m."""
    width = x.shape[1]
    for c in range(0, n_x, 2):
        for j in range(0, n_y, 3):
            a0, a1, a2, b0, b1, b2 = zero(), zero(), zero(), zero(), zero(), zero()
            for k in range(0, width, 16):
                p, q = load(x, c, k), load(x, c + 1, k)
                r = load(y, j, k)
                a0, b0 = multiply_add(p, r, a0), multiply_add(q, r, b0)
                s = load(y, j + 1, k)
                a1, b1 = multiply_add(p, s, a1), multiply_add(q, s, b1)
                t = load(y, j + 2, k)
                a2, b2 = multiply_add(p, t, a2), multiply_add(q, t, b2)
            g[c, j], g[c, j + 1], g[c, j + 2] = total(a0), total(a1), total(a2)
            g[c + 1, j], g[c + 1, j + 1], g[c + 1, j + 2] = total(b0), total(b1), total(b2)
    for c in range(n_x):
        for j in range(0, n_y, 16):
            store(g, c, j, scale_add(-rate, sigmoid(load(g, c, j)), zero()))
        g[c, 0] += rate


@njit(nogil=True, cache=True)
def skipgram(
    inputs: Array,
    targets: Array,
    left: Array,
    right: Array,
    negatives: Array,
    n: int,
    rate: Any,
    vectors: Array,
    outputs: Array,
    scratch: Array,
    g: Array,
) -> None:
    """Learn from a drawn slice: inputs (n,) rows of `vectors`, targets (n,) and negatives (n, K) rows of `outputs`.

    scratch (2 window + 1 + K + 4, D) and g (2 window + 2, padded(K + 3)) are the thread's own.
    """
    n_y = negatives.shape[1] + 1
    rows = (n_y + 2) // 3 * 3
    x, y = scratch[rows:], scratch[:rows]
    width = vectors.shape[1]
    for j in range(n_y, rows):
        clear_row(y, j)
    for i in range(n):
        if i + AHEAD < n:
            prefetch(outputs, targets[i + AHEAD])
            for j in range(n_y - 1):
                prefetch(outputs, negatives[i + AHEAD, j])
        n_x = 0
        for p in range(left[i], right[i]):
            if p != i:
                copy_row(vectors, inputs[p], x, n_x)
                n_x += 1
        if n_x == 0:
            continue
        copy_row(outputs, targets[i], y, 0)
        for j in range(1, n_y):
            copy_row(outputs, negatives[i, j - 1], y, j)
        _products(x, n_x, y, n_y, rate, g)
        for j in range(0, n_y, 3):  # u_j += Σ_c g[c, j] v_c
            for k in range(0, width, 16):
                a0, a1, a2 = zero(), zero(), zero()
                for c in range(n_x):
                    v = load(x, c, k)
                    a0 = scale_add(g[c, j], v, a0)
                    a1 = scale_add(g[c, j + 1], v, a1)
                    a2 = scale_add(g[c, j + 2], v, a2)
                row = targets[i] if j == 0 else negatives[i, j - 1]
                store(outputs, row, k, add(a0, load(outputs, row, k)))
                if j + 1 < n_y:
                    row = negatives[i, j]
                    store(outputs, row, k, add(a1, load(outputs, row, k)))
                if j + 2 < n_y:
                    row = negatives[i, j + 1]
                    store(outputs, row, k, add(a2, load(outputs, row, k)))
        c = 0
        for p in range(left[i], right[i]):  # v_c += Σ_j g[c, j] u_j, of the u_j before
            if p == i:
                continue
            row = inputs[p]
            for k in range(0, width, 16):
                a = load(vectors, row, k)
                for j in range(n_y):
                    a = scale_add(g[c, j], load(y, j, k), a)
                store(vectors, row, k, a)
            c += 1


# ---- CBOW -------------------------------------------------------------------------------------------------------


@njit(nogil=True, cache=True)
def products_of_one(x: Array, y: Array, n_y: int, n_true: int, rate: Any, g: Array) -> None:
    """g[0, j] = rate * (label - σ(x_0 · y_j)), label 1 for j < n_true. y has four rows more than n_y."""
    for j in range(0, n_y, 4):
        a0, a1, a2, a3 = zero(), zero(), zero(), zero()
        for k in range(0, x.shape[1], 16):
            p = load(x, 0, k)
            a0 = multiply_add(p, load(y, j, k), a0)
            a1 = multiply_add(p, load(y, j + 1, k), a1)
            a2 = multiply_add(p, load(y, j + 2, k), a2)
            a3 = multiply_add(p, load(y, j + 3, k), a3)
        g[0, j], g[0, j + 1], g[0, j + 2], g[0, j + 3] = total(a0), total(a1), total(a2), total(a3)
    for j in range(0, n_y, 16):
        store(g, 0, j, scale_add(-rate, sigmoid(load(g, 0, j)), zero()))
    for j in range(n_true):
        g[0, j] += rate


@njit(nogil=True, cache=True)
def cbow(
    inputs: Array,
    targets: Array,
    left: Array,
    right: Array,
    negatives: Array,
    n: int,
    rate: Any,
    vectors: Array,
    outputs: Array,
    scratch: Array,
    g: Array,
) -> None:
    """`skipgram`'s arguments; each neighbour gets the whole error and not its share of it, as in word2vec.c.

    That is C times the gradient of v (the mean divides it by C); those who divide need a higher rate (Irsoy et al.
    2021, arXiv:2012.15332).
    """
    n_y = negatives.shape[1] + 1
    mean, error, y = scratch[:1], scratch[1:2], scratch[2:]
    width = vectors.shape[1]
    for i in range(n):
        if i + AHEAD < n:
            prefetch(outputs, targets[i + AHEAD])
            for j in range(n_y - 1):
                prefetch(outputs, negatives[i + AHEAD, j])
        count = right[i] - left[i] - 1
        if count < 1:
            continue
        clear_row(mean, 0)
        share = np.float32(1.0 / count)
        for p in range(left[i], right[i]):
            if p != i:
                add_row(mean, 0, share, vectors, inputs[p])
        copy_row(outputs, targets[i], y, 0)
        for j in range(1, n_y):
            copy_row(outputs, negatives[i, j - 1], y, j)
        products_of_one(mean, y, n_y, 1, rate, g)
        for k in range(0, width, 16):  # of the u_j before
            a = zero()
            for j in range(n_y):
                a = scale_add(g[0, j], load(y, j, k), a)
            store(error, 0, k, a)
        add_row(outputs, targets[i], g[0, 0], mean, 0)
        for j in range(1, n_y):
            add_row(outputs, negatives[i, j - 1], g[0, j], mean, 0)
        for p in range(left[i], right[i]):
            if p != i:
                add_row(vectors, inputs[p], np.float32(1), error, 0)


# ---- the naive reference ----------------------------------------------------------------------------------------


def skipgram_loss(v: Tensor, u: Tensor) -> Tensor:
    """Equation 4 of Mikolov et al. 2013b, summed over the neighbours v (C, D); u (J, D): the word, then the noise."""
    scores = v @ u.T  # (C, J)
    return -F.logsigmoid(scores[:, 0]).sum() - F.logsigmoid(-scores[:, 1:]).sum()


def cbow_loss(v: Tensor, u: Tensor) -> Tensor:
    """The same for the mean of the neighbours."""
    return skipgram_loss(v.mean(0, keepdim=True), u)


def skipgram_reference(
    vectors: Tensor, outputs: Tensor, word: int, neighbours: list[int], negatives: list[int], rate: float
) -> None:
    """One update as the formula has it, in place: g = label - σ(v · u), u += rate g v, v += rate g u."""
    rows = torch.tensor([word, *negatives])
    v, u = vectors[neighbours], outputs[rows]  # (C, D), (J, D)
    label = (torch.arange(len(rows)) == 0).to(v)
    g = rate * (label - torch.sigmoid(v @ u.T))  # (C, J)
    vectors.index_add_(0, torch.tensor(neighbours), g @ u)
    outputs.index_add_(0, rows, g.T @ v)


def cbow_reference(
    vectors: Tensor, outputs: Tensor, word: int, neighbours: list[int], negatives: list[int], rate: float
) -> None:
    """One update of CBOW, in place; the whole error goes to each neighbour."""
    rows = torch.tensor([word, *negatives])
    mean, u = vectors[neighbours].mean(0), outputs[rows]  # (D,), (J, D)
    label = (torch.arange(len(rows)) == 0).to(mean)
    g = rate * (label - torch.sigmoid(u @ mean))  # (J,)
    vectors.index_add_(0, torch.tensor(neighbours), (g @ u).expand(len(neighbours), -1))
    outputs.index_add_(0, rows, g[:, None] * mean)
