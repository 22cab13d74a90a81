"""Scores of translations: by hand, against sacreBLEU on the very strings that a bootstrap draws, and their edges."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER

from zhixing.errors import InputError
from zhixing.evaluation.intervals import draw_counts
from zhixing.evaluation.translation import (
    bleu_from_sums,
    bleu_tokenizer,
    chrf_from_sums,
    compare_translations,
    count_translations,
    is_untranslated,
    repeats_itself,
    score_translations,
    table_scores,
    ter_from_sums,
)

ROOT = Path(__file__).parent.parent
SOURCES = ["猫坐在垫子上。", "你好，世界！", "他昨天买了三本书。", "天气很好。", "我不知道。"]
REFERENCES = [
    "the cat sat on a mat .",
    "Hello, world!",
    "Yesterday he bought three books.",
    "The weather is good.",
    "I do not know.",
]
FIRST = ["the cat sat on the mat .", "Hello world.", "He bought three books yesterday.", "Weather good.", ""]
SECOND = [
    "a cat sat on a mat .",
    "Hello, world!",
    "Yesterday he bought books.",
    "The weather is nice.",
    "I do not know it.",
]


def _by_sacrebleu(outputs: list[str], references: list[str], language: str) -> dict[str, float]:
    tokenizer = {"zh": "zh", "ja": "char"}.get(language, "13a")
    cut = language in {"zh", "ja"}
    metrics = {"bleu": BLEU(tokenize=tokenizer), "chrf": CHRF(), "ter": TER(normalized=cut, asian_support=cut)}
    return {name: metric.corpus_score(outputs, [references]).score for name, metric in metrics.items()}


def _values(outputs: list[str], references: list[str], language: str) -> dict[str, float]:
    table = count_translations(outputs, references, language=language)
    return {name: float(value[0]) for name, value in table_scores(table, np.ones((1, len(outputs)))).items()}


# ---- by hand --------------------------------------------------------------------------------------------------------


def test_bleu_and_ter_by_hand() -> None:
    # n-grams matched: 5 of 6 (one "the" of two), 3 of 5, 2 of 4, 1 of 3; product 1 / 12; one word of six is another
    found = _values(["the cat sat on the mat"], ["the cat sat on a mat"], "en")
    assert found["bleu"] == pytest.approx(100 * (1 / 12) ** 0.25)
    assert found["ter"] == pytest.approx(100 / 6)
    assert found["length_ratio"] == 1.0


def test_brevity_and_smoothing_by_hand() -> None:
    # 4 of 4, 2 of 3, 0 of 2 -> 1/2 of 2, 0 of 1 -> 1/4 of 1; four tokens for six: exp(1 - 6/4)
    found = _values(["a b d e"], ["a b c d e f"], "en")
    assert found["bleu"] == pytest.approx(100 * math.exp(-0.5) * (1 * 2 / 3 * 0.25 * 0.25) ** 0.25)
    assert found["length_ratio"] == pytest.approx(4 / 6)


def test_chrf_by_hand() -> None:
    # abc and abd: 2 of 3, 1 of 2, 0 of 1, and no longer n-grams: precision = recall = (2/3 + 1/2) / 3
    assert _values(["abc"], ["abd"], "en")["chrf"] == pytest.approx(100 * 7 / 18)
    # abc and ab: precision (2/3 + 1/2) / 2 = 7/12 over the two orders of the reference, recall 1; 5 P R / (4 P + R)
    assert _values(["abc"], ["ab"], "en")["chrf"] == pytest.approx(100 * 5 * (7 / 12) / (4 * 7 / 12 + 1))


def test_a_moved_block_is_one_edit() -> None:
    assert _values(["c d e a b"], ["a b c d e"], "en")["ter"] == pytest.approx(100 / 5)


def test_chinese_is_counted_by_character() -> None:
    found = _values(["我喜欢看书"], ["我喜欢读书"], "zh")  # one of five; n-grams 4/5, 2/4, 1/3, and 1/2 of 2
    assert found["ter"] == pytest.approx(100 / 5)
    assert found["bleu"] == pytest.approx(100 * (4 / 5 * 2 / 4 * 1 / 3 * 1 / 4) ** 0.25)
    assert _values(["我喜欢看书"], ["我喜欢读书"], "en")["bleu"] == 0.0  # one word, and a wrong one


@pytest.mark.parametrize(
    "language, tokenizer",
    [("zh", "zh"), ("zh-CN", "zh"), ("zh_Hant", "zh"), ("ZH", "zh"), ("cmn", "zh"), ("ja", "char"), ("ja-JP", "char"),
     ("en", "13a"), ("de", "13a"), ("ko", "13a"), ("", "13a"), ("zha", "13a")],
)  # fmt: skip
def test_the_tokenizer_of_a_language(language: str, tokenizer: str) -> None:
    assert bleu_tokenizer(language) == tokenizer


def test_signatures_say_how_it_was_counted() -> None:
    english = count_translations(["a"], ["a"], language="en").signatures
    assert "tok:13a" in english["bleu"] and "eff:no" in english["bleu"] and "nrefs:1" in english["bleu"]
    assert "nc:6" in english["chrf"] and "nw:0" in english["chrf"]
    assert "asian:no" in english["ter"]
    chinese = count_translations(["好"], ["好"], language="zh").signatures
    assert "tok:zh" in chinese["bleu"] and "norm:yes" in chinese["ter"] and "asian:yes" in chinese["ter"]
    assert "tok:char" in count_translations(["です"], ["です"], language="ja").signatures["bleu"]
    assert set(count_translations(["a"], ["a"], language="en", with_ter=False).signatures) == {"bleu", "chrf"}


@pytest.mark.parametrize(
    "output, source, alike",
    [("Hello World", "hello  world ", True), ("你 好", "你好", True), ("STRASSE", "straße", True), ("Hello", "Hello!", False),
     ("", "", False), (" ", "", False), ("", "hello", False)],
)  # fmt: skip
def test_untranslated(output: str, source: str, alike: bool) -> None:
    assert is_untranslated(output, source) is alike


@pytest.mark.parametrize(
    "text, language, repeats",
    [("a b c d a b c d a b c d", "en", True), ("a b c d x a b c d y A B C D", "en", True), ("a b c d a b c d", "en", False),
     ("a b c a b c a b c", "en", False), ("a b c a b c a b c a b c", "en", True), ("no no no no no no", "en", True),
     ("no no no no no", "en", False), ("", "en", False), ("人工智能是人工智能和人工智能", "zh", True),
     ("人工智能是人工智能", "zh", False), ("人工 智能 人工 智能 人工 智能", "zh-CN", True), ("人工智能是人工智能和人工智能", "en", False),
     ("これはこれはこれはこ", "ja", True)],
)  # fmt: skip
def test_repetition(text: str, language: str, repeats: bool) -> None:
    assert repeats_itself(text, language) is repeats


def test_rates_are_shares_of_the_texts() -> None:
    outputs = ["Guten Tag", "good day", "x y z w x y z w x y z w", "ok"]
    references = ["good day", "good day", "a b", "b b b b b b"]
    scores = score_translations(outputs, references, language="en", sources=["guten  tag", "Guten Tag", "x", "y"])
    assert scores.untranslated is not None
    assert (scores.untranslated.value, scores.repeated.value, scores.repeated_references) == (0.25, 0.25, 0.25)
    assert score_translations(outputs, references, language="en").untranslated is None


# ---- against sacreBLEU ----------------------------------------------------------------------------------------------

WORDS = {
    "en": ["the", "cat", "sat", "on", "a", "mat", ",", "The", "don't", "3.5", "end."],
    "zh": ["我", "喜", "欢", "读", "书", "，", "。", "A", " b", "3.5", "“"],
    "ja": ["私", "は", "本", "を", "読", "む", "。", "カ", "ナ", "x", " y"],
}


@st.composite
def _corpora(draw: st.DrawFn) -> tuple[str, list[str], list[str]]:
    language = draw(st.sampled_from(sorted(WORDS)))
    text = st.lists(st.sampled_from(WORDS[language]), max_size=9).map((" " if language == "en" else "").join)
    pairs = draw(st.lists(st.tuples(text, text), min_size=1, max_size=5))
    return language, [output for output, _ in pairs], [reference for _, reference in pairs]


@given(_corpora())
@settings(max_examples=150, deadline=None)
def test_scores_are_those_of_sacrebleu(corpus: tuple[str, list[str], list[str]]) -> None:
    language, outputs, references = corpus
    found = _values(outputs, references, language)
    for name, value in _by_sacrebleu(outputs, references, language).items():
        assert found[name] == pytest.approx(value, abs=1e-9), name


def test_every_draw_is_scored_as_its_strings_would_be() -> None:
    table = count_translations(FIRST, REFERENCES, language="en", sources=SOURCES)
    (drawn,) = draw_counts(np.ones(5), seed=3, resamples=40)
    found = table_scores(table, drawn)
    for row, counts in enumerate(drawn.astype(int)):
        outputs = [text for text, times in zip(FIRST, counts, strict=True) for _ in range(times)]
        references = [text for text, times in zip(REFERENCES, counts, strict=True) for _ in range(times)]
        for name, value in _by_sacrebleu(outputs, references, "en").items():
            assert found[name][row] == pytest.approx(value), name


def test_counting_goes_on_beyond_one_block() -> None:
    outputs, references = FIRST * 40, REFERENCES * 40  # 200 sentences
    found = _values(outputs, references, "en")
    for name, value in _by_sacrebleu(outputs, references, "en").items():
        assert found[name] == pytest.approx(value), name


# ---- intervals and pairs --------------------------------------------------------------------------------------------


def test_intervals_hold_the_value_and_follow_the_seed() -> None:
    scores = score_translations(FIRST, REFERENCES, language="en", sources=SOURCES, seed=1)
    for name in ("bleu", "chrf", "ter", "length_ratio"):
        score = getattr(scores, name)
        assert score.low < score.value < score.high, name
        assert (score.n, score.seed) == (5, 1)
    assert score_translations(FIRST, REFERENCES, language="en", sources=SOURCES, seed=1) == scores
    other = score_translations(FIRST, REFERENCES, language="en", sources=SOURCES, seed=2)
    assert other.bleu.value == scores.bleu.value and other.bleu.high != scores.bleu.high


def test_p_is_the_share_of_draws_in_which_the_better_is_not_better() -> None:
    found = compare_translations(FIRST, SECOND, REFERENCES, language="en", seed=5, resamples=60)
    (drawn,) = draw_counts(np.ones(5), seed=5, resamples=60)
    differences: dict[str, list[float]] = {"bleu": [], "chrf": [], "ter": []}
    for counts in drawn.astype(int):
        first, second, references = (
            [text for text, times in zip(texts, counts, strict=True) for _ in range(times)]
            for texts in (FIRST, SECOND, REFERENCES)
        )
        a, b = _by_sacrebleu(first, references, "en"), _by_sacrebleu(second, references, "en")
        for name in differences:
            differences[name].append(b[name] - a[name])
    for name, draws in differences.items():
        sign = -1 if name == "ter" else 1  # the second is better by all three
        assert found.difference[name].value * sign > 0
        assert found.p[name] == np.mean([sign * draw <= 1e-9 for draw in draws]), name
        assert found.difference[name].low == pytest.approx(np.quantile(draws, 0.025)), name
    assert 0 < found.p["bleu"] + found.p["chrf"] + found.p["ter"] < 0.5


def test_a_comparison_turned_round() -> None:
    there = compare_translations(FIRST, SECOND, REFERENCES, language="en")
    back = compare_translations(SECOND, FIRST, REFERENCES, language="en")
    assert there.p == back.p
    for name, difference in there.difference.items():
        assert difference.value == -back.difference[name].value
        assert difference.low == pytest.approx(-back.difference[name].high)
        assert difference.value == there.second[name].value - there.first[name].value
    alone = score_translations(FIRST, REFERENCES, language="en")
    assert (there.first["bleu"], there.first["ter"]) == (alone.bleu, alone.ter)


def test_a_system_is_no_better_than_itself() -> None:
    same = compare_translations(FIRST, FIRST, REFERENCES, language="en", sources=SOURCES)
    assert same.p == {"bleu": 1.0, "chrf": 1.0, "ter": 1.0}
    assert all((d.value, d.low, d.high) == (0, 0, 0) for d in same.difference.values())
    assert set(same.difference) == {"bleu", "chrf", "ter", "length_ratio", "untranslated", "repeated"}


def test_pairing_makes_a_difference_surer() -> None:
    """Hard and easy sentences; the second system mends one word in each of the hard ones."""
    references = [f"w{i} x{i} y{i} z{i} a{i} b{i}" for i in range(60)]
    first = [r if i % 2 else r.replace("w", "q").replace("x", "q").replace("y", "q") for i, r in enumerate(references)]
    second = [r if i % 2 else r.replace("w", "q").replace("x", "q") for i, r in enumerate(references)]
    found = compare_translations(first, second, references, language="en")
    width = {name: score.high - score.low for name, score in
             (("difference", found.difference["chrf"]), ("first", found.first["chrf"]))}  # fmt: skip
    assert width["difference"] < width["first"] / 2
    assert found.p["chrf"] == 0.0
    assert found.difference["chrf"].low > 0


# ---- edges ----------------------------------------------------------------------------------------------------------


def test_perfect_and_empty_outputs() -> None:
    perfect = score_translations(REFERENCES, REFERENCES, language="en")
    assert perfect.ter is not None
    assert (perfect.bleu.value, perfect.chrf.value, perfect.ter.value) == pytest.approx((100, 100, 0))
    assert perfect.bleu.low == pytest.approx(100)
    empty = score_translations([""] * 5, REFERENCES, language="en")
    assert empty.ter is not None
    assert (empty.bleu.value, empty.chrf.value, empty.ter.value, empty.length_ratio.value) == (0, 0, 100, 0)


def test_empty_references() -> None:
    said = score_translations(["a b c d e"] * 2, ["", ""], language="en")
    assert said.ter is not None
    assert (said.bleu.value, said.chrf.value, said.ter.value) == (0, 0, 100)
    assert math.isnan(said.length_ratio.value) and said.to_dict()["length_ratio"]["value"] is None
    silent = score_translations([""] * 2, [""] * 2, language="en")
    assert silent.ter is not None
    assert (silent.bleu.value, silent.chrf.value, silent.ter.value) == (0, 0, 0)


def test_one_pair_has_a_value_and_no_interval() -> None:
    one = score_translations(FIRST[:1], REFERENCES[:1], language="en").to_dict()
    assert one["bleu"]["value"] > 40 and one["bleu"]["low"] is None and one["bleu"]["high"] is None
    assert one["n"] == 1


def test_without_ter() -> None:
    scores = score_translations(FIRST, REFERENCES, language="en", with_ter=False)
    assert scores.ter is None and scores.to_dict()["ter"] is None
    assert scores.bleu == score_translations(FIRST, REFERENCES, language="en").bleu
    assert set(compare_translations(FIRST, SECOND, REFERENCES, language="en", with_ter=False).p) == {"bleu", "chrf"}


def test_as_json() -> None:
    scores = score_translations(FIRST, REFERENCES, language="en", sources=SOURCES).to_dict()
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores
    assert set(scores) >= {"bleu", "chrf", "ter", "length_ratio", "untranslated", "repeated", "signatures", "n", "seed"}
    compared = compare_translations(FIRST, SECOND, REFERENCES, language="en").to_dict()
    assert json.loads(json.dumps(compared, allow_nan=False)) == compared
    assert compared["scores"]["bleu"]["p"] is not None and compared["scores"]["repeated"]["p"] is None


@given(st.lists(st.integers(0, 20), min_size=3, max_size=3), st.integers(0, 30), st.integers(0, 30))
def test_scores_of_any_sums_stay_in_their_bounds(matched: list[int], length: int, reference: int) -> None:
    met = np.maximum(length - np.arange(4), 0)
    got = np.minimum([length, *matched], met)
    assert 0 <= bleu_from_sums(np.array([length, reference, *got, *met], np.float64)) <= 100 + 1e-9
    rows = [(max(length - k, 0), max(reference - k, 0), max(min(length, reference) - 2 * k, 0)) for k in range(6)]
    assert 0 <= chrf_from_sums(np.array(rows, np.float64).ravel()) <= 100 + 1e-9
    assert ter_from_sums(np.array([length, reference], np.float64)) >= 0


@pytest.mark.parametrize(
    "outputs, references, sources, said",
    [
        (["a", "b", "c"], ["a", "b"], None, ("outputs and references", "3 outputs and 2 references", "one reference for each")),
        (["a"], ["a"], ["x", "y"], ("outputs and sources", "1 outputs and 2 sources", "one source for each")),
        ([], [], None, ("outputs", "empty", "at least one pair")),
        ("abc", ["a", "b", "c"], None, ("outputs", "characters", "in a list")),
        (["a", "b"], "ab", None, ("references", "characters", "in a list")),
        (["a", None], ["a", "b"], None, ("output 2", "None", "give strings")),
        (["a", "b"], [float("nan"), "b"], None, ("reference 1", "nan", "give strings")),
    ],
)  # fmt: skip
def test_what_cannot_be_scored(
    outputs: list[str], references: list[str], sources: list[str] | None, said: tuple[str, str, str]
) -> None:
    with pytest.raises(InputError) as caught:
        score_translations(outputs, references, language="en", sources=sources)
    where, why, mend = said
    assert caught.value.what
    assert caught.value.where == where
    assert why in caught.value.why and mend in caught.value.mend
    if sources is None:
        with pytest.raises(InputError):
            compare_translations(outputs, outputs, references, language="en")


def test_sacrebleu_is_imported_when_something_is_counted() -> None:
    code = (
        "import sys; sys.path.insert(0, 'src'); import zhixing, zhixing.evaluation.translation as t; "
        "print('sacrebleu' in sys.modules); t.count_translations(['a'], ['a'], language='en'); "
        "print('sacrebleu' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["False", "True"]
