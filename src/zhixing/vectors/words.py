"""A text as a stream of word numbers: what Word2Vec and FastText learn from.

The text is read twice, a line at a time, and never held whole. The first pass counts words; those seen at least
`min_count` times get numbers 0, 1, 2, ... by falling count. The second writes the numbers of the text as int32, a -1
after each sentence, into memory or, where they are many, into a file that is mapped: four bytes a word, read again and
again by compiled code.

Worked example, min_count 2:   "the cat saw / the dog saw"  ->  the = 0, saw = 1  ->  0 1 -1 0 1 -1

A sentence is a line, or `MAX_SENTENCE` words of a longer one, as word2vec has it. Other words than those of the
vocabulary are left out, and their neighbours move together.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from zhixing.errors import InputError
from zhixing.progress import Progress

Units = Literal["words", "characters", "rjieba"]

MAX_SENTENCE = 1000  # words; word2vec.c has the same limit
END = -1  # in the stream of numbers, after each sentence
BLOCK = 1 << 20  # characters read at a time of a line without an end
IN_MEMORY = 1 << 28  # numbers kept in memory (1 GiB); a longer text goes to a file
MOST_WORDS = 1 << 24  # distinct words counted at a time; beyond it the rarest are forgotten


class WordCorpus:
    """A text that can be read many times, a sentence (list of words) at a time.

    `source` is a text file, a folder of them, or anything that can be iterated again and gives strings (documents,
    lines). Words are what stands between blanks; of Chinese, single characters or the words of rjieba.
    """

    def __init__(self, source: str | Path | Iterable[str], units: Units = "words") -> None:
        if isinstance(source, Iterator):
            raise InputError(
                "the text can be read only once", why="training reads it twice", mend="give a list, or a file"
            )
        self.source, self.units = source, units
        self.split = splitter(units)
        self.files = _files(Path(source).expanduser()) if isinstance(source, (str, Path)) else None
        self.n_bytes = sum(path.stat().st_size for path in self.files) if self.files is not None else 0

    def lines(self, progress: Progress | None = None) -> Iterator[str]:
        """Lines, or parts of very long ones that end between two words."""
        if self.files is None:
            assert not isinstance(self.source, (str, Path))
            done = 0
            for text in self.source:
                for line in text.splitlines():
                    done += len(line)
                    yield line
                if progress:
                    progress.update(done)
            return
        done = 0
        for path in self.files:
            yield from _read_lines(path, done, progress)
            done += path.stat().st_size

    def sentences(self, progress: Progress | None = None) -> Iterator[list[str]]:
        """Lists of at most MAX_SENTENCE words; none is empty."""
        split = self.split
        for line in self.lines(progress):
            words = split(line)
            if len(words) <= MAX_SENTENCE:
                if words:
                    yield words
            else:
                for first in range(0, len(words), MAX_SENTENCE):
                    yield words[first : first + MAX_SENTENCE]

    __iter__ = sentences


def splitter(units: Units) -> Callable[[str], list[str]]:
    """The function that cuts a line into words."""
    if units == "words":
        return str.split
    if units == "characters":
        return _characters
    if units == "rjieba":
        try:
            import rjieba
        except ImportError:
            raise InputError(
                "Chinese words need the package rjieba", mend="pip install rjieba, or take units = characters"
            ) from None
        return partial(_jieba, rjieba.cut)
    raise InputError(f"units {units!r} is not known", mend="words, characters or rjieba")


def _characters(line: str) -> list[str]:
    """Each character that is no blank; a run of ASCII letters and digits stays one word.

    "知行 GPT2" -> 知 行 GPT2
    """
    if line.isascii():
        return line.split()
    words: list[str] = []
    for part in line.split():
        run = ""
        for character in part:
            if character.isascii() and character.isalnum():
                run += character
                continue
            if run:
                words.append(run)
                run = ""
            words.append(character)
        if run:
            words.append(run)
    return words


def _jieba(cut: Callable[[str], list[str]], line: str) -> list[str]:
    return [word for word in cut(line) if not word.isspace()]


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(p for p in path.rglob("*.txt") if p.is_file())
        if not files:
            raise InputError("the folder holds no .txt file", where=str(path))
        return files
    if not path.is_file():
        raise InputError("there is no such text", where=str(path), mend="give a text file or a folder of them")
    return [path]


def _read_lines(path: Path, before: int, progress: Progress | None) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            binary: Any = file.buffer
            rest = ""
            number = 0
            while line := file.readline(BLOCK):
                number += 1
                if progress and number % 256 == 0:
                    progress.update(before + binary.tell())
                if not line.endswith("\n"):
                    line = rest + line
                    cut = max(line.rfind(" "), line.rfind("\t"))
                    # a "word" longer than a block is none; Chinese has no blanks and may be cut anywhere
                    rest, line = (line[cut + 1 :], line[:cut]) if cut >= 0 and len(line) - cut < BLOCK else ("", line)
                elif rest:
                    rest, line = "", rest + line
                yield line
            if rest:
                yield rest
    except UnicodeDecodeError as error:
        raise InputError(
            "the text is not UTF-8", where=f"{path}, near byte {before + error.start}", why=error.reason
        ) from None
    except OSError as error:
        raise InputError("the text cannot be read", where=str(path), why=error.strerror or str(error)) from None


@dataclass(frozen=True)
class Vocabulary:
    """Words by falling count (equal counts by the word itself), and how often each was seen."""

    words: list[str]
    counts: NDArray[np.int64]  # (V,)
    n_seen: int  # words of the text, those left out included

    def __len__(self) -> int:
        return len(self.words)

    def keep_probabilities(self, subsample: float) -> NDArray[np.float64]:
        """Share of a word's occurrences that training looks at: sqrt(t / f) + t / f, at most 1 (word2vec.c). (V,)

        Mikolov et al. 2013b write sqrt(t / f) in equation 5; their program, and everyone's since, has the second term.
        """
        if subsample <= 0:
            return np.ones(len(self))
        share = subsample / (self.counts / self.counts.sum())
        return np.asarray(np.minimum(np.sqrt(share) + share, 1.0))

    def noise(self) -> NDArray[np.float64]:
        """How likely each word is drawn as a negative: count^(3/4), to a sum of one. (V,)"""
        weights = self.counts.astype(np.float64) ** 0.75
        return np.asarray(weights / weights.sum())


def count_words(corpus: WordCorpus, min_count: int = 5, most_words: int = MOST_WORDS) -> Vocabulary:
    """Read the text once and number its words; InputError if none is seen `min_count` times.

    Where more than `most_words` distinct words are met, the rarest are forgotten as word2vec.c does, so that memory
    stays bounded; a word that comes back later is then counted too low.
    """
    counts: Counter[str] = Counter()
    n_seen = floor = 0
    with Progress("counting words", corpus.n_bytes or None, "" if corpus.n_bytes else "characters") as progress:
        sentences = iter(corpus.sentences(progress))
        while part := list(chain.from_iterable(islice(sentences, 256))):
            n_seen += len(part)
            counts.update(part)
            while len(counts) > most_words:
                floor += 1
                counts = Counter({word: count for word, count in counts.items() if count > floor})
    if not n_seen:
        raise InputError("the text holds no words", where=_named(corpus), mend="give a text with words in it")
    kept = sorted((item for item in counts.items() if item[1] >= min_count), key=lambda item: (-item[1], item[0]))
    if len(kept) < 2:
        raise InputError(
            f"{'no word is' if not kept else 'only one word is'} seen {min_count} times or more",
            where=_named(corpus),
            why=f"the text has {n_seen} words, {len(counts)} of them distinct",
            mend="lower min_count, or give more text",
        )
    return Vocabulary([word for word, _ in kept], np.array([count for _, count in kept], np.int64), n_seen)


def _named(corpus: WordCorpus) -> str:
    return str(corpus.source) if isinstance(corpus.source, (str, Path)) else ""


def encode_words(corpus: WordCorpus, vocabulary: Vocabulary, in_memory: int = IN_MEMORY) -> NDArray[np.int32]:
    """The whole text as numbers with END after each sentence. (N,)

    Up to `in_memory` numbers are an array; more are written to a temporary file, mapped and already unlinked where the
    system allows it, so that nothing is left behind.
    """
    numbers = {word: number for number, word in enumerate(vocabulary.words)}
    numbers["\n"] = END  # no word: splitting never leaves one
    parts: list[NDArray[np.int32]] = []
    total = 0
    file: Any = None
    with Progress("reading the text", corpus.n_bytes or None, "" if corpus.n_bytes else "characters") as progress:
        sentences = iter(corpus.sentences(progress))
        while group := list(islice(sentences, 256)):
            flat = [number for number in map(numbers.get, _with_ends(group)) if number is not None]
            part = np.array(flat, np.int32)
            total += len(part)
            if file is None and total > in_memory:
                file = tempfile.TemporaryFile(prefix="zhixing-words-")  # noqa: SIM115
                for earlier in parts:
                    file.write(earlier.tobytes())
                parts = []
            if file is not None:
                file.write(part.tobytes())
            else:
                parts.append(part)
    if file is None:
        return np.concatenate(parts)
    file.flush()
    return np.memmap(file, np.int32, "r", shape=(total,))


def _with_ends(sentences: list[list[str]]) -> Iterator[str]:
    for sentence in sentences:
        sentence.append("\n")
    return chain.from_iterable(sentences)


def alias_table(probabilities: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """A table to draw a word in constant time (Walker 1977, as Vose 1991 builds it). (V,), (V,)

    Draw a place i of the V and a number r below 2^32: the word is i where r < share[i], else other[i]. Each word has
    a V-th of the places for itself, and what is more than that elsewhere.

    [0.5, 0.25, 0.25]: place 0 is wholly 0's; place 1 is 1's for 3/4 and 0's for the rest; so is place 2.
    """
    size = len(probabilities)
    heights = probabilities / probabilities.sum() * size
    share = np.full(size, 1 << 32, np.int64)
    other = np.arange(size, dtype=np.int32)
    low = [i for i in range(size) if heights[i] < 1.0]
    high = [i for i in range(size) if heights[i] >= 1.0]
    rest = heights.tolist()
    while low and high:
        small, large = low.pop(), high[-1]
        share[small] = int(rest[small] * (1 << 32))
        other[small] = large
        rest[large] -= 1.0 - rest[small]
        if rest[large] < 1.0:
            low.append(high.pop())
    return share, other
