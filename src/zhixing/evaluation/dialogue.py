"""How good replies are: whether the true one is told from others, and what the written ones are like.

hits at 1 of 10     the true reply among nine replies to other statements, drawn by a seed: how often it is ranked first
distinct-1, -2      different words (pairs of neighbours) by all of them, over all replies (Li et al. 2016, 5.2)
length              words a reply
repeated            the share of replies of which 4 words in a row come 3 times or more
BLEU                beside the one reply that was given; a statement has many good ones, so it says little

A generative model's log p(r | x) favours what is common and short, whatever the statement. So a rule makes a score of
three numbers (`RULES`): log p(r | x), the reply's length in tokens, and log p(r), the mean of p(r | x') over some
training statements x'. With log p(r | x) - log p(r) it is their mutual information (Li et al. 2016, equation 8 with
lambda = 1). Which rule is used is chosen on validation exchanges, never on those that are measured.

Beside it stands what needs no model: the cosine of TF-IDF between the statement and the candidate, or between the
candidate and the reply to the nearest training statement. N exchanges, C candidates of each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zhixing.errors import InputError
from zhixing.evaluation.intervals import Floats, Score, bootstrap_interval
from zhixing.evaluation.text_baselines import TranslationMemory, words
from zhixing.evaluation.translation import repeats_itself, score_translations

CANDIDATES = 10
PREFERENCE = {  # what is measured of preferences (`preference_scores`), and its two names
    "reward_accuracy": ("reward accuracy", "奖励准确率"),
    "reward_margin": ("reward margin", "奖励差"),
    "preference_loss": ("preference loss", "偏好损失"),
    "preferred": ("preferred reply more probable", "偏好回复概率更高"),
    "log_p_chosen": ("log p of preferred replies", "偏好回复的对数概率"),
    "log_p_rejected": ("log p of other replies", "其他回复的对数概率"),
}

Rule = Callable[[Floats, Floats, Floats], Floats]  # log p(r | x), tokens, log p(r), each (N, C) -> scores (N, C)
RULES: dict[str, tuple[str, Rule]] = {
    "sum": ("log p(r | x)", lambda given, tokens, prior: given),
    "mean": ("log p(r | x) a token", lambda given, tokens, prior: given / tokens),
    "half_pmi": ("log p(r | x) - 0.5 log p(r)", lambda given, tokens, prior: given - 0.5 * prior),
    "pmi": ("log p(r | x) - log p(r)", lambda given, tokens, prior: given - prior),
    "mean_pmi": ("(log p(r | x) - log p(r)) a token", lambda given, tokens, prior: (given - prior) / tokens),
    "root_pmi": (
        "(log p(r | x) - log p(r)) over the root of its tokens",
        lambda given, tokens, prior: (given - prior) / np.sqrt(tokens),
    ),
}


def draw_candidates(replies: Sequence[str], seed: int, count: int = CANDIDATES) -> NDArray[np.int64]:
    """(N, count) indices of replies: each exchange's own first, then others that say something else, by the seed.

    InputError: fewer different replies than that.
    """
    keys = [" ".join(reply.casefold().split()) for reply in replies]
    different = len(set(keys))
    if different < count:
        raise InputError(
            f"{count} different replies are needed to rank one among them",
            why=f"there are {different}",
            mend="hold out more conversations",
        )
    draw = np.random.default_rng([seed, 10])
    found = np.empty((len(replies), count), np.int64)
    for row, key in enumerate(keys):
        chosen, said = [row], {key}
        while len(chosen) < count:
            other = int(draw.integers(len(replies)))
            if keys[other] not in said:
                chosen.append(other)
                said.add(keys[other])
        found[row] = chosen
    return found


def hits(scores: Floats) -> Floats:
    """(N, C), the true one first -> (N,): 1 where it alone is highest, 1/k where k are equally high, else 0.

    >>> hits(np.array([[2.0, 1.0], [1.0, 1.0], [0.0, 1.0]])).tolist()
    [1.0, 0.5, 0.0]
    """
    best = scores >= scores.max(axis=1, keepdims=True) - 1e-12
    result: Floats = best[:, 0] / best.sum(axis=1)
    return result


def mean_score(values: Floats, seed: int) -> Score:
    """The mean with its interval."""
    low, high = bootstrap_interval(values, np.ones(len(values)), seed)
    return Score(float(values.mean()), low, high, len(values), seed)


def choose_rule(given: Floats, tokens: Floats, prior: Floats) -> str:
    """The rule with the most hits; of equals the first."""
    return max(RULES, key=lambda name: float(hits(RULES[name][1](given, tokens, prior)).mean()))


def log_mean_exp(logs: Floats) -> Floats:
    """log of the mean of e^x over the last axis, without an overflow: (..., K) -> (...)."""
    top = logs.max(axis=-1, keepdims=True)
    result: Floats = (top + np.log(np.exp(logs - top).mean(axis=-1, keepdims=True)))[..., 0]
    return result


# ---- what needs no model

TFIDF: dict[str, str] = {
    "tfidf": "TF-IDF, statement and reply",
    "tfidf_nearest": "TF-IDF, nearest statement's",
}


def tfidf_scores(
    statements: Sequence[str],
    replies: Sequence[str],
    candidates: NDArray[np.int64],
    training: Sequence[tuple[str, str]],
) -> dict[str, Floats]:
    """The scores (N, C) of each way of TFIDF. `training`: statements and replies, whose words have the weights."""
    said = [text for pair in training for text in pair]
    weights = TfIdf(said)
    asked, answers = [weights.vector(text) for text in statements], [weights.vector(text) for text in replies]
    memory = TranslationMemory([statement for statement, _ in training], [reply for _, reply in training])
    nearest = [weights.vector(text) for text in memory.answer(statements)]
    found = {}
    for name, own in (("tfidf", asked), ("tfidf_nearest", nearest)):
        rows = [[_cosine(own[row], answers[i]) for i in places] for row, places in enumerate(candidates.tolist())]
        found[name] = np.array(rows)
    return found


class TfIdf:
    """Vectors of texts: words and pairs of neighbours, tf (ln((1 + N) / (1 + df)) + 1), of length 1.

    As scikit-learn's TfidfVectorizer with ngram_range (1, 2), but that words of one letter count: terms that are in no
    training text count for nothing.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        met: Counter[str] = Counter()
        for text in texts:
            met.update(set(_terms(text)))
        self.met, self.n = met, len(texts)

    def vector(self, text: str) -> dict[str, float]:
        counts = Counter(term for term in _terms(text) if term in self.met)
        row = {term: times * (np.log((1 + self.n) / (1 + self.met[term])) + 1) for term, times in counts.items()}
        size = float(np.sqrt(sum(weight * weight for weight in row.values())))
        return {term: float(weight) / size for term, weight in row.items()}


def _terms(text: str) -> list[str]:
    found = words(text)
    return found + [f"{a} {b}" for a, b in pairwise(found)]


def _cosine(first: dict[str, float], second: dict[str, float]) -> float:
    if len(second) < len(first):
        first, second = second, first
    return sum(weight * second[term] for term, weight in first.items() if term in second)


# ---- whether the preferred reply is the more probable one


def preference_scores(given: Floats, reference: Floats | None, beta: float, seed: int) -> dict[str, Any]:
    """Of log p of each pair's preferred reply and of the other, (N, 2) nats, by the model and by the reference.

    preferred           the share of pairs of which the preferred reply is the more probable; `start_` by the reference
    preference_loss     DPO's loss, log 2 for the reference itself (Rafailov et al. 2023, equation 7)
    reward_accuracy     the share of which the reward beta (log p - log p_ref) of the preferred one is the higher
    reward_margin       how much higher
    log_p_chosen, log_p_rejected    nats a reply; `start_` by the reference

    Without a reference the first and the last two.
    """

    def sides(log_p: Floats) -> dict[str, Floats]:
        return {"preferred": (log_p[:, 0] > log_p[:, 1]).astype(np.float64), "log_p_chosen": log_p[:, 0],
                "log_p_rejected": log_p[:, 1]}  # fmt: skip

    each = sides(given)
    if reference is not None:
        rewards = beta * (given - reference)  # (N, 2)
        margins = rewards[:, 0] - rewards[:, 1]
        each |= {
            "preference_loss": np.logaddexp(0.0, -margins),  # -log sigmoid
            "reward_accuracy": (margins > 0).astype(np.float64),
            "reward_margin": margins,
            **{f"start_{name}": values for name, values in sides(reference).items()},
        }
    found = {name: mean_score(values, seed).to_dict() for name, values in each.items()}
    return {**found, "pairs": len(given)}


# ---- what written replies are like


def distinct(texts: Sequence[str], n: int) -> float:
    """Different runs of n words over all of them, in all texts together.

    >>> distinct(["yes yes", "no"], 1), distinct(["I do", "I do not"], 2)
    (0.6666666666666666, 0.6666666666666666)
    """
    runs = [tuple(found[i : i + n]) for found in map(words, texts) for i in range(len(found) - n + 1)]
    return len(set(runs)) / len(runs) if runs else 0.0


def language_of(texts: Sequence[str]) -> str:
    """ "zh" where most words are Chinese characters, else "en": for the tokens of BLEU."""
    found = [word for text in texts[:1000] for word in words(text)]
    chinese = sum("\u3400" <= word[0] <= "\u9fff" for word in found)
    return "zh" if 2 * chinese > len(found) else "en"


def reply_scores(written: Sequence[str], given: Sequence[str], seed: int) -> dict[str, Any]:
    """distinct-1 and -2, length, repeated and BLEU of the written replies; the first three of the given ones too."""
    language = language_of(given)
    bleu = score_translations(written, given, language=language, with_ter=False, seed=seed)
    repeated = np.array([repeats_itself(text, language) for text in written], np.float64)
    lengths = np.array([len(words(text)) for text in written], np.float64)
    return {
        "distinct_1": distinct(written, 1),
        "distinct_2": distinct(written, 2),
        "length": mean_score(lengths, seed).to_dict(),
        "repeated": mean_score(repeated, seed).to_dict(),
        "bleu": bleu.bleu.to_dict(),
        "given_distinct_1": distinct(given, 1),
        "given_distinct_2": distinct(given, 2),
        "given_length": float(np.mean([len(words(text)) for text in given])),
        "signatures": {"bleu": bleu.signatures["bleu"]},
        "language": language,
    }
