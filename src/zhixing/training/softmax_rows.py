"""Cross-entropy of rows of logits and its gradient, in the place of the logits: the loss of a language model, compiled.

For a row z with target y, p = softmax(z), label smoothing e, V classes:

    loss = (1 - e) (log sum exp z - z_y) + e (log sum exp z - mean z)
    dloss / dz = p - (1 - e) onehot(y) - e / V

torch makes nine passes over the logits for it, each through memory; here a row stays in the first cache from its
logits to its gradient. Measured gain: docs/log.md. numba compiles at the first use and keeps it on disk;
`tests/test_softmax_rows.py` holds it against torch.nn.functional.cross_entropy.

Shapes: C rows, V classes. bf16 comes as its bits (uint16): the upper half of a float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from zhixing.models.exponential import FAST, bits_of_float, exp32, float_of_bits
from zhixing.models.few_rows import use_threads

Array = Any  # np.ndarray inside compiled code


@njit(fastmath=FAST | {"nnan"}, cache=True, error_model="numpy")
def _greatest(z: Array) -> Any:
    """The greatest of z, if it holds no NaN: without that proviso the loop would not vectorise."""
    top = np.float32(-np.inf)
    for j in range(z.shape[0]):
        top = max(top, z[j])
    return top


@njit(fastmath=FAST, cache=True, error_model="numpy")
def _row(z: Array, target: int, counted: bool, smoothing: float) -> float:
    """z (V,) float32: logits -> gradient, in place; returns the loss. All 0 where the row does not count."""
    size = z.shape[0]
    top, not_finite = _greatest(z), np.float32(0)
    for j in range(size):
        not_finite += z[j] - z[j]  # NaN where z is NaN or infinite, which exp32 would hide
    mean = np.float32(0)
    if smoothing > 0:
        for j in range(size):
            mean += z[j]
        mean /= np.float32(size)
    of_target = z[target]
    total = np.float32(0)
    for j in range(size):
        e = exp32(z[j] - top)
        z[j] = e
        total += e
    log_total = np.log(total) + top
    scale = (np.float32(1) if counted else np.float32(0)) / total
    less = np.float32(smoothing / size) if counted else np.float32(0)
    for j in range(size):
        z[j] = z[j] * scale - less
    if not counted:
        return 0.0
    z[target] -= np.float32(1 - smoothing)
    return float((1 - smoothing) * (log_total - of_target) + smoothing * (log_total - mean) + not_finite)


@njit(fastmath=FAST, cache=True, error_model="numpy")
def _half_row(bits: Array, target: int, counted: bool, smoothing: float) -> float:
    """The same for bits (V,) uint16 of bf16; all in between is float32, and the gradient is rounded to even."""
    size = bits.shape[0]
    z = np.empty(size, np.float32)
    for j in range(size):
        z[j] = float_of_bits(np.int32(bits[j]) << np.int32(16))  # type: ignore[call-arg]
    loss = _row(z, target, counted, smoothing)
    for j in range(size):
        whole: Any = bits_of_float(z[j])  # type: ignore[call-arg]
        whole += np.int32(0x7FFF) + ((whole >> np.int32(16)) & np.int32(1))
        bits[j] = np.uint16((whole >> np.int32(16)) & np.int32(0xFFFF))
    return loss


@njit(parallel=True, cache=True, error_model="numpy")
def _rows(z: Array, targets: Array, ignored: int, smoothing: float, losses: Array) -> None:
    for i in prange(z.shape[0]):
        counted = targets[i] != ignored
        losses[i] = _row(z[i], targets[i] if counted else 0, counted, smoothing)


@njit(parallel=True, cache=True, error_model="numpy")
def _half_rows(bits: Array, targets: Array, ignored: int, smoothing: float, losses: Array) -> None:
    for i in prange(bits.shape[0]):
        counted = targets[i] != ignored
        losses[i] = _half_row(bits[i], targets[i] if counted else 0, counted, smoothing)


def cross_entropy_in_place(logits: Tensor, targets: Tensor, ignored: int, smoothing: float) -> Tensor:
    """logits (C, V) fp32 or bf16 on the CPU become dloss/dlogits; targets (C,) int64 -> losses (C,) fp32.

    A row whose target is `ignored` has the loss 0 and the gradient 0.
    """
    losses = torch.empty(len(logits), dtype=torch.float32)
    use_threads()
    if logits.dtype == torch.bfloat16:
        _half_rows(logits.view(torch.uint16).numpy(), targets.numpy(), ignored, smoothing, losses.numpy())
    else:
        _rows(logits.numpy(), targets.numpy(), ignored, smoothing, losses.numpy())
    return losses
