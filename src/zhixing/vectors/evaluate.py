"""How good word vectors are, and what they have picked up: word similarity, analogies, association tests.

    similarity  Spearman's rank correlation of cosines with what people said (WordSim-353: Finkelstein et al. 2002;
                SimLex-999: Hill et al. 2015), with the bootstrap interval over the pairs
    analogies   share of "a is to b as c is to d" whose d comes first (Mikolov et al. 2013), by section
    WEAT        are words of X nearer to A and those of Y nearer to B? (Caliskan, Bryson & Narayanan 2017)
                s(w) = mean cos(w, a) - mean cos(w, b)
                effect size = (mean s(x) - mean s(y)) / standard deviation of s over X and Y (with n - 1)
                p = share of the ways to part X and Y anew, in the same sizes, whose difference is as large or larger

Words that have no vector are counted, never left out silently. A word is looked up as it is written, then in lower
case; vectors with subwords know every word, and say how many came from there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zhixing.errors import InputError
from zhixing.progress import Progress
from zhixing.vectors.keyed import KeyedVectors, Method

Doubles = NDArray[np.float64]

MOST_EXACT = 50_000  # ways to part two sets that are all tried; of more, some are drawn
LONGEST_LINE = 1 << 16  # bytes
BLOCK = 1024  # analogy questions between two looks at the clock


# --- word similarity -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WordPair:
    """Two words and how similar people found them."""

    a: str
    b: str
    score: float


@dataclass(frozen=True)
class SimilarityScore:
    """Spearman's correlation over n pairs, and the middle 95 % of it over bootstrap draws of pairs.

    missing: words without a vector, whose pairs are not among the n. from_subwords: pairs with an unseen word.
    """

    spearman: float
    low: float
    high: float
    n: int
    n_pairs: int
    missing: tuple[str, ...]
    from_subwords: int
    seed: int


def read_word_pairs(path: Path) -> list[WordPair]:
    """Lines `word TAB word TAB score`, as gensim ships WordSim-353 and SimLex-999; # begins a comment."""
    pairs = []
    for where, line in _lines(path):
        if line.startswith("#"):
            continue
        fields = line.split("\t")
        try:
            a, b, score = fields[0].strip(), fields[1].strip(), float(fields[2])
        except (IndexError, ValueError):
            raise InputError(
                "a line is not two words and a number",
                where=where,
                why=f"it reads {line[:80]!r}",
                mend="write word, tab, word, tab, number",
            ) from None
        if not a or not b or not math.isfinite(score):
            raise InputError("a line has an empty word or a score that is not finite", where=where)
        pairs.append(WordPair(a, b, score))
    if not pairs:
        raise InputError("the file holds no pairs of words", where=str(path))
    return pairs


def word_similarity(
    vectors: KeyedVectors, pairs: Sequence[WordPair], seed: int = 0, resamples: int = 1000, confidence: float = 0.95
) -> SimilarityScore:
    """How well the cosines of `pairs` keep the order that people gave them. NaN if fewer than two pairs are known."""
    people: list[float] = []
    cosines: list[float] = []
    missing: dict[str, None] = {}
    unseen = 0
    for pair in pairs:
        known = [_known(vectors, word) for word in (pair.a, pair.b)]
        missing |= {word: None for word, found in zip((pair.a, pair.b), known, strict=True) if found is None}
        a, b = known
        if a is not None and b is not None:
            people.append(pair.score)
            cosines.append(vectors.cosine(a, b))
            unseen += a not in vectors or b not in vectors
    n = len(people)
    x, y = np.array(people), np.array(cosines)
    low, high = -np.inf, np.inf
    if n > 2:
        generator = np.random.default_rng(seed)
        drawn = generator.integers(0, n, (resamples, n))
        values = [spearman(x[rows], y[rows]) for rows in drawn]
        low, high = np.nanquantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return SimilarityScore(spearman(x, y), float(low), float(high), n, len(pairs), tuple(missing), unseen, seed)


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Pearson's correlation of the ranks of x and y (n,); equal values share their mean rank. NaN if one is constant.

    [1, 2, 2, 9] has the ranks [1, 2.5, 2.5, 4].
    """
    a, b = _ranks(np.asarray(x, np.float64)), _ranks(np.asarray(y, np.float64))
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"expected two rows of equal length, got {a.shape} and {b.shape}")
    if len(a) < 2:
        return math.nan
    a, b = a - a.mean(), b - b.mean()
    norm = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / norm if norm > 0 else math.nan


def _ranks(values: Doubles) -> Doubles:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[place], np.float64)


# --- analogies -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AnalogySection:
    """Questions of one kind: a is to b as c is to d."""

    name: str
    questions: tuple[tuple[str, str, str, str], ...]


@dataclass(frozen=True)
class AnalogyScore:
    """`correct` of `n` questions; `missing` more hold a word without a vector and are not among the n."""

    name: str
    correct: int
    n: int
    missing: int

    @property
    def accuracy(self) -> float:
        """Share of the n; NaN if there are none."""
        return self.correct / self.n if self.n else math.nan


def read_analogies(path: Path) -> list[AnalogySection]:
    """The form of questions-words.txt: `: name` begins a section, then four words a line."""
    sections: list[tuple[str, list[tuple[str, str, str, str]]]] = []
    for where, line in _lines(path):
        if line.startswith(":"):
            sections.append((line[1:].strip(), []))
            continue
        words = line.split()
        if len(words) != 4:
            raise InputError("a question has not four words", where=where, why=f"it reads {line[:80]!r}")
        if not sections:
            raise InputError(
                "a question stands before the first section", where=where, mend="put a line `: name` first"
            )
        a, b, c, d = words
        sections[-1][1].append((a, b, c, d))
    if not any(questions for _, questions in sections):
        raise InputError("the file holds no questions", where=str(path))
    return [AnalogySection(name, tuple(questions)) for name, questions in sections]


def analogy_accuracy(
    vectors: KeyedVectors, sections: Sequence[AnalogySection], method: Method = "add", among: int | None = None
) -> list[AnalogyScore]:
    """One score a section, then one named "total". Only the first `among` words are known and are answers, if given.

    d must come before all other words but a, b and c. Unseen words are missing even if there are subwords: the answer
    can only be a word that was seen.
    """
    scores = []
    limit = among or len(vectors)
    total = sum(len(section.questions) for section in sections)
    done = 0
    with Progress("analogies", total) as progress:
        for section in sections:
            asked: list[tuple[str, str, str]] = []
            answers: list[int] = []
            for question in section.questions:
                known = [_known(vectors, word, seen=True) for word in question]
                a, b, c, d = (w if w is not None and vectors.index[w] < limit else None for w in known)
                if a is not None and b is not None and c is not None and d is not None:
                    asked.append((a, b, c))
                    answers.append(vectors.index[d])
            correct = 0
            for first in range(0, len(asked), BLOCK):
                ids, _ = vectors.analogies(asked[first : first + BLOCK], 1, method, among=limit)
                correct += int((ids[:, 0] == np.array(answers[first : first + BLOCK])).sum())
                progress.update(done + first)
            done += len(section.questions)
            scores.append(AnalogyScore(section.name, correct, len(asked), len(section.questions) - len(asked)))
    sums = [sum(getattr(score, name) for score in scores) for name in ("correct", "n", "missing")]
    return [*scores, AnalogyScore("total", *sums)]


# --- association ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WordSets:
    """Two sets of words to compare, x and y, by their nearness to a rather than b; `names` says what the four are."""

    names: tuple[str, str, str, str]
    x: tuple[str, ...]
    y: tuple[str, ...]
    a: tuple[str, ...]
    b: tuple[str, ...]


@dataclass(frozen=True)
class AssociationScore:
    """effect_size above 0: x is nearer to a and y to b. sizes: how many words of x, y, a and b have a vector."""

    effect_size: float
    p_value: float
    sizes: tuple[int, int, int, int]
    missing: tuple[str, ...]
    permutations: int
    exact: bool  # all ways to part x and y were tried
    seed: int


def word_association(
    vectors: KeyedVectors, sets: WordSets, seed: int = 0, permutations: int = 100_000
) -> AssociationScore:
    """The WEAT of four sets of words. InputError if too few of a set have vectors.

    p counts the observed parting itself, so it is never 0; it is one-sided, as in the paper.
    """
    found: list[list[str]] = []
    missing: list[str] = []
    for name, words, least in zip(sets.names, (sets.x, sets.y, sets.a, sets.b), (2, 2, 1, 1), strict=True):
        known = [_known(vectors, word) for word in words]
        missing += [word for word, other in zip(words, known, strict=True) if other is None]
        found.append([word for word in known if word is not None])
        if len(found[-1]) < least:
            raise InputError(
                f"{len(found[-1])} words of {name!r} have vectors, {least} are needed",
                why=f"{len(words)} words were looked up",
                mend="give other words, or vectors of more text",
            )
    x, y, a, b = ([vectors.vector(word).astype(np.float64) for word in words] for words in found)
    near = _unit(np.array(x + y)) @ _unit(np.array(a + b)).T  # (X + Y, A + B)
    s = near[:, : len(a)].mean(axis=1) - near[:, len(a) :].mean(axis=1)
    difference = float(s[: len(x)].mean() - s[len(x) :].mean())
    spread = float(s.std(ddof=1))
    ways = math.comb(len(s), len(x))
    exact = ways <= MOST_EXACT
    larger = tried = 0
    for drawn in _partings(len(s), len(x), None if exact else permutations, seed):  # (R, X)
        inside = s[drawn].sum(axis=1)
        differences = inside / len(x) - (s.sum() - inside) / len(y)
        larger += int((differences >= difference - 1e-12).sum())
        tried += len(drawn)
    p_value = larger / tried if exact else (larger + 1) / (tried + 1)
    sizes = (len(x), len(y), len(a), len(b))
    return AssociationScore(
        difference / spread if spread > 0 else 0.0, p_value, sizes, tuple(missing), tried, exact, seed
    )


def _partings(n: int, size: int, count: int | None, seed: int) -> Iterator[NDArray[np.int64]]:
    """Blocks of sets of `size` of range(n): all of them, or `count` drawn."""
    if count is None:
        ways = itertools.combinations(range(n), size)
        while block := list(itertools.islice(ways, 4096)):
            yield np.array(block, np.int64)
        return
    generator = np.random.default_rng(seed)
    for first in range(0, count, 4096):
        yield np.argsort(generator.random((min(4096, count - first), n)), axis=1)[:, :size]


def _unit(rows: Doubles) -> Doubles:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(norms > 0, norms, 1), np.float64)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_PLEASANT = _words(
    "caress freedom health love peace cheer friend heaven loyal pleasure diamond gentle honest lucky rainbow diploma "
    "gift honor miracle sunrise family happy laughter paradise vacation"
)
_UNPLEASANT = _words(
    "abuse crash filth murder sickness accident death grief poison stink assault disaster hatred pollute tragedy "
    "divorce jail poverty ugly cancer kill rotten vomit agony prison"
)

# Tests 1, 6 and 7 of Caliskan, Bryson & Narayanan 2017 (Science 356:183), word for word as their supplement lists them;
# test 1 is of Greenwald, McGhee & Schwartz 1998, tests 6 and 7 of Nosek, Banaji & Greenwald 2002.
ASSOCIATIONS = {
    "flowers-insects": WordSets(
        ("flowers", "insects", "pleasant", "unpleasant"),
        _words(
            "aster clover hyacinth marigold poppy azalea crocus iris orchid rose bluebell daffodil lilac pansy tulip "
            "buttercup daisy lily peony violet carnation gladiola magnolia petunia zinnia"
        ),
        _words(
            "ant caterpillar flea locust spider bedbug centipede fly maggot tarantula bee cockroach gnat mosquito "
            "termite beetle cricket hornet moth wasp blackfly dragonfly horsefly roach weevil"
        ),
        _PLEASANT,
        _UNPLEASANT,
    ),
    "names-career": WordSets(
        ("male names", "female names", "career", "family"),
        _words("John Paul Mike Kevin Steve Greg Jeff Bill"),
        _words("Amy Joan Lisa Sarah Diana Kate Ann Donna"),
        _words("executive management professional corporation salary office business career"),
        _words("home parents children family cousins marriage wedding relatives"),
    ),
    "math-arts": WordSets(
        ("math", "arts", "male terms", "female terms"),
        _words("math algebra geometry calculus equations computation numbers addition"),
        _words("poetry art dance literature novel symphony drama sculpture"),
        _words("male man boy brother he him his son"),
        _words("female woman girl sister she her hers daughter"),
    ),
}


# --- both ----------------------------------------------------------------------------------------------------------


def _known(vectors: KeyedVectors, word: str, *, seen: bool = False) -> str | None:
    """The spelling under which a word has a vector: as it is, then in lower case; None if it has none."""
    for spelling in (word, word.lower()):
        if spelling in vectors:
            return spelling
    return None if seen or vectors.find(word) is None else word


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """(file:line, text) of each line that is not empty."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError("the file cannot be read", where=str(path), why=str(error.strerror)) from None
    with file:
        for number in itertools.count(1):
            line = file.readline(LONGEST_LINE + 1)
            if not line:
                return
            where = f"{path}:{number}"
            if len(line) > LONGEST_LINE:
                raise InputError(f"a line is longer than {LONGEST_LINE} bytes", where=where)
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise InputError("a line is not UTF-8", where=f"{where}, byte {error.start} of the line") from None
            if text.strip():
                yield where, text
