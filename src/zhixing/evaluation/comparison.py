"""Two classifiers on the same texts: is one better, or was it luck?

McNemar 1947 looks only at the texts where exactly one of the two is right: b for the first, c for the second. If both
were equally good each such text would be a fair coin. With fewer than 25 of them the p-value is the coin's, exactly:

    p = min(1, 2 sum_{k <= min(b, c)} C(b + c, k) / 2^(b + c))

and with more, chi-square = (|b - c| - 1)^2 / (b + c) of one degree of freedom (Edwards 1948), p = erfc(sqrt(chi2 / 2)).

How much better it is says the paired bootstrap: texts are drawn again, both classifiers are scored on the same draw,
and the interval is that of the difference. It is narrower than the two intervals suggest, as both err on the same hard
texts.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zhixing.errors import InputError
from zhixing.evaluation.classification import cell_statistics, text_statistics
from zhixing.evaluation.classification_result import UNITS, ClassificationResult, in_units, rating
from zhixing.evaluation.intervals import Floats, Score, Statistics, as_scores, bootstrap_scores
from zhixing.evaluation.labels import SCORES
from zhixing.evaluation.records import visible
from zhixing.evaluation.regression import regression_statistics
from zhixing.evaluation.terminal import bold, fits, pad, wants_colour

EXACT_BELOW = 25  # discordant texts

SHOWN = {
    "single_label_classification": ("accuracy", "macro_f1", "weighted_f1", "mcc"),
    "multi_label_classification": ("micro_f1", "macro_f1", "subset_accuracy", "hamming_loss"),
    "regression": ("mse", "mae", "pearson", "spearman"),
}


@dataclass(frozen=True)
class McNemar:
    """The texts where exactly one of the two is right, and how likely a split as uneven is if both are as good."""

    only_first: int
    only_second: int
    statistic: float | None  # chi-square; None if the binomial was summed
    p: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        method = "exact binomial" if self.statistic is None else "chi-square with continuity correction"
        return {
            "only_first_right": self.only_first,
            "only_second_right": self.only_second,
            "statistic": self.statistic,
            "p": self.p,
            "method": method,
        }


@dataclass(frozen=True)
class Difference:
    """A text that the two classifiers answer differently."""

    row: int
    text: str
    target: str
    first: str
    second: str
    first_right: bool
    second_right: bool


@dataclass(frozen=True)
class Comparison:
    """Scores of both, second minus first with the paired interval, McNemar's test (None for a regression), and the
    texts with different answers: those where one of the two is right first."""

    first_name: str
    second_name: str
    first: dict[str, Score]
    second: dict[str, Score]
    difference: dict[str, Score]
    mcnemar: McNemar | None
    differing: tuple[Difference, ...]
    n: int
    seed: int

    def to_dict(self, most: int | None = None) -> dict[str, Any]:
        """As JSON takes it; `most` texts at most (all of them by default)."""
        return {
            "first": self.first_name,
            "second": self.second_name,
            "n": self.n,
            "seed": self.seed,
            "scores": {
                name: {
                    "first": self.first[name].to_dict(),
                    "second": self.second[name].to_dict(),
                    "difference": difference.to_dict(),
                }
                for name, difference in self.difference.items()
            },
            "mcnemar": self.mcnemar.to_dict() if self.mcnemar else None,
            "n_differing": len(self.differing),
            "differing": [
                {
                    "row": d.row, "text": d.text, "target": d.target, "first": d.first, "second": d.second,
                    "first_right": d.first_right, "second_right": d.second_right,
                }
                for d in self.differing[:most]
            ],
        }  # fmt: skip


def mcnemar(first_right: ArrayLike, second_right: ArrayLike) -> McNemar:
    """McNemar's test of two systems on the same texts: (N,) and (N,), whether each is right.

    >>> mcnemar([1, 1, 1, 1, 1, 0, 1], [0, 0, 0, 0, 0, 1, 1]).p  # 5 to 1: 2 (1 + 6) / 64
    0.21875
    """
    a, b = np.asarray(first_right, np.bool_), np.asarray(second_right, np.bool_)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"expected two rows of equal length, got {a.shape} and {b.shape}")
    only_first, only_second = int((a & ~b).sum()), int((b & ~a).sum())
    n = only_first + only_second
    if n < EXACT_BELOW:
        tail = sum(math.comb(n, k) for k in range(min(only_first, only_second) + 1))
        return McNemar(only_first, only_second, None, min(1.0, 2 * tail / 2**n))
    statistic = max(0, abs(only_first - only_second) - 1) ** 2 / n
    return McNemar(only_first, only_second, statistic, math.erfc(math.sqrt(statistic / 2)))


def compare(first: ClassificationResult, second: ClassificationResult, *, resamples: int = 1000) -> Comparison:
    """Compare two results on the same texts; the seed is the first's. Labels are matched by name, not by id.

    InputError: other texts, other right answers, or another kind of problem.
    """
    first, second = _aligned(first, second)
    known = first.known
    if not known.any():
        raise InputError("there is nothing to compare", why="no text has a known label", mend="give texts with labels")
    counts, sides = _sides(first, second)

    def statistics(drawn: Floats) -> dict[str, Floats]:
        a, b = (side(drawn) for side in sides)
        return {
            f"{kind} {name}": value
            for name in SHOWN[first.problem_type]
            for kind, value in (("first", a[name]), ("second", b[name]), ("difference", b[name] - a[name]))
        }

    found = bootstrap_scores(counts, statistics, seed=first.seed, resamples=resamples)
    n = int(known.sum())

    scores = as_scores(found, n, first.seed)
    of_first, of_second, difference = (
        {name: scores[f"{kind} {name}"] for name in SHOWN[first.problem_type]}
        for kind in ("first", "second", "difference")
    )

    test = None if first.graded else mcnemar(first.right[known], second.right[known])
    names = (first.name or "first", second.name or "second")
    return Comparison(*names, of_first, of_second, difference, test, _differing(first, second), n, first.seed)


def _sides(first: ClassificationResult, second: ClassificationResult) -> tuple[NDArray[np.int64], list[Statistics]]:
    """The kinds of text (K,) that are drawn, and the statistics of each of the two results from draws (R, K)."""
    known = first.known
    y, a, b = (np.asarray(column)[known] for column in (first.targets, first.predictions, second.predictions))
    texts = np.ones(len(y), np.int64)
    if first.graded:
        y, a, b = (column.astype(np.float64) for column in (y, a, b))
        return texts, [partial(regression_statistics, y=y, said=said) for said in (a, b)]
    if first.several:
        return texts, [text_statistics(np.asarray(y > 0), np.asarray(said > 0)) for said in (a, b)]
    cells, counts = np.unique(np.stack([y, a, b], axis=1), axis=0, return_counts=True)  # (K, 3), (K,)
    return counts, [cell_statistics(cells[:, 0], cells[:, side], len(first.labels)) for side in (1, 2)]


def _aligned(
    first: ClassificationResult, second: ClassificationResult
) -> tuple[ClassificationResult, ClassificationResult]:
    """Both with the same labels in the same order."""
    if first.problem_type != second.problem_type:
        raise InputError(
            "the two models answer different questions",
            why=f"one is for {first.problem_type}, the other for {second.problem_type}",
            mend="compare two models of the same kind",
        )
    if len(first.targets) != len(second.targets) or (
        first.texts is not None and second.texts is not None and first.texts != second.texts
    ):
        raise InputError(
            "the two results are of different texts",
            why=f"{len(first.targets):,} and {len(second.targets):,} texts"
            if len(first.targets) != len(second.targets)
            else "some texts differ",
            mend="evaluate both models on the same file",
        )
    if not first.graded:
        union = [*first.labels, *(label for label in second.labels if label not in set(first.labels))]
        first, second = _relabelled(first, union), _relabelled(second, union)
    same = np.array_equal(first.targets, second.targets, equal_nan=first.graded)
    if not same:
        raise InputError(
            "the two results have different right answers",
            where=f"text {_first_difference(first, second)}",
            mend="evaluate both models on the same file",
        )
    return first, second


def _relabelled(result: ClassificationResult, labels: list[str]) -> ClassificationResult:
    """The result with `labels`, which hold its own."""
    if labels == result.labels:
        return result
    place = np.array([labels.index(label) for label in result.labels], np.int64)  # (C,)

    def ids(column: NDArray[Any]) -> NDArray[Any]:
        column = np.asarray(column)
        return np.where(column >= 0, place[np.maximum(column, 0)], column)

    def wide(table: NDArray[Any]) -> NDArray[Any]:
        spread = np.zeros((*np.shape(table)[:-1], len(labels)), np.asarray(table).dtype)
        spread[..., place] = table
        return spread

    turn = wide if result.several else ids
    return replace(
        result,
        labels=labels,
        targets=turn(result.targets),
        predictions=turn(result.predictions),
        probabilities=None if result.probabilities is None else wide(result.probabilities),
        train_counts=None if result.train_counts is None else wide(result.train_counts),
    )


def _first_difference(first: ClassificationResult, second: ClassificationResult) -> int:
    a, b = np.asarray(first.targets), np.asarray(second.targets)
    unlike = (a != b).any(axis=1) if first.several else a != b
    if first.graded:
        unlike &= ~(np.isnan(a) & np.isnan(b))
    return int(np.flatnonzero(unlike)[0])


def answer_of(result: ClassificationResult, row: int, *, target: bool = False) -> str:
    """The answer (or the target) of a text in words."""
    value = (result.targets if target else result.predictions)[row]
    if result.graded:
        return rating(float(value))
    if result.several:
        return ", ".join(label for label, has in zip(result.labels, value, strict=True) if has) or "none"
    return result.labels[int(value)] if value >= 0 else "not known"


def _differing(first: ClassificationResult, second: ClassificationResult) -> tuple[Difference, ...]:
    a, b = np.asarray(first.predictions), np.asarray(second.predictions)
    unlike = (a != b).any(axis=1) if first.several else a != b
    if first.graded:  # numbers nearly always differ: the largest distances first, the better one is "right"
        order = np.argsort(-np.abs(a - b), kind="stable")
        off_a, off_b = np.abs(a - first.targets), np.abs(b - first.targets)
        right_a, right_b = off_a < off_b, off_b < off_a
    else:
        right_a, right_b = first.right, second.right
        order = np.argsort(~(right_a ^ right_b), kind="stable")
    return tuple(
        Difference(
            int(i), first.texts[i] if first.texts else second.texts[i] if second.texts else "",
            answer_of(first, i, target=True), answer_of(first, i), answer_of(second, i),
            bool(right_a[i]), bool(right_b[i]),
        )
        for i in order if unlike[i] and first.known[i]
    )  # fmt: skip


def verdict(comparison: Comparison) -> str:
    """What the test says, in a sentence."""
    test = comparison.mcnemar
    if test is None:
        return ""
    n = test.only_first + test.only_second
    if not n:
        return "Both are right on the same texts."
    better = comparison.first_name if test.only_first > test.only_second else comparison.second_name
    p = "p < 0.0001" if test.p < 1e-4 else f"p = {test.p:.4f}" if test.p < 0.01 else f"p = {test.p:.2f}"
    said = (
        f"{visible(better)} is better, and chance is an unlikely reason"
        if test.p < 0.05
        else "The difference may well be chance"
    )
    return f"{said} (McNemar: {test.only_first} to {test.only_second} of {n} texts where one is right, {p})."


def comparison_text(comparison: Comparison, *, colour: bool | None = None, width: int = 100, most: int = 20) -> str:
    """The comparison for a terminal, with `most` of the texts that differ. Colours unless NO_COLOR is set."""
    colour = wants_colour(colour)
    c = comparison
    names = [fits(visible(name), 22) for name in (c.first_name, c.second_name)]
    lines = [bold(f"{visible(c.first_name)} and {visible(c.second_name)} on the same {c.n:,} texts", colour=colour), ""]
    lines.append(f"{'':<18}{pad(names[0], 24)}{pad(names[1], 24)}second - first, 95 % interval")
    for name, difference in c.difference.items():
        cells = [f"{_value(name, score)}  {_between(name, score)}" for score in (c.first[name], c.second[name])]
        change = f"{_value(name, difference, sign=True)}  {_between(name, difference, sign=True)}"
        lines.append(f"{SCORES[name][0]:<18}{cells[0]:<24}{cells[1]:<24}{change}")
    said = verdict(c)
    if said:
        lines += ["", *textwrap.wrap(said, width)]
    lines += ["", *_table(c.differing[:most], names, colour=colour, width=width)]
    if len(c.differing) > most:
        lines.append(f"and {len(c.differing) - most:,} more")
    return "\n".join(lines)


def _table(rows: Sequence[Difference], names: list[str], *, colour: bool, width: int) -> list[str]:
    if not rows:
        return ["They answer every text alike."]
    heads = ["target", *names]
    cells = [[visible(part) for part in (d.target, d.first, d.second)] for d in rows]
    marks = [["", " ✓" if d.first_right else "", " ✓" if d.second_right else ""] for d in rows]
    widths = [
        min(20, max(len(head), *(len(row[k] + mark[k]) for row, mark in zip(cells, marks, strict=True))))
        for k, head in enumerate(heads)
    ]
    left = sum(widths) + 2 * len(widths)
    lines = [bold("  ".join(pad(fits(h, w), w) for h, w in zip(heads, widths, strict=True)) + "  text", colour=colour)]
    for row, mark, d in zip(cells, marks, rows, strict=True):
        shown = [
            pad(fits(cell, w - len(m)) + m, w) for cell, m, w in zip(row, mark, widths, strict=True)
        ]  # fmt: skip
        text = " ".join(visible(d.text[:500]).split()) or f"row {d.row + 1}"
        lines.append("  ".join([*shown, fits(text, max(20, width - left))]))
    return lines


def _value(name: str, score: Score, *, sign: bool = False) -> str:
    return _number(name, score.value, 4, sign=sign) if math.isfinite(score.value) else "–"


def _between(name: str, score: Score, *, sign: bool = False) -> str:
    if not (math.isfinite(score.low) and math.isfinite(score.high)):
        return ""
    low, high = (_number(name, end, 4 if sign else 3, sign=sign) for end in (score.low, score.high))
    return f"{low} to {high}" if sign else f"{low} – {high}"


def _number(name: str, value: float, places: int, *, sign: bool) -> str:
    if name in UNITS:
        return ("-" if value < 0 else "+" if sign else "") + in_units(abs(value))
    return f"{value:{'+' if sign else ''}.{places}f}"
