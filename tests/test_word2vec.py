"""Word2Vec: the compiled loops against the formulas, and whole runs: learning, repeating, going on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numba import njit

from zhixing.errors import InputError
from zhixing.vectors import train as train_module
from zhixing.vectors import word2vec
from zhixing.vectors.simd import aligned_zeros, load, padded, sigmoid, store
from zhixing.vectors.train import States, TrainedVectors, WordVectorSettings, cut_slices, train_word_vectors
from zhixing.vectors.words import WordCorpus, alias_table, count_words, encode_words

TOPICS, TOPIC_WORDS = 8, 12
SMALL = WordVectorSettings(d_model=24, window=3, epochs=5, min_count=1, subsample=0, threads=2, learning_rate=0.05)


def topic_text(sentences: int = 3000) -> list[str]:
    """Sentences of eight words, each of one topic: word 5.3 is the fourth of the sixth topic."""
    generator = np.random.default_rng(0)
    topics = generator.integers(0, TOPICS, sentences)
    numbers = generator.integers(0, TOPIC_WORDS, (sentences, 8))
    return [" ".join(f"{t}.{n}" for n in row) for t, row in zip(topics, numbers, strict=True)]


def neighbours_of_the_same_topic(trained: TrainedVectors) -> float:
    """Share of the words whose nearest word has their topic; chance is about 1/8."""
    keyed = trained.keyed()
    good = [keyed.similar(word, 1)[0][0].split(".")[0] == word.split(".")[0] for word in keyed.words]
    return sum(good) / len(good)


# ---- sixteen numbers at a time ----------------------------------------------------------------------------------


def test_the_sigmoid_is_torchs() -> None:
    @njit
    def run(x: Any, y: Any) -> None:
        for k in range(0, x.shape[1], 16):
            store(y, 0, k, sigmoid(load(x, 0, k)))

    x, y = aligned_zeros(1, 1600), aligned_zeros(1, 1600)
    x[0] = np.concatenate([np.linspace(-12, 12, 1596), [-1e30, 1e30, -0.0, 88.0]])
    run(x, y)
    np.testing.assert_allclose(y[0], torch.sigmoid(torch.from_numpy(x[0])).numpy(), rtol=1e-6, atol=1e-12)


def test_rows_are_aligned_and_padded() -> None:
    assert [padded(size) for size in (1, 16, 17, 100)] == [16, 16, 32, 112]
    matrix = aligned_zeros(3, 100)
    assert matrix.shape == (3, 112)
    assert matrix.ctypes.data % 64 == 0


# ---- drawing ----------------------------------------------------------------------------------------------------


def drawn(
    ids: list[int], noise: list[float], window: int = 2, n_negative: int = 3, *, per_neighbour: bool = False,
    keep: list[float] | None = None, seed: int = 1
) -> tuple[list[int], list[int], list[int], list[list[int]]]:  # fmt: skip
    size = len(ids)
    share, other = alias_table(np.array(noise))
    thresholds = (np.array(keep or [1.0] * len(noise)) * 2**32).astype(np.int64)
    words, left, right = np.zeros(size, np.int32), np.zeros(size, np.int64), np.zeros(size, np.int64)
    negatives = np.full((size, n_negative * (2 * window if per_neighbour else 1)), -1, np.int32)
    n = word2vec.draw(
        np.array(ids, np.int32), 0, size, thresholds, share, other, window, n_negative, per_neighbour, np.uint64(seed),
        words, left, right, negatives,
    )  # fmt: skip
    return words[:n].tolist(), left[:n].tolist(), right[:n].tolist(), negatives[:n].tolist()


def test_windows_stay_in_their_sentence() -> None:
    words, left, right, _ = drawn([0, 1, 2, -1, 2, 1, 0, 1, -1, 2], [0.5, 0.3, 0.2], window=1)
    assert words == [0, 1, 2, 2, 1, 0, 1, 2]
    assert left == [0, 0, 1, 3, 3, 4, 5, 7]
    assert right == [2, 3, 3, 5, 6, 7, 7, 8]


def test_windows_reach_one_to_five_words_evenly() -> None:
    ids = np.random.default_rng(0).integers(0, 3, 20_000).tolist()
    _, left, right, _ = drawn(ids, [0.4, 0.3, 0.3], window=5)
    reach = (np.array(right) - np.array(left) - 1)[5:-5] // 2
    assert np.bincount(reach).tolist()[0] == 0
    np.testing.assert_allclose(np.bincount(reach)[1:] / len(reach), 0.2, atol=0.02)


def test_noise_has_its_probabilities_and_never_the_word_itself() -> None:
    noise = np.array([0.6, 0.3, 0.1])
    words, _, _, negatives = drawn(np.arange(30_000).__mod__(3).tolist(), noise.tolist())
    for word in range(3):
        found = np.bincount(np.array(negatives)[np.array(words) == word].ravel(), minlength=3)
        wanted = np.where(np.arange(3) == word, 0, noise)
        np.testing.assert_allclose(found / found.sum(), wanted / wanted.sum(), atol=0.01)


def test_noise_for_each_neighbour_is_never_that_neighbour() -> None:
    ids = np.random.default_rng(0).integers(0, 3, 500).tolist()
    words, left, right, negatives = drawn(ids, [0.4, 0.3, 0.3], per_neighbour=True)
    for i, row in enumerate(negatives):
        neighbours = [words[p] for p in range(left[i], right[i]) if p != i]
        for number, neighbour in enumerate(neighbours):
            assert neighbour not in row[3 * number : 3 * number + 3]
        assert set(row[: 3 * len(neighbours)]) <= {0, 1, 2}


def test_subsampling_leaves_out_the_right_share() -> None:
    words, *_ = drawn([0, 1] * 10_000, [0.5, 0.5], keep=[0.25, 1.0])
    assert words.count(1) == 10_000
    assert words.count(0) == pytest.approx(2500, abs=150)


def test_a_draw_is_a_function_of_its_seed() -> None:
    ids = [0, 1, 2, 1] * 50
    assert drawn(ids, [0.5, 0.3, 0.2], seed=3) == drawn(ids, [0.5, 0.3, 0.2], seed=3)
    assert drawn(ids, [0.5, 0.3, 0.2], seed=3) != drawn(ids, [0.5, 0.3, 0.2], seed=4)


# ---- one update -------------------------------------------------------------------------------------------------


def learn(kernel: Any, vectors: Any, outputs: Any, draw: tuple[Any, ...], rate: float) -> tuple[Any, Any]:
    """The compiled loop on copies, padded; the result without padding."""
    words, left, right, negatives = draw
    v, u = aligned_zeros(*vectors.shape), aligned_zeros(*outputs.shape)
    v[:, : vectors.shape[1]], u[:, : vectors.shape[1]] = vectors, outputs
    ids, bounds = np.array(words, np.int32), (np.array(left, np.int64), np.array(right, np.int64))
    scratch, g = aligned_zeros(64, vectors.shape[1]), aligned_zeros(32, 64)
    kernel(ids, ids, *bounds, np.array(negatives, np.int32), len(words), np.float32(rate), v, u, scratch, g)
    assert not v[:, vectors.shape[1] :].any()
    assert not u[:, vectors.shape[1] :].any()
    return v[:, : vectors.shape[1]], u[:, : vectors.shape[1]]


def test_one_update_by_hand() -> None:
    vectors = np.array([[0, 0], [1, 0], [0, 0]], np.float32)  # word 0 beside word 1; the noise is word 2
    outputs = np.array([[0, 2], [0, 0], [math.log(3), 0]], np.float32)
    one = ([0, 1], [0, 1], [2, 2], [[2], [2]])  # the second has no neighbours: nothing is learnt from it
    v, u = learn(word2vec.skipgram, vectors, outputs, one, 0.1)
    # σ(v1 · u0) = 1/2: g = 0.1 * 1/2.  σ(v1 · u2) = 3/4: g = -0.1 * 3/4
    np.testing.assert_allclose(u, [[0.05, 2], [0, 0], [math.log(3) - 0.075, 0]], rtol=1e-6)
    np.testing.assert_allclose(v, [[0, 0], [1 - 0.075 * math.log(3), 0.1], [0, 0]], rtol=1e-6)
    same_v, same_u = learn(word2vec.cbow, vectors, outputs, one, 0.1)  # one neighbour: CBOW is the same
    np.testing.assert_allclose(same_v, v, rtol=1e-6)
    np.testing.assert_allclose(same_u, u, rtol=1e-6)


@pytest.mark.parametrize("kernel", ["skipgram", "cbow"])
@pytest.mark.parametrize("d_model, window, n_negative", [(100, 5, 5), (3, 1, 1), (40, 2, 7), (33, 4, 17)])
def test_the_loop_is_the_reference(kernel: str, d_model: int, window: int, n_negative: int) -> None:
    generator = np.random.default_rng(d_model)
    ids = generator.integers(0, 9, 60)
    ids[20:60:9] = -1  # words come twice within a window, and so does noise
    draw = drawn(ids.tolist(), [0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.05, 0.03, 0.02], window, n_negative)
    vectors, outputs = generator.normal(0, 0.3, (2, 9, d_model)).astype(np.float32)
    v, u = learn(getattr(word2vec, kernel), vectors, outputs, draw, 0.1)
    want_v, want_u = torch.from_numpy(vectors.copy()), torch.from_numpy(outputs.copy())
    reference: Callable[..., None] = getattr(word2vec, f"{kernel}_reference")
    words, left, right, negatives = draw
    for i in range(len(words)):
        neighbours = [words[p] for p in range(left[i], right[i]) if p != i]
        if neighbours:
            reference(want_v, want_u, words[i], neighbours, negatives[i], 0.1)
    np.testing.assert_allclose(v, want_v.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(u, want_u.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel, times", [("skipgram", 1), ("cbow", 3)])
def test_the_reference_follows_the_gradient(kernel: str, times: int) -> None:
    """Autograd of the loss is the update, but that CBOW gives each of C = 3 neighbours the whole error."""
    generator = torch.Generator().manual_seed(0)
    vectors, outputs = (torch.randn(7, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    word, neighbours, negatives = 2, [1, 3, 3], [4, 0, 4, 5]
    v, u = vectors.clone().requires_grad_(), outputs.clone().requires_grad_()
    loss: torch.Tensor = getattr(word2vec, f"{kernel}_loss")(v[neighbours], u[[word, *negatives]])
    grad_v, grad_u = torch.autograd.grad(loss, (v, u))
    new_v, new_u = vectors.clone(), outputs.clone()
    getattr(word2vec, f"{kernel}_reference")(new_v, new_u, word, neighbours, negatives, 0.01)
    torch.testing.assert_close(new_v - vectors, -0.01 * times * grad_v)
    torch.testing.assert_close(new_u - outputs, -0.01 * grad_u)


# ---- whole runs -------------------------------------------------------------------------------------------------


def test_slices_end_with_sentences() -> None:
    ids = np.array(([0] * 299 + [-1]) * 10 + [0] * 2500 + [-1], np.int32)
    starts = cut_slices(ids, 500, 1001)
    assert starts[0] == 0
    assert starts[-1] == len(ids)
    lengths = np.diff(starts)
    assert lengths.max() <= 1001
    assert all(ids[start - 1] == -1 for start in starts[1:-3])
    assert cut_slices(np.array([0, 1, -1], np.int32), 100, 150).tolist() == [0, 3]


@pytest.mark.parametrize("algorithm", ["skipgram", "cbow"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_it_learns(algorithm: Any, deterministic: bool) -> None:
    settings = replace(SMALL, algorithm=algorithm, deterministic=deterministic)
    assert neighbours_of_the_same_topic(train_word_vectors(topic_text(), settings)) >= 0.95


@pytest.mark.parametrize("algorithm", ["skipgram", "cbow"])
def test_deterministic_runs_repeat_bit_for_bit(algorithm: Any) -> None:
    text = topic_text(1500)
    results = []
    for threads in (1, 2, 3, 1, 2, 3):
        settings = replace(SMALL, algorithm=algorithm, deterministic=True, threads=threads, epochs=2)
        trained = train_word_vectors(text, settings)
        results.append((trained.vectors.tobytes(), trained.outputs.tobytes()))
    assert len(set(results)) == 1
    other = train_word_vectors(text, replace(SMALL, algorithm=algorithm, deterministic=True, epochs=2, seed=1))
    assert other.vectors.tobytes() != results[0][0]


def test_one_thread_without_locks_repeats_too() -> None:
    settings = replace(SMALL, threads=1, epochs=1)
    first, second = (train_word_vectors(topic_text(500), settings).vectors for _ in range(2))
    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize("algorithm", ["skipgram", "fasttext"])
def test_a_stopped_run_goes_on_as_if_it_had_not(
    algorithm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_module, "BLOCK", 16)
    settings = replace(SMALL, algorithm=algorithm, deterministic=True, epochs=2, save_seconds=0, buckets=1000)
    text = topic_text(1500)
    whole = train_word_vectors(text, settings)
    save, count = States.save, 0

    def stop_after_two(self: States, *arguments: Any) -> None:
        nonlocal count
        save(self, *arguments)
        count += 1
        if count == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(States, "save", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        train_word_vectors(text, settings, out=tmp_path / "run")
    states = list((tmp_path / "run" / "states").iterdir())
    assert len(states) == 1  # the newest only
    with pytest.raises(InputError, match="holds a run already"):
        train_word_vectors(text, settings, out=tmp_path / "run")
    with pytest.raises(InputError, match="began with window = 3, not 2"):
        train_word_vectors(text, replace(settings, window=2), out=tmp_path / "run", resume=True)
    with pytest.raises(InputError, match="not the one that the run began with"):
        train_word_vectors(text[:-1], settings, out=tmp_path / "run", resume=True)
    resumed = train_word_vectors(text, replace(settings, threads=1), out=tmp_path / "run", resume=True)
    assert "going on from" in capsys.readouterr().err
    assert resumed.vectors.tobytes() == whole.vectors.tobytes()
    assert resumed.outputs.tobytes() == whole.outputs.tobytes()
    again = train_word_vectors(text, settings, out=tmp_path / "run", resume=True)  # finished: nothing is left to do
    assert again.vectors.tobytes() == whole.vectors.tobytes()


def test_a_damaged_state_is_set_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, settings = topic_text(300), replace(SMALL, epochs=1, deterministic=True)
    whole = train_word_vectors(text, settings, out=tmp_path)
    (state,) = (tmp_path / "states").iterdir()
    data = bytearray((state / "vectors.npy").read_bytes())
    data[-1] ^= 1
    (state / "vectors.npy").write_bytes(data)
    again = train_word_vectors(text, settings, out=tmp_path, resume=True)  # from the beginning
    assert "does not have the SHA-256" in capsys.readouterr().err
    assert again.vectors.tobytes() == whole.vectors.tobytes()
    assert sum(path.name.endswith(".bad") for path in (tmp_path / "states").iterdir()) == 1


def test_the_result_tells_what_it_is() -> None:
    trained = train_word_vectors(topic_text(300), replace(SMALL, epochs=1))
    assert trained.vectors.shape == trained.outputs.shape == (TOPICS * TOPIC_WORDS, 24)
    assert trained.vocabulary.n_seen == 2400
    assert trained.words_per_second > 0
    keyed = trained.keyed()
    assert keyed.words == trained.vocabulary.words
    assert keyed.subwords is None


@pytest.mark.parametrize(
    "change",
    [
        {"d_model": 0}, {"window": 0}, {"window": -1}, {"negative": 0}, {"epochs": 0}, {"min_count": 0},
        {"subsample": -0.1}, {"subsample": float("nan")}, {"learning_rate": 0.0}, {"learning_rate": float("inf")},
        {"min_n": 0}, {"min_n": 4, "max_n": 3}, {"buckets": 0}, {"threads": 0}, {"seed": -1}, {"save_seconds": -1.0},
        {"algorithm": "skip"}, {"units": "letters"},
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        train_word_vectors(["a b a b"], replace(SMALL, **change))


def test_bad_texts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no words"):
        train_word_vectors([""], SMALL)
    with pytest.raises(InputError, match="no word is seen 9 times"):
        train_word_vectors(["a b a b"], replace(SMALL, min_count=9))
    with pytest.raises(InputError, match="no such text"):
        train_word_vectors(tmp_path / "missing.txt", SMALL)
    with pytest.raises(InputError, match="no folder to resume from"):
        train_word_vectors(["a b a b"], SMALL, resume=True)


def test_a_text_of_two_words_can_be_learnt_from() -> None:
    trained = train_word_vectors(["a b", "b", "a"], replace(SMALL, epochs=3))
    assert np.isfinite(trained.vectors).all()


def test_encoding_is_what_training_reads() -> None:
    corpus = WordCorpus(topic_text(100))
    vocabulary = count_words(corpus, 1)
    ids = encode_words(corpus, vocabulary)
    assert int((ids >= 0).sum()) == vocabulary.n_seen == 800
