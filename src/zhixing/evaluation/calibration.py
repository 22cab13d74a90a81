"""Probabilities that mean what they say: of the texts that get 80 %, eight in ten are right.

A trained network is too sure of itself. Dividing its logits z by one number T before the softmax mends most of that and
changes no answer (Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2). T is fitted on texts that
the network was not trained on, by their log loss. In b = 1 / T that is convex (a log-sum-exp of lines less a line):

    f(b)   = sum_i  logsumexp(b z_i) - b q_i . z_i
    f'(b)  = sum_i  E_p[z_i] - q_i . z_i             p = softmax(b z_i)
    f''(b) = sum_i  Var_p[z_i]  >= 0

Ten texts that are all right do not say that the next thousand are, yet the loss would fall without end and make every
answer certain. So q_i is not all on the target: of n texts each leaves 1 / (n + 2) to the likeliest other class, as
Platt 1999 does with two classes ("Probabilistic Outputs for Support Vector Machines", section 2.2). Where k of n
answers, all equally sure, are right, this is Laplace's rule, (k + 1) / (n + 2); it weighs as one more wrong text.

so its one root is found by Newton's steps held inside a bracket. With several labels a text each logit stands alone and
the sigmoid takes the softmax's place: f'(b) = sum z (sigmoid(b z) - q), f''(b) = sum z^2 p (1 - p).

What is left is measured by the expected calibration error (their equation 3): the answers are sorted into 15 bins of
equal width by their confidence, and the distances between mean confidence and share right are averaged by bin size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zhixing.errors import InputError
from zhixing.evaluation.intervals import Floats

BINS = 15
COLDEST, HOTTEST = 0.01, 100.0  # the temperatures that a fit may end at
NEWTON_STEPS = 100


def softmax(logits: ArrayLike, temperature: float = 1.0) -> Floats:
    """Probabilities of one class each: (..., C) -> (..., C), rows summing to 1."""
    z = np.asarray(logits, np.float64) / temperature
    z = np.exp(z - z.max(axis=-1, keepdims=True))
    return np.asarray(z / z.sum(axis=-1, keepdims=True))


def sigmoid(logits: ArrayLike, temperature: float = 1.0) -> Floats:
    """Probabilities of yes: (...) -> (...). Both halves are computed without overflow."""
    z = np.asarray(logits, np.float64) / temperature
    small = np.exp(-np.abs(z))
    return np.where(z >= 0, 1 / (1 + small), small / (1 + small))


def fit_temperature(logits: ArrayLike, targets: ArrayLike) -> float:
    """The temperature of the lowest log loss on held-out logits (N, C), n of which have a target.

    targets (N,) are class ids and the softmax is meant (below 0: not counted); (N, C) of 0 and 1 mean the sigmoid.
    Between 0.01 and 100; 100 where the logits say less than nothing. InputError: nothing to fit on, or logits that are
    not finite.

    >>> round(fit_temperature([[2.0, 0.0]] * 4, [0, 0, 0, 1]), 4)  # three of four: p = 4 / 6, logit ln 2 instead of 2
    2.8854
    """
    z, y = np.asarray(logits, np.float64), np.asarray(targets)
    if z.ndim != 2 or y.shape not in ((len(z),), z.shape):
        raise ValueError(f"expected logits (N, C) and targets (N,) or (N, C), got {z.shape} and {y.shape}")
    several = y.ndim == 2
    if not several:
        z, y = z[y >= 0], y[y >= 0]
    if not z.size:
        raise InputError("there is nothing to fit a temperature on", why="no held-out text has a known label",
                         mend="hold out texts with labels")  # fmt: skip
    if not np.isfinite(z).all():
        raise InputError("the model gives logits that are not finite", mend="train with a lower learning rate")
    if not several:
        if int(y.max()) >= z.shape[1]:
            raise ValueError(f"expected class ids below {z.shape[1]}, got {int(y.max())}")
        if z.shape[1] == 1:  # certain at any temperature
            return 1.0
        z = z - z.max(axis=1, keepdims=True)  # the softmax does not see it, and moments stay small
        own = z[np.arange(len(z)), y.astype(np.int64)]  # (N,)
        other = np.max(z, axis=1, where=np.arange(z.shape[1]) != y[:, None], initial=-np.inf)  # (N,) the likeliest
    rest = 1 / (len(z) + 2)
    wanted: Floats = np.where(y > 0, 1 - rest, rest) if several else (1 - rest) * own + rest * other  # (N, C) or (N,)

    def slopes(b: float) -> tuple[float, float]:
        """f' and f'' at b."""
        if several:
            p = sigmoid(b * z)
            return float((z * (p - wanted)).sum()), float((z * z * p * (1 - p)).sum())
        p = softmax(b * z)
        mean = (p * z).sum(axis=1)  # (N,)
        return float((mean - wanted).sum()), float((p * (z - mean[:, None]) ** 2).sum())

    low, high = 1 / HOTTEST, 1 / COLDEST
    if slopes(1.0)[0] == 0:  # where all logits are alike every temperature is
        return 1.0
    if slopes(low)[0] >= 0:
        return HOTTEST
    if slopes(high)[0] <= 0:
        return COLDEST
    b = 1.0
    for _ in range(NEWTON_STEPS):
        slope, bend = slopes(b)
        low, high = (b, high) if slope < 0 else (low, b)
        step = b - slope / bend if bend > 0 else np.inf
        next_b = step if low <= step <= high else (low * high) ** 0.5
        if abs(next_b - b) <= 1e-12 * b:
            break
        b = next_b
    return float(1 / b)


def uncalibrated(probabilities: ArrayLike, temperature: float, *, several: bool = False) -> Floats:
    """What the model said before its logits were divided by the temperature: the same shape.

    p is softmax(z / T), so T ln p is z but for a constant; with `several` labels a text, T logit(p) is z.
    """
    p = np.clip(np.asarray(probabilities, np.float64), 1e-300, 1.0)
    if several:
        p = np.clip(p, 1e-15, 1 - 1e-15)
        return sigmoid(temperature * (np.log(p) - np.log1p(-p)))
    return softmax(temperature * np.log(p))


@dataclass(frozen=True)
class Reliability:
    """The answers by confidence: bin k holds those above edges[k] up to edges[k + 1]; nan in an empty bin."""

    edges: Floats  # (B + 1,)
    counts: NDArray[np.int64]  # (B,)
    confidence: Floats  # (B,) mean
    accuracy: Floats  # (B,) share right

    @property
    def error(self) -> float:
        """The expected calibration error, 0 to 1."""
        filled = self.counts > 0
        gaps = np.abs(self.confidence - self.accuracy)[filled]
        return float(gaps @ self.counts[filled] / self.counts.sum())


def bin_of(confidence: ArrayLike, bins: int = BINS) -> NDArray[np.int64]:
    """The bin of each confidence in 0 to 1: bin k of B is (k / B, (k + 1) / B], and 0 belongs to the first.

    >>> bin_of([0.0, 0.5, 0.51, 1.0], bins=2).tolist()
    [0, 0, 1, 1]
    """
    inner = np.linspace(0, 1, bins + 1)[1:-1]
    return np.asarray(np.searchsorted(inner, np.asarray(confidence, np.float64), side="left"), np.int64)


def reliability(confidence: ArrayLike, right: ArrayLike, bins: int = BINS) -> Reliability:
    """The table of a reliability diagram: confidence (M,) in 0 to 1, right (M,) 0 or 1.

    Of a text with one label the confidence is the probability of the answer; with several labels every label of every
    text is an answer, and right is whether the text has it.
    """
    sure, hit = np.asarray(confidence, np.float64).ravel(), np.asarray(right, np.float64).ravel()
    if sure.shape != hit.shape or not len(sure):
        raise ValueError(f"expected two rows of equal length, at least 1, got {sure.shape} and {hit.shape}")
    if not ((sure >= 0) & (sure <= 1)).all():
        raise ValueError("expected confidences from 0 to 1")
    place = bin_of(sure, bins)
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(place, weights=column, minlength=bins) / counts for column in (sure, hit)]
    return Reliability(np.linspace(0, 1, bins + 1), counts, *means)
