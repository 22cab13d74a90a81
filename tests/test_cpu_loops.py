"""The compiled loops of training (attention, GELU, SwiGLU) are torch's operators, forward and back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from zhixing.models import cpu_attention, layers
from zhixing.models.activations import activation
from zhixing.models.cpu_attention import attention
from zhixing.models.half import number, put
from zhixing.models.layers import BidirectionalAttention, GELUFeedForward, SelfAttention, SwiGLU


def both_ways(function: Callable[..., Tensor], inputs: list[Tensor], dy: Tensor) -> list[Tensor]:
    """The result and the gradients of all inputs."""
    own = [x.clone().requires_grad_() for x in inputs]
    y = function(*own)
    y.backward(dy.to(y.dtype))
    return [y.detach().float(), *(x.grad.float() for x in own if x.grad is not None)]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


NEAR = {torch.float32: {"rtol": 1e-5, "atol": 1e-5}, torch.bfloat16: {"rtol": 0.03, "atol": 0.03}}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 5, 128, 129, 300])
def test_causal_attention(count: int, dtype: torch.dtype) -> None:
    parts = [normal(2, 3, count, 16, seed=i, dtype=dtype) for i in range(3)]
    dy = normal(2, 3, count, 16, seed=9)
    wanted = both_ways(
        lambda q, k, v: F.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=True), parts, dy
    )
    for ours, theirs in zip(both_ways(lambda q, k, v: attention(q, k, v, None), parts, dy), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, **NEAR[dtype])


def test_attention_to_the_real_tokens_only() -> None:
    lengths = torch.tensor([7, 1, 12])
    parts, dy = [normal(3, 2, 12, 8, seed=i) for i in range(3)], normal(3, 2, 12, 8, seed=9)
    mask = (torch.arange(12) < lengths[:, None])[:, None, None]
    wanted = both_ways(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask), parts, dy)
    ours = both_ways(lambda q, k, v: attention(q, k, v, lengths), parts, dy)
    for a, b in zip(ours, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert ours[2][0, :, 7:].abs().max() == 0  # no gradient for padding's keys


def test_other_lengths_of_queries_than_of_keys() -> None:
    q, k, v, dy = normal(2, 2, 5, 8), normal(2, 2, 9, 8, seed=1), normal(2, 2, 9, 8, seed=2), normal(2, 2, 5, 8, seed=3)
    wanted = both_ways(F.scaled_dot_product_attention, [q, k, v], dy)
    ours = both_ways(lambda *x: attention(*x, torch.tensor([9, 9])), [q, k, v], dy)
    for a, b in zip(ours, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_what_is_too_large_to_keep_is_made_again(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = None if causal else torch.tensor([300, 170])
    parts, dy = [normal(2, 3, 300, 16, seed=i) for i in range(3)], normal(2, 3, 300, 16, seed=9)

    def answer(dropout: float) -> list[Tensor]:
        torch.manual_seed(5)
        return both_ways(lambda q, k, v: attention(q, k, v, lengths, dropout), parts, dy)

    kept = answer(0.0), answer(0.2)
    monkeypatch.setattr(cpu_attention, "MOST_KEPT", 0)
    for most in (1, 128 * 300 * 4, 2**21):  # numbers at once: a row, four rows, all
        monkeypatch.setattr(cpu_attention, "MOST_MADE", most)
        for dropout, wanted in zip((0.0, 0.2), kept, strict=True):
            for a, b in zip(answer(dropout), wanted, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("causal", [True, False])
def test_dropout_of_attention(causal: bool, dtype: torch.dtype) -> None:
    """The mask is read off by values that are the unit matrix; then all is what plain operators make of that mask."""
    count, share = 160, 0.3
    lengths = None if causal else torch.tensor([160, 90])
    q, k, v = (normal(2, 3, count, 16, seed=i, dtype=dtype) for i in range(3))
    dy, unit = normal(2, 3, count, 16, seed=9), torch.eye(count, dtype=dtype).expand(2, 3, count, count)

    def ours(*parts: Tensor) -> Tensor:
        torch.manual_seed(3)
        return attention(*parts, lengths, share)

    visible = (
        torch.ones(count, count).tril().bool() if causal else (torch.arange(count) < lengths[:, None])[:, None, None]
    )  # type: ignore[index]
    p = ours(F.pad(q, (0, count - 16)).contiguous(), F.pad(k, (0, count - 16)).contiguous(), unit)
    left = (p > 0) & visible
    assert float(left.sum() / visible.expand_as(left).sum()) == pytest.approx(1 - share, abs=0.01)
    seen = visible.expand_as(left)
    for near, other, at in (  # neighbouring keys, queries and heads are dropped independently of each other
        (left[..., 1:], left[..., :-1], seen[..., 1:] & seen[..., :-1]),
        (left[:, :, 1:], left[:, :, :-1], seen[:, :, 1:] & seen[:, :, :-1]),
        (left[:, 1:], left[:, :-1], seen[:, 1:]),
    ):
        agree = float((near == other)[at].float().mean())
        assert agree == pytest.approx(share**2 + (1 - share) ** 2, abs=0.015)

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = (q.float() @ k.float().transpose(2, 3) / 4).masked_fill(~visible, float("-inf"))
        return (scores.softmax(dim=3) * left / (1 - share)) @ v.float()

    for a, b in zip(both_ways(ours, [q, k, v], dy), both_ways(plain, [q, k, v], dy), strict=True):
        torch.testing.assert_close(a, b, **(NEAR[dtype] if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}))


def test_dropout_is_drawn_anew_each_time_and_repeats_with_the_seed() -> None:
    q = normal(1, 2, 40, 8)
    torch.manual_seed(1)
    first, second = attention(q, q, q, None, 0.5), attention(q, q, q, None, 0.5)
    torch.manual_seed(1)
    assert torch.equal(attention(q, q, q, None, 0.5), first) and not torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations(dtype: torch.dtype) -> None:
    x, dy = 4 * normal(33, 70, dtype=dtype), normal(33, 70, seed=1)
    x[0, :4] = torch.tensor([-100.0, 100.0, 0.0, -1e-3]).to(dtype)
    for a, b in zip(
        both_ways(lambda x: activation(x, "gelu"), [x], dy),
        both_ways(lambda x: F.gelu(x.float(), approximate="tanh"), [x], dy),
        strict=True,
    ):
        torch.testing.assert_close(a, b, **NEAR[dtype])
    dy = dy[:, :35].contiguous()
    for a, b in zip(
        both_ways(lambda x: activation(x, "swiglu"), [x], dy),
        both_ways(lambda x: F.silu(x[:, :35].float()) * x[:, 35:].float(), [x], dy),
        strict=True,
    ):
        torch.testing.assert_close(a, b, **NEAR[dtype])


def test_nan_is_not_hidden() -> None:
    x = normal(4, 40).requires_grad_()
    with torch.no_grad():
        x[1, 3] = float("nan")
    for name in ("gelu", "swiglu"):
        assert activation(x, name)[1, 3].isnan() and activation(x.bfloat16(), name)[1, 3].isnan()
    q = normal(1, 1, 6, 8).requires_grad_()
    k = q.detach().clone()
    k[0, 0, 2, 1] = float("nan")
    assert attention(q, k, q, None)[0, 0, 2:].isnan().any()


def layer_and_input(name: str) -> tuple[torch.nn.Module, Callable[[torch.nn.Module, Tensor], Tensor]]:
    torch.manual_seed(1)
    rotary = layers.rotary_table(16, 64, 10_000.0)
    if name == "grouped":
        grouped = SelfAttention(64, 4, 2, bias=False, qk_norm=True, norm_eps=1e-6, dropout=0.0)
        return grouped, lambda m, x: m(x, rotary)
    if name == "bidirectional":
        mask = (torch.arange(64) < torch.tensor([64, 30, 1, 17])[:, None])[:, None, None]
        return BidirectionalAttention(64, 4, dropout=0.0), lambda m, x: m(x, mask)
    return (SwiGLU(64, 80) if name == "swiglu" else GELUFeedForward(64, 80)), lambda m, x: m(x)


@pytest.mark.parametrize("name", ["grouped", "bidirectional", "swiglu", "gelu"])
def test_layers_take_them_and_stay_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, call = layer_and_input(name)
    x, results, taken = normal(4, 64, 64), [], []
    asked = layers.compiled_loops
    for allowed in (True, False):
        monkeypatch.setattr(layers, "compiled_loops", lambda x, a=allowed: taken.append(asked(x)) or (a and asked(x)))
        layer.zero_grad()
        own = x.clone().requires_grad_()
        y = call(layer, own)
        y.square().sum().backward()
        assert own.grad is not None
        results.append([y.detach(), own.grad, *(p.grad.clone() for p in layer.parameters() if p.grad is not None)])
    assert all(taken)
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_padding_elsewhere_than_on_the_right_goes_torch_s_way() -> None:
    torch.manual_seed(1)
    layer, x = BidirectionalAttention(64, 4, dropout=0.0), normal(4, 64, 64)
    mask = torch.ones(4, 64, dtype=torch.bool)
    mask[1, :20] = False  # on the left
    mask[2, 10:30] = False
    own = x.clone().requires_grad_()
    with torch.no_grad():
        wanted = layer(x, mask[:, None, None])
    torch.testing.assert_close(layer(own, mask[:, None, None]), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 1.5, -3.14159, 1e-30, float("nan"), float("inf")])
def test_a_number_as_bits_outside_of_loops(value: float) -> None:
    exact = torch.tensor([value]).bfloat16()
    stored, plain = np.zeros(1, np.uint16), np.zeros(1, np.float32)
    put(stored, 0, np.float32(value))
    put(plain, 0, np.float32(value))
    np.testing.assert_equal(number(stored[0]), exact.float().numpy()[0])
    np.testing.assert_equal(number(plain[0]), np.float32(value))
