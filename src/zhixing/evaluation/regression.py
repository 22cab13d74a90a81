"""What predicted numbers are worth: squared and absolute error, and the correlation with the wanted ones.

    MSE = mean (s - y)^2        MAE = mean |s - y|        Pearson's r = cov(s, y) / (sd(s) sd(y))

Spearman's r is Pearson's of the ranks, ties sharing their mean rank. The errors are in the units of the ratings; the
correlations do not see units, nor a prediction that is off by a constant. For the bootstrap each is written as a
function of how often every text was drawn (intervals.py), the ranks too: below a text stand those drawn with less.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from zhixing.errors import InputError
from zhixing.evaluation.classification import ClassifierScores, ratio
from zhixing.evaluation.intervals import Floats, as_scores, bootstrap_scores


def regression_scores(
    targets: ArrayLike, predictions: ArrayLike, *, seed: int = 0, resamples: int = 1000
) -> ClassifierScores:
    """mse, mae, pearson and spearman of (N,) against (N,); a correlation with a constant is nan.

    Texts whose target is nan have no rating and are not counted. InputError: nothing to score, or a prediction that is
    no number.
    """
    y, said = np.asarray(targets, np.float64), np.asarray(predictions, np.float64)
    if y.ndim != 1 or y.shape != said.shape:
        raise ValueError(f"expected two rows of equal length, got {y.shape} and {said.shape}")
    known = ~np.isnan(y)
    y, said = y[known], said[known]
    if not len(y):
        raise InputError("there is nothing to evaluate", why="no text has a rating", mend="give texts with ratings")
    if not np.isfinite(said).all():
        raise InputError(
            "the model predicts numbers that are not finite",
            where=f"text {int(np.flatnonzero(known)[~np.isfinite(said)][0]) + 1}",
            mend="train with a lower learning rate, or load an earlier checkpoint",
        )
    found = bootstrap_scores(
        np.ones(len(y), np.int64),
        lambda drawn: regression_statistics(drawn, y, said),
        seed=seed,
        resamples=resamples,
    )
    return ClassifierScores(as_scores(found, len(y), seed), (), len(y), seed)


def regression_statistics(drawn: Floats, y: Floats, said: Floats) -> dict[str, Floats]:
    """The four scores of resamples in which text i occurs drawn[:, i] times: (R, N) -> each (R,)."""
    n = drawn.sum(axis=1)  # (R,)
    return {
        "mse": drawn @ (said - y) ** 2 / n,
        "mae": drawn @ np.abs(said - y) / n,
        "pearson": correlation(drawn, y, said),
        "spearman": correlation(drawn, ranks(drawn, y), ranks(drawn, said)),
    }


def correlation(drawn: Floats, a: Floats, b: Floats) -> Floats:
    """Pearson's r with texts counted drawn (R, N) times; a, b (N,) or (R, N) -> (R,), nan where one is constant."""
    n, met = drawn.sum(axis=1, keepdims=True), drawn > 0  # (R, 1), (R, N)
    constant = np.zeros(len(drawn), np.bool_)
    for x in (a, b):
        constant |= np.where(met, x, -np.inf).max(axis=1) == np.where(met, x, np.inf).min(axis=1)
    a, b = (x - x.mean() for x in (a, b))  # first by a common mean: squares of large numbers lose digits
    a, b = (x - (drawn * x).sum(axis=1, keepdims=True) / n for x in (a, b))  # (R, N)
    spread = np.sqrt((drawn * a * a).sum(axis=1) * (drawn * b * b).sum(axis=1))
    found = np.clip(ratio((drawn * a * b).sum(axis=1), spread, np.nan), -1.0, 1.0)
    return np.where(constant, np.nan, found)


def ranks(drawn: Floats, values: Floats) -> Floats:
    """The mean rank of each text in each resample: (R, N), (N,) -> (R, N). A text that was not drawn has one too.

    Of g copies of a value, with b copies of smaller ones below, the ranks are b + 1 to b + g: (g + 1) / 2 + b in the
    mean. With [[2, 1, 1]] and [5, 5, 9] three copies of 5 share ranks 1, 2, 3, and 9 has rank 4.

    >>> ranks(np.array([[2.0, 1.0, 1.0]]), np.array([5.0, 5.0, 9.0])).tolist()
    [[2.0, 2.0, 4.0]]
    """
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    begins = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))  # (G,) first place of each value
    group = np.empty(len(values), np.int64)
    group[order] = np.repeat(np.arange(len(begins)), np.diff([*begins, len(values)]))  # (N,) the value's number
    copies = np.add.reduceat(drawn[:, order], begins, axis=1)  # (R, G)
    below = np.cumsum(copies, axis=1) - copies
    return np.asarray((below + (copies + 1) / 2)[:, group])
