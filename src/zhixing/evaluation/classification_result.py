"""What a classifier said of each text of a test set, beside what is right: the input of scores, report and comparison.

It holds lists and arrays, no model. `result_scores` picks the scores that fit the problem; `baselines` says what needs
no learning at all: the most frequent label for every text, or the mean rating.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from zhixing.errors import InputError
from zhixing.evaluation.calibration import Reliability, reliability, uncalibrated
from zhixing.evaluation.classification import ClassifierScores, classification_scores, multilabel_scores
from zhixing.evaluation.regression import regression_scores

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]

MAIN_SCORE = {
    "single_label_classification": "accuracy",
    "multi_label_classification": "micro_f1",
    "regression": "mse",
}  # the score that is compared with baselines


@dataclass(frozen=True)
class ClassificationResult:
    """N texts and C labels. problem_type has transformers' names and decides the shapes:

    single label   targets, predictions (N,) ids into labels; a target below 0 is not known and not counted
    multi label    targets, predictions (N, C) of 0 and 1
    regression     targets, predictions (N,) numbers; no labels; a target of nan is not known

    A label that only the test texts have is one of `labels`, with probability 0 everywhere. `probabilities` (N, C) are
    those shown to people, after division by `temperature`. `train_counts` (C,) says how many training texts have each
    label, `train_mean` is the mean rating of the training texts: the baselines come from them, or from the targets
    themselves where they are not given. `facts` are tables as in facts.json: data, model, run.
    """

    labels: list[str]
    targets: NDArray[Any]
    predictions: NDArray[Any]
    probabilities: NDArray[Any] | None = None
    texts: list[str] | None = None
    problem_type: ProblemType = "single_label_classification"
    name: str = ""
    temperature: float = 1.0
    train_counts: NDArray[Any] | None = None
    train_mean: float | None = None
    other_baselines: dict[str, float] = field(default_factory=dict)  # name -> main score
    facts: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        n, n_labels = len(self.targets), len(self.labels)
        shape = (n, n_labels) if self.several else (n,)
        wanted = {"targets": shape, "predictions": shape}
        if self.probabilities is not None:
            wanted["probabilities"] = (n, n_labels)
        if self.train_counts is not None:
            wanted["train_counts"] = (n_labels,)
        for name, expected in wanted.items():
            found = np.shape(getattr(self, name))
            if found != expected:
                raise ValueError(f"expected {name} {expected}, got {found}")
        if self.texts is not None and len(self.texts) != n:
            raise ValueError(f"expected {n} texts, got {len(self.texts)}")
        if len(set(self.labels)) != n_labels:
            raise InputError("a label has two ids", mend="give each label once")

    @property
    def several(self) -> bool:
        """Whether a text may have any number of labels."""
        return self.problem_type == "multi_label_classification"

    @property
    def graded(self) -> bool:
        """Whether the targets are numbers on a scale."""
        return self.problem_type == "regression"

    @property
    def known(self) -> NDArray[np.bool_]:
        """(N,) whether the right answer is known."""
        if self.several:
            return np.ones(len(self.targets), np.bool_)
        y = np.asarray(self.targets)
        return ~np.isnan(y) if self.graded else np.asarray(y >= 0)

    @property
    def right(self) -> NDArray[np.bool_]:
        """(N,) whether the whole answer is right; of a text without known answer, no."""
        if self.several:
            return np.asarray(((np.asarray(self.targets) > 0) == (np.asarray(self.predictions) > 0)).all(axis=1))
        return np.asarray(np.asarray(self.targets) == np.asarray(self.predictions))


def result_scores(result: ClassificationResult, *, resamples: int = 1000) -> ClassifierScores:
    """The scores that fit the problem. InputError: no text has a known answer."""
    r = result
    if r.graded:
        return regression_scores(r.targets, r.predictions, seed=r.seed, resamples=resamples)
    score = multilabel_scores if r.several else classification_scores
    return score(
        r.targets, r.predictions, r.labels, probabilities=r.probabilities, seed=r.seed, resamples=resamples
    )  # fmt: skip


def baselines(result: ClassificationResult) -> dict[str, float]:
    """The main score of an answer that is the same for every text, and the baselines that were given.

    "most frequent label": the one with most training texts (without train_counts, the one that does best here).
    "mean rating": the mean of the training ratings (without train_mean, of those here).
    """
    y = np.asarray(result.targets)[result.known]
    if not len(y):
        return dict(result.other_baselines)
    if result.graded:
        mean = float(y.mean()) if result.train_mean is None else result.train_mean
        return {"mean rating": float(((y - mean) ** 2).mean()), **result.other_baselines}
    counts = np.asarray(y > 0).sum(axis=0) if result.several else np.bincount(y, minlength=len(result.labels))
    best = int(np.argmax(counts if result.train_counts is None else result.train_counts))
    hits = float(counts[best])
    value = 2 * hits / (len(y) + float(counts.sum())) if result.several else hits / len(y)
    return {"most frequent label": value, **result.other_baselines}


def result_reliability(result: ClassificationResult, *, raw: bool = False) -> Reliability | None:
    """The reliability table of the answers; None without probabilities. `raw`: as they were before the temperature."""
    if result.probabilities is None or result.graded or not result.known.any():
        return None
    p = np.asarray(result.probabilities, np.float64)[result.known]
    if raw:
        p = uncalibrated(p, result.temperature, several=result.several)
    p = np.clip(p, 0.0, 1.0)
    y, said = (np.asarray(column)[result.known] for column in (result.targets, result.predictions))
    if result.several:
        return reliability(p, y > 0)
    return reliability(p[np.arange(len(p)), said], said == y)


def rating(value: float) -> str:
    """A number on the scale of the targets for a person: three digits, or all of those before the point.

    >>> rating(2.718), rating(50123.4)
    ('2.72', '50,123')
    """
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


UNITS = frozenset(("mse", "mae"))  # scores that are not between -1 and 1: ratings may be of any size


def in_units(value: float) -> str:
    """A score of UNITS for a person: four digits, or all of those before the point."""
    return f"{value:,.0f}" if abs(value) >= 999.95 else f"{value:.4g}"


@dataclass(frozen=True)
class Mistake:
    """An answer that is wrong, and how sure the model was of it; of a regression, how far off it is."""

    row: int
    text: str
    target: str
    answer: str
    size: float  # the probability of the wrong answer, or the distance


def mistakes(result: ClassificationResult, most: int = 20) -> list[Mistake]:
    """The worst ones first: the most confident, or the farthest off. None without probabilities."""
    r, known = result, result.known
    texts = r.texts or [""] * len(known)
    if r.graded:
        distance = np.where(known, np.abs(np.asarray(r.targets, np.float64) - r.predictions), 0.0)
        rows = [int(i) for i in np.argsort(-distance, kind="stable")[:most] if distance[i] > 0]
        return [Mistake(i, texts[i], rating(r.targets[i]), rating(r.predictions[i]), float(distance[i])) for i in rows]
    if r.probabilities is None:
        return []
    p = np.asarray(r.probabilities, np.float64)
    if r.several:  # a (text, label) pair each
        y, said = np.asarray(r.targets) > 0, np.asarray(r.predictions) > 0
        sure = np.where(y != said, np.where(said, p, 1 - p), -1.0)  # (N, C)
        pairs = [divmod(int(k), len(r.labels)) for k in np.argsort(-sure, axis=None, kind="stable")[:most]]
        return [
            Mistake(
                i, texts[i], r.labels[k] if y[i, k] else f"not {r.labels[k]}",
                r.labels[k] if said[i, k] else f"not {r.labels[k]}", float(sure[i, k]),
            )
            for i, k in pairs if sure[i, k] >= 0
        ]  # fmt: skip
    sure = np.where(known & ~r.right, p[np.arange(len(p)), np.asarray(r.predictions, np.int64)], -1.0)  # (N,)
    rows = [int(i) for i in np.argsort(-sure, kind="stable")[:most] if sure[i] >= 0]
    return [
        Mistake(i, texts[i], r.labels[int(r.targets[i])], r.labels[int(r.predictions[i])], float(sure[i]))
        for i in rows
    ]  # fmt: skip
