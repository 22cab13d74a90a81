"""Scores of replies: ranking among ten, the rules, TF-IDF beside scikit-learn, what is said of written replies."""

from __future__ import annotations

import numpy as np
import pytest

from zhixing.errors import InputError
from zhixing.evaluation.dialogue import (
    RULES,
    TfIdf,
    choose_rule,
    distinct,
    draw_candidates,
    hits,
    language_of,
    log_mean_exp,
    mean_score,
    reply_scores,
    tfidf_scores,
)

REPLIES = [f"reply number {n} of {'abcdefgh'[n % 8]}" for n in range(40)]


def test_candidates_are_the_true_one_and_nine_that_say_something_else() -> None:
    replies = [*REPLIES, *["Yes."] * 20, *["yes. "] * 20]
    found = draw_candidates(replies, seed=1)
    assert found.shape == (80, 10)
    assert (found[:, 0] == np.arange(80)).all()
    for row in found.tolist():
        assert len({replies[i].casefold().strip() for i in row}) == 10
    assert (found == draw_candidates(replies, seed=1)).all()
    assert (found != draw_candidates(replies, seed=2)).any()
    with pytest.raises(InputError, match="10 different replies"):
        draw_candidates(["a"] * 50 + REPLIES[:8], seed=0)


def test_ties_are_shared() -> None:
    scores = np.zeros((3, 10))
    scores[0, 0] = 1
    scores[2, 5] = 1
    assert hits(scores).tolist() == [1.0, 0.1, 0.0]
    drawn = np.random.default_rng(0).normal(size=(20_000, 10))
    assert float(hits(drawn).mean()) == pytest.approx(0.1, abs=0.01)
    assert mean_score(hits(scores), seed=0).value == pytest.approx(1.1 / 3)


def test_the_rule_that_undoes_what_is_common_is_chosen() -> None:
    """What is common is probable after anything; what belongs to a statement is more so after it."""
    draw = np.random.default_rng(0)
    tokens = draw.integers(2, 9, (300, 10)).astype(np.float64)
    prior = -3.0 * tokens + draw.normal(scale=6.0, size=(300, 10))
    given = prior + draw.normal(scale=0.5, size=(300, 10))
    given[:, 0] += 2.0
    each = {name: float(hits(rule(given, tokens, prior)).mean()) for name, (_, rule) in RULES.items()}
    assert choose_rule(given, tokens, prior) == "pmi"
    assert each["pmi"] > 0.9 > each["half_pmi"] > each["sum"]


def test_a_mean_of_probabilities_by_their_logarithms() -> None:
    logs = np.log(np.array([[0.5, 0.1], [1e-300, 1e-300]]))
    assert log_mean_exp(logs) == pytest.approx([np.log(0.3), np.log(1e-300)])
    assert log_mean_exp(np.array([[-5000.0, -5000.0]])) == pytest.approx([-5000.0])


def test_tfidf_is_scikit_learns() -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer

    draw = np.random.default_rng(0)
    vocabulary = [f"w{n}" for n in range(30)]
    texts = [" ".join(draw.choice(vocabulary, 8)) for _ in range(60)]
    asked, answers = texts[:12], [" ".join(draw.choice([*vocabulary, "new"], 6)) for _ in range(12)]
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b").fit(texts)
    expected = (vectorizer.transform(asked) @ vectorizer.transform(answers).T).toarray()
    candidates = draw_candidates(answers, seed=0)
    training = list(zip(texts[::2], texts[1::2], strict=True))
    found = tfidf_scores(asked, answers, candidates, training)
    assert found["tfidf"] == pytest.approx(np.take_along_axis(expected, candidates, axis=1))
    statements = vectorizer.transform([statement for statement, _ in training])
    nearest = [training[int(i)][1] for i in (vectorizer.transform(asked) @ statements.T).toarray().argmax(axis=1)]
    by_reply = (vectorizer.transform(nearest) @ vectorizer.transform(answers).T).toarray()
    same = found["tfidf_nearest"] == pytest.approx(np.take_along_axis(by_reply, candidates, axis=1))
    agree = np.isclose(found["tfidf_nearest"], np.take_along_axis(by_reply, candidates, axis=1)).all(axis=1)
    assert same or agree.mean() > 0.7  # the memory weighs by statements alone, so some nearest ones differ
    assert TfIdf(texts).vector("nothing known") == {}


def test_distinct_runs_over_all_replies() -> None:
    assert distinct(["i do not know"] * 4, 1) == 4 / 16
    assert distinct(["i do not know"] * 4, 2) == 3 / 12
    assert distinct(["我不知道", "我不去"], 1) == 5 / 7
    assert distinct(["one"], 2) == 0.0


def test_what_is_told_of_written_replies() -> None:
    given = ["good morning to you", "i have no idea at all", "he went home last night"]
    same = reply_scores(given, given, seed=0)
    assert same["bleu"]["value"] == pytest.approx(100.0)
    assert same["distinct_1"] == same["given_distinct_1"]
    assert same["length"]["value"] == pytest.approx(same["given_length"]) == pytest.approx(5.0)
    dull = reply_scores(["no no no no no no no no"] * 3, given, seed=0)
    assert dull["repeated"]["value"] == 1.0 and dull["distinct_1"] == pytest.approx(1 / 24)
    assert dull["bleu"]["value"] < 5
    assert (same["language"], language_of(["你好吗？", "ok"])) == ("en", "zh")
    assert "tok:zh" in reply_scores(["你好"], ["你好吗"], seed=0)["signatures"]["bleu"]
