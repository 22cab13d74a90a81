"""Preference tuning: to make one reply more probable than another (DPO, Rafailov et al. 2023).

With x a prompt, y+ the reply that is preferred and y- the other, pi the model and pi_ref the frozen model that training
began from, a reply's implicit reward is r(x, y) = beta log(pi(y | x) / pi_ref(y | x)), and (equation 7)

    L = -log sigmoid(r(x, y+) - r(x, y-))

No reward model and no sampling are needed. Where a share e of the preferences may be the wrong way round, the loss is
(1 - e) L + e L' with L' that of the swapped pair (cDPO, Mitchell 2023). What differs from the paper: log pi_ref is
computed once before training and kept, two numbers a pair, so no second model is held while it trains.

log pi(y | x) is the sum over the learnt tokens of a row, taken in fp32 under autocast too: it is a difference of such
sums that counts, and rounding to bf16 would be a good part of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from zhixing.models.products import linear
from zhixing.tokens.preferred import PreferredRows
from zhixing.training.loop import Measures
from zhixing.training.objectives import IGNORED, LOGITS_HELD, Objective

# TRL's names, means over pairs
MEASURED = ("rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected", "logps/chosen",
            "logps/rejected")  # fmt: skip


class TargetLogProbabilities(torch.autograd.Function):
    """log softmax(W h_n)[y_n] of each row n, a chunk of rows at a time: never all the logits (N, V) at once.

    Each row's gradient depends on the sums of its pair, so it is not known yet when the logits are there: backward
    makes them again. d log p_n / d(W h_n) = onehot(y_n) - p (Bridle 1990); checked against torch in the tests.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        # hidden (N, D), weight (V, D), targets (N,) -> (N,)
        found = hidden.new_empty(len(hidden))
        for rows in _chunks(len(hidden), len(weight)):
            logits = linear(hidden[rows], weight, None)  # (C, V)
            at = logits.gather(1, targets[rows, None])[:, 0]
            found[rows] = at - logits.logsumexp(dim=1)
        ctx.save_for_backward(hidden, weight, targets)
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets = ctx.saved_tensors
        (grad,) = grads  # (N,)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for rows in _chunks(len(hidden), len(weight)):
            h, g = hidden[rows], grad[rows, None]  # (C, D), (C, 1)
            d = linear(h, weight, None).softmax(dim=1).mul_(-g)  # (C, V)
            d.scatter_add_(1, targets[rows, None], g)
            grad_hidden[rows] = linear(d, weight.t(), None)
            if grad_weight is not None:
                grad_weight += linear(d.t(), h.t(), None)
        return grad_hidden, grad_weight, None


def _chunks(rows: int, vocab_size: int) -> list[slice]:
    chunk = max(1, LOGITS_HELD // vocab_size)
    return [slice(begin, begin + chunk) for begin in range(0, rows, chunk)]


def target_log_probabilities(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """log softmax(W h_n)[y_n] in nats, fp32. hidden (N, D), weight (V, D), targets (N,) int64 -> (N,)."""
    apply: Any = TargetLogProbabilities.apply
    with torch.autocast(hidden.device.type, enabled=False):
        found: Tensor = apply(hidden.float(), weight, targets)
    return found


def pair_log_probabilities(model: nn.Module, batch: Any) -> Tensor:
    """log p of both replies of each pair, (B, 2) float64 nats: the sums over their learnt tokens. PreferredBatch."""
    counted = batch.tokens != IGNORED  # (2B, T)
    hidden = model(batch.inputs)[counted]  # (N, D)
    inner: Any = getattr(model, "module", model)  # DDP keeps the model it wraps as .module
    each = target_log_probabilities(hidden, inner.head(), batch.tokens[counted]).double()  # (N,)
    sums = each.new_zeros(len(counted)).index_add(0, counted.nonzero()[:, 0], each)  # (2B,)
    return sums.view(2, -1).t()


def dpo_loss(log_ratios: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """The loss (B,) of log(pi / pi_ref) of the reply preferred and of the other, (B, 2) (equation 7; cDPO)."""
    margins = beta * (log_ratios[:, 0] - log_ratios[:, 1])  # r(x, y+) - r(x, y-)
    return -(1 - label_smoothing) * F.logsigmoid(margins) - label_smoothing * F.logsigmoid(-margins)


def preferred(beta: float, label_smoothing: float = 0.0) -> Objective:
    """Prefer the first reply of each pair to the second: the sum of `dpo_loss`. Smoothing is for learning:
    held-out loss is plain."""

    def objective(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        ratios = pair_log_probabilities(model, batch) - batch.reference
        loss = dpo_loss(ratios, beta, label_smoothing if model.training else 0.0)
        return loss.sum().float(), (batch.targets != IGNORED).sum()

    return objective


def preference_measures(beta: float) -> Measures:
    """What is measured of held-out pairs beside the loss, and the loss, in one pass."""

    def sums(model: nn.Module, batch: Any) -> Tensor:
        given = pair_log_probabilities(model, batch)  # (B, 2)
        ratios = given - batch.reference
        margins = beta * (ratios[:, 0] - ratios[:, 1])
        each = [dpo_loss(ratios, beta), margins > 0, margins, *(beta * ratios).t(), *given.t()]
        return torch.stack([values.double().sum() for values in each])  # (1 + K,)

    return Measures(MEASURED, sums)


@torch.no_grad()
def log_probabilities_of(
    model: nn.Module, rows: PreferredRows, *, bf16: bool = False, watch: Callable[[int], None] = lambda done: None
) -> NDArray[np.float64]:
    """log p of both replies of all pairs, (N, 2) nats, without dropout: once before training that of the reference."""
    model.eval()
    found = np.empty((rows.n_pairs, 2))
    done = 0
    for number in range(len(rows)):
        places = rows.budget.in_order(number, 1)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            found[places] = pair_log_probabilities(model, rows.sequential(number, 1)).numpy()
        done += len(places)
        watch(done)
    return found
