"""Temperature and calibration error: by hand, against a plain search, and what must always hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from zhixing.errors import InputError
from zhixing.evaluation.calibration import (
    COLDEST,
    HOTTEST,
    bin_of,
    fit_temperature,
    reliability,
    sigmoid,
    softmax,
    uncalibrated,
)


def _logits(seed: int, n: int = 400, n_classes: int = 5, sharpness: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that would be calibrated, drawn, and then multiplied by `sharpness`."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(n, n_classes)) * 1.5
    targets = np.array([generator.choice(n_classes, p=row) for row in softmax(logits)])
    return logits * sharpness, targets


def test_temperature_by_hand() -> None:
    # three of four right at logits (2, 0): Laplace's rule says 4/6, so 2 / T = ln 2
    assert fit_temperature([[2.0, 0.0]] * 4, [0, 0, 0, 1]) == pytest.approx(2 / math.log(2))
    assert fit_temperature([[2.0], [2.0], [2.0], [2.0]], [[1], [1], [1], [0]]) == pytest.approx(2 / math.log(2))
    # of 3,000 of 4,000 it is 3/4 but for a hair
    assert fit_temperature([[2.0, 0.0]] * 4000, [0, 0, 0, 1] * 1000) == pytest.approx(2 / math.log(3), rel=1e-3)


@pytest.mark.parametrize("n", [1, 5, 10, 100])
@pytest.mark.parametrize("n_classes", [2, 4])
def test_a_few_right_answers_make_nobody_certain(n: int, n_classes: int) -> None:
    """Every held-out text is right: the confidence is that of n + 1 right ones of n + 2, not 100 %."""
    logits = np.tile([5.0] + [0.0] * (n_classes - 1), (n, 1))
    temperature = fit_temperature(logits, [0] * n)
    assert softmax(logits[0], temperature)[0] == pytest.approx((n + 1) / (n + 2))
    several = fit_temperature([[5.0, -5.0]] * n, [[1, 0]] * n)
    assert sigmoid(5.0, several) == pytest.approx((n + 1) / (n + 2))


@pytest.mark.parametrize("sharpness", [0.2, 1.0, 3.0, 12.0])
def test_temperature_undoes_what_was_done(sharpness: float) -> None:
    logits, targets = _logits(0, n=6000, sharpness=sharpness)
    assert fit_temperature(logits, targets) == pytest.approx(sharpness, rel=0.06)
    generator = np.random.default_rng(1)
    several = generator.normal(size=(3000, 4)) * 2
    labels = generator.random((3000, 4)) < sigmoid(several)
    assert fit_temperature(several * sharpness, labels) == pytest.approx(sharpness, rel=0.06)


@given(seed=st.integers(0, 10_000), sharpness=st.floats(0.1, 20), n=st.integers(1, 30), several=st.booleans())
@settings(max_examples=60, deadline=None)
def test_no_other_temperature_has_a_lower_loss(seed: int, sharpness: float, n: int, several: bool) -> None:
    logits, ids = _logits(seed, n, 3, sharpness)
    targets = np.eye(3)[ids] if several else ids
    best = fit_temperature(logits, targets)
    assert COLDEST <= best <= HOTTEST

    rest = 1 / (n + 2)
    wanted = np.where(np.eye(3)[ids] > 0, 1 - rest, rest)
    if not several:  # the rest is the likeliest other's
        other = np.where(np.eye(3)[ids] > 0, -np.inf, logits).argmax(1)
        wanted = np.eye(3)[ids] * (1 - rest) + np.eye(3)[other] * rest

    def loss(temperature: float) -> float:
        p = (sigmoid if several else softmax)(logits, temperature).clip(1e-300, 1 - 1e-16)
        return float(-(wanted * np.log(p) + several * (1 - wanted) * np.log1p(-p)).mean())

    for other in np.geomspace(COLDEST, HOTTEST, 41):
        assert loss(best) <= loss(other) + 1e-9


def test_the_ends() -> None:
    assert fit_temperature([[1e-3, 0.0], [0.0, 1e-3]], [0, 1]) == COLDEST  # all right, and hardly said
    assert fit_temperature([[1.0, 0.0], [0.0, 1.0]], [1, 0]) == HOTTEST  # all wrong
    assert fit_temperature([[3.0, 3.0]], [0]) == 1.0  # every temperature is alike
    assert fit_temperature([[3.0], [1.0]], [0, 0]) == 1.0


def test_large_logits() -> None:
    assert np.isfinite(softmax([[1e6, -1e6]])).all() and np.isfinite(sigmoid([1e6, -1e6])).all()
    assert fit_temperature([[1e6, 0.0]] * 4, [0, 0, 0, 1]) == HOTTEST
    shifted = fit_temperature(np.array([[2.0, 0.0]] * 4) + 1e5, [0, 0, 0, 1])  # the softmax sees differences only
    assert shifted == pytest.approx(2 / math.log(2))


def test_what_cannot_be_fitted() -> None:
    with pytest.raises(InputError, match="nothing to fit"):
        fit_temperature([[1.0, 2.0]], [-100])
    with pytest.raises(InputError, match="not finite"):
        fit_temperature([[1.0, math.nan]], [0])
    with pytest.raises(ValueError, match="below 2"):
        fit_temperature([[1.0, 0.0]], [2])
    some = fit_temperature([[2.0, 0.0]] * 4 + [[9.0, 1.0]], [0, 0, 0, 1, -100])
    assert some == pytest.approx(2 / math.log(2))


def test_the_answer_does_not_change() -> None:
    logits, _ = _logits(2)
    assert (softmax(logits, 4.0).argmax(1) == logits.argmax(1)).all()
    assert uncalibrated(softmax(logits, 4.0), 4.0) == pytest.approx(softmax(logits))
    assert uncalibrated(sigmoid(logits, 4.0), 4.0, several=True) == pytest.approx(sigmoid(logits), abs=1e-6)


def test_calibration_error_by_hand() -> None:
    # two bins: 0.3 and 0.5 with one of two right, 0.9 and 1.0 with both right
    table = reliability([0.3, 0.5, 0.9, 1.0], [1, 0, 1, 1], bins=2)
    assert table.counts.tolist() == [2, 2]
    assert table.confidence == pytest.approx([0.4, 0.95]) and table.accuracy == pytest.approx([0.5, 1.0])
    assert table.error == pytest.approx((0.1 * 2 + 0.05 * 2) / 4)
    assert reliability([1.0] * 5, [1] * 5).error == 0 and reliability([1.0] * 5, [0] * 5).error == 1


def test_edges_belong_to_the_bin_below() -> None:
    assert bin_of(np.linspace(0, 1, 16)).tolist() == [0, *range(15)]


def test_reliability_against_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    sure = generator.random(3000)
    right = generator.random(3000) < sure**2
    table = reliability(sure, right)
    share, mean = calibration_curve(right, sure, n_bins=15)
    assert table.accuracy == pytest.approx(share) and table.confidence == pytest.approx(mean)
    assert table.counts.sum() == 3000


def test_fitting_lowers_the_error() -> None:
    logits, targets = _logits(3, n=4000, sharpness=4.0)
    held, rest = slice(0, 2000), slice(2000, None)
    temperature = fit_temperature(logits[held], targets[held])
    errors = []
    for t in (1.0, temperature):
        p = softmax(logits[rest], t)
        errors.append(reliability(p.max(1), p.argmax(1) == targets[rest]).error)
    assert errors[0] > 0.15 and errors[1] < 0.04


def test_what_is_no_confidence() -> None:
    with pytest.raises(ValueError, match="0 to 1"):
        reliability([1.2], [1])
    with pytest.raises(ValueError, match="equal length"):
        reliability([], [])
