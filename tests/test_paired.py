"""Pairs in batches by a budget of tokens: every pair once an epoch, no batch above the budget, one order for a seed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zhixing.tokens.batches import IGNORED
from zhixing.tokens.paired import PairedTexts

START, PAD, END = 1, 0, 9

lengths = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=60)


def rows_of(sizes: list[int], first: int) -> list[list[int]]:
    """Rows that say which pair they are: their first id is the pair's number."""
    return [[first + number, *[2] * (size - 2), END][: max(1, size)] for number, size in enumerate(sizes)]


def made(sizes: list[tuple[int, int]], budget: int = 96, seed: int = 0) -> PairedTexts:
    sources, targets = rows_of([s for s, _ in sizes], 100), rows_of([t for _, t in sizes], 500)
    return PairedTexts(sources, targets, start_id=START, pad_id=PAD, budget=budget, seed=seed)


@given(lengths, st.integers(0, 5))
def test_each_pair_comes_once_an_epoch_and_stays_a_pair(sizes: list[tuple[int, int]], epoch: int) -> None:
    pairs = made(sizes)
    met = []
    for number in range(len(pairs)):
        batch = pairs.batch(epoch * len(pairs) + number, 1)
        first_source, first_target = batch.sources[:, 0] - 100, batch.targets[:, 0] - 500
        assert torch.equal(first_source, first_target)
        met += first_source.tolist()
    assert sorted(met) == list(range(len(sizes)))


@given(lengths)
def test_a_batch_stays_within_the_budget_unless_it_is_one_pair(sizes: list[tuple[int, int]]) -> None:
    pairs = made(sizes)
    for number in range(3 * len(pairs)):
        batch = pairs.batch(number, 1)
        rows = len(batch.sources)
        assert rows == 1 or rows * (batch.sources.shape[1] + batch.targets.shape[1]) <= 96


def test_what_is_written_stands_one_place_behind_what_is_seen() -> None:
    batch = made([(3, 4), (2, 2)]).sequential(0, 1)
    assert batch.sources.tolist() == [[100, 2, 9], [101, 9, 0]]
    assert batch.source_lengths.tolist() == [3, 2]
    assert batch.inputs.tolist() == [[START, 500, 2, 2], [START, 501, 0, 0]]
    assert batch.targets.tolist() == [[500, 2, 2, END], [501, END, IGNORED, IGNORED]]


def test_the_order_is_a_function_of_the_seed_and_differs_between_epochs() -> None:
    sizes = [(1 + i % 7, 1 + i % 5) for i in range(200)]
    one, again, other = made(sizes), made(sizes), made(sizes, seed=1)

    def order(pairs: PairedTexts, epoch: int) -> list[int]:
        batches = [pairs.batch(epoch * len(pairs) + n, 1) for n in range(len(pairs))]
        return [int(i) for batch in batches for i in batch.sources[:, 0]]

    late = order(again, 3)  # without having looked at the epochs before
    assert order(one, 0) != order(one, 1)
    assert order(one, 3) == late
    assert order(one, 0) != order(other, 0)


def test_two_batches_at_once_are_the_two_alone() -> None:
    pairs = made([(1 + i % 9, 1 + i % 6) for i in range(50)])
    both = pairs.batch(1, 2)
    alone = [pairs.batch(n, 1) for n in (1, 2)]
    assert both.sources[:, 0].tolist() == [int(i) for batch in alone for i in batch.sources[:, 0]]


@pytest.mark.parametrize(("budget", "most"), [(512, 0.10), (2048, 0.10)])
def test_little_of_a_batch_is_padding(budget: int, most: float) -> None:
    generator = torch.Generator().manual_seed(0)
    long = torch.randint(5, 40, (2000,), generator=generator)
    noise = torch.randint(-3, 4, (2000,), generator=generator)
    sizes = [(int(s), max(1, int(s + n))) for s, n in zip(long, noise, strict=True)]
    pairs = made(sizes, budget=budget)
    assert pairs.budget.padding < most
    places = sum(b.sources.numel() + b.targets.numel() for n in range(len(pairs)) for b in [pairs.sequential(n, 1)])
    assert pairs.budget.padding == pytest.approx(1 - pairs.n_tokens / places)
