"""Two translators, or two summarizers, on the same texts: is one better, or was it luck?

Texts are drawn again, with replacement, and both systems are scored on the same draw (the paired bootstrap of Koehn
2004): a hard text is hard for both, so their difference is surer than either score. Translations are compared by BLEU
and chrF, summaries by ROUGE-L, ROUGE-1 and ROUGE-2. p is one-sided, the share of draws in which the better of the two
is not better. Whether chance is a likely reason is said by the interval, which is two-sided: 95 % of the differences.

A score of many texts hides which they are. So each text has a difference of its own, of chrF (or ROUGE-L) of this text
alone, and those where the two differ most are shown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from zhixing.evaluation.intervals import Floats, Score, as_scores, bootstrap_scores, draw_counts
from zhixing.evaluation.records import visible
from zhixing.evaluation.rouge import rouge_l, rouge_n
from zhixing.evaluation.terminal import bold, fits, pad, wants_colour
from zhixing.evaluation.translation import check_pairs, chrf_from_sums, compare_translations, count_translations

NAMES = {
    "bleu": "BLEU",
    "chrf": "chrF",
    "length_ratio": "length ratio",
    "untranslated": "untranslated",
    "repeated": "repeated",
    "rougeL": "ROUGE-L",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
}


@dataclass(frozen=True)
class DifferingText:
    """A text for which the two wrote unlike things, and what each is worth: chrF in percent, or ROUGE-L."""

    row: int
    source: str
    reference: str
    first: str
    second: str
    first_score: float
    second_score: float


@dataclass(frozen=True)
class Seq2SeqComparison:
    """Scores of both, second minus first with the paired interval, p where it was tested, and the texts that they write
    differently, the largest differences first."""

    first_name: str
    second_name: str
    first: dict[str, Score]
    second: dict[str, Score]
    difference: dict[str, Score]
    p: dict[str, float]
    signatures: dict[str, str]
    differing: tuple[DifferingText, ...]
    n: int
    seed: int

    def to_dict(self, most: int | None = None) -> dict[str, Any]:
        """As JSON takes it; `most` texts at most (all of them by default)."""
        return {
            "first": self.first_name,
            "second": self.second_name,
            "n": self.n,
            "seed": self.seed,
            "method": "paired bootstrap (Koehn 2004)",
            "scores": {
                name: {
                    "first": self.first[name].to_dict(),
                    "second": self.second[name].to_dict(),
                    "difference": difference.to_dict(),
                    "p": self.p.get(name),
                }
                for name, difference in self.difference.items()
            },
            "signatures": dict(self.signatures),
            "n_differing": len(self.differing),
            "differing": [
                {
                    "row": d.row, "source": d.source, "reference": d.reference, "first": d.first, "second": d.second,
                    "first_score": d.first_score, "second_score": d.second_score,
                }
                for d in self.differing[:most]
            ],
        }  # fmt: skip


def compare_translators(
    first: Sequence[str],
    second: Sequence[str],
    references: Sequence[str],
    *,
    language: str,
    sources: Sequence[str],
    names: tuple[str, str] = ("first", "second"),
    seed: int = 0,
    resamples: int = 1000,
) -> Seq2SeqComparison:
    """Two translators' outputs for the same N sources, by BLEU and chrF. InputError: as `score_translations`."""
    found = compare_translations(
        first, second, references, language=language, sources=sources, with_ter=False, seed=seed, resamples=resamples
    )
    alone = [
        chrf_from_sums(count_translations(said, references, language=language, with_ter=False).chrf)
        for said in (first, second)
    ]  # (N,) each
    return Seq2SeqComparison(
        *names, found.first, found.second, found.difference, found.p, found.signatures,
        _differing(sources, references, first, second, alone[0], alone[1]), found.n, seed,
    )  # fmt: skip


def compare_summarizers(
    first: Sequence[str],
    second: Sequence[str],
    references: Sequence[str],
    *,
    sources: Sequence[str],
    names: tuple[str, str] = ("first", "second"),
    seed: int = 0,
    resamples: int = 1000,
) -> Seq2SeqComparison:
    """Two summarizers' outputs for the same N sources, by ROUGE (F1, means over texts).

    InputError: no pairs, lists of unequal length, or a thing that is no text.
    """
    check_pairs(first, references)
    check_pairs(second, references)
    a, b = (_rouge_table(said, references) for said in (first, second))  # (N, 3)
    kinds = ("rougeL", "rouge1", "rouge2")

    def statistics(drawn: Floats) -> dict[str, Floats]:
        n = drawn.sum(axis=1, keepdims=True)
        means = {kind: drawn @ table / n for kind, table in (("first", a), ("second", b), ("difference", b - a))}
        return {f"{kind} {name}": means[kind][:, k] for kind in means for k, name in enumerate(kinds)}

    everything = np.ones(len(references), np.int64)
    scores = as_scores(bootstrap_scores(everything, statistics, seed=seed, resamples=resamples), len(references), seed)
    of_first, of_second, difference = (
        {name: scores[f"{kind} {name}"] for name in kinds} for kind in ("first", "second", "difference")
    )
    not_better = dict.fromkeys(kinds, 0)
    for drawn in draw_counts(everything, seed, resamples):  # the same draws once more
        found = statistics(drawn)
        for name in kinds:
            not_better[name] += int((found[f"difference {name}"] * np.sign(difference[name].value) <= 0).sum())
    p = {name: count / resamples for name, count in not_better.items()}
    return Seq2SeqComparison(
        *names, of_first, of_second, difference, p, {},
        _differing(sources, references, first, second, a[:, 0], b[:, 0]), len(references), seed,
    )  # fmt: skip


def _rouge_table(said: Sequence[str], references: Sequence[str]) -> Floats:
    """F1 of ROUGE-L, ROUGE-1 and ROUGE-2 of each text: (N, 3)."""
    rows = [
        (rouge_l(text, reference).f1, rouge_n(text, reference, 1).f1, rouge_n(text, reference, 2).f1)
        for text, reference in zip(said, references, strict=True)
    ]
    return np.array(rows, np.float64)


def _differing(
    sources: Sequence[str],
    references: Sequence[str],
    first: Sequence[str],
    second: Sequence[str],
    a: Floats,
    b: Floats,
) -> tuple[DifferingText, ...]:
    """The texts that the two write unlike, those first of which the scores a and b (N,) are furthest apart."""
    order = np.argsort(-np.abs(a - b), kind="stable").tolist()
    return tuple(
        DifferingText(i, sources[i], references[i], first[i], second[i], float(a[i]), float(b[i]))
        for i in order if first[i] != second[i]
    )  # fmt: skip


def seq2seq_verdict(comparison: Seq2SeqComparison) -> str:
    """What the first of the scores says, in a sentence."""
    if not comparison.differing:
        return "Both write the same for every text."
    name, difference = next(iter(comparison.difference.items()))
    p = _p(comparison.p[name])
    shown = f"{NAMES[name]} {_number(name, difference.value, sign=True)}"
    how = f"({shown}, paired bootstrap, p {p if p.startswith('<') else '= ' + p})"
    if math.isfinite(difference.low) and (difference.low > 0 or difference.high < 0):
        better = comparison.second_name if difference.value > 0 else comparison.first_name
        return f"{visible(better)} is better, and chance is an unlikely reason {how}."
    return f"The difference may well be chance {how}."


def seq2seq_comparison_text(
    comparison: Seq2SeqComparison, *, colour: bool | None = None, width: int = 100, most: int = 5
) -> str:
    """The comparison for a terminal, with the `most` texts that differ most. Colours unless NO_COLOR is set."""
    colour = wants_colour(colour)
    c = comparison
    names = [fits(visible(name), 22) for name in (c.first_name, c.second_name)]
    lines = [bold(f"{visible(c.first_name)} and {visible(c.second_name)} on the same {c.n:,} texts", colour=colour), ""]
    lines.append(f"{'':<14}{pad(names[0], 24)}{pad(names[1], 24)}{'second - first, 95 % interval':<34}p")
    for name, difference in c.difference.items():
        cells = [f"{_number(name, s.value)}  {_between(name, s)}" for s in (c.first[name], c.second[name])]
        change = f"{_number(name, difference.value, sign=True)}  {_between(name, difference, sign=True)}"
        p = _p(c.p[name]) if name in c.p else ""
        lines.append(f"{NAMES[name]:<14}{cells[0]:<24}{cells[1]:<24}{change:<34}{p}".rstrip())
    lines += [f"{name}: {signature}" for name, signature in c.signatures.items()]
    lines += ["", seq2seq_verdict(c)]
    if c.differing:
        measure = NAMES["chrf" if "chrf" in c.difference else "rougeL"]
        lines += ["", bold(f"where they differ most, by {measure} of the text alone", colour=colour)]
    widest = max(9, *(len(name) for name in names))
    for d in c.differing[:most]:
        main = "chrf" if "chrf" in c.difference else "rougeL"
        scores = ("", "", _number(main, d.first_score), _number(main, d.second_score))
        heads, texts = ("source", "reference", *names), (d.source, d.reference, d.first, d.second)
        lines.append("")
        for head, score, text in zip(heads, scores, texts, strict=True):
            shown = fits(" ".join(visible(text[:1000]).split()), max(20, width - widest - 10))
            lines.append(f"{pad(head, widest)} {score:>6}  {shown}".rstrip())
    if len(c.differing) > most:
        lines += ["", f"and {len(c.differing) - most:,} more that they write differently"]
    return "\n".join(lines)


def _p(p: float) -> str:
    return "< 0.001" if p < 1e-3 else f"{p:.3f}"


def _number(name: str, value: float, *, sign: bool = False) -> str:
    """BLEU and chrF are percentages, all else shares or ratios."""
    if not math.isfinite(value):
        return "–"
    return f"{value:{'+' if sign else ''}.{2 if name in ('bleu', 'chrf') else 4}f}"


def _between(name: str, score: Score, *, sign: bool = False) -> str:
    if not (math.isfinite(score.low) and math.isfinite(score.high)):
        return ""
    between = " to " if sign else " – "
    return between.join(_number(name, end, sign=sign) for end in (score.low, score.high))
