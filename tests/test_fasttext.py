"""FastText: n-grams into rows, the compiled loop against the formula, words never seen, and fastText's own numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from test_word2vec import drawn
from zhixing.vectors.fasttext import (
    mean_of_parts,
    skipgram_parts,
    skipgram_parts_loss,
    skipgram_parts_reference,
    word_parts,
)
from zhixing.vectors.keyed import subword_ids
from zhixing.vectors.simd import aligned_zeros
from zhixing.vectors.train import WordVectorSettings, train_word_vectors

SMALL = WordVectorSettings(
    "fasttext", d_model=24, window=3, epochs=5, min_count=1, subsample=0, threads=2, buckets=5000
)


def fnv1a(text: str) -> int:
    """fastText's hash, a byte at a time; bytes from 128 on are widened with their sign (its slip, and so ours)."""
    value = 2166136261
    for byte in text.encode():
        value ^= byte if byte < 128 else byte | 0xFFFFFF00
        value = value * 16777619 % 2**32
    return value


def test_ngrams_by_hand() -> None:
    ids, offsets = subword_ids(["as", "知"], 2, 3, 1000)
    wanted = [["<a", "<as", "as", "as>", "s>"], ["<知", "<知>", "知>"]]
    assert offsets.tolist() == [0, 5, 8]
    assert ids.tolist() == [fnv1a(gram) % 1000 for grams in wanted for gram in grams]
    assert fnv1a("a") == 0xE40C292C  # of the published test vectors of FNV-1a


def test_rows_of_words_by_hand() -> None:
    parts, offsets, buckets = word_parts(2, np.array([7, 3, 7], np.int32), np.array([0, 2, 3]))
    assert parts.tolist() == [0, 3, 2, 1, 3]
    assert offsets.tolist() == [0, 3, 5]
    assert buckets.tolist() == [3, 7]


def test_words_without_ngrams_have_their_own_row() -> None:
    parts, offsets, buckets = word_parts(3, np.zeros(0, np.int32), np.zeros(4, np.int64))
    assert parts.tolist() == [0, 1, 2]
    assert offsets.tolist() == [0, 1, 2, 3]
    assert len(buckets) == 0


@pytest.mark.parametrize("d_model, window, n_negative", [(100, 5, 5), (3, 1, 1), (40, 2, 7)])
def test_the_loop_is_the_reference(d_model: int, window: int, n_negative: int) -> None:
    generator = np.random.default_rng(d_model)
    vocabulary = ["a", "ab", "abc", "bcd", "知行", "行", "x", "xab", "hello"]
    parts, offsets, buckets = word_parts(9, *subword_ids(vocabulary, 2, 4, 20))  # few buckets: words collide
    ids = generator.integers(0, 9, 60)
    ids[20:60:9] = -1
    noise = [0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.05, 0.03, 0.02]
    words, left, right, negatives = drawn(ids.tolist(), noise, window, n_negative, per_neighbour=True)
    vectors, outputs = aligned_zeros(9 + len(buckets), d_model), aligned_zeros(9, d_model)
    vectors[:, :d_model] = generator.normal(0, 0.5, (len(vectors), d_model))
    outputs[:, :d_model] = generator.normal(0, 0.3, (9, d_model))
    wanted = [torch.from_numpy(matrix[:, :d_model].copy()) for matrix in (vectors, outputs)]
    for i, word in enumerate(words):
        neighbours = [words[p] for p in range(left[i], right[i]) if p != i]
        if neighbours:
            rows = parts[offsets[word] : offsets[word + 1]].tolist()
            skipgram_parts_reference(*wanted, rows, neighbours, negatives[i][: n_negative * len(neighbours)], 0.1)
    numbers, pairs, n = np.array(words, np.int32), 2 * window * (1 + n_negative), len(words)
    plan = (np.array(left), np.array(right), np.array(negatives, np.int32), n_negative, n)
    scratch, g = aligned_zeros(pairs + 8, d_model), aligned_zeros(1, pairs + 4)
    rate = np.float32(0.1)
    skipgram_parts(numbers, offsets, parts, numbers, *plan, rate, vectors, outputs, scratch, g)
    np.testing.assert_allclose(vectors[:, :d_model], wanted[0].numpy(), rtol=1e-4, atol=5e-5)
    np.testing.assert_allclose(outputs[:, :d_model], wanted[1].numpy(), rtol=1e-4, atol=5e-5)
    assert not vectors[:, d_model:].any()
    means = aligned_zeros(9, d_model)
    mean_of_parts(vectors, offsets, parts, means)
    for word in range(9):
        rows_of = vectors[parts[offsets[word] : offsets[word + 1]]]
        np.testing.assert_allclose(means[word], rows_of.mean(0), rtol=1e-5, atol=1e-5)


def test_the_reference_follows_the_gradient() -> None:
    """Autograd of the loss is the update, but that each of a word's P rows gets the whole gradient of their mean."""
    generator = torch.Generator().manual_seed(0)
    vectors, outputs = (torch.randn(8, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    parts, neighbours, negatives = [0, 5, 6, 7], [1, 3], [4, 0, 4, 5]
    v, u = vectors.clone().requires_grad_(), outputs.clone().requires_grad_()
    loss = skipgram_parts_loss(v[parts], u[[*neighbours, *negatives]], len(neighbours))
    grad_v, grad_u = torch.autograd.grad(loss, (v, u))
    new_v, new_u = vectors.clone(), outputs.clone()
    skipgram_parts_reference(new_v, new_u, parts, neighbours, negatives, 0.01)
    torch.testing.assert_close(new_v - vectors, -0.01 * len(parts) * grad_v)
    torch.testing.assert_close(new_u - outputs, -0.01 * grad_u)


def word_families(sentences: int = 2500) -> list[str]:
    """Sentences of words that share a stem and stand together: walk walks walked walking beside road roads ..."""
    stems = [
        ("walk", "road"),
        ("bake", "bread"),
        ("sail", "ocean"),
        ("think", "book"),
        ("paint", "colour"),
        ("plant", "garden"),
    ]
    endings = ["", "s", "ed", "ing", "er", "ers"]
    generator = np.random.default_rng(0)
    lines = []
    for _ in range(sentences):
        pair = stems[generator.integers(len(stems))]
        lines.append(" ".join(pair[generator.integers(2)] + endings[generator.integers(5)] for _ in range(7)))
    return lines


@pytest.mark.parametrize("deterministic", [False, True])
def test_it_learns_and_knows_words_it_has_not_seen(deterministic: bool) -> None:
    trained = train_word_vectors(word_families(), replace(SMALL, deterministic=deterministic))
    keyed = trained.keyed()
    for unseen, near, far in (
        ("walkers", "roads", "breads"),
        ("bakers", "breads", "oceans"),
        ("sailers", "ocean", "book"),
    ):
        assert unseen not in keyed
        assert keyed.cosine(unseen, near) > keyed.cosine(unseen, far) + 0.3


def test_deterministic_runs_repeat_bit_for_bit() -> None:
    text = word_families(1000)
    results = set()
    for threads in (1, 2, 3, 1, 2, 3):
        trained = train_word_vectors(text, replace(SMALL, deterministic=True, threads=threads, epochs=2))
        assert trained.buckets is not None
        results.add((trained.vectors.tobytes(), trained.buckets.tobytes(), trained.outputs.tobytes()))
    assert len(results) == 1


def test_the_vector_of_a_word_is_the_mean_of_its_rows() -> None:
    trained = train_word_vectors(word_families(300), replace(SMALL, epochs=1))
    assert trained.own is not None and trained.buckets is not None
    assert trained.buckets.shape == (5000, 24)
    ids, offsets = subword_ids(trained.vocabulary.words, 3, 6, 5000)
    for word in (0, 7):
        rows = np.vstack([trained.own[word], trained.buckets[ids[offsets[word] : offsets[word + 1]]]])
        np.testing.assert_allclose(trained.vectors[word], rows.mean(0), rtol=1e-4, atol=1e-6)
    unused = np.setdiff1d(np.arange(5000), ids)
    assert not trained.buckets[unused].any()


def test_no_ngrams_at_all() -> None:
    trained: Any = train_word_vectors(word_families(300), replace(SMALL, epochs=1, max_n=0))
    assert not trained.buckets.any()
    assert trained.keyed().subwords is None
