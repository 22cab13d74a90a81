"""Labels from a language model that was never trained to give them: `in_context(run, examples)`.

    clf = zhixing.in_context("runs/english", "reviews.csv")
    clf("A delight.")

It answers as a classifier does, with Predictions. What it computes stands in tasks/in_context.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from zhixing.classifier import targets_of
from zhixing.errors import InputError
from zhixing.evaluation.classification import ClassifierScores
from zhixing.evaluation.classification_result import ClassificationResult, result_scores
from zhixing.interchange.classifier_directory import is_classifier
from zhixing.progress import Progress, say
from zhixing.run import Run, load
from zhixing.tasks.classification import Prediction, ProblemType, predictions
from zhixing.tasks.in_context import (
    CONTENT_FREE,
    Prompt,
    build_prompt,
    calibrated,
    label_log_probabilities,
    normalised,
)
from zhixing.text.labelled import LabelledSettings, LabelledText, LabelledTexts, check_labels, leakage, read_labelled

SINGLE: ProblemType = "single_label_classification"


@dataclass
class InContextClassifier:
    """A language model with examples before each text: call it with a text or a list of texts."""

    run: Run
    prompt: Prompt
    prior: NDArray[np.float64]  # (C,) of each label after inputs that say nothing
    too_long: int = 0  # texts seen so far that were cut to the room that the examples leave

    @property
    def labels(self) -> tuple[str, ...]:
        return self.prompt.labels

    @overload
    def __call__(self, texts: str) -> Prediction: ...
    @overload
    def __call__(self, texts: list[str]) -> list[Prediction]: ...
    def __call__(self, texts: str | list[str]) -> Prediction | list[Prediction]:
        """The answer to a text, or to each of a list."""
        answers = predictions(self.probabilities([texts] if isinstance(texts, str) else texts), self.labels, SINGLE)
        return answers[0] if isinstance(texts, str) else answers

    def probabilities(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Probabilities (N, C), calibrated by what the labels have without a text."""
        for number, text in enumerate(texts):
            if not text.strip():
                raise InputError("a text is empty", where=f"text {number + 1}", mend="give a text with a word in it")
        if not texts:
            return np.empty((0, len(self.labels)))
        ids = self.run.tokenizer.encode_batch([self.prompt.lead + text for text in texts])
        self.too_long += sum(len(row) > self.prompt.room for row in ids)
        with Progress("classifying", len(ids), "texts") as progress:
            logs = label_log_probabilities(
                self.run.model, self.prompt, [row[: self.prompt.room] for row in ids], progress.update
            )
        return calibrated(logs, self.prior)

    def evaluate(self, data: str) -> tuple[ClassificationResult, ClassifierScores]:
        """Measure on labelled texts by name or path; those that the examples repeat are counted beside the score."""
        texts = read_labelled(data, LabelledSettings(), part="test")
        _check_single(texts)
        check_labels(self.labels, texts)
        result = self.result(texts)
        return result, result_scores(result)

    def result(self, texts: LabelledTexts) -> ClassificationResult:
        """The answers to labelled texts beside what is right."""
        before = self.too_long
        p = self.probabilities([item.text for item in texts])
        repeats = leakage([LabelledText(text) for text in self.prompt.texts], texts)
        test = {
            "exact_duplicates": repeats.exact, "near_duplicates": repeats.near,
            "too_long": self.too_long - before, "on_too_long": "truncate",
        }  # fmt: skip
        facts = {"data": {"source": texts.source, "test": test}}
        return ClassificationResult(
            list(self.labels), targets_of(texts, self.labels, SINGLE).numpy(), p.argmax(axis=1), p,
            [item.text for item in texts], name=self.run.path.name, facts=facts,
        )  # fmt: skip


def in_context(
    run: Run | str | Path,
    examples: str | Path | Sequence[tuple[str, str]],
    *,
    labels: Sequence[str] = (),
    per_label: int = 0,
    pattern: str = "",
    seed: int = 0,
) -> InContextClassifier:
    """Make a classifier of a language model and labelled examples, a file or (text, label) pairs; nothing is trained.

    `labels`: only these (else all that the examples have); `per_label`: so many examples of each (else as many as fit,
    8 at most); `pattern`: how an example is written, with {text} and {label}. Another seed draws and orders others.
    """
    if isinstance(run, str | Path):
        if is_classifier(Path(run)):
            raise InputError(
                "this run is a classifier already", where=str(run), mend="give the run of a language model"
            )
        run = load(run)
    if isinstance(examples, str | Path):
        texts = read_labelled(str(examples), LabelledSettings())
        _check_single(texts)
        pairs = [(item.text, item.labels[0]) for item in texts if item.labels]
    else:
        pairs = list(examples)
    known = sorted({label for _, label in pairs})
    for label in labels:
        if label not in known:
            raise InputError(f"no example has the label {label!r}", mend=f"the labels are {', '.join(known[:20])}")
    kept = tuple(dict.fromkeys(labels)) or tuple(known)
    if len(kept) < 2:
        raise InputError("there are fewer than two labels", why="there is nothing to tell apart")
    settings: Any = run.model.settings
    max_len: int = settings.max_len
    prompt = build_prompt(pairs, kept, run.tokenizer, max_len, pattern=pattern, per_label=per_label, seed=seed)
    empty = [run.tokenizer.encode(text)[: prompt.room] for text in CONTENT_FREE]
    prior = normalised(label_log_probabilities(run.model, prompt, empty)).mean(axis=0)
    cut = f" ({prompt.cut} of them cut)" if prompt.cut else ""
    say(
        f"{prompt.examples} example{'s' * (prompt.examples > 1)} of each of {len(kept)} labels{cut}:"
        f" {len(prompt.prefix):,} of {max_len:,} tokens, {prompt.room:,} are left for a text"
    )
    return InContextClassifier(run, prompt, prior)


def _check_single(texts: LabelledTexts) -> None:
    if texts.problem_type != SINGLE:
        raise InputError(
            f"the examples are those of a {texts.problem_type}",
            where=texts.source,
            why="in context a text gets one label",
            mend="give texts with one label each",
        )
