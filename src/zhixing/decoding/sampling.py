"""Chance that does not depend on the company: a row draws from a stream of its own.

The stream is a function of (seed, prompt, sample index) alone, and a token takes one number of it. So a row writes the
same text alone, in any batch and at any place in it, and samples of one prompt, or of two prompts, are independent.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

import torch
from torch import Tensor

from zhixing.errors import InputError


def random_stream(seed: int, prompt: Sequence[int], sample: int) -> random.Random:
    """The row's own numbers; the same on every machine (Python fixes its generator's sequence)."""
    name = f"{seed} {sample} {' '.join(map(str, prompt))}"
    return random.Random(int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "big"))


def draw(stream: random.Random) -> float:
    """The stream's next number in [0, 1), a multiple of 2^-32."""
    return stream.getrandbits(32) / 2**32


def most_probable(logits: Tensor) -> Tensor:
    """The place of the greatest of each row, the first if there are several: logits (B, V) -> ids (B,).

    On a CPU by NumPy: 3 us for a row of 16,384, where torch.argmax takes 35 to 50, a twentieth of a small model's step.
    """
    if logits.device.type != "cpu":
        return logits.argmax(dim=-1)
    return torch.from_numpy(logits.detach().numpy().argmax(axis=-1))


def sample(logits: Tensor, draws: Sequence[float]) -> Tensor:
    """One token a row by inverting the distribution function: logits (B, V), a number in [0, 1) a row -> ids (B,).

    The chosen i is the first with p_0 + ... + p_i > u. For example p = (0.5, 0, 0.5): u = 0.2 gives 0, u = 0.5 gives 2.
    A token of probability 0 is never chosen: the sum does not grow there. One number a row, where Gumbel noise would
    take V of them.
    """
    sums = logits.softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)  # (B, V)
    # u <= 1 - 2^-32 keeps u * total below the total in float64, so that an i always exists
    wanted = torch.tensor(draws, dtype=torch.float64, device=logits.device)[:, None] * sums[:, -1:]  # (B, 1)
    chosen = torch.searchsorted(sums, wanted, right=True)[:, 0]  # (B,)
    if int(chosen.max()) >= logits.shape[-1]:
        refuse_not_finite()
    return chosen


def refuse_not_finite() -> None:
    """The error for logits that hold NaN or +inf."""
    raise InputError(
        "the model gives scores that are no numbers",
        why="its weights hold NaN or infinite values, or its precision overflows",
        mend="take an earlier checkpoint, or fp32",
    )
