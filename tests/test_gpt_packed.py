"""The compiled decoding step is the model's own step."""

from __future__ import annotations

import pytest
import torch

from zhixing.models.gpt import GPT, GPTSettings
from zhixing.models.gpt_packed import PackedGPT

LAYOUTS = [("qwen3", 2, True), ("llama", 4, False), ("gpt2", 4, True)]


def model_of(layout: str, n_kv_heads: int, tied: bool, vocab_size: int = 131) -> GPT:
    settings = GPTSettings(vocab_size, layout, 48, 3, 4, n_kv_heads, 100, 40, 0.0, tied)  # type: ignore[arg-type]
    model = GPT(settings, torch.Generator().manual_seed(7)).eval()
    with torch.no_grad():  # biases and norms away from 0 and 1, weights large enough to matter
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) * 0.1)
    return model


@pytest.mark.parametrize("layout,n_kv_heads,tied", LAYOUTS)
@pytest.mark.parametrize("rows", [1, 3, 4, 9])
@torch.inference_mode()
def test_steps_equal_the_models_own(layout: str, n_kv_heads: int, tied: bool, rows: int) -> None:
    model = model_of(layout, n_kv_heads, tied)
    ids = torch.randint(0, 131, (rows, 20), generator=torch.Generator().manual_seed(rows))
    lengths = torch.arange(rows) % 5 + 2  # ragged prompts
    one = torch.ones(rows, dtype=torch.int64)
    states = []
    decoders = (model, model.for_decoding())
    assert isinstance(decoders[1], PackedGPT)
    for decoder in decoders:
        state = decoder.new_state(rows, 20)
        decoder.step(ids[:, :6], lengths, state)
        outputs = [decoder.logits(decoder.step(ids[:, t : t + 1], one, state)) for t in range(6, 12)]
        states.append((torch.cat(outputs, dim=1), state))
    torch.testing.assert_close(states[0][0], states[1][0], rtol=1e-4, atol=1e-4)
    for row, length in enumerate(states[0][1].lengths.tolist()):  # beyond it may stand what was guessed
        ours, theirs = (state.keys[:, row, :, :length] for _, state in states)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert torch.equal(states[0][1].lengths, states[1][1].lengths)


@torch.inference_mode()
def test_rows_may_leave_and_join() -> None:
    model = model_of("qwen3", 2, True)
    fast = model.for_decoding()
    state = fast.new_state(3, 16)
    ids = torch.randint(0, 131, (3, 5), generator=torch.Generator().manual_seed(0))
    fast.step(ids, torch.tensor([5, 2, 3]), state)
    late = fast.new_state(1, 12)
    fast.step(ids[:1, :4], torch.tensor([4]), late)
    joined = state.select(torch.tensor([2, 0])).append(late)
    hidden = fast.step(torch.tensor([[1], [2], [3]]), torch.ones(3, dtype=torch.int64), joined)
    whole = [
        torch.cat([ids[2, :3], torch.tensor([1])]),
        torch.cat([ids[0], torch.tensor([2])]),
        torch.cat([ids[0, :4], torch.tensor([3])]),
    ]
    for row, sequence in enumerate(whole):
        torch.testing.assert_close(hidden[row, 0], model(sequence[None])[0, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout,n_kv_heads,tied", LAYOUTS)
@torch.inference_mode()
def test_a_token_has_the_same_bits_in_any_company(layout: str, n_kv_heads: int, tied: bool) -> None:
    """Read in other portions, in wider caches, beside 0 to 80 other rows: hidden states and scores are equal, not close.

    What a short prompt is read by is the loops too; the model's own way would only be close.
    """
    fast = model_of(layout, n_kv_heads, tied, vocab_size=130).for_decoding()
    ids = torch.randint(0, 130, (81, 30), generator=torch.Generator().manual_seed(3))

    def hidden_of(rows: int, portions: list[int], capacity: int) -> torch.Tensor:
        state, parts, begun = fast.new_state(rows, capacity), [], 0
        for count in portions:
            part = fast.step(ids[:rows, begun : begun + count], torch.full((rows,), count), state)
            parts.append(part)
            begun += count
        return torch.cat(parts, dim=1)

    one = hidden_of(1, [1] * 30, 40)
    assert torch.equal(one, hidden_of(1, [30], 40))
    assert torch.equal(one, hidden_of(1, [7, 1, 22], 30))
    for rows in (2, 3, 16, 33, 64, 81):
        many = hidden_of(rows, [1] * 30, 33)
        assert torch.equal(one[0], many[0])
        scores = fast.logits(many[:, -1])
        assert torch.equal(fast.logits(one[:, -1].clone())[0], scores[0])
        found = fast.most_probable(many[:, -1], ())
        assert found is None or torch.equal(found, scores.argmax(dim=-1))
    ragged = fast.new_state(3, 40)
    hidden = fast.step(ids[:3, :20], torch.tensor([20, 0, 9]), ragged)
    assert torch.equal(hidden[0, :20], one[0, :20])
    assert ragged.lengths.tolist() == [20, 0, 9]


def test_packing_shares_the_models_memory() -> None:
    model = model_of("qwen3", 2, True)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    first, second = PackedGPT(model), PackedGPT(model)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert (
        first.arguments[1].ctypes.data
        == second.arguments[1].ctypes.data
        == model.blocks[0].attention.qkv.weight.data_ptr()
    )
    with torch.no_grad():
        model.blocks[2].attention.qkv.weight.fill_(0.5)
    assert (first.arguments[1][2] == 0.5).all()


@torch.inference_mode()
def test_the_last_slot_and_beyond() -> None:
    """A full context is refused by nobody below decoding: the step behind it takes the model's own way."""
    model = model_of("gpt2", 4, True)
    fast = model.for_decoding()
    ids = torch.randint(0, 131, (1, 40), generator=torch.Generator().manual_seed(1))
    state = fast.new_state(1)
    fast.step(ids[:, :39], torch.tensor([39]), state)
    hidden = fast.step(ids[:, 39:], torch.tensor([1]), state)
    torch.testing.assert_close(hidden[0, 0], model(ids)[0, -1], rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_not_finite_weights_are_seen() -> None:
    model = model_of("llama", 4, False)
    model.blocks[1].feed_forward.down.weight[0, 0] = float("nan")
    fast = model.for_decoding()
    state = fast.new_state(1, 8)
    hidden = fast.step(torch.tensor([[3]]), torch.tensor([1]), state)
    assert hidden.isnan().any()
