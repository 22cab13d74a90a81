"""Masked language modelling: what is hidden, in which order, and that only that is asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from zhixing.errors import InputError
from zhixing.models.bert import BertMaskedLM, BertSettings
from zhixing.tokens.order import noise
from zhixing.tokens.shards import Shards, write_shards
from zhixing.tokens.tokenizer import Tokenizer, train_tokenizer
from zhixing.training.masking import HELD_OUT, MaskedBatch, MaskedSequences, hide, masked_tokens
from zhixing.training.objectives import IGNORED, linear_cross_entropy

TEXT = [f"the {n} cats sat on the {m} mats of house {n * m}" for n in range(20) for m in range(10)]
MASK_ID, VOCAB = 4, 100


@pytest.fixture(scope="module", name="tokenizer")
def fixture_tokenizer() -> Tokenizer:
    return train_tokenizer(TEXT, "wordpiece", 200)


@pytest.fixture(scope="module", name="shards")
def fixture_shards(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Shards:
    return write_shards(TEXT, tokenizer, tmp_path_factory.mktemp("shards") / "train")


def hidden(rows: int, length: int, first: int = 0, seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ids = np.random.default_rng(0).integers(5, VOCAB, (rows, length))
    samples = np.arange(first, first + rows)
    inputs, targets = hide(ids, np.ones_like(ids, bool), samples, seed=seed, vocab_size=VOCAB, mask_id=MASK_ID)
    return ids, inputs, targets


def test_noise_is_uniform_independent_and_a_function_of_its_place() -> None:
    samples = np.arange(2000)
    one, other = noise(3, 0, samples, 50), noise(3, 1, samples, 50)
    assert one.min() >= 0 and one.max() < 1
    assert np.abs(np.histogram(one, 20, (0, 1))[0] / one.size - 0.05).max() < 0.003
    for a, b in ((one, other), (one[:-1], one[1:]), (one[:, :-1], one[:, 1:])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.015
    assert np.array_equal(noise(3, 0, samples[7:9], 20), one[7:9, :20])
    assert not np.array_equal(noise(4, 0, samples[:2], 20), one[:2, :20])


def test_shares_are_those_of_the_paper() -> None:
    ids, inputs, targets = hidden(2000, 100)
    chosen = targets != IGNORED
    assert (chosen.sum(axis=1) == 15).all()
    assert np.array_equal(targets[chosen], ids[chosen])
    assert np.array_equal(inputs[~chosen], ids[~chosen])
    shown, before = inputs[chosen], ids[chosen]
    assert abs((shown == MASK_ID).mean() - 0.8) < 0.01
    assert abs(((shown != MASK_ID) & (shown != before)).mean() - 0.1) < 0.01
    assert abs((shown == before).mean() - 0.1) < 0.01
    others = shown[(shown != MASK_ID) & (shown != before)]
    assert others.min() < 3 and others.max() > VOCAB - 4
    assert abs(chosen[:, :50].mean() - 0.15) < 0.005  # no place is favoured


def test_short_rows_have_a_target_and_special_tokens_none() -> None:
    ids = np.arange(5, 17).reshape(3, 4)
    real = np.array([[False, True, False, False], [False] * 4, [True] * 4])
    _, targets = hide(ids, real, np.arange(3), seed=0, vocab_size=VOCAB, mask_id=MASK_ID)
    assert targets[0].tolist() == [IGNORED, 6, IGNORED, IGNORED]
    assert (targets[1] == IGNORED).all()
    assert (targets[2] != IGNORED).sum() == 1


def test_noise_depends_on_seed_and_sample_only() -> None:
    _, inputs, targets = hidden(40, 30)
    _, again, _ = hidden(40, 30)
    assert np.array_equal(inputs, again)
    _, _, other_seed = hidden(40, 30, seed=2)
    _, _, next_epoch = hidden(40, 30, first=40)
    assert not np.array_equal(targets, other_seed)
    assert not np.array_equal(targets, next_epoch)


def test_batches_are_a_pure_function_of_the_sample(tokenizer: Tokenizer, shards: Shards) -> None:
    sequences = MaskedSequences(shards, tokenizer, 20, seed=5)
    n = len(sequences)
    whole = sequences.batch(0, 2 * n)
    for first, count in ((0, 3), (n - 2, 5), (n + 4, 2)):
        part = sequences.batch(first, count)
        width = part.inputs.shape[1]
        assert torch.equal(part.inputs, whole.inputs[first : first + count, :width])
        assert torch.equal(part.targets, whole.targets[first : first + count, :width])
    original = torch.where(whole.targets == IGNORED, whole.inputs, whole.targets)
    rows = sorted(original[:n].tolist())
    assert rows == sorted(original[n:].tolist())  # an epoch is every window
    assert whole.inputs[:n].tolist() != whole.inputs[n:].tolist()  # with other words hidden


def test_windows_are_the_stream_between_ends(tokenizer: Tokenizer, shards: Shards) -> None:
    sequences = MaskedSequences(shards, tokenizer, 20, seed=5)
    batch = sequences.sequential(0, len(sequences))
    ids = torch.where(batch.targets == IGNORED, batch.inputs, batch.targets)
    stream = []
    for row, mask in zip(ids, batch.mask, strict=True):
        real = row[mask].tolist()
        assert real[0] == tokenizer.cls_id and real[-1] == tokenizer.sep_id
        assert (row[~mask] == tokenizer.pad_id).all()
        stream += real[1:-1]
    assert stream == shards.read(0, shards.n_tokens).tolist()
    asked = ids[batch.targets != IGNORED]
    assert not set(asked.tolist()) & {tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id}
    again = sequences.sequential(3, 2)
    assert torch.equal(again.inputs, batch.inputs[3:5, : again.inputs.shape[1]])
    assert len(sequences) < HELD_OUT


def test_what_cannot_be_masked_is_said(tokenizer: Tokenizer, shards: Shards, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no \[MASK\]"):
        MaskedSequences(shards, train_tokenizer(TEXT, "bpe", 300), 20, seed=0)
    with pytest.raises(InputError, match="length"):
        MaskedSequences(shards, tokenizer, 2, seed=0)
    for share in (0.0, 1.0, float("nan")):
        with pytest.raises(InputError, match="share"):
            MaskedSequences(shards, tokenizer, 20, seed=0, share=share)


# --- the objective -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("rows", [5, 300])
def test_the_fused_loss_with_a_bias_is_torch_s(smoothing: float, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zhixing.training.objectives.LOGITS_HELD", 50 * 64)  # several chunks
    generator = torch.Generator().manual_seed(0)
    h, w, b = (torch.randn(*shape, generator=generator).requires_grad_() for shape in ((rows, 12), (50, 12), (50,)))
    y = torch.randint(50, (rows,), generator=generator)
    y[::4] = IGNORED
    losses = (
        linear_cross_entropy(h, w, y, smoothing, bias=b),
        F.cross_entropy(h @ w.T + b, y, ignore_index=IGNORED, reduction="sum", label_smoothing=smoothing),
    )
    torch.testing.assert_close(losses[0], losses[1])
    ours, theirs = (torch.autograd.grad(3 * loss, (h, w, b)) for loss in losses)
    for a, e in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, e, atol=1e-4, rtol=1e-5)
    without = linear_cross_entropy(h, w, y, smoothing)
    torch.testing.assert_close(without, linear_cross_entropy(h, w, y, smoothing, bias=torch.zeros(50)))


def small_model() -> BertMaskedLM:
    settings = BertSettings(vocab_size=200, d_model=32, n_layers=2, n_heads=4, d_ff=64, max_len=20, dropout=0.0)
    return BertMaskedLM(settings, torch.Generator().manual_seed(0))


def gradients(model: BertMaskedLM, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


def test_only_the_hidden_places_are_asked(tokenizer: Tokenizer, shards: Shards) -> None:
    """The same loss and gradients as all logits and torch's cross-entropy; small batches sum to a large one."""
    model, sequences = small_model(), MaskedSequences(shards, tokenizer, 20, seed=5)
    batch = sequences.sequential(len(sequences) - 6, 6)  # the last one is padded
    assert not batch.mask.all()
    loss, count = masked_tokens()(model, batch)
    logits = model.logits(model(batch.inputs, batch.mask))
    expected = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED, reduction="sum")
    assert count == (batch.targets != IGNORED).sum()
    torch.testing.assert_close(loss, expected)
    for a, e in zip(gradients(model, loss), gradients(model, expected), strict=True):
        torch.testing.assert_close(a, e, atol=1e-4, rtol=1e-4)
    halves = [
        MaskedBatch(batch.inputs[part], batch.targets[part], batch.mask[part]) for part in (slice(0, 2), slice(2, 6))
    ]
    parts = [masked_tokens()(model, half) for half in halves]
    torch.testing.assert_close(parts[0][0] + parts[1][0], loss, rtol=1e-5, atol=1e-4)
    assert parts[0][1] + parts[1][1] == count


def test_a_masked_model_learns(tmp_path: Path) -> None:
    """A text that counts, over and over: the neighbours say which word is hidden."""
    text = ["one two three four five six seven eight nine ten"] * 100
    tokenizer = train_tokenizer(text, "wordpiece", 60)
    sequences = MaskedSequences(write_shards(text, tokenizer, tmp_path / "train"), tokenizer, 16, seed=5)
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for step in range(150):
        loss, count = masked_tokens()(model, sequences.batch(16 * step, 16))
        loss = loss / count
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 4
    assert sum(losses[-10:]) / 10 < 0.7  # ten words unconditionally are 2.3
