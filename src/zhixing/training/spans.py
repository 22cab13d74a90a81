"""Span corruption: leave some runs of words out, ask for them (Raffel et al. 2020, sections 3.1.4 and 3.3.4).

Of a text's n tokens round(0.15 n) are left out, in runs of 3 in the mean. In the source a *sentinel* stands for each
run; the target is the runs, each behind its sentinel, and one more sentinel for the end:

    thank you for inviting me to your party last week
    source    thank you <0> me to your party <1> week            target    <0> for inviting <1> last <2>

Sentinels are the last ids of the vocabulary, counted down: the first one, T5's <extra_id_0>, is the last id.

How many tokens and runs there are follows from n alone; where they begin and end is a hash of (seed, global sample
index), so it is the same on every machine, at any batch size and after a resume, and its state is one number.

What differs from T5's code: there a text begins with a kept run and ends with one that is left out, so of a text of 30
tokens it would be the last four each time. Here every choice of runs that do not touch is equally probable.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from zhixing.tokens.order import noise
from zhixing.tokens.paired import PairBatch, TokenBudget, pair_batch

DENSITY, MEAN_LENGTH = 0.15, 3.0


def span_counts(n_tokens: int, density: float = DENSITY, mean_length: float = MEAN_LENGTH) -> tuple[int, int]:
    """How many of n_tokens are left out, and in how many runs; at least one of each, and one token is kept.

    The source then has n_tokens - left_out + runs tokens, the target left_out + runs + 1: 512 -> 77 in 26 runs, so
    461 and 104.
    """
    if n_tokens < 2:
        raise ValueError(f"expected a text of at least 2 tokens, one to keep and one to leave out, got {n_tokens}")
    left_out = min(max(round(n_tokens * density), 1), n_tokens - 1)
    runs = max(round(left_out / mean_length), 1)
    return left_out, min(runs, left_out, n_tokens - left_out + 1)


def corrupt(
    ids: Sequence[int] | NDArray[np.int64],
    first_sentinel_id: int,
    *,
    seed: int,
    sample: int,
    density: float = DENSITY,
    mean_length: float = MEAN_LENGTH,
) -> tuple[list[int], list[int]]:
    """The ids of a text -> source and target; `sample` is its global index. No end of text is added to either.

    ValueError: a text of fewer than 2 tokens, too few ids for its sentinels, or one of these in the text.
    """
    text = [int(token) for token in ids]
    left_out, runs = span_counts(len(text), density, mean_length)
    last_sentinel_id = first_sentinel_id - runs
    if last_sentinel_id < 0:
        raise ValueError(f"expected {runs + 1} sentinels, got the ids {first_sentinel_id} to 0")
    taken = [token for token in text if last_sentinel_id <= token <= first_sentinel_id]
    if taken:
        raise ValueError(f"expected ids below {last_sentinel_id}, where the sentinels begin, got {taken[0]}")
    kept_lengths = _parts(len(text) - left_out + 2, runs + 1, seed, 0, sample)
    kept_lengths[0] -= 1  # nothing need be kept before the first run and behind the last
    left_lengths = _parts(left_out, runs, seed, 1, sample)
    source: list[int] = []
    target: list[int] = []
    begin = 0
    for run, (kept, left) in enumerate(zip(kept_lengths[:-1], left_lengths, strict=True)):
        middle, end = begin + kept, begin + kept + left
        source += [*text[begin:middle], first_sentinel_id - run]
        target += [first_sentinel_id - run, *text[middle:end]]
        begin = end
    return [*source, *text[begin:]], [*target, last_sentinel_id]


class CorruptedTexts:
    """Rows of ids, each corrupted anew in every epoch; `len()` is the number of batches, by a budget of tokens.

    How long both sides of a row are follows from its own length, so the batches are the same in all epochs. Both end
    with the end-of-text id.
    """

    def __init__(
        self,
        rows: Sequence[Sequence[int]],
        *,
        first_sentinel_id: int,
        eos_id: int,
        start_id: int,
        pad_id: int,
        budget: int,
        seed: int,
    ) -> None:
        self.rows, self.seed = rows, seed
        self.first_sentinel_id, self.eos_id, self.start_id, self.pad_id = first_sentinel_id, eos_id, start_id, pad_id
        lengths = []
        for row in rows:
            left_out, runs = span_counts(len(row))
            lengths.append([len(row) - left_out + runs + 1, left_out + runs + 2])
        self.budget = TokenBudget(np.array(lengths, np.int64), budget, seed)

    def __len__(self) -> int:
        return len(self.budget)

    def batch(self, first: int, count: int) -> PairBatch:
        """Global batches first .. first + count - 1 as one."""
        found = [self.budget.batch(number) for number in range(first, first + count)]
        return self._cut([(epoch, row) for epoch, rows in found for row in rows.tolist()])

    def sequential(self, first: int, count: int) -> PairBatch:
        """Batches first .. first + count - 1 in the order of length, corrupted as in the first epoch."""
        return self._cut([(0, row) for row in self.budget.in_order(first, count).tolist()])

    def _cut(self, places: list[tuple[int, int]]) -> PairBatch:
        sides = [
            corrupt(self.rows[row], self.first_sentinel_id, seed=self.seed, sample=epoch * len(self.rows) + row)
            for epoch, row in places
        ]
        sources, targets = [[*s, self.eos_id] for s, _ in sides], [[*t, self.eos_id] for _, t in sides]
        return pair_batch(sources, targets, self.start_id, self.pad_id)


def _parts(total: int, count: int, seed: int, stream: int, sample: int) -> list[int]:
    """`total` as a sum of `count` positive lengths, each way equally probable.

    Of the total - 1 places between neighbours count - 1 are cut: 7 tokens in 3, cut at 2 and 6 -> 2, 4, 1.
    """
    draws = noise(seed, stream, np.array([sample], np.int64), total - 1)[0]  # (total - 1,)
    cuts = np.sort(np.argsort(draws, kind="stable")[: count - 1]) + 1
    lengths: list[int] = np.diff(cuts, prepend=0, append=total).tolist()
    return lengths
