"""Conversations as rows of ids, of which only some are learnt, in batches of about equally long ones.

A row is a conversation; its targets are the ids of the replies and what ends each (`learnt`), all else is read only:

    ids       U h i E A h o E          learnt    . . . . . h o E         U, A: whose turn; E: the end of a turn
    inputs    U h i E A h o            targets   . . . . h o E           . = -100

Rows are not packed into one another: a row of ids next to another would be read as its history. A batch takes as many
rows of nearly one length as a budget of tokens allows, as tokens/paired.py has it; a *sample* of the loop is a batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from zhixing.tokens.batches import IGNORED, Batch
from zhixing.tokens.paired import TokenBudget, padded


class LearntRows:
    """Rows of ids with what is learnt of each; `len()` is the number of batches of an epoch."""

    def __init__(
        self,
        rows: Sequence[Sequence[int]],
        learnt: Sequence[Sequence[bool]],
        *,
        pad_id: int,
        budget: int,
        seed: int,
    ) -> None:
        assert len(rows) == len(learnt) > 0
        assert all(len(ids) == len(flags) > 1 for ids, flags in zip(rows, learnt, strict=True))
        self.rows, self.learnt, self.pad_id = rows, learnt, pad_id
        lengths = np.array([[len(ids) - 1, 1] for ids in rows], np.int64)  # (N, 2): one side only
        self.budget = TokenBudget(lengths, budget, seed)
        self.n_tokens = int(lengths[:, 0].sum())  # an epoch
        self.n_targets = sum(sum(flags[1:]) for flags in learnt)

    def __len__(self) -> int:
        return len(self.budget)

    def batch(self, first: int, count: int) -> Batch:
        """Global batches first .. first + count - 1 as one."""
        return self._cut(np.concatenate([self.budget.batch(number)[1] for number in range(first, first + count)]))

    def sequential(self, first: int, count: int) -> Batch:
        """Batches first .. first + count - 1 in the order of length: for evaluation."""
        return self._cut(self.budget.in_order(first, count))

    def _cut(self, places: NDArray[np.int64]) -> Batch:
        inputs, targets = [], []
        for place in places.tolist():
            ids, flags = self.rows[place], self.learnt[place]
            inputs.append(ids[:-1])
            targets.append([i if flag else IGNORED for i, flag in zip(ids[1:], flags[1:], strict=True)])
        return Batch(padded(inputs, self.pad_id), padded(targets, IGNORED))
