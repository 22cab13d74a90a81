"""What a classifier is worth: scores of labels given against labels wanted, each with its interval.

With h_k the hits of class k (texts of k called k), p_k the texts called k and t_k the texts of k, over n texts:

    precision_k = h_k / p_k      recall_k = h_k / t_k      F1_k = 2 h_k / (p_k + t_k)
    accuracy    = sum h / n      what a reader counts first; says little where one class is most of the texts
    macro F1    = mean of F1_k   each class weighs the same; weighted F1 weighs them by t_k
    micro F1    = 2 sum h / (sum p + sum t)       the accuracy, where each text has one label
    MCC         = (n sum h - sum p t) / sqrt((n^2 - sum p^2) (n^2 - sum t^2))     Gorodkin 2004; 0 for a constant answer

0 / 0 is 0, and the macro mean goes over the classes that occur among targets or predictions. That is scikit-learn's
default for texts with one label; with several it counts a label that nothing has as 0, and here it is left out as well.
The tests hold all of it against scikit-learn. Every score is a function of h, p and t, so a bootstrap over texts
draws the occupied cells of the confusion matrix (intervals.py) and computes all the scores of a thousand draws at once.

Log loss and Brier score judge the probabilities themselves: -ln p(target) and sum_k (p_k - [k is the target])^2, as
Brier 1950 has it (0 to 2; half of that for two classes is scikit-learn's).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zhixing.errors import InputError
from zhixing.evaluation.calibration import BINS, bin_of
from zhixing.evaluation.intervals import Floats, Intervals, Score, Statistics, as_scores, bootstrap_scores, reflected

LEAST = float(np.finfo(np.float64).eps)  # a probability of 0 for what happened would cost an infinite loss

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
ByName = dict[str, Floats]


@dataclass(frozen=True)
class ClassScores:
    """One class: how often it was the target (support) and the answer (predicted), and how well they meet.

    The n of a score counts the texts that it is a share of: those called so for precision, those that are so for
    recall, those that are either for F1. Of fewer than two the interval is (-inf, inf): one says nothing of another.
    """

    label: str
    support: int
    predicted: int
    precision: Score
    recall: Score
    f1: Score

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        scores = {"precision": self.precision, "recall": self.recall, "f1": self.f1}
        shown = {name: score.to_dict() for name, score in scores.items()}
        return {
            "support": self.support,
            "predicted": self.predicted,
            **{name: entry["value"] for name, entry in shown.items()},
            "intervals": {name: [entry["low"], entry["high"]] for name, entry in shown.items()},
        }


@dataclass(frozen=True)
class ClassifierScores:
    """The scores of one classifier on n texts, by name, and those of each class (none for a regression)."""

    scores: dict[str, Score]
    classes: tuple[ClassScores, ...]
    n: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """The `model` part of scores.json: the plain values, and under `intervals` the ends of each."""
        shown = {name: score.to_dict() for name, score in self.scores.items()}
        return {
            **{name: entry["value"] for name, entry in shown.items()},
            "intervals": {name: [entry["low"], entry["high"]] for name, entry in shown.items()},
            "n": self.n,
            "seed": self.seed,
            **({"classes": {entry.label: entry.to_dict() for entry in self.classes}} if self.classes else {}),
        }


def confusion_matrix(targets: ArrayLike, predictions: ArrayLike, n_classes: int) -> Ints:
    """How often each class (row) got each answer (column): (N,), (N,) -> (C, C).

    >>> confusion_matrix([0, 0, 1], [0, 1, 1], 2).tolist()
    [[1, 1], [0, 1]]
    """
    y, said = _ids(targets, predictions, n_classes)
    return np.asarray(np.bincount(y * n_classes + said, minlength=n_classes**2).reshape(n_classes, n_classes), np.int64)


def _ids(targets: ArrayLike, predictions: ArrayLike, n_classes: int) -> tuple[Ints, Ints]:
    y, said = np.asarray(targets), np.asarray(predictions)
    if y.ndim != 1 or y.shape != said.shape:
        raise ValueError(f"expected two rows of equal length, got {y.shape} and {said.shape}")
    for row in (y, said):
        if len(row) and not 0 <= int(row.min()) <= int(row.max()) < n_classes:
            raise ValueError(f"expected class ids from 0 to {n_classes - 1}, got {int(row.min())} to {int(row.max())}")
    return y.astype(np.int64), said.astype(np.int64)


def ratio(top: Floats, bottom: Floats, otherwise: float = 0.0) -> Floats:
    """top / bottom, and `otherwise` where the bottom is 0."""
    top, bottom = np.broadcast_arrays(np.asarray(top, np.float64), np.asarray(bottom, np.float64))
    found: Floats = np.full(top.shape, otherwise)
    np.divide(top, bottom, out=found, where=bottom != 0)
    return found


def averages(hits: Floats, predicted: Floats, support: Floats, whole: tuple[Bools, Bools] | None = None) -> ByName:
    """Micro, macro and weighted precision, recall and F1: counts (..., C) -> nine scores (...).

    For resamples `whole` says which classes are an answer, and which a target, of any text at all (C,). A ratio that is
    0 / 0 only because the class was not drawn is left out of its macro mean: as 0 it would pull the interval down.
    """
    parts = {"precision": (hits, predicted), "recall": (hits, support), "f1": (2 * hits, predicted + support)}
    met = (predicted + support) > 0  # (..., C)
    counted = dict.fromkeys(parts, met)
    if whole is not None:
        known = {"precision": whole[0], "recall": whole[1], "f1": whole[0] | whole[1]}
        counted = {name: met & ((bottom > 0) | ~known[name]) for name, (_, bottom) in parts.items()}
    each = {name: ratio(top, bottom) for name, (top, bottom) in parts.items()}  # (..., C)
    return {
        **{f"micro_{name}": ratio(top.sum(-1), bottom.sum(-1)) for name, (top, bottom) in parts.items()},
        **{f"macro_{n}": ratio((score * counted[n]).sum(-1), counted[n].sum(-1)) for n, score in each.items()},
        **{f"weighted_{name}": ratio((score * support).sum(-1), support.sum(-1)) for name, score in each.items()},
    }


def matthews(hits: Floats, predicted: Floats, support: Floats, constant: float = 0.0) -> Floats:
    """The multi-class correlation of answers and targets: counts (..., C) -> (...), -1 to 1 (Gorodkin 2004).

    `constant` is what it is where all answers, or all targets, are one class. For resamples that is no number, unless
    it is so for all texts: that a draw has met one class only says nothing of how well two are told apart.
    """
    n = support.sum(-1)
    top = n * hits.sum(-1) - (predicted * support).sum(-1)
    spread = (n * n - (predicted * predicted).sum(-1)) * (n * n - (support * support).sum(-1))
    return ratio(top, np.sqrt(np.maximum(spread, 0.0)), constant)


def _class_statistics(hits: Floats, predicted: Floats, support: Floats) -> ByName:
    """Of each class (..., C); nan where there is nothing to judge by."""
    return {
        "class precision": ratio(hits, predicted, np.nan),
        "class recall": ratio(hits, support, np.nan),
        "class f1": ratio(2 * hits, predicted + support, np.nan),
    }


def log_losses(targets: ArrayLike, probabilities: ArrayLike) -> Floats:
    """-ln of the probability of what is so, in nats, for each text (N,).

    targets (N,) are ids into probabilities (N, C); or both are (N, C), and the mean over labels is taken of
    -y ln p - (1 - y) ln(1 - p). Probabilities are kept 2.2e-16 away from 0 and 1.
    """
    y, p = np.asarray(targets), np.clip(np.asarray(probabilities, np.float64), LEAST, 1 - LEAST)
    if y.shape == p.shape:
        return np.asarray(-np.where(y > 0, np.log(p), np.log1p(-p)).mean(axis=1))
    return np.asarray(-np.log(p[np.arange(len(p)), y.astype(np.int64)]))


def brier_scores(targets: ArrayLike, probabilities: ArrayLike) -> Floats:
    """The squared distance of the probabilities from what is so, for each text (N,): 0 to 2, as Brier 1950 has it.

    With several labels a text (targets (N, C)) the mean over labels instead: 0 to 1.
    """
    y, p = np.asarray(targets), np.asarray(probabilities, np.float64)
    if y.shape == p.shape:
        return np.asarray(((p - y) ** 2).mean(axis=1))
    return np.asarray(((p - (y[:, None] == np.arange(p.shape[1]))) ** 2).sum(axis=1))


def classification_scores(
    targets: ArrayLike,
    predictions: ArrayLike,
    labels: list[str],
    *,
    probabilities: ArrayLike | None = None,
    seed: int = 0,
    resamples: int = 1000,
) -> ClassifierScores:
    """Scores of texts with one label each: targets, predictions (N,) ids into labels; probabilities (N, C).

    Texts whose target is below 0 have no known label and are not counted. With probabilities also log_loss, brier and
    ece, whose confidence is the probability of the answer given. InputError: nothing to score.

    >>> found = classification_scores([0, 0, 1, 1], [0, 1, 1, 1], ["bad", "good"]).scores
    >>> round(found["accuracy"].value, 4), round(found["macro_f1"].value, 4), round(found["mcc"].value, 4)
    (0.75, 0.7333, 0.5774)
    """
    y, said = np.asarray(targets), np.asarray(predictions)
    known = y >= 0
    p = None if probabilities is None else np.asarray(probabilities, np.float64)[known]
    y, said = _ids(y[known], said[known], len(labels))
    _nothing(len(y))
    cells, counts = np.unique(y * len(labels) + said, return_counts=True)  # (K,) occupied
    statistics = cell_statistics(cells // len(labels), cells % len(labels), len(labels))
    found = bootstrap_scores(counts, statistics, seed=seed, resamples=resamples)
    scores = as_scores(found, len(y), seed)
    if p is not None:
        _check_probabilities(p, (len(y), len(labels)), np.flatnonzero(known))
        sure = p[np.arange(len(p)), said]  # (N,)
        columns = {"log_loss": log_losses(y, p), "brier": brier_scores(y, p)}
        scores |= _of_probabilities(columns, sure[:, None], (said == y)[:, None], seed, resamples)
    hits, predicted, support = (np.bincount(ids, minlength=len(labels)) for ids in (y[y == said], said, y))
    return ClassifierScores(scores, _classes(found, labels, hits, predicted, support, seed), len(y), seed)


def multilabel_scores(
    targets: ArrayLike,
    predictions: ArrayLike,
    labels: list[str],
    *,
    probabilities: ArrayLike | None = None,
    seed: int = 0,
    resamples: int = 1000,
) -> ClassifierScores:
    """Scores of texts with any number of labels: targets and predictions (N, C) of 0 and 1, probabilities (N, C).

    subset_accuracy is the share of texts with all labels right, hamming_loss the share of (text, label) pairs that
    are wrong. InputError: nothing to score.
    """
    y, said = np.asarray(targets) > 0, np.asarray(predictions) > 0
    if y.ndim != 2 or y.shape != said.shape or y.shape[1] != len(labels):
        raise ValueError(f"expected two tables (N, {len(labels)}), got {y.shape} and {said.shape}")
    _nothing(len(y))
    found = bootstrap_scores(np.ones(len(y), np.int64), text_statistics(y, said), seed=seed, resamples=resamples)
    scores = as_scores(found, len(y), seed)
    if probabilities is not None:
        p = np.asarray(probabilities, np.float64)
        _check_probabilities(p, y.shape, np.arange(len(y)))
        columns = {"log_loss": log_losses(y, p), "brier": brier_scores(y, p)}
        scores |= _of_probabilities(columns, p, y, seed, resamples)
    return ClassifierScores(
        scores, _classes(found, labels, (y & said).sum(0), said.sum(0), y.sum(0), seed), len(y), seed
    )


def cell_statistics(targets: Ints, predictions: Ints, n_classes: int) -> Statistics:
    """All scores of texts with one label each, from draws (R, K): cell k is of targets[k] and predictions[k].

    The micro averages are the accuracy, and so is weighted recall: but for F1 they are not repeated.
    """
    constant = math.nan if len(set(targets)) > 1 and len(set(predictions)) > 1 else 0.0
    own, said = np.zeros((2, len(targets), n_classes))  # (K, C)
    own[np.arange(len(targets)), targets] = said[np.arange(len(targets)), predictions] = 1
    both, whole = own * said, (said.sum(axis=0) > 0, own.sum(axis=0) > 0)

    def statistics(drawn: Floats) -> ByName:
        counts = drawn @ both, drawn @ said, drawn @ own  # each (R, C)
        found = averages(*counts, whole)
        accuracy = found.pop("micro_precision")
        del found["micro_recall"], found["weighted_recall"]
        return {"accuracy": accuracy, **found, "mcc": matthews(*counts, constant), **_class_statistics(*counts)}

    return statistics


def text_statistics(y: Bools, said: Bools) -> Statistics:
    """All scores of texts with any number of labels (N, C), from draws (R, N)."""
    parts = [part.astype(np.float64) for part in (y & said, said, y)]  # (N, C)
    whole = said.sum(axis=0) > 0, y.sum(axis=0) > 0
    wrong = (y != said).sum(axis=1).astype(np.float64)  # (N,) labels

    def statistics(drawn: Floats) -> ByName:
        hits, predicted, support = (drawn @ part for part in parts)  # each (R, C)
        n = drawn.sum(axis=1)  # (R,)
        return {
            **averages(hits, predicted, support, whole),
            "subset_accuracy": drawn @ (wrong == 0).astype(np.float64) / n,
            "hamming_loss": drawn @ wrong / (n * y.shape[1]),
            **_class_statistics(hits, predicted, support),
        }

    return statistics


def _of_probabilities(
    columns: dict[str, Floats], sure: Floats, right: Bools, seed: int, resamples: int
) -> dict[str, Score]:
    """Means of columns (N,), and the calibration error of the answers (N, A), with intervals over texts.

    A text adds the sum of (confidence - right) of its answers to each bin, so the error of a resample is the sum of
    the bins' absolute totals, by the number of its answers.
    """
    n, answers = sure.shape
    place = bin_of(sure) + BINS * np.arange(n)[:, None]  # (N, A)
    gaps = np.bincount(place.ravel(), weights=(sure - right).ravel(), minlength=n * BINS).reshape(n, BINS)

    def statistics(drawn: Floats) -> dict[str, Floats]:
        total = drawn.sum(axis=1)  # (R,)
        means = {name: drawn @ column / total for name, column in columns.items()}
        return {**means, "ece": np.abs(drawn @ gaps).sum(axis=1) / (total * answers)}

    found = bootstrap_scores(np.ones(n, np.int64), statistics, seed=seed, resamples=resamples)
    return as_scores(found | {"ece": reflected(*found["ece"])}, n, seed)


def _classes(
    found: Intervals, labels: list[str], hits: Ints, predicted: Ints, support: Ints, seed: int
) -> tuple[ClassScores, ...]:
    texts = {"precision": predicted, "recall": support, "f1": predicted + support - hits}  # each (C,)

    def score(name: str, k: int) -> Score:
        value, low, high = (float(part[k]) for part in found[f"class {name}"])
        value, n = 0.0 if math.isnan(value) else value, int(texts[name][k])
        return Score(value, *((low, high) if n >= 2 else (-math.inf, math.inf)), n, seed)

    return tuple(
        ClassScores(label, int(support[k]), int(predicted[k]), *(score(name, k) for name in texts))
        for k, label in enumerate(labels)
    )


def _check_probabilities(p: Floats, shape: tuple[int, ...], rows: Ints) -> None:
    """p (N, C); rows (N,) are their places among all texts."""
    if p.shape != shape:
        raise ValueError(f"expected probabilities {shape}, got {p.shape}")
    if not np.isfinite(p).all():
        raise InputError(
            "the model gives probabilities that are not finite",
            where=f"text {int(rows[~np.isfinite(p).all(axis=1)][0]) + 1}",
            mend="train with a lower learning rate, or load an earlier checkpoint",
        )
    if (p < 0).any() or (p > 1 + 1e-6).any():
        raise ValueError(f"expected probabilities from 0 to 1, got {p.min()} to {p.max()}")


def _nothing(n: int) -> None:
    if not n:
        raise InputError("there is nothing to evaluate", why="no text has a known label", mend="give texts with labels")
