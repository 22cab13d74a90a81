"""Pairs of rows of ids, of which the first is preferred to the second, in batches of about equally long ones.

A row is a prompt with one of two replies; the reply's ids are learnt, all else is read only (turns.py). A batch of B
pairs is 2B rows, those preferred first:

    inputs   prompt a, reply a+       tokens   . . a+        . = -100
             prompt b, reply b+                . . b+
             prompt a, reply a-                . . a-
             prompt b, reply b-                . . b-        targets 0 0: of each pair, which is preferred
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, from_numpy, int64, zeros

from zhixing.tokens.batches import IGNORED
from zhixing.tokens.paired import TokenBudget, padded

LearntRow = tuple[Sequence[int], Sequence[bool]]  # ids, and which of them are learnt


@dataclass(frozen=True)
class PreferredBatch:
    """Pairs of rows; `targets` has one for each pair, so that a loss is counted in pairs."""

    inputs: Tensor  # (2B, T) int64
    tokens: Tensor  # (2B, T) int64: the ids one place later; -100 where nothing is learnt
    reference: Tensor  # (B, 2) float64: log p of the reply preferred and of the other, by the reference
    targets: Tensor  # (B,) int64: 0, the first of the two


class PreferredRows:
    """Pairs of rows; `len()` is the number of batches of an epoch. `reference` (N, 2), log p of both replies of each
    pair by the reference, is set when it has been computed."""

    def __init__(
        self,
        chosen: Sequence[LearntRow],
        rejected: Sequence[LearntRow],
        *,
        places: Sequence[int],
        pad_id: int,
        budget: int,
        seed: int,
    ) -> None:
        assert len(chosen) == len(rejected) == len(places) > 0
        self.sides = chosen, rejected
        self.places, self.pad_id = places, pad_id  # where each pair stands in what it was made of
        self.reference: NDArray[np.float64] | None = None
        each = np.array([[len(c[0]) - 1, len(r[0]) - 1] for c, r in zip(chosen, rejected, strict=True)], np.int64)
        longer = each.max(axis=1, keepdims=True)  # both rows of a pair are padded to it
        self.budget = TokenBudget(np.repeat(longer, 2, axis=1), budget, seed)
        self.n_tokens = int(each.sum())  # an epoch
        self.n_learnt = sum(sum(flags[1:]) for side in self.sides for _, flags in side)

    def __len__(self) -> int:
        return len(self.budget)

    @property
    def n_pairs(self) -> int:
        return len(self.places)

    def batch(self, first: int, count: int) -> PreferredBatch:
        """Global batches first .. first + count - 1 as one."""
        return self._cut(np.concatenate([self.budget.batch(number)[1] for number in range(first, first + count)]))

    def sequential(self, first: int, count: int) -> PreferredBatch:
        """Batches first .. first + count - 1 in the order of length: for evaluation."""
        return self._cut(self.budget.in_order(first, count))

    def _cut(self, places: NDArray[np.int64]) -> PreferredBatch:
        inputs, tokens = [], []
        for side in self.sides:
            for place in places.tolist():
                ids, flags = side[place]
                inputs.append(ids[:-1])
                tokens.append([i if flag else IGNORED for i, flag in zip(ids[1:], flags[1:], strict=True)])
        reference = zeros(len(places), 2).double() if self.reference is None else from_numpy(self.reference[places])
        targets = zeros(len(places), dtype=int64)
        return PreferredBatch(padded(inputs, self.pad_id), padded(tokens, IGNORED), reference, targets)
