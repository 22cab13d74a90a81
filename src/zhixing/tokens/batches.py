"""Sequences of equal length cut from the stream of tokens, and the batch at any place of the training.

The shards are one long stream: document, end of document, document, ... Put one more end-of-document token in
front (so that the first token, too, has something to be predicted from) and cut windows of length + 1 that overlap
by one token: inputs are the first `length` of them, targets the last `length`.

    stream      a b c ∎ d e ∎          length 3          ∎ = eos
    window 0    ∎ a b c            inputs ∎ a b   targets a b c
    window 1          c ∎ d e      inputs c ∎ d   targets ∎ d e
    window 2                e ∎    inputs e . .   targets ∎ -100 -100     (the last one is padded)

So every token of the stream is a target exactly once an epoch, none is dropped, and a stream shorter than one
window works as well. Documents are not masked from one another: a window may look back over a document's end.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from zhixing.errors import InputError
from zhixing.tokens.order import permute_array
from zhixing.tokens.shards import Shards

IGNORED = -100  # the target that is none; torch's cross_entropy skips it by default


@dataclass(frozen=True)
class Batch:
    """One batch of next-token prediction."""

    inputs: torch.Tensor  # (B, T) int64 token ids
    targets: torch.Tensor  # (B, T) int64: the id that follows, -100 where there is none


class PackedSequences:
    """Windows over `shards`, in an order that is a pure function of (seed, global sample index).

    `length` is T, the number of inputs (and targets) in a row; `len()` is the number of windows, an epoch.
    """

    def __init__(self, shards: Shards, length: int, seed: int) -> None:
        if length < 1:
            raise InputError(f"a sequence of {length} tokens cannot be", mend="take a length of at least 1")
        self.shards, self.length, self.seed = shards, length, seed
        self._size = -(-shards.n_tokens // length)
        self._sizes = shards.token_sizes  # (V,) float64: UTF-8 bytes a token stands for
        self.n_targets = shards.n_tokens  # an epoch
        self.n_bytes = shards.n_bytes  # UTF-8 bytes of text that these targets stand for

    def __len__(self) -> int:
        return self._size

    def batch(self, first: int, count: int) -> Batch:
        """Global samples first .. first + count - 1: shuffled within each epoch, epochs without end.

        Sample g is the window permute(g mod len, len, seed, g div len). Rank r of w takes its slice of the indices
        of the step, so the batches of w processes together are those of one.
        """
        if first < 0 or count < 1:
            raise ValueError(f"expected first >= 0 and count >= 1, got {first} and {count}")
        samples = np.arange(first, first + count, dtype=np.int64)
        epochs, places = np.divmod(samples, self._size)
        windows = np.empty(count, np.int64)
        for epoch in np.unique(epochs):
            inside = epochs == epoch
            windows[inside] = permute_array(places[inside], self._size, self.seed, int(epoch))
        return self._cut(windows)

    def sequential(self, first: int, count: int) -> Batch:
        """Windows first .. first + count - 1 in the order of the text, fewer at the end: for evaluation."""
        if not (0 <= first < self._size and count >= 1):
            raise ValueError(f"expected windows within range({self._size}), got {count} from {first}")
        return self._cut(np.arange(first, min(first + count, self._size), dtype=np.int64))

    def sequential_bytes(self, first: int, count: int) -> NDArray[np.int64]:
        """UTF-8 bytes of text that the targets of each of these windows stand for, an end of document for 0.

        Over all windows they sum to `n_bytes`, so bits per byte = nats / ln 2 / this. Where a vocabulary has
        unknown words or characters, each counts as their mean size, and the sum is near `n_bytes`.
        """
        targets = self.sequential(first, count).targets.numpy()  # (B, T)
        sizes = np.where(targets == IGNORED, 0.0, self._sizes[np.maximum(targets, 0)])  # (B, T)
        rounded: NDArray[np.int64] = np.rint(sizes.sum(axis=1)).astype(np.int64)
        return rounded

    def _cut(self, windows: NDArray[np.int64]) -> Batch:
        T = self.length
        rows = np.full((len(windows), T + 1), IGNORED, np.int64)  # (B, T + 1)
        for row, window in zip(rows, windows.tolist(), strict=True):
            start = window * T - 1  # -1: the end-of-document token put in front of the stream
            stop = min(start + T + 1, self.shards.n_tokens)
            if start < 0:
                row[0] = self.shards.eos_id
            tokens = self.shards.read(max(start, 0), stop - max(start, 0))
            row[stop - start - len(tokens) : stop - start] = tokens
        targets = rows[:, 1:].copy()  # (B, T)
        inputs = np.where(targets == IGNORED, self.shards.pad_id, rows[:, :-1])  # (B, T)
        return Batch(torch.from_numpy(inputs), torch.from_numpy(targets))
