"""FastText: a word is also its letters (Bojanowski et al. 2017, arXiv:1607.04606).

A word's vector is the mean of one vector of its own and one of each of its character n-grams, hashed into `buckets`
rows; so forms of a word share what is learnt, and a word never seen has a vector too. For a word w and a neighbour c,
with K words n drawn from the noise, the loss is that of skip-gram

    - log σ(h_w · u_c) - Σ log σ(-h_w · u_n)        h_w = mean of w's rows (the paper has their sum)

Each row gets the whole gradient of h_w, not its share of the mean, as in fastText's program.

What differs from that program, and why it is several times faster: a word's twenty rows are summed once for all its
neighbours and changed once, where fastText does both for each neighbour. Each pair has noise of its own, as there.
Only rows that the text's own words hash to are trained, and only they take memory: the others would stay what chance
made them, so they are left zero. (In fastText an unseen word's untrained n-grams add noise.)

The n-grams and their hash are in `keyed.py`, which needs them for words it has not seen.

Shapes: V words, R rows of inputs, D dimensions padded to a multiple of 16, C neighbours, K negatives.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from zhixing.vectors.simd import load, prefetch, scale_add, store, zero
from zhixing.vectors.word2vec import add_row, clear_row, copy_row, products_of_one

Array = Any  # np.ndarray inside compiled code


def word_parts(
    n_words: int, ngrams: NDArray[np.int32], offsets: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    """Rows of inputs of each word: parts (P,), where they begin (V + 1,), and the bucket of each row after the V-th.

    `ngrams` and `offsets` are those of keyed.subword_ids. Row w < V is the word's own; buckets that occur get the rows
    from V on, by rising number.

    Two words with buckets [7, 3] and [7]:  parts 0 3 2 1 3, offsets 0 3 5, buckets 3 7.
    """
    used, rows = np.unique(ngrams, return_inverse=True)
    begin = offsets + np.arange(n_words + 1)
    parts = np.empty(len(ngrams) + n_words, np.int32)
    own = np.zeros(len(parts), bool)
    own[begin[:-1]] = True
    parts[own] = np.arange(n_words)
    parts[~own] = rows + n_words
    return parts, begin, used.astype(np.int64)


@njit(nogil=True, cache=True)
def skipgram_parts(
    inputs: Array,
    offsets: Array,
    parts: Array,
    targets: Array,
    left: Array,
    right: Array,
    negatives: Array,
    n_negative: int,
    n: int,
    rate: Any,
    vectors: Array,
    outputs: Array,
    scratch: Array,
    g: Array,
) -> None:
    """Learn from a drawn slice. inputs (n,): word i has the rows parts[offsets[w]:offsets[w + 1]] of `vectors`, w =
    inputs[i]; targets (n,) and negatives (n, 2 window K, drawn per_neighbour) are rows of `outputs`.

    scratch (2 + 2 window (1 + K) + 4, D) and g (1, padded(2 window (1 + K) + 4)) are the thread's own.
    """
    mean, error, y = scratch[:1], scratch[1:2], scratch[2:]
    width = vectors.shape[1]
    for i in range(n):
        if i + 1 < n:
            word = inputs[i + 1]
            for p in range(offsets[word], offsets[word + 1]):
                prefetch(vectors, parts[p])
        n_true = right[i] - left[i] - 1
        if n_true < 1:
            continue
        n_y = 0
        for p in range(left[i], right[i]):
            if p != i:
                copy_row(outputs, targets[p], y, n_y)
                n_y += 1
        for j in range(n_true * n_negative):
            copy_row(outputs, negatives[i, j], y, n_y)
            n_y += 1
        first, last = offsets[inputs[i]], offsets[inputs[i] + 1]
        clear_row(mean, 0)
        for p in range(first, last):
            add_row(mean, 0, np.float32(1), vectors, parts[p])
        share = np.float32(1.0 / (last - first))
        for k in range(0, width, 16):
            store(mean, 0, k, scale_add(share, load(mean, 0, k), zero()))
        products_of_one(mean, y, n_y, n_true, rate, g)
        for k in range(0, width, 16):  # of the u_j before
            a = zero()
            for j in range(n_y):
                a = scale_add(g[0, j], load(y, j, k), a)
            store(error, 0, k, a)
        n_y = 0
        for p in range(left[i], right[i]):
            if p != i:
                add_row(outputs, targets[p], g[0, n_y], mean, 0)
                n_y += 1
        for j in range(n_true * n_negative):
            add_row(outputs, negatives[i, j], g[0, n_y], mean, 0)
            n_y += 1
        for p in range(first, last):
            add_row(vectors, parts[p], np.float32(1), error, 0)


@njit(nogil=True, cache=True)
def mean_of_parts(vectors: Array, offsets: Array, parts: Array, means: Array) -> None:
    """means[w] = mean of the rows of word w. (V, D)"""
    for word in range(len(offsets) - 1):
        first, last = offsets[word], offsets[word + 1]
        for p in range(first, last):
            add_row(means, word, np.float32(1.0 / (last - first)), vectors, parts[p])


# ---- the naive reference ----------------------------------------------------------------------------------------


def skipgram_parts_loss(rows: Tensor, u: Tensor, n_true: int) -> Tensor:
    """The loss of a word of rows (P, D) with all its neighbours: u (C + C K, D), the first n_true = C of them true."""
    scores = u @ rows.mean(0)  # (C + C K,)
    return -F.logsigmoid(scores[:n_true]).sum() - F.logsigmoid(-scores[n_true:]).sum()


def skipgram_parts_reference(
    vectors: Tensor, outputs: Tensor, parts: list[int], neighbours: list[int], negatives: list[int], rate: float
) -> None:
    """One update as the formula has it, in place: g = label - σ(h · u), u += rate g h, each row += rate Σ g u."""
    targets = torch.tensor([*neighbours, *negatives])
    h, u = vectors[parts].mean(0), outputs[targets]  # (D,), (C + C K, D)
    label = (torch.arange(len(targets)) < len(neighbours)).to(h)
    g = rate * (label - torch.sigmoid(u @ h))
    vectors.index_add_(0, torch.tensor(parts), (g @ u).expand(len(parts), -1))
    outputs.index_add_(0, targets, g[:, None] * h)
