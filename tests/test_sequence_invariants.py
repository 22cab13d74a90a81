"""What every sequence model of ours keeps, whatever its family: one file, all families."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from zhixing.models.gpt import GPT, GPTSettings
from zhixing.models.lstm import LSTM, LSTMSettings

Model = GPT | LSTM

VOCAB, LENGTH = 41, 24
GPT_SETTINGS = GPTSettings(
    vocab_size=VOCAB, layout="qwen3", d_model=32, n_layers=2, n_heads=4, n_kv_heads=4, d_ff=48, max_len=LENGTH
)
LSTM_SETTINGS = LSTMSettings(vocab_size=VOCAB, d_model=24, n_layers=2, max_len=LENGTH)

MODELS: dict[str, Callable[[], Model]] = {
    "qwen3": lambda: GPT(GPT_SETTINGS),
    "qwen3-grouped-untied": lambda: GPT(replace(GPT_SETTINGS, n_kv_heads=2, tie_embeddings=False)),
    "llama": lambda: GPT(replace(GPT_SETTINGS, layout="llama")),
    "llama-one-kv-head": lambda: GPT(replace(GPT_SETTINGS, layout="llama", n_kv_heads=1)),
    "gpt2": lambda: GPT(replace(GPT_SETTINGS, layout="gpt2")),
    "gpt2-untied": lambda: GPT(replace(GPT_SETTINGS, layout="gpt2", tie_embeddings=False)),
    "lstm": lambda: LSTM(LSTM_SETTINGS),
    "lstm-untied": lambda: LSTM(replace(LSTM_SETTINGS, tie_embeddings=False)),
}


@pytest.fixture(params=MODELS, name="model")
def fixture_model(request: pytest.FixtureRequest) -> Model:
    """Random weights, an order of magnitude larger than at the start of training, so that nothing is nearly linear."""
    model = MODELS[request.param]().eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if "norm.weight" in name else 0.3 * noise)
    return model


def ids_of(rows: int, count: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCAB, (rows, count), generator=torch.Generator().manual_seed(seed))


def counts(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def close(actual: Tensor, expected: Tensor) -> None:
    """Logits are about 10 here, so this is a few units of fp32's last place."""
    torch.testing.assert_close(actual, expected, atol=2e-4, rtol=1e-4)


def logits_of(model: Model, ids: Tensor) -> Tensor:
    with torch.inference_mode():
        return model.logits(model(ids))  # (B, T, V)


def step(model: Model, ids: Tensor, n_new: Tensor, state: object) -> Tensor:
    with torch.inference_mode():
        return model.logits(model.step(ids, n_new, state))  # type: ignore[arg-type]


def test_every_token_matters_afterwards_and_none_before(model: Model) -> None:
    ids = ids_of(1, LENGTH)
    before = logits_of(model, ids)[0]
    for place in (0, 1, 11, LENGTH - 1):
        changed = ids.clone()
        changed[0, place] = (changed[0, place] + 1) % VOCAB
        after = logits_of(model, changed)[0]
        assert torch.equal(after[:place], before[:place])
        assert (after[place:] - before[place:]).abs().amax(-1).min() > 1e-4


def test_right_padding_changes_nothing_real(model: Model) -> None:
    ids = ids_of(2, 9)
    expected = logits_of(model, ids)
    for pad in (0, VOCAB - 1):
        padded = torch.nn.functional.pad(ids, (0, LENGTH - 9), value=pad)
        close(logits_of(model, padded)[:, :9], expected)
        state = model.new_state(2, LENGTH)
        close(step(model, padded, counts(9, 9), state)[:, :9], expected)
        close(
            step(model, ids[:, :1], counts(1, 1), state)[:, 0], logits_of(model, torch.cat([ids, ids[:, :1]], 1))[:, -1]
        )


def test_batch_is_one_by_one(model: Model) -> None:
    ids = ids_of(5, 13)
    together = logits_of(model, ids)
    for row in range(5):
        close(together[row], logits_of(model, ids[row : row + 1])[0])


@pytest.mark.parametrize("chunks", [[1] * LENGTH, [7, 1, 1, 9, 6], [LENGTH]])
def test_step_by_step_is_all_at_once(model: Model, chunks: list[int]) -> None:
    ids = ids_of(3, LENGTH)
    state = model.new_state(3, LENGTH)
    pieces = [step(model, piece, counts(*[piece.shape[1]] * 3), state) for piece in ids.split(chunks, dim=1)]
    assert state.lengths.tolist() == [LENGTH] * 3
    close(torch.cat(pieces, dim=1), logits_of(model, ids))


def test_ragged_steps_are_all_at_once(model: Model) -> None:
    """Prompts of different lengths, chunks of different lengths, rows that wait, up to the last place of the context."""
    ids = ids_of(4, LENGTH)
    expected = logits_of(model, ids)
    state = model.new_state(4, LENGTH)
    done = [0, 0, 0, 0]
    plan = [(5, 1, 9, 3), (1, 1, 1, 1), (0, 4, 2, 1), (1, 0, 0, 1), (7, 3, 1, 8), (10, 15, 11, 10)]
    assert [sum(column) for column in zip(*plan, strict=True)] == [LENGTH] * 4
    for n_new in plan:
        chunk = torch.full((4, max(n_new)), VOCAB - 1)  # a pad that is a real token, so that reading it would be seen
        for row, count in enumerate(n_new):
            chunk[row, :count] = ids[row, done[row] : done[row] + count]
        made = step(model, chunk, counts(*n_new), state)
        for row, count in enumerate(n_new):
            close(made[row, :count], expected[row, done[row] : done[row] + count])
            done[row] += count
        assert state.lengths.tolist() == done


def test_equal_rows_with_ragged_news_at_the_end_of_the_context(model: Model) -> None:
    """All rows at one length, then padding that points behind the last place."""
    ids = ids_of(2, LENGTH)
    expected = logits_of(model, ids)
    state = model.new_state(2, LENGTH)
    step(model, ids[:, : LENGTH - 2], counts(LENGTH - 2, LENGTH - 2), state)
    chunk = torch.nn.functional.pad(ids[:, LENGTH - 2 :], (0, 3))
    made = step(model, chunk, counts(2, 1), state)
    close(made[0, :2], expected[0, LENGTH - 2 :])
    close(made[1, :1], expected[1, LENGTH - 2 : LENGTH - 1])


def test_selected_rows_go_on_as_their_own(model: Model) -> None:
    """A beam search reorders and repeats; sampling n repeats; a finished row leaves."""
    ids, more = ids_of(3, 8), ids_of(4, 3, seed=1)
    state = model.new_state(3, LENGTH)
    padded = ids.clone()
    step(model, padded, counts(8, 5, 6), state)
    rows = counts(2, 0, 2, 1)
    chosen = state.select(rows)
    assert chosen.lengths.tolist() == [6, 8, 6, 5]
    made = step(model, more, counts(3, 3, 3, 3), chosen)
    lengths = [8, 5, 6]
    for place, row in enumerate(rows.tolist()):
        whole = torch.cat([ids[row, : lengths[row]], more[place]])[None]
        close(made[place], logits_of(model, whole)[0, -3:])
    again = step(model, more[:3], counts(3, 3, 3), state)  # the state that was selected from is as it was
    close(again[1], logits_of(model, torch.cat([ids[1, :5], more[1]])[None])[0, -3:])


def test_appended_rows_go_on_as_their_own(model: Model) -> None:
    """A request joins a running batch with a state of its own, of another capacity."""
    first, second, more = ids_of(2, 6), ids_of(1, 9, seed=2), ids_of(3, 2, seed=3)
    running, joining = model.new_state(2, 12), model.new_state(1, LENGTH)
    step(model, first, counts(6, 4), running)
    step(model, second, counts(9), joining)
    state = running.append(joining)  # type: ignore[arg-type]
    assert state.lengths.tolist() == [6, 4, 9]
    made = step(model, more, counts(2, 2, 2), state)
    for row, begun in enumerate([first[0], first[1, :4], second[0]]):
        close(made[row], logits_of(model, torch.cat([begun, more[row]])[None])[0, -2:])


def test_no_row_is_a_state_too(model: Model) -> None:
    """A batch that has emptied: nothing is left of it, and rows can join it."""
    state = model.new_state(2, LENGTH)
    step(model, ids_of(2, 4), counts(4, 4), state)
    empty = state.select(counts())
    assert empty.lengths.tolist() == []
    assert empty.append(state).lengths.tolist() == [4, 4]  # type: ignore[arg-type]


def test_gradient_reaches_every_parameter(model: Model) -> None:
    model.train()
    ids = torch.arange(VOCAB).repeat(2)[: 3 * LENGTH].reshape(3, LENGTH)  # every token is read
    loss = torch.nn.functional.cross_entropy(model.logits(model(ids)).flatten(0, 1), ids_of(3, LENGTH).flatten())
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 1e-8, name
    assert model.get_parameter("embedding.weight").grad is not None


def test_logits_are_fp32_whatever_the_weights(model: Model) -> None:
    model.to(torch.bfloat16)
    assert model(ids_of(1, 3)).dtype == torch.bfloat16
    assert logits_of(model, ids_of(1, 3)).dtype == torch.float32
    state = model.new_state(1, 4)
    assert step(model, ids_of(1, 3), counts(3), state).dtype == torch.float32


def test_save_and_load_gives_the_same_logits(model: Model) -> None:
    other = type(model)(model.settings).eval()  # type: ignore[arg-type]
    other.load_state_dict(model.state_dict())
    assert torch.equal(logits_of(model, ids_of(2, 7)), logits_of(other, ids_of(2, 7)))
