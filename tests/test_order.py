"""The data order: a bijection for every n, different from epoch to epoch, the same as arrays, and fair."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zhixing.tokens.order import permute, permute_array

SIZES = [
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    9,
    15,
    16,
    17,
    31,
    32,
    64,
    97,
    100,
    121,
    127,
    128,
    255,
    256,
    257,
    625,
    1009,
    1024,
    4099,
]
GOLDEN = [7, 4, 1, 9, 2, 3, 6, 0, 8, 5]
GOLDEN_LARGE = 480691572549


@pytest.mark.parametrize("n", SIZES)
def test_bijection(n: int) -> None:
    for seed, epoch in ((0, 0), (1, 0), (0, 1), (2**63, 12345)):
        assert sorted(permute(i, n, seed, epoch) for i in range(n)) == list(range(n))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**64 - 1), st.integers(0, 10**6))
def test_bijection_of_any(n: int, seed: int, epoch: int) -> None:
    assert len(np.unique(permute_array(np.arange(n), n, seed, epoch))) == n


@settings(max_examples=200, deadline=None)
@given(st.data(), st.integers(1, 2**60), st.integers(0, 2**64 - 1), st.integers(0, 10**9))
def test_arrays_equal_scalars(data: st.DataObject, n: int, seed: int, epoch: int) -> None:
    indices = data.draw(st.lists(st.integers(0, n - 1), max_size=8))
    expected = [permute(i, n, seed, epoch) for i in indices]
    assert all(0 <= place < n for place in expected)
    assert permute_array(np.array(indices, np.int64), n, seed, epoch).tolist() == expected


def test_epochs_seeds_and_sizes_differ() -> None:
    n = 1000
    orders = [permute_array(np.arange(n), n, seed, epoch) for seed in range(5) for epoch in range(5)]
    for one, other in itertools.combinations(orders, 2):
        assert np.count_nonzero(one == other) < 15  # 1 expected by chance; 15 has a chance of 1e-12
    for order in orders:
        assert np.count_nonzero(order == np.arange(n)) < 15


def test_small_orders_are_uniform() -> None:
    """Each of the 24 orders of 4 samples comes equally often over seeds: chi squared of 23 degrees of freedom."""
    trials = 4800
    counts = Counter(tuple(permute(i, 4, seed, 0) for i in range(4)) for seed in range(trials))
    expected = trials / math.factorial(4)
    chi = sum((counts[order] - expected) ** 2 / expected for order in itertools.permutations(range(4)))
    assert chi < 60  # 1 in 30,000 for a fair one


def test_no_pattern_between_neighbours() -> None:
    """Ranks correlate neither with the index nor with the next rank, nor with the same rank an epoch later."""
    n = 20_011
    order, later = (permute_array(np.arange(n), n, 7, epoch).astype(float) for epoch in (0, 1))
    for x, y in ((np.arange(n), order), (order[:-1], order[1:]), (order, later)):
        assert abs(np.corrcoef(x, y)[0, 1]) < 5 / math.sqrt(n)
    thirds = np.histogram2d(np.arange(n), order, bins=10)[0]  # 100 cells of 200 each
    assert ((thirds - n / 100) ** 2 / (n / 100)).sum() < 150  # 81 degrees of freedom


def test_golden() -> None:
    """The order is a promise: a run that is resumed by a later version goes on with the same samples."""
    assert [permute(i, 10, 0, 0) for i in range(10)] == GOLDEN
    assert permute(123_456_789, 10**12, 42, 7) == GOLDEN_LARGE


def test_outside_is_refused() -> None:
    for index, n in ((-1, 5), (5, 5), (0, 0)):
        with pytest.raises(ValueError, match="range"):
            permute(index, n, 0, 0)
        with pytest.raises(ValueError, match="range"):
            permute_array(np.array([index]), n, 0, 0)
