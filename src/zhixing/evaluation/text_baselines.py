"""What needs no neural network: the outputs that a translator or a summarizer must beat on the same test texts.

copy              the source itself
TranslationMemory the target of the nearest training source, by the cosine of TF-IDF
lead_sentence     the first sentence, hard to beat on news
text_rank         the sentences that share most words with the others (Mihalcea & Tarau 2004, section 4)

Words are those of any script in lower case; a Han character or a kana is a word by itself.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from zhixing.errors import InputError
from zhixing.evaluation.intervals import Floats
from zhixing.evaluation.rouge import CHARACTERS
from zhixing.progress import Progress
from zhixing.text.sentences import split_sentences

# N training sources, V terms, M entries (a term of a source), S sentences

DAMPING = 0.85  # the paper's d
CONVERGED, MOST_ROUNDS = 1e-9, 500  # of the power iteration
MOST_SENTENCES = 2000  # of one document that are ranked: S^2 similarities take 32 MB
COLUMNS = 4096  # words compared at a time: (S, COLUMNS) of 4 bytes

_WORD = re.compile(rf"[{CHARACTERS}]|[^\W{CHARACTERS}]+")
_CHARACTER = re.compile(f"[{CHARACTERS}]")


def words(text: str) -> list[str]:
    """The words of a text.

    >>> words("The 2 cats: 你好")
    ['the', '2', 'cats', '你', '好']
    """
    return _WORD.findall(text.lower())


def copy(texts: Iterable[str]) -> list[str]:
    """Every text as it is: what a model that does nothing would say."""
    return list(texts)


class TranslationMemory:
    """The target of that training source which is most like the text asked about.

    A text is the vector of its words and pairs of neighbouring words, each tf (ln((1 + N) / (1 + df)) + 1), of length 1
    (scikit-learn's TfidfVectorizer with its defaults, but for words of one letter); the cosine is a product of two.
    For each term the sources that have it are kept (an inverted index), so a text looks only at sources that share a
    term with it: 20,000 sources of 19 words are read in 3 s, and 1,000 texts answered in 1 s, in 110 MB all told.
    """

    def __init__(self, sources: Sequence[str], targets: Sequence[str]) -> None:
        """InputError: no pairs, or lists of unequal length."""
        if len(sources) != len(targets):
            raise InputError(
                "the sources and the targets do not make pairs",
                where="sources and targets",
                why=f"there are {len(sources):,} sources and {len(targets):,} targets",
                mend="give one target for each source, in the same order",
            )
        if not sources:
            raise InputError(
                "there is nothing to remember", where="sources", why="the lists are empty", mend="give training pairs"
            )
        self.targets = list(targets)
        self._terms: dict[str, int] = {}
        term_of, times, lengths = array("i"), array("i"), array("q")
        with Progress("translation memory", total=len(sources), unit="texts") as progress:
            for number, source in enumerate(sources, 1):
                counted = Counter(self._terms.setdefault(term, len(self._terms)) for term in _terms(source))
                term_of.extend(counted.keys())
                times.extend(counted.values())
                lengths.append(len(counted))
                progress.update(number)
        term = np.frombuffer(term_of, np.int32) if term_of else np.zeros(0, np.int32)  # (M,)
        source_of = np.repeat(np.arange(len(sources), dtype=np.int32), np.frombuffer(lengths, np.int64))  # (M,)
        met_in = np.bincount(term, minlength=len(self._terms))  # (V,)
        self._idf: Floats = np.log((1 + len(sources)) / (1 + met_in)) + 1  # (V,)
        weights = self._idf[term] * (np.frombuffer(times, np.int32) if times else np.zeros(0, np.int32))
        squares = np.bincount(source_of, weights * weights, minlength=len(sources))
        weights /= np.sqrt(squares)[source_of]
        order = np.argsort(term, kind="stable")
        self._sources: NDArray[np.int32] = source_of[order]  # (M,) sorted by term, then by source
        self._weights: Floats = weights[order]  # (M,)
        self._begins = np.concatenate([[0], np.cumsum(met_in)])  # (V + 1,)

    def nearest(self, text: str) -> tuple[int, float]:
        """Which source is nearest, and the cosine; the first of equals, and (-1, 0.0) if none shares a word."""
        scores = self.cosines(text)
        if not scores.any():
            return -1, 0.0
        best = int((scores >= scores.max() - 1e-12).argmax())  # equals may differ in the last bits
        return best, float(scores[best])

    def answer(self, texts: Sequence[str]) -> list[str]:
        """For each text the target of the nearest source; "" if no source shares a word with it."""
        answers = []
        with Progress("nearest pairs", total=len(texts), unit="texts") as progress:
            for number, text in enumerate(texts, 1):
                best, _ = self.nearest(text)
                answers.append(self.targets[best] if best >= 0 else "")
                progress.update(number)
        return answers

    def cosines(self, text: str) -> Floats:
        """With each source: (N,). Terms that no source has count for nothing, as in scikit-learn."""
        counted = Counter(self._terms[term] for term in _terms(text) if term in self._terms)
        if not counted:
            return np.zeros(len(self.targets))
        terms, times = np.array(sorted(counted.items()), np.int64).T  # (k,), (k,)
        asked = self._idf[terms] * times
        asked /= np.sqrt(asked @ asked)
        spans = [slice(self._begins[term], self._begins[term + 1]) for term in terms]
        found = np.concatenate([self._sources[span] for span in spans])
        products = np.concatenate([self._weights[span] * weight for span, weight in zip(spans, asked, strict=True)])
        return np.bincount(found, products, minlength=len(self.targets)).astype(np.float64)


def lead_sentence(document: str) -> str:
    """The first sentence; "" if there is none.

    >>> lead_sentence("今天下雨。明天天晴。")
    '今天下雨。'
    """
    return next(iter(split_sentences(document)), "")


def text_rank(document: str, n_sentences: int) -> str:
    """The n sentences of the highest rank, in the order of the document; all of them if there are no more.

    Sentences are the nodes of a graph, an edge's weight is how many words both hold, over the sum of the logarithms of
    their lengths (the paper's Similarity), and a node's rank is PageRank's (its equation for weighted graphs). Words
    are not filtered by their part of speech. Of a document of more than 2,000 sentences the first 2,000 are ranked.
    """
    if n_sentences < 1:
        raise ValueError(f"expected n_sentences of 1 or more, got {n_sentences}")
    sentences = split_sentences(document)[:MOST_SENTENCES]
    if len(sentences) > n_sentences:
        ranks = page_rank(sentence_similarities([words(sentence) for sentence in sentences]))
        best = np.argsort(-ranks.round(6), kind="stable")[:n_sentences]  # the first of equals
        sentences = [sentences[i] for i in sorted(best)]
    text = " ".join(sentences)
    mostly_characters = 2 * len(_CHARACTER.findall(text)) > len(words(text))
    return "".join(sentences) if mostly_characters else text


def sentence_similarities(sentences: Sequence[Sequence[str]]) -> Floats:
    """|words of both| / (ln |words of one| + ln |words of the other|): (S, S), 0 on the diagonal.

    Words of both are counted once each, a length is the number of words; two sentences of one word have 0.

    >>> sentence_similarities([["a", "b"], ["b", "c"]]).round(3).tolist()  # 1 / (2 ln 2)
    [[0.0, 0.721], [0.721, 0.0]]
    """
    n = len(sentences)
    met_in = Counter(word for sentence in sentences for word in set(sentence))
    column_of = {word: column for column, word in enumerate(word for word, times in met_in.items() if times > 1)}
    holds = [np.array(sorted(column_of[w] for w in set(s) if w in column_of), np.int64) for s in sentences]
    both = np.zeros((n, n), np.float64)
    for begin in range(0, len(column_of), COLUMNS):
        part = np.zeros((n, COLUMNS), np.float32)
        for row, columns in enumerate(holds):
            part[row, columns[(columns >= begin) & (columns < begin + COLUMNS)] - begin] = 1
        both += part @ part.T  # (S, S)
    logs = np.log([max(len(sentence), 1) for sentence in sentences])
    sums = logs[:, None] + logs[None, :]
    np.fill_diagonal(both, 0)
    return np.asarray(np.divide(both, sums, out=np.zeros_like(both), where=sums > 0))


def page_rank(weights: Floats) -> Floats:
    """The rank of each node of a graph with weights (S, S), i to j: (S,), a mean of 1 where every node has an edge.

    WS(j) = (1 - d) + d sum_i w_ij / sum_k w_ik WS(i), by power iteration from 1 (Mihalcea & Tarau 2004, section 2.2).
    A node without edges passes nothing on and keeps 1 - d.
    """
    out = weights.sum(axis=1, keepdims=True)
    passed = np.divide(weights, out, out=np.zeros_like(weights), where=out > 0)
    ranks = np.ones(len(weights))
    for _ in range(MOST_ROUNDS):
        before = ranks
        ranks = (1 - DAMPING) + DAMPING * (ranks @ passed)
        if np.abs(ranks - before).max(initial=0.0) < CONVERGED:
            break
    return ranks


def _terms(text: str) -> Iterable[str]:
    """Words and pairs of neighbours, as one string each; a blank is in no word."""
    found = words(text)
    return found + [f"{a} {b}" for a, b in pairwise(found)]
