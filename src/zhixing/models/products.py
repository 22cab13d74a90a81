"""y = x W^T + b in fp32 on a processor, by the faster of two libraries.

torch hands fp32 products to MKL, which takes its AVX-512 path on Intel's processors only: on others it runs at half
speed (shared/peers/README.md, "Leads": 111 to 178 GFLOP/s against 355 to 431 by oneDNN on an AMD processor; on an
Intel one MKL leads by 262 to 210). torch ships oneDNN too, behind `torch.ops.mkldnn`. Which one is decided once, by
the maker of the processor and not by a timing, so that a run gives the same bits each time.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

FEWEST_ROWS = 64  # below, a product waits for memory whichever library makes it
# Without gradients our own loops lead up to so many rows (over MKL 1.1 to 2 times, Zen 3), by whether oneDNN leads
MOST_ROWS = {False: 64, True: 16}
FEWEST_WEIGHTS = 2**16  # below, it takes longer to call a product than to make it


@cache
def onednn_leads(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this is a processor with AVX-512 that is not Intel's, and torch has oneDNN."""
    onednn: Any = torch.backends.mkldnn
    if platform.machine() not in ("x86_64", "AMD64") or not onednn.is_available():
        return False
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return "GenuineIntel" not in text and "avx512f" in text


def product(a: Tensor, b: Tensor) -> Tensor:
    """a (M, K) times b (N, K)^T by oneDNN -> (M, N) fp32.

    b may be the transpose of a contiguous matrix, which oneDNN reads as it lies; a is made contiguous. So of two
    factors that both lie the wrong way the smaller one belongs first.
    """
    multiply: Any = torch.ops.mkldnn._linear_pointwise
    result: Tensor = multiply(a.contiguous(), b, None, "none", [], "")
    return result


def product_over_rows(dy: Tensor, x: Tensor) -> Tensor:
    """dy (M, N), x (M, K) -> dy^T x (N, K), perhaps as the transpose of a contiguous matrix.

    Copying the smaller factor and none but it: 170 to 205 GFLOP/s where copying both gave 155 to 161 (AMD, 2 cores).
    """
    return product(x.t(), dy.t()).t() if x.shape[1] < dy.shape[1] else product(dy.t(), x.t())


class OneDNNLinear(torch.autograd.Function):
    """y = x W^T + b with dx = dy W, dW = dy^T x, db = sum of dy, all three products by oneDNN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        multiply: Any = torch.ops.mkldnn._linear_pointwise
        y: Tensor = multiply(x, weight, bias, "none", [], "")  # (M, N)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        (dy,) = grads  # (M, N)
        dy = dy.contiguous()
        dx = product(dy, weight.t()) if ctx.needs_input_grad[0] else None
        dw = product_over_rows(dy, x) if ctx.needs_input_grad[1] else None
        return dx, dw, dy.sum(0) if ctx.needs_input_grad[2] else None


def product_of_few(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As `linear`, by the loops of few_rows.py: a row's numbers have the same bits whatever stands beside it."""
    from zhixing.models.few_rows import UNSCALED, matmul, use_threads  # numba comes with it

    flat = x.reshape(-1, x.shape[-1]).contiguous()
    y = torch.empty(len(flat), len(weight))
    matmul(weight.detach().contiguous().numpy(), UNSCALED, flat.numpy(), y.numpy(), use_threads())
    return (y if bias is None else y.add_(bias)).view(*x.shape[:-1], -1)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., K), weight (N, K), bias (N,) or None -> (..., N); F.linear wherever oneDNN would not be faster."""
    plain = x.dtype != torch.float32 or x.device.type != "cpu" or torch.is_autocast_enabled("cpu")
    if plain or torch.compiler.is_compiling():
        return F.linear(x, weight, bias)
    rows = x.numel() // x.shape[-1]
    if not torch.is_grad_enabled() and 0 < rows <= MOST_ROWS[onednn_leads()] and weight.numel() >= FEWEST_WEIGHTS:
        return product_of_few(x, weight, bias)
    if not onednn_leads() or rows < FEWEST_ROWS:
        return F.linear(x, weight, bias)
    apply: Any = OneDNNLinear.apply
    y: Tensor = apply(x.reshape(-1, x.shape[-1]), weight, bias)
    return y.view(*x.shape[:-1], -1)
