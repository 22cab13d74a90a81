"""The bag classifier from text on: learn a vocabulary, train, answer, and say what each n-gram spoke for.

`train_bag` joins `tokens/ngrams.py` (text to feature ids) and `models/bag.py` (ids to labels), which do not know one
another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zhixing.cores import default_threads
from zhixing.errors import InputError
from zhixing.models.bag import (
    BagClassifier,
    BagSettings,
    BagTargets,
    BagTraining,
    BagWeights,
    Problem,
    fit_bag,
    predict_bag,
)
from zhixing.progress import Progress
from zhixing.tokens.ngrams import NgramSettings, NgramVocabulary, learn_vocabulary
from zhixing.tokens.order import permute_array

Watch = Callable[[int, float], None]  # texts seen so far, mean loss of the last ones
SMALL = 512  # texts below which a second thread costs more than it brings


@dataclass(frozen=True)
class Bag:
    """A trained bag. Its state: vocabulary.words and .counts, labels, and the three arrays of `weights`."""

    vocabulary: NgramVocabulary
    labels: tuple[str, ...]  # in the order of the columns; one name, of the number, for regression
    weights: BagWeights

    @property
    def problem(self) -> Problem:
        return self.weights.settings.problem

    def predict(self, texts: Sequence[str], threads: int | None = None) -> NDArray[np.float32]:
        """Probabilities (N, C) of each text; for regression the numbers (N, 1)."""
        features = self.vocabulary.features(texts, threads)
        few = len(texts) < SMALL
        return predict_bag(self.weights, features.ids, features.starts, 1 if few else threads or default_threads())

    def contributions(self, text: str) -> list[tuple[str, NDArray[np.float32]]]:
        """What each n-gram of a text adds to the logits (C,), in the order of the text: n^-p W E[x].

        Exact, for the model is linear: with the bias they sum to the logits. A hashed n-gram speaks for its bucket,
        so an unseen one may say something that another has learnt.
        """
        named = self.vocabulary.feature_names(text)
        if not named:
            return []
        rows = np.array([row for _, row in named])
        share = np.float32(len(named) ** -self.weights.settings.power)
        each = self.weights.embedding[rows] @ self.weights.head.T * share  # (n, C)
        return [(name, row) for (name, _), row in zip(named, each, strict=True)]

    def classifier(self) -> BagClassifier:
        """The torch module over the same memory."""
        return BagClassifier.of(self.weights)


def train_bag(
    examples: Sequence[tuple[str, tuple[str, ...]]],
    ngrams: NgramSettings,
    training: BagTraining,
    *,
    problem: Problem = "single_label_classification",
    d_model: int = 16,
    power: float = 1.0,
    class_weights: dict[str, float] | None = None,
    watch: Watch | None = None,
) -> Bag:
    """Train on (text, labels); for regression the one label is the number. Without `watch` progress is shown.

    `d_model` counts for training.start = "random" only: the others have a column a label. The same examples and
    settings give the same bag, unless training.threads > 1.
    """
    if not examples:
        raise InputError("there are no texts to learn from")
    vocabulary, features = learn_vocabulary([text for text, _ in examples], ngrams)
    if problem == "regression":
        labels: tuple[str, ...] = ("value",)
        targets = BagTargets.of_values(np.array([_number(answer) for _, answer in examples], np.float32))
    else:
        labels = tuple(sorted({label for _, answer in examples for label in answer}))
        _check_labels(labels, examples, problem)
        number = {label: place for place, label in enumerate(labels)}
        targets = BagTargets.of_labels([tuple(number[label] for label in answer) for _, answer in examples])
    settings = BagSettings(
        max(vocabulary.n_rows, 1), len(labels), d_model if training.start == "random" else len(labels), power=power,
        problem=problem,
    )  # fmt: skip
    counted = None
    if class_weights is not None:
        if problem == "regression" or set(class_weights) != set(labels):
            raise InputError(f"class weights for {sorted(class_weights)}", why=f"the labels are {list(labels)}")
        counted = np.array([class_weights[label] for label in labels], np.float32)
    count = len(examples)
    every = np.arange(count, dtype=np.int64)
    with Progress("training", total=count * training.epochs) as progress:
        weights = fit_bag(
            features.ids,
            features.starts,
            targets,
            settings,
            training,
            lambda epoch: permute_array(every, count, training.seed, epoch),
            class_weights=counted,
            watch=watch or (lambda done, loss: progress.update(done, f"loss {loss:.3f}")),
        )
    return Bag(vocabulary, labels, weights)


def _check_labels(labels: tuple[str, ...], examples: Sequence[tuple[str, tuple[str, ...]]], problem: Problem) -> None:
    if problem == "single_label_classification":
        for place, (_, answer) in enumerate(examples):
            if len(answer) > 1:
                raise InputError(
                    f"text {place + 1} has {len(answer)} labels: {', '.join(answer[:5])}",
                    why="this is a problem of one label a text",
                    mend='problem = "multi_label_classification"',
                )
        if len(labels) < 2:
            raise InputError(
                f"every text has the same label: {labels[0]}" if labels else "no text has a label",
                why="there is nothing to tell apart",
            )
    elif not labels:
        raise InputError("no text has a label", why="there is nothing to learn")


def _number(answer: tuple[str, ...]) -> float:
    if len(answer) != 1:
        raise InputError(f"{len(answer)} values for one text", why="regression learns one number a text")
    try:
        return float(answer[0])
    except ValueError:
        raise InputError(f"{answer[0]!r} is no number", why="regression learns one number a text") from None
