"""Pairs of token rows in batches of about equally long ones, as many as a budget of tokens allows.

A batch costs what it is padded to: rows x (longest source + longest target). So pairs of nearly the same lengths stand
beside each other, and a batch takes short pairs by the hundred and long ones by the handful. Lengths are rounded up to
cells, and the cells stand in a fixed order; which pair stands where inside its cell is drawn anew each epoch. So the
cuts between batches are the same in all epochs and an epoch has a number of batches that is known before:

    pairs (source, target length), cells of 4      a (3, 4)   b (4, 2)   c (7, 8)   d (2, 3)   e (8, 5)
    in the order of their cells                    a b d (4, 4) | c e (8, 8)           budget 32: 8 a pair, 16 a pair
    batches                                        [a b d] [c e];  another epoch: [d a b] [e c], in another order

All of it follows from (seed, epoch), so resuming needs one number (docs/design.md). Here a *sample* of the loop is a
whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zhixing.tokens.batches import IGNORED
from zhixing.tokens.order import permute_array

CELL = 4  # tokens: lengths are rounded up to a multiple of it


@dataclass(frozen=True)
class PairBatch:
    """What is read, and what is written after it: `targets` one place behind `inputs`."""

    sources: Tensor  # (B, S) int64, right-padded
    source_lengths: Tensor  # (B,) int64
    inputs: Tensor  # (B, T) int64: the start id, then what is written
    targets: Tensor  # (B, T) int64: what is written and its end; -100 where there is none


class TokenBudget:
    """The batches of pairs with these lengths (N, 2), and their order in every epoch; `len()` is their number.

    A pair that alone is longer than `budget` tokens makes a batch of its own.
    """

    def __init__(self, lengths: NDArray[np.int64], budget: int, seed: int) -> None:
        assert lengths.ndim == 2 and lengths.shape[1] == 2 and len(lengths) and lengths.min() > 0
        self.lengths, self.seed = lengths, seed
        cells = -(-lengths // CELL)  # (N, 2)
        self._by_cell = np.lexsort((np.arange(len(cells)), cells[:, 1], cells[:, 0]))  # (N,)
        ordered = cells[self._by_cell]
        news = np.flatnonzero((np.diff(ordered, axis=0) != 0).any(axis=1)) + 1
        self._groups = np.split(np.arange(len(cells)), news)  # places of each cell in that order
        self._cuts = _cuts(ordered * CELL, budget)
        self._orders: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}

    def __len__(self) -> int:
        return len(self._cuts) - 1

    @property
    def padding(self) -> float:
        """The share of the places of an epoch's batches that hold no token."""
        places = 0
        for number in range(len(self)):
            pairs = self.in_order(number, 1)
            places += len(pairs) * int(self.lengths[pairs].max(axis=0).sum())
        return 1 - int(self.lengths.sum()) / places

    def batch(self, number: int) -> tuple[int, NDArray[np.int64]]:
        """The epoch and the pairs of a global batch, epochs without end."""
        epoch, place = divmod(number, len(self))
        batches, order = self._order(epoch)
        return epoch, order[self._cuts[batches[place]] : self._cuts[batches[place] + 1]]

    def in_order(self, first: int, count: int) -> NDArray[np.int64]:
        """The pairs of batches first .. first + count - 1 in the order of length: for evaluation."""
        return self._by_cell[self._cuts[first] : self._cuts[first + count]]

    def _order(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The batches of an epoch in their order, and the pairs (N,) in the order of cells."""
        if epoch not in self._orders:
            n = len(self._by_cell)
            rank = permute_array(np.arange(n), n, self.seed, epoch)
            order = np.concatenate([self._by_cell[g[np.argsort(rank[g])]] for g in self._groups])
            batches = permute_array(np.arange(len(self)), len(self), self.seed + 1, epoch)
            self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1}  # two epochs at most
            self._orders[epoch] = batches, order
        return self._orders[epoch]


class PairedTexts:
    """Rows of ids `sources` and `targets`, each with the end-of-text id behind; `len()` is the number of batches."""

    def __init__(
        self,
        sources: Sequence[Sequence[int]],
        targets: Sequence[Sequence[int]],
        *,
        start_id: int,
        pad_id: int,
        budget: int,
        seed: int,
    ) -> None:
        assert len(sources) == len(targets) > 0
        self.sources, self.targets = sources, targets
        self.start_id, self.pad_id = start_id, pad_id
        lengths = np.array([[len(s), len(t)] for s, t in zip(sources, targets, strict=True)], np.int64)  # (N, 2)
        self.budget = TokenBudget(lengths, budget, seed)
        self.n_tokens, self.n_targets = int(lengths.sum()), int(lengths[:, 1].sum())  # an epoch; of both sides, written

    def __len__(self) -> int:
        return len(self.budget)

    def batch(self, first: int, count: int) -> PairBatch:
        """Global batches first .. first + count - 1 as one."""
        return self._cut(np.concatenate([self.budget.batch(number)[1] for number in range(first, first + count)]))

    def sequential(self, first: int, count: int) -> PairBatch:
        """Batches first .. first + count - 1 in the order of length: for evaluation."""
        return self._cut(self.budget.in_order(first, count))

    def _cut(self, pairs: NDArray[np.int64]) -> PairBatch:
        sources, targets = [self.sources[p] for p in pairs.tolist()], [self.targets[p] for p in pairs.tolist()]
        return pair_batch(sources, targets, self.start_id, self.pad_id)


def pair_batch(
    sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], start_id: int, pad_id: int
) -> PairBatch:
    """Rows of ids as tensors: what is written is seen one place later, behind the start id."""
    inputs = [[start_id, *row[:-1]] for row in targets]
    lengths = torch.tensor([len(row) for row in sources])
    return PairBatch(padded(sources, pad_id), lengths, padded(inputs, pad_id), padded(targets, IGNORED))


def padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """Rows of ids as one tensor (B, longest) int64, `fill` behind the shorter ones."""
    longest = max(map(len, rows))
    table = np.full((len(rows), longest), fill, np.int64)
    for number, row in enumerate(rows):
        table[number, : len(row)] = row
    return torch.from_numpy(table)


def _cuts(lengths: NDArray[np.int64], budget: int) -> list[int]:
    """Where batches begin, and the end: lengths (N, 2) in order; each batch as long as its padded size stays within."""
    cuts = [0]
    longest = np.zeros(2, np.int64)
    for place, pair in enumerate(lengths):
        longest = np.maximum(longest, pair)
        if place > cuts[-1] and (place + 1 - cuts[-1]) * int(longest.sum()) > budget:
            cuts.append(place)
            longest = pair
    return [*cuts, len(lengths)]
