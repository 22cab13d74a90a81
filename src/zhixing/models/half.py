"""bf16 inside compiled loops: stored as its bits, calculated with as float32, whose upper half it is.

numba knows no bf16, so such a tensor comes as uint16 (`bits`). A loop that reads by `number` and writes by `put` is
compiled for either: uint16 for bf16, float32 as it is. Outside they do the same, slowly, by NumPy and torch.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from numba import njit
from numba.extending import intrinsic, overload
from torch import Tensor

from zhixing.models.exponential import FAST, float_of_bits

Array = Any  # np.ndarray inside compiled code


def bits(x: Tensor) -> Array:
    """A CPU tensor's memory as float32, or as uint16 if it is bf16."""
    x = x.detach()
    return x.view(torch.uint16).numpy() if x.dtype == torch.bfloat16 else x.numpy()


@intrinsic
def bits_of_float(context: Any, number: Any) -> Any:
    """The int32 whose bits are those of a float32."""

    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(numba.int32))

    return numba.int32(numba.float32), make


def number(x: Any) -> Any:
    """The float32 that is stored as x."""
    return (np.array([x], np.uint32) << 16).view(np.float32)[0] if isinstance(x, np.uint16) else np.float32(x)


def put(target: Array, place: Any, value: Any) -> None:
    """target[place] = value (float32), rounded to even where target holds bf16; NaN stays NaN."""
    target[place] = bits(torch.tensor([value]).bfloat16())[0] if target.dtype == np.uint16 else value


@overload(number, strict=False)
def _number(x: Any) -> Any:
    if isinstance(x, numba.types.Integer):
        return lambda x: float_of_bits(np.int32(x) << np.int32(16))  # type: ignore[call-arg]
    return lambda x: x


@overload(put, strict=False)
def _put(target: Any, place: Any, value: Any) -> Any:
    if isinstance(target.dtype, numba.types.Integer):

        def half(target: Array, place: Any, value: Any) -> None:
            whole: Any = bits_of_float(np.float32(value))  # type: ignore[call-arg]
            rounded = (whole + np.int32(0x7FFF) + ((whole >> np.int32(16)) & np.int32(1))) >> np.int32(16)
            target[place] = np.uint16(rounded if value == value else np.int32(0x7FC0))

        return half

    def whole(target: Array, place: Any, value: Any) -> None:
        target[place] = value

    return whole


@njit(fastmath=FAST | {"nnan"}, cache=True, error_model="numpy")
def greatest(z: Array) -> Any:
    """The greatest of z (N,), if it holds no NaN. 64 maxima side by side: LLVM does not vectorise a single one."""
    parts = np.full(64, -np.inf, np.float32)
    whole = z.shape[0] // 64 * 64
    for first in range(0, whole, 64):
        part = z[first : first + 64]
        for j in range(64):
            parts[j] = max(parts[j], number(part[j]))
    top = np.float32(-np.inf)
    for j in range(64):
        top = max(top, parts[j])
    for j in range(whole, z.shape[0]):
        top = max(top, number(z[j]))
    return top
