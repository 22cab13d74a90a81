"""From tokens to words: the weights that tokens got, joined to the words of the text that a person reads.

A model sees pieces ("un", "##believ", "##able"), bytes (a Chinese character may be three tokens) or n-grams of several
words; a person sees words. So the text is cut into words by itself, and each token's weight goes to the word that its
characters stand in; a token over several words (an n-gram, or "。”") gives each an equal part. The sum stays the same,
whatever the tokenizer, and no character is ever cut in two.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

Span = tuple[int, int]  # characters start .. end - 1 of the text; an empty one belongs to no text

# Scripts written without spaces: each character stands by itself.
ALONE = (
    (0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3021, 0x3029), (0x3041, 0x30FA), (0x3100, 0x312F), (0x31A0, 0x31BF),
    (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0xFF66, 0xFF9D), (0x20000, 0x3FFFF),
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF),
)  # fmt: skip
INSIDE = frozenset("'’-‐")  # joins two letters into one word, as in don't and well-made
ZWJ = "\u200d"


@dataclass(frozen=True)
class Word:
    """Characters start .. end - 1 of the text, and how much they moved the score."""

    start: int
    end: int
    weight: float


def cut_words(text: str) -> list[Span]:
    """The words of a text, in order; what is between them is blank.

    A word is letters, digits and marks with inner apostrophes and hyphens, one character of a script without spaces,
    or a run of one and the same other character ("...", "!!"). An emoji stays whole.

    >>> text = "Don't go, 知行!!"
    >>> [text[start:end] for start, end in cut_words(text)]
    ["Don't", 'go', ',', '知', '行', '!!']
    """
    words: list[Span] = []
    at = 0
    while at < len(text):
        start, kind = at, _kind(text[at])
        at = _character_end(text, at)
        if kind == "word":
            while at < len(text):
                joined = text[at] in INSIDE and text[at - 1] not in INSIDE
                follower = at + 1 if joined else at
                if follower == len(text) or _kind(text[follower]) != "word":
                    break
                at = _character_end(text, follower)
        elif kind == "mark":
            while at < len(text) and text[at] == text[start]:
                at = _character_end(text, at)
        if kind != "blank":
            words.append((start, at))
    return words


def _kind(character: str) -> str:
    """word, alone (a word of one character), mark or blank."""
    code = ord(character)
    if any(low <= code <= high for low, high in ALONE):
        return "alone"
    category = unicodedata.category(character)
    if character.isspace() or category in ("Cc", "Cf"):
        return "blank"
    return "word" if category[0] in "LNM" or character == "_" else "mark"


def _character_end(text: str, at: int) -> int:
    """Where the character that begins at `at` ends: accents, skin tones, joined emoji and flags belong to it."""
    flag = 0x1F1E6 <= ord(text[at]) <= 0x1F1FF
    blank = text[at].isspace()
    at += 1
    if flag and at < len(text) and 0x1F1E6 <= ord(text[at]) <= 0x1F1FF:
        at += 1
    while at < len(text) and not blank:
        if text[at] == ZWJ and at + 1 < len(text) and not text[at + 1].isspace():
            at += 2
        elif unicodedata.category(text[at])[0] == "M" or 0x1F3FB <= ord(text[at]) <= 0x1F3FF:
            at += 1
        else:
            break
    return at


def join_to_words(text: str, spans: Sequence[Span], weights: Sequence[float]) -> tuple[list[Word], float]:
    """The words of the text with the weights of their tokens, and the rest: what belongs to no word.

    spans and weights: one a token. The rest is that of special tokens and blanks, so that all sums stay the same:
    sum of weights = sum over words + rest.

    >>> join_to_words("so good", [(0, 0), (0, 2), (2, 5), (5, 7), (0, 7)], [0.5, 1.0, 2.0, 3.0, 4.0])
    ([Word(start=0, end=2, weight=3.0), Word(start=3, end=7, weight=7.0)], 0.5)
    """
    if len(spans) != len(weights):
        raise ValueError(f"expected a span for each of {len(weights)} weights, got {len(spans)}")
    words = cut_words(text)
    starts = [start for start, _ in words]
    sums = [0.0] * len(words)
    rest = 0.0
    for (start, end), weight in zip(spans, weights, strict=True):
        first = max(bisect_right(starts, start) - 1, 0)
        met = []
        for index in range(first, len(words)):
            if words[index][0] >= end:
                break
            if words[index][1] > start:
                met.append(index)
        if not met or end <= start:
            rest += weight
            continue
        for index in met:
            sums[index] += weight / len(met)
    return [Word(start, end, total) for (start, end), total in zip(words, sums, strict=True)], rest
