"""The training texts nearest to a text: what a model has seen that is like it, and what those were called.

Two measures of likeness, both the cosine of two vectors:

* words (`WordIndex`): tf-idf (Spärck Jones 1972; Salton & Buckley 1988). A word that occurs f times in a text, and in d
  of N texts, weighs (1 + ln f) (1 + ln((1 + N) / (1 + d))). Chinese and kana count as pairs of neighbours, for words
  are not marked there. It knows nothing of the model, and takes seconds for 50,000 texts.
* pooled states (`VectorIndex`): what the model's last layer sees of a text. It says what the model takes to be alike,
  and costs a forward pass a training text.

Memory: an index of words holds 8 bytes a different word of each text, one of vectors 4 D bytes a text; the texts
themselves are only referred to. A search goes over the index in blocks.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from zhixing.errors import InputError
from zhixing.progress import Progress

# N texts, V different words, M entries (a word of a text), D width of a vector

MAX_WORDS = 1 << 20  # different words that are told apart; later ones count as unknown
BLOCK = 1 << 20  # entries looked at together: 8 MiB
ROWS = 1 << 14  # vectors looked at together

_CJK = r"\u2e80-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_TERM = re.compile(rf"[{_CJK}]+|[^\W_{_CJK}]+(?:['’][^\W_{_CJK}]+)*")
_IS_CJK = re.compile(rf"[{_CJK}]")


class Labelled(Protocol):
    """A text with the labels that a person gave it."""

    @property
    def text(self) -> str: ...
    @property
    def labels(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class Neighbour:
    """A training text; similarity is the cosine, 1 for the same words in the same shares."""

    text: str
    labels: tuple[str, ...]
    similarity: float
    number: int  # which one of the training texts, from 0


class Index(Protocol):
    """What can be asked for the nearest texts."""

    def nearest(self, text: str, k: int) -> list[Neighbour]: ...


def runs(text: str) -> Iterator[tuple[str, bool]]:
    """The words of a text in lower case (False), and its runs of characters without spaces between them (True)."""
    for found in _TERM.finditer(text.lower()):
        yield found[0], _IS_CJK.match(found[0]) is not None


def terms(text: str) -> Iterator[str]:
    """The words of a text in lower case; of characters without spaces between them, each two neighbours.

    >>> list(terms("Don't stop: 我喜欢. 好"))
    ["don't", 'stop', '我喜', '喜欢', '好']
    """
    for run, characters in runs(text):
        if characters and len(run) > 1:
            yield from map("".join, pairwise(run))
        else:
            yield run


class WordIndex:
    """tf-idf of the words of training texts. An InputError if there is no text."""

    def __init__(self, training: Sequence[Labelled]) -> None:
        _at_least_one(training)
        self.training = training
        self.columns: dict[str, int] = {}
        columns, counts, ends = array("i"), array("f"), array("q", [0])
        with Progress("indexing", len(training)) as progress:
            for number, example in enumerate(training, 1):
                for term, count in Counter(terms(example.text)).items():
                    column = self.columns.get(term)
                    if column is None:
                        if len(self.columns) == MAX_WORDS:
                            continue
                        column = self.columns[term] = len(self.columns)
                    columns.append(column)
                    counts.append(count)
                ends.append(len(columns))
                progress.update(number)
        self.at = np.frombuffer(columns, np.int32) if len(columns) else np.zeros(0, np.int32)  # (M,)
        self.ends = np.frombuffer(ends, np.int64)  # (N + 1,)
        weights = np.frombuffer(counts, np.float32) if len(counts) else np.zeros(0, np.float32)
        self.weights = weights  # (M,)
        within = np.bincount(self.at, minlength=len(self.columns))  # (V,) texts that hold the word
        self.idf = (1 + np.log((1 + len(training)) / (1 + within))).astype(np.float32)  # (V,)
        for first, last in self._blocks():
            begin, end = int(self.ends[first]), int(self.ends[last])
            weights[begin:end] = (1 + np.log(weights[begin:end])) * self.idf[self.at[begin:end]]
            lengths = np.sqrt(self._row_sums(weights[begin:end] ** 2, first, last))
            sizes = np.diff(self.ends[first : last + 1])
            weights[begin:end] /= np.repeat(np.maximum(lengths, 1e-12), sizes)

    def nearest(self, text: str, k: int) -> list[Neighbour]:
        """The k texts most alike, best first, of equal ones the first; those without any word in common are left out.

        A text may be among its own neighbours, which says that it was trained on.
        """
        query = np.zeros(len(self.columns), np.float32)  # (V,)
        total = 0.0
        unseen = 1 + float(np.log(1 + len(self.training)))
        for term, count in Counter(terms(text)).items():
            column = self.columns.get(term)
            weight = (1 + float(np.log(count))) * (unseen if column is None else float(self.idf[column]))
            total += weight * weight
            if column is not None:
                query[column] = weight
        query /= max(total, 1e-12) ** 0.5
        similarities = np.zeros(len(self.training))  # (N,)
        for first, last in self._blocks():
            begin, end = int(self.ends[first]), int(self.ends[last])
            similarities[first:last] = self._row_sums(self.weights[begin:end] * query[self.at[begin:end]], first, last)
        return _best(self.training, similarities, k)

    def _blocks(self) -> Iterator[tuple[int, int]]:
        """Runs of texts with at most about BLOCK entries: first text, and the one behind the last."""
        first = 0
        while first < len(self.training):
            last = int(np.searchsorted(self.ends, self.ends[first] + BLOCK, side="right")) - 1
            last = min(max(last, first + 1), len(self.training))
            yield first, last
            first = last

    def _row_sums(self, values: NDArray[np.float32], first: int, last: int) -> NDArray[np.float64]:
        """Sums of the entries of each text first .. last - 1, zero for one without words."""
        sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
        ends = self.ends[first : last + 1] - self.ends[first]
        return sums[ends[1:]] - sums[ends[:-1]]  # type: ignore[no-any-return]


class VectorIndex:
    """Vectors of training texts; `vectors` makes (B, D) of B texts. An InputError if there is no text."""

    def __init__(
        self, training: Sequence[Labelled], vectors: Callable[[list[str]], NDArray[np.float32]], batch: int = 256
    ) -> None:
        _at_least_one(training)
        self.training, self.vectors = training, vectors
        blocks = []
        with Progress("reading the training texts", len(training)) as progress:
            for first in range(0, len(training), batch):
                last = min(first + batch, len(training))
                blocks.append(_unit(vectors([training[number].text for number in range(first, last)])))
                progress.update(last)
        self.rows = np.concatenate(blocks)  # (N, D)

    def nearest(self, text: str, k: int) -> list[Neighbour]:
        """The k texts most alike, best first, of equal ones the first."""
        query = _unit(self.vectors([text]))[0]  # (D,)
        parts = [self.rows[first : first + ROWS] @ query for first in range(0, len(self.rows), ROWS)]
        return _best(self.training, np.concatenate(parts).astype(np.float64), k)


def _at_least_one(training: Sequence[Labelled]) -> None:
    if not len(training):
        raise InputError("there are no training texts to search")


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    rows = np.asarray(rows, np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)  # type: ignore[no-any-return]


def _best(training: Sequence[Labelled], similarities: NDArray[np.float64], k: int) -> list[Neighbour]:
    order = np.argsort(-similarities, kind="stable")[:k].tolist()
    return [
        Neighbour(training[n].text, tuple(training[n].labels), min(float(similarities[n]), 1.0), n)
        for n in order
        if similarities[n] > 0
    ]
