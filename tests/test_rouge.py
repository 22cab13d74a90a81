"""ROUGE: by hand, against the package rouge-score in Latin letters, and the subsequence against its table."""

from __future__ import annotations

import doctest
import json
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from zhixing.errors import InputError
from zhixing.evaluation import rouge
from zhixing.evaluation.rouge import lcs_length, rouge_l, rouge_n, rouge_words, score_summaries


def naive_lcs(first: Sequence[object], second: Sequence[object]) -> int:
    """The table of Wagner & Fischer, row by row."""
    row = [0] * (len(second) + 1)
    for a in first:
        above = row
        row = [0]
        for j, b in enumerate(second):
            row.append(above[j] + 1 if a == b else max(above[j + 1], row[j]))
    return row[-1]


# ---- words ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, words",
    [
        ("The cat's 3.5 mats_x", ["the", "cat", "s", "3", "5", "mats", "x"]),
        ("今天 天气，很好！", ["今", "天", "天", "气", "很", "好"]),
        ("我用GPT4写code。", ["我", "用", "gpt4", "写", "code"]),
        ("カナとかな々ー", ["カ", "ナ", "と", "か", "な", "々", "ー"]),
        ("Привет, мир 한국어 문장", ["привет", "мир", "한국어", "문장"]),
        ("café m² ﬁn ①", ["caf", "m", "n"]),  # as rouge-score
        ("２０２４年", ["２０２４", "年"]),
        ("𠮷野家", ["𠮷", "野", "家"]),
        ("——……《》", []),
        ("", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert rouge_words(text) == words


def test_examples_in_the_docstrings() -> None:
    found = doctest.testmod(rouge)
    assert found.attempted >= 4 and found.failed == 0


# ---- by hand --------------------------------------------------------------------------------------------------------


def _numbers(found: rouge.Rouge) -> tuple[float, float, float]:
    return found.precision, found.recall, found.f1


def test_lin_2004_section_3() -> None:
    """His S1, S2 and S3: by bigrams the two are alike, by the subsequence the second is better."""
    reference, good, bad = "police killed the gunman", "police kill the gunman", "the gunman kill police"
    assert _numbers(rouge_n(good, reference, 2)) == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert _numbers(rouge_n(bad, reference, 2)) == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert _numbers(rouge_l(good, reference)) == pytest.approx((3 / 4, 3 / 4, 3 / 4))
    assert _numbers(rouge_l(bad, reference)) == pytest.approx((2 / 4, 2 / 4, 2 / 4))


def test_chinese_by_hand() -> None:
    # 我 喜 欢 读 书 (5) and 我 喜 欢 看 好 书 (6): 我 喜 欢 书; 我喜 喜欢; 我喜欢书
    output, reference = "我喜欢读书。", "我喜欢看好书！"
    assert _numbers(rouge_n(output, reference, 1)) == pytest.approx((4 / 5, 4 / 6, 8 / 11))
    assert _numbers(rouge_n(output, reference, 2)) == pytest.approx((2 / 4, 2 / 5, 4 / 9))
    assert _numbers(rouge_l(output, reference)) == pytest.approx((4 / 5, 4 / 6, 8 / 11))


def test_a_word_counts_as_often_as_in_the_text_with_fewer() -> None:
    assert _numbers(rouge_n("the the the the", "the cat the mat", 1)) == pytest.approx((2 / 4, 2 / 4, 0.5))
    assert _numbers(rouge_n("好好好", "好的", 1)) == pytest.approx((1 / 3, 1 / 2, 0.4))


def test_equal_chinese_is_1_where_rouge_score_says_0() -> None:
    text = "北京今天发布了新的天气预报。"
    assert RougeScorer(["rouge1"]).score(text, text)["rouge1"].fmeasure == 0.0
    scores = score_summaries([text], [text])
    assert (scores.rouge1.value, scores.rouge2.value, scores.rougeL.value) == (1.0, 1.0, 1.0)


def test_mixed_text_by_hand() -> None:
    # 用 gpt 写 诗 and 用 gpt4 写 诗: three of four; 写诗 of three bigrams; 用 写 诗
    assert rouge_n("用GPT写诗", "用GPT4写诗", 1).f1 == pytest.approx(3 / 4)
    assert rouge_n("用GPT写诗", "用GPT4写诗", 2).f1 == pytest.approx(1 / 3)
    assert rouge_l("用GPT写诗", "用GPT4写诗").f1 == pytest.approx(3 / 4)


@pytest.mark.parametrize("output, reference", [("", "a b"), ("a b", ""), ("", ""), ("。", "，"), ("a", "b")])
def test_nothing_in_common(output: str, reference: str) -> None:
    for found in (rouge_n(output, reference, 1), rouge_n(output, reference, 2), rouge_l(output, reference)):
        assert _numbers(found) == (0.0, 0.0, 0.0)


def test_one_word_has_no_bigram() -> None:
    assert rouge_n("cat", "cat", 1).f1 == 1.0
    assert rouge_n("cat", "cat", 2).f1 == 0.0
    with pytest.raises(ValueError, match="1 or more, got 0"):
        rouge_n("cat", "cat", 0)


# ---- against rouge-score --------------------------------------------------------------------------------------------

LATIN = st.lists(
    st.sampled_from(["the", "cat", "Cat's", "sat", "on", "a", "mat,", "x_y", "3.5", "U.S.", "café", "Ünder", "m²", "—", "ﬁne"]), max_size=14
).map(" ".join) | st.text(st.characters(max_codepoint=0x24F), max_size=40)  # fmt: skip


@given(LATIN, LATIN)
@settings(max_examples=300, deadline=None)
def test_latin_letters_score_as_in_rouge_score(output: str, reference: str) -> None:
    expected = RougeScorer(["rouge1", "rouge2", "rouge3", "rougeL"]).score(reference, output)
    for kind, found in (
        ("rouge1", rouge_n(output, reference, 1)),
        ("rouge2", rouge_n(output, reference, 2)),
        ("rouge3", rouge_n(output, reference, 3)),
        ("rougeL", rouge_l(output, reference)),
    ):
        right = expected[kind]
        assert _numbers(found) == pytest.approx((right.precision, right.recall, right.fmeasure)), kind


# ---- the subsequence ------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 3), max_size=150), st.lists(st.integers(0, 3), max_size=150))
@settings(max_examples=150, deadline=None)
def test_bits_find_what_the_table_finds(first: list[int], second: list[int]) -> None:
    assert lcs_length(first, second) == naive_lcs(first, second)


@given(st.text("abc", max_size=30), st.text("abc", max_size=30), st.text("abc", max_size=10))
def test_what_holds_of_every_subsequence(first: str, second: str, third: str) -> None:
    length = lcs_length(first, second)
    assert length == lcs_length(second, first) == lcs_length(first[::-1], second[::-1])
    assert lcs_length(first, first) == len(first)
    assert lcs_length(first + third, second + third) == length + len(third)
    assert lcs_length(first, "".join(c for c in first if c != "a")) == len(first) - first.count("a")


def test_long_texts() -> None:
    generator = np.random.default_rng(0)
    first, second = (generator.integers(0, 50, size).tolist() for size in (700, 900))
    assert lcs_length(first, second) == naive_lcs(first, second)


# ---- many texts -----------------------------------------------------------------------------------------------------

OUTPUTS = ["the cat sat on the mat", "我喜欢读书", "", "a b c", "hello there world"]
REFERENCES = ["a cat sat on a mat", "我喜欢看好书", "nothing was said", "a b c", "world hello there"]


def test_scores_are_means_over_texts() -> None:
    scores = score_summaries(OUTPUTS, REFERENCES, seed=4)
    for kind, score, each in (
        ("rouge1", scores.rouge1, [rouge_n(o, r, 1) for o, r in zip(OUTPUTS, REFERENCES, strict=True)]),
        ("rouge2", scores.rouge2, [rouge_n(o, r, 2) for o, r in zip(OUTPUTS, REFERENCES, strict=True)]),
        ("rougeL", scores.rougeL, [rouge_l(o, r) for o, r in zip(OUTPUTS, REFERENCES, strict=True)]),
    ):
        assert score.value == pytest.approx(np.mean([found.f1 for found in each]))
        assert scores.precision[kind].value == pytest.approx(np.mean([found.precision for found in each]))
        assert scores.recall[kind].value == pytest.approx(np.mean([found.recall for found in each]))
        assert score.low < score.value < score.high
        assert (score.n, score.seed) == (5, 4)
    assert score_summaries(OUTPUTS, REFERENCES, seed=4) == scores


def test_the_interval_is_that_of_the_mean() -> None:
    f1 = [rouge_n(o, r, 1).f1 for o, r in zip(OUTPUTS, REFERENCES, strict=True)]
    places = np.random.default_rng(4).integers(0, 5, size=(1000, 5))
    low, high = np.quantile(np.array(f1)[places].mean(axis=1), [0.025, 0.975])
    found = score_summaries(OUTPUTS, REFERENCES, seed=4).rouge1
    assert (found.low, found.high) == pytest.approx((low, high))


def test_as_json() -> None:
    found = score_summaries(OUTPUTS, REFERENCES).to_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["n"] == 5
    assert set(found["rougeL"]) == {"value", "low", "high", "n", "seed"}
    assert found["rouge1"]["value"] != found["rouge1_recall"]["value"]
    one = score_summaries(OUTPUTS[:1], REFERENCES[:1]).to_dict()
    assert one["rouge1"]["value"] > 0 and one["rouge1"]["low"] is None


@pytest.mark.parametrize(
    "outputs, references, where",
    [(["a"], ["a", "b"], "outputs and references"), ([], [], "outputs"), ("ab", ["a", "b"], "outputs"), ([1], ["a"], "output 1")],
)  # fmt: skip
def test_what_cannot_be_scored(outputs: list[str], references: list[str], where: str) -> None:
    with pytest.raises(InputError) as caught:
        score_summaries(outputs, references)
    error = caught.value
    assert error.where == where
    assert error.what and error.why and error.mend
