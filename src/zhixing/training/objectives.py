"""What a model is trained to do: objective(model, batch) -> (sum of losses, number of targets).

Sums, not means: the loop adds them over accumulation steps and processes and divides once by the whole count, so k
small batches equal one large one exactly, ragged ones too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

IGNORED = -100  # a target that counts for nothing
LOGITS_HELD = 4 * 2**20  # numbers in one chunk of logits: small enough for the processor's cache


class TokenBatch(Protocol):
    """inputs and targets, (B, T) int64 each; a target of -100 counts for nothing."""

    @property
    def inputs(self) -> Tensor: ...
    @property
    def targets(self) -> Tensor: ...


Objective = Callable[[nn.Module, TokenBatch], tuple[Tensor, Tensor]]


class LinearCrossEntropy(torch.autograd.Function):
    """Sum over rows n of -log softmax(W h_n)[y_n], a chunk of rows at a time, gradients made on the way.

    With p = softmax(W h), dL/d(W h) = p - onehot(y), so both gradients are known as soon as a chunk's logits are: one
    chunk (C, V) is turned in place from logits to probabilities to gradient and never the whole (N, V) exists.
    Label smoothing e: the target is (1 - e) onehot(y) + e / V (Szegedy et al. 2016, section 7).

    Source of the gradient: Bridle 1990; checked against torch.nn.functional.cross_entropy in the tests.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        # hidden (N, D), weight (V, D), targets (N,) -> scalar
        rows, vocab = hidden.shape[0], weight.shape[0]
        needs_grad = any(ctx.needs_input_grad)
        chunk = max(1, min(rows, LOGITS_HELD // vocab))
        loss = hidden.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden) if needs_grad else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_grad else None
        buffer = hidden.new_empty(chunk, vocab)
        for begin in range(0, rows, chunk):
            h, y = hidden[begin : begin + chunk], targets[begin : begin + chunk]  # (C, D), (C,)
            logits = torch.mm(h, weight.t(), out=buffer[: len(h)]).float()  # (C, V); no copy in fp32
            counted = y != IGNORED  # (C,)
            index = y.clamp(min=0)[:, None]
            top = logits.amax(dim=1, keepdim=True)
            target_logit = logits.gather(1, index)  # (C, 1)
            mean_logit = logits.mean(dim=1, keepdim=True) if smoothing else None
            logits.sub_(top).exp_()
            total = logits.sum(dim=1, keepdim=True)  # (C, 1)
            log_total = total.log() + top
            each = log_total - target_logit
            if mean_logit is not None:
                each = (1 - smoothing) * each + smoothing * (log_total - mean_logit)
            loss += (each[:, 0] * counted).sum()
            if grad_hidden is not None and grad_weight is not None:
                logits.mul_(counted[:, None] / total)  # p, and 0 where nothing counts
                on_target = (counted[:, None] * (smoothing - 1.0)).to(logits.dtype)
                logits.scatter_add_(1, index, on_target)
                if smoothing:
                    logits.sub_(counted[:, None] * (smoothing / vocab))
                d = logits.to(hidden.dtype)
                torch.mm(d, weight, out=grad_hidden[begin : begin + chunk])
                if grad_weight.dtype == d.dtype:
                    grad_weight.addmm_(d.t(), h)
                else:
                    grad_weight += torch.mm(d.t(), h)
        if grad_hidden is not None and grad_weight is not None:
            ctx.save_for_backward(grad_hidden, grad_weight.to(weight.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden.mul_(grads[0]), grad_weight.mul_(grads[0]), None, None


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Sum of cross-entropies in nats, fp32. hidden (..., D), weight (V, D), targets (...) int64, -100 = not counted."""
    flat = hidden.reshape(-1, hidden.shape[-1])  # (N, D)
    apply: Any = LinearCrossEntropy.apply
    loss: Tensor = apply(flat, weight.to(flat.dtype), targets.reshape(-1), smoothing)
    return loss


def next_token(label_smoothing: float = 0.0) -> Objective:
    """Predict each next token (Bengio et al. 2003): the sum of -log p(x_t | x_<t) over the targets that count."""

    def objective(model: nn.Module, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        hidden = model(batch.inputs)  # (B, T, D)
        inner: Any = getattr(model, "module", model)  # DDP keeps the model it wraps as .module
        loss = linear_cross_entropy(hidden, inner.head(), batch.targets, label_smoothing)
        return loss, (batch.targets != IGNORED).sum()

    return objective
