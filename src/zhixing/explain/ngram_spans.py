"""Where the features of a bag stand in the text: a word at its place, an n-gram over all of its words."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from zhixing.explain.spans import Span
from zhixing.tokens.ngrams import NgramVocabulary, character_ngrams, ngram_bucket, word_hash, words_of


class NgramSpans:
    """A bag's vocabulary as `explain` asks for it: `Bag.vocabulary.features` of a text, each with its span.

    Where a feature counts once a text, its span is that of its first place.
    """

    pad_id = 0

    def __init__(self, vocabulary: NgramVocabulary) -> None:
        self.vocabulary = vocabulary

    def encode_with_spans(self, text: str) -> tuple[list[int], list[Span]]:
        vocabulary, settings = self.vocabulary, self.vocabulary.settings
        words = words_of(text, settings)
        places = locate(text, words[:-1] if settings.words == "spaces" else words)
        places += [(0, 0)] * (len(words) - len(places))  # </s> stands nowhere
        n_words = len(vocabulary.words)
        found: list[tuple[int, Span]] = []
        for word, place in zip(words, places, strict=True):
            if word in vocabulary.row_of:
                found.append((vocabulary.row_of[word], place))
            for run in character_ngrams(word, settings):  # inside a word, and so the word's
                found.append((n_words + (word_hash(run) & 0xFFFFFFFF) % settings.buckets, place))
        for first in range(len(words) if settings.buckets else 0):
            for last in range(first + 2, min(first + settings.n, len(words)) + 1):
                row = n_words + ngram_bucket(words[first:last], settings.buckets)
                found.append((row, (places[first][0], max(end for _, end in places[first:last]))))
        if settings.once:
            first_places: dict[int, Span] = {}
            for row, place in found:
                first_places.setdefault(row, place)
            found = list(first_places.items())
        return [row for row, _ in found], [place for _, place in found]


def locate(text: str, words: Sequence[str]) -> list[Span]:
    """Where each of the words that `words_of` gave stands in the text, whose capitals they may have lost.

    Between words there are blanks only, so each is the next place where its characters stand. One letter may be two in
    lower case (İ), so places are counted back to the text's own characters.

    >>> locate("İyi  FILM", ["i̇yi", "film"])
    [(0, 3), (5, 9)]
    """
    lowered = text.lower()
    own = list(accumulate((len(character.lower()) for character in text), initial=0))  # place in lowered, of each
    assert own[-1] == len(lowered), "lower case of the whole and of its characters differ in length"
    at_own = [index for index, (a, b) in enumerate(pairwise(own)) for _ in range(b - a)]
    spans = []
    at = 0
    for word in words:
        folded = word.lower()
        at = lowered.index(folded, at)
        spans.append((at_own[at], at_own[at + len(folded) - 1] + 1))
        at += len(folded)
    return spans
