"""Word vectors as people use them: look one up, find what is near it, and solve analogies.

    similar   the words d of largest cos(d, q)                                          Mikolov et al. 2013a
    analogy   a is to b as c is to d:
              3CosAdd   largest cos(d, b - a + c), each of a, b, c of length 1          Mikolov et al. 2013b
              3CosMul   largest p(d, b) p(d, c) / (p(d, a) + 0.001), p = (cos + 1) / 2  Levy & Goldberg 2014, eq. 5
    unseen    the mean of the vectors of the word's character n-grams                   Bojanowski et al. 2017

The words asked about are never among the answers; of two equal scores the earlier (more frequent) word comes first.

n-grams are fastText's, so that its files mean the same here: of `<word>`, by characters and not bytes, each hashed by
32-bit FNV-1a (with fastText's slip of widening bytes with their sign) into a row of the n-gram matrix. "as" with
n from 2 to 3 gives "<a", "<as", "as", "as>", "s>".

Scores are computed for a block of words at a time, so that memory does not grow with the vocabulary.
Shapes: V words, D numbers a vector, Q questions, R words of a block.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numba import njit
from numpy.typing import NDArray

from zhixing.errors import InputError

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Method = Literal["add", "mul"]

BLOCK = 4 * 2**20  # numbers of a block of scores: 16 MiB
END_OF_SENTENCE = "</s>"  # fastText gives it no n-grams
NEAR_CANDIDATES = 20_000  # words a misspelt one is compared with


# --- subwords ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subwords:
    """The vectors of hashed character n-grams of min_n to max_n characters. matrix: (buckets, D) float32."""

    matrix: Floats
    min_n: int
    max_n: int


@njit(nogil=True, cache=True)
def _hash_ngrams(text: Any, starts: Any, min_n: int, max_n: int, buckets: int, ids: Any, offsets: Any) -> int:
    """Bucket of each n-gram of each word text[starts[w] : starts[w + 1]]; those of word w at ids[offsets[w] : ...].

    With no room in `ids` they are only counted. The order is fastText's: by first character, then by length.
    """
    count = 0
    for word in range(len(starts) - 1):
        begin, end = starts[word], starts[word + 1]
        offsets[word] = count
        for first in range(begin, end):
            if text[first] & 0xC0 == 0x80:  # in the middle of a character
                continue
            value, last, length = np.uint64(2166136261), first, 0
            while last < end and length < max_n:
                length += 1
                while True:  # one character
                    byte = np.uint64(text[last])
                    if byte >= 128:
                        byte |= np.uint64(0xFFFFFF00)
                    value = ((value ^ byte) * np.uint64(16777619)) & np.uint64(0xFFFFFFFF)
                    last += 1
                    if last >= end or text[last] & 0xC0 != 0x80:
                        break
                if length >= min_n and not (length == 1 and (first == begin or last == end)):
                    if len(ids):
                        ids[count] = np.int32(value % np.uint64(buckets))
                    count += 1
    offsets[len(starts) - 1] = count
    return count


def subword_ids(words: Sequence[str], min_n: int, max_n: int, buckets: int) -> tuple[NDArray[np.int32], Ints]:
    """Rows of the n-gram matrix of each word -> ids (total,), offsets (len(words) + 1,).

    Those of word w are ids[offsets[w] : offsets[w + 1]]. "</s>" has none.
    """
    encoded = [b"" if word == END_OF_SENTENCE else f"<{word}>".encode(errors="surrogatepass") for word in words]
    starts = np.zeros(len(words) + 1, np.int64)
    np.cumsum([len(word) for word in encoded], out=starts[1:])
    text = np.frombuffer(b"".join(encoded), np.uint8)
    offsets = np.zeros(len(words) + 1, np.int64)
    count = _hash_ngrams(text, starts, min_n, max_n, buckets, np.empty(0, np.int32), offsets) if buckets > 0 else 0
    ids = np.empty(count, np.int32)
    if count:
        _hash_ngrams(text, starts, min_n, max_n, buckets, ids, offsets)
    return ids, offsets


@njit(nogil=True, cache=True)
def _add_rows(matrix: Any, ids: Any, offsets: Any, sums: Any) -> None:
    """sums[w] += rows of matrix, in the order of ids."""
    for word in range(len(offsets) - 1):
        for position in range(offsets[word], offsets[word + 1]):
            row = ids[position]
            for k in range(matrix.shape[1]):
                sums[word, k] += matrix[row, k]


def add_subwords(words: Sequence[str], subwords: Subwords, sums: Floats) -> NDArray[np.int64]:
    """Add the n-gram vectors of each word to its row of `sums` (len(words), D); how many there were (len(words),)."""
    ids, offsets = subword_ids(words, subwords.min_n, subwords.max_n, len(subwords.matrix))
    _add_rows(subwords.matrix, ids, offsets, sums)
    return np.diff(offsets)


# --- vectors -------------------------------------------------------------------------------------------------------


class KeyedVectors:
    """Words and their vectors, the most frequent first. `counts` and `subwords` are there if the training gave them.

    words: V different strings; vectors: (V, D) float32, finite; counts: (V,). A word's vector already holds its
    subwords' share; `subwords` is for the words that are not in the list.
    """

    def __init__(
        self, words: list[str], vectors: Floats, counts: NDArray[Any] | None = None, subwords: Subwords | None = None
    ) -> None:
        if vectors.ndim != 2 or vectors.shape[0] != len(words) or vectors.dtype != np.float32 or not vectors.shape[1]:
            raise ValueError(
                f"expected a float32 matrix of {len(words)} rows, got {vectors.dtype} of shape {vectors.shape}"
            )
        if counts is not None and counts.shape != (len(words),):
            raise ValueError(f"expected {len(words)} counts, got an array of shape {counts.shape}")
        if subwords is not None and subwords.matrix.shape[1:] != vectors.shape[1:]:
            raise ValueError(
                f"vectors have {vectors.shape[1]} numbers, those of n-grams {subwords.matrix.shape[1:]}: not one size"
            )
        self.words, self.vectors, self.counts, self.subwords = words, vectors, counts, subwords
        self.index = {word: row for row, word in enumerate(words)}
        if len(self.index) < len(words):
            twice = next(word for row, word in enumerate(words) if self.index[word] != row)
            raise InputError(f"the word {twice!r} has two vectors", mend="keep one of them")
        self.norms = _norms(vectors, words)  # (V,)

    @property
    def dimension(self) -> int:
        """How many numbers a vector has."""
        return int(self.vectors.shape[1])

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: object) -> bool:
        """Whether the word itself has a vector; an unseen one may still get one from its n-grams."""
        return word in self.index

    def find(self, word: str) -> Floats | None:
        """The word's vector (D,), from its n-grams if it was not seen and there are such; None if it has none."""
        row = self.index.get(word)
        if row is not None:
            return np.asarray(self.vectors[row])
        if self.subwords is not None and word:
            total = np.zeros((1, self.dimension), np.float32)
            if count := int(add_subwords([word], self.subwords, total)[0]):
                return np.asarray(total[0] * np.float32(1 / count))
        return None

    def vector(self, word: str) -> Floats:
        """`find`, but InputError naming near spellings for a word without a vector."""
        vector = self.find(word)
        if vector is None:
            raise self._unknown(word)
        return vector

    def cosine(self, a: str, b: str) -> float:
        """Cosine of the angle between two words' vectors; 0 if one of them is zero."""
        return float(_unit(self.vector(a)) @ _unit(self.vector(b)))

    def similar(self, word: str | Floats, n: int = 10) -> list[tuple[str, float]]:
        """The n words of largest cosine to a word (itself left out) or to a vector (D,), best first."""
        if isinstance(word, str):
            query, without = self.vector(word), [self.index[word]] if word in self.index else []
        else:
            query, without = self._checked(word), []
        ids, scores = self.nearest(query[None], n, [without])
        return self._named(ids[0], scores[0])

    def analogy(self, a: str, b: str, c: str, n: int = 10, method: Method = "add") -> list[tuple[str, float]]:
        """a is to b as c is to ...: the n best words, best first; ("man", "king", "woman") asks for "queen"."""
        ids, scores = self.analogies([(a, b, c)], n, method)
        return self._named(ids[0], scores[0])

    def nearest(self, queries: Floats, n: int, without: Sequence[Sequence[int]] = ()) -> tuple[Ints, Floats]:
        """Rows of largest cosine to each of queries (Q, D) -> ids, scores (Q, n).

        Row q leaves out the rows without[q]. Where fewer than n are left the score is -inf.
        """
        units = _unit(np.asarray(queries, np.float32))

        def score(begin: int, end: int, q: slice) -> Floats:
            return units[q] @ self._units(begin, end).T

        return self._search(score, len(units), n, without)

    def analogies(
        self, questions: Sequence[tuple[str, str, str]], n: int, method: Method = "add", *, among: int | None = None
    ) -> tuple[Ints, Floats]:
        """`analogy` for many questions at once -> ids, scores (Q, n); answers are sought among the first `among`."""
        if method not in ("add", "mul"):
            raise InputError(f"there is no method {method!r}", mend="give add or mul")
        rows = {word: self.vector(word) for question in questions for word in question}
        a, b, c = (
            _unit(np.array([rows[q[k]] for q in questions], np.float32).reshape(-1, self.dimension)) for k in range(3)
        )  # (Q, D) each
        without = [[self.index[word] for word in question if word in self.index] for question in questions]
        total = _unit(b - a + c)

        def add(begin: int, end: int, q: slice) -> Floats:
            return total[q] @ self._units(begin, end).T

        def mul(begin: int, end: int, q: slice) -> Floats:
            units = self._units(begin, end)
            to_a, to_b, to_c = ((x[q] @ units.T + 1) / 2 for x in (a, b, c))  # (Q, R) each
            return np.asarray(to_b * to_c / (to_a + 0.001), np.float32)

        return self._search(add if method == "add" else mul, len(questions), n, without, among)

    # --- inside ----------------------------------------------------------------------------------------------------

    def _search(
        self,
        score: Callable[[int, int, slice], Floats],
        n_queries: int,
        n: int,
        without: Sequence[Sequence[int]],
        among: int | None = None,
    ) -> tuple[Ints, Floats]:
        """The n best of score(begin, end, queries) (Q, R) over all blocks of words, for each of n_queries."""
        if n < 1:
            raise InputError(f"{n} nearest words cannot be found", mend="ask for 1 or more")
        n_words = min(len(self), among or len(self))
        n = min(n, n_words)
        ids = np.zeros((n_queries, n), np.int64)
        best = np.full((n_queries, n), -np.inf, np.float32)
        for first in range(0, n_queries, 256):
            q = slice(first, min(first + 256, n_queries))
            begin, rows = 0, min(2048, BLOCK // 256)  # a small block first: it sets a bar that few later ones pass
            while begin < n_words:
                end = min(begin + rows, n_words)
                scores = score(begin, end, q)  # (Q, R)
                for row in range(q.start, q.stop):
                    out = [k - begin for k in (without[row] if row < len(without) else ()) if begin <= k < end]
                    scores[row - first, out] = -np.inf
                    _keep_best(ids[row], best[row], scores[row - first], begin)
                begin, rows = end, max(1, BLOCK // max(q.stop - first, self.dimension))
        return ids, best

    def _units(self, begin: int, end: int) -> Floats:
        norms = self.norms[begin:end, None]  # (R, 1)
        return np.asarray(self.vectors[begin:end] / np.where(norms > 0, norms, np.float32(1)))

    def _named(self, ids: Ints, scores: Floats) -> list[tuple[str, float]]:
        return [(self.words[i], float(score)) for i, score in zip(ids.tolist(), scores, strict=True) if score > -np.inf]

    def _checked(self, vector: Floats) -> Floats:
        vector = np.asarray(vector, np.float32)
        if vector.shape != (self.dimension,) or not np.isfinite(vector).all():
            raise InputError(f"expected a vector of {self.dimension} finite numbers, got the shape {vector.shape}")
        return vector

    def _unknown(self, word: str) -> InputError:
        near = self.near_spellings(word)
        return InputError(
            f"the word {word!r} has no vector",
            why=f"it is not among the {len(self)} words, and there are no vectors of its n-grams",
            mend=f"did you mean {' or '.join(repr(other) for other in near)}?" if near else "ask for another word",
        )

    def near_spellings(self, word: str, n: int = 3) -> list[str]:
        """Words spelt like this one: the same in another case first, then those a few letters away."""
        folded = word.casefold()
        variants = dict.fromkeys((folded, word.capitalize(), word.upper(), word.strip()))
        near = [other for other in variants if other in self.index]
        alike = []
        for other in self.words:  # the more frequent ones
            if abs(len(other) - len(word)) <= 2 and other[:1].casefold() == folded[:1]:
                alike.append(other)
                if len(alike) == NEAR_CANDIDATES:
                    break
        near += [other for other in difflib.get_close_matches(word, alike, n) if other not in near]
        return near[:n]


def _keep_best(ids: Ints, best: Floats, scores: Floats, begin: int) -> None:
    """Merge the scores (R,) of rows begin.. into the n best so far, sorted; an equal score stays behind."""
    n = len(best)
    better = np.flatnonzero(scores > best[-1])
    if len(better) > 4 * n:
        bar = np.partition(scores[better], len(better) - n)[len(better) - n]
        better = better[scores[better] >= bar]
    if not len(better):
        return
    all_scores = np.concatenate([best, scores[better]])
    all_ids = np.concatenate([ids, better + begin])
    order = np.argsort(-all_scores, kind="stable")[:n]  # stable: earlier rows come before later ones of equal score
    ids[:], best[:] = all_ids[order], all_scores[order]


def _unit(vectors: Floats) -> Floats:
    """Vectors of length 1; a zero vector stays zero."""
    norms = np.linalg.norm(vectors.astype(np.float64), axis=-1, keepdims=True)
    return np.asarray(vectors / np.where(norms > 0, norms, 1), np.float32)


def _norms(vectors: Floats, words: Sequence[str]) -> Floats:
    norms = np.empty(len(vectors), np.float32)
    rows = max(1, BLOCK // 2 // vectors.shape[1])
    for begin in range(0, len(vectors), rows):
        with np.errstate(over="ignore"):  # said below
            norms[begin : begin + rows] = np.linalg.norm(vectors[begin : begin + rows].astype(np.float64), axis=1)
    if len(bad := np.flatnonzero(~np.isfinite(norms))):
        raise InputError(
            f"the vector of {words[bad[0]]!r} is not finite",
            why=f"{len(bad)} of {len(words)} vectors hold infinities, numbers that are none, or too large ones",
        )
    return norms
