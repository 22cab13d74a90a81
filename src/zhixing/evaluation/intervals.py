"""How sure a score is: the bootstrap, of a ratio of sums and of any score that can be computed from counts.

A score such as loss is sum(nll) / sum(targets) over documents. Tokens of one document hang together, so the document
is what is drawn again, not the token (Efron & Tibshirani 1993, chapter 8): n documents are drawn with replacement, the
ratio is computed, and the middle 95 % of many such ratios is the interval.

Macro F1 or a rank correlation is no ratio of sums. But each is a function of how often every document was drawn, so it
can be computed for all the draws at once, from a table of counts (draws, documents). Documents that a score cannot
tell apart share a column: drawing n texts again is drawing the cells of the confusion matrix again, multinomially.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zhixing.progress import Progress

DRAWS_HELD = 4 * 2**20  # indices held at once: 32 MiB

Floats = NDArray[np.float64]
Intervals = dict[str, tuple[Floats, Floats, Floats]]  # name -> value, low, high, each () or (C,)
Statistics = Callable[[Floats], dict[str, Floats]]  # counts (R, K) -> scores, each (R,) or (R, C)


@dataclass(frozen=True)
class Score:
    """A number, the 95 % interval it lies in, over how many documents, and the seed of the bootstrap."""

    value: float
    low: float
    high: float
    n: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it: a number that is not finite (the interval of one document) is None."""
        finite = {
            key: v if math.isfinite(v) else None
            for key, v in (("value", self.value), ("low", self.low), ("high", self.high))
        }
        return {**finite, "n": self.n, "seed": self.seed}


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


def draw_counts(counts: ArrayLike, seed: int, resamples: int = 1000) -> Iterator[Floats]:
    """How often each of K kinds of document is met in each resample: counts (K,) -> blocks (R, K), R summing up.

    Every row sums to n = sum(counts). The same counts and seed give the same rows, whatever the size of a block.
    """
    kinds = np.asarray(counts, np.int64)
    if kinds.ndim != 1 or not len(kinds) or (kinds < 0).any() or not kinds.any():
        raise ValueError(f"expected a row of counts with one above 0, got shape {kinds.shape}")
    if resamples < 1:
        raise ValueError(f"expected resamples >= 1, got {resamples}")
    n, n_kinds = int(kinds.sum()), len(kinds)
    generator = np.random.default_rng(seed)
    each_differs = bool((kinds == 1).all())  # then indices, counted, are ten times faster than n binomial draws
    block = max(1, DRAWS_HELD // n_kinds)
    for begin in range(0, resamples, block):
        size = min(block, resamples - begin)
        if each_differs:
            places = generator.integers(0, n, size=(size, n)) + n * np.arange(size)[:, None]  # (R, n)
            drawn = np.bincount(places.ravel(), minlength=size * n).reshape(size, n)  # (R, K)
        else:
            drawn = generator.multinomial(n, kinds / n, size=size)  # (R, K)
        yield drawn.astype(np.float64)


def bootstrap_scores(
    counts: ArrayLike, statistics: Statistics, *, seed: int, resamples: int = 1000, confidence: float = 0.95
) -> Intervals:
    """Each score with the ends of its percentile interval.

    counts (K,) are the documents as they are; statistics((R, K)) gives every score of R resamples, and the value
    itself from one row, so that both come from the same code. A resample for which a score is not a number (recall of
    a class that was not drawn) says nothing and is left out. Fewer than two documents: (-inf, inf).

    >>> halves = bootstrap_scores([5, 5], lambda drawn: {"share": drawn[:, 0] / 10}, seed=0)["share"]
    >>> [float(number) for number in halves]
    [0.5, 0.2, 0.8]
    """
    if not 0 < confidence < 1:
        raise ValueError(f"expected 0 < confidence < 1, got {confidence}")
    kinds = np.asarray(counts, np.float64)
    values = {name: value[0] for name, value in statistics(kinds[None]).items()}  # each () or (C,)
    if kinds.sum() < 2:
        return {name: (v, np.full_like(v, -np.inf), np.full_like(v, np.inf)) for name, v in values.items()}
    blocks: list[dict[str, Floats]] = []
    with Progress("bootstrap", total=resamples) as progress:
        for drawn in draw_counts(counts, seed, resamples):
            blocks.append(statistics(drawn))
            progress.update(sum(len(block[next(iter(block))]) for block in blocks))
    ends = [(1 - confidence) / 2, (1 + confidence) / 2]
    found = {}
    for name, value in values.items():
        low, high = _quantiles(np.concatenate([block[name] for block in blocks]), ends)
        found[name] = value, low, high
    return found


def reflected(value: Floats, low: Floats, high: Floats) -> tuple[Floats, Floats, Floats]:
    """The basic interval of a score from 0 to 1, from its percentile one: each end on the other side of the value.

    It is for scores that draws overstate, as a sum of absolute values does: chance makes each a little larger, in the
    texts once and in the draws twice, so that the middle of the draws lies above what is true. 2 v - draw takes it back
    (Davison & Hinkley 1997, section 5.2). Of the calibration error of a calibrated classifier the percentile interval
    hardly ever holds the truth, this one mostly (a test has the figures).
    """
    if not (np.isfinite(low) & np.isfinite(high)).all():
        return value, low, high
    return value, np.clip(2 * value - high, 0, value), np.clip(2 * value - low, value, 1)


def as_scores(found: Intervals, n: int, seed: int) -> dict[str, Score]:
    """Those that are single numbers, as scores over n documents."""
    return {
        name: Score(float(value), float(low), float(high), n, seed)
        for name, (value, low, high) in found.items()
        if value.ndim == 0
    }


def _quantiles(draws: Floats, ends: list[float]) -> tuple[Floats, Floats]:
    """The quantiles of each column over rows, without those that are no numbers; (-inf, inf) where none is one."""
    missing = np.isnan(draws)
    if not missing.any():
        low, high = np.quantile(draws, ends, axis=0)
        return np.asarray(low), np.asarray(high)
    nothing = missing.all(axis=0)
    low, high = np.nanquantile(np.where(nothing, 0.0, draws), ends, axis=0)
    return np.where(nothing, -np.inf, low), np.where(nothing, np.inf, high)
