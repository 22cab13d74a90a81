"""The compiled cross-entropy against torch's, in fp32 and in bf16."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from zhixing.training.softmax_rows import cross_entropy_in_place

IGNORED = -100


@pytest.mark.parametrize("vocab", [1, 7, 64, 1000])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_torch(vocab: int, smoothing: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(vocab)
    logits = (5 * torch.randn(9, vocab, generator=generator)).to(dtype)
    targets = torch.randint(0, vocab, (9,), generator=generator)
    targets[[2, 8]] = IGNORED
    wanted = logits.float().clone().requires_grad_()
    losses = F.cross_entropy(wanted, targets, ignore_index=IGNORED, label_smoothing=smoothing, reduction="none")
    losses.sum().backward()
    ours = cross_entropy_in_place(logits, targets, IGNORED, smoothing)
    torch.testing.assert_close(ours, losses.detach(), rtol=2e-6, atol=2e-6)
    assert wanted.grad is not None
    # bf16 has 8 bits: the gradient is that of fp32 rounded once, so half a step of 2^-8
    near = {"rtol": 2e-6, "atol": 2e-6} if dtype == torch.float32 else {"rtol": 2**-8, "atol": 2e-6}
    torch.testing.assert_close(logits.float(), wanted.grad, **near)
    assert logits[2].abs().sum() == 0 and ours[2] == 0


def test_rounds_to_even_as_torch() -> None:
    logits = torch.randn(64, 333).to(torch.bfloat16)
    wanted = logits.float().requires_grad_()
    F.cross_entropy(wanted, torch.arange(64), reduction="sum").backward()
    cross_entropy_in_place(logits, torch.arange(64), IGNORED, 0.0)
    assert wanted.grad is not None
    same = (logits == wanted.grad.to(torch.bfloat16)).float().mean()
    assert same > 0.99  # the others lie within 3e-7 of the middle between two numbers


def test_large_logits_do_not_overflow() -> None:
    logits = torch.tensor([[10_000.0, 2_000.0], [-1e30, 1e30]])
    losses = cross_entropy_in_place(logits, torch.tensor([1, 1]), IGNORED, 0.0)
    assert losses.tolist() == [8000.0, 0.0]
    torch.testing.assert_close(logits, torch.tensor([[1.0, -1.0], [0.0, 0.0]]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 17, 39])
def test_a_number_that_is_not_finite_is_not_hidden(bad: float, place: int) -> None:
    logits = torch.zeros(1, 40)
    logits[0, place] = bad
    assert not torch.isfinite(cross_entropy_in_place(logits, torch.tensor([5]), IGNORED, 0.0)).any()
