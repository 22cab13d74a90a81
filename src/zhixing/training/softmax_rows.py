"""Cross-entropy of rows of logits and its gradient, in the place of the logits: the loss of a language model, compiled.

For a row z with target y, p = softmax(z), label smoothing e, V classes:

    loss = (1 - e) (log sum exp z - z_y) + e (log sum exp z - mean z)
    dloss / dz = p - (1 - e) onehot(y) - e / V

torch makes nine passes over the logits for it, each through memory; here a row stays in the first cache from its
logits to its gradient. Measured gain: docs/log.md. numba compiles at the first use and keeps it on disk;
`tests/test_softmax_rows.py` holds it against torch.nn.functional.cross_entropy.

Shapes: C rows, V classes.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from zhixing.models.exponential import FAST, exp32
from zhixing.models.few_rows import use_threads
from zhixing.models.half import Array, bits, greatest, number, put


@njit(fastmath=FAST, cache=True, error_model="numpy", forceinline=True)
def _row(z: Array, target: int, counted: bool, smoothing: float) -> float:
    """z (V,): logits -> gradient, in place; returns the loss. All 0 where the row does not count."""
    size = z.shape[0]
    top, of_target = greatest(z), number(z[target])
    e = np.empty(size, np.float32)
    total, sum_, not_finite = np.float32(0), np.float32(0), np.float32(0)
    for j in range(size):
        x = number(z[j])
        sum_ += x
        not_finite += x - x  # NaN where x is NaN or infinite, which exp32 would hide
        e[j] = exp32(x - top)
        total += e[j]
    log_total, mean = np.log(total) + top, sum_ / np.float32(size)
    scale = (np.float32(1) if counted else np.float32(0)) / total
    less = np.float32(smoothing / size) if counted else np.float32(0)
    for j in range(size):
        put(z, j, e[j] * scale - less)
    if not counted:
        return 0.0
    put(z, target, e[target] * scale - less - np.float32(1 - smoothing))
    return float((1 - smoothing) * (log_total - of_target) + smoothing * (log_total - mean) + not_finite)


@njit(parallel=True, cache=True, error_model="numpy")
def _rows(z: Array, targets: Array, ignored: int, smoothing: float, losses: Array) -> None:
    for i in prange(z.shape[0]):
        counted = targets[i] != ignored
        losses[i] = _row(z[i], targets[i] if counted else 0, counted, smoothing)


def cross_entropy_in_place(logits: Tensor, targets: Tensor, ignored: int, smoothing: float) -> Tensor:
    """logits (C, V) fp32 or bf16 on the CPU become dloss/dlogits; targets (C,) int64 -> losses (C,) fp32.

    A row whose target is `ignored` has the loss 0 and the gradient 0.
    """
    losses = torch.empty(len(logits), dtype=torch.float32)
    use_threads()
    _rows(bits(logits), targets.numpy(), ignored, smoothing, losses.numpy())
    return losses
