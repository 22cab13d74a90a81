"""How good translations are, beside references: BLEU, chrF and TER by sacreBLEU, with intervals and paired tests.

    BLEU   modified n-gram precision, n = 1..4, with brevity penalty   Papineni et al. 2002, section 2
    chrF   F2 of character n-grams, n = 1..6, blanks left out          Popović 2015; beta = 2: Popović 2016
    TER    edits, and shifts of blocks, a word of the reference        Snover et al. 2006

None is a mean over sentences: each is a function of sums over sentences (n-grams matched, n-grams met, lengths). So
sacreBLEU counts every sentence once, and a draw of sentences is a sum of rows of that table: the bootstrap (Koehn 2004,
"Statistical Significance Tests for Machine Translation Evaluation") is exact, and needs no second look at a string. Two
systems are scored on the same draws (his paired bootstrap): an easy sentence is easy for both, and their difference is
surer than either.

A BLEU says nothing without its tokenizer, so each score comes with sacreBLEU's signature (Post 2018). Chinese is cut
into characters ("zh"); Japanese too ("char": the usual "ja-mecab" needs a dictionary); all else by "13a". For these
two, TER cuts Han into characters as well (its "normalized" and "asian_support"; a run of kana stays one word): by its
default a Chinese sentence would be one word, right or wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from zhixing.errors import InputError
from zhixing.evaluation.intervals import Floats, Score, as_scores, bootstrap_scores, draw_counts
from zhixing.progress import Progress

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric

BLEU_ORDERS, CHRF_ORDERS, CHRF_BETA = 4, 6, 2
COUNTED_AT_ONCE = 64  # sentences, between two lines of progress
REPEATED_LENGTH, REPEATED_TIMES = 4, 3  # tokens of an n-gram, and how often it comes in a text that repeats itself

CHINESE = frozenset({"zh", "zho", "chi", "cmn", "yue"})
JAPANESE = frozenset({"ja", "jpn"})
TESTED = ("bleu", "chrf", "ter")


@dataclass(frozen=True)
class TranslationTable:
    """What is counted of each of N translations; every score is a function of sums of its rows.

    bleu (N, 10): length, reference's length, n-grams matched for n = 1..4, n-grams met for n = 1..4
    chrf (N, 18): for n = 1..6 the n-grams of the output, of the reference, of both
    ter (N, 2): edits, words of the reference; None where it was not wanted
    untranslated, repeated (N,): 1 where it is so; untranslated is None without sources
    """

    bleu: Floats
    chrf: Floats
    ter: Floats | None
    untranslated: Floats | None
    repeated: Floats
    repeated_references: float
    language: str
    signatures: dict[str, str]


@dataclass(frozen=True)
class TranslationScores:
    """Scores of a system over n pairs. BLEU, chrF and TER are in percent, the others are shares or ratios.

    repeated_references is the share of references that repeat themselves by the same rule: what `repeated` is to be
    compared with.
    """

    bleu: Score
    chrf: Score
    ter: Score | None  # None: not wanted
    length_ratio: Score  # tokens of the outputs over tokens of the references, as BLEU cuts them
    untranslated: Score | None  # None: no sources were given
    repeated: Score
    repeated_references: float
    language: str
    signatures: dict[str, str]
    n: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {
            "n": self.n,
            "seed": self.seed,
            "language": self.language,
            "bleu": self.bleu.to_dict(),
            "chrf": self.chrf.to_dict(),
            "ter": self.ter.to_dict() if self.ter else None,
            "length_ratio": self.length_ratio.to_dict(),
            "untranslated": self.untranslated.to_dict() if self.untranslated else None,
            "repeated": self.repeated.to_dict(),
            "repeated_references": self.repeated_references,
            "signatures": dict(self.signatures),
        }


@dataclass(frozen=True)
class TranslationComparison:
    """Two systems on the same sentences: scores of both, second minus first with the paired interval, and Koehn's p of
    BLEU, chrF and TER: the share of draws in which the better of the two is not better."""

    first: dict[str, Score]
    second: dict[str, Score]
    difference: dict[str, Score]
    p: dict[str, float]
    language: str
    signatures: dict[str, str]
    n: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {
            "n": self.n,
            "seed": self.seed,
            "language": self.language,
            "scores": {
                name: {
                    "first": self.first[name].to_dict(),
                    "second": self.second[name].to_dict(),
                    "difference": difference.to_dict(),
                    "p": self.p.get(name),
                }
                for name, difference in self.difference.items()
            },
            "method": "paired bootstrap (Koehn 2004)",
            "signatures": dict(self.signatures),
        }


def score_translations(
    outputs: Sequence[str],
    references: Sequence[str],
    *,
    language: str,
    sources: Sequence[str] | None = None,
    with_ter: bool = True,
    seed: int = 0,
    resamples: int = 1000,
) -> TranslationScores:
    """Every score of N outputs, each beside its reference (and its source), with the 95 % interval.

    language is the code of what the outputs are written in: en, zh, zh-CN. One pair has no interval. TER, in plain
    Python, takes a tenth of a second for a sentence whose words are all there in another order, a hundred times what
    BLEU takes: leave it out where that is too long.
    InputError: no pairs, lists of unequal length, or a thing that is no text.
    """
    table = count_translations(outputs, references, language=language, sources=sources, with_ter=with_ter)
    n = len(outputs)
    found = bootstrap_scores(np.ones(n, np.int64), partial(table_scores, table), seed=seed, resamples=resamples)
    scores = as_scores(found, n, seed)
    return TranslationScores(
        scores["bleu"], scores["chrf"], scores.get("ter"), scores["length_ratio"], scores.get("untranslated"),
        scores["repeated"], table.repeated_references, language, table.signatures, n, seed,
    )  # fmt: skip


def compare_translations(
    first: Sequence[str],
    second: Sequence[str],
    references: Sequence[str],
    *,
    language: str,
    sources: Sequence[str] | None = None,
    with_ter: bool = True,
    seed: int = 0,
    resamples: int = 1000,
) -> TranslationComparison:
    """The paired bootstrap of two systems' outputs for the same N sentences. InputError: as `score_translations`.

    p is one-sided, as Koehn's: systems that are equally good have a p below 0.05 in a tenth of all comparisons, one way
    or the other. Equal scores have p = 1.
    """
    tables = [
        count_translations(said, references, language=language, sources=sources, with_ter=with_ter)
        for said in (first, second)
    ]
    n = len(references)

    def statistics(drawn: Floats) -> dict[str, Floats]:
        a, b = (table_scores(table, drawn) for table in tables)
        return {
            f"{kind} {name}": value
            for name in a
            for kind, value in (("first", a[name]), ("second", b[name]), ("difference", b[name] - a[name]))
        }

    everything = np.ones(n, np.int64)
    scores = as_scores(bootstrap_scores(everything, statistics, seed=seed, resamples=resamples), n, seed)
    of_first, of_second, difference = (
        {key.removeprefix(f"{kind} "): score for key, score in scores.items() if key.startswith(f"{kind} ")}
        for kind in ("first", "second", "difference")
    )
    not_better = {name: 0 for name in TESTED if name in difference}
    for drawn in draw_counts(everything, seed, resamples):  # the same draws once more
        found = statistics(drawn)
        for name in not_better:
            not_better[name] += int((found[f"difference {name}"] * np.sign(difference[name].value) <= 0).sum())
    p = {name: count / resamples for name, count in not_better.items()}
    return TranslationComparison(of_first, of_second, difference, p, language, tables[0].signatures, n, seed)


def bleu_tokenizer(language: str) -> str:
    """sacreBLEU's tokenizer for a target language: the part of the code before - or _ decides.

    >>> bleu_tokenizer("zh-Hant"), bleu_tokenizer("ja"), bleu_tokenizer("de")
    ('zh', 'char', '13a')
    """
    code = _code(language)
    return "zh" if code in CHINESE else "char" if code in JAPANESE else "13a"


def count_translations(
    outputs: Sequence[str],
    references: Sequence[str],
    *,
    language: str,
    sources: Sequence[str] | None = None,
    with_ter: bool = True,
) -> TranslationTable:
    """Count each output beside its reference, by sacreBLEU; the slow part of scoring, mostly TER.

    InputError: no pairs, lists of unequal length, or a thing that is no text.
    """
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF
    from sacrebleu.metrics.ter import TER

    check_pairs(outputs, references)
    if sources is not None:
        check_pairs(outputs, sources, second="source")
    by_character = _code(language) in CHINESE | JAPANESE
    metrics: dict[str, Metric] = {
        "bleu": BLEU(tokenize=bleu_tokenizer(language)),
        "chrf": CHRF(char_order=CHRF_ORDERS, beta=CHRF_BETA),
    }
    if with_ter:
        metrics["ter"] = TER(normalized=by_character, asian_support=by_character)
    tables = {name: _counted(metric, outputs, references) for name, metric in metrics.items()}
    untranslated = None
    if sources is not None:
        alike = [is_untranslated(output, source) for output, source in zip(outputs, sources, strict=True)]
        untranslated = np.array(alike, np.float64)
    return TranslationTable(
        bleu=tables["bleu"],
        chrf=tables["chrf"],
        ter=tables.get("ter"),
        untranslated=untranslated,
        repeated=np.array([repeats_itself(text, language) for text in outputs], np.float64),
        repeated_references=sum(repeats_itself(text, language) for text in references) / len(references),
        language=language,
        signatures={name: str(metric.get_signature()) for name, metric in metrics.items()},
    )


def table_scores(table: TranslationTable, drawn: Floats) -> dict[str, Floats]:
    """Scores of R draws, each (R,): drawn (R, N) says how often each sentence was drawn."""
    bleu = drawn @ table.bleu  # (R, 10)
    said, meant = bleu[:, 0], bleu[:, 1]
    scores = {
        "bleu": bleu_from_sums(bleu),
        "chrf": chrf_from_sums(drawn @ table.chrf),
        "length_ratio": np.divide(said, meant, out=np.full(len(said), np.nan), where=meant > 0),
    }
    if table.ter is not None:
        scores["ter"] = ter_from_sums(drawn @ table.ter)
    n = drawn.sum(axis=1)
    if table.untranslated is not None:
        scores["untranslated"] = drawn @ table.untranslated / n
    scores["repeated"] = drawn @ table.repeated / n
    return scores


def bleu_from_sums(sums: Floats) -> Floats:
    """BLEU in percent of sums (..., 10) -> (...), with sacreBLEU's "exp" smoothing.

    Of the k-th order without a match, 1 / 2^k n-grams are taken to match (NIST's mteval-v13a). 0 where nothing matches,
    or where outputs are too short to hold any 4-gram.
    """
    length, reference = sums[..., 0], sums[..., 1]
    matched, met = sums[..., 2 : 2 + BLEU_ORDERS], sums[..., 2 + BLEU_ORDERS :]
    smoothed = np.where(matched > 0, matched, 0.5 ** np.cumsum(matched == 0, axis=-1))
    score = np.exp(np.log(smoothed / np.maximum(met, 1)).mean(axis=-1))
    penalty = np.exp(np.minimum(0.0, 1 - reference / np.maximum(length, 1)))
    counts = (matched > 0).any(axis=-1) & (met > 0).all(axis=-1)
    return np.asarray(np.where(counts, 100 * penalty * score, 0.0))


def chrf_from_sums(sums: Floats) -> Floats:
    """chrF in percent of sums (..., 18) -> (...): F2 of precision and recall, means over the orders met."""
    table = sums.reshape(*sums.shape[:-1], CHRF_ORDERS, 3)  # (..., 6, 3)
    said, meant, both = table[..., 0], table[..., 1], table[..., 2]
    there = (said > 0) & (meant > 0)
    orders = np.maximum(there.sum(axis=-1), 1)
    precision = np.where(there, both / np.maximum(said, 1), 0.0).sum(axis=-1) / orders
    recall = np.where(there, both / np.maximum(meant, 1), 0.0).sum(axis=-1) / orders
    below = CHRF_BETA**2 * precision + recall
    above = (1 + CHRF_BETA**2) * precision * recall
    return np.asarray(100 * np.divide(above, below, out=np.zeros_like(below), where=below > 0))


def ter_from_sums(sums: Floats) -> Floats:
    """TER in percent of sums (..., 2) -> (...); 0 is best. Of empty references: 100, or 0 if outputs are empty too."""
    edits, words = sums[..., 0], sums[..., 1]
    return np.asarray(100 * np.divide(edits, words, out=np.asarray((edits > 0).astype(np.float64)), where=words > 0))


def is_untranslated(output: str, source: str) -> bool:
    """Whether the output is its source, ignoring case and blanks; two empty texts are not.

    >>> is_untranslated("good  Morning", "Good morning"), is_untranslated("早上好", "Good morning")
    (True, False)
    """
    said, given = ("".join(text.casefold().split()) for text in (output, source))
    return bool(said) and said == given


def repeats_itself(text: str, language: str) -> bool:
    """Whether some 4 tokens in a row come 3 times or more: words in lower case, or characters in Chinese and Japanese.

    The places may overlap: of one token alone, six in a row are enough.

    >>> repeats_itself("the end of the day and the end of the day and the end of the day", "en")
    True
    """
    plain = text.lower().split()
    tokens: Sequence[str] = "".join(plain) if _code(language) in CHINESE | JAPANESE else plain
    met = Counter(tuple(tokens[i : i + REPEATED_LENGTH]) for i in range(len(tokens) - REPEATED_LENGTH + 1))
    return max(met.values(), default=0) >= REPEATED_TIMES


def check_pairs(first: Sequence[object], second_texts: Sequence[object], *, second: str = "reference") -> None:
    """InputError unless there is at least one output, and one text of the second kind for each, all of them strings."""
    for kind, texts in (("output", first), (second, second_texts)):
        if isinstance(texts, str):
            raise InputError(
                f"the {kind}s are one text instead of a list of texts",
                where=f"{kind}s",
                why="each of its characters would be scored as a text",
                mend="put it in a list",
            )
        wrong = next((i for i, text in enumerate(texts) if not isinstance(text, str)), None)
        if wrong is not None:
            raise InputError(
                f"an {kind} is not a text" if kind == "output" else f"a {kind} is not a text",
                where=f"{kind} {wrong + 1}",
                why=f"it is {texts[wrong]!r}",
                mend="give strings; an empty one where there is nothing",
            )
    if len(first) != len(second_texts):
        raise InputError(
            f"the outputs and the {second}s do not make pairs",
            where=f"outputs and {second}s",
            why=f"there are {len(first):,} outputs and {len(second_texts):,} {second}s",
            mend=f"give one {second} for each output, in the same order",
        )
    if not first:
        raise InputError(
            "there is nothing to score", where="outputs", why="the lists are empty", mend="give at least one pair"
        )


def _code(language: str) -> str:
    return language.lower().replace("_", "-").split("-")[0]


def _counted(metric: Metric, outputs: Sequence[str], references: Sequence[str]) -> Floats:
    """sacreBLEU's counts of each sentence, by the method that its own significance tests call: (N, K)."""
    counts: list[list[float]] = []
    with Progress(f"counting {type(metric).__name__}", total=len(outputs)) as progress:
        for begin in range(0, len(outputs), COUNTED_AT_ONCE):
            part = slice(begin, begin + COUNTED_AT_ONCE)
            counts += metric._extract_corpus_statistics(outputs[part], [references[part]])
            progress.update(len(counts))
    return np.array(counts, np.float64)
