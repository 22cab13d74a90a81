"""Texts as bags of features: the words of a vocabulary, and n-grams of words hashed into buckets.

Joulin, Grave, Bojanowski & Mikolov (2017), section 2.2: a text is the set of its words and of its runs of 2..n words.
There are too many runs to list, so each gets the number of a bucket by a hash, and runs that meet in a bucket share it
(Weinberger et al. 2009). The hashes are fastText's, so that its files and ours hold the same rows:

    hash(word)     = FNV-1a over the UTF-8 bytes, 32 bits, each byte taken as a signed one
    hash(w1 .. wk) = (... (h1 * 116049371 + h2) ... * 116049371 + hk) mod 2^64, each h sign-extended from 32 bits
    feature id     = V + hash(w1 .. wk) mod buckets             behind the V words of the vocabulary

For example with V = 3, buckets = 10 and n = 2 the text "a b a" has the ids of a, b, a and 3 + hash(a b) mod 10,
3 + hash(b a) mod 10. A word that the vocabulary lacks has no id, but its n-grams do.

With `max_chars` each word also gives its runs of min_chars..max_chars characters, "<" and ">" set around it, by the
first hash to the same buckets (Bojanowski et al. 2017, section 3.2): a misspelt or inflected word then still counts.

What a word is ("text"): a run of letters, digits and marks, with an apostrophe between two of them (don't); a Chinese
character or kana by itself; every other sign by itself. "spaces" is what fastText does: cut at ASCII blanks, and one
word "</s>" at the end of each text. "rjieba" cuts Chinese into words of a dictionary (the package rjieba).

`words_of` and `feature_names` are the rules in plain Python. The compiled loops do the same over many texts at once,
on several threads, in blocks of bounded size; what is kept is 4 bytes a feature (8 a token while learning).

Legend: N texts, F features of all texts, V words, R rows = V + buckets.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from typing import Any, Literal, TypeVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

from zhixing.cores import default_threads
from zhixing.errors import InputError
from zhixing.tokens.tokenizer import lone_surrogate

EOS = "</s>"
BLOCK_BYTES = 16 << 20  # text that one thread works on at a time
_BLANK, _PART, _ALONE = 0, 1, 2  # what a character is: between words, part of one, one by itself

Array = Any  # an array inside compiled code
Part = TypeVar("Part")
Result = TypeVar("Result")


@dataclass(frozen=True)
class NgramSettings:
    words: Literal["text", "spaces", "rjieba"] = "text"
    n: int = 2  # the longest run of words
    buckets: int = 200_000  # rows that all runs of two words and more share; none are made if 0
    min_count: int = 1  # a word seen less often gets no row of its own
    lowercase: bool = True
    once: bool = False  # a feature counts once a text, however often it occurs (presence instead of frequency)
    min_chars: int = 2  # the shortest and
    max_chars: int = 0  # the longest run of a word's characters; none are made if 0

    def __post_init__(self) -> None:
        if self.words not in ("text", "spaces", "rjieba"):
            raise InputError(f"words = {self.words!r}", why="it is one of text, spaces, rjieba")
        for name, least in (("n", 1), ("buckets", 0), ("min_count", 1), ("min_chars", 1), ("max_chars", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} = {getattr(self, name)}", why=f"the least is {least}")
        if self.buckets > 1 << 30:
            raise InputError(f"buckets = {self.buckets}", why="row numbers have 32 bits", mend="at most 2^30")


@dataclass(frozen=True)
class Features:
    """The feature ids of N texts, one after another: text i has ids[starts[i]:starts[i + 1]]."""

    ids: NDArray[np.int32]  # (F,)
    starts: NDArray[np.int64]  # (N + 1,)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def of(self, text: int) -> NDArray[np.int32]:
        """The ids of one text."""
        return self.ids[self.starts[text] : self.starts[text + 1]]

    def select(self, texts: NDArray[np.int64]) -> Features:
        """The given texts, in that order."""
        parts = [self.of(int(i)) for i in texts]
        starts = np.zeros(len(parts) + 1, np.int64)
        np.cumsum([len(part) for part in parts], out=starts[1:])
        return Features(np.concatenate(parts) if parts else np.empty(0, np.int32), starts)


# The rules in plain Python: what the compiled loops are held against.


@cache
def character_classes() -> NDArray[np.uint8]:
    """What each character of the basic plane is: blank, part of a word, or a word by itself; (65536,)."""
    classes = np.full(1 << 16, _PART, np.uint8)
    for code in range(1 << 16):
        category = unicodedata.category(chr(code))[0]
        if category in "ZC":
            classes[code] = _BLANK
        elif category in "PS":
            classes[code] = _ALONE
    for first, last in ((0x3040, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF)):
        classes[first : last + 1] = _ALONE  # kana and Chinese characters
    return classes


def _class_of(code: int) -> int:
    if code < 1 << 16:
        return int(character_classes()[code])
    return _ALONE if 0x1F000 <= code < 0x20000 or 0x20000 <= code < 0x40000 else _PART  # pictures; rare characters


def words_of(text: str, settings: NgramSettings) -> list[str]:
    """The words of a text by the rule of the settings: "I don't! 你好" -> i, don't, !, 你, 好."""
    text = prepared(text, settings)
    if settings.words != "text":
        words = [word for word in _ascii_blanks(text).split(" ") if word]
        return [*words, EOS] if settings.words == "spaces" else words
    words, word = [], ""
    for place, character in enumerate(text):
        kind = _class_of(ord(character))
        follows = place + 1 < len(text) and _class_of(ord(text[place + 1])) == _PART
        if kind == _PART or (word and character in "'’" and follows):
            word += character
            continue
        if word:
            words.append(word)
            word = ""
        if kind == _ALONE:
            words.append(character)
    return [*words, word] if word else words


def _ascii_blanks(text: str) -> str:
    return text.translate(dict.fromkeys(map(ord, "\n\r\t\v\f\0"), " "))


def prepared(text: str, settings: NgramSettings) -> str:
    """The text as the loops read it: in lower case if asked for, and cut by rjieba if asked for."""
    if settings.lowercase:
        text = text.lower()
    return " ".join(_rjieba().cut(text)) if settings.words == "rjieba" else text


@cache
def _rjieba() -> Any:
    try:
        import rjieba  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        raise InputError(
            'words = "rjieba" needs the package rjieba', mend='pip install rjieba, or words = "text" (characters)'
        ) from None
    return rjieba


def word_hash(word: str) -> int:
    """fastText's hash of a word as the signed 32-bit number that n-grams are made of."""
    h = 2166136261
    for byte in word.encode():
        h = ((h ^ (byte | (0xFFFFFF00 if byte >= 128 else 0))) * 16777619) & 0xFFFFFFFF
    return h - (1 << 32) if h >> 31 else h


def ngram_bucket(words: Sequence[str], buckets: int) -> int:
    """The bucket of a run of words."""
    h = 0
    for word in words:
        h = (h * 116049371 + word_hash(word)) % (1 << 64)
    return h % buckets


def character_ngrams(word: str, settings: NgramSettings) -> list[str]:
    """The runs of characters of a word: "ab" with 2..3 gives <a, <ab, ab, ab>, b>. A border is no run by itself."""
    if not settings.max_chars or not settings.buckets or word == EOS:
        return []
    word = f"<{word}>"
    return [
        word[i : i + n]
        for i in range(len(word))
        for n in range(settings.min_chars, min(settings.max_chars, len(word) - i) + 1)
        if n > 1 or 0 < i < len(word) - 1
    ]


# The same compiled.


@njit(nogil=True, cache=True, inline="always")
def _character(buffer: Array, place: int, end: int) -> Any:
    """The code point at a byte of valid UTF-8, and how many bytes it has."""
    b = buffer[place]
    if b < 0x80 or place + 1 >= end:
        return np.int64(b), 1
    second = np.int64(buffer[place + 1] & 0x3F)
    if b < 0xE0 or place + 2 >= end:
        return (np.int64(b & 0x1F) << 6) | second, 2
    third = np.int64(buffer[place + 2] & 0x3F)
    if b < 0xF0 or place + 3 >= end:
        return (np.int64(b & 0x0F) << 12) | (second << 6) | third, 3
    return (np.int64(b & 0x07) << 18) | (second << 12) | (third << 6) | np.int64(buffer[place + 3] & 0x3F), 4


@njit(nogil=True, cache=True, inline="always")
def _kind(code: int, classes: Array) -> Any:
    if code < 65536:
        return classes[code]
    return np.uint8(_ALONE) if (0x1F000 <= code < 0x40000) else np.uint8(_PART)


@njit(nogil=True, cache=True)
def _word_end(buffer: Array, place: int, end: int, classes: Array, by_text: bool) -> Any:
    """The next word at or behind `place`: its first byte and the byte behind it; (end, end) if there is none."""
    if not by_text:
        while place < end and (buffer[place] == 32 or 9 <= buffer[place] <= 13 or buffer[place] == 0):
            place += 1
        begin = place
        while place < end and not (buffer[place] == 32 or 9 <= buffer[place] <= 13 or buffer[place] == 0):
            place += 1
        return begin, place
    while place < end:
        code, size = _character(buffer, place, end)
        kind = _kind(code, classes)
        if kind == _BLANK:
            place += size
            continue
        begin = place
        place += size
        if kind == _ALONE:
            return begin, place
        while place < end:
            code, size = _character(buffer, place, end)
            if _kind(code, classes) != _PART:
                if (code != 0x27 and code != 0x2019) or place + size >= end:
                    break
                code, _ = _character(buffer, place + size, end)
                if _kind(code, classes) != _PART:
                    break
            place += size
        return begin, place
    return end, end


@njit(nogil=True, cache=True)
def _find(buffer: Array, begin: int, stop: int, h: int, slots: Array, hashes: Array, begins: Array, pool: Array) -> Any:
    """The slot of a word in the open hash table: where it stands, or the empty one where it would."""
    mask = len(slots) - 1
    slot = (h ^ (h >> 15)) & mask
    while slots[slot] >= 0:
        word = slots[slot]
        at = begins[word]
        if hashes[word] == h and begins[word + 1] - at == stop - begin:
            same = True
            for k in range(stop - begin):
                if pool[at + k] != buffer[begin + k]:
                    same = False
                    break
            if same:
                break
        slot = (slot + 1) & mask
    return slot


@njit(nogil=True, cache=True)
def _index(
    buffer: Array,
    starts: Array,
    first: int,
    classes: Array,
    by_text: bool,
    eos: bool,
    learn: bool,
    slots: Array,
    hashes: Array,
    begins: Array,
    pool: Array,
    n_words: int,
    words: Array,
    word_hashes: Array,
    token_starts: Array,
) -> Any:
    """The word number and hash of each token of texts first.. : -> (text reached, words in the table).

    Text i is buffer[starts[i]:starts[i + 1]]. A new word enters the table if `learn`, else its number is -1. Stops
    before a text for which the table has no room: the caller makes room and goes on from there.
    """
    end_mark = np.array([60, 47, 115, 62], np.uint8)  # </s>
    for text in range(first, len(starts) - 1):
        n = token_starts[text]
        place, end = starts[text], starts[text + 1]
        ended = False
        while not ended:
            begin, place = _word_end(buffer, place, end, classes, by_text)
            source = buffer
            stop = place
            if begin >= end:
                ended = True
                if not eos:
                    break
                source, begin, stop = end_mark, np.int64(0), np.int64(4)
            h = np.uint32(2166136261)
            for k in range(begin, stop):
                h = np.uint32((h ^ np.uint32(np.int8(source[k]))) * np.uint32(16777619))
            slot = _find(source, begin, stop, np.int64(h), slots, hashes, begins, pool)  # type: ignore[arg-type]
            word = slots[slot]
            if word < 0 and learn:
                at = begins[n_words]
                if n_words + 1 >= len(begins) or 2 * (n_words + 1) > len(slots) or at + stop - begin > len(pool):
                    return text, n_words
                word = np.int32(n_words)
                slots[slot] = word
                hashes[word] = np.int64(h)
                for k in range(stop - begin):
                    pool[at + k] = source[begin + k]
                n_words += 1
                begins[n_words] = at + stop - begin
            words[n] = word
            word_hashes[n] = np.int32(h)
            n += 1
        token_starts[text + 1] = n
    return len(starts) - 1, n_words


@njit(nogil=True, cache=True)
def _rehash(slots: Array, hashes: Array, n_words: int) -> None:
    mask = len(slots) - 1
    slots[:] = -1
    for word in range(n_words):
        slot = (hashes[word] ^ (hashes[word] >> 15)) & mask
        while slots[slot] >= 0:
            slot = (slot + 1) & mask
        slots[slot] = word


@njit(nogil=True, cache=True)
def _expand(
    words: Array,
    hashes: Array,
    token_starts: Array,
    rows: Array,
    n_words: int,
    n: int,
    buckets: int,
    once: bool,
    parts: Array,
    part_starts: Array,
    seen: Array,
    ids: Array,
    starts: Array,
) -> int:
    """The feature ids of each text from its tokens; rows[word] is a word's row or -1. -> how many ids.

    parts[part_starts[w]:part_starts[w + 1]] are the buckets of a word's runs of characters; part_starts may be empty.
    """
    count = 0
    for text in range(len(token_starts) - 1):
        begin, end = token_starts[text], token_starts[text + 1]
        for i in range(begin, end):
            if words[i] >= 0 and rows[words[i]] >= 0:
                ids[count] = rows[words[i]]
                if not once or seen[ids[count]] != text + 1:
                    if once:
                        seen[ids[count]] = text + 1
                    count += 1
            if len(part_starts) > 0:
                for k in range(part_starts[words[i]], part_starts[words[i] + 1]):
                    ids[count] = n_words + parts[k]
                    if not once or seen[ids[count]] != text + 1:
                        if once:
                            seen[ids[count]] = text + 1
                        count += 1
        if buckets > 0:
            for i in range(begin, end):
                h = np.uint64(np.int64(hashes[i]))
                for j in range(i + 1, min(i + n, end)):
                    h = h * np.uint64(116049371) + np.uint64(np.int64(hashes[j]))
                    ids[count] = np.int32(n_words + np.int64(h % np.uint64(buckets)))
                    if not once or seen[ids[count]] != text + 1:
                        if once:
                            seen[ids[count]] = text + 1
                        count += 1
        starts[text + 1] = count
    return count


@njit(nogil=True, cache=True)
def _character_buckets(
    pool: Array,
    begins: Array,
    n_words: int,
    shortest: int,
    longest: int,
    buckets: int,
    parts: Array,
    part_starts: Array,
) -> int:
    """The buckets of the runs of characters of each word, as `character_ngrams` orders them; -> how many."""
    count = 0
    for word in range(n_words):
        size = begins[word + 1] - begins[word]
        framed = np.empty(size + 2, np.uint8)
        framed[0], framed[size + 1] = 60, 62  # < and >
        framed[1 : size + 1] = pool[begins[word] : begins[word + 1]]
        is_end = size == 4 and framed[1] == 60 and framed[2] == 47 and framed[3] == 115 and framed[4] == 62  # </s>
        for i in range(0 if not is_end else size + 2, size + 2):
            if framed[i] & 0xC0 == 0x80:  # inside a character
                continue
            h = np.uint32(2166136261)
            n, j = 0, i
            while j < size + 2 and n < longest:
                h = np.uint32((h ^ np.uint32(np.int8(framed[j]))) * np.uint32(16777619))
                j += 1
                while j < size + 2 and framed[j] & 0xC0 == 0x80:
                    h = np.uint32((h ^ np.uint32(np.int8(framed[j]))) * np.uint32(16777619))
                    j += 1
                n += 1
                if n >= shortest and not (n == 1 and (i == 0 or j == size + 2)):
                    parts[count] = np.int32(h % np.uint32(buckets))
                    count += 1
        part_starts[word + 1] = count
    return count


class _Table:
    """Distinct words with their numbers: an open hash table over one pool of bytes, which grows as needed."""

    def __init__(self, n_words: int = 1 << 14, n_bytes: int = 1 << 17) -> None:
        self.slots = np.full(1 << (2 * n_words).bit_length(), -1, np.int32)
        self.hashes = np.empty(n_words, np.int64)
        self.begins = np.zeros(n_words + 1, np.int64)
        self.pool = np.empty(n_bytes, np.uint8)
        self.n_words = 0

    def grow(self) -> None:
        self.slots = np.empty(2 * len(self.slots), np.int32)
        self.hashes = np.concatenate([self.hashes, np.empty_like(self.hashes)])
        self.begins = np.concatenate([self.begins, np.zeros(len(self.begins) - 1, np.int64)])
        self.pool = np.concatenate([self.pool, np.empty_like(self.pool)])
        _rehash(self.slots, self.hashes, self.n_words)

    def words(self) -> list[str]:
        raw = self.pool.tobytes()
        at = self.begins[: self.n_words + 1].tolist()
        return [raw[a:b].decode() for a, b in pairwise(at)]

    def parts(self, settings: NgramSettings) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """The buckets of each word's runs of characters, and where each word's begin; both empty if none are made."""
        if not settings.max_chars or not settings.buckets:
            return np.empty(0, np.int32), np.empty(0, np.int64)
        span = max(settings.max_chars - settings.min_chars + 1, 0)
        found = np.empty((int(self.begins[self.n_words]) + 2 * self.n_words) * span, np.int32)
        starts = np.zeros(self.n_words + 1, np.int64)
        count = _character_buckets(
            self.pool,
            self.begins,
            self.n_words,
            settings.min_chars,
            settings.max_chars,
            settings.buckets,
            found,
            starts,
        )
        return found[:count].copy(), starts


@dataclass(frozen=True)
class _Tokens:
    """Tokens of some texts: the number of each one's word in a table, its hash, and where each text starts."""

    words: NDArray[np.int32]
    hashes: NDArray[np.int32]
    starts: NDArray[np.int64]


def _encoded(texts: Sequence[str], settings: NgramSettings) -> list[bytes]:
    try:
        return [prepared(text, settings).encode() for text in texts]
    except UnicodeEncodeError as error:
        raise lone_surrogate(error) from None


def _blocks(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Runs of texts of about BLOCK_BYTES."""
    first, size = 0, 0
    for place, text in enumerate(texts):
        size += len(text)
        if size >= BLOCK_BYTES:
            yield texts[first : place + 1]
            first, size = place + 1, 0
    if first < len(texts):
        yield texts[first:]


def _tokens(pieces: list[bytes], words: str, table: _Table, *, learn: bool) -> _Tokens:
    """Tokenise one block of texts in UTF-8; `words` names the rule."""
    starts = np.zeros(len(pieces) + 1, np.int64)
    np.cumsum([len(piece) for piece in pieces], out=starts[1:])
    buffer = np.frombuffer(b"".join(pieces) or b" ", np.uint8)
    most = int(starts[-1]) + len(pieces)  # a token has a byte at least; </s> is one more a text
    numbers, hashes = np.empty(most, np.int32), np.empty(most, np.int32)
    token_starts = np.zeros(len(pieces) + 1, np.int64)
    reached = 0
    while True:
        reached, table.n_words = _index(
            buffer, starts, reached, character_classes(), words == "text", words == "spaces", learn, table.slots,
            table.hashes, table.begins, table.pool, table.n_words, numbers, hashes, token_starts,
        )  # fmt: skip
        if reached == len(pieces):
            break
        table.grow()
    count = int(token_starts[-1])
    return _Tokens(numbers[:count].copy(), hashes[:count].copy(), token_starts)


def _features(
    tokens: _Tokens,
    rows: NDArray[np.int32],
    parts: tuple[NDArray[np.int32], NDArray[np.int64]],
    n_words: int,
    settings: NgramSettings,
    seen: NDArray[np.int32],
) -> Features:
    """Feature ids of one block; `seen` (R,) is scratch where a feature counts once."""
    longest = settings.n if settings.buckets else 1
    most = len(tokens.words) * longest
    if len(parts[1]):
        most += int(np.diff(parts[1])[tokens.words].sum())
    ids = np.empty(most, np.int32)
    starts = np.zeros(len(tokens.starts), np.int64)
    seen[:] = 0
    count = _expand(
        tokens.words, tokens.hashes, tokens.starts, rows, n_words, settings.n, settings.buckets, settings.once,
        *parts, seen, ids, starts,
    )  # fmt: skip
    return Features(ids[:count].copy(), starts)


def joined(parts: Iterable[Features]) -> Features:
    """Features of several runs of texts as one."""
    parts = list(parts)
    starts = [np.zeros(1, np.int64)]
    total = 0
    for part in parts:
        starts.append(part.starts[1:] + total)
        total += len(part.ids)
    ids = np.concatenate([part.ids for part in parts]) if parts else np.empty(0, np.int32)
    return Features(ids, np.concatenate(starts))


def _shares(texts: Sequence[str], threads: int) -> list[Sequence[str]]:
    """The texts in `threads` runs of about equal size."""
    ends = np.cumsum([0, *(len(text) + 1 for text in texts)])
    borders = [int(np.searchsorted(ends, int(ends[-1]) * part // threads)) for part in range(threads + 1)]
    return [texts[a:b] for a, b in pairwise(borders)]


class NgramVocabulary:
    """The words that have a row of their own, most frequent first, and the rule that makes features of texts."""

    def __init__(self, words: list[str], counts: NDArray[np.int64], settings: NgramSettings) -> None:
        self.words, self.counts, self.settings = words, counts, settings
        self.table = _Table()
        cut = _tokens(["\n".join(words).encode()], "rjieba", self.table, learn=True)  # at blanks, nothing added
        if not len(words) == len(cut.words) == self.table.n_words == len(counts):
            raise InputError("a word of the vocabulary is empty, has a blank in it, occurs twice or has no count")

    @cached_property
    def row_of(self) -> dict[str, int]:
        """The row of each word."""
        return {word: row for row, word in enumerate(self.words)}

    @property
    def n_rows(self) -> int:
        """Rows of the embedding: words, then buckets."""
        return len(self.words) + self.settings.buckets

    def features(self, texts: Sequence[str], threads: int | None = None) -> Features:
        """The features of each text, in blocks of bounded size on several threads (all processors if None)."""
        settings, n_words = self.settings, len(self.words)

        def share(part: Sequence[str]) -> Features:
            seen = np.zeros(self.n_rows if settings.once else 1, np.int32)
            found = []
            for block in _blocks(part):
                pieces = _encoded(block, settings)
                if settings.max_chars:  # the characters of unknown words count too: a table of all words there are
                    table = _Table()
                    tokens = _tokens(pieces, settings.words, table, learn=True)
                    rows = np.array([self.row_of.get(word, -1) for word in table.words()], np.int32)
                else:
                    table, rows = self.table, np.arange(n_words, dtype=np.int32)
                    tokens = _tokens(pieces, settings.words, table, learn=False)
                parts = table.parts(settings)
                found.append(_features(tokens, rows, parts, n_words, settings, seen))
            return joined(found)

        return joined(_on_threads(share, _shares(texts, _threads_for(texts, threads))))

    def feature_names(self, text: str) -> list[tuple[str, int]]:
        """Each feature of a text as a person reads it, with its row, in the order of `features`; for explanation."""
        words = words_of(text, self.settings)
        found = []
        for word in words:
            if word in self.row_of:
                found.append((word, self.row_of[word]))
            for run in character_ngrams(word, self.settings):
                found.append((run, len(self.words) + (word_hash(run) & 0xFFFFFFFF) % self.settings.buckets))
        if self.settings.buckets:
            for i in range(len(words)):
                for j in range(i + 2, min(i + self.settings.n, len(words)) + 1):
                    bucket = ngram_bucket(words[i:j], self.settings.buckets)
                    found.append((" ".join(words[i:j]), len(self.words) + bucket))
        if not self.settings.once:
            return found
        first: dict[int, str] = {}
        for name, row in found:
            first.setdefault(row, name)
        return [(name, row) for row, name in first.items()]


def learn_vocabulary(
    texts: Sequence[str], settings: NgramSettings, threads: int | None = None
) -> tuple[NgramVocabulary, Features]:
    """The vocabulary of some texts and their features, reading them once; the same for any number of threads."""

    def share(part: Sequence[str]) -> tuple[_Table, list[_Tokens]]:
        table = _Table()
        blocks = _blocks(part)
        return table, [_tokens(_encoded(block, settings), settings.words, table, learn=True) for block in blocks]

    parts = _on_threads(share, _shares(texts, _threads_for(texts, threads)))
    number: dict[str, int] = {}  # of each word in the order of first occurrence, whatever the shares were
    local = [[number.setdefault(word, len(number)) for word in table.words()] for table, _ in parts]
    counts = np.zeros(len(number), np.int64)
    for names, (_, blocks) in zip(local, parts, strict=True):
        for block in blocks:
            counts[names] += np.bincount(block.words, minlength=len(names))
    order = np.argsort(-counts, kind="stable")
    order = order[counts[order] >= settings.min_count]
    every = list(number)
    vocabulary = NgramVocabulary([every[i] for i in order.tolist()], counts[order], settings)
    row = np.full(len(every), -1, np.int32)
    row[order] = np.arange(len(order), dtype=np.int32)

    def expand(part: tuple[list[int], tuple[_Table, list[_Tokens]]]) -> Features:
        names, (table, blocks) = part
        rows = row[np.array(names, np.int64)]
        seen = np.zeros(vocabulary.n_rows if settings.once else 1, np.int32)
        runs = table.parts(settings)
        return joined(_features(block, rows, runs, len(vocabulary.words), settings, seen) for block in blocks)

    return vocabulary, joined(_on_threads(expand, list(zip(local, parts, strict=True))))


def _threads_for(texts: Sequence[str], threads: int | None) -> int:
    """Small work stays on one thread."""
    return 1 if len(texts) < 256 else threads or default_threads()


def _on_threads(do: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """do(part) of each, at the same time: the compiled loops hold no lock."""
    if len(parts) == 1:
        return [do(parts[0])]
    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(do, parts))
