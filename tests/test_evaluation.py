"""Scores against values computed by hand, and the compressor against the command it stands for."""

from __future__ import annotations

import json
import math
import random
import shutil
import subprocess

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zhixing.errors import InputError
from zhixing.evaluation import intervals
from zhixing.evaluation.baselines import count_ids, unigram_bits_per_byte, xz_bits_per_byte, xz_size
from zhixing.evaluation.intervals import bootstrap_interval
from zhixing.evaluation.language import language_scores


def test_scores_by_hand() -> None:
    # 3 tokens of 1 bit over 3 bytes, 1 token of 5 bits over 1 byte: 8 bits, 4 tokens, 4 bytes
    ln2 = math.log(2)
    scores = language_scores([3 * ln2, 5 * ln2], [3, 1], [3, 1], [2, 0])
    assert scores.loss.value == pytest.approx(2 * ln2)
    assert scores.perplexity.value == pytest.approx(4.0)
    assert scores.bits_per_byte.value == pytest.approx(2.0)
    assert scores.accuracy.value == 0.5
    # two documents: a resample is AA, AB, BA or BB, so the ends of the interval are the two documents' own scores
    assert (scores.bits_per_byte.low, scores.bits_per_byte.high) == pytest.approx((1.0, 5.0))
    assert (scores.perplexity.low, scores.perplexity.high) == pytest.approx((2.0, 32.0))
    assert (scores.n_targets, scores.n_bytes, scores.loss.n) == (4, 4, 2)


def test_scores_to_dict_is_json() -> None:
    two = language_scores([2.0, 4.0], [2, 2], [4, 4], [1, 1], seed=7).to_dict()
    assert two == json.loads(json.dumps(two, allow_nan=False))
    assert two["low"] <= two["bits_per_byte"] <= two["high"]
    assert two["intervals"]["bits_per_byte"] == [two["low"], two["high"]]
    assert (two["seed"], two["n"]) == (7, 2)
    one = language_scores([2.0], [2], [4], [1]).to_dict()
    assert one["low"] is None and one["intervals"]["perplexity"] == [None, None]
    json.dumps(one, allow_nan=False)


def test_documents_without_targets_are_left_out() -> None:
    assert language_scores([2.0, 0.0], [2, 0], [4, 0], [1, 0]) == language_scores([2.0], [2], [4], [1])


def test_a_window_without_bytes_is_part_of_the_one_before() -> None:
    """A last window of one target, the end of the text, has nothing but its loss."""
    whole = language_scores([2.0, 6.5], [2, 4], [4, 9], [1, 2])
    assert language_scores([2.0, 6.0, 0.5], [2, 3, 1], [4, 9, 0], [1, 1, 1]) == whole
    assert language_scores([0.5, 1.5, 6.5], [1, 1, 4], [0, 4, 9], [1, 0, 2]) == whole
    with pytest.raises(InputError, match="nothing to evaluate"):
        language_scores([1.0], [1], [0], [0])


def test_bad_sums() -> None:
    with pytest.raises(InputError, match="nothing to evaluate"):
        language_scores([], [], [], [])
    with pytest.raises(InputError, match="document 1"):
        language_scores([1.0, math.nan], [1, 1], [1, 1], [0, 0])
    with pytest.raises(ValueError, match="equal length"):
        language_scores([1.0], [1, 1], [1, 1], [0, 0])


def test_bootstrap_is_reproducible_and_seeded() -> None:
    values = np.random.default_rng(1).normal(3, 1, 50)
    ones = np.ones(50)
    assert bootstrap_interval(values, ones, 0) == bootstrap_interval(values, ones, 0)
    assert bootstrap_interval(values, ones, 0) != bootstrap_interval(values, ones, 1)


def test_bootstrap_in_blocks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).normal(3, 1, 37)
    whole = bootstrap_interval(values, np.ones(37), 5)
    monkeypatch.setattr(intervals, "DRAWS_HELD", 100)
    assert bootstrap_interval(values, np.ones(37), 5) == whole


def test_bootstrap_against_normal_theory() -> None:
    """The mean of 400 draws of N(0, 1) has standard error 1 / 20, so its interval is about 2 * 1.96 / 20 wide."""
    values = np.random.default_rng(2).normal(0, 1, 400)
    low, high = bootstrap_interval(values, np.ones(400), 0, resamples=4000)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.05)


def test_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(3)
    covered = 0
    for trial in range(200):
        sizes = generator.integers(5, 50, 60)
        sums = generator.poisson(2.0 * sizes)  # the true ratio is 2
        low, high = bootstrap_interval(sums, sizes, trial, resamples=400)
        covered += low <= 2.0 <= high
    assert 178 <= covered <= 200  # 0.95 of 200 is 190, standard deviation 3.1


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0.1, 50)), min_size=2, max_size=20), st.integers(0, 5))
def test_interval_lies_between_the_extreme_documents(pairs: list[tuple[float, float]], seed: int) -> None:
    tops, bottoms = np.array(pairs).T
    low, high = bootstrap_interval(tops, bottoms, seed, resamples=50)
    ratios = tops / bottoms
    assert ratios.min() * (1 - 1e-9) - 1e-9 <= low <= high <= ratios.max() * (1 + 1e-9) + 1e-9


def test_bootstrap_refuses_what_it_cannot_use() -> None:
    assert bootstrap_interval([1.0], [1.0], 0) == (-math.inf, math.inf)
    for tops, bottoms in (([1.0], [1.0, 2.0]), ([1.0, 1.0], [1.0, 0.0])):
        with pytest.raises(ValueError):
            bootstrap_interval(tops, bottoms, 0)


def test_count_ids() -> None:
    counts = count_ids([[0, 1, 1], np.array([[3, -100], [1, 0]])], 4)
    assert counts.tolist() == [2, 3, 0, 1]
    with pytest.raises(ValueError, match="below 4"):
        count_ids([[4]], 4)


def test_unigram_by_hand() -> None:
    # V = 2, counts 2 and 0: p = 3/4, 1/4; held out: three times 0 and once 1, over 2 bytes
    expected = (3 * math.log2(4 / 3) + 2) / 2
    assert unigram_bits_per_byte([2, 0], [3, 1], 2) == pytest.approx(expected)


def test_unigram_of_uniform_bytes_is_eight_bits() -> None:
    assert unigram_bits_per_byte(np.full(256, 9), np.full(256, 3), 256 * 3) == pytest.approx(8.0)


def _text() -> bytes:
    generator = random.Random(0)
    words = ["sense", "and", "sensibility", "知行合一", "of", "the", "pride", "emma"]
    return " ".join(generator.choice(words) for _ in range(20_000)).encode()


@pytest.mark.skipif(shutil.which("xz") is None, reason="needs the xz command")
def test_xz_is_what_the_command_makes() -> None:
    for text in (b"a", _text(), bytes(random.Random(1).randbytes(3 * 2**20))):
        made = subprocess.run(
            ["xz", "-9", "--threads=1", "--stdout"], input=text, capture_output=True, check=True
        ).stdout
        assert xz_size(text) == len(made)
        assert xz_bits_per_byte(text) == 8 * len(made) / len(text)


def test_xz_that_has_seen_the_text_needs_less() -> None:
    text = _text()
    train, heldout = text[:-20_000], text[-20_000:]
    assert xz_bits_per_byte(heldout, train) < xz_bits_per_byte(heldout)
    assert xz_bits_per_byte(train[-20_000:], train) < 0.1  # it is in the window, word for word
    with pytest.raises(ValueError):
        xz_bits_per_byte(b"")
