"""What a system must beat: by hand, and against scikit-learn and a PageRank by linear algebra."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer

from zhixing.errors import InputError
from zhixing.evaluation import text_baselines
from zhixing.evaluation.text_baselines import (
    DAMPING,
    TranslationMemory,
    copy,
    lead_sentence,
    page_rank,
    sentence_similarities,
    text_rank,
    words,
)

PAIRS = [
    ("Open the file.", "打开文件。"),
    ("Close the window.", "关闭窗口。"),
    ("The file is open", "文件已打开"),
    ("Save all files", "保存所有文件"),
]
MEMORY = TranslationMemory([source for source, _ in PAIRS], [target for _, target in PAIRS])


def test_examples_in_the_docstrings() -> None:
    found = doctest.testmod(text_baselines)
    assert found.attempted >= 3 and found.failed == 0


@pytest.mark.parametrize(
    "text, found",
    [("Don't stop—3.5 a", ["don", "t", "stop", "3", "5", "a"]), ("我用GPT4。", ["我", "用", "gpt4"]), ("Été été", ["été", "été"]), ("", []), ("！？", [])],
)  # fmt: skip
def test_words(text: str, found: list[str]) -> None:
    assert words(text) == found


def test_copy() -> None:
    texts = ["a", "", "你好"]
    assert copy(texts) == texts
    assert copy(texts) is not texts


# ---- translation memory ---------------------------------------------------------------------------------------------


def test_the_nearest_by_hand() -> None:
    """Sources "a b" and "a c": a and "a b" weigh 1 and ln(3/2) + 1; asked is "a"."""
    memory = TranslationMemory(["a b", "a c c", "d"], ["1", "2", "3"])
    a, rare = np.log(4 / 3) + 1, np.log(4 / 2) + 1
    first = a / np.sqrt(a**2 + 2 * rare**2)  # a, b, "a b"
    second = a / np.sqrt(a**2 + (2 * rare) ** 2 + 2 * rare**2)  # a, c twice, "a c", "c c"
    assert memory.cosines("a").tolist() == pytest.approx([first, second, 0])
    assert memory.nearest("a") == (0, pytest.approx(first))
    assert memory.answer(["a", "c", "D!", "a d", "x"]) == ["1", "2", "3", "3", ""]


def test_a_source_finds_its_own_target() -> None:
    assert MEMORY.answer([source for source, _ in PAIRS]) == [target for _, target in PAIRS]
    assert MEMORY.nearest("open THE file!") == (0, pytest.approx(1.0))


def test_order_of_words_counts() -> None:
    memory = TranslationMemory(["dog bites man", "man bites dog"], ["1", "2"])
    assert memory.answer(["man bites dog", "dog bites man"]) == ["2", "1"]


def test_chinese_by_character() -> None:
    memory = TranslationMemory(["今天天气很好", "明天去北京", "我喜欢看书"], ["fine", "Beijing", "reading"])
    assert memory.answer(["今天天气不好", "他去北京了", "看书"]) == ["fine", "Beijing", "reading"]


def test_the_first_of_equals_and_nothing_near() -> None:
    memory = TranslationMemory(["a b", "a b", "B", ""], ["1", "2", "3", "4"])
    assert memory.answer(["a b", "b", "", "x y", "。"]) == ["1", "3", "", "", ""]
    assert memory.nearest("x") == (-1, 0.0)
    assert memory.answer([]) == []
    assert TranslationMemory(["", "。"], ["1", "2"]).answer(["a", ""]) == ["", ""]


SENTENCES = st.lists(st.lists(st.sampled_from(["the", "cat", "a", "dog", "saw", "it", "我", "你", "好", "x1"]), max_size=8).map(" ".join), min_size=1, max_size=12)  # fmt: skip


@given(SENTENCES, SENTENCES)
@settings(max_examples=100, deadline=None)
def test_cosines_are_those_of_scikit_learn(sources: list[str], texts: list[str]) -> None:
    memory = TranslationMemory(sources, [str(i) for i in range(len(sources))])
    if not any(sources):
        assert memory.answer(texts) == [""] * len(texts)
        return
    vectorizer = TfidfVectorizer(token_pattern=r"(?u)\b\w+\b", ngram_range=(1, 2))
    known = vectorizer.fit_transform(sources)
    expected = (vectorizer.transform(texts) @ known.T).toarray()  # (texts, sources)
    for text, row, answer in zip(texts, expected, memory.answer(texts), strict=True):
        assert memory.cosines(text) == pytest.approx(row)
        assert answer == ("" if row.max() == 0 else str(np.flatnonzero(row >= row.max() - 1e-9)[0]))


@pytest.mark.parametrize(
    "sources, targets, where, why",
    [(["a", "b"], ["c"], "sources and targets", "2 sources and 1 targets"), ([], [], "sources", "empty")],
)
def test_what_cannot_be_remembered(sources: list[str], targets: list[str], where: str, why: str) -> None:
    with pytest.raises(InputError) as caught:
        TranslationMemory(sources, targets)
    assert caught.value.where == where and why in caught.value.why
    assert caught.value.what and caught.value.mend


# ---- summaries ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "document, sentence",
    [
        ("Mr. Li left.  He was late.", "Mr. Li left."),
        ("他走了。“好。”", "他走了。"),
        ("  no mark", "no mark"),
        ("", ""),
        (" \n", ""),
    ],
)
def test_lead_sentence(document: str, sentence: str) -> None:
    assert lead_sentence(document) == sentence


def test_similarities_by_hand() -> None:
    # "a b b c" and "c b d": b and c, of four and three words
    found = sentence_similarities([["a", "b", "b", "c"], ["c", "b", "d"], ["e"], ["a"], []])
    expected = np.zeros((5, 5))
    expected[0, 1] = expected[1, 0] = 2 / (np.log(4) + np.log(3))
    expected[0, 3] = expected[3, 0] = 1 / np.log(4)
    assert found == pytest.approx(expected)
    assert sentence_similarities([["a"], ["a"]]).tolist() == [[0, 0], [0, 0]]  # ln 1 + ln 1


def test_similarities_do_not_depend_on_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    sentences = [[f"w{i}" for i in generator.integers(0, 40, 12)] for _ in range(15)]
    whole = sentence_similarities(sentences)
    monkeypatch.setattr(text_baselines, "COLUMNS", 7)
    assert sentence_similarities(sentences) == pytest.approx(whole)
    assert whole.any()


def test_ranks_by_hand() -> None:
    """A star: the middle m and three leaves l. m = 0.15 + 0.85 * 3 l and l = 0.15 + 0.85 m / 3."""
    star = np.zeros((5, 5))
    star[0, 1:4] = star[1:4, 0] = 2.0
    leaf = (0.15 + 0.85 * 0.15 / 3) / (1 - 0.85**2)
    assert page_rank(star) == pytest.approx([0.15 + 0.85 * 3 * leaf, leaf, leaf, leaf, 0.15])  # the last: no edge


@given(st.integers(2, 12), st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_ranks_solve_the_equation(n: int, seed: int) -> None:
    weights = np.random.default_rng(seed).random((n, n)) * (np.random.default_rng(seed + 1).random((n, n)) > 0.4)
    weights += weights.T
    np.fill_diagonal(weights, 0)
    out = weights.sum(axis=1, keepdims=True)
    passed = np.where(out > 0, weights / np.where(out > 0, out, 1), 0)
    assert page_rank(weights) == pytest.approx(np.linalg.solve(np.eye(n) - DAMPING * passed.T, np.full(n, 1 - DAMPING)))


ENGLISH = "The storm hit the coast. Bananas are yellow. The storm left the coast dark. Who knew? Crews on the coast fear the storm."
CHINESE = "台风登陆海南岛。香蕉很黄。台风给海南岛带来暴雨。谁知道？救援人员在海南岛等台风离开。"


def test_text_rank_takes_what_is_shared_and_keeps_the_order() -> None:
    assert (
        text_rank(ENGLISH, 3)
        == "The storm hit the coast. The storm left the coast dark. Crews on the coast fear the storm."
    )
    assert text_rank(CHINESE, 3) == "台风登陆海南岛。台风给海南岛带来暴雨。救援人员在海南岛等台风离开。"
    later_is_better = "Storm gulls rest. Bananas ripen. The storm gulls hit the coast. The coast is dark."
    assert text_rank(later_is_better, 1) == "The storm gulls hit the coast."
    assert text_rank(later_is_better, 2) == "Storm gulls rest. The storm gulls hit the coast."
    first = text_rank(ENGLISH, 1)
    assert first in ENGLISH and "storm" in first
    ranks = page_rank(sentence_similarities([words(s) for s in ENGLISH.replace("? ", ". ").split(". ")]))
    assert first.startswith(ENGLISH.replace("? ", ". ").split(". ")[int(ranks.argmax())])


@pytest.mark.parametrize("document, n, said", [("", 1, ""), ("One.", 3, "One."), ("A b. C d.", 1, "A b."), ("A b.\n\nC d.", 2, "A b. C d."), ("好。坏。", 5, "好。坏。")])  # fmt: skip
def test_short_documents(document: str, n: int, said: str) -> None:
    assert text_rank(document, n) == said


def test_as_many_sentences_as_were_asked_for() -> None:
    document = " ".join(f"Word{i} stands here with word{i + 1}." for i in range(9))
    for n in range(1, 12):
        assert text_rank(document, n).count(".") == min(n, 9)
    with pytest.raises(ValueError, match="1 or more, got 0"):
        text_rank(document, 0)


def test_a_long_document_is_ranked_by_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_baselines, "MOST_SENTENCES", 2)
    assert (
        text_rank("Cats sleep here. Dogs bark. Storm on the coast. The storm hit the coast.", 3)
        == "Cats sleep here. Dogs bark."
    )
