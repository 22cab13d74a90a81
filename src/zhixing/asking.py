"""Questions to a folder of documents: what stands there, word for word with its place, or that nothing does.

ask = ask_docs("docs")
answer = ask("How do I go on with a training that stopped?")
answer.text                                # the sentence or sentences, as they stand in the file
answer.found[0].quotes[0].first_line       # and where

No language model is asked, so nothing is made up. Passages (text/passages.py) are ranked by BM25 (Robertson & Zaragoza
2009, equation 3.15) of their words and of the headings above them, whose words count twice:

    sum over the words of the question   idf tf (k1 + 1) / (tf + k1 (1 - b + b length / mean length))
    idf = ln(1 + (N - d + 0.5) / (d + 0.5)) for a word in d of N passages

Chinese counts as pairs of neighbouring characters. English words lose their commonest endings (after Porter 1980,
roughly); where a link leads is no text. With an embedder passages are ranked by the cosine of its vectors as well, and
the two ranks are fused: a passage scores sum 1 / (60 + rank) (Cormack, Clarke & Büttcher 2009).

What is quoted of a passage is the unit that holds most of the question, and another one that holds much of the rest.
How much a text holds is measured in the idf of the question's words, also of those that no passage has: so a question
about something else keeps its weight. A Chinese character is held together with a neighbour of it, and weighs half of
the more common of its two pairs, for the rarer one is mostly no word. Words that only make a question of it do not
count. Below ENOUGH of the weight nothing is quoted. An embedder ranks, but does not decide whether there is an answer:
its cosines have another scale in each model, and it finds something near whatever is asked.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zhixing.errors import InputError
from zhixing.explain.nearest import runs, terms
from zhixing.recipe import DataSettings
from zhixing.text.passages import Passage, Unit, cut_passages
from zhixing.text.readers import decoded, find_files, inspect

ENOUGH = 0.5  # of the question's weight: a passage that lacks more of it than it has is about something else
MORE = 0.2  # of the question's weight: what a second quotation must add
IN_HEADING = 2  # how often a word of a heading counts
K1, B = 1.2, 0.75  # BM25's usual ones
FUSION = 60  # the paper's k
MOST_BYTES = 16 << 20  # of documents that are held in memory

# What makes a question of words, or joins them
_FUNCTION_WORDS = re.compile(
    "an?|about|am|and|any|are|as|at|be|been|but|by|can|could|did|do|does|for|from|get|had|has|have|how|i|if|in|into|is|"
    "its?|many|me|much|my|need|no|not|of|on|or|our|shall|should|so|some|than|that|the|their|them|then|there|these|they|this|those|to|"
    "us|was|we|were|what|when|where|which|while|who|whom|whose|why|will|with|would|your?"
)
_LINK_TARGET = re.compile(r"\]\([^)\n]*\)")
_QUESTION_ZH = re.compile(
    "请问|为什么|怎么样|怎么办|怎么|怎样|如何|什么|哪一个|哪些|哪个|哪里|哪儿|多少|几个|是不是|能不能|可不可以|可以|需要|应该|"
    "[吗呢吧的了我你、。《》「」【】]"
)


@dataclass(frozen=True)
class Found:
    """A passage that answers: where it stands, what is quoted of it, and how much of the question it holds."""

    file: str  # its path in the folder
    headings: tuple[str, ...]
    quotes: tuple[Unit, ...]  # in the order of the page
    share: float  # of the question's weight that the passage holds, with its headings: from ENOUGH to 1

    @property
    def text(self) -> str:
        return "\n".join(quote.text for quote in self.quotes)


@dataclass(frozen=True)
class Answer:
    """The passages that answer a question, best first; none if nothing matches well enough."""

    question: str
    found: tuple[Found, ...]
    nearest_share: float  # of the passage that holds most of the question, answered or not

    @property
    def text(self) -> str:
        """What is quoted of the best passage; "" if there is no answer."""
        return self.found[0].text if self.found else ""


@dataclass(frozen=True)
class Piece:
    """What is asked for: it is held by a text that has one of the terms."""

    terms: frozenset[str]  # a word; or the one or two pairs that a Chinese character is in
    weight: float  # of all pieces together 1


class Docs:
    """The passages of a folder, indexed in memory. Call it with a question."""

    def __init__(self, files: Sequence[tuple[str, Passage]], embedder: str | Path | None = None) -> None:
        self.files = [name for name, _ in files]
        self.passages = [passage for _, passage in files]
        self._postings: dict[str, list[tuple[int, int]]] = {}  # the passages that have a term, and how often
        self._lengths = np.zeros(len(files))  # (N,) in terms
        for number, passage in enumerate(self.passages):
            counts = Counter(_stems(passage.text))
            for term in _stems("\n".join(passage.headings)):
                counts[term] += IN_HEADING
            for term, count in counts.items():
                self._postings.setdefault(term, []).append((number, count))
            self._lengths[number] = counts.total()
        self._embed = None
        if embedder is not None:
            from zhixing.embeddings import load_embedder  # brings torch with it

            self._embed = load_embedder(embedder)
            whole = ["\n".join([*passage.headings, passage.text]) for passage in self.passages]
            self._vectors = self._embed(whole).vectors.numpy()  # (N, D)

    def __call__(self, question: str, *, n: int = 3) -> Answer:
        """The n best passages that hold enough of the question, each with what is quoted of it."""
        if not question.strip():
            raise InputError("the question is empty", mend="ask something")
        if n < 1:
            raise InputError(f"n = {n} passages cannot be", mend="take at least 1")
        pieces = self._pieces(question)
        shares = self._shares(pieces)
        order = self._ranked(frozenset().union(*(piece.terms for piece in pieces)))
        if self._embed is not None:
            likeness = self._vectors @ self._embed([question]).vectors[0].numpy()  # (N,)
            order = fuse([order, np.argsort(-likeness, kind="stable").tolist()])
        best = [number for number in order if shares[number] >= ENOUGH][:n]
        found = [
            Found(self.files[i], self.passages[i].headings, _quotes(self.passages[i], pieces), float(shares[i]))
            for i in best
        ]
        return Answer(question, tuple(found), float(shares.max()))

    def _idf(self, term: str) -> float:
        within = len(self._postings.get(term, ()))
        return math.log(1 + (len(self.passages) - within + 0.5) / (within + 0.5))

    def _ranked(self, asked: frozenset[str]) -> list[int]:
        """The passages that have a term, best first by BM25; of equals the first."""
        scores = np.zeros(len(self.passages))
        norms = K1 * (1 - B + B * self._lengths / self._lengths.mean())  # (N,)
        for term in sorted(asked):
            for number, count in self._postings.get(term, ()):
                scores[number] += self._idf(term) * count * (K1 + 1) / (count + norms[number])
        order: list[int] = np.argsort(-scores.round(9), kind="stable").tolist()
        return [number for number in order if scores[number] > 0]

    def _pieces(self, question: str) -> list[Piece]:
        """What the question asks for; nothing if all its words only make a question of it."""
        wanted = _asked(question)
        weights = [min(map(self._idf, found)) / (2 if is_pair else 1) for found, is_pair in wanted]
        return [Piece(found, weight / sum(weights)) for (found, _), weight in zip(wanted, weights, strict=True)]

    def _shares(self, pieces: Sequence[Piece]) -> NDArray[np.float64]:
        """How much of the question each passage holds, with its headings: (N,)."""
        shares = np.zeros(len(self.passages))
        for piece in pieces:
            shares[list({number for term in piece.terms for number, _ in self._postings.get(term, ())})] += piece.weight
        return shares


def ask_docs(folder: str | Path, *, embedder: str | Path | None = None) -> Docs:
    """Read the txt and md files under a folder (or one file). `embedder`: the folder of a bert, or minilm."""
    folder = Path(folder).expanduser()
    if not folder.exists():
        raise InputError(f"there is no {str(folder)!r}", mend="give a folder with .txt and .md files")
    files = [file for file in find_files(str(folder), DataSettings())[0] if file.kind == "text"]
    if not files:
        raise InputError(
            f"there are no documents in {str(folder)!r}", mend="give a folder with .txt and .md files (or .gz of them)"
        )
    size = sum(file.size for file in files)
    if size > MOST_BYTES:
        raise InputError(
            f"the documents have {size >> 20} MiB, and {MOST_BYTES >> 20} at most are read",
            where=str(folder),
            why="they are indexed in memory",
            mend="ask a part of the folder",
        )
    passages = []
    for file in files:
        if problem := inspect(file).problem:
            raise problem
        name = file.path.relative_to(folder).as_posix() if folder.is_dir() else file.path.name
        markdown = ".md" in [ending.lower() for ending in file.path.suffixes]
        passages += [(name, passage) for passage in cut_passages("".join(decoded(file)), markdown=markdown)]
    if not passages:
        raise InputError(f"there is no text in the documents of {str(folder)!r}", mend="give files with text in them")
    return Docs(passages, embedder)


def fuse(rankings: Sequence[Sequence[int]]) -> list[int]:
    """One ranking of several, by sum 1 / (60 + rank), ranks from 1; what one leaves out scores nothing there.

    >>> fuse([[7, 8, 9], [8, 9]])
    [8, 9, 7]
    """
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, number in enumerate(ranking, 1):
            scores[number] = scores.get(number, 0.0) + 1 / (FUSION + rank)
    return sorted(scores, key=lambda number: (-scores[number], number))


def stem(word: str) -> str:
    """An English word without the endings of plurals, -ed, -ing, -tion and -ator, and a last e; others as they are.

    >>> [stem(word) for word in ("trained", "training", "stops", "stopped", "making", "thing", "translation")]
    ['train', 'train', 'stop', 'stop', 'mak', 'thing', 'translat']
    """
    if len(word) < 4 or not word.isascii() or not word.isalpha():
        return word
    if word.endswith("ies"):
        word = word[:-3] + "y"
    elif word.endswith(("sses", "xes", "ches", "shes")):
        word = word[:-2]
    elif word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    for ending in ("ing", "ed"):
        rest = word.removesuffix(ending)
        if rest != word and len(rest) > 2 and re.search("[aeiouy]", rest):
            word = rest[:-1] if rest[-1] == rest[-2] and rest[-1] not in "lsz" else rest
            break
    word = re.sub("(?<=[aeiouy].)(?:(?<=[st])ion|(?<=at)or)$", "", word)
    return word.removesuffix("e") if len(word) > 3 else word


def _stems(text: str) -> list[str]:
    return [stem(term.removesuffix("'s").removesuffix("’s")) for term in terms(_LINK_TARGET.sub("]", text))]


def _asked(question: str) -> list[tuple[frozenset[str], bool]]:
    """Of each word of the question its stem, and of each Chinese character the pairs it is in (True).

    >>> [sorted(terms) for terms, _ in _asked("怎么停训练?")]
    [['停训'], ['停训', '训练'], ['训练']]
    """
    kept: list[tuple[frozenset[str], bool]] = []
    lone: list[tuple[frozenset[str], bool]] = []  # characters: they say little, and count if there is nothing else
    for run, characters in dict.fromkeys(runs(_QUESTION_ZH.sub(" ", question))):
        pairs = _stems(run)
        if not characters:
            kept += [] if _FUNCTION_WORDS.fullmatch(run) else [(frozenset(pairs), False)]
        elif len(run) == 1:
            lone.append((frozenset(pairs), False))
        else:
            kept += [(frozenset(pairs[max(0, i - 1) : i + 1]), True) for i in range(len(run))]
    return kept or lone


def _quotes(passage: Passage, pieces: Sequence[Piece]) -> tuple[Unit, ...]:
    """The unit that holds most of the question (of equals the shortest), one that adds much to it, and what either
    announces by a colon."""
    words = [set(_stems(unit.text)) for unit in passage.units]
    held = [{i for i, piece in enumerate(pieces) if piece.terms & found} for found in words]

    def best(already: set[int]) -> tuple[float, int]:
        added = [sum(pieces[i].weight for i in some - already) for some in held]
        number = max(range(len(added)), key=lambda i: (round(added[i], 9), -len(words[i])))
        return added[number], number

    _, first = best(set())
    more, second = best(held[first])
    chosen = {first, second} if more >= MORE else {first}
    chosen |= {i + 1 for i in chosen if passage.units[i].text.endswith((":", "：")) and i + 1 < len(passage.units)}
    return tuple(passage.units[i] for i in sorted(chosen))
