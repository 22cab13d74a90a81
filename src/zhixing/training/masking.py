"""Masked language modelling: hide some words, ask for them (Devlin et al. 2019, section 3.1 and appendix A.1).

Of a row's n real tokens round(0.15 n), at least one, are chosen. A chosen token's place is the target, and in the input

    80 %   [MASK]           the task itself
    10 %   a random token   else a place that shows a word would be trusted blindly
    10 %   as it was        else a shown word would never be trusted

    the cat sat on the mat  ->  inputs the cat [MASK] on the mat   targets . . sat . . .      (. = -100)

Which ones is a hash of (seed, global sample index, place), so it is new in each epoch (Liu et al. 2019, section 4.1),
the same on every machine, at any batch size and after a resume, and its state is one number.

Shapes: B rows, T tokens, N places chosen in the whole batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from zhixing.errors import InputError
from zhixing.tokens.order import noise, permute_array
from zhixing.tokens.shards import Shards
from zhixing.tokens.tokenizer import Tokenizer
from zhixing.training.objectives import IGNORED, Objective, linear_cross_entropy

CHOSEN, SHOWN_AS_MASK, SHOWN_AS_RANDOM = 0.15, 0.8, 0.1
HELD_OUT = 1 << 62  # what is added to the index of a held-out sample, so that its noise is no training sample's


@dataclass(frozen=True)
class MaskedBatch:
    """inputs (B, T) int64 with places hidden, targets (B, T) int64 (-100 where nothing is asked), mask (B, T) bool."""

    inputs: Tensor
    targets: Tensor
    mask: Tensor


def hide(
    ids: NDArray[np.int64],
    real: NDArray[np.bool_],
    samples: NDArray[np.int64],
    *,
    seed: int,
    vocab_size: int,
    mask_id: int,
    share: float = CHOSEN,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """ids (B, T) -> inputs, targets (B, T). `real` (B, T): what may be chosen, so no special token and no padding.

    `samples` (B,) are the global indices of the rows. A row with nothing real has no target.
    """
    rows, length = ids.shape
    rank_noise, kind_noise, token_noise = (noise(seed, stream, samples, length) for stream in range(3))  # (B, T)
    n_real = real.sum(axis=1)  # (B,)
    n_chosen = np.minimum(np.maximum(np.rint(share * n_real), 1), n_real)  # (B,)
    order = np.argsort(np.where(real, rank_noise, 2.0), axis=1, kind="stable")  # the real ones first; noise is below 1
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.broadcast_to(np.arange(length), (rows, length)), axis=1)
    chosen = rank < n_chosen[:, None]  # (B, T)
    random_ids = (token_noise * vocab_size).astype(np.int64)
    shown = np.where(kind_noise < SHOWN_AS_MASK + SHOWN_AS_RANDOM, random_ids, ids)
    shown = np.where(kind_noise < SHOWN_AS_MASK, mask_id, shown)
    return np.where(chosen, shown, ids), np.where(chosen, ids, IGNORED)


class MaskedSequences:
    """Windows over the stream of tokens for masked training, in an order that is a pure function of (seed, index).

    A row is [CLS] window [SEP]; windows of length - 2 tokens follow one another through all documents, which [SEP] ends
    (the "full sentences" of Liu et al. 2019, section 4.2). The last one is padded.

    stream    a b c ∎ d e ∎     length 5      ->  [CLS] a b c [SEP]   [CLS] ∎ d e [SEP]   [CLS] ∎ [SEP] . .
    """

    def __init__(self, shards: Shards, tokenizer: Tokenizer, length: int, seed: int, share: float = CHOSEN) -> None:
        if tokenizer.cls_id is None or tokenizer.sep_id is None or tokenizer.mask_id is None:
            raise InputError(
                f"a {tokenizer.kind} tokenizer has no [MASK]",
                why="a masked model hides words behind it",
                mend='set tokenizer.kind = "wordpiece"',
            )
        if length < 3:
            raise InputError(f"a sequence of {length} tokens cannot be", mend="take a length of at least 3")
        if not 0 < share < 1:
            raise InputError(f"a share of {share} cannot be hidden", mend="take one above 0 and below 1, as 0.15")
        self.shards, self.length, self.seed, self.share = shards, length, seed, share
        self.cls_id, self.sep_id, self.mask_id = tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id
        self.vocab_size, self.pad_id = tokenizer.vocab_size, tokenizer.pad_id
        self._size = -(-shards.n_tokens // (length - 2))
        self.n_targets = round(share * shards.n_tokens)  # an epoch, nearly

    def __len__(self) -> int:
        return self._size

    def batch(self, first: int, count: int) -> MaskedBatch:
        """Global samples first .. first + count - 1: shuffled within each epoch, epochs without end."""
        if first < 0 or count < 1:
            raise ValueError(f"expected first >= 0 and count >= 1, got {first} and {count}")
        samples = np.arange(first, first + count, dtype=np.int64)
        epochs, places = np.divmod(samples, self._size)
        windows = np.empty(count, np.int64)
        for epoch in np.unique(epochs):
            inside = epochs == epoch
            windows[inside] = permute_array(places[inside], self._size, self.seed, int(epoch))
        return self._cut(windows, samples)

    def sequential(self, first: int, count: int) -> MaskedBatch:
        """Windows first .. first + count - 1 in the order of the text, fewer at the end; the same noise each time."""
        if not (0 <= first < self._size and count >= 1):
            raise ValueError(f"expected windows within range({self._size}), got {count} from {first}")
        windows = np.arange(first, min(first + count, self._size), dtype=np.int64)
        return self._cut(windows, windows + HELD_OUT)

    def _cut(self, windows: NDArray[np.int64], samples: NDArray[np.int64]) -> MaskedBatch:
        ids = np.full((len(windows), self.length), self.pad_id, np.int64)  # (B, T)
        n_inside = self.length - 2
        ids[:, 0] = self.cls_id
        ends = np.empty(len(windows), np.int64)
        for number, window in enumerate(windows.tolist()):
            start = window * n_inside
            tokens = self.shards.read(start, min(n_inside, self.shards.n_tokens - start))
            ids[number, 1 : 1 + len(tokens)] = tokens
            ids[number, 1 + len(tokens)] = self.sep_id
            ends[number] = 2 + len(tokens)
        mask = np.arange(self.length) < ends[:, None]  # (B, T)
        special = (ids == self.cls_id) | (ids == self.sep_id)
        inputs, targets = hide(
            ids, mask & ~special, samples,
            seed=self.seed, vocab_size=self.vocab_size, mask_id=self.mask_id, share=self.share,
        )  # fmt: skip
        longest = int(ends.max())
        return MaskedBatch(*(torch.from_numpy(np.ascontiguousarray(a[:, :longest])) for a in (inputs, targets, mask)))


def masked_tokens(label_smoothing: float = 0.0) -> Objective:
    """Say which words were hidden: the sum of -log p(x_t | the rest) over the chosen places.

    Only those go through the head, so it costs a seventh of what all places would.
    """

    def objective(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        hidden = model(batch.inputs, batch.mask)  # (B, T, D)
        inner: Any = getattr(model, "module", model)  # DDP keeps the model it wraps as .module
        chosen = batch.targets != IGNORED  # (B, T)
        asked = inner.transformed(hidden[chosen])  # (N, D)
        loss = linear_cross_entropy(asked, inner.head(), batch.targets[chosen], label_smoothing, bias=inner.bias)
        return loss, chosen.sum()

    return objective
