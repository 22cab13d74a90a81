"""The LSTM: its written-out equations, the fast path against them, its decoding state and its beginnings."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from zhixing.errors import InputError
from zhixing.models.lstm import (
    LSTM,
    LSTMClassifier,
    LSTMClassifierSettings,
    LSTMSettings,
    pool_max_and_mean,
)
from zhixing.models.recurrence import LSTMWeights, lstm_cell, lstm_reference


def make(*, tied: bool = True, n_layers: int = 2, dropout: float = 0.0) -> LSTM:
    settings = LSTMSettings(
        vocab_size=37, d_model=12, n_layers=n_layers, max_len=16, dropout=dropout, tie_embeddings=tied
    )
    return LSTM(settings, torch.Generator().manual_seed(3))


def random_ids(rows: int, count: int, seed: int = 0) -> Tensor:
    return torch.randint(37, (rows, count), generator=torch.Generator().manual_seed(seed))


def test_cell_by_hand() -> None:
    """One unit, each gate's bias given alone, so that the four gates and their order can be read off."""
    zeros = torch.zeros(4, 1)
    biases = torch.tensor([0.5, -1.0, 0.25, 2.0])  # i, f, g, o
    h, c = lstm_cell(
        torch.ones(1, 1), torch.ones(1, 1), torch.full((1, 1), 3.0), LSTMWeights(zeros, zeros, biases, torch.zeros(4))
    )

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    expected_c = sigmoid(-1.0) * 3.0 + sigmoid(0.5) * math.tanh(0.25)
    assert c.item() == pytest.approx(expected_c, abs=1e-6)
    assert h.item() == pytest.approx(sigmoid(2.0) * math.tanh(expected_c), abs=1e-6)


def test_forget_gate_at_one_carries_the_memory() -> None:
    """Forget gate open, input gate shut: the memory passes 1000 steps unchanged, the constant error carousel."""
    zeros = torch.zeros(4, 1)
    weights = LSTMWeights(zeros, zeros, torch.tensor([-100.0, 100.0, 0.0, 0.0]), torch.zeros(4))
    start = torch.full((1, 1, 1), 0.7, requires_grad=True)
    _, (_, c) = lstm_reference(torch.ones(1, 1000, 1), torch.zeros(1, 1, 1), start, [weights])
    (gradient,) = torch.autograd.grad(c.sum(), start)
    assert c.item() == pytest.approx(0.7)
    assert gradient.item() == pytest.approx(1.0)


@pytest.mark.parametrize("n_layers", [1, 3])
def test_fast_path_is_the_reference(n_layers: int) -> None:
    model = make(n_layers=n_layers)
    ids = random_ids(5, 11)
    weights = torch.randn(5, 11, 12, generator=torch.Generator().manual_seed(1))
    zeros = torch.zeros(n_layers, 5, 12)
    parameters = dict(model.named_parameters())

    fast = model(ids)
    fast_gradients = torch.autograd.grad((fast * weights).sum(), list(parameters.values()))
    slow, _ = lstm_reference(model.embedding(ids), zeros, zeros, model.layers())
    slow_gradients = torch.autograd.grad((slow * weights).sum(), list(parameters.values()))

    torch.testing.assert_close(fast, slow, atol=1e-6, rtol=1e-5)
    for name, a, b in zip(parameters, fast_gradients, slow_gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_ragged_step_keeps_each_rows_last_real_state() -> None:
    model = make().eval()
    ids = random_ids(4, 6)
    n_new = torch.tensor([6, 1, 0, 3])
    with torch.inference_mode():
        state = model.new_state(4)
        model.step(random_ids(4, 2, seed=9), torch.tensor([2, 2, 2, 2]), state)
        before = state.select(torch.arange(4))
        model.step(ids, n_new, state)
        assert state.lengths.tolist() == [8, 3, 2, 5]
        for row, count in enumerate(n_new.tolist()):
            one = before.select(torch.tensor([row]))
            if count:
                model.step(ids[row : row + 1, :count], torch.tensor([count]), one)
            torch.testing.assert_close(state.h[:, row], one.h[:, 0], atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(state.c[:, row], one.c[:, 0], atol=1e-6, rtol=1e-5)
        still = before.select(torch.arange(4))
        model.step(ids[:, :1], torch.tensor([1, 0, 0, 0]), still)
        assert torch.equal(still.h[:, 1:], before.h[:, 1:]) and not torch.equal(still.h[:, 0], before.h[:, 0])


def test_initialisation_is_what_the_docstring_says() -> None:
    model = make(tied=False)
    for name, parameter in model.recurrence.named_parameters():
        if name.startswith("weight"):
            assert 0.8 / math.sqrt(12) < parameter.abs().max() <= 1 / math.sqrt(12)
    for weights in model.layers():
        total = weights.b_ih + weights.b_hh
        assert total[12:24].tolist() == [1.0] * 12
        assert total[:12].tolist() + total[24:].tolist() == [0.0] * 36
    assert 0.09 < model.embedding.weight.abs().max() <= 0.1
    assert torch.equal(make().embedding.weight, make().embedding.weight)  # the generator decides


def test_given_vectors() -> None:
    model = make()
    before = model.embedding.weight.detach().clone()
    matrix = torch.arange(37 * 12, dtype=torch.float64).reshape(37, 12)
    found = torch.arange(37) % 2 == 0
    model.load_embeddings(matrix, found)
    assert torch.equal(model.embedding.weight[found], matrix[found].float())
    assert torch.equal(model.embedding.weight[~found], before[~found])
    assert model.head() is model.embedding.weight
    with pytest.raises(InputError, match=r"model\.d_model = 13"):
        model.load_embeddings(torch.zeros(37, 13))
    with pytest.raises(InputError, match="not finite"):
        model.load_embeddings(torch.full((37, 12), math.nan))


def test_dropout_only_in_training() -> None:
    model = make(dropout=0.5)
    ids = random_ids(2, 5)
    torch.manual_seed(0)
    assert not torch.equal(model(ids), model(ids))
    model.eval()
    assert torch.equal(model(ids), model(ids))


def test_learns_to_remember() -> None:
    """Say at the end what came first: only a memory over the whole window can."""
    settings = LSTMSettings(vocab_size=8, d_model=32, n_layers=1, max_len=8, tie_embeddings=False)
    generator = torch.Generator().manual_seed(0)
    model = LSTM(settings, generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(250):
        ids = torch.randint(8, (64, 8), generator=generator)
        loss = torch.nn.functional.cross_entropy(model.logits(model(ids)[:, -1]), ids[:, 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ids = torch.randint(8, (256, 8), generator=generator)
    accuracy = (model.logits(model(ids)[:, -1]).argmax(-1) == ids[:, 0]).float().mean().item()
    assert accuracy > 0.95


# The classifier.


def make_classifier(n_layers: int = 1, dropout: float = 0.0) -> LSTMClassifier:
    settings = LSTMClassifierSettings(37, 3, d_model=6, d_hidden=5, n_layers=n_layers, dropout=dropout)
    return LSTMClassifier(settings, torch.Generator().manual_seed(4))


def test_pooling_by_hand() -> None:
    hidden = torch.tensor([[[1.0, -4.0], [3.0, -2.0], [99.0, 99.0]]])
    assert pool_max_and_mean(hidden, torch.tensor([[True, True, False]])).tolist() == [[3.0, -2.0, 2.0, -3.0]]


def test_classifier_is_the_equations_read_both_ways() -> None:
    model = make_classifier().eval()
    ids = random_ids(2, 7)
    x = model.embed(ids)
    forward, backward = (LSTMWeights(*w) for w in model.recurrence.all_weights)
    zeros = torch.zeros(1, 2, 5)
    there, _ = lstm_reference(x, zeros, zeros, [forward])
    back, _ = lstm_reference(x.flip(1), zeros, zeros, [backward])
    mask = torch.ones(2, 7, dtype=torch.bool)
    expected = model.head(pool_max_and_mean(torch.cat([there, back.flip(1)], dim=2), mask))
    torch.testing.assert_close(model(ids, mask), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("n_layers", [1, 2])
def test_classifier_batch_equals_single(n_layers: int) -> None:
    model = make_classifier(n_layers).eval()
    lengths = [9, 1, 4, 0, 9]
    ids = random_ids(5, 9)
    mask = torch.arange(9) < torch.tensor(lengths)[:, None]
    together = model(ids, mask)
    for row, n in enumerate(lengths):
        n = max(n, 1)
        alone = model(ids[row : row + 1, :n], mask[row : row + 1, :n])[0]
        torch.testing.assert_close(together[row], alone, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(model(ids.masked_fill(~mask, 7), mask), together)
    x = model.embed(ids).detach().requires_grad_()
    model.classify(x, mask).sum().backward()
    assert x.grad is not None and (x.grad[~mask] == 0).all() and (x.grad[mask].abs().sum(-1) > 0).all()


def test_classifier_takes_given_vectors_and_forgets_late() -> None:
    model = make_classifier()
    matrix = torch.randn(37, 6)
    model.load_embeddings(matrix)
    assert torch.equal(model.embedding.weight, matrix)
    for name, parameter in model.recurrence.named_parameters():
        if name.startswith("bias_ih"):
            assert parameter[5:10].tolist() == [1.0] * 5


def test_classifier_learns_what_comes_first() -> None:
    """Is 5 before 6 or behind it, with noise between: no bag and no short window tells."""
    generator = torch.Generator().manual_seed(0)
    settings = LSTMClassifierSettings(20, 2, d_model=16, d_hidden=16, dropout=0.0)
    model = LSTMClassifier(settings, generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    def batch(rows: int) -> tuple[Tensor, Tensor, Tensor]:
        ids = torch.randint(7, 20, (rows, 12), generator=generator)
        y = torch.randint(2, (rows,), generator=generator)
        index = torch.arange(rows)
        ids[index, torch.randint(0, 4, (rows,), generator=generator)] = 5 + y
        ids[index, torch.randint(6, 10, (rows,), generator=generator)] = 6 - y
        return ids, torch.ones_like(ids, dtype=torch.bool), y

    for _ in range(120):
        ids, mask, y = batch(64)
        loss = torch.nn.functional.cross_entropy(model(ids, mask), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ids, mask, y = batch(256)
    assert (model(ids, mask).argmax(-1) == y).float().mean().item() > 0.95
