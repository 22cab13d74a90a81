"""What a model is trained to do: objective(model, batch) -> (sum of losses, number of targets).

Sums, not means: the loop adds them over accumulation steps and processes and divides once by the whole count, so k
small batches equal one large one exactly, ragged ones too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zhixing.models.products import onednn_leads, product

IGNORED = -100  # a target that counts for nothing
LOGITS_HELD = 4 * 2**20  # numbers in one chunk of logits: small enough for the processor's cache


class TokenBatch(Protocol):
    """inputs and targets, (B, T) int64 each; a target of -100 counts for nothing."""

    @property
    def inputs(self) -> Tensor: ...
    @property
    def targets(self) -> Tensor: ...


Objective = Callable[[nn.Module, TokenBatch], tuple[Tensor, Tensor]]


def _cross_entropy_in_place(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """logits (C, V) fp32 become dloss/dlogits; targets (C,) -> sum of losses. What softmax_rows.py compiles."""
    counted = targets != IGNORED  # (C,)
    index = targets.clamp(min=0)[:, None]
    top = logits.amax(dim=1, keepdim=True)
    target_logit = logits.gather(1, index)  # (C, 1)
    mean_logit = logits.mean(dim=1, keepdim=True)
    logits.sub_(top).exp_()
    total = logits.sum(dim=1, keepdim=True)  # (C, 1)
    log_total = total.log() + top
    each = (1 - smoothing) * (log_total - target_logit) + smoothing * (log_total - mean_logit)
    logits.mul_(counted[:, None] / total)  # p, and 0 where nothing counts
    logits.scatter_add_(1, index, counted[:, None] * (smoothing - 1.0))
    if smoothing:
        logits.sub_(counted[:, None] * (smoothing / logits.shape[1]))
    return (each[:, 0] * counted).sum()


class LinearCrossEntropy(torch.autograd.Function):
    """Sum over rows n of -log softmax(W h_n + b)[y_n], a chunk of rows at a time, gradients made on the way.

    With p = softmax(W h + b), dL/d(W h + b) = p - onehot(y), so all gradients are known once a chunk has its logits:
    one chunk (C, V) is turned in place from logits to probabilities to gradient and never the whole (N, V) exists.
    Label smoothing e: the target is (1 - e) onehot(y) + e / V (Szegedy et al. 2016, section 7).

    Source of the gradient: Bridle 1990; checked against torch.nn.functional.cross_entropy in the tests.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        smoothing: float,
        dtype: torch.dtype,
        needs_grad: bool,
    ) -> Tensor:
        # hidden (N, D), weight (V, D), bias (V,), targets (N,) -> scalar; products are made in dtype, all else in fp32
        rows, vocab = hidden.shape[0], weight.shape[0]
        chunk = max(1, min(rows, LOGITS_HELD // vocab))
        loss = hidden.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden) if needs_grad else None
        grad_bias = torch.zeros_like(bias) if needs_grad and bias is not None else None
        w = weight.to(dtype)
        onednn = dtype == torch.float32 and hidden.device.type == "cpu" and onednn_leads()
        grad_weight = torch.zeros_like(weight) if needs_grad and not onednn else None
        across = weight.new_zeros(weight.shape[1], vocab) if needs_grad and onednn else None  # (D, V), for oneDNN
        fused = hidden.device.type == "cpu" and bias is None and dtype in (torch.float32, torch.bfloat16)
        buffer = None if onednn else hidden.new_empty(chunk, vocab, dtype=dtype)
        for begin in range(0, rows, chunk):
            h, y = hidden[begin : begin + chunk].to(dtype), targets[begin : begin + chunk]  # (C, D), (C,)
            logits = product(h, w) if buffer is None else torch.mm(h, w.t(), out=buffer[: len(h)])  # (C, V)
            if fused:
                from zhixing.training.softmax_rows import cross_entropy_in_place  # numba comes with it

                loss += cross_entropy_in_place(logits, y, IGNORED, smoothing).sum()
                d = logits
            else:
                logits = logits.float() if bias is None else logits.float().add_(bias)
                loss += _cross_entropy_in_place(logits, y, smoothing)
                d = logits.to(dtype)
            if grad_hidden is None:
                continue
            if grad_bias is not None:
                grad_bias += logits.sum(dim=0)
            if across is not None:
                grad_hidden[begin : begin + chunk] = product(d, w.t())
                across += product(h.t(), d.t())  # (D, V)
            elif grad_weight is not None and dtype == grad_weight.dtype == grad_hidden.dtype:
                torch.mm(d, w, out=grad_hidden[begin : begin + chunk])
                grad_weight.addmm_(d.t(), h)
            elif grad_weight is not None:
                grad_hidden[begin : begin + chunk] = torch.mm(d, w)
                grad_weight += torch.mm(d.t(), h)
        if across is not None:
            grad_weight = across.t().contiguous()
        if needs_grad:
            ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight, grad_bias = (None if g is None else g.mul_(grads[0]) for g in ctx.saved_tensors)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, smoothing: float = 0.0, bias: Tensor | None = None
) -> Tensor:
    """Sum of cross-entropies in nats, fp32. hidden (..., D), weight (V, D), targets (...) int64, -100 = not counted.

    With `bias` (V,) the logits are W h + b.
    Under autocast the products are made in its dtype, as those of the layers are.
    """
    flat = hidden.reshape(-1, hidden.shape[-1])  # (N, D)
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else flat.dtype
    parts = [flat, weight] if bias is None else [flat, weight, bias]
    needs_grad = torch.is_grad_enabled() and any(part.requires_grad for part in parts)
    apply: Any = LinearCrossEntropy.apply
    with torch.autocast(device, enabled=False):
        loss: Tensor = apply(flat, weight, bias, targets.reshape(-1), smoothing, dtype, needs_grad)
    return loss


def next_token(label_smoothing: float = 0.0) -> Objective:
    """Predict each next token (Bengio et al. 2003): the sum of -log p(x_t | x_<t) over the targets that count."""

    def objective(model: nn.Module, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        hidden = model(batch.inputs)  # (B, T, D)
        inner: Any = getattr(model, "module", model)  # DDP keeps the model it wraps as .module
        smoothing = label_smoothing if model.training else 0.0  # held-out loss is plain
        loss = linear_cross_entropy(hidden, inner.head(), batch.targets, smoothing)
        return loss, (batch.targets != IGNORED).sum()

    return objective


def learnt_tokens(label_smoothing: float = 0.0) -> Objective:
    """`next_token` where many targets are -100: logits are made only at places that count. Held-out loss is plain."""

    def objective(model: nn.Module, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        counted = batch.targets != IGNORED  # (B, T)
        hidden = model(batch.inputs)[counted]  # (N, D)
        inner: Any = getattr(model, "module", model)
        smoothing = label_smoothing if model.training else 0.0
        return linear_cross_entropy(hidden, inner.head(), batch.targets[counted], smoothing), counted.sum()

    return objective


def target_given_source(label_smoothing: float = 0.0) -> Objective:
    """Write a text after reading another (Sutskever et al. 2014, eq. 1): the sum of -log p(y_t | y_<t, x).

    batch.sources (B, S), batch.source_lengths (B,), batch.inputs and batch.targets (B, T). Smoothing is for learning:
    held-out loss is plain.
    """

    def objective(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        hidden = model(batch.inputs, batch.sources, batch.source_lengths)  # (B, T, D)
        inner: Any = getattr(model, "module", model)
        smoothing = label_smoothing if model.training else 0.0
        if getattr(inner.settings, "pointer", False):  # its scores are no product with the head alone
            counted = batch.targets != IGNORED  # (B, T)
            scores, targets = inner.logits(hidden[counted]), batch.targets[counted]  # (N, V), (N,)
            return F.cross_entropy(scores, targets, reduction="sum", label_smoothing=smoothing), counted.sum()
        bias = getattr(inner, "logits_bias", None)
        bias = bias if bias is not None and bool(bias.any()) else None  # zeros until a checkpoint brings others
        loss = linear_cross_entropy(hidden, inner.head(), batch.targets, smoothing, bias)
        return loss, (batch.targets != IGNORED).sum()

    return objective


ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]


def label_texts(
    problem_type: ProblemType, class_weights: Tensor | None = None, label_smoothing: float = 0.0
) -> Objective:
    """Say what a text is. batch.inputs (B, T), batch.mask (B, T) bool, and by problem type:

        single label   -sum_n w_y log softmax(z_n)[y_n]                        targets (B,) int64, -100 = not counted
        multi label    the binary cross-entropy of each label, over its mean    targets (B, C) 0 or 1
        regression     sum_n (z_n - y_n)^2                                      targets (B,)

    class_weights (C,) multiply the loss of a class (single label) or of its presence (multi label). The count is that
    of texts (single label, regression) or of text-label pairs. A score of -100 is a score.
    """

    def objective(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        logits, targets = model(batch.inputs, batch.mask), batch.targets  # (B, C)
        if problem_type == "regression":
            loss = F.mse_loss(logits[:, 0], targets, reduction="sum")
            return loss, torch.ones_like(targets).sum()
        elif problem_type == "multi_label_classification":
            loss = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=class_weights, reduction="sum")
        else:
            loss = F.cross_entropy(
                logits,
                targets,
                class_weights,
                ignore_index=IGNORED,
                label_smoothing=label_smoothing if model.training else 0.0,
                reduction="sum",
            )
        return loss, (targets != IGNORED).sum()

    return objective
