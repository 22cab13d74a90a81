"""Looking words up, what is near them, analogies, and the scores of vectors: gensim and scipy are the judges."""

from __future__ import annotations

import itertools
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from gensim.models import KeyedVectors as GensimVectors
from gensim.models.fasttext import ft_ngram_hashes
from gensim.test.utils import datapath
from scipy.stats import spearmanr

from zhixing.errors import InputError
from zhixing.vectors import keyed
from zhixing.vectors.evaluate import (
    ASSOCIATIONS,
    AnalogySection,
    WordPair,
    WordSets,
    analogy_accuracy,
    read_analogies,
    read_word_pairs,
    spearman,
    word_association,
    word_similarity,
)
from zhixing.vectors.keyed import KeyedVectors, Subwords, subword_ids
from zhixing.vectors.map import _place_labels, draw_map, project


def random_vectors(n_words: int = 500, d_model: int = 12, seed: int = 0) -> KeyedVectors:
    generator = np.random.default_rng(seed)
    words = [f"word{number}" for number in range(n_words)]
    return KeyedVectors(words, generator.standard_normal((n_words, d_model)).astype(np.float32))


def in_gensim(vectors: KeyedVectors) -> GensimVectors:
    other = GensimVectors(vectors.dimension)
    other.add_vectors(vectors.words, vectors.vectors)
    return other


# --- lookup --------------------------------------------------------------------------------------------------------


def test_a_table_by_hand() -> None:
    rows = np.array([[2, 0], [0, 3], [1, 1], [-1, 0], [0, 0]], np.float32)
    vectors = KeyedVectors(["east", "north", "between", "west", "nowhere"], rows)
    assert len(vectors) == 5 and vectors.dimension == 2 and "east" in vectors and "up" not in vectors
    assert vectors.vector("north").tolist() == [0, 3]
    assert vectors.cosine("east", "north") == 0
    assert vectors.cosine("east", "between") == pytest.approx(math.sqrt(0.5))
    assert vectors.cosine("east", "nowhere") == 0
    assert [word for word, _ in vectors.similar("east")] == ["between", "north", "nowhere", "west"]
    assert vectors.similar(np.array([0, 1], np.float32), 1) == [("north", pytest.approx(1.0))]


def test_equal_scores_come_in_the_order_of_the_words() -> None:
    rows = np.tile(np.array([[1, 2, 3]], np.float32), (100, 1))
    vectors = KeyedVectors([f"w{k}" for k in range(100)], rows)
    assert [word for word, _ in vectors.similar("w3", 5)] == ["w0", "w1", "w2", "w4", "w5"]
    assert len(vectors.similar("w3", 1000)) == 99


@pytest.mark.parametrize("block", [4 * 2**20, 64, 1])
def test_similar_is_gensims_whatever_the_block(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyed, "BLOCK", block)
    vectors = random_vectors()
    theirs = in_gensim(vectors)
    for word in ("word0", "word77", "word499"):
        for ours, other in zip(vectors.similar(word, 12), theirs.most_similar(word, topn=12), strict=True):
            assert ours == (other[0], pytest.approx(other[1], abs=1e-5))


def test_analogies_by_addition_are_gensims() -> None:
    vectors = random_vectors(300)
    theirs = in_gensim(vectors)
    for a, b, c in itertools.permutations(["word3", "word100", "word250"]):
        expected = theirs.most_similar(positive=[b, c], negative=[a], topn=8)
        for ours, (other, score) in zip(vectors.analogy(a, b, c, 8), expected, strict=True):
            assert ours == (other, pytest.approx(score, abs=1e-4))


def test_analogies_by_multiplication_are_equation_5() -> None:
    """gensim adds 0.000001 below the line, the paper 0.001."""
    vectors = random_vectors(300)
    unit = vectors.vectors / np.linalg.norm(vectors.vectors, axis=1, keepdims=True)
    near = (unit @ unit.T + 1) / 2
    for a, b, c in itertools.permutations([3, 100, 250]):
        scores = near[b] * near[c] / (near[a] + 0.001)
        scores[[a, b, c]] = -1
        best = np.argsort(-scores)[:8]
        ours = vectors.analogy(f"word{a}", f"word{b}", f"word{c}", 8, "mul")
        assert [word for word, _ in ours] == [f"word{k}" for k in best]
        assert [score for _, score in ours] == pytest.approx(scores[best].tolist(), rel=1e-5)


def test_an_unknown_word_names_near_spellings() -> None:
    vectors = KeyedVectors(["london", "Paris", "lonely", "中国人"], np.eye(4, dtype=np.float32))
    for word, near in (("London", "'london'"), ("paris", "'Paris'"), ("lodnon", "'london'"), ("中国", "'中国人'")):
        with pytest.raises(InputError) as caught:
            vectors.similar(word)
        assert repr(word) in caught.value.what and near in caught.value.mend
    with pytest.raises(InputError, match="no vector"):
        vectors.vector("")


def test_what_cannot_be_vectors() -> None:
    good = np.ones((2, 3), np.float32)
    with pytest.raises(InputError, match="'a' has two vectors"):
        KeyedVectors(["a", "a"], good)
    for wrong in (good.astype(np.float64), good[:1], good[0], good[:, :0]):
        with pytest.raises(ValueError, match="expected a float32 matrix"):
            KeyedVectors(["a", "b"], wrong)
    for value in (np.nan, np.inf, 1e38 * 3):
        bad = np.full((2, 3), 1, np.float32)
        bad[1] = value
        with pytest.raises(InputError, match="'b' is not finite"):
            KeyedVectors(["a", "b"], bad)
    vectors = KeyedVectors(["a", "b"], good)
    with pytest.raises(InputError, match="3 finite numbers"):
        vectors.similar(np.ones(4, np.float32))
    with pytest.raises(InputError, match="ask for 1"):
        vectors.similar("a", 0)
    with pytest.raises(InputError, match="add or mul"):
        vectors.analogy("a", "b", "a", 1, "sub")  # type: ignore[arg-type]


# --- subwords ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("low,high", [(1, 3), (2, 4), (3, 6), (5, 5)])
def test_ngrams_are_hashed_as_in_fasttext(low: int, high: int) -> None:
    words = ["as", "where", "a", "中文词", "naïve", "😀b", "</s>", "x" * 40, "-"]
    ids, offsets = subword_ids(words, low, high, 20_011)
    for number, word in enumerate(words):
        expected = [] if word == "</s>" else ft_ngram_hashes(word, low, high, 20_011)
        assert sorted(ids[offsets[number] : offsets[number + 1]].tolist()) == sorted(expected)
    assert len(subword_ids(words, low, high, 0)[0]) == 0


def test_unseen_words_are_the_mean_of_their_ngrams() -> None:
    matrix = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    vectors = KeyedVectors(["seen"], np.ones((1, 4), np.float32), None, Subwords(matrix, 3, 4))
    rows = subword_ids(["unseen"], 3, 4, 50)[0]
    np.testing.assert_allclose(vectors.vector("unseen"), matrix[rows].mean(axis=0), rtol=1e-5)
    assert vectors.vector("seen").tolist() == [1] * 4
    assert vectors.similar("unseen", 3)[0][0] == "seen"
    with pytest.raises(InputError):
        vectors.vector("</s>")


# --- scores --------------------------------------------------------------------------------------------------------


def test_spearman_is_scipys() -> None:
    generator = np.random.default_rng(0)
    for size in (3, 10, 500):
        x, y = generator.integers(0, size, size), generator.standard_normal(size)  # with ties
        ours, theirs = spearman(x, y), spearmanr(x, y)[0]
        assert ours == pytest.approx(theirs, abs=1e-12)
    assert math.isnan(spearman([1, 1], [1, 2])) and math.isnan(spearman([1], [1]))


def test_word_similarity_is_gensims() -> None:
    pairs = read_word_pairs(Path(datapath("wordsim353.tsv")))
    assert len(pairs) == 353 and pairs[1] == WordPair("tiger", "cat", 7.35)
    assert len(read_word_pairs(Path(datapath("simlex999.txt")))) == 999
    words = list(dict.fromkeys(word.lower() for pair in pairs[:200] for word in (pair.a, pair.b)))
    generator = np.random.default_rng(1)
    vectors = KeyedVectors(words, generator.standard_normal((len(words), 10)).astype(np.float32))
    score = word_similarity(vectors, pairs)
    theirs = in_gensim(vectors).evaluate_word_pairs(datapath("wordsim353.tsv"))
    assert score.spearman == pytest.approx(theirs[1][0], abs=1e-6)
    assert score.n_pairs == 353 and 200 <= score.n < 353 and score.missing
    assert score.n_pairs - score.n == pytest.approx(353 * theirs[2] / 100)
    assert score.low < score.spearman < score.high and score == word_similarity(vectors, pairs)


def test_subwords_know_every_pair() -> None:
    matrix = np.random.default_rng(0).standard_normal((500, 4)).astype(np.float32)
    vectors = KeyedVectors(["cat"], np.ones((1, 4), np.float32), None, Subwords(matrix, 3, 4))
    score = word_similarity(vectors, [WordPair("Cat", "dog", 3), WordPair("cow", "pig", 2), WordPair("cat", "cat", 9)])
    assert (score.n, score.from_subwords, score.missing) == (3, 2, ())


def test_analogies_are_gensims_by_section(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyed, "BLOCK", 512)
    sections = read_analogies(Path(datapath("questions-words.txt")))
    assert len(sections) == 14 and sum(len(s.questions) for s in sections) == 19544
    some = [AnalogySection(s.name, s.questions[:60]) for s in sections[:4]]
    words = list(dict.fromkeys(word.lower() for s in some[:3] for q in s.questions for word in q))
    generator = np.random.default_rng(0)
    vectors = KeyedVectors(words, generator.standard_normal((len(words), 3)).astype(np.float32))
    theirs = in_gensim(vectors)
    scores = analogy_accuracy(vectors, some)
    for section, score in zip(some, scores, strict=False):
        correct = n = 0
        for question in section.questions:
            a, b, c, d = (word.lower() for word in question)
            if all(word in theirs for word in (a, b, c, d)):
                n += 1
                correct += theirs.most_similar(positive=[b, c], negative=[a], topn=1)[0][0] == d
        assert (score.correct, score.n, score.missing) == (correct, n, 60 - n)
    assert scores[-1].name == "total" and scores[-1].n == sum(s.n for s in scores[:-1])
    few = analogy_accuracy(vectors, some, among=20)[-1]
    assert few.n < scores[-1].n and few.n + few.missing == 240


def test_association_by_hand() -> None:
    rows = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1], [1, 0], [0, 1]], np.float32)
    vectors = KeyedVectors(["x1", "x2", "y1", "y2", "a", "b"], rows)
    sets = WordSets(("x", "y", "a", "b"), ("x1", "X2", "gone"), ("y1", "y2"), ("a",), ("b",))
    score = word_association(vectors, sets)
    s = np.array([1, (1 - 0.1) / math.hypot(1, 0.1), -1, (0.1 - 1) / math.hypot(1, 0.1)])
    assert score.effect_size == pytest.approx((s[:2].mean() - s[2:].mean()) / s.std(ddof=1), abs=1e-6)
    assert score.exact and score.permutations == 6 and score.p_value == pytest.approx(1 / 6)
    assert score.missing == ("gone",) and score.sizes == (2, 2, 1, 1)
    with pytest.raises(InputError, match="0 words of 'flowers'"):
        word_association(vectors, ASSOCIATIONS["flowers-insects"])


def test_association_of_random_words_is_not_significant() -> None:
    words = [
        word for name in ASSOCIATIONS for four in [ASSOCIATIONS[name]] for word in four.x + four.y + four.a + four.b
    ]
    words = list(dict.fromkeys(words))
    vectors = KeyedVectors(words, np.random.default_rng(5).standard_normal((len(words), 20)).astype(np.float32))
    for sets in ASSOCIATIONS.values():
        assert len(sets.x) == len(sets.y) and len(sets.a) == len(sets.b)
        score = word_association(vectors, sets, permutations=2000)
        assert score == word_association(vectors, sets, permutations=2000)
        assert score.missing == () and 0.01 < score.p_value < 0.99 and abs(score.effect_size) < 1


@pytest.mark.parametrize(
    "content, message",
    [(b"", "no pairs"), (b"a\tb\n", "t.txt:1"), (b"# x\na\tb\tten\n", "t.txt:2"), (b"a\tb\tnan\n", "not finite"),
     (b"a\tb\t1\n\xff\tb\t1\n", "t.txt:2, byte 0"), (b"a" * 70_000, "longer than")],
)  # fmt: skip
def test_wrong_pairs(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_word_pairs(tmp_path / "t.txt")
    assert message in caught.value.message()


@pytest.mark.parametrize(
    "content, message",
    [("", "no questions"), (": a\n", "no questions"), ("a b c d\n", "t.txt:1"), (": a\na b c\n", "four words")],
)
def test_wrong_analogies(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(content)
    with pytest.raises(InputError) as caught:
        read_analogies(tmp_path / "t.txt")
    assert message in caught.value.message()
    with pytest.raises(InputError, match="cannot be read"):
        read_analogies(tmp_path / "absent.txt")


# --- map -----------------------------------------------------------------------------------------------------------


def test_the_plane_is_that_of_the_largest_components() -> None:
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((40, 6)).astype(np.float32)
    plane = project(vectors)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    centred = unit - unit.mean(axis=0)
    values = np.sort(np.linalg.eigvalsh(centred.T @ centred))[::-1]
    np.testing.assert_allclose((plane.points**2).sum(axis=0), values[:2], rtol=1e-4)
    np.testing.assert_allclose(plane.shares, values[:2] / values.sum(), rtol=1e-4)
    assert not project(np.ones((3, 4), np.float32)).points.any()
    assert project(np.array([[1.0], [-1.0]], np.float32)).shares == (1.0, 0.0)


def test_a_map_is_xml_without_overlaps_or_addresses() -> None:
    words = [f"word{k}" for k in range(150)] + ["<b>&\"'", "中文词语", "bell\x07"]
    generator = np.random.default_rng(0)
    vectors = KeyedVectors(words, generator.standard_normal((len(words), 5)).astype(np.float32))
    svg = draw_map(vectors, words, ["one", "<two>"] * 76 + ["one"], "A & B")
    root = ElementTree.fromstring(svg)
    space = "{http://www.w3.org/2000/svg}"
    circles = root.findall(f"{space}circle")
    assert len(circles) == len(words) + 2
    titles = [circle.findtext(f"{space}title") for circle in circles]
    assert titles[:-3] == words[:-1] and titles[-3] == "bell\ufffd"
    labels = [text for text in root.iter(f"{space}text") if text.get("class") == "label"]
    assert 50 < len(labels) <= len(words)
    assert svg.count("http") == 1 and "<script" not in svg and "prefers-color-scheme: dark" in svg
    assert svg == draw_map(vectors, words, ["one", "<two>"] * 76 + ["one"], "A & B")


def test_labels_do_not_touch() -> None:
    places = np.random.default_rng(0).uniform(200, 500, (300, 2))
    boxes = [box for box in _place_labels(places, [60.0] * 300) if box is not None]
    assert 20 < len(boxes) < 300
    for a, b in itertools.combinations(boxes, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_wrong_maps() -> None:
    vectors = random_vectors(3)
    for words in ([], ["word1"], ["word1", "word1"]):
        with pytest.raises(InputError, match="2 to 5000"):
            draw_map(vectors, words)
    with pytest.raises(InputError, match="'wordy'"):
        draw_map(vectors, ["word1", "wordy"])
    with pytest.raises(ValueError, match="2 groups"):
        draw_map(vectors, ["word1", "word2"], ["a"])
