"""Texts of different lengths in batches of about equal ones, and the batch at any place of the training.

Padding costs as much as text, so a batch should hold texts of one length; but batches sorted by length would come in
no random order. So an epoch is shuffled, cut into pools of 50 batches, each pool sorted by length and cut into batches,
and the batches are shuffled again. All of it follows from (seed, epoch), so resuming needs one number (docs/design.md).

    lengths, shuffled      5 1 9 2 | 7 3 8 1        pools of 4, batches of 2
    sorted in the pools    1 2 | 5 9   1 3 | 7 8
    batches, shuffled      7 8   1 2   1 3   5 9

Where the texts are no multiple of the batch, the last batch of an epoch is filled up with the first texts of the next,
and the next epoch's batches are cut after these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zhixing.tokens.order import permute_array

POOL = 50  # batches that are sorted together


@dataclass(frozen=True)
class LabelledBatch:
    """ids right-padded, where the real ones are, and what each text should give."""

    inputs: Tensor  # (B, T) int64
    mask: Tensor  # (B, T) bool, True = a real token
    targets: Tensor  # (B,) int64, (B, C) float or (B,) float


class BucketedTexts:
    """`rows` of ids with `targets`, one a row (a tensor whose first axis is the texts')."""

    def __init__(self, rows: Sequence[Sequence[int]], targets: Tensor, pad_id: int, batch_size: int, seed: int) -> None:
        assert len(rows) == len(targets) > 0
        self.rows, self.targets, self.pad_id = rows, targets, pad_id
        self.batch_size, self.seed = batch_size, seed
        self._lengths = np.array([len(row) for row in rows], np.int64)
        self._sorted = np.argsort(self._lengths, kind="stable")
        self._orders: dict[int, NDArray[np.int64]] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, first: int, count: int) -> LabelledBatch:
        """Global samples first .. first + count - 1, epochs without end."""
        epochs, places = np.divmod(np.arange(first, first + count), len(self.rows))
        return self._cut(np.array([self._order(e)[p] for e, p in zip(epochs.tolist(), places.tolist(), strict=True)]))

    def sequential(self, first: int, count: int) -> LabelledBatch:
        """Texts first .. first + count - 1 in the order of their length: for evaluation."""
        return self._cut(self._sorted[first : first + count])

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """The places of an epoch's texts (N,)."""
        if epoch not in self._orders:
            n, size = len(self.rows), self.batch_size
            shuffled = permute_array(np.arange(n), n, self.seed, epoch)
            lead = min(-epoch * n % size, n)  # they fill up the last batch of the epoch before
            ahead, shuffled = shuffled[:lead], shuffled[lead:]
            pools = [shuffled[i : i + POOL * size] for i in range(0, n - lead, POOL * size)]
            by_length = [pool[np.argsort(self._lengths[pool], kind="stable")] for pool in pools]
            flat = np.concatenate([*by_length, ahead[:0]])
            whole = (n - lead) // size  # the odd batch stays last
            places = permute_array(np.arange(whole), whole, self.seed + 1, epoch) if whole else np.arange(0)
            order = [flat[place * size : (place + 1) * size] for place in places.tolist()]
            self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1}  # two epochs at most
            self._orders[epoch] = np.concatenate([ahead, *order, flat[whole * size :]])
        return self._orders[epoch]

    def _cut(self, places: NDArray[np.int64]) -> LabelledBatch:
        rows = [self.rows[place] for place in places.tolist()]
        longest = max(1, *(len(row) for row in rows))
        inputs = torch.full((len(rows), longest), self.pad_id, dtype=torch.int64)  # (B, T)
        mask = torch.zeros(len(rows), longest, dtype=torch.bool)
        for number, row in enumerate(rows):
            inputs[number, : len(row)] = torch.tensor(row, dtype=torch.int64)
            mask[number, : len(row)] = True
        return LabelledBatch(inputs, mask, self.targets[torch.from_numpy(places)])
