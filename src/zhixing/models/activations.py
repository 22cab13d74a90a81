"""GELU and SwiGLU on a processor: one compiled pass there, one back.

    gelu(x) = x (1 - 1 / (e^(2u) + 1)),  u = sqrt(2 / pi) (x + 0.044715 x^3)      (Hendrycks & Gimpel 2016, tanh form)
    swiglu(g, u) = g sigmoid(g) u                                                 (Shazeer 2020, eq. 6)

In bf16 torch takes 3 ms for 2,048 rows of 1,536, most of it for tanh and for the way from and to fp32 (docs/log.md).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from zhixing.models.exponential import FAST, exp32
from zhixing.models.few_rows import use_threads
from zhixing.models.half import Array, bits, number, put

_ROOT, _CUBIC = np.float32(math.sqrt(2 / math.pi)), np.float32(0.044715)
_ONE, _TWO, _THREE = np.float32(1), np.float32(2), np.float32(3)


@njit(fastmath=FAST, cache=True, error_model="numpy", forceinline=True)
def _gelu_row(x: Array, out: Array) -> None:
    for j in range(x.shape[0]):
        a = number(x[j])
        put(out, j, a - a / (exp32(_TWO * _ROOT * (a + _CUBIC * a * a * a)) + _ONE))


@njit(fastmath=FAST, cache=True, error_model="numpy", forceinline=True)
def _gelu_back_row(x: Array, dy: Array, dx: Array) -> None:
    """gelu' = s + 2 x s (1 - s) u', with s = sigmoid(2u)."""
    for j in range(x.shape[0]):
        a = number(x[j])
        s = _ONE - _ONE / (exp32(_TWO * _ROOT * (a + _CUBIC * a * a * a)) + _ONE)
        slope = s + _TWO * a * s * (_ONE - s) * _ROOT * (_ONE + _THREE * _CUBIC * a * a)
        put(dx, j, number(dy[j]) * slope)


@njit(fastmath=FAST, cache=True, error_model="numpy", forceinline=True)
def _swiglu_row(both: Array, out: Array) -> None:
    size = out.shape[0]
    for j in range(size):
        g = number(both[j])
        put(out, j, g / (_ONE + exp32(-g)) * number(both[size + j]))


@njit(fastmath=FAST, cache=True, error_model="numpy", forceinline=True)
def _swiglu_back_row(both: Array, dy: Array, d_both: Array) -> None:
    """silu' = s (1 + g (1 - s)), with s = sigmoid(g)."""
    size = dy.shape[0]
    gate, up, d_gate, d_up = both[:size], both[size:], d_both[:size], d_both[size:]
    for j in range(size):
        g, d = number(gate[j]), number(dy[j])
        s = _ONE / (_ONE + exp32(-g))
        put(d_gate, j, d * number(up[j]) * s * (_ONE + g * (_ONE - s)))
        put(d_up, j, d * g * s)


@njit(parallel=True, cache=True, error_model="numpy")
def gelu_rows(x: Array, out: Array) -> None:
    """out (N, F) = gelu(x), which may be out itself."""
    for i in prange(x.shape[0]):
        _gelu_row(x[i], out[i])


@njit(parallel=True, cache=True, error_model="numpy")
def _gelu_back_rows(x: Array, dy: Array, dx: Array) -> None:
    for i in prange(x.shape[0]):
        _gelu_back_row(x[i], dy[i], dx[i])


@njit(parallel=True, cache=True, error_model="numpy")
def swiglu_rows(both: Array, out: Array) -> None:
    """out (N, F) = silu(gate) * up, of both (N, 2F)."""
    for i in prange(both.shape[0]):
        _swiglu_row(both[i], out[i])


@njit(parallel=True, cache=True, error_model="numpy")
def _swiglu_back_rows(both: Array, dy: Array, d_both: Array) -> None:
    for i in prange(both.shape[0]):
        _swiglu_back_row(both[i], dy[i], d_both[i])


# there, back, and how many numbers become one
LOOPS: dict[str, tuple[Any, Any, int]] = {
    "gelu": (gelu_rows, _gelu_back_rows, 1),
    "swiglu": (swiglu_rows, _swiglu_back_rows, 2),
}


class Activation(torch.autograd.Function):
    """x (N, F) -> (N, F / ratio), row by row, by a pair of LOOPS."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str) -> Tensor:
        ctx.save_for_backward(x)
        there, ctx.back, ratio = LOOPS[name]
        out = x.new_empty(len(x), x.shape[1] // ratio)
        use_threads()
        there(bits(x), bits(out))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        dx = torch.empty_like(x)
        use_threads()
        ctx.back(bits(x), bits(grads[0].contiguous()), bits(dx))
        return dx, None


def activation(x: Tensor, name: str) -> Tensor:
    """gelu of x (..., F), or swiglu of x (..., 2F), the gates first; fp32 or bf16 on the CPU -> (..., F)."""
    apply: Any = Activation.apply
    out: Tensor = apply(x.reshape(-1, x.shape[-1]), name)
    return out.view(*x.shape[:-1], -1)
