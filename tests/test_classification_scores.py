"""Scores of classifiers: by hand, against scikit-learn and scipy on random cases, and what must always hold."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics

from zhixing.errors import InputError
from zhixing.evaluation import intervals
from zhixing.evaluation.calibration import reliability
from zhixing.evaluation.classification import (
    averages,
    brier_scores,
    classification_scores,
    confusion_matrix,
    log_losses,
    matthews,
    multilabel_scores,
)
from zhixing.evaluation.classification_result import (
    ClassificationResult,
    baselines,
    mistakes,
    result_reliability,
    result_scores,
)
from zhixing.evaluation.comparison import compare, comparison_text, mcnemar, verdict
from zhixing.evaluation.intervals import bootstrap_interval, bootstrap_scores, draw_counts
from zhixing.evaluation.regression import ranks, regression_scores, regression_statistics

FEW = 20  # resamples, where the interval is not what is tested


def _labels(n: int) -> list[str]:
    return [f"class {k}" for k in range(n)]


# ---- by hand


def test_three_classes_by_hand() -> None:
    #            a        b        c
    targets = [0, 0, 0, 0, 1, 1, 2, 2]
    answers = [0, 0, 0, 1, 1, 2, 2, 0]
    found = classification_scores(targets, answers, ["a", "b", "c"], resamples=FEW)
    assert confusion_matrix(targets, answers, 3).tolist() == [[3, 1, 0], [0, 1, 1], [1, 0, 1]]
    values = {name: score.value for name, score in found.scores.items()}
    # hits 3, 1, 1; called 4, 2, 2; there are 4, 2, 2
    assert values["accuracy"] == values["micro_f1"] == 5 / 8
    assert [entry.f1.value for entry in found.classes] == [0.75, 0.5, 0.5]
    assert values["macro_f1"] == pytest.approx(1.75 / 3) and values["weighted_f1"] == pytest.approx(5 / 8)
    # n sum h - sum p t = 8 * 5 - (16 + 4 + 4) = 16; n^2 - sum p^2 = 64 - 24 = 40, twice
    assert values["mcc"] == pytest.approx(16 / 40)
    assert [(entry.support, entry.predicted) for entry in found.classes] == [(4, 4), (2, 2), (2, 2)]


def test_two_labels_by_hand() -> None:
    targets, answers = [[1, 0], [1, 1], [0, 0]], [[1, 1], [1, 0], [0, 0]]
    found = multilabel_scores(targets, answers, ["a", "b"], resamples=FEW)
    values = {name: score.value for name, score in found.scores.items()}
    assert values["micro_f1"] == pytest.approx(2 * 2 / (3 + 3))  # hits 2 of 3 answers and 3 labels
    assert values["macro_f1"] == pytest.approx((1 + 0) / 2)
    assert values["subset_accuracy"] == pytest.approx(1 / 3) and values["hamming_loss"] == pytest.approx(2 / 6)


def test_numbers_by_hand() -> None:
    values = {name: score.value for name, score in regression_scores([1, 2, 3, 4], [1, 2, 3, 8]).scores.items()}
    assert (values["mse"], values["mae"], values["spearman"]) == (4.0, 1.0, pytest.approx(1.0))
    # deviations -1.5 -.5 .5 1.5 and -2.5 -1.5 -.5 4.5: 11 / sqrt(5 * 29)
    assert values["pearson"] == pytest.approx(11 / math.sqrt(5 * 29))


def test_losses_by_hand() -> None:
    p = [[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]]
    assert log_losses([0, 1], p) == pytest.approx([math.log(2), 0.0])
    assert brier_scores([0, 1], p) == pytest.approx([0.25 + 2 / 16, 0.0])
    assert math.isfinite(log_losses([2], [[1.0, 0.0, 0.0]])[0])
    assert brier_scores([[1, 0]], [[0.5, 0.5]]) == pytest.approx([0.25])
    assert log_losses([[1, 0]], [[0.5, 0.25]]) == pytest.approx([(math.log(2) - math.log(0.75)) / 2])


# ---- against scikit-learn


def _random(seed: int, n_classes: int, n: int, absent: bool) -> tuple[Any, Any, Any]:
    """Targets, answers and probabilities; `absent`: some classes are never a target, some never an answer."""
    generator = np.random.default_rng(seed)
    weights = generator.dirichlet(np.ones(n_classes))
    if absent:
        weights[: n_classes // 3] = 0
    targets = generator.choice(n_classes, size=n, p=weights / weights.sum())
    logits = generator.normal(size=(n, n_classes)) + 2 * np.eye(n_classes)[targets]
    if absent:
        logits[:, -1] = -50
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return targets, p.argmax(1), p


@pytest.mark.filterwarnings("ignore:A single label was found")
@pytest.mark.parametrize("absent", [False, True])
@pytest.mark.parametrize("n_classes", [2, 3, 8, 20, 52])
def test_against_scikit_learn(n_classes: int, absent: bool) -> None:
    for seed in range(4):
        y, said, p = _random(seed, n_classes, (7, 60, 400, 1500)[seed], absent)
        labels = _labels(n_classes)
        found = classification_scores(y, said, labels, probabilities=p, resamples=FEW)
        values = {name: score.value for name, score in found.scores.items()}
        assert (
            confusion_matrix(y, said, n_classes) == metrics.confusion_matrix(y, said, labels=range(n_classes))
        ).all()
        expected = {"accuracy": metrics.accuracy_score(y, said), "mcc": metrics.matthews_corrcoef(y, said)}
        for average in ("macro", "weighted", "micro"):
            parts = metrics.precision_recall_fscore_support(y, said, average=average, zero_division=0)
            expected |= {
                f"{average}_{name}": v for name, v in zip(("precision", "recall", "f1"), parts[:3], strict=True)
            }
        expected["log_loss"] = metrics.log_loss(y, p, labels=range(n_classes))
        expected["brier"] = metrics.brier_score_loss(
            *((y == 1, p[:, 1]) if n_classes == 2 else (y, p)), labels=range(n_classes), scale_by_half=False
        )
        for name, value in values.items():
            if name != "ece":
                assert value == pytest.approx(expected[name], abs=1e-12), name
        each = metrics.precision_recall_fscore_support(y, said, labels=range(n_classes), zero_division=0)
        for k, entry in enumerate(found.classes):
            assert (entry.precision.value, entry.recall.value, entry.f1.value) == pytest.approx(
                [c[k] for c in each[:3]]
            )
            assert entry.support == each[3][k] and entry.label == labels[k]


@pytest.mark.parametrize("rate", [0.05, 0.4])
def test_multi_label_against_scikit_learn(rate: float) -> None:
    for seed, (n, n_labels) in enumerate([(5, 2), (80, 7), (500, 20)]):
        generator = np.random.default_rng(seed)
        y = generator.random((n, n_labels)) < rate
        said = y ^ (generator.random((n, n_labels)) < 0.1)
        y[:, 0] = False
        p = generator.random((n, n_labels))
        found = multilabel_scores(y, said, _labels(n_labels), probabilities=p, resamples=FEW)
        values = {name: score.value for name, score in found.scores.items()}
        seen = [k for k in range(n_labels) if y[:, k].any() or said[:, k].any()]  # the macro mean goes over these
        for average in ("macro", "weighted", "micro"):
            expected = metrics.precision_recall_fscore_support(y, said, average=average, labels=seen, zero_division=0)
            for name, value in zip(("precision", "recall", "f1"), expected[:3], strict=True):
                assert values[f"{average}_{name}"] == pytest.approx(value, abs=1e-12)
        assert values["subset_accuracy"] == pytest.approx(metrics.accuracy_score(y, said))
        assert values["hamming_loss"] == pytest.approx(metrics.hamming_loss(y, said))
        losses = [metrics.log_loss(y[:, k], p[:, k], labels=[False, True]) for k in range(n_labels)]
        assert values["log_loss"] == pytest.approx(np.mean(losses))
        assert values["brier"] == pytest.approx(np.mean((p - y) ** 2))


def test_numbers_against_scikit_learn_and_scipy() -> None:
    for seed in range(5):
        generator = np.random.default_rng(seed)
        y = generator.integers(0, 6, 90) / 2 + 1000.0  # ties, and a large offset
        said = y + generator.normal(size=90).round(1)
        values = {name: score.value for name, score in regression_scores(y, said, resamples=FEW).scores.items()}
        assert values["mse"] == pytest.approx(metrics.mean_squared_error(y, said))
        assert values["mae"] == pytest.approx(metrics.mean_absolute_error(y, said))
        assert values["pearson"] == pytest.approx(stats.pearsonr(y, said).statistic)
        assert values["spearman"] == pytest.approx(stats.spearmanr(y, said).statistic)


def test_mcnemar_against_scipy() -> None:
    for b, c in [(0, 0), (1, 0), (3, 9), (12, 12), (24, 0), (0, 25), (13, 12), (40, 60), (300, 100)]:
        found = mcnemar([1] * b + [0] * c + [1, 0], [0] * b + [1] * c + [1, 0])
        assert (found.only_first, found.only_second) == (b, c)
        if b + c < 25:
            assert found.statistic is None
            assert found.p == pytest.approx(stats.binomtest(b, b + c).pvalue if b + c else 1.0)
        else:
            chi2 = (abs(b - c) - 1) ** 2 / (b + c)
            assert found.statistic == pytest.approx(max(0.0, chi2) if b != c else 0)
            assert found.p == pytest.approx(stats.chi2.sf(found.statistic, 1), rel=1e-9)


# ---- intervals


def test_draws_are_texts_drawn_again() -> None:
    rows = np.concatenate(list(draw_counts([3, 0, 2, 5], seed=1, resamples=4000)))
    assert rows.shape == (4000, 4) and (rows.sum(1) == 10).all() and (rows[:, 1] == 0).all()
    assert rows.mean(0) == pytest.approx([3, 0, 2, 5], abs=0.1)
    assert rows.var(0) == pytest.approx([2.1, 0, 1.6, 2.5], rel=0.1)  # n p (1 - p)
    ones = np.concatenate(list(draw_counts(np.ones(10, int), seed=1, resamples=4000)))
    assert (ones.sum(1) == 10).all() and ones.var(0) == pytest.approx([0.9] * 10, rel=0.15)


@pytest.mark.parametrize("counts", [[1] * 37, [5, 9, 1]])
def test_draws_in_blocks_are_the_same(counts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(draw_counts(counts, 5, 50)))
    monkeypatch.setattr(intervals, "DRAWS_HELD", 100)
    assert (np.concatenate(list(draw_counts(counts, 5, 50))) == whole).all()


def test_means_have_the_interval_of_the_ratio() -> None:
    """The same seed draws the same texts here and in `bootstrap_interval`."""
    values = np.random.default_rng(3).normal(size=200)
    found = bootstrap_scores(np.ones(200, int), lambda drawn: {"mean": drawn @ values / 200}, seed=4)["mean"]
    assert [float(end) for end in found[1:]] == pytest.approx(bootstrap_interval(values, np.ones(200), 4))


def test_cells_have_the_interval_of_texts() -> None:
    """Drawing cells of the confusion matrix and drawing texts one by one: the same distribution."""
    y, said, _ = _random(7, 5, 600, absent=False)
    found = classification_scores(y, said, _labels(5), resamples=4000).scores
    generator = np.random.default_rng(0)
    f1, mcc = [], []
    for _ in range(4000):
        rows = generator.integers(0, 600, 600)
        matrix = confusion_matrix(y[rows], said[rows], 5).astype(float)
        counts = np.diag(matrix), matrix.sum(0), matrix.sum(1)
        f1.append(averages(*counts)["macro_f1"])
        mcc.append(matthews(*counts))
    for name, draws in (("macro_f1", f1), ("mcc", mcc)):
        assert (found[name].low, found[name].high) == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.006)


def test_weighted_numbers_are_numbers_of_copies() -> None:
    """A text drawn k times counts as k texts: ranks and correlations of the weighted rows, against scipy's of copies."""
    generator = np.random.default_rng(0)
    y, said = generator.integers(0, 5, 30).astype(float), generator.integers(0, 5, 30).astype(float)
    drawn = np.concatenate(list(draw_counts(np.ones(30, int), 0, 8)))
    found = regression_statistics(drawn, y, said)
    for r, row in enumerate(drawn.astype(int)):
        a, b = np.repeat(y, row), np.repeat(said, row)
        assert np.repeat(ranks(drawn[r : r + 1], y)[0], row) == pytest.approx(stats.rankdata(a))
        assert found["spearman"][r] == pytest.approx(stats.spearmanr(a, b).statistic)
        assert found["pearson"][r] == pytest.approx(stats.pearsonr(a, b).statistic)
        assert found["mse"][r] == pytest.approx(np.mean((a - b) ** 2))


def test_the_interval_of_the_calibration_error_holds_the_truth() -> None:
    """A calibrated and an overconfident classifier, 40 samples each; the truth is that of 200,000 texts."""
    generator = np.random.default_rng(0)
    for sharpness, least in ((1.0, 0.5), (2.0, 0.8)):
        logits = generator.normal(size=200_000) * 2
        y = (generator.random(200_000) < 1 / (1 + np.exp(-logits))).astype(np.int64)
        said = 1 / (1 + np.exp(-sharpness * logits))
        p = np.stack([1 - said, said], axis=1)
        truth = reliability(p.max(axis=1), p.argmax(axis=1) == y).error
        held = 0
        for first in range(0, 40 * 300, 300):
            rows = slice(first, first + 300)
            score = classification_scores(
                y[rows], p[rows].argmax(1), ["a", "b"], probabilities=p[rows], resamples=200
            ).scores["ece"]
            assert 0 <= score.low <= score.value <= score.high <= 1
            held += score.low <= truth <= score.high
        assert held / 40 >= least, (sharpness, truth, held)  # the percentile interval: 0 and 28 of 40


def test_intervals_repeat_and_follow_the_seed() -> None:
    y, said, p = _random(1, 4, 100, absent=False)
    one, two, other = (classification_scores(y, said, _labels(4), probabilities=p, seed=s) for s in (0, 0, 1))
    assert one == two and one.scores["accuracy"] != other.scores["accuracy"]
    assert all(score.n == 100 and score.low <= score.value <= score.high for score in one.scores.values())


def test_too_few_texts_have_no_interval() -> None:
    one = classification_scores([1], [1], ["a", "b"], probabilities=[[0.2, 0.8]])
    assert all((score.low, score.high) == (-math.inf, math.inf) for score in one.scores.values())
    json.dumps(one.to_dict(), allow_nan=False)
    y = [0] * 30 + [1]  # one text of class 1 says nothing of another, in whatever company
    rare = classification_scores(y, y, ["a", "b"]).classes[1]
    assert rare.f1.value == 1.0 and (rare.f1.low, rare.f1.high) == (-math.inf, math.inf)


def test_a_draw_of_one_class_says_nothing_of_the_correlation() -> None:
    """Two texts of 60 are b and all is right: one draw in eight has no b, and its 0 / 0 is no correlation of 0."""
    y = [0] * 58 + [1] * 2
    found = classification_scores(y, y, ["a", "b"]).scores["mcc"]
    assert (found.low, found.value, found.high) == (pytest.approx(1.0), pytest.approx(1.0), pytest.approx(1.0))
    constant = classification_scores(y, [0] * 60, ["a", "b"]).scores["mcc"]
    assert (constant.low, constant.value, constant.high) == (0.0, 0.0, 0.0)


def test_an_interval_rests_on_the_texts_that_the_score_is_a_share_of() -> None:
    """Called b once, and rightly, of 30: nothing is known of its precision, and much of its recall. And turned round."""
    y, said = [0] * 10 + [1] * 30, [0] * 39 + [1]
    called_once = classification_scores(y, said, ["a", "b"]).classes[1]
    assert (called_once.precision.low, called_once.precision.high) == (-math.inf, math.inf)
    assert math.isfinite(called_once.recall.low) and math.isfinite(called_once.f1.low)
    there_once = classification_scores(said, y, ["a", "b"]).classes[1]
    assert (there_once.recall.low, there_once.recall.high) == (-math.inf, math.inf)
    assert math.isfinite(there_once.precision.low) and math.isfinite(there_once.f1.low)
    for entry in (called_once, there_once, multilabel_scores([[1], [1], [0]], [[1], [0], [1]], ["b"]).classes[0]):
        assert (entry.precision.n, entry.recall.n) == (entry.predicted, entry.support)
    assert (called_once.f1.n, there_once.f1.n) == (30, 30)


# ---- what always holds

pairs = st.integers(2, 6).flatmap(
    lambda c: st.tuples(
        st.just(c), st.lists(st.tuples(st.integers(0, c - 1), st.integers(0, c - 1)), min_size=1, max_size=40)
    )
)


@given(case=pairs)
@settings(max_examples=60, deadline=None)
def test_scores_in_their_bounds(case: tuple[int, list[tuple[int, int]]]) -> None:
    n_classes, rows = case
    y, said = (np.array(column) for column in zip(*rows, strict=True))
    found = classification_scores(y, said, _labels(n_classes), resamples=FEW)
    for name, score in found.scores.items():
        assert (-1 if name == "mcc" else 0) <= score.value <= 1, name
        assert not math.isnan(score.low) and not math.isnan(score.high)
    assert found.scores["micro_f1"].value == found.scores["accuracy"].value
    # neither the order of the texts nor the names of the classes matter
    turned = classification_scores(
        (y[::-1] + 1) % n_classes, (said[::-1] + 1) % n_classes, _labels(n_classes), resamples=FEW
    )
    for name, score in found.scores.items():
        assert turned.scores[name].value == pytest.approx(score.value, abs=1e-12)
    swapped = classification_scores(said, y, _labels(n_classes), resamples=FEW)  # truth and answer change places
    assert swapped.scores["mcc"].value == pytest.approx(found.scores["mcc"].value, abs=1e-12)
    assert swapped.scores["macro_precision"].value == pytest.approx(found.scores["macro_recall"].value, abs=1e-12)
    whole = classification_scores(y, y, _labels(n_classes), resamples=FEW).scores
    assert whole["macro_f1"].value == 1.0 and whole["accuracy"].value == 1.0
    json.dumps(found.to_dict(), allow_nan=False)


@given(st.lists(st.integers(-3, 3), min_size=2, max_size=30), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_correlations_in_their_bounds(values: list[int], seed: int) -> None:
    said = np.random.default_rng(seed).integers(-2, 3, len(values))
    scores = regression_scores(values, said, resamples=FEW).scores
    for name in ("pearson", "spearman"):
        assert math.isnan(scores[name].value) == (len(set(values)) == 1 or len(set(said.tolist())) == 1)
        assert math.isnan(scores[name].value) or -1 <= scores[name].value <= 1
    json.dumps(regression_scores(values, said, resamples=FEW).to_dict(), allow_nan=False)


# ---- what a person gives


def test_unknown_labels_are_not_counted() -> None:
    some = classification_scores(
        [0, -100, 1], [0, 1, 0], ["a", "b"], probabilities=[[0.9, 0.1], [0.5, 0.5], [0.6, 0.4]]
    )
    assert some == classification_scores([0, 1], [0, 0], ["a", "b"], probabilities=[[0.9, 0.1], [0.6, 0.4]])
    assert regression_scores([1, math.nan, 2], [1, 5, 3]) == regression_scores([1, 2], [1, 3])


def test_nothing_to_score() -> None:
    with pytest.raises(InputError, match="nothing to evaluate"):
        classification_scores([-100], [0], ["a"])
    with pytest.raises(InputError, match="nothing to evaluate"):
        multilabel_scores(np.zeros((0, 2)), np.zeros((0, 2)), ["a", "b"])
    with pytest.raises(InputError, match="nothing to evaluate"):
        regression_scores([math.nan], [1.0])
    with pytest.raises(InputError, match="text 3"):  # the third of all, as a person counts
        classification_scores([-1, 0, 0], [0, 0, 0], ["a", "b"], probabilities=[[1, 0], [1, 0], [math.nan, 0]])
    with pytest.raises(InputError, match="text 2"):
        multilabel_scores([[0], [0]], [[0], [0]], ["a"], probabilities=[[1], [math.nan]])
    with pytest.raises(InputError, match="text 3"):
        regression_scores([math.nan, 1.0, 2.0], [1.0, 1.0, math.inf])
    with pytest.raises(ValueError, match="from 0 to 1"):
        classification_scores([2], [0], ["a", "b"])


def test_one_class_only() -> None:
    scores = classification_scores([0] * 9, [0] * 9, ["only"], probabilities=np.ones((9, 1))).scores
    assert scores["accuracy"].value == 1.0 and scores["mcc"].value == 0.0 and scores["log_loss"].value < 1e-12


# ---- a result, and two of them


def _result(seed: int = 0, **changes: Any) -> ClassificationResult:
    y, said, p = _random(seed, 3, 200, absent=False)
    texts = [f"text {i}" for i in range(200)]
    return ClassificationResult(["a", "b", "c"], y, said, p, texts, **changes)


def test_a_result_scores_itself() -> None:
    result = _result(name="run")
    assert result_scores(result) == classification_scores(
        result.targets, result.predictions, result.labels, probabilities=result.probabilities
    )
    table = result_reliability(result)
    assert table is not None and table.counts.sum() == 200
    assert table.error == pytest.approx(result_scores(result).scores["ece"].value)


def test_baselines() -> None:
    y = np.array([0, 0, 1, 1, 1])
    result = ClassificationResult(["a", "b"], y, y)
    assert baselines(result) == {"most frequent label": 0.6}
    trained = ClassificationResult(["a", "b"], y, y, train_counts=np.array([9, 4]), other_baselines={"SVM": 0.9})
    assert baselines(trained) == {"most frequent label": 0.4, "SVM": 0.9}
    table = np.array([[1, 0], [1, 1], [0, 0]])
    several = ClassificationResult(["a", "b"], table, table, problem_type="multi_label_classification")
    always = np.array([[1, 0]] * 3)
    assert baselines(several)["most frequent label"] == pytest.approx(metrics.f1_score(table, always, average="micro"))
    graded = ClassificationResult([], y, y, problem_type="regression")
    assert baselines(graded)["mean rating"] == pytest.approx(y.var())


def test_the_most_confident_mistakes() -> None:
    p = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.99, 0.01]])
    result = ClassificationResult(["a", "b"], np.array([1, 1, 0, -100]), p.argmax(1), p, ["w", "x", "y", "z"])
    assert [(m.text, m.target, m.answer, m.size) for m in mistakes(result)] == [
        ("w", "b", "a", 0.9),
        ("y", "a", "b", 0.6),
    ]
    table = np.array([[1, 0], [0, 0], [1, 1], [1, 0]])
    several = ClassificationResult(["a", "b"], table, p > 0.5, p, problem_type="multi_label_classification")
    assert [(m.row, m.target, m.answer) for m in mistakes(several, 2)] == [(1, "not b", "b"), (2, "a", "not a")]
    graded = ClassificationResult([], np.array([1.0, 5.0]), np.array([1.5, 1.0]), problem_type="regression")
    assert [(m.row, m.size) for m in mistakes(graded)] == [(1, 4.0), (0, 0.5)]


def test_comparison_with_itself() -> None:
    same = compare(_result(name="x"), _result(name="x"))
    assert all(score.value == score.low == score.high == 0 for score in same.difference.values())
    assert same.mcnemar is not None and same.mcnemar.p == 1.0 and same.differing == ()
    assert "every text alike" in comparison_text(same)


def test_comparison() -> None:
    first = _result(name="bag")
    better = np.where(np.arange(200) % 2 == 0, first.targets, first.predictions)
    second = ClassificationResult(first.labels, first.targets, better, texts=first.texts, name="bert")
    found = compare(first, second)
    assert found.second["accuracy"].value == (better == first.targets).mean()
    gain = found.difference["accuracy"]
    n_better = int((better != first.predictions).sum())
    assert gain.value == pytest.approx(n_better / 200) and 0 < gain.low < gain.value < gain.high
    assert found.mcnemar == mcnemar(first.right, second.right) and found.mcnemar.only_second == n_better
    assert len(found.differing) == n_better and all(d.second_right and not d.first_right for d in found.differing)
    assert "bert is better" in verdict(found)
    text = comparison_text(found, width=80)
    for piece in ("bag and bert", "accuracy", "macro F1", "McNemar", f"text {found.differing[0].row}", "✓"):
        assert piece in text
    said = found.to_dict(most=2)
    assert json.loads(json.dumps(said, allow_nan=False)) == said
    assert len(said["differing"]) == 2 and said["n_differing"] == n_better


def test_paired_difference_is_narrower() -> None:
    """Two classifiers that err on the same texts but for a few: the difference is surer than either score."""
    y = np.arange(1000) % 2
    wrong = np.arange(1000) < 200
    first, second = np.where(wrong, 1 - y, y), np.where(wrong & (np.arange(1000) >= 15), 1 - y, y)
    found = compare(ClassificationResult(["a", "b"], y, first), ClassificationResult(["a", "b"], y, second))
    difference, score = found.difference["accuracy"], found.first["accuracy"]
    assert difference.value == pytest.approx(0.015) and difference.low > 0
    assert difference.high - difference.low < 0.4 * (score.high - score.low)


def test_labels_are_matched_by_name() -> None:
    first = _result()
    order = np.array([2, 0, 1])  # old id -> new id
    second = ClassificationResult(["b", "c", "a"], order[first.targets], order[first.predictions], texts=first.texts)
    assert compare(first, second).differing == ()
    more = ClassificationResult(["z", "a", "b", "c"], first.targets + 1, first.predictions * 0, texts=first.texts)
    assert {d.second for d in compare(first, more).differing} == {"z"}


def test_comparison_of_other_kinds() -> None:
    table = np.array([[1, 0], [1, 1], [0, 0]] * 9)
    kind: Any = {"problem_type": "multi_label_classification"}
    found = compare(
        ClassificationResult(["a", "b"], table, table, **kind),
        ClassificationResult(["a", "b"], table, table * [1, 0], **kind),
    )
    assert found.difference["subset_accuracy"].value == pytest.approx(-1 / 3) and found.mcnemar is not None
    assert found.differing[0].first == "a, b" and found.differing[0].second == "a"
    kind = {"problem_type": "regression"}
    y = np.linspace(0, 1, 30)
    found = compare(ClassificationResult([], y, y, **kind), ClassificationResult([], y, y[::-1], **kind))
    assert found.difference["pearson"].value == pytest.approx(-2) and found.mcnemar is None
    assert "MSE" in comparison_text(found)
    for scale, mse, answer in ((1e-3, "+1e-06", "0.001"), (1e4, "+100,000,000", "190,000")):
        near, off = (
            ClassificationResult([], y, y + add, **kind) for y in [np.arange(30) * scale] for add in (0, scale)
        )
        text = comparison_text(compare(near, off))
        assert mse in text and answer in text and "e+" not in text


def test_results_that_cannot_be_compared() -> None:
    first = _result()
    with pytest.raises(InputError, match="different texts"):
        compare(first, ClassificationResult(["a"], np.zeros(3, int), np.zeros(3, int)))
    texts = ["other", *(first.texts or [])[1:]]
    with pytest.raises(InputError, match="different texts"):
        compare(first, ClassificationResult(first.labels, first.targets, first.predictions, texts=texts))
    with pytest.raises(InputError, match="right answers"):
        compare(first, ClassificationResult(first.labels, first.predictions, first.predictions))
    a, b = np.array([math.nan, 1.0, 2.0]), np.array([math.nan, 1.0, 3.0])
    with pytest.raises(InputError, match="text 2"):
        compare(*(ClassificationResult([], y, np.zeros(3), problem_type="regression") for y in (a, b)))
    with pytest.raises(InputError, match="different questions"):
        compare(first, ClassificationResult([], first.targets, first.predictions, problem_type="regression"))
