"""Span corruption: nothing is lost or doubled, sentinels agree on both sides, and all of it is a pure function."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import numpy as np
import pytest
import torch

from zhixing.training.spans import CorruptedTexts, corrupt, span_counts

LAST = 999  # the id of the first sentinel


def undone(source: list[int], target: list[int]) -> list[int]:
    """The text again: each sentinel of the source replaced by what stands behind it in the target."""
    runs: dict[int, list[int]] = {}
    sentinel = -1
    for token in target:
        if token > 900:
            sentinel = token
            assert sentinel not in runs
            runs[sentinel] = []
        else:
            runs[sentinel].append(token)
    whole: list[int] = []
    for token in source:
        whole += runs.pop(token) if token > 900 else [token]
    assert list(runs.values()) == [[]], "one sentinel is left, the end"
    return whole


@pytest.mark.parametrize("length", [2, 3, 4, 7, 20, 64, 101, 512])
def test_every_token_stands_in_exactly_one_of_both_sides(length: int) -> None:
    text = list(range(length))  # all different
    for sample in range(30):
        source, target = corrupt(text, LAST, seed=1, sample=sample)
        assert sorted(token for token in [*source, *target] if token < 900) == text
        assert undone(source, target) == text
        left_out, runs = span_counts(length)
        assert (len(source), len(target)) == (length - left_out + runs, left_out + runs + 1)
        assert [token for token in source if token > 900] == [LAST - i for i in range(runs)]
        assert [token for token in target if token > 900] == [LAST - i for i in range(runs + 1)]
        assert target[-1] == LAST - runs
        assert not any(a > 900 and b > 900 for a, b in itertools.pairwise(source)), "runs do not touch"


def test_repeated_tokens_are_no_matter() -> None:
    chance = random.Random(0)
    text = [chance.randrange(4) for _ in range(200)]
    source, target = corrupt(np.array(text), LAST, seed=0, sample=5)
    assert undone(source, target) == text
    assert all(type(token) is int for token in [*source, *target])


def test_how_much_is_left_out() -> None:
    """By hand, as the paper and T5's code count: 15 % in runs of 3, never all of a text."""
    assert span_counts(512) == (77, 26)
    assert span_counts(100) == (15, 5)
    assert span_counts(2) == (1, 1)
    assert span_counts(10, density=0.5, mean_length=1) == (5, 5)
    assert span_counts(10, density=1.0, mean_length=1) == (9, 2), "a kept token stands between two runs"
    assert span_counts(10, density=0.0) == (1, 1)


def test_it_is_a_function_of_seed_and_sample_alone() -> None:
    text = list(range(100))
    one = corrupt(text, LAST, seed=3, sample=7)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (that it changes nothing is what is tested)
    assert corrupt(text, LAST, seed=3, sample=7) == one
    assert corrupt(text, LAST, seed=4, sample=7) != one
    assert corrupt(text, LAST, seed=3, sample=8) != one
    assert corrupt([token + 500 for token in text], LAST, seed=3, sample=7)[0] == [
        token if token > 900 else token + 500 for token in one[0]
    ], "the ids do not matter"
    assert corrupt(range(12), LAST, seed=0, sample=0, density=0.4, mean_length=2) == (
        [999, 2, 3, 4, 5, 6, 7, 8, 998],
        [999, 0, 1, 998, 9, 10, 11, 997],
    ), "a resumed run would see other noise than before"


def test_every_choice_of_runs_is_equally_probable() -> None:
    """Of 5 tokens 2 in 2 runs: 6 ways. Of 30 tokens a run of 4: 27 ways."""
    ways = Counter(
        tuple(corrupt(range(5), LAST, seed=0, sample=sample, density=0.4, mean_length=1)[0]) for sample in range(6000)
    )
    assert len(ways) == 6 and min(ways.values()) > 850 and max(ways.values()) < 1150
    counts = np.zeros(30)
    for sample in range(5400):
        _, target = corrupt(list(range(30)), LAST, seed=0, sample=sample)
        counts[[token for token in target if token < 900]] += 1
    shares = counts / 5400 * 27
    assert shares[3:-3] == pytest.approx(np.full(24, 4), abs=0.5)
    assert (shares[0], shares[-1]) == pytest.approx((1, 1), abs=0.3)


def test_runs_have_the_asked_mean_length() -> None:
    lengths = {len(corrupt(list(range(100)), LAST, seed=0, sample=s)[0]) for s in range(50)}
    assert len(lengths) == 1, "lengths follow from the text's length"
    runs = [corrupt(list(range(100)), LAST, seed=0, sample=s)[1].index(LAST - 1) - 1 for s in range(2000)]
    assert np.mean(runs) == pytest.approx(3, abs=0.15) and min(runs) == 1 and max(runs) > 7


def test_what_cannot_be_done_is_said() -> None:
    with pytest.raises(ValueError, match="at least 2 tokens"):
        corrupt([4], LAST, seed=0, sample=0)
    with pytest.raises(ValueError, match="expected ids below 994, where the sentinels begin, got 995"):
        corrupt([*range(99), 995], LAST, seed=0, sample=0)
    with pytest.raises(ValueError, match="6 sentinels"):
        corrupt([10] * 100, 4, seed=0, sample=0)


def corrupted(seed: int = 0, budget: int = 400) -> CorruptedTexts:
    rows = [[2 + (7 * r + i) % 90 for i in range(5 + 3 * (r % 20))] for r in range(120)]
    return CorruptedTexts(rows, first_sentinel_id=LAST, eos_id=0, start_id=1, pad_id=1, budget=budget, seed=seed)


def test_every_text_comes_once_an_epoch_and_is_corrupted_anew() -> None:
    texts = corrupted()
    epochs = []
    for epoch in range(2):
        found = {}
        for number in range(len(texts)):
            batch = texts.batch(epoch * len(texts) + number, 1)
            for source, length, target in zip(batch.sources, batch.source_lengths, batch.targets, strict=True):
                read, wanted = source[:length].tolist(), [i for i in target.tolist() if i >= 0]
                assert read[-1] == 0 == wanted[-1]
                found[tuple(undone(read[:-1], wanted[:-1]))] = read
        assert sorted(found) == sorted({tuple(row) for row in texts.rows})
        epochs.append(found)
    assert sum(epochs[0][row] != epochs[1][row] for row in epochs[0]) > len(epochs[0]) / 2


def test_a_batch_of_corrupted_texts_follows_from_its_place_alone() -> None:
    late, again = corrupted().batch(70, 1), corrupted()
    for number in range(70):
        again.batch(number, 1)
    found = again.batch(70, 1)
    assert torch.equal(late.sources, found.sources) and torch.equal(late.targets, found.targets)
    assert late.sources.shape[0] * (late.sources.shape[1] + late.targets.shape[1]) <= 400
    assert not torch.equal(late.sources[:, :5], corrupted(seed=1).batch(70, 1).sources[: len(late.sources), :5])
