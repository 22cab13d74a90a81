"""e^x inside compiled loops, as arithmetic only, so that loops over it vectorise (the library's function is a call)."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import njit
from numba.extending import intrinsic

from zhixing.models.compiling import listen

listen()  # all files of loops import this one
FAST = {
    "reassoc",
    "contract",
    "nsz",
    "arcp",
}  # sums may be reordered (so that they vectorise); inf and NaN stay themselves
# error_model="numpy" below: a check for a division by zero would keep a loop from being vectorised (8 times as slow)


@intrinsic
def float_of_bits(context: Any, bits: Any) -> Any:
    """The float32 whose bits are those of an int32."""

    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(numba.float32))

    return numba.float32(numba.int32), make


@njit(fastmath=FAST, inline="always", error_model="numpy")
def exp32(x: Any) -> Any:
    """e^x for float32 within 3e-7 of its value.

    x = (n + f) ln 2 with n whole and |f| <= 1/2; 2^f is a Taylor polynomial, 2^n an exponent. Below -87 it is about 0.
    """
    z = min(max(x * np.float32(1.4426950408889634), np.float32(-126.0)), np.float32(126.0))
    whole = np.int32(z + np.float32(126.5))  # n + 126: never negative, so cutting off the fraction rounds
    f = (z - (np.float32(whole) - np.float32(126))) * np.float32(0.6931471805599453)
    p = np.float32(1 / 120) + f * np.float32(1 / 720)
    p = np.float32(1 / 6) + f * (np.float32(1 / 24) + f * p)
    p = np.float32(1) + f * (np.float32(1) + f * (np.float32(0.5) + f * p))
    return p * float_of_bits((whole + np.int32(1)) << np.int32(23))  # type: ignore[call-arg]
