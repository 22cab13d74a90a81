"""How sure a score is: the bootstrap of a ratio of sums.

A score such as loss is sum(nll) / sum(targets) over documents. Tokens of one document hang together, so the document
is what is drawn again, not the token (Efron & Tibshirani 1993, chapter 8): n documents are drawn with replacement, the
ratio is computed, and the middle 95 % of many such ratios is the interval.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

DRAWS_HELD = 4 * 2**20  # indices held at once: 32 MiB


def bootstrap_interval(
    numerators: ArrayLike, denominators: ArrayLike, seed: int, resamples: int = 1000, confidence: float = 0.95
) -> tuple[float, float]:
    """The percentile interval of sum(numerators) / sum(denominators) over documents.

    numerators, denominators: (n,), one pair a document. The same seed draws the same documents, so intervals of scores
    of the same documents belong together. Fewer than two documents say nothing of another one: (-inf, inf).
    """
    top, bottom = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    if top.ndim != 1 or top.shape != bottom.shape:
        raise ValueError(f"expected two rows of equal length, got {top.shape} and {bottom.shape}")
    if not (bottom > 0).all():
        raise ValueError("every denominator must be above 0: leave out documents with nothing to predict")
    if resamples < 1 or not 0 < confidence < 1:
        raise ValueError(f"expected resamples >= 1 and 0 < confidence < 1, got {resamples} and {confidence}")
    n = len(top)
    if n < 2:
        return -np.inf, np.inf
    generator = np.random.default_rng(seed)
    block = max(1, DRAWS_HELD // n)
    ratios = np.empty(resamples)
    for begin in range(0, resamples, block):
        drawn = generator.integers(0, n, size=(min(block, resamples - begin), n))  # (R, n)
        ratios[begin : begin + len(drawn)] = top[drawn].sum(axis=1) / bottom[drawn].sum(axis=1)
    low, high = np.quantile(ratios, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
