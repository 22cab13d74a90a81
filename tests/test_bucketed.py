"""Batches of about equal lengths: every text once an epoch, the same batch at the same place, and little padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zhixing.tokens.bucketed import BucketedTexts, LabelledBatch

PAD = 0


def rows_of(n: int, seed: int = 0) -> list[list[int]]:
    """Row i begins with i + 1 and has a length of its own, 1 to 40."""
    lengths = np.random.default_rng(seed).integers(1, 41, n).tolist()
    return [[i + 1] + [7] * (length - 1) for i, length in enumerate(lengths)]


def texts_of(n: int, size: int, seed: int = 0) -> BucketedTexts:
    return BucketedTexts(rows_of(n), torch.arange(n) * 10, PAD, size, seed)


def numbers(batch: LabelledBatch) -> list[int]:
    return (batch.inputs[:, 0] - 1).tolist()


@pytest.mark.parametrize("n, size", [(1, 1), (1, 4), (3, 8), (10, 4), (12, 4), (103, 1), (450, 8), (7, 7)])
def test_every_epoch_holds_each_text_once(n: int, size: int) -> None:
    texts = texts_of(n, size)
    drawn = numbers(texts.batch(0, 5 * n))
    for epoch in range(5):
        assert sorted(drawn[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_epochs_and_seeds_differ() -> None:
    texts = texts_of(200, 8)
    first, second = numbers(texts.batch(0, 200)), numbers(texts.batch(200, 200))
    assert first != second != numbers(texts_of(200, 8, seed=1).batch(200, 200))


@pytest.mark.parametrize("n, size", [(10, 4), (103, 8), (3, 8)])
def test_a_batch_follows_from_its_place_alone(n: int, size: int) -> None:
    """Asked in order, backwards, or by a new object as after a resume, over ends of epochs too."""
    texts = texts_of(n, size)
    places = range(0, 6 * n, size)
    forward = [numbers(texts.batch(first, size)) for first in places]
    backward = [numbers(texts.batch(first, size)) for first in reversed(places)][::-1]
    anew = [numbers(texts_of(n, size).batch(first, size)) for first in places]
    assert forward == backward == anew
    assert [i for batch in forward for i in batch] == numbers(texts.batch(0, len(places) * size))


def test_padding_mask_and_targets() -> None:
    rows, texts = rows_of(50), texts_of(50, 8)
    for first in range(0, 120, 8):
        batch = texts.batch(first, 8)
        assert batch.inputs.dtype == torch.int64 and batch.mask.dtype == torch.bool
        assert batch.inputs.shape == batch.mask.shape == (8, max(len(rows[i]) for i in numbers(batch)))
        for row, i in enumerate(numbers(batch)):
            assert batch.inputs[row][batch.mask[row]].tolist() == rows[i]
            assert batch.mask[row].tolist() == sorted(batch.mask[row].tolist(), reverse=True), "right padding"
            assert (batch.inputs[row][~batch.mask[row]] == PAD).all()
            assert batch.targets[row] == 10 * i


def test_targets_of_several_labels() -> None:
    targets = torch.rand(9, 3)
    batch = BucketedTexts(rows_of(9), targets, PAD, 4, 0).batch(6, 4)
    assert torch.equal(batch.targets, targets[torch.tensor(numbers(batch))])


def test_evaluation_goes_by_length_and_ends() -> None:
    texts = texts_of(30, 8)
    seen = [numbers(texts.sequential(first, 8)) for first in range(0, 30, 8)]
    assert [len(batch) for batch in seen] == [8, 8, 8, 6]
    lengths = [len(rows_of(30)[i]) for i in [i for batch in seen for i in batch]]
    assert lengths == sorted(lengths) and sorted([i for batch in seen for i in batch]) == list(range(30))


@pytest.mark.parametrize("n", [400, 403, 399])
def test_little_padding_in_every_epoch(n: int) -> None:
    """Batches are cut anew after the texts that fill up an epoch's last one: later epochs pad as little as the first."""
    texts = texts_of(n, 8)
    for epoch in range(4):
        firsts = range(-(-epoch * n // 8) * 8, (epoch + 1) * n - 8, 8)  # those that lie within the epoch
        masks = [texts.batch(first, 8).mask for first in firsts]
        share = sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)
        assert share > 0.93, (epoch, share)
