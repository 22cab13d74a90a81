"""The deletion test: an explanation is worth something if the words it names are the ones that matter.

Comprehensiveness (DeYoung et al. 2020, section 4): take the share q of a text's words that an explanation puts first
out of the text, and see how far the score of the label falls, beside as many words drawn at random:

    drop(q) = F(text) - F(text without its first q words)            comprehensiveness = mean of drop(q) over q

What differs from the paper: words are really taken out, not masked; F may be a probability or log-odds (it is what
`predict` gives); and both take only words that hold a letter or digit, lest random words be cheap commas.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from zhixing.errors import InputError
from zhixing.evaluation.intervals import bootstrap_interval
from zhixing.explain.spans import Word

Predict = Callable[[list[str]], Sequence[float]]  # the score of the explained label in each text

FRACTIONS = (0.05, 0.1, 0.2, 0.3, 0.5)


@dataclass(frozen=True)
class DeletionCurve:
    """How far the score falls when words are taken out: the named ones, and the mean of several random draws."""

    fractions: tuple[float, ...]
    removed: tuple[int, ...]  # words
    named: tuple[float, ...]
    random: tuple[float, ...]

    @property
    def comprehensiveness(self) -> float:
        return float(np.mean(self.named))

    @property
    def random_comprehensiveness(self) -> float:
        return float(np.mean(self.random))


@dataclass(frozen=True)
class DeletionTest:
    """Means over texts: both falls, the difference with the bootstrap's 95 % interval, and how often it is positive."""

    n: int
    named: float
    random: float
    difference: float
    low: float
    high: float
    share: float


def without(text: str, words: Sequence[Word]) -> str:
    """The text with these words taken out; of two blanks that come together one stays.

    >>> without("a very good film", [Word(2, 6, 1.0), Word(12, 16, 0.5)])
    'a good '
    """
    kept = ""
    at = 0
    for word in sorted(words, key=lambda word: word.start):
        kept += text[at : word.start]
        at = word.end
        if at < len(text) and text[at].isspace() and (not kept or kept[-1].isspace()):
            at += 1
    return kept + text[at:]


def deletion_curve(
    predict: Predict,
    text: str,
    words: Sequence[Word],
    fractions: Sequence[float] = FRACTIONS,
    seed: int = 0,
    draws: int = 10,
) -> DeletionCurve:
    """How the score of `text` falls as the words of largest weight go, beside `draws` random choices of as many.

    The same seed draws the same words. At least one word goes and one stays; an InputError where there are not two.
    """
    pool = [word for word in words if any(map(str.isalnum, text[word.start : word.end]))]
    if len(pool) < 2:
        raise InputError("the text has fewer than two words", why="some must go and some stay in the deletion test")
    if not fractions or not all(0 < fraction < 1 for fraction in fractions) or draws < 1:
        raise ValueError(f"expected fractions in (0, 1) and draws >= 1, got {fractions} and {draws}")
    ranked = sorted(pool, key=lambda word: (-word.weight, word.start))
    counts = [min(max(1, round(fraction * len(pool))), len(pool) - 1) for fraction in fractions]
    generator = np.random.default_rng(seed)
    texts = [text, *(without(text, ranked[:count]) for count in counts)]
    for count in counts:
        for _ in range(draws):
            chosen = generator.choice(len(pool), size=count, replace=False).tolist()
            texts.append(without(text, [pool[index] for index in chosen]))
    scores = np.asarray(predict(texts), np.float64)
    drops = scores[0] - scores[1:]
    named, random = drops[: len(counts)], drops[len(counts) :].reshape(len(counts), draws).mean(axis=1)
    return DeletionCurve(tuple(fractions), tuple(counts), tuple(named.tolist()), tuple(random.tolist()))


def deletion_test(curves: Sequence[DeletionCurve], seed: int = 0) -> DeletionTest:
    """What the curves of several texts say together."""
    if not curves:
        raise ValueError("expected at least one curve, got none")
    named = np.array([curve.comprehensiveness for curve in curves])
    random = np.array([curve.random_comprehensiveness for curve in curves])
    difference = named - random
    low, high = bootstrap_interval(difference, np.ones(len(curves)), seed)
    return DeletionTest(
        len(curves),
        float(named.mean()),
        float(random.mean()),
        float(difference.mean()),
        low,
        high,
        float((difference > 0).mean()),
    )
