"""Packed sequences: every token a target exactly once an epoch, batches a pure function of the sample index."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zhixing.errors import InputError
from zhixing.tokens.batches import IGNORED, PackedSequences
from zhixing.tokens.shards import Shards, write_shards
from zhixing.tokens.tokenizer import Tokenizer, train_tokenizer

DOCUMENTS = ["one two three four five " * n + "白日依山尽，黄河入海流。" * (n % 3) for n in range(1, 12)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(DOCUMENTS, "bpe", 300)


@pytest.fixture(scope="module")
def shards(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Shards:
    return write_shards(DOCUMENTS, tokenizer, tmp_path_factory.mktemp("tokens") / "shards", shard_tokens=37)


def test_by_hand(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """The example of the module's docstring: abc∎de∎ in windows of three targets."""
    shards = write_shards(["abc", "de"], tokenizer, tmp_path / "shards")
    a, b, c, d, e = (tokenizer.encode(letter)[0] for letter in "abcde")
    eos, pad, none = tokenizer.eos_id, tokenizer.pad_id, IGNORED
    batch = PackedSequences(shards, 3, seed=0).sequential(0, 3)
    assert batch.inputs.tolist() == [[eos, a, b], [c, eos, d], [e, pad, pad]]
    assert batch.targets.tolist() == [[a, b, c], [eos, d, e], [eos, none, none]]
    assert PackedSequences(shards, 3, seed=0).sequential_bytes(0, 3).tolist() == [3, 2, 0]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(length=st.integers(1, 2000), seed=st.integers(0, 2**32), epoch=st.integers(0, 100), step=st.integers(1, 64))
def test_every_token_is_a_target_once_an_epoch(shards: Shards, length: int, seed: int, epoch: int, step: int) -> None:
    """No token is left out, neither the first nor the tail."""
    sequences = PackedSequences(shards, length, seed)
    n = len(sequences)
    stream = shards.read(0, shards.n_tokens)
    straight = [sequences.sequential(first, step) for first in range(0, n, step)]
    targets = torch.cat([batch.targets for batch in straight])
    assert targets.shape == (n, length)
    assert targets.dtype == torch.int64
    assert targets[targets != IGNORED].tolist() == stream.tolist()
    inputs = torch.cat([batch.inputs for batch in straight])[targets != IGNORED]
    assert inputs.tolist() == [shards.eos_id, *stream[:-1].tolist()]

    shuffled = sequences.batch(epoch * n, n).targets
    assert sorted(shuffled.tolist()) == sorted(targets.tolist())


def test_a_batch_is_a_pure_function_of_the_sample_index(shards: Shards) -> None:
    """Any number of processes, and any moment of resuming, sees the same samples."""
    sequences = PackedSequences(shards, 16, seed=5)
    whole = sequences.batch(0, 3 * len(sequences) + 7)  # over three borders of epochs
    assert len(whole.inputs) == len(whole.targets) == 3 * len(sequences) + 7
    for world in (1, 2, 3, 4):
        parts = [
            PackedSequences(shards, 16, seed=5).batch(step * 12 + rank * (12 // world), 12 // world)
            for step in range(4)
            for rank in range(world)
        ]
        assert torch.equal(torch.cat([part.inputs for part in parts]), whole.inputs[:48])
        assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets[:48])
    again = sequences.batch(len(sequences) + 3, 5)
    assert torch.equal(again.targets, whole.targets[len(sequences) + 3 : len(sequences) + 8])


def test_seeds_and_epochs_shuffle(shards: Shards) -> None:
    n = len(PackedSequences(shards, 8, seed=0))
    orders = [PackedSequences(shards, 8, seed).batch(epoch * n, n).inputs for seed in (0, 1) for epoch in (0, 1)]
    orders.append(PackedSequences(shards, 8, seed=0).sequential(0, n).inputs)
    assert len({tuple(order.flatten().tolist()) for order in orders}) == 5


@pytest.mark.parametrize("kind", ["bpe", "char", "word"])
def test_bytes_of_the_targets_are_the_bytes_of_the_text(kind: str, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(DOCUMENTS, kind, 400)  # type: ignore[arg-type]
    documents = [*DOCUMENTS, "", "\r\n\t naïve 😀" if kind == "bpe" else " "]
    shards = write_shards(documents, tokenizer, tmp_path / "shards")
    sequences = PackedSequences(shards, 33, seed=0)
    sizes = sequences.sequential_bytes(0, len(sequences))
    text = sum(len(document.encode()) for document in documents)
    assert sizes.sum() == text == sequences.n_bytes
    assert sizes.tolist() == [int(sequences.sequential_bytes(i, 1)[0]) for i in range(len(sequences))]
    assert sequences.n_targets == sum(len(tokenizer.encode(document)) + 1 for document in documents)


def test_unknown_characters_count_as_their_mean(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["abc"], "char", 100)
    shards = write_shards(["abc知行é"], tokenizer, tmp_path / "shards")
    sequences = PackedSequences(shards, 100, seed=0)
    assert shards.token_sizes[tokenizer.unk_id] == pytest.approx((3 + 3 + 2) / 3)
    assert sequences.sequential_bytes(0, 1).tolist() == [3 + 3 + 3 + 2]


def test_a_stream_shorter_than_one_window(tokenizer: Tokenizer, tmp_path: Path) -> None:
    shards = write_shards(["hi"], tokenizer, tmp_path / "shards")
    sequences = PackedSequences(shards, 512, seed=3)
    assert len(sequences) == 1
    batch = sequences.batch(10, 4)
    assert batch.inputs.shape == (4, 512)
    assert (batch.targets != IGNORED).sum(dim=1).tolist() == [shards.n_tokens] * 4
    assert set(batch.inputs[0, shards.n_tokens :].tolist()) == {tokenizer.pad_id}
    assert int(batch.inputs.min()) >= 0


def test_padded_rows_can_be_changed_by_no_one_else(shards: Shards) -> None:
    sequences = PackedSequences(shards, 16, seed=0)
    batch = sequences.sequential(0, 2)
    before = batch.inputs.clone()
    batch.targets.zero_()
    assert torch.equal(batch.inputs, before)
    assert not torch.equal(sequences.sequential(0, 2).targets, batch.targets)


def test_refusals(shards: Shards) -> None:
    with pytest.raises(InputError):
        PackedSequences(shards, 0, seed=0)
    sequences = PackedSequences(shards, 16, seed=0)
    for first, count in ((-1, 4), (0, 0), (0, -1)):
        with pytest.raises(ValueError, match="expected"):
            sequences.batch(first, count)
    for first, count in ((-1, 4), (0, 0), (len(sequences), 1)):
        with pytest.raises(ValueError, match="expected"):
            sequences.sequential(first, count)
    assert len(sequences.sequential(len(sequences) - 1, 9).inputs) == 1
    assert np.array_equal(sequences.sequential_bytes(0, 10**6), sequences.sequential_bytes(0, len(sequences)))
